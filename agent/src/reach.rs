//! What jobs have no way to over the network: the metadata services of clouds, which give whoever asks the
//! machine's own credentials, and the port by which the daemon is told what to do. The daemon's other port,
//! for what jobs log and store, is their own and stays open. On neither can a job listen in the daemon's stead.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures::future::join_all;
use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroups, Rule, Rules};
use crate::facts::Facts;
use crate::trust::Trust;

/// How long a look-up of a host's name may take.
const LOOK_UP: Duration = Duration::from_secs(5);

/// Where clouds tell a machine about itself, as their documentation has it, and how many bits count. Of
/// `fe80::/10` it is no more than one address: other nodes of the same network are there too.
const METADATA: [(IpAddr, u32); 11] = [
    // Most of them: 169.254.169.254, and 169.254.170.2 and .23 (Amazon's containers), 169.254.42.42
    // (Scaleway), 169.254.0.23 (Tencent). RFC 3927 has the network.
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
    // Azure's wire server, which gives extensions their secrets ("What is IP address 168.63.129.16?").
    (IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)), 32),
    // Alibaba ("ECS instance metadata").
    (IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), 32),
    // Oracle's Cloud@Customer.
    (IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)), 32),
    // Amazon ("IPv6 on AWS": metadata ::254, names ::253, time ::123; Pod Identity ::23).
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0)), 32),
    // Google ("About VM metadata").
    (IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)), 128),
    // Oracle ("Instance Metadata Service").
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)), 128),
    // Scaleway (cloud-init's data source of that name).
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)), 128),
    // Akamai, Linode's ("Metadata service API").
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1)), 128),
    // OpenStack (Neutron's "Metadata service caching", IPv6 networks).
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe)), 128),
    // Cloud providers that translate: 169.254.0.0/16 by the prefix of RFC 6052.
    (IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xa9fe, 0)), 112),
];

/// Among the node's facts: why jobs are not kept from what they have no way to.
pub(crate) const NOT_CLOSED: &str = "not_closed";

/// Why groups of the agent's hold no container of docker's.
pub(crate) const IN_AN_ENGINE: &str = "containers of docker are in the groups of its engine";

/// Why jobs reach what they should not while one runs that was told so by an agent of before.
pub(crate) const EARLIER_JOBS: &str = "jobs of an earlier version need the control port";

/// A URL whose addresses cannot be told.
#[derive(Debug, thiserror::Error)]
#[error("cannot find the address of {url}, to keep jobs from the daemon: {problem}")]
pub(crate) struct NotFound {
    url: String,
    problem: String,
}

/// The URLs of the daemon that was found last. They are kept in the agent's folder: jobs are held to them while it is
/// away, also by another agent.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Urls {
    /// For orders, as the agent was told and as the daemon says.
    pub(crate) control: Vec<String>,
    /// For jobs; empty if it is not known.
    pub(crate) jobs: String,
    /// Who vouches for it at each of them.
    #[serde(default)]
    pub(crate) trust: Trust,
    /// By which of those for orders it is reached now; empty if it is not reached yet.
    #[serde(skip)]
    pub(crate) dialled: String,
}

impl Urls {
    /// Those that count before the daemon has said them: by one it is reached now, and one is for jobs, unless
    /// that is not known (empty).
    pub(crate) fn likely(&self, control: &str, jobs: &str) -> Self {
        let mut urls = self.clone();
        if !jobs.is_empty() {
            jobs.clone_into(&mut urls.jobs);
            // What took orders once may be for jobs now.
            urls.control.retain(|url| url != jobs);
        }
        urls.control.push(control.to_owned());
        control.clone_into(&mut urls.dialled);
        urls
    }
}

/// Where [`Urls`] lie in an agent's folder.
pub(crate) const KEPT: &str = "daemon.json";

/// Where the daemon is, as its agent found it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Daemon {
    /// For orders: the command line's and the agents'.
    pub(crate) control: Vec<SocketAddr>,
    /// For jobs.
    pub(crate) jobs: Vec<SocketAddr>,
    /// Some job needs all of it.
    pub(crate) is_open: bool,
}

impl Daemon {
    /// Finds it by its URLs. One that leads nowhere is left out: it leads jobs nowhere too, and a host that
    /// has another name now must not keep the node from joining.
    ///
    /// # Errors
    /// The one by which it is reached now leads nowhere.
    pub(crate) async fn find(urls: &Urls) -> Result<Self, NotFound> {
        let look = |url| async move {
            match endpoints(url).await {
                Err(error) if url != urls.dialled => {
                    tracing::warn!(%error, "jobs are not kept from where nothing is found");
                    Ok(Vec::new())
                }
                found => found,
            }
        };
        let all = join_all(urls.control.iter().chain([&urls.jobs]).map(|url| look(url.as_str())));
        let mut found = all.await.into_iter().collect::<Result<Vec<_>, _>>()?;
        let jobs = found.pop().unwrap_or_default();
        Ok(Self { control: found.concat(), jobs, is_open: false })
    }

    /// Leaves jobs a way to all of it.
    pub(crate) fn open(&mut self) {
        self.jobs.extend(self.control.iter().copied());
        self.is_open = true;
    }

    /// Why jobs have what they should not: the daemon is of an earlier version, or was when a job started that
    /// still runs, with one port for both.
    fn one_port(&self) -> Option<&'static str> {
        let has_one = self.control.iter().any(|address| self.jobs.contains(address));
        has_one.then_some(if self.is_open {
            EARLIER_JOBS
        } else {
            "the daemon has one port for orders and jobs"
        })
    }
}

/// Keeps jobs from what they have no way to, with the daemon at these places, and tells among the node's facts
/// whether they are, or why not. `engines`: some are in groups that are not the agent's.
/// `own`: the port at which the agent takes what jobs log.
pub(crate) fn close(
    cgroups: &Cgroups,
    engines: bool,
    daemon: &Daemon,
    own: Option<u16>,
    facts: &mut Facts,
) {
    let why = if engines { Some(IN_AN_ENGINE) } else { daemon.one_port() };
    let held = cgroups.hold(rules(daemon, own));
    tell(facts, held.and_then(|()| why.map_or(Ok(()), |why| Err(why.to_owned()))));
}

fn tell(facts: &mut Facts, closed: Result<(), String>) {
    let told = if closed.is_ok() { "metadata and control" } else { "none" };
    facts.other.insert("closed".to_owned(), told.to_owned());
    let before = facts.other.remove(NOT_CLOSED);
    let Err(why) = closed else { return };
    if before.as_ref() != Some(&why) {
        tracing::warn!(%why, "jobs reach cloud metadata or the daemon's control port");
    }
    facts.other.insert(NOT_CLOSED.to_owned(), why);
}

/// What jobs are held to on this machine, besides a daemon that is at these places.
pub(crate) fn rules(daemon: &Daemon, agents: Option<u16>) -> Rules {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let names = [text("/etc/resolv.conf"), text("/run/systemd/resolve/resolv.conf")];
    let names = names.iter().flat_map(|text| name_servers(text));
    let networks = sysinfo::Networks::new_with_refreshed_list().ok();
    let own =
        networks.iter().flat_map(|all| all.values()).flat_map(sysinfo::NetworkData::ip_networks);
    let own: Vec<IpAddr> = own.map(|own| own.addr).collect();
    Rules {
        to: made_of(daemon, &names.collect::<Vec<_>>(), &own),
        own: taken(daemon, agents, &own),
    }
}

/// The ports that are the daemon's and the agent's on this machine, at whatever address: while they are away, a job
/// that listened there would be given the tokens of all who look for them.
fn taken(daemon: &Daemon, agents: Option<u16>, own: &[IpAddr]) -> Vec<Rule> {
    let here = daemon.control.iter().chain(&daemon.jobs).filter(|at| is_here(at.ip(), own));
    let ports: BTreeSet<u16> = here.map(SocketAddr::port).chain(agents).collect();
    let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
    let rule = |port| any.map(|address| Rule { address, bits: 0, port: Some(port), open: false });
    ports.into_iter().flat_map(rule).collect()
}

/// Whether an address is this machine's, which also has those in `own`.
fn is_here(address: IpAddr, own: &[IpAddr]) -> bool {
    address.is_loopback() || address.is_unspecified() || own.contains(&address)
}

fn made_of(daemon: &Daemon, names: &[IpAddr], own: &[IpAddr]) -> Vec<Rule> {
    let one = |address: IpAddr, port, open| {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        Rule { address, bits, port: Some(port), open }
    };
    let mut rules: Vec<Rule> = Vec::new();
    let mut add = |rule: Rule| {
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    };
    for at in &daemon.jobs {
        add(one(at.ip(), at.port(), true));
    }
    // Clouds also tell names there, and without names a job finds nothing.
    for &address in names {
        add(one(address, 53, true));
    }
    for (address, bits) in METADATA {
        add(Rule { address, bits, port: None, open: false });
    }
    for at in &daemon.control {
        add(one(at.ip(), at.port(), false));
        // On this machine it may be reached by any of the machine's addresses, and by none.
        if is_here(at.ip(), own) {
            let port = Some(at.port());
            add(Rule { address: Ipv4Addr::LOCALHOST.into(), bits: 8, port, open: false });
            for address in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()] {
                add(one(address, at.port(), false));
            }
            add(one(Ipv6Addr::UNSPECIFIED.into(), at.port(), false));
            for &address in own {
                add(one(address, at.port(), false));
            }
        }
    }
    rules
}

/// What is closed to jobs, for what the agent does in their stead: its own connections no group holds.
#[derive(Clone, Debug)]
pub(crate) struct Closed(Vec<Rule>);

/// Why nothing is connected.
pub(crate) const TO_METADATA: &str =
    "it leads to where a cloud tells a machine about itself, which is closed to jobs";
const TO_ORDERS: &str =
    "it leads to the port by which the daemon is told what to do, which is closed to jobs";

impl Closed {
    /// With the daemon at these places.
    pub(crate) fn with(daemon: &Daemon) -> Self {
        Self(rules(daemon, None).to)
    }

    /// Why there is no way to an address; `None`: there is one.
    pub(crate) fn why(&self, to: SocketAddr) -> Option<&'static str> {
        let matches = |rule: &&Rule| {
            is_within(to.ip(), rule.address, rule.bits)
                && rule.port.is_none_or(|port| port == to.port())
        };
        let rule = self.0.iter().find(matches).filter(|rule| !rule.open)?;
        Some(if rule.port.is_some() { TO_ORDERS } else { TO_METADATA })
    }
}

/// Whether a cloud tells a machine about itself at this address.
pub(crate) fn is_metadata(address: IpAddr) -> bool {
    METADATA.iter().any(|&(network, length)| is_within(address, network, length))
}

/// Whether an address, in whichever form, begins as a network of so many bits does.
fn is_within(address: IpAddr, network: IpAddr, length: u32) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(four) => (u128::from(four.to_bits()) << 96, true),
        IpAddr::V6(six) => (six.to_bits(), false),
    };
    let ((asked, is_four), (network, of_four)) = (bits(address.to_canonical()), bits(network));
    is_four == of_four && (asked ^ network).leading_zeros() >= length
}

/// Of lines such as `nameserver 169.254.169.254` (resolv.conf(5)).
fn name_servers(text: &str) -> Vec<IpAddr> {
    let address = |line: &str| {
        let rest = line.trim_start().strip_prefix("nameserver")?;
        rest.split_ascii_whitespace().next()?.parse().ok()
    };
    text.lines().filter_map(address).collect()
}

/// The addresses and the port of a URL; none of an empty one.
pub(crate) async fn endpoints(url: &str) -> Result<Vec<SocketAddr>, NotFound> {
    if url.is_empty() {
        return Ok(Vec::new());
    }
    let fail = |problem: String| NotFound { url: url.to_owned(), problem };
    let uri = url.parse::<tonic::transport::Uri>().map_err(|error| fail(error.to_string()))?;
    let host = uri.host().ok_or_else(|| fail("it names no host".to_owned()))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let otherwise = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let look = tokio::net::lookup_host((host, uri.port_u16().unwrap_or(otherwise)));
    match tokio::time::timeout(LOOK_UP, look).await {
        Ok(Ok(found)) => {
            let found: Vec<SocketAddr> = found.collect();
            if found.is_empty() { Err(fail("its name has none".to_owned())) } else { Ok(found) }
        }
        Ok(Err(error)) => Err(fail(error.to_string())),
        Err(_) => Err(fail(format!("no answer for {LOOK_UP:?}"))),
    }
}

#[cfg(test)]
mod tests;
