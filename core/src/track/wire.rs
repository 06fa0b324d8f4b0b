//! Reading what MLflow's clients send: the fields of a query or a JSON body, and what is logged.
//!
//! Fields are read by name out of a JSON value, because MLflow's rules for what is missing and what
//! has the wrong type, and its words for both, are per field. The daemon and the nodes' agents, who take
//! points in its stead, read in the same way and refuse in the same words.

use serde_json::{Map, Value};

use super::{Error, LoggedModelId, MeasuredOn, Metric, ModelPoint, Param, RunId, Tag, limits};
use crate::content::Digest;

/// The fields of a query, a body, or an object within one.
#[derive(Debug)]
pub struct Fields {
    values: Map<String, Value>,
    /// Where the object stands, for errors: `metrics[3].`, or empty.
    path: String,
}

const SEE: &str = "See the API docs for more information about request parameters.";

fn invalid(message: String) -> Error {
    Error::Invalid(message)
}

fn missing(name: &str) -> Error {
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
    /// Of a query; what is given several times is a list.
    pub fn of_query(pairs: Vec<(String, String)>) -> Self {
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

    /// Of a JSON body; none of an empty one.
    ///
    /// # Errors
    /// It is no JSON, or no object.
    pub fn of_body(bytes: &[u8]) -> Result<Self, Error> {
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
    pub fn digest(&self, asker: &str) -> Digest {
        let whole = Value::Array(vec![asker.into(), self.values.clone().into()]);
        Digest::of(whole.to_string().as_bytes())
    }

    /// The same fields under the names that the wire has elsewhere: `runId` is `run_id`.
    pub fn in_snake_case(self) -> Self {
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
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name).filter(|value| !value.is_null())
    }

    fn path_of(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    fn wrong_type(&self, name: &str, value: &Value) -> Error {
        invalid(format!(
            "Invalid value {} for parameter '{}' supplied:  Hint: Value was of type '{}'. {SEE}",
            limits::excerpt(&value.to_string()),
            self.path_of(name),
            type_of(value)
        ))
    }

    /// The refusal of what lacks a field.
    pub fn missing(&self, name: &str) -> Error {
        missing(&self.path_of(name))
    }

    /// A text, if there is one.
    ///
    /// # Errors
    /// It is of another type.
    pub fn text(&self, name: &str) -> Result<Option<&str>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(name, other)),
        }
    }

    /// A text that is there and not empty.
    ///
    /// # Errors
    /// It is missing, empty, or no text.
    pub fn required_text(&self, name: &str) -> Result<&str, Error> {
        self.text(name)?.filter(|text| !text.is_empty()).ok_or_else(|| self.missing(name))
    }

    /// A 64-bit integer, as a number or as text.
    ///
    /// # Errors
    /// It is of another type.
    pub fn integer(&self, name: &str) -> Result<Option<i64>, Error> {
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
    ///
    /// # Errors
    /// It is of another type.
    pub fn double(&self, name: &str) -> Result<Option<f64>, Error> {
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
    ///
    /// # Errors
    /// It is of another type.
    pub fn truth(&self, name: &str) -> Result<Option<bool>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(*truth)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(other) => Err(self.wrong_type(name, other)),
        }
    }

    /// A word or a number that stands for one.
    ///
    /// # Errors
    /// It is of another type.
    pub fn word(&self, name: &str) -> Result<Option<String>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(n)) => Ok(Some(n.to_string())),
            Some(other) => Err(self.wrong_type(name, other)),
        }
    }

    /// A word that must be one of a few; nothing if it is not there.
    ///
    /// # Errors
    /// It is none of them.
    pub fn one_of<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(word) = self.word(name)? else { return Ok(None) };
        match parse(&word) {
            Some(value) => Ok(Some(value)),
            None => Err(limits::invalid_value(&self.path_of(name), &word, None)),
        }
    }

    /// True or false, also as text.
    ///
    /// # Errors
    /// It is of another type.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(other) => Err(self.wrong_type(name, other)),
        }
    }

    /// A list; in a query, one value is a list of one.
    fn list(&self, name: &str) -> Result<&[Value], Error> {
        match self.get(name) {
            None => Ok(&[]),
            Some(Value::Array(list)) => Ok(list),
            Some(one @ Value::String(_)) => Ok(std::slice::from_ref(one)),
            Some(other) => Err(self.wrong_type(name, other)),
        }
    }

    /// A list of texts.
    ///
    /// # Errors
    /// It is of another type.
    pub fn texts(&self, name: &str) -> Result<Vec<String>, Error> {
        self.list(name)?
            .iter()
            .map(|value| match value {
                Value::String(text) => Ok(text.clone()),
                other => Err(self.wrong_type(name, other)),
            })
            .collect()
    }

    /// A list of objects.
    ///
    /// # Errors
    /// It is of another type.
    pub fn objects(&self, name: &str) -> Result<Vec<Fields>, Error> {
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
    ///
    /// # Errors
    /// It is missing, or no object.
    pub fn object(&self, name: &str) -> Result<Fields, Error> {
        match self.get(name) {
            Some(Value::Object(values)) => {
                Ok(Self { values: values.clone(), path: format!("{}{name}.", self.path) })
            }
            Some(other) => Err(self.wrong_type(name, other)),
            None => Err(self.missing(name)),
        }
    }

    /// How many results a page may have.
    ///
    /// # Errors
    /// It is no number, or out of bounds.
    pub fn page_size(&self, default: usize, most: usize) -> Result<usize, Error> {
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
    ///
    /// # Errors
    /// It is of another type.
    pub fn page_token(&self) -> Result<Option<&str>, Error> {
        Ok(self.text("page_token")?.filter(|token| !token.is_empty()))
    }

    /// The run that a call is about; old clients call its id `run_uuid`.
    ///
    /// # Errors
    /// It is missing, or no run can have that id.
    pub fn run_id(&self) -> Result<RunId, Error> {
        let text = match self.text("run_id")? {
            Some(id) if !id.is_empty() => id,
            _ => self
                .text("run_uuid")?
                .filter(|id| !id.is_empty())
                .ok_or_else(|| missing("run_id"))?,
        };
        // A text that is no id is no run's id either.
        RunId::new(text).map_err(|_| Error::NoRun(limits::excerpt(text)))
    }
}

/// A point, and of which logged model it was measured.
#[derive(Clone, PartialEq, Debug)]
pub struct Point {
    /// The point.
    pub metric: Metric,
    /// The model, if one is named.
    pub model: Option<LoggedModelId>,
    /// By which data.
    pub on: MeasuredOn,
}

impl Point {
    /// As `fields` have it, not yet checked against [`limits`].
    ///
    /// # Errors
    /// Something is missing or of another type.
    pub fn of(fields: &Fields) -> Result<Self, Error> {
        let model = fields.text("model_id")?.filter(|id| !id.is_empty());
        let metric = Metric {
            key: fields.required_text("key")?.to_owned(),
            value: fields.double("value")?.ok_or_else(|| fields.missing("value"))?,
            timestamp: fields.integer("timestamp")?.ok_or_else(|| fields.missing("timestamp"))?,
            step: fields.integer("step")?.unwrap_or(0),
        };
        let model = model.map(LoggedModelId::new).transpose()?;
        Ok(Self { metric, model, on: measured_on(fields)? })
    }

    /// The point of its model, if one is named.
    pub fn of_model(&self) -> Option<ModelPoint> {
        let Self { metric, model, on } = self;
        let model = model.clone()?;
        Some(ModelPoint { model, metric: metric.clone(), on: on.clone() })
    }

    /// Whether it says nothing but that a run has it.
    pub fn is_plain(&self) -> bool {
        self.model.is_none() && self.on == MeasuredOn::default()
    }
}

/// By which data something was measured; what is empty is not said.
///
/// # Errors
/// It is of another type, or too long.
pub fn measured_on(fields: &Fields) -> Result<MeasuredOn, Error> {
    let text = |name: &str| {
        Ok::<_, Error>(fields.text(name)?.filter(|text| !text.is_empty()).map(str::to_owned))
    };
    let on = MeasuredOn { name: text("dataset_name")?, digest: text("dataset_digest")? };
    limits::measured_on(&on, "")?;
    Ok(on)
}

/// The `key` and `value` of a tag; no value is an empty one.
///
/// # Errors
/// There is no key, or one of them is no text.
pub fn tag_of(fields: &Fields) -> Result<Tag, Error> {
    let key = fields.required_text("key")?.to_owned();
    Ok(Tag { key, value: fields.text("value")?.unwrap_or_default().to_owned() })
}

/// The same of a parameter.
///
/// # Errors
/// There is no key, or one of them is no text.
pub fn param_of(fields: &Fields) -> Result<Param, Error> {
    let Tag { key, value } = tag_of(fields)?;
    Ok(Param { key, value })
}

/// What one call logs to a run, checked against [`limits`].
#[derive(Clone, PartialEq, Debug)]
pub struct Logged {
    /// The run.
    pub run: RunId,
    /// Points.
    pub points: Vec<Point>,
    /// Parameters.
    pub params: Vec<Param>,
    /// Tags.
    pub tags: Vec<Tag>,
}

impl Logged {
    /// What `runs/log-metric` logs.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn metric(fields: &Fields) -> Result<Self, Error> {
        let run = fields.run_id()?;
        let point = Point::of(fields)?;
        limits::metric(&point.metric, "")?;
        Ok(Self { run, points: vec![point], params: Vec::new(), tags: Vec::new() })
    }

    /// What `runs/log-batch` logs.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn batch(fields: &Fields) -> Result<Self, Error> {
        let run = fields.run_id()?;
        let each = |name: &str| fields.objects(name);
        let points: Vec<_> = each("metrics")?.iter().map(Point::of).collect::<Result<_, _>>()?;
        let mut params: Vec<_> = each("params")?.iter().map(param_of).collect::<Result<_, _>>()?;
        let mut tags: Vec<_> = each("tags")?.iter().map(tag_of).collect::<Result<_, _>>()?;
        let metrics: Vec<_> = points.iter().map(|point| point.metric.clone()).collect();
        limits::batch(&metrics, &mut params, &mut tags)?;
        Ok(Self { run, points, params, tags })
    }

    /// Its points, if it is these alone and they say nothing but that the run has them.
    ///
    /// # Errors
    /// The whole, if it is more.
    pub fn plain_points(self) -> Result<(RunId, Vec<Metric>), Self> {
        let is_plain = self.params.is_empty()
            && self.tags.is_empty()
            && self.points.iter().all(Point::is_plain);
        if !is_plain {
            return Err(self);
        }
        Ok((self.run, self.points.into_iter().map(|point| point.metric).collect()))
    }
}
