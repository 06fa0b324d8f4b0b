//! What a container runs: a script that sets the job's variables, starts its command and ends as that
//! ends.
//!
//! Variables come by it, and not by the runtime's own arguments, so that their values are neither in the
//! list of processes nor in the runtime's records. The script is the first process of the container, to
//! which the kernel gives no signal that it does not ask for: it asks for those that end a job and leaves
//! them to the command.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use atelier_core::spec::{is_variable_name, quote};

use super::Kind;

/// The script's name, in the attempt's folder for it.
pub(crate) fn name(process: u32) -> String {
    format!("start-{process}.sh")
}

/// Lines with which a shell sets variables for what it runs.
pub(crate) fn exports(variables: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (name, value) in variables {
        // A shell can set no others.
        if is_variable_name(name) {
            let _ = writeln!(text, "export {name}={}", quote(value));
        }
    }
    text
}

/// The script's text. `secrets`: a file with the [`exports`] of variables that must not be on a disk.
pub(crate) fn text(
    kind: Kind,
    variables: &BTreeMap<String, String>,
    secrets: Option<&Path>,
    directory: &Path,
    command: &str,
) -> String {
    let mut text = String::with_capacity(4096 + command.len());
    text.push_str(&exports(variables));
    if let Some(secrets) = secrets {
        let _ = writeln!(text, ". {} || exit 126", quote(&secrets.to_string_lossy()));
    }
    let (directory, command) = (quote(&directory.to_string_lossy()), quote(command));
    let _ = writeln!(text, "cd {directory} || exit 126");
    // What is run beside the command, where only the engine can let it in.
    text.push_str("if [ $# -gt 0 ]; then exec \"$@\"; fi\n");
    text.push_str(
        "shell=/bin/sh\n\
         for one in /bin/bash /usr/bin/bash /usr/local/bin/bash; do\n\
         \x20 if [ -x \"$one\" ]; then shell=$one; break; fi\n\
         done\n",
    );
    match kind {
        // The supervisor signals every process itself.
        Kind::Podman | Kind::Apptainer => {
            text.push_str("trap : TERM INT HUP\n");
            // This shell says nothing of how the command ended.
            text.push_str("exec 3>&2 2>/dev/null\n");
            let _ = writeln!(text, "\"$shell\" -c {command} \"$shell\" 2>&3 3>&-");
            text.push_str("exit $?\n");
        }
        // The engine signals this process alone.
        Kind::Docker => {
            text.push_str("trap 'kill -TERM -1' TERM\n");
            text.push_str("exec 3>&2 2>/dev/null\n");
            let _ = writeln!(text, "\"$shell\" -c {command} \"$shell\" 2>&3 3>&- &");
            text.push_str(
                "child=$!\n\
                 wait \"$child\"; code=$?\n\
                 while kill -0 \"$child\"; do wait \"$child\"; code=$?; done\n\
                 exit \"$code\"\n",
            );
        }
    }
    text
}
