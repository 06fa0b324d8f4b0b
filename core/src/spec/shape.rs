//! What a document may hold, as a value: the reader, the JSON Schema for editors and the support
//! table in the documentation are all made from it, so that they cannot disagree.

use super::diagnostic::{Report, is_secret};
use super::yaml::{Integer, Node, Value};
use crate::suggest;

/// A mapping with known keys.
pub(super) struct Object {
    /// With its article, for messages: `a command job`.
    pub(super) what: &'static str,
    pub(super) fields: &'static [Field],
}

/// One key of an [`Object`].
pub(super) struct Field {
    pub(super) key: &'static str,
    pub(super) shape: Shape,
    pub(super) support: Support,
    /// What holds if the key is missing; empty if nothing does.
    pub(super) default: &'static str,
    pub(super) doc: &'static str,
}

/// What Atelier does with a key.
#[derive(Clone, Copy)]
pub(super) enum Support {
    /// Acts on it.
    Runs,
    /// This project's own key: Azure has none of that name. Acts on it.
    Extends,
    /// Keeps and shows it, and does nothing else.
    Recorded,
    /// Keeps and shows it, and warns that it does nothing yet, with what holds instead.
    Later(&'static str),
    /// Accepts it; it makes no difference.
    Unused,
    /// Accepts it, ignores it, and warns for this reason.
    Ignored(&'static str),
    /// Azure's tools write it when they print a job; dropped without a word.
    Dropped,
    /// An error, with this reason and remedy.
    Refused(&'static str),
}

/// What a value may be.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    /// Text only: a number has to be quoted.
    Text,
    /// Any scalar, as Python's `str()` prints it.
    Literal,
    /// A literal or nothing.
    LiteralOrNull,
    /// A whole number within bounds, also as quoted digits.
    Whole(i64, i64),
    Bool,
    /// One of these words; case and `_` do not count.
    Word(&'static [&'static str]),
    /// A number or text that a reader of its own understands; described in words.
    Quantity(&'static str),
    /// Free keys.
    Map(&'static Shape),
    List(&'static Shape),
    Object(&'static Object),
    /// A mapping told apart by its `type`.
    Tagged(&'static str, &'static [(&'static str, &'static Object)]),
    /// The first whose kind (scalar, list or mapping) is the value's.
    OneOf(&'static [Shape]),
    /// Nothing: the key may be there without a value.
    Null,
    Any,
}

impl Object {
    pub(super) fn field(&self, key: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.key == key)
    }
}

impl Shape {
    /// What is expected, in words.
    pub(super) fn expected(&self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Literal | Self::LiteralOrNull => "text, a number or a boolean".to_owned(),
            Self::Whole(least, most) if *most == i64::MAX => {
                format!("a whole number of at least {least}")
            }
            Self::Whole(least, most) => format!("a whole number from {least} to {most}"),
            Self::Bool => "true or false".to_owned(),
            Self::Word(words) => format!("one of {}", words.join(", ")),
            Self::Quantity(words) => (*words).to_owned(),
            Self::Map(_) => "a mapping".to_owned(),
            Self::List(_) => "a list".to_owned(),
            Self::Object(object) => format!("a mapping ({})", object.what),
            Self::Tagged(what, _) => format!("a mapping ({what})"),
            Self::OneOf(shapes) => {
                let named = shapes.iter().filter(|shape| !matches!(shape, Self::Null));
                named.map(Self::expected).collect::<Vec<_>>().join(", or ")
            }
            Self::Null => "nothing".to_owned(),
            Self::Any => "anything".to_owned(),
        }
    }

    /// Whether a value of `node`'s kind could be of this shape, going no deeper.
    fn fits_kind(&self, node: &Node) -> bool {
        match self {
            Self::Map(_) | Self::Object(_) | Self::Tagged(..) => {
                matches!(node.value, Value::Map(_))
            }
            Self::List(_) => matches!(node.value, Value::List(_)),
            Self::Null => node.is_null(),
            Self::Any => true,
            Self::OneOf(shapes) => shapes.iter().any(|shape| shape.fits_kind(node)),
            _ => !matches!(node.value, Value::Map(_) | Value::List(_) | Value::Null),
        }
    }
}

/// The canonical form of one of `words`, whatever case and separators it was written with.
pub(super) fn word(text: &str, words: &[&'static str]) -> Option<&'static str> {
    let plain = |text: &str| text.to_lowercase().replace(['_', '-'], "");
    let wanted = plain(text);
    words.iter().copied().find(|word| plain(word) == wanted)
}

/// A whole number written as such, as a float without fraction, or as quoted digits.
pub(super) fn whole(node: &Node) -> Option<Integer> {
    match &node.value {
        Value::Integer(integer) => Some(integer.clone()),
        Value::Float(number) if number.fract() == 0.0 && number.abs() < 1e15 => {
            Some(Integer((*number as i64).to_string()))
        }
        Value::Text(text) => {
            let digits = text.strip_prefix('-').unwrap_or(text);
            let good = !digits.is_empty()
                && digits.len() <= 40
                && digits.bytes().all(|b| b.is_ascii_digit());
            good.then(|| Integer(text.clone()))
        }
        _ => None,
    }
}

/// A boolean, or the text of one.
pub(super) fn boolean(node: &Node) -> Option<bool> {
    match &node.value {
        Value::Bool(value) => Some(*value),
        Value::Text(text) => word(text, &["true", "false"]).map(|word| word == "true"),
        _ => None,
    }
}

/// Joins a path and a key for messages.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Reports everything in `node` that is not of the shape.
pub(super) fn check(node: &Node, shape: &Shape, path: &str, report: &mut Report) {
    if node.is_null() && !matches!(shape, Shape::Any | Shape::Null | Shape::LiteralOrNull) {
        // An optional key without a value counts as missing; list items and such are told apart
        // by their readers.
        return;
    }
    match shape {
        Shape::Any => {}
        Shape::OneOf(shapes) => match shapes.iter().find(|shape| shape.fits_kind(node)) {
            Some(shape) => check(node, shape, path, report),
            None => mismatch(node, shape, path, report),
        },
        _ if node.is_null() => {}
        _ if !shape.fits_kind(node) => mismatch(node, shape, path, report),
        Shape::Object(object) => check_object(node, object, path, report),
        Shape::Tagged(_, variants) => check_tagged(node, variants, path, report),
        Shape::Map(inner) => {
            for entry in node.entries() {
                let path = join(path, &entry.key.text);
                if !entry.key.is_text {
                    report
                        .error(
                            entry.key.mark,
                            &path,
                            format!("the key '{}' is not text in YAML 1.1", entry.key.text),
                        )
                        .help(format!("quote it: '{}'", entry.key.text));
                }
                check(&entry.value, inner, &path, report);
            }
        }
        Shape::List(inner) => {
            for (i, item) in node.items().iter().enumerate() {
                let path = join(path, &i.to_string());
                if item.is_null() && !matches!(inner, Shape::Any) {
                    mismatch(item, inner, &path, report);
                }
                check(item, inner, &path, report);
            }
        }
        Shape::Text => {
            if node.as_text().is_none() {
                mismatch(node, shape, path, report);
            }
        }
        Shape::Bool => {
            if boolean(node).is_none() {
                mismatch(node, shape, path, report);
            }
        }
        Shape::Word(words) => check_word(node, words, path, report),
        Shape::Whole(least, most) => match whole(node) {
            None => mismatch(node, shape, path, report),
            Some(number) => {
                if !number.to_i64().is_some_and(|number| (*least..=*most).contains(&number)) {
                    report.error(
                        node.mark,
                        path,
                        format!(
                            "'{path}' is out of range: expected {}, found {}",
                            shape.expected(),
                            super::yaml::shorten(&number.0)
                        ),
                    );
                }
            }
        },
        Shape::Literal | Shape::LiteralOrNull | Shape::Quantity(_) | Shape::Null => {}
    }
}

fn mismatch(node: &Node, shape: &Shape, path: &str, report: &mut Report) {
    if is_secret(path) {
        report
            .error(node.mark, path, format!("'{path}': expected {}", shape.expected()))
            .help("what is written there is not shown; quote it if it is meant as text");
        return;
    }
    let message = format!("'{path}': expected {}, found {}", shape.expected(), node.describe());
    let wants_text = matches!(shape, Shape::Text)
        || matches!(shape, Shape::OneOf(shapes) if matches!(shapes[0], Shape::Text));
    let diagnostic = report.error(node.mark, path, message);
    match &node.spelled {
        Some(spelled) if wants_text && !spelled.is_empty() => {
            diagnostic.help(format!("quote it if it is meant as text: '{spelled}'"));
        }
        _ => {}
    }
}

fn check_word(node: &Node, words: &[&'static str], path: &str, report: &mut Report) {
    let Some(text) = node.as_text() else {
        mismatch(node, &Shape::Text, path, report);
        return;
    };
    if word(text, words).is_some() {
        return;
    }
    let diagnostic = report.error(
        node.mark,
        path,
        format!("'{path}' cannot be '{}'", super::yaml::shorten(text)),
    );
    let all = words.join(", ");
    diagnostic.help(match suggest::closest(text, words.iter().copied()) {
        Some(near) => format!("did you mean '{near}'? (known: {all})"),
        None => format!("known: {all}"),
    });
}

fn check_tagged(
    node: &Node,
    variants: &'static [(&'static str, &'static Object)],
    path: &str,
    report: &mut Report,
) {
    let words: Vec<&'static str> = variants.iter().map(|(word, _)| *word).collect();
    let Some(kind) = node.get("type").filter(|kind| !kind.is_null()) else {
        report
            .error(node.mark, path, format!("'{path}' has no 'type'"))
            .help(format!("add 'type:' with one of {}", words.join(", ")));
        return;
    };
    let path_of_type = join(path, "type");
    check_word(kind, &words, &path_of_type, report);
    let found = kind.as_text().and_then(|text| word(text, &words));
    if let Some((_, object)) = variants.iter().find(|(word, _)| Some(*word) == found) {
        check_object(node, object, path, report);
    }
}

fn check_object(node: &Node, object: &'static Object, path: &str, report: &mut Report) {
    for entry in node.entries() {
        let key = entry.key.text.as_str();
        let path = join(path, key);
        let Some(field) = object.field(key) else {
            let help = unknown_help(key, object);
            report
                .error(
                    entry.key.mark,
                    &path,
                    format!("unknown field '{}' in {}", super::yaml::shorten(key), object.what),
                )
                .help(help);
            continue;
        };
        match field.support {
            Support::Dropped => continue,
            Support::Refused(reason) => {
                report
                    .error(entry.key.mark, &path, format!("'{key}' cannot be used here"))
                    .help(reason);
                continue;
            }
            Support::Ignored(reason) if !entry.value.is_null() => {
                report.warn(entry.key.mark, &path, format!("'{path}' is ignored: {reason}"));
            }
            Support::Later(instead) if !entry.value.is_null() => {
                report.warn(entry.key.mark, &path, format!("'{path}' is recorded only: {instead}"));
            }
            _ => {}
        }
        check(&entry.value, &field.shape, &path, report);
    }
}

/// The nearest known key, or where the key belongs, or all keys.
fn unknown_help(key: &str, object: &'static Object) -> String {
    for field in object.fields {
        let inner: &[Field] = match field.shape {
            Shape::Object(inner) => inner.fields,
            _ => &[],
        };
        if inner.iter().any(|field| field.key == key) {
            return format!("'{key}' belongs under '{}'", field.key);
        }
    }
    let usable = || {
        object
            .fields
            .iter()
            .filter(|f| !matches!(f.support, Support::Dropped | Support::Refused(_)))
            .map(|f| f.key)
    };
    match suggest::closest(key, usable()) {
        Some(near) => format!("did you mean '{near}'?"),
        None => format!("known fields: {}", usable().collect::<Vec<_>>().join(", ")),
    }
}
