//! Messages of the API as JSON, exactly as `grpcurl` prints them: the canonical mapping of protobuf, with 64-bit numbers as
//! strings.
//!
//! The descriptors decide, so a new field in `proto/` shows without a line here. Encoded bytes are read back by field number;
//! what is needed of the wire format is small: <https://protobuf.dev/programming-guides/encoding/>.

use crate::pb::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, Duration, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, Timestamp};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// The descriptors of all messages and enums, by full name with a leading dot.
pub(crate) struct Encoder {
    messages: HashMap<String, DescriptorProto>,
    enums: HashMap<String, EnumDescriptorProto>,
}

/// The API's own descriptors cannot show the message: a mistake in this program.
#[derive(Debug, thiserror::Error)]
#[error("the answer cannot be shown as JSON: {0}")]
pub struct JsonError(String);

impl Encoder {
    /// Knows all messages of the API.
    ///
    /// # Errors
    /// If the descriptors that were compiled in are broken.
    pub(crate) fn new() -> Result<Self, JsonError> {
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).map_err(|error| JsonError(error.to_string()))?;
        let mut encoder = Self { messages: HashMap::new(), enums: HashMap::new() };
        for file in set.file {
            let scope = format!(".{}", file.package());
            encoder.enums.extend(file.enum_type.into_iter().map(|kind| (format!("{scope}.{}", kind.name()), kind)));
            for message in file.message_type {
                encoder.add(&scope, message);
            }
        }
        Ok(encoder)
    }

    fn add(&mut self, scope: &str, message: DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        for kind in &message.enum_type {
            self.enums.insert(format!("{name}.{}", kind.name()), kind.clone());
        }
        for inner in message.nested_type.clone() {
            self.add(&name, inner);
        }
        self.messages.insert(name, message);
    }

    /// A message of `blobferry.v1` by its short name, such as `ReplicatorStatus`.
    ///
    /// # Errors
    /// If the name is not that of the message.
    pub(crate) fn encode(&self, name: &str, message: &impl Message) -> Result<Value, JsonError> {
        self.message(&format!(".blobferry.v1.{name}"), &message.encode_to_vec())
    }

    fn message(&self, name: &str, mut bytes: &[u8]) -> Result<Value, JsonError> {
        match name {
            ".google.protobuf.Timestamp" => return decoded::<Timestamp>(bytes),
            ".google.protobuf.Duration" => return decoded::<Duration>(bytes),
            _ => {}
        }
        let descriptor = self.messages.get(name).ok_or_else(|| JsonError(format!("no message {name}")))?;
        let mut object = Map::new();
        while bytes.has_remaining() {
            let (number, wire_type) = decode_key(&mut bytes).map_err(|error| JsonError(error.to_string()))?;
            let field = descriptor.field.iter().find(|field| i64::from(field.number()) == i64::from(number));
            let field = field.ok_or_else(|| JsonError(format!("{name} has no field {number}")))?;
            let key = json_name(field.name());
            let is_list = field.label() == Label::Repeated;
            let is_packed = is_list
                && wire_type == WireType::LengthDelimited
                && !matches!(field.r#type(), Type::String | Type::Bytes | Type::Message);
            let mut values = Vec::new();
            if is_packed {
                let mut packed = delimited(&mut bytes)?;
                while packed.has_remaining() {
                    values.push(self.value(field, &mut packed)?);
                }
            } else {
                values.push(self.value(field, &mut bytes)?);
            }
            if is_list {
                if let Value::Array(list) = object.entry(key).or_insert_with(|| Value::Array(Vec::new())) {
                    list.append(&mut values);
                }
            } else if let Some(value) = values.pop() {
                object.insert(key, value);
            }
        }
        Ok(Value::Object(object))
    }

    fn value(&self, field: &FieldDescriptorProto, bytes: &mut &[u8]) -> Result<Value, JsonError> {
        Ok(match field.r#type() {
            Type::String => Value::String(String::from_utf8_lossy(delimited(bytes)?).into_owned()),
            Type::Bytes => Value::String(base64(delimited(bytes)?)),
            Type::Message => self.message(field.type_name(), delimited(bytes)?)?,
            Type::Bool => Value::Bool(varint(bytes)? != 0),
            Type::Uint64 => Value::String(varint(bytes)?.to_string()),
            Type::Uint32 => Value::from(varint(bytes)?),
            Type::Int64 => Value::String(varint(bytes)?.cast_signed().to_string()),
            Type::Int32 => Value::from(varint(bytes)?.cast_signed()),
            Type::Double => {
                let fixed = bytes.try_get_f64_le().map_err(|error| JsonError(error.to_string()))?;
                serde_json::Number::from_f64(fixed).map_or_else(|| Value::String(fixed.to_string()), Value::Number)
            }
            Type::Enum => {
                let number = varint(bytes)?.cast_signed();
                let kind = self.enums.get(field.type_name());
                let value = kind.and_then(|kind| kind.value.iter().find(|value| i64::from(value.number()) == number));
                value.map_or_else(|| Value::from(number), |value| Value::String(value.name().to_owned()))
            }
            other => return Err(JsonError(format!("{} is of a type that is not handled: {other:?}", field.name()))),
        })
    }
}

fn decoded<M: Message + Default + ToString>(bytes: &[u8]) -> Result<Value, JsonError> {
    M::decode(bytes).map(|message| Value::String(message.to_string())).map_err(|error| JsonError(error.to_string()))
}

fn varint(bytes: &mut &[u8]) -> Result<u64, JsonError> {
    decode_varint(bytes).map_err(|error| JsonError(error.to_string()))
}

fn delimited<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], JsonError> {
    let length = usize::try_from(varint(bytes)?).ok();
    let (piece, rest) = length
        .and_then(|length| bytes.split_at_checked(length))
        .ok_or_else(|| JsonError("a field ends early".to_owned()))?;
    *bytes = rest;
    Ok(piece)
}

/// `size_bytes` as `sizeBytes`.
fn json_name(name: &str) -> String {
    let mut parts = name.split('_');
    let mut text = parts.next().unwrap_or("").to_owned();
    for part in parts {
        let mut letters = part.chars();
        text.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        text.push_str(letters.as_str());
    }
    text
}

/// Bytes as JSON shows them: base64 with padding (RFC 4648, section 4).
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0usize, |bits, byte| bits << 8 | usize::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let six = bits >> (18 - 6 * digit) & 63;
            text.push(if digit <= group.len() { char::from(DIGITS[six]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Encoder, base64, json_name};
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
        let shown = Encoder::new().unwrap().encode("ReplicatorStatus", &status).unwrap();
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
        let shown = Encoder::new().unwrap().encode("PeerInfo", &info).unwrap();
        assert_eq!(shown, json!({"kind": "PEER_KIND_STORE", "abilities": ["ABILITY_STAT", "ABILITY_FETCH", 99]}));
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (bytes, text) in cases {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xfe]), "//4=");
        assert_eq!(json_name("extra_at_destination"), "extraAtDestination");
    }
}
