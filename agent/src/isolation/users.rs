//! Users of the jobs' own: where the agent is root, each job's processes have a user number that nothing else
//! on the machine has, so that what root and other jobs own is closed to them by the plainest of means.
//!
//! The numbers come from a range that no account has (as systemd's dynamic users do, see its
//! UIDS-GIDS document, which leaves the default range to others). Which number is a job's follows from a seed
//! that the daemon makes of the job's name and user with a secret of the workspace: nothing needs to be
//! remembered, the job's later attempts own what earlier ones left in a shared folder, its members on other nodes
//! do too, and nobody can choose a name that has another job's number. Of a hundred jobs at once in the default
//! range, two share a number in one of 3,000 cases; they are kept apart by all else that a view does.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::plan;

/// What the job's user is called.
pub(crate) const NAME: &str = "job";
/// Where programs look up names of users.
pub(super) const PASSWD: &str = "/etc/passwd";

/// Numbers of users that jobs may get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    first: u32,
    count: u32,
}

impl Range {
    /// 16,777,216 numbers from 1879048192 on.
    const USUAL: Self = Self { first: 0x7000_0000, count: 1 << 24 };

    /// The number of the job with this seed.
    fn number(self, seed: u64) -> u32 {
        self.first + u32::try_from(seed % u64::from(self.count)).unwrap_or_default()
    }

    pub(crate) fn first(self) -> u32 {
        self.first
    }

    pub(crate) fn last(self) -> u32 {
        self.first + (self.count - 1)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last())
    }
}

/// Which users jobs get where the agent is root.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum JobUsers {
    /// Their own, where the machine can.
    #[default]
    Auto,
    /// Root, as the agent.
    None,
    /// Their own, of these.
    Of(Range),
}

impl JobUsers {
    /// The range, if there is to be one.
    pub(crate) fn range(self) -> Option<Range> {
        match self {
            Self::Auto => Some(Range::USUAL),
            Self::None => None,
            Self::Of(range) => Some(range),
        }
    }
}

impl FromStr for JobUsers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => return Ok(Self::Auto),
            "none" => return Ok(Self::None),
            _ => {}
        }
        let wrong = || {
            format!(
                "'{text}' is not auto, none, or a range of user numbers that no account has: write for \
                 example 300000-365535"
            )
        };
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        // 65534 is nobody and the largest number means none; those below 1000 are the system's.
        let reserved = [65_534, u32::MAX].into_iter().any(|id| (first..=last).contains(&id));
        if first < 1000 || last < first || last - first < 255 || reserved {
            let bounds = "at least 256 numbers, none below 1000, and not 65534";
            return Err(format!("{}: {bounds}", wrong()));
        }
        Ok(Self::Of(Range { first, count: last - first + 1 }))
    }
}

/// Whom the jobs of a node run as.
#[derive(Clone, Debug)]
pub(crate) struct Users {
    range: Range,
    /// Where this machine's devices are.
    devices: PathBuf,
}

impl Users {
    pub(crate) fn new(range: Range) -> Self {
        Self { range, devices: PathBuf::from(plan::DEVICE_FOLDER) }
    }

    /// The numbers that there are.
    pub(crate) fn range(&self) -> Range {
        self.range
    }

    /// The number of the user of the job with this seed.
    pub(crate) fn number(&self, seed: u64) -> u32 {
        self.range.number(seed)
    }

    /// A job's user; `passwd` is written, in which it has a name besides those that the machine knows.
    pub(crate) fn user(&self, seed: u64, passwd: PathBuf) -> io::Result<User> {
        let id = self.number(seed);
        let mut text = fs::read(PASSWD).unwrap_or_default();
        if text.last().is_some_and(|last| *last != b'\n') {
            text.push(b'\n');
        }
        writeln!(text, "{NAME}:x:{id}:{id}:A job of Atelier:/tmp:/bin/sh")?;
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o644);
        options.custom_flags(libc::O_NOFOLLOW).open(&passwd)?.write_all(&text)?;
        // A driver may have come since the last job.
        let groups = plan::accelerator_groups(&self.devices);
        Ok(User { id, groups, passwd })
    }
}

/// Whom a job's processes run as. Part of the launch record.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct User {
    /// The user's number, and its group's.
    pub(crate) id: u32,
    /// Further groups: those that may use this machine's accelerators.
    pub(crate) groups: Vec<u32>,
    /// What the job sees as `/etc/passwd`.
    pub(crate) passwd: PathBuf,
}

/// The outermost of the folders around a path that not everybody may enter, such as root's home. Nothing in it
/// can be seen by a job with a user of its own, but for what it is given; so it may as well be hidden, and then
/// what the job is given can be reached.
pub(crate) fn closed_above(path: &Path) -> Option<PathBuf> {
    let real = path.canonicalize().ok()?;
    let is_closed = |folder: &&Path| {
        fs::metadata(folder).is_ok_and(|found| found.mode() & 0o001 == 0)
            && folder.parent().is_some()
    };
    real.ancestors().skip(1).filter(is_closed).last().map(Path::to_owned)
}

/// Gives all that is below these paths to a user; what is not there is fine, and so is what has other names
/// elsewhere: that is not the attempt's alone.
///
/// No process of the attempt may run yet, which could put something else in a file's place.
pub(crate) fn give(paths: &[PathBuf], owner: u32) -> io::Result<()> {
    for path in paths {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => give_tree(path, &other?, owner)?,
        }
    }
    Ok(())
}

fn give_tree(path: &Path, found: &fs::Metadata, owner: u32) -> io::Result<()> {
    if !found.is_dir() {
        return match found.nlink() {
            1 => std::os::unix::fs::lchown(path, Some(owner), Some(owner)),
            _ => Ok(()),
        };
    }
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        std::os::unix::fs::lchown(&folder, Some(owner), Some(owner))?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let found = entry.metadata()?;
            match found.is_dir() {
                true => folders.push(entry.path()),
                false => give_tree(&entry.path(), &found, owner)?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_range_is_read_and_what_belongs_to_accounts_is_refused() {
        assert_eq!("auto".parse(), Ok(JobUsers::Auto));
        assert_eq!("none".parse(), Ok(JobUsers::None));
        let range = Range { first: 300_000, count: 65_536 };
        assert_eq!("300000-365535".parse(), Ok(JobUsers::Of(range)));
        for text in
            ["", "root", "0-70000", "500-1000", "2000-2100", "60000-70000", "9-8", "5-", "a-b"]
        {
            let told = text.parse::<JobUsers>().unwrap_err();
            assert!(told.contains("300000-365535"), "{told}");
        }
        assert!("4294960000-4294967295".parse::<JobUsers>().is_err());
    }

    #[test]
    fn the_outermost_closed_folder_around_a_path_is_found() {
        let place = tempfile::tempdir().unwrap();
        let (home, open, inner) =
            (place.path().join("home"), place.path().join("home/open"), "home/open/closed/data");
        fs::create_dir_all(place.path().join(inner)).unwrap();
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(place.path(), 0o755);
        mode(&home, 0o755);
        mode(&open.join("closed"), 0o700);
        let found = || closed_above(&place.path().join(inner));
        let real = |path: &Path| Some(path.canonicalize().unwrap());
        assert_eq!(found(), real(&open.join("closed")));
        mode(&home, 0o750);
        assert_eq!(found(), real(&home));
    }

    #[test]
    fn jobs_have_users_of_the_whole_range_and_each_always_the_same() {
        let range = Range { first: 5000, count: 256 };
        let all: std::collections::BTreeSet<u32> =
            (u64::MAX - 999..=u64::MAX).map(|seed| range.number(seed)).collect();
        assert_eq!(all, (5000..5256).collect());
        assert_eq!(range.number(7), range.number(7 + 256));
    }

    #[test]
    fn jobs_may_use_accelerators_that_came_after_the_agent() {
        use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
        let place = tempfile::tempdir().unwrap();
        let range = Range { first: 5000, count: 256 };
        let users = Users { range, devices: place.path().to_owned() };
        let groups = || users.user(7, place.path().join("passwd")).unwrap().groups;
        assert!(groups().is_empty());
        let make = |name: &str, mode: u32, group: u32| {
            let path = place.path().join(name);
            let device = FileType::CharacterDevice;
            mknodat(CWD, &path, device, Mode::RUSR, makedev(1, 3)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            std::os::unix::fs::lchown(&path, None, Some(group)).unwrap();
        };
        fs::create_dir(place.path().join("dri")).unwrap();
        make("dri/renderD128", 0o660, 4_107);
        make("kfd", 0o660, 4_107);
        // Everybody's, and none.
        make("nvidia0", 0o666, 4_044);
        make("sda", 0o660, 4_006);
        assert_eq!(groups(), [4_107]);
    }

    #[test]
    fn what_is_the_attempts_alone_is_given_and_shared_files_are_not() {
        let place = tempfile::tempdir().unwrap();
        let (own, shared) = (place.path().join("own"), place.path().join("shared"));
        fs::create_dir_all(own.join("a/b")).unwrap();
        fs::write(own.join("a/b/file"), "").unwrap();
        fs::write(&shared, "").unwrap();
        fs::hard_link(&shared, own.join("second name")).unwrap();
        std::os::unix::fs::symlink(&shared, own.join("link")).unwrap();
        give(&[own.clone(), place.path().join("nothing")], 5007).unwrap();
        let owner = |path: &Path| fs::symlink_metadata(path).unwrap().uid();
        for name in ["", "a", "a/b", "a/b/file", "link"] {
            assert_eq!(owner(&own.join(name)), 5007, "{name}");
        }
        assert_eq!(owner(&shared), 0);
    }
}
