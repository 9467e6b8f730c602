//! The relay's source: one blob, as often as it is asked for.

use super::{Out, serve, the_blob};
use crate::support::api;
use anyhow::Result;
use blobferry::v1 as pb;
use bytes::Bytes;
use pb::blob_reader_service_server::{BlobReaderService, BlobReaderServiceServer};
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};

pub(super) async fn run(size: usize) -> Result<()> {
    let (blob, bytes) = the_blob(size);
    serve(|server| server.add_service(BlobReaderServiceServer::new(Source { blob: blob.to_string(), bytes }))).await
}

struct Source {
    blob: String,
    bytes: Bytes,
}

#[tonic::async_trait]
impl BlobReaderService for Source {
    type FetchBlobsStream = Out<pb::FetchBlobsResponse>;
    type FetchBlobStream = Out<pb::FetchBlobResponse>;
    type EnumerateBlobsStream = Out<pb::EnumerateBlobsResponse>;

    async fn fetch_blobs(
        &self,
        request: Request<Streaming<pb::FetchBlobsRequest>>,
    ) -> Result<Response<Self::FetchBlobsStream>, Status> {
        let (name, bytes) = (self.blob.clone(), self.bytes.clone());
        let messages = request.into_inner().map(move |message| {
            let answer = |_| pb::FetchedBlob {
                item: Some(0),
                r#ref: name.clone(),
                result: Some(pb::fetched_blob::Result::Data(bytes.clone())),
            };
            Ok(pb::FetchBlobsResponse { blobs: message?.blobs.into_iter().map(answer).collect() })
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn fetch_blob(
        &self,
        _request: Request<pb::FetchBlobRequest>,
    ) -> Result<Response<Self::FetchBlobStream>, Status> {
        let header = pb::FetchBlobHeader { r#ref: self.blob.clone(), size_bytes: Some(self.bytes.len() as u64) };
        let header = pb::fetch_blob_response::Part::Header(header);
        let chunks = api::pieces(self.bytes.clone()).map(pb::fetch_blob_response::Part::Chunk);
        let parts = std::iter::once(header).chain(chunks);
        let messages = parts.map(|part| Ok(pb::FetchBlobResponse { part: Some(part) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn stat_blobs(
        &self,
        _request: Request<pb::StatBlobsRequest>,
    ) -> Result<Response<pb::StatBlobsResponse>, Status> {
        Err(Status::unimplemented("a relay's source only fetches"))
    }

    async fn enumerate_blobs(
        &self,
        _request: Request<pb::EnumerateBlobsRequest>,
    ) -> Result<Response<Self::EnumerateBlobsStream>, Status> {
        Err(Status::unimplemented("a relay's source only fetches"))
    }
}
