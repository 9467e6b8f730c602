//! The merged tree of settings: every value with the place where it was set.

use super::Problem;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use toml::de::{DeTable, DeValue};

/// What the environment variables of settings begin with.
pub(super) const PREFIX: &str = "BLOBFERRY__";

/// Where a value was set.
#[derive(Clone, Debug)]
pub(super) enum ValueOrigin {
    /// A line of the file, counted from 1.
    File(Rc<str>, usize),
    /// An environment variable.
    Env(String),
    /// A flag.
    Flag,
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name, line) => write!(f, "set at {name}:{line}"),
            Self::Env(name) => write!(f, "set by {name}"),
            Self::Flag => f.write_str("set on the command line"),
        }
    }
}

/// A value as it was written.
#[derive(Clone, Debug)]
pub(super) enum Scalar {
    /// Text without a type, from the environment or a flag: whatever its key needs.
    Bare(String),
    /// A TOML string.
    Text(String),
    /// A TOML integer.
    Integer(i128),
    /// A TOML float; what is no number at all is none here.
    Float(f64),
    /// A TOML boolean.
    Boolean(bool),
    /// Any other TOML value, by the name of its type.
    Other(&'static str),
}

#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) value: Scalar,
    pub(super) origin: ValueOrigin,
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    Table(ValueTable),
    Leaf(Leaf),
}

pub(super) type ValueTable = BTreeMap<String, Node>;

impl Node {
    /// Where it was set, or the first of what is in it.
    pub(super) fn origin(&self) -> Option<&ValueOrigin> {
        match self {
            Self::Leaf(leaf) => Some(&leaf.origin),
            Self::Table(table) => table.values().find_map(Self::origin),
        }
    }
}

/// The sources merged so far.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) root: ValueTable,
}

impl Tree {
    /// Adds a file. False if it is no TOML.
    pub(super) fn add_toml(&mut self, name: &str, text: &str, problems: &mut Vec<Problem>) -> bool {
        let (table, errors) = DeTable::parse_recoverable(text);
        // The parser finds them in passes, people read them from top to bottom.
        let mut errors: Vec<_> =
            errors.iter().map(|error| (error.span().map_or(0, |span| span.start), error)).collect();
        errors.sort_by_key(|(at, _)| *at);
        for (at, error) in &errors {
            problems.push(Problem {
                key: format!("{name}:{}", line_of(text, *at)),
                problem: error.message().lines().collect::<Vec<_>>().join(", "),
                advice: "correct the TOML there".to_owned(),
            });
        }
        self.root = from_toml(table.get_ref(), &Rc::from(name), text);
        errors.is_empty()
    }

    /// Adds an environment variable, if its name has the prefix.
    pub(super) fn add_env(&mut self, name: &str, value: String, problems: &mut Vec<Problem>) {
        let Some(key) = name.strip_prefix(PREFIX) else { return };
        let is_written_well = |part: &str| !part.is_empty() && !part.contains(|c: char| c.is_lowercase());
        if !key.split("__").all(is_written_well) {
            problems.push(Problem {
                key: name.to_owned(),
                problem: "names no setting".to_owned(),
                advice: format!("write {PREFIX}SECTION__KEY in capitals, or unset it"),
            });
            return;
        }
        let path: Vec<String> = key.split("__").map(str::to_lowercase).collect();
        self.set(&path, value, ValueOrigin::Env(name.to_owned()), problems);
    }

    /// Adds a dotted key from a flag.
    pub(super) fn add_override(&mut self, key: &str, value: String, problems: &mut Vec<Problem>) {
        let path: Vec<String> = key.split('.').map(|part| part.trim().to_owned()).collect();
        self.set(&path, value, ValueOrigin::Flag, problems);
    }

    fn set(&mut self, path: &[String], value: String, origin: ValueOrigin, problems: &mut Vec<Problem>) {
        let Some((last, sections)) = path.split_last() else { return };
        let mut table = &mut self.root;
        for section in sections {
            match table.entry(section.clone()).or_insert_with(|| Node::Table(ValueTable::new())) {
                Node::Table(inner) => table = inner,
                // The reader will say that this should be a section.
                Node::Leaf(_) => return,
            }
        }
        if let Some(Node::Table(_)) = table.get(last) {
            problems.push(Problem {
                key: path.join("."),
                problem: "is a section, not a setting".to_owned(),
                advice: format!("name a key in it; {origin}"),
            });
            return;
        }
        table.insert(last.clone(), Node::Leaf(Leaf { value: Scalar::Bare(value), origin }));
    }
}

fn from_toml(table: &DeTable<'_>, name: &Rc<str>, text: &str) -> ValueTable {
    let mut nodes = ValueTable::new();
    for (key, value) in table {
        let scalar = match value.get_ref() {
            DeValue::Table(inner) => {
                nodes.insert(key.get_ref().to_string(), Node::Table(from_toml(inner, name, text)));
                continue;
            }
            DeValue::String(string) => Scalar::Text(string.to_string()),
            DeValue::Boolean(value) => Scalar::Boolean(*value),
            DeValue::Integer(integer) => match i128::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(integer) => Scalar::Integer(integer),
                Err(_) => Scalar::Other("integer out of all range"),
            },
            DeValue::Float(float) => match float.as_str().replace('_', "").parse() {
                Ok(number) => Scalar::Float(number),
                Err(_) => Scalar::Other("float"),
            },
            other @ (DeValue::Datetime(_) | DeValue::Array(_)) => Scalar::Other(other.type_str()),
        };
        let origin = ValueOrigin::File(name.clone(), line_of(text, value.span().start));
        nodes.insert(key.get_ref().to_string(), Node::Leaf(Leaf { value: scalar, origin }));
    }
    nodes
}

/// The line of a byte of the text, counted from 1.
fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}
