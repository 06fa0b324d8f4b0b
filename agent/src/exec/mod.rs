//! Being in a running attempt: a command beside the job's own, with the same view, limits and variables, and
//! connections to ports of this node. And being in what a failed one left: a command in the same view, made
//! anew, or in the same container, started again.
//!
//! ```text
//! daemon --(open a channel)--> session --> channel ----> helper, outside: waits, kills, tells
//!        <--(JoinChannel, on a connection of its own)--     '--> command, inside
//! ```
//! The helper is this program in a role of its own, because entering namespaces takes a process with one
//! thread. It ends what it started when the agent hangs up, so nothing stays behind an agent that was killed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::attempt::Folder;
use crate::cgroup::Cgroup;

mod again;
mod alone;
mod channel;
mod command;
mod forward;
mod helper;
mod init;
mod inside;
mod program;
mod target;
mod terminal;
#[cfg(test)]
mod tests;
mod way;

pub(crate) use again::Again;
pub(crate) use alone::Alone;
pub(crate) use channel::{Channel, answer};
pub(crate) use helper::{ENTER, enter_to_code};

/// How long what was let in may take to be gone once the attempt's command has ended.
const LEAVE: Duration = Duration::from_secs(10);

/// What a helper is to do. The rest is in the attempt's launch record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Order {
    /// The attempt's folder.
    folder: PathBuf,
    way: Way,
    /// The program and its arguments; empty: the user's shell.
    command: Vec<String>,
    /// It has a terminal of this size, made where the command sees it; otherwise the three files that come
    /// with the order are input, output and error.
    terminal: Option<Size>,
    /// Variables besides the job's, or instead of them.
    variables: BTreeMap<String, String>,
}

/// How the command gets to where it is run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Way {
    /// Into the namespaces of a process of the attempt's command.
    Beside {
        pid: i32,
        /// Names it beyond doubt.
        start_time: u64,
    },
    /// Nothing of the attempt lives any more: into a view like its own, and these groups.
    Anew { cgroup: Option<Cgroup> },
    /// To no command of the job but to its container's runtime, which does the agent's work: in these groups,
    /// with what it needs of the agent's variables.
    Container { cgroup: Option<Cgroup> },
    /// Into the namespaces of a process of that container, and the same groups.
    Again { pid: i32, start_time: u64, cgroup: Option<Cgroup> },
}

/// A terminal's, in cells.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Size {
    rows: u16,
    columns: u16,
}

/// What a helper tells.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    /// The terminal that comes with this is the command's.
    Terminal,
    /// The command runs.
    Started,
    /// It exited with this code.
    Code(i32),
    /// It was ended by this signal.
    Signal(i32),
    /// The way to it failed.
    NotStarted {
        /// What, in words.
        what: String,
        /// Why, as the operating system says.
        errno: i32,
    },
    /// The program could not be run.
    NotRun { program: String, errno: i32 },
}

impl Word {
    /// What the command was to be given cannot be used.
    fn unusable(error: &std::io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        Self::NotStarted { what: "taking its terminal".to_owned(), errno }
    }
}

/// How far an attempt is, for those who want in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    /// Its command does not run yet.
    #[default]
    Before,
    Runs,
    Over,
}

/// Where somebody may be let in.
pub(crate) struct Place {
    pub(crate) folder: Folder,
    pub(crate) entrance: Entrance,
    /// Of an attempt that is over and kept.
    pub(crate) kept: Option<Kept>,
}

/// What a command in a kept attempt is held to.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(crate) cgroup: Option<Cgroup>,
    /// Variables instead of the job's.
    pub(crate) variables: BTreeMap<String, String>,
    /// The container that it ran in, if it did.
    pub(crate) container: Option<Arc<Again>>,
}

/// The way into one attempt, open while its command runs. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Entrance {
    stage: watch::Sender<Stage>,
    inside: TaskTracker,
}

impl Entrance {
    /// Of an attempt that is over.
    pub(crate) fn ended() -> Self {
        Self { stage: watch::Sender::new(Stage::Over), inside: TaskTracker::new() }
    }

    /// The command runs.
    pub(crate) fn open(&self) {
        self.stage.send_replace(Stage::Runs);
    }

    /// The command has ended: so does whoever is inside. Waits until they have, for a time.
    pub(crate) async fn close(&self) {
        self.stage.send_replace(Stage::Over);
        self.inside.close();
        if tokio::time::timeout(LEAVE, self.inside.wait()).await.is_err() {
            tracing::error!("what was started in a job does not end with it");
        }
    }

    fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Once the command has ended.
    async fn over(&self) {
        let mut stage = self.stage.subscribe();
        let _ = stage.wait_for(|stage| *stage == Stage::Over).await;
    }
}
