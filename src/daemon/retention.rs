//! Removing what jobs left, runs and logged models that were deleted, and what nobody refers to: on somebody's word, and by the workspace's rules.
//!
//! What is to go is a row before anything of it goes, so that a daemon that was killed goes on; nothing that is being
//! removed can be named by a job or an asset any more. The bytes go in the background, so many objects in a second.

mod deleted;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atelier_core::audit::Actor;
use atelier_core::datastore::Unnamed;
use atelier_core::id::{DatastoreName, InvalidName, JobName, Principal};
use atelier_core::job::Job;
use atelier_core::retention::{Fate, Place, Referrer, Refusal, Rules, Stay, What};
use atelier_core::time::Timestamp;
use atelier_core::track::{LoggedModelId, RunId};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::assets::Assets;
use super::clock::Clock;
use crate::storage::{self, Datastore, Datastores, ObjectPath, PAGE};
use crate::store::audit::Asked;
use crate::store::retention::{self as rows, LivePlaces, Removal, RulesRecord};
use crate::store::{self, SqliteStore};

/// A page of objects is removed in no less time than this.
const PACE: Duration = Duration::from_secs(1);
/// Between two looks at what the rules say, and after a removal that failed.
const PATROL: Duration = Duration::from_secs(3600);
const AGAIN: Duration = Duration::from_secs(60);
/// Jobs that are judged in one transaction.
const JUDGED: usize = 500;
/// How long somebody who deletes something waits for its bytes to go.
const SOON: Duration = Duration::from_secs(5);
/// Removals that did not remove all, of which it is known what.
const LEFT: usize = 100;

/// Keeps the rules and removes. Cheap to clone.
#[derive(Clone)]
pub struct Retention {
    store: Arc<SqliteStore>,
    datastores: Datastores,
    assets: Assets,
    clock: Clock,
    wake: Arc<Notify>,
    /// What the last removals left, for who waits for them.
    left: Arc<Mutex<VecDeque<Left>>>,
}

/// What stays where something was removed.
#[derive(Debug)]
struct Left {
    datastore: DatastoreName,
    path: String,
    unnamed: Unnamed,
}

/// Why something about rules or removing failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rules break a rule.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A name of the daemon's own.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

/// Something that may go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    /// Of what a finished job left.
    OfJob(JobName, What),
    /// A run that was deleted.
    Run(RunId),
    /// A logged model that was deleted, or whose experiment was.
    Model(LoggedModelId),
}

/// Something that may go, and what becomes of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Judged {
    /// What it is.
    pub part: Part,
    /// How much it is, in bytes.
    pub bytes: u64,
    /// What becomes of it.
    pub fate: Fate,
}

/// What is known of all that may go while some of it is judged.
struct Facts {
    live: LivePlaces,
    now: Timestamp,
}

impl Retention {
    pub(super) fn new(
        store: Arc<SqliteStore>,
        datastores: Datastores,
        assets: Assets,
        clock: Clock,
    ) -> Self {
        let (wake, left) = Default::default();
        Self { store, datastores, assets, clock, wake, left }
    }

    /// The rules, if there are any.
    pub fn rules(&self) -> Result<Option<RulesRecord>, Error> {
        Ok(self.store.read(rows::rules)?)
    }

    /// How much waits to be removed.
    pub fn pending(&self) -> Result<u64, Error> {
        Ok(self.store.read(rows::pending)?.0)
    }

    /// Sets the rules, in place of those that there were. They are on disk when this returns.
    pub async fn set(&self, rules: Rules, by: Actor) -> Result<RulesRecord, Error> {
        rules.check()?;
        let record = RulesRecord { rules, by: by.principal.clone(), at: self.clock.wall() };
        let kept = record.clone();
        let write = move |conn: &Asked<'_>| {
            let before = rows::rules(conn)?;
            rows::set_rules(conn, &kept)?;
            conn.changed("retention/rules", before.as_ref(), Some(&kept));
            Ok(())
        };
        self.store.change(by, write).await?;
        Ok(record)
    }

    fn rules_or_none(&self) -> Result<Rules, Error> {
        Ok(self.rules()?.map(|record| record.rules).unwrap_or_default())
    }

    /// What would become of what finished jobs left, and of what was deleted, if the rules were applied now; of what is
    /// younger than any rule says nothing is told.
    pub fn preview(&self) -> Result<Vec<Judged>, Error> {
        let rules = self.rules_or_none()?;
        let mut all = Vec::new();
        self.store.read(|conn| {
            let facts = Facts { live: rows::live_places(conn)?, now: self.clock.wall() };
            for kind in deleted::Kind::ALL {
                let (by, mut place) = (rules.deleted_before(facts.now), None);
                loop {
                    let some = kind.deleted_by(conn, by, place, JUDGED)?;
                    let Some(last) = some.last() else { break };
                    place = Some(last.place());
                    for one in &some {
                        all.push(one.judge(conn, &rules, &facts)?);
                    }
                }
            }
            let mut after = 0;
            while let Some(by) = rules.ended_before(facts.now) {
                let jobs = rows::ended_by(conn, &rules, by, after, JUDGED)?;
                let Some(last) = jobs.last() else { break };
                after = last.seq.0;
                for job in &jobs {
                    all.extend(judge(conn, &rules, job, &facts)?);
                }
            }
            Ok(())
        })?;
        all.retain(|judged| !matches!(judged.fate, Fate::Gone | Fate::Stays(Stay::NoRule)));
        Ok(all)
    }

    /// Has all go that the rules say, as somebody has `asked`; what that is.
    pub async fn apply(&self, asked: Actor) -> Result<Vec<Judged>, Error> {
        let rules = self.rules_or_none()?;
        let mut gone = self.deleted_go(&rules, &asked).await?;
        let mut after = 0;
        while let Some(by) = rules.ended_before(self.clock.wall()) {
            // Only reading: there may be many jobs of which nothing goes.
            let (last, due) = self.store.read(|conn| {
                let jobs = rows::ended_by(conn, &rules, by, after, JUDGED)?;
                let facts = Facts { live: rows::live_places(conn)?, now: self.clock.wall() };
                let mut due = Vec::new();
                for job in &jobs {
                    let judged = judge(conn, &rules, job, &facts)?;
                    due.extend(
                        judged.iter().any(|part| part.fate == Fate::Goes).then(|| job.name.clone()),
                    );
                }
                Ok((jobs.last().map(|job| job.seq.0), due))
            })?;
            if !due.is_empty() {
                gone.extend(self.let_go(rules.clone(), due, asked.clone()).await?);
            }
            let Some(last) = last else { break };
            after = last;
        }
        if !gone.is_empty() {
            tracing::info!(
                parts = gone.len(),
                "what finished jobs left and what was deleted goes, as the rules say"
            );
            self.wake();
        }
        Ok(gone)
    }

    /// The same, as nobody asks.
    async fn sweep(&self) -> Result<Vec<Judged>, Error> {
        let daemon = Principal::new("daemon")?;
        self.apply(Actor::daemon(daemon, "retention")).await
    }

    /// Has go what the rules still say of these jobs. Nobody makes an asset or submits a job meanwhile.
    async fn let_go(
        &self,
        rules: Rules,
        due: Vec<JobName>,
        by: Actor,
    ) -> Result<Vec<Judged>, Error> {
        let _alone = (self.datastores.let_go().await, self.assets.let_go().await);
        let now = self.clock.wall();
        let gone = self.store.change(by, move |conn| {
            let facts = Facts { live: rows::live_places(conn)?, now };
            let mut gone = Vec::new();
            for name in &due {
                let Some(job) = rows::ended(conn, name)? else { continue };
                let judged = judge(conn, &rules, &job, &facts)?;
                for goes in judged.into_iter().filter(|judged| judged.fate == Fate::Goes) {
                    let Part::OfJob(_, what) = goes.part else { continue };
                    rows::enqueue(conn, &removals(what, &job))?;
                    rows::mark(conn, name, what, now)?;
                    conn.done(
                        format!("job/{name}"),
                        &json!({ "removed": what.word(), "bytes": goes.bytes }),
                    );
                    gone.push(goes);
                }
            }
            Ok(gone)
        });
        Ok(gone.await?)
    }

    /// Who refers to what lies at a path, if somebody does; `own`: a job whose own outputs there do not count.
    pub fn referrer(
        &self,
        datastore: &DatastoreName,
        path: &str,
        own: Option<&JobName>,
    ) -> Result<Option<Referrer>, Error> {
        Ok(self.store.read(|conn| rows::referrer(conn, datastore, path, own))?)
    }

    /// Where jobs that are not over read and write.
    pub fn live_places(&self) -> Result<LivePlaces, Error> {
        Ok(self.store.read(rows::live_places)?)
    }

    /// Says that there is something to remove.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Has these go. They are on disk when this returns.
    pub async fn remove(&self, removals: Vec<Removal>) -> Result<(), Error> {
        self.store.write(move |conn| rows::enqueue(conn, &removals)).await?;
        self.wake();
        Ok(())
    }

    /// Waits a while until all that is to go now has gone; whether it has.
    pub async fn soon(&self) -> Result<bool, Error> {
        let (count, last) = self.store.read(rows::pending)?;
        let begun = Instant::now();
        let mut left = count;
        while left > 0 && begun.elapsed() < SOON {
            sleep(Duration::from_millis(20)).await;
            left = self.store.read(|conn| rows::pending_up_to(conn, last))?;
        }
        Ok(left == 0)
    }

    /// What stays at a path that was removed, in words: keys of its store that cannot be named.
    pub fn left(&self, datastore: &DatastoreName, path: &str) -> Option<String> {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let last = left.iter().rev().find(|left| left.datastore == *datastore && left.path == path);
        last.map(|left| format!("{}; the store's own tools remove that", left.unnamed))
    }

    /// Whoever it concerns may not wait: it is also logged.
    fn note_left(&self, removal: &Removal, unnamed: Unnamed) {
        let (datastore, path) = (removal.datastore.clone(), removal.path.clone());
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(|left| left.datastore != datastore || left.path != path);
        if unnamed.is_empty() {
            return;
        }
        tracing::warn!(%datastore, path, stays = %unnamed, "not all of it was removed: use the store's own tools");
        left.push_back(Left { datastore, path, unnamed });
        if left.len() > LEFT {
            left.pop_front();
        }
    }

    /// That nothing at a path is being removed; else why it is.
    pub fn being_removed(
        &self,
        datastore: &str,
        path: &str,
    ) -> Result<Option<String>, store::Error> {
        self.store.read(|conn| rows::being_removed(conn, datastore, path))
    }

    /// When what of a job was removed by the rules.
    pub fn removed(&self, job: &JobName) -> Result<BTreeMap<What, Timestamp>, store::Error> {
        self.store.read(|conn| rows::removed(conn, job))
    }

    /// Removes what is to go, and looks from time to time at what the rules say, until the end of the process: drop the
    /// future to stop it. Stopping it at any point is like a crash there.
    pub async fn run(&self) {
        let mut patrol = Instant::now();
        loop {
            if patrol <= Instant::now() {
                patrol = Instant::now() + PATROL;
                if let Err(error) = self.sweep().await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the retention rules were not applied"
                    );
                }
            }
            let failed = self.remove_due().await;
            let until =
                if failed { AGAIN } else { patrol.saturating_duration_since(Instant::now()) };
            let _ = timeout(until, self.wake.notified()).await;
        }
    }

    /// Removes all that is to go; whether some of it could not be. A datastore that is away, or refuses, is not asked
    /// again for all that lies in it.
    async fn remove_due(&self) -> bool {
        let (mut after, mut failed) = (0, false);
        let mut away = BTreeSet::new();
        loop {
            let due = self.store.read(|conn| rows::removals(conn, after, 1));
            let next = match due.map(|mut due| due.pop()) {
                Ok(Some(next)) => next,
                Ok(None) => return failed,
                Err(error) => {
                    tracing::warn!(%error, "what is to be removed cannot be read");
                    return true;
                }
            };
            after = next.seq;
            if away.contains(&next.datastore) {
                continue;
            }
            match self.remove_one(&next).await {
                Ok((objects, stays)) => {
                    self.note_left(&next, stays);
                    tracing::debug!(datastore = %next.datastore, path = next.path, objects, "removed");
                    let done = self.store.write(move |conn| rows::done(conn, after)).await;
                    failed |= done.is_err();
                }
                Err(error) => {
                    failed = true;
                    if matches!(error, storage::Error::Away { .. } | storage::Error::Denied { .. })
                    {
                        away.insert(next.datastore.clone());
                    }
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(datastore = %next.datastore, path = next.path, error, "cannot be removed, and is tried again");
                }
            }
        }
    }

    /// How many objects went, and what stays.
    async fn remove_one(&self, removal: &Removal) -> Result<(usize, Unnamed), storage::Error> {
        let datastore = match self.datastores.get(removal.datastore.as_str()) {
            // The rest of what is to go waits for it.
            Ok(datastore) => datastore.hasty(),
            // Deleted meanwhile: what lies there is not the workspace's any more.
            Err(storage::Error::UnknownDatastore(_)) => return Ok(Default::default()),
            Err(error) => return Err(error),
        };
        let root = ObjectPath::new(removal.path.trim_end_matches('/'))?;
        let (mut after, mut objects): (Option<ObjectPath>, usize) = (None, 0);
        let mut stays = Unnamed::default();
        loop {
            let begun = Instant::now();
            let last = after.as_ref().map(ObjectPath::as_str);
            let page = datastore.list(Some(&root), last, PAGE).await?;
            stays.merge(page.unnamed);
            for listed in &page.objects {
                let path = listed.path.as_str();
                let is_kept = |kept: &String| {
                    path.strip_prefix(kept.as_str()).is_some_and(|r| r.starts_with('/'))
                };
                if !removal.except.iter().any(is_kept) {
                    crate::failpoint::hit("object-removed");
                    delete(&datastore, &listed.path).await?;
                    objects += 1;
                }
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
            sleep(PACE.saturating_sub(begun.elapsed())).await;
        }
        if removal.except.is_empty() {
            // And what are only folders, and what has no name here and yet can be removed.
            stays = datastore.delete(&root).await?;
        } else if !stays.is_empty() {
            stays = unnamed_outside(&datastore, root, &removal.except).await?;
        }
        Ok((objects, stays))
    }
}

/// What no path names of all that lies below a folder and in none of those that are kept.
async fn unnamed_outside(
    datastore: &Datastore,
    root: ObjectPath,
    kept: &[String],
) -> Result<Unnamed, storage::Error> {
    let (mut unnamed, mut folders) = (Unnamed::default(), vec![root]);
    while let Some(folder) = folders.pop() {
        let below = format!("{folder}/");
        let is_whole = !kept.iter().any(|kept| kept.starts_with(&below));
        let mut after: Option<String> = None;
        loop {
            let next = if is_whole {
                let page = datastore.list(Some(&folder), after.as_deref(), PAGE).await?;
                unnamed.merge(page.unnamed);
                page.next.map(|next| next.to_string())
            } else {
                let level = datastore.level(Some(&folder), after.as_deref(), PAGE).await?;
                unnamed.merge(level.unnamed);
                let goes = |inner: &ObjectPath| !kept.iter().any(|kept| kept == inner.as_str());
                folders.extend(level.folders.into_iter().filter(goes));
                level.next
            };
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
    }
    Ok(unnamed)
}

/// An earlier try may have removed it, or whoever's file it is.
async fn delete(datastore: &Datastore, path: &ObjectPath) -> Result<(), storage::Error> {
    match datastore.delete_object(path).await {
        Err(storage::Error::NotFound(_)) => Ok(()),
        result => result,
    }
}

/// What becomes of all that a job left.
fn judge(
    conn: &rusqlite::Connection,
    rules: &Rules,
    job: &Job,
    facts: &Facts,
) -> Result<Vec<Judged>, store::Error> {
    let removed = rows::removed(conn, &job.name)?;
    let mut judged = Vec::new();
    for what in What::ALL {
        let mut refers = None;
        for place in what.places(job) {
            let Ok(datastore) = DatastoreName::new(place.datastore) else { continue };
            let live = || facts.live.user_of(&datastore, &place.path).cloned();
            if refers.is_none() {
                refers = rows::asset_at(conn, &datastore, &place.path)?;
            }
            refers = refers.or_else(|| live().map(Referrer::LiveJob));
        }
        let gone = removed.contains_key(&what);
        let fate = rules.fate(what, job, gone, refers, facts.now);
        let part = Part::OfJob(job.name.clone(), what);
        judged.push(Judged { part, bytes: what.bytes(job), fate });
    }
    Ok(judged)
}

fn removals(what: What, job: &Job) -> Vec<Removal> {
    let why = format!("the {} of job '{}' are kept no longer", what.word(), job.name);
    let removal = |place: Place| {
        let datastore = DatastoreName::new(place.datastore).ok()?;
        let (path, except) = (place.path, place.except);
        Some(Removal { seq: 0, datastore, path, except, why: why.clone() })
    };
    what.places(job).into_iter().filter_map(removal).collect()
}
