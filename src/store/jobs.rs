//! Jobs, events, nodes and tokens as rows.

use std::sync::Arc;

use atelier_core::access::Role;
use atelier_core::content::Digest;
use atelier_core::id::{
    AttemptNumber, ComputeName, Epoch, EventSeq, JobName, NodeName, Principal, SubmitSeq,
};
use atelier_core::job::{Event, EventKind, Job, JobStatus, Outcome, State};
use atelier_core::live::{Counters, Restored};
use atelier_core::time::Timestamp;
use rusqlite::types::{Type, ValueRef};
use rusqlite::{Connection, OptionalExtension as _, Row, ToSql, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{
    Archived, Batch, Error, JobQuery, Known, Lookup, Past, Recovered, Taken, TokenRecord, assets,
};

/// Whether a job still holds or wants something.
pub fn is_live(job: &Job) -> bool {
    !matches!(job.state, State::Ended(_))
}

pub(super) fn json(value: &impl Serialize, what: &str) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|source| Error::Damaged { what: what.to_owned(), source })
}

/// Reads a JSON column; a damaged one is an error of the row, never a panic.
pub(super) fn column<T: DeserializeOwned>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(index)?.as_str()?;
    serde_json::from_str(text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(e)))
}

/// Reads a column whose type checks itself (names and statuses).
pub(super) fn parsed<T>(row: &Row<'_>, index: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text = row.get_ref(index)?.as_str()?;
    text.parse()
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(e)))
}

pub(super) fn write(conn: &Connection, batch: &Batch) -> Result<(), Error> {
    let sql = |e| Error::sqlite("write jobs and events", e);
    if !batch.submitted.is_empty() {
        let mut insert = conn
            .prepare_cached(
                "INSERT INTO jobs (seq, name, experiment, status, live, archived, compute,
                                   created_by, created_at, spec, state, tries)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )
            .map_err(sql)?;
        let mut remember = conn
            .prepare_cached(
                "INSERT INTO idempotency (principal, key, fingerprint, job) VALUES (?1, ?2, ?3, ?4)",
            )
            .map_err(sql)?;
        for submitted in &batch.submitted {
            let Some(job) = batch.changed.get(&submitted.job) else { continue };
            insert
                .execute(params![
                    job.seq.0,
                    job.name.as_str(),
                    job.spec.experiment_name.as_str(),
                    job.status().as_str(),
                    is_live(job),
                    job.archived,
                    job.compute.as_str(),
                    job.created_by.as_str(),
                    job.created_at.as_millis(),
                    json(&job.spec, "job specification")?,
                    json(&job.state, "job state")?,
                    json(&job.tries, "job tries")?,
                ])
                .map_err(sql)?;
            assets::record(conn, job)?;
            if let Some(key) = &submitted.key {
                remember
                    .execute(params![
                        job.created_by.as_str(),
                        key.key,
                        key.fingerprint.as_bytes(),
                        job.name.as_str()
                    ])
                    .map_err(sql)?;
            }
        }
    }
    if batch.changed.len() > batch.submitted.len() {
        let mut update = conn
            .prepare_cached(
                "UPDATE jobs SET status = ?2, live = ?3, archived = ?4, state = ?5, tries = ?6
                 WHERE seq = ?1",
            )
            .map_err(sql)?;
        let new: std::collections::HashSet<&JobName> =
            batch.submitted.iter().map(|s| &s.job).collect();
        for job in batch.changed.values().filter(|job| !new.contains(&job.name)) {
            update
                .execute(params![
                    job.seq.0,
                    job.status().as_str(),
                    is_live(job),
                    job.archived,
                    json(&job.state, "job state")?,
                    json(&job.tries, "job tries")?,
                ])
                .map_err(sql)?;
        }
    }
    if !batch.events.is_empty() {
        let mut append = conn
            .prepare_cached(
                "INSERT INTO events (seq, job, at, attempt, principal, status, kind)
                 VALUES (?1, coalesce(?2, (SELECT seq FROM jobs WHERE name = ?8)),
                         ?3, ?4, ?5, ?6, ?7)",
            )
            .map_err(sql)?;
        for event in &batch.events {
            let job = batch.changed.get(&event.job);
            let kind = match (&event.kind, job) {
                (EventKind::AssetRegistering { output }, Some(job)) => {
                    &assets::register_output(conn, job, output, event.at)?
                }
                (kind, _) => kind,
            };
            append
                .execute(params![
                    event.seq.0,
                    job.map(|job| job.seq.0),
                    event.at.as_millis(),
                    event.attempt.0,
                    event.principal.as_str(),
                    event.status.as_str(),
                    json(kind, "event")?,
                    event.job.as_str(),
                ])
                .map_err(sql)?;
        }
    }
    for node in &batch.nodes {
        put(conn, "INSERT OR REPLACE INTO nodes VALUES (?1, ?2)", node.name.as_str(), node)?;
    }
    for (name, record) in &batch.computes {
        put(conn, "INSERT OR REPLACE INTO computes VALUES (?1, ?2)", name.as_str(), record)?;
    }
    for (node, instance) in &batch.instances {
        put(conn, "INSERT OR REPLACE INTO instances VALUES (?1, ?2)", node.as_str(), instance)?;
    }
    let nodes = batch.nodes_gone.iter().map(NodeName::as_str);
    let computes = batch.computes_gone.iter().map(ComputeName::as_str);
    let instances = batch.instances_gone.iter().map(NodeName::as_str);
    let gone = nodes
        .map(|name| ("DELETE FROM nodes WHERE name = ?1", name))
        .chain(computes.map(|name| ("DELETE FROM computes WHERE name = ?1", name)))
        .chain(instances.map(|name| ("DELETE FROM instances WHERE node = ?1", name)));
    for (statement, name) in gone {
        conn.prepare_cached(statement).and_then(|mut s| s.execute([name])).map_err(sql)?;
    }
    for name in &batch.deleted {
        assets::forget(conn, name)?;
        for statement in [
            "DELETE FROM idempotency WHERE job = ?1",
            "DELETE FROM removed WHERE job = (SELECT seq FROM jobs WHERE name = ?1 AND live = 0)",
            "DELETE FROM events WHERE job = (SELECT seq FROM jobs WHERE name = ?1 AND live = 0)",
            "DELETE FROM jobs WHERE name = ?1 AND live = 0",
        ] {
            conn.prepare_cached(statement)
                .and_then(|mut s| s.execute([name.as_str()]))
                .map_err(sql)?;
        }
    }
    if batch.hold_over {
        conn.execute("DELETE FROM counters WHERE name = ?1", [HELD]).map_err(sql)?;
    }
    for run in &batch.runs {
        run.apply(conn)?;
    }
    if let Some(counters) = batch.counters {
        let mut set =
            conn.prepare_cached("UPDATE counters SET value = ?2 WHERE name = ?1").map_err(sql)?;
        for (name, value) in
            [("epoch", counters.epoch.0), ("seq", counters.seq.0), ("event", counters.event.0)]
        {
            set.execute(params![name, value]).map_err(sql)?;
        }
    }
    Ok(())
}

pub(super) const JOB_COLUMNS: &str =
    "seq, name, compute, created_by, created_at, archived, spec, state, tries";

pub(super) fn job_of(row: &Row<'_>) -> rusqlite::Result<Job> {
    Ok(Job {
        seq: SubmitSeq(row.get(0)?),
        name: parsed(row, 1)?,
        compute: parsed(row, 2)?,
        created_by: parsed(row, 3)?,
        created_at: Timestamp::from_millis(row.get(4)?),
        archived: row.get(5)?,
        spec: Arc::new(column(row, 6)?),
        state: column(row, 7)?,
        tries: column(row, 8)?,
    })
}

fn event_of(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        seq: EventSeq(row.get(0)?),
        job: parsed(row, 1)?,
        at: Timestamp::from_millis(row.get(2)?),
        attempt: AttemptNumber(row.get(3)?),
        principal: parsed(row, 4)?,
        status: parsed(row, 5)?,
        kind: column(row, 6)?,
    })
}

pub(super) fn job(conn: &Connection, name: &JobName) -> Result<Option<Job>, Error> {
    conn.prepare_cached(&format!("SELECT {JOB_COLUMNS} FROM jobs WHERE name = ?1"))
        .and_then(|mut s| s.query_row([name.as_str()], job_of).optional())
        .map_err(|e| Error::sqlite("read a job", e))
}

pub(super) fn list(conn: &Connection, query: &JobQuery) -> Result<Vec<Job>, Error> {
    let mut sql = format!("SELECT {JOB_COLUMNS} FROM jobs WHERE seq < ?1");
    let before = query.before.unwrap_or(u64::MAX).min(i64::MAX as u64);
    let mut values: Vec<Box<dyn ToSql>> = vec![Box::new(before)];
    match query.archived {
        Archived::Without => sql.push_str(" AND archived = 0"),
        Archived::With => {}
        Archived::Only => sql.push_str(" AND archived = 1"),
    }
    if let Some(experiment) = &query.experiment {
        values.push(Box::new(experiment.as_str().to_owned()));
        sql.push_str(&format!(" AND experiment = ?{}", values.len()));
    }
    if !query.statuses.is_empty() {
        let first = values.len() + 1;
        values.extend(query.statuses.iter().map(|s| Box::new(s.as_str()) as Box<dyn ToSql>));
        let marks: Vec<String> = (first..=values.len()).map(|i| format!("?{i}")).collect();
        sql.push_str(&format!(" AND status IN ({})", marks.join(", ")));
    }
    values.push(Box::new(query.limit));
    sql.push_str(&format!(" ORDER BY seq DESC LIMIT ?{}", values.len()));
    conn.prepare_cached(&sql)
        .and_then(|mut s| {
            let values = rusqlite::params_from_iter(values);
            s.query_map(values, job_of)?.collect()
        })
        .map_err(|e| Error::sqlite("list jobs", e))
}

pub(super) fn past(
    conn: &Connection,
    compute: &ComputeName,
    limit: usize,
) -> Result<Vec<Past>, Error> {
    /// What of a specification is of use here.
    #[derive(Deserialize)]
    struct Ran {
        command: String,
    }
    // A job is Starting from its placement on.
    let sql = "SELECT spec, state,
                   (SELECT max(at) FROM events e WHERE e.job = j.seq AND e.status = ?3)
               FROM jobs j WHERE live = 0 AND compute = ?1 ORDER BY seq DESC LIMIT ?2";
    let one = |row: &Row<'_>| -> rusqlite::Result<Option<Past>> {
        let State::Ended(ended) = column(row, 1)? else { return Ok(None) };
        let placed = row.get::<_, Option<i64>>(2)?.map(Timestamp::from_millis);
        let since =
            ended.left.started_at.map(|started| placed.map_or(started, |at| at.min(started)));
        let Some(since) = since else { return Ok(None) };
        let Ran { command } = column(row, 0)?;
        let completed = matches!(ended.outcome, Outcome::Completed);
        Ok(Some(Past {
            command,
            ms: ended.at.millis_since(since).unsigned_abs(),
            peak_memory: ended.left.usage.filter(|_| completed).map(|usage| usage.peak_memory),
        }))
    };
    conn.prepare_cached(sql)
        .and_then(|mut s| {
            let values = params![compute.as_str(), limit, JobStatus::Starting.as_str()];
            let rows = s.query_map(values, one)?.filter_map(Result::transpose);
            rows.collect()
        })
        .map_err(|e| Error::sqlite("read how long jobs took", e))
}

pub(super) fn recover(conn: &Connection) -> Result<Recovered, Error> {
    let sql = |e| Error::sqlite("read what is alive", e);
    let jobs = conn
        .prepare(&format!("SELECT {JOB_COLUMNS} FROM jobs WHERE live = 1 ORDER BY seq"))
        .and_then(|mut s| s.query_map([], job_of)?.collect())
        .map_err(sql)?;
    let nodes = records(conn, "SELECT record FROM nodes ORDER BY name")?;
    let computes = records(conn, "SELECT record FROM computes ORDER BY name")?;
    let instances = records(conn, "SELECT record FROM instances ORDER BY node")?;
    let counter = |name: &str| -> Result<u64, Error> {
        conn.query_row("SELECT value FROM counters WHERE name = ?1", [name], |row| row.get(0))
            .map_err(sql)
    };
    let counters = Counters {
        epoch: Epoch(counter("epoch")?),
        seq: SubmitSeq(counter("seq")?),
        event: EventSeq(counter("event")?),
    };
    let kept = |name: &str| -> Result<Option<u64>, Error> {
        conn.query_row("SELECT value FROM counters WHERE name = ?1", [name], |row| row.get(0))
            .optional()
            .map_err(sql)
    };
    let restored =
        Restored { fence: Epoch(kept(FENCE)?.unwrap_or_default()), holds: kept(HELD)?.is_some() };
    Ok(Recovered { jobs, nodes, computes, instances, counters, restored })
}

/// Rows of the counters that only a restored database has: see [`Restored`].
const FENCE: &str = "fence";
const HELD: &str = "held";

/// Makes a copy that was put back what a daemon may start on, whatever its nodes did since it was made. The numbers
/// of that time are left out, those of events too: who follows them asks for what comes after the last one.
pub(super) fn fence(conn: &Connection, now: Timestamp) -> Result<(), Error> {
    // One that was made while the one before held jobs back knows no attempts since that one's fence.
    let fence = "
        INSERT OR REPLACE INTO counters SELECT 'fence', value FROM counters
            WHERE name = 'epoch' AND NOT EXISTS (SELECT 1 FROM counters WHERE name = 'held');
        INSERT OR REPLACE INTO counters VALUES ('held', 1);";
    let further = |name: &str| {
        let of = "SELECT value FROM counters WHERE name = ?1";
        let last: u64 = conn.query_row(of, [name], |row| row.get(0))?;
        let set = "UPDATE counters SET value = ?2 WHERE name = ?1";
        conn.execute(set, params![name, Restored::left_out(last, now)])
    };
    conn.execute_batch(fence)
        .and_then(|()| further("epoch"))
        .and_then(|_| further("event"))
        .map(drop)
        .map_err(|error| Error::sqlite("set a restored database apart", error))
}

/// Rows that are one JSON column each.
fn records<T: DeserializeOwned>(conn: &Connection, statement: &str) -> Result<Vec<T>, Error> {
    conn.prepare(statement)
        .and_then(|mut s| s.query_map([], |row| column(row, 0))?.collect())
        .map_err(|e| Error::sqlite("read what is alive", e))
}

/// Writes a row of a name and its JSON.
fn put(
    conn: &Connection,
    statement: &str,
    name: &str,
    record: &impl Serialize,
) -> Result<(), Error> {
    conn.prepare_cached(statement)
        .and_then(|mut s| {
            let record = serde_json::to_string(record)
                .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
            s.execute(params![name, record])
        })
        .map(drop)
        .map_err(|e| Error::sqlite("write decisions", e))
}

pub(super) fn look_up(conn: &Connection, submissions: &[Lookup<'_>]) -> Result<Vec<Known>, Error> {
    let sql = |e| Error::sqlite("look submissions up", e);
    // One transaction for all: a reader forgets its pages whenever it begins and there was a write.
    let all = conn.unchecked_transaction().map_err(sql)?;
    let known = submissions.iter().map(|submission| look_one_up(&all, submission)).collect();
    all.commit().map_err(sql)?;
    known
}

fn look_one_up(conn: &Connection, submission: &Lookup<'_>) -> Result<Known, Error> {
    // One statement: every one takes and gives back a lock on the database. Every job has a run of
    // its name, so the runs are all that need be asked.
    let ask = |row: &Row<'_>| -> rusqlite::Result<Known> {
        let first = match row.get_ref(0)? {
            ValueRef::Null => None,
            _ => {
                let bytes: [u8; 32] = row.get(1)?;
                Some((parsed(row, 0)?, Digest::from_bytes(bytes)))
            }
        };
        let taken = match row.get::<_, Option<bool>>(2)? {
            None => None,
            Some(true) => Some(Taken::ByJob),
            Some(false) => Some(Taken::ByRun),
        };
        Ok(Known { first, taken, experiment_deleted: row.get(3)? })
    };
    conn.prepare_cached(
        // No LEFT JOIN: with one, SQLite compiles the statement anew for every set of values.
        "SELECT (SELECT job FROM idempotency WHERE principal = ?1 AND key = ?2),
             (SELECT fingerprint FROM idempotency WHERE principal = ?1 AND key = ?2),
             (SELECT coalesce(job = id, 0) FROM runs WHERE id = ?3),
             EXISTS (SELECT 1 FROM experiments WHERE name = ?4 AND deleted)",
    )
    .and_then(|mut s| {
        let Lookup { principal, key, name, experiment } = submission;
        s.query_row(params![principal.as_str(), key, name.as_str(), experiment.as_str()], ask)
    })
    .map_err(|e| Error::sqlite("look a submission up", e))
}

pub(super) fn events(
    conn: &Connection,
    job: Option<&JobName>,
    after: u64,
    limit: usize,
) -> Result<Vec<Event>, Error> {
    const COLUMNS: &str = "e.seq, j.name, e.at, e.attempt, e.principal, e.status, e.kind";
    let after = after.min(i64::MAX as u64);
    let read = || -> rusqlite::Result<Vec<Event>> {
        match job {
            Some(job) => conn
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM jobs j JOIN events e ON e.job = j.seq
                     WHERE j.name = ?1 AND e.seq > ?2 ORDER BY e.seq LIMIT ?3"
                ))?
                .query_map(params![job.as_str(), after, limit], event_of)?
                .collect(),
            None => conn
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM events e JOIN jobs j ON j.seq = e.job
                     WHERE e.seq > ?1 ORDER BY e.seq LIMIT ?2"
                ))?
                .query_map(params![after, limit], event_of)?
                .collect(),
        }
    };
    read().map_err(|e| Error::sqlite("read events", e))
}

pub(super) fn forget_tokens(conn: &Connection, hashes: &[Digest]) -> Result<(), Error> {
    let sql = |e| Error::sqlite("forget tokens", e);
    let mut forget = conn.prepare_cached("DELETE FROM tokens WHERE hash = ?1").map_err(sql)?;
    for hash in hashes {
        forget.execute([hash.as_bytes()]).map_err(sql)?;
    }
    Ok(())
}

pub(super) fn put_token(conn: &Connection, token: &TokenRecord) -> Result<(), Error> {
    let role = json(&token.role, "role")?;
    conn.prepare_cached(
        "INSERT INTO tokens
             (hash, principal, role, created_at, created_by, expires_at, last_used_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )
    .and_then(|mut s| {
        s.execute(params![
            token.hash.as_bytes(),
            token.principal.as_str(),
            role,
            token.created_at.as_millis(),
            token.created_by.as_ref().map(Principal::as_str),
            token.expires_at.map(Timestamp::as_millis),
            token.last_used_at.map(Timestamp::as_millis),
        ])
    })
    .map(drop)
    .map_err(|e| Error::sqlite("store a token", e))
}

pub(super) fn tokens(conn: &Connection) -> Result<Vec<TokenRecord>, Error> {
    let columns = "hash, principal, role, created_at, created_by, expires_at, last_used_at";
    conn.prepare(&format!("SELECT {columns} FROM tokens"))
        .and_then(|mut s| {
            s.query_map([], |row| {
                let bytes: [u8; 32] = row.get(0)?;
                let role: Role = column(row, 2)?;
                let at = |millis: Option<i64>| millis.map(Timestamp::from_millis);
                let created_by = match row.get::<_, Option<String>>(4)? {
                    Some(_) => Some(parsed(row, 4)?),
                    None => None,
                };
                Ok(TokenRecord {
                    hash: Digest::from_bytes(bytes),
                    principal: parsed(row, 1)?,
                    role,
                    created_at: Timestamp::from_millis(row.get(3)?),
                    created_by,
                    expires_at: at(row.get(5)?),
                    last_used_at: at(row.get(6)?),
                })
            })?
            .collect()
        })
        .map_err(|e| Error::sqlite("read tokens", e))
}
