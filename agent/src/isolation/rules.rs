//! What a job may do where the machine gives it no namespaces: rules on files and signals that hold for it and all
//! that it starts (landlock(7)). They allow and never forbid, so what is hidden is left out of what may be read:
//! everything beside it, level by level.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

use super::plan::PROCESSES;
use super::{View, is_below};

/// What is asked of the kernel; of an older one, what it knows of it.
const WANTED: ABI = ABI::V6;
/// Where programs write that is neither theirs nor anybody's.
const SHARED: [&str; 2] = ["/dev", "/dev/shm"];

/// Rules that are made and not yet in force.
#[derive(Debug)]
pub(super) struct Rules(RulesetCreated);

impl Rules {
    /// Rules for a view of which all paths are plain.
    pub(super) fn new(view: &View) -> io::Result<Self> {
        let hidden = [view.hidden.as_slice(), view.masked.as_slice()].concat();
        let mut readable = beside(Path::new("/"), &hidden)?;
        readable.extend(view.readable.iter().cloned());
        let mut writable = view.writable.clone();
        writable.push(view.temporary.clone());
        writable.extend(SHARED.map(PathBuf::from));
        let made = || -> Result<RulesetCreated, RulesetError> {
            let ruleset = Ruleset::default()
                .handle_access(AccessFs::from_all(WANTED))?
                .scope(Scope::from_all(WANTED))?
                .create()?;
            let ruleset = allow(ruleset, &readable, AccessFs::from_read(WANTED))?;
            // Its own threads' names, as programs of NVIDIA's driver do; the rest is root's.
            let named = if view.stays_root() { Vec::new() } else { vec![PROCESSES.into()] };
            let ruleset = allow(ruleset, &named, AccessFs::WriteFile | AccessFs::Truncate)?;
            allow(ruleset, &writable, AccessFs::from_all(WANTED) & !AccessFs::MakeBlock)
        };
        made().map(Self).map_err(io::Error::other)
    }

    /// Holds the calling process to them.
    pub(super) fn restrict(self) -> io::Result<()> {
        let status = self.0.restrict_self().map_err(io::Error::other)?;
        match status.ruleset {
            RulesetStatus::NotEnforced => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        }
    }
}

fn allow(
    mut ruleset: RulesetCreated,
    paths: &[PathBuf],
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    for path in paths {
        // What is gone meanwhile, or closed to this user, is closed to the job too.
        if let Ok(path) = PathFd::new(path) {
            ruleset = ruleset.add_rule(PathBeneath::new(path, access))?;
        }
    }
    Ok(ruleset)
}

/// All that is in a folder but not hidden, as few paths as name it.
fn beside(folder: &Path, hidden: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    if !hidden.iter().any(|path| path.starts_with(folder)) {
        return Ok(vec![folder.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let Ok(path) = entry?.path().canonicalize() else { continue };
        if is_below(&path, hidden) {
            continue;
        }
        // A link to elsewhere is found there.
        if path.starts_with(folder) {
            found.extend(beside(&path, hidden)?);
        }
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beside_the_hidden_is_named_level_by_level() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();
        for folder in ["a/secret/deep", "a/open", "b/c", "b/d"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::os::unix::fs::symlink(root.join("a/secret"), root.join("b/link")).unwrap();
        let hidden = [root.join("a/secret")];
        let mut found = beside(&root, &hidden).unwrap();
        found.sort();
        assert_eq!(found, [root.join("a/open"), root.join("b")]);
        assert_eq!(beside(&root.join("b"), &hidden).unwrap(), [root.join("b")]);
    }
}
