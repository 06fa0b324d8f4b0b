//! Data locality: of the nodes that have room for a job, one that holds its inputs already.
//!
//! Nodes tell what their caches hold of which inputs. It is a preference and nothing else: what a node
//! holds never makes a job start that would not, or wait that would not, and has no say in who is next. What a job
//! that has to wait is promised is the node that has room first, whatever it holds.
//!
//! What it may cost of packing is bounded (`costs_little` in `pool::nodes`). GPUs are not given up for it: the node
//! must strand no more of them, and leave no more of them free, than the one that packing alone would take. Of CPU it
//! may leave an eighth of the node more unused: a copy is fetched once, but a hole that a large job cannot use stays
//! as long as the job beside it runs. So a node without jobs is broken into for its data where the others are
//! about as empty, and not where the job would fill a gap.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use crate::id::{DatastoreName, NodeName};
use crate::spec::{CommandJob, Input, InputMode};

/// What is less is fetched in no time, in bytes.
pub const LEAST: u64 = 1 << 20;
/// Inputs of a node that are known at most; a node tells of those that it used last.
pub const INPUTS: usize = 128;
/// So many of a job's inputs, of what lies below each, and of the nodes that hold it, are looked at.
const LOOKED_AT: usize = 64;

/// Where an input lies: an object, or all that is below a folder. In order, so that what lies below a folder comes
/// right after it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DataPlace {
    /// The datastore.
    pub datastore: DatastoreName,
    /// Within it, without a slash at the end; empty: all of it.
    path: Arc<str>,
}

impl DataPlace {
    /// A path as people write it.
    pub fn new(datastore: DatastoreName, path: &str) -> Self {
        Self { datastore, path: path.trim_matches('/').into() }
    }

    /// Within the datastore, without a slash at the end.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether the other lies below.
    fn has_below(&self, other: &Self) -> bool {
        let below = other.path.strip_prefix(&*self.path);
        let is_below =
            |rest: &str| !rest.is_empty() && (self.path.is_empty() || rest.starts_with('/'));
        self.datastore == other.datastore && below.is_some_and(is_below)
    }

    /// What a job reads on its node, each place once. What it reads by itself (`direct`) is not there.
    pub fn of_job(spec: &CommandJob) -> Arc<[Self]> {
        let place = |input: &Input| match input {
            Input::Data { mode: InputMode::Direct, .. } => None,
            Input::Data { uri, .. } => {
                uri.read_from().map(|(datastore, path)| Self::new(datastore, &path))
            }
            Input::Literal { .. } | Input::Unset => None,
        };
        let places: BTreeSet<Self> = spec.inputs.values().filter_map(place).collect();
        places.into_iter().take(LOOKED_AT).collect()
    }
}

/// Which nodes hold how many bytes of which inputs, as they told last. What they hold may be of an older content than
/// what lies there now: then it is fetched, and all that was lost is the preference.
#[derive(Clone, Debug, Default)]
pub struct Holders {
    nodes: OrdMap<NodeName, OrdMap<DataPlace, u64>>,
    /// Who holds the most of a place comes first.
    places: OrdMap<DataPlace, OrdSet<(Reverse<u64>, NodeName)>>,
}

impl Holders {
    /// All that a node holds, in the place of what it told before.
    pub fn set(&mut self, node: &NodeName, held: impl IntoIterator<Item = (DataPlace, u64)>) {
        self.forget(node);
        let held: OrdMap<DataPlace, u64> =
            held.into_iter().filter(|(_, bytes)| *bytes > 0).take(INPUTS).collect();
        for (place, bytes) in &held {
            self.places.entry(place.clone()).or_default().insert((Reverse(*bytes), node.clone()));
        }
        if !held.is_empty() {
            self.nodes.insert(node.clone(), held);
        }
    }

    /// Knows nothing of a node any more.
    pub fn forget(&mut self, node: &NodeName) {
        for (place, bytes) in self.nodes.remove(node).unwrap_or_default() {
            let Some(holders) = self.places.get_mut(&place) else { continue };
            holders.remove(&(Reverse(bytes), node.clone()));
            if holders.is_empty() {
                self.places.remove(&place);
            }
        }
    }

    /// How many bytes of a job's inputs a node holds. Of a folder that it does not know as such, what it holds of one
    /// below counts: the most, as these may be within one another.
    pub fn bytes(&self, node: &NodeName, inputs: &[DataPlace]) -> u64 {
        let Some(held) = self.nodes.get(node) else { return 0 };
        let of = |input: &DataPlace| match held.get(input) {
            Some(bytes) => *bytes,
            None => below(held, input).map(|(_, bytes)| *bytes).max().unwrap_or_default(),
        };
        inputs.iter().map(of).fold(0, u64::saturating_add)
    }

    /// The nodes that hold enough of a job's inputs to be preferred, those that hold the most first.
    pub fn of(&self, inputs: &[DataPlace]) -> Vec<(NodeName, u64)> {
        let mut nodes: BTreeMap<&NodeName, u64> = BTreeMap::new();
        for input in inputs.iter().take(LOOKED_AT) {
            let exact = self.places.get(input).into_iter();
            for holders in exact.chain(below(&self.places, input).map(|(_, holders)| holders)) {
                for (_, node) in holders.iter().take(LOOKED_AT) {
                    nodes.entry(node).or_insert_with(|| self.bytes(node, inputs));
                }
            }
        }
        let enough = nodes.into_iter().filter(|(_, bytes)| *bytes >= LEAST);
        let mut enough: Vec<(NodeName, u64)> =
            enough.map(|(node, bytes)| (node.clone(), bytes)).collect();
        enough.sort_by(|(one, least), (other, most)| most.cmp(least).then_with(|| one.cmp(other)));
        enough.truncate(LOOKED_AT);
        enough
    }
}

/// Places below another.
fn below<'a, T>(
    places: &'a OrdMap<DataPlace, T>,
    input: &'a DataPlace,
) -> impl Iterator<Item = (&'a DataPlace, &'a T)> {
    use std::ops::Bound::{Excluded, Unbounded};
    // Names that go on otherwise (`a-b` after `a`) are among those below (`a/b`).
    let after = places.range((Excluded(input.clone()), Unbounded)).take(4 * LOOKED_AT);
    let near = after.take_while(|(place, _)| {
        place.datastore == input.datastore && place.path.starts_with(&*input.path)
    });
    near.filter(|(place, _)| input.has_below(place)).take(LOOKED_AT)
}
