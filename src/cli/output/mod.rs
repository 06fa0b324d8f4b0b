//! The one place that prints. Data goes to standard output, everything else to standard error.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::error::{Error, Kind};

mod query;
pub(crate) mod table;
#[cfg(test)]
pub(super) mod tests;

pub(crate) use query::Query;
pub(crate) use table::{Column, moment};

/// How data is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
    /// Bare values separated by tabs, for shell scripts.
    Tsv,
}

/// Where bytes go.
pub(crate) type Sink = Arc<Mutex<dyn Write + Send>>;

/// Prints data, notes, progress and errors as the user asked.
#[derive(Clone)]
pub(crate) struct Output {
    format: Option<Format>,
    query: Option<Arc<Query>>,
    quiet: bool,
    data: Sink,
    notes: Sink,
    data_is_terminal: bool,
    notes_is_terminal: bool,
    spinner: Arc<Mutex<Option<ProgressBar>>>,
}

impl Output {
    /// Standard output and error.
    pub(crate) fn standard(format: Option<Format>, query: Option<Query>, quiet: bool) -> Self {
        Self {
            format,
            query: query.map(Arc::new),
            quiet,
            data: Arc::new(Mutex::new(io::stdout())),
            notes: Arc::new(Mutex::new(io::stderr())),
            data_is_terminal: io::stdout().is_terminal(),
            notes_is_terminal: io::stderr().is_terminal(),
            spinner: Arc::default(),
        }
    }

    /// Two sinks that are no terminals, for tests.
    #[cfg(test)]
    pub(crate) fn to(
        format: Option<Format>,
        query: Option<Query>,
        data: Sink,
        notes: Sink,
    ) -> Self {
        Self {
            data,
            notes,
            data_is_terminal: false,
            notes_is_terminal: false,
            ..Self::standard(format, query, false)
        }
    }

    /// Whether standard error is a terminal that may be drawn on.
    pub(crate) fn draws(&self) -> bool {
        self.notes_is_terminal && !self.quiet
    }

    /// Whether data goes to a terminal, as a table and whole.
    pub(crate) fn is_drawn(&self) -> bool {
        self.data_is_terminal && self.is_plain()
    }

    /// Whether neither another format nor a part of the data was asked for.
    pub(crate) fn is_plain(&self) -> bool {
        self.query.is_none() && matches!(self.format, None | Some(Format::Table))
    }

    /// Several things of a kind. A table unless another format was asked for, JSON for a query.
    pub(crate) fn list(&self, items: Vec<Value>, columns: &[Column]) -> Result<(), Error> {
        let data = Value::Array(items);
        if self.query.is_some() {
            return self.queried(&data);
        }
        match self.format.unwrap_or(Format::Table) {
            Format::Table => {
                let items = data.as_array().map(Vec::as_slice).unwrap_or_default();
                self.print(&table::of(items, columns))
            }
            format => self.print(&written(&data, format, None)?),
        }
    }

    /// One thing. YAML on a terminal and JSON elsewhere, unless a format was asked for.
    pub(crate) fn show(&self, item: &Value) -> Result<(), Error> {
        if self.query.is_some() {
            return self.queried(item);
        }
        let format = self.format.unwrap_or(match self.data_is_terminal {
            true => Format::Yaml,
            false => Format::Json,
        });
        self.print(&written(item, format, None)?)
    }

    fn queried(&self, data: &Value) -> Result<(), Error> {
        let Some(query) = &self.query else { return Ok(()) };
        let found = query.search(data)?;
        let format = self.format.unwrap_or(Format::Json);
        self.print(&written(&found, format, query.columns())?)
    }

    /// One item of a stream, such as an event: a table row, a JSON line, a YAML document.
    pub(crate) fn item(&self, item: &Value, columns: &[Column]) -> Result<(), Error> {
        let found;
        let (item, keys) = match &self.query {
            Some(query) => {
                found = query.search(item)?;
                (&found, query.columns())
            }
            None => (item, None),
        };
        let default = if self.query.is_some() { Format::Json } else { Format::Table };
        let text = match self.format.unwrap_or(default) {
            Format::Table if self.query.is_none() => table::line(item, columns),
            Format::Json => format!("{item}\n"),
            Format::Yaml => format!("---\n{}", written(item, Format::Yaml, None)?),
            format => written(item, format, keys)?,
        };
        self.print(&text)
    }

    /// Text as it is, such as a schema.
    pub(crate) fn print(&self, text: &str) -> Result<(), Error> {
        self.bytes(text.as_bytes())
    }

    /// Bytes as they are, such as a job's log; they are out when this returns.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), Error> {
        let result = self.undisturbed(|| {
            let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
            data.write_all(bytes).and_then(|()| data.flush())
        });
        result.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Error::new(Kind::Quiet, "the reader went away"),
            _ => Error::new(Kind::Failed, format!("cannot write to standard output: {error}")),
        })
    }

    /// Bytes that belong on standard error as they are: what a command in a job wrote there.
    pub(crate) fn error_bytes(&self, bytes: &[u8]) -> Result<(), Error> {
        let result = self.undisturbed(|| {
            let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
            notes.write_all(bytes).and_then(|()| notes.flush())
        });
        result.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Error::new(Kind::Quiet, "the reader went away"),
            _ => Error::new(Kind::Failed, format!("cannot write to standard error: {error}")),
        })
    }

    /// Something good to know. Not printed with `--quiet`.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            self.to_notes(&printable(text));
        }
    }

    /// What somebody has to do now, for the command to go on.
    pub(crate) fn tell(&self, text: &str) {
        self.to_notes(&printable(text));
    }

    /// Something that may not be as meant.
    pub(crate) fn warn(&self, text: &str) {
        self.to_notes(&format!("warning: {}", printable(text)));
    }

    /// An error, with what to do next.
    pub(crate) fn error(&self, error: &Error) {
        if error.kind == Kind::Quiet {
            return;
        }
        self.to_notes(&format!("error: {}", printable(&error.cause)));
        if let Some(help) = &error.help {
            self.to_notes(&format!("  help: {}", printable(help)));
        }
    }

    fn to_notes(&self, text: &str) {
        self.undisturbed(|| {
            let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(notes, "{text}");
        });
    }

    /// What is being waited for, on a line that goes away with [`Output::settle`]; drawn only on
    /// terminals.
    pub(crate) fn waiting(&self, text: &str) {
        if !self.draws() {
            return;
        }
        let mut spinner = self.spinner.lock().unwrap_or_else(PoisonError::into_inner);
        let spinner = spinner.get_or_insert_with(|| {
            let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                spinner.set_style(style);
            }
            spinner.enable_steady_tick(Duration::from_millis(120));
            spinner
        });
        spinner.set_message(printable(text).replace('\n', " "));
    }

    /// Nothing is being waited for any more; takes the line away.
    pub(crate) fn settle(&self) {
        let spinner = self.spinner.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(spinner) = spinner {
            spinner.finish_and_clear();
        }
    }

    /// Runs `write` while nothing else is drawn on the terminal.
    fn undisturbed<T>(&self, write: impl FnOnce() -> T) -> T {
        // Not while the lock is held: whoever reads may be slow, and an error must be told even so.
        let spinner = self.spinner.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match spinner {
            Some(spinner) => spinner.suspend(write),
            None => write(),
        }
    }

    /// A bar of `bytes`, hidden where nothing may be drawn.
    pub(crate) fn bar(&self, bytes: u64, what: &str) -> ProgressBar {
        if !self.draws() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
        let template = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        bar
    }

    /// Asks a yes-or-no question on the terminal. `None` if there is nobody to ask.
    pub(crate) fn confirm(&self, question: &str) -> Option<bool> {
        if !(self.notes_is_terminal && io::stdin().is_terminal()) {
            return None;
        }
        {
            let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = write!(notes, "{} [y/N] ", printable(question));
            let _ = notes.flush();
        }
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).ok()?;
        Some(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
    }
}

/// Data in a format other than a list's own table.
fn written(data: &Value, format: Format, keys: Option<Vec<String>>) -> Result<String, Error> {
    match format {
        Format::Json => {
            let text = serde_json::to_string_pretty(data);
            text.map(|text| text + "\n").map_err(|error| unwritten(&error))
        }
        Format::Yaml => yaml(data),
        Format::Table => Ok(table::any(data, keys)),
        Format::Tsv => Ok(table::tsv(data, keys)),
    }
}

/// One YAML document.
pub(crate) fn yaml(data: &Value) -> Result<String, Error> {
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    serde_saphyr::to_string_with_options(data, options)
        .map(|text| if text.ends_with('\n') { text } else { text + "\n" })
        .map_err(|error| unwritten(&error))
}

fn unwritten(error: &dyn std::error::Error) -> Error {
    Error::new(Kind::Failed, format!("cannot write it: {error}"))
}

/// Text without the control characters by which a name or message could write on a terminal at
/// will. Line breaks and tabs stay.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c })
        .collect()
}
