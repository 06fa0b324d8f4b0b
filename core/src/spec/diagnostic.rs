//! What is wrong with a document, where, and what to do about it.

use std::collections::BTreeSet;
use std::fmt;

/// How many errors or warnings are kept; a file with more faults is not read any better with more
/// lines.
pub(super) const MAX_REPORTED: usize = 20;
/// Characters of a source line shown.
const MAX_LINE: usize = 120;

/// One thing wrong with a document, or worth a warning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    /// What is wrong, without place or remedy.
    pub message: String,
    /// Where.
    pub place: Option<Place>,
    /// What to do.
    pub help: Option<String>,
    /// The source line with a caret under the place, over two lines, indented.
    pub snippet: Option<String>,
}

/// Fields of which no line and no value is shown: a password may stand in it.
const SECRET: [&str; 2] = ["ssh_settings", "credentials"];

/// Whether nothing of the value of this field may be shown.
pub(super) fn is_secret(path: &str) -> bool {
    SECRET.iter().any(|field| path.starts_with(field))
}

/// Where in what the user wrote.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The file's name as the user knows it, or an override as typed (`--set a.b=c`); empty for a
    /// value that came neither from a file nor from an override.
    pub source: String,
    /// Line and column, both from 1, the column in characters. `None` outside files.
    pub position: Option<(u32, u32)>,
    /// The field, for example `resources.gpus`; empty for the document as a whole.
    pub path: String,
}

impl Diagnostic {
    /// A diagnostic that has no place in a text.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), place: None, help: None, snippet: None }
    }

    /// A diagnostic about the field `path` of a value that has no text.
    pub fn at_field(path: &str, message: impl Into<String>) -> Self {
        let place = Place { source: String::new(), position: None, path: path.to_owned() };
        Self { place: Some(place), ..Self::new(message) }
    }

    /// Adds the remedy.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// `job.yml:7:3: message`, then the source line with a caret, then the help. No trailing newline.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            match (&place.position, place.source.is_empty()) {
                (Some((line, column)), _) => write!(f, "{}:{line}:{column}: ", place.source)?,
                (None, false) => write!(f, "{}: ", place.source)?,
                (None, true) if !place.path.is_empty() => write!(f, "{}: ", place.path)?,
                (None, true) => {}
            }
        }
        f.write_str(&self.message)?;
        if let Some(snippet) = &self.snippet {
            write!(f, "\n{snippet}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

/// Everything wrong with a document; at least one thing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// The first [`MAX_REPORTED`] of `all`, or `None` if there is nothing; `more` were found
    /// besides.
    pub(super) fn of(mut all: Vec<Diagnostic>, more: usize) -> Option<Self> {
        let more = more.saturating_add(all.len().saturating_sub(MAX_REPORTED));
        all.truncate(MAX_REPORTED);
        if more > 0 {
            all.push(Diagnostic::new(format!("and {more} more")));
        }
        (!all.is_empty()).then_some(Self(all))
    }

    /// Each of them, in the order of the text as far as it is known.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.0.iter()
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(one: Diagnostic) -> Self {
        Self(vec![one])
    }
}

/// One after the other.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// A spot in one of the [`Sources`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Mark {
    /// Which source.
    pub(super) source: u16,
    /// From 1.
    pub(super) line: u32,
    /// From 1, in characters.
    pub(super) column: u32,
    /// In bytes from the start of the source.
    pub(super) offset: u32,
    /// Characters marked, at least 1, all on the one line.
    pub(super) width: u32,
}

/// A text that was read, and under which name it is shown.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) text: String,
    /// Whether lines and columns mean something: not for a value given on the command line.
    pub(super) is_file: bool,
}

/// All texts that one document was put together from, and what was found in them.
#[derive(Default)]
pub(super) struct Report {
    sources: Vec<Source>,
    errors: Vec<Reported>,
    /// Errors that were only counted.
    more: usize,
    warnings: Vec<Reported>,
    /// Lines, by source and number, that are not shown.
    hidden: BTreeSet<(u16, u32)>,
}

/// A diagnostic whose line is looked up once it is known to be shown: there may be as many as the
/// text has lines.
struct Reported {
    diagnostic: Diagnostic,
    mark: Option<Mark>,
}

impl Report {
    /// Remembers a text; its number is what [`Mark::source`] holds.
    pub(super) fn add(&mut self, source: Source) -> u16 {
        self.sources.push(source);
        (self.sources.len() - 1) as u16
    }

    pub(super) fn source(&self, number: u16) -> Option<&Source> {
        self.sources.get(usize::from(number))
    }

    /// Keeps the line of a mark from being shown: a password may stand in it.
    pub(super) fn hide(&mut self, mark: Mark) {
        self.hidden.insert((mark.source, mark.line));
    }

    /// Reports an error; the result takes a help text.
    pub(super) fn error(
        &mut self,
        mark: Mark,
        path: &str,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        let diagnostic = self.diagnostic(mark, path, message.into());
        push(&mut self.errors, Reported { diagnostic, mark: Some(mark) })
    }

    /// Reports a warning; the result takes a help text.
    pub(super) fn warn(
        &mut self,
        mark: Mark,
        path: &str,
        message: impl Into<String>,
    ) -> &mut Diagnostic {
        let diagnostic = self.diagnostic(mark, path, message.into());
        push(&mut self.warnings, Reported { diagnostic, mark: Some(mark) })
    }

    /// Reports an error that has its place already.
    pub(super) fn error_elsewhere(&mut self, diagnostic: Diagnostic) {
        self.errors.push(Reported { diagnostic, mark: None });
    }

    /// Counts errors that are not worth a message any more.
    pub(super) fn more_errors(&mut self, more: usize) {
        self.more = self.more.saturating_add(more);
    }

    /// How many errors there are so far.
    pub(super) fn count(&self) -> usize {
        self.errors.len()
    }

    pub(super) fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Errors if there are any, else the warnings, in the order of the text.
    pub(super) fn finish(self) -> Result<Vec<Diagnostic>, Diagnostics> {
        let Self { sources, errors, more, warnings, hidden } = self;
        match shown(errors, more, &sources, &hidden) {
            Some(errors) => Err(errors),
            None => {
                let warnings = shown(warnings, 0, &sources, &hidden);
                Ok(warnings.map(|warnings| warnings.0).unwrap_or_default())
            }
        }
    }

    fn diagnostic(&self, mark: Mark, path: &str, message: String) -> Diagnostic {
        let place = |source: &Source, position| Place {
            source: source.name.clone(),
            position,
            path: path.to_owned(),
        };
        match self.source(mark.source) {
            Some(source) if source.is_file => Diagnostic {
                message,
                place: Some(place(source, Some((mark.line, mark.column)))),
                help: None,
                snippet: None,
            },
            Some(source) => {
                Diagnostic { place: Some(place(source, None)), ..Diagnostic::new(message) }
            }
            None => Diagnostic::at_field(path, message),
        }
    }
}

fn push(list: &mut Vec<Reported>, reported: Reported) -> &mut Diagnostic {
    list.push(reported);
    let last = list.len() - 1;
    &mut list[last].diagnostic
}

/// The first of `list` in the order of the text, each with its line; `more` were found besides.
fn shown(
    mut list: Vec<Reported>,
    more: usize,
    sources: &[Source],
    hidden: &BTreeSet<(u16, u32)>,
) -> Option<Diagnostics> {
    // Stable, so that faults of equal place keep the order they were found in.
    list.sort_by_key(|reported| reported.diagnostic.place.as_ref().and_then(|p| p.position));
    let more = more.saturating_add(list.len().saturating_sub(MAX_REPORTED));
    list.truncate(MAX_REPORTED);
    let with_line = |Reported { diagnostic, mark }: Reported| {
        let secret = diagnostic.place.as_ref().is_some_and(|place| is_secret(&place.path));
        let snippet = mark.filter(|_| !secret).and_then(|mark| {
            if hidden.contains(&(mark.source, mark.line)) {
                return None;
            }
            let source = sources.get(usize::from(mark.source)).filter(|source| source.is_file)?;
            snippet(&source.text, mark)
        });
        Diagnostic { snippet, ..diagnostic }
    };
    Diagnostics::of(list.into_iter().map(with_line).collect(), more)
}

impl Diagnostic {
    /// Sets the help on a diagnostic that is reported already.
    pub(super) fn help(&mut self, help: impl Into<String>) {
        self.help = Some(help.into());
    }
}

/// The marked line with carets under the mark; long lines are cut around it.
fn snippet(text: &str, mark: Mark) -> Option<String> {
    let line = text.lines().nth(mark.line.checked_sub(1)? as usize)?;
    let column = mark.column.checked_sub(1)? as usize;
    let first = column.saturating_sub(MAX_LINE / 2);
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let shown: String = line.chars().skip(first).take(MAX_LINE).map(printable).collect();
    let (before, after) = (if first > 0 { "…" } else { "" }, line.chars().nth(first + MAX_LINE));
    let after = if after.is_some() { "…" } else { "" };
    let indent = column - first + before.chars().count();
    let room = (shown.chars().count() + before.chars().count()).saturating_sub(indent).max(1);
    let carets = "^".repeat((mark.width.max(1) as usize).min(room));
    let number = mark.line.to_string();
    let gutter = " ".repeat(number.len());
    Some(format!(
        "  {number} | {before}{}{after}\n  {gutter} | {}{carets}",
        shown.trim_end(),
        " ".repeat(indent)
    ))
}
