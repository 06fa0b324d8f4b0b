//! `atelier run metrics`: a run's metrics as tables, curves and files, and as they come.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use atelier_core::track::{Metric, RunId, StoredMetric};
use clap::{Args, Subcommand};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};

use super::{failed, plot};
use crate::cli::job::{terminal, time};
use crate::cli::output::moment;
use crate::cli::{Column, Context, Error, Kind};
use crate::client::tracking::{Point, Run, Tracking};
use crate::track::parquet::Writer;

/// Keys asked for at once.
const PARALLEL: usize = 8;
/// Columns of a curve in a table.
const CURVE: usize = 24;
/// Points that a chart is made of; no terminal has more columns of dots.
const CHART: u32 = 2_000;
/// How often new points are asked for.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a daemon that does not answer is waited for.
const PATIENCE: Duration = Duration::from_secs(300);
/// Points of a page while they are followed.
const FOLLOWED: u32 = 1_000;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(override_usage = "\
atelier run metrics [OPTIONS] NAME [KEY...]
       atelier run metrics tail [OPTIONS] NAME [KEY...]")]
#[command(after_help = "\
Examples:
  atelier run metrics calm_apple_x1                        each metric with its curve
  atelier run metrics calm_apple_x1 loss                   its points
  atelier run metrics calm_apple_x1 loss --plot
  atelier run metrics calm_apple_x1 --export metrics.parquet
  atelier run metrics tail calm_apple_x1 loss")]
pub(in crate::cli) struct Arguments {
    #[command(subcommand)]
    follow: Option<Follow>,
    #[command(flatten)]
    which: Which,
    /// Draw them
    #[arg(long, conflicts_with = "export")]
    plot: bool,
    /// Write all their points to a file, whose name ends with .csv, .json or .parquet
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
}

#[derive(Args)]
struct Which {
    /// The run
    #[arg(value_name = "NAME", required = true)]
    name: Option<String>,
    /// Only these metrics
    #[arg(value_name = "KEY")]
    keys: Vec<String>,
}

#[derive(Subcommand)]
enum Follow {
    /// Print points as they are logged, until the run has ended
    #[command(after_help = "\
Examples:
  atelier run metrics tail calm_apple_x1
  atelier run metrics tail calm_apple_x1 loss -o json")]
    Tail(TailArguments),
}

#[derive(Args)]
struct TailArguments {
    #[command(flatten)]
    which: Which,
}

pub(super) async fn run(arguments: Arguments, context: &Context) -> Result<(), Error> {
    let which = match &arguments.follow {
        Some(Follow::Tail(tail)) => &tail.which,
        None => &arguments.which,
    };
    let form = arguments.export.as_deref().map(Form::of).transpose()?;
    let client = context.client().await?;
    let tracking = Tracking::of(&client)?;
    let name = which.name.as_deref().unwrap_or_default();
    let run = tracking.run(name).await.map_err(looking(name))?;
    if arguments.follow.is_some() {
        return tail(tracking, run, &which.keys, context).await;
    }
    let keys = logged(&run, &which.keys)?;
    match (&arguments.export, form) {
        (Some(file), Some(form)) => export(&tracking, name, &keys, file, form, context).await,
        _ if arguments.plot => draw(&tracking, name, &keys, context).await,
        _ if which.keys.is_empty() => latest(&tracking, &run, context).await,
        _ => {
            let mut points = Vec::new();
            for key in keys {
                let history = tracking.history(name, key).await.map_err(reading(key))?;
                points.extend(history.iter().map(view));
            }
            context.output.list(points, COLUMNS)
        }
    }
}

fn looking(name: &str) -> impl Fn(crate::client::tracking::Error) -> Error + use<> {
    failed(&format!("look at the run {name}"))
}

fn reading(key: &str) -> impl Fn(crate::client::tracking::Error) -> Error + use<> {
    failed(&format!("read the metric {key}"))
}

/// The metrics that were named, or all; each was logged.
fn logged<'a>(run: &'a Run, named: &'a [String]) -> Result<Vec<&'a str>, Error> {
    let has = |key: &str| run.data.metrics.iter().any(|metric| metric.key == key);
    if let Some(key) = named.iter().find(|key| !has(key)) {
        let name = &run.info.run_id;
        let what = format!("the run {name} has no metric '{key}'");
        return Err(Error::new(Kind::NotFound, what)
            .help(format!("see what it has: atelier run metrics {name}")));
    }
    if named.is_empty() {
        return Ok(run.data.metrics.iter().map(|metric| metric.key.as_str()).collect());
    }
    Ok(named.iter().map(String::as_str).collect())
}

fn view(point: &Point) -> Value {
    json!({
        "key": point.key,
        "step": point.step,
        "time": time(point.timestamp),
        "value": point.value,
    })
}

const COLUMNS: &[Column] = &[
    Column { title: "KEY", cell: |p| Some(p["key"].as_str()?.to_owned()) },
    Column { title: "STEP", cell: |p| Some(p["step"].to_string()) },
    Column { title: "TIME", cell: |p| moment(&p["time"]) },
    Column { title: "VALUE", cell: |p| Some(number(&p["value"])) },
];

fn number(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Each metric's latest point, and in a table its curve.
async fn latest(tracking: &Tracking, run: &Run, context: &Context) -> Result<(), Error> {
    let mut views: Vec<Value> = run.data.metrics.iter().map(view).collect();
    if !context.output.is_plain() {
        return context.output.list(views, &[]);
    }
    let about = u32::try_from(CURVE).unwrap_or(u32::MAX);
    let name = &run.info.run_id;
    let curves: Vec<String> = futures::stream::iter(&run.data.metrics)
        .map(|metric| async {
            let points = tracking.sample(name, &metric.key, about).await;
            let points = points.map_err(reading(&metric.key))?;
            let values: Vec<f64> = points.iter().map(|point| point.value.0).collect();
            Ok::<_, Error>(plot::sparkline(&values, CURVE))
        })
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    for (view, curve) in views.iter_mut().zip(curves) {
        view["curve"] = curve.into();
    }
    const COLUMNS: &[Column] = &[
        Column { title: "KEY", cell: |p| Some(p["key"].as_str()?.to_owned()) },
        Column { title: "STEP", cell: |p| Some(p["step"].to_string()) },
        Column { title: "LAST", cell: |p| Some(number(&p["value"])) },
        Column { title: "CURVE", cell: |p| Some(p["curve"].as_str()?.to_owned()) },
    ];
    context.output.list(views, COLUMNS)
}

async fn draw(
    tracking: &Tracking,
    run: &str,
    keys: &[&str],
    context: &Context,
) -> Result<(), Error> {
    let width = terminal::size().columns as usize;
    for key in keys {
        let points = tracking.sample(run, key, CHART).await.map_err(reading(key))?;
        let chart = plot::chart(&coordinates(&points), width);
        let chart = chart.unwrap_or_else(|| "no finite value\n".to_owned());
        context.output.print(&format!("{}\n{chart}", crate::cli::output::printable(key)))?;
    }
    Ok(())
}

/// Value by step; by seconds since the first where all steps are the same.
fn coordinates(points: &[Point]) -> Vec<(f64, f64)> {
    let counted = points.windows(2).any(|pair| pair[0].step != pair[1].step);
    let began = points.iter().map(|point| point.timestamp).min().unwrap_or(0);
    #[allow(clippy::cast_precision_loss, reason = "a place on a chart")]
    let x = |point: &Point| match counted {
        true => point.step as f64,
        false => (point.timestamp - began) as f64 / 1000.0,
    };
    let mut places: Vec<(f64, f64)> = points.iter().map(|p| (x(p), p.value.0)).collect();
    places.sort_by(|a, b| a.0.total_cmp(&b.0));
    places
}

/// What a file is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Csv,
    Json,
    Parquet,
}

impl Form {
    fn of(file: &Path) -> Result<Self, Error> {
        match file.extension().and_then(|end| end.to_str()) {
            Some("csv") => Ok(Self::Csv),
            Some("json") => Ok(Self::Json),
            Some("parquet") => Ok(Self::Parquet),
            _ => Err(Error::usage(format!(
                "--export {}: a name ends with .csv, .json or .parquet, which says what is written",
                file.display()
            ))),
        }
    }
}

/// Writes all points: in order of time for each key, in Parquet in order of steps as sealed metrics are.
async fn export(
    tracking: &Tracking,
    run: &str,
    keys: &[&str],
    file: &Path,
    form: Form,
    context: &Context,
) -> Result<(), Error> {
    let mut keys = keys.to_vec();
    keys.sort_unstable();
    keys.dedup();
    // Beside it until it is whole: who reads the file reads all of it.
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let wrong = |error: std::io::Error| Error::file("write", file, &error);
    // As other files are, within the umask.
    let permissions = std::fs::Permissions::from_mode(0o666);
    let part =
        tempfile::Builder::new().permissions(permissions).tempfile_in(folder).map_err(wrong)?;
    let handle = part.reopen().map_err(wrong)?;
    let mut rows = Rows::new(form, handle, run).map_err(wrong)?;
    let mut written = 0;
    for key in keys {
        let points = tracking.history(run, key).await.map_err(reading(key))?;
        written += points.len();
        rows.add(key, points).map_err(wrong)?;
    }
    rows.finish().map_err(wrong)?;
    part.persist(file).map_err(|error| wrong(error.error))?;
    context.output.note(&format!("Wrote {written} points to {}.", file.display()));
    context
        .output
        .show(&json!({ "name": run, "file": file.display().to_string(), "points": written }))
}

/// A file that points are written to, all of a key at once.
enum Rows {
    Csv(BufWriter<File>),
    Json { out: BufWriter<File>, first: bool },
    Parquet(Box<Writer<BufWriter<File>>>),
}

impl Rows {
    fn new(form: Form, file: File, run: &str) -> std::io::Result<Self> {
        let mut out = BufWriter::new(file);
        Ok(match form {
            Form::Csv => {
                writeln!(out, "key,step,timestamp,value")?;
                Self::Csv(out)
            }
            Form::Json => {
                write!(out, "[")?;
                Self::Json { out, first: true }
            }
            Form::Parquet => {
                let run = RunId::new(run).map_err(|e| std::io::Error::other(e.to_string()))?;
                Self::Parquet(Box::new(Writer::new(out, &run).map_err(std::io::Error::other)?))
            }
        })
    }

    fn add(&mut self, key: &str, points: Vec<Point>) -> std::io::Result<()> {
        match self {
            Self::Csv(out) => {
                let key = quoted(key);
                for Point { step, timestamp, value, .. } in points {
                    writeln!(out, "{key},{step},{timestamp},{}", value.0)?;
                }
            }
            Self::Json { out, first } => {
                for point in points {
                    out.write_all(if std::mem::take(first) { b"\n" } else { b",\n" })?;
                    serde_json::to_writer(&mut *out, &point)?;
                }
            }
            Self::Parquet(out) => {
                let mut points: Vec<StoredMetric> = points
                    .into_iter()
                    .map(|Point { step, timestamp, value, .. }| {
                        Metric { key: key.to_owned(), value: value.0, timestamp, step }.into()
                    })
                    .collect();
                points.sort_by(StoredMetric::in_storage);
                for point in points {
                    out.add(point).map_err(std::io::Error::other)?;
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> std::io::Result<()> {
        match self {
            Self::Csv(mut out) => out.flush(),
            Self::Json { mut out, .. } => {
                writeln!(out, "\n]")?;
                out.flush()
            }
            Self::Parquet(out) => out.finish().map(drop).map_err(std::io::Error::other),
        }
    }
}

/// A text in CSV (RFC 4180).
fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// Where the reading of a metric's points has come to.
#[derive(Debug, Default)]
struct Place {
    /// What the last page was asked for with.
    token: String,
    /// The points that it had.
    seen: Vec<Point>,
}

/// What has been printed of a run.
#[derive(Debug, Default)]
struct Followed {
    places: HashMap<String, Place>,
    /// The latest points, by which it shows that there are others. Not that there are none: a step may come again.
    latest: HashMap<String, Point>,
}

/// Prints points as they come, of each metric in order of their time; when the run is over, also those that its latest
/// point has not told of. A point older than a thousand others that came before it is not seen.
async fn tail(
    tracking: Tracking,
    run: Run,
    keys: &[String],
    context: &Context,
) -> Result<(), Error> {
    let name = run.info.run_id.clone();
    let (mut tracking, mut run) = (tracking, Ok(run));
    let mut followed = Followed::default();
    // Since when nobody answers.
    let mut lost: Option<Instant> = None;
    loop {
        let printed = match &run {
            Ok(run) => followed.print(&tracking, run, keys, context).await,
            Err(_) => Ok(()),
        };
        let over = run.as_ref().is_ok_and(|run| run.info.is_over());
        match printed.and(run.map(drop)) {
            Ok(()) if over => return Ok(()),
            Ok(()) => lost = None,
            Err(error) => {
                let since = *lost.get_or_insert_with(Instant::now);
                // A session ends after some hours, and a daemon starts anew.
                let goes_on = match error.kind {
                    Kind::Unreachable => since.elapsed() < PATIENCE,
                    Kind::NotAllowed => since.elapsed() < PAUSE,
                    _ => false,
                };
                if !goes_on {
                    return Err(error);
                }
                if let Ok(client) = context.client().await {
                    tracking = Tracking::of(&client)?;
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
        run = tracking.run(&name).await.map_err(looking(&name));
    }
}

impl Followed {
    async fn print(
        &mut self,
        tracking: &Tracking,
        run: &Run,
        keys: &[String],
        context: &Context,
    ) -> Result<(), Error> {
        let (name, over) = (&run.info.run_id, run.info.is_over());
        for metric in &run.data.metrics {
            let is_named = keys.contains(&metric.key);
            let is_new = over || is_named || self.latest.get(&metric.key) != Some(metric);
            if !is_new || !(keys.is_empty() || is_named) {
                continue;
            }
            let place = self.places.entry(metric.key.clone()).or_default();
            for point in news(tracking, name, &metric.key, place).await? {
                context.output.item(&view(&point), COLUMNS)?;
            }
            self.latest.insert(metric.key.clone(), metric.clone());
        }
        Ok(())
    }
}

/// A metric's points that were not there before.
async fn news(
    tracking: &Tracking,
    run: &str,
    key: &str,
    place: &mut Place,
) -> Result<Vec<Point>, Error> {
    let mut new = Vec::new();
    loop {
        let page = tracking.points(run, key, FOLLOWED, &place.token).await.map_err(reading(key))?;
        new.extend(page.metrics.iter().filter(|point| !place.seen.contains(point)).cloned());
        if page.next_page_token.is_empty() {
            place.seen = page.metrics;
            return Ok(new);
        }
        *place = Place { token: page.next_page_token, seen: Vec::new() };
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Form, coordinates, quoted};
    use crate::client::tracking::{Number, Point};

    fn point(step: i64, timestamp: i64, value: f64) -> Point {
        Point { key: "k".to_owned(), step, timestamp, value: Number(value) }
    }

    #[test]
    fn a_chart_is_over_steps_or_else_over_seconds() {
        let steps = [point(2, 10, 0.5), point(1, 20, 1.0)];
        assert_eq!(coordinates(&steps), [(1.0, 1.0), (2.0, 0.5)]);
        let moments = [point(0, 5000, 1.0), point(0, 6500, 2.0)];
        assert_eq!(coordinates(&moments), [(0.0, 1.0), (1.5, 2.0)]);
        assert_eq!(coordinates(&[]), []);
    }

    #[test]
    fn a_file_is_what_its_name_ends_with() {
        assert_eq!(Form::of(Path::new("a.b.parquet")).ok(), Some(Form::Parquet));
        for name in ["csv", ".csv", "a.CSV", "a.xls", "a/"] {
            assert!(Form::of(Path::new(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn a_key_in_csv_stays_one_field() {
        assert_eq!(quoted("loss"), "loss");
        assert_eq!(quoted("a,b"), "\"a,b\"");
        assert_eq!(quoted("a\"b\n"), "\"a\"\"b\n\"");
    }
}
