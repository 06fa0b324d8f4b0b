//! `${{ }}` and `$[[ ]]`: the expressions of commands, environment variables and output paths.
//!
//! A [`Template`] is parsed once, where an error still has a place in the user's file, and rendered
//! where the values are known: by the daemon for output paths, by the agent for commands.
//!
//! ```text
//! template   = { text | expression | optional }
//! expression = "${{" reference "}}"
//! optional   = "$[[" { text | expression } "]]"
//! reference  = "inputs." NAME [".path"] | "outputs." NAME [".path"] | "search_space." NAME
//!            | "parent." NAME { "." NAME } | "name" | "output_name" | "default_datastore"
//! ```
//!
//! An optional part is dropped whole when an input in it is unset. There is no escape, as in Azure.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;

use crate::suggest;

mod parse;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;

/// Text with expressions, parsed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Text(String),
    Expression(Expression),
    /// Holds texts and expressions only.
    Optional(Vec<Part>),
}

/// A reference and where it stands in the template.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expression {
    /// What is referred to.
    pub reference: Reference,
    /// Its bytes in the template, from `${{` to `}}`.
    pub span: Range<usize>,
}

/// What an expression names.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Reference {
    /// `inputs.x`, or `inputs.x.path`, which means the same.
    Input(String),
    /// `outputs.x`, or `outputs.x.path`, which means the same.
    Output(String),
    /// `search_space.x`: a sweep's parameter.
    SearchSpace(String),
    /// `parent.…`: something of the pipeline around the job; the words after `parent`.
    Parent(Vec<String>),
    /// `name`: the job's name, in output paths.
    Name,
    /// `output_name`: the output's own name, in output paths.
    OutputName,
    /// `default_datastore`: the workspace's default datastore, in output paths.
    DefaultDatastore,
}

impl Reference {
    /// What kind of thing is named, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Input(_) => "input",
            Self::Output(_) => "output",
            Self::SearchSpace(_) => "search space parameter",
            Self::Parent(_) => "reference to a pipeline",
            Self::Name | Self::OutputName | Self::DefaultDatastore => "value",
        }
    }

    /// The last word: what is named, within its kind.
    fn name(&self) -> &str {
        match self {
            Self::Input(name) | Self::Output(name) | Self::SearchSpace(name) => name,
            Self::Parent(words) => words.last().map_or("parent", String::as_str),
            Self::Name => "name",
            Self::OutputName => "output_name",
            Self::DefaultDatastore => "default_datastore",
        }
    }
}

/// The reference as written between the braces.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(name) => write!(f, "inputs.{name}"),
            Self::Output(name) => write!(f, "outputs.{name}"),
            Self::SearchSpace(name) => write!(f, "search_space.{name}"),
            Self::Parent(words) => write!(f, "parent.{}", words.join(".")),
            other => f.write_str(other.name()),
        }
    }
}

/// What a scope knows of a reference.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// Its value.
    Value(String),
    /// Declared, optional, and given no value.
    Unset,
    /// There is no such thing here.
    Unknown,
}

/// The values that references stand for.
pub trait Scope {
    /// What `reference` stands for.
    fn lookup(&self, reference: &Reference) -> Lookup;

    /// The names that could stand where `reference` names something, for error messages: inputs
    /// for an input, and so on. Empty if nothing of that kind exists here.
    fn known(&self, reference: &Reference) -> Known;
}

/// Names listed in one message; a job may have a thousand.
const MAX_KNOWN: usize = 10;
/// Characters of a name shown in a message.
const MAX_NAME: usize = 80;

/// The names that exist where something was named, as far as a message tells them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// The one that may have been meant.
    pub near: Option<String>,
    /// The first few.
    pub names: Vec<String>,
    /// How many there are besides.
    pub more: usize,
}

impl Known {
    /// What a message tells of `all` where `wanted` was named.
    pub fn of<'a>(wanted: &str, all: impl ExactSizeIterator<Item = &'a String> + Clone) -> Self {
        let near = suggest::closest(wanted, all.clone().map(String::as_str)).map(str::to_owned);
        let more = all.len().saturating_sub(MAX_KNOWN);
        Self { near, names: all.take(MAX_KNOWN).cloned().collect(), more }
    }
}

/// `a, b and 3 more`
impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names.join(", "))?;
        if self.more > 0 { write!(f, " and {} more", self.more) } else { Ok(()) }
    }
}

/// A scope of values held in maps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Values {
    /// Inputs by name; `None` for one that is declared and unset.
    pub inputs: BTreeMap<String, Option<String>>,
    /// Outputs by name.
    pub outputs: BTreeMap<String, String>,
    /// What `${{name}}` stands for, where it has a meaning.
    pub name: Option<String>,
    /// What `${{output_name}}` stands for, where it has a meaning.
    pub output_name: Option<String>,
    /// What `${{default_datastore}}` stands for, where it has a meaning.
    pub default_datastore: Option<String>,
}

impl Scope for Values {
    fn lookup(&self, reference: &Reference) -> Lookup {
        let value = match reference {
            Reference::Input(name) => match self.inputs.get(name) {
                Some(Some(value)) => Some(value),
                Some(None) => return Lookup::Unset,
                None => None,
            },
            Reference::Output(name) => self.outputs.get(name),
            Reference::Name => self.name.as_ref(),
            Reference::OutputName => self.output_name.as_ref(),
            Reference::DefaultDatastore => self.default_datastore.as_ref(),
            Reference::SearchSpace(_) | Reference::Parent(_) => None,
        };
        value.map_or(Lookup::Unknown, |value| Lookup::Value(value.clone()))
    }

    fn known(&self, reference: &Reference) -> Known {
        match reference {
            Reference::Input(name) => Known::of(name, self.inputs.keys()),
            Reference::Output(name) => Known::of(name, self.outputs.keys()),
            _ => Known::default(),
        }
    }
}

/// Why a template cannot be parsed or rendered.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{kind}")]
pub struct Error {
    /// The bytes of the template at fault.
    pub span: Range<usize>,
    /// What is wrong.
    pub kind: ErrorKind,
}

/// What is wrong with a template.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An opening without its closing.
    #[error("'{open}' is never closed: write '{close}' after it")]
    Unclosed {
        /// `${{` or `$[[`.
        open: &'static str,
        /// What closes it.
        close: &'static str,
    },
    /// `${{ }}`
    #[error("'${{{{ }}}}' names nothing: write for example '${{{{inputs.data}}}}'")]
    Empty,
    /// A `$[[` within `$[[ ]]`.
    #[error("'$[[ … ]]' cannot hold another '$[['")]
    Nested,
    /// Text between the braces that is no reference.
    #[error("'{text}' is not a reference: {rule}")]
    NotAReference {
        /// The text, cut to 80 characters.
        text: String,
        /// What is allowed instead.
        rule: String,
    },
    /// A reference to something that does not exist.
    #[error("{}", unknown(.reference, .known))]
    Unknown {
        /// What was named.
        reference: Reference,
        /// The names that exist.
        known: Known,
    },
    /// An unset input outside `$[[ ]]`.
    #[error(
        "input '{}' has no value: give it one, or put what needs it into '$[[ … ]]', which is \
         dropped while the input is unset (known inputs: {known})", cut(.name)
    )]
    Unset {
        /// The input.
        name: String,
        /// The inputs that exist.
        known: Known,
    },
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_NAME).collect()
}

fn unknown(reference: &Reference, known: &Known) -> String {
    let (kind, name) = (reference.kind(), cut(reference.name()));
    match reference {
        Reference::SearchSpace(_) | Reference::Parent(_) => {
            let place =
                if matches!(reference, Reference::Parent(_)) { "pipeline" } else { "sweep" };
            let shown = cut(&reference.to_string());
            return format!("'${{{{{shown}}}}}' has a meaning only inside a {place} job");
        }
        Reference::Name | Reference::OutputName | Reference::DefaultDatastore => {
            return format!("'${{{{{reference}}}}}' has a meaning only in an output's path");
        }
        Reference::Input(_) | Reference::Output(_) => {}
    }
    let mut message = format!("there is no {kind} '{name}'");
    if known.names.is_empty() {
        message.push_str(&format!(": declare it under '{kind}s'"));
    } else {
        if let Some(near) = &known.near {
            message.push_str(&format!(": did you mean '{near}'?"));
        }
        message.push_str(&format!(" (known {kind}s: {known})"));
    }
    message
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// If an opening is not closed, or something that is no reference stands between braces.
    pub fn parse(text: &str) -> Result<Self, Error> {
        parse::template(text).map(|parts| Self { parts })
    }

    /// All its expressions, in order, those in optional parts included.
    pub fn references(&self) -> impl Iterator<Item = &Expression> {
        fn of(part: &Part) -> &[Part] {
            match part {
                Part::Optional(parts) => parts,
                other => std::slice::from_ref(other),
            }
        }
        self.parts.iter().flat_map(of).filter_map(|part| match part {
            Part::Expression(expression) => Some(expression),
            _ => None,
        })
    }

    /// Puts the values of `scope` in place of the expressions.
    ///
    /// Values are put in as they are, without quoting, as Azure does.
    ///
    /// # Errors
    /// If a reference is unknown, or an unset input stands outside `$[[ ]]`.
    pub fn render(&self, scope: &impl Scope) -> Result<String, Error> {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Expression(expression) => match value(expression, scope)? {
                    Some(value) => out.push_str(&value),
                    None => return Err(unset(expression, scope)),
                },
                Part::Optional(parts) => {
                    if let Some(text) = optional(parts, scope)? {
                        out.push_str(&text);
                    }
                }
            }
        }
        Ok(out)
    }

    /// Checks without rendering what [`Template::render`] would find wrong: the first `most`
    /// faults, and how many there are besides. A reference counts once, however often it stands
    /// there.
    pub fn check(&self, scope: &impl Scope, most: usize) -> (Vec<Error>, usize) {
        let (mut errors, mut more) = (Vec::new(), 0);
        let mut seen = HashSet::new();
        for part in &self.parts {
            let (parts, is_optional) = match part {
                Part::Optional(parts) => (parts.as_slice(), true),
                other => (std::slice::from_ref(other), false),
            };
            for part in parts {
                let Part::Expression(expression) = part else { continue };
                let fault = match scope.lookup(&expression.reference) {
                    Lookup::Unknown => no_such,
                    Lookup::Unset if !is_optional => unset,
                    Lookup::Unset | Lookup::Value(_) => continue,
                };
                if !seen.insert(&expression.reference) {
                    continue;
                }
                // What is only counted costs no message.
                if errors.len() < most {
                    errors.push(fault(expression, scope));
                } else {
                    more += 1;
                }
            }
        }
        (errors, more)
    }
}

/// The value of one expression; `None` if it is unset.
fn value(expression: &Expression, scope: &impl Scope) -> Result<Option<String>, Error> {
    match scope.lookup(&expression.reference) {
        Lookup::Value(value) => Ok(Some(value)),
        Lookup::Unset => Ok(None),
        Lookup::Unknown => Err(no_such(expression, scope)),
    }
}

fn no_such(expression: &Expression, scope: &impl Scope) -> Error {
    let known = scope.known(&expression.reference);
    let kind = ErrorKind::Unknown { reference: expression.reference.clone(), known };
    Error { span: expression.span.clone(), kind }
}

fn unset(expression: &Expression, scope: &impl Scope) -> Error {
    let known = scope.known(&expression.reference);
    let kind = ErrorKind::Unset { name: expression.reference.name().to_owned(), known };
    Error { span: expression.span.clone(), kind }
}

/// The text of an optional part; `None` if it is dropped. An unknown reference is an error even in
/// a part that is dropped: it is a mistake in the file whatever the values are.
fn optional(parts: &[Part], scope: &impl Scope) -> Result<Option<String>, Error> {
    let mut out = String::new();
    let mut dropped = false;
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Expression(expression) => match value(expression, scope)? {
                Some(value) => out.push_str(&value),
                None => dropped = true,
            },
            Part::Optional(_) => {}
        }
    }
    Ok((!dropped).then_some(out))
}

/// The template as it would be written; parses to an equal template but for spans.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn write(parts: &[Part], f: &mut fmt::Formatter<'_>) -> fmt::Result {
            for part in parts {
                match part {
                    Part::Text(text) => f.write_str(text)?,
                    Part::Expression(expression) => {
                        write!(f, "${{{{{}}}}}", expression.reference)?;
                    }
                    Part::Optional(parts) => {
                        f.write_str("$[[")?;
                        write(parts, f)?;
                        f.write_str("]]")?;
                    }
                }
            }
            Ok(())
        }
        write(&self.parts, f)
    }
}
