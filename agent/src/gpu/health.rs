//! Which faults make a GPU unfit for jobs.

use serde::{Deserialize, Serialize};

use super::Health;

/// Why a device is not fit for jobs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Sickness {
    /// In words.
    pub(crate) reason: String,
    /// What runs on it has lost it, or can no longer trust what it computes.
    pub(crate) ends_jobs: bool,
    /// It may be over, which is looked at again and again, instead of standing for this boot.
    #[serde(default)]
    pub(crate) passing: bool,
}

/// A critical error of the driver that means that the device itself is at fault.
struct Xid {
    number: u64,
    name: &'static str,
    ends_jobs: bool,
}

/// Of the driver's errors those that are the device's, after NVIDIA's "XID Errors" (docs.nvidia.com,
/// `deploy/xid-errors`, the tables of Xids and of what to do). Others are faults of programs: 13 and 31
/// (a kernel that reads what is not its own), 43 and 45 (its channel was stopped) are the most common,
/// and say nothing about a device.
const XIDS: [Xid; 10] = [
    Xid { number: 48, name: "double-bit ECC error", ends_jobs: true },
    Xid { number: 63, name: "a page or row waits to be replaced", ends_jobs: false },
    Xid { number: 64, name: "a page or row could not be replaced", ends_jobs: false },
    Xid { number: 74, name: "NVLink error", ends_jobs: false },
    Xid { number: 79, name: "it has fallen off the bus", ends_jobs: true },
    Xid { number: 92, name: "high rate of single-bit ECC errors", ends_jobs: false },
    Xid { number: 94, name: "contained ECC error", ends_jobs: false },
    Xid { number: 95, name: "uncontained ECC error", ends_jobs: true },
    Xid { number: 119, name: "its system processor (GSP) does not answer", ends_jobs: false },
    Xid { number: 120, name: "its system processor (GSP) has failed", ends_jobs: false },
];

impl Health {
    /// Why the device is not fit for jobs; `None` if it is. Errors of its life before the driver was
    /// loaded do not count: what they hit has been replaced. `before`: the uncorrected errors that it had when
    /// this agent started. Whether those were contained is not known any more; whom they hit has ended since.
    pub(super) fn sickness(&self, before: u64) -> Option<Sickness> {
        if self.lost {
            let reason = "it does not answer any more (it has fallen off the bus)".to_owned();
            return Some(Sickness { reason, ends_jobs: true, passing: false });
        }
        let mut reasons = Vec::new();
        let mut ends_jobs = self.reset_required;
        if self.reset_required {
            reasons.push("it does nothing more until it is reset".to_owned());
        }
        for xid in XIDS.iter().filter(|xid| self.xids.contains(&xid.number)) {
            reasons.push(format!("Xid {}, {}", xid.number, xid.name));
            ends_jobs |= xid.ends_jobs;
        }
        if self.uncorrected_volatile > 0 {
            let (count, all) = (self.uncorrected_volatile, self.uncorrected_aggregate);
            let errors = if count == 1 { "error" } else { "errors" };
            let life = match all > count {
                true => format!(" ({all} in its life)"),
                false => String::new(),
            };
            reasons.push(format!("{count} uncorrected ECC {errors}{life}"));
            // A contained one has ended those whom it hit, and only them.
            ends_jobs |= self.uncorrected_volatile > before && !self.xids.contains(&94);
        }
        let pending = [
            (self.remap_failed, "rows of its memory could not be remapped"),
            (self.remap_pending, "rows of its memory wait to be remapped by a reset"),
            (self.retired_pending, "pages of its memory wait to be retired by a reset"),
        ];
        reasons.extend(pending.iter().filter(|(is, _)| *is).map(|(_, why)| (*why).to_owned()));
        let reason = reasons.join("; ");
        (!reason.is_empty()).then_some(Sickness { reason, ends_jobs, passing: false })
    }
}
