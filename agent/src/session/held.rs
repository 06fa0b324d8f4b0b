//! Telling the daemon what this node's cache holds of inputs.

use std::sync::Arc;
use std::time::Duration;

use atelier_proto::agent::v1 as pb;
use pb::agent_message::Message as Up;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::message;
use crate::attempt::Services;

/// Between two looks, for what goes when no attempt ends: what is pruned or gives room.
const AGAIN: Duration = Duration::from_secs(30);

/// What one session has told.
pub(super) struct Held {
    told: Option<pb::HeldInputs>,
    looks: JoinSet<pb::HeldInputs>,
    /// The first look is at once.
    again: Interval,
}

impl Held {
    pub(super) fn new() -> Self {
        let mut again = interval(AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { told: None, looks: JoinSet::new(), again }
    }

    /// Gives what is there whenever it was looked at. May be dropped before it is ready.
    pub(super) async fn look(&mut self, services: Option<Arc<Services>>) -> pb::HeldInputs {
        loop {
            tokio::select! {
                Some(held) = self.looks.join_next() => {
                    if let Ok(held) = held {
                        return held;
                    }
                }
                _ = self.again.tick(), if self.looks.is_empty() => {
                    if let Some(services) = services.clone() {
                        self.looks.spawn_blocking(move || services.data.held_inputs());
                    }
                }
            }
        }
    }

    /// Tells it if it is not what was told before.
    pub(super) fn tell(
        &mut self,
        held: pb::HeldInputs,
        up: &mpsc::UnboundedSender<pb::AgentMessage>,
    ) {
        if self.told.as_ref().is_none_or(|told| *told != held) {
            let _ = up.send(message(Up::Held(held.clone())));
            self.told = Some(held);
        }
    }
}
