#![allow(clippy::unwrap_used, reason = "tests")]

use super::incoming::Direct;
use super::outgoing::Outgoing;
use super::{Chunked, PREFIX_BYTES};
use crate::grpc::MAX_DECODED_BYTES;
use crate::pb::v1;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::stream;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};
use prost::Message as _;
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::{Code, Status};
use v1::fetch_blob_response::Part;

type Message = v1::FetchBlobResponse;

/// A body of these frames.
struct Frames(VecDeque<Result<Frame<Bytes>, Status>>);

impl HttpBody for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.pop_front())
    }
}

fn header(name: &str) -> Message {
    let header = v1::FetchBlobHeader { r#ref: name.to_owned(), size_bytes: Some(7) };
    Message { part: Some(Part::Header(header)) }
}

fn on_the_wire(message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.put_u32(u32::try_from(message.len()).unwrap());
    bytes.extend_from_slice(message);
    bytes
}

/// Cuts the bytes at these lengths, again and again.
fn frames(mut bytes: Bytes, lengths: &[usize]) -> VecDeque<Result<Frame<Bytes>, Status>> {
    let mut frames = VecDeque::new();
    for length in lengths.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        frames.push_back(Ok(Frame::data(bytes.split_to(bytes.len().min(*length)))));
    }
    frames
}

async fn read(frames: VecDeque<Result<Frame<Bytes>, Status>>) -> (Vec<Message>, Result<(), Status>) {
    let mut direct = Direct::<Message>::new(Body::new(Frames(frames)));
    let mut messages = Vec::new();
    loop {
        match direct.message().await {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return (messages, Ok(())),
            Err(status) => return (messages, Err(status)),
        }
    }
}

/// Chunks that follow one another as one, and empty ones left out: how a stream is cut is nothing that it says.
fn joined(messages: Vec<Message>) -> Vec<Message> {
    let mut all: Vec<Message> = Vec::new();
    for message in messages {
        let Some(chunk) = message.chunk() else {
            all.push(message);
            continue;
        };
        if chunk.is_empty() {
            continue;
        }
        match all.last_mut().and_then(|last| last.chunk().cloned()) {
            Some(before) => *all.last_mut().unwrap() = Message::of_chunk([before, chunk.clone()].concat().into()),
            None => all.push(message),
        }
    }
    all
}

fn messages() -> impl Strategy<Value = Vec<Message>> {
    let size = prop_oneof![Just(0usize), 1usize..200, 4000usize..4200, 16_300usize..16_500];
    let chunk = (size, any::<u8>()).prop_map(|(size, byte)| Message::of_chunk(vec![byte; size].into()));
    let other = prop_oneof![Just(Message { part: None }), "[a-z]{0,300}".prop_map(|name| header(&name))];
    proptest::collection::vec(prop_oneof![3 => chunk, 1 => other], 0..8)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    #[test]
    fn what_the_codec_writes_is_read_however_it_is_cut(
        sent in messages(), lengths in proptest::collection::vec(1usize..9000, 1..6)
    ) {
        let bytes: Vec<u8> = sent.iter().flat_map(|message| on_the_wire(&message.encode_to_vec())).collect();
        let (read, end) = run(read(frames(bytes.into(), &lengths)));
        prop_assert_eq!(joined(read), joined(sent));
        end.unwrap();
    }

    #[test]
    fn what_is_sent_is_what_the_codec_would_send(sent in messages()) {
        let expected: Vec<u8> = sent.iter().flat_map(|message| on_the_wire(&message.encode_to_vec())).collect();
        let mut body = Outgoing::new(stream::iter(sent.into_iter().map(Ok)), true);
        let mut bytes = BytesMut::new();
        let mut trailers = None;
        while let Some(frame) = run(std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx))) {
            match frame.unwrap().into_data() {
                Ok(data) => bytes.put(data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        prop_assert_eq!(bytes.as_ref(), expected.as_slice());
        prop_assert_eq!(Status::from_header_map(&trailers.unwrap()).unwrap().code(), Code::Ok);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60), length in 1usize..20) {
        // The outcome is free, but it has to have one.
        let (_, _) = run(read(frames(bytes.into(), &[length])));
    }
}

#[tokio::test]
async fn a_chunk_is_given_as_it_came_without_being_copied() {
    let chunk = Bytes::from(vec![7; 256 << 10]);
    let mut body = Outgoing::new(stream::iter([Ok(Message::of_chunk(chunk.clone()))]), false);
    let mut sent = VecDeque::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        sent.push_back(frame);
    }
    let (read, end) = read(sent).await;
    end.unwrap();
    assert_eq!(read.len(), 1);
    assert_eq!(read[0].chunk().unwrap().as_ptr(), chunk.as_ptr());
}

#[tokio::test]
async fn a_chunk_is_read_also_where_it_is_written_unusually() {
    let chunk = Message::of_chunk(Bytes::from_static(b"hello")).encode_to_vec();
    // An unknown field behind it, and before it; a length in more bytes than it needs; the field twice, where the last counts.
    let unknown = [15 << 3, 1];
    let long = [&[super::CHUNK_KEY, 0x85, 0x80, 0x00][..], b"hello"].concat();
    let twice = [&[super::CHUNK_KEY, 1][..], b"x", &chunk].concat();
    for bytes in [[&chunk[..], &unknown].concat(), [&unknown, &chunk[..]].concat(), long, twice] {
        for length in [1, 1000] {
            let (read, end) = read(frames(on_the_wire(&bytes).into(), &[length])).await;
            end.unwrap();
            assert_eq!(joined(read), [Message::of_chunk(Bytes::from_static(b"hello"))], "{bytes:?}");
        }
    }
}

#[tokio::test]
async fn what_is_no_grpc_is_an_error_and_the_last() {
    let whole = on_the_wire(&Message::of_chunk(Bytes::from_static(b"hello")).encode_to_vec());
    let mut compressed = whole.clone();
    compressed[0] = 1;
    let mut long = whole.clone();
    (&mut long[1..PREFIX_BYTES]).put_u32(u32::try_from(MAX_DECODED_BYTES + 1).unwrap());
    let broken = on_the_wire(&[0xff; 20]);
    for (bytes, code) in [
        (compressed, Code::Internal),
        (long, Code::OutOfRange),
        (broken, Code::Internal),
        (whole[..3].to_vec(), Code::Internal),
        (whole[..6].to_vec(), Code::Internal),
        (whole[..9].to_vec(), Code::Internal),
    ] {
        let mut direct = Direct::<Message>::new(Body::new(Frames(frames(bytes.into(), &[4]))));
        let error = loop {
            match direct.message().await {
                Ok(message) => assert!(message.is_some()),
                Err(status) => break status,
            }
        };
        assert_eq!(error.code(), code, "{error}");
        assert!(direct.message().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn the_end_is_the_status_that_the_peer_gave() {
    let whole = on_the_wire(&Message::of_chunk(Bytes::from_static(b"hello")).encode_to_vec());
    let ending = |end: Result<Frame<Bytes>, Status>| {
        let mut frames = frames(whole.clone().into(), &[100]);
        frames.push_back(end);
        read(frames)
    };
    let trailers = |status: &Status| {
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers).unwrap();
        Ok(Frame::trailers(trailers))
    };
    let (messages, end) = ending(trailers(&Status::ok(""))).await;
    assert_eq!((messages.len(), end.is_ok()), (1, true));
    let (messages, end) = ending(trailers(&Status::data_loss("rotten"))).await;
    assert_eq!((messages.len(), end.unwrap_err().message().to_owned()), (1, "rotten".to_owned()));
    let (messages, end) = ending(Err(Status::unavailable("gone"))).await;
    assert_eq!((messages.len(), end.unwrap_err().code()), (1, Code::Unavailable));
}

#[tokio::test]
async fn a_servers_error_goes_out_as_trailers() {
    let messages = stream::iter([Ok(header("x")), Err(Status::data_loss("rotten"))]);
    let mut body = Outgoing::new(messages, true);
    let mut frames = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        frames.push(frame.unwrap());
    }
    assert_eq!(frames.len(), 2);
    let status = Status::from_header_map(frames[1].trailers_ref().unwrap()).unwrap();
    assert_eq!((status.code(), status.message()), (Code::DataLoss, "rotten"));
    assert!(frames[0].data_ref().unwrap().has_remaining());
}
