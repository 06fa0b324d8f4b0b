//! How many small objects are on their way at once.
//!
//! Where a store is far away, that is what counts. Each is a connection and an open file, here and, if it goes by way of
//! the daemon, there, where a port has so many for all nodes. So there is room for so many of each datastore, whatever
//! jobs they are for; of each, since one that does not answer must not keep the others waiting. Large objects are
//! bounded where they are given and taken.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Resource, getrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::direct::Way;

/// The longest object that is small: it is held in memory on its way. After a break it comes anew, while longer ones go
/// on where they were.
pub(super) const SMALL: u64 = 256 << 10;
/// Small objects of one datastore that are on their way at once, past the daemon and by way of it. As many of one input
/// or output are begun.
pub(super) const DIRECT: usize = 128;
pub(super) const RELAYED: usize = 48;
/// Large objects of one input or output at once.
pub(super) const LARGE: usize = 8;
/// Of the files that this process may have open, the share that one datastore's may take.
const SHARE: u64 = 8;

#[derive(Debug)]
pub(super) struct Rooms {
    direct: usize,
    relayed: usize,
    rooms: Mutex<HashMap<(String, bool), Arc<Semaphore>>>,
}

impl Rooms {
    /// For a process that may have as many files open as this one may now.
    pub(super) fn new() -> Self {
        Self::fitting(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
    }

    fn fitting(open_files: u64) -> Self {
        let fitting = |most: usize| {
            // A connection, and a file.
            let most_here = usize::try_from(open_files / SHARE / 2).unwrap_or(most);
            most_here.clamp(LARGE, most)
        };
        Self { direct: fitting(DIRECT), relayed: fitting(RELAYED), rooms: Mutex::default() }
    }

    /// Waits until there is room for a small object, which it has until the permit is dropped.
    pub(super) async fn take(&self, datastore: &str, way: &Way) -> Option<OwnedSemaphorePermit> {
        let (is_relayed, most) = match way {
            Way::Gateway => (true, self.relayed),
            Way::Direct(_) => (false, self.direct),
        };
        let room = {
            let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
            let room = rooms.entry((datastore.to_owned(), is_relayed));
            Arc::clone(room.or_insert_with(|| Arc::new(Semaphore::new(most))))
        };
        // It is never closed.
        room.acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn each_datastore_has_room_for_as_many_as_open_files_allow() {
        let direct = Way::Direct("http://store.example".into());
        let expected =
            [(u64::MAX, 128, 48), (4096, 128, 48), (1024, 64, 48), (256, 16, 16), (20, 8, 8)];
        for (files, past, relayed) in expected {
            let rooms = Rooms::fitting(files);
            for (way, most) in [(&direct, past), (&Way::Gateway, relayed)] {
                let take = |datastore| rooms.take(datastore, way).now_or_never().flatten();
                let taken: Vec<_> = (0..most).map(|_| take("a").unwrap()).collect();
                assert!(take("a").is_none(), "{files}");
                assert!(take("b").is_some(), "one that is full does not keep others waiting");
                drop(taken);
                assert!(take("a").is_some());
            }
        }
    }
}
