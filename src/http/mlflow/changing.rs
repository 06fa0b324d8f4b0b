//! Who changes the files of a run or model: what is being deleted is not written meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// The folders whose files are being written or deleted, by their paths in the artifact store. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Changing(Arc<Mutex<HashMap<String, Weak<RwLock<()>>>>>);

impl Changing {
    /// Keeps files of a folder from being deleted, until it is dropped.
    pub(super) async fn write(&self, root: String) -> OwnedRwLockReadGuard<()> {
        self.of(root).read_owned().await
    }

    /// Waits until nobody writes to a folder, and keeps others from it, until it is dropped.
    pub(super) async fn delete(&self, root: String) -> OwnedRwLockWriteGuard<()> {
        self.of(root).write_owned().await
    }

    fn of(&self, root: String) -> Arc<RwLock<()>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = known.get(&root).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        known.insert(root, Arc::downgrade(&lock));
        lock
    }
}
