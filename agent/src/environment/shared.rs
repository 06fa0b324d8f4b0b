//! One build, however many ask for it.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::build::Built;
use super::{BuildLog, Error};

/// What a build has come to.
#[derive(Default, Debug)]
struct State {
    lines: Vec<Arc<str>>,
    outcome: Option<Result<Arc<Built>, Error>>,
}

/// Where a build writes its progress; everyone who waits for it reads it from the start.
#[derive(Clone, Debug)]
pub(super) struct Reporter(watch::Sender<State>);

impl Reporter {
    pub(super) fn line(&self, text: impl Into<Arc<str>>) {
        let text = text.into();
        self.0.send_modify(|state| state.lines.push(text));
    }

    /// Writes for no build.
    pub(super) fn detached() -> Self {
        Self(watch::Sender::new(State::default()))
    }

    /// Moves what was written to a log.
    pub(super) fn drain(&self, log: &dyn BuildLog) {
        let mut lines = Vec::new();
        self.0.send_modify(|state| lines = std::mem::take(&mut state.lines));
        for line in lines {
            log.line(&line);
        }
    }
}

#[derive(Debug)]
struct Running {
    state: watch::Receiver<State>,
    task: JoinHandle<()>,
    waiting: usize,
    /// Tells this build from a later one of the same key.
    number: u64,
}

/// The builds going on in this process, by key.
#[derive(Default, Debug)]
pub(super) struct Builds {
    running: Mutex<(HashMap<String, Running>, u64)>,
}

impl Builds {
    fn lock(&self) -> MutexGuard<'_, (HashMap<String, Running>, u64)> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the build of `key`, or starts it, and waits for its end. A build whose last waiter
    /// goes away is stopped.
    pub(super) async fn join<F>(
        self: &Arc<Self>,
        key: &str,
        log: &dyn BuildLog,
        start: impl FnOnce(Reporter) -> F,
    ) -> Result<Arc<Built>, Error>
    where
        F: Future<Output = Result<Built, Error>> + Send + 'static,
    {
        let (mut state, _place) = self.attend(key, start);
        let mut shown = 0;
        loop {
            {
                let now = state.borrow_and_update();
                for line in &now.lines[shown..] {
                    log.line(line);
                }
                shown = now.lines.len();
                if let Some(outcome) = &now.outcome {
                    return outcome.clone();
                }
            }
            if state.changed().await.is_err() {
                return Err(Error::Stopped);
            }
        }
    }

    /// What is being built.
    pub(super) fn keys(&self) -> HashSet<String> {
        self.lock().0.keys().cloned().collect()
    }

    /// Acts while nothing is built and nothing can begin to be; `None` if something is.
    pub(super) fn if_idle<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let guard = self.lock();
        guard.0.is_empty().then(act)
    }

    fn attend<F>(
        self: &Arc<Self>,
        key: &str,
        start: impl FnOnce(Reporter) -> F,
    ) -> (watch::Receiver<State>, Place)
    where
        F: Future<Output = Result<Built, Error>> + Send + 'static,
    {
        let mut guard = self.lock();
        let (running, count) = &mut *guard;
        let mut place = Place { builds: Arc::clone(self), key: key.to_owned(), number: 0 };
        if let Some(build) = running.get_mut(key) {
            build.waiting += 1;
            place.number = build.number;
            return (build.state.clone(), place);
        }
        *count += 1;
        place.number = *count;
        let (sender, state) = watch::channel(State::default());
        let reporter = Reporter(sender.clone());
        let build = start(reporter);
        let builds = Arc::clone(self);
        let (owned_key, number) = (key.to_owned(), *count);
        let task = tokio::spawn(async move {
            let outcome = build.await.map(Arc::new);
            builds.forget(&owned_key, number);
            sender.send_modify(|state| state.outcome = Some(outcome));
        });
        let build = Running { state: state.clone(), task, waiting: 1, number: *count };
        running.insert(key.to_owned(), build);
        (state, place)
    }

    fn forget(&self, key: &str, number: u64) {
        let mut guard = self.lock();
        if guard.0.get(key).is_some_and(|build| build.number == number) {
            guard.0.remove(key);
        }
    }
}

/// A waiter's place at a build.
struct Place {
    builds: Arc<Builds>,
    key: String,
    number: u64,
}

impl Drop for Place {
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
