//! Where Atelier keeps what belongs to one user of this machine.

use std::env;
use std::path::PathBuf;

/// No home folder.
#[derive(Debug, thiserror::Error)]
#[error("cannot tell where to keep files: set ATELIER_HOME, XDG_DATA_HOME or HOME")]
pub struct Error;

fn set(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// `$ATELIER_HOME`, else `$XDG_DATA_HOME/atelier`, else `~/.local/share/atelier`.
pub fn home() -> Result<PathBuf, Error> {
    if let Some(home) = set("ATELIER_HOME") {
        return Ok(home);
    }
    if let Some(data) = set("XDG_DATA_HOME") {
        return Ok(data.join("atelier"));
    }
    set("HOME").map(|home| home.join(".local/share/atelier")).ok_or(Error)
}

/// The daemon's data folder: the one that was given, else `workspace` in [`home`].
pub fn data_dir(given: Option<&PathBuf>) -> Result<PathBuf, Error> {
    match given {
        Some(folder) => Ok(folder.clone()),
        None => Ok(home()?.join("workspace")),
    }
}

/// Where the vault's key of a workspace is kept when nobody says where: `$XDG_CONFIG_HOME/atelier/vault`, else
/// `~/.config/atelier/vault`, else `$ATELIER_HOME/vault`. Apart from what [`home`] names, since who copies
/// that, to back it up or to move it, should not have copied the key by the way.
pub fn vault_key(workspace: &str) -> Option<PathBuf> {
    Some(settings()?.join("vault").join(format!("{workspace}.key")))
}

/// The folder of this user's settings: `$XDG_CONFIG_HOME/atelier`, else `~/.config/atelier`, else `$ATELIER_HOME`.
pub fn settings() -> Option<PathBuf> {
    set("XDG_CONFIG_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".config")))
        .map(|settings| settings.join("atelier"))
        .or_else(|| set("ATELIER_HOME"))
}
