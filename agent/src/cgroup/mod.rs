//! Control groups: what keeps each attempt within what it was given, and finds all that it started.
//!
//! ```text
//! <where the agent is>/atelier-<node>-<folder>/     all jobs of this agent: what the node has for jobs
//!                                             <epoch>/   one attempt: its memory, processes, share of CPU
//! ```
//! Version 2 is used as far as its controllers are there and this process may hand them on; version 1
//! where that is what a machine has (cgroups(7)). On a machine with both, each controller is where the
//! system has put it, and an empty version 2 still ends a whole attempt in one step. What cannot be had
//! is told among the node's facts, and jobs run without it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

mod group;
mod guard;
mod io_rate;
mod mounts;
#[cfg(test)]
mod tests;
mod unified;
mod usage;

pub(crate) use group::{Cgroup, MemoryUse, Passing, Switch};
use group::{Group, Version};
pub(crate) use guard::{DeviceNode, Rule, Rules, Traffic};
pub(crate) use io_rate::DiskRate;
pub(crate) use mounts::unescape;
use mounts::{Hierarchy, Kind};
pub(crate) use usage::Waited;

/// The controllers that attempts need.
const WANTED: [&str; 3] = ["cpu", "memory", "pids"];
/// Shares out the disks, and counts what is read and written; without it processes are asked one by one. Version
/// 1 calls it `blkio`, and counts too early to be of use: before what was cached is written.
const IO: &str = "io";

/// What the agent has for jobs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NodeLimits {
    /// Bytes of memory for all jobs together.
    pub(crate) memory: u64,
    /// Processes and threads of all jobs together.
    pub(crate) processes: u64,
    /// Whether there are devices that not every job may open.
    pub(crate) guarded: bool,
    /// To what each job is held on the disk of the agent's folder; `None`: to nothing.
    pub(crate) io: Option<DiskRate>,
}

/// What one attempt may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limits {
    /// Thousandths of a CPU: its share when CPU is short. Idle CPU is anybody's.
    pub(crate) cpu_milli: u64,
    /// Bytes; `None`: all that the node has for jobs.
    pub(crate) memory: Option<u64>,
    /// Processes and threads.
    pub(crate) processes: u64,
    /// The most that is read and written of a disk; `None`: all that it gives. When a disk is short, jobs share
    /// it as they do CPU.
    pub(crate) io: Option<DiskRate>,
}

impl NodeLimits {
    /// Of `memory` bytes that are offered to jobs, on a machine with `total`, what leaves the machine its
    /// own reserve: a thirty-second, at least 128 MiB and at most 2 GiB.
    pub(crate) fn of(offered: u64, total: u64) -> Self {
        const MIB: u64 = 1 << 20;
        let reserve = (total / 32).clamp(128 * MIB, 2048 * MIB);
        let memory = offered.min(total.saturating_sub(reserve)).max(64 * MIB);
        let highest = |name: &str| {
            let text = fs::read_to_string(Path::new("/proc/sys/kernel").join(name)).ok()?;
            text.trim().parse::<u64>().ok()
        };
        let most = highest("pid_max").into_iter().chain(highest("threads-max")).min();
        Self { memory, processes: most.unwrap_or(32_768) / 4 * 3, guarded: false, io: None }
    }
}

impl Limits {
    /// For a job with this much CPU: enough processes for what trains on it, and no more than half of
    /// what all jobs may have.
    pub(crate) fn of(cpu_milli: u64, memory_mib: u64, node: &NodeLimits) -> Self {
        let processes = 4096 + cpu_milli.div_ceil(1000) * 512;
        Self {
            cpu_milli,
            memory: (memory_mib > 0).then(|| memory_mib.saturating_mul(1 << 20).min(node.memory)),
            processes: processes.min(node.processes / 2),
            io: node.io,
        }
    }
}

/// This node's place in the hierarchies.
#[derive(Debug)]
pub(crate) struct Cgroups {
    parents: Vec<Parent>,
    node: NodeLimits,
    /// What cannot be had, and why.
    missing: BTreeMap<&'static str, String>,
    /// Why there is no group of version 2, if there is none.
    not_unified: String,
    /// To which addresses all attempts are held.
    rules: Mutex<Rules>,
}

/// The group of all attempts in one hierarchy.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Parent {
    folder: PathBuf,
    /// The same below where the hierarchy is mounted.
    path: PathBuf,
    version: Version,
    controllers: Vec<String>,
}

impl Cgroups {
    /// Finds or makes the place for the attempts of the agent with this name.
    pub(crate) fn find(name: &str, node: NodeLimits) -> Self {
        // The name of a mount that is no text must not hide the others.
        let text = |name: &str| {
            let bytes = fs::read(Path::new("/proc/self").join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let found = mounts::hierarchies(&text("mountinfo"), &text("cgroup"));
        Self::within(&found, name, node)
    }

    fn within(hierarchies: &[Hierarchy], name: &str, node: NodeLimits) -> Self {
        let mut found = Self {
            parents: Vec::new(),
            node,
            missing: BTreeMap::new(),
            not_unified: "the machine has no cgroups of version 2".to_owned(),
            rules: Mutex::default(),
        };
        let mut left: BTreeSet<&'static str> = WANTED.into();
        left.extend(node.guarded.then_some(guard::DEVICES));
        left.extend(node.io.map(|_| IO));
        for hierarchy in hierarchies {
            let Kind::V1(controllers) = &hierarchy.kind else { continue };
            let mut ours: Vec<&str> =
                left.iter().copied().filter(|name| controllers.iter().any(|c| c == name)).collect();
            ours.extend(controllers.iter().any(|name| name == mounts::BLKIO).then_some(IO));
            if ours.is_empty() {
                continue;
            }
            let controllers = ours.iter().map(|&name| name.to_owned()).collect();
            let folder = hierarchy.own.join(name);
            let parent = Parent::new(&hierarchy.root, folder, Version::V1, controllers);
            found.add(parent, &mut left);
        }
        if let Some(unified) = hierarchies.iter().find(|hierarchy| hierarchy.kind == Kind::V2) {
            match unified::parent(unified, name, &left) {
                Ok(mut parent) => {
                    // No controller of version 2, but a program.
                    let wanted = left.contains(guard::DEVICES);
                    match wanted.then(guard::can_load) {
                        None => {}
                        Some(Ok(())) => parent.controllers.push(guard::DEVICES.to_owned()),
                        Some(Err(error)) => {
                            let why = format!("this agent may not load BPF programs ({error})");
                            found.missing.insert(guard::DEVICES, why);
                        }
                    }
                    found.add(parent, &mut left);
                }
                Err(why) => {
                    found.not_unified.clone_from(&why);
                    if left.contains(guard::DEVICES) {
                        found.missing.insert(guard::DEVICES, why.clone());
                    }
                    // Of the others there are none, whoever asks.
                    for controller in unified::offered(&unified.root, &left) {
                        let known = WANTED.into_iter().find(|name| *name == controller);
                        found.missing.extend(known.map(|known| (known, why.clone())));
                    }
                }
            }
        }
        for controller in left {
            let why = || "the machine's cgroups have no such controller here".to_owned();
            found.missing.entry(controller).or_insert_with(why);
        }
        found
    }

    fn add(&mut self, parent: Parent, left: &mut BTreeSet<&'static str>) {
        if let Err(error) = parent.make(&self.node) {
            let why = format!("cannot make the group {}: {error}", parent.folder.display());
            for &controller in left.iter().filter(|name| parent.has(name)) {
                self.missing.insert(controller, why.clone());
            }
            if parent.version == Version::V2 {
                self.not_unified = why;
            }
            return;
        }
        left.retain(|name| !parent.has(name));
        parent.sweep_neighbours();
        self.parents.push(parent);
    }

    /// What is limited, for the node's facts.
    pub(crate) fn limits(&self) -> String {
        let all = self.parents.iter().flat_map(|parent| &parent.controllers).map(String::as_str);
        let is_limit = |name: &&str| *name != IO || self.node.io.is_some();
        let limiting: BTreeSet<&str> = all.filter(is_limit).collect();
        match limiting.is_empty() {
            true => "none".to_owned(),
            false => Vec::from_iter(limiting).join(" "),
        }
    }

    /// What cannot be limited and why, for the node's facts.
    pub(crate) fn missing(&self) -> Option<String> {
        let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (controller, why) in &self.missing {
            by_reason.entry(why).or_default().push(controller);
        }
        let parts: Vec<String> =
            by_reason.iter().map(|(why, names)| format!("{}: {why}", names.join(", "))).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// What a job of this size may use here.
    pub(crate) fn limits_of(&self, cpu_milli: u64, memory_mib: u64) -> Limits {
        Limits::of(cpu_milli, memory_mib, &self.node)
    }

    /// Holds all attempts, also those that run, to rules on addresses instead of those before.
    ///
    /// # Errors
    /// Why nothing here can.
    pub(crate) fn hold(&self, rules: Rules) -> Result<(), String> {
        let mut held = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let unified = self.parents.iter().find(|parent| parent.version == Version::V2);
        let parent = unified.ok_or_else(|| self.not_unified.clone())?;
        // It may have been tidied away while it was empty.
        let made = parent.make(&self.node).and_then(|()| guard::hold(&parent.folder, &rules));
        made.map_err(|error| format!("this agent may not load BPF programs ({error})"))?;
        *held = rules;
        Ok(())
    }

    /// Makes a parent anew, with all that holds for it.
    fn make_again(&self, parent: &Parent) -> io::Result<()> {
        parent.make(&self.node)?;
        let held = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        match parent.version {
            Version::V2 if *held != Rules::default() => guard::hold(&parent.folder, &held),
            _ => Ok(()),
        }
    }

    /// Whether jobs can be held to the rate that they should be, seen by doing it; an error says why not.
    pub(crate) fn try_io(&self) -> Result<(), String> {
        if self.node.io.is_none() {
            return Ok(());
        }
        if let Some(why) = self.missing.get(IO) {
            return Err(why.clone());
        }
        // No attempt has this number.
        let made = self.create(u64::MAX, &self.limits_of(1000, 0), &[]);
        let removed = made.and_then(|made| made.map_or(Ok(()), |made| made.remove()));
        removed.map_err(|error| format!("a group with such a limit cannot be made: {error}"))
    }

    /// What somebody may use who is let into what a job of this size left: nobody has counted it, so it is
    /// little. CPU as if it had a tenth of one, and of memory at most an eighth of what jobs have here, or
    /// half a GiB.
    pub(crate) fn limits_aside(&self, memory_mib: u64) -> Limits {
        let most = (self.node.memory / 8).max(512 << 20).min(self.node.memory);
        let own = Limits::of(100, memory_mib, &self.node);
        let memory = own.memory.map_or(most, |memory| memory.min(most));
        Limits { memory: Some(memory), ..own }
    }

    /// What one build may use: CPU as a job with one, and half of the memory that jobs have here.
    fn limits_of_build(&self) -> Limits {
        let own = Limits::of(1000, 0, &self.node);
        Limits { memory: Some(self.node.memory / 2), ..own }
    }

    /// Makes the groups of an attempt, in which nobody can open what is `denied`; those of an earlier try
    /// at starting it are made anew.
    pub(crate) fn create(
        &self,
        epoch: u64,
        limits: &Limits,
        denied: &[DeviceNode],
    ) -> io::Result<Option<Cgroup>> {
        self.create_named(&epoch.to_string(), limits, denied)
    }

    /// Makes the groups of what is built for attempts; the number is of this process, and no other build of it
    /// has it. They are gone when what is returned is dropped, with all that is in them.
    pub(crate) fn create_for_build(
        &self,
        number: u64,
        denied: &[DeviceNode],
    ) -> io::Result<Option<Passing>> {
        let name = format!("{BUILD}{}-{number}", std::process::id());
        let made = self.create_named(&name, &self.limits_of_build(), denied)?;
        Ok(made.map(Passing))
    }

    /// Makes the groups of all images that are built here, and gives their path, for a program that is to make
    /// its own below, at the same path in every hierarchy: that of version 2, in which addresses are closed. Where
    /// another hierarchy has them elsewhere, its limits do not hold there. `None`: there is no such path.
    pub(crate) fn of_image_builds(&self, denied: &[DeviceNode]) -> io::Result<Option<PathBuf>> {
        let unified = self.parents.iter().find(|parent| parent.version == Version::V2);
        let first = self.parents.first();
        let is_one =
            || self.parents.iter().all(|parent| Some(&parent.path) == first.map(|it| &it.path));
        let Some(parent) = unified.or_else(|| first.filter(|_| is_one())) else { return Ok(None) };
        let name = format!("{BUILD}images");
        // Others may be in it: it is made once.
        if !self.parents.iter().all(|parent| parent.group(&name).folder.is_dir()) {
            self.create_named(&name, &self.limits_of_build(), denied)?;
        }
        Ok(Some(Path::new("/").join(&parent.path).join(name)))
    }

    fn create_named(
        &self,
        name: &str,
        limits: &Limits,
        denied: &[DeviceNode],
    ) -> io::Result<Option<Cgroup>> {
        let mut made = Cgroup::default();
        for parent in &self.parents {
            let group = parent.group(name);
            let mut first = make_folder(&group.folder);
            for _ in 0..TRIES {
                match &first {
                    // Another agent's tidying took the parent while it was empty, and may do so again.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        first = self.make_again(parent).and_then(|()| make_folder(&group.folder));
                    }
                    _ => break,
                }
            }
            let limited = first
                .and_then(|()| limit(&group, limits))
                .and_then(|()| guard::deny(&group, denied));
            made.groups.push(group);
            if let Err(error) = limited {
                let _ = made.remove();
                return Err(error);
            }
        }
        Ok((!made.groups.is_empty()).then_some(made))
    }

    /// Kills and removes the groups of attempts that this agent does not know: an agent before it was
    /// killed, and somebody took its folder away.
    pub(crate) fn sweep(&self, known: impl Fn(u64) -> bool) {
        for parent in &self.parents {
            let Ok(entries) = fs::read_dir(&parent.folder) else { continue };
            for name in entries.filter_map(|entry| Some(entry.ok()?.file_name())) {
                let Some(name) = name.to_str() else { continue };
                let is_stray = match name.parse() {
                    Ok(epoch) => !known(epoch),
                    // An agent's builds end with it.
                    Err(_) => name.starts_with(BUILD),
                };
                if !is_stray {
                    continue;
                }
                let stray = Cgroup { groups: vec![parent.group(name)] };
                if stray.kill() {
                    tracing::warn!(
                        name,
                        "killed what was left of an attempt or a build that is not known here"
                    );
                }
                let _ = stray.remove();
            }
        }
    }
}

impl Parent {
    /// In the hierarchy that is mounted at `root`.
    fn new(root: &Path, folder: PathBuf, version: Version, controllers: Vec<String>) -> Self {
        let path = folder.strip_prefix(root).unwrap_or(&folder).to_owned();
        Self { folder, path, version, controllers }
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    fn group(&self, name: &str) -> Group {
        Group {
            folder: self.folder.join(name),
            version: self.version,
            controllers: self.controllers.clone(),
        }
    }

    fn make(&self, node: &NodeLimits) -> io::Result<()> {
        make_folder(&self.folder)?;
        if self.version == Version::V2 && !self.controllers.is_empty() {
            let real = self.controllers.iter().map(String::as_str);
            unified::enable(&self.folder, real.filter(|name| *name != guard::DEVICES))?;
        }
        let (memory, processes) = (Some(node.memory), node.processes);
        let all = Limits { cpu_milli: 1000, memory, processes, io: None };
        let own = Group {
            folder: self.folder.clone(),
            version: self.version,
            controllers: self.controllers.clone(),
        };
        limit(&own, &all)?;
        // Of the groups around a process that must die for want of memory the outermost that is to die whole
        // does: this one would take every job along.
        let whole = own.folder.join(OOM_GROUP);
        if whole.exists() { fs::write(whole, "0") } else { Ok(()) }
    }

    /// Removes what killed agents have left beside ours, as far as it is empty.
    fn sweep_neighbours(&self) {
        let Some(above) = self.folder.parent() else { return };
        let Ok(entries) = fs::read_dir(above) else { return };
        for entry in entries.filter_map(Result::ok) {
            let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
            if ours && entry.path() != self.folder {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

/// Whether a group of version 2 dies as a whole when one of its processes is killed for want of memory.
const OOM_GROUP: &str = "memory.oom.group";

/// How often a group is made in a parent that others take away.
const TRIES: u32 = 20;
/// How the names of builds' groups begin.
const BUILD: &str = "build-";
/// How the names of parents begin.
const PREFIX: &str = "atelier-";

/// The name of the parent of an agent's attempts: of the node, and of the folder, which no two agents of a
/// machine share.
pub(crate) fn parent_name(node: &str, folder: &Path) -> String {
    let digest = blake3::hash(folder.as_os_str().as_encoded_bytes()).to_hex();
    format!("{PREFIX}{node}-{}", &digest[..8])
}

fn make_folder(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Writes the limits of a group.
fn limit(group: &Group, limits: &Limits) -> io::Result<()> {
    let write = |name: &str, value: String| fs::write(group.folder.join(name), value);
    let write_if_there = |name: &str, value: String| group.write_if_there(name, &value);
    for controller in &group.controllers {
        match (controller.as_str(), group.version) {
            ("memory", Version::V2) => {
                // Memory that is over shows as a killed job, not as a node that swaps.
                write_if_there("memory.swap.max", "0".to_owned())?;
                write_if_there(OOM_GROUP, "1".to_owned())?;
                let limit = limits.memory.map_or("max".to_owned(), |bytes| bytes.to_string());
                write("memory.max", limit)?;
            }
            ("memory", Version::V1) => {
                if let Some(bytes) = limits.memory {
                    // Neither may pass the other on its way, up or down.
                    let both = [
                        write("memory.limit_in_bytes", bytes.to_string()),
                        write_if_there("memory.memsw.limit_in_bytes", bytes.to_string()),
                    ];
                    if both.iter().any(Result::is_err) {
                        write_if_there("memory.memsw.limit_in_bytes", bytes.to_string())?;
                        write("memory.limit_in_bytes", bytes.to_string())?;
                    }
                }
            }
            ("pids", _) => write("pids.max", limits.processes.to_string())?,
            ("cpu", Version::V2) => {
                write("cpu.weight", (limits.cpu_milli / 10).clamp(1, 10_000).to_string())?;
            }
            ("cpu", Version::V1) => {
                let shares = (limits.cpu_milli * 1024 / 1000).clamp(2, 262_144);
                write("cpu.shares", shares.to_string())?;
            }
            (IO, _) => io_rate::limit(group, limits)?,
            _ => {}
        }
    }
    Ok(())
}
