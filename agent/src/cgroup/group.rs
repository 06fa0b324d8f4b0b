//! The control groups of one attempt. Written into the launch record: the supervisor enters them, and
//! whoever comes after it ends and removes them.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The groups of one attempt, one in each hierarchy that this node uses.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Cgroup {
    pub(super) groups: Vec<Group>,
}

/// A group in one hierarchy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Group {
    pub(super) folder: PathBuf,
    pub(super) version: Version,
    /// What is limited or counted here.
    pub(super) controllers: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Version {
    V1,
    V2,
}

/// An open file by which a group is ended, for a process that could not open it when it has to.
#[derive(Debug)]
pub(crate) struct Switch {
    file: File,
    text: &'static [u8],
}

impl Switch {
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn press(&self) {
        // A group that is gone needs no end.
        let _ = (&self.file).write_all(self.text);
    }
}

/// What the kernel counted of an attempt's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct MemoryUse {
    /// The most that was used at once, what was cached of files included.
    pub(crate) peak_bytes: Option<u64>,
    /// The limit that it has come up against; `None`: only that of all the node's jobs, if any.
    pub(crate) limit_bytes: Option<u64>,
    /// Processes that the kernel killed for want of memory.
    pub(crate) kills: u64,
}

/// Above this a limit is what the kernel shows for none: v1 rounds the largest number down to pages.
const NO_LIMIT: u64 = 1 << 62;

impl Group {
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a file that this kernel may lack: swap accounting is an option, killing a group whole is new.
    pub(super) fn write_if_there(&self, name: &str, value: &str) -> io::Result<()> {
        use io::ErrorKind::{NotFound, PermissionDenied};
        match fs::write(self.file(name), value) {
            Err(error) if matches!(error.kind(), NotFound | PermissionDenied) => Ok(()),
            other => other,
        }
    }

    /// A number alone in its file; `None` if it is no number (`max`) or there is no such file.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        fs::read_to_string(self.file(name)).ok()?.trim().parse().ok()
    }

    /// The number behind a word of a file of such pairs.
    pub(super) fn counted(&self, name: &str, word: &str) -> Option<u64> {
        let text = fs::read_to_string(self.file(name)).ok()?;
        text.lines().find_map(|line| line.strip_prefix(word)?.trim().parse().ok())
    }

    /// What is in the group and in those that somebody made in it.
    fn processes(&self) -> Vec<i32> {
        let (mut found, mut folders) = (Vec::new(), vec![self.folder.clone()]);
        while let Some(folder) = folders.pop() {
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.trim().parse::<i32>().ok()));
            // Its links count those within; most have none.
            let has_groups = fs::metadata(&folder).is_ok_and(|folder| folder.nlink() > 2);
            let within = has_groups.then(|| fs::read_dir(&folder).ok()).flatten();
            let within = within.into_iter().flatten().filter_map(Result::ok);
            let groups = within.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            folders.extend(groups.map(|entry| entry.path()));
        }
        found
    }
}

impl Cgroup {
    /// A file for each group: whoever writes `0` to it is in the group from then on.
    pub(crate) fn doors(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |group: &Group| {
            // Version 1 moves a lone thread without the lock that it takes for processes.
            let name = match group.version {
                Version::V1 => "tasks",
                Version::V2 => "cgroup.procs",
            };
            let file = File::options().write(true).open(group.file(name))?;
            Ok(OwnedFd::from(file))
        };
        self.groups.iter().map(open).collect()
    }

    /// What [`kill`](Self::kill) writes, as far as there is a file for it.
    pub(crate) fn switches(&self) -> Vec<Switch> {
        let open = |(path, text): (PathBuf, &'static [u8])| {
            Some(Switch { file: File::options().write(true).open(path).ok()?, text })
        };
        let limits = self.groups.iter().filter(|group| group.has("pids"));
        let limits = limits.map(|group| (group.file("pids.max"), b"0".as_slice()));
        let whole = self.groups.iter().filter(|group| group.version == Version::V2);
        let whole = whole.map(|group| (group.file("cgroup.kill"), b"1".as_slice()));
        limits.chain(whole).filter_map(open).collect()
    }

    /// Keeps what is in the groups from growing and kills it. Whether anything was there.
    pub(crate) fn kill(&self) -> bool {
        for group in &self.groups {
            // Or a process that forks as fast as we look would outrun us.
            if group.has("pids") {
                let _ = fs::write(group.file("pids.max"), "0");
            }
        }
        let mut found = false;
        for group in &self.groups {
            let processes = group.processes();
            found |= !processes.is_empty();
            // All at once, whatever forks meanwhile (Linux 5.14).
            if group.version == Version::V2 && fs::write(group.file("cgroup.kill"), "1").is_ok() {
                continue;
            }
            for pid in processes {
                kill_in(pid, group);
            }
        }
        found
    }

    /// The processes in the groups now.
    pub(crate) fn processes(&self) -> Vec<i32> {
        self.groups.first().map(Group::processes).unwrap_or_default()
    }

    /// What the kernel counted; nothing where memory is not controlled.
    pub(crate) fn memory(&self) -> MemoryUse {
        let Some(group) = self.groups.iter().find(|group| group.has("memory")) else {
            return MemoryUse::default();
        };
        let (peak, limit, reached, kills) = match group.version {
            Version::V2 => (
                // Linux 5.19.
                group.number("memory.peak"),
                group.number("memory.max"),
                group.counted("memory.events", "oom "),
                group.counted("memory.events", "oom_kill "),
            ),
            Version::V1 => (
                group.number("memory.max_usage_in_bytes"),
                group.number("memory.limit_in_bytes").filter(|limit| *limit < NO_LIMIT),
                // Newer kernels do not count it any more.
                None,
                group.counted("memory.oom_control", "oom_kill "),
            ),
        };
        let limit = limit.filter(|_| reached != Some(0));
        MemoryUse { peak_bytes: peak, limit_bytes: limit, kills: kills.unwrap_or(0) }
    }

    /// A file that can be read when memory ran out somewhere at or above the group. Only version 1 needs
    /// it: there the kernel kills one process of the job, and the rest would go on without it.
    pub(crate) fn memory_alarm(&self) -> Option<OwnedFd> {
        let group =
            self.groups.iter().find(|group| group.has("memory") && group.version == Version::V1)?;
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let alarm = rustix::event::eventfd(0, flags).ok()?;
        let control = File::open(group.file("memory.oom_control")).ok()?;
        let order = format!("{} {}", alarm.as_raw_fd(), control.as_raw_fd());
        fs::write(group.file("cgroup.event_control"), order).ok()?;
        Some(alarm)
    }

    /// Removes the groups. They must be empty; what is not is left for the next try.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let removed = self.groups.iter().map(|group| remove(&group.folder));
        removed.fold(Ok(()), Result::and)
    }
}

/// Groups that are gone when this is dropped, with all that is in them.
#[derive(Debug)]
pub(crate) struct Passing(pub(super) Cgroup);

impl Passing {
    pub(crate) fn groups(&self) -> &Cgroup {
        &self.0
    }
}

impl Passing {
    /// Kills what is in them and waits until it is gone.
    ///
    /// # Errors
    /// It does not die.
    pub(crate) fn end(&self) -> io::Result<()> {
        for _ in 0..500 {
            self.0.kill();
            if self.0.groups.iter().all(|group| group.processes().is_empty()) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(io::Error::other("what it left running cannot be killed"))
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.0.kill();
        if self.0.remove().is_ok() {
            return;
        }
        let groups = std::mem::take(&mut self.0);
        // What was killed takes an instant to be gone.
        let removing = std::thread::Builder::new().name("build-groups".into());
        let _ = removing.spawn(move || {
            for _ in 0..100 {
                std::thread::sleep(Duration::from_millis(20));
                groups.kill();
                if groups.remove().is_ok() {
                    return;
                }
            }
            tracing::warn!(?groups, "what a build left cannot be killed");
        });
    }
}

/// Removes a group and those that somebody made in it.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    remove(&entry.path())?;
                }
            }
            match fs::remove_dir(folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            }
        }
        other => other,
    }
}

/// Kills a process if it is in the group now: the number that was read may be another's by now.
fn kill_in(pid: i32, group: &Group) {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let Some(named) = Pid::from_raw(pid) else { return };
    let Ok(process) = pidfd_open(named, PidfdFlags::empty()) else { return };
    if group.processes().contains(&pid) {
        let _ = pidfd_send_signal(&process, Signal::KILL);
    }
}
