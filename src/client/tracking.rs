//! Experiments, runs and metrics, through the MLflow API that the daemon serves.
//!
//! What is told here is told to MLflow's clients in the same words, so that there is one interface to keep.

use atelier_core::url::encoded;
use reqwest::{Method, RequestBuilder, Response, header};
use serde::de::{DeserializeOwned, Error as _, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

pub use super::data::Error;
use super::data::again;
use super::{Client, innermost};

/// Runs that are asked for at once.
const PAGE: u32 = 1000;
/// Points that are asked for at once; the most that MLflow's clients ask for.
const POINTS: u32 = 25_000;

/// A metric's value: JSON has no NaN, so it is a text there, as in MLflow's protocol.
#[derive(Debug, Clone, Copy)]
pub struct Number(pub f64);

/// Whether they are the same, not whether they are equal: NaN is itself.
impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0 || (self.0.is_nan() && other.0.is_nan())
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.0.is_nan() { to.serialize_str("NaN") } else { to.serialize_f64(self.0) }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Value::deserialize(from)? {
            Value::String(text) => text.parse().map(Self).map_err(|_| {
                D::Error::invalid_value(Unexpected::Str(&text), &"a number, NaN or Infinity")
            }),
            value => value.as_f64().map(Self).ok_or_else(|| D::Error::custom("not a number")),
        }
    }
}

/// A point of a metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The metric's name.
    #[serde(default)]
    pub key: String,
    /// The step.
    #[serde(default)]
    pub step: i64,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// What was measured.
    pub value: Number,
}

/// A parameter or a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// Its name.
    pub key: String,
    /// What it is.
    #[serde(default)]
    pub value: String,
}

/// What a run is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Its id; the job's name, for the run of a job.
    pub run_id: String,
    /// Its name for people.
    #[serde(default)]
    pub run_name: String,
    /// Its experiment's id.
    pub experiment_id: String,
    /// Whose it is.
    #[serde(default)]
    pub user_id: String,
    /// `RUNNING`, `SCHEDULED`, `FINISHED`, `FAILED` or `KILLED`.
    pub status: String,
    /// When it began, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub start_time: i64,
    /// When it ended.
    pub end_time: Option<i64>,
    /// `active` or `deleted`.
    #[serde(default)]
    pub lifecycle_stage: String,
    /// Where its artifacts are.
    #[serde(default)]
    pub artifact_uri: String,
}

impl Info {
    /// Whether nothing more is expected of it.
    pub fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "FINISHED" | "FAILED" | "KILLED")
    }
}

/// What was logged to a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Logged {
    /// The latest point of each metric.
    #[serde(default)]
    pub metrics: Vec<Point>,
    /// Its parameters.
    #[serde(default)]
    pub params: Vec<Pair>,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<Pair>,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// What it is.
    pub info: Info,
    /// What was logged to it.
    #[serde(default)]
    pub data: Logged,
    /// Datasets and models that it used, as MLflow has them.
    #[serde(default)]
    pub inputs: Value,
    /// Models that it made, as MLflow has them.
    #[serde(default)]
    pub outputs: Value,
}

/// An experiment.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Experiment {
    /// Its id.
    pub experiment_id: String,
    /// Its name.
    pub name: String,
}

/// A file or a folder among a run's artifacts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Artifact {
    /// Its path below the run's artifacts.
    pub path: String,
    /// Whether it is a folder.
    #[serde(default)]
    pub is_dir: bool,
    /// A file's length in bytes.
    #[serde(default)]
    pub file_size: u64,
}

/// Some of a metric's points, and what to ask for the next with.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Points {
    /// By timestamp, then step.
    #[serde(default)]
    pub metrics: Vec<Point>,
    /// Empty after the last.
    #[serde(default)]
    pub next_page_token: String,
}

/// Which runs are wanted.
#[derive(Debug, Clone, Serialize)]
pub struct Wanted {
    /// The experiments' ids.
    pub experiment_ids: Vec<String>,
    /// MLflow's filter; empty for all.
    pub filter: String,
    /// MLflow's orders.
    pub order_by: Vec<String>,
    /// `ACTIVE_ONLY`, `DELETED_ONLY` or `ALL`.
    pub run_view_type: &'static str,
}

/// Asks for runs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tracking {
    http: reqwest::Client,
    server: String,
    token: super::Token,
}

impl Tracking {
    /// With the address and the token of a connection.
    ///
    /// # Errors
    /// If the system gives no sockets.
    pub fn of(client: &Client) -> Result<Self, super::Error> {
        let target = client.target();
        let server = target.server.trim_end_matches('/').to_owned();
        Ok(Self { http: client.http()?, server, token: target.token.clone() })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/api/2.0/{path}", self.server);
        self.http.request(method, url).bearer_auth(self.token.secret())
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Error> {
        let query: Vec<String> =
            query.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let path = format!("{path}?{}", query.join("&"));
        again(async || read(self.request(Method::GET, &path)).await).await
    }

    /// Asks with a body; for calls that may be made again.
    async fn ask<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, Error> {
        let post = || {
            self.request(Method::POST, path)
                .header(header::CONTENT_TYPE, "application/json")
                .body(body.to_string())
        };
        again(async || read(post()).await).await
    }

    /// All experiments that are not deleted.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn experiments(&self) -> Result<Vec<Experiment>, Error> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            experiments: Vec<Experiment>,
            #[serde(default)]
            next_page_token: String,
        }
        let (mut all, mut token) = (Vec::new(), String::new());
        loop {
            let body = serde_json::json!({ "max_results": PAGE, "page_token": token });
            let page: Page = self.ask("mlflow/experiments/search", &body).await?;
            all.extend(page.experiments);
            token = page.next_page_token;
            if token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// Runs, `most` at most.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn runs(&self, wanted: &Wanted, most: u32) -> Result<Vec<Run>, Error> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            runs: Vec<Run>,
            #[serde(default)]
            next_page_token: String,
        }
        let mut body = serde_json::to_value(wanted).unwrap_or_default();
        let mut runs = Vec::new();
        loop {
            let lacking = most - u32::try_from(runs.len()).unwrap_or(most);
            if lacking == 0 {
                return Ok(runs);
            }
            body["max_results"] = lacking.min(PAGE).into();
            let page: Page = self.ask("mlflow/runs/search", &body).await?;
            runs.extend(page.runs);
            runs.truncate(most as usize);
            if page.next_page_token.is_empty() {
                return Ok(runs);
            }
            body["page_token"] = page.next_page_token.into();
        }
    }

    /// A run.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn run(&self, id: &str) -> Result<Run, Error> {
        #[derive(Deserialize)]
        struct Answer {
            run: Run,
        }
        self.get::<Answer>("mlflow/runs/get", &[("run_id", id)]).await.map(|answer| answer.run)
    }

    /// Deletes a run, for a while.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        self.change("mlflow/runs/delete", id).await
    }

    /// Restores a deleted run.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn restore(&self, id: &str) -> Result<(), Error> {
        self.change("mlflow/runs/restore", id).await
    }

    /// Both may be asked for again: they say how a run is to be.
    async fn change(&self, path: &str, id: &str) -> Result<(), Error> {
        let body = serde_json::json!({ "run_id": id });
        self.ask::<serde::de::IgnoredAny>(path, &body).await.map(drop)
    }

    /// A page of a metric's points.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn points(
        &self,
        run: &str,
        key: &str,
        limit: u32,
        token: &str,
    ) -> Result<Points, Error> {
        let limit = limit.to_string();
        let mut query = vec![("run_id", run), ("metric_key", key), ("max_results", limit.as_str())];
        if !token.is_empty() {
            query.push(("page_token", token));
        }
        self.get("mlflow/metrics/get-history", &query).await
    }

    /// All points of a metric, a page after the other.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn history(&self, run: &str, key: &str) -> Result<Vec<Point>, Error> {
        let (mut all, mut token) = (Vec::new(), String::new());
        loop {
            let page = self.points(run, key, POINTS, &token).await?;
            all.extend(page.metrics);
            token = page.next_page_token;
            if token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// About so many of a metric's points, evenly taken, with the first and the last.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn sample(&self, run: &str, key: &str, about: u32) -> Result<Vec<Point>, Error> {
        let about = about.to_string();
        let query = [("run_ids", run), ("metric_key", key), ("max_results", about.as_str())];
        let points: Points = self.get("mlflow/metrics/get-history-bulk-interval", &query).await?;
        Ok(points.metrics)
    }

    /// What lies right below a folder of a run's artifacts.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn artifacts(&self, run: &str, folder: &str) -> Result<Vec<Artifact>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            files: Vec<Artifact>,
        }
        let mut query = vec![("run_id", run)];
        if !folder.is_empty() {
            query.push(("path", folder));
        }
        let answer: Answer = self.get("mlflow/artifacts/list", &query).await?;
        Ok(answer.files)
    }

    /// A file of a run's artifacts, to be read piece by piece.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn artifact(&self, info: &Info, path: &str) -> Result<Response, Error> {
        let root = info.artifact_uri.trim_start_matches("mlflow-artifacts:/");
        let path = format!("mlflow-artifacts/artifacts/{}/{}", encoded(root), encoded(path));
        again(async || answer(self.request(Method::GET, &path)).await).await
    }
}

async fn read<T: DeserializeOwned>(request: RequestBuilder) -> Result<T, Error> {
    let bytes = answer(request).await?.bytes().await.map_err(|e| Error::Lost(innermost(&e)))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::Lost(format!("its answer cannot be read: {error}")))
}

async fn answer(request: RequestBuilder) -> Result<Response, Error> {
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    let answer = request.send().await.map_err(|error| Error::Lost(innermost(&error)))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let said = answer.bytes().await.unwrap_or_default();
    let message = serde_json::from_slice::<Refusal>(&said)
        .map_or_else(|_| format!("the daemon answered {status}"), |refusal| refusal.message);
    Err(Error::Refused { status: status.as_u16(), message })
}
