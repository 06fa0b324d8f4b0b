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
use std::{fs, io};

use atelier_core::spec::Distribution;
use rustix::fs::{CWD, FileType, Mode};

use super::Attempt;
use super::remove::remove_tree;
use crate::supervisor::LaunchPipe;

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

/// Makes what the program that starts the job's processes finds in the attempt's folder.
pub(super) fn prepare(attempt: &Attempt) -> io::Result<()> {
    let pipes = pipes(attempt);
    if pipes.is_empty() {
        return Ok(());
    }
    let folder = attempt.folder.launcher();
    // Of a preparation that was cut short.
    remove_tree(&folder)?;
    fs::create_dir(&folder)?;
    for pipe in pipes {
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(CWD, &pipe.path, FileType::Fifo, mode, 0)?;
    }
    mpi::write_script(&folder, &this_program())
}

/// Ways into the logs of this member's processes, where what starts them has more than one to start.
pub(super) fn pipes(attempt: &Attempt) -> Vec<LaunchPipe> {
    let Some(Distribution::Mpi { process_count_per_instance: count }) = attempt.spec.distribution
    else {
        return Vec::new();
    };
    if count.max(1) == 1 && attempt.assignment.addresses.len() < 2 {
        return Vec::new();
    }
    let folder = &attempt.folder;
    let of = |process: u32| LaunchPipe {
        path: folder.launcher().join(process.to_string()),
        log: folder.log_of(process),
    };
    (0..count.max(1)).map(of).collect()
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
