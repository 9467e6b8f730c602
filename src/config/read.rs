//! Reads the merged tree by type, and collects what is wrong with it.

use super::tree::{Leaf, Node, Scalar, Tree, ValueOrigin, ValueTable};
use super::{Problem, Share};
use crate::limits::BlobRate;
use http::Uri;
use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// What is wrong with a value, and what to do about it; the key and the place are added by the section.
#[derive(Debug)]
pub(super) struct Wrong {
    problem: String,
    advice: String,
}

impl Wrong {
    pub(super) fn new(problem: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { problem: problem.into(), advice: advice.into() }
    }

    /// A name that stands for nothing, with the nearest that does, or all.
    pub(super) fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> Self {
        let all: Vec<&str> = known.clone().collect();
        let advice = match nearest(name, known) {
            Some(near) => format!("did you mean {near:?}?"),
            None if all.is_empty() => format!("there is no {what} here; remove it"),
            None => format!("known: {}", all.join(", ")),
        };
        Self::new(format!("unknown {what} {name:?}"), advice)
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.problem, self.advice)
    }
}

/// A part of the tree in progress of being read. What has been asked for is what is known in it.
pub(super) struct Section<'a> {
    // Dotted, without a dot at its end; empty for the root.
    path: String,
    nodes: ValueTable,
    // What has been asked for, and where it stood.
    known: Vec<(String, Option<ValueOrigin>)>,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Section<'a> {
    pub(super) fn root(tree: Tree, problems: &'a mut Vec<Problem>) -> Self {
        Self { path: String::new(), nodes: tree.root, known: Vec::new(), problems }
    }

    /// The section of this name; empty if it is not there.
    pub(super) fn section(&mut self, name: &str) -> Section<'_> {
        let path = self.key(name);
        let node = self.take(name);
        let nodes = match node {
            Some(Node::Table(nodes)) => nodes,
            Some(Node::Leaf(_)) => {
                self.report(name, Wrong::new("is a section, not a setting", format!("write [{path}] with keys in it")));
                ValueTable::new()
            }
            None => ValueTable::new(),
        };
        Section { path, nodes, known: Vec::new(), problems: self.problems }
    }

    /// The names in a section whose keys are names; those that are badly formed are reported and left out.
    pub(super) fn names(&mut self, what: &str) -> BTreeSet<String> {
        let (good, bad): (BTreeSet<String>, BTreeSet<String>) =
            self.nodes.keys().cloned().partition(|key| is_name(key));
        for name in bad {
            // Taken, so that it is not reported as unknown too.
            let _taken = self.take(&name);
            let problem = format!("is no name for {what}");
            self.report(&name, Wrong::new(problem, "use a-z, 0-9 and _, beginning with a letter"));
        }
        good
    }

    /// The setting of this name, or its default, also where it is wrong.
    pub(super) fn value<T>(&mut self, name: &str, default: T, parse: impl FnOnce(&Scalar) -> Result<T, Wrong>) -> T {
        self.optional(name, parse).unwrap_or(default)
    }

    /// The setting of this name, if it is there and right.
    pub(super) fn optional<T>(&mut self, name: &str, parse: impl FnOnce(&Scalar) -> Result<T, Wrong>) -> Option<T> {
        let wrong = match self.take(name)? {
            Node::Leaf(Leaf { value, .. }) => match parse(&value) {
                Ok(value) => return Some(value),
                Err(wrong) => wrong,
            },
            Node::Table(_) => Wrong::new("is a setting, not a section", "give it one value"),
        };
        self.report(name, wrong);
        None
    }

    /// The setting of this name, which must be there.
    pub(super) fn required<T>(
        &mut self,
        name: &str,
        advice: &str,
        parse: impl FnOnce(&Scalar) -> Result<T, Wrong>,
    ) -> Option<T> {
        if !self.nodes.contains_key(name) {
            self.known.push((name.to_owned(), None));
            self.report(name, Wrong::new("is missing", advice));
            return None;
        }
        self.optional(name, parse)
    }

    /// Reports what is wrong with one of its keys.
    pub(super) fn report(&mut self, name: &str, wrong: Wrong) {
        let origin = self.known.iter().rev().find(|(known, _)| known == name).and_then(|(_, origin)| origin.as_ref());
        let advice = match origin {
            Some(origin) => format!("{}; {origin}", wrong.advice),
            None => wrong.advice,
        };
        self.problems.push(Problem { key: self.key(name), problem: wrong.problem, advice });
    }

    /// Reports what is wrong with the section as a whole.
    pub(super) fn report_here(&mut self, wrong: Wrong) {
        self.problems.push(Problem { key: self.path.clone(), problem: wrong.problem, advice: wrong.advice });
    }

    /// Reports what nobody asked for.
    pub(super) fn finish(mut self) {
        for (name, node) in std::mem::take(&mut self.nodes) {
            let wrong = Wrong::unknown("key", &name, self.known.iter().map(|(known, _)| known.as_str()));
            let advice = match node.origin() {
                Some(origin) => format!("{}; {origin}", wrong.advice),
                None => wrong.advice,
            };
            self.problems.push(Problem { key: self.key(&name), problem: "unknown key".to_owned(), advice });
        }
    }

    fn take(&mut self, name: &str) -> Option<Node> {
        let node = self.nodes.remove(name);
        self.known.push((name.to_owned(), node.as_ref().and_then(Node::origin).cloned()));
        node
    }

    fn key(&self, name: &str) -> String {
        // Escaped, for a key is foreign text.
        let name = if is_name(name) { name.to_owned() } else { format!("{name:?}") };
        if self.path.is_empty() { name } else { format!("{}.{name}", self.path) }
    }
}

/// Whether this can name a store or a route: `[a-z][a-z0-9_]*`.
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

pub(super) fn text(value: &Scalar) -> Result<String, Wrong> {
    match value {
        Scalar::Text(text) | Scalar::Bare(text) if !text.is_empty() => Ok(text.clone()),
        Scalar::Text(_) | Scalar::Bare(_) => Err(Wrong::new("is empty", "give it a value, or remove it")),
        other => Err(Wrong::new(format!("{} is not a string", shown(other)), "put it in quotes")),
    }
}

pub(super) fn path(value: &Scalar) -> Result<PathBuf, Wrong> {
    let path = text(value)?;
    if path.contains('\0') {
        return Err(Wrong::new(format!("{path:?} is not a path"), "remove the NUL"));
    }
    Ok(PathBuf::from(path))
}

pub(super) fn boolean(value: &Scalar) -> Result<bool, Wrong> {
    match value {
        Scalar::Boolean(value) => Ok(*value),
        Scalar::Bare(text) if text == "true" => Ok(true),
        Scalar::Bare(text) if text == "false" => Ok(false),
        other => Err(Wrong::new(format!("{} is neither true nor false", shown(other)), "write true or false")),
    }
}

pub(super) fn integer<T>(range: RangeInclusive<T>) -> impl FnOnce(&Scalar) -> Result<T, Wrong>
where
    T: TryFrom<i128> + PartialOrd + fmt::Display,
{
    move |value| {
        let advice = format!("set a whole number from {} to {}", range.start(), range.end());
        let number = match value {
            Scalar::Integer(number) => Some(*number),
            Scalar::Bare(text) => text.replace('_', "").parse().ok(),
            _ => None,
        };
        let Some(number) = number else {
            return Err(Wrong::new(format!("{} is not a whole number", shown(value)), advice));
        };
        T::try_from(number)
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| Wrong::new(format!("{number} is out of range"), advice))
    }
}

/// Bytes: a number alone, or with a unit.
pub(super) fn size(range: RangeInclusive<u64>) -> impl FnOnce(&Scalar) -> Result<u64, Wrong> {
    move |value| {
        let bytes = match value {
            Scalar::Integer(number) => Some(u64::try_from(*number).unwrap_or(u64::MAX)).filter(|_| *number >= 0),
            Scalar::Text(text) | Scalar::Bare(text) => {
                text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64())
            }
            _ => None,
        };
        let Some(bytes) = bytes else {
            return Err(Wrong::new(format!("{} is not a size", shown(value)), "write it as \"200MiB\" or \"1GiB\""));
        };
        if range.contains(&bytes) {
            return Ok(bytes);
        }
        let advice = format!("set {} to {}", size_text(*range.start()), size_text(*range.end()));
        Err(Wrong::new(format!("{} is out of range", shown(value)), advice))
    }
}

/// Blobs in a second.
pub(super) fn blob_rate(value: &Scalar) -> Result<BlobRate, Wrong> {
    number(value, BlobRate::new, "set a number from 0.001 to 1000000, such as 50 or 0.5")
}

/// A share of something.
pub(super) fn ratio(value: &Scalar) -> Result<Share, Wrong> {
    number(value, Share::new, "set a number from 0 to 1, such as 0.01")
}

fn number<T>(value: &Scalar, make: impl FnOnce(f64) -> Option<T>, advice: &str) -> Result<T, Wrong> {
    let number = match value {
        Scalar::Integer(number) => number.to_string().parse().ok(),
        Scalar::Float(number) => Some(*number),
        Scalar::Bare(text) => text.replace('_', "").parse().ok(),
        _ => None,
    };
    let Some(number) = number else {
        return Err(Wrong::new(format!("{} is not a number", shown(value)), advice));
    };
    make(number).ok_or_else(|| Wrong::new(format!("{number} is out of range"), advice))
}

pub(super) fn duration(range: RangeInclusive<Duration>) -> impl FnOnce(&Scalar) -> Result<Duration, Wrong> {
    move |value| {
        let (Scalar::Text(text) | Scalar::Bare(text)) = value else {
            return Err(Wrong::new(
                format!("{} is not a duration", shown(value)),
                "write it with its unit, as \"30s\" or \"10m\"",
            ));
        };
        let duration = humantime::parse_duration(text).map_err(|_| {
            Wrong::new(format!("{text:?} is not a duration"), "write it as \"30s\", \"10m\" or \"1h 30m\"")
        })?;
        if range.contains(&duration) {
            return Ok(duration);
        }
        let (least, most) = (humantime::format_duration(*range.start()), humantime::format_duration(*range.end()));
        Err(Wrong::new(format!("{text:?} is out of range"), format!("set {least} to {most}")))
    }
}

pub(super) fn address(value: &Scalar) -> Result<SocketAddr, Wrong> {
    let text = text(value)?;
    text.parse().map_err(|_| {
        Wrong::new(
            format!("{text:?} is not an address"),
            "write IP:PORT, such as 127.0.0.1:7070; port 0 picks a free one",
        )
    })
}

/// An address, or an empty text for none.
pub(super) fn address_or_off(value: &Scalar) -> Result<Option<SocketAddr>, Wrong> {
    match value {
        Scalar::Text(text) | Scalar::Bare(text) if text.is_empty() => Ok(None),
        value => address(value).map(Some),
    }
}

/// `http` or `https` with host and port, and nothing more.
pub(super) fn endpoint(value: &Scalar) -> Result<Uri, Wrong> {
    const ADVICE: &str = "write http://HOST:PORT or https://HOST:PORT";
    let text = text(value)?;
    // Credentials in a URL must not reach a log, not even by the message that refuses them.
    let shown = if text.contains('@') { "the URL".to_owned() } else { format!("{text:?}") };
    let wrong = |problem: &str| Wrong::new(format!("{shown} {problem}"), ADVICE);
    let uri: Uri = text.parse().map_err(|_| wrong("is not a URL"))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(wrong("lacks http:// or https://"));
    };
    if scheme != "http" && scheme != "https" {
        return Err(wrong("is neither http nor https"));
    }
    if authority.as_str().contains('@') {
        return Err(wrong("carries credentials, which do not belong here"));
    }
    if authority.host().is_empty() {
        return Err(wrong("has no host"));
    }
    if authority.port_u16().is_none_or(|port| port == 0) {
        return Err(wrong("has no valid port"));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() || text.contains('#') {
        return Err(wrong("has something after the port"));
    }
    Ok(uri)
}

/// An endpoint without the slash that a [`Uri`] shows at its end.
pub(super) fn endpoint_text(endpoint: &Uri) -> String {
    endpoint.to_string().trim_end_matches('/').to_owned()
}

pub(super) fn choice<T: Copy>(
    choices: &[T],
    name: impl Fn(T) -> &'static str,
) -> impl FnOnce(&Scalar) -> Result<T, Wrong> {
    move |value| {
        let chosen = match value {
            Scalar::Text(text) | Scalar::Bare(text) => choices.iter().find(|choice| name(**choice) == text),
            _ => None,
        };
        chosen.copied().ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|choice| name(*choice)).collect();
            Wrong::new(format!("{} is not a choice", shown(value)), format!("write one of {}", names.join(", ")))
        })
    }
}

/// A size in the largest unit that holds it exactly.
pub(super) fn size_text(bytes: u64) -> String {
    const UNITS: [(&str, u32); 5] = [("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = UNITS.into_iter().find(|(_, shift)| bytes >> shift != 0 && bytes.trailing_zeros() >= *shift);
    unit.map_or_else(|| format!("{bytes}B"), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

fn shown(value: &Scalar) -> String {
    match value {
        Scalar::Bare(text) | Scalar::Text(text) => format!("{text:?}"),
        Scalar::Integer(number) => number.to_string(),
        Scalar::Float(_) => "a value of type float".to_owned(),
        Scalar::Boolean(value) => value.to_string(),
        Scalar::Other(kind) => format!("a value of type {kind}"),
    }
}

/// The known word that this one was probably meant to be.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let reach = if word.chars().count() < 5 { 1 } else { 2 };
    known
        .map(|other| (strsim::levenshtein(word, other), other))
        .filter(|(d, _)| *d <= reach)
        .min()
        .map(|(_, other)| other)
}
