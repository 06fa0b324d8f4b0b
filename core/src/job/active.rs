//! An attempt in progress: its members, each on a node.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{AttemptEnd, Cancel, Evict, Exit, Left, MemberLeft, OutputCommit, Phase, Usage};
use crate::id::{AttemptNumber, Epoch, NodeName, PortName};
use crate::resource::Reservation;
use crate::spec::CommandJob;
use crate::time::Timestamp;

/// An attempt in progress.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Active {
    /// Which try.
    pub attempt: AttemptNumber,
    /// Its fencing number.
    pub epoch: Epoch,
    /// The member of rank 0.
    #[serde(flatten)]
    pub first: Member,
    /// Those of rank 1 and on; empty for a job on one node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Member>,
    /// When it was placed.
    pub assigned_at: Timestamp,
    /// Set once somebody asked it to stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<Cancel>,
    /// Set once the attempt was asked to make way. The job goes back in the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evict: Option<Evict>,
    /// Set once a member failed while others ran: they are asked to stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
    /// Set once the command of a job that has a head
    /// ([`CommandJob::has_head`](crate::spec::CommandJob::has_head)) is over: the others are asked to stop, and
    /// how their processes end is of no account.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dismissed: bool,
    /// When it makes way for another ahead of which it was let, if it is still there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yields_at: Option<Timestamp>,
}

/// A member of an attempt.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Where.
    pub node: NodeName,
    /// What it holds there.
    pub reservation: Reservation,
    /// How far it is.
    pub phase: Phase,
    /// When the command started, by the node's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// Since when its GPUs have done nothing, by the node's clock, once its user is to be told of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_since: Option<Timestamp>,
    /// The node has been silent for too long. It may come back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unreachable: bool,
    /// Set once it is over, while others are not. It then holds nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Box<AttemptEnd>>,
}

/// The member that failed first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failed {
    /// Its rank.
    pub rank: u32,
    /// What the others are told.
    pub reason: String,
}

impl Member {
    /// One that was just placed.
    pub fn placed(node: NodeName, reservation: Reservation) -> Self {
        let phase = Phase::Starting;
        Self {
            node,
            reservation,
            phase,
            started_at: None,
            idle_since: None,
            unreachable: false,
            end: None,
        }
    }
}

impl Active {
    /// All members, by rank.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Those that are not over, with their ranks.
    pub fn working(&self) -> impl Iterator<Item = (u32, &Member)> {
        (0..).zip(self.members()).filter(|(_, member)| member.end.is_none())
    }

    /// Whether it is on several nodes.
    pub fn is_gang(&self) -> bool {
        !self.others.is_empty()
    }

    /// The member on a node, if it has one there that is not over, with its rank.
    pub fn on(&self, node: &NodeName) -> Option<(u32, &Member)> {
        self.working().find(|(_, member)| &member.node == node)
    }

    /// The same, to change it.
    pub fn on_mut(&mut self, node: &NodeName) -> Option<&mut Member> {
        std::iter::once(&mut self.first)
            .chain(&mut self.others)
            .find(|member| &member.node == node && member.end.is_none())
    }

    /// How far it is: as far as the member that is least far. One whose members are all over is
    /// finalizing.
    pub fn phase(&self) -> Phase {
        let least = self.working().map(|(_, member)| &member.phase).min_by_key(|p| p.rank());
        least.cloned().unwrap_or(Phase::Finalizing { exit: None })
    }

    /// Whether the daemon does not hear from one of its nodes.
    pub fn is_unreachable(&self) -> bool {
        self.working().any(|(_, member)| member.unreachable)
    }

    /// When the first command of it started.
    pub fn started_at(&self) -> Option<Timestamp> {
        self.members().filter_map(|member| member.started_at).min()
    }

    /// What all of its members were asked to stop for, if they were.
    pub fn stop_reason(&self) -> Option<&str> {
        let canceled = self.cancel.as_ref().map(|cancel| &cancel.reason);
        let evicted = self.evict.as_ref().map(|evict| &evict.reason);
        let failed = self.failed.as_ref().map(|failed| &failed.reason);
        canceled.or(evicted).or(failed).map(String::as_str)
    }

    /// What the member of this rank was asked to stop for, if it was.
    pub fn stop_reason_of(&self, rank: u32) -> Option<&str> {
        let dismissed = (self.dismissed && rank > 0).then_some(Self::DISMISSED);
        self.stop_reason().or(dismissed)
    }

    /// What members are told whose head's command is over.
    pub const DISMISSED: &str = "the command is over on the head";

    /// How it ended, once all of its members are over: as the first that failed did, or else as the
    /// first of them.
    pub fn end(&self) -> Option<&AttemptEnd> {
        if self.working().next().is_some() {
            return None;
        }
        self.members().nth(self.decisive() as usize)?.end.as_deref()
    }

    /// Since when a member is on its way out, if it is. What is not known is taken to be long ago.
    pub fn going_since(&self, member: &Member) -> Option<Timestamp> {
        let dismissed = self.dismissed && member.node != self.first.node;
        let stops =
            matches!(member.phase, Phase::Finalizing { .. }) || self.failed.is_some() || dismissed;
        let canceled = self.cancel.as_ref().map(|cancel| cancel.at);
        let evicted = self.evict.as_ref().map(|evict| evict.at);
        canceled.or(evicted).or(stops.then_some(self.assigned_at))
    }

    /// The rank of the member whose end is the attempt's.
    fn decisive(&self) -> u32 {
        let first = self.failed.as_ref().map(|failed| failed.rank);
        let failed = |(rank, member): &(u32, &Member)| {
            member.end.as_ref().is_some_and(|end| self.fails(*rank, end))
        };
        let any = || (0..).zip(self.members()).find(failed);
        first.or_else(|| any().map(|(rank, _)| rank)).unwrap_or_default()
    }

    /// Whether the end of the member of this rank makes the attempt a failure.
    pub fn fails(&self, rank: u32, end: &AttemptEnd) -> bool {
        match self.dismissed && rank > 0 {
            true => !end.is_dismissal(),
            false => !end.is_success(),
        }
    }

    /// The head's command was successful by itself, which is told only after members that served it were over:
    /// they are taken to have been dismissed. Not where one has not stored what it wrote, or was given up: then
    /// what was decided since stands.
    pub(crate) fn excuse(&mut self) {
        let served = |failed: &Failed| failed.rank > 0;
        let mut ends = self.others.iter().filter_map(|member| member.end.as_ref());
        let is_asked = self.cancel.is_some() || self.evict.is_some();
        if !is_asked
            && self.failed.as_ref().is_some_and(served)
            && ends.all(|end| end.is_dismissal())
        {
            self.failed = None;
            self.dismissed = true;
        }
    }

    /// What it leaves behind, once all of its members are over.
    pub fn left(&self, spec: &CommandJob, partial: bool) -> Left {
        let mut sums: BTreeMap<&PortName, (u64, u64)> = BTreeMap::new();
        let ends = self.members().filter_map(|member| member.end.as_ref());
        for (name, files, bytes) in ends.flat_map(|end| &end.outputs) {
            let sum = sums.entry(name).or_default();
            *sum = (sum.0 + files, sum.1 + bytes);
        }
        let outputs = sums
            .into_iter()
            .map(|(name, (files, bytes))| {
                let uri = spec.outputs.get(name).and_then(|output| output.path.clone());
                let (name, uri) = (name.clone(), uri.unwrap_or_default());
                OutputCommit { name, uri, files, bytes, partial }
            })
            .collect();
        let of = |member: &Member| -> (Option<Timestamp>, Option<Exit>, _, u64) {
            let end = member.end.as_deref();
            (
                end.and_then(|end| end.started_at).or(member.started_at),
                end.and_then(|end| end.exit),
                end.and_then(|end| end.manifest.clone()),
                end.map_or(0, |end| end.log_bytes),
            )
        };
        let (started_at, exit, manifest, log_bytes) = of(&self.first);
        let others = self
            .others
            .iter()
            .map(|member| {
                let (started_at, exit, manifest, log_bytes) = of(member);
                MemberLeft { node: member.node.clone(), started_at, exit, manifest, log_bytes }
            })
            .collect();
        let node = Some(self.first.node.clone());
        let decisive = self.decisive();
        let ends = self.members().filter_map(|member| member.end.as_ref());
        let usage = ends.filter_map(|end| end.usage).reduce(Usage::with);
        Left { started_at, exit, node, manifest, outputs, log_bytes, others, decisive, usage }
    }
}
