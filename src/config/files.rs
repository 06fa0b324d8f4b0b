//! Files that specifications name.

use std::fs::File;
use std::io::{self, Read as _};

use atelier_core::spec::limits::MAX_DOCUMENT;
use atelier_core::spec::{FileKind, Files};

/// This machine's files, as specifications read them.
pub(crate) struct Here;

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
pub(crate) fn bounded(source: impl io::Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(MAX_DOCUMENT as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
