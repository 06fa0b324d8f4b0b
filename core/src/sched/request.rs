//! What is asked of a compute, and what is held of its nodes.

use std::fmt;
use std::sync::Arc;

use crate::id::{ComputeName, JobName, NodeName, Principal};
use crate::job::Job;
use crate::resource::{Demand, Reservation};
use crate::spec::{JobResources, JobTier};
use crate::time::Timestamp;

use super::{DataPlace, Rank};

/// What a job asks for: so many nodes at once, and so much of each.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Request {
    /// How many nodes; each holds one member of the job. At least one.
    pub members: u32,
    /// What each member takes of its node.
    pub demand: Demand,
}

impl Request {
    /// One node.
    pub fn one(demand: Demand) -> Self {
        Self { members: 1, demand }
    }
}

impl From<&JobResources> for Request {
    fn from(resources: &JobResources) -> Self {
        Self { members: resources.instance_count.max(1), demand: resources.demand.clone() }
    }
}

impl From<&Job> for Request {
    fn from(job: &Job) -> Self {
        Self { demand: job.demand(), ..Self::from(&job.spec.resources) }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.members > 1 {
            write!(f, "{} nodes with {} each", self.members, self.demand)
        } else {
            self.demand.fmt(f)
        }
    }
}

/// A job in the queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// Which.
    pub job: JobName,
    /// Whose.
    pub user: Principal,
    /// What it asks for.
    pub request: Request,
    /// Milliseconds that it holds its nodes at most, as far as anybody can say; `None`: nobody can.
    pub most_ms: Option<u64>,
    /// It is not started yet, after a failed attempt.
    pub not_before: Option<BackOff>,
    /// What it reads: a node that holds some of it is preferred.
    pub inputs: Arc<[DataPlace]>,
}

/// A failed attempt is followed by the next after a while.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackOff {
    /// Not before this.
    pub until: Timestamp,
    /// What went wrong, in words.
    pub why: Arc<str>,
}

/// A job and the nodes it goes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    /// The compute.
    pub compute: ComputeName,
    /// The job's place in the queue.
    pub rank: Rank,
    /// The job.
    pub job: JobName,
    /// Where its members go, the first member's node first. No node comes twice.
    pub nodes: Vec<NodeName>,
    /// What it takes there.
    pub request: Request,
    /// What it holds of each of the nodes, in their order.
    pub held: Vec<Reservation>,
    /// It goes ahead of another to whom the nodes are promised from then on, and makes way if it is
    /// still there.
    pub yields_at: Option<Timestamp>,
}

/// What a job holds of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hold {
    /// Whose it is.
    pub user: Principal,
    /// The place in the queue that it had.
    pub rank: Rank,
    /// What it holds.
    pub reservation: Reservation,
    /// Since when.
    pub since: Timestamp,
    /// When it ends at the latest, as far as anybody can say.
    pub until: Option<Timestamp>,
    /// When it makes way for the one to whom the node is promised.
    pub yields_at: Option<Timestamp>,
    /// Since when it is on its way out: asked to stop, or storing what it leaves.
    pub going: Option<Timestamp>,
}

/// Nodes that are kept for the first in line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Promise {
    /// Its place in the queue.
    pub rank: Rank,
    /// Its place among all users' jobs when it got to the front. It stays there, whatever its user is
    /// given meanwhile, until another comes before this place.
    pub place: Rank,
    /// The nodes. Others get them only if they are away in time.
    pub nodes: Vec<NodeName>,
    /// When it starts at the latest; `None` if nobody can say.
    pub at: Option<Timestamp>,
}

/// A job that is to make way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Eviction {
    /// Which.
    pub job: JobName,
    /// For whom.
    pub for_job: JobName,
    /// Why.
    pub why: Yields,
}

/// Why a job makes way for another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Yields {
    /// The other is of this tier, which is higher.
    Tier(JobTier),
    /// It was let ahead of others because it said that it would be over by now.
    Late,
}

impl fmt::Display for Eviction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.why {
            Yields::Tier(tier) => {
                write!(f, "job {} of tier {} needs its node", self.for_job, tier.word())
            }
            Yields::Late => write!(
                f,
                "it was let ahead of others and has taken longer than its limits.timeout said, and job {} \
                 needs its node",
                self.for_job
            ),
        }
    }
}
