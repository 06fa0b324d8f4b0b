//! YAML as PyYAML's `safe_load` reads it, as a tree whose every node knows its place.
//!
//! `serde-saphyr`'s event parser does the syntax; what a plain scalar means is decided here, by
//! YAML 1.1 (<https://yaml.org/type/>) with PyYAML's own deviations, because that is what existing
//! job files were written for.

use super::diagnostic::Mark;

mod compose;
mod integer;
mod scalar;
mod text;

pub(super) use compose::{Failure, compose};
pub(super) use scalar::plain;
pub(super) use text::decode;

/// A value and where it stands.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) mark: Mark,
    /// A plain scalar as spelled, where its meaning is not that text.
    pub(super) spelled: Option<Box<str>>,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(Integer),
    Float(f64),
    /// A date or time, as Python's `str()` prints it.
    Timestamp(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A whole number of any size: its decimal digits, with `-` if it is negative.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Integer(pub(super) String);

#[derive(Clone, PartialEq, Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) value: Node,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) struct Key {
    /// The key; as spelled if it is not text.
    pub(super) text: String,
    /// Whether YAML reads the key as text, rather than as a number or a boolean.
    pub(super) is_text: bool,
    pub(super) mark: Mark,
}

impl Node {
    pub(super) fn null(mark: Mark) -> Self {
        Self { value: Value::Null, mark, spelled: None }
    }

    pub(super) fn text(text: &str, mark: Mark) -> Self {
        Self { value: Value::Text(text.to_owned()), mark, spelled: None }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(super) fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The value under `key`, null values included.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|entry| entry.key.text == key).map(|entry| &entry.value)
    }

    /// A scalar as Python's `str()` prints it; `None` for null, lists and mappings.
    pub(super) fn python_str(&self) -> Option<String> {
        match &self.value {
            Value::Bool(true) => Some("True".to_owned()),
            Value::Bool(false) => Some("False".to_owned()),
            Value::Integer(Integer(digits)) => Some(digits.clone()),
            Value::Float(number) => Some(scalar::python_float(*number)),
            Value::Timestamp(text) | Value::Text(text) => Some(text.clone()),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// What this is, for `expected …, found …`.
    pub(super) fn describe(&self) -> String {
        let spelled = |meaning: &str, text: String| match &self.spelled {
            Some(spelled) if **spelled != text => format!("{meaning} {text} (from '{spelled}')"),
            _ => format!("{meaning} {text}"),
        };
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(_) => spelled("the boolean", self.python_str().unwrap_or_default()),
            Value::Integer(Integer(digits)) => spelled("the whole number", shorten(digits)),
            Value::Float(number) if number.is_nan() => "'.nan', which is no number".to_owned(),
            Value::Float(number) => spelled("the number", scalar::python_float(*number)),
            Value::Timestamp(text) => format!("the date {text}"),
            Value::Text(text) if text.is_empty() => "empty text".to_owned(),
            Value::Text(text) => format!("the text '{}'", shorten(text)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }

    /// The same as JSON, for documents that are kept as they are. Numbers without a JSON form and
    /// dates become text.
    pub(super) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Integer(Integer(digits)) => digits
                .parse::<i64>()
                .map(Json::from)
                .or_else(|_| digits.parse::<u64>().map(Json::from))
                .unwrap_or_else(|_| Json::String(digits.clone())),
            Value::Float(number) => serde_json::Number::from_f64(*number)
                .map_or_else(|| Json::String(scalar::python_float(*number)), Json::Number),
            Value::Timestamp(text) | Value::Text(text) => Json::String(text.clone()),
            Value::List(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Value::Map(entries) => Json::Object(
                entries.iter().map(|e| (e.key.text.clone(), e.value.to_json())).collect(),
            ),
        }
    }
}

/// At most 40 characters of a text, on one line, for messages.
pub(super) fn shorten(text: &str) -> String {
    let mut chars = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let head: String = chars.by_ref().take(40).collect();
    if chars.next().is_some() { format!("{head}…") } else { head }
}
