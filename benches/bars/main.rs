//! The product's own speed, measured with real processes: a daemon, one agent and clients.
//!
//! `cargo bench --bench bars [-- NAME…]` prints the machine, then for each figure the median and
//! the spread. Take the figures on an otherwise idle machine. Peers are measured by the scripts in
//! `benches/peers`.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod busy;
mod cluster;
mod figures;
mod gateway;
mod idle;
mod latency;
mod mounts;
mod neighbour;
mod placements;
mod points;
mod snapshot;
mod throughput;
mod tls;

use std::fs;

fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if let [word, file, said] = wanted.as_slice()
        && word == gateway::FLOOR
    {
        return gateway::serve(file.into(), said.as_ref());
    }
    let asked = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    machine();
    if asked("latency") {
        latency::job();
        latency::submission();
    }
    if asked("submissions") {
        throughput::submissions();
    }
    if asked("placements") {
        placements::placements();
    }
    if asked("jobs") {
        throughput::jobs();
    }
    if asked("idle") {
        idle::idle();
    }
    if asked("busy") {
        busy::busy();
    }
    if asked("attempt") {
        busy::attempt();
    }
    if asked("neighbour") {
        neighbour::neighbour();
    }
    if asked("gateway") {
        gateway::gateway();
    }
    if asked("snapshot") {
        snapshot::snapshot();
    }
    if asked("tls") {
        tls::tls();
    }
    if asked("mounts") {
        mounts::mounts();
    }
    if asked("history") {
        idle::history();
    }
    if asked("points") {
        points::points();
    }
}

fn machine() {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("machine: {model}, {cores} cores, Linux {}", kernel.trim());
}
