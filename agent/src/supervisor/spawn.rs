//! Starts the command: what posix_spawn(3) does, and the death signal besides, which it lacks.

use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::ptr;

use rustix::fs::{Mode, OFlags, open};

use super::journal::{Launch, Outcome};
use crate::cgroup::Cgroup;
use crate::isolation::{Entry, View};

/// Enough for a handful of system calls.
const STACK: usize = 64 * 1024;

/// All that the child needs, made beforehand: it shares our memory and must not allocate.
struct Plan {
    program: *const c_char,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    directory: *const c_char,
    input: c_int,
    output: c_int,
    /// Of the control groups to enter, [`Cgroup::doors`](crate::cgroup::Cgroup::doors).
    doors: *const c_int,
    doors_count: usize,
    /// The way into the command's view of the node; null: it sees all.
    entry: *mut Entry,
    parent: libc::pid_t,
    /// Where the child leaves the reason if it cannot become the command.
    errno: c_int,
    at: Step,
}

/// What the child was doing when it failed.
#[derive(Clone, Copy)]
enum Step {
    Running,
    EnteringFolder,
    EnteringGroup,
    /// The number of the action that failed.
    Isolating(usize),
}

/// Starts the command in its own process group, its output going to `output`, and gives its pid.
///
/// The child shares this process's memory until it has become the command, and this process stands
/// still meanwhile (CLONE_VM and CLONE_VFORK): that copies nothing and costs the same however large
/// the parent is. It is killed if this process dies.
pub(super) fn spawn(launch: &Launch, output: &OwnedFd) -> Result<libc::pid_t, Outcome> {
    let doors = launch.cgroup.as_ref().map(Cgroup::doors).transpose().map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        Outcome::NotStarted { what: "opening the job's control groups".to_owned(), errno }
    })?;
    let doors = doors.unwrap_or_default();
    let door_numbers: Vec<c_int> = doors.iter().map(|door| door.as_raw_fd()).collect();
    let failed = |what: &str, errno: c_int| Outcome::NotStarted { what: what.to_owned(), errno };
    let text = |bytes: &[u8]| {
        CString::new(bytes)
            .map_err(|_| failed("the command or a variable holds a NUL", libc::EINVAL))
    };
    let program = text(launch.program.as_os_str().as_bytes())?;
    let directory = text(launch.directory.as_os_str().as_bytes())?;
    let mut arguments = vec![program.clone()];
    for argument in &launch.arguments {
        arguments.push(text(argument.as_bytes())?);
    }
    let mut environment = Vec::with_capacity(launch.environment.len());
    for (name, value) in &launch.environment {
        environment.push(text(format!("{name}={value}").as_bytes())?);
    }
    let input = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failed("opening /dev/null", errno.raw_os_error()))?;
    let (argument_list, environment_list) = (pointers(&arguments), pointers(&environment));
    let mut entry = launch.view.as_ref().map(View::entry).transpose().map_err(|error| {
        failed("looking at what the job may see", error.raw_os_error().unwrap_or(libc::EIO))
    })?;
    let isolating = entry.as_ref().map_or(0, Entry::clone_flags);
    let mut plan = Plan {
        program: program.as_ptr(),
        arguments: argument_list.as_ptr(),
        environment: environment_list.as_ptr(),
        directory: directory.as_ptr(),
        input: input.as_raw_fd(),
        output: output.as_raw_fd(),
        doors: door_numbers.as_ptr(),
        doors_count: door_numbers.len(),
        entry: entry.as_mut().map_or(ptr::null_mut(), ptr::from_mut),
        parent: rustix::process::getpid().as_raw_nonzero().get(),
        errno: 0,
        at: Step::Running,
    };
    let mut stack = vec![0_u8; STACK];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD | isolating;
    // SAFETY: The stack is ours, grows down from its 16-byte aligned end and outlives the call:
    // CLONE_VFORK keeps us here until the child has left it by execve or _exit. `plan` and all it
    // points to live as long.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(STACK);
        let top = top.sub(top as usize % 16);
        libc::clone(child, top.cast(), flags, ptr::from_mut(&mut plan).cast())
    };
    if pid < 0 {
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EAGAIN);
        return Err(failed("starting a process", errno));
    }
    // SAFETY: The child wrote through a pointer, which the compiler does not see.
    let errno = unsafe { ptr::read_volatile(&raw const plan.errno) };
    if errno == 0 {
        return Ok(pid);
    }
    // SAFETY: As above.
    let at = unsafe { ptr::read_volatile(&raw const plan.at) };
    // SAFETY: It is our child and has ended.
    unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
    let what = match at {
        Step::Running => format!("running {}", launch.program.display()),
        Step::EnteringFolder => format!("entering the folder {}", launch.directory.display()),
        Step::EnteringGroup => "entering the job's control groups".to_owned(),
        Step::Isolating(number) => {
            entry.as_ref().map_or_else(String::new, |entry| entry.describe(number))
        }
    };
    Err(failed(&what, errno))
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

/// The child, up to the moment at which it becomes the command. Only system calls.
extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a valid plan and waits. Every call below is async-signal-safe.
    unsafe {
        let plan = plan.cast::<Plan>();
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != (*plan).parent {
            libc::_exit(127);
        }
        libc::setpgid(0, 0);
        libc::dup2((*plan).input, libc::STDIN_FILENO);
        libc::dup2((*plan).output, libc::STDOUT_FILENO);
        libc::dup2((*plan).output, libc::STDERR_FILENO);
        // Rust programs ignore SIGPIPE, and nohup SIGHUP; the command expects neither.
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        let mut entered = true;
        for door in 0..(*plan).doors_count {
            entered &= libc::write(*(*plan).doors.add(door), c"0".as_ptr().cast(), 1) == 1;
            if !entered {
                (*plan).at = Step::EnteringGroup;
                break;
            }
        }
        if entered && let Some(entry) = (*plan).entry.as_mut() {
            if let Err(number) = entry.enter() {
                (*plan).at = Step::Isolating(number);
                entered = false;
            }
            // What changes privileges may have cleared it.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        }
        if entered {
            if libc::chdir((*plan).directory) == 0 {
                libc::execve((*plan).program, (*plan).arguments, (*plan).environment);
            } else {
                (*plan).at = Step::EnteringFolder;
            }
        }
        let errno = *libc::__errno_location();
        (*plan).errno = if errno == 0 { libc::EIO } else { errno };
        libc::_exit(127)
    }
}
