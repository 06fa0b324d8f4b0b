//! A simulated provider: adds and removes machines after a while, or fails.

use std::collections::BTreeMap;

use super::node_record;
use crate::compute::Cluster;
use crate::id::{ComputeName, NodeName};
use crate::node::NodeRecord;

/// From an order until it is done, in milliseconds.
const TAKES_MS: u64 = 120;

/// What the provider has done.
pub(super) enum Done {
    /// A machine is there; its record the first time.
    Added { node: NodeName, record: Option<Box<NodeRecord>> },
    /// A machine is there no more.
    Removed { node: NodeName },
    /// It could not.
    Failed { node: NodeName, adds: bool },
}

/// When it is done, and the machine's record if it is to add one.
type Order = (u64, Option<Box<NodeRecord>>);

/// Orders under way.
#[derive(Default)]
pub(super) struct Provider {
    orders: BTreeMap<(NodeName, bool), Order>,
    /// Machines at most, as admins ever allowed.
    most: BTreeMap<ComputeName, u32>,
    /// What machines have, where that is not what their size says.
    pub(super) memory: Option<u64>,
    /// Machines have none of the labels that they should have.
    pub(super) forgets_labels: bool,
    /// It fails until then.
    pub(super) fails_until: u64,
}

impl Provider {
    pub(super) fn allow(&mut self, cluster: &Cluster) {
        let most = self.most.entry(cluster.name.clone()).or_default();
        *most = (*most).max(cluster.max_instances);
    }

    pub(super) fn most(&self, compute: &ComputeName) -> u32 {
        self.most.get(compute).copied().unwrap_or_default()
    }

    pub(super) fn add(&mut self, cluster: &Cluster, node: &NodeName, now: u64) {
        let mut capacity = cluster.node.capacity();
        capacity.memory = self.memory.unwrap_or(capacity.memory);
        if !self.forgets_labels {
            capacity.labels.clone_from(&cluster.node_labels);
        }
        let record = node_record(node.as_str(), cluster.name.as_str(), capacity);
        let order = (now + TAKES_MS, Some(Box::new(record)));
        self.orders.entry((node.clone(), true)).or_insert(order);
    }

    /// What was ordered before for the node is void.
    pub(super) fn remove(&mut self, node: &NodeName, now: u64) {
        self.orders.remove(&(node.clone(), true));
        self.orders.entry((node.clone(), false)).or_insert((now + TAKES_MS, None));
    }

    pub(super) fn due(&mut self, now: u64) -> Vec<Done> {
        let due: Vec<_> = self
            .orders
            .iter()
            .filter(|(_, (at, _))| *at <= now)
            .map(|(order, _)| order.clone())
            .collect();
        due.into_iter()
            .filter_map(|order| {
                let (_, record) = self.orders.remove(&order)?;
                let (node, adds) = order;
                Some(match adds {
                    _ if now < self.fails_until => Done::Failed { node, adds },
                    true => Done::Added { node, record },
                    false => Done::Removed { node },
                })
            })
            .collect()
    }
}
