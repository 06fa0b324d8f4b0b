#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, SocketAddr};

use super::{Daemon, METADATA, endpoints, is_metadata, made_of, name_servers};
use crate::cgroup::Rule;

fn at(addresses: &[&str]) -> Vec<SocketAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

fn ips(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

/// Whether the rules leave a way to an address.
fn is_open(rules: &[Rule], to: &str) -> bool {
    let to: SocketAddr = to.parse().unwrap();
    let matches = |rule: &&Rule| {
        let (rule_bits, bits, width) = match (rule.address, to.ip()) {
            (IpAddr::V4(rule), IpAddr::V4(to)) => {
                (u128::from(rule.to_bits()), u128::from(to.to_bits()), 32)
            }
            (IpAddr::V6(rule), IpAddr::V6(to)) => (rule.to_bits(), to.to_bits(), 128),
            _ => return false,
        };
        let shift = width - rule.bits;
        let is_alike = rule_bits.checked_shr(shift) == bits.checked_shr(shift);
        is_alike && rule.port.is_none_or(|port| port == to.port())
    };
    rules.iter().find(matches).is_none_or(|rule| rule.open)
}

#[test]
fn metadata_and_orders_are_closed_and_the_jobs_port_is_open() {
    let daemon = Daemon { control: at(&["127.0.0.1:7420"]), jobs: at(&["127.0.0.1:7421"]) };
    let rules = made_of(&daemon, &[], &ips(&["127.0.0.1", "10.0.0.7", "fd12::7"]));
    let closed = [
        "169.254.169.254:80",
        "169.254.169.254:53",
        "169.254.170.2:80",
        "168.63.129.16:32526",
        "100.100.100.200:80",
        "192.0.0.192:80",
        "[fd00:ec2::254]:80",
        "[fd00:ec2::23]:80",
        "[fd20:ce::254]:80",
        "[fd00:c1::a9fe:a9fe]:80",
        "[fd00:42::42]:80",
        "[fd00:a9fe:a9fe::1]:80",
        "[fe80::a9fe:a9fe]:80",
        "[64:ff9b::a9fe:a9fe]:80",
        "127.0.0.1:7420",
        "127.3.2.1:7420",
        "0.0.0.0:7420",
        "[::1]:7420",
        "[::]:7420",
        "10.0.0.7:7420",
        "[fd12::7]:7420",
    ];
    for to in closed {
        assert!(!is_open(&rules, to), "{to}");
    }
    let open = [
        "127.0.0.1:7421",
        "10.0.0.7:22",
        "10.0.0.8:7420",
        "[fe80::1]:80",
        "168.63.129.17:80",
        "[fd20:ce::253]:80",
        "[fd00:ec3::254]:80",
    ];
    for to in open {
        assert!(is_open(&rules, to), "{to}");
    }
    // Each no more than once, whatever is said twice.
    assert!(rules.iter().enumerate().all(|(n, rule)| !rules[..n].contains(rule)), "{rules:?}");
}

#[test]
fn a_daemon_on_another_machine_is_closed_there_and_nowhere_else() {
    let daemon = Daemon { control: at(&["10.0.0.1:7420"]), jobs: at(&["10.0.0.1:7421"]) };
    let rules = made_of(&daemon, &[], &ips(&["10.0.0.7"]));
    assert!(!is_open(&rules, "10.0.0.1:7420"));
    assert!(is_open(&rules, "10.0.0.1:7421") && is_open(&rules, "127.0.0.1:7420"));
    assert!(!daemon.has_one_port());
    // One for both stays open: a job needs it.
    let daemon = Daemon { control: at(&["10.0.0.1:7420"]), jobs: at(&["10.0.0.1:7420"]) };
    assert!(daemon.has_one_port() && is_open(&made_of(&daemon, &[], &[]), "10.0.0.1:7420"));
}

#[test]
fn names_are_found_where_the_machine_finds_them() {
    let text = "# nameserver 9.9.9.9\nsearch a.b\nnameserver 169.254.169.254\n nameserver fd00:ec2::253 \nnameserver x\n";
    let found = name_servers(text);
    assert_eq!(found, ips(&["169.254.169.254", "fd00:ec2::253"]));
    let rules = made_of(&Daemon::default(), &found, &[]);
    assert!(is_open(&rules, "169.254.169.254:53") && is_open(&rules, "[fd00:ec2::253]:53"));
    assert!(!is_open(&rules, "169.254.169.254:80") && !is_open(&rules, "169.254.169.253:53"));
    assert_eq!(made_of(&Daemon::default(), &[], &[]).len(), METADATA.len());
}

#[tokio::test]
async fn a_url_is_its_addresses_and_its_port() {
    assert_eq!(endpoints("http://127.0.0.1:7420").await, at(&["127.0.0.1:7420"]));
    assert_eq!(endpoints("https://[::1]/x").await, at(&["[::1]:443"]));
    assert_eq!(endpoints("").await, []);
}

#[test]
fn metadata_is_known_in_whichever_form() {
    let all = ["169.254.0.1", "::ffff:169.254.169.254", "168.63.129.16", "fd00:ec2::254"];
    assert!(ips(&all).into_iter().all(is_metadata));
    let others = ["169.253.1.1", "168.63.129.17", "fd00:ec3::254", "fe80::1", "::1", "10.0.0.1"];
    assert!(!ips(&others).into_iter().any(is_metadata));
}
