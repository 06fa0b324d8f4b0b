//! How a node finds out whether it shares the daemon's files.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::folder::{Error, Folder, random_id};
use super::storage::FOLDER;
use crate::storage::Home;

/// A file that only a machine sharing the storage folder, or the data folder, can read.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) path: PathBuf,
    pub(crate) value: Arc<str>,
    /// Whether the workspace's own data lies in an object store, and there is nothing but this file.
    pub(crate) storage_is_elsewhere: bool,
}

impl Probe {
    pub(super) fn write(home: &Home, folder: &Folder) -> Result<Self, Error> {
        let own = match home {
            Home::Folder(storage) => storage.clone(),
            Home::Cloud(..) => folder.at(FOLDER),
        };
        let (path, value) = (own.join(PROBE), random_id()?);
        let written = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&own)
            .and_then(|()| std::fs::write(&path, &value));
        let fail =
            |source| Error::File { operation: "write", path: path.display().to_string(), source };
        written.map_err(fail)?;
        let storage_is_elsewhere = matches!(home, Home::Cloud(..));
        Ok(Self { path, value: value.into(), storage_is_elsewhere })
    }
}

/// Below the storage folder.
const PROBE: &str = ".shared-probe";
