//! System calls that a job may not make: those that reach into the kernel or the machine further than a job
//! has reason to, and that the kernel lets everybody make (seccomp(2)). The list follows that of Docker's
//! default profile; what needs a capability is refused by the kernel anyway and mostly left out.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_long, c_ulong};
use std::io;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare,
    SeccompCondition as Condition, SeccompFilter, SeccompRule as Rule, TargetArch, sock_filter,
};

/// What is asked for by number alone.
const REFUSED: &[c_long] = &[
    // Other namespaces, and mounts in them.
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // Keyrings are their user's, not the job's.
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    // Wide doors into the kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_open_by_handle_at,
    // The machine as a whole.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
];

/// Flags of clone(2) and unshare(2) that make namespaces.
const NAMESPACES: [c_int; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// What gives a file another owner.
#[cfg(target_arch = "x86_64")]
const OWNERS: [c_long; 4] =
    [libc::SYS_chown, libc::SYS_lchown, libc::SYS_fchown, libc::SYS_fchownat];
#[cfg(not(target_arch = "x86_64"))]
const OWNERS: [c_long; 2] = [libc::SYS_fchown, libc::SYS_fchownat];

/// Families of sockets that lead past the network.
const FAMILIES: [c_int; 2] = [libc::AF_VSOCK, libc::AF_ALG];

/// Puts input into a terminal, as if somebody had typed it.
const TERMINAL_INPUT: [u64; 2] = [0x5412, 0x541c];

/// From here on, numbers of calls that programs of 32-bit pointers make.
#[cfg(target_arch = "x86_64")]
const X32: Option<u32> = Some(0x4000_0000);
#[cfg(not(target_arch = "x86_64"))]
const X32: Option<u32> = None;

/// This architecture's number in `struct seccomp_data`, from linux/audit.h.
const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };

/// The program that decides about a job's system calls.
#[derive(Debug)]
pub(crate) struct Filter {
    program: BpfProgram,
}

/// Makes the program in advance, for processes that this one forks: each of them would take half a millisecond.
pub(crate) fn make_ready() {
    // Where it cannot be made, nobody asks for it.
    let _ = Filter::get(false);
    if rustix::process::geteuid().is_root() {
        let _ = Filter::get(true);
    }
}

impl Filter {
    /// The program, made at the first call; an error where this architecture is not known. `as_root`: for a
    /// job that is root without root's privileges.
    pub(crate) fn get(as_root: bool) -> io::Result<&'static Self> {
        static MADE: [OnceLock<Filter>; 2] = [const { OnceLock::new() }; 2];
        let [others, root] = &MADE;
        let place = if as_root { root } else { others };
        match place.get() {
            Some(made) => Ok(made),
            None => Self::new(as_root).map(|made| place.get_or_init(|| made)),
        }
    }

    fn new(as_root: bool) -> io::Result<Self> {
        let mut rules: BTreeMap<i64, Vec<Rule>> =
            REFUSED.iter().map(|number| (*number, Vec::new())).collect();
        let one = |argument: u8, compare: Compare, value: u64| {
            let condition = Condition::new(argument, Length::Dword, compare, value);
            condition.and_then(|condition| Rule::new(vec![condition])).map_err(io::Error::other)
        };
        for flag in NAMESPACES {
            // The highest flag is the sign of a number of 32 bits.
            let flag = u64::from(flag.cast_unsigned());
            for number in [libc::SYS_clone, libc::SYS_unshare] {
                let rule = one(0, Compare::MaskedEq(flag), flag)?;
                rules.entry(number).or_default().push(rule);
            }
        }
        for family in FAMILIES {
            let rule = one(0, Compare::Eq, u64::from(family.cast_unsigned()))?;
            rules.entry(libc::SYS_socket).or_default().push(rule);
        }
        for request in TERMINAL_INPUT {
            rules.entry(libc::SYS_ioctl).or_default().push(one(1, Compare::Eq, request)?);
        }
        // Its flags lie in memory, out of a filter's sight; without it the C library uses clone.
        let mut answers = vec![(libc::SYS_clone3, libc::ENOSYS)];
        if as_root {
            // Root's tools give files to others without asking whether they may (`tar x`, `cp -a`): they are
            // told that it is done, as it would be on a file system without owners.
            answers.extend(OWNERS.map(|number| (number, 0)));
        }
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
        let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
        let rest = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)
            .and_then(BpfProgram::try_from)
            .map_err(io::Error::other)?;
        Ok(Self { program: [beginning(&answers), rest].concat() })
    }

    /// Holds the calling thread, and all that it starts, to it. `errno` says why not.
    ///
    /// # Safety
    /// Only system calls.
    pub(crate) unsafe fn set(&self) -> bool {
        const SET_MODE_FILTER: c_long = 1;
        // Without it older kernels slow such processes down, against a danger that this is not for.
        const SPEC_ALLOW: c_ulong = 4;
        let Ok(length) = u16::try_from(self.program.len()) else { return false };
        // `seccompiler`'s instructions are laid out as the kernel's.
        let filter = self.program.as_ptr().cast_mut().cast::<libc::sock_filter>();
        let program = libc::sock_fprog { len: length, filter };
        // SAFETY: The program outlives the call, which copies it.
        unsafe {
            libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, SPEC_ALLOW, &raw const program) == 0
        }
    }
}

/// What stands before the rules that all have one answer, which is all that `seccompiler` has: a call of one of
/// these numbers fails with this error, or seems to succeed (0), and calls of 32-bit pointers do not exist. Rules
/// for each of those would double the program, which the kernel compiles for every job.
fn beginning(answers: &[(c_long, c_int)]) -> BpfProgram {
    // linux/filter.h and linux/seccomp.h.
    const LOAD: u16 = 0x20;
    const IS: u16 = 0x15;
    const IS_AT_LEAST: u16 = 0x35;
    const ANSWER: u16 = 0x06;
    const ERRNO: u32 = 0x0005_0000;
    let (number, architecture) = (0, 4);
    let load = |at: u32| sock_filter { code: LOAD, jt: 0, jf: 0, k: at };
    // If not, the next instruction is left out.
    let test = |code: u16, value: u32| sock_filter { code, jt: 0, jf: 1, k: value };
    let fail =
        |errno: c_int| sock_filter { code: ANSWER, jt: 0, jf: 0, k: ERRNO | errno.cast_unsigned() };
    let mut tests = vec![load(number)];
    if let Some(first) = X32 {
        tests.extend([test(IS_AT_LEAST, first), fail(libc::ENOSYS)]);
    }
    for (number, errno) in answers {
        let number = u32::try_from(*number).unwrap_or(u32::MAX);
        tests.extend([test(IS, number), fail(*errno)]);
    }
    // On another architecture the numbers mean something else; the rest has an answer to that.
    let others = u8::try_from(tests.len()).unwrap_or(u8::MAX);
    let ours = sock_filter { code: IS, jt: 0, jf: others, k: ARCHITECTURE };
    [vec![load(architecture), ours], tests].concat()
}
