//! Devices that an attempt may not open: GPUs that were given to others.
//!
//! Version 1 has a controller for it (Documentation/admin-guide/cgroup-v1/devices.rst). Version 2 asks a
//! small program in the kernel at each opening (`BPF_PROG_TYPE_CGROUP_DEVICE`, in
//! Documentation/admin-guide/cgroup-v2.rst), which stays with the group it is attached to.

use std::fs;
use std::io;

use super::bpf::{Beside, Instruction, Question, attach, load};
use crate::cgroup::group::{Group, Version};

/// A character device, by its numbers, or all of a driver's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct DeviceNode {
    pub(crate) major: u32,
    /// `None`: whatever it is.
    pub(crate) minor: Option<u32>,
}

/// The controller of version 1.
pub(in crate::cgroup) const DEVICES: &str = "devices";

/// Keeps the processes of a group from opening devices, where it is the group to do so.
pub(in crate::cgroup) fn deny(group: &Group, denied: &[DeviceNode]) -> io::Result<()> {
    if denied.is_empty() || !group.has(DEVICES) {
        return Ok(());
    }
    match group.version {
        Version::V1 => denied.iter().try_for_each(|DeviceNode { major, minor }| {
            let minor = minor.map_or("*".to_owned(), |minor| minor.to_string());
            // One rule in a write.
            fs::write(group.file("devices.deny"), format!("c {major}:{minor} rwm"))
        }),
        Version::V2 => {
            let program = load(OPENING, &program(denied))?;
            attach(OPENING, &program, &group.folder, Beside::Others)
        }
    }
}

/// Whether this process may give the kernel such programs.
pub(in crate::cgroup) fn can_load() -> io::Result<()> {
    load(OPENING, &program(&[])).map(drop)
}

/// What is asked at each opening: `BPF_PROG_TYPE_CGROUP_DEVICE` at `BPF_CGROUP_DEVICE`.
const OPENING: Question = Question { program: 15, attachment: 6 };

/// The three words of the context.
const ACCESS: u8 = 2;
const MAJOR: u8 = 3;
const MINOR: u8 = 4;

/// Answers 0 for a character device that is denied, and 1 for all else. The context is
/// `struct bpf_cgroup_dev_ctx`: kind and access, major, minor.
fn program(denied: &[DeviceNode]) -> Vec<Instruction> {
    /// `BPF_DEVCG_DEV_CHAR`, in the lower half of the first word.
    const CHARACTER: i32 = 2;
    let mut program = vec![
        Instruction::load(ACCESS, 0),
        Instruction::and(ACCESS, 0xffff),
        Instruction::load(MAJOR, 4),
        Instruction::load(MINOR, 8),
    ];
    for DeviceNode { major, minor } in denied {
        let minor = minor.map(|minor| Instruction::skip_unless(MINOR, minor.cast_signed(), 2));
        let more = i16::from(minor.is_some());
        program.extend([
            Instruction::skip_unless(ACCESS, CHARACTER, 3 + more),
            Instruction::skip_unless(MAJOR, major.cast_signed(), 2 + more),
        ]);
        program.extend(minor);
        program.extend([Instruction::answer(0), Instruction::EXIT]);
    }
    program.extend([Instruction::answer(1), Instruction::EXIT]);
    program
}

#[cfg(test)]
mod tests;
