#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use clap::Parser as _;

use super::{Addresses, Listeners, is_secure};
use crate::config::ServeArgs;
use crate::identity::AskedAs;

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[tokio::test]
async fn the_port_for_jobs_is_the_one_it_was_unless_that_is_taken() {
    let first = Listeners::open(any(), None, None).await.unwrap();
    let before = first.jobs.local_addr().unwrap();
    assert_ne!(before, first.control.local_addr().unwrap());
    assert!(first.is_to_keep);
    // It is taken, and something is found all the same, until the next start.
    let other = Listeners::open(any(), None, Some(before)).await.unwrap();
    assert_ne!(other.jobs.local_addr().unwrap(), before);
    assert!(!other.is_to_keep);
    drop(first);
    let again = Listeners::open(any(), None, Some(before)).await.unwrap();
    assert_eq!(again.jobs.local_addr().unwrap(), before);
    assert!(again.is_to_keep);
    drop(again);
    let chosen = Listeners::open(any(), Some(any()), Some(before)).await.unwrap();
    assert!(chosen.is_to_keep, "whoever names one means it");
}

#[tokio::test]
async fn a_port_that_was_asked_for_and_is_taken_is_told_with_the_option() {
    let first = Listeners::open(any(), None, None).await.unwrap();
    let jobs = first.jobs.local_addr().unwrap();
    let told = Listeners::open(any(), Some(jobs), None).await.err().unwrap().to_string();
    assert!(told.contains("--jobs-listen") && told.contains(&jobs.to_string()), "{told}");
}

#[tokio::test]
async fn jobs_are_where_the_daemon_is_now() {
    let first = Listeners::open(any(), None, None).await.unwrap();
    let before = first.jobs.local_addr().unwrap();
    drop(first);
    // It was for this machine alone, and is for others too.
    let open = Listeners::open("0.0.0.0:0".parse().unwrap(), None, Some(before)).await.unwrap();
    let now = open.jobs.local_addr().unwrap();
    assert!(now.ip().is_unspecified() && now.port() == before.port(), "{now}");
}

#[test]
fn both_ports_have_the_name_by_which_the_daemon_was_asked() {
    let addresses = |control: &str, jobs: &str, is_secure| Addresses {
        control: control.parse().unwrap(),
        jobs: jobs.parse().unwrap(),
        is_secure,
    };
    let asked = AskedAs("gate.example".to_owned());
    let open = addresses("0.0.0.0:7420", "0.0.0.0:7421", true);
    assert_eq!(open.announced(), "https://127.0.0.1:7420");
    assert_eq!(open.control_url(Some(&asked)), "https://gate.example:7420");
    assert_eq!(open.jobs_url(Some(&asked)), "https://gate.example:7421");
    let six = AskedAs("[fd00::2]".to_owned());
    assert_eq!(open.jobs_url(Some(&six)), "https://[fd00::2]:7421");
    let open = addresses("[::]:7420", "[::]:7421", true);
    assert_eq!(open.announced(), "https://[::1]:7420");
    // Where they differ each is where it is.
    let apart = addresses("10.0.0.7:7420", "127.0.0.1:7421", true);
    assert_eq!(apart.announced(), "https://10.0.0.7:7420");
    assert_eq!(apart.jobs_url(Some(&asked)), "https://127.0.0.1:7421");
    // Nobody is sent to all addresses.
    for (jobs, here) in [("0.0.0.0:7421", "127.0.0.1:7421"), ("[::]:7421", "[::1]:7421")] {
        let jobs_alone = addresses("127.0.0.1:7420", jobs, true);
        assert_eq!(jobs_alone.jobs_url(Some(&asked)), "https://gate.example:7421");
        assert_eq!(jobs_alone.jobs_url(None), format!("https://{here}"));
        assert_eq!(jobs_alone.control_url(Some(&asked)), "https://127.0.0.1:7420");
    }
    let control_alone = addresses("[::]:7420", "127.0.0.1:7421", true);
    assert_eq!(control_alone.control_url(Some(&asked)), "https://gate.example:7420");
    assert_eq!(control_alone.control_url(None), "https://[::1]:7420");
    let plain = addresses("127.0.0.1:7420", "127.0.0.1:7421", false);
    assert_eq!(plain.announced(), "http://127.0.0.1:7420");
    assert_eq!(plain.jobs_url(None), "http://127.0.0.1:7421");
}

#[derive(clap::Parser)]
struct Serve {
    #[command(flatten)]
    args: ServeArgs,
}

#[test]
fn ports_that_others_reach_are_encrypted_and_so_are_those_that_are_to_be() {
    // A loopback address that is written as one of the sixth version is no loopback to clients, so to nobody.
    let addresses = [
        ("127.0.0.1:7420", false),
        ("127.0.0.1:0", false),
        ("127.9.9.9:7420", false),
        ("[::1]:7420", false),
        ("[::1]:0", false),
        ("0.0.0.0:7420", true),
        ("0.0.0.0:0", true),
        ("10.0.0.7:7420", true),
        ("[::]:7420", true),
        ("[::]:0", true),
        ("[fd00::2]:7420", true),
        ("[::ffff:127.0.0.1]:7420", true),
    ];
    let jobs = addresses.iter().map(|&(at, is_open)| (Some(at), is_open)).chain([(None, false)]);
    let cases = addresses.iter().flat_map(|listen| jobs.clone().map(move |jobs| (listen, jobs)));
    for (&(listen, is_open), (jobs, are_jobs_open)) in cases {
        for (tls, cert) in [("auto", false), ("auto", true), ("on", false), ("on", true)] {
            let mut line = vec!["serve", "--listen", listen, "--tls", tls];
            line.extend(jobs.into_iter().flat_map(|jobs| ["--jobs-listen", jobs]));
            if cert {
                line.extend(["--tls-cert", "chain.pem", "--tls-key", "key.pem"]);
            }
            let args =
                Serve::try_parse_from(&line).map_err(|error| error.to_string()).unwrap().args;
            let expected = is_open || are_jobs_open || tls == "on" || cert;
            assert_eq!(is_secure(&args), expected, "{line:?}");
        }
    }
}
