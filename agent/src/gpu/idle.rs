//! Devices that an attempt holds and does nothing with.

use super::GpuSample;

/// A device on which kernels run for less of the time, in percent, is idle.
const IDLE: f64 = 1.0;

/// For how long all devices of an attempt have been idle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Idle {
    after_ms: u64,
    /// By the clock that the looks go by.
    since_ms: Option<u64>,
}

impl Idle {
    /// Counts once they have been idle for so many seconds.
    pub(crate) fn after(seconds: u64) -> Self {
        Self { after_ms: seconds.saturating_mul(1000), since_ms: None }
    }

    /// Takes a look at all of them into account: for how many milliseconds they have been idle, if it is for
    /// long enough. A device that cannot be asked is not idle.
    pub(crate) fn looked(&mut self, devices: &[GpuSample], at_ms: u64) -> Option<u64> {
        let idle = |device: &GpuSample| {
            device.memory_total_mib > 0.0
                && device.utilization.is_some_and(|percent| percent < IDLE)
        };
        if devices.is_empty() || !devices.iter().all(idle) {
            self.since_ms = None;
            return None;
        }
        let since = *self.since_ms.get_or_insert(at_ms);
        Some(at_ms.saturating_sub(since)).filter(|idle| *idle >= self.after_ms)
    }
}
