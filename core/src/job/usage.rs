//! What attempts used, and what that says of what to ask for.

use serde::{Deserialize, Serialize};

use crate::resource::MiB;

#[cfg(test)]
mod tests;

/// What an attempt's processes used from start to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time of all processes, in milliseconds.
    pub cpu_ms: u64,
    /// The most memory at once on one node, without what was cached of files as far as that can be told apart. Zero if
    /// too little is known.
    pub peak_memory: MiB,
    /// From start to end of the command, in milliseconds.
    pub wall_ms: u64,
    /// How long kernels ran on its GPUs, in milliseconds of one device; of a job that has none, zero.
    #[serde(default)]
    pub gpu_ms: u64,
    /// The most memory at once of one GPU.
    #[serde(default)]
    pub peak_gpu_memory: MiB,
    /// Its inputs in datastores, in bytes; zero if it has none.
    #[serde(default)]
    pub input_bytes: u64,
    /// What was moved to its nodes for it, of those and in bytes: what they held already, or nobody read, was not.
    #[serde(default)]
    pub input_fetched_bytes: u64,
}

impl Usage {
    /// With what another member of the same attempt used: CPU and GPU time and what was
    /// fetched add up, of the rest the most counts.
    pub fn with(self, other: Self) -> Self {
        Self {
            cpu_ms: self.cpu_ms.saturating_add(other.cpu_ms),
            peak_memory: self.peak_memory.max(other.peak_memory),
            wall_ms: self.wall_ms.max(other.wall_ms),
            gpu_ms: self.gpu_ms.saturating_add(other.gpu_ms),
            peak_gpu_memory: self.peak_gpu_memory.max(other.peak_gpu_memory),
            input_bytes: self.input_bytes.max(other.input_bytes),
            input_fetched_bytes: self.input_fetched_bytes.saturating_add(other.input_fetched_bytes),
        }
    }
}

/// What past runs of the same command say of `resources.memory`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Advice {
    /// Completed runs.
    pub runs: usize,
    /// The most that any of them used.
    pub peak_memory: MiB,
    /// What to ask for: a fifth more, in steps that read well.
    pub memory: MiB,
}

/// Looks at what completed runs of a command used at most. `None` if there are none, or if what is
/// asked for, in MiB, is about right; zero asks for nothing in particular.
pub fn advise(asked: MiB, peaks: impl Iterator<Item = MiB>) -> Option<Advice> {
    let (runs, peak_memory) = peaks
        .filter(|peak| *peak > 0)
        .fold((0, 0), |(runs, most), peak| (runs + 1, peak.max(most)));
    if runs == 0 {
        return None;
    }
    let wanted = peak_memory.saturating_add(peak_memory / 5);
    let step = match wanted {
        0..1024 => 64,
        1024..8192 => 256,
        _ => 1024,
    };
    let memory = wanted.div_ceil(step).saturating_mul(step);
    let is_right = asked >= peak_memory && asked <= memory.saturating_mul(3) / 2;
    (!is_right).then_some(Advice { runs, peak_memory, memory })
}
