//! What the daemon and the agent say of themselves: spans and events, for people or as JSON.
//!
//! `ATELIER_LOG` chooses what is said, in the syntax of `tracing-subscriber`'s `EnvFilter`
//! (`info`, `atelier=debug,tonic=warn`).

use std::io::IsTerminal as _;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// A word that is no format.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no log format; use text or json")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;
    fn from_str(word: &str) -> Result<Self, UnknownFormat> {
        match word {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(UnknownFormat(other.to_owned())),
        }
    }
}

/// Starts telling, on standard error. Call it once, early.
pub fn start(format: Format) {
    let filter = EnvFilter::try_from_env("ATELIER_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,h2=warn,hyper=warn,tower=warn"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A log in a file stays plain text.
        .with_ansi(std::io::stderr().is_terminal());
    // A second start changes nothing: tests start several daemons in one process.
    let _ = match format {
        Format::Text => builder.with_target(false).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
}
