//! `atelier simulate queue`

use std::path::PathBuf;
use std::time::Instant;

use atelier_core::resource::Capacity;
use atelier_core::simulate::{Played, PlayedJob, Spread, play};
use clap::Args;
use serde_json::{Value, json};

use super::placement::thousandths_up_to;
use super::trace;
use crate::cli::{Context, Error, Kind};

#[derive(Args)]
pub(in crate::cli) struct Arguments {
    /// The cluster's nodes
    #[arg(long, value_name = "CSV")]
    nodes: PathBuf,
    /// The tasks, with their times
    #[arg(long, value_name = "CSV")]
    tasks: PathBuf,
    /// So many nodes more, like the most common one: 2; or like the most common with this GPU model:
    /// 2xA10
    #[arg(long, value_name = "COUNT[xMODEL]", value_parser = more)]
    add_nodes: Vec<More>,
    /// Let tasks come so many times as fast; they take as long as ever
    #[arg(long, value_name = "FACTOR", default_value = "1", value_parser = speed)]
    speedup: u64,
}

/// `1.5` as 1500.
fn speed(text: &str) -> Result<u64, String> {
    thousandths_up_to(1_000_000, text)
}

/// Arrivals as they would be if all came `thousandths` times as fast after the first.
pub(super) fn hasten(jobs: &mut [PlayedJob], thousandths: u64) {
    let Some(first) = jobs.iter().map(|job| job.arrives).min() else { return };
    for job in jobs {
        let after = i128::from(job.arrives.millis_since(first)) * 1000;
        let after = after / i128::from(thousandths.max(1));
        job.arrives = first.plus_millis(i64::try_from(after).unwrap_or(i64::MAX));
    }
}

/// Nodes to be added.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct More {
    pub(super) count: usize,
    /// Like those with this model.
    pub(super) model: Option<String>,
}

const MAX_MORE: usize = 100_000;

/// `2`, `2xA10`.
pub(super) fn more(text: &str) -> Result<More, String> {
    let wrong = || format!("write 2 or 2xMODEL; from 1 to {MAX_MORE} nodes");
    let (count, model) = match text.split_once('x') {
        Some((count, model)) if !model.is_empty() => (count, Some(model.to_owned())),
        Some(_) => return Err(wrong()),
        None => (text, None),
    };
    let count = count.parse().ok().filter(|count| (1..=MAX_MORE).contains(count));
    Ok(More { count: count.ok_or_else(wrong)?, model })
}

/// The nodes to be added: copies of the most common one, of equals the one that comes first.
pub(super) fn added(nodes: &[Capacity], more: &[More]) -> Result<Vec<Capacity>, Error> {
    let models = |node: &Capacity| -> Vec<String> {
        node.gpus.values().map(|device| device.model.clone()).collect()
    };
    let mut added = Vec::new();
    for More { count, model } in more {
        let suits = |node: &&Capacity| {
            model.as_ref().is_none_or(|wanted| {
                models(node).iter().any(|model| model.eq_ignore_ascii_case(wanted))
            })
        };
        let mut kinds: Vec<(&Capacity, usize)> = Vec::new();
        for node in nodes.iter().filter(suits) {
            match kinds.iter_mut().find(|(kind, _)| *kind == node) {
                Some((_, times)) => *times += 1,
                None => kinds.push((node, 1)),
            }
        }
        let most = kinds.iter().map(|(_, times)| *times).max();
        let like = kinds.iter().find(|(_, times)| Some(*times) == most).map(|(kind, _)| *kind);
        let Some(like) = like else {
            let mut there: Vec<String> = nodes.iter().flat_map(models).collect();
            there.sort_unstable();
            there.dedup();
            let what = match model {
                Some(model) => format!("cannot add nodes: none has the model '{model}'"),
                None => "cannot add nodes: there is none to take as a pattern".to_owned(),
            };
            let error = Error::new(Kind::Refused, what);
            return Err(match there.as_slice() {
                [] => {
                    error.help("give the number alone, and at least one node to take as a pattern")
                }
                there => error.help(format!("models among the nodes: {}", there.join(", "))),
            });
        };
        added.extend(std::iter::repeat_n(like.clone(), *count));
    }
    Ok(added)
}

pub(super) fn run(arguments: &Arguments, context: &Context) -> Result<(), Error> {
    let mut nodes: Vec<Capacity> =
        trace::nodes(&arguments.nodes)?.iter().map(Capacity::from).collect();
    let mut timed = trace::timed(&arguments.tasks)?;
    hasten(&mut timed.jobs, arguments.speedup);
    let more = added(&nodes, &arguments.add_nodes)?;
    let added = more.len();
    nodes.extend(more);
    let began = Instant::now();
    let played = play(&nodes, false, &timed.jobs)
        .map_err(|error| Error::new(Kind::Failed, format!("cannot simulate: {error}")))?;
    let took = began.elapsed().as_secs_f64();
    let skipped: u64 = timed.skipped.values().sum();
    let (waits, completions) = spreads(&timed.jobs, &played);
    let [cpu, memory, gpu] = played.utilisation().map(|percent| percent.map(rounded));
    context.output.show(&json!({
        "nodes": nodes.len(),
        "nodes_added": added,
        "tasks_read": timed.jobs.len() as u64 + skipped,
        "tasks_skipped": skipped,
        "skipped_because": timed.skipped,
        "tasks_completed": played.completed(),
        "tasks_never_startable": played.never_started(),
        "times_a_task_made_way":
            played.fates.iter().map(|fate| u64::from(fate.made_way)).sum::<u64>(),
        "wait_seconds": spread(waits),
        "completion_seconds": spread(completions),
        "makespan_seconds": seconds(played.makespan_ms),
        "utilisation_percent": {"gpu": gpu, "cpu": cpu, "memory": memory},
        "run_time_seconds": rounded(took),
    }))
}

/// From arrival to start, and from arrival to end, of those that ended.
fn spreads(jobs: &[PlayedJob], played: &Played) -> (Option<Spread>, Option<Spread>) {
    let rows = || jobs.iter().zip(&played.fates);
    let waits = rows().filter_map(|(job, fate)| {
        fate.ended.and(fate.started).map(|at| at.millis_since(job.arrives).unsigned_abs())
    });
    let completions = rows()
        .filter_map(|(job, fate)| fate.ended.map(|at| at.millis_since(job.arrives).unsigned_abs()));
    (Spread::of(waits.collect()), Spread::of(completions.collect()))
}

/// In seconds.
pub(super) fn spread(spread: Option<Spread>) -> Value {
    json!({
        "mean": spread.map(|s| rounded(s.mean / 1000.0)),
        "p50": spread.map(|s| seconds(s.p50)),
        "p90": spread.map(|s| seconds(s.p90)),
        "p99": spread.map(|s| seconds(s.p99)),
    })
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// To three decimals: what there is of meaning.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
