//! What to do with an attempt that a new agent finds on its disk.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atelier_proto::agent::v1 as pb;

use super::Folder;
use super::variables::MARK;
use crate::proc;
use crate::record;
use crate::supervisor::{EXITED, Exited, STARTED, Started, kill_marked};

/// What was found. The process is looked at before the record of its end is read: a supervisor
/// writes that record and then ends, so "gone and no record" is certain.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Facts {
    /// The report of the end exists.
    pub(crate) ended: Option<pb::AttemptReport>,
    /// A supervisor took the attempt.
    pub(crate) started: Option<Started>,
    /// The start time of the process that has the supervisor's pid now, if there is one that is
    /// not dead.
    pub(crate) start_time_now: Option<u64>,
    /// The machine's boot now.
    pub(crate) boot_id: String,
    /// The supervisor's last word.
    pub(crate) exited: Option<Exited>,
    /// What the attempt left has reached the disk.
    pub(crate) settled: bool,
}

/// What to do.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Decision {
    /// Nothing ran: prepare, from the start.
    Prepare,
    /// It runs under this supervisor.
    Attach(Started),
    /// It ran to an end: collect its outputs.
    Finalize(Exited),
    /// It was running and is not any more, and nobody wrote down how it ended.
    Lost(Loss),
    /// All is done but the daemon's acknowledgement.
    Report(pb::AttemptReport),
}

/// How a running attempt was lost.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Loss {
    /// The machine started anew.
    Reboot,
    /// The supervisor was killed.
    Supervisor,
    /// What is on the disk of it cannot be read, and why.
    Unreadable(String),
}

/// Decides. A process is named by pid, start time and boot, never by its pid alone.
pub(crate) fn decide(facts: Facts) -> Decision {
    if let Some(report) = facts.ended {
        return Decision::Report(report);
    }
    if let Some(exited) = facts.exited {
        let boot = facts.started.map(|started| started.boot_id);
        // Of files that another boot wrote the end may be missing, and nothing says so.
        return match facts.settled || boot.as_ref() == Some(&facts.boot_id) {
            true => Decision::Finalize(exited),
            false => Decision::Lost(Loss::Reboot),
        };
    }
    let Some(started) = facts.started.filter(|started| !started.is_void()) else {
        return Decision::Prepare;
    };
    if started.boot_id != facts.boot_id {
        return Decision::Lost(Loss::Reboot);
    }
    if facts.start_time_now == Some(started.start_time) {
        Decision::Attach(started)
    } else {
        Decision::Lost(Loss::Supervisor)
    }
}

/// Looks at the folder and at the processes.
pub(crate) fn look(folder: &Folder, boot_id: &str) -> io::Result<Facts> {
    let unreadable = |name: &'static str| {
        move |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"))
    };
    let started: Option<Started> =
        record::read(folder.path(), STARTED).map_err(unreadable(STARTED))?;
    let start_time_now = started
        .as_ref()
        .and_then(|started| proc::stat(started.pid))
        .filter(|stat| stat.state != 'Z')
        .map(|stat| stat.start_time);
    Ok(Facts {
        ended: folder.ended(),
        start_time_now,
        started,
        boot_id: boot_id.to_owned(),
        exited: record::read(folder.path(), EXITED).map_err(unreadable(EXITED))?,
        settled: folder.is_settled(),
    })
}

/// Kills what runs of attempts below `attempts` that are not `known`: nobody waits for it.
pub(crate) fn end_forgotten(attempts: &Path, known: impl Fn(&Path) -> bool) {
    const ROUNDS: u32 = 50;
    let of_attempt = |stat: proc::Stat| proc::path_variable(stat.pid, MARK);
    let ours = |folder: &PathBuf| folder.parent() == Some(attempts) && !known(folder);
    let forgotten: BTreeSet<PathBuf> =
        proc::all().into_iter().filter_map(of_attempt).filter(ours).collect();
    for folder in forgotten {
        match folder.exists() {
            // Over, and kept.
            true => tracing::info!(
                folder = %folder.display(),
                "ending what an earlier agent had started in what is kept of an attempt"
            ),
            // Removed while this did not end; or the data folder was deleted, and with it whatever could be told.
            false => tracing::warn!(
                folder = %folder.display(), "ending what runs of an attempt whose folder is gone"
            ),
        }
        let mut rounds = 0..ROUNDS;
        while kill_marked(MARK, &folder) > 0 && rounds.next().is_some() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Decision {
    /// For the agent's own log.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Attach(_) => "attach",
            Self::Finalize(_) => "finalize",
            Self::Lost(_) => "lost",
            Self::Report(_) => "report",
        }
    }
}
