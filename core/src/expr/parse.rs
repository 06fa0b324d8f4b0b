//! From text to parts.

use super::{Error, ErrorKind, Expression, Part, Reference};
use crate::suggest;

const EXPRESSION: (&str, &str) = ("${{", "}}");
const OPTIONAL: (&str, &str) = ("$[[", "]]");

/// The words a reference may begin with, for suggestions.
const FIRST_WORDS: [&str; 7] =
    ["inputs", "outputs", "search_space", "parent", "name", "output_name", "default_datastore"];

pub(super) fn template(text: &str) -> Result<Vec<Part>, Error> {
    let mut parts = Vec::new();
    let mut at = 0;
    while let Some(offset) = text[at..].find('$') {
        let start = at + offset;
        let rest = &text[start..];
        if rest.starts_with(EXPRESSION.0) {
            push_text(&mut parts, &text[at..start]);
            let (expression, end) = expression(text, start)?;
            parts.push(Part::Expression(expression));
            at = end;
        } else if rest.starts_with(OPTIONAL.0) {
            push_text(&mut parts, &text[at..start]);
            let (inner, end) = optional(text, start)?;
            parts.push(Part::Optional(inner));
            at = end;
        } else {
            push_text(&mut parts, &text[at..=start]);
            at = start + 1;
        }
    }
    push_text(&mut parts, &text[at..]);
    Ok(parts)
}

/// Appends text, joining it to text that is already last.
fn push_text(parts: &mut Vec<Part>, text: &str) {
    if text.is_empty() {
        return;
    }
    match parts.last_mut() {
        Some(Part::Text(last)) => last.push_str(text),
        _ => parts.push(Part::Text(text.to_owned())),
    }
}

/// The optional part that starts at `start`, and the byte after it.
fn optional(text: &str, start: usize) -> Result<(Vec<Part>, usize), Error> {
    let (open, close) = OPTIONAL;
    let mut parts = Vec::new();
    let mut at = start + open.len();
    loop {
        let rest = &text[at..];
        let next = [EXPRESSION.0, open, close]
            .into_iter()
            .filter_map(|mark| rest.find(mark).map(|offset| (at + offset, mark)))
            .min();
        let Some((found, mark)) = next else {
            let span = start..start + open.len();
            return Err(Error { span, kind: ErrorKind::Unclosed { open, close } });
        };
        push_text(&mut parts, &text[at..found]);
        if mark == close {
            return Ok((parts, found + close.len()));
        }
        if mark == open {
            return Err(Error { span: found..found + open.len(), kind: ErrorKind::Nested });
        }
        let (expression, end) = expression(text, found)?;
        parts.push(Part::Expression(expression));
        at = end;
    }
}

/// The expression that starts at `start`, and the byte after it.
fn expression(text: &str, start: usize) -> Result<(Expression, usize), Error> {
    let (open, close) = EXPRESSION;
    let inner_start = start + open.len();
    let Some(length) = text[inner_start..].find(close) else {
        let span = start..inner_start;
        return Err(Error { span, kind: ErrorKind::Unclosed { open, close } });
    };
    let end = inner_start + length + close.len();
    let reference = reference(text[inner_start..inner_start + length].trim())
        .map_err(|kind| Error { span: start..end, kind })?;
    Ok((Expression { reference, span: start..end }, end))
}

fn reference(text: &str) -> Result<Reference, ErrorKind> {
    if text.is_empty() {
        return Err(ErrorKind::Empty);
    }
    let wrong =
        |rule: String| ErrorKind::NotAReference { text: text.chars().take(80).collect(), rule };
    let words: Vec<&str> = text.split('.').collect();
    match words.as_slice() {
        ["name"] => return Ok(Reference::Name),
        ["output_name"] => return Ok(Reference::OutputName),
        ["default_datastore"] => return Ok(Reference::DefaultDatastore),
        _ => {}
    }
    let first = words[0];
    if !FIRST_WORDS.contains(&first) {
        let near = suggest::closest(first, FIRST_WORDS);
        return Err(wrong(near.map_or_else(
            || {
                "write 'inputs.NAME' or 'outputs.NAME'; an expression holds one reference and \
                 nothing else"
                    .to_owned()
            },
            |near| format!("did you mean '{near}'?"),
        )));
    }
    if let Some(bad) = words.iter().find(|word| !is_name(word)) {
        return Err(wrong(format!(
            "'{bad}' is not a name; names have letters, digits, '_' and '-', joined by '.'",
        )));
    }
    let name = words.get(1).map(|word| (*word).to_owned());
    match (first, name, words.get(2..).unwrap_or_default()) {
        ("inputs", Some(name), [] | ["path"]) => Ok(Reference::Input(name)),
        ("outputs", Some(name), [] | ["path"]) => Ok(Reference::Output(name)),
        ("search_space", Some(name), []) => Ok(Reference::SearchSpace(name)),
        ("parent", Some(_), _) => {
            Ok(Reference::Parent(words[1..].iter().map(|word| (*word).to_owned()).collect()))
        }
        (_, None, _) => Err(wrong(format!("write '{first}.NAME'"))),
        ("inputs" | "outputs", Some(name), _) => {
            Err(wrong(format!("only '.path' may follow '{first}.{name}'")))
        }
        (_, Some(name), _) => Err(wrong(format!("nothing may follow '{first}.{name}'"))),
    }
}

fn is_name(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}
