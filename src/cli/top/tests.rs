use std::time::Duration;

use super::watch::seconds;
use super::*;

#[test]
fn the_picture_has_what_runs_and_what_waits() {
    let seen = json!({
        "nodes": [{
            "name": "gpu-1", "compute": "gpu", "state": "running", "jobs": ["a", "b", "c"],
            "usage": { "cpu_utilization": 41.3, "memory_used_mib": 1536.0, "memory_total_mib": 4096.0 },
            "capacity": { "cpus": 8, "memory": "4 GiB", "gpus": 2 },
            "free": { "cpus": 2, "memory": "1 GiB", "gpus": 0 },
        }, { "name": "gpu-2", "compute": "gpu", "state": "preparing", "usage": {}, "jobs": [] }],
        "running": [{ "name": "a", "status": "Running", "node": "gpu-1", "created_by": "ada",
            "started_at_ms": 1_000_000 }],
        "waiting": [{ "name": "d", "compute": "gpu", "reason": "all taken" }],
        "waiting_in_all": 7,
    });
    let picture = picture(&seen, Timestamp::from_millis(1_130_500));
    for part in [
        "1970-01-01 00:18:50  nodes: 2  running: 1  waiting: 7",
        "████░░░░░░  41 %",
        "1.5 of 4.0 GiB",
        "2 of 8",
        "a and 2",
        "preparing",
        "2 min 10 s",
        "all taken",
    ] {
        assert!(picture.contains(part), "{part} is not in\n{picture}");
    }
}

#[test]
fn times_and_bars_are_as_long_as_they_should_be() {
    assert_eq!(lasting(-5), "0 s");
    assert_eq!(lasting(3_599_999), "59 min 59 s");
    assert_eq!(lasting(11_100_000), "3 h 05 min");
    for percent in [-1.0, 0.0, 4.9, 50.0, 99.9, 100.0, 1e9, f64::NAN] {
        assert_eq!(bar(percent).chars().filter(|c| matches!(c, '█' | '░')).count(), BAR);
    }
}

#[test]
fn an_interval_is_a_number_of_seconds() {
    assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
    for wrong in ["", "x", "0", "-1", "nan", "inf", "1e9"] {
        assert!(seconds(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_picture_of_nodes_has_what_they_move_and_wait_for() {
    let seen = json!({ "nodes": [{
        "name": "cpu-1", "compute": "cpu", "state": "running", "jobs": [],
        "usage": {
            "disk_read_mib_per_second": 12.34, "network_transmit_mib_per_second": 0.05,
            "memory_cached_mib": 2048.0, "io_pressure": 41.6,
        },
    }] });
    let picture = nodes::picture(&seen, Timestamp::from_millis(0));
    for part in ["12.3 MiB/s", "0.1 MiB/s", "2.0 GiB", "42 %", "WAITS FOR CPU"] {
        assert!(picture.contains(part), "{part} is not in\n{picture}");
    }
}

#[test]
fn the_picture_of_nodes_has_each_gpu() {
    let gpu = |index: u32, more: Value| {
        let mut gpu = json!({ "index": index, "model": "NVIDIA H200", "free_share": 0.5 });
        gpu.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        gpu
    };
    let used = json!({ "utilization": 80.0, "memory_used_mib": 512.0, "memory_total_mib": 2048.0 });
    let seen = json!({ "nodes": [{
        "name": "gpu-1", "compute": "gpu", "state": "running", "jobs": ["a"],
        "usage": { "gpu_0_utilization": 80.0, "gpu_0_memory_used_mib": 512.0, "gpu_1_utilization": 0.0 },
        "gpus": [gpu(0, used), gpu(1, json!({ "out": "Xid 79, it has fallen off the bus" }))],
    }] });
    let picture = nodes::picture(&seen, Timestamp::from_millis(0));
    let rows: Vec<&str> = picture.lines().collect();
    assert_eq!(rows[0], "1970-01-01 00:00:00  nodes: 1  GPUs: 2");
    let row = |part: &str| rows.iter().find(|row| row.contains(part)).copied().unwrap_or(&picture);
    assert!(row("running").contains("████░░░░░░  40 %"), "{picture}");
    let first = row("0.5 of 2.0 GiB");
    assert!(first.contains("████████░░  80 %") && first.contains("NVIDIA H200"), "{picture}");
    assert!(row("Xid 79").starts_with("gpu-1"), "{picture}");
}
