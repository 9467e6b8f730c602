//! The relay's sink: takes blobs, counts or hashes them, and forgets them.

use super::{Out, serve};
use anyhow::Result;
use blobferry::blob::{DigestFunction, Hasher};
use blobferry::v1 as pb;
use pb::blob_receiver_service_server::{BlobReceiverService, BlobReceiverServiceServer};
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};

pub(super) async fn run(sha256: bool) -> Result<()> {
    let service = BlobReceiverServiceServer::new(Sink { sha256 }).max_decoding_message_size(4 << 20);
    serve(|server| server.add_service(service)).await
}

struct Sink {
    sha256: bool,
}

#[tonic::async_trait]
impl BlobReceiverService for Sink {
    type ReceiveBlobsStream = Out<pb::ReceiveBlobsResponse>;

    async fn receive_blobs(
        &self,
        request: Request<Streaming<pb::ReceiveBlobsRequest>>,
    ) -> Result<Response<Self::ReceiveBlobsStream>, Status> {
        let sha256 = self.sha256;
        let messages = request.into_inner().map(move |message| {
            let results = message?.blobs.into_iter().map(|packed| {
                if sha256 && DigestFunction::Sha256.ref_of(&packed.data).to_string() != packed.r#ref {
                    return Err(Status::invalid_argument("the digest differs"));
                }
                Ok(pb::PackedResult {
                    item: Some(0),
                    size_bytes: Some(packed.data.len() as u64),
                    r#ref: packed.r#ref,
                    disposition: pb::Disposition::Stored.into(),
                    ..Default::default()
                })
            });
            Ok(pb::ReceiveBlobsResponse { results: results.collect::<Result<_, _>>()?, backlogs: Vec::new() })
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn get_peer_info(
        &self,
        _request: Request<pb::GetPeerInfoRequest>,
    ) -> Result<Response<pb::GetPeerInfoResponse>, Status> {
        Err(Status::unimplemented("a relay's sink only receives"))
    }

    async fn receive_blob(
        &self,
        request: Request<Streaming<pb::ReceiveBlobRequest>>,
    ) -> Result<Response<pb::ReceiveBlobResponse>, Status> {
        let mut stream = request.into_inner();
        let mut answer = pb::ReceiveBlobResponse::default();
        let mut size = 0;
        let mut hasher = self.sha256.then(|| Hasher::new(DigestFunction::Sha256));
        while let Some(message) = stream.message().await? {
            match message.part {
                Some(pb::receive_blob_request::Part::Header(header)) => answer.r#ref = header.r#ref,
                Some(pb::receive_blob_request::Part::Chunk(chunk)) => {
                    size += chunk.len() as u64;
                    if let Some(hasher) = &mut hasher {
                        hasher.update(&chunk);
                    }
                }
                None => {}
            }
        }
        if hasher.is_some_and(|hasher| hasher.finish().to_string() != answer.r#ref) {
            return Err(Status::invalid_argument("the digest differs"));
        }
        answer.size_bytes = Some(size);
        answer.set_disposition(pb::Disposition::Stored);
        Ok(Response::new(answer))
    }
}
