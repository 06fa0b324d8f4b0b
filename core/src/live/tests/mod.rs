//! The daemon's promises, in a simulated cluster.

mod access;
mod clusters;
mod drain;
mod enter;
mod faults;
mod gangs;
mod outputs;
mod properties;
mod quotas;
mod replays;
mod restored;
mod runtimes;
mod sandboxes;
mod unfit;
mod usage;

use proptest::test_runner::Config;

use crate::job::{AttemptEnd, Exit};

/// `few` cases, so that a plain test run stays short; `PROPTEST_CASES` says otherwise.
fn cases(few: u32) -> Config {
    let config = Config::default();
    // Without the variable, proptest makes 256.
    let cases = if config.cases == 256 { few } else { config.cases };
    // What failed is printed in full; nothing is left in the sources.
    Config { cases, max_shrink_iters: 20_000, failure_persistence: None, ..config }
}

/// A last word: the command exited with `code`.
fn ended(code: i32) -> AttemptEnd {
    AttemptEnd {
        exit: Some(Exit::Code(code)),
        problem: None,
        started_at: None,
        manifest: None,
        outputs: Vec::new(),
        log_bytes: 0,
        usage: None,
        survivors: 0,
    }
}
