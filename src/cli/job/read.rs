//! From a job file or a command line to a checked job.

use std::env;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use atelier_core::spec::{CommandJob, Diagnostics, Origin, Override, parse_job, quote};
use clap::Args;
use serde_json::json;

use crate::cli::{Error, Kind, Output};
use crate::config::{Here, bounded};

/// One `--set KEY=VALUE`.
pub(in crate::cli) fn change(text: &str) -> Result<Override, String> {
    Override::parse(text).map_err(|error| error.to_string())
}

/// `--keep-failed`, of all that creates jobs.
#[derive(Args)]
pub(in crate::cli) struct KeepFailed {
    /// Have its node keep what it leaves if its command fails, for `atelier job debug` [default: the file's
    /// keep_failed, else as long as the node does by itself; without a time 1h; at most 7d]
    #[arg(
        long,
        value_name = "TIME",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1h"
    )]
    keep_failed: Option<String>,
}

impl KeepFailed {
    /// As a change to the document.
    pub(in crate::cli) fn change(&self) -> Option<Override> {
        let time = self.keep_failed.as_ref()?;
        Some(Override::text("--keep-failed", &["keep_failed"], time))
    }
}

/// Reads the file, `-` being standard input, with the changes applied in order.
pub(in crate::cli) fn file(
    path: &Path,
    changes: &[Override],
    output: &Output,
) -> Result<CommandJob, Error> {
    let Document { text, name, folder, here } = document(path, "job")?;
    parse(&text, name, &folder, &here, changes, output)
}

/// A file as it was read.
pub(in crate::cli) struct Document {
    pub(in crate::cli) text: Vec<u8>,
    /// As the user knows it.
    pub(in crate::cli) name: String,
    /// The folder that relative paths in it start from.
    pub(in crate::cli) folder: PathBuf,
    here: PathBuf,
}

/// Reads a file of this kind, `-` being standard input.
pub(in crate::cli) fn document(path: &Path, kind: &str) -> Result<Document, Error> {
    let here = current_folder()?;
    let (text, name, folder) = if path == Path::new("-") {
        let text = bounded(io::stdin().lock()).map_err(|error| {
            Error::new(Kind::Refused, format!("cannot read standard input: {error}"))
        })?;
        (text, "<stdin>".to_owned(), here.clone())
    } else {
        let text = File::open(path).and_then(bounded).map_err(|error| {
            let error = Error::file("read", path, &error);
            match path.is_dir() {
                true => error.help(format!("name the {kind} file in it, for example {kind}.yml")),
                false => {
                    error.help(format!("check the path; {kind} files end with .yml as a rule"))
                }
            }
        })?;
        let absolute = here.join(path);
        let folder = absolute.parent().unwrap_or(&here).to_owned();
        (text, path.display().to_string(), folder)
    };
    Ok(Document { text, name, folder, here })
}

/// A command as a document, so that the same rules and changes apply to it as to a file.
pub(in crate::cli) fn command(
    arguments: &[String],
    code: Option<&Path>,
    changes: &[Override],
    output: &Output,
) -> Result<CommandJob, Error> {
    let here = current_folder()?;
    let mut document = json!({ "command": shell_line(arguments) });
    if let Some(code) = code.map(|code| here.join(code)).or_else(|| own_code(&here, output)) {
        document["code"] = utf8(&code)?.into();
    }
    let text = document.to_string();
    parse(text.as_bytes(), "<command line>".to_owned(), &here, &here, changes, output)
}

/// The current folder is the code, unless that would send far more than anybody meant.
fn own_code(here: &Path, output: &Output) -> Option<PathBuf> {
    // An empty folder is no code, and no mistake either: the command may need none.
    if std::fs::read_dir(here).is_ok_and(|mut entries| entries.next().is_none()) {
        return None;
    }
    let home = env::home_dir();
    if here.parent().is_none() || Some(here) == home.as_deref() {
        output.warn(&format!(
            "{} is not taken as the job's code; name a folder with --code",
            here.display()
        ));
        return None;
    }
    Some(here.to_owned())
}

/// What the shell is given: one argument with blanks is a shell line already, several are words.
fn shell_line(arguments: &[String]) -> String {
    match arguments {
        [line] if line.contains(char::is_whitespace) => line.clone(),
        words => words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" "),
    }
}

fn current_folder() -> Result<PathBuf, Error> {
    env::current_dir().map_err(|error| {
        Error::new(Kind::Refused, format!("the current folder cannot be found: {error}"))
            .help("change to a folder that exists")
    })
}

pub(in crate::cli) fn utf8(path: &Path) -> Result<&str, Error> {
    path.to_str().ok_or_else(|| {
        Error::new(Kind::Refused, format!("the path {} is not UTF-8", path.display()))
            .help("job files can only name paths that are; rename the folder")
    })
}

fn parse(
    text: &[u8],
    name: String,
    folder: &Path,
    here: &Path,
    changes: &[Override],
    output: &Output,
) -> Result<CommandJob, Error> {
    let experiment = here.file_name().map(|name| name.to_string_lossy().into_owned());
    let origin = Origin {
        name,
        folder: utf8(folder)?.to_owned(),
        experiment: experiment.unwrap_or_else(|| "Default".to_owned()),
    };
    let parsed = parse_job(text, &origin, changes, &Here).map_err(faults)?;
    for warning in &parsed.warnings {
        output.warn(&warning.to_string());
    }
    Ok(parsed.job)
}

/// What is wrong with a job, each fault with its place and remedy.
pub(in crate::cli) fn faults(faults: Diagnostics) -> Error {
    Error::new(Kind::Refused, faults.to_string())
}
