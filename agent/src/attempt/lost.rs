//! Attempts of which nobody knows how they ended: what is left of them is killed, and the end is told.

use std::path::Path;
use std::time::Duration;

use atelier_proto::agent::v1::{Cause, Ended};
use rustix::process::Signal;

use super::finalize::End;
use super::process::Process;
use super::reattach::Loss;
use super::run::{Discarded, end};
use super::{Attempt, launch, problem, variables};
use crate::record;
use crate::supervisor::{LAUNCH, Launch, STARTED, Started, kill_marked};

/// The end of an attempt that was running, and nobody knows how it ended.
pub(super) async fn lost(attempt: &Attempt, loss: Loss) -> Result<Ended, Discarded> {
    let message = match &loss {
        Loss::Reboot => "the node was restarted while the job ran".to_owned(),
        Loss::Supervisor => {
            "the job's supervisor was killed; what was left of the job was killed too".to_owned()
        }
        Loss::Unreadable(why) => format!(
            "the node cannot read its records of the job ({why}); what was left of the job was killed; look at \
             the disk of the agent's data folder"
        ),
    };
    match loss {
        Loss::Reboot => {}
        Loss::Supervisor => sweep(attempt).await,
        Loss::Unreadable(_) => end_all(attempt).await,
    }
    end(attempt, End::Lost(problem::problem(Cause::Platform, message))).await
}

/// Kills what a killed supervisor left behind, until nothing is found any more.
pub(super) async fn sweep(attempt: &Attempt) {
    const ROUNDS: u32 = 200;
    for _ in 0..ROUNDS {
        let folder = attempt.folder.path().to_owned();
        let none_left = tokio::task::spawn_blocking(move || kill_left(&folder)).await;
        if none_left.unwrap_or(true) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tracing::error!(epoch = attempt.key.epoch, "processes of an attempt do not die");
}

/// The end of an attempt whose task has panicked, and where.
pub(super) async fn panicked(attempt: &Attempt, panicked: &str) -> Result<Ended, Discarded> {
    // None may start it from now on.
    let _ = launch::hold(attempt.folder.path());
    end_all(attempt).await;
    attempt.entrance.close().await;
    let problem = problem::panicked(panicked);
    end(attempt, End::Lost(problem)).await
}

/// Ends an attempt of which nobody is watching the supervisor, if there is one.
async fn end_all(attempt: &Attempt) {
    const SUPERVISORS_OWN: Duration = Duration::from_secs(5);
    let started: Option<Started> = record::read(attempt.folder.path(), STARTED).ok().flatten();
    let started = started.filter(|started| started.boot_id == attempt.node.boot_id);
    if let Some(Ok(Some(process))) = started.map(|started| Process::attach(&started)) {
        process.signal(Signal::QUIT);
        process.signal(Signal::CONT);
        let patience = Duration::from_millis(attempt.node.kill_patience_ms) + SUPERVISORS_OWN;
        if tokio::time::timeout(patience, process.ended()).await.is_err() {
            tracing::error!(epoch = attempt.key.epoch, "a supervisor does not end");
        }
    }
    sweep(attempt).await;
}

/// Kills what is found of an attempt whose supervisor is gone: what is in its groups, and, where there
/// are none, what has its mark. Whether nothing was found.
fn kill_left(folder: &Path) -> bool {
    let launch: Option<Launch> = record::read(folder, LAUNCH).ok().flatten();
    let in_groups = launch.and_then(|launch| launch.cgroup).is_some_and(|cgroup| {
        let found = cgroup.kill();
        if !found {
            let _ = cgroup.remove();
        }
        found
    });
    kill_marked(variables::MARK, folder) == 0 && !in_groups
}
