//! Values as systemd reads them again: its quotes, specifiers and variables mean nothing in them.

use std::ffi::OsStr;

use crate::cli::{Error, Kind};

/// A word of a command line (`ExecStart=`).
pub(super) fn argument(value: &OsStr) -> Result<String, Error> {
    word(value).map(|word| word.replace('$', "$$"))
}

/// The program of a command line, which is a path from the root.
pub(super) fn program(value: &OsStr) -> Result<String, Error> {
    // Variables are put into arguments only, so here a doubled `$` would stay doubled.
    if value.as_encoded_bytes().contains(&b'$') {
        return Err(refused(value, "a '$', which systemd cannot take in a program's name"));
    }
    path(value)
}

/// One of a list of paths (`ReadWritePaths=`).
pub(super) fn path(value: &OsStr) -> Result<String, Error> {
    if value.as_encoded_bytes().first() != Some(&b'/') {
        let cause = format!("'{}' is no path from the root", value.display());
        return Err(Error::new(Kind::Refused, format!("cannot write a unit: {cause}"))
            .help("write the whole path; a service has no current folder"));
    }
    word(value)
}

/// The name of a user (`User=`).
pub(super) fn user(name: &str) -> Result<&str, Error> {
    let mut letters = name.chars();
    let first = letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let others = letters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    // As many as a login record holds.
    if first && others && name.len() <= 31 {
        return Ok(name);
    }
    Err(Error::usage(format!("'{name}' is not the name of a user"))
        .help("write a name of up to 31 letters, digits, '_', '-' and '.', such as atelier"))
}

fn word(value: &OsStr) -> Result<String, Error> {
    let Some(text) = value.to_str() else {
        return Err(refused(value, "bytes that are not UTF-8"));
    };
    // They could be written, but nobody who reads the unit would see what they are.
    if text.contains(char::is_control) {
        return Err(refused(value, "a line break or another control character"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-$".contains(c);
    let text = text.replace('%', "%%");
    if !text.is_empty() && text.chars().all(plain) {
        return Ok(text);
    }
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

fn refused(value: &OsStr, what: &str) -> Error {
    let shown = value.to_string_lossy();
    Error::new(Kind::Refused, format!("cannot write a unit: '{shown}' holds {what}"))
        .help("give the file or the thing another name, and use that")
}
