//! What finished jobs held, so that fair share survives a restart.

use super::Live;
use crate::id::{ComputeName, Principal};
use crate::sched::Request;
use crate::time::Timestamp;

/// What a finished job held in its last attempt. Of earlier attempts nothing is known any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PastUse {
    /// Of which compute.
    pub compute: ComputeName,
    /// Whose job it was.
    pub user: Principal,
    /// What it asked for.
    pub request: Request,
    /// When its command started.
    pub started: Timestamp,
    /// When it ended; not before it started.
    pub ended: Timestamp,
}

impl Live {
    /// Puts back what users held lately, newest first. The nodes are recovered by then, and the jobs
    /// are not: usage is counted from its newest moment on, and a job that runs since long before
    /// would make that moment an old one.
    ///
    /// Of a compute without nodes nobody can say how large a part of it a job held; that is left out.
    pub fn recover_usage(&mut self, past: Vec<PastUse>) {
        for PastUse { compute, user, request, started, ended } in past {
            let known = self.sched.pool(&compute).is_some_and(|pool| pool.nodes().next().is_some());
            if known && started < ended {
                self.sched.used(&compute, &user, &request, started, ended);
            }
        }
    }
}
