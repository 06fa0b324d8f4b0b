#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use super::Traffic;
use crate::cgroup::guard::testing::{Own, unified};

/// In a network of its own: a hundred datagrams of a thousand bytes to another machine, which sends them back, and
/// as many to itself.
const SEND: &str = r#"
import fcntl, os, socket, struct, subprocess, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write("0")
other = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(other, 0x400454ca, struct.pack("16sH", b"tun0", 0x1001))
for words in ["link set lo up", "link set tun0 up", "addr add 192.0.2.1/24 dev tun0"]:
    subprocess.run(["ip", *words.split()], check=True)
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
made.settimeout(10)
for _ in range(100):
    made.sendto(bytes(1000), ("127.0.0.1", 9))
    made.sendto(bytes(1000), ("192.0.2.7", 9))
    packet = b""
    while len(packet) < 1000:
        packet = os.read(other, 2000)
    # Sums stay right when both ends are exchanged.
    ports = packet[22:24] + packet[20:22]
    os.write(other, packet[:12] + packet[16:20] + packet[12:16] + ports + packet[24:])
    made.recv(2000)
"#;

#[test]
fn version_2_counts_what_a_group_and_other_machines_tell_each_other() {
    let group = Own::below(&unified(), "traffic");
    let traffic = Traffic::count(&group.0).unwrap();
    assert_eq!(traffic.bytes().unwrap(), (0, 0));
    let sent = Command::new("unshare").args(["-n", "python3", "-c", SEND]).arg(&group.0).status();
    assert!(sent.unwrap().success());
    // With the heads of IP and UDP.
    let (received, sent) = traffic.bytes().unwrap();
    for bytes in [received, sent] {
        assert!((100_000..110_000).contains(&bytes), "{received} {sent}");
    }
}
