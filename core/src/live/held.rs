//! What nodes' caches hold of the inputs of jobs.
//!
//! Only the nodes know, and tell it when they join and when it changes. It is not written down: a daemon that
//! starts hears it again, and until then jobs go where they would without.

use super::Live;
use crate::id::NodeName;
use crate::job::{Job, State};
use crate::sched::DataPlace;

impl Live {
    /// A node says all that its cache holds of which inputs, in bytes.
    pub fn node_holds(&mut self, name: &NodeName, held: Vec<(DataPlace, u64)>) {
        if let Some(node) = self.nodes.get(name) {
            self.sched.set_held(&node.record.compute, name, held);
        }
    }

    /// The nodes of a live job's compute that hold enough of its inputs for it to go there rather than elsewhere, with
    /// how many bytes; those with the most first.
    pub fn holders(&self, job: &Job) -> Vec<(NodeName, u64)> {
        match &job.state {
            State::Ended(_) => Vec::new(),
            State::Queued(_) | State::Active(_) => {
                let pool = self.sched.pool(&job.compute);
                let inputs = DataPlace::of_job(&job.spec);
                pool.map(|pool| pool.holders().of(&inputs)).unwrap_or_default()
            }
        }
    }
}
