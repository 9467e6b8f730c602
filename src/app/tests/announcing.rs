//! Announcements through the services: what is accepted, and that what is not leaves nothing behind.

use super::{World, chunk, header, reason};
use crate::blob::DigestFunction;
use crate::pb::v1;
use tonic::Code;

/// Both stores are down, so that what is queued stays queued.
async fn idle(routes: &[(&'static str, &'static str)]) -> World {
    World::start(routes, &["a", "b", "c"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_enabled_route_from_the_source_gets_an_entry_before_the_answer() {
    let world = idle(&[("a", "b"), ("a", "c"), ("-b", "c")]).await;
    let blob = DigestFunction::Sha256.ref_of(b"hello");
    let answer = world.send(vec![header(blob, None, ""), chunk("hel"), chunk("lo")]).await.unwrap();
    assert_eq!((answer.r#ref, answer.size_bytes, answer.was_new), (blob.to_string(), Some(5), true));
    assert_eq!(answer.disposition, i32::from(v1::Disposition::Enqueued));
    let names: Vec<_> = answer.routes.iter().map(|route| route.route.as_str()).collect();
    assert_eq!(names, ["a_to_b", "a_to_c"]);
    for route in answer.routes {
        assert_eq!(route.outcome, i32::from(v1::PushOutcome::Added));
        let backlog = route.backlog.unwrap();
        assert_eq!((backlog.entries, backlog.bytes, backlog.unknown_size_entries), (Some(1), Some(5), Some(0)));
    }
    let again = world.send(vec![header(blob, Some(5), "a"), chunk("hello")]).await.unwrap();
    assert!(!again.was_new);
    assert_eq!(world.queued().await, 2);

    let info = world.receiver().get_peer_info(v1::GetPeerInfoRequest {}).await.unwrap().into_inner();
    let info = info.peer_info.unwrap();
    assert_eq!(info.kind, i32::from(v1::PeerKind::Replicator));
    assert!(!info.store_id.is_empty());
    assert_eq!(info.abilities, [i32::from(v1::Ability::Packed)]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_and_wrong_names_leave_nothing_queued() {
    let world = idle(&[("a", "b"), ("b", "a"), ("-c", "a")]).await;
    let blob = DigestFunction::Sha256.ref_of(b"hello");
    for (messages, code, expected) in [
        (vec![header(blob, None, "a"), chunk("hullo")], Code::InvalidArgument, "DIGEST_MISMATCH"),
        (vec![header(blob, Some(6), "a"), chunk("hello")], Code::InvalidArgument, "SIZE_MISMATCH"),
        (vec![header(blob, Some(4), "a"), chunk("hello")], Code::InvalidArgument, "SIZE_MISMATCH"),
        (vec![header(blob, None, "a")], Code::InvalidArgument, "DIGEST_MISMATCH"),
        (vec![chunk("hello")], Code::InvalidArgument, "HEADER_MISSING"),
        (vec![header(blob, None, "a"), header(blob, None, "a")], Code::InvalidArgument, "HEADER_REPEATED"),
        (vec![header(blob, None, "a"), v1::ReceiveBlobRequest { part: None }], Code::InvalidArgument, "MESSAGE_EMPTY"),
        (vec![header(blob, None, "d"), chunk("hello")], Code::InvalidArgument, "UNKNOWN_STORE"),
        (vec![header(blob, None, ""), chunk("hello")], Code::InvalidArgument, "AMBIGUOUS_STORE"),
        (vec![header(blob, None, "c"), chunk("hello")], Code::FailedPrecondition, "NO_ENABLED_ROUTE"),
    ] {
        let status = world.send(messages).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (code, expected), "{status:?}");
    }
    let status = world.send(vec![header(blob, None, "d"), chunk("hello")]).await.unwrap_err();
    assert!(status.message().contains("a, b, c"), "{}", status.message());
    let status = world.enqueue("", [blob.to_string()]).await.unwrap_err();
    assert_eq!(reason(&status), "AMBIGUOUS_STORE");
    let status = world.enqueue("a", vec![blob.to_string(); 10_001]).await.unwrap_err();
    assert_eq!(reason(&status), "TOO_MANY_ITEMS");
    assert_eq!(world.queued().await, 0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_ref_fails_alone_and_a_full_queue_refuses_all() {
    let world = idle(&[("a", "b")]).await;
    let (one, two) = (DigestFunction::Sha256.ref_of(b"1"), DigestFunction::Blake3.ref_of(b"2"));
    let refs = [one.to_string(), "SHA256-\u{1b}[2J".to_owned(), two.to_string(), one.to_string()];
    let answer = world.enqueue("", refs).await.unwrap();
    let outcomes: Vec<_> =
        answer.results.iter().map(|result| result.routes.first().map(|route| route.outcome)).collect();
    let (added, queued) = (i32::from(v1::PushOutcome::Added), i32::from(v1::PushOutcome::AlreadyQueued));
    assert_eq!(outcomes, [Some(added), None, Some(added), Some(queued)]);
    let error = answer.results[1].error.clone().unwrap();
    assert_eq!((error.code, error.reason.as_str()), (3, "INVALID_REF"));
    assert!(!answer.results[1].r#ref.contains('\u{1b}'));
    let backlog = answer.backlogs[0].backlog.unwrap();
    assert_eq!((backlog.entries, backlog.unknown_size_entries), (Some(2), Some(2)));

    let nothing = world.enqueue("a", []).await.unwrap();
    assert!(nothing.results.is_empty() && nothing.backlogs.len() == 1);
    // The model holds 50.
    let many = (0..100).map(|number: u32| DigestFunction::Sha256.ref_of(&number.to_be_bytes()).to_string());
    let status = world.enqueue("a", many).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "QUEUE_FULL"));
    assert_eq!(world.queued().await, 2);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_syncs_are_refused_where_they_make_no_sense() {
    let world = idle(&[("a", "b"), ("-b", "c")]).await;
    let mut client = world.replication();
    let mut trigger = async |route: &str, mode: i32| {
        let request =
            v1::TriggerFullSyncRequest { route: route.to_owned(), mode, ..v1::TriggerFullSyncRequest::default() };
        reason(&client.trigger_full_sync(request).await.unwrap_err())
    };
    assert_eq!(trigger("", 0).await, "AMBIGUOUS_ROUTE");
    assert_eq!(trigger("x", 0).await, "UNKNOWN_ROUTE");
    assert_eq!(trigger("b_to_c", 0).await, "ROUTE_DISABLED");
    assert_eq!(trigger("a_to_b", 7).await, "MODE_UNSUPPORTED");
    let get = async |id: &str, route: &str| {
        let request = v1::GetFullSyncRequest { id: id.to_owned(), route: route.to_owned() };
        reason(&world.replication().get_full_sync(request).await.unwrap_err())
    };
    assert_eq!(get("", "a_to_b").await, "SYNC_NOT_FOUND");
    assert_eq!(get("sync-9", "").await, "SYNC_NOT_FOUND");
    assert_eq!(get("9", "").await, "INVALID_FIELD");
    let request = v1::StatusRequest { routes: vec!["x".to_owned()] };
    assert_eq!(reason(&world.replication().status(request).await.unwrap_err()), "UNKNOWN_ROUTE");
    world.stop().await;
}
