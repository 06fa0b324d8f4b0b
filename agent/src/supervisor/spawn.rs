//! Starts a command: what posix_spawn(3) does, and the death signal besides, which it lacks.

use std::ffi::{CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt as _;
use std::ptr;

use super::journal::Launch;

/// Enough for a handful of system calls.
const STACK: usize = 64 * 1024;

/// A command that is made ready: all texts end, and nothing needs memory any more.
pub(super) struct Command {
    program: CString,
    directory: CString,
    // What the lists of pointers point to.
    _texts: Vec<CString>,
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
}

/// What a command is started with besides: numbers of open files.
pub(super) struct Files<'a> {
    pub(super) input: c_int,
    pub(super) output: c_int,
    /// Of the control groups to enter, [`Cgroup::doors`](crate::cgroup::Cgroup::doors).
    pub(super) doors: &'a [c_int],
}

/// What could not be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Running,
    EnteringFolder,
    EnteringGroup,
    Forking,
}

/// What the child needs; it shares its parent's memory and must not allocate.
struct Plan<'a> {
    command: &'a Command,
    files: &'a Files<'a>,
    parent: libc::pid_t,
    /// Where the child leaves the reason if it cannot become the command.
    errno: c_int,
    at: Step,
}

impl Command {
    /// Process `number` of a launch; `None` if a text holds a NUL.
    pub(super) fn new(launch: &Launch, number: usize) -> Option<Self> {
        let text = |bytes: &[u8]| CString::new(bytes).ok();
        let program = text(launch.program.as_os_str().as_bytes())?;
        let mut texts = Vec::with_capacity(launch.arguments.len() + launch.environment.len());
        for argument in &launch.arguments {
            texts.push(text(argument.as_bytes())?);
        }
        let own = launch.processes.get(number).map(|process| &process.environment);
        let mut variables = launch.environment.clone();
        variables
            .extend(own.into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())));
        for (name, value) in variables {
            texts.push(text(format!("{name}={value}").as_bytes())?);
        }
        let (arguments, environment) = texts.split_at(launch.arguments.len());
        let arguments = std::iter::once(program.as_ptr()).chain(pointers(arguments)).collect();
        let environment = pointers(environment).collect();
        let directory = text(launch.directory.as_os_str().as_bytes())?;
        Some(Self { program, directory, arguments, environment, _texts: texts })
    }

    /// Starts it in its own process group and gives its pid.
    ///
    /// The child shares this process's memory until it has become the command, and this process stands
    /// still meanwhile (CLONE_VM and CLONE_VFORK): that copies nothing and costs the same however large
    /// the parent is. It is killed if this process dies.
    pub(super) fn spawn(&self, files: &Files<'_>) -> Result<libc::pid_t, (Step, c_int)> {
        let parent = rustix::process::getpid().as_raw_nonzero().get();
        let mut plan = Plan { command: self, files, parent, errno: 0, at: Step::Running };
        let mut stack = vec![0_u8; STACK];
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: The stack is ours, grows down from its 16-byte aligned end and outlives the call:
        // CLONE_VFORK keeps us here until the child has left it by execve or _exit. `plan` and all it
        // points to live as long.
        let pid = unsafe {
            let top = stack.as_mut_ptr().add(STACK);
            let top = top.sub(top as usize % 16);
            libc::clone(child, top.cast(), flags, ptr::from_mut(&mut plan).cast())
        };
        if pid < 0 {
            return Err((Step::Forking, last_errno()));
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
        Err((at, errno))
    }
}

fn pointers(texts: &[CString]) -> impl Iterator<Item = *const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()])
}

pub(super) fn last_errno() -> c_int {
    match std::io::Error::last_os_error().raw_os_error() {
        Some(errno) if errno != 0 => errno,
        _ => libc::EIO,
    }
}

/// The child, up to the moment at which it becomes the command. Only system calls.
extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a valid plan and waits. Every call below is async-signal-safe.
    unsafe {
        let plan = plan.cast::<Plan<'_>>();
        let (command, files) = ((*plan).command, (*plan).files);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != (*plan).parent {
            libc::_exit(127);
        }
        libc::setpgid(0, 0);
        libc::dup2(files.input, libc::STDIN_FILENO);
        libc::dup2(files.output, libc::STDOUT_FILENO);
        libc::dup2(files.output, libc::STDERR_FILENO);
        // Rust programs ignore SIGPIPE, and nohup SIGHUP; the command expects neither.
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        let mut entered = true;
        for door in files.doors {
            entered &= libc::write(*door, c"0".as_ptr().cast(), 1) == 1;
            if !entered {
                (*plan).at = Step::EnteringGroup;
                break;
            }
        }
        if entered {
            if libc::chdir(command.directory.as_ptr()) == 0 {
                let (arguments, environment) = (&command.arguments, &command.environment);
                libc::execve(command.program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
            } else {
                (*plan).at = Step::EnteringFolder;
            }
        }
        let errno = *libc::__errno_location();
        (*plan).errno = if errno == 0 { libc::EIO } else { errno };
        libc::_exit(127)
    }
}
