//! Which files of a data folder are backed up.

/// What becomes of a file or folder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Choice {
    /// It is taken; of a folder, what is in it is asked for.
    Take,
    /// It is not.
    Leave,
}

/// By its path in the data folder. What is not known here is taken: whoever adds a file there need not think of this
/// place for it to survive.
pub(super) fn choose(path: &[&str]) -> Choice {
    let [first, rest @ ..] = path else { return Choice::Take };
    let left = match *first {
        // Data, which lies in datastores; and what the running daemon says of itself.
        "storage" | "endpoint" | "lock" => true,
        // Taken by other means.
        super::DATABASE | "atelier.db-wal" | "atelier.db-shm" | "atelier.db-journal" => true,
        // Of backups and restores.
        super::TEMPORARY | super::LOCK | super::RECORD | super::MARKER => true,
        // The system's, where the data folder is a disk of its own.
        FOUND => true,
        name if name.starts_with(ASIDE) || name == STAGE => true,
        // Of agents on this machine their tokens are the workspace's, and the rest is the agents'.
        "nodes" => matches!(rest, [_, file, ..] if *file != "token"),
        _ => false,
    };
    // Half written, and nothing yet.
    let is_half = path.last().is_some_and(|name| name.ends_with(".new") || name.ends_with(".part"));
    if left || is_half { Choice::Leave } else { Choice::Take }
}

/// Folders that hold what was there before a restore.
pub(super) const ASIDE: &str = "before-restore-";
/// Below the data folder, while one is restored.
pub(super) const STAGE: &str = "restore.tmp";

/// What the file system's check finds, at the root of a disk; only root may look into it.
const FOUND: &str = "lost+found";

/// Whether a restore leaves an entry of the data folder where it is.
pub(super) fn stays(name: &str) -> bool {
    let others = ["nodes", "storage", "lock", FOUND, STAGE, super::LOCK, super::MARKER];
    others.contains(&name) || name.starts_with(ASIDE)
}
