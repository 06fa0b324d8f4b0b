//! How the command of a job of several processes is started, and what its processes are told of each other.

mod members;
pub(super) mod mpi;
pub(super) mod ray;

#[cfg(test)]
mod tests;

pub(super) use members::Members;
#[cfg(test)]
pub(super) use members::place;

use std::path::PathBuf;

use atelier_core::spec::Distribution;

use super::Attempt;

/// What a shell runs to start the job's command in this member, where it is more than the command itself.
/// Within it `$0` is a shell, and `command` the shell's word for the command.
pub(super) fn start(attempt: &Attempt, command: &str) -> Option<String> {
    let assignment = &attempt.assignment;
    let services = attempt.node.services.borrow();
    let workspace_id = services.as_ref().map_or("", |services| &services.workspace_id);
    let (rank, epoch) = (assignment.rank, attempt.key.epoch);
    let members = Members::new(&assignment.addresses, rank, workspace_id, epoch);
    match attempt.spec.distribution.as_ref()? {
        Distribution::PyTorch { .. } | Distribution::TensorFlow { .. } => None,
        Distribution::Mpi { process_count_per_instance: count } => {
            Some(mpi::start(&members, *count, command, &this_program()))
        }
        Distribution::Ray(given) => {
            let share = ray::Share {
                cpu_milli: assignment.cpu_milli,
                memory_mib: assignment.memory_mib,
                gpus: assignment.gpu_indices.len(),
            };
            Some(ray::start(&members, given, &share, command))
        }
    }
}

/// Files of the node that starting the command takes.
pub(super) fn needed(attempt: &Attempt) -> Option<PathBuf> {
    let is_mpi = matches!(attempt.spec.distribution, Some(Distribution::Mpi { .. }));
    (is_mpi && attempt.assignment.addresses.len() > 1).then(this_program)
}

/// Where this program lies, also if it was replaced by a newer one meanwhile.
fn this_program() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    match path.to_str().and_then(|path| path.strip_suffix(" (deleted)")) {
        Some(path) => path.into(),
        None => path,
    }
}

/// A secret that the members of an attempt have in common, made from its token.
fn secret(purpose: &str, token: &str) -> String {
    blake3::Hash::from_bytes(blake3::derive_key(purpose, token.as_bytes())).to_hex().to_string()
}
