//! Names for what is being written: beside its place, where no list shows it.

use object_store::path::Path;

/// What names of files that are being written start with.
pub(super) const UPLOAD: &str = ".atelier-upload-";

/// The folder of a key, with a `/` at its end; of one in the root, nothing.
pub(super) fn folder_of(at: &Path) -> &str {
    at.as_ref().rfind('/').map_or("", |end| &at.as_ref()[..=end])
}

/// What no other upload is called. `None`: there is no randomness to go with it.
pub(super) fn new_id() -> Option<String> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).ok()?;
    Some(format!("{:016x}", u64::from_le_bytes(random)))
}

/// The key of an upload of that object.
pub(super) fn beside(at: &Path, id: &str) -> String {
    format!("{}{UPLOAD}{id}", folder_of(at))
}

/// Whether it is a key of an upload.
pub(super) fn is_upload(key: &str) -> bool {
    key.rsplit('/').next().is_some_and(|name| name.starts_with(UPLOAD))
}
