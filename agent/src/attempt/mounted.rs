//! The inputs of an attempt that are mounted.

use std::collections::BTreeMap;

use atelier_proto::agent::v1::{Cause, Problem};

use super::prepare::PrepareLog;
use super::problem::problem;
use super::{Attempt, Services};
use crate::data::mount::{self, Failure, Lost, Plan};
use crate::data::{Given, Moved};
use crate::environment::BuildLog as _;

/// Inputs that are ready.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    /// Each one's text, `None` for one that is unset.
    pub(super) texts: BTreeMap<String, Option<String>>,
    /// Those that are mounted.
    mounted: Vec<String>,
    /// Whether only processes of this agent's user can read those.
    own_only: bool,
    /// What all of them are, and what was fetched before the job starts.
    pub(super) moved: Moved,
}

/// What keeps a job in a container from mounts that are for the agent's user alone.
const OWN_ONLY: &str = "this agent is not root, and /etc/fuse.conf does not let it mount for others \
                        (user_allow_other), as containers need it";

impl Inputs {
    /// Mounts those that are to be; which is none of them if it cannot be done: then why.
    pub(super) async fn mount(
        attempt: &Attempt,
        services: &Services,
        given: BTreeMap<String, Option<Given>>,
    ) -> (Self, Option<String>) {
        let (mut inputs, mut all) = (Self::default(), Vec::new());
        for (name, given) in given {
            let Some(Given { text, mounted, moved }) = given else {
                inputs.texts.insert(name, None);
                continue;
            };
            inputs.moved = inputs.moved.and(moved);
            if let Some(mounted) = mounted {
                inputs.mounted.push(name.clone());
                all.push(mounted);
            }
            inputs.texts.insert(name, Some(text));
        }
        if all.is_empty() {
            return (inputs, None);
        }
        if let Some(why) = attempt.node.no_mounts.clone() {
            return (inputs, Some(why));
        }
        let plan = Plan {
            attempt: attempt.folder.path().to_owned(),
            at: attempt.folder.mounts(),
            root: attempt.node.root.clone(),
            url: services.http_url.clone(),
            trust: services.trust.clone(),
            token: attempt.assignment.token.clone(),
            cache: services.data.cache_folder().to_owned(),
            cache_bytes: services.data.cache_limit(),
            patience: attempt.node.mount_patience,
            inputs: all,
        };
        // Whoever cancels this meanwhile finds what is started.
        let turn = attempt.mounting.clone().lock_owned().await;
        let started = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            mount::start(&plan)
        });
        match started.await.unwrap_or_else(|stopped| Err(stopped.to_string())) {
            Ok(for_others) => {
                inputs.own_only = !for_others;
                (inputs, None)
            }
            Err(why) => (inputs, Some(why)),
        }
    }

    /// Why a container cannot see what is mounted, if it cannot.
    pub(super) fn not_for_containers(&self) -> Option<&'static str> {
        (self.own_only && !self.mounted.is_empty()).then_some(OWN_ONLY)
    }

    /// The names of those that were to be mounted and are fetched instead; the job's log says why.
    pub(super) async fn give_up(&mut self, attempt: &Attempt, why: &str) -> Vec<String> {
        unmount(attempt).await;
        tracing::warn!(epoch = attempt.key.epoch, why, "inputs are not mounted");
        PrepareLog::new(attempt.folder.log())
            .line(&format!("inputs are fetched before the job starts, and not mounted: {why}"));
        std::mem::take(&mut self.mounted)
    }
}

/// What went wrong with the mounted inputs of an attempt whose processes have ended.
pub(super) fn lost(attempt: &Attempt) -> Option<Problem> {
    let cause = |failure: &Failure| match failure {
        Failure::Changed { .. } => Cause::Input,
        Failure::Away { .. } | Failure::Refused { .. } | Failure::Stopped => Cause::Platform,
    };
    Some(match mount::failure(attempt.folder.path())? {
        Lost::Read(failure) => {
            problem(cause(&failure), format!("a read of a mounted input failed: {failure}"))
        }
        Lost::Server => problem(
            Cause::Platform,
            "the process that served the job's mounted inputs was killed, and its reads failed",
        ),
    })
}

/// Takes away what is mounted for an attempt.
pub(super) async fn unmount(attempt: &Attempt) {
    let turn = attempt.mounting.clone().lock_owned().await;
    let folder = attempt.folder.clone();
    let unmounted = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        folder.unmount();
    });
    // Only a runtime that ends stops it.
    let _ = unmounted.await;
}
