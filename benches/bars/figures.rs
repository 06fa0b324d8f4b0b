//! Medians and spreads.

use std::time::Duration;

/// Prints one figure's distribution in milliseconds; gives its median, in milliseconds too.
pub(crate) fn millis(name: &str, mut samples: Vec<Duration>) -> f64 {
    samples.sort_unstable();
    let at = |share: f64| {
        let index = ((samples.len() - 1) as f64 * share).round() as usize;
        samples[index].as_secs_f64() * 1e3
    };
    println!(
        "{name}: p50 {:.2} ms, p10 {:.2}, p90 {:.2}, p95 {:.2}, p99 {:.2}, max {:.2} ({} samples)",
        at(0.5),
        at(0.1),
        at(0.9),
        at(0.95),
        at(0.99),
        at(1.0),
        samples.len()
    );
    at(0.5)
}

/// Prints a rate over several rounds.
pub(crate) fn rate(name: &str, mut rounds: Vec<f64>) {
    rounds.sort_by(f64::total_cmp);
    let median = rounds[rounds.len() / 2];
    println!(
        "{name}: median {median:.0}/s, min {:.0}, max {:.0} ({} rounds)",
        rounds[0],
        rounds[rounds.len() - 1],
        rounds.len()
    );
}

/// Prints a share over several rounds.
pub(crate) fn share(name: &str, mut rounds: Vec<f64>) {
    rounds.sort_by(f64::total_cmp);
    println!(
        "{name}: median {:.3}, min {:.3}, max {:.3} ({} rounds)",
        rounds[rounds.len() / 2],
        rounds[0],
        rounds[rounds.len() - 1],
        rounds.len()
    );
}
