//! Where the kernel's cgroup hierarchies are mounted and which group this process is in (cgroups(7)).

use std::path::{Path, PathBuf};

/// What version 1 calls the controller of disks.
pub(super) const BLKIO: &str = "blkio";

/// One mounted hierarchy, as this process sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Hierarchy {
    pub(super) kind: Kind,
    /// Where it is mounted.
    pub(super) root: PathBuf,
    /// The folder of this process's own group.
    pub(super) own: PathBuf,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Version 1, with these controllers.
    V1(Vec<String>),
    V2,
}

/// The hierarchies, from the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`. One that does not
/// show this process's own group is left out, and of two mounts of one hierarchy the second.
pub(super) fn hierarchies(mountinfo: &str, cgroup: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some(mount) = mount(line) else { continue };
        let Some(own) = own_group(cgroup, &mount.kind) else { continue };
        // Of a container that was given a part of the tree, the rest is out of sight.
        let Ok(below) = Path::new(own).strip_prefix(&mount.shown) else { continue };
        if found.iter().any(|known| known.kind == mount.kind) {
            continue;
        }
        let own = mount.at.join(below);
        found.push(Hierarchy { kind: mount.kind, root: mount.at, own });
    }
    found
}

struct Mount {
    kind: Kind,
    /// The group that is seen at the mount point.
    shown: PathBuf,
    at: PathBuf,
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue` (proc_pid_mountinfo(5)).
fn mount(line: &str) -> Option<Mount> {
    let (place, what) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (shown, at) = (unescape(place.next()?), unescape(place.next()?));
    let mut what = what.split(' ');
    let kind = match what.next()? {
        "cgroup2" => Kind::V2,
        "cgroup" => {
            let known = ["cpu", "cpuacct", "memory", "pids", "devices", BLKIO];
            let options = what.nth(1)?.split(',');
            let controllers: Vec<String> =
                options.filter(|option| known.contains(option)).map(str::to_owned).collect();
            if controllers.is_empty() {
                return None;
            }
            Kind::V1(controllers)
        }
        _ => return None,
    };
    Some(Mount { kind, shown, at })
}

/// Of lines such as `4:memory:/jobs/7` and `0::/user.slice`, the path of this hierarchy.
fn own_group<'a>(cgroup: &'a str, kind: &Kind) -> Option<&'a str> {
    cgroup.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_it = match kind {
            Kind::V2 => number == "0" && controllers.is_empty(),
            Kind::V1(ours) => controllers.split(',').any(|name| ours.iter().any(|our| our == name)),
        };
        is_it.then_some(path)
    })
}

/// Blanks, tabs, line ends and backslashes stand as three octal digits.
pub(crate) fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let code = text.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) if byte == b'\\' => {
                plain.push(code);
                at += 4;
            }
            _ => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(plain).into()
}
