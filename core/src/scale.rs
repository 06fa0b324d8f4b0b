//! How many nodes a cluster has: grows as its queue needs, shrinks when nodes have been idle.

use crate::id::NodeName;
use crate::time::Timestamp;

#[cfg(test)]
mod tests;

/// All that the decision depends on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// Nodes that are kept in any case.
    pub min: u32,
    /// Machines at most, those on their way out included.
    pub max: u32,
    /// Milliseconds without work after which a node above the minimum is given up.
    pub idle_ms: i64,
    /// Nodes whose agents have joined and which get jobs, with the moment since which each has had
    /// none.
    pub up: Vec<(NodeName, Option<Timestamp>)>,
    /// Nodes on their way in, in the order in which they were asked for.
    pub coming: Vec<NodeName>,
    /// Nodes on their way out.
    pub leaving: u32,
    /// What the queue needs beside the nodes that are up and coming.
    pub wanted: u32,
    /// A job is in line that a node could hold.
    pub has_work: bool,
    /// No node is asked for before then.
    pub not_before: Option<Timestamp>,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scaling {
    /// Ask for so many more.
    pub add: u32,
    /// Take these away: they have no work.
    pub remove: Vec<NodeName>,
    /// Give these no more jobs, and take them away when those they have are over.
    pub retire: Vec<NodeName>,
}

/// Decides for one cluster. Pure.
pub fn scale(view: &View, now: Timestamp) -> Scaling {
    let mut scaling = Scaling::default();
    let kept = view.up.len() + view.coming.len();
    let (min, max) = (view.min as usize, view.max as usize);
    let mut idle: Vec<(Timestamp, &NodeName)> =
        view.up.iter().filter_map(|(node, since)| Some(((*since)?, node))).collect();
    // The longest idle first; the name decides among equals.
    idle.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.cmp(a.1)));
    if kept > max {
        // The maximum was lowered: first what is not there yet, then what has no work, then the rest.
        let mut excess = kept - max;
        let busy = view.up.iter().filter(|(_, since)| since.is_none()).map(|(node, _)| node);
        let unused = view.coming.iter().rev().chain(idle.iter().map(|(_, node)| *node));
        for node in unused.take(excess) {
            scaling.remove.push(node.clone());
        }
        excess -= scaling.remove.len();
        scaling.retire = busy.take(excess).cloned().collect();
        return scaling;
    }
    let room = max.saturating_sub(kept + view.leaving as usize);
    let target = min.max(kept + view.wanted as usize);
    if view.not_before.is_none_or(|until| until <= now) {
        scaling.add = u32::try_from(target.saturating_sub(kept).min(room)).unwrap_or(u32::MAX);
    }
    if !view.has_work {
        let due = |since: &Timestamp| now.as_millis() - since.as_millis() >= view.idle_ms;
        let spare = kept.saturating_sub(min);
        let given_up = idle.iter().take_while(|(since, _)| due(since)).take(spare);
        scaling.remove = given_up.map(|(_, node)| (*node).clone()).collect();
    }
    scaling
}
