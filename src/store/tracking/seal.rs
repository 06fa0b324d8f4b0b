//! What sealing asks of the rows.

use std::ops::Range;

use atelier_core::track::{RunId, StoredMetric};
use rusqlite::{Connection, params};

use super::super::Error;
use super::read;

fn sql(source: rusqlite::Error) -> Error {
    Error::sqlite("read metrics to seal", source)
}

fn runs(conn: &Connection, query: &str, limit: usize) -> Result<Vec<RunId>, Error> {
    conn.prepare_cached(query)
        .and_then(|mut s| s.query_map([limit], |row| read::run_id(row, 0))?.collect())
        .map_err(sql)
}

/// Runs with enough points to seal, oldest first: those that have ended, then those at work with very many. Of a run at
/// work the file grows by an eighth at least each time, so that a long run's points are not written over and over.
pub fn to_seal(conn: &Connection, limit: usize) -> Result<Vec<RunId>, Error> {
    let mut found = runs(
        conn,
        "SELECT id FROM runs INDEXED BY runs_to_seal
         WHERE hot >= 32 AND status IN ('FINISHED', 'FAILED', 'KILLED') ORDER BY seq LIMIT ?1",
        limit,
    )?;
    found.extend(runs(
        conn,
        "SELECT r.id FROM runs r INDEXED BY runs_with_many LEFT JOIN sealed_metrics s ON s.run = r.seq
         WHERE r.hot >= 262144 AND r.status NOT IN ('FINISHED', 'FAILED', 'KILLED')
             AND r.hot >= coalesce(s.points, 0) / 8 ORDER BY r.seq LIMIT ?1",
        limit - found.len(),
    )?);
    Ok(found)
}

/// Runs whose sealed rows are not all removed yet.
pub fn to_purge(conn: &Connection, limit: usize) -> Result<Vec<RunId>, Error> {
    runs(
        conn,
        "SELECT r.id FROM sealed_metrics s JOIN runs r ON r.seq = s.run
         WHERE s.purged = 0 ORDER BY s.run LIMIT ?1",
        limit,
    )
}

/// Some of a run's hot points, in the order of storage.
pub type HotPage = Vec<StoredMetric>;

/// Hot points of the generations after `generations.start` up to and with `generations.end` that
/// come after `after`, at most `limit`. Rows of a generation that sealing has begun on never
/// change, so pages read one after another fit together.
pub fn hot_page(
    conn: &Connection,
    run: &RunId,
    generations: &Range<i64>,
    after: Option<&StoredMetric>,
    limit: usize,
) -> Result<HotPage, Error> {
    let row = read::row(conn, run)?;
    let first = StoredMetric {
        key: String::new(),
        step: i64::MIN,
        timestamp: i64::MIN,
        value: f64::MIN,
        is_nan: false,
    };
    let after = after.unwrap_or(&first);
    conn.prepare_cached(
        "SELECT key, step, timestamp, value, is_nan FROM metrics
         WHERE run = ?1 AND generation > ?9 AND generation <= ?2
           AND (key, step, timestamp, value, is_nan) > (?3, ?4, ?5, ?6, ?7)
         ORDER BY key, step, timestamp, value, is_nan LIMIT ?8",
    )
    .and_then(|mut s| {
        let values = params![
            row.seq,
            generations.end,
            after.key,
            after.step,
            after.timestamp,
            after.value,
            after.is_nan,
            limit,
            generations.start
        ];
        s.query_map(values, read::point)?.collect()
    })
    .map_err(sql)
}
