//! How long a folder's file system is waited for.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use atelier_core::id::DatastoreName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::blocking;
use crate::storage::Error;

/// How much is asked of a file system at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::storage) enum Step {
    /// A look, or some hundred kilobytes.
    Short,
    /// What takes longer the more there is: a listing, a deletion, or having it all on the disk.
    Long,
}

impl Step {
    /// How long it may take. That of a file server which is away takes for ever.
    pub(in crate::storage) const fn patience(self) -> Duration {
        match self {
            Self::Short => Duration::from_secs(30),
            Self::Long => Duration::from_secs(600),
        }
    }
}

/// Threads that wait for one folder of somebody's at most. Those of a server which is away wait for ever, and others'
/// datastores need some too.
const THREADS: usize = 16;

/// Waits for a folder's file system. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::storage) enum Pace {
    /// The workspace's own folders are on a disk of the daemon's machine: without it nothing goes on anyway.
    Own,
    /// A folder of somebody's, perhaps of another machine.
    Bounded(Arc<Bounded>),
}

/// A folder that is not waited for for ever.
#[derive(Debug)]
pub(in crate::storage) struct Bounded {
    name: DatastoreName,
    path: PathBuf,
    threads: Arc<Semaphore>,
    patience: fn(Step) -> Duration,
    /// When it last answered.
    heard: Mutex<Instant>,
}

impl Bounded {
    fn new(name: DatastoreName, path: PathBuf, patience: fn(Step) -> Duration) -> Self {
        let (threads, heard) = (Arc::new(Semaphore::new(THREADS)), Mutex::new(Instant::now()));
        Self { name, path, threads, patience, heard }
    }

    /// One of the threads. While the folder answers others this is a queue, however long.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, Error> {
        let mut turn = pin!(self.threads.clone().acquire_owned());
        let patience = (self.patience)(Step::Short);
        loop {
            match tokio::time::timeout(patience, &mut turn).await {
                Ok(Ok(turn)) => return Ok(turn),
                Err(_) if self.heard().elapsed() < patience => {}
                // Nobody closes it.
                Ok(Err(_)) | Err(_) => return Err(self.silent(Step::Short)),
            }
        }
    }

    fn heard(&self) -> MutexGuard<'_, Instant> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That nothing is heard of it.
    fn silent(&self, step: Step) -> Error {
        let problem = format!(
            "its folder {} has not answered for {} seconds; see whether its server is reached",
            self.path.display(),
            (self.patience)(step).as_secs()
        );
        Error::Away { datastore: self.name.clone(), problem }
    }
}

impl Pace {
    pub(in crate::storage) fn bounded(name: DatastoreName, path: PathBuf) -> Self {
        Self::Bounded(Arc::new(Bounded::new(name, path, Step::patience)))
    }

    /// Runs what waits for the file system on a thread for it.
    ///
    /// # Errors
    /// Those of the work; [`Error::Away`] if it takes too long. It may go on then, for as long as the file system
    /// takes.
    pub(in crate::storage) async fn run<T: Send + 'static>(
        &self,
        step: Step,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let Self::Bounded(folder) = self else { return blocking(work).await };
        let (turn, asked) = (folder.turn().await?, folder.clone());
        let in_turn = blocking(move || {
            // Kept until the file system has answered, however long ago somebody gave up.
            let _turn = turn;
            let done = work();
            *asked.heard() = Instant::now();
            done
        });
        tokio::time::timeout((folder.patience)(step), in_turn)
            .await
            .unwrap_or_else(|_| Err(folder.silent(step)))
    }

    /// Runs what nobody waits for: on this thread, or where that might take for ever on another.
    pub(super) fn leave(&self, work: impl FnOnce() + Send + 'static) {
        match (self, tokio::runtime::Handle::try_current()) {
            (Self::Bounded(_), Ok(runtime)) => {
                let pace = self.clone();
                runtime.spawn(async move {
                    let _ = pace
                        .run(Step::Long, || {
                            work();
                            Ok(())
                        })
                        .await;
                });
            }
            _ => work(),
        }
    }
}

/// Says, while it lives, that somebody waits.
#[derive(Debug)]
pub(super) struct Waits(Arc<AtomicBool>);

/// Whether somebody still waits.
#[derive(Clone, Debug)]
pub(super) struct Awaited(Arc<AtomicBool>);

impl Waits {
    pub(super) fn new() -> (Self, Awaited) {
        let flag = Arc::new(AtomicBool::new(true));
        (Self(Arc::clone(&flag)), Awaited(flag))
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Awaited {
    pub(super) fn still(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn one_that_does_not_answer_is_given_up_and_takes_no_more_threads() {
        let (name, path) = (DatastoreName::new("far").unwrap(), PathBuf::from("/mnt/far"));
        let pace = Pace::Bounded(Arc::new(Bounded::new(name, path, |_| Duration::from_secs(1))));
        let (began, begun) = mpsc::channel::<()>();
        let (answer, answers) = mpsc::channel::<()>();
        let answers = Arc::new(std::sync::Mutex::new(answers));
        let asked = (0..THREADS + 4).map(|_| {
            let (answers, began) = (answers.clone(), began.clone());
            pace.run(Step::Short, move || {
                began.send(()).unwrap();
                let _ = answers.lock().unwrap().recv();
                Ok(())
            })
        });
        for one in futures::future::join_all(asked).await {
            let error = one.unwrap_err().to_string();
            assert!(
                error.contains("'far'") && error.contains("/mnt/far has not answered"),
                "{error}"
            );
        }
        // What waited for its turn is not begun when nobody wants it any more.
        assert_eq!(begun.try_iter().count(), THREADS);
        drop(answer);
        assert_eq!(pace.run(Step::Short, || Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn one_that_answers_is_waited_for_in_a_queue() {
        let (name, path) = (DatastoreName::new("slow").unwrap(), PathBuf::from("/mnt/slow"));
        let pace = Pace::Bounded(Arc::new(Bounded::new(name, path, |_| Duration::from_secs(1))));
        // Each a while that is not too long, all together much longer.
        let asked = (0..THREADS * 4).map(|_| {
            pace.run(Step::Short, || {
                std::thread::sleep(Duration::from_millis(500));
                Ok(())
            })
        });
        for one in futures::future::join_all(asked).await {
            one.unwrap();
        }
    }

    #[test]
    fn who_waits_is_known() {
        let (waits, awaited) = Waits::new();
        assert!(awaited.still());
        drop(waits);
        assert!(!awaited.still());
    }
}
