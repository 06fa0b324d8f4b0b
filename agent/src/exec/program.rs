//! Which program a command is, and becoming it.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, c_char};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;

use super::way::Failed;
use super::{Order, Way};
use crate::supervisor::Launch;

/// Becomes the first of the programs that can be run.
///
/// `base`: variables that those of the job go before.
pub(super) fn execute(order: &Order, launch: &Launch, base: &BTreeMap<String, String>) -> Failed {
    let given = match order.way {
        Way::Container { .. } => &launch.environment,
        _ => launch.inside.as_ref().unwrap_or(&launch.environment),
    };
    let own: BTreeMap<&str, &str> = [base, given, &order.variables]
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let variables: Result<Vec<CString>, _> =
        own.iter().map(|(name, value)| CString::new(format!("{name}={value}"))).collect();
    let shells = || {
        let given = own.get("SHELL").filter(|shell| shell.starts_with('/'));
        given.copied().into_iter().chain(["bash", "sh"]).map(|shell| vec![shell.to_owned()])
    };
    let commands = match order.command.is_empty() {
        true => shells().collect(),
        false => vec![order.command.clone()],
    };
    let path = own.get("PATH").copied().unwrap_or("/usr/local/bin:/usr/bin:/bin");
    let (mut tried, mut errno) = (String::new(), libc::ENOENT);
    for command in commands {
        let Some(program) = command.first() else { continue };
        tried.clone_from(program);
        let words: Result<Vec<CString>, _> = command.iter().cloned().map(CString::new).collect();
        let (Ok(words), Ok(variables)) = (words, &variables) else {
            return Failed::Program { program: tried, errno: libc::EINVAL };
        };
        let (words, variables) = (pointers(&words), pointers(variables));
        for candidate in candidates(program, path) {
            // What is in a folder that is closed to the job is not there for it, as shells see it.
            let found = Path::new(OsStr::from_bytes(&candidate)).symlink_metadata();
            if found.is_err() && !program.contains('/') {
                continue;
            }
            let Ok(candidate) = CString::new(candidate) else { continue };
            // SAFETY: All texts end and live until the call has succeeded or failed.
            unsafe { libc::execve(candidate.as_ptr(), words.as_ptr(), variables.as_ptr()) };
            let why = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
            if !matches!(why, libc::ENOENT | libc::ENOTDIR) {
                errno = why;
            }
        }
    }
    Failed::Program { program: tried, errno }
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

/// Where a program may be: as execvp(3) looks for it.
pub(super) fn candidates(program: &str, path: &str) -> Vec<Vec<u8>> {
    if program.contains('/') {
        return vec![program.as_bytes().to_vec()];
    }
    let folders = path.split(':').map(|folder| if folder.is_empty() { "." } else { folder });
    folders.map(|folder| Path::new(folder).join(program).into_os_string()).map(bytes).collect()
}

fn bytes(text: impl AsRef<OsStr>) -> Vec<u8> {
    text.as_ref().as_bytes().to_vec()
}
