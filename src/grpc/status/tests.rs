#![allow(clippy::unwrap_used, reason = "tests")]

use super::{Reason, bounded, invalid_ref, peer_error, queue_status, store_error, store_status};
use crate::blob::{BlobRef, DigestFunction, Mismatch};
use crate::pb::{DOMAIN, FILE_DESCRIPTOR_SET, v1};
use crate::queue::QueueError;
use crate::store::{PeerError, StoreError};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

fn blob() -> BlobRef {
    DigestFunction::Sha256.ref_of(b"hello")
}

#[test]
fn reasons_are_those_of_the_proto() {
    for reason in Reason::ALL {
        let name = format!("ERROR_REASON_{}", reason.as_str());
        assert!(v1::ErrorReason::from_str_name(&name).is_some(), "{name}");
    }
    let known = (0..200).filter_map(|number| v1::ErrorReason::try_from(number).ok()).count();
    assert_eq!(Reason::ALL.len() + 1, known);
}

#[test]
fn errors_of_a_blob_survive_the_way_there_and_back() {
    let missing = store_status(&StoreError::Missing(blob()), None);
    assert_eq!(missing.code(), Code::NotFound);
    assert!(matches!(store_error(&missing, Some(&blob())), StoreError::Missing(found) if found == blob()));
    let corrupt = store_status(&StoreError::Corrupt { blob: blob(), detail: "x".into() }, None);
    assert_eq!(corrupt.code(), Code::DataLoss);
    assert!(matches!(store_error(&corrupt, Some(&blob())), StoreError::Corrupt { blob: found, .. } if found == blob()));
    let actual = DigestFunction::Sha256.ref_of(b"other");
    let digest = Mismatch::Digest { expected: blob(), actual, received: 5 };
    let status = store_status(&StoreError::Mismatch(digest), None);
    let info = status.get_error_details().error_info().unwrap().clone();
    assert_eq!(info.metadata["actual_ref"], actual.to_string());
    match store_error(&status, Some(&blob())) {
        StoreError::Peer(error) => {
            assert_eq!((error.code, error.reason.as_deref()), (Code::InvalidArgument, Some("DIGEST_MISMATCH")));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_status_without_our_reason_blames_no_blob() {
    let bare = Status::not_found("no such page");
    assert!(matches!(store_error(&bare, Some(&blob())), StoreError::Peer(PeerError { reason: None, .. })));
    let details =
        tonic_types::ErrorDetails::with_error_info("BLOB_MISSING", "example.com", std::collections::HashMap::new());
    let foreign = Status::with_error_details(Code::NotFound, "x", details);
    assert!(matches!(store_error(&foreign, Some(&blob())), StoreError::Peer(PeerError { reason: None, .. })));
    // The right reason with the wrong code is not believed either.
    let details = tonic_types::ErrorDetails::with_error_info("BLOB_MISSING", DOMAIN, std::collections::HashMap::new());
    let odd = Status::with_error_details(Code::Internal, "x", details);
    assert!(matches!(store_error(&odd, Some(&blob())), StoreError::Peer(_)));
}

#[test]
fn an_invalid_ref_names_its_field() {
    let status = invalid_ref("header.ref", &"nonsense".parse::<BlobRef>().unwrap_err());
    assert_eq!(status.code(), Code::InvalidArgument);
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "INVALID_REF");
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "header.ref");
}

#[test]
fn a_full_queue_says_when_to_try_again() {
    for error in
        [QueueError::Full { limit: 1 }, QueueError::NoSpace { folder: "/data".to_owned(), free: 1, reserve: 2 }]
    {
        let status = queue_status(&error);
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.get_error_details().retry_info().unwrap().retry_delay.is_some());
    }
    assert_eq!(queue_status(&QueueError::Closed).code(), Code::Unavailable);
    assert_eq!(queue_status(&QueueError::Write("x".into())).code(), Code::Unavailable);
}

#[test]
fn messages_are_cut_and_escaped() {
    let error = peer_error(&Status::internal(format!("\u{1b}[31mred\n\u{202e}{}", "x".repeat(5000))));
    assert!(error.message.starts_with("\\u{1b}[31mred\\u{a}\\u{202e}xxx"), "{}", error.message);
    assert!(error.message.chars().count() < 350);
    assert_eq!(bounded("äöü", 2), "äö…");
    assert_eq!(bounded("äö", 2), "äö");
}

#[test]
fn a_peers_error_passes_through_with_its_reason() {
    let error = PeerError { reason: Some("TOO_BUSY".into()), ..PeerError::bare(Code::Unavailable, "m") };
    let back = peer_error(&store_status(&StoreError::Input(Box::new(StoreError::Peer(error))), None));
    assert_eq!((back.code, back.reason.as_deref(), back.message.as_str()), (Code::Unavailable, Some("TOO_BUSY"), "m"));
    assert_eq!(back.retry_after, None);
    // So does the time to try again, also without a reason.
    let after = Some(Duration::from_millis(1500));
    for reason in [None, Some("TOO_BUSY".into())] {
        let error = PeerError { reason, retry_after: after, ..PeerError::bare(Code::ResourceExhausted, "m") };
        let back = peer_error(&store_status(&StoreError::Peer(error.clone()), None));
        assert_eq!((back.reason, back.retry_after), (error.reason, after));
    }
}

#[test]
fn a_peer_says_when_to_try_again_by_details_or_by_a_trailer() {
    let full = peer_error(&queue_status(&QueueError::Full { limit: 1 }));
    assert_eq!(full.retry_after, Some(super::RETRY_WHEN_FULL));
    let pushback = |text: &str| {
        let mut status = Status::resource_exhausted("busy");
        status.metadata_mut().insert("grpc-retry-pushback-ms", text.parse().unwrap());
        peer_error(&status).retry_after
    };
    assert_eq!(pushback("250"), Some(Duration::from_millis(250)));
    assert_eq!(pushback("0"), Some(Duration::ZERO));
    // "Not at all" and nonsense; it is for us to say whether there is another attempt.
    assert_eq!([pushback("-1"), pushback("soon"), pushback("")], [None; 3]);
    // Nobody is held off for ever.
    assert_eq!(pushback(&u64::MAX.to_string()), Some(super::MAX_RETRY_AFTER));
    let late = Reason::QueueFull.status_retry("full", Duration::from_secs(86_400));
    assert_eq!(peer_error(&late).retry_after, Some(super::MAX_RETRY_AFTER));
}

#[test]
fn what_is_final_for_a_blob_is_what_the_proto_says_is() {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let file = set.file.iter().find(|file| file.name() == "blobferry/v1/errors.proto").unwrap();
    let comments = &file.source_code_info.as_ref().unwrap().location;
    for reason in Reason::ALL {
        let name = format!("ERROR_REASON_{}", reason.as_str());
        let at = file.enum_type[0].value.iter().position(|value| value.name() == name).unwrap();
        // Field 5 of the file is its enums, and field 2 of an enum its values.
        let path = [5, 0, 2, i32::try_from(at).unwrap()];
        let comment = comments.iter().find(|location| location.path == path).unwrap().leading_comments();
        assert_eq!(reason.is_final_for_the_blob(), comment.contains("Final for the blob"), "{name}: {comment}");
        assert!(reason.is_of_the_blob() || !reason.is_final_for_the_blob(), "{name}");
        assert_eq!(Reason::from_text(reason.as_str()), Some(*reason));
    }
    assert_eq!(Reason::from_text("SOME_REASON"), None);
}
