#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{DeviceNode, Instruction, attach, can_load, deny, load, program};
use crate::cgroup::group::{Group, Version};

/// `/dev/full`, which nothing needs.
const FULL: DeviceNode = DeviceNode { major: 1, minor: 7 };

#[test]
fn a_program_asks_for_kind_and_both_numbers() {
    let program = program(&[FULL]);
    assert_eq!(program.len(), 4 + 5 + 2);
    assert_eq!(program[5], Instruction { code: 0x56, registers: 3, offset: 3, immediate: 1 });
    assert_eq!(program[6], Instruction { code: 0x56, registers: 4, offset: 2, immediate: 7 });
    // Each skip ends at the next device or at the last answer.
    assert_eq!(program[9], Instruction { code: 0xb7, registers: 0, offset: 0, immediate: 1 });
    assert_eq!(size_of::<Instruction>(), 8);
}

/// Where groups of version 2 are.
fn unified() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let at = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    at.expect("a mounted cgroup2").split(' ').nth(1).unwrap().into()
}

/// A group that is removed again.
struct Own(PathBuf);

impl Own {
    fn below(top: &Path, name: &str) -> Self {
        let folder = top.join(format!("atelier-test-{name}-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    /// What a shell in the group says that opens both devices.
    fn opens(&self, door: &str) -> (bool, bool) {
        let door = self.0.join(door);
        let try_both = "echo 0 > \"$1\" || exit 9; r=; \
                        (: < /dev/full) 2>/dev/null && r=f; (: < /dev/null) && r=${r}n; echo $r";
        let shell = Command::new("sh").args(["-c", try_both, "sh"]).arg(door).output().unwrap();
        assert!(shell.status.success(), "{shell:?}");
        let said = String::from_utf8(shell.stdout).unwrap();
        (said.contains('f'), said.contains('n'))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn version_2_keeps_a_group_from_a_device() {
    can_load().unwrap();
    let group = Own::below(&unified(), "v2");
    assert_eq!(group.opens("cgroup.procs"), (true, true));
    let other = DeviceNode { major: 195, minor: 0 };
    attach(&load(&program(&[other, FULL])).unwrap(), &group.0).unwrap();
    assert_eq!(group.opens("cgroup.procs"), (false, true));
}

#[test]
fn version_1_keeps_a_group_from_a_device() {
    let own = Own::below(Path::new("/sys/fs/cgroup/devices"), "v1");
    let controllers = vec!["devices".to_owned()];
    let group = Group { folder: own.0.clone(), version: Version::V1, controllers };
    assert_eq!(own.opens("tasks"), (true, true));
    deny(&group, &[FULL]).unwrap();
    assert_eq!(own.opens("tasks"), (false, true));
}
