//! Whether this machine lets jobs be isolated, seen by doing it.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use super::{Means, View};

/// The second argument of a supervisor that is none: it enters a view and ends.
pub(crate) const PROBE: &str = "--isolate";

/// Finds by what jobs can be isolated, or why they cannot.
pub(crate) fn probe(verb: &str, root: &Path) -> Result<Means, String> {
    match try_it(verb, root, Means::UserNamespace) {
        Ok(()) => Ok(Means::UserNamespace),
        Err(_) if rustix::process::geteuid().is_root() => {
            try_it(verb, root, Means::Root).map(|()| Means::Root)
        }
        Err(why) => Err(why),
    }
}

/// Enters a view below the agent's folder, in a process of its own.
fn try_it(verb: &str, root: &Path, means: Means) -> Result<(), String> {
    let folder = root.join("probe");
    let cannot = |error: io::Error| format!("cannot try it: {error}");
    std::fs::create_dir_all(&folder).map_err(cannot)?;
    // The program that runs now, even if its file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    let means = if means == Means::Root { "root" } else { "user" };
    command.args([verb, PROBE, means]).arg(root).stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.env_clear().output().map_err(cannot)?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match output.status.success() {
        true => Ok(()),
        false if said.is_empty() => Err(format!("trying it ended with {}", output.status)),
        false => Err(said),
    }
}

/// The probe's own life: hides the agent's folder but for one in it, and says what failed.
pub(crate) fn probe_to_code(means: &OsStr, root: &Path) -> ExitCode {
    let own = root.join("probe");
    let view = View {
        hidden: vec![root.to_owned()],
        writable: vec![own.clone()],
        temporary: own.clone(),
        means: if means == "root" { Means::Root } else { Means::UserNamespace },
        ..View::default()
    };
    let tried = view.entry().map_err(|error| error.to_string()).and_then(|mut entry| {
        // SAFETY: This process has one thread, and does nothing else after.
        let done = unsafe { libc::unshare(entry.clone_flags()) == 0 };
        if !done {
            let error = io::Error::last_os_error();
            return Err(format!("the kernel gives no namespaces of their own: {error}"));
        }
        // SAFETY: It has just got namespaces of its own.
        unsafe { entry.enter() }.map_err(|number| {
            let error = io::Error::last_os_error();
            format!("{}: {error}", entry.describe(number))
        })?;
        std::fs::write(own.join("written"), "")
            .map_err(|error| format!("the job's own folder cannot be written: {error}"))
    });
    match tried {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // The agent reads it.
            let _ = io::Write::write_all(&mut io::stdout(), why.as_bytes());
            ExitCode::FAILURE
        }
    }
}
