//! `atelier top`

use std::fmt::Write as _;
use std::time::Duration;

use atelier_core::time::Timestamp;
use atelier_proto::compute::v1::{self as compute, ListNodesRequest};
use atelier_proto::job::v1::{self as pb, JobStatus, ListJobsRequest, ListQueueRequest};
use clap::Args;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::compute::resources;
use super::job::time;
use super::output::{printable, table};
use super::{Column, Context, Error, node};
use crate::client::Client;

#[cfg(test)]
mod tests;

/// Watch nodes, what runs on them and what waits
///
/// A picture that is drawn anew every two seconds, until Ctrl-C; where it cannot be drawn, or with
/// --once, it is printed once.
#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier top
  atelier top --interval 0.5
  atelier top --once -o json --query 'nodes[].usage'")]
pub(super) struct Arguments {
    /// Seconds between two pictures
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    interval: Duration,
    /// Print it once
    #[arg(long)]
    once: bool,
    /// Only this compute's
    #[arg(long, value_name = "COMPUTE")]
    compute: Option<String>,
}

/// Jobs that run, at most so many are shown; and so many that wait of each compute.
const RUNNING: u32 = 200;
const WAITING: u32 = 20;
/// Cells of a bar.
const BAR: usize = 10;

fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a number of seconds: write for example 2 or 0.5");
    let number: f64 = text.parse().map_err(|_| wrong())?;
    match (0.1..=3600.0).contains(&number) {
        true => Ok(Duration::from_secs_f64(number)),
        false => Err(wrong()),
    }
}

pub(super) async fn run(arguments: Arguments, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let compute = arguments.compute.unwrap_or_default();
    if arguments.once || !context.output.is_drawn() {
        let seen = look(&client, &compute).await?;
        return match context.output.is_plain() {
            true => context.output.print(&picture(&seen, Timestamp::from_millis(clock()))),
            false => context.output.show(&seen),
        };
    }
    let screen = Screen::open(context);
    let mut tick = interval(arguments.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stop = tokio::signal::ctrl_c();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            _ = &mut stop => return Ok(()),
            _ = tick.tick() => {}
        }
        let seen = tokio::select! {
            _ = &mut stop => return Ok(()),
            seen = look(&client, &compute) => seen?,
        };
        screen.draw(&picture(&seen, Timestamp::from_millis(clock())))?;
    }
}

fn clock() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// The terminal's other screen; left when dropped, so that what was there is there again.
struct Screen<'a> {
    context: &'a Context,
}

impl<'a> Screen<'a> {
    fn open(context: &'a Context) -> Self {
        // A terminal that cannot is none of this program's business.
        let _ = context.output.print("\x1b[?1049h\x1b[?25l");
        Self { context }
    }

    /// Draws over what is there, so that it does not flicker; lines that do not fit are left out.
    fn draw(&self, picture: &str) -> Result<(), Error> {
        let rows = rows();
        let mut drawn = String::from("\x1b[H");
        for line in picture.lines().take(rows.saturating_sub(1)) {
            let _ = write!(drawn, "{line}\x1b[K\r\n");
        }
        drawn.push_str("\x1b[J");
        self.context.output.print(&drawn)
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        let _ = self.context.output.print("\x1b[?25h\x1b[?1049l");
    }
}

/// Lines of the terminal.
fn rows() -> usize {
    rustix::termios::tcgetwinsize(rustix::stdio::stdout())
        .ok()
        .map(|size| usize::from(size.ws_row))
        .filter(|&rows| rows > 0)
        .unwrap_or(24)
}

/// What there is, as data.
async fn look(client: &Client, compute: &str) -> Result<Value, Error> {
    let mut computes = client.computes();
    let mut jobs = client.jobs();
    let request = ListNodesRequest { compute: compute.to_owned() };
    let nodes = client.call(computes.list_nodes(request)).await?.nodes;
    let alive = [
        JobStatus::Starting,
        JobStatus::Preparing,
        JobStatus::Running,
        JobStatus::Finalizing,
        JobStatus::CancelRequested,
        JobStatus::NotResponding,
    ];
    let request = ListJobsRequest {
        page_size: RUNNING,
        statuses: alive.iter().map(|&status| status.into()).collect(),
        ..ListJobsRequest::default()
    };
    let running = client.call(jobs.list_jobs(request)).await?.jobs;
    let request = ListQueueRequest { compute: compute.to_owned(), limit: WAITING };
    let queue = client.call(jobs.list_queue(request)).await?;
    let running = running.iter().filter(|job| compute.is_empty() || job.compute == compute);
    Ok(json!({
        "nodes": nodes.iter().map(node_view).collect::<Vec<_>>(),
        "running": running.map(job_view).collect::<Vec<_>>(),
        "waiting": queue.jobs.iter().map(waiting_view).collect::<Vec<_>>(),
        "waiting_in_all": queue.waiting,
    }))
}

fn node_view(node: &compute::Node) -> Value {
    json!({
        "name": node.name,
        "compute": node.compute,
        "state": node::state(node.state()),
        "reason": node.reason,
        "usage": node.usage,
        "capacity": resources(node.capacity.as_ref()),
        "free": resources(node.free.as_ref()),
        "jobs": node.jobs,
    })
}

fn job_view(job: &pb::Job) -> Value {
    json!({
        "name": job.name,
        "status": job.status().word(),
        "compute": job.compute,
        "node": job.node,
        "created_by": job.created_by,
        "start_time": time(job.started_at_ms),
        "started_at_ms": job.started_at_ms,
    })
}

fn waiting_view(job: &pb::QueuedJob) -> Value {
    json!({ "name": job.name, "compute": job.compute, "place": job.place, "reason": job.reason })
}

/// The same as a picture.
fn picture(seen: &Value, now: Timestamp) -> String {
    let list = |key: &str| seen[key].as_array().cloned().unwrap_or_default();
    let (nodes, mut running, waiting) = (list("nodes"), list("running"), list("waiting"));
    for job in &mut running {
        let started = job["started_at_ms"].as_i64().filter(|&at| at > 0);
        job["for"] = started.map_or(Value::Null, |at| lasting(now.as_millis() - at).into());
    }
    let in_all = seen["waiting_in_all"].as_u64().unwrap_or_default();
    let mut picture = format!(
        "{}  nodes: {}  running: {}  waiting: {in_all}\n",
        now.to_string().replace('T', " ").get(..19).unwrap_or_default(),
        nodes.len(),
        running.len(),
    );
    for (items, columns) in [(&nodes, NODES), (&running, JOBS), (&waiting, QUEUE)] {
        if !items.is_empty() {
            picture.push('\n');
            picture.push_str(&table::of(items, columns));
        }
    }
    picture
}

/// `3 h 05 min`, `2 min 10 s`, `4 s`.
fn lasting(millis: i64) -> String {
    let seconds = millis.max(0) / 1000;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

/// `████░░░░░░  41 %`
fn bar(percent: f64) -> String {
    let percent = percent.clamp(0.0, 100.0);
    let full = (percent / 100.0 * BAR as f64).round() as usize;
    format!("{}{} {percent:3.0} %", "█".repeat(full), "░".repeat(BAR - full))
}

const NODES: &[Column] = &[
    Column { title: "NODE", cell: |n| Some(printable(n["name"].as_str()?)) },
    Column { title: "COMPUTE", cell: |n| Some(n["compute"].as_str()?.to_owned()) },
    Column { title: "STATE", cell: |n| Some(n["state"].as_str()?.to_owned()) },
    Column { title: "CPU", cell: |n| Some(bar(n["usage"]["cpu_utilization"].as_f64()?)) },
    Column {
        title: "MEMORY",
        cell: |n| {
            let used = n["usage"]["memory_used_mib"].as_f64()?;
            let total = n["usage"]["memory_total_mib"].as_f64().filter(|&total| total > 0.0)?;
            // In tenths of a GiB: more says nothing.
            let gib = |mib: f64| format!("{:.1}", mib / 1024.0);
            Some(format!("{} {} of {} GiB", bar(100.0 * used / total), gib(used), gib(total)))
        },
    },
    Column { title: "FREE CPUS", cell: |n| super::compute::share(n, "cpus") },
    Column { title: "FREE GPUS", cell: |n| super::compute::share(n, "gpus") },
    Column {
        title: "JOBS",
        cell: |n| {
            let jobs = n["jobs"].as_array()?;
            let first = jobs.first().and_then(Value::as_str).unwrap_or_default();
            Some(match jobs.len() {
                0 | 1 => first.to_owned(),
                more => format!("{first} and {}", more - 1),
            })
        },
    },
];

const JOBS: &[Column] = &[
    Column { title: "JOB", cell: |j| Some(j["name"].as_str()?.to_owned()) },
    Column { title: "STATUS", cell: |j| Some(j["status"].as_str()?.to_owned()) },
    Column { title: "NODE", cell: |j| Some(j["node"].as_str()?.to_owned()) },
    Column { title: "FOR", cell: |j| Some(j["for"].as_str().unwrap_or_default().to_owned()) },
    Column { title: "CREATED BY", cell: |j| Some(j["created_by"].as_str()?.to_owned()) },
];

const QUEUE: &[Column] = &[
    Column { title: "WAITING", cell: |j| Some(j["name"].as_str()?.to_owned()) },
    Column { title: "COMPUTE", cell: |j| Some(j["compute"].as_str()?.to_owned()) },
    Column { title: "REASON", cell: |j| Some(j["reason"].as_str()?.to_owned()) },
];
