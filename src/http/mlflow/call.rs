//! Reading a request: who calls, and the fields of its query or JSON body.
//!
//! Fields are read by name out of a JSON value, because MLflow's rules for what is missing and what
//! has the wrong type, and its words for both, are per field.

use atelier_core::access::{Caller, Permission, Role};
use atelier_core::content::Digest;
use atelier_core::track::{Error as Refusal, ExperimentId, RunId, limits};
use axum::body::Body;
use axum::extract::{FromRequest, Query, Request};
use bytes::BytesMut;
use futures::TryStreamExt as _;
use http::{Method, StatusCode, Uri};
use rusqlite::Connection;
use serde_json::{Map, Value};

use super::State;
use super::failure::Failure;
use crate::identity::Origin;
use crate::store;
use crate::store::tracking::{self, TrackReply, TrackWrite};

/// Bytes of a JSON body. A batch within MLflow's limits has far fewer.
const BODY: usize = 16 * 1024 * 1024;

/// A request.
pub(super) struct Call {
    pub(super) state: State,
    pub(super) caller: Caller,
    pub(super) origin: Origin,
    pub(super) fields: Fields,
}

/// What a caller may read.
#[derive(Clone)]
pub(super) enum Reader {
    /// Everything.
    All,
    /// The experiment of this run: it is the caller's own.
    Of(RunId),
}

/// The reader that a caller is.
pub(super) fn reader(caller: &Caller) -> Result<Reader, Refusal> {
    match &caller.role {
        Role::Attempt(scope) => Ok(Reader::Of(RunId::from(&scope.job))),
        _ if caller.may(Permission::ReadRuns) => Ok(Reader::All),
        role => {
            Err(Refusal::NotAllowed(format!("{} ({role}) may not read runs", caller.principal)))
        }
    }
}

impl Reader {
    /// Refuses an experiment that is not the caller's own, if it may read only that.
    pub(super) fn check(
        &self,
        conn: &Connection,
        experiment: ExperimentId,
    ) -> Result<(), store::Error> {
        let Self::Of(run) = self else { return Ok(()) };
        let own = tracking::run_info(conn, run)?.experiment;
        if own == experiment {
            return Ok(());
        }
        Err(Refusal::NotAllowed(format!(
            "A job's token reads only its own experiment {own}, not {experiment}. A job's run is \
             in the experiment that the job names: leave out set_experiment, or set \
             experiment_name in the job"
        ))
        .into())
    }
}

impl Call {
    pub(super) fn reader(&self) -> Result<Reader, Failure> {
        Ok(reader(&self.caller)?)
    }

    pub(super) async fn write(&self, write: TrackWrite) -> Result<TrackReply, Failure> {
        Ok(self.state.tracking.write(write).await?)
    }

    /// The same, told to the audit log.
    pub(super) async fn write_told(&self, write: TrackWrite) -> Result<TrackReply, Failure> {
        let by = self.origin.actor(&self.caller);
        self.write(TrackWrite::Audited { by, write: Box::new(write) }).await
    }

    pub(super) async fn read<T, F>(&self, ask: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, store::Error> + Send + 'static,
    {
        Ok(self.state.tracking.read(ask).await?)
    }

    /// The run that the call is about; old clients call its id `run_uuid`.
    pub(super) fn run_id(&self) -> Result<RunId, Failure> {
        let text = match self.fields.text("run_id")? {
            Some(id) if !id.is_empty() => id,
            _ => self
                .fields
                .text("run_uuid")?
                .filter(|id| !id.is_empty())
                .ok_or_else(|| missing("run_id"))?,
        };
        // A text that is no id is no run's id either.
        RunId::new(text).map_err(|_| Refusal::NoRun(limits::excerpt(text)).into())
    }

    /// The experiment that the call is about.
    pub(super) fn experiment_id(&self) -> Result<ExperimentId, Failure> {
        Ok(ExperimentId::parse(self.fields.required_text("experiment_id")?)?)
    }
}

/// A body of at most [`BODY`] bytes.
async fn whole(body: Body) -> Result<BytesMut, Failure> {
    let mut bytes = BytesMut::new();
    let mut stream = body.into_data_stream();
    let ended = |_| Failure::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", "The body ended early");
    while let Some(piece) = stream.try_next().await.map_err(ended)? {
        if bytes.len() + piece.len() > BODY {
            return Err(invalid(format!(
                "Batched logging API requests must be at most {BODY} bytes, got a larger one."
            )));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

impl FromRequest<State> for Call {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &State) -> Result<Self, Failure> {
        let (head, body) = request.into_parts();
        let caller =
            head.extensions.get::<Caller>().cloned().ok_or_else(Failure::unauthenticated)?;
        let origin = head.extensions.get::<Origin>().cloned().unwrap_or_default();
        let fields = if head.method == Method::GET {
            Fields::of_uri(&head.uri)?
        } else {
            let bytes = whole(body).await?;
            Fields::of_body(&bytes)?
        };
        Ok(Self { state: state.clone(), caller, origin, fields })
    }
}

/// The fields of a query, a body, or an object within one.
pub(super) struct Fields {
    values: Map<String, Value>,
    /// Where the object stands, for errors: `metrics[3].`, or empty.
    path: String,
}

const SEE: &str = "See the API docs for more information about request parameters.";

fn invalid(message: String) -> Failure {
    Refusal::Invalid(message).into()
}

fn missing(name: &str) -> Failure {
    invalid(format!("Missing value for required parameter '{name}'. {SEE}"))
}

/// Python's name of a JSON value's type, as MLflow's messages have it.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    }
}

impl Fields {
    pub(super) fn of_uri(uri: &Uri) -> Result<Self, Failure> {
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| invalid(format!("The query cannot be read: {error}")))?;
        Ok(Self::of_query(pairs.0))
    }

    fn of_query(pairs: Vec<(String, String)>) -> Self {
        let mut values = Map::new();
        for (name, value) in pairs {
            let value = Value::String(value);
            match values.get_mut(&name) {
                None => {
                    values.insert(name, value);
                }
                Some(Value::Array(list)) => list.push(value),
                Some(first) => *first = Value::Array(vec![first.take(), value]),
            }
        }
        Self { values, path: String::new() }
    }

    pub(super) fn of_body(bytes: &[u8]) -> Result<Self, Failure> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self { values: Map::new(), path: String::new() });
        }
        let read = |bytes: &[u8]| {
            serde_json::from_slice::<Value>(bytes).map_err(|error| {
                invalid(format!(
                    "The request body is not valid JSON: {error}. Write NaN and infinities as \
                     \"NaN\", \"Infinity\" and \"-Infinity\"."
                ))
            })
        };
        let mut value = read(bytes)?;
        // Some old clients send their JSON as a JSON text.
        if let Value::String(text) = &value {
            value = read(text.as_bytes())?;
        }
        match value {
            Value::Object(values) => Ok(Self { values, path: String::new() }),
            Value::Null => Ok(Self { values: Map::new(), path: String::new() }),
            other => Err(invalid(format!(
                "The request body must be a JSON object, got '{}'.",
                type_of(&other)
            ))),
        }
    }

    /// Of who asks and all that is asked: a client that asks again sends the same bytes.
    pub(super) fn digest(&self, asker: &str) -> Digest {
        let whole = Value::Array(vec![asker.into(), self.values.clone().into()]);
        Digest::of(whole.to_string().as_bytes())
    }

    /// The same fields under the names that the wire has elsewhere: `runId` is `run_id`.
    pub(super) fn in_snake_case(self) -> Self {
        let snake = |name: String| {
            let mut out = String::with_capacity(name.len() + 4);
            for c in name.chars() {
                if c.is_ascii_uppercase() {
                    out.push('_');
                }
                out.push(c.to_ascii_lowercase());
            }
            out
        };
        let values = self.values.into_iter().map(|(name, value)| (snake(name), value));
        Self { values: values.collect(), path: self.path }
    }

    /// Whether a field is there at all.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name).filter(|value| !value.is_null())
    }

    fn path_of(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    fn wrong_type(&self, name: &str, value: &Value) -> Failure {
        invalid(format!(
            "Invalid value {} for parameter '{}' supplied:  Hint: Value was of type '{}'. {SEE}",
            limits::excerpt(&value.to_string()),
            self.path_of(name),
            type_of(value)
        ))
    }

    pub(super) fn missing(&self, name: &str) -> Failure {
        missing(&self.path_of(name))
    }

    /// A text, if there is one.
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, Failure> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(name, other)),
        }
    }

    /// A text that is there and not empty.
    pub(super) fn required_text(&self, name: &str) -> Result<&str, Failure> {
        self.text(name)?.filter(|text| !text.is_empty()).ok_or_else(|| self.missing(name))
    }

    /// A 64-bit integer, as a number or as text.
    pub(super) fn integer(&self, name: &str) -> Result<Option<i64>, Failure> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = match value {
            Value::Number(n) => n.as_i64().or_else(|| {
                let whole = n.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9.0e15)?;
                Some(whole as i64)
            }),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        number.map(Some).ok_or_else(|| self.wrong_type(name, value))
    }

    /// A double, as a number or as text: `"NaN"`, `"Infinity"`, `"-Infinity"` or digits.
    pub(super) fn double(&self, name: &str) -> Result<Option<f64>, Failure> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = match value {
            Value::Number(n) => n.as_f64(),
            Value::String(text) => match text.as_str() {
                "NaN" => Some(f64::NAN),
                "Infinity" => Some(f64::INFINITY),
                "-Infinity" => Some(f64::NEG_INFINITY),
                text => text.parse().ok().filter(|x: &f64| x.is_finite()),
            },
            _ => None,
        };
        number.map(Some).ok_or_else(|| self.wrong_type(name, value))
    }

    /// Yes or no, also as text.
    pub(super) fn truth(&self, name: &str) -> Result<Option<bool>, Failure> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(*truth)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(other) => Err(self.wrong_type(name, other)),
        }
    }

    /// A word or a number that stands for one.
    pub(super) fn word(&self, name: &str) -> Result<Option<String>, Failure> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(n)) => Ok(Some(n.to_string())),
            Some(other) => Err(self.wrong_type(name, other)),
        }
    }

    /// A word that must be one of a few; nothing if it is not there.
    pub(super) fn one_of<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let Some(word) = self.word(name)? else { return Ok(None) };
        match parse(&word) {
            Some(value) => Ok(Some(value)),
            None => Err(limits::invalid_value(&self.path_of(name), &word, None).into()),
        }
    }

    /// True or false, also as text.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Failure> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(other) => Err(self.wrong_type(name, other)),
        }
    }

    /// A list; in a query, one value is a list of one.
    fn list(&self, name: &str) -> Result<&[Value], Failure> {
        match self.get(name) {
            None => Ok(&[]),
            Some(Value::Array(list)) => Ok(list),
            Some(one @ Value::String(_)) => Ok(std::slice::from_ref(one)),
            Some(other) => Err(self.wrong_type(name, other)),
        }
    }

    /// A list of texts.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<String>, Failure> {
        self.list(name)?
            .iter()
            .map(|value| match value {
                Value::String(text) => Ok(text.clone()),
                other => Err(self.wrong_type(name, other)),
            })
            .collect()
    }

    /// A list of objects.
    pub(super) fn objects(&self, name: &str) -> Result<Vec<Fields>, Failure> {
        self.list(name)?
            .iter()
            .enumerate()
            .map(|(i, value)| match value {
                Value::Object(values) => {
                    Ok(Self { values: values.clone(), path: format!("{}{name}[{i}].", self.path) })
                }
                other => Err(self.wrong_type(name, other)),
            })
            .collect()
    }

    /// An object.
    pub(super) fn object(&self, name: &str) -> Result<Fields, Failure> {
        match self.get(name) {
            Some(Value::Object(values)) => {
                Ok(Self { values: values.clone(), path: format!("{}{name}.", self.path) })
            }
            Some(other) => Err(self.wrong_type(name, other)),
            None => Err(self.missing(name)),
        }
    }

    /// How many results a page may have.
    pub(super) fn page_size(&self, default: usize, most: usize) -> Result<usize, Failure> {
        match self.integer("max_results")? {
            None => Ok(default),
            Some(n) if n < 1 => Err(invalid(format!(
                "Invalid value {n} for parameter 'max_results' supplied. It must be a positive \
                 integer."
            ))),
            Some(n) => usize::try_from(n).ok().filter(|n| *n <= most).ok_or_else(|| {
                invalid(format!(
                    "Invalid value {n} for parameter 'max_results' supplied: It must be at most \
                     {most}, but got value {n}. {SEE}"
                ))
            }),
        }
    }

    /// A page token, if there is one; clients also send an empty one.
    pub(super) fn page_token(&self) -> Result<Option<&str>, Failure> {
        Ok(self.text("page_token")?.filter(|token| !token.is_empty()))
    }
}
