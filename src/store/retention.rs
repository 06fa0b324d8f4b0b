//! What is removed from datastores as rows: the rules, what waits to be removed, and what of which job was.
//!
//! A removal is written in one transaction with the reason for it, and its row goes when its bytes have: a daemon that
//! is killed goes on where it was.

use std::collections::BTreeMap;

use atelier_core::asset::Version;
use atelier_core::id::{DatastoreName, JobName, Principal};
use atelier_core::job::Job;
use atelier_core::layout;
use atelier_core::retention::{Referrer, Rules, What, overlap};
use atelier_core::spec::{CommandJob, DataUri, Input};
use atelier_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};

use super::jobs::{JOB_COLUMNS, column, job_of, json, parsed};
use super::{Error, assets, jobs};

pub(super) const MIGRATION: &str = "
CREATE TABLE retention (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    record TEXT NOT NULL                 -- JSON
) STRICT;
CREATE TABLE removals (
    seq       INTEGER PRIMARY KEY,
    datastore TEXT NOT NULL,
    path      TEXT NOT NULL,             -- the object, or the folder of all that goes
    kept      TEXT NOT NULL,             -- JSON: folders in it that stay
    why       TEXT NOT NULL
) STRICT;
CREATE TABLE removed (
    job  INTEGER NOT NULL REFERENCES jobs (seq),
    what TEXT NOT NULL,                  -- logs, outputs
    at   INTEGER NOT NULL,               -- ms since the epoch
    PRIMARY KEY (job, what)
) STRICT, WITHOUT ROWID;
";

/// Who names something asks each time whether it is being removed.
pub(super) const BY_PATH: &str = "CREATE INDEX removals_by_path ON removals (datastore, path)";

/// The rules, and whose they are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RulesRecord {
    /// What they say.
    pub rules: Rules,
    /// Who said so.
    pub by: Principal,
    /// When.
    pub at: Timestamp,
}

/// Something that is to be removed from a datastore.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Removal {
    /// Its number, once it is kept.
    pub seq: i64,
    /// The datastore.
    pub datastore: DatastoreName,
    /// The object, or the folder of all that goes.
    pub path: String,
    /// Folders in it that stay.
    pub except: Vec<String>,
    /// Why, for people.
    pub why: String,
}

fn sql(error: rusqlite::Error) -> Error {
    Error::sqlite("read what is removed", error)
}

/// The rules, if there are any.
pub fn rules(conn: &Connection) -> Result<Option<RulesRecord>, Error> {
    conn.prepare_cached("SELECT record FROM retention")
        .and_then(|mut s| s.query_row([], |row| column(row, 0)).optional())
        .map_err(sql)
}

/// Keeps the rules, in place of those that there were.
pub fn set_rules(conn: &Connection, record: &RulesRecord) -> Result<(), Error> {
    let record = json(record, "retention rules")?;
    conn.prepare_cached("INSERT OR REPLACE INTO retention (id, record) VALUES (1, ?1)")
        .and_then(|mut s| s.execute([record]))
        .map(drop)
        .map_err(|error| Error::sqlite("store the retention rules", error))
}

/// Keeps what is to be removed.
pub fn enqueue(conn: &Connection, removals: &[Removal]) -> Result<(), Error> {
    for Removal { datastore, path, except, why, .. } in removals {
        let except = json(except, "removal")?;
        conn.prepare_cached(
            "INSERT INTO removals (datastore, path, kept, why) VALUES (?1, ?2, ?3, ?4)",
        )
        .and_then(|mut s| s.execute(params![datastore.as_str(), path, except, why]))
        .map_err(|error| Error::sqlite("store what is to be removed", error))?;
    }
    Ok(())
}

/// Notes that something that a job left is removed.
pub fn mark(conn: &Connection, job: &JobName, what: What, at: Timestamp) -> Result<(), Error> {
    conn.prepare_cached(
        "INSERT OR IGNORE INTO removed (job, what, at) SELECT seq, ?2, ?3 FROM jobs WHERE name = ?1",
    )
    .and_then(|mut s| s.execute(params![job.as_str(), what.word(), at.as_millis()]))
    .map(drop)
    .map_err(|error| Error::sqlite("store what is removed", error))
}

/// When what of a job was removed.
pub fn removed(conn: &Connection, job: &JobName) -> Result<BTreeMap<What, Timestamp>, Error> {
    let found: Result<Vec<(String, i64)>, _> = conn
        .prepare_cached(
            "SELECT r.what, r.at FROM removed r JOIN jobs j ON j.seq = r.job WHERE j.name = ?1",
        )
        .and_then(|mut s| {
            s.query_map([job.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        });
    let known = |word: &str| What::ALL.into_iter().find(|what| what.word() == word);
    let found = found.map_err(sql)?.into_iter();
    Ok(found.filter_map(|(word, at)| Some((known(&word)?, Timestamp::from_millis(at)))).collect())
}

fn removal_of(row: &Row<'_>) -> rusqlite::Result<Removal> {
    Ok(Removal {
        seq: row.get(0)?,
        datastore: parsed(row, 1)?,
        path: row.get(2)?,
        except: column(row, 3)?,
        why: row.get(4)?,
    })
}

/// What is to be removed, after the one of this number: at most `limit`.
pub fn removals(conn: &Connection, after: i64, limit: usize) -> Result<Vec<Removal>, Error> {
    conn.prepare_cached(
        "SELECT seq, datastore, path, kept, why FROM removals WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )
    .and_then(|mut s| s.query_map(params![after, limit], removal_of)?.collect())
    .map_err(sql)
}

/// How much is to be removed, and the number of the last.
pub fn pending(conn: &Connection) -> Result<(u64, i64), Error> {
    conn.prepare_cached("SELECT count(*), coalesce(max(seq), 0) FROM removals")
        .and_then(|mut s| s.query_row([], |row| Ok((row.get(0)?, row.get(1)?))))
        .map_err(sql)
}

/// How much of what has at most this number is still to be removed.
pub fn pending_up_to(conn: &Connection, last: i64) -> Result<u64, Error> {
    conn.prepare_cached("SELECT count(*) FROM removals WHERE seq <= ?1")
        .and_then(|mut s| s.query_row([last], |row| row.get(0)))
        .map_err(sql)
}

/// Something is removed.
pub fn done(conn: &Connection, seq: i64) -> Result<(), Error> {
    conn.prepare_cached("DELETE FROM removals WHERE seq = ?1")
        .and_then(|mut s| s.execute([seq]))
        .map(drop)
        .map_err(|error| Error::sqlite("forget what is removed", error))
}

/// Nothing of a datastore is removed any more.
pub fn forget(conn: &Connection, datastore: &DatastoreName) -> Result<(), Error> {
    conn.prepare_cached("DELETE FROM removals WHERE datastore = ?1")
        .and_then(|mut s| s.execute([datastore.as_str()]))
        .map(drop)
        .map_err(|error| Error::sqlite("forget what is to be removed", error))
}

/// Why something at a path, or below it, or that it is below of, is being removed.
pub fn being_removed(
    conn: &Connection,
    datastore: &str,
    path: &str,
) -> Result<Option<String>, Error> {
    let path = path.trim_end_matches('/');
    let at_or_above = json(&at_or_above(path).collect::<Vec<_>>(), "path")?;
    // `0` comes right after `/`.
    let (below, past) = match path {
        "" => (String::new(), char::MAX.to_string()),
        path => (format!("{path}/"), format!("{path}0")),
    };
    let found: Result<Vec<(String, Vec<String>, String)>, _> = conn
        .prepare_cached(
            "SELECT path, kept, why FROM removals WHERE datastore = ?1
             AND (path IN (SELECT value FROM json_each(?2)) OR (path >= ?3 AND path < ?4))",
        )
        .and_then(|mut s| {
            let read = |row: &Row<'_>| Ok((row.get(0)?, column(row, 1)?, row.get(2)?));
            s.query_map([datastore, &at_or_above, &below, &past], read)?.collect()
        });
    let is_kept = |except: &[String]| {
        except.iter().any(|kept| path == kept || path.starts_with(&format!("{kept}/")))
    };
    let mut found = found.map_err(sql)?.into_iter();
    Ok(found.find(|(gone, except, _)| overlap(gone, path) && !is_kept(except)).map(|(.., why)| why))
}

/// A path, and all that it lies below.
fn at_or_above(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.char_indices().filter(|(_, c)| *c == '/');
    std::iter::once("").chain(ends.filter_map(|(at, _)| path.get(..at))).chain([path])
}

/// Jobs that ended by then of which not all that the rules speak of is removed: those after the one of this number, at most `limit`.
pub fn ended_by(
    conn: &Connection,
    rules: &Rules,
    by: Timestamp,
    after: u64,
    limit: usize,
) -> Result<Vec<Job>, Error> {
    let ruled = What::ALL.into_iter().filter(|what| rules.kept_s(*what).is_some());
    let ruled = json(&ruled.map(What::word).collect::<Vec<_>>(), "retention rules")?;
    conn.prepare_cached(&format!(
        "SELECT {JOB_COLUMNS} FROM jobs WHERE live = 0 AND json_extract(state, '$.ended.at') <= ?1
         AND seq > ?2 AND EXISTS (
             SELECT 1 FROM json_each(?4) WHERE value NOT IN (SELECT what FROM removed r WHERE r.job = seq)
         )
         ORDER BY seq LIMIT ?3"
    ))
    .and_then(|mut s| s.query_map(params![by.as_millis(), after, limit, ruled], job_of)?.collect())
    .map_err(sql)
}

/// A job that is over.
pub fn ended(conn: &Connection, name: &JobName) -> Result<Option<Job>, Error> {
    Ok(jobs::job(conn, name)?.filter(|job| job.ended().is_some()))
}

/// Where jobs that are not over read and write, each place once.
pub fn live_places(conn: &Connection) -> Result<LivePlaces, Error> {
    let mut places = LivePlaces::default();
    let mut read = || -> rusqlite::Result<()> {
        let mut statement = conn.prepare_cached("SELECT name, spec FROM jobs WHERE live = 1")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (job, spec): (JobName, CommandJob) = (parsed(row, 0)?, column(row, 1)?);
            for (datastore, path) in places_of(&spec) {
                let place = (datastore, path.trim_end_matches('/').to_owned());
                places.0.entry(place).or_insert_with(|| job.clone());
            }
        }
        Ok(())
    };
    read().map_err(sql)?;
    Ok(places)
}

/// Where a job reads and writes in datastores.
fn places_of(spec: &CommandJob) -> impl Iterator<Item = (DatastoreName, String)> {
    let inputs = spec.inputs.values().filter_map(|input| match input {
        Input::Data { uri: DataUri::Datastore { datastore, path }, .. } => {
            Some((datastore.clone(), path.clone()))
        }
        _ => None,
    });
    let place = |path: &Option<String>| layout::parse_datastore_uri(path.as_deref()?);
    inputs.chain(spec.outputs.values().filter_map(move |output| place(&output.path)))
}

/// Where jobs that are not over read and write.
#[derive(Debug, Default)]
pub struct LivePlaces(BTreeMap<(DatastoreName, String), JobName>);

impl LivePlaces {
    /// A job that uses something at the path, below it, or that it is below of.
    pub fn user_of(&self, datastore: &DatastoreName, path: &str) -> Option<&JobName> {
        let path = path.trim_end_matches('/');
        let key = |path: &str| (datastore.clone(), path.to_owned());
        let found = at_or_above(path).find_map(|above| self.0.get(&key(above)));
        found.or_else(|| {
            let below = self.0.range(key(&format!("{path}/"))..);
            let mut below = below.take_while(|((of, _), _)| of == datastore);
            below.next().filter(|((_, found), _)| overlap(found, path)).map(|(_, job)| job)
        })
    }
}

/// A version of data or a model that lies at the path, below it, or that it is below of.
pub fn asset_at(
    conn: &Connection,
    datastore: &DatastoreName,
    path: &str,
) -> Result<Option<Referrer>, Error> {
    let path = path.trim_end_matches('/');
    let mut found = assets::below(conn, datastore.as_str(), path, 1)?;
    if found.is_empty() {
        found = assets::above(conn, datastore.as_str(), path)?;
    }
    Ok(found.into_iter().next().map(|Version { name, version, form, .. }| Referrer::Asset {
        kind: form.asset_kind(),
        name,
        version,
    }))
}

/// Who refers to what lies at a path, if somebody does; `own`: a job whose own outputs there do not count.
pub fn referrer(
    conn: &Connection,
    datastore: &DatastoreName,
    path: &str,
    own: Option<&JobName>,
) -> Result<Option<Referrer>, Error> {
    if let Some(asset) = asset_at(conn, datastore, path)? {
        return Ok(Some(asset));
    }
    if let Some(job) = live_places(conn)?.user_of(datastore, path) {
        return Ok(Some(Referrer::LiveJob(job.clone())));
    }
    other_output(conn, own, datastore, path)
}

/// A job, other than `own`, that wrote at the path, below it, or at what it is below of. Looks at all jobs.
fn other_output(
    conn: &Connection,
    own: Option<&JobName>,
    datastore: &DatastoreName,
    path: &str,
) -> Result<Option<Referrer>, Error> {
    let find = || -> rusqlite::Result<Option<JobName>> {
        let mut statement = conn.prepare_cached(
            "SELECT name, spec FROM jobs WHERE name <> ?1 AND instr(spec, ?2) > 0",
        )?;
        let named = format!("datastores/{datastore}/paths/");
        let mut rows = statement.query([own.map_or("", JobName::as_str), &named])?;
        while let Some(row) = rows.next()? {
            let spec: CommandJob = column(row, 1)?;
            let place = |path: &Option<String>| layout::parse_datastore_uri(path.as_deref()?);
            let mut outputs = spec.outputs.values().filter_map(|output| place(&output.path));
            if outputs.any(|(of, at)| of == *datastore && overlap(&at, path)) {
                return parsed(row, 0).map(Some);
            }
        }
        Ok(None)
    };
    Ok(find().map_err(sql)?.map(Referrer::OutputOf))
}
