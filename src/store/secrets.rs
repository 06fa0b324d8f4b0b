//! Secrets as rows: what is known of them, and their values as the vault has sealed them.

use atelier_core::access::Caller;
use atelier_core::id::{JobName, Principal, SecretName, SecretVersion};
use atelier_core::secret::{Entry, Refusal, SealedName, Secret, check_owner};
use atelier_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::Error;
use super::jobs::parsed;
use crate::vault::{KeyId, Sealed};

pub(super) const MIGRATION: &str = "
CREATE TABLE secrets (
    name       TEXT NOT NULL COLLATE NOCASE PRIMARY KEY,
    version    INTEGER NOT NULL,         -- the last given; never given again
    created_by TEXT NOT NULL,
    created_at INTEGER NOT NULL,         -- ms since the epoch
    updated_by TEXT NOT NULL,
    updated_at INTEGER NOT NULL,
    deleted_by TEXT,
    deleted_at INTEGER                   -- NULL: it is there
) STRICT, WITHOUT ROWID;
CREATE TABLE secret_versions (
    seq        INTEGER PRIMARY KEY,
    name       TEXT NOT NULL COLLATE NOCASE REFERENCES secrets (name),
    version    INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    value      BLOB NOT NULL,            -- sealed
    data_key   BLOB NOT NULL,            -- sealed
    key        TEXT NOT NULL,            -- the id of the key encryption key
    sealed_at  INTEGER NOT NULL,         -- when the data key was made
    UNIQUE (name, version)
) STRICT;
CREATE INDEX secret_versions_key ON secret_versions (key);
";

pub(super) const ROTATION: &str = "
CREATE TABLE secret_rotation (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    begun_at INTEGER NOT NULL            -- ms since the epoch; data keys from before are to go
) STRICT;
";

/// Which data keys are to go is told by the rotation's number: clocks may be set back.
pub(super) const BY_NUMBER: &str = "
ALTER TABLE secret_rotation ADD COLUMN number INTEGER NOT NULL DEFAULT 1;
ALTER TABLE secret_versions ADD COLUMN rotation INTEGER NOT NULL DEFAULT 0;
                                         -- that made the data key; 0: it came with the value
UPDATE secret_versions SET rotation = 1
WHERE sealed_at >= (SELECT begun_at FROM secret_rotation);
ALTER TABLE secret_versions DROP COLUMN sealed_at;
";

/// Which rotation of data keys: those of every value that is kept when one begins are to be made anew, and have its
/// number then.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RotationNumber(i64);

/// A rotation of data keys that is not over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Begun {
    /// Which.
    pub number: RotationNumber,
    /// When it began.
    pub at: Timestamp,
    /// Whether it had begun before.
    pub was_begun: bool,
}

/// A sealed version, and where it lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealedRow {
    /// The row.
    pub seq: i64,
    /// Under what it is kept.
    pub name: SealedName,
    /// Which version.
    pub version: SecretVersion,
    /// As it is kept.
    pub sealed: Sealed,
}

pub(super) fn sql(error: rusqlite::Error) -> Error {
    Error::sqlite("read secrets", error)
}

/// What is remembered of a name, also after its secret was deleted.
pub fn entry(conn: &Connection, name: &SecretName) -> Result<Option<Entry>, Error> {
    conn.prepare_cached(
        "SELECT name, version, iif(deleted_at IS NULL, created_by, NULL) FROM secrets WHERE name = ?1",
    )
    .and_then(|mut s| {
        s.query_row([name.as_str()], |row| {
            let owner = match row.get_ref(2)? {
                rusqlite::types::ValueRef::Null => None,
                _ => Some(parsed(row, 2)?),
            };
            Ok(Entry { name: parsed(row, 0)?, version: SecretVersion(row.get(1)?), owner })
        })
        .optional()
    })
    .map_err(sql)
}

/// The last version given of a name; 0: none yet.
pub fn last_version(conn: &Connection, name: &SealedName) -> Result<SecretVersion, Error> {
    conn.prepare_cached("SELECT version FROM secrets WHERE name = ?1")
        .and_then(|mut s| s.query_row([name.key()], |row| row.get(0)).optional())
        .map(|last| SecretVersion(last.unwrap_or_default()))
        .map_err(sql)
}

/// A version as it is kept.
pub fn sealed(
    conn: &Connection,
    name: &SealedName,
    version: SecretVersion,
) -> Result<Option<Sealed>, Error> {
    conn.prepare_cached(
        "SELECT value, data_key, key FROM secret_versions WHERE name = ?1 AND version = ?2",
    )
    .and_then(|mut s| {
        s.query_row(params![name.key(), version.0], |row| {
            let key = KeyId::stored(row.get_ref(2)?.as_str()?);
            Ok(Sealed { value: row.get(0)?, data_key: row.get(1)?, key })
        })
        .optional()
    })
    .map_err(sql)
}

/// Keeps a version, which is the next of its name.
pub fn put(
    conn: &Connection,
    (name, version): (&SealedName, SecretVersion),
    sealed: &Sealed,
    by: &Principal,
    at: Timestamp,
) -> Result<(), Error> {
    let (by, at) = (by.as_str(), at.as_millis());
    let write = || -> rusqlite::Result<()> {
        conn.prepare_cached(
            "INSERT INTO secrets VALUES (?1, ?2, ?3, ?4, ?3, ?4, NULL, NULL)
             ON CONFLICT (name) DO UPDATE SET version = ?2, updated_by = ?3, updated_at = ?4,
             created_by = iif(deleted_at IS NULL, created_by, ?3),
             created_at = iif(deleted_at IS NULL, created_at, ?4),
             deleted_by = NULL, deleted_at = NULL",
        )?
        .execute(params![name.key(), version.0, by, at])?;
        let Sealed { value, data_key, key } = sealed;
        conn.prepare_cached(
            "INSERT INTO secret_versions
             (name, version, created_by, created_at, value, data_key, key)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![name.key(), version.0, by, at, value, data_key, key.as_str()])?;
        Ok(())
    };
    write().map_err(|error| Error::sqlite("store a secret", error))
}

/// Writes so that what is gone from a row is gone from the database's file too, once its log has been moved
/// there: a key that is not to be trusted any more must find nothing.
fn wiping(conn: &Connection, write: impl FnOnce() -> rusqlite::Result<()>) -> rusqlite::Result<()> {
    conn.pragma_update(None, "secure_delete", true)?;
    let written = write();
    conn.pragma_update(None, "secure_delete", false)?;
    written
}

/// Forgets the versions of a name before this one, or all; that there were some is remembered.
pub fn forget(
    conn: &Connection,
    name: &SealedName,
    before: Option<SecretVersion>,
    by: &Principal,
    at: Timestamp,
) -> Result<(), Error> {
    let bound = before.map_or(i64::MAX, |version| i64::from(version.0));
    let write = || -> rusqlite::Result<()> {
        conn.prepare_cached("DELETE FROM secret_versions WHERE name = ?1 AND version < ?2")?
            .execute(params![name.key(), bound])?;
        if before.is_none() {
            conn.prepare_cached(
                "UPDATE secrets SET deleted_by = ?2, deleted_at = ?3 WHERE name = ?1",
            )?
            .execute(params![name.key(), by.as_str(), at.as_millis()])?;
        }
        Ok(())
    };
    wiping(conn, write).map_err(|error| Error::sqlite("forget what was sealed", error))
}

/// Forgets all versions of a secret; that there was one is remembered.
pub fn delete(
    conn: &Connection,
    name: &SecretName,
    caller: &Caller,
    at: Timestamp,
) -> Result<Result<SecretName, Refusal>, Error> {
    let known = entry(conn, name)?;
    let Some((known, owner)) = known.and_then(|known| Some((known.name, known.owner?))) else {
        return Ok(Err(Refusal::NoSuch(name.to_string())));
    };
    if let Err(refusal) = check_owner(&known, &owner, caller) {
        return Ok(Err(refusal));
    }
    // Another of the name is not granted to them.
    conn.prepare_cached("DELETE FROM secret_grants WHERE name = ?1")
        .and_then(|mut s| s.execute([known.as_str()]))
        .map_err(|error| Error::sqlite("take back who may use a secret", error))?;
    forget(conn, &SealedName::Secret(known.clone()), None, &caller.principal, at)?;
    Ok(Ok(known))
}

/// Forgets a version of a secret that is not its latest, which jobs that name none will mean, and that no job is to
/// have: `users` are those that are not over.
pub fn delete_version(
    conn: &Connection,
    name: &SecretName,
    version: SecretVersion,
    users: Vec<JobName>,
    caller: &Caller,
) -> Result<Result<SecretName, Refusal>, Error> {
    let known = entry(conn, name)?;
    let Some((name, owner, latest)) =
        known.and_then(|known| Some((known.name, known.owner?, known.version)))
    else {
        return Ok(Err(Refusal::NoSuch(name.to_string())));
    };
    if let Err(refusal) = check_owner(&name, &owner, caller) {
        return Ok(Err(refusal));
    }
    if version == latest {
        return Ok(Err(Refusal::Latest { name, version }));
    }
    if !users.is_empty() {
        return Ok(Err(Refusal::InUse { name, version, jobs: users }));
    }
    let mut deleted = 0;
    let write = || -> rusqlite::Result<()> {
        deleted = conn
            .prepare_cached("DELETE FROM secret_versions WHERE name = ?1 AND version = ?2")?
            .execute(params![name.as_str(), version.0])?;
        Ok(())
    };
    wiping(conn, write).map_err(|error| Error::sqlite("forget a version of a secret", error))?;
    Ok(if deleted == 0 { Err(Refusal::NoSuchVersion { name, version }) } else { Ok(name) })
}

const COLUMNS: &str = "name, version, created_by, created_at, updated_by, updated_at";

fn secret_of(row: &Row<'_>) -> rusqlite::Result<Secret> {
    Ok(Secret {
        name: parsed(row, 0)?,
        version: SecretVersion(row.get(1)?),
        owner: parsed(row, 2)?,
        created_at: Timestamp::from_millis(row.get(3)?),
        updated_by: parsed(row, 4)?,
        updated_at: Timestamp::from_millis(row.get(5)?),
    })
}

/// One secret.
pub fn secret(conn: &Connection, name: &SecretName) -> Result<Option<Secret>, Error> {
    let text = format!("SELECT {COLUMNS} FROM secrets WHERE name = ?1 AND deleted_at IS NULL");
    conn.prepare_cached(&text)
        .and_then(|mut s| s.query_row([name.as_str()], secret_of).optional())
        .map_err(sql)
}

fn sealed_of(row: &Row<'_>) -> rusqlite::Result<SealedRow> {
    let key = KeyId::stored(row.get_ref(5)?.as_str()?);
    let sealed = Sealed { value: row.get(3)?, data_key: row.get(4)?, key };
    let version = SecretVersion(row.get(2)?);
    Ok(SealedRow { seq: row.get(0)?, name: parsed(row, 1)?, version, sealed })
}

/// Secrets by name, those after `after`, at most `limit`. What is kept of the workspace's own is none.
pub fn list(conn: &Connection, after: &str, limit: usize) -> Result<Vec<Secret>, Error> {
    let text = format!(
        "SELECT {COLUMNS} FROM secrets WHERE name > ?1 AND deleted_at IS NULL AND instr(name, '/') = 0
         ORDER BY name LIMIT ?2"
    );
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    conn.prepare_cached(&text)
        .and_then(|mut s| s.query_map(params![after, limit], secret_of)?.collect())
        .map_err(sql)
}

/// The keys that versions are sealed with, and how many by each.
pub fn keys(conn: &Connection) -> Result<Vec<(KeyId, u64)>, Error> {
    conn.prepare_cached("SELECT key, count(*) FROM secret_versions GROUP BY key ORDER BY key")
        .and_then(|mut s| {
            s.query_map([], |row| Ok((KeyId::stored(row.get_ref(0)?.as_str()?), row.get(1)?)))?
                .collect()
        })
        .map_err(sql)
}

/// Versions that are sealed with another key than this, or whose data key is from before the rotation: those of rows
/// after `after`, at most `limit`.
pub fn older(
    conn: &Connection,
    key: &KeyId,
    rotation: Option<RotationNumber>,
    after: i64,
    limit: usize,
) -> Result<Vec<SealedRow>, Error> {
    let number = rotation.map_or(0, |rotation| rotation.0);
    conn.prepare_cached(
        "SELECT seq, name, version, value, data_key, key FROM secret_versions
         WHERE seq > ?4 AND (key <> ?1 OR rotation < ?2) ORDER BY seq LIMIT ?3",
    )
    .and_then(|mut s| {
        s.query_map(params![key.as_str(), number, limit, after], sealed_of)?.collect()
    })
    .map_err(sql)
}

/// How many versions there are, and how many of them are [`older`].
pub fn left(
    conn: &Connection,
    key: &KeyId,
    rotation: Option<RotationNumber>,
) -> Result<(u64, u64), Error> {
    let number = rotation.map_or(0, |rotation| rotation.0);
    conn.prepare_cached(
        "SELECT count(*), count(*) FILTER (WHERE key <> ?1 OR rotation < ?2) FROM secret_versions",
    )
    .and_then(|mut s| {
        s.query_row(params![key.as_str(), number], |row| Ok((row.get(0)?, row.get(1)?)))
    })
    .map_err(sql)
}

/// The rotation of data keys that is not over; one begins at `now`, if there is none.
pub fn begin_rotation(conn: &Connection, now: Timestamp) -> Result<Begun, Error> {
    let write = || {
        let begun = conn
            .prepare_cached(
                "INSERT OR IGNORE INTO secret_rotation (id, begun_at, number)
                 SELECT 1, ?1, coalesce(max(rotation), 0) + 1 FROM secret_versions",
            )?
            .execute([now.as_millis()])?;
        conn.prepare_cached("SELECT number, begun_at FROM secret_rotation")?.query_row([], |row| {
            Ok(Begun {
                number: RotationNumber(row.get(0)?),
                at: Timestamp::from_millis(row.get(1)?),
                was_begun: begun == 0,
            })
        })
    };
    write().map_err(|error| Error::sqlite("begin to seal secrets anew", error))
}

/// This rotation is over; `None`: whichever.
pub fn end_rotation(conn: &Connection, rotation: Option<RotationNumber>) -> Result<(), Error> {
    conn.prepare_cached("DELETE FROM secret_rotation WHERE number = coalesce(?1, number)")
        .and_then(|mut s| s.execute([rotation.map(|rotation| rotation.0)]))
        .map(drop)
        .map_err(|error| Error::sqlite("end sealing secrets anew", error))
}

/// Puts a version that was sealed anew in the place of itself, if that is still there with the data key that it
/// `was` sealed with; `rotation`: with a data key that this one made. How many that were: none or one.
pub fn reseal(
    conn: &Connection,
    row: &SealedRow,
    was: &[u8],
    rotation: Option<RotationNumber>,
) -> Result<u64, Error> {
    let Sealed { value, data_key, key } = &row.sealed;
    let rotation = rotation.map(|rotation| rotation.0);
    let mut done = 0;
    let write = || -> rusqlite::Result<()> {
        done = conn
            .prepare_cached(
                "UPDATE secret_versions
                 SET value = ?2, data_key = ?3, key = ?4, rotation = coalesce(?5, rotation)
                 WHERE seq = ?1 AND data_key = ?6",
            )?
            .execute(params![row.seq, value, data_key, key.as_str(), rotation, was])?;
        Ok(())
    };
    wiping(conn, write).map_err(|error| Error::sqlite("seal a secret anew", error))?;
    Ok(done as u64)
}
