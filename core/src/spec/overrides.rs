//! `--set key.path=value`: changes to a document before it is checked.

use super::diagnostic::{Diagnostic, Diagnostics, Mark, Report, Source, is_secret};
use super::limits::MAX_DEPTH;
use super::yaml::{self, Entry, Key, Node, Value};

/// One change to a document.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Override {
    path: Vec<String>,
    value: String,
    /// Whether the value is text whatever it looks like.
    is_text: bool,
    /// How messages name it.
    shown: String,
}

impl Override {
    /// Reads `key.path=value`. A part of the path that holds a dot is quoted: `tags."a.b"=c`.
    /// The value is a YAML scalar (so `5` is a number and `yes` a boolean), or a list, mapping or
    /// quoted text in YAML's flow form.
    ///
    /// # Errors
    /// If there is no `=`, a part of the path is empty, or there are more than [`MAX_DEPTH`].
    pub fn parse(text: &str) -> Result<Self, Diagnostics> {
        let shown = match text.split_once('=') {
            Some((path, _)) if is_secret(text) => format!("--set {path}=…"),
            _ => format!("--set {text}"),
        };
        let wrong = |message: &str| {
            let fault = Diagnostic::new(format!("{shown}: {message}"));
            Diagnostics::from(fault.with_help("write for example '--set resources.cpus=2'"))
        };
        let mut path = Vec::new();
        let mut rest = text;
        loop {
            let (part, after) = match rest.chars().next() {
                Some(quote @ ('"' | '\'')) => {
                    let inner = &rest[1..];
                    let end = inner.find(quote).ok_or_else(|| wrong("a quote is not closed"))?;
                    (&inner[..end], &inner[end + 1..])
                }
                _ => {
                    let end = rest.find(['.', '=']).ok_or_else(|| wrong("there is no '='"))?;
                    (rest[..end].trim(), &rest[end..])
                }
            };
            if part.is_empty() {
                return Err(wrong("a part of the key is empty"));
            }
            if path.len() == MAX_DEPTH {
                return Err(wrong(&format!("the key has more than {MAX_DEPTH} parts")));
            }
            path.push(part.to_owned());
            match after.chars().next() {
                Some('.') => rest = &after[1..],
                Some('=') => {
                    let value = after[1..].to_owned();
                    return Ok(Self { path, value, is_text: false, shown });
                }
                _ => return Err(wrong("expected '.' or '=' after a part of the key")),
            }
        }
    }

    /// A change to a text field whose value is taken as it is; `option` is how messages name it,
    /// for example `--name`.
    pub fn text(option: &str, path: &[&str], value: &str) -> Self {
        Self {
            path: path.iter().map(|part| (*part).to_owned()).collect(),
            value: value.to_owned(),
            is_text: true,
            shown: format!("{option} {value}"),
        }
    }
}

/// Applies `change` to the document at `root`, making mappings as needed.
pub(super) fn apply(root: &mut Node, change: &Override, report: &mut Report) {
    let name = change.shown.clone();
    let source = report.add(Source { name, text: change.value.clone(), is_file: false });
    let mark = Mark { source, line: 1, column: 1, offset: 0, width: 1 };
    let path = change.path.join(".");
    let value = match value(change, source, mark) {
        Ok(value) => value,
        Err(message) => {
            let message =
                if is_secret(&path) { "its value cannot be read".into() } else { message };
            report.error(mark, &path, message).help("quote the value if it is meant as text");
            return;
        }
    };
    if let Err(message) = put(root, &change.path, value, mark) {
        let message = if is_secret(&path) { "it is not a mapping".into() } else { message };
        report.error(mark, &path, message);
    }
}

fn value(change: &Override, source: u16, mark: Mark) -> Result<Node, String> {
    let text = change.value.as_str();
    if change.is_text {
        return Ok(Node::text(text, mark));
    }
    if text.trim_start().starts_with(['{', '[', '"', '\'']) {
        let mut node = yaml::compose(text, source)
            .map_err(|failure| format!("in its value: {}", failure.message))?;
        mark_all(&mut node, mark);
        return Ok(node);
    }
    let value = yaml::plain(text.trim())
        .map_err(|reason| format!("'{}' is {reason}", yaml::shorten(text)))?;
    // Text is kept with its outer blanks, as the shell gave it.
    let (value, spelled) = match value {
        Value::Text(_) => (Value::Text(text.to_owned()), None),
        other => (other, Some(text.trim().into())),
    };
    Ok(Node { value, mark, spelled })
}

/// Lines and columns mean nothing in an option's value.
fn mark_all(node: &mut Node, mark: Mark) {
    node.mark = mark;
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| mark_all(item, mark)),
        Value::Map(entries) => entries.iter_mut().for_each(|entry| {
            entry.key.mark = mark;
            mark_all(&mut entry.value, mark);
        }),
        _ => {}
    }
}

fn put(root: &mut Node, path: &[String], value: Node, mark: Mark) -> Result<(), String> {
    let mut node = root;
    for (i, part) in path.iter().enumerate() {
        if node.is_null() {
            *node = Node { value: Value::Map(Vec::new()), mark, spelled: None };
        }
        let found = node.describe();
        node = match &mut node.value {
            Value::Map(entries) => {
                let at = entries.iter().position(|entry| entry.key.text == *part);
                let at = at.unwrap_or_else(|| {
                    let key = Key { text: part.clone(), is_text: true, mark };
                    entries.push(Entry { key, value: Node::null(mark) });
                    entries.len() - 1
                });
                // The whole value is now the override's, so that is its place.
                if i + 1 == path.len() {
                    entries[at].key.mark = mark;
                }
                &mut entries[at].value
            }
            Value::List(items) => {
                let length = items.len();
                let index: usize = part.parse().map_err(|_| {
                    format!("'{}' is a list: write the place in it, from 0", path[..i].join("."))
                })?;
                if index == length {
                    items.push(Node::null(mark));
                }
                items.get_mut(index).ok_or_else(|| {
                    format!(
                        "'{}' has {length} items: the place {index} is past its end",
                        path[..i].join("."),
                    )
                })?
            }
            _ => return Err(format!("'{}' is {found}, not a mapping", path[..i].join("."))),
        };
    }
    *node = value;
    Ok(())
}
