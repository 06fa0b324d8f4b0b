//! Small programs for the kernel (bpf(2)), written as instructions: they ask for a few numbers, may add to some,
//! and answer yes or no. They need no compiler, and none of the kernel's functions.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

/// One instruction (Documentation/bpf/standardization/instruction-set.rst).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Instruction {
    pub(super) code: u8,
    /// The destination in the lower half, the source in the upper one.
    pub(super) registers: u8,
    pub(super) offset: i16,
    pub(super) immediate: i32,
}

/// The result, and what is asked about.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;

impl Instruction {
    const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        Self { code, registers: destination | source << 4, offset, immediate }
    }

    /// `to = *(u32 *)(context + offset)`: `BPF_LDX | BPF_MEM | BPF_W`.
    pub(super) const fn load(to: u8, offset: i16) -> Self {
        Self::new(0x61, to, CONTEXT, offset, 0)
    }

    /// `register &= value`, of 32 bits: `BPF_ALU | BPF_AND | BPF_K`.
    pub(super) const fn and(register: u8, value: i32) -> Self {
        Self::new(0x54, register, 0, 0, value)
    }

    /// Skips so many instructions if a register holds another value: `BPF_JMP32 | BPF_JNE | BPF_K`.
    pub(super) const fn skip_unless(register: u8, value: i32, count: i16) -> Self {
        Self::new(0x56, register, 0, count, value)
    }

    /// Skips so many instructions if a register holds this value: `BPF_JMP32 | BPF_JEQ | BPF_K`.
    pub(super) const fn skip_if(register: u8, value: i32, count: i16) -> Self {
        Self::new(0x16, register, 0, count, value)
    }

    /// `*(u64 *)place += register`, at once: `BPF_STX | BPF_ATOMIC | BPF_DW` with `BPF_ADD`.
    pub(super) const fn add_to(place: u8, register: u8) -> Self {
        Self::new(0xdb, place, register, 0, 0)
    }

    /// `result = value`: `BPF_ALU64 | BPF_MOV | BPF_K`. 0 refuses, with `EPERM`; 1 allows.
    pub(super) const fn answer(value: i32) -> Self {
        Self::new(0xb7, RESULT, 0, 0, value)
    }

    /// `BPF_JMP | BPF_EXIT`.
    pub(super) const EXIT: Self = Self::new(0x95, 0, 0, 0, 0);
}

/// Numbers that programs add to: a map with one value that holds all of them (`BPF_MAP_TYPE_ARRAY`).
#[derive(Debug)]
pub(super) struct Numbers<const N: usize>(OwnedFd);

/// The beginning of `union bpf_attr` for `BPF_MAP_CREATE`; what follows is zero.
#[repr(C)]
struct Create {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    count: u32,
}

/// The same for `BPF_MAP_LOOKUP_ELEM`.
#[repr(C)]
struct Lookup {
    map: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl<const N: usize> Numbers<N> {
    /// All of them zero. Programs that add to them keep them.
    pub(super) fn new() -> io::Result<Self> {
        const MAP_CREATE: libc::c_int = 0;
        let value_bytes = u32::try_from(N * size_of::<u64>()).unwrap_or(u32::MAX);
        let create = Create { kind: 2, key_bytes: 4, value_bytes, count: 1 };
        // SAFETY: The struct is as the kernel reads it and holds no pointers.
        let number = unsafe { bpf(MAP_CREATE, &raw const create) }?;
        // SAFETY: The call gave a file that is nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(number) }))
    }

    /// Where the number of this index lies, into a register: `BPF_LD | BPF_DW | BPF_IMM` with
    /// `BPF_PSEUDO_MAP_VALUE` (Linux 5.2).
    pub(super) fn place(&self, register: u8, index: usize) -> [Instruction; 2] {
        const MAP_VALUE: u8 = 2;
        let offset = i32::try_from(index * size_of::<u64>()).unwrap_or(i32::MAX);
        [
            Instruction::new(0x18, register, MAP_VALUE, 0, self.0.as_raw_fd()),
            Instruction::new(0, 0, 0, 0, offset),
        ]
    }

    pub(super) fn read(&self) -> io::Result<[u64; N]> {
        const MAP_LOOKUP_ELEM: libc::c_int = 1;
        let (key, mut numbers) = (0_u32, [0_u64; N]);
        let lookup = Lookup {
            map: self.0.as_raw_fd().cast_unsigned(),
            key: &raw const key as u64,
            value: &raw mut numbers as u64,
            flags: 0,
        };
        // SAFETY: The struct is as the kernel reads it. The value is as long as the map says.
        unsafe { bpf(MAP_LOOKUP_ELEM, &raw const lookup) }?;
        Ok(numbers)
    }
}

/// What a program is asked about, as linux/bpf.h numbers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Question {
    /// `enum bpf_prog_type`.
    pub(super) program: u32,
    /// `enum bpf_attach_type`.
    pub(super) attachment: u32,
}

/// Whether a group may have several programs for one question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Beside {
    /// It answers beside those that the group has, and so do those of groups below.
    Others = 2,
    /// It takes the place of the one that the group has; groups below have none.
    Nothing = 0,
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
    name: [u8; 16],
    interface: u32,
    attachment: u32,
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
pub(super) fn load(question: Question, program: &[Instruction]) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_int = 5;
    // It calls none of the kernel's functions that ask for another one.
    let license = c"Apache-2.0";
    let load = Load {
        kind: question.program,
        count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        attachment: question.attachment,
        ..Load::default()
    };
    // SAFETY: The struct is as the kernel reads it, and what it points to lives until the call returns.
    let number = unsafe { bpf(PROG_LOAD, &raw const load) }?;
    // SAFETY: The call gave a file that is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Lets a program answer for a group, along with those of the groups above. It stays with the group, whatever
/// becomes of this process.
pub(super) fn attach(
    question: Question,
    program: &OwnedFd,
    folder: &Path,
    beside: Beside,
) -> io::Result<()> {
    const PROG_ATTACH: libc::c_int = 8;
    let group = File::open(folder)?;
    let attach = Attach {
        target: group.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: question.attachment,
        flags: beside as u32,
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
