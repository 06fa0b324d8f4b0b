//! Where a node fetches what users name: public addresses, and those that an admin allows. A name or a redirect of
//! somebody else's must not make it ask what only it can reach.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why an address is none of the public ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inside {
    /// The machine's own.
    Loopback,
    /// Of the network that the machine is in, metadata of clouds among them.
    LinkLocal,
    /// Of an organisation (RFC 1918, RFC 4193), or of a provider behind its translation (RFC 6598).
    Private,
    /// Of many machines at once.
    Multicast,
    /// Of no machine: kept for documents, tests and protocols, or not given out.
    Reserved,
}

impl Inside {
    /// What a user is told.
    pub const fn told(self) -> &'static str {
        match self {
            Self::Loopback => {
                "it leads to a loopback address: only public addresses are read, and those that an admin allows \
                 (serve --allow-egress)"
            }
            Self::LinkLocal => {
                "it leads to a link-local address: only public addresses are read, and those that an admin allows \
                 (serve --allow-egress)"
            }
            Self::Private => {
                "it leads to a private address: only public addresses are read, and those that an admin allows \
                 (serve --allow-egress)"
            }
            Self::Multicast | Self::Reserved => {
                "it leads to an address of no single machine: only public addresses are read, and those that an \
                 admin allows (serve --allow-egress)"
            }
        }
    }
}

/// A network by its address and how many bits of it count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether an address is of it.
    pub fn has(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(asked)) => {
                (own.to_bits() ^ asked.to_bits()).leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V6(own), IpAddr::V6(asked)) => {
                (own.to_bits() ^ asked.to_bits()).leading_zeros() >= u32::from(self.bits)
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write ADDRESS or ADDRESS/BITS, for example 10.0.0.0/8".to_owned();
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let address = address.to_canonical();
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(wrong)?,
        };
        let network = Self { address, bits };
        let first = match address {
            IpAddr::V4(four) => four.to_bits().checked_shl(bits.into()).unwrap_or(0) == 0,
            IpAddr::V6(six) => six.to_bits().checked_shl(bits.into()).unwrap_or(0) == 0,
        };
        match first {
            true => Ok(network),
            // A network that says more than it counts is most often a slip.
            false => Err(format!(
                "{text} is an address within a network: write the network's first address"
            )),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A server as its URLs have it: what else is on its machine is another's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    host: String,
    port: u16,
}

impl Server {
    /// A host as URLs have it, and the port.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
            Some((host, Ok(port))) if !host.is_empty() => Ok(Self::new(host, port)),
            _ => Err("write HOST:PORT".to_owned()),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Where nodes fetch what users name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Egress {
    /// Allowed although they are none of the public addresses.
    pub networks: Vec<Network>,
    /// Servers that an admin has named, whatever their addresses.
    pub servers: Vec<Server>,
}

impl Egress {
    /// Why nothing is fetched from an address; `None`: nothing is against it.
    pub fn refuses(&self, address: IpAddr) -> Option<Inside> {
        let meant = meant(address);
        let inside = inside(meant)?;
        let allows = |network: &Network| network.has(address) || network.has(meant);
        (!self.networks.iter().any(allows)).then_some(inside)
    }

    /// Whether an admin has named the server.
    pub fn names(&self, host: &str, port: u16) -> bool {
        self.servers.iter().any(|named| named.port == port && named.host.eq_ignore_ascii_case(host))
    }

    /// Whether an admin has named some server at a host.
    pub fn names_host(&self, host: &str) -> bool {
        self.servers.iter().any(|named| named.host.eq_ignore_ascii_case(host))
    }

    /// Why nothing is fetched from the host of a URL, as far as that is known without asking anybody: an address in
    /// place of a name, or a name that is this machine's everywhere (RFC 6761).
    pub fn refuses_host(&self, host: &str, port: u16) -> Option<Inside> {
        if self.names(host, port) {
            return None;
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse() {
            return self.refuses(address);
        }
        let name = bare.trim_end_matches('.').to_ascii_lowercase();
        match name == "localhost" || name.ends_with(".localhost") {
            true => self.refuses(Ipv4Addr::LOCALHOST.into()),
            false => None,
        }
    }
}

/// Which address is reached in the end: one of version 4 within one of version 6 is what a translator, a tunnel or the
/// system itself makes of it.
fn meant(address: IpAddr) -> IpAddr {
    let IpAddr::V6(six) = address else { return address };
    let bits = six.to_bits();
    let four = |shift: u32| IpAddr::V4(Ipv4Addr::from_bits((bits >> shift) as u32));
    match six.segments() {
        // ::ffff:0:0/96 (RFC 4291), and ::ffff:0:0:0/96 (RFC 2765).
        [0, 0, 0, 0, 0, 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => four(0),
        // ::/96 (RFC 4291, given up), but for :: and ::1.
        [0, 0, 0, 0, 0, 0, ..] if bits > 1 => four(0),
        // 64:ff9b::/96 (RFC 6052).
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => four(0),
        // 2002::/16 (RFC 3056).
        [0x2002, ..] => four(80),
        _ => address,
    }
}

/// Whether an address is none of the public ones.
fn inside(address: IpAddr) -> Option<Inside> {
    match address {
        IpAddr::V4(four) => inside_4(four),
        IpAddr::V6(six) => inside_6(six),
    }
}

/// As IANA's registry of special-purpose addresses has them.
fn inside_4(address: Ipv4Addr) -> Option<Inside> {
    Some(match address.octets() {
        // "This network": systems take it for the machine itself.
        [0, ..] | [127, ..] => Inside::Loopback,
        [169, 254, ..] => Inside::LinkLocal,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Inside::Private,
        [224..=239, ..] => Inside::Multicast,
        [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [240..=255, ..] => Inside::Reserved,
        _ => return None,
    })
}

fn inside_6(address: Ipv6Addr) -> Option<Inside> {
    Some(match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Inside::Loopback,
        // fe80::/10
        [0xfe80..=0xfebf, ..] => Inside::LinkLocal,
        // fc00::/7, and fec0::/10 of before; a translator's own networks (RFC 8215).
        [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] | [0x64, 0xff9b, ..] => Inside::Private,
        [0xff00..=0xffff, ..] => Inside::Multicast,
        // What is given out is 2000::/3; of it protocols' 2001::/23, Teredo among them, and documents'.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Inside::Reserved,
        [0x2000..=0x3fff, ..] => return None,
        _ => Inside::Reserved,
    })
}

#[cfg(test)]
mod tests;
