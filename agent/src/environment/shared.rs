//! One build, however many ask for it.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{BuildLog, Error};

/// What a build has come to; `None` while it goes on.
type Outcome<T> = Option<Result<Arc<T>, Error>>;

/// Where a build writes its progress; everyone who waits for it reads it from the start.
#[derive(Clone, Debug)]
pub(crate) struct Reporter(watch::Sender<Vec<Arc<str>>>);

impl Reporter {
    pub(crate) fn line(&self, text: impl Into<Arc<str>>) {
        let text = text.into();
        self.0.send_modify(|lines| lines.push(text));
    }

    /// Writes for no build.
    pub(crate) fn detached() -> Self {
        Self(watch::Sender::default())
    }

    /// Moves what was written to a log.
    pub(crate) fn drain(&self, log: &dyn BuildLog) {
        let mut lines = Vec::new();
        self.0.send_modify(|written| lines = std::mem::take(written));
        for line in lines {
            log.line(&line);
        }
    }
}

#[derive(Debug)]
struct Running<T> {
    watched: Watched<T>,
    task: JoinHandle<()>,
    waiting: usize,
    /// Tells this build from a later one of the same key.
    number: u64,
}

/// What who waits for a build sees of it.
#[derive(Debug)]
struct Watched<T> {
    lines: watch::Receiver<Vec<Arc<str>>>,
    outcome: watch::Receiver<Outcome<T>>,
}

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Self {
        Self { lines: self.lines.clone(), outcome: self.outcome.clone() }
    }
}

/// Those going on, and how many there were.
type Known<T> = (HashMap<String, Running<T>>, u64);

/// The builds going on in this process, by key.
#[derive(Debug)]
pub(crate) struct Builds<T> {
    running: Mutex<Known<T>>,
}

impl<T> Default for Builds<T> {
    fn default() -> Self {
        Self { running: Mutex::default() }
    }
}

impl<T> Builds<T> {
    fn lock(&self) -> MutexGuard<'_, Known<T>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is being built.
    pub(super) fn keys(&self) -> HashSet<String> {
        self.lock().0.keys().cloned().collect()
    }

    /// Acts while nothing is built and nothing can begin to be; `None` if something is.
    pub(super) fn if_idle<R>(&self, act: impl FnOnce() -> R) -> Option<R> {
        let guard = self.lock();
        guard.0.is_empty().then(act)
    }

    fn forget(&self, key: &str, number: u64) {
        let mut guard = self.lock();
        if guard.0.get(key).is_some_and(|build| build.number == number) {
            guard.0.remove(key);
        }
    }
}

impl<T: Send + Sync + 'static> Builds<T> {
    /// Joins the build of `key`, or starts it, and waits for its end. A build whose last waiter
    /// goes away is stopped, and so is one that takes longer than the bound of who began it, whoever waits.
    pub(crate) async fn join<F>(
        self: &Arc<Self>,
        key: &str,
        log: &dyn BuildLog,
        start: impl FnOnce(Reporter) -> F,
    ) -> Result<Arc<T>, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let (Watched { mut lines, mut outcome }, _place) = self.attend(key, log.bound(), start);
        let mut shown = 0;
        loop {
            // Looked at before the lines, so that none is missed at the end.
            let ended = outcome.borrow_and_update().clone();
            {
                let lines = lines.borrow_and_update();
                for line in &lines[shown..] {
                    log.line(line);
                }
                shown = lines.len();
            }
            if let Some(ended) = ended {
                return ended;
            }
            let goes_on = tokio::select! {
                changed = outcome.changed() => changed.is_ok(),
                Ok(()) = lines.changed() => true,
            };
            if !goes_on {
                return Err(Error::Stopped);
            }
        }
    }

    fn attend<F>(
        self: &Arc<Self>,
        key: &str,
        bound: Option<Duration>,
        start: impl FnOnce(Reporter) -> F,
    ) -> (Watched<T>, Place<T>)
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut guard = self.lock();
        let (running, count) = &mut *guard;
        let mut place = Place { builds: Arc::clone(self), key: key.to_owned(), number: 0 };
        if let Some(build) = running.get_mut(key) {
            build.waiting += 1;
            place.number = build.number;
            return (build.watched.clone(), place);
        }
        *count += 1;
        place.number = *count;
        let (written, lines) = watch::channel(Vec::new());
        let (sender, outcome) = watch::channel(None);
        let build = start(Reporter(written));
        let builds = Arc::clone(self);
        let (owned_key, number) = (key.to_owned(), *count);
        let task = tokio::spawn(async move {
            let ended = match bound {
                Some(bound) => {
                    tokio::time::timeout(bound, build).await.unwrap_or(Err(Error::Slow { bound }))
                }
                None => build.await,
            };
            let ended = ended.map(Arc::new);
            builds.forget(&owned_key, number);
            sender.send_replace(Some(ended));
        });
        let watched = Watched { lines, outcome };
        let build = Running { watched: watched.clone(), task, waiting: 1, number: *count };
        running.insert(key.to_owned(), build);
        (watched, place)
    }
}

/// A waiter's place at a build.
struct Place<T> {
    builds: Arc<Builds<T>>,
    key: String,
    number: u64,
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        let mut guard = self.builds.lock();
        let Some(build) = guard.0.get_mut(&self.key).filter(|build| build.number == self.number)
        else {
            return;
        };
        build.waiting -= 1;
        if build.waiting == 0
            && let Some(build) = guard.0.remove(&self.key)
        {
            build.task.abort();
        }
    }
}
