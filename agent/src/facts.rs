//! What this node is and offers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs, thread};

use atelier_core::node::{JOINS, SECRETS};

use crate::args::AgentArgs;
use crate::cgroup::Cgroups;
use crate::environment::others_may_run;
use crate::monitor::NodeSampler;

/// What the daemon is told of this node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) hostname: String,
    /// Where other nodes reach this one.
    pub(crate) address: String,
    pub(crate) os: String,
    pub(crate) cpu_milli: u64,
    pub(crate) memory_mib: u64,
    /// `None` if it cannot be told.
    pub(crate) disk_mib: Option<u64>,
    pub(crate) labels: BTreeMap<String, String>,
    /// Anything else that explains what this node can do.
    pub(crate) other: BTreeMap<String, String>,
}

impl Facts {
    /// Tells what else keeps jobs from being isolated as well as can be.
    pub(crate) fn not_isolated(&mut self, lacks: String) {
        const NAME: &str = "not_isolated";
        let before = self.other.remove(NAME).into_iter();
        let all: Vec<String> = before.chain([lacks]).collect();
        self.other.insert(NAME.to_owned(), all.join("; "));
    }
}

/// Gathers the facts: what was asked for, or else what the machine has.
pub(crate) fn gather(
    args: &AgentArgs,
    root: &Path,
    sampler: &mut NodeSampler,
    cgroups: &Cgroups,
    for_others: bool,
) -> Facts {
    let cpus = thread::available_parallelism().map_or(1, usize::from) as u64;
    let folders = search_path();
    let mut other = BTreeMap::new();
    let mut set = |name: &str, value: String| other.insert(name.to_owned(), value);
    set("cgroup", cgroup_version().to_owned());
    set("limited", cgroups.limits());
    if let Some(missing) = cgroups.missing() {
        set("not_limited", missing);
    }
    set("kernel", rustix::system::uname().release().to_string_lossy().into_owned());
    set("python", pythons(&folders, for_others).join(" "));
    set(JOINS, "mpirun, ray".to_owned());
    set(SECRETS, "memory".to_owned());
    set("architecture", env::consts::ARCH.to_owned());
    Facts {
        hostname: hostname(),
        address: args.address.clone().unwrap_or_else(hostname),
        os: os(),
        cpu_milli: args.cpus.unwrap_or(cpus * 1000),
        memory_mib: args.memory.unwrap_or_else(|| sampler.memory_mib()),
        disk_mib: args.disk.or_else(|| disk_mib(root)),
        labels: args.labels.iter().cloned().collect(),
        other,
    }
}

/// The size of the file system that a folder is on.
fn disk_mib(folder: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(folder).ok()?;
    Some(space.f_blocks.saturating_mul(space.f_frsize) >> 20)
}

/// This machine's name.
pub(crate) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn os() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| env::consts::OS.to_owned(), |name| name.trim_matches('"').to_owned())
}

fn search_path() -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default()
}

fn cgroup_version() -> &'static str {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        "2"
    } else if Path::new("/sys/fs/cgroup/memory").exists() {
        "1"
    } else {
        "none"
    }
}

/// Versions of Python by the names of its programs (`python3.12`), without running any; where jobs have users of
/// their own, those that everybody may run.
fn pythons(folders: &[PathBuf], for_others: bool) -> Vec<String> {
    let mut versions: Vec<(u32, u32)> = folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version = version(path.file_name()?.to_str()?)?;
            (!for_others || others_may_run(&path)).then_some(version)
        })
        .collect();
    versions.sort_unstable();
    versions.dedup();
    versions.into_iter().map(|(major, minor)| format!("{major}.{minor}")).collect()
}

fn version(program: &str) -> Option<(u32, u32)> {
    let (major, minor) = program.strip_prefix("python")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
