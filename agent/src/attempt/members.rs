//! The members of a job of several nodes, and where they meet.

use serde_json::{Value, json};

/// Where a job of one node would meet itself: what Azure ML and TensorFlow use.
const MASTER_PORT: u16 = 6105;
const TF_PORT: u16 = 2222;
/// Gangs meet at ports from here on, below those that systems give to clients.
const FIRST_PORT: u16 = 20_000;
/// Each has so many in a row, one for each member, in case several share a machine.
const PORTS: u16 = 64;
/// And so many gangs at once have ports of their own.
const SLOTS: u64 = 187;

/// A member among the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Members<'a> {
    pub(crate) rank: u32,
    /// Of all of them, by rank; at most one for a job on one node.
    pub(crate) addresses: &'a [String],
    /// The attempt's, which is the same for all of them.
    pub(crate) epoch: u64,
}

impl Members<'_> {
    pub(crate) fn count(&self) -> usize {
        self.addresses.len().max(1)
    }

    /// Where the member of this rank is reached. One alone reaches itself.
    pub(crate) fn address(&self, rank: usize) -> &str {
        match self.addresses.get(rank).map(String::as_str) {
            Some(address) if self.count() > 1 => address,
            _ => "127.0.0.1",
        }
    }

    pub(crate) fn all(&self) -> Vec<&str> {
        (0..self.count()).map(|rank| self.address(rank)).collect()
    }

    /// Where the first member listens for the others. Gangs of different attempts have different
    /// ports, so that two of them on the same machines do not meet.
    pub(crate) fn master_port(&self) -> u16 {
        if self.count() == 1 { MASTER_PORT } else { self.port(0) }
    }

    fn port(&self, rank: usize) -> u16 {
        let slot = u16::try_from(self.epoch % SLOTS).unwrap_or_default();
        let own = u16::try_from(rank % usize::from(PORTS)).unwrap_or_default();
        FIRST_PORT + slot * PORTS + own
    }

    /// TensorFlow's description of the cluster; the last `servers` members are parameter servers.
    pub(crate) fn tf_config(&self, servers: usize) -> Value {
        let count = self.count();
        let port = |rank: usize| if count == 1 { TF_PORT } else { self.port(rank) };
        let at = |rank: usize| format!("{}:{}", self.address(rank), port(rank));
        let workers = count - servers.min(count - 1);
        let mut cluster = json!({ "worker": (0..workers).map(at).collect::<Vec<_>>() });
        if workers < count {
            cluster["ps"] = json!((workers..count).map(at).collect::<Vec<_>>());
        }
        let rank = self.rank as usize;
        let (kind, index) = if rank < workers { ("worker", rank) } else { ("ps", rank - workers) };
        json!({ "cluster": cluster, "task": { "type": kind, "index": index }, "environment": "cloud" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["n0", "n1", "n1", "n3"].map(str::to_owned).to_vec()
    }

    #[test]
    fn one_alone_meets_itself_where_it_always_did() {
        let names = ["far".to_owned()];
        for addresses in [&[][..], &names] {
            let one = Members { rank: 0, addresses, epoch: 9 };
            assert_eq!((one.count(), one.address(0), one.master_port()), (1, "127.0.0.1", 6105));
            let config = one.tf_config(0);
            assert_eq!(config["cluster"], json!({ "worker": ["127.0.0.1:2222"] }));
            assert_eq!(config["task"], json!({ "type": "worker", "index": 0 }));
        }
    }

    #[test]
    fn members_agree_on_where_they_meet_and_gangs_do_not_meet_each_other() {
        let names = names();
        let of = |rank, epoch| Members { rank, addresses: &names, epoch };
        assert_eq!(of(0, 5).master_port(), of(3, 5).master_port());
        let mut ports: Vec<u16> = (0..187)
            .flat_map(|epoch| (0..4).map(move |rank| (epoch, rank)))
            .map(|(epoch, rank)| of(0, epoch).port(rank))
            .collect();
        assert!(ports.iter().all(|port| (20_000..32_768).contains(port)));
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 187 * 4);
    }

    #[test]
    fn tensorflow_is_told_who_serves_parameters() {
        let names = names();
        let of = |rank| Members { rank, addresses: &names, epoch: 0 }.tf_config(1);
        assert_eq!(
            of(1),
            json!({
                "cluster": {
                    "worker": ["n0:20000", "n1:20001", "n1:20002"],
                    "ps": ["n3:20003"],
                },
                "task": { "type": "worker", "index": 1 },
                "environment": "cloud",
            })
        );
        assert_eq!(of(3)["task"], json!({ "type": "ps", "index": 0 }));
    }
}
