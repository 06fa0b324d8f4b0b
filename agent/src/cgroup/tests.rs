#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use super::mounts::{Hierarchy, Kind, hierarchies};
use super::usage::Usage;
use super::{Cgroups, Limits, NodeLimits, Version, Waited, parent_name, unified};

const GIB: u64 = 1 << 30;
const NODE: NodeLimits =
    NodeLimits { memory: 8 * GIB, processes: 24_000, guarded: false, io: None };

const HYBRID: &str = "\
26 21 0:23 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
27 26 0:24 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
28 26 0:25 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
29 26 0:26 /box /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
30 26 0:27 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
31 26 0:28 / /sys/fs/cgroup/uni\\040fied rw,relatime - cgroup2 cgroup2 rw
32 26 0:28 / /elsewhere rw,relatime - cgroup2 cgroup2 rw
";
const OWN: &str = "\
9:name=systemd:/
8:pids:/box/a
4:memory:/jobs/a
2:cpu,cpuacct:/
0::/user.slice/mine
";

#[test]
fn hierarchies_are_found_where_they_are_mounted() {
    let found = hierarchies(HYBRID, OWN);
    let seen: Vec<(&Path, &Path)> =
        found.iter().map(|h| (h.root.as_path(), h.own.as_path())).collect();
    let path = Path::new;
    assert_eq!(
        seen,
        [
            (path("/sys/fs/cgroup/cpu,cpuacct"), path("/sys/fs/cgroup/cpu,cpuacct")),
            (path("/sys/fs/cgroup/memory"), path("/sys/fs/cgroup/memory/jobs/a")),
            (path("/sys/fs/cgroup/pids"), path("/sys/fs/cgroup/pids/a")),
            (path("/sys/fs/cgroup/uni fied"), path("/sys/fs/cgroup/uni fied/user.slice/mine")),
        ]
    );
    assert_eq!(found[3].kind, Kind::V2);
    // What another container's view hides is not used.
    assert_eq!(hierarchies(HYBRID, "8:pids:/other\n"), []);
    assert_eq!(hierarchies("nonsense\n - \n1 2 - cgroup2", OWN), []);
}

/// A folder with the files of a group of version 2.
fn v2(folder: PathBuf, controllers: &str, enabled: &str, processes: &str) -> PathBuf {
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("cgroup.controllers"), controllers).unwrap();
    fs::write(folder.join("cgroup.subtree_control"), enabled).unwrap();
    fs::write(folder.join("cgroup.procs"), processes).unwrap();
    folder
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap()
}

#[test]
fn a_service_with_a_subgroup_makes_its_groups_beside_it() {
    let root = tempfile::tempdir().unwrap();
    let unit = v2(root.path().join("system.slice/atelier.service"), "cpu io memory pids", "", "");
    let own = v2(unit.join("agent"), "cpu io memory pids", "", "17");
    let unified = Hierarchy { kind: Kind::V2, root: root.path().into(), own };
    let found = Cgroups::within(&[unified], "atelier-n-1", NODE);
    assert_eq!((found.limits().as_str(), found.missing()), ("cpu memory pids", None));
    assert_eq!(read(&unit, "cgroup.subtree_control"), "+cpu +io +memory +pids");
    let parent = unit.join("atelier-n-1");
    assert_eq!(read(&parent, "cgroup.subtree_control"), "+cpu +io +memory +pids");
    assert_eq!(read(&parent, "memory.max"), (8 * GIB).to_string());
    assert_eq!(read(&parent, "pids.max"), "24000");

    let limits = found.limits_of(2500, 512);
    let cgroup = found.create(7, &limits, &[]).unwrap().unwrap();
    let own = parent.join("7");
    assert_eq!(cgroup.groups.len(), 1);
    assert_eq!((&cgroup.groups[0].folder, cgroup.groups[0].version), (&own, Version::V2));
    assert_eq!(read(&own, "memory.max"), (512_u64 << 20).to_string());
    assert_eq!(read(&own, "memory.swap.max"), "0");
    assert_eq!(read(&own, "memory.oom.group"), "1");
    assert_eq!(read(&own, "pids.max"), (4096 + 3 * 512).to_string());
    assert_eq!(read(&own, "cpu.weight"), "250");

    fs::write(own.join("memory.peak"), "536870912\n").unwrap();
    fs::write(own.join("memory.events"), "low 0\noom 1\noom_kill 3\noom_group_kill 1\n").unwrap();
    let memory = cgroup.memory();
    assert_eq!((memory.peak_bytes, memory.kills), (Some(512 << 20), 3));
    assert_eq!(memory.limit_bytes, Some(512 << 20));
    fs::write(own.join("memory.max"), "max\n").unwrap();
    assert_eq!(cgroup.memory().limit_bytes, None);
    let counts = [
        ("cpu.stat", "usage_usec 1500000\nuser_usec 1000000\n"),
        ("memory.stat", "anon 1000\nfile 500\nkernel 7\nshmem 200\nfile_mapped 3\n"),
        ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2 rios=1\n"),
        ("cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\nfull avg10=0 total=1\n"),
        ("memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=6\n"),
        ("io.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"),
    ];
    for (name, text) in counts {
        fs::write(own.join(name), text).unwrap();
    }
    let seen = Usage {
        cpu_us: Some(1_500_000),
        resident_bytes: Some(1_200),
        cached_bytes: Some(300),
        disk_bytes: Some((11, 22)),
        waited: Some(Waited { cpu_us: 5, memory_us: 6, io_us: 7 }),
    };
    assert_eq!(cgroup.usage(), seen);
    // Nothing is in it; there is nothing to kill, and nothing can be started any more.
    fs::write(own.join("cgroup.procs"), "").unwrap();
    assert!(!cgroup.kill());
    assert_eq!((read(&own, "pids.max"), read(&own, "cgroup.kill")), ("0".into(), "1".into()));
}

#[test]
fn a_group_that_hands_nothing_on_is_told_with_the_remedy() {
    let root = tempfile::tempdir().unwrap();
    // No such file as cgroup.subtree_control: nothing can be handed on.
    let own = root.path().join("user.slice/shell");
    fs::create_dir_all(&own).unwrap();
    fs::write(root.path().join("cgroup.controllers"), "cpu memory pids").unwrap();
    let unified = Hierarchy { kind: Kind::V2, root: root.path().into(), own };
    let node = NodeLimits { guarded: true, ..NODE };
    let found = Cgroups::within(&[unified], "atelier-n-1", node);
    assert_eq!(found.limits(), "none");
    let missing = found.missing().unwrap();
    assert!(
        missing.contains("cpu, devices, memory, pids: ") && missing.contains("Delegate=yes"),
        "{missing}"
    );
    assert_eq!(found.create(1, &found.limits_of(1000, 0), &[]).unwrap(), None);
}

#[test]
fn devices_that_nothing_guards_are_told() {
    let with =
        |guarded| Cgroups::within(&[], "atelier-n-1", NodeLimits { guarded, ..NODE }).missing();
    assert!(with(true).unwrap().contains("devices, "), "{:?}", with(true));
    assert!(!with(false).unwrap().contains("devices"), "{:?}", with(false));
}

#[test]
fn an_empty_version_2_beside_version_1_still_ends_attempts() {
    let root = tempfile::tempdir().unwrap();
    let memory = root.path().join("memory");
    fs::create_dir_all(&memory).unwrap();
    let v1 = Hierarchy {
        kind: Kind::V1(vec!["memory".into()]),
        root: memory.clone(),
        own: memory.clone(),
    };
    let own = v2(root.path().join("unified"), "", "", "1");
    let unified = Hierarchy { kind: Kind::V2, root: own.clone(), own: own.clone() };
    let found = Cgroups::within(&[v1, unified], "atelier-n-1", NODE);
    assert_eq!(found.limits(), "memory");
    let missing = found.missing().unwrap();
    assert!(missing.contains("cpu, pids: ") && missing.contains("no such controller"), "{missing}");
    let cgroup = found.create(3, &found.limits_of(1000, 64), &[]).unwrap().unwrap();
    let folders: Vec<&Path> = cgroup.groups.iter().map(|group| group.folder.as_path()).collect();
    assert_eq!(folders, [memory.join("atelier-n-1/3"), own.join("atelier-n-1/3")]);
    let limit = read(&memory.join("atelier-n-1/3"), "memory.limit_in_bytes");
    assert_eq!(limit, (64_u64 << 20).to_string());
}

#[test]
fn the_nodes_reserve_is_not_for_jobs() {
    let mib = 1 << 20;
    assert_eq!(NodeLimits::of(24 * GIB, 24 * GIB).memory, 24 * GIB - 768 * mib);
    assert_eq!(NodeLimits::of(4 * GIB, 24 * GIB).memory, 4 * GIB);
    assert_eq!(NodeLimits::of(2 * GIB, 2 * GIB).memory, 2 * GIB - 128 * mib);
    assert_eq!(NodeLimits::of(1024 * GIB, 1024 * GIB).memory, 1022 * GIB);
    // A job never has more than all jobs together, however much it asks for.
    assert_eq!(Limits::of(1000, 1 << 40, &NODE).memory, Some(NODE.memory));
    assert_eq!(Limits::of(1000, 0, &NODE).memory, None);
    assert_eq!(Limits::of(256_000, 0, &NODE).processes, NODE.processes / 2);
}

#[test]
fn two_agents_of_one_name_do_not_share_groups() {
    let (one, other) = (parent_name("n0", Path::new("/a")), parent_name("n0", Path::new("/b")));
    assert!(one.starts_with("atelier-n0-") && one != other, "{one} {other}");
}

#[test]
fn a_group_called_agent_at_the_top_has_nothing_beside_it() {
    let root = tempfile::tempdir().unwrap();
    let own = v2(root.path().join("agent"), "memory", "", "1");
    v2(root.path().to_owned(), "memory", "memory", "1 2");
    let unified = Hierarchy { kind: Kind::V2, root: root.path().into(), own };
    let parent = unified::parent(&unified, "p", &["memory"].into()).unwrap();
    assert_eq!(parent.folder, root.path().join("p"));
}
