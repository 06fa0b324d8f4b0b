//! When a certificate authority that another has taken over from may be retired: once nobody whom the daemon knows
//! relies on it.

use std::collections::BTreeMap;

use crate::id::{JobName, NodeName};
use crate::time::Timestamp;

/// Within this time a node without a certificate has come again, as all are told to, and has read who counts.
const COMES_AGAIN_MS: i64 = 30 * 1000;

/// A workspace whose authority has been taken over from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rotated {
    /// When.
    pub at: Timestamp,
    /// For how many milliseconds a node's certificate is valid at most.
    pub certificates_last_ms: i64,
}

/// A node that is known by a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Since when it is a node.
    pub since: Timestamp,
    /// Since when it is known to have a certificate of the new authority. It has learnt of the authority with that.
    pub moved_at: Option<Timestamp>,
}

/// An attempt that is not over. What runs there was told the authorities that its nodes knew when it was placed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Of which job.
    pub job: JobName,
    /// When it was placed.
    pub at: Timestamp,
    /// On which nodes.
    pub nodes: Vec<NodeName>,
}

/// Who relies on the authority before.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Behind {
    /// Nodes whose certificates may be of it.
    pub nodes: Vec<NodeName>,
    /// Jobs that may know nothing of the new one.
    pub jobs: Vec<JobName>,
}

/// It counts still.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the certificate authority before is relied on still, by {}; nodes move by themselves while they are connected, and \
     jobs end; or retire it all the same (--force): such nodes then have to join anew with a token (atelier node token \
     create --node NAME), and such jobs reach the daemon no more",
    .0.told()
)]
pub struct ReliedOn(pub Behind);

impl Behind {
    /// Whether nobody does.
    pub fn is_nobody(&self) -> bool {
        self.nodes.is_empty() && self.jobs.is_empty()
    }

    fn told(&self) -> String {
        /// Named, so many at most.
        const NAMED: usize = 5;
        let named = |what: &str, names: Vec<&str>| {
            let more = names.len().saturating_sub(NAMED);
            let shown: Vec<String> =
                names.iter().take(NAMED).map(|name| format!("'{name}'")).collect();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("{what} {}{more}", shown.join(", "))
        };
        let nodes: Vec<&str> = self.nodes.iter().map(NodeName::as_str).collect();
        let jobs: Vec<&str> = self.jobs.iter().map(JobName::as_str).collect();
        let told = [("the nodes", nodes), ("the jobs", jobs)];
        let told = told.into_iter().filter(|(_, names)| !names.is_empty());
        told.map(|(what, names)| named(what, names)).collect::<Vec<_>>().join(" and ")
    }
}

impl Rotated {
    /// Who relies on the authority before.
    pub fn behind(
        &self,
        members: &BTreeMap<NodeName, Member>,
        placed: &[Placed],
        now: Timestamp,
    ) -> Behind {
        // What it has issued is over by then.
        let is_over = now >= self.at.plus_millis(self.certificates_last_ms);
        let may_have_its_own =
            |member: &Member| member.moved_at.is_none() && member.since <= self.at && !is_over;
        let nodes = members.iter().filter(|(_, member)| may_have_its_own(member));
        // One without a certificate reads the authorities from a file, which is up to its admin.
        let knows_since = |node: &NodeName| match members.get(node) {
            Some(member) if member.since <= self.at => member.moved_at,
            Some(member) => Some(member.since),
            None => Some(self.at.plus_millis(COMES_AGAIN_MS)),
        };
        let knows_nothing = |attempt: &&Placed| {
            let mut nodes = attempt.nodes.iter();
            nodes.any(|node| knows_since(node).is_none_or(|since| attempt.at < since))
        };
        Behind {
            nodes: nodes.map(|(node, _)| node.clone()).collect(),
            jobs: placed.iter().filter(knows_nothing).map(|attempt| attempt.job.clone()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_790_000_000_000 + seconds * 1000)
    }

    fn node(name: &str) -> NodeName {
        NodeName::new(name).unwrap()
    }

    fn placed(job: &str, seconds: i64, nodes: &[&str]) -> Placed {
        let nodes = nodes.iter().map(|name| node(name)).collect();
        Placed { job: JobName::new(job).unwrap(), at: at(seconds), nodes }
    }

    #[test]
    fn those_are_behind_who_may_know_the_one_before_alone() {
        let rotated = Rotated { at: at(100), certificates_last_ms: 1000 * 1000 };
        let member =
            |since, moved: Option<i64>| Member { since: at(since), moved_at: moved.map(at) };
        let members = BTreeMap::from([
            (node("away"), member(0, None)),
            (node("moved"), member(0, Some(130))),
            (node("new"), member(101, None)),
        ]);
        let running = [
            placed("before", 50, &["moved"]),
            placed("between", 120, &["moved"]),
            placed("after", 130, &["moved"]),
            placed("on-new", 110, &["new"]),
            placed("gang", 140, &["moved", "away"]),
            placed("token-before", 129, &["by-token"]),
            placed("token-after", 130, &["by-token"]),
        ];
        let behind = rotated.behind(&members, &running, at(200));
        assert_eq!(behind.nodes, [node("away")]);
        let jobs: Vec<&str> = behind.jobs.iter().map(JobName::as_str).collect();
        assert_eq!(jobs, ["before", "between", "gang", "token-before"]);
        let told = ReliedOn(behind).to_string();
        for part in ["the nodes 'away' and the jobs 'before'", "--force", "node token create"] {
            assert!(told.contains(part), "{told}");
        }
        // Certificates of the one before are over by then.
        assert_eq!(rotated.behind(&members, &running[2..4], at(1100)), Behind::default());
        assert!(rotated.behind(&members, &[], at(1099)).nodes.len() == 1);
        let many = (0..7).map(|n| node(&format!("n{n}"))).collect();
        let told = ReliedOn(Behind { nodes: many, jobs: Vec::new() }).to_string();
        assert!(told.contains("'n4' and 2 more;"), "{told}");
    }
}
