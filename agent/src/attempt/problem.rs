//! Why an attempt did not end well, in words for its user.

use std::error::Error;
use std::fmt::Write as _;
use std::io;

use atelier_core::resource::Memory;
use atelier_proto::agent::v1::{Cause, Problem};

use crate::disk::Sentence;
use crate::supervisor::OutOfMemory;

/// Makes a problem.
pub(crate) fn problem(cause: Cause, message: impl Into<String>) -> Problem {
    Problem { cause: cause.into(), message: message.into() }
}

/// A problem of an error with its sources. A full disk is always told as that.
pub(crate) fn of(cause: Cause, what: &str, error: &(dyn Error + 'static)) -> Problem {
    let mut message = format!("{what}: {error}");
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        // Some errors print their source themselves.
        if !message.ends_with(&text) {
            let _ = write!(message, ": {text}");
        }
        source = error.source();
    }
    if is_disk_full(error) {
        return disk_full(&message);
    }
    problem(cause, message)
}

/// This program is at fault; `place` says where and with what words it panicked.
pub(crate) fn panicked(place: &str) -> Problem {
    let message = format!(
        "the node's agent has a fault and ended the job ({place}); tell it to those who keep the cluster"
    );
    problem(Cause::Platform, message)
}

/// The node has no space left.
pub(crate) fn disk_full(message: &str) -> Problem {
    problem(
        Cause::DiskFull,
        format!(
            "the node's disk is full: {message}; free space on the node, or have the job write less"
        ),
    )
}

/// The kernel killed the job for want of memory.
pub(crate) fn out_of_memory(found: &OutOfMemory) -> Problem {
    let shown = |bytes: u64| Memory(bytes.div_ceil(1 << 20)).to_string();
    let peak = found
        .peak_bytes
        .map_or_else(String::new, |bytes| format!(" at a peak of {}", shown(bytes)));
    let message = match found.limit_bytes {
        Some(limit) => format!(
            "the job ran out of memory{peak}; its limit was {}: ask for more with resources.memory, or have \
             it use less",
            shown(limit)
        ),
        None => format!(
            "the node ran out of the memory that it has for jobs, and this one was killed{peak}: say with \
             resources.memory what the job needs, so that it gets a node that has it"
        ),
    };
    problem(Cause::OutOfMemory, message)
}

/// A GPU of the job is not fit any more.
pub(crate) fn gpu_lost(index: u32, reason: &str) -> Problem {
    problem(Cause::GpuLost, format!("GPU {index} of the node, which the job had, is out: {reason}"))
}

/// The job took the room that the node keeps for itself.
pub(crate) fn disk_reserve(found: &Sentence) -> Problem {
    let shown = |bytes: u64| Memory(bytes.div_ceil(1 << 20)).to_string();
    let message = if found.free.bytes < found.reserve.bytes {
        format!(
            "the node's disk had {} left of the {} that it keeps for itself, and this job's files took {}",
            shown(found.free.bytes),
            shown(found.reserve.bytes),
            shown(found.held.bytes)
        )
    } else {
        format!(
            "the node's disk had room for {} files, of {} that it keeps for itself, and this job had made {}",
            found.free.files, found.reserve.files, found.held.files
        )
    };
    problem(
        Cause::DiskFull,
        format!("{message}: have the job write less, or run it on a node with more room"),
    )
}

/// The job's GPUs have done nothing for so many seconds.
pub(crate) fn gpu_idle(seconds: u64) -> Problem {
    problem(
        Cause::GpuIdle,
        format!(
            "the job's GPUs did nothing for {seconds} s, as long as idle_gpu.after allows; ask for none, or for \
             a longer time"
        ),
    )
}

/// Whether an error, or what it comes from, says that no space is left.
pub(crate) fn is_disk_full(error: &(dyn Error + 'static)) -> bool {
    let full = |error: &io::Error| {
        matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    };
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(full) {
            return true;
        }
        next = error.source();
    }
    false
}

/// What the shell meant by 126 or 127, from the log's last lines; `None` for other codes.
///
/// Bash writes `bash: line 1: NAME: command not found`, other shells `sh: 1: NAME: not found`.
pub(crate) fn of_shell(code: i32, log_tail: &str) -> Option<Problem> {
    let (says, what, remedy): (&[&str], _, _) = match code {
        127 => (
            &[": command not found", ": not found", ": No such file or directory"],
            "was not found",
            "check its spelling and that the job's environment has it",
        ),
        126 => (
            &[": Permission denied", ": cannot execute", ": Is a directory"],
            "cannot be executed",
            "make it executable, or name its interpreter",
        ),
        _ => return None,
    };
    let name = log_tail.lines().rev().find_map(|line| {
        says.iter().find_map(|says| {
            let before = &line[..line.find(says)?];
            let name = before.rsplit(": ").next()?.trim();
            (!name.is_empty()).then(|| name.to_owned())
        })
    });
    let subject =
        name.map_or_else(|| "the command".to_owned(), |name| format!("the command '{name}'"));
    Some(problem(
        Cause::CommandNotFound,
        format!("{subject} {what} (the shell ended with exit code {code}): {remedy}"),
    ))
}
