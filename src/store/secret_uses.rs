//! Whose jobs may use which secrets, and which did.

use atelier_core::access::Caller;
use atelier_core::id::{JobName, Principal, SecretName, SecretVersion};
use atelier_core::secret::{Grant, Refusal, SealedName, Use, check_owner, check_use};
use atelier_core::spec::SecretRef;
use atelier_core::time::Timestamp;
use rusqlite::{Connection, Row, params};

use super::Error;
use super::jobs::parsed;
use super::secrets::{entry, sealed, sql};
use crate::vault::Sealed;

pub(super) const MIGRATION: &str = "
CREATE TABLE secret_grants (
    name       TEXT NOT NULL COLLATE NOCASE REFERENCES secrets (name),
    grantee    TEXT NOT NULL,            -- '': everybody
    granted_by TEXT NOT NULL,
    granted_at INTEGER NOT NULL,         -- ms since the epoch
    PRIMARY KEY (name, grantee)
) STRICT, WITHOUT ROWID;
CREATE TABLE secret_uses (
    name    TEXT NOT NULL COLLATE NOCASE,
    job     TEXT NOT NULL,
    version INTEGER NOT NULL,
    used_by TEXT NOT NULL,
    used_at INTEGER NOT NULL,            -- ms since the epoch
    PRIMARY KEY (name, job, version)
) STRICT, WITHOUT ROWID;
CREATE INDEX secret_uses_newest ON secret_uses (name, used_at);
";

/// How everybody is kept.
fn grantee(to: Option<&Principal>) -> &str {
    to.map_or("", Principal::as_str)
}

/// Lets jobs of a user's, or everybody's, use a secret. Granting again changes nothing.
pub fn grant(
    conn: &Connection,
    name: &SecretName,
    to: Option<&Principal>,
    caller: &Caller,
    at: Timestamp,
) -> Result<Result<(), Refusal>, Error> {
    let name = match owned(conn, name, caller)? {
        Ok(name) => name,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let by = caller.principal.as_str();
    conn.prepare_cached("INSERT OR IGNORE INTO secret_grants VALUES (?1, ?2, ?3, ?4)")
        .and_then(|mut s| s.execute(params![name.as_str(), grantee(to), by, at.as_millis()]))
        .map_err(|error| Error::sqlite("grant a secret", error))?;
    Ok(Ok(()))
}

/// Takes that back.
pub fn revoke(
    conn: &Connection,
    name: &SecretName,
    to: Option<&Principal>,
    caller: &Caller,
) -> Result<Result<(), Refusal>, Error> {
    let name = match owned(conn, name, caller)? {
        Ok(name) => name,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let taken = conn
        .prepare_cached("DELETE FROM secret_grants WHERE name = ?1 AND grantee = ?2")
        .and_then(|mut s| s.execute(params![name.as_str(), grantee(to)]))
        .map_err(|error| Error::sqlite("revoke a secret", error))?;
    let to = to.map_or_else(|| "everybody".to_owned(), Principal::to_string);
    Ok(if taken == 0 { Err(Refusal::NoSuchGrant { name, to }) } else { Ok(()) })
}

/// A secret's name as it was first written, if the caller may say whose jobs may use it.
fn owned(
    conn: &Connection,
    name: &SecretName,
    caller: &Caller,
) -> Result<Result<SecretName, Refusal>, Error> {
    let known = entry(conn, name)?;
    let Some((known, owner)) = known.and_then(|known| Some((known.name, known.owner?))) else {
        return Ok(Err(Refusal::NoSuch(name.to_string())));
    };
    Ok(check_owner(&known, &owner, caller).map(|()| known))
}

/// Whose jobs may use a secret: everybody's first, then by name.
pub fn grants(conn: &Connection, name: &SecretName) -> Result<Vec<Grant>, Error> {
    let grant_of = |row: &Row<'_>| {
        let to = match row.get_ref(0)?.as_str()? {
            "" => None,
            _ => Some(parsed(row, 0)?),
        };
        Ok(Grant { to, by: parsed(row, 1)?, at: Timestamp::from_millis(row.get(2)?) })
    };
    conn.prepare_cached(
        "SELECT grantee, granted_by, granted_at FROM secret_grants WHERE name = ?1 ORDER BY grantee",
    )
    .and_then(|mut s| s.query_map([name.as_str()], grant_of)?.collect())
    .map_err(sql)
}

/// A version that a job of somebody's may use.
pub struct Usable {
    /// Of which secret, as it was first written.
    pub name: SecretName,
    /// Which.
    pub version: SecretVersion,
    /// As it is kept.
    pub sealed: Sealed,
}

/// The version that a job's reference means, as it is kept, if a job of the caller's may use it.
pub fn usable(
    conn: &Connection,
    wanted: &SecretRef,
    caller: &Caller,
) -> Result<Result<Usable, Refusal>, Error> {
    let Some(known) = entry(conn, &wanted.name)? else {
        return Ok(Err(Refusal::NoSuch(wanted.name.to_string())));
    };
    let Some(owner) = known.owner else {
        return Ok(Err(Refusal::NoSuch(wanted.name.to_string())));
    };
    let is_granted = conn
        .prepare_cached("SELECT 1 FROM secret_grants WHERE name = ?1 AND grantee IN ('', ?2)")
        .and_then(|mut s| s.exists(params![known.name.as_str(), caller.principal.as_str()]))
        .map_err(sql)?;
    if let Err(refusal) = check_use(&known.name, &owner, is_granted, caller) {
        return Ok(Err(refusal));
    }
    let version = wanted.version.unwrap_or(known.version);
    let name = known.name;
    Ok(match sealed(conn, &SealedName::Secret(name.clone()), version)? {
        Some(sealed) => Ok(Usable { name, version, sealed }),
        None => Err(Refusal::NoSuchVersion { name, version }),
    })
}

/// Notes that a job was given a version.
pub fn note(
    conn: &Connection,
    job: &JobName,
    given: &Usable,
    by: &Principal,
    at: Timestamp,
) -> Result<(), Error> {
    let (name, job, by) = (given.name.as_str(), job.as_str(), by.as_str());
    conn.prepare_cached("INSERT OR REPLACE INTO secret_uses VALUES (?1, ?2, ?3, ?4, ?5)")
        .and_then(|mut s| s.execute(params![name, job, given.version.0, by, at.as_millis()]))
        .map_err(|error| Error::sqlite("note the use of a secret", error))?;
    Ok(())
}

/// Jobs that were given a secret, the newest first, at most `limit`.
pub fn uses(conn: &Connection, name: &SecretName, limit: usize) -> Result<Vec<Use>, Error> {
    let use_of = |row: &Row<'_>| {
        let (version, at) = (SecretVersion(row.get(1)?), Timestamp::from_millis(row.get(3)?));
        Ok(Use { job: parsed(row, 0)?, version, by: parsed(row, 2)?, at })
    };
    conn.prepare_cached(
        "SELECT job, version, used_by, used_at FROM secret_uses WHERE name = ?1
         ORDER BY used_at DESC LIMIT ?2",
    )
    .and_then(|mut s| s.query_map(params![name.as_str(), limit], use_of)?.collect())
    .map_err(sql)
}
