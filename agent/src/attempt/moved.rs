//! What of an attempt's inputs had to be fetched, and what its node holds of them from then on.

use std::collections::BTreeMap;

use atelier_core::spec::Input;

use super::{Attempt, News};
use crate::data::{Moved, mount};
use crate::record;

/// In the attempt's folder: what was moved before the command started.
const RECORD: &str = "inputs.json";

/// Notes what was moved before the command starts, and tells the daemon what the node holds now.
pub(super) async fn note(attempt: &Attempt, moved: Moved) {
    if moved.bytes == 0 {
        return;
    }
    if let Err(error) = record::write(attempt.folder.path(), RECORD, &moved) {
        tracing::warn!(epoch = attempt.key.epoch, %error, "cannot note what was moved for a job");
    }
    tell(attempt).await;
}

/// Tells the daemon what the node holds now, if the attempt may have changed that: before the report that starts
/// the next job.
pub(super) async fn tell(attempt: &Attempt) {
    let has_data = attempt.spec.inputs.values().any(|input| matches!(input, Input::Data { .. }));
    // It is told with the next session, if there is none.
    let Some(services) = attempt.node.services.borrow().clone().filter(|_| has_data) else {
        return;
    };
    let held = tokio::task::spawn_blocking(move || services.data.held_inputs()).await;
    if let Ok(held) = held {
        let _ = attempt.node.news.send(News::Held(held));
    }
}

/// Counts what its inputs are, and how much of them was fetched. The server of mounted ones has ended.
pub(super) fn count(attempt: &Attempt, usage: &mut BTreeMap<String, f64>) {
    let folder = attempt.folder.path();
    let Ok(Some(moved)) = record::read::<Moved>(folder, RECORD) else { return };
    let fetched = moved.fetched + mount::fetched(folder);
    usage.insert("input_bytes".to_owned(), moved.bytes as f64);
    usage.insert("input_fetched_bytes".to_owned(), fetched as f64);
}
