//! Users and custom roles. Their tokens lie beside the jobs' records (`jobs.rs`).

use atelier_core::access::{CustomRole, Role};
use atelier_core::content::Digest;
use atelier_core::id::{Principal, RoleName};
use atelier_core::time::Timestamp;
use rusqlite::{Connection, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Error;

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
}

/// A change of who may come in and do what, each a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeopleChange {
    /// Makes or changes a user.
    PutUser(UserRecord),
    /// Forgets a user, and all tokens.
    DeleteUser(Principal),
    /// Makes or changes a role.
    PutRole(CustomRole),
    /// Forgets a role.
    DeleteRole(RoleName),
    /// When tokens were last used, by their hashes.
    Used(Vec<(Digest, Timestamp)>),
}

fn json<T: Serialize>(value: &T, what: &str) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|source| Error::Damaged { what: what.to_owned(), source })
}

impl PeopleChange {
    pub(super) fn apply(&self, conn: &Connection) -> Result<(), Error> {
        let execute = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
            conn.prepare_cached(sql)
                .and_then(|mut statement| statement.execute(values))
                .map(drop)
                .map_err(|e| Error::sqlite("change who may do what", e))
        };
        match self {
            Self::PutUser(user) => execute(
                "INSERT OR REPLACE INTO users (name, record) VALUES (?1, ?2)",
                &[&user.name.as_str(), &json(user, "user")?],
            ),
            Self::DeleteUser(name) => {
                execute("DELETE FROM tokens WHERE principal = ?1", &[&name.as_str()])?;
                execute("DELETE FROM users WHERE name = ?1", &[&name.as_str()])
            }
            Self::PutRole(role) => execute(
                "INSERT OR REPLACE INTO roles (name, record) VALUES (?1, ?2)",
                &[&role.name.as_str(), &json(role, "role")?],
            ),
            Self::DeleteRole(name) => {
                execute("DELETE FROM roles WHERE name = ?1", &[&name.as_str()])
            }
            Self::Used(tokens) => {
                for (hash, at) in tokens {
                    execute(
                        "UPDATE tokens SET last_used_at = ?2 WHERE hash = ?1",
                        params![hash.as_bytes(), at.as_millis()],
                    )?;
                }
                Ok(())
            }
        }
    }
}

fn all<T: DeserializeOwned>(conn: &Connection, table: &str) -> Result<Vec<T>, Error> {
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
