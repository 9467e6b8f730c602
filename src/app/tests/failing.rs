//! A queue that cannot write: refused, said, and over when it can again.

use super::{World, reason};
use crate::blob::DigestFunction;
use crate::pb::v1;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_cannot_write_refuses_says_so_and_is_found_well_without_an_announcement() {
    let world = World::start(&[("a", "b")], &["a", "b"]).await;
    let blob = DigestFunction::Sha256.ref_of(b"hello").to_string();
    let serves = async |world: &World| {
        let request = HealthCheckRequest { service: "blobferry.v1.BlobReceiverService".to_owned() };
        let answer = HealthClient::new(world.channel.clone()).check(request).await.unwrap().into_inner();
        answer.status() == ServingStatus::Serving
    };
    world.until("it serves", serves).await;
    world.queue.set_failing(true);
    let status = world.enqueue("", [blob.clone()]).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "QUEUE_UNAVAILABLE"));
    let picture = world.status().await;
    assert_eq!(picture.state(), v1::ReplicatorState::NotAccepting);
    assert!(picture.summary.contains("the disk said no"), "{}", picture.summary);
    world.until("health says so", async |world| !serves(world).await).await;
    world.queue.set_failing(false);
    world.until("it serves again", serves).await;
    assert_eq!(world.queued().await, 0);
    world.enqueue("", [blob]).await.unwrap();
    assert_eq!(world.queued().await, 1);
    world.stop().await;
}
