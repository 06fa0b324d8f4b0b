#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use super::{Family, Rule, Rules, hold, program};
use crate::cgroup::guard::bpf::Instruction;
use crate::cgroup::guard::testing::{Own, unified};

fn rule(address: &str, bits: u32, port: Option<u16>, open: bool) -> Rule {
    Rule { address: address.parse().unwrap(), bits, port, open }
}

#[test]
fn a_program_asks_for_the_words_that_count_and_skips_to_the_next_rule() {
    let rules = [rule("169.254.0.0", 16, None, false), rule("fd00::1", 128, Some(53), true)];
    let network = |octets: [u8; 4]| i32::from_ne_bytes(octets);
    let v4 = program(Family::V4, &rules);
    // Of version 6 there is nothing to ask.
    assert_eq!(v4.len(), 1 + 5 + 2);
    assert_eq!(v4[1], Instruction::load(2, 4));
    assert_eq!(v4[2], Instruction::and(2, network([255, 255, 0, 0])));
    assert_eq!(v4[3], Instruction::skip_unless(2, network([169, 254, 0, 0]), 2));
    assert_eq!(v4[4..6], [Instruction::answer(0), Instruction::EXIT]);
    let v6 = program(Family::V6, &rules);
    // The mapped address has four words, of which the last counts by half.
    assert_eq!(v6.len(), 1 + (3 * 2 + 3 + 2) + (4 * 2 + 1 + 2) + 2);
    assert_eq!(v6[6], Instruction::skip_unless(2, network([0, 0, 255, 255]), 5));
    assert_eq!(v6[20], Instruction::skip_unless(3, u32::from(53_u16.to_be()).cast_signed(), 2));
    assert_eq!(v6[21..23], [Instruction::answer(1), Instruction::EXIT]);
}

/// Tries, each in a way of its own, and prints by what error it failed, `EPERM` or another. None of them
/// waits for anybody.
const TRY: &str = r#"
import errno, socket, sys
def tell(name, act):
    try:
        act(); said = "done"
    except OSError as error:
        said = errno.errorcode[error.errno]
    print(f"{name}={said}")
def tcp(family, to, protocol=0):
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, protocol)
    made.connect(to)
def udp(family, to):
    socket.socket(family, socket.SOCK_DGRAM).connect(to)
def send(family, to):
    socket.socket(family, socket.SOCK_DGRAM).sendto(b"x", to)
def fast_open(family, to):
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    made.sendto(b"x", socket.MSG_FASTOPEN, to)
def own(family, to, kind=socket.SOCK_STREAM):
    made = socket.socket(family, kind)
    if family == v6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.bind(to)
v4, v6 = socket.AF_INET, socket.AF_INET6
port, other = int(sys.argv[1]), int(sys.argv[2])
for name, family, to in [
    ("link", v4, ("169.254.169.254", 80)), ("link-mapped", v6, ("::ffff:169.254.7.8", 80)),
    ("names", v4, ("169.254.169.254", 53)), ("ula", v6, ("fd00:ec2::254", 80)),
    ("port", v4, ("127.0.0.1", port)), ("port-mapped", v6, ("::ffff:127.0.0.1", port)),
    ("any", v4, ("0.0.0.0", port)), ("other", v4, ("127.0.0.1", other)),
    ("near", v4, ("169.253.169.254", 80)), ("near-mapped", v6, ("::ffff:10.254.1.1", 80)),
]:
    tell(name + "-tcp", lambda: tcp(family, to))
    tell(name + "-udp", lambda: udp(family, to))
    tell(name + "-send", lambda: send(family, to))
tell("link-mptcp", lambda: tcp(v4, ("169.254.169.254", 80), 262))
tell("link-fast", lambda: fast_open(v4, ("169.254.169.254", 80)))
for name, family, address in [
    ("loopback", v4, "127.0.0.1"), ("net", v4, "127.3.2.1"), ("any", v4, "0.0.0.0"),
    ("any-6", v6, "::"), ("loopback-6", v6, "::1"), ("mapped", v6, "::ffff:127.0.0.1"),
]:
    tell("own-" + name, lambda: own(family, (address, port)))
    tell("own-" + name + "-udp", lambda: own(family, (address, port), socket.SOCK_DGRAM))
    tell("own-" + name + "-free", lambda: own(family, (address, 0)))
"#;

/// What a process in the group may not do.
fn refused(own: &Own, ports: (u16, u16)) -> Vec<String> {
    let enter = "echo 0 > \"$1/cgroup.procs\" || exit 9; shift; exec python3 -c \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", enter, "sh"]).arg(&own.0).arg(TRY);
    let told = command.args([ports.0.to_string(), ports.1.to_string()]).output().unwrap();
    assert!(told.status.success(), "{told:?}");
    let said = String::from_utf8(told.stdout).unwrap();
    assert_eq!(said.lines().count(), 50, "{said}");
    said.lines().filter_map(|line| line.strip_suffix("=EPERM")).map(str::to_owned).collect()
}

#[test]
fn version_2_keeps_a_group_from_addresses() {
    let own = Own::below(&unified(), "addresses");
    let (closed, other) = (TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0"));
    let port =
        |made: &std::io::Result<TcpListener>| made.as_ref().unwrap().local_addr().unwrap().port();
    let ports = (port(&closed), port(&other));
    let none: [&str; 0] = [];
    assert_eq!(refused(&own, ports), none);
    let rules = [
        rule("169.254.169.254", 32, Some(53), true),
        rule("169.254.0.0", 16, None, false),
        rule("fd00:ec2::", 32, None, false),
        rule("127.0.0.0", 8, Some(ports.0), false),
        rule("0.0.0.0", 32, Some(ports.0), false),
    ];
    let any = ["0.0.0.0", "::"];
    let taken = any.map(|address| rule(address, 0, Some(ports.0), false)).to_vec();
    hold(&own.0, &Rules { to: rules.to_vec(), own: taken.clone() }).unwrap();
    let all = ["link", "link-mapped", "ula", "port", "port-mapped", "any"];
    let mut wanted: Vec<String> = all
        .iter()
        .flat_map(|name| ["tcp", "udp", "send"].map(|way| format!("{name}-{way}")))
        .collect();
    wanted.extend(["link-mptcp", "link-fast"].map(str::to_owned));
    let ways = ["loopback", "net", "any", "any-6", "loopback-6", "mapped"];
    let ways = ways.iter().flat_map(|way| [format!("own-{way}"), format!("own-{way}-udp")]);
    wanted.extend(ways);
    assert_eq!(refused(&own, ports), wanted);
    // Other rules take their place.
    hold(&own.0, &Rules { to: rules[3..4].to_vec(), own: Vec::new() }).unwrap();
    let wanted = ["port-tcp", "port-udp", "port-send"].map(str::to_owned).to_vec();
    let mapped = ["port-mapped-tcp", "port-mapped-udp", "port-mapped-send"].map(str::to_owned);
    assert_eq!(refused(&own, ports), [wanted, mapped.to_vec()].concat());
    assert!(hold(Path::new("/"), &Rules { to: rules.to_vec(), own: taken }).is_err());
}
