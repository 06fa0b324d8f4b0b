//! The audit log: who changed what, from where, each entry bound to the one before it by its hash.
//!
//! An entry's hash is BLAKE3 over its bytes as [`Entry::digest`] lays them out, the previous entry's hash among them.
//! Who edits, takes out, puts in or moves an entry has to make all hashes after it anew, and then the last one, the
//! head, is another than the one that was noted elsewhere.

mod chain;
mod redact;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::access::Caller;
use crate::content::Digest;
use crate::id::Principal;
use crate::time::Timestamp;

pub use chain::{Chain, Checkpoint, Fault};
pub use redact::redacted;

/// What comes before the first entry.
pub const START: Digest = Digest::from_bytes([0; 32]);

/// What an entry holds of a record at most, in bytes of JSON; of a longer one its digest and length are kept.
pub const MOST: usize = 32 << 10;

/// Who asks for something, as the audit log tells it. Nothing is changed without one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Actor {
    /// Who.
    pub principal: Principal,
    /// As what, in words.
    pub role: String,
    /// From which address; `None`: within the daemon.
    pub from: Option<IpAddr>,
    /// What was asked for: a method's name as `ComputeService/DrainNode`, or `data/read`.
    pub action: String,
}

impl Actor {
    /// A caller that the door has let in.
    pub fn new(caller: &Caller, from: Option<IpAddr>, action: impl Into<String>) -> Self {
        let (principal, role) = (caller.principal.clone(), caller.role.to_string());
        Self { principal, role, from, action: action.into() }
    }

    /// The daemon itself, on behalf of `principal`.
    pub fn daemon(principal: Principal, action: impl Into<String>) -> Self {
        Self { principal, role: "daemon".to_owned(), from: None, action: action.into() }
    }

    /// What changes by it.
    pub fn changes(self, change: Change) -> Draft {
        Draft { actor: self, change }
    }
}

/// Tests say who, and leave the rest.
#[cfg(any(test, feature = "testkit"))]
impl From<Principal> for Actor {
    fn from(principal: Principal) -> Self {
        Self { principal, role: "test".to_owned(), from: None, action: "test".to_owned() }
    }
}

/// What became of something.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// Of what, as `KIND/NAME`.
    pub resource: String,
    /// Why it was not done, if it was not.
    pub refused: Option<String>,
    /// The record before, as JSON; `None`: there was none.
    pub before: Option<String>,
    /// The record after, as JSON; `None`: there is none.
    pub after: Option<String>,
}

impl Change {
    /// A change of a record; what is secret in it is left out.
    pub fn new<T: Serialize>(
        resource: impl Into<String>,
        before: Option<&T>,
        after: Option<&T>,
    ) -> Self {
        let (before, after) = (before.and_then(kept), after.and_then(kept));
        Self { resource: resource.into(), refused: None, before, after }
    }

    /// Something that was done, and left no record of its own.
    pub fn done(resource: impl Into<String>, what: &Value) -> Self {
        Self::new(resource, None, Some(what))
    }

    /// Something that was not done.
    pub fn refused(resource: impl Into<String>, why: impl Into<String>) -> Self {
        Self { resource: resource.into(), refused: Some(why.into()), ..Self::default() }
    }
}

/// A record as an entry keeps it: without secrets, and so that it is read as it was written.
fn kept(record: &impl Serialize) -> Option<String> {
    let value = match serde_json::to_value(record) {
        Ok(Value::Null) => return None,
        Ok(value) => redacted(value),
        Err(error) => Value::String(format!("it cannot be shown: {error}")),
    };
    let text = value.to_string();
    if text.len() <= MOST {
        return Some(text);
    }
    let (digest, bytes) = (Digest::of(text.as_bytes()), text.len());
    Some(
        serde_json::json!({ "too_long_to_keep": { "blake3": digest, "bytes": bytes } }).to_string(),
    )
}

/// An entry that has yet to find its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Draft {
    /// Who.
    pub actor: Actor,
    /// What.
    pub change: Change,
}

impl Draft {
    /// The entry that follows the one of this number and hash.
    pub fn after(self, last: (u64, Digest), at: Timestamp) -> Entry {
        let Self { actor: Actor { principal, role, from, action }, change } = self;
        let Change { resource, refused, before, after } = change;
        let mut entry = Entry {
            seq: last.0 + 1,
            at,
            principal: principal.to_string(),
            role,
            from: from.map(|from| from.to_string()).unwrap_or_default(),
            action,
            resource,
            refused,
            before,
            after,
            previous: last.1,
            hash: START,
        };
        entry.hash = entry.digest();
        entry
    }
}

/// An entry of the log. What it says is text, whatever it says: one that was tampered with can still be read, and
/// named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its number: the first is 1, and none is left out.
    pub seq: u64,
    /// When it was written.
    pub at: Timestamp,
    /// Who.
    pub principal: String,
    /// As what.
    pub role: String,
    /// From which address; empty: within the daemon.
    pub from: String,
    /// What was asked for.
    pub action: String,
    /// Of what, as `KIND/NAME`.
    pub resource: String,
    /// Why it was not done, if it was not.
    pub refused: Option<String>,
    /// The record before, as JSON.
    pub before: Option<String>,
    /// The record after, as JSON.
    pub after: Option<String>,
    /// The hash of the entry before it.
    pub previous: Digest,
    /// Its own.
    pub hash: Digest,
}

impl Entry {
    /// What its hash must be: of the previous hash, the number and the time (8 bytes each, little-endian) and the
    /// texts in the order of the fields, each with its length before it (8 bytes) and, where it may be missing, a
    /// byte that says whether it is there.
    pub fn digest(&self) -> Digest {
        let mut bytes = Vec::with_capacity(512);
        bytes.extend(b"atelier audit 1\n");
        bytes.extend(self.previous.as_bytes());
        bytes.extend(self.seq.to_le_bytes());
        bytes.extend(self.at.as_millis().to_le_bytes());
        let mut text = |text: &str| {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        for field in [&self.principal, &self.role, &self.from, &self.action, &self.resource] {
            text(field);
        }
        for field in [&self.refused, &self.before, &self.after] {
            bytes.push(u8::from(field.is_some()));
            let field = field.as_deref().unwrap_or_default();
            bytes.extend((field.len() as u64).to_le_bytes());
            bytes.extend(field.as_bytes());
        }
        Digest::of(&bytes)
    }

    /// As a line of an export, without the line's end.
    pub fn to_line(&self) -> String {
        let parsed = |text: &Option<String>| {
            text.as_ref().map(|text| {
                serde_json::from_str::<Value>(text)
                    .ok()
                    // What would be read as something else stays as it is, as text.
                    .filter(|value| !value.is_string() && is_written_as(value, text))
                    .unwrap_or_else(|| Value::String(text.clone()))
            })
        };
        let line = Line {
            seq: self.seq,
            at_ms: self.at,
            principal: self.principal.clone(),
            role: self.role.clone(),
            from: self.from.clone(),
            action: self.action.clone(),
            resource: self.resource.clone(),
            refused: self.refused.clone(),
            before: parsed(&self.before),
            after: parsed(&self.after),
            previous: self.previous,
            hash: self.hash,
        };
        serde_json::to_string(&line).unwrap_or_default()
    }

    /// Reads a line of an export.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of_line(line: &str) -> Result<Self, String> {
        let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let text = |value: Option<Value>| {
            value.map(|value| match value {
                Value::String(text) => text,
                value => value.to_string(),
            })
        };
        Ok(Self {
            seq: line.seq,
            at: line.at_ms,
            principal: line.principal,
            role: line.role,
            from: line.from,
            action: line.action,
            resource: line.resource,
            refused: line.refused,
            before: text(line.before),
            after: text(line.after),
            previous: line.previous,
            hash: line.hash,
        })
    }
}

fn is_written_as(value: &Value, text: &str) -> bool {
    let written = value.to_string();
    written == text
}

/// An entry as it is exported.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    seq: u64,
    at_ms: Timestamp,
    principal: String,
    role: String,
    from: String,
    action: String,
    resource: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<Value>,
    previous: Digest,
    hash: Digest,
}
