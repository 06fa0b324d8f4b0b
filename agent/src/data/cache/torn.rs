//! What may have been on its way to the disk when the machine lost its power.
//!
//! Files of datastores are not synced when they are kept: a folder of small ones would take many times as long. What
//! was not written by then is mostly shorter than it should be, which is seen when it is used, but not on every file
//! system. Content objects are checked by their digests, and blocks say in which boot they were written.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::{proc, record};

/// The boot in which the folder was last used.
const BOOT: &str = "boot.json";
/// The kernel writes what has waited for 30 s (`vm.dirty_expire_centisecs`) and looks every 5 s; on a busy disk it may
/// take a while.
const UNWRITTEN_S: i64 = 180;

/// Removes, in the first use after a boot, the files that were added or used in the last minutes of the one before:
/// how many. That is three minutes before the newest of them.
pub(super) fn discard(folder: &Path, files: &Path) -> usize {
    let Ok(boot) = proc::boot_id() else { return 0 };
    let before: Option<String> = record::read(folder, BOOT).ok().flatten();
    if before.as_ref() == Some(&boot) {
        return 0;
    }
    let gone = before.map_or(0, |_| discard_newest(files));
    if let Err(error) = record::write(folder, BOOT, &boot) {
        tracing::debug!(%error, "the next use looks at the newest files again");
    }
    gone
}

fn discard_newest(files: &Path) -> usize {
    let parts = fs::read_dir(files).into_iter().flatten().flatten();
    let all = parts.flat_map(|part| fs::read_dir(part.path()).into_iter().flatten()).flatten();
    let changed = |entry: fs::DirEntry| Some((entry.metadata().ok()?.ctime(), entry.path()));
    let all: Vec<_> = all.filter_map(changed).collect();
    let newest = all.iter().map(|(at, _)| *at).max().unwrap_or_default();
    let torn = all.iter().filter(|(at, _)| *at >= newest - UNWRITTEN_S);
    torn.filter(|(_, path)| fs::remove_file(path).is_ok()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_another_boot_what_is_young_goes_once() {
        let folder = tempfile::tempdir().unwrap();
        let files = folder.path().join("files");
        fs::create_dir_all(files.join("ab")).unwrap();
        let file = files.join("ab/abcd");
        fs::write(&file, "of which boot is not known").unwrap();
        assert_eq!(discard(folder.path(), &files), 0);
        record::write(folder.path(), BOOT, &"another").unwrap();
        assert_eq!(discard(folder.path(), &files), 1);
        assert!(!file.exists());
        fs::write(&file, "of this boot").unwrap();
        assert_eq!(discard(folder.path(), &files), 0);
    }
}
