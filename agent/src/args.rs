//! What an agent is told on its command line.

use std::path::PathBuf;
use std::time::Duration;

use atelier_core::id::{ComputeName, NodeName};
use atelier_core::node::{LABEL_FORM, is_address, is_label};
use atelier_core::spec::limits::MAX_KEPT;
use clap::Args;

use crate::container::Wish as Containers;
use crate::isolation::{Isolation, JobUsers};
use crate::trust::CA_FILE;

#[cfg(test)]
mod tests;

/// Runs the node agent: it joins this machine to a workspace and runs jobs on it.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// The daemon's address: https://HOST:PORT, or http:// on this machine, for example http://127.0.0.1:7420
    #[arg(
        long,
        value_name = "URL",
        env = "ATELIER_SERVER",
        required_unless_present = "server_file"
    )]
    pub server: Option<String>,
    /// A file that holds the daemon's address, instead of --server and ATELIER_SERVER; read again at every new
    /// connection
    #[arg(long, value_name = "FILE")]
    pub server_file: Option<PathBuf>,
    /// A file in PEM of the authorities that vouch for the daemon, as `atelier ca show` prints its own
    /// [default: tls/ca.pem beside the file of --server-file if it is there, else the system's]
    #[arg(long, value_name = "FILE", env = CA_FILE)]
    pub ca_file: Option<PathBuf>,
    /// A join token, as `atelier node token create` prints it: it opens once, and from then on the node is known by
    /// what lies in its data folder
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    pub token: Option<String>,
    /// A file that holds a join token, or a token that lasts; without it and --token the token is taken from
    /// ATELIER_TOKEN. A node that has joined needs none
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The node's name, to which its token is bound [default: this machine's host name]
    #[arg(long, value_name = "NAME")]
    pub node: Option<NodeName>,
    /// The compute that the node belongs to
    #[arg(long, value_name = "NAME", default_value = "local")]
    pub compute: ComputeName,
    /// Where the agent keeps attempts, environments and its cache
    /// [default: agent below the Atelier home folder]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where the other members of a job on several nodes reach this one: an IP address or a host name
    /// [default: the address from which this machine reaches the daemon]
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub address: Option<String>,
    /// CPUs offered to jobs, for example 4 or 0.5 [default: all]
    #[arg(long, value_name = "N", value_parser = cpus)]
    pub cpus: Option<u64>,
    /// Memory offered to jobs, for example 4GiB [default: all]
    #[arg(long, value_name = "SIZE", value_parser = mebibytes)]
    pub memory: Option<u64>,
    /// GPUs offered to jobs, the first N [default: all]
    #[arg(long, value_name = "N")]
    pub gpus: Option<u32>,
    /// A recording of GPUs to use in place of this machine's, for tests: see docs/development.md
    #[arg(long, value_name = "FILE", env = "ATELIER_GPU_RECORDING", hide = true)]
    pub gpu_recording: Option<PathBuf>,
    /// Scratch disk offered to jobs, for example 100GiB
    /// [default: all of the file system of the data folder]
    #[arg(long, value_name = "SIZE", value_parser = mebibytes)]
    pub disk: Option<u64>,
    /// Keep so much of the data folder's file system free: the job that takes most of it is ended before; 0 keeps
    /// nothing [default: a hundredth, at most 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = bytes_or_none)]
    pub disk_reserve: Option<u64>,
    /// Keep what a failed command left for so long, for `atelier job debug`, where its job does not say:
    /// for example 30m; only while a tenth of the data folder's file system is free, and 0 keeps nothing
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = kept)]
    pub keep_failed: Duration,
    /// End what `atelier environment build` asked for when it takes longer: for example 90m
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = bound)]
    pub build_timeout: Duration,
    /// Keep environments and their packages of at most this size, but for what is in use
    /// [default: a fifth of the file system, at most 50GiB]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub environment_cache: Option<u64>,
    /// Keep fetched code and inputs of at most this size, but for what is in use
    /// [default: a fifth of the file system, at most 50GiB]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub data_cache: Option<u64>,
    /// A label by which jobs may choose this node; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Move all data through the daemon, even on a machine that shares its storage folder
    #[arg(long)]
    pub no_shared_store: bool,
    /// Whether inputs that this node has to fetch are mounted: fetched as jobs read them, and those that jobs may change seen
    /// through their changes
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto", env = "ATELIER_MOUNTS")]
    pub mounts: Mounts,
    /// How long a job's read of a mounted input waits for a daemon that is away before it fails
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = bound)]
    pub mount_patience: Duration,
    /// Keep at most this much of a job's standard output [default: what the daemon says]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub log_limit: Option<u64>,
    /// Read a job's standard output at so many bytes a second at most; who writes faster waits
    /// [default: 64MiB]
    #[arg(long, value_name = "RATE", value_parser = bytes)]
    pub log_rate: Option<u64>,
    /// Keep so much on this node of the metrics that a job logs while the daemon is away or slow; beyond it the job
    /// waits
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = bytes)]
    pub metric_spool: u64,
    /// Processes and threads that one job may have [default: 4096, and 512 more for each CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(16..))]
    pub process_limit: Option<u64>,
    /// Hold each job to so many bytes a second that it reads, and as many that it writes, of the disk on which
    /// the data folder is, for example 200MiB [default: jobs share the disk as they do CPU]
    #[arg(long, value_name = "RATE", value_parser = bytes)]
    pub job_io: Option<u64>,
    /// Whether jobs see a node on which they can change their own folders only, and neither this agent's
    /// folder nor the daemon's
    #[arg(
        long,
        value_enum,
        value_name = "WHEN",
        default_value = "auto",
        env = "ATELIER_ISOLATION"
    )]
    pub isolation: Isolation,
    /// Users that isolated jobs run as where this agent is root: auto, a range of user numbers that no account
    /// has, or none, which leaves jobs root without its privileges
    #[arg(
        long,
        value_name = "FIRST-LAST",
        default_value = "auto",
        env = "ATELIER_JOB_USERS",
        value_parser = <JobUsers as std::str::FromStr>::from_str
    )]
    pub job_users: JobUsers,
    /// A folder of this machine that isolated jobs may change too; may be given several times
    #[arg(long = "writable", value_name = "DIR", env = "ATELIER_WRITABLE", value_delimiter = ':')]
    pub writable: Vec<PathBuf>,
    /// Which container runtime runs the jobs that name an image
    #[arg(
        long,
        value_enum,
        value_name = "RUNTIME",
        default_value = "auto",
        env = "ATELIER_CONTAINERS"
    )]
    pub containers: Containers,
    /// Seconds that killed processes of a job may take to die; with one that takes longer the node gets no
    /// more jobs until an admin resumes it
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub kill_patience: Duration,
    /// Seconds between two samples of a job's CPU, memory, disk and GPU
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub monitor_interval: Duration,
}

/// Whether inputs are mounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Mounts {
    /// Where the machine can.
    #[default]
    Auto,
    /// Never: they are fetched before the job starts, and copied for jobs that may change them.
    None,
}

/// A size in bytes: a number and `B`, `K`, `M`, `G` or `T` with an optional `i` and `B`. The
/// letters alone and those with `i` count in 1024, as Docker and Kubernetes' `Gi` do; `KB`, `MB`,
/// `GB` and `TB` in 1000.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size: write for example 512MiB or 4GiB");
    let text_part = text.trim();
    let split =
        text_part.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text_part.len());
    let (number, unit) = text_part.split_at(split);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit = unit.trim().to_ascii_lowercase();
    let (letter, rest) = unit.split_at(unit.len().min(1));
    let power = match letter {
        "" | "b" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(wrong()),
    };
    let base: f64 = match rest {
        "" | "i" | "ib" => 1024.0,
        "b" => 1000.0,
        _ => return Err(wrong()),
    };
    let bytes = number * base.powi(power);
    if bytes.is_finite() && (1.0..9e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

fn bytes_or_none(text: &str) -> Result<u64, String> {
    if text.trim() == "0" { Ok(0) } else { bytes(text) }
}

fn mebibytes(text: &str) -> Result<u64, String> {
    match bytes(text)? / (1024 * 1024) {
        0 => Err(format!("'{text}' is less than 1 MiB")),
        mebibytes => Ok(mebibytes),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if is_label(key, value) => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("write it as KEY=VALUE: {LABEL_FORM}")),
    }
}

/// What stands in lists that are separated by commas, before a port.
fn address(text: &str) -> Result<String, String> {
    if is_address(text) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "'{text}' is no address: write an IP address or a host name without a port, for example \
             10.0.0.7"
        ))
    }
}

/// Thousandths of a CPU.
fn cpus(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a number of CPUs: write for example 4 or 0.5");
    let number: f64 = text.parse().map_err(|_| wrong())?;
    if (0.001..=1_000_000.0).contains(&number) {
        Ok((number * 1000.0).round() as u64)
    } else {
        Err(wrong())
    }
}

/// How long something is kept: at most as long as a job may ask for.
fn kept(text: &str) -> Result<Duration, String> {
    match atelier_core::spec::amount::seconds(text)? {
        seconds if seconds <= MAX_KEPT => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("at most {MAX_KEPT} seconds")),
    }
}

fn bound(text: &str) -> Result<Duration, String> {
    match atelier_core::spec::amount::seconds(text)? {
        0 => Err("at least a second".to_owned()),
        seconds => Ok(Duration::from_secs(seconds)),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a number of seconds: write for example 10");
    let number: f64 = text.parse().map_err(|_| wrong())?;
    if (0.05..=86_400.0).contains(&number) {
        Ok(Duration::from_secs_f64(number))
    } else {
        Err(wrong())
    }
}
