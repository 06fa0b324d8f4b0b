//! Runs, logged models and experiments that were deleted go for good when they cannot be restored any more.

use atelier_core::audit::Actor;
use atelier_core::id::DatastoreName;
use atelier_core::layout;
use atelier_core::retention::{Fate, Referrer, Rules};
use atelier_core::time::Timestamp;
use rusqlite::Connection;
use serde_json::json;

use super::{Error, Facts, JUDGED, Judged, Part, Retention};
use crate::store;
use crate::store::audit::Asked;
use crate::store::retention::{self as rows, Removal};
use crate::store::tracking::{self, DeletedModel, DeletedRun};

/// What goes in one transaction.
const TOGETHER: usize = 50;

/// What is found one after another.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Runs,
    Models,
}

/// One that was deleted.
pub(super) enum Deleted {
    Run(DeletedRun),
    Model(DeletedModel),
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::Runs, Self::Models];

    /// Those that were deleted by then, the earliest first, after a place.
    pub(super) fn deleted_by(
        self,
        conn: &Connection,
        by: Timestamp,
        after: Option<(Timestamp, i64)>,
        limit: usize,
    ) -> Result<Vec<Deleted>, store::Error> {
        Ok(match self {
            Self::Runs => {
                let runs = tracking::deleted_by(conn, by, after, limit)?;
                runs.into_iter().map(Deleted::Run).collect()
            }
            Self::Models => {
                let models = tracking::models_deleted_by(conn, by, after, limit)?;
                models.into_iter().map(Deleted::Model).collect()
            }
        })
    }
}

impl Deleted {
    /// As it is now, if it is deleted still.
    fn find(conn: &Connection, part: &Part) -> Result<Option<Self>, store::Error> {
        Ok(match part {
            Part::Run(id) => tracking::deleted_run(conn, id)?.map(Self::Run),
            Part::Model(id) => tracking::deleted_model(conn, id)?.map(Self::Model),
            Part::OfJob(..) => None,
        })
    }

    /// After which the next one comes.
    pub(super) const fn place(&self) -> (Timestamp, i64) {
        match self {
            Self::Run(run) => run.place(),
            Self::Model(model) => model.place(),
        }
    }

    fn part(&self) -> Part {
        match self {
            Self::Run(run) => Part::Run(run.id.clone()),
            Self::Model(model) => Part::Model(model.id.clone()),
        }
    }

    const fn bytes(&self) -> u64 {
        match self {
            Self::Run(run) => run.bytes,
            Self::Model(model) => model.bytes,
        }
    }

    /// What of its files goes with it, in the artifact store.
    fn files(&self) -> String {
        match self {
            Self::Run(run) => run.files(),
            Self::Model(model) => model.files(),
        }
    }

    /// What becomes of it.
    pub(super) fn judge(
        &self,
        conn: &Connection,
        rules: &Rules,
        facts: &Facts,
    ) -> Result<Judged, store::Error> {
        let (at, live_job) = match self {
            Self::Run(run) => (run.at, run.live_job.clone()),
            Self::Model(model) => (model.at, model.live_job.clone()),
        };
        let mut refers = live_job.map(Referrer::LiveJob);
        if refers.is_none()
            && let Ok(artifacts) = DatastoreName::new(layout::ARTIFACT_STORE)
        {
            let path = self.files();
            let live = || facts.live.user_of(&artifacts, &path).cloned().map(Referrer::LiveJob);
            refers = rows::asset_at(conn, &artifacts, &path)?.or_else(live);
        }
        let fate = rules.fate_of_deleted(at, refers, facts.now);
        Ok(Judged { part: self.part(), bytes: self.bytes(), fate })
    }

    fn removal(&self, artifacts: &DatastoreName) -> Removal {
        let why = match self {
            Self::Run(run) => {
                format!("run '{}' was deleted, and can be restored no longer", run.id)
            }
            Self::Model(model) => format!("logged model '{}' was deleted", model.id),
        };
        let (datastore, path) = (artifacts.clone(), self.files());
        Removal { seq: 0, datastore, path, except: Vec::new(), why }
    }

    /// Forgets it, or some of it; whether that was the last.
    fn forget(&self, conn: &Connection) -> Result<bool, store::Error> {
        match self {
            Self::Run(run) => tracking::forget_deleted(conn, run).map(|()| true),
            Self::Model(model) => tracking::forget_deleted_model(conn, model),
        }
    }

    /// What the audit log has of it.
    fn resource(&self) -> (String, &'static str) {
        match self {
            Self::Run(run) => (format!("run/{}", run.id), "run"),
            Self::Model(model) => (format!("logged-model/{}", model.id), "logged model"),
        }
    }
}

impl Retention {
    /// Has go what was deleted and cannot be restored any more.
    pub(super) async fn deleted_go(&self, rules: &Rules, by: &Actor) -> Result<Vec<Judged>, Error> {
        let mut gone = Vec::new();
        for kind in Kind::ALL {
            let mut place = None;
            loop {
                let now = self.clock.wall();
                let before = rules.deleted_before(now);
                // Only reading: there may be many that stay.
                let (last, due) = self.store.read(|conn| {
                    let some = kind.deleted_by(conn, before, place, JUDGED)?;
                    let facts = Facts { live: rows::live_places(conn)?, now };
                    let mut due = Vec::new();
                    for one in &some {
                        let goes = one.judge(conn, rules, &facts)?.fate == Fate::Goes;
                        due.extend(goes.then(|| one.part()));
                    }
                    Ok((some.last().map(Deleted::place), due))
                })?;
                for some in due.chunks(TOGETHER) {
                    let mut left = some.to_vec();
                    while !left.is_empty() {
                        let (some, more) =
                            self.let_deleted_go(rules.clone(), left, by.clone()).await?;
                        gone.extend(some);
                        left = more;
                    }
                }
                let Some(last) = last else { break };
                place = Some(last);
            }
        }
        let before = rules.deleted_before(self.clock.wall());
        if self.store.read(|conn| tracking::has_empty_experiments(conn, before))? {
            let forget = move |conn: &Asked<'_>| {
                for name in tracking::forget_experiments(conn, before)? {
                    conn.done(format!("experiment/{name}"), &json!({ "removed": "experiment" }));
                }
                Ok(())
            };
            self.store.change(by.clone(), forget).await?;
        }
        Ok(gone)
    }

    /// Has these go, as they are now: somebody may have restored one. Those that have gone, and those of which there
    /// is more.
    async fn let_deleted_go(
        &self,
        rules: Rules,
        due: Vec<Part>,
        by: Actor,
    ) -> Result<(Vec<Judged>, Vec<Part>), Error> {
        let _alone = (self.datastores.let_go().await, self.assets.let_go().await);
        let now = self.clock.wall();
        let artifacts = DatastoreName::new(layout::ARTIFACT_STORE)?;
        let gone = self.store.change(by, move |conn| {
            let facts = Facts { live: rows::live_places(conn)?, now };
            let (mut gone, mut more) = (Vec::new(), Vec::new());
            for part in due {
                // What is left of one is enough for the next time: others write, too.
                if !more.is_empty() {
                    more.push(part);
                    continue;
                }
                let Some(deleted) = Deleted::find(conn, &part)? else { continue };
                let judged = deleted.judge(conn, &rules, &facts)?;
                if judged.fate != Fate::Goes {
                    continue;
                }
                if !deleted.forget(conn)? {
                    more.push(part);
                    continue;
                }
                rows::enqueue(conn, &[deleted.removal(&artifacts)])?;
                let (resource, what) = deleted.resource();
                conn.done(resource, &json!({ "removed": what, "bytes": judged.bytes }));
                gone.push(judged);
            }
            Ok((gone, more))
        });
        Ok(gone.await?)
    }
}
