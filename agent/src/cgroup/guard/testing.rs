#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
//! Groups of the tests' own.

use std::fs;
use std::path::{Path, PathBuf};

/// Where groups of version 2 are.
pub(super) fn unified() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let at = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    at.expect("a mounted cgroup2").split(' ').nth(1).unwrap().into()
}

/// A group that is removed again.
pub(super) struct Own(pub(super) PathBuf);

impl Own {
    pub(super) fn below(top: &Path, name: &str) -> Self {
        // Not named as agents name theirs: one beside it removes those of others that are empty.
        let folder = top.join(format!("test-{name}-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
