//! What one transaction brings: decisions, who asked for them, and who is answered once they are on disk.

use std::collections::BTreeMap;

use atelier_core::audit::{Actor, Change, Draft};
use atelier_core::content::Digest;
use atelier_core::id::{JobName, Principal};
use atelier_core::job::Job;
use atelier_core::live::Decisions;
use tokio::sync::oneshot;

use super::Answer;
use crate::daemon::handle::{Error, Look, Reply};
use crate::store::{self, Submitted};

#[derive(Default)]
pub(super) struct Round {
    pub(super) decisions: Decisions,
    pub(super) submitted: Vec<Submitted>,
    pub(super) deleted: Vec<JobName>,
    /// Who asked for what.
    pub(super) audit: Vec<Draft>,
    pub(super) answers: Vec<Answer>,
    pub(super) looks: Vec<Look>,
    pub(super) stop: Option<oneshot::Sender<()>>,
}

impl Round {
    /// Has the audit log tell who asked for what, in the same transaction.
    pub(super) fn tell(&mut self, by: Actor, change: Change) {
        self.audit.push(by.changes(change));
    }

    /// The job that this key makes in this very round, if any, and of which specification.
    pub(super) fn first_of(
        &self,
        principal: &Principal,
        key: &store::IdempotencyKey,
    ) -> Option<(JobName, Digest)> {
        self.submitted.iter().find_map(|submitted| {
            let first = submitted.key.as_ref().filter(|first| first.key == key.key)?;
            let job = self.decisions.changed.get(&submitted.job)?;
            (&job.created_by == principal).then(|| (submitted.job.clone(), first.fingerprint))
        })
    }

    /// Refuses once the round is on disk: the reason may lie in what the round decided.
    pub(super) fn refuse<U: Send + 'static>(&mut self, reply: Reply<U>, error: Error) {
        self.answers.push(Box::new(move |written| {
            // The asker may have gone away.
            let _ = reply.send(Err(match written {
                Ok(_) => error,
                Err(failed) => Error::Store(failed),
            }));
        }));
    }

    /// Answers once the round is on disk; at once if there is nothing to wait for.
    pub(super) fn answer<T, U, F>(
        &mut self,
        reply: Reply<U>,
        result: Result<T, Error>,
        then: impl FnOnce(T) -> F,
    ) where
        U: Send + 'static,
        F: FnOnce(&BTreeMap<JobName, Job>) -> Result<U, Error> + Send + 'static,
    {
        match result {
            Ok(value) => {
                let then = then(value);
                self.answers.push(Box::new(move |written| {
                    // The asker may have gone away.
                    let _ = reply.send(match written {
                        Ok(changed) => then(changed),
                        Err(error) => Err(Error::Store(error)),
                    });
                }));
            }
            Err(error) => self.refuse(reply, error),
        }
    }
}
