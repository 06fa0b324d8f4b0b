//! What finished jobs held, read when the daemon starts.

use atelier_core::live::PastUse;
use atelier_core::sched::Request;
use atelier_core::spec::JobResources;
use atelier_core::time::Timestamp;
use rusqlite::{Connection, Row, params};
use serde::Deserialize;

use super::Error;
use super::jobs::{column, parsed};

/// The newest are enough: older ones weigh little, and the daemon shall start soon.
pub(super) const MOST: usize = 50_000;

/// All that is wanted of a specification.
#[derive(Deserialize)]
struct Asked {
    resources: JobResources,
}

/// The index `jobs_ended` is of this very expression.
pub(super) const SINCE: &str = "
    SELECT compute, created_by, spec, json_extract(state, '$.ended.started_at'),
        json_extract(state, '$.ended.at')
    FROM jobs
    WHERE live = 0 AND json_extract(state, '$.ended.at') > ?1
        AND json_extract(state, '$.ended.started_at') IS NOT NULL
    ORDER BY json_extract(state, '$.ended.at') DESC LIMIT ?2";

fn use_of(row: &Row<'_>) -> rusqlite::Result<PastUse> {
    let asked: Asked = column(row, 2)?;
    let (started, ended): (i64, i64) = (row.get(3)?, row.get(4)?);
    Ok(PastUse {
        compute: parsed(row, 0)?,
        user: parsed(row, 1)?,
        request: Request::from(&asked.resources),
        // By its node's clock, which may be ahead.
        started: Timestamp::from_millis(started.min(ended)),
        ended: Timestamp::from_millis(ended),
    })
}

/// Jobs whose command ran and which ended after `from`, newest end first, at most `most`. One that
/// was cancelled while it waited held nothing.
pub(super) fn since(
    conn: &Connection,
    from: Timestamp,
    most: usize,
) -> Result<Vec<PastUse>, Error> {
    conn.prepare(SINCE)
        .and_then(|mut s| s.query_map(params![from.as_millis(), most], use_of)?.collect())
        .map_err(|e| Error::sqlite("read what jobs have used", e))
}
