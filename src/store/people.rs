//! Users and custom roles. Their tokens lie beside the jobs' records (`jobs.rs`).

use std::collections::BTreeSet;

use atelier_core::access::{CustomRole, Role};
use atelier_core::content::Digest;
use atelier_core::id::{GroupName, Principal, RoleName};
use atelier_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::audit::Asked;
use super::blocked::{self, BlockRecord};
use super::sqlite::told;
use super::{Error, jobs};

/// Users, and what is known of tokens besides their holders. Whoever held a token is a user, with the most that
/// one of the tokens allowed.
pub(super) const MIGRATION: &str = "
ALTER TABLE tokens ADD COLUMN created_by TEXT;
ALTER TABLE tokens ADD COLUMN expires_at INTEGER;   -- ms since the epoch; never: NULL
ALTER TABLE tokens ADD COLUMN last_used_at INTEGER; -- written now and then
CREATE TABLE users (
    name   TEXT PRIMARY KEY,
    record TEXT NOT NULL                 -- JSON
) STRICT, WITHOUT ROWID;
CREATE TABLE roles (
    name   TEXT PRIMARY KEY,
    record TEXT NOT NULL                 -- JSON
) STRICT, WITHOUT ROWID;
INSERT INTO users
    SELECT principal, json_object(
        'name', principal,
        'role', CASE
            WHEN max(role = '\"admin\"') THEN 'admin'
            WHEN max(role = '\"data_scientist\"') THEN 'data_scientist'
            ELSE 'reader' END,
        'created_by', NULL,
        'created_at', min(created_at))
    FROM tokens WHERE role IN ('\"admin\"', '\"data_scientist\"', '\"reader\"')
    GROUP BY principal;
";

/// A person, or a program that comes in as one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, serde::Deserialize)]
pub struct UserRecord {
    /// Who, as events record it.
    pub name: Principal,
    /// As what.
    pub role: Role,
    /// Who made it; nobody, if it came with the workspace.
    pub created_by: Option<Principal>,
    /// When.
    pub created_at: Timestamp,
    /// Whether a provider vouches for them, and its groups give the role; others an admin made.
    #[serde(default)]
    pub signs_in: bool,
    /// The groups they are in, as an admin says, or the provider at the last sign-in.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub groups: BTreeSet<GroupName>,
}

/// A change of who may come in and do what, each a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeopleChange {
    /// Makes or changes a user.
    PutUser(UserRecord),
    /// Forgets a user, and all tokens.
    DeleteUser(Principal),
    /// Has somebody not come in, and forgets all tokens of theirs.
    Block(BlockRecord),
    /// Has somebody come in again.
    Unblock(Principal),
    /// Makes or changes a role.
    PutRole(CustomRole),
    /// Forgets a role.
    DeleteRole(RoleName),
}

pub(super) fn json<T: Serialize>(value: &T, what: &str) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|source| Error::Damaged { what: what.to_owned(), source })
}

pub(super) fn execute(
    conn: &Connection,
    sql: &str,
    values: &[&dyn rusqlite::ToSql],
) -> Result<(), Error> {
    conn.prepare_cached(sql)
        .and_then(|mut statement| statement.execute(values))
        .map(drop)
        .map_err(|e| Error::sqlite("change who may do what", e))
}

impl PeopleChange {
    pub(super) fn apply(&self, conn: &Asked<'_>) -> Result<(), Error> {
        let put = |table: &str, name: &str, record: &String| {
            let sql = format!("INSERT OR REPLACE INTO {table} (name, record) VALUES (?1, ?2)");
            execute(conn, &sql, &[&name, record])
        };
        match self {
            Self::PutUser(user) => {
                let before: Option<UserRecord> = one(conn, "users", user.name.as_str())?;
                put("users", user.name.as_str(), &json(user, "user")?)?;
                conn.changed(format!("user/{}", user.name), before.as_ref(), Some(user));
            }
            Self::DeleteUser(name) => {
                let before: Option<UserRecord> = one(conn, "users", name.as_str())?;
                for token in jobs::tokens(conn)?.iter().filter(|token| &token.principal == name) {
                    conn.changed(format!("token/{name}"), Some(&told(token)), None);
                }
                execute(conn, "DELETE FROM tokens WHERE principal = ?1", &[&name.as_str()])?;
                execute(conn, "DELETE FROM users WHERE name = ?1", &[&name.as_str()])?;
                conn.changed(format!("user/{name}"), before.as_ref(), None);
            }
            Self::Block(block) => blocked::put(conn, block)?,
            Self::Unblock(name) => blocked::remove(conn, name)?,
            Self::PutRole(role) => {
                let before: Option<CustomRole> = one(conn, "roles", role.name.as_str())?;
                put("roles", role.name.as_str(), &json(role, "role")?)?;
                conn.changed(format!("role/{}", role.name), before.as_ref(), Some(role));
            }
            Self::DeleteRole(name) => {
                let before: Option<CustomRole> = one(conn, "roles", name.as_str())?;
                execute(conn, "DELETE FROM roles WHERE name = ?1", &[&name.as_str()])?;
                conn.changed(format!("role/{name}"), before.as_ref(), None);
            }
        }
        Ok(())
    }
}

/// Writes when tokens were last used. Nobody has asked for that, and no entry tells of it.
pub(super) fn note_uses(conn: &Connection, uses: &[(Digest, Timestamp)]) -> Result<(), Error> {
    for (hash, at) in uses {
        execute(
            conn,
            "UPDATE tokens SET last_used_at = ?2 WHERE hash = ?1",
            params![hash.as_bytes(), at.as_millis()],
        )?;
    }
    Ok(())
}

pub(super) fn one<T: DeserializeOwned>(
    conn: &Connection,
    table: &str,
    name: &str,
) -> Result<Option<T>, Error> {
    conn.prepare_cached(&format!("SELECT record FROM {table} WHERE name = ?1"))
        .and_then(|mut s| s.query_row([name], |row| jobs::column(row, 0)).optional())
        .map_err(|e| Error::sqlite("read who may do what", e))
}

pub(super) fn all<T: DeserializeOwned>(conn: &Connection, table: &str) -> Result<Vec<T>, Error> {
    let records: Vec<String> = conn
        .prepare(&format!("SELECT record FROM {table} ORDER BY name"))
        .and_then(|mut statement| statement.query_map([], |row| row.get(0))?.collect())
        .map_err(|e| Error::sqlite("read who may do what", e))?;
    let read = |record: &String| {
        serde_json::from_str(record)
            .map_err(|source| Error::Damaged { what: format!("in {table}"), source })
    };
    records.iter().map(read).collect()
}

pub(super) fn users(conn: &Connection) -> Result<Vec<UserRecord>, Error> {
    all(conn, "users")
}

pub(super) fn roles(conn: &Connection) -> Result<Vec<CustomRole>, Error> {
    all(conn, "roles")
}
