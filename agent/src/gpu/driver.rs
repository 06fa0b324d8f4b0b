//! Calls to a driver, which may never come back: they are made one after the other on a thread of their own,
//! and whoever waits for one gives up when nothing has come back for a while.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

type Call = Box<dyn FnOnce() + Send>;

/// Calls that wait for the thread at most: one of each attempt that ends, and what looks at devices each second.
const WAITING: usize = 256;

/// The thread; it ends with this, or when its call comes back.
pub(super) struct Driver {
    calls: mpsc::SyncSender<Call>,
    /// How many calls have come back.
    answered: watch::Receiver<u64>,
    /// After how many answers somebody last waited in vain.
    silent_after: AtomicU64,
    patience: Duration,
}

impl Driver {
    /// `patience`: how long one call may take.
    pub(super) fn new(patience: Duration) -> Self {
        let (calls, queue) = mpsc::sync_channel::<Call>(WAITING);
        let (tell, answered) = watch::channel(0);
        let work = move || {
            for call in queue {
                // Whoever waits for this one gets no answer; the others do.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
                tell.send_modify(|count| *count += 1);
            }
        };
        // Without a thread no call is answered.
        if let Err(error) = thread::Builder::new().name("gpu".to_owned()).spawn(work) {
            tracing::error!(%error, "cannot start the thread that talks to the GPUs' driver");
        }
        Self { calls, answered, silent_after: AtomicU64::new(u64::MAX), patience }
    }

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Changes with each call that comes back from now on.
    pub(super) fn answers(&self) -> watch::Receiver<u64> {
        let mut answered = self.answered.clone();
        answered.mark_unchanged();
        answered
    }

    /// Makes a call; `None` if the driver does not answer. What was asked of one that is known not to answer is
    /// not waited for.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let mut answered = self.answered.clone();
        let mut count = *answered.borrow_and_update();
        if count == self.silent_after.load(Ordering::Relaxed) {
            return None;
        }
        let (tell, mut told) = oneshot::channel();
        self.calls.try_send(Box::new(move || drop(tell.send(call())))).ok()?;
        loop {
            tokio::select! {
                biased;
                answer = &mut told => return answer.ok(),
                // Others' calls come first, and each may take its time.
                Ok(()) = answered.changed() => count = *answered.borrow_and_update(),
                () = tokio::time::sleep(self.patience) => {
                    self.silent_after.store(count, Ordering::Relaxed);
                    return None;
                }
            }
        }
    }

    /// The same for a thread that may stand still.
    pub(super) fn call_now<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (tell, told) = mpsc::sync_channel(1);
        self.calls.try_send(Box::new(move || drop(tell.send(call())))).ok()?;
        told.recv_timeout(self.patience).ok()
    }
}
