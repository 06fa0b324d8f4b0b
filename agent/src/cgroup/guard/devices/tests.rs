#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use super::{DeviceNode, Instruction, can_load, deny, program};
use crate::cgroup::group::{Group, Version};
use crate::cgroup::guard::testing::{Own, unified};

/// `/dev/full`, which nothing needs.
const FULL: DeviceNode = DeviceNode { major: 1, minor: Some(7) };

#[test]
fn a_program_asks_for_kind_and_both_numbers() {
    let program = program(&[FULL]);
    assert_eq!(program.len(), 4 + 5 + 2);
    assert_eq!(program[5], Instruction { code: 0x56, registers: 3, offset: 3, immediate: 1 });
    assert_eq!(program[6], Instruction { code: 0x56, registers: 4, offset: 2, immediate: 7 });
    // Each skip ends at the next device or at the last answer.
    assert_eq!(program[9], Instruction { code: 0xb7, registers: 0, offset: 0, immediate: 1 });
    assert_eq!(size_of::<Instruction>(), 8);
    // Where the second number is of no account it is not asked for.
    let program = super::program(&[DeviceNode { minor: None, ..FULL }]);
    assert_eq!(program.len(), 4 + 4 + 2);
    assert_eq!(program[4].offset, 3);
    assert_eq!(program[5], Instruction { code: 0x56, registers: 3, offset: 2, immediate: 1 });
    assert_eq!(program[8], Instruction { code: 0xb7, registers: 0, offset: 0, immediate: 1 });
}

/// What a shell in the group says that opens both devices.
fn opens(own: &Own, door: &str) -> (bool, bool) {
    let door = own.0.join(door);
    let try_both = "echo 0 > \"$1\" || exit 9; r=; \
                    (: < /dev/full) 2>/dev/null && r=f; (: < /dev/null) && r=${r}n; echo $r";
    let shell = Command::new("sh").args(["-c", try_both, "sh"]).arg(door).output().unwrap();
    assert!(shell.status.success(), "{shell:?}");
    let said = String::from_utf8(shell.stdout).unwrap();
    (said.contains('f'), said.contains('n'))
}

#[test]
fn version_2_keeps_a_group_from_a_device() {
    can_load().unwrap();
    let own = Own::below(&unified(), "v2");
    let controllers = vec!["devices".to_owned()];
    let group = Group { folder: own.0.clone(), version: Version::V2, controllers };
    assert_eq!(opens(&own, "cgroup.procs"), (true, true));
    let other = DeviceNode { major: 195, minor: Some(0) };
    deny(&group, &[other, FULL]).unwrap();
    assert_eq!(opens(&own, "cgroup.procs"), (false, true));
}

#[test]
fn version_2_keeps_a_group_from_all_of_a_driver() {
    can_load().unwrap();
    let own = Own::below(&unified(), "v2-all");
    let controllers = vec!["devices".to_owned()];
    let group = Group { folder: own.0.clone(), version: Version::V2, controllers };
    deny(&group, &[DeviceNode { minor: None, ..FULL }]).unwrap();
    assert_eq!(opens(&own, "cgroup.procs"), (false, false));
}

#[test]
fn version_1_keeps_a_group_from_all_of_a_driver() {
    let own = Own::below(Path::new("/sys/fs/cgroup/devices"), "v1-all");
    let controllers = vec!["devices".to_owned()];
    let group = Group { folder: own.0.clone(), version: Version::V1, controllers };
    deny(&group, &[DeviceNode { minor: None, ..FULL }]).unwrap();
    assert_eq!(opens(&own, "tasks"), (false, false));
}

#[test]
fn version_1_keeps_a_group_from_a_device() {
    let own = Own::below(Path::new("/sys/fs/cgroup/devices"), "v1");
    let controllers = vec!["devices".to_owned()];
    let group = Group { folder: own.0.clone(), version: Version::V1, controllers };
    assert_eq!(opens(&own, "tasks"), (true, true));
    deny(&group, &[FULL]).unwrap();
    assert_eq!(opens(&own, "tasks"), (false, true));
}
