//! Messages of the API as JSON, exactly as `grpcurl` prints them: the canonical mapping of protobuf, with 64-bit numbers as
//! strings. The descriptors decide, so a new field in `proto/` shows without a line here.

use crate::pb::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_reflect::{DescriptorError, DescriptorPool, DynamicMessage};
use serde_json::Value;
use std::sync::LazyLock;

/// The API's own descriptors cannot show the message: a mistake in this program.
#[derive(Debug, thiserror::Error)]
#[error("the answer cannot be shown as JSON: {0}")]
pub struct JsonError(Box<dyn std::error::Error + Send + Sync>);

/// All messages of the API; an error if the descriptors that were compiled in are broken.
static POOL: LazyLock<Result<DescriptorPool, DescriptorError>> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET));

/// A message of `blobferry.v1` by its short name, such as `ReplicatorStatus`, as JSON.
///
/// # Errors
/// If the name is not that of the message.
pub(crate) fn to_json(name: &str, message: &impl Message) -> Result<Value, JsonError> {
    let pool = POOL.as_ref().map_err(|error| JsonError(error.into()))?;
    let descriptor = pool.get_message_by_name(&format!("blobferry.v1.{name}"));
    let descriptor = descriptor.ok_or_else(|| JsonError(format!("no message {name}").into()))?;
    let message = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice());
    let message = message.map_err(|error| JsonError(error.into()))?;
    serde_json::to_value(&message).map_err(|error| JsonError(error.into()))
}

#[cfg(test)]
mod tests {
    use super::to_json;
    use crate::pb::v1;
    use prost_types::{Duration, Timestamp};
    use serde_json::json;

    #[test]
    fn messages_read_as_grpcurl_prints_them() {
        let status = v1::ReplicatorStatus {
            summary: "all is well".to_owned(),
            state: v1::ReplicatorState::Ok.into(),
            start_time: Some(Timestamp { seconds: 1_767_225_600, nanos: 0 }),
            routes: vec![
                v1::RouteStatus {
                    name: "a_to_b".to_owned(),
                    lag: Some(Duration { seconds: 1, nanos: 500_000_000 }),
                    backlog_growing: Some(false),
                    copied_blobs_per_second: Some(2.5),
                    limits: Some(v1::RouteLimits {
                        workers: Some(32),
                        bytes_per_second: Some(0),
                        ..v1::RouteLimits::default()
                    }),
                    ..v1::RouteStatus::default()
                },
                v1::RouteStatus { name: "b_to_c".to_owned(), ..v1::RouteStatus::default() },
            ],
            ..v1::ReplicatorStatus::default()
        };
        let shown = to_json("ReplicatorStatus", &status).unwrap();
        assert_eq!(
            shown,
            json!({
                "summary": "all is well",
                "state": "REPLICATOR_STATE_OK",
                "startTime": "2026-01-01T00:00:00Z",
                "routes": [
                    {
                        "name": "a_to_b", "lag": "1.500s", "backlogGrowing": false, "copiedBlobsPerSecond": 2.5,
                        "limits": {"workers": 32, "bytesPerSecond": "0"},
                    },
                    {"name": "b_to_c"},
                ],
            })
        );
    }

    #[test]
    fn packed_enums_and_unknown_values_are_shown() {
        let info = v1::PeerInfo { abilities: vec![1, 3, 99], kind: 1, ..v1::PeerInfo::default() };
        let shown = to_json("PeerInfo", &info).unwrap();
        assert_eq!(shown, json!({"kind": "PEER_KIND_STORE", "abilities": ["ABILITY_STAT", "ABILITY_FETCH", 99]}));
    }
}
