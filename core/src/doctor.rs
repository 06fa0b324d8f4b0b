//! What is unsafe about an installation: facts come in, findings with their remedies go out.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::node::CONTAINER_RUNTIME;
use crate::time::Timestamp;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// It works, and could be safer.
    Warning,
    /// It does not work, does so no longer before long, or gives secrets away.
    Error,
}

impl Severity {
    /// In one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What one check has found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// What to do; empty where nothing is to be done.
    pub remedy: String,
}

impl Finding {
    /// All is well.
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, severity: Severity::Ok, found: found.into(), remedy: String::new() }
    }

    /// It could be safer.
    pub fn warning(
        check: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (found, remedy) = (found.into(), remedy.into());
        Self { check, severity: Severity::Warning, found, remedy }
    }

    /// It is to be seen to now.
    pub fn error(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (found, remedy) = (found.into(), remedy.into());
        Self { check, severity: Severity::Error, found, remedy }
    }
}

/// A file or folder, as it lies on the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileFact {
    /// Its path.
    pub path: String,
    /// Its permissions, without its type.
    pub mode: u32,
    /// Whose it is.
    pub owner: u32,
    /// Who may do what with it.
    pub kind: FileKind,
}

/// Who may do what with a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// Nobody but its owner anything.
    Secret,
    /// A folder, in which secrets have rights of their own.
    Folder,
    /// Others may read it: a certificate.
    Public,
}

/// Private files and folders are their owner's alone, and that is the one who owns the data folder.
pub fn files(files: &[FileFact], owner: u32) -> Vec<Finding> {
    const CHECK: &str = "permissions";
    let mut found = Vec::new();
    for FileFact { path, mode, owner: of, kind } in files {
        let closed = if *kind == FileKind::Public { 0o022 } else { 0o077 };
        let who = format!(
            "others than its owner may {} {path} (mode {mode:o})",
            match kind {
                FileKind::Public => "change",
                FileKind::Secret => "read or change",
                FileKind::Folder => "look into",
            }
        );
        if mode & closed != 0 {
            found.push(match kind {
                FileKind::Folder if mode & 0o022 == 0 => {
                    Finding::warning(CHECK, who, format!("chmod go= {path}"))
                }
                FileKind::Folder | FileKind::Secret => Finding::error(
                    CHECK,
                    who,
                    format!(
                        "chmod go= {path}; if somebody may have used that, replace what is in it"
                    ),
                ),
                FileKind::Public => Finding::error(CHECK, who, format!("chmod go-w {path}")),
            });
        }
        if *of != owner {
            found.push(Finding::error(
                CHECK,
                format!("{path} is user {of}'s, and the data folder is user {owner}'s"),
                format!("chown {owner} {path}"),
            ));
        }
    }
    if found.is_empty() {
        let many = files.len();
        found.push(Finding::ok(
            CHECK,
            format!("{many} files and folders are their owner's alone to change"),
        ));
    }
    found
}

/// The daemon needs none of root's powers.
pub fn user(owner: u32) -> Finding {
    const CHECK: &str = "user";
    match owner {
        0 => Finding::warning(
            CHECK,
            "the data folder is root's, so that the daemon runs as root",
            "give the daemon a user of its own: atelier service install serve --run-as USER, after chown -R USER of \
             the data folder",
        ),
        other => Finding::ok(CHECK, format!("the daemon's user is {other}, which is not root")),
    }
}

/// What is known of the database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DatabaseFact {
    /// It was looked through.
    Read {
        /// Its version.
        schema: usize,
        /// The version that this build writes.
        latest: usize,
        /// Bytes of its log.
        log_bytes: u64,
    },
    /// It cannot be used, and why.
    Unusable(String),
}

/// A log of more bytes than this is one that is not moved into the database.
const LOG: u64 = 1 << 30;

/// The database is whole, and this build's.
pub fn database(fact: &DatabaseFact) -> Finding {
    const CHECK: &str = "database";
    match fact {
        DatabaseFact::Unusable(why) => Finding::error(
            CHECK,
            why.clone(),
            "stop the daemon and restore a backup: atelier restore FILE --identity KEY --force",
        ),
        DatabaseFact::Read { log_bytes, .. } if *log_bytes > LOG => Finding::warning(
            CHECK,
            format!("its log has grown to {} MiB", log_bytes >> 20),
            "end programs that read the database for long (a sqlite3 shell, a copy), or restart the daemon",
        ),
        DatabaseFact::Read { schema, latest, .. } if schema < latest => Finding::warning(
            CHECK,
            format!("it has version {schema}, and this build writes {latest}"),
            "back it up; the daemon brings it to the new version when it is started, and there is no way back",
        ),
        DatabaseFact::Read { schema, .. } => Finding::ok(CHECK, format!("whole, version {schema}")),
    }
}

/// Room for what is written.
pub fn disk(path: &str, free: u64, total: u64) -> Finding {
    const CHECK: &str = "disk";
    let percent = free.saturating_mul(100).checked_div(total).unwrap_or(100);
    let found = format!("{} MiB ({percent} %) are free for {path}", free >> 20);
    let remedy = "free some space, set rules (atelier workspace retention set), or move the data (atelier workspace \
                  migrate-storage)";
    if free < 256 << 20 {
        Finding::error(CHECK, found, remedy)
    } else if percent < 5 || free < 1 << 30 {
        Finding::warning(CHECK, found, remedy)
    } else {
        Finding::ok(CHECK, found)
    }
}

const DAY_MS: i64 = 24 * 3600 * 1000;

/// There is a backup, and it is not old.
pub fn backup(last: Option<Timestamp>, now: Timestamp, most_days: u32) -> Finding {
    const CHECK: &str = "backup";
    let remedy = "make one each day, on another machine's disk: atelier backup create FILE --recipient age1…";
    let Some(last) = last else {
        return Finding::warning(CHECK, "no backup was ever made of this data folder", remedy);
    };
    let days = (now.as_millis() - last.as_millis()).div_euclid(DAY_MS);
    let found = format!("the last one is of {last}");
    if days >= i64::from(most_days) {
        Finding::warning(CHECK, found, remedy)
    } else {
        Finding::ok(CHECK, found)
    }
}

/// Before this a clock is one that nobody has set: the first of 2026.
const CLOCK_MS: i64 = 1_767_225_600_000;

/// The clock was set.
pub fn clock(now: Timestamp) -> Finding {
    const CHECK: &str = "clock";
    if now.as_millis() < CLOCK_MS {
        return Finding::error(
            CHECK,
            format!("this machine's clock says {now}"),
            "set it, and have it kept by NTP (timedatectl set-ntp true): certificates and tokens count by it",
        );
    }
    Finding::ok(CHECK, format!("it is {now}"))
}

/// The end of a certificate, which people are to be told of so many days before.
pub fn certificate(
    what: &str,
    until: Timestamp,
    now: Timestamp,
    warned_days: i64,
    remedy: &str,
) -> Finding {
    const CHECK: &str = "certificate";
    let left = (until.as_millis() - now.as_millis()).div_euclid(DAY_MS);
    if left < 0 {
        Finding::error(CHECK, format!("{what} has expired ({until})"), remedy)
    } else if left < warned_days {
        Finding::warning(CHECK, format!("{what} expires in {left} days ({until})"), remedy)
    } else {
        Finding::ok(CHECK, format!("{what} is good until {until}"))
    }
}

/// The files of the workspace's own authority that are there.
pub fn authority(has_certificate: bool, has_key: bool) -> Option<Finding> {
    const CHECK: &str = "authority";
    match (has_certificate, has_key) {
        (true, true) => {
            Some(Finding::ok(CHECK, "the workspace's authority has its certificate and its key"))
        }
        (false, false) => None,
        (has_certificate, _) => {
            let missing = if has_certificate { "tls/ca.key" } else { "tls/ca.pem" };
            Some(Finding::error(
                CHECK,
                format!("{missing} is missing: the daemon does not start"),
                "restore it from a backup",
            ))
        }
    }
}

/// Whether an authority counts from which the present one has taken over.
pub fn authority_before(counts: bool) -> Option<Finding> {
    counts.then(|| {
        Finding::warning(
            "authority",
            "the authority before the present one counts still: who has its key can pass for the daemon",
            "once nobody relies on it (atelier ca status), end it: atelier ca retire",
        )
    })
}

/// Where the key is that secrets are sealed with, as far as the data folder tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VaultFact {
    /// There are no secrets.
    Unused,
    /// A server has the key.
    Transit,
    /// A file of this machine has it.
    File(String),
    /// Another file has another one.
    OtherFile(String),
    /// The file where it is unless the daemon is told otherwise does not have it.
    Unknown,
}

/// The key is not beside what it opens.
pub fn vault(fact: &VaultFact) -> Finding {
    const CHECK: &str = "vault";
    match fact {
        VaultFact::Unused => Finding::ok(CHECK, "there are no secrets"),
        VaultFact::Transit => Finding::ok(CHECK, "secrets are sealed with a key that a server has"),
        VaultFact::Unknown => Finding::ok(
            CHECK,
            "secrets are sealed with a key that is not in the workspace's own file",
        ),
        VaultFact::OtherFile(path) => Finding::warning(
            CHECK,
            format!("{path} holds a key with which no secret is sealed"),
            "see which key the daemon has (atelier vault status), and remove the file if it is no key of anything",
        ),
        VaultFact::File(path) => Finding::warning(
            CHECK,
            format!("secrets are sealed with the key in {path}, on the disk of this machine"),
            "keep it where a copied disk does not have it: a credential of systemd sealed with the TPM \
             (serve --vault-key credential:NAME), or transit of Vault or OpenBao, then atelier vault rotate; keep a \
             copy of the file until then",
        ),
    }
}

/// What is swapped out may be read on the disk. Devices are as `/proc/swaps` names them.
pub fn swap(devices: &[String]) -> Finding {
    const CHECK: &str = "swap";
    let plain = |device: &&String| {
        !["/dev/zram", "/dev/dm-", "/dev/mapper/"].iter().any(|start| device.starts_with(start))
    };
    match devices.iter().find(plain) {
        Some(device) => Finding::warning(
            CHECK,
            format!("memory is swapped to {device}, which does not look encrypted"),
            "encrypt the swap, use zram, or turn it off (swapoff -a): keys and secrets are in the daemon's memory",
        ),
        None => Finding::ok(CHECK, "nothing is swapped out in the clear"),
    }
}

/// How large the daemon's core dumps may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CoreLimit {
    /// It writes none.
    None,
    /// It writes them, whole or not.
    Some,
    /// No daemon was found.
    Unknown,
}

impl CoreLimit {
    /// As `/proc/PID/limits` has it.
    pub fn of(limits: &str) -> Self {
        let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
        match line.and_then(|rest| rest.split_whitespace().next()) {
            None => Self::Unknown,
            Some("0") => Self::None,
            Some(_) => Self::Some,
        }
    }
}

/// Where the kernel puts the memory of a program that crashes; `limit` is the most bytes that it takes.
pub fn core_dumps(pattern: &str, limit: CoreLimit) -> Finding {
    const CHECK: &str = "core dumps";
    let pattern = pattern.trim();
    // A program gets them whatever the limit is.
    let is_piped = pattern.starts_with('|');
    match limit {
        _ if is_piped => {}
        _ if pattern.is_empty() => return Finding::ok(CHECK, "none is written"),
        CoreLimit::None => return Finding::ok(CHECK, "the daemon writes none"),
        CoreLimit::Some => {}
        CoreLimit::Unknown => {
            return Finding::warning(
                CHECK,
                "it was not looked at whether the daemon writes any: none runs on the data folder",
                "start the daemon, and run this again",
            );
        }
    }
    Finding::warning(
        CHECK,
        format!("the memory of a program that crashes is kept ({pattern}), with the keys in it"),
        "turn it off for the daemon: LimitCORE=0 in its unit, and Storage=none in /etc/systemd/coredump.conf",
    )
}

/// Three versions that are to be the same.
pub fn versions(here: &str, daemon: &str) -> Finding {
    const CHECK: &str = "version";
    if here == daemon {
        return Finding::ok(CHECK, format!("the daemon and this program are {here}"));
    }
    Finding::warning(
        CHECK,
        format!("the daemon is {daemon}, and this program is {here}"),
        "upgrade the older one: agents first, then the daemon, then clients",
    )
}

/// How far the daemon's clock is from this machine's.
pub fn skew(daemon: Timestamp, here: Timestamp) -> Finding {
    let ms = daemon.as_millis() - here.as_millis();
    differ("the daemon's clock", "this machine's", ms)
}

/// How far a node's clock is from the daemon's.
pub fn node_skew(node: &str, ahead_ms: i64) -> Finding {
    differ(&format!("the clock of node {node}"), "the daemon's", ahead_ms)
}

/// Whether the daemon goes by the clock of its machine: after that has jumped it does not.
pub fn drawn(daemon: Timestamp, machine: Timestamp) -> Option<Finding> {
    let seconds = (machine.as_millis() - daemon.as_millis()) / 1000;
    // After a restart it goes on from what it recorded, where that is later by a day at most.
    let remedy = match seconds {
        ..-86_400 | 0.. => {
            "see that the machine's clock is right, and start the daemon again to have it go by that at once"
        }
        _ => {
            "see that the machine's clock is right; the daemon's is drawn back to it within twice that time, also if it is \
             started again"
        }
    };
    (seconds.abs() > 60).then(|| {
        Finding::warning(
            CLOCK,
            format!(
                "the clock of the daemon's machine jumped and is {seconds} s from the daemon's own, which is drawn to it \
                 slowly"
            ),
            remedy,
        )
    })
}

const CLOCK: &str = "clock";

fn differ(whose: &str, from: &str, ms: i64) -> Finding {
    const CHECK: &str = CLOCK;
    let seconds = ms / 1000;
    let found = format!("{whose} is {seconds} s from {from}");
    match seconds.unsigned_abs() {
        // A second is the answer's own precision.
        0..=5 => Finding::ok(CHECK, found),
        6..=300 => Finding::warning(CHECK, found, "have both kept by NTP"),
        _ => Finding::error(
            CHECK,
            found,
            "set the wrong one, and have both kept by NTP: tokens and certificates \
                                           count by them",
        ),
    }
}

/// Whether a daemon that is reached at this address is reached encrypted. On loopback it need not be.
pub fn address(url: &str, is_loopback: bool) -> Finding {
    const CHECK: &str = "encryption";
    match (url.starts_with("https://"), is_loopback) {
        (true, _) => Finding::ok(CHECK, format!("{url} is encrypted")),
        (false, true) => Finding::ok(CHECK, format!("{url} is reached from this machine alone")),
        (false, false) => Finding::error(
            CHECK,
            format!("{url} is not encrypted: tokens go over the network as they are"),
            "use https://, and start the daemon on an address that other machines reach",
        ),
    }
}

/// A node, as the daemon knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeFact {
    /// Its name.
    pub name: String,
    /// Why it gets no jobs, if it gets none.
    pub trouble: Option<String>,
    /// Its agent's version.
    pub version: String,
    /// What it has said of itself.
    pub facts: BTreeMap<String, String>,
}

/// What a node lacks, and so does not do for the jobs on it.
pub fn node(node: &NodeFact, daemon: &str) -> Vec<Finding> {
    const CHECK: &str = "node";
    let NodeFact { name, trouble, version, facts } = node;
    let mut found = Vec::new();
    if let Some(trouble) = trouble {
        found.push(Finding::warning(
            CHECK,
            format!("{name} gets no jobs: {trouble}"),
            "look whether its agent runs there (atelier service status), and what its log says",
        ));
        return found;
    }
    // Agents tell no build.
    let release = daemon.split(' ').next().unwrap_or(daemon);
    if version != daemon && version != release {
        found.push(Finding::warning(
            CHECK,
            format!("the agent of {name} is {version}, and the daemon is {daemon}"),
            "upgrade the older one; agents come before the daemon",
        ));
    }
    if let Some(why) = facts.get("not_isolated") {
        found.push(Finding::warning(
            CHECK,
            format!("jobs on {name} are not kept apart: {why}"),
            "run the agent as root with --job-users, on a kernel that has what is missing; or make the cluster with \
             containment: strict, which refuses such nodes",
        ));
    }
    if let Some(why) = facts.get("not_limited") {
        found.push(Finding::warning(
            CHECK,
            format!("jobs on {name} are not limited in all that they use: {why}"),
            "have systemd run the agent (atelier service install agent), which delegates control groups to it, on a \
             kernel with version 2 of them",
        ));
    }
    if facts.get(CONTAINER_RUNTIME).is_none_or(|runtime| runtime == "none") {
        let why = facts.get("no_containers").map_or("no runtime works there", String::as_str);
        found.push(Finding::warning(
            CHECK,
            format!("{name} runs no containers: {why}"),
            "install podman there if jobs name images, and start the agent again",
        ));
    }
    if found.is_empty() {
        found.push(Finding::ok(CHECK, format!("{name} has all that jobs can ask for")));
    }
    found
}

/// What a datastore cannot do, of what was tried.
pub fn datastore(name: &str, problems: &[(String, String)]) -> Finding {
    const CHECK: &str = "datastore";
    match problems.first() {
        None => Finding::ok(CHECK, format!("{name} lists, writes, reads and deletes")),
        Some((operation, why)) => Finding::error(
            CHECK,
            format!("{name} cannot {operation}: {why}"),
            format!(
                "atelier datastore test {name}; for other keys: atelier datastore update -f FILE"
            ),
        ),
    }
}
