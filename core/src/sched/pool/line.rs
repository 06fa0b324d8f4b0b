//! One user's jobs in line.

use imbl::{OrdMap, OrdSet};

use crate::sched::{Rank, Request, Waiting};

/// What decides whether and where a job may start.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Kind {
    pub(super) request: Request,
    pub(super) most_ms: Option<u64>,
}

impl Kind {
    pub(super) fn of(waiting: &Waiting) -> Self {
        Self { request: waiting.request.clone(), most_ms: waiting.most_ms }
    }
}

/// The jobs in line of one kind.
#[derive(Clone, Debug, Default)]
struct Class {
    ranks: OrdSet<Rank>,
    /// The nodes that get jobs could hold one of them when empty.
    startable: bool,
}

/// A user's jobs in line, by kind: what holds for one holds for its class.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    ranks: OrdSet<Rank>,
    classes: OrdMap<Kind, Class>,
    /// The first of each class that could start on the open nodes.
    heads: OrdMap<Rank, Kind>,
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.ranks.is_empty()
    }

    /// Places of all of them, in order.
    pub(super) fn ranks(&self) -> &OrdSet<Rank> {
        &self.ranks
    }

    /// How many there are of each kind.
    pub(super) fn classes(&self) -> impl Iterator<Item = (&Request, usize)> {
        self.classes.iter().map(|(kind, class)| (&kind.request, class.ranks.len()))
    }

    /// The first of each class that could start, in order.
    pub(super) fn heads(&self) -> impl Iterator<Item = (Rank, &Kind)> {
        self.heads.iter().map(|(rank, kind)| (*rank, kind))
    }

    /// The first class's head after `rank`, or of all.
    pub(super) fn head_after(&self, rank: Option<Rank>) -> Option<(Rank, &Kind)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = rank.map_or(Unbounded, Excluded);
        let (rank, kind) = self.heads.range((from, Unbounded)).next()?;
        Some((*rank, kind))
    }

    /// The first of a kind.
    pub(super) fn first_of(&self, kind: &Kind) -> Option<Rank> {
        self.classes.get(kind)?.ranks.get_min().copied()
    }

    /// Whether one of the kind could start; `None` if there is none.
    pub(super) fn is_startable(&self, kind: &Kind) -> Option<bool> {
        self.classes.get(kind).map(|class| class.startable)
    }

    pub(super) fn insert(&mut self, rank: Rank, kind: Kind, startable: bool) {
        self.ranks.insert(rank);
        let class = self.classes.entry(kind.clone()).or_default();
        class.startable = startable;
        let first = class.ranks.get_min().copied();
        class.ranks.insert(rank);
        if startable && first.is_none_or(|first| rank < first) {
            if let Some(first) = first {
                self.heads.remove(&first);
            }
            self.heads.insert(rank, kind);
        }
    }

    pub(super) fn remove(&mut self, rank: Rank, kind: &Kind) {
        self.ranks.remove(&rank);
        self.heads.remove(&rank);
        let Some(class) = self.classes.get_mut(kind) else { return };
        class.ranks.remove(&rank);
        match class.ranks.get_min() {
            Some(first) if class.startable => {
                self.heads.insert(*first, kind.clone());
            }
            Some(_) => {}
            None => {
                self.classes.remove(kind);
            }
        }
    }

    /// Looks anew at the classes for which it may have changed whether they could start; whether
    /// any has.
    pub(super) fn judge(
        &mut self,
        may_differ: impl Fn(&Request, bool) -> bool,
        could_start: impl Fn(&Request) -> bool,
    ) -> bool {
        let changed: Vec<Kind> = self
            .classes
            .iter()
            .filter(|(kind, class)| may_differ(&kind.request, class.startable))
            .filter(|(kind, class)| could_start(&kind.request) != class.startable)
            .map(|(kind, _)| kind.clone())
            .collect();
        for kind in &changed {
            let Some(class) = self.classes.get_mut(kind) else { continue };
            class.startable = !class.startable;
            let Some(first) = class.ranks.get_min() else { continue };
            if class.startable {
                self.heads.insert(*first, kind.clone());
            } else {
                self.heads.remove(first);
            }
        }
        !changed.is_empty()
    }
}
