//! Whose a process is.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{attempt, proc};

/// Tells the processes of this agent's attempts from others.
#[derive(Clone, Debug)]
pub(crate) struct Owners {
    /// The folder of all attempts.
    attempts: PathBuf,
    /// The name of the control group of all attempts.
    groups: String,
}

impl Owners {
    pub(crate) fn new(attempts: PathBuf, groups: String) -> Self {
        Self { attempts, groups }
    }

    /// The attempt, by its epoch, that a process belongs to: that whose groups it is in, or else that
    /// whose mark it or one that it descends from was started with.
    pub(crate) fn of(&self, pid: i32) -> Option<u64> {
        /// Deeper than any tree, and an end where a scan shows a circle.
        const DEPTH: usize = 64;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let by_group = groups.lines().find_map(|line| self.epoch_in(line));
        let parent = |pid: &i32| proc::stat(*pid).map(|stat| stat.parent).filter(|pid| *pid > 1);
        by_group.or_else(|| {
            std::iter::successors(Some(pid), parent).take(DEPTH).find_map(|pid| self.marked(pid))
        })
    }

    fn marked(&self, pid: i32) -> Option<u64> {
        let folder = proc::path_variable(pid, attempt::MARK)?;
        folder.strip_prefix(&self.attempts).ok()?.to_str()?.parse().ok()
    }

    /// Of a line such as `4:memory:/atelier-n0-1f2e3d4c/7/more`.
    fn epoch_in(&self, line: &str) -> Option<u64> {
        let path = Path::new(line.splitn(3, ':').nth(2)?);
        let mut parts = path.iter().skip_while(|part| **part != *self.groups);
        parts.nth(1)?.to_str()?.parse().ok()
    }
}
