//! The bounds of a job, in one place. They are far above what jobs need; what they keep out are
//! slips (a missing unit, a minus sign) and documents that would fill memory.

/// Bytes of a YAML file, and of every file that it names.
pub const MAX_DOCUMENT: usize = 1 << 20;
/// Lists and mappings within each other, in a document and in every value of a job that is kept as
/// it is. What is stored is read back with a bound of 128, and wraps the value in a few more.
pub const MAX_DEPTH: usize = 64;
/// Bytes of a command, before its expressions are put in. Linux passes at most 128 KiB in one
/// argument; the other half is left for the values.
pub const MAX_COMMAND: usize = 64 << 10;
/// Bytes of a description.
pub const MAX_DESCRIPTION: usize = 64 << 10;
/// Bytes of a tag's or property's key, and of an environment variable's name.
pub const MAX_TAG_KEY: usize = 250;
/// Bytes of a tag's or property's value.
pub const MAX_TAG_VALUE: usize = 8000;
/// Bytes of an environment variable's value, of an input's literal, of a path.
pub const MAX_VALUE: usize = 64 << 10;
/// Entries of each mapping of a job: tags, inputs, outputs, environment variables…
pub const MAX_ENTRIES: usize = 1000;
/// Members of a job.
pub const MAX_INSTANCES: u32 = 10_000;
/// CPUs of one member, in thousandths.
pub const MAX_MILLI_CPUS: u64 = 100_000 * 1000;
/// Memory of one member: 1 PiB, in MiB.
pub const MAX_MEMORY: u64 = 1 << 30;
/// GPUs of one member.
pub const MAX_GPUS: u32 = 1024;
/// GPU models that a job may name.
pub const MAX_MODELS: usize = 32;
/// Bytes of a GPU model's name, and of a node label's key or value.
pub const MAX_LABEL: usize = 100;
/// Labels of a node, and of those that a job asks for.
pub const MAX_LABELS: usize = 64;
/// Processes of one job on one node, each with a log of its own.
pub const MAX_PROCESSES_PER_NODE: u32 = 256;
/// Workers in all.
pub const MAX_PROCESSES: u32 = 100_000;
/// Ten years, in seconds.
pub const MAX_SECONDS: u64 = 10 * 365 * 24 * 3600;
/// Attempts of a job.
pub const MAX_ATTEMPTS: u32 = 1000;
/// The longest first wait before a retry: a week, in seconds.
pub const MAX_BACKOFF: u64 = 7 * 24 * 3600;
/// How long what a failed attempt left may be kept: a week, in seconds.
pub const MAX_KEPT: u64 = 7 * 24 * 3600;
/// The greatest factor for memory on a retry, in percent.
pub const MAX_MEMORY_PERCENT: u32 = 1000;
