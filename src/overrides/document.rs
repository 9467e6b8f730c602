//! The overrides of all routes as one JSON document, readable for whoever finds the file.
//!
//! ```json
//! {"format": 1, "revision": 7, "routes": {"a_to_b": {
//!   "paused": {"set_by": "eve@host", "set_time": "2026-01-01T12:00:00.000Z", "reason": "disk swap"},
//!   "bytes_per_second": {"value": 1048576, "set_by": "eve@host", "set_time": "…", "expire_time": "…"}}}}
//! ```
//!
//! A rate's `value` of null is "no limit".

use super::Stamp;
use crate::limits::{BlobRate, Override, Setting, WORKERS};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::SystemTime;

/// The format that is written here.
const FORMAT: u64 = 1;

/// An override, and who made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) value: Override,
    pub(super) stamp: Stamp,
}

/// All overrides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Document {
    /// Grows with every change.
    pub(super) revision: u64,
    routes: BTreeMap<String, BTreeMap<Setting, Kept>>,
}

/// Why a document is not understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum DocumentError {
    #[error("it is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it has format {0}, and this version knows 1")]
    Format(u64),
    #[error("{0} is missing or makes no sense")]
    Field(String),
}

impl Document {
    pub(super) fn set(&mut self, route: &str, kept: Kept) {
        self.routes.entry(route.to_owned()).or_default().insert(kept.value.setting(), kept);
    }

    pub(super) fn reset(&mut self, route: &str, setting: Setting) {
        if let Some(settings) = self.routes.get_mut(route) {
            settings.remove(&setting);
            if settings.is_empty() {
                self.routes.remove(route);
            }
        }
    }

    /// The overrides of a route, by setting.
    pub(super) fn of(&self, route: &str) -> impl Iterator<Item = &Kept> {
        self.routes.get(route).into_iter().flat_map(BTreeMap::values)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&str, Setting, &Kept)> {
        let routes = self.routes.iter();
        routes.flat_map(|(route, settings)| settings.iter().map(|(setting, kept)| (route.as_str(), *setting, kept)))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let routes: Map<String, Value> = self
            .routes
            .iter()
            .map(|(route, settings)| {
                let settings = settings.iter().map(|(setting, kept)| (setting.as_str().to_owned(), encode(kept)));
                (route.clone(), Value::Object(settings.collect()))
            })
            .collect();
        format!("{:#}\n", json!({"format": FORMAT, "revision": self.revision, "routes": routes})).into_bytes()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DocumentError> {
        let document: Value = serde_json::from_slice(bytes)?;
        let wrong = |field: &str| DocumentError::Field(field.to_owned());
        match document["format"].as_u64() {
            Some(FORMAT) => {}
            Some(other) => return Err(DocumentError::Format(other)),
            None => return Err(wrong("format")),
        }
        let revision = document["revision"].as_u64().ok_or_else(|| wrong("revision"))?;
        let mut read = Self { revision, routes: BTreeMap::new() };
        for (route, settings) in document["routes"].as_object().ok_or_else(|| wrong("routes"))? {
            for (setting, value) in settings.as_object().ok_or_else(|| wrong(route))? {
                let field = || DocumentError::Field(format!("{route}.{setting}"));
                read.set(route, decode(setting, value).ok_or_else(field)?);
            }
        }
        Ok(read)
    }
}

fn encode(kept: &Kept) -> Value {
    let Stamp { set_by, set_time, expire_time, reason } = &kept.stamp;
    let mut value = json!({"set_by": set_by, "set_time": text(*set_time)});
    match kept.value {
        Override::Paused => {}
        Override::Workers(workers) => value["value"] = json!(workers),
        Override::BytesPerSecond(rate) => value["value"] = json!(rate),
        Override::BlobsPerSecond(rate) => value["value"] = json!(rate.map(BlobRate::per_second)),
    }
    if let Some(expire_time) = expire_time {
        value["expire_time"] = json!(text(*expire_time));
    }
    if !reason.is_empty() {
        value["reason"] = json!(reason);
    }
    value
}

fn decode(setting: &str, json: &Value) -> Option<Kept> {
    let number = &json["value"];
    let is_none = json.as_object()?.get("value").is_some_and(Value::is_null);
    let value = match Setting::ALL.into_iter().find(|known| known.as_str() == setting)? {
        Setting::Paused => Override::Paused,
        Setting::Workers => {
            let workers = usize::try_from(number.as_u64()?).ok();
            Override::Workers(workers.filter(|workers| WORKERS.contains(workers))?)
        }
        Setting::BytesPerSecond if is_none => Override::BytesPerSecond(None),
        Setting::BytesPerSecond => Override::BytesPerSecond(Some(number.as_u64().filter(|rate| *rate > 0)?)),
        Setting::BlobsPerSecond if is_none => Override::BlobsPerSecond(None),
        Setting::BlobsPerSecond => Override::BlobsPerSecond(Some(BlobRate::new(number.as_f64()?)?)),
    };
    let expire_time = match &json["expire_time"] {
        Value::Null => None,
        time => Some(moment(time)?),
    };
    let stamp = Stamp {
        set_by: json["set_by"].as_str()?.to_owned(),
        set_time: moment(&json["set_time"])?,
        expire_time,
        reason: json["reason"].as_str().unwrap_or_default().to_owned(),
    };
    Some(Kept { value, stamp })
}

fn text(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

fn moment(value: &Value) -> Option<SystemTime> {
    humantime::parse_rfc3339(value.as_str()?).ok()
}

#[cfg(test)]
mod tests {
    use super::{Document, Kept, Stamp};
    use crate::clock::from_unix_ms;
    use crate::limits::{BlobRate, Override};

    #[test]
    fn documents_round_trip() {
        let stamp = |reason: &str, expires: bool| Stamp {
            set_by: "eve \"x\"\n".to_owned(),
            set_time: from_unix_ms(1_767_225_600_123),
            expire_time: expires.then(|| from_unix_ms(1_767_229_200_000)),
            reason: reason.to_owned(),
        };
        let mut document = Document { revision: u64::MAX, ..Document::default() };
        for (route, value) in [
            ("a", Override::Paused),
            ("a", Override::Workers(8)),
            ("a", Override::BytesPerSecond(Some(u64::MAX))),
            ("b", Override::BytesPerSecond(None)),
            ("b", Override::BlobsPerSecond(BlobRate::new(0.5))),
            ("c", Override::BlobsPerSecond(None)),
        ] {
            document.set(route, Kept { value, stamp: stamp(if route == "a" { "why" } else { "" }, route == "b") });
        }
        assert_eq!(Document::decode(&document.encode()).unwrap(), document);
        assert_eq!(Document::decode(&Document::default().encode()).unwrap(), Document::default());
        assert_eq!(document.all().count(), 6);
    }

    #[test]
    fn what_makes_no_sense_is_no_document() {
        let stamp = r#""set_by": "x", "set_time": "2026-01-01T00:00:00Z""#;
        for wrong in [
            "".to_owned(),
            "{}".to_owned(),
            r#"{"format": 2, "revision": 1, "routes": {}}"#.to_owned(),
            r#"{"format": 1, "routes": {}}"#.to_owned(),
            r#"{"format": 1, "revision": 1, "routes": {"a": {"paused": {}}}}"#.to_owned(),
            format!(r#"{{"format": 1, "revision": 1, "routes": {{"a": {{"workers": {{"value": 0, {stamp}}}}}}}}}"#),
            format!(r#"{{"format": 1, "revision": 1, "routes": {{"a": {{"speed": {{{stamp}}}}}}}}}"#),
        ] {
            assert!(Document::decode(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let right = format!(r#"{{"format": 1, "revision": 1, "routes": {{"a": {{"paused": {{{stamp}}}}}}}}}"#);
        assert!(Document::decode(right.as_bytes()).is_ok());
    }
}
