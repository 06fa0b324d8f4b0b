//! What `/proc` says of processes (proc_pid_stat(5)).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

#[cfg(test)]
mod tests;

/// Some fields of `/proc/PID/stat`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stat {
    pub(crate) pid: i32,
    /// `Z` for one that is dead and not yet waited for.
    pub(crate) state: char,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    /// CPU of the process itself and of its waited-for children, in clock ticks.
    pub(crate) cpu_ticks: u64,
    /// When it started, in clock ticks since boot; with the pid and the boot it names a process.
    pub(crate) start_time: u64,
    /// Resident pages.
    pub(crate) resident_pages: u64,
}

/// Reads the text of a `stat` file. The command's name may hold spaces and parentheses, so the
/// fields count from the last `)`.
pub(crate) fn parse_stat(text: &str) -> Option<Stat> {
    let (pid, rest) = text.split_once(' ')?;
    let fields: Vec<&str> = rest.get(rest.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
    // `fields[0]` is the third field of the manual page.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        pid: pid.parse().ok()?,
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        cpu_ticks: number(14)? + number(15)? + number(16)? + number(17)?,
        start_time: number(22)?,
        resident_pages: number(24)?,
    })
}

/// The stat of a process, or `None` if there is no such process.
pub(crate) fn stat(pid: i32) -> Option<Stat> {
    // A program's name need not be text, and is cut where it gets too long.
    parse_stat(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?))
}

/// The name of a process's program, at most 15 bytes of it.
pub(crate) fn name(pid: i32) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim().to_owned())
}

/// Names this boot of the machine.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// All processes of the machine, as far as this user sees them.
pub(crate) fn all() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| stat(entry.ok()?.file_name().to_str()?.parse().ok()?)).collect()
}

/// The processes of `all` below `root`, without it.
pub(crate) fn descendants(all: &[Stat], root: i32) -> Vec<&Stat> {
    let mut children: BTreeMap<i32, Vec<&Stat>> = BTreeMap::new();
    for stat in all {
        children.entry(stat.parent).or_default().push(stat);
    }
    // A scan is no snapshot: with pids used again it could show a circle.
    let (mut found, mut seen, mut next) = (Vec::new(), BTreeSet::from([root]), vec![root]);
    while let Some(pid) = next.pop() {
        for &child in children.get(&pid).into_iter().flatten() {
            if seen.insert(child.pid) {
                found.push(child);
                next.push(child.pid);
            }
        }
    }
    found
}

/// Whether a process has given up getting more privileges than it has.
pub(crate) fn gains_no_privileges(pid: i32) -> bool {
    let status = fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    String::from_utf8_lossy(&status).lines().any(|line| line == "NoNewPrivs:\t1")
}

/// Bytes that a process has read from and written to storage, waited-for children included.
pub(crate) fn disk_bytes(pid: i32) -> Option<(u64, u64)> {
    parse_io(&fs::read_to_string(format!("/proc/{pid}/io")).ok()?)
}

fn parse_io(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.strip_prefix(':')?.trim().parse::<u64>().ok()
    };
    Some((field("read_bytes")?, field("write_bytes")?))
}

/// Whether a process was started with `NAME=value` in its environment.
pub(crate) fn has_variable(pid: i32, name: &str, value: &Path) -> bool {
    path_variable(pid, name).is_some_and(|found| found == value)
}

/// The variables with which a process was started, as far as they are text; none of one that cannot be read.
pub(crate) fn variables(pid: i32) -> BTreeMap<String, String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let all = environment.split(|&byte| byte == 0);
    all.filter_map(|variable| std::str::from_utf8(variable).ok()?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The path that a variable held when a process was started.
pub(crate) fn path_variable(pid: i32, name: &str) -> Option<PathBuf> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    environment.split(|&byte| byte == 0).find_map(|variable| {
        let value = variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(PathBuf::from(OsStr::from_bytes(value)))
    })
}
