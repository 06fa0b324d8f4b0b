//! What a command started that is not below the supervisor: an engine's containers. They are ended by asking the
//! engine, once the tree is over.

use std::io;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::journal::Launch;
use super::tree;
use crate::clock;

/// Between two looks at whether a program has ended.
const LOOK: Duration = Duration::from_millis(10);

/// Runs what ends it, as long as what was killed may take to die. How much of it may run yet.
pub(super) fn end(launch: &Launch) -> u32 {
    let until = clock::boottime_ms().saturating_add(launch.give_up_ms);
    let failed = launch.ends.iter().filter(|words| !ends(launch, words, until).unwrap_or(false));
    u32::try_from(failed.count()).unwrap_or(u32::MAX)
}

fn ends(launch: &Launch, words: &[String], until: u64) -> io::Result<bool> {
    let Some((program, arguments)) = words.split_first() else { return Ok(true) };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(&launch.environment).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    wait(command.spawn()?, until)
}

/// Whether it succeeds in time.
fn wait(mut child: Child, until: u64) -> io::Result<bool> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if clock::boottime_ms() >= until {
            tree::kill();
            child.wait()?;
            return Ok(false);
        }
        thread::sleep(LOOK);
    }
}
