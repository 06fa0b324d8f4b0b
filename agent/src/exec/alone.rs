//! A program of the agent's own in a view and groups of its own, as a job's command is: what builds something
//! for jobs may run code that is not the agent's.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;

use super::inside::Inside;
use super::{Order, Way, Word};
use crate::record;
use crate::supervisor::{LAUNCH, Launch};

/// A program that runs. Dropping it ends the program, and all that it started.
pub(crate) struct Alone(Inside);

impl Alone {
    /// Starts a command as a launch says: its view, groups, variables and directory. The record of that, which
    /// may hold secrets, is written into `folder`, which the view must not show.
    pub(crate) fn start(
        folder: &Path,
        launch: &Launch,
        command: Vec<String>,
        output: OwnedFd,
    ) -> io::Result<Self> {
        record::write(folder, LAUNCH, launch)?;
        let order = Order {
            folder: folder.to_owned(),
            way: Way::Anew { cgroup: launch.cgroup.clone() },
            command,
            terminal: None,
            variables: std::collections::BTreeMap::new(),
        };
        let input = File::open("/dev/null")?;
        Ok(Self(Inside::start(&order, &[input.into(), output.try_clone()?, output])?))
    }

    /// How it ended.
    ///
    /// # Errors
    /// It could not be started.
    pub(crate) async fn ended(self) -> io::Result<ExitStatus> {
        loop {
            let because = |errno| io::Error::from_raw_os_error(errno);
            match self.0.word().await {
                Word::Terminal | Word::Started => {}
                Word::Code(code) => return Ok(ExitStatus::from_raw((code & 0xff) << 8)),
                Word::Signal(signal) => return Ok(ExitStatus::from_raw(signal & 0x7f)),
                Word::NotStarted { what, errno } => {
                    return Err(io::Error::other(format!("{what}: {}", because(errno))));
                }
                Word::NotRun { program, errno } => {
                    return Err(io::Error::other(format!("running {program}: {}", because(errno))));
                }
            }
        }
    }
}
