//! Entries of the audit log.

use atelier_core::audit::{Entry, START};
use atelier_core::time::Timestamp;

use crate::audit::v1 as pb;

impl From<Entry> for pb::AuditEntry {
    fn from(entry: Entry) -> Self {
        Self {
            seq: entry.seq,
            at_ms: entry.at.as_millis(),
            principal: entry.principal,
            role: entry.role,
            from: entry.from,
            action: entry.action,
            resource: entry.resource,
            refused: entry.refused,
            before: entry.before,
            after: entry.after,
            previous: entry.previous.as_bytes().to_vec().into(),
            hash: entry.hash.as_bytes().to_vec().into(),
        }
    }
}

impl From<pb::AuditEntry> for Entry {
    /// A hash of another length is none, and follows from nothing.
    fn from(entry: pb::AuditEntry) -> Self {
        let hash = |bytes: &[u8]| bytes.try_into().unwrap_or(START);
        Self {
            seq: entry.seq,
            at: Timestamp::from_millis(entry.at_ms),
            principal: entry.principal,
            role: entry.role,
            from: entry.from,
            action: entry.action,
            resource: entry.resource,
            refused: entry.refused,
            before: entry.before,
            after: entry.after,
            previous: hash(&entry.previous),
            hash: hash(&entry.hash),
        }
    }
}
