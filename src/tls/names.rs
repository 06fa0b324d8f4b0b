//! Names by which a daemon is reached, and which its certificate has to have.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use rustls_pki_types::DnsName;

/// A name of a machine.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Name {
    /// In lower case.
    Dns(String),
    /// An address.
    Address(IpAddr),
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(Self::Address(address));
        }
        match DnsName::try_from(text) {
            Ok(name) => Ok(Self::Dns(name.as_ref().to_ascii_lowercase())),
            Err(_) => Err("write a host name or an address, without a port".to_owned()),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl Name {
    /// Whether a certificate with this name is one of `host`'s: `*` stands for one label at the front.
    pub(super) fn is_of(&self, host: &str) -> bool {
        match self {
            Self::Address(address) => host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .parse()
                .is_ok_and(|host: IpAddr| host == *address),
            Self::Dns(name) => match name.strip_prefix("*.") {
                None => host.eq_ignore_ascii_case(name),
                Some(rest) => host.split_once('.').is_some_and(|(label, domain)| {
                    !label.is_empty() && domain.eq_ignore_ascii_case(rest)
                }),
            },
        }
    }
}

/// Hosts that a request may name, when it has come by TLS.
#[derive(Clone, Default, Debug)]
pub(crate) struct Hosts(Vec<Name>);

impl Hosts {
    /// Those of these names.
    pub(crate) fn of(names: impl Iterator<Item = Name>) -> Self {
        Self(names.collect())
    }

    /// Whether a host, as in a URL, is the daemon's.
    pub(crate) fn has(&self, host: &str) -> bool {
        self.0.iter().any(|name| name.is_of(host))
    }
}

/// What the daemon's own certificate is made for.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    /// Where it listens.
    pub(crate) listen: Vec<IpAddr>,
    /// What it is also called.
    pub(crate) names: Vec<Name>,
}

impl Own {
    /// The names as they are now: this machine may have got another address.
    pub(super) fn now(&self) -> BTreeSet<Name> {
        let here: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let mut names: BTreeSet<Name> = here.map(Name::Address).into();
        names.insert(Name::Dns("localhost".to_owned()));
        names.extend(self.names.iter().cloned());
        if self.listen.iter().any(IpAddr::is_unspecified) {
            names.extend(machine());
        }
        let specific = self.listen.iter().filter(|address| !address.is_unspecified());
        names.extend(specific.copied().map(Name::Address));
        names
    }
}

/// By what this machine is reached from elsewhere.
fn machine() -> Vec<Name> {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_str().ok().and_then(|name| name.parse().ok());
    let networks = sysinfo::Networks::new_with_refreshed_list().ok();
    let networks = networks.iter().flat_map(|all| all.values());
    let addresses =
        networks.flat_map(sysinfo::NetworkData::ip_networks).map(|network| network.addr);
    // Those of one link mean nothing without it, and no URL names it.
    let of_a_link = |address: &IpAddr| match address {
        IpAddr::V4(four) => four.is_link_local(),
        IpAddr::V6(six) => six.is_unicast_link_local(),
    };
    addresses
        .filter(|address| !of_a_link(address) && !address.is_unspecified())
        .map(Name::Address)
        .chain(host)
        .collect()
}
