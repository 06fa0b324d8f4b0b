#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, SocketAddr};

use super::{
    Closed, Daemon, METADATA, Urls, endpoints, is_metadata, made_of, name_servers, taken, tell,
};
use crate::cgroup::Rule;
use crate::facts::Facts;

fn at(addresses: &[&str]) -> Vec<SocketAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

fn ips(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

fn found_at(control: &[SocketAddr], jobs: &[SocketAddr]) -> Daemon {
    Daemon { control: control.to_vec(), jobs: jobs.to_vec(), is_open: false }
}

/// Whether the rules leave a way to an address.
fn is_open(rules: &[Rule], to: &str) -> bool {
    Closed(rules.to_vec()).why(to.parse().unwrap()).is_none()
}

#[test]
fn metadata_and_orders_are_closed_and_the_jobs_port_is_open() {
    let daemon = found_at(&at(&["127.0.0.1:7420"]), &at(&["127.0.0.1:7421"]));
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
    let daemon = found_at(&at(&["10.0.0.1:7420"]), &at(&["10.0.0.1:7421"]));
    let rules = made_of(&daemon, &[], &ips(&["10.0.0.7"]));
    assert!(!is_open(&rules, "10.0.0.1:7420"));
    assert!(is_open(&rules, "10.0.0.1:7421") && is_open(&rules, "127.0.0.1:7420"));
    assert_eq!(daemon.one_port(), None);
    // One for both stays open: a job needs it.
    let daemon = found_at(&at(&["10.0.0.1:7420"]), &at(&["10.0.0.1:7420"]));
    assert!(daemon.one_port().unwrap().contains("one port"));
    assert!(is_open(&made_of(&daemon, &[], &[]), "10.0.0.1:7420"));
}

#[test]
fn nobody_listens_on_a_port_of_a_daemon_on_this_machine_or_of_the_agent() {
    let daemon = found_at(&at(&["127.0.0.1:7420"]), &at(&["10.0.0.7:7421"]));
    let own = ips(&["10.0.0.7"]);
    let rules = taken(&daemon, Some(9000), &own);
    for address in ["127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.7", "[::1]", "[::]"] {
        for port in [7420, 7421, 9000] {
            assert!(!is_open(&rules, &format!("{address}:{port}")), "{address}:{port}");
        }
        assert!(
            is_open(&rules, &format!("{address}:7422")) && is_open(&rules, &format!("{address}:0"))
        );
    }
    let elsewhere = found_at(&at(&["10.0.0.1:7420"]), &at(&["10.0.0.1:7421"]));
    assert_eq!(taken(&elsewhere, None, &own), []);
    assert_eq!(taken(&Daemon::default(), None, &own), []);
    let rules = taken(&elsewhere, Some(9000), &own);
    assert!(!is_open(&rules, "127.0.0.1:9000") && is_open(&rules, "10.0.0.1:7420"));
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
    assert_eq!(endpoints("http://127.0.0.1:7420").await.unwrap(), at(&["127.0.0.1:7420"]));
    assert_eq!(endpoints("https://[::1]/x").await.unwrap(), at(&["[::1]:443"]));
    assert_eq!(endpoints("").await.unwrap(), []);
}

#[tokio::test]
async fn only_where_the_daemon_is_reached_now_must_lead_somewhere() {
    let (gone, here) = ("http://nowhere.invalid:7420", "http://127.0.0.1:7420");
    // The daemon's host had another name: the node joins all the same, however often it connects.
    let before = Urls { control: vec![gone.to_owned()], jobs: gone.to_owned(), ..Urls::default() };
    let found = Daemon::find(&before.likely(here, "")).await.unwrap();
    assert_eq!(found, found_at(&at(&["127.0.0.1:7420"]), &[]));
    assert_eq!(Daemon::find(&before).await.unwrap(), Daemon::default());
    let said = Daemon::find(&before.likely(gone, "")).await.unwrap_err().to_string();
    assert!(said.contains("nowhere.invalid:7420") && said.contains("keep jobs"), "{said}");
}

#[test]
fn what_was_known_of_the_daemon_counts_until_it_says_otherwise() {
    let urls = |control: &[&str], jobs: &str| Urls {
        control: control.iter().map(|url| (*url).to_owned()).collect(),
        jobs: jobs.to_owned(),
        trust: Default::default(),
        dialled: control.last().map(|url| (*url).to_owned()).unwrap_or_default(),
    };
    let (one, two, three) = ("http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3");
    assert_eq!(Urls::default().likely(one, two), urls(&[one], two));
    assert_eq!(urls(&[one], two).likely(three, ""), urls(&[one, three], two));
    // The ports have changed places: the old one is no reason to say that there is one for both.
    assert_eq!(urls(&[one], two).likely(two, one), urls(&[two], one));
}

#[test]
fn closed_is_told_only_where_it_is() {
    let two = found_at(&at(&["127.0.0.1:7420"]), &at(&["127.0.0.1:7421"]));
    assert_eq!(two.one_port(), None);
    let mut of_before = two.clone();
    of_before.open();
    let why = of_before.one_port().unwrap();
    assert_eq!(why, "jobs of an earlier version need the control port");
    let mut facts = Facts::default();
    tell(&mut facts, Err(why.to_owned()));
    assert_eq!(facts.other["closed"], "none");
    assert_eq!(facts.other["not_closed"], why);
    tell(&mut facts, Ok(()));
    assert_eq!(facts.other["closed"], "metadata and control");
    assert_eq!(facts.other.get("not_closed"), None);
}

#[test]
fn metadata_is_known_in_whichever_form() {
    let all = ["169.254.0.1", "::ffff:169.254.169.254", "168.63.129.16", "fd00:ec2::254"];
    assert!(ips(&all).into_iter().all(is_metadata));
    let others = ["169.253.1.1", "168.63.129.17", "fd00:ec3::254", "fe80::1", "::1", "10.0.0.1"];
    assert!(!ips(&others).into_iter().any(is_metadata));
}

#[test]
fn what_is_closed_says_why() {
    let daemon = found_at(&at(&["127.0.0.1:7420"]), &at(&["127.0.0.1:7421"]));
    let closed = Closed::with(&daemon);
    let why = |to: &str| closed.why(to.parse().unwrap()).unwrap_or_default();
    assert!(why("[::ffff:127.0.0.1]:7420").contains("daemon"));
    assert!(why("169.254.169.254:80").contains("cloud"));
    assert_eq!(why("127.0.0.1:7421"), "");
}
