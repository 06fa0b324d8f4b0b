//! Where Atelier keeps what belongs to one user of this machine.

use std::env;
use std::path::PathBuf;

/// No home folder.
#[derive(Debug, thiserror::Error)]
#[error("cannot tell where to keep files: set ATELIER_HOME, XDG_DATA_HOME or HOME")]
pub struct Error;

/// `$ATELIER_HOME`, else `$XDG_DATA_HOME/atelier`, else `~/.local/share/atelier`.
pub fn home() -> Result<PathBuf, Error> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(home) = set("ATELIER_HOME") {
        return Ok(home);
    }
    if let Some(data) = set("XDG_DATA_HOME") {
        return Ok(data.join("atelier"));
    }
    set("HOME").map(|home| home.join(".local/share/atelier")).ok_or(Error)
}
