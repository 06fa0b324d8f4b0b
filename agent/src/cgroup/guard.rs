//! Devices that an attempt may not open: GPUs that were given to others.
//!
//! Version 1 has a controller for it (Documentation/admin-guide/cgroup-v1/devices.rst). Version 2 asks a
//! small program in the kernel at each opening (`BPF_PROG_TYPE_CGROUP_DEVICE`, in
//! Documentation/admin-guide/cgroup-v2.rst), which stays with the group it is attached to.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use super::group::{Group, Version};

/// A character device, by its numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct DeviceNode {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// The controller of version 1.
pub(super) const DEVICES: &str = "devices";

/// Keeps the processes of a group from opening devices, where it is the group to do so.
pub(super) fn deny(group: &Group, denied: &[DeviceNode]) -> io::Result<()> {
    if denied.is_empty() || !group.has(DEVICES) {
        return Ok(());
    }
    match group.version {
        Version::V1 => denied.iter().try_for_each(|DeviceNode { major, minor }| {
            // One rule in a write.
            fs::write(group.file("devices.deny"), format!("c {major}:{minor} rwm"))
        }),
        Version::V2 => attach(&load(&program(denied))?, &group.folder),
    }
}

/// Whether this process may give the kernel such programs.
pub(super) fn can_load() -> io::Result<()> {
    load(&program(&[])).map(drop)
}

/// One instruction (Documentation/bpf/standardization/instruction-set.rst).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Instruction {
    code: u8,
    /// The destination in the lower half, the source in the upper one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The result, the context, and the three words of it.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const ACCESS: u8 = 2;
const MAJOR: u8 = 3;
const MINOR: u8 = 4;

impl Instruction {
    const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        Self { code, registers: destination | source << 4, offset, immediate }
    }

    /// `to = *(u32 *)(context + offset)`: `BPF_LDX | BPF_MEM | BPF_W`.
    const fn load(to: u8, offset: i16) -> Self {
        Self::new(0x61, to, CONTEXT, offset, 0)
    }

    /// `register &= value`, of 32 bits: `BPF_ALU | BPF_AND | BPF_K`.
    const fn and(register: u8, value: i32) -> Self {
        Self::new(0x54, register, 0, 0, value)
    }

    /// Skips so many instructions if a register holds another value: `BPF_JMP32 | BPF_JNE | BPF_K`.
    const fn skip_unless(register: u8, value: i32, count: i16) -> Self {
        Self::new(0x56, register, 0, count, value)
    }

    /// `result = value`: `BPF_ALU64 | BPF_MOV | BPF_K`.
    const fn answer(value: i32) -> Self {
        Self::new(0xb7, RESULT, 0, 0, value)
    }

    /// `BPF_JMP | BPF_EXIT`.
    const EXIT: Self = Self::new(0x95, 0, 0, 0, 0);
}

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
        program.extend([
            Instruction::skip_unless(ACCESS, CHARACTER, 4),
            Instruction::skip_unless(MAJOR, major.cast_signed(), 3),
            Instruction::skip_unless(MINOR, minor.cast_signed(), 2),
            Instruction::answer(0),
            Instruction::EXIT,
        ]);
    }
    program.extend([Instruction::answer(1), Instruction::EXIT]);
    program
}

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`; what follows is zero.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The same for `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Has the kernel check a program and keep it as long as the file is open.
fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_int = 5;
    const CGROUP_DEVICE: u32 = 15;
    // It calls none of the kernel's functions that ask for another one.
    let license = c"Apache-2.0";
    let load = Load {
        kind: CGROUP_DEVICE,
        count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: The struct is as the kernel reads it, and what it points to lives until the call returns.
    let number = unsafe { bpf(PROG_LOAD, &raw const load) }?;
    // SAFETY: The call gave a file that is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Lets a program answer for a group, beside those of the groups above.
fn attach(program: &OwnedFd, folder: &Path) -> io::Result<()> {
    const PROG_ATTACH: libc::c_int = 8;
    const CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    let group = File::open(folder)?;
    let attach = Attach {
        target: group.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: The struct is as the kernel reads it and holds no pointers.
    unsafe { bpf(PROG_ATTACH, &raw const attach) }.map(drop)
}

/// bpf(2).
///
/// # Safety
/// The struct is what the kernel reads for this command, and its pointers are valid.
unsafe fn bpf<T>(command: libc::c_int, attributes: *const T) -> io::Result<libc::c_int> {
    // SAFETY: As the caller says.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests;
