//! The node's own programs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::pythons::{find_program, is_program};
use super::uv::Home;
use super::{Error, Realised};

/// Nothing is built. Where there is a `python3` but no `python`, which job files call, a folder
/// with that one name is put on the path.
pub(super) fn realise(home: &Home) -> Result<Realised, Error> {
    let path = match find_program(&home.path, "python") {
        Some(_) => Vec::new(),
        None => match find_program(&home.path, "python3") {
            Some(python3) => vec![shim(home, &python3)?],
            None => Vec::new(),
        },
    };
    let description = "the node's own programs".to_owned();
    Ok(Realised { path, variables: BTreeMap::new(), description, shared: None })
}

fn shim(home: &Home, python3: &PathBuf) -> Result<PathBuf, Error> {
    let folder = home.root.join(".host");
    let link = folder.join("python");
    if std::fs::read_link(&link).is_ok_and(|target| target == *python3) && is_program(&link) {
        return Ok(folder);
    }
    std::fs::create_dir_all(&folder).map_err(|error| Error::io("create", &folder, &error))?;
    // Beside and moved over: another job may be looking it up.
    let temporary = folder.join(format!(".python.{}", std::process::id()));
    let _ = std::fs::remove_file(&temporary);
    std::os::unix::fs::symlink(python3, &temporary)
        .and_then(|()| std::fs::rename(&temporary, &link))
        .map_err(|error| Error::io("create", &link, &error))?;
    Ok(folder)
}
