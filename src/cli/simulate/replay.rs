//! `atelier simulate replay`

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use atelier_core::compute::Cluster;
use atelier_core::id::Principal;
use atelier_core::live::most_ms;
use atelier_core::resource::Capacity;
use atelier_core::sched::Request;
use atelier_core::simulate::{Played, PlayedJob, Spread, play};
use atelier_core::spec::CommandJob;
use atelier_core::time::Timestamp;
use atelier_proto::compute::v1::{GetComputeRequest, ListNodesRequest, Node, NodeState};
use atelier_proto::job::v1 as pb;
use clap::Args;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};

use super::queue::{More, added, more, rounded, spread};
use crate::cli::node::seconds;
use crate::cli::{Context, Error, Kind};
use crate::client::Client;

#[derive(Args)]
pub(in crate::cli) struct Arguments {
    /// How far back, for example 90m, 24h or 7d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = since)]
    since: u64,
    /// Of which compute; may be left out where jobs went to one only
    #[arg(long, value_name = "COMPUTE")]
    compute: Option<String>,
    /// So many nodes more, like the most common one: 2; or like the most common with this GPU model:
    /// 2xA10
    #[arg(long, value_name = "COUNT[xMODEL]", value_parser = more)]
    add_nodes: Vec<More>,
}

/// `24h`, `90m`, `7d`: in whole seconds.
fn since(text: &str) -> Result<u64, String> {
    let days = text.strip_suffix('d').and_then(|days| days.parse::<u64>().ok());
    let told = match days {
        Some(days) => days.checked_mul(24 * 60 * 60),
        None => seconds(text).ok(),
    };
    told.filter(|told| (1..=MOST_SECONDS).contains(told))
        .ok_or_else(|| "write for example 90m, 24h or 7d".to_owned())
}

/// No workspace is a hundred years old.
const MOST_SECONDS: u64 = 100 * 366 * 24 * 60 * 60;
/// Jobs of one page of the daemon's list.
const PAGE: u32 = 1000;
/// Jobs looked at, at most.
const MOST: usize = 50_000;
/// Questions under way at once.
const AT_ONCE: usize = 16;

/// A job as it went.
struct Went {
    job: PlayedJob,
    /// When it was placed.
    placed: i64,
    /// When it ended, or now if it has not.
    ended: i64,
    over: bool,
}

pub(super) async fn run(arguments: &Arguments, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let span = i64::try_from(arguments.since).unwrap_or(i64::MAX).saturating_mul(1000);
    let from = now.saturating_sub(span);
    if let Some(name) = &arguments.compute {
        // Or it would seem to have had no jobs.
        client
            .call(client.computes().get_compute(GetComputeRequest { name: name.clone() }))
            .await?;
    }
    // What came before is played too, so that the nodes are not empty at the outset.
    let all = jobs_since(&client, from.saturating_sub(span)).await?;
    let compute = compute_of(&all, from, arguments.compute.as_deref())?;
    let all: Vec<pb::Job> = all.into_iter().filter(|job| job.compute == compute).collect();
    let mut skipped = BTreeMap::from([(NEVER_PLACED, 0_u64), (WAITING, 0)]);
    let mut went: Vec<Went> = Vec::new();
    let mut asked =
        stream::iter(all.iter().map(|job| placed_at(&client, &job.name))).buffered(AT_ONCE);
    let mut jobs = all.iter();
    while let (Some(placed), Some(job)) = (asked.try_next().await?, jobs.next()) {
        let ended = (job.ended_at_ms > 0).then_some(job.ended_at_ms);
        let Some(placed) = placed else {
            if job.created_at_ms >= from {
                let why = if ended.is_some() { NEVER_PLACED } else { WAITING };
                *skipped.entry(why).or_default() += 1;
            }
            continue;
        };
        went.push(as_it_went(job, placed, ended, now)?);
    }
    drop(asked);
    if !went.iter().any(|went| went.job.arrives.as_millis() >= from) {
        let what =
            format!("no job of compute '{compute}' that was submitted since then has started");
        return Err(Error::new(Kind::Refused, format!("cannot replay: {what}"))
            .help("look further back, for example --since 7d; 'atelier job list' shows jobs"));
    }
    let Cast { mut nodes, not_usable, exclusive, pattern } = nodes_of(&client, &compute).await?;
    let like: &[Capacity] = if nodes.is_empty() { &pattern } else { &nodes };
    let more = added(like, &arguments.add_nodes)?;
    let more_count = more.len();
    nodes.extend(more);
    let began = Instant::now();
    let played_jobs: Vec<PlayedJob> = went.iter().map(|went| went.job.clone()).collect();
    let played = play(&nodes, exclusive, &played_jobs)
        .map_err(|error| Error::new(Kind::Failed, format!("cannot replay: {error}")))?;
    let told = Told { went: &went, played: &played, from };
    let report = json!({
        "compute": compute,
        "since": Timestamp::from_millis(from).to_string(),
        "nodes": nodes.len(),
        "nodes_added": more_count,
        "nodes_not_usable": not_usable,
        "jobs": told.counted().count(),
        "jobs_from_before": went.len() - told.counted().count(),
        "jobs_skipped": skipped,
        "jobs_never_startable": played.never_started(),
        "wait_seconds": told.waits(),
        "completion_seconds": told.completions(),
        "utilisation_percent": percents(&played),
        "compared": told.compared(more_count),
        "run_time_seconds": rounded(began.elapsed().as_secs_f64()),
    });
    context.output.show(&report)
}

const NEVER_PLACED: &str = "ended without having started";
const WAITING: &str = "still waiting";

/// The jobs submitted from then on, the newest first.
async fn jobs_since(client: &Client, from: i64) -> Result<Vec<pb::Job>, Error> {
    let mut request = pb::ListJobsRequest {
        page_size: PAGE,
        include_archived: true,
        ..pb::ListJobsRequest::default()
    };
    let mut all = Vec::new();
    loop {
        let page = client.call(client.jobs().list_jobs(request.clone())).await?;
        let last = page.jobs.last().map(|job| job.created_at_ms);
        all.extend(page.jobs.into_iter().filter(|job| job.created_at_ms >= from));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() || last.is_some_and(|last| last < from) {
            return Ok(all);
        }
        if all.len() >= MOST {
            let what = format!("cannot replay: there are more than {MOST} jobs in that time");
            return Err(Error::new(Kind::Refused, what).help("replay less, for example --since 1h"));
        }
    }
}

/// The compute that is meant.
fn compute_of(jobs: &[pb::Job], from: i64, wanted: Option<&str>) -> Result<String, Error> {
    if let Some(wanted) = wanted {
        return Ok(wanted.to_owned());
    }
    let mut computes: Vec<&str> = jobs
        .iter()
        .filter(|job| job.created_at_ms >= from)
        .map(|job| job.compute.as_str())
        .collect();
    computes.sort_unstable();
    computes.dedup();
    match computes.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => Err(Error::new(Kind::Refused, "cannot replay: no job was submitted since then")
            .help("look further back, for example --since 7d; 'atelier job list' shows jobs")),
        several => Err(Error::usage("cannot replay: jobs went to several computes")
            .help(format!("name one with --compute: {}", several.join(", ")))),
    }
}

/// When a job was first placed, by its events.
async fn placed_at(client: &Client, job: &str) -> Result<Option<i64>, Error> {
    let request = pb::ListEventsRequest { job: job.to_owned(), after_seq: 0, limit: 100 };
    match client.call(client.jobs().list_events(request)).await {
        Ok(answer) => {
            Ok(answer.events.iter().find(|event| event.kind == "Assigned").map(|event| event.at_ms))
        }
        Err(error) => {
            let error = Error::from(error);
            // It may have been deleted meanwhile.
            if error.kind == Kind::NotFound { Ok(None) } else { Err(error) }
        }
    }
}

fn as_it_went(job: &pb::Job, placed: i64, ended: Option<i64>, now: i64) -> Result<Went, Error> {
    let strange = |error: String| {
        Error::new(Kind::Failed, format!("cannot replay job '{}': {error}", job.name))
    };
    let spec = job.spec.clone().unwrap_or_default();
    let spec = CommandJob::try_from(spec).map_err(|error| strange(error.to_string()))?;
    let until = ended.unwrap_or(now);
    Ok(Went {
        job: PlayedJob {
            user: Principal::new(&job.created_by).map_err(|error| strange(error.to_string()))?,
            priority: spec.queue.priority,
            tier: spec.queue.tier(),
            request: Request::from(&spec.resources),
            arrives: Timestamp::from_millis(job.created_at_ms),
            length_ms: u64::try_from(until.saturating_sub(placed)).unwrap_or_default(),
            most_ms: most_ms(&spec),
        },
        placed,
        ended: until,
        over: ended.is_some(),
    })
}

/// What the jobs are played on.
struct Cast {
    /// The nodes that get jobs.
    nodes: Vec<Capacity>,
    /// How many there are beside them: drained, silent, on their way.
    not_usable: usize,
    /// A job takes a whole node.
    exclusive: bool,
    /// A node that the cluster would add.
    pattern: Vec<Capacity>,
}

/// The compute's nodes as they are now.
async fn nodes_of(client: &Client, compute: &str) -> Result<Cast, Error> {
    let request = GetComputeRequest { name: compute.to_owned() };
    let known = client.call(client.computes().get_compute(request)).await?;
    let request = ListNodesRequest { compute: compute.to_owned() };
    let nodes = client.call(client.computes().list_nodes(request)).await?.nodes;
    let usable = |node: &&Node| matches!(node.state(), NodeState::Idle | NodeState::Running);
    let usable: Vec<Capacity> = nodes.iter().filter(usable).map(Capacity::from).collect();
    let cluster = known.cluster.and_then(|cluster| Cluster::try_from(cluster).ok());
    Ok(Cast {
        not_usable: nodes.len() - usable.len(),
        nodes: usable,
        exclusive: known.placement == "exclusive",
        pattern: cluster.map(|cluster| cluster.node.capacity()).into_iter().collect(),
    })
}

fn percents(played: &Played) -> Value {
    let [cpu, memory, gpu] = played.utilisation().map(|percent| percent.map(rounded));
    json!({"gpu": gpu, "cpu": cpu, "memory": memory})
}

struct Told<'a> {
    went: &'a [Went],
    played: &'a Played,
    from: i64,
}

impl Told<'_> {
    /// Those that count, each with what became of it: those submitted in the time asked about.
    fn counted(&self) -> impl Iterator<Item = (&Went, &atelier_core::simulate::Fate)> {
        let from = self.from;
        let rows = self.went.iter().zip(&self.played.fates);
        rows.filter(move |(went, _)| went.job.arrives.as_millis() >= from)
    }

    /// Side by side: what was, and what would have been.
    fn side_by_side(&self, of: impl Fn(&Went, i64, i64) -> Option<i64>) -> [Option<Spread>; 2] {
        let ms = |ms: i64| u64::try_from(ms).unwrap_or_default();
        let both = self.counted().filter_map(|(went, fate)| {
            let (started, ended) = (fate.started?.as_millis(), fate.ended?.as_millis());
            Some((of(went, went.placed, went.ended)?, of(went, started, ended)?))
        });
        let (was, would_be): (Vec<u64>, Vec<u64>) =
            both.map(|(was, would_be)| (ms(was), ms(would_be))).unzip();
        [Spread::of(was), Spread::of(would_be)]
    }

    fn wait_spreads(&self) -> [Option<Spread>; 2] {
        self.side_by_side(|went, started, _| Some(started - went.job.arrives.as_millis()))
    }

    fn waits(&self) -> Value {
        let [was, would_be] = self.wait_spreads();
        json!({"was": spread(was), "would_be": spread(would_be)})
    }

    /// Of those that are over.
    fn completions(&self) -> Value {
        let [was, would_be] = self
            .side_by_side(|went, _, ended| went.over.then(|| ended - went.job.arrives.as_millis()));
        json!({"was": spread(was), "would_be": spread(would_be)})
    }

    fn compared(&self, more: usize) -> String {
        let [Some(was), Some(would_be)] = self.wait_spreads() else {
            return "nothing to compare: no job would start on these nodes".to_owned();
        };
        let (was, would_be) = (was.mean / 1000.0, would_be.mean / 1000.0);
        let with = match more {
            0 => "on the nodes that are there now".to_owned(),
            1 => "with 1 node more".to_owned(),
            more => format!("with {more} nodes more"),
        };
        let (less, more) = (rounded(was - would_be), rounded(would_be - was));
        match () {
            () if less > 0.0 => {
                format!("{with} jobs would wait {less} s less in the mean than they did")
            }
            () if more > 0.0 => {
                format!("{with} jobs would wait {more} s more in the mean than they did")
            }
            () => format!("{with} jobs would wait as long in the mean as they did"),
        }
    }
}
