//! What nodes are known by, and the tokens with which machines become nodes, as rows.

use atelier_core::content::Digest;
use atelier_core::id::NodeName;
use atelier_core::join::{Admission, JoinToken, Joining, NodeIdentity, NotDeleted, Refusal, Used};
use atelier_core::time::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::audit;
use super::jobs::{column, json, put_token, tokens};
use super::sqlite::told as told_token;
use super::{Error, TokenRecord};

pub(super) const MIGRATION: &str = "
CREATE TABLE join_tokens (
    hash       BLOB PRIMARY KEY,
    node       TEXT,                     -- the only one that may use it
    expires_at INTEGER NOT NULL,
    record     TEXT NOT NULL             -- JSON
) STRICT, WITHOUT ROWID;
CREATE TABLE node_identities (
    node   TEXT PRIMARY KEY,
    record TEXT NOT NULL                 -- JSON
) STRICT, WITHOUT ROWID;
";

/// Join tokens that ended so long ago are forgotten: until then who uses one again is told when it was used.
const FORGOTTEN_MS: i64 = 30 * 24 * 3600 * 1000;

/// What the audit log tells of a join token: of its hash, enough to tell it from others.
fn told(token: &JoinToken) -> serde_json::Value {
    serde_json::json!({
        "node": token.node,
        "compute": token.compute,
        "created_by": token.created_by,
        "expires_at": token.expires_at.to_string(),
    })
}

/// Remembers a join token.
pub fn put_join_token(conn: &audit::Asked<'_>, token: &JoinToken) -> Result<(), Error> {
    let sql = |e| Error::sqlite("store a join token", e);
    conn.prepare_cached("DELETE FROM join_tokens WHERE expires_at < ?1")
        .and_then(|mut s| s.execute([token.created_at.plus_millis(-FORGOTTEN_MS).as_millis()]))
        .map_err(sql)?;
    write_join_token(conn, token)?;
    conn.changed(format!("join-token/{}", token.id()), None, Some(&told(token)));
    Ok(())
}

fn write_join_token(conn: &Connection, token: &JoinToken) -> Result<(), Error> {
    let record = json(token, "join token")?;
    conn.prepare_cached(
        "INSERT INTO join_tokens (hash, node, expires_at, record) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (hash) DO UPDATE SET record = excluded.record",
    )
    .and_then(|mut s| {
        let node = token.node.as_ref().map(NodeName::as_str);
        s.execute(params![token.hash.as_bytes(), node, token.expires_at.as_millis(), record])
    })
    .map(drop)
    .map_err(|e| Error::sqlite("store a join token", e))
}

/// The join token of this hash.
pub fn join_token(conn: &Connection, hash: &Digest) -> Result<Option<JoinToken>, Error> {
    conn.prepare_cached("SELECT record FROM join_tokens WHERE hash = ?1")
        .and_then(|mut s| s.query_row([hash.as_bytes()], |row| column(row, 0)).optional())
        .map_err(|e| Error::sqlite("read a join token", e))
}

/// The join tokens that are kept, those that end first before the others.
pub fn join_tokens(conn: &Connection) -> Result<Vec<JoinToken>, Error> {
    conn.prepare("SELECT record FROM join_tokens ORDER BY expires_at, hash")
        .and_then(|mut s| s.query_map([], |row| column(row, 0))?.collect())
        .map_err(|e| Error::sqlite("read the join tokens", e))
}

/// Deletes a join token that nobody has used.
pub fn delete_join_token(
    conn: &audit::Asked<'_>,
    id: &str,
) -> Result<Result<JoinToken, NotDeleted>, Error> {
    let Some(token) = join_tokens(conn)?.into_iter().find(|token| token.id() == id) else {
        return Ok(Err(NotDeleted::Unknown(id.chars().take(80).collect())));
    };
    if let Some(used) = token.used {
        let (id, at, by) = (id.to_owned(), used.at, used.node);
        return Ok(Err(NotDeleted::Used { id, at, by }));
    }
    conn.prepare_cached("DELETE FROM join_tokens WHERE hash = ?1")
        .and_then(|mut s| s.execute([token.hash.as_bytes()]))
        .map_err(|e| Error::sqlite("delete a join token", e))?;
    conn.changed(format!("join-token/{id}"), Some(&told(&token)), None);
    Ok(Ok(token))
}

/// What a node is known by.
pub fn identity(conn: &Connection, node: &NodeName) -> Result<Option<NodeIdentity>, Error> {
    conn.prepare_cached("SELECT record FROM node_identities WHERE node = ?1")
        .and_then(|mut s| s.query_row([node.as_str()], |row| column(row, 0)).optional())
        .map_err(|e| Error::sqlite("read a node's identity", e))
}

/// What all nodes are known by, revoked ones too.
pub fn identities(conn: &Connection) -> Result<Vec<NodeIdentity>, Error> {
    conn.prepare("SELECT record FROM node_identities ORDER BY node")
        .and_then(|mut s| s.query_map([], |row| column(row, 0))?.collect())
        .map_err(|e| Error::sqlite("read the nodes' identities", e))
}

fn put_identity(conn: &Connection, identity: &NodeIdentity) -> Result<(), Error> {
    let record = json(identity, "node identity")?;
    conn.prepare_cached(
        "INSERT INTO node_identities (node, record) VALUES (?1, ?2)
         ON CONFLICT (node) DO UPDATE SET record = excluded.record",
    )
    .and_then(|mut s| s.execute(params![identity.node.as_str(), record]))
    .map(drop)
    .map_err(|e| Error::sqlite("store a node's identity", e))
}

/// Whether some node has the name, be it by an identity, by a token or by having been here.
fn is_taken(conn: &Connection, node: &NodeName) -> Result<bool, Error> {
    conn.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM nodes WHERE name = ?1)
             OR EXISTS (SELECT 1 FROM tokens WHERE principal = 'node:' || ?1)
             OR EXISTS (SELECT 1 FROM node_identities WHERE node = ?1)",
    )
    .and_then(|mut s| s.query_row([node.as_str()], |row| row.get(0)))
    .map_err(|e| Error::sqlite("look up a node's name", e))
}

/// Drops every token of a node.
fn drop_tokens(conn: &audit::Asked<'_>, node: &NodeName) -> Result<(), Error> {
    let whose = format!("node:{node}");
    for token in tokens(conn)?.iter().filter(|token| token.principal.as_str() == whose) {
        conn.changed(format!("token/{whose}"), Some(&told_token(token)), None);
    }
    conn.prepare_cached("DELETE FROM tokens WHERE principal = 'node:' || ?1")
        .and_then(|mut s| s.execute([node.as_str()]))
        .map(drop)
        .map_err(|e| Error::sqlite("forget a node's tokens", e))
}

/// What a join is to be answered, as things are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// It would be the token's first use.
    First(JoinToken),
    /// It had its answer, which is this.
    Again(String),
}

/// Looks whether a machine may join. Changes nothing.
pub fn may_join(
    conn: &Connection,
    hash: &Digest,
    asks: &Joining,
    now: Timestamp,
) -> Result<Result<Asked, Refusal>, Error> {
    let Some(token) = join_token(conn, hash)? else { return Ok(Err(Refusal::Unknown)) };
    let known = identity(conn, &asks.node)?;
    let taken = is_taken(conn, &asks.node)?;
    Ok(match token.admits(asks, known.as_ref(), taken, now) {
        Ok(Admission::Again(used)) => Ok(Asked::Again(used.answer.clone())),
        Ok(Admission::First) => Ok(Asked::First(token)),
        Err(refusal) => Err(refusal),
    })
}

/// A machine joins: its token is used, and the node has this identity from now on, and no other. `None`: it did.
pub fn join(
    conn: &audit::Asked<'_>,
    hash: &Digest,
    asks: &Joining,
    identity: &NodeIdentity,
    answer: &str,
    token: Option<&TokenRecord>,
) -> Result<Result<Option<String>, Refusal>, Error> {
    // Looked at again: of two that race one is first.
    let mut used = match may_join(conn, hash, asks, identity.since)? {
        Ok(Asked::First(token)) => token,
        Ok(Asked::Again(answer)) => return Ok(Ok(Some(answer))),
        Err(refusal) => return Ok(Err(refusal)),
    };
    used.used = Some(Used {
        at: identity.since,
        node: asks.node.clone(),
        key: asks.key,
        identity: identity.id.clone(),
        answer: answer.to_owned(),
    });
    write_join_token(conn, &used)?;
    let before = self::identity(conn, &asks.node)?;
    put_identity(conn, identity)?;
    drop_tokens(conn, &asks.node)?;
    let (before, after) = (before.as_ref(), Some(identity));
    conn.changed(format!("node/{}", asks.node), before, after);
    let use_of = format!("join-token/{}", used.id());
    conn.done(use_of, &serde_json::json!({ "used_by": asks.node, "created_by": used.created_by }));
    if let Some(token) = token {
        put_token(conn, token)?;
        conn.changed(format!("token/{}", token.principal), None, Some(&told_token(token)));
    }
    Ok(Ok(None))
}

/// Drops the join tokens for a node that nobody has used; those.
pub fn drop_join_tokens(conn: &audit::Asked<'_>, node: &NodeName) -> Result<Vec<JoinToken>, Error> {
    let unused: Vec<JoinToken> = conn
        .prepare_cached(
            "DELETE FROM join_tokens WHERE node = ?1 AND json_extract(record, '$.used') IS NULL
             RETURNING record",
        )
        .and_then(|mut s| s.query_map([node.as_str()], |row| column(row, 0))?.collect())
        .map_err(|e| Error::sqlite("forget a node's join tokens", e))?;
    for token in &unused {
        conn.changed(format!("join-token/{}", token.id()), Some(&told(token)), None);
    }
    Ok(unused)
}

/// Revokes all that a node is let in by, unused join tokens for it too; what it is known by then, and those.
pub fn revoke(
    conn: &audit::Asked<'_>,
    node: &NodeName,
    now: Timestamp,
) -> Result<(NodeIdentity, Vec<JoinToken>), Error> {
    drop_tokens(conn, node)?;
    let unused = drop_join_tokens(conn, node)?;
    let before = identity(conn, node)?;
    // One that had only a token is known as revoked too, so that its attempts stay fenced.
    let mut after = before.clone().unwrap_or_else(|| NodeIdentity {
        node: node.clone(),
        id: String::new(),
        compute: None,
        since: now,
        revoked_at: None,
    });
    after.revoked_at.get_or_insert(now);
    put_identity(conn, &after)?;
    conn.changed(format!("node/{node}"), before.as_ref(), Some(&after));
    Ok((after, unused))
}

/// Forgets a node that is no more.
pub fn forget(conn: &audit::Asked<'_>, node: &NodeName) -> Result<(), Error> {
    drop_tokens(conn, node)?;
    drop_join_tokens(conn, node)?;
    let Some(before) = identity(conn, node)? else { return Ok(()) };
    conn.prepare_cached("DELETE FROM node_identities WHERE node = ?1")
        .and_then(|mut s| s.execute([node.as_str()]))
        .map_err(|e| Error::sqlite("forget a node's identity", e))?;
    conn.changed(format!("node/{node}"), Some(&before), None);
    Ok(())
}
