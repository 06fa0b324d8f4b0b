//! Looks at files and folders of the node that may lie on a file system that does not answer.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::watch;

/// The mode of what is there; `None`: nothing is, or nothing that this agent sees.
type Found = Option<u32>;
type Answer = watch::Receiver<Option<Found>>;

/// Each look has a thread of its own, and a place is looked at by one of them at a time: as many stand still as
/// there are places that do not answer, however many jobs ask. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Looks {
    look: fn(&Path) -> Found,
    latest: Arc<Mutex<BTreeMap<PathBuf, Answer>>>,
}

impl Default for Looks {
    fn default() -> Self {
        let look = |path: &Path| fs::metadata(path).ok().map(|found| found.mode());
        Self { look, latest: Arc::default() }
    }
}

impl Looks {
    /// What is at `path` now.
    ///
    /// # Errors
    /// It is not told within `patience`.
    pub(crate) async fn at(&self, path: &Path, patience: Duration) -> io::Result<Found> {
        let mut answer = self.ask(path)?;
        let answered = tokio::time::timeout(patience, answer.wait_for(Option::is_some)).await;
        let Ok(answered) = answered else {
            let told = format!(
                "{} has not answered for {} s: see to its file system, or take it off the agent's --writable",
                path.display(),
                patience.as_secs()
            );
            return Err(io::Error::new(io::ErrorKind::TimedOut, told));
        };
        Ok(answered.ok().and_then(|found| *found).flatten())
    }

    fn ask(&self, path: &Path) -> io::Result<Answer> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = |answer: &&Answer| answer.borrow().is_none() && answer.has_changed().is_ok();
        if let Some(answer) = latest.get(path).filter(goes_on) {
            return Ok(answer.clone());
        }
        let (tell, answer) = watch::channel(None);
        let (look, at) = (self.look, path.to_owned());
        thread::Builder::new().name("look".to_owned()).spawn(move || {
            let found = look(&at);
            let _ = tell.send(Some(found));
        })?;
        latest.insert(path.to_owned(), answer.clone());
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn what_is_there_is_seen_anew_each_time() {
        let (folder, looks) = (tempfile::tempdir().unwrap(), Looks::default());
        let path = folder.path().join("one");
        assert_eq!(looks.at(&path, PATIENCE).await.unwrap(), None);
        fs::create_dir(&path).unwrap();
        let mode = looks.at(&path, PATIENCE).await.unwrap().unwrap();
        assert_eq!(mode, fs::metadata(&path).unwrap().mode());
    }

    #[tokio::test]
    async fn a_place_that_does_not_answer_is_given_up_and_looked_at_by_one_thread() {
        static HANGS: AtomicBool = AtomicBool::new(true);
        static BEGUN: AtomicU32 = AtomicU32::new(0);
        let look = |path: &Path| {
            if path.ends_with("share") {
                BEGUN.fetch_add(1, Ordering::Relaxed);
                while HANGS.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            Some(0o40755)
        };
        let looks = Looks { look, latest: Arc::default() };
        let share = Path::new("/net/share");
        for _ in 0..3 {
            let late = looks.at(share, Duration::ZERO).await.unwrap_err();
            assert!(late.to_string().starts_with("/net/share has not answered for 0 s"), "{late}");
        }
        assert_eq!(looks.at(Path::new("/other"), PATIENCE).await.unwrap(), Some(0o40755));
        HANGS.store(false, Ordering::Relaxed);
        assert_eq!(looks.at(share, PATIENCE).await.unwrap(), Some(0o40755));
        assert_eq!(BEGUN.load(Ordering::Relaxed), 1);
    }
}
