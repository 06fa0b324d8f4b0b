//! A share of a device's memory, which the device itself does not enforce: who stays above it is ended.

use atelier_core::resource::{Gpus, WHOLE_GPU};
use atelier_proto::agent::v1 as pb;

use super::Use;

/// Looks in a row above the share before it counts. A program may be above it for a moment, as when it
/// copies what it then gives back.
const PATIENCE: u32 = 3;

/// What an attempt may hold of its one device, and for how long it has held more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    milli: u16,
    above: u32,
}

/// An attempt held more than its share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Excess {
    /// Thousandths of the device.
    pub(crate) milli: u16,
    pub(crate) device: u32,
    pub(crate) share_mib: u64,
    pub(crate) used_mib: u64,
}

impl Share {
    /// Of so many thousandths; `None` where devices are held whole.
    pub(crate) fn of(milli: u16) -> Option<Self> {
        (1..WHOLE_GPU).contains(&milli).then_some(Self { milli, above: 0 })
    }

    /// Takes a look at the device into account.
    pub(crate) fn looked(&mut self, device: u32, seen: &Use) -> Option<Excess> {
        let total_mib = seen.device.memory_total_mib as u64;
        let share_mib = total_mib * u64::from(self.milli) / u64::from(WHOLE_GPU);
        let used_mib = seen.memory_mib.filter(|used| total_mib > 0 && *used > share_mib);
        self.above = used_mib.map_or(0, |_| self.above + 1);
        let excess = Excess { milli: self.milli, device, share_mib, used_mib: used_mib? };
        (self.above >= PATIENCE).then_some(excess)
    }
}

impl Excess {
    /// In words for the job's user.
    pub(crate) fn message(&self) -> String {
        let Self { milli, device, share_mib, used_mib } = self;
        format!(
            "the job used {used_mib} MiB of the memory of GPU {device}; its share of {} is {share_mib} MiB: \
             ask for a larger share with resources.gpus, or have it use less",
            Gpus(u64::from(*milli))
        )
    }

    /// What is reported of the attempt's end.
    pub(crate) fn problem(&self) -> pb::Problem {
        pb::Problem { cause: pb::Cause::GpuOutOfMemory.into(), message: self.message() }
    }
}
