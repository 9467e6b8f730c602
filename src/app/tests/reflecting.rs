//! What servers tell of themselves by reflection.

use super::World;
use crate::app::store::StoreApp;
use crate::grpc::ServeSettings;
use crate::store::memory::MemoryStore;
use futures::stream;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

async fn ask(channel: &Channel, what: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(what) };
    let mut client = ServerReflectionClient::new(channel.clone());
    let mut answers = client.server_reflection_info(stream::iter([request])).await.unwrap().into_inner();
    let ServerReflectionResponse { message_response, .. } = answers.message().await.unwrap().unwrap();
    message_response.unwrap()
}

async fn services(channel: &Channel) -> Vec<String> {
    let answer = ask(channel, MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    names
}

const BASE: [&str; 3] =
    ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

#[tokio::test(flavor = "multi_thread")]
async fn servers_list_what_they_serve_and_know_the_details_of_errors() {
    let world = World::start(&[("a", "b")], &[]).await;
    let own = ["blobferry.v1.BlobReceiverService", "blobferry.v1.ReplicationService"];
    assert_eq!(services(&world.channel).await, [&own[..], &BASE].concat());
    for symbol in BASE.iter().chain(&own).chain(&["google.rpc.ErrorInfo", "google.rpc.BadRequest"]) {
        let answer = ask(&world.channel, MessageRequest::FileContainingSymbol((*symbol).to_owned())).await;
        assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)), "{symbol}: {answer:?}");
    }
    world.stop().await;

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Channel::from_shared(format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let stop = CancellationToken::new();
    let mut running = JoinSet::new();
    let store = StoreApp::of(Arc::new(MemoryStore::new("a", 1 << 20)), ServeSettings::default());
    running.spawn(store.run(listener, stop.clone()));
    let own = ["blobferry.v1.BlobReaderService", "blobferry.v1.BlobReceiverService"];
    assert_eq!(services(&endpoint.connect_lazy()).await, [&own[..], &BASE].concat());
    stop.cancel();
    running.join_next().await.unwrap().unwrap().unwrap();
}
