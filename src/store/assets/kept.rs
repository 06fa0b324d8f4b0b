//! Data and models: registered by people, and by jobs that are completed.

use atelier_core::asset::{
    Asset, Change, Draft, Kind, MadeBy, Refusal, Registration, Unresolved, Version,
};
use atelier_core::audit::{Actor, Change as AuditChange};
use atelier_core::id::{
    AssetName, DatastoreName, JobName, LabelName, PortName, Principal, VersionName,
};
use atelier_core::job::{EventKind, Job};
use atelier_core::layout;
use atelier_core::spec::{AssetVersion, DataUri};
use atelier_core::time::Timestamp;
use rusqlite::{Connection, params};

use super::super::jobs::column;
use super::super::{IdempotencyKey, audit};
use super::requests::{self, Before};
use super::{Error, Record, asset, models, put, sql, uses, version};

impl Record for Version {
    fn kind(&self) -> Kind {
        Self::kind(self)
    }

    fn name(&self) -> &AssetName {
        &self.name
    }

    fn version(&self) -> &VersionName {
        &self.version
    }

    fn place(&self) -> Option<(&DatastoreName, &str)> {
        match &self.uri {
            DataUri::Datastore { datastore, path } => Some((datastore, path)),
            _ => None,
        }
    }

    fn job(&self) -> Option<&JobName> {
        self.made_by.as_ref().map(|made_by| &made_by.job)
    }
}

/// Makes a version, or finds the one that is made of the same and says anew what it is for.
pub fn register(
    conn: &Connection,
    draft: Draft,
    made_by: Option<MadeBy>,
    by: Principal,
    at: Timestamp,
) -> Result<Result<Version, Refusal>, Error> {
    let kind = draft.kind();
    let asked = draft.version.as_ref().map(VersionName::as_str);
    let known = asset(conn, kind, &draft.name, asked)?;
    let known = known.unwrap_or_else(|| Asset::new(kind, draft.name.clone()));
    let same: Option<Version> = match &draft.version {
        Some(asked) => version(conn, kind, &draft.name, asked)?,
        None => None,
    };
    let is_same = same.as_ref().map(|same| same.is_made_of(&draft));
    let made = match (known.register(draft.version.as_ref(), is_same), same) {
        (Err(refusal), _) => return Ok(Err(refusal)),
        (Ok(Registration::Known(_)), Some(same)) => same.said_again(draft),
        (Ok(Registration::New(version) | Registration::Known(version)), _) => {
            draft.made(version, made_by, by, at)
        }
    };
    put(conn, &made)?;
    models::made(conn, &made, at)?;
    Ok(Ok(made))
}

/// The same for a request with a key: one that comes again gets what it made, whatever was made since.
pub fn register_once(
    conn: &Connection,
    draft: Draft,
    made_by: Option<MadeBy>,
    (by, key): (Principal, &IdempotencyKey),
    at: Timestamp,
) -> Result<Result<Version, Refusal>, Error> {
    match requests::before(conn, &by, key)? {
        Some(Before::Made(version)) => return Ok(Ok(*version)),
        Some(Before::OfAnother(version)) => {
            let (kind, Version { name, version, .. }) = (version.kind(), *version);
            return Ok(Err(Refusal::KeyReused { kind, name, version }));
        }
        None => {}
    }
    let registered = register(conn, draft, made_by, by.clone(), at)?;
    if let Ok(made) = &registered {
        requests::remember(conn, &by, key, made)?;
    }
    Ok(registered)
}

/// Registers what an output of a completed job is to be, and says what that came to.
pub(in crate::store) fn register_output(
    conn: &Connection,
    job: &Job,
    output: &PortName,
    at: Timestamp,
) -> Result<EventKind, Error> {
    let refused = |problem: String| EventKind::AssetRefused { output: output.clone(), problem };
    let draft = match draft_of(job, output) {
        Ok(draft) => draft,
        Err(problem) => return Ok(refused(problem)),
    };
    let asset = draft.kind();
    let made_by = MadeBy { job: job.name.clone(), output: output.to_string() };
    let registered = register(conn, draft, Some(made_by), job.created_by.clone(), at)?;
    if let Ok(made) = &registered {
        // It was asked for with the job.
        let by = Actor::daemon(job.created_by.clone(), format!("output of job {}", job.name));
        let change = AuditChange::new(super::resource(made), None, Some(made));
        audit::append(conn, [by.changes(change)])?;
    }
    crate::failpoint::hit("asset-registered");
    Ok(match registered {
        Ok(Version { name, version, .. }) => {
            EventKind::AssetRegistered { output: output.clone(), asset, name, version }
        }
        Err(refusal) => refused(refusal.to_string()),
    })
}

/// What a job says of an output that is to become an asset.
fn draft_of(job: &Job, output: &PortName) -> Result<Draft, String> {
    let declared = job.spec.outputs.get(output).ok_or("the job has no such output")?;
    // Jobs of earlier builds were not checked.
    let name = AssetName::new(declared.asset_name.as_deref().unwrap_or_default());
    let version = declared.asset_version.as_deref().map(VersionName::new).transpose();
    let place = declared.path.as_deref().and_then(layout::parse_datastore_uri);
    let (datastore, path) = place.ok_or("it does not lie in a datastore")?;
    Ok(Draft {
        name: name.map_err(|wrong| wrong.to_string())?,
        version: version.map_err(|wrong| wrong.to_string())?,
        description: None,
        tags: [].into(),
        properties: [].into(),
        form: declared.kind,
        uri: DataUri::Datastore { datastore, path },
        flavors: [].into(),
        stage: None,
    })
}

/// Changes what may change of a version.
pub fn change(
    conn: &Connection,
    kind: Kind,
    name: &AssetName,
    which: &AssetVersion,
    change: &Change,
    at: Timestamp,
) -> Result<Result<Version, Refusal>, Error> {
    let (known, found) = match find::<Version>(conn, kind, name, which)? {
        Ok(found) => found,
        Err(refusal) => return Ok(Err(refusal)),
    };
    for label in &change.labels {
        if let Err(refusal) = known.may_label(label) {
            return Ok(Err(refusal));
        }
    }
    let changed = found.changed(change);
    put(conn, &changed)?;
    if change.description.is_some() || change.stage.is_some() {
        models::made(conn, &changed, at)?;
    }
    label(conn, &changed, &change.labels, &change.unlabel)?;
    Ok(Ok(changed))
}

/// Has labels point to a version, and to no other, and others point to it no longer.
pub fn label<T: Record>(
    conn: &Connection,
    version: &T,
    labels: &[LabelName],
    unlabel: &[LabelName],
) -> Result<(), Error> {
    let key = (version.kind().word(), version.name().as_str(), version.version().as_str());
    let write = || -> rusqlite::Result<()> {
        for label in unlabel {
            conn.prepare_cached(
                "DELETE FROM asset_labels WHERE label = ?4 AND version = (
                     SELECT v.seq FROM asset_versions v JOIN assets a ON a.id = v.asset
                     WHERE a.kind = ?1 AND a.name = ?2 AND v.version = ?3)",
            )?
            .execute(params![key.0, key.1, key.2, label.as_str()])?;
        }
        for label in labels {
            conn.prepare_cached(
                "INSERT OR REPLACE INTO asset_labels (asset, label, version)
                 SELECT a.id, ?4, v.seq FROM asset_versions v JOIN assets a ON a.id = v.asset
                 WHERE a.kind = ?1 AND a.name = ?2 AND v.version = ?3",
            )?
            .execute(params![key.0, key.1, key.2, label.as_str()])?;
        }
        Ok(())
    };
    write().map_err(|error| Error::sqlite("label an asset", error))
}

/// Forgets a version, unless jobs that are not over use it. Its name is not given again; what it was made of
/// stays where it lies.
pub fn delete<T: Record>(
    conn: &Connection,
    kind: Kind,
    name: &AssetName,
    which: &AssetVersion,
) -> Result<Result<T, Refusal>, Error> {
    let (_, found) = match find::<T>(conn, kind, name, which)? {
        Ok(found) => found,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let (name, version) = (found.name().clone(), found.version().clone());
    let jobs = uses::live_users(conn, kind, &name, &version)?;
    if !jobs.is_empty() {
        return Ok(Err(Refusal::InUse { kind, name, version, jobs }));
    }
    let key = params![kind.word(), name.as_str(), version.as_str()];
    let write = || -> rusqlite::Result<()> {
        conn.prepare_cached(
            "DELETE FROM asset_labels WHERE version = (
                 SELECT v.seq FROM asset_versions v JOIN assets a ON a.id = v.asset
                 WHERE a.kind = ?1 AND a.name = ?2 AND v.version = ?3)",
        )?
        .execute(key)?;
        conn.prepare_cached(
            "UPDATE asset_versions SET deleted = 1 WHERE version = ?3
             AND asset = (SELECT id FROM assets WHERE kind = ?1 AND name = ?2)",
        )?
        .execute(key)?;
        Ok(())
    };
    write().map_err(|error| Error::sqlite("delete an asset", error))?;
    Ok(Ok(found))
}

type Found<T> = Result<(Asset, T), Refusal>;

/// An asset, and the version of it that is meant.
pub fn find<T: Record>(
    conn: &Connection,
    kind: Kind,
    name: &AssetName,
    which: &AssetVersion,
) -> Result<Found<T>, Error> {
    let missing = || Refusal::from(Unresolved::no_such(kind, name.as_str(), []));
    let Some(known) = asset(conn, kind, name, which.exact())? else { return Ok(Err(missing())) };
    let found = match known.resolve(which) {
        Ok(found) => version(conn, kind, name, found)?,
        Err(unresolved) => return Ok(Err(unresolved.into())),
    };
    Ok(found.map(|found| (known, found)).ok_or_else(missing))
}

/// The versions that a job's outputs became, in the order in which they were made.
pub fn of_job(conn: &Connection, job: &JobName) -> Result<Vec<Version>, Error> {
    conn.prepare_cached(
        "SELECT record FROM asset_versions WHERE job = ?1 AND deleted = 0 ORDER BY seq",
    )
    .and_then(|mut s| s.query_map([job.as_str()], |row| column(row, 0))?.collect())
    .map_err(sql)
}

/// Versions that lie in a datastore: at most `limit`.
pub fn within(conn: &Connection, datastore: &str, limit: usize) -> Result<Vec<Version>, Error> {
    conn.prepare_cached(
        "SELECT record FROM asset_versions WHERE datastore = ?1 AND path IS NOT NULL AND deleted = 0
         ORDER BY seq LIMIT ?2",
    )
    .and_then(|mut s| s.query_map(params![datastore, limit], |row| column(row, 0))?.collect())
    .map_err(sql)
}

/// Versions that a path of a datastore lies below of: of each folder one.
pub fn above(conn: &Connection, datastore: &str, path: &str) -> Result<Vec<Version>, Error> {
    let ends = path.char_indices().filter(|(_, c)| *c == '/').map(|(at, _)| at);
    let mut found = Vec::new();
    for folder in std::iter::once("").chain(ends.filter_map(|at| path.get(..at))) {
        let at: Result<Vec<Version>, _> = conn
            .prepare_cached(
                "SELECT record FROM asset_versions WHERE datastore = ?1 AND deleted = 0
                 AND path IN (?2, ?2 || '/') LIMIT 1",
            )
            .and_then(|mut s| s.query_map([datastore, folder], |row| column(row, 0))?.collect());
        found.extend(at.map_err(sql)?);
    }
    Ok(found)
}

/// Versions that lie at or below a folder of a datastore: at most `limit`.
pub fn below(
    conn: &Connection,
    datastore: &str,
    folder: &str,
    limit: usize,
) -> Result<Vec<Version>, Error> {
    // The character after '/' ends the range of what lies below.
    conn.prepare_cached(
        "SELECT record FROM asset_versions WHERE datastore = ?1 AND path IS NOT NULL AND deleted = 0
         AND (path = ?2 OR (path >= ?2 || '/' AND path < ?2 || '0')) ORDER BY seq LIMIT ?3",
    )
    .and_then(|mut s| {
        s.query_map(params![datastore, folder, limit], |row| column(row, 0))?.collect()
    })
    .map_err(sql)
}
