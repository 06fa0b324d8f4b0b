#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use super::{DiskRate, limit};
use crate::cgroup::Limits;
use crate::cgroup::group::{Group, Version};

const RATE: DiskRate = DiskRate { major: 8, minor: 16, bytes: 1_048_576 };

fn limits(cpu_milli: u64, io: Option<DiskRate>) -> Limits {
    Limits { cpu_milli, memory: None, processes: 16, io }
}

/// A group of which this kernel has these files.
fn group(folder: &Path, version: Version, files: &[&str]) -> Group {
    for file in files {
        fs::write(folder.join(file), "").unwrap();
    }
    Group { folder: folder.to_owned(), version, controllers: vec!["io".to_owned()] }
}

#[test]
fn a_share_is_as_much_as_the_cpu_and_within_what_a_file_takes() {
    let place = tempfile::tempdir().unwrap();
    let read = |name: &str| fs::read_to_string(place.path().join(name)).unwrap();
    let own = group(place.path(), Version::V2, &["io.weight", "io.bfq.weight"]);
    for (cpu, weight, coarse) in [
        (1_000, "100", "100"),
        (0, "1", "1"),
        (2_500, "250", "250"),
        (64_000, "6400", "1000"),
        (256_000, "10000", "1000"),
    ] {
        limit(&own, &limits(cpu, None)).unwrap();
        assert_eq!((read("io.weight").as_str(), read("io.bfq.weight").as_str()), (weight, coarse));
    }
    let old = group(place.path(), Version::V1, &["blkio.weight", "blkio.bfq.weight"]);
    limit(&old, &limits(10, None)).unwrap();
    assert_eq!((read("blkio.weight"), read("blkio.bfq.weight")), ("10".into(), "1".into()));
}

#[test]
fn a_rate_is_of_both_ways() {
    let place = tempfile::tempdir().unwrap();
    let read = |name: &str| fs::read_to_string(place.path().join(name)).unwrap();
    limit(&group(place.path(), Version::V2, &[]), &limits(1_000, Some(RATE))).unwrap();
    assert_eq!(read("io.max"), "8:16 rbps=1048576 wbps=1048576");
    limit(&group(place.path(), Version::V1, &[]), &limits(1_000, Some(RATE))).unwrap();
    for way in ["read", "write"] {
        assert_eq!(read(&format!("blkio.throttle.{way}_bps_device")), "8:16 1048576");
    }
}

#[test]
fn a_folder_in_memory_is_on_no_disk() {
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let why = DiskRate::of(place.path(), 1).unwrap_err();
    assert!(why.contains("on no one disk"), "{why}");
}
