//! Where jobs log on their own node: a training loop does not wait for the daemon, nor does one that is away stop it.
//!
//! The agent listens at a port of the loopback and is what `MLFLOW_TRACKING_URI` names. Points that an attempt logs
//! to a run of its own are checked as the daemon checks them, written to a file in the attempt's folder
//! ([`journal`]) and answered; they follow to the daemon in their order ([`forward`]). Whatever else is asked goes
//! on to the daemon ([`serve`]), after the points that the attempt has logged before, so that it reads what it wrote.
//! An attempt's end is told once the daemon has its points.
//!
//! Batches are numbered in the file, which tells what is whole, what was sent and that none is missing. To the daemon
//! they come at least once: it knows a point by all of its parts, as MLflow does, and the same one again adds nothing,
//! in the same transaction and without a word about any node's spool to keep, to move or to restore from a backup.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atelier_core::track::{Metric, RunId};
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Notify, Semaphore, watch};

use crate::attempt::Services;
use crate::record;

mod forward;
mod journal;
mod serve;

use self::journal::{Batch, Journal, Unsent};

/// In an attempt's folder.
const FILE: &str = "spool";
/// In the agent's folder: the port that jobs were told, at which the next agent listens too.
const PORT: &str = "spool.json";
/// How long the port that jobs were told is waited for. The last agent's threads may have it yet.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);
/// Runs that one attempt may log to without the daemon's word at a time.
const RUNS: usize = 1024;
/// How long an attempt's end waits for a daemon that is there and does not take its points.
const UNTAKEN: Duration = Duration::from_secs(300);

/// The spools of one node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Spools(Arc<Shared>);

struct Shared {
    port: u16,
    /// Bytes that one attempt's file may have.
    limit: u64,
    runtime: Handle,
    services: watch::Receiver<Option<Arc<Services>>>,
    connected: watch::Receiver<bool>,
    attempts: Mutex<Vec<Arc<Spool>>>,
    daemon: Mutex<Option<forward::Daemon>>,
}

/// Threads of their own: what else the agent does may take its time. They end with this.
pub(crate) struct Threads([Option<Runtime>; 2]);

impl Drop for Threads {
    fn drop(&mut self) {
        for runtime in self.0.iter_mut().filter_map(Option::take) {
            runtime.shutdown_background();
        }
    }
}

/// One thread each for those who log and for what follows to the daemon: the one that hears of a request answers it,
/// where of two it may wake the other, and reads nothing of a file meanwhile.
fn threads(name: &str) -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(1)
        .thread_name(name)
        .enable_all()
        .build()
}

/// One attempt's.
pub(crate) struct Spool {
    job: String,
    epoch: u64,
    /// The attempt's token, and its digest.
    token: String,
    digest: blake3::Hash,
    path: PathBuf,
    state: Mutex<State>,
    /// The number of the first batch that the daemon does not have; the largest once none goes there any more.
    sent: watch::Sender<u64>,
    /// There is something to send.
    work: Notify,
    /// Somebody waits for what is sent.
    hurry: Notify,
    /// Nobody waits for it any more.
    over: watch::Sender<bool>,
    /// Bytes of requests that are read: one attempt leaves room to the others.
    room: Semaphore,
}

#[derive(Default)]
struct State {
    journal: Option<Journal>,
    /// Runs that the daemon lets this attempt log to.
    runs: BTreeSet<RunId>,
    is_sending: bool,
    /// Nothing is taken any more.
    is_shut: bool,
    /// The daemon knows the attempt's token no more, for now or for good: the job is to hear it.
    is_unknown: bool,
    /// What went wrong was told.
    told: bool,
}

/// An attempt's spool, for as long as its task holds it.
pub(crate) struct Held {
    spools: Spools,
    spool: Arc<Spool>,
}

impl Deref for Held {
    type Target = Spool;

    fn deref(&self) -> &Spool {
        &self.spool
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The file stays: it may be that the agent stops, and the next one goes on with it.
        self.spools.attempts().retain(|other| other.epoch != self.spool.epoch);
        self.spool.over.send_replace(true);
    }
}

/// Listens for the jobs of this node. `None`: it cannot, and they are told the daemon's address.
pub(crate) async fn listen(
    root: &Path,
    limit: u64,
    has_jobs: bool,
    services: watch::Receiver<Option<Arc<Services>>>,
    connected: watch::Receiver<bool>,
) -> Option<(Spools, Threads)> {
    let made = async {
        let listener = bind(root, has_jobs).await?;
        let port = listener.local_addr()?.port();
        record::write(root, PORT, &port)?;
        let (serving, forwarding) = (threads("spool")?, threads("spool-forward")?);
        let spools = Spools(Arc::new(Shared {
            port,
            limit,
            runtime: forwarding.handle().clone(),
            services,
            connected,
            attempts: Mutex::default(),
            daemon: Mutex::default(),
        }));
        // A listener belongs to the runtime in which it was made.
        let listener = listener.into_std()?;
        let own = spools.clone();
        serving.spawn(async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => serve::serve(own, listener).await,
                Err(error) => tracing::error!(%error, "cannot serve what jobs log"),
            }
        });
        Ok::<_, io::Error>((spools, Threads([Some(serving), Some(forwarding)])))
    };
    match made.await {
        Ok(made) => Some(made),
        Err(error) => {
            tracing::warn!(%error, "jobs log to the daemon itself: nothing can listen for them on this node");
            None
        }
    }
}

/// At the port of the last agent, if it is to be had.
async fn bind(root: &Path, has_jobs: bool) -> io::Result<TcpListener> {
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(Some(port)) = record::read::<u16>(root, PORT) else {
        return TcpListener::bind(at(0)).await;
    };
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind(at(port)).await {
            Ok(listener) => return Ok(listener),
            Err(_) if has_jobs && tokio::time::Instant::now() < until => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                if has_jobs {
                    tracing::error!(
                        port, %error,
                        "another program listens where jobs of before log: what they log now fails"
                    );
                }
                return TcpListener::bind(at(0)).await;
            }
        }
    }
}

impl Spools {
    /// The port at which jobs log.
    pub(crate) fn port(&self) -> u16 {
        self.0.port
    }

    fn url(&self) -> String {
        format!("http://{}:{}", Ipv4Addr::LOCALHOST, self.0.port)
    }

    fn attempts(&self) -> MutexGuard<'_, Vec<Arc<Spool>>> {
        self.0.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets an attempt log, and goes on with what it has logged before.
    pub(crate) fn hold(&self, job: &str, epoch: u64, token: &str, folder: &Path) -> Held {
        let mut state = State::default();
        // The daemon lets an attempt log to its own run, and of others it is asked once.
        state.runs.extend(RunId::new(job));
        let spool = Arc::new(Spool {
            job: job.to_owned(),
            epoch,
            token: token.to_owned(),
            digest: blake3::hash(token.as_bytes()),
            path: folder.join(FILE),
            state: Mutex::new(state),
            sent: watch::Sender::new(0),
            work: Notify::new(),
            hurry: Notify::new(),
            over: watch::Sender::new(false),
            room: Semaphore::new(serve::BODIES_OF_ONE),
        });
        if spool.path.exists() {
            self.take_up(&spool);
        }
        self.attempts().push(spool.clone());
        Held { spools: self.clone(), spool }
    }

    fn take_up(&self, spool: &Arc<Spool>) {
        let mut state = spool.state();
        match spool.open(&mut state) {
            Ok(journal) if journal.unsent().is_some() => self.send(spool, &mut state),
            Ok(_) => {}
            Err(error) => {
                tracing::error!(
                    job = spool.job, epoch = spool.epoch, %error,
                    "cannot read what a job has logged before: points that the daemon does not have are lost"
                );
            }
        }
    }

    /// The attempt with this token.
    fn of(&self, token: &str) -> Option<Arc<Spool>> {
        // Digests are compared in a time that does not tell how much of them is the same.
        let digest = blake3::hash(token.as_bytes());
        self.attempts().iter().find(|spool| spool.digest == digest).cloned()
    }

    /// Writes points that an attempt logs. Whether they are written: else the daemon is to be asked.
    fn take(&self, spool: &Arc<Spool>, run: &RunId, points: &[Metric]) -> bool {
        let mut state = spool.state();
        if state.is_shut || state.is_unknown || !state.runs.contains(run) {
            return false;
        }
        let limit = self.0.limit;
        let written = spool.open(&mut state).and_then(|journal| {
            if journal.unsent_bytes() >= limit {
                return Ok(false);
            }
            journal.append(run.as_str(), points).map(|()| true)
        });
        match written {
            Ok(true) => {
                self.send(spool, &mut state);
                true
            }
            Ok(false) => false,
            Err(error) => {
                if !std::mem::replace(&mut state.told, true) {
                    let (job, epoch) = (&spool.job, spool.epoch);
                    tracing::warn!(job, epoch, %error, "cannot keep what a job logs: it waits for the daemon");
                }
                false
            }
        }
    }

    fn send(&self, spool: &Arc<Spool>, state: &mut State) {
        if !std::mem::replace(&mut state.is_sending, true) {
            self.0.runtime.spawn(forward::forward(self.clone(), spool.clone()));
        }
        spool.work.notify_one();
    }

    /// Waits until the session has stood for so long without a break.
    async fn connected_for(&self, time: Duration) {
        loop {
            self.connected().await;
            let mut connected = self.0.connected.clone();
            let broken = connected.wait_for(|connected| !*connected);
            if tokio::time::timeout(time, broken).await.is_err() {
                return;
            }
        }
    }

    /// Waits until the session stands.
    async fn connected(&self) {
        let mut connected = self.0.connected.clone();
        if connected.wait_for(|connected| *connected).await.is_err() {
            // The agent stops, and this with it.
            std::future::pending::<()>().await;
        }
    }
}

impl Spool {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open<'a>(&self, state: &'a mut State) -> io::Result<&'a mut Journal> {
        let opened = match state.journal.take() {
            Some(journal) => journal,
            None => {
                let journal = Journal::open(&self.path)?;
                self.sent.send_replace(journal.sent());
                journal
            }
        };
        Ok(state.journal.insert(opened))
    }

    fn unsent(&self) -> Option<Unsent> {
        self.state().journal.as_ref().and_then(Journal::unsent)
    }

    /// The number of the batch that is written next.
    fn next(&self) -> u64 {
        self.state().journal.as_ref().map_or(0, Journal::next)
    }

    fn forget(&self, batch: &Batch) {
        let mut state = self.state();
        let Some(journal) = state.journal.as_mut() else { return };
        let forgotten = journal.forget(batch);
        self.sent.send_replace(journal.sent());
        if let Err(error) = forgotten {
            // A new agent would send it again, which adds nothing.
            tracing::debug!(epoch = self.epoch, %error, "cannot note what of a spool was sent");
        }
    }

    /// The daemon lets the attempt log to this run.
    fn know(&self, run: RunId) {
        let mut state = self.state();
        if state.runs.len() < RUNS {
            state.runs.insert(run);
        }
    }

    /// The daemon is asked of each run anew.
    fn forget_runs(&self) {
        self.state().runs.clear();
    }

    fn is_known(&self, known: bool) {
        self.state().is_unknown = !known;
    }

    fn forget_run(&self, run: &str) {
        self.state().runs.retain(|known| known.as_str() != run);
    }

    /// Gives up what was not sent, and takes no more. How many batches these are.
    fn shut(&self) -> u64 {
        let mut state = self.state();
        state.is_shut = true;
        let lost = state.journal.as_mut().map_or(0, |journal| {
            let lost = journal.next() - journal.sent();
            // The file goes with the attempt's folder.
            let _ = journal.clear();
            lost
        });
        self.sent.send_replace(u64::MAX);
        lost
    }

    /// Waits until the daemon has what was logged before now, or does not know who logs.
    async fn settled(&self) {
        if !self.state().is_unknown {
            self.flushed().await;
        }
    }

    /// Waits until the daemon has what was logged before now.
    async fn flushed(&self) {
        let upto = self.next();
        self.hurry.notify_one();
        // The sender is this spool's own.
        let _ = self.sent.subscribe().wait_for(|sent| *sent >= upto).await;
    }
}

impl Held {
    /// Drops what the daemon does not have, of an attempt that it has given up.
    pub(crate) fn give_up(&self) {
        let lost = self.spool.shut();
        if lost > 0 {
            let (job, epoch) = (&self.spool.job, self.spool.epoch);
            tracing::warn!(
                job,
                epoch,
                lost,
                "an attempt was given up: batches of points that the daemon did not have are dropped"
            );
        }
    }

    /// Where the attempt logs.
    pub(crate) fn url(&self) -> String {
        self.spools.url()
    }

    /// Whether there are points that the daemon does not have.
    pub(crate) fn has_unsent(&self) -> bool {
        self.spool.unsent().is_some()
    }

    /// At the attempt's end: waits until the daemon has all that it has logged, however long that is away.
    pub(crate) async fn drain(&self) {
        // What comes from now on is the daemon's to answer.
        self.spool.state().is_shut = true;
        let mut sent = self.spool.sent.subscribe();
        loop {
            sent.mark_unchanged();
            tokio::select! {
                biased;
                () = self.spool.flushed() => break,
                // As long as it takes some of them it is waited for.
                _ = sent.changed() => {}
                () = self.spools.connected_for(UNTAKEN) => {
                    let (job, epoch, lost) = (&self.spool.job, self.spool.epoch, self.spool.shut());
                    tracing::error!(
                        job,
                        epoch,
                        lost,
                        "the daemon did not take what a job has logged: these batches of points are lost"
                    );
                    break;
                }
            }
        }
        let mut state = self.spool.state();
        if state.journal.take().is_some() {
            // A folder in which only records are may be used again.
            let _ = std::fs::remove_file(&self.spool.path);
        }
    }
}
