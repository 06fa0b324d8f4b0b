//! Who may not come in, whatever a provider says of them.

use atelier_core::id::Principal;
use atelier_core::time::Timestamp;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::audit::Asked;
use super::sqlite::told;
use super::{Error, jobs, people};

pub(super) const MIGRATION: &str = "
CREATE TABLE blocked (
    name   TEXT PRIMARY KEY,
    record TEXT NOT NULL                 -- JSON
) STRICT, WITHOUT ROWID;
";

/// That somebody may not come in. It need be no user: one that was deleted could sign in again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BlockRecord {
    /// Who.
    pub name: Principal,
    /// Why, for them and for those who ask later.
    pub reason: String,
    /// Who said so.
    pub by: Principal,
    /// When.
    pub at: Timestamp,
}

/// Everybody of whom that was said.
pub(super) fn all(conn: &Connection) -> Result<Vec<BlockRecord>, Error> {
    people::all(conn, "blocked")
}

/// Notes it, and forgets all tokens of theirs.
pub(super) fn put(conn: &Asked<'_>, block: &BlockRecord) -> Result<(), Error> {
    let name = &block.name;
    let before: Option<BlockRecord> = people::one(conn, "blocked", name.as_str())?;
    for token in jobs::tokens(conn)?.iter().filter(|token| &token.principal == name) {
        conn.changed(format!("token/{name}"), Some(&told(token)), None);
    }
    people::execute(conn, "DELETE FROM tokens WHERE principal = ?1", &[&name.as_str()])?;
    let record = people::json(block, "blocked user")?;
    let sql = "INSERT OR REPLACE INTO blocked (name, record) VALUES (?1, ?2)";
    people::execute(conn, sql, &[&name.as_str(), &record])?;
    conn.changed(format!("block/{name}"), before.as_ref(), Some(block));
    Ok(())
}

/// They may come in again.
pub(super) fn remove(conn: &Asked<'_>, name: &Principal) -> Result<(), Error> {
    let before: Option<BlockRecord> = people::one(conn, "blocked", name.as_str())?;
    people::execute(conn, "DELETE FROM blocked WHERE name = ?1", &[&name.as_str()])?;
    conn.changed(format!("block/{name}"), before.as_ref(), None);
    Ok(())
}
