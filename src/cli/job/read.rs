//! From a job file or a command line to a checked job.

use std::env;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use atelier_core::spec::limits::MAX_DOCUMENT;
use atelier_core::spec::{
    CommandJob, Diagnostics, FileKind, Files, Origin, Override, parse_job, quote,
};
use serde_json::json;

use crate::cli::{Error, Kind, Output};

/// The submitter's files, as the specification reads them.
struct Here;

impl Files for Here {
    fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        File::open(path).and_then(bounded).map_err(|error| error.to_string())
    }

    fn kind(&self, path: &str) -> Option<FileKind> {
        let found = std::fs::metadata(path).ok()?;
        Some(if found.is_dir() { FileKind::Folder } else { FileKind::File })
    }
}

/// At most one byte more than a document may have, which tells that it is too long.
fn bounded(source: impl io::Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(MAX_DOCUMENT as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// One `--set KEY=VALUE`.
pub(in crate::cli) fn change(text: &str) -> Result<Override, String> {
    Override::parse(text).map_err(|error| error.to_string())
}

/// Reads the file, `-` being standard input, with the changes applied in order.
pub(in crate::cli) fn file(
    path: &Path,
    changes: &[Override],
    output: &Output,
) -> Result<CommandJob, Error> {
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
                true => error.help("name the job file in it, for example job.yml"),
                false => error.help("check the path; job files end with .yml as a rule"),
            }
        })?;
        let absolute = here.join(path);
        let folder = absolute.parent().unwrap_or(&here).to_owned();
        (text, path.display().to_string(), folder)
    };
    parse(&text, name, &folder, &here, changes, output)
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

fn utf8(path: &Path) -> Result<&str, Error> {
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
fn faults(faults: Diagnostics) -> Error {
    Error::new(Kind::Refused, faults.to_string())
}
