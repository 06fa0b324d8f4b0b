//! Amounts given outside a document, read as those in one are.

use super::quantity;
use crate::resource::{MiB, MilliCpu};

/// CPUs: `2`, `0.5`, `500m`.
///
/// # Errors
/// Why it cannot be read, in words.
pub fn cpus(text: &str) -> Result<MilliCpu, String> {
    quantity::cpus(text)
}

/// Memory in MiB: `4GiB`, `512MiB`, `4g`.
///
/// # Errors
/// Why it cannot be read, in words.
pub fn memory(text: &str) -> Result<MiB, String> {
    quantity::memory(text)
}

/// GPUs in thousandths, so many in all: `4`, `0.5`, `1.5`.
///
/// # Errors
/// Why it cannot be read, in words.
pub fn milli_gpus(text: &str) -> Result<u64, String> {
    quantity::milli_gpus(text)
}

/// A time in seconds, at most a week: `30`, `30s`, `5m`, `1h`, `2d`.
///
/// # Errors
/// Why it cannot be read, in words.
pub fn seconds(text: &str) -> Result<u64, String> {
    quantity::seconds(text)
}
