//! The container of an attempt that is over, started again: whoever is let in enters it as one that runs.
//!
//! A runtime starts what the container was made with, which is a script in the attempt's folder. So that is
//! written anew before: it waits for as long as the container is wanted. What the job wrote into the container
//! is there, and nothing is copied for it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use atelier_core::spec::quote;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::sync::Mutex;

use super::inside::{Inside, Streams, pipes};
use super::{LEAVE, Order, Way, Word, target};
use crate::attempt::{Folder, container_of, note_container};
use crate::cgroup::Cgroup;
use crate::container::{Container, Kind, reason, script};
use crate::isolation;
use crate::proc::{self, Stat};
use crate::record;
use crate::secrets::Held;
use crate::supervisor::{EXITED, Exited, LAUNCH, Launch};

/// How long the runtime may take to start it.
const START: Duration = Duration::from_secs(60);
/// What it prints when it is there.
const READY: &str = "ready";
/// What its script waits for: a pipe with a name, into which nobody writes.
const HOLD: &str = "hold";
/// Bytes kept of what the runtime says.
const SAID: usize = 8 << 10;

/// One attempt's container; of several, that of the process that failed.
pub(crate) struct Again {
    kind: Kind,
    process: u32,
    cgroup: Option<Cgroup>,
    /// Instead of the job's.
    variables: BTreeMap<String, String>,
    running: Mutex<Option<Running>>,
}

struct Running {
    /// The runtime, below a helper that ends all of it with the agent.
    inside: Inside,
    first: Stat,
    _output: Streams,
}

impl Again {
    /// Nothing is started before somebody wants in.
    pub(crate) fn new(
        folder: &Folder,
        container: &Container,
        cgroup: Option<Cgroup>,
        mut variables: BTreeMap<String, String>,
    ) -> Self {
        let exited: Option<Exited> = record::read(folder.path(), EXITED).ok().flatten();
        let process = exited.and_then(|exited| exited.process).unwrap_or(0);
        let launch: Option<Launch> = record::read(folder.path(), LAUNCH).ok().flatten();
        let processes = launch.map(|launch| launch.processes).unwrap_or_default();
        let own = processes.into_iter().nth(process as usize).map(|own| own.environment);
        variables.extend(own.unwrap_or_default());
        Self { kind: container.kind, process, cgroup, variables, running: Mutex::default() }
    }

    pub(super) fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    /// Its first process. The container is started if it does not run.
    ///
    /// # Errors
    /// Why it cannot be, in words.
    pub(super) async fn first(&self, folder: &Folder) -> Result<Stat, String> {
        let mut running = self.running.lock().await;
        let lives = |first: &Stat| {
            let now = proc::stat(first.pid);
            now.is_some_and(|now| now.start_time == first.start_time && now.state != 'Z')
        };
        if let Some(running) = running.as_ref().filter(|running| lives(&running.first)) {
            return Ok(running.first.clone());
        }
        if let Some(before) = running.take() {
            before.end().await;
        }
        let started = match self.start(folder).await {
            Ok(started) => Ok(started),
            Err(why) => self.start_renewed(folder, why).await,
        };
        let started =
            started.map_err(|why| format!("the job's container cannot be started again: {why}"))?;
        Ok(running.insert(started).first.clone())
    }

    /// `why`: what is wrong with it as it is.
    async fn start_renewed(&self, folder: &Folder, why: String) -> Result<Running, String> {
        let Some(mut container) = container_of(folder.path()) else { return Err(why) };
        container
            .renew(self.process, |container| note_container(folder, container))
            .await
            .map_err(|also| format!("{why}; nor made anew: {also}"))?;
        self.start(folder).await
    }

    async fn start(&self, folder: &Folder) -> Result<Running, String> {
        let launch: Option<Launch> = record::read(folder.path(), LAUNCH).map_err(text)?;
        let launch = launch.ok_or("how the job was started is not known any more")?;
        let user = launch.user();
        launch.secrets.as_ref().map_or(Ok(()), Held::make_empty).map_err(text)?;
        let mut variables = launch.inside.unwrap_or_default();
        variables.extend(self.variables.clone());
        let own = folder.container();
        let hold = own.join(HOLD);
        make_hold(&hold).map_err(text)?;
        let wait = format!("echo {READY}; read held <> {}", quote(&hold.to_string_lossy()));
        let wait = script::text(self.kind, &variables, None, &launch.directory, &wait);
        record::write_bytes(&own, &script::name(self.process), wait.as_bytes()).map_err(text)?;
        user.map_or(Ok(()), |user| isolation::give(&[own], user)).map_err(text)?;
        let program = launch.program.to_string_lossy().into_owned();
        let order = Order {
            folder: folder.path().to_owned(),
            way: Way::Container { cgroup: self.cgroup.clone() },
            command: [program].into_iter().chain(launch.arguments).collect(),
            terminal: None,
            // By which one of several is started.
            variables: [("LOCAL_RANK".to_owned(), self.process.to_string())].into(),
        };
        let (ours, theirs) = pipes(false).map_err(text)?;
        let inside = Inside::start(&order, &theirs).map_err(text)?;
        drop(theirs);
        let begun = tokio::time::timeout(START, begun(&inside, &ours)).await;
        begun.unwrap_or_else(|_| Err(format!("it takes longer than {} s", START.as_secs())))?;
        let first = inside.helper().and_then(target::first_contained);
        let first = first.ok_or("it has ended at once")?;
        Ok(Running { inside, first, _output: ours })
    }

    /// Ends it, if it runs.
    pub(crate) async fn end(&self) {
        if let Some(running) = self.running.lock().await.take() {
            running.end().await;
        }
    }
}

impl Running {
    async fn end(self) {
        self.inside.kill();
        if tokio::time::timeout(LEAVE, self.inside.word()).await.is_err() {
            tracing::error!("a container that was started again does not end");
        }
    }
}

/// Once the script runs.
async fn begun(inside: &Inside, output: &Streams) -> Result<(), String> {
    match inside.word().await {
        Word::Started => {}
        Word::NotStarted { what, errno } | Word::NotRun { program: what, errno } => {
            return Err(format!("{what}: {}", io::Error::from_raw_os_error(errno)));
        }
        Word::Terminal | Word::Code(_) | Word::Signal(_) => {
            return Err("its runtime was ended".to_owned());
        }
    }
    let (mut said, mut errors) = (Vec::new(), Vec::new());
    let mut hears = output.error.is_some();
    loop {
        let error = async {
            match &output.error {
                Some(error) => error.read().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            bytes = output.output.read() => {
                said.extend_from_slice(&bytes);
                if String::from_utf8_lossy(&said).lines().any(|line| line == READY) {
                    return Ok(());
                }
                if bytes.is_empty() || said.len() > SAID {
                    break;
                }
            }
            bytes = error, if hears => {
                hears = !bytes.is_empty() && errors.len() < SAID;
                errors.extend_from_slice(&bytes);
            }
        }
    }
    if let Some(error) = output.error.as_ref().filter(|_| hears) {
        errors.extend_from_slice(&error.read().await);
    }
    let lines: Vec<String> = String::from_utf8_lossy(&errors).lines().map(str::to_owned).collect();
    Err(reason(&lines))
}

fn make_hold(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    Ok(mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
