//! Whether this machine lets jobs be isolated, seen by doing it.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use super::users::{PASSWD, Range, User, closed_above, give};
use super::{Abilities, Entry, Means, View};

/// The second argument of a supervisor that is none: it enters a view and ends.
pub(crate) const PROBE: &str = "--isolate";

/// Finds how far jobs can be isolated, or why they cannot; with users of their own where there are some to give
/// and the agent can. Beside it, why they cannot have those.
pub(crate) fn probe(
    verb: &str,
    root: &Path,
    users: Option<Range>,
) -> Result<(Abilities, Option<String>), String> {
    let is_root = rustix::process::geteuid().is_root();
    let user = users.filter(|_| is_root).map(Range::first);
    let mut ways = Vec::new();
    ways.extend(user.map(|_| (Means::Root, true)));
    ways.push((Means::UserNamespace, false));
    ways.extend(is_root.then_some((Means::Root, false)));
    ways.push((Means::Rules, false));
    let (mut first, mut no_users) = (None, None);
    for (means, own_users) in ways {
        for filtered in [true, false] {
            for own_processes in [true, false] {
                // Rules are on files, not on what is seen of processes.
                if own_processes && means == Means::Rules {
                    continue;
                }
                let abilities = Abilities { means, own_processes, filtered, own_users };
                match try_it(verb, root, abilities, user.filter(|_| own_users)) {
                    Ok(()) => return Ok((abilities, no_users)),
                    Err(why) => {
                        let place = if own_users { &mut no_users } else { &mut first };
                        place.get_or_insert(why);
                    }
                }
            }
        }
    }
    Err(first.unwrap_or_default())
}

/// Enters a view below the agent's folder, in a process of its own.
fn try_it(verb: &str, root: &Path, abilities: Abilities, user: Option<u32>) -> Result<(), String> {
    let folder = root.join("probe");
    let cannot = |error: io::Error| format!("cannot try it in '{}': {error}", folder.display());
    std::fs::create_dir_all(&folder).map_err(cannot)?;
    // What it holds is the last probe's user's.
    give(
        std::slice::from_ref(&folder),
        user.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
    )
    .map_err(cannot)?;
    // The program that runs now, even if its file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command
        .args([verb, PROBE, &words(abilities, user)])
        .arg(root)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let output = command.env_clear().output().map_err(cannot)?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match output.status.success() {
        true => Ok(()),
        false if said.is_empty() => Err(format!("trying it ended with {}", output.status)),
        false => Err(said),
    }
}

const ROOT: char = 'r';
const RULES: char = 'l';
const OWN_PROCESSES: char = 'p';
const FILTERED: char = 'f';

/// Abilities as an argument, and whom to become.
fn words(abilities: Abilities, user: Option<u32>) -> String {
    let letters = [
        (abilities.means == Means::Root, ROOT),
        (abilities.means == Means::Rules, RULES),
        (abilities.own_processes, OWN_PROCESSES),
        (abilities.filtered, FILTERED),
    ];
    let letters = letters.into_iter().filter_map(|(is_so, letter)| is_so.then_some(letter));
    letters
        .chain(user.iter().flat_map(|user| user.to_string().chars().collect::<Vec<_>>()))
        .collect()
}

/// The probe's own life: hides the agent's folder but for one in it, and says what failed.
pub(crate) fn probe_to_code(abilities: &OsStr, root: &Path) -> ExitCode {
    let abilities = abilities.to_string_lossy();
    let own = root.join("probe");
    let user = abilities.trim_start_matches(|letter: char| !letter.is_ascii_digit()).parse().ok();
    let mut hidden = vec![root.to_owned()];
    hidden.extend(user.and_then(|_: u32| closed_above(root)));
    let view = View {
        hidden,
        writable: vec![own.clone()],
        temporary: own.clone(),
        means: match () {
            () if abilities.contains(ROOT) => Means::Root,
            () if abilities.contains(RULES) => Means::Rules,
            () => Means::UserNamespace,
        },
        own_processes: abilities.contains(OWN_PROCESSES),
        filtered: abilities.contains(FILTERED),
        user: user.map(|id| User { id, passwd: PASSWD.into(), ..User::default() }),
        ..View::default()
    };
    let entry = view.entry();
    let no_namespaces =
        |error: io::Error| format!("the kernel gives no namespaces of their own: {error}");
    let forked = crate::supervisor::fork(entry.clone_flags()).map_err(no_namespaces);
    let tried = forked.and_then(|child| match child {
        0 => enter_and_end(&entry, &own),
        child => match wait_for(child) {
            0 => Ok(()),
            // The child has said why.
            _ => Err(String::new()),
        },
    });
    match tried {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(&why);
            ExitCode::FAILURE
        }
    }
}

/// The life of the probe's child.
fn enter_and_end(entry: &Entry<'_>, own: &Path) -> ! {
    // SAFETY: This process was forked with the entry's flags and has one thread.
    let entered = unsafe { entry.enter() };
    let entered = entered.map_err(|failed| format!("{}: {}", failed.what, failed.error));
    let tried = entered.and_then(|()| {
        std::fs::write(own.join("written"), "")
            .map_err(|error| format!("the job's own folder cannot be written: {error}"))
    });
    if let Err(why) = &tried {
        say(why);
    }
    // SAFETY: A plain system call.
    unsafe { libc::_exit(i32::from(tried.is_err())) }
}

/// The agent reads it.
fn say(why: &str) {
    let _ = io::Write::write_all(&mut io::stdout(), why.as_bytes());
    let _ = io::Write::flush(&mut io::stdout());
}

/// The wait status of a child.
fn wait_for(child: i32) -> i32 {
    let mut status = 0;
    // SAFETY: `status` is ours.
    match unsafe { libc::waitpid(child, &raw mut status, 0) } {
        -1 => -1,
        _ => status,
    }
}
