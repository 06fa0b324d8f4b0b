//! Which jobs use which version of an asset.

use atelier_core::asset::Kind;
use atelier_core::id::{AssetName, JobName, VersionName};
use atelier_core::job::{Job, JobStatus};
use atelier_core::spec::Input;
use atelier_core::time::Timestamp;
use rusqlite::{Connection, params};

use super::super::jobs::{column, parsed};
use super::{Error, sql};

/// A job that used a version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Use {
    /// The job.
    pub job: JobName,
    /// Its place among submissions.
    pub seq: u64,
    /// Which of its inputs.
    pub inputs: Vec<String>,
    /// Where it stands.
    pub status: JobStatus,
    /// When it was submitted.
    pub created_at: Timestamp,
}

const VERSION: &str = "
    SELECT v.seq FROM asset_versions v JOIN assets a ON a.id = v.asset
    WHERE a.kind = ?1 AND a.name = ?2 AND v.version = ?3";

/// Remembers what a job that is submitted uses.
pub(in crate::store) fn record(conn: &Connection, job: &Job) -> Result<(), Error> {
    for (port, input) in &job.spec.inputs {
        let Input::Data { kind, asset: Some(asset), .. } = input else { continue };
        let Some(version) = asset.version.exact() else { continue };
        let kind = kind.asset_kind().word();
        conn.prepare_cached(&format!(
            "INSERT INTO asset_uses (version, job, input) SELECT s.seq, ?4, ?5 FROM ({VERSION}) s"
        ))
        .and_then(|mut s| s.execute(params![kind, asset.name, version, job.seq.0, port.as_str()]))
        .map_err(|error| Error::sqlite("store what a job uses", error))?;
    }
    Ok(())
}

/// Forgets what a job used that is deleted.
pub(in crate::store) fn forget(conn: &Connection, job: &JobName) -> Result<(), Error> {
    conn.prepare_cached(
        "DELETE FROM asset_uses WHERE job = (SELECT seq FROM jobs WHERE name = ?1 AND live = 0)",
    )
    .and_then(|mut s| s.execute([job.as_str()]))
    .map(drop)
    .map_err(|error| Error::sqlite("forget what a job used", error))
}

/// Jobs that used a version, the newest first: those submitted before `before`, at most `limit`.
pub fn uses(
    conn: &Connection,
    kind: Kind,
    name: &AssetName,
    version: &VersionName,
    before: Option<u64>,
    limit: usize,
) -> Result<Vec<Use>, Error> {
    let before = before.unwrap_or(u64::MAX).min(i64::MAX as u64);
    conn.prepare_cached(&format!(
        "SELECT j.name, j.seq, json_group_array(u.input ORDER BY u.input), j.status, j.created_at
         FROM asset_uses u JOIN jobs j ON j.seq = u.job
         WHERE u.version = ({VERSION}) AND j.seq < ?4 GROUP BY j.seq ORDER BY j.seq DESC LIMIT ?5"
    ))
    .and_then(|mut s| {
        let values = params![kind.word(), name.as_str(), version.as_str(), before, limit];
        s.query_map(values, |row| {
            Ok(Use {
                job: parsed(row, 0)?,
                seq: row.get(1)?,
                inputs: column(row, 2)?,
                status: parsed(row, 3)?,
                created_at: Timestamp::from_millis(row.get(4)?),
            })
        })?
        .collect()
    })
    .map_err(sql)
}

/// The first few jobs that are not over and use a version.
pub(super) fn live_users(
    conn: &Connection,
    kind: Kind,
    name: &AssetName,
    version: &VersionName,
) -> Result<Vec<String>, Error> {
    const MOST: usize = 5;
    conn.prepare_cached(&format!(
        "SELECT DISTINCT j.name FROM asset_uses u JOIN jobs j ON j.seq = u.job
         WHERE u.version = ({VERSION}) AND j.live = 1 ORDER BY j.seq LIMIT ?4"
    ))
    .and_then(|mut s| {
        let values = params![kind.word(), name.as_str(), version.as_str(), MOST];
        s.query_map(values, |row| row.get(0))?.collect()
    })
    .map_err(sql)
}
