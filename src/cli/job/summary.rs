//! How a followed job ended: exit code, and a few lines for people.

use atelier_core::time::Timestamp;
use atelier_proto::job::v1::{self as pb, JobStatus};

use super::view;

/// Metrics shown at the end; `job show` has all.
const METRICS: usize = 12;

/// The exit code with which a client that followed the job ends: the job's own, and 128 plus the
/// signal for a job that a signal ended.
pub(super) fn exit_code(job: &pb::Job) -> u8 {
    match (job.status(), job.exit_code) {
        (JobStatus::Completed, None | Some(0)) => 0,
        // A shell's word for "interrupted", whatever the dying process said.
        (JobStatus::Canceled, _) => 130,
        // Failed although the process did not: its outputs could not be kept, for example.
        (_, None | Some(0)) => 1,
        (_, Some(code)) if code < 0 => u8::try_from(code.unsigned_abs())
            .ok()
            .and_then(|signal| signal.checked_add(128))
            .unwrap_or(1),
        (_, Some(code)) => u8::try_from(code).unwrap_or(1),
    }
}

/// A length of time for people: `340 ms`, `12.3 s`, `4 min 10 s`, `2 h 5 min`, `3 d 4 h`.
pub(in crate::cli) fn length(millis: i64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0 => format!("{millis} ms"),
        1..60 => format!("{seconds}.{} s", millis % 1000 / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Bytes for people: `999 B`, `1.5 MiB`.
pub(in crate::cli) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// A number as a person wants to read it: whole, or with up to six significant digits.
fn number(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return format!("{value:.0}");
    }
    let magnitude = value.abs().log10().floor() as i32;
    if (-5..7).contains(&magnitude) {
        let decimals = usize::try_from(5 - magnitude).unwrap_or(0);
        let text = format!("{value:.decimals$}");
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text
        }
    } else {
        format!("{value:.5e}")
    }
}

/// Status, duration, error, last metrics, outputs, and what to type next.
pub(super) fn text(job: &pb::Job) -> String {
    let mut lines = Vec::new();
    let name = &job.name;
    let took = view::duration(job).map(|millis| format!(" after {}", length(millis)));
    let code = match job.exit_code {
        Some(code) if code != 0 => format!(", exit code {code}"),
        _ => String::new(),
    };
    let attempts = match job.attempt {
        0 | 1 => String::new(),
        attempt => format!(", attempt {attempt}"),
    };
    let word = job.status().word();
    lines.push(format!("{name}: {word}{}{code}{attempts}", took.unwrap_or_default()));
    if let Some(error) = &job.error {
        lines.push(format!(
            "  error    {}: {}",
            error.code,
            error.message.replace('\n', "\n           ")
        ));
    }
    // The node's own measurements are for plots.
    let metrics: Vec<_> =
        job.metrics.iter().filter(|(key, _)| !key.starts_with("system/")).collect();
    for (index, (key, value)) in metrics.iter().take(METRICS).enumerate() {
        let label = if index == 0 { "metrics" } else { "" };
        lines.push(format!("  {label:8} {key} = {}", number(**value)));
    }
    if metrics.len() > METRICS {
        lines.push(format!("  {:8} and {} more", "", metrics.len() - METRICS));
    }
    for (index, output) in job.outputs.iter().enumerate() {
        let label = if index == 0 { "outputs" } else { "" };
        let partial = if output.partial { ", partial" } else { "" };
        lines.push(format!(
            "  {label:8} {}: {} ({} file{}, {}{partial})",
            output.name,
            output.uri,
            output.files,
            if output.files == 1 { "" } else { "s" },
            size(output.bytes),
        ));
    }
    if let Some(kept) = job.sandboxes.first() {
        let until = Timestamp::from_millis(kept.until_ms);
        lines.push(format!("  {:8} what it left, on node {} until {until}", "kept", kept.node));
    }
    let next: &[&str] = match job.status() {
        JobStatus::Completed => &["atelier job download", "atelier job show"],
        JobStatus::Failed if !job.sandboxes.is_empty() => {
            &["atelier job debug", "atelier job events", "atelier job download"]
        }
        JobStatus::Failed | JobStatus::Canceled => &["atelier job events", "atelier job download"],
        _ => &["atelier job stream", "atelier job cancel"],
    };
    for (index, command) in next.iter().enumerate() {
        let label = if index == 0 { "next" } else { "" };
        let all = if *command == "atelier job download" { " --all" } else { "" };
        lines.push(format!("  {label:8} {command} {name}{all}"));
    }
    lines.join("\n")
}
