//! Jobs that have a Ray cluster of their own: rank 0 is its head and runs the command, the other members
//! join it.

use std::net::IpAddr;

use atelier_core::spec::{Ray, quote};

use super::members::endpoint;
use super::{Members, secret};

/// What the token of the cluster is made for.
const PURPOSE: &str = "atelier 2026-11-28 token of the Ray cluster of an attempt";
/// The part of its memory that a member gives to shared objects, in percent: Ray's own default, of the job's
/// memory and not the machine's.
const OBJECTS_PERCENT: u64 = 30;
/// Ray refuses to start with less.
const LEAST_OBJECTS: u64 = 80 << 20;

/// What a member has of its node.
pub(super) struct Share {
    pub(super) cpu_milli: u64,
    /// Zero: not said.
    pub(super) memory_mib: u64,
    pub(super) gpus: usize,
}

/// What programs need to find the cluster, and to be let in: whoever reaches the head's port without the token
/// could run anything there. Versions of Ray that know no tokens ignore them.
pub(in crate::attempt) fn variables(
    members: &Members<'_>,
    given: &Ray,
    token: &str,
    set: &mut impl FnMut(&str, &str),
) {
    set("RAY_ADDRESS", &address(members, given));
    set("RAY_AUTH_MODE", "token");
    set("RAY_AUTH_TOKEN", &secret(PURPOSE, token));
    // What runs here is told to nobody else.
    set("RAY_USAGE_STATS_ENABLED", "0");
}

/// Where the head is reached.
fn address(members: &Members<'_>, given: &Ray) -> String {
    match given.address.as_deref() {
        Some(address) if has_port(address) => address.to_owned(),
        Some(host) => endpoint(host.trim_matches(['[', ']']), port(members, given)),
        None => endpoint(members.first(), port(members, given)),
    }
}

/// Whether an address ends with a port; one of IPv6 needs brackets for that.
fn has_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        port.parse::<u16>().is_ok() && (host.ends_with(']') || !host.contains(':'))
    })
}

/// Several clusters may share machines, also those of one node.
fn port(members: &Members<'_>, given: &Ray) -> u16 {
    given.port.unwrap_or_else(|| members.port(0))
}

/// What a shell runs.
pub(super) fn start(members: &Members<'_>, given: &Ray, share: &Share, command: &str) -> String {
    let is_head = members.rank == 0;
    let mut arguments: Vec<String> = match is_head {
        true => vec!["--head".to_owned(), format!("--port={}", port(members, given))],
        false => vec![format!("--address={}", address(members, given)), "--block".to_owned()],
    };
    let mut add = |name: &str, value: String| arguments.push(format!("--{name}={value}"));
    // Of a name Ray finds the address itself.
    if let Some(own) = members.own().filter(|own| own.parse::<IpAddr>().is_ok()) {
        add("node-ip-address", own.to_owned());
    }
    add("num-cpus", share.cpu_milli.div_ceil(1000).to_string());
    add("num-gpus", share.gpus.to_string());
    // The members of two clusters on one machine do not get each other's.
    add("min-worker-port", "0".to_owned());
    add("max-worker-port", "0".to_owned());
    if share.memory_mib > 0 {
        let objects = (share.memory_mib << 20) / 100 * OBJECTS_PERCENT;
        add("object-store-memory", objects.max(LEAST_OBJECTS).to_string());
    }
    if is_head {
        if let Some(wanted) = given.include_dashboard {
            add("include-dashboard", wanted.to_string());
        }
        if let Some(port) = given.dashboard_port {
            add("dashboard-port", port.to_string());
        }
    }
    // Last: of two that say the same, Ray takes the later.
    arguments.extend(given.additional_args(is_head));
    let arguments: Vec<String> = arguments.iter().map(|argument| quote(argument)).collect();
    let start = format!("ray start {}", arguments.join(" "));
    match is_head {
        true => format!("{start} || exit; exec \"$0\" -c {command}"),
        false => {
            let waits = waits_for(&address(members, given));
            format!("{waits}\nwait_for_head || exit\n{start}\n{ENDED}")
        }
    }
}

/// A function that waits until the head listens: Ray itself gives up after some seconds. Ray is a Python program: without
/// a Python there is no Ray either, and its absence is what is to be told.
fn waits_for(address: &str) -> String {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let host = quote(host.trim_matches(['[', ']']));
    format!(
        "python=$(command -v python3 || command -v python) || ray --version || exit\n\
         wait_for_head() {{ \"$python\" -c '{WAIT}' {host} {port}; }}"
    )
}

/// Without single quotes.
const WAIT: &str = r#"
import socket, sys, time
said = time.monotonic() + 60
while True:
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
        break
    except OSError as error:
        if time.monotonic() > said:
            print("waiting for the head at", *sys.argv[1:], error, flush=True)
            said = time.monotonic() + 600
    time.sleep(0.5)
"#;

/// What joins the head goes on until the platform ends it. Ray ends it, too, once the head is gone: that is for
/// the platform to judge, which ends this one as well. Where the head is there it is this one's own failure.
const ENDED: &str = "code=$?\n\
    wait_for_head\n\
    echo 'what runs of Ray here ended before the command on the head did' >&2\n\
    [ \"$code\" = 0 ] && code=1\n\
    exit \"$code\"";
