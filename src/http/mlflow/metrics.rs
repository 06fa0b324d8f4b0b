//! `mlflow/metrics/…` of several runs, and the datasets of experiments: what the web page draws.

use atelier_core::track::{Error as Refusal, ExperimentId, RunId, StoredMetric, limits};
use axum::Json;
use serde_json::{Value, json};

use super::call::{Call, Fields};
use super::failure::Failure;
use super::{Answer, reply};
use crate::store;
use crate::store::tracking;

/// Points in one answer, of all runs together.
const BULK: usize = 25_000;
/// Runs that one request names.
const RUNS: usize = 100;
/// Points of each run in one answer that shows a sample.
const SAMPLE: usize = 2500;
/// Experiments that one request names.
const EXPERIMENTS: usize = 20;

/// Those of the runs that there are, if the caller may read all of them.
async fn readable(call: &Call, ids: &[String]) -> Result<Vec<RunId>, Failure> {
    let reader = call.reader()?;
    // A text that is no id is no run's id either.
    let ids: Vec<RunId> = ids.iter().filter_map(|id| RunId::new(id).ok()).collect();
    call.read(move |conn| {
        let mut found = Vec::new();
        for id in ids {
            match tracking::run_info(conn, &id) {
                Ok(info) => reader.check(conn, info.experiment)?,
                Err(store::Error::Track(Refusal::NoRun(_))) => continue,
                Err(error) => return Err(error),
            }
            if !found.contains(&id) {
                found.push(id);
            }
        }
        Ok(found)
    })
    .await
}

fn runs_of(fields: &Fields) -> Result<Vec<String>, Failure> {
    let ids = fields.texts("run_id")?;
    if ids.is_empty() {
        let why = "GetMetricHistoryBulk request must specify at least one run_id.";
        return Err(Refusal::Invalid(why.to_owned()).into());
    }
    if ids.len() > RUNS {
        let why = format!(
            "GetMetricHistoryBulk request cannot specify more than {RUNS} run_ids. Received {} run_ids.",
            ids.len()
        );
        return Err(Refusal::Invalid(why).into());
    }
    Ok(ids)
}

fn with_run(run: &RunId, point: &StoredMetric) -> Value {
    let mut value = reply::metric(point);
    if let Some(object) = value.as_object_mut() {
        object.insert("run_id".to_owned(), run.as_str().into());
    }
    value
}

/// A metric's points of several runs, one run after another, until there are enough.
pub(super) async fn history_bulk(call: Call) -> Answer {
    let mut ids = runs_of(&call.fields)?;
    let key = call.fields.text("metric_key")?.filter(|key| !key.is_empty()).ok_or_else(|| {
        Refusal::Invalid("GetMetricHistoryBulk request must specify a metric_key.".to_owned())
    })?;
    let most = match call.fields.integer("max_results")? {
        Some(n) if n < 0 => {
            return Err(limits::invalid_value("max_results", &n.to_string(), None).into());
        }
        Some(n) => usize::try_from(n).map_or(BULK, |n| n.min(BULK)),
        None => BULK,
    };
    ids.sort();
    let mut points = Vec::new();
    for run in readable(&call, &ids).await? {
        if points.len() >= most {
            break;
        }
        let history = call.state.tracking.history(&run, key, most - points.len(), None).await?;
        points.extend(history.points.iter().map(|point| with_run(&run, point)));
    }
    Ok(Json(json!({ "metrics": points })))
}

/// Of each of several runs as many points of a metric as are drawn, evenly chosen.
pub(super) async fn interval(call: &Call) -> Result<Vec<(RunId, StoredMetric)>, Failure> {
    let refused = |why: String| Err(Failure::from(Refusal::Invalid(why)));
    let ids = call.fields.texts("run_ids")?;
    if ids.is_empty() {
        return refused("Missing value for required parameter 'run_ids'.".to_owned());
    }
    if ids.len() > RUNS {
        return refused(format!(
            "GetMetricHistoryBulkInterval request must specify at most {RUNS} run_ids. Received {} run_ids.",
            ids.len()
        ));
    }
    let key = call.fields.required_text("metric_key")?;
    let most = match call.fields.integer("max_results")? {
        None => SAMPLE,
        Some(n) => match usize::try_from(n) {
            Ok(n) if (1..=SAMPLE).contains(&n) => n,
            _ => return refused(format!("max_results must be between 1 and {SAMPLE}.")),
        },
    };
    let steps = match (call.fields.integer("start_step")?, call.fields.integer("end_step")?) {
        (Some(from), Some(to)) if from > to => {
            return refused(format!(
                "end_step must be greater than start_step. Found start_step={from} and end_step={to}."
            ));
        }
        (Some(from), Some(to)) => from..=to,
        (None, None) => i64::MIN..=i64::MAX,
        _ => {
            return refused(
                "If either start step or end step are specified, both must be specified."
                    .to_owned(),
            );
        }
    };
    let mut all = Vec::new();
    for run in readable(call, &ids).await? {
        let points = call.state.tracking.sample(&run, key, steps.clone(), most).await?;
        all.extend(points.into_iter().map(|point| (run.clone(), point)));
    }
    Ok(all)
}

pub(super) async fn history_bulk_interval(call: Call) -> Answer {
    let points = interval(&call).await?;
    let list = points.iter().map(|(run, point)| with_run(run, point)).collect();
    Ok(Json(reply::page("metrics", list, None::<String>)))
}

/// The datasets that runs of some experiments read, each once.
pub(super) async fn datasets(call: Call) -> Answer {
    let ids = call.fields.texts("experiment_ids")?;
    let refused = |why: String| Err(Failure::from(Refusal::Invalid(why)));
    if ids.is_empty() {
        return refused(
            "SearchDatasets request must specify at least one experiment_id.".to_owned(),
        );
    }
    if ids.len() > EXPERIMENTS {
        return refused(format!(
            "SearchDatasets request cannot specify more than {EXPERIMENTS} experiment_ids. Received {} \
             experiment_ids.",
            ids.len()
        ));
    }
    let ids = ids.iter().map(|id| ExperimentId::parse(id)).collect::<Result<Vec<_>, _>>()?;
    let reader = call.reader()?;
    let found = call
        .read(move |conn| {
            for id in &ids {
                reader.check(conn, *id)?;
            }
            tracking::datasets(conn, &ids)
        })
        .await?;
    let list = found.iter().map(reply::dataset_summary).collect();
    Ok(Json(reply::page("dataset_summaries", list, None::<String>)))
}
