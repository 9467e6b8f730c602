//! The relay's pipe: fetches from the source and passes on to the sink, chunk by chunk or pack by pack.

use super::{pack, the_blob};
use crate::support::api::{self, Reader, Receiver};
use anyhow::{Result, ensure};
use blobferry::blob::{BlobRef, DigestFunction, Hasher};
use blobferry::v1 as pb;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tonic::Streaming;
use tonic::transport::Channel;

/// Connections of the pipe to each side, taken in turn: as many as the replicator has.
const CONNECTIONS: usize = 4;

#[derive(clap::Args)]
pub(crate) struct Pipe {
    source: String,
    sink: String,
    size: u64,
    /// Streams at a time.
    streams: usize,
    #[arg(long)]
    sha256: bool,
    /// Many blobs in a message, on streams that stay open.
    #[arg(long)]
    packed: bool,
}

impl Pipe {
    /// For every number on standard input, moves as many blobs, and answers with a line.
    pub(super) async fn run(self) -> Result<()> {
        let channels = |url: &str| (0..CONNECTIONS).map(|_| api::channel(url)).collect::<Result<Vec<Channel>>>();
        let (sources, sinks) = (channels(&self.source)?, channels(&self.sink)?);
        let (blob, _) = the_blob(usize::try_from(self.size)?);
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        // What a server prints first: the benchmark waits for it.
        println!("http://nowhere");
        while let Some(line) = lines.next_line().await? {
            let count = line.trim().parse()?;
            let left = Arc::new(AtomicUsize::new(count));
            let mut tasks = JoinSet::new();
            for index in 0..self.streams {
                if self.packed {
                    let from = Reader::new(sources[index % CONNECTIONS].clone()).max_decoding_message_size(4 << 20);
                    let to = Receiver::new(sinks[index % CONNECTIONS].clone());
                    let share = count / self.streams + usize::from(index < count % self.streams);
                    tasks.spawn(ferry_packed(from, to, blob, share, self.size, self.sha256));
                    continue;
                }
                let from = Reader::new(sources[index % CONNECTIONS].clone()).max_decoding_message_size(4 << 20);
                let to = Receiver::new(sinks[index % CONNECTIONS].clone());
                let (left, size, sha256) = (left.clone(), self.size, self.sha256);
                tasks.spawn(async move {
                    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
                        ferry(from.clone(), to.clone(), blob, size, sha256).await?;
                    }
                    anyhow::Ok(())
                });
            }
            while let Some(done) = tasks.join_next().await {
                done??;
            }
            println!("done");
        }
        Ok(())
    }
}

fn one_less(left: usize) -> Option<usize> {
    left.checked_sub(1)
}

/// Moves one blob.
async fn ferry(mut from: Reader, mut to: Receiver, blob: BlobRef, size: u64, sha256: bool) -> Result<()> {
    let request = pb::FetchBlobRequest { r#ref: blob.to_string(), ..Default::default() };
    let stream = from.fetch_blob(request).await?.into_inner();
    let hasher = sha256.then(|| Hasher::new(DigestFunction::Sha256));
    let messages = futures::stream::unfold(Passing { stream, hasher, blob }, Passing::next);
    let answer = to.receive_blob(messages).await?.into_inner();
    ensure!(answer.size_bytes == Some(size), "{:?} bytes of {size} arrived", answer.size_bytes);
    Ok(())
}

/// Moves so many blobs on one pair of streams, packed. The streams' own flow control paces them.
async fn ferry_packed(
    mut from: Reader,
    mut to: Receiver,
    blob: BlobRef,
    count: usize,
    size: u64,
    sha256: bool,
) -> Result<()> {
    let name = blob.to_string();
    let pack = pack(usize::try_from(size)?);
    let packs = (0..count).step_by(pack).map(move |at| pb::FetchBlobsRequest {
        blobs: vec![pb::WantedBlob { r#ref: name.clone(), ..Default::default() }; pack.min(count - at)],
    });
    let found = from.fetch_blobs(tokio_stream::iter(packs)).await?.into_inner();
    let messages = found.map_while(move |message| {
        let blobs = message.ok()?.blobs.into_iter().map(|found| match found.result {
            Some(pb::fetched_blob::Result::Data(data)) if !sha256 || DigestFunction::Sha256.ref_of(&data) == blob => {
                Some(pb::PackedBlob { r#ref: found.r#ref, data, ..Default::default() })
            }
            _ => None,
        });
        Some(pb::ReceiveBlobsRequest { blobs: blobs.collect::<Option<_>>()?, source_store: String::new() })
    });
    let mut answers = to.receive_blobs(messages).await?.into_inner();
    let mut done = 0;
    while let Some(answer) = answers.message().await? {
        for result in answer.results {
            ensure!(result.size_bytes == Some(size), "{:?} bytes of {size} arrived", result.size_bytes);
            done += 1;
        }
    }
    ensure!(done == count, "{done} of {count} blobs arrived");
    Ok(())
}

/// A blob on its way through the pipe.
struct Passing {
    stream: Streaming<pb::FetchBlobResponse>,
    hasher: Option<Hasher>,
    blob: BlobRef,
}

impl Passing {
    /// The next message. A stream that breaks ends early, and one with a wrong digest too long: the sink's count tells.
    async fn next(mut self) -> Option<(pb::ReceiveBlobRequest, Self)> {
        let message = self.stream.message().await.ok().flatten();
        let Some(part) = message.and_then(|message| message.part) else {
            let wrong = self.hasher.take().is_some_and(|hasher| hasher.finish() != self.blob);
            return wrong.then(|| (api::chunk(Bytes::from_static(b"wrong")), self));
        };
        let message = match part {
            pb::fetch_blob_response::Part::Header(header) => {
                api::header(header.r#ref, header.size_bytes.unwrap_or_default(), "")
            }
            pb::fetch_blob_response::Part::Chunk(chunk) => {
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&chunk);
                }
                api::chunk(chunk)
            }
        };
        Some((message, self))
    }
}
