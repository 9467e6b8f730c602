//! What both ends of a call say of it: its method, and how it ended.

use crate::pb;
use http::HeaderMap;
use opentelemetry::KeyValue;
use prost::Message as _;
use std::collections::BTreeSet;
use std::sync::LazyLock;
use tonic::Code;

/// What a method is called that is none of ours: names that a stranger makes up must not become labels.
pub(super) const OTHER: &str = "_OTHER";

/// The names of all methods that are served anywhere, for good.
static METHODS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let sets = [
        pb::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        #[cfg(feature = "server")]
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        #[cfg(feature = "server")]
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let files = sets.into_iter().filter_map(|set| prost_types::FileDescriptorSet::decode(set).ok());
    let mut names = BTreeSet::new();
    for file in files.flat_map(|set| set.file) {
        for service in &file.service {
            let methods = service.method.iter().map(prost_types::MethodDescriptorProto::name);
            names.extend(methods.map(|method| format!("{}.{}/{method}", file.package(), service.name())));
        }
    }
    names
});

/// The methods that calls are told apart by: all that are served anywhere, and `_OTHER`.
pub(crate) fn method_names() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(String::as_str).chain([OTHER])
}

/// The method of a path.
pub(super) fn method_of(path: &str) -> &'static str {
    METHODS.get(path.trim_start_matches('/')).map_or(OTHER, String::as_str)
}

/// The attributes of a call on both sides.
pub(super) fn rpc_attributes(method: &'static str) -> Vec<KeyValue> {
    vec![KeyValue::new("rpc.system.name", "grpc"), KeyValue::new("rpc.method", method)]
}

/// The status in headers or trailers, if it is there.
pub(super) fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::{OTHER, method_of};

    #[test]
    fn methods_are_those_of_the_protocol_and_no_others() {
        for method in [
            "blobferry.v1.BlobReceiverService/ReceiveBlob",
            "blobferry.v1.ReplicationService/Status",
            "grpc.health.v1.Health/Watch",
            "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ] {
            assert_eq!(method_of(&format!("/{method}")), method);
        }
        assert_eq!((method_of("/made.up.Service/Method"), method_of("/"), method_of("")), (OTHER, OTHER, OTHER));
    }
}
