//! Where the members of an attempt are, and which ports are theirs.

/// The members of an attempt, as their programs find each other.
pub(in crate::attempt) struct Members<'a> {
    pub(in crate::attempt) addresses: Vec<&'a str>,
    pub(in crate::attempt) rank: usize,
    /// Where its ports begin.
    place: u64,
}

impl<'a> Members<'a> {
    pub(in crate::attempt) fn new(
        addresses: &'a [String],
        rank: u32,
        workspace_id: &str,
        epoch: u64,
    ) -> Self {
        let addresses: Vec<&str> = match addresses {
            // Whoever is alone needs no network.
            [] | [_] => vec!["127.0.0.1"],
            several => several.iter().map(String::as_str).collect(),
        };
        Self { addresses, rank: rank as usize, place: place(workspace_id, epoch) }
    }

    pub(in crate::attempt) fn count(&self) -> usize {
        self.addresses.len()
    }

    pub(in crate::attempt) fn first(&self) -> &'a str {
        self.addresses.first().copied().unwrap_or("127.0.0.1")
    }

    /// Where this member is.
    pub(super) fn own(&self) -> Option<&'a str> {
        self.addresses.get(self.rank).copied()
    }

    /// Where the member of rank 0 listens: a port of the attempt's own instead of Azure's one, because jobs share
    /// the network of their machines, also those of one node.
    pub(in crate::attempt) fn master_port(&self) -> u16 {
        self.port(0)
    }

    /// The same with its address.
    pub(in crate::attempt) fn master(&self) -> String {
        endpoint(self.first(), self.master_port())
    }

    /// A port for the `nth` of an attempt's members at one address, below those that systems hand out by
    /// themselves. Attempts that follow each other do not get each other's.
    pub(super) fn port(&self, nth: usize) -> u16 {
        const LOWEST: u16 = 20_000;
        const PORTS: u64 = 12_000;
        /// Far enough that many attempts may start before one gets a port of another's further member.
        const STRIDE: u64 = 1_009;
        let offset = (self.place % PORTS + nth as u64 * STRIDE) % PORTS;
        LOWEST + u16::try_from(offset).unwrap_or_default()
    }

    /// Where each member's server listens. Those that share an address have ports of their own.
    pub(super) fn servers(&self) -> Vec<String> {
        let nth = |rank: usize, address: &str| {
            self.addresses.iter().take(rank).filter(|before| **before == address).count()
        };
        let all = self.addresses.iter().enumerate();
        all.map(|(rank, address)| endpoint(address, self.port(nth(rank, address)))).collect()
    }

    /// The last members are parameter servers, as many as asked for; at least one is a worker.
    pub(in crate::attempt) fn tf_config(&self, parameter_servers: u32) -> String {
        let servers = self.servers();
        let workers = servers.len().saturating_sub(parameter_servers as usize).max(1);
        let (workers, parameter_servers) = servers.split_at(workers.min(servers.len()));
        let (kind, index) = match self.rank.checked_sub(workers.len()) {
            None => ("worker", self.rank),
            Some(index) => ("ps", index),
        };
        let mut cluster = serde_json::json!({ "worker": workers });
        if !parameter_servers.is_empty() {
            cluster["ps"] = serde_json::json!(parameter_servers);
        }
        let task = serde_json::json!({ "type": kind, "index": index });
        serde_json::json!({ "cluster": cluster, "task": task, "environment": "cloud" }).to_string()
    }
}

/// A number of the attempt's own. Those of a workspace follow each other; workspaces that share a machine count
/// from places of their own.
pub(in crate::attempt) fn place(workspace_id: &str, epoch: u64) -> u64 {
    let [a, b, c, d, ..] = *blake3::hash(workspace_id.as_bytes()).as_bytes();
    u64::from(u32::from_be_bytes([a, b, c, d])).wrapping_add(epoch)
}

/// An address and a port, as one text.
pub(super) fn endpoint(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}
