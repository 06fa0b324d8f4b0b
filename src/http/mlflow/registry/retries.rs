//! Requests whose answer nobody got. MLflow's wire has no key for a request, and two alike may both be meant: the
//! same model is registered twice on purpose. But a client that is gone before it is answered asks again, and then it
//! must find what it made.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use atelier_core::content::Digest;
use atelier_core::time::Timestamp;

use super::super::call::Call;
use super::super::failure::Failure;
use crate::store::IdempotencyKey;

/// How long one is remembered: longer than clients go on asking.
const REMEMBERED_MS: i64 = 10 * 60 * 1000;
/// How many are.
const MOST: usize = 1000;

struct Unanswered {
    fingerprint: Digest,
    key: String,
    since: Timestamp,
}

/// Requests that were under way when their client went. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Retries(Arc<Mutex<VecDeque<Unanswered>>>);

/// A request under way. Dropped before it is [`Asked::answered`], it may come again.
pub(super) struct Asked {
    retries: Retries,
    request: Option<Unanswered>,
}

impl Retries {
    /// Takes note of a request, which may be one that was under way before.
    pub(super) fn asked(&self, call: &Call) -> Result<Asked, Failure> {
        let now = call.state.tracking.now();
        let fingerprint = call.fields.digest(call.caller.principal.as_str());
        let known = {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|one| {
                now.as_millis().saturating_sub(one.since.as_millis()) < REMEMBERED_MS
            });
            let at = known.iter().position(|one| one.fingerprint == fingerprint);
            at.and_then(|at| known.remove(at))
        };
        let key = match known {
            Some(known) => known.key,
            None => new_key()?,
        };
        let request = Some(Unanswered { fingerprint, key, since: now });
        Ok(Asked { retries: self.clone(), request })
    }
}

fn new_key() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        Failure::unavailable(format!("no random bits for the key of a request: {error}"))
    })?;
    let mut key = "mlflow-".to_owned();
    for byte in bytes {
        let _ = write!(key, "{byte:02x}");
    }
    Ok(key)
}

impl Asked {
    /// The key by which the store knows the request.
    pub(super) fn key(&self) -> Option<IdempotencyKey> {
        let Unanswered { fingerprint, key, .. } = self.request.as_ref()?;
        Some(IdempotencyKey { key: key.clone(), fingerprint: *fingerprint })
    }

    /// There is an answer, and somebody to get it.
    pub(super) fn answered(mut self) {
        self.request = None;
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let Some(request) = self.request.take() else { return };
        let mut known = self.retries.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.push_back(request);
        if known.len() > MOST {
            known.pop_front();
        }
    }
}
