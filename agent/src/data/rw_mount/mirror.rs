//! Keeps what a job has closed where its next attempt would find it, while it runs.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Mirrored;
use super::below;
use super::ledger::Ledger;
use super::send::{Candidate, STILL, Sent, Writers, parts, send};
use super::watch::{Change, Watch};
use crate::data::error::{About, blocking};
use crate::data::{DataPlane, Error};

/// Files of one attempt sent at once.
const AT_ONCE: usize = 2;
/// After a file was closed: it may be opened again at once, and a short job's files are stored when it ends.
const QUIET: Duration = Duration::from_millis(500);
/// A file that was sent is not sent again before this, or so many times as long as the sending took.
const LEAST_REST: Duration = Duration::from_secs(2);
const REST: u32 = 10;
/// After something failed.
const PAUSE: Duration = Duration::from_secs(30);
/// For [`Mirroring::looks`].
pub(crate) const LOOKS: Duration = Duration::from_secs(60);
/// The same where events were lost.
const SOON: Duration = Duration::from_secs(5);
/// Files that wait to be sent at most; with more, everything is looked at again later.
const MOST: usize = 100_000;

/// An attempt's outputs that are mirrored.
#[derive(Clone)]
pub(crate) struct Mirroring {
    /// The folder of all outputs.
    pub(crate) folder: PathBuf,
    pub(crate) outputs: Vec<Mirrored>,
    pub(crate) ledger: Arc<Ledger>,
    /// The attempt's.
    pub(crate) token: String,
    /// Between two looks at everything, where not everything is watched.
    pub(crate) looks: Duration,
    /// The data plane as the daemon is reached now; `None` before it was.
    pub(crate) plane: Arc<dyn Fn() -> Option<DataPlane> + Send + Sync>,
}

impl fmt::Debug for Mirroring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirroring").field("outputs", &self.outputs).finish_non_exhaustive()
    }
}

impl Mirroring {
    fn output(&self, path: &str) -> Option<&Mirrored> {
        let (name, _) = parts(path);
        self.outputs.iter().find(|output| output.name == name)
    }

    async fn send(
        &self,
        root: &Arc<OwnedFd>,
        candidate: &Candidate,
        stop: &CancellationToken,
    ) -> Result<Sent, Error> {
        let Some(output) = self.output(&candidate.path) else { return Ok(Sent::Known) };
        let Some(plane) = (self.plane)() else { return Ok(Sent::Changing) };
        send(&plane, root, output, &self.ledger, candidate, &self.token, stop).await
    }

    /// Files that are there, and those that are stored and are not. Waits for the disk.
    fn look(&self, root: &OwnedFd) -> Vec<String> {
        let mut found: HashSet<String> = HashSet::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            // A folder that cannot be read now is left as it was stored.
            let level = below::level(root, &folder).unwrap_or_default();
            let wanted = |path: &String| self.output(path).is_some();
            folders.extend(level.folders.into_iter().filter(wanted));
            found.extend(level.files.into_iter().filter(wanted));
        }
        for output in &self.outputs {
            let below = self.ledger.below(&output.name).into_iter();
            found.extend(below.map(|below| super::path::join(&output.name, &below)));
        }
        found.into_iter().collect()
    }
}

/// Has all that a job left lie where its next attempt finds it. Its processes have ended.
///
/// # Errors
/// What could not be stored first. What is wrong with one file or one output is in no other's way; nothing more is
/// tried once the daemon or the store is away.
pub(crate) async fn settle(mirroring: &Mirroring) -> Result<(), Error> {
    let (root, paths) = {
        let mirroring = mirroring.clone();
        blocking(move || {
            let folder = &mirroring.folder;
            let root = below::root(folder).map_err(|error| Error::io("open", folder, error))?;
            let paths = mirroring.look(&root);
            Ok((Arc::new(root), paths))
        })
        .await?
    };
    let (root, never) = (&root, &CancellationToken::new());
    let mut all = Ok(());
    for output in &mirroring.outputs {
        let own = paths.iter().filter(|path| parts(path).0 == output.name);
        let mut sends = futures::stream::iter(own)
            .map(|path| async move {
                let candidate = Candidate { path: path.clone(), writers: Writers::Ended };
                mirroring.send(root, &candidate, never).await
            })
            .buffer_unordered(AT_ONCE);
        while let Some(sent) = sends.next().await {
            let Err(error) = sent else { continue };
            match error.about() {
                About::File => all = all.and(Err(error)),
                About::Datastore => {
                    all = all.and(Err(error));
                    break;
                }
                About::Moment => return Err(error),
            }
        }
    }
    all
}

/// Mirrors an attempt's outputs, until it is ended or dropped.
#[derive(Debug)]
pub(crate) struct Mirror {
    stop: oneshot::Sender<()>,
    task: AbortOnDropHandle<()>,
}

impl Mirror {
    pub(crate) fn start(mirroring: Mirroring) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            if let Err(error) = run(mirroring, stopped).await {
                tracing::warn!(%error, "outputs are stored when the job ends, and not before");
            }
        });
        Self { stop, task: AbortOnDropHandle::new(task) }
    }

    /// Begins nothing more, and waits for what is under way.
    pub(crate) async fn end(self) {
        let _ = self.stop.send(());
        // It ends by itself; a panic was told by the runtime.
        let _ = self.task.await;
    }
}

async fn run(mirroring: Mirroring, mut stop: oneshot::Receiver<()>) -> Result<(), Error> {
    let given = mirroring.clone();
    let opened = blocking(move || {
        let folder = &given.folder;
        let failed = |error| Error::io("watch", folder, error);
        Ok(Arc::new(below::root(folder).map_err(failed)?))
    });
    let root = opened.await?;
    let wanted: BTreeSet<String> =
        mirroring.outputs.iter().map(|output| output.name.clone()).collect();
    let watching = Watch::open(Arc::clone(&root), wanted);
    let mut watch = watching.map_err(|error| Error::io("watch", &mirroring.folder, error))?;
    let mut line = Line::default();
    let ending = CancellationToken::new();
    let mut sends: FuturesUnordered<BoxFuture<'_, Done>> = FuturesUnordered::new();
    // What was closed before it was watched.
    let mut look_at = Some(Instant::now());
    loop {
        if watch.is_blind() || line.is_full() {
            look_at = look_at.or_else(|| Some(Instant::now() + mirroring.looks));
        }
        while sends.len() < AT_ONCE
            && let Some(candidate) = line.take(Instant::now())
        {
            sends.push(one(&mirroring, &root, candidate, &ending).boxed());
        }
        let due = line.due().filter(|_| sends.len() < AT_ONCE);
        tokio::select! {
            biased;
            _ = &mut stop => break,
            changes = watch.next() => {
                let changes = changes.map_err(|error| Error::io("watch", &mirroring.folder, error))?;
                for change in changes {
                    if change == Change::Lost {
                        look_at = Some(Instant::now() + SOON);
                    }
                    line.note(change, &mirroring);
                }
            }
            Some(done) = sends.next(), if !sends.is_empty() => line.done(done),
            () = at(due) => {}
            () = at(look_at) => {
                look_at = None;
                let (given, root) = (mirroring.clone(), Arc::clone(&root));
                let paths = blocking(move || Ok(given.look(&root))).await?;
                for path in paths {
                    line.note(Change::Found(path), &mirroring);
                }
            }
        }
    }
    // What others' files are in the way of is not waited for.
    ending.cancel();
    while let Some(done) = sends.next().await {
        line.done(done);
    }
    Ok(())
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// How the sending of a file went.
struct Done {
    candidate: Candidate,
    took: Duration,
    result: Result<Sent, Error>,
}

async fn one(
    mirroring: &Mirroring,
    root: &Arc<OwnedFd>,
    candidate: Candidate,
    stop: &CancellationToken,
) -> Done {
    let began = Instant::now();
    let result = mirroring.send(root, &candidate, stop).await;
    Done { candidate, took: began.elapsed(), result }
}

/// Files that wait to be sent.
#[derive(Debug, Default)]
struct Line {
    /// When, and whether each is known to be closed.
    waiting: HashMap<String, (Instant, bool)>,
    order: BTreeSet<(Instant, String)>,
    /// Under way.
    sending: HashSet<String>,
    /// Not to be sent again before.
    resting: HashMap<String, Instant>,
    /// Outputs of which nothing more is worth a try.
    given_up: HashSet<String>,
    was_full: bool,
}

impl Line {
    fn is_full(&self) -> bool {
        self.was_full
    }

    fn note(&mut self, change: Change, mirroring: &Mirroring) {
        let now = Instant::now();
        match change {
            Change::Closed(path) => {
                let rested = self.resting.get(&path).copied();
                let when = (now + QUIET).max(rested.unwrap_or(now));
                self.put(path, when, true);
            }
            // Of one that was closed more is known.
            Change::Found(path) if self.waiting.contains_key(&path) => {}
            Change::Found(path) => self.put(path, now + QUIET, false),
            Change::Gone(path) => {
                let (name, below) = parts(&path);
                let inner = format!("{path}/");
                let stored = mirroring.ledger.within(name, below).into_iter();
                let stored = stored.map(|stored| super::path::join(name, &stored));
                let sending = self.sending.iter();
                let sending = sending.filter(|of| **of == path || of.starts_with(&inner));
                let all: Vec<String> = stored.chain(sending.cloned()).collect();
                for path in all {
                    self.put(path, now, true);
                }
            }
            Change::Lost => {}
        }
    }

    fn put(&mut self, path: String, when: Instant, closed: bool) {
        if self.given_up.contains(parts(&path).0) {
            return;
        }
        if self.waiting.len() >= MOST {
            self.was_full = true;
            return;
        }
        if let Some((before, _)) = self.waiting.insert(path.clone(), (when, closed)) {
            self.order.remove(&(before, path.clone()));
        }
        self.order.insert((when, path));
    }

    /// When the next is to be sent.
    fn due(&self) -> Option<Instant> {
        self.order.first().map(|(when, _)| *when)
    }

    /// The next whose time has come.
    fn take(&mut self, now: Instant) -> Option<Candidate> {
        loop {
            if self.due()? > now {
                return None;
            }
            let (_, path) = self.order.pop_first()?;
            let (_, closed) = self.waiting.remove(&path)?;
            if self.sending.contains(&path) {
                self.put(path, now + QUIET, closed);
                continue;
            }
            self.sending.insert(path.clone());
            self.was_full = self.was_full && !self.waiting.is_empty();
            let writers = if closed { Writers::Closed } else { Writers::Unknown };
            return Some(Candidate { path, writers });
        }
    }

    fn done(&mut self, Done { candidate, took, result }: Done) {
        let Candidate { path, writers } = candidate;
        self.sending.remove(&path);
        let error = match result {
            Ok(sent) => return self.sent(path, sent, took),
            Err(error) => error,
        };
        match error.about() {
            // What is wrong with it is told when the job ends.
            About::File => {
                tracing::debug!(path, %error, "a file of an output is not stored before the job ends");
            }
            // Or the daemon knows of no such thing.
            About::Datastore => {
                let (output, _) = parts(&path);
                if self.given_up.insert(output.to_owned()) {
                    tracing::warn!(output, %error, "an output is stored when the job ends, and not before");
                }
            }
            About::Moment => {
                tracing::debug!(path, %error, "a file of an output cannot be stored now");
                self.again(path, PAUSE, writers == Writers::Closed);
            }
        }
    }

    fn again(&mut self, path: String, pause: Duration, closed: bool) {
        if !self.waiting.contains_key(&path) {
            self.put(path, Instant::now() + pause, closed);
        }
    }

    fn sent(&mut self, path: String, sent: Sent, took: Duration) {
        let now = Instant::now();
        match sent {
            Sent::Stored => {
                self.resting.retain(|_, until| *until > now);
                self.resting.insert(path, now + LEAST_REST.max(took.saturating_mul(REST)));
            }
            Sent::Known | Sent::Removed => {}
            Sent::Changing => self.again(path, STILL, false),
            // That it is closed will be told, unless that is lost.
            Sent::Open => self.again(path, PAUSE, false),
        }
    }
}
