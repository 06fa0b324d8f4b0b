//! `atelier simulate placement`

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use atelier_core::simulate::{Saturation, TraceNode, TraceTask, saturate};
use clap::Args;
use serde_json::{Map, Value, json};

use super::trace;
use crate::cli::{Context, Error};

#[derive(Args)]
pub(in crate::cli) struct Arguments {
    /// The cluster's nodes
    #[arg(long, value_name = "CSV")]
    nodes: PathBuf,
    /// The tasks
    #[arg(long, value_name = "CSV")]
    tasks: PathBuf,
    /// How many times the cluster's GPUs are asked for in all
    #[arg(long, value_name = "FACTOR", default_value = "1.3", value_parser = thousandths)]
    inflate: u64,
    /// One run for each: 42, 42..51 (both included) or 1,5,9
    #[arg(long, value_name = "SEEDS", default_value = "42..51", value_parser = seeds)]
    seeds: Seeds,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Seeds(pub(super) Vec<u64>);

const MAX_SEEDS: u64 = 10_000;

/// `1.3` as 1300.
pub(super) fn thousandths(text: &str) -> Result<u64, String> {
    thousandths_up_to(100, text)
}

/// A number above 0 and up to `most`, in thousandths.
pub(super) fn thousandths_up_to(most: u64, text: &str) -> Result<u64, String> {
    let wrong = || format!("write a number above 0 and up to {most} with at most three decimals");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) || part.len() > 3 {
        return Err(wrong());
    }
    let value: u64 = format!("{whole}{part:0<3}").parse().map_err(|_| wrong())?;
    if value == 0 || value > most * 1000 { Err(wrong()) } else { Ok(value) }
}

/// `42`, `42..51` (both included), `1,5,9`.
pub(super) fn seeds(text: &str) -> Result<Seeds, String> {
    let wrong = || format!("write 42, 42..51 or 1,5,9; at most {MAX_SEEDS}");
    let number = |text: &str| text.trim().parse::<u64>().map_err(|_| wrong());
    let seeds = match text.split_once("..") {
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last.trim_start_matches('='))?);
            if last < first || last - first >= MAX_SEEDS {
                return Err(wrong());
            }
            (first..=last).collect()
        }
        None => text.split(',').map(number).collect::<Result<Vec<_>, _>>()?,
    };
    if seeds.is_empty() || seeds.len() as u64 > MAX_SEEDS { Err(wrong()) } else { Ok(Seeds(seeds)) }
}

pub(super) fn run(arguments: &Arguments, context: &Context) -> Result<(), Error> {
    let nodes = trace::nodes(&arguments.nodes)?;
    let tasks = trace::tasks(&arguments.tasks)?;
    let began = Instant::now();
    let ends = all(&nodes, &tasks, arguments.inflate, &arguments.seeds.0);
    context.output.show(&report(&arguments.seeds.0, &ends, began.elapsed()))
}

/// A run for each seed, on as many cores as there are; each run is deterministic.
fn all(
    nodes: &[TraceNode],
    tasks: &[TraceTask],
    inflate: u64,
    seeds: &[u64],
) -> Vec<(Saturation, Duration)> {
    let next = AtomicUsize::new(0);
    let ends = Mutex::new(vec![None; seeds.len()]);
    let work = || {
        while let Some((index, seed)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            seeds.get(index).map(|seed| (index, *seed))
        } {
            let began = Instant::now();
            let end = saturate(nodes, tasks, inflate, seed);
            let mut ends = ends.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            ends[index] = Some((end, began.elapsed()));
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 1..cores.min(seeds.len()) {
            scope.spawn(work);
        }
        work();
    });
    let ends = ends.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    ends.into_iter().flatten().collect()
}

fn report(seeds: &[u64], ends: &[(Saturation, Duration)], took: Duration) -> Value {
    let by_seed = |value: &dyn Fn(&Saturation, Duration) -> Value| -> Map<String, Value> {
        let rows = seeds.iter().zip(ends);
        rows.map(|(seed, (end, took))| (seed.to_string(), value(end, *took))).collect()
    };
    let mean = |value: &dyn Fn(&Saturation, Duration) -> f64| {
        let sum: f64 = ends.iter().map(|(end, took)| value(end, *took)).sum();
        rounded(sum / ends.len().max(1) as f64)
    };
    let seconds = |_: &Saturation, took: Duration| took.as_secs_f64();
    json!({
        "gpu_allocated_percent": {
            "mean": mean(&|end, _| end.percent()),
            "per_seed": by_seed(&|end, _| json!(rounded(end.percent()))),
        },
        "tasks_placed": by_seed(&|end, _| json!(end.placed)),
        "tasks": by_seed(&|end, _| json!(end.tasks)),
        "run_time_seconds": {
            "total": rounded(took.as_secs_f64()),
            "mean": mean(&seconds),
            "per_seed": by_seed(&|end, took| json!(rounded(seconds(end, took)))),
        },
    })
}

/// To four decimals: what there is of meaning.
fn rounded(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}
