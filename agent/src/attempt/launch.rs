//! From a prepared attempt to a supervisor that runs it.

use std::io;

use atelier_proto::agent::v1::{Cause, Problem};

use super::prepare::Prepared;
use super::process::Process;
use super::{Attempt, problem};
use crate::record;
use crate::supervisor::{LAUNCH, Launch, STARTED, Started};

/// Starts the supervisor.
pub(super) fn launch(attempt: &Attempt, prepared: Prepared) -> Result<Process, Problem> {
    let assignment = &attempt.assignment;
    let log_limit =
        [attempt.node.log_limit, Some(assignment.log_limit_bytes).filter(|&limit| limit > 0)];
    let launch = Launch {
        version: Launch::VERSION,
        program: attempt.node.shell.clone(),
        arguments: vec!["-c".to_owned(), prepared.command],
        environment: prepared.variables,
        directory: attempt.folder.work(),
        log: attempt.folder.log(),
        log_limit: log_limit.into_iter().flatten().min(),
        grace_ms: assignment.grace_s.saturating_mul(1000),
        timeout_ms: attempt.spec.limits.timeout.map(|seconds| seconds.saturating_mul(1000)),
        lease: Some(attempt.node.lease_path.clone()),
    };
    let folder = attempt.folder.path();
    record::write(folder, LAUNCH, &launch)
        .and_then(|()| Process::start(folder))
        .map_err(|error| problem::of(Cause::Platform, "cannot start the job's supervisor", &error))
}

/// The supervisor that has the attempt, if there is one and it lives.
pub(super) fn attach(attempt: &Attempt) -> io::Result<Option<Process>> {
    let started: Option<Started> = record::read(attempt.folder.path(), STARTED)?;
    started.map_or(Ok(None), |started| Process::attach(&started))
}
