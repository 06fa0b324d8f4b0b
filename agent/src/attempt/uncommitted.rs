//! What an attempt has written to outputs of mode `rw_mount` and not committed: put back before its command starts,
//! and kept for the next while it runs.

use std::sync::Arc;

use atelier_core::id::JobName;
use atelier_core::layout;
use atelier_core::spec::OutputMode;
use atelier_proto::agent::v1::{Cause, Ended, Problem, StorePath};
use futures::future::try_join_all;

use super::prepare::PrepareLog;
use super::problem::problem;
use super::{Attempt, Services};
use crate::data::rw_mount::{self, Mirror, Mirrored, Mirroring};
use crate::data::{Error, Fault};
use crate::environment::BuildLog as _;

/// The outputs that are kept so.
pub(super) fn outputs(attempt: &Attempt) -> Vec<Mirrored> {
    let Ok(job) = JobName::new(&attempt.key.job) else { return Vec::new() };
    let outputs = attempt.spec.outputs.iter();
    outputs
        .filter(|(_, output)| output.mode == OutputMode::RwMount)
        .filter_map(|(name, _)| {
            let store = attempt.assignment.outputs.get(name.as_str())?.store.as_ref()?;
            let path = layout::uncommitted_path(
                &job,
                name,
                attempt.assignment.failed,
                attempt.assignment.rank,
            );
            let at = StorePath { datastore: store.datastore.clone(), path, ..StorePath::default() };
            Some(Mirrored { name: name.to_string(), at })
        })
        .collect()
}

fn mirroring(attempt: &Attempt) -> Option<Mirroring> {
    let outputs = outputs(attempt);
    let services = attempt.node.services.clone();
    (!outputs.is_empty()).then(|| Mirroring {
        folder: attempt.folder.outputs(),
        outputs,
        ledger: Arc::new(attempt.folder.ledger()),
        token: attempt.assignment.token.clone(),
        looks: rw_mount::LOOKS,
        plane: Arc::new(move || services.borrow().as_ref().map(|services| services.data.clone())),
    })
}

/// Puts back what earlier attempts have not committed.
pub(super) async fn restore(attempt: &Attempt, services: &Services) -> Result<(), Problem> {
    let outputs = outputs(attempt);
    if outputs.is_empty() {
        return Ok(());
    }
    let (ledger, folder) = (attempt.folder.ledger(), attempt.folder.outputs());
    ledger.clear();
    if attempt.key.attempt <= 1 {
        return Ok(());
    }
    let (ledger, token) = (&ledger, &attempt.assignment.token);
    let restored = outputs.iter().map(async |output| {
        match services.data.restore(output, &folder, ledger, token).await {
            Ok(files) => Ok((&output.name, files)),
            // What a job could do without before it can do without again.
            Err(error @ (Error::Denied { .. } | Error::Unfit { .. })) => {
                let name = &output.name;
                PrepareLog::new(attempt.folder.log()).line(&format!(
                    "output '{name}' has nothing of the attempt before, which cannot be read: {error}"
                ));
                Ok((name, 0))
            }
            Err(error) => {
                let what = format!("cannot put back what was written to output '{}'", output.name);
                let cause = match error.fault() {
                    Fault::DiskFull => Cause::DiskFull,
                    Fault::User | Fault::Platform => Cause::Platform,
                };
                Err(problem(cause, format!("{what}: {error}")))
            }
        }
    });
    for (name, files) in try_join_all(restored).await? {
        if files > 0 {
            let files = if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
            PrepareLog::new(attempt.folder.log())
                .line(&format!("output '{name}' has {files} of the attempt before"));
        }
    }
    Ok(())
}

/// Begins to keep what the command closes.
pub(super) fn start(attempt: &Attempt) -> Option<Mirror> {
    mirroring(attempt).map(Mirror::start)
}

/// Keeps all that is left of an attempt that was ended by another's fault than its job's: one may follow that goes on
/// from there.
pub(super) async fn settle(attempt: &Attempt, ended: &Ended) {
    let cause = ended.problem.as_ref().map(Problem::cause);
    let others =
        [Cause::Canceled, Cause::Platform, Cause::LeaseExpired, Cause::GpuLost, Cause::DiskFull];
    if !cause.is_some_and(|cause| others.contains(&cause)) {
        return;
    }
    let Some(mirroring) = mirroring(attempt) else { return };
    if let Err(error) = rw_mount::settle(&mirroring).await {
        let epoch = attempt.key.epoch;
        tracing::warn!(epoch, %error, "a next attempt will not find all that this one wrote");
    }
}
