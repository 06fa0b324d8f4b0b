//! What the audit log is told besides changes: who was refused, and who read data through grants.
//!
//! Neither may slow down who is served, or fill the disk. So both are queued, and of what repeats itself within a while
//! the first is written at once and the others as one entry that counts them.

mod repeats;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use atelier_core::audit::{Actor, Change, Checkpoint, Draft, Entry};
use atelier_core::content::Digest;
use atelier_core::id::Principal;
use atelier_core::time::Timestamp;
use tokio::sync::Notify;

pub use self::repeats::Repeats;
use crate::store::audit::AuditQuery;
use crate::store::{self, SqliteStore};

/// For how long refusals of one caller at one place are one.
const REFUSALS: Duration = Duration::from_secs(600);
/// At most so many of them are told apart in that time; others are counted.
const REFUSED: usize = 200;
/// For how long uses of the same data by the same caller are one.
const USES: Duration = Duration::from_secs(3600);
/// At most so many of them are told apart in that time.
const USED: usize = 20_000;
/// How often it is looked whether their time is over.
const TICK: Duration = Duration::from_secs(10);
/// Entries that wait to be written.
const QUEUE: usize = 4096;
/// How much of a reason is kept.
const REASON: usize = 500;

/// The way to the audit log. Cheap to clone.
#[derive(Clone)]
pub struct AuditLog {
    store: Arc<SqliteStore>,
    waiting: Arc<Mutex<Vec<Draft>>>,
    wake: Arc<Notify>,
    refused: Arc<Mutex<Repeats>>,
    used: Arc<Mutex<Repeats>>,
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AuditLog {
    /// A log that writes to the store.
    pub fn new(store: Arc<SqliteStore>) -> Self {
        let refused = Arc::new(Mutex::new(Repeats::new(REFUSALS, REFUSED)));
        let used = Arc::new(Mutex::new(Repeats::new(USES, USED)));
        Self { store, waiting: Arc::default(), wake: Arc::default(), refused, used }
    }

    /// Tells of something that was done and left no record in the database. It is on disk when this returns.
    pub async fn note(&self, by: Actor, change: Change) -> Result<(), store::Error> {
        self.store.audit(vec![by.changes(change)]).await
    }

    /// Takes away the entries from before this time, see [`SqliteStore::prune_audit`].
    pub async fn prune(
        &self,
        by: Actor,
        before: Timestamp,
    ) -> Result<Option<(u64, Checkpoint)>, store::Error> {
        self.store.prune_audit(by, before).await
    }

    /// Tells of somebody who was refused, some time later.
    pub fn refused(&self, by: Actor, resource: &str, why: &str) {
        let mut change = Change::refused(resource.chars().take(REASON).collect::<String>(), why);
        change.refused = change.refused.map(|why| why.chars().take(REASON).collect());
        self.once(&self.refused, by.changes(change));
    }

    /// Tells of the use of data, some time later.
    pub fn used(&self, by: Actor, resource: String) {
        self.once(&self.used, by.changes(Change { resource, ..Change::default() }));
    }

    fn once(&self, repeats: &Mutex<Repeats>, draft: Draft) {
        let Some(draft) = locked(repeats).first(draft, Instant::now()) else { return };
        let has_room = {
            let mut waiting = locked(&self.waiting);
            let has_room = waiting.len() < QUEUE;
            waiting.extend(has_room.then_some(draft));
            has_room
        };
        match has_room {
            true => self.wake.notify_one(),
            false => locked(repeats).missed(),
        }
    }

    /// Writes what waits, for as long as the daemon runs.
    pub async fn run(self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let counted = tokio::select! {
                () = self.wake.notified() => Vec::new(),
                _ = tick.tick() => self.over(Instant::now()),
            };
            self.write(counted).await;
        }
    }

    /// Writes what waits and what has been counted so far, as a daemon that stops should.
    pub async fn finish(&self) {
        let refused = locked(&self.refused).all();
        let used = locked(&self.used).all();
        self.write(self.told(refused.into_iter().chain(used))).await;
    }

    fn over(&self, now: Instant) -> Vec<Draft> {
        // One lock at a time: what is told looks at both again.
        let refused = locked(&self.refused).over(now);
        let used = locked(&self.used).over(now);
        self.told(refused.into_iter().chain(used))
    }

    /// The daemon tells of those that were counted only.
    fn told(&self, drafts: impl IntoIterator<Item = Draft>) -> Vec<Draft> {
        let mut drafts: Vec<Draft> = drafts.into_iter().collect();
        for (what, repeats) in [("refusals", &self.refused), ("uses of data", &self.used)] {
            let count = locked(repeats).take_missed();
            if count > 0
                && let Ok(daemon) = Principal::new("daemon")
            {
                let why =
                    format!("{count} further {what} were not told apart: there were too many");
                let change = Change::refused("audit", why);
                drafts.push(Actor::daemon(daemon, "audit").changes(change));
            }
        }
        drafts
    }

    /// Writes these after what waits.
    async fn write(&self, counted: Vec<Draft>) {
        let mut drafts = std::mem::take(&mut *locked(&self.waiting));
        drafts.extend(counted);
        if drafts.is_empty() {
            return;
        }
        let count = drafts.len();
        if let Err(error) = self.store.audit(drafts).await {
            tracing::warn!(%error, count, "entries of the audit log could not be written");
        }
    }

    /// Entries, as the query says.
    pub fn list(&self, query: &AuditQuery) -> Result<Vec<Entry>, store::Error> {
        self.store.audited(query)
    }

    /// The number that the last entry was given, and the number and hash of the last that there is.
    pub fn head(&self) -> Result<(u64, u64, Digest), store::Error> {
        self.store.audit_head()
    }
}
