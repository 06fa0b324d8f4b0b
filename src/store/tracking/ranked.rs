//! Runs whose latest points are in an index by value, so that a search by a metric among many runs reads those that it
//! answers with.
//!
//! An index that follows every point would cost each `log_metric` as much as the point itself. So a run is *ranked* once
//! it has ended, or when nothing was logged to it between two patrols; until then searches look at each such run. Points
//! logged later move within the index at once, but a metric that is new in the run is not in it: then the run is no longer
//! ranked.

use rusqlite::{Connection, params};

use super::super::Error;
use super::TrackReply;
use super::write::execute;

/// The columns and indexes; and one of runs at work with very many points.
pub const MIGRATION: &str = "
ALTER TABLE latest_metrics ADD COLUMN experiment INTEGER; -- the run's, once the run is ranked
CREATE INDEX latest_ranked ON latest_metrics (key, is_nan, value, experiment)
    WHERE experiment IS NOT NULL;
ALTER TABLE runs ADD COLUMN ranked INTEGER NOT NULL DEFAULT 0; -- 1: ranked; 2: nothing logged since the last patrol
CREATE INDEX runs_unranked ON runs (experiment, started DESC, id) WHERE ranked <> 1;
CREATE INDEX runs_with_many ON runs (seq) WHERE hot >= 262144;
";

/// Rows that one transaction puts into the index at most.
const ROWS: usize = 5000;
/// Runs that one transaction ranks at most.
const RUNS: usize = 200;

fn sql(source: rusqlite::Error) -> Error {
    Error::sqlite("rank runs by their metrics", source)
}

/// Whether there are runs for [`rank`].
pub fn has_unranked(conn: &Connection, quiet: bool) -> Result<bool, Error> {
    let due = "SELECT EXISTS (SELECT 1 FROM runs INDEXED BY runs_unranked
         WHERE ranked <> 1 AND (status IN ('FINISHED', 'FAILED', 'KILLED') OR (?1 AND ranked = 2)))";
    conn.prepare_cached(due).and_then(|mut s| s.query_row([quiet], |row| row.get(0))).map_err(sql)
}

/// Whether there are runs for [`mark`].
pub fn has_unmarked(conn: &Connection) -> Result<bool, Error> {
    let due = "SELECT EXISTS (SELECT 1 FROM runs INDEXED BY runs_unranked
         WHERE ranked <> 1 AND ranked = 0)";
    conn.prepare_cached(due).and_then(|mut s| s.query_row([], |row| row.get(0))).map_err(sql)
}

/// Ranks some of the runs that have ended and, if `quiet`, of those to which nothing was logged since [`mark`].
pub(super) fn rank(conn: &Connection, quiet: bool) -> Result<TrackReply, Error> {
    let due: Vec<(i64, i64)> = conn
        .prepare_cached(
            "SELECT seq, experiment FROM runs INDEXED BY runs_unranked
             WHERE ranked <> 1 AND (status IN ('FINISHED', 'FAILED', 'KILLED') OR (?1 AND ranked = 2))
             LIMIT ?2",
        )
        .and_then(|mut s| {
            s.query_map(params![quiet, RUNS], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })
        .map_err(sql)?;
    let (mut room, mut seen) = (ROWS, 0);
    for (run, experiment) in due {
        seen += 1;
        let moved = execute(
            conn,
            "UPDATE latest_metrics SET experiment = ?2 WHERE run = ?1 AND key IN (
                 SELECT key FROM latest_metrics WHERE run = ?1 AND experiment IS NULL LIMIT ?3)",
            &[&run, &experiment, &room],
        )?;
        if moved == room {
            break;
        }
        room -= moved;
        execute(conn, "UPDATE runs SET ranked = 1 WHERE seq = ?1", &[&run])?;
    }
    Ok(TrackReply::Ranked(seen))
}

/// Notes which runs are not ranked. Those that are still so at the next patrol are quiet.
pub(super) fn mark(conn: &Connection) -> Result<TrackReply, Error> {
    let marked = execute(
        conn,
        "UPDATE runs INDEXED BY runs_unranked SET ranked = 2 WHERE ranked <> 1 AND ranked = 0",
        &[],
    )?;
    Ok(TrackReply::Ranked(marked))
}
