//! `atelier run list|show|compare`: runs as MLflow's clients and jobs have logged them.

use std::collections::{BTreeSet, HashMap};

use clap::Args;
use serde_json::{Value, json};

use super::{failed, ids_of};
use crate::cli::job::time;
use crate::cli::output::{moment, table};
use crate::cli::{Column, Context, Error, Name};
use crate::client::tracking::{Info, Run, Tracking, Wanted};

#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier run list
  atelier run list --experiment-name digits --order-by 'metrics.accuracy DESC' -m 5
  atelier run list --filter \"metrics.loss < 0.2 and params.lr = '0.01'\" -o json")]
pub(in crate::cli) struct ListArguments {
    /// Only runs of this experiment; may be given several times
    #[arg(short, long, value_name = "NAME")]
    experiment_name: Vec<String>,
    /// MLflow's filter, for example "metrics.loss < 0.2 and tags.team = 'vision'"
    #[arg(long, value_name = "FILTER", default_value = "")]
    filter: String,
    /// MLflow's order, for example "metrics.loss ASC"; may be given several times [default: the newest first]
    #[arg(long, value_name = "ORDER")]
    order_by: Vec<String>,
    /// At most so many
    #[arg(short, long, value_name = "N", default_value_t = 50)]
    max_results: u32,
    /// Deleted ones too, but for those of deleted experiments
    #[arg(long)]
    all: bool,
    /// Deleted ones alone
    #[arg(long, conflicts_with = "all")]
    deleted: bool,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier run show calm_apple_x1
  atelier run show calm_apple_x1 --query metrics.loss")]
pub(in crate::cli) struct ShowArguments {
    #[command(flatten)]
    name: Name,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier run compare calm_apple_x1 warm_pear_k2            what differs
  atelier run compare calm_apple_x1 warm_pear_k2 --all      what is the same, too")]
pub(in crate::cli) struct CompareArguments {
    /// The runs
    #[arg(value_name = "NAME", required = true, num_args = 2..)]
    names: Vec<String>,
    /// Also what is the same in all
    #[arg(long)]
    all: bool,
}

pub(super) async fn list(arguments: ListArguments, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let tracking = Tracking::of(&client)?;
    let names: HashMap<String, String> = experiments(&tracking).await?;
    let experiment_ids = if arguments.experiment_name.is_empty() {
        names.keys().cloned().collect()
    } else {
        ids_of(&names, &arguments.experiment_name)?
    };
    let wanted = Wanted {
        experiment_ids,
        filter: arguments.filter,
        order_by: arguments.order_by,
        run_view_type: match (arguments.all, arguments.deleted) {
            (true, _) => "ALL",
            (_, true) => "DELETED_ONLY",
            _ => "ACTIVE_ONLY",
        },
    };
    let runs = tracking.runs(&wanted, arguments.max_results).await.map_err(failed("list runs"))?;
    let views = runs.iter().map(|run| view(run, names.get(&run.info.experiment_id))).collect();
    context.output.list(views, COLUMNS)
}

pub(super) async fn show(arguments: &ShowArguments, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let tracking = Tracking::of(&client)?;
    let name = arguments.name.get();
    let run = tracking.run(name).await.map_err(failed(&format!("look at the run {name}")))?;
    let names = experiments(&tracking).await?;
    let mut view = view(&run, names.get(&run.info.experiment_id));
    let tags = run.data.tags.iter().map(|tag| (tag.key.clone(), tag.value.clone().into()));
    view["tags"] = Value::Object(tags.collect());
    view["inputs"] = run.inputs;
    view["outputs"] = run.outputs;
    view["artifact_uri"] = run.info.artifact_uri.into();
    context.output.show(&view)
}

pub(super) async fn compare(arguments: &CompareArguments, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let tracking = Tracking::of(&client)?;
    let names = experiments(&tracking).await?;
    let mut runs = Vec::new();
    for name in &arguments.names {
        let run = tracking.run(name).await.map_err(failed(&format!("look at the run {name}")))?;
        runs.push(view(&run, names.get(&run.info.experiment_id)));
    }
    let rows = compared(&runs, arguments.all);
    if !context.output.is_plain() {
        let rows = rows.into_iter().map(|row| {
            let values = arguments.names.iter().cloned().zip(row.values);
            json!({ "field": row.field, "differs": row.differs, "values": Value::Object(values.collect()) })
        });
        return context.output.list(rows.collect(), &[]);
    }
    if rows.is_empty() {
        context.output.note("Nothing that was logged differs; --all shows what is the same.");
        return Ok(());
    }
    let titles = std::iter::once("FIELD".to_owned()).chain(arguments.names.iter().cloned());
    let rows = rows
        .into_iter()
        .map(|row| std::iter::once(Value::from(row.field)).chain(row.values).collect::<Vec<_>>());
    context.output.print(&table::grid(titles.collect(), rows.collect()))
}

async fn experiments(tracking: &Tracking) -> Result<HashMap<String, String>, Error> {
    let all = tracking.experiments().await.map_err(failed("list experiments"))?;
    Ok(all.into_iter().map(|experiment| (experiment.experiment_id, experiment.name)).collect())
}

/// A run as it is printed; a metric is its latest value.
fn view(run: &Run, experiment: Option<&String>) -> Value {
    let Info { run_id, run_name, user_id, status, start_time, end_time, .. } = &run.info;
    let params =
        run.data.params.iter().map(|param| (param.key.clone(), param.value.clone().into()));
    let metrics = run.data.metrics.iter().map(|metric| (metric.key.clone(), json!(metric.value)));
    json!({
        "name": run_id,
        "display_name": run_name,
        "experiment_name": experiment.unwrap_or(&run.info.experiment_id),
        "status": status,
        "lifecycle_stage": run.info.lifecycle_stage,
        "created_by": user_id,
        "start_time": time(*start_time),
        "end_time": end_time.map(time),
        "params": Value::Object(params.collect()),
        "metrics": Value::Object(metrics.collect()),
    })
}

const COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |r| Some(r["name"].as_str()?.to_owned()) },
    Column { title: "DISPLAY NAME", cell: |r| Some(r["display_name"].as_str()?.to_owned()) },
    Column { title: "EXPERIMENT", cell: |r| Some(r["experiment_name"].as_str()?.to_owned()) },
    Column { title: "STATUS", cell: |r| Some(r["status"].as_str()?.to_owned()) },
    Column { title: "STARTED", cell: |r| moment(&r["start_time"]) },
    Column { title: "METRICS", cell: |r| Some(shortly(&r["metrics"])) },
];

/// The first of a run's metrics, on one line.
fn shortly(metrics: &Value) -> String {
    const SHOWN: usize = 3;
    let Some(metrics) = metrics.as_object() else { return String::new() };
    let mut shown: Vec<String> = metrics
        .iter()
        .take(SHOWN)
        .map(|(key, value)| match value.as_f64() {
            Some(value) => format!("{key}={}", super::short(value)),
            None => format!("{key}=NaN"),
        })
        .collect();
    if metrics.len() > SHOWN {
        shown.push(format!("+{}", metrics.len() - SHOWN));
    }
    shown.join(" ")
}

/// A field of several runs.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    field: String,
    differs: bool,
    /// One for each run, null where it has none.
    values: Vec<Value>,
}

/// What the runs were given and what came of it, beside each other.
fn compared(runs: &[Value], all: bool) -> Vec<Row> {
    let mut rows: Vec<Row> = ["display_name", "experiment_name", "status"]
        .map(|field| Row::of(field.to_owned(), runs.iter().map(|run| run[field].clone())))
        .into();
    for group in ["params", "metrics"] {
        let keys: BTreeSet<&String> = runs
            .iter()
            .filter_map(|run| run[group].as_object())
            .flat_map(|map| map.keys())
            .collect();
        rows.extend(keys.into_iter().map(|key| {
            Row::of(format!("{group}.{key}"), runs.iter().map(|run| run[group][key].clone()))
        }));
    }
    rows.retain(|row| all || row.differs);
    rows
}

impl Row {
    fn of(field: String, values: impl Iterator<Item = Value>) -> Self {
        let values: Vec<Value> = values.collect();
        let differs = values.windows(2).any(|pair| pair[0] != pair[1]);
        Self { field, differs, values }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::{Row, compared, shortly};

    fn by_field(rows: &[Row]) -> BTreeMap<&str, bool> {
        rows.iter().map(|row| (row.field.as_str(), row.differs)).collect()
    }

    #[test]
    fn what_differs_is_told_and_the_same_on_demand() {
        let run = |lr: &str, loss: f64, more: Value| {
            json!({ "display_name": "a", "experiment_name": "e", "status": "FINISHED",
                    "params": { "lr": lr, "seed": "1" }, "metrics": { "loss": loss, "more": more } })
        };
        let runs = [run("0.1", 0.5, Value::Null), run("0.2", 0.5, json!(1.0))];
        let differing = compared(&runs, false);
        let fields = by_field(&differing);
        assert_eq!(fields.keys().copied().collect::<Vec<_>>(), ["metrics.more", "params.lr"]);
        assert_eq!(differing[0].values, [json!("0.1"), json!("0.2")]);
        let all = compared(&runs, true);
        assert!(!by_field(&all)["metrics.loss"]);
        assert_eq!(all.len(), 7);
    }

    #[test]
    fn a_line_has_room_for_a_few_metrics() {
        let metrics = json!({ "a": 0.123_456_789, "b": 3.0, "c": "NaN", "d": 1.0, "e": 2.0 });
        assert_eq!(shortly(&metrics), "a=0.1235 b=3 c=NaN +2");
        assert_eq!(shortly(&json!({})), "");
    }
}
