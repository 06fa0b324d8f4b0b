//! MLflow's limits, and the checks that enforce them with MLflow's words.
//!
//! Lengths count characters (Unicode scalar values), as MLflow's do. Too long a parameter or tag
//! value is cut, as MLflow's server does by default; everything else too long is refused.

use super::{Error, Metric, Param, Tag};

/// Points in one batch.
pub const METRICS_PER_BATCH: usize = 1000;
/// Parameters, and also tags, in one batch.
pub const PARAMS_OR_TAGS_PER_BATCH: usize = 100;
/// Points, parameters and tags together in one batch.
pub const ENTITIES_PER_BATCH: usize = 1000;
/// Datasets in one request.
pub const DATASETS_PER_BATCH: usize = 1000;
/// Characters of a metric's, parameter's or tag's key.
pub const KEY_CHARS: usize = 250;
/// Characters of a parameter's value.
pub const PARAM_CHARS: usize = 6000;
/// Characters of a run's tag's value.
pub const TAG_CHARS: usize = 8000;
/// Characters of an experiment's tag's value.
pub const EXPERIMENT_TAG_CHARS: usize = 20_000;
/// Characters of an experiment's name.
pub const EXPERIMENT_NAME_CHARS: usize = 500;
/// Runs or experiments on one page of a search.
pub const SEARCH_PAGE: usize = 50_000;
/// Runs or experiments on a page when the client does not say.
pub const SEARCH_PAGE_DEFAULT: usize = 1000;
/// Characters of a logged model's name and type.
pub const MODEL_NAME_CHARS: usize = 500;
/// Characters of a logged model's parameter or tag.
pub const MODEL_VALUE_CHARS: usize = 65_535;
/// Characters of the list of models that a run's tag holds for clients of MLflow 2.
pub const MODEL_HISTORY_CHARS: usize = 1_000_000;
/// Logged models on a page when the client does not say.
pub const MODEL_PAGE_DEFAULT: usize = 100;
/// Logged models in one request that says what a run read or made.
pub const MODELS_PER_BATCH: usize = 1000;
/// Characters of a dataset's name, digest, source, schema and profile.
pub const DATASET_CHARS: [(&str, usize); 5] = [
    ("name", 500),
    ("digest", 36),
    ("source", 65_535),
    ("schema", 1_048_575),
    ("profile", 16_777_215),
];

const CHARACTERS: &str = "Names may only contain alphanumerics, underscores (_), dashes (-), \
                          periods (.), spaces ( ), colon(:) and slashes (/).";

/// At most the first 100 characters of a text that is repeated in an error.
pub fn excerpt(text: &str) -> String {
    let mut short: String = text.chars().take(100).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}

/// MLflow's refusal of a parameter's value.
pub fn invalid_value(path: &str, value: &str, why: Option<&str>) -> Error {
    let quoted = serde_json::Value::String(excerpt(value));
    Error::Invalid(match why {
        Some(why) => format!("Invalid value {quoted} for parameter '{path}' supplied: {why}"),
        None => format!("Invalid value {quoted} for parameter '{path}' supplied."),
    })
}

fn too_long(name: &str, limit: usize) -> Error {
    Error::Invalid(format!("'{name}' exceeds the maximum length of {limit} characters"))
}

pub(super) fn at_most(name: &str, limit: usize, value: &str) -> Result<(), Error> {
    // A text of `n` bytes has at most `n` characters.
    if value.len() <= limit || value.chars().count() <= limit {
        Ok(())
    } else {
        Err(too_long(name, limit))
    }
}

fn cut(limit: usize, value: &mut String) {
    if value.len() > limit
        && let Some((end, _)) = value.char_indices().nth(limit)
    {
        value.truncate(end);
    }
}

/// The path with `.`, `..` and doubled slashes resolved, as POSIX tools would.
fn normal(name: &str) -> String {
    let absolute = name.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                None if absolute => {}
                _ => parts.push(".."),
            },
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (absolute, joined.is_empty()) {
        // POSIX keeps exactly two leading slashes.
        (true, _) if name.starts_with("//") && !name.starts_with("///") => format!("//{joined}"),
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Checks a metric's, parameter's or tag's key; `path` names the field in the error.
pub fn key(name: &str, path: &str) -> Result<(), Error> {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '_' | '/' | '.' | '-' | ' ' | ':');
    if !name.chars().all(allowed) {
        return Err(invalid_value(path, name, Some(CHARACTERS)));
    }
    let resolved = normal(name);
    if resolved != name || name == "." || name.starts_with("..") || name.starts_with('/') {
        let why = format!(
            "Names may be treated as files in certain cases, and must not resolve to other names \
             when treated as such. This name would resolve to '{}'",
            excerpt(&resolved)
        );
        return Err(invalid_value(path, name, Some(&why)));
    }
    Ok(())
}

/// `field`, or `path.field` if there is a path.
fn below(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// Checks a point; `path` is for example `metrics[3]`, or empty.
pub fn metric(metric: &Metric, path: &str) -> Result<(), Error> {
    key(&metric.key, &below(path, "name"))?;
    if metric.timestamp < 0 {
        return Err(Error::Invalid(format!(
            "Invalid value {} for parameter '{}' supplied: metric '{}' (value={}). Timestamp must \
             be a nonnegative long (64-bit integer) ",
            metric.timestamp,
            below(path, "timestamp"),
            excerpt(&metric.key),
            metric.value,
        )));
    }
    at_most("Metric name", KEY_CHARS, &metric.key)
}

/// Checks a parameter and cuts its value.
pub fn param(param: &mut Param, path: &str) -> Result<(), Error> {
    key(&param.key, &below(path, "key"))?;
    at_most("Param key", KEY_CHARS, &param.key)?;
    cut(PARAM_CHARS, &mut param.value);
    Ok(())
}

/// Checks a run's tag and cuts its value.
pub fn tag(tag: &mut Tag, path: &str) -> Result<(), Error> {
    key(&tag.key, &below(path, "key"))?;
    at_most(&below(path, "key"), KEY_CHARS, &tag.key)?;
    cut(TAG_CHARS, &mut tag.value);
    Ok(())
}

/// Checks an experiment's tag.
pub fn experiment_tag(tag: &Tag) -> Result<(), Error> {
    key(&tag.key, "key")?;
    at_most("key", KEY_CHARS, &tag.key)?;
    at_most("value", EXPERIMENT_TAG_CHARS, &tag.value)
}

/// Checks an experiment's name.
pub fn experiment_name(name: &str) -> Result<crate::id::ExperimentName, Error> {
    at_most("name", EXPERIMENT_NAME_CHARS, name)?;
    crate::id::ExperimentName::new(name).map_err(|invalid| {
        Error::Invalid(format!("Invalid experiment name: '{}': {}", excerpt(name), invalid.rule))
    })
}

/// Checks a logged model's name.
pub fn model_name(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.contains(['/', ':', '.', '%', '"', '\'']) {
        return Err(Error::Invalid(format!(
            "Invalid model name ('{}') provided. Model name must be a non-empty string and cannot contain the \
             following characters: ('/', ':', '.', '%', '\"', \"'\")",
            excerpt(name)
        )));
    }
    at_most("name", MODEL_NAME_CHARS, name)
}

/// Checks what the client calls a logged model's kind.
pub fn model_type(kind: &str) -> Result<(), Error> {
    at_most("model_type", MODEL_NAME_CHARS, kind)
}

/// Checks a parameter or tag of a logged model; `path` is for example `params[3]`.
pub fn model_pair(key: &str, value: &str, path: &str) -> Result<(), Error> {
    at_most(&below(path, "key"), KEY_CHARS, key)?;
    at_most(&below(path, "value"), MODEL_VALUE_CHARS, value)
}

/// Checks by which data a point was measured.
pub fn measured_on(on: &super::MeasuredOn, path: &str) -> Result<(), Error> {
    for ((field, limit), value) in DATASET_CHARS.iter().zip([&on.name, &on.digest]) {
        at_most(&below(path, &format!("dataset_{field}")), *limit, value.as_deref().unwrap_or(""))?;
    }
    Ok(())
}

/// Checks how many logged models one request names.
pub fn models(length: usize) -> Result<(), Error> {
    batch_of("models", MODELS_PER_BATCH, length)
}

fn batch_of(what: &str, limit: usize, length: usize) -> Result<(), Error> {
    if length <= limit {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "A batch logging request can contain at most {limit} {what}. Got {length} {what}. Please \
         split up {what} across multiple requests and try again."
    )))
}

/// Checks a whole batch: each thing in it, how many there are, and that no parameter is given
/// twice. Cuts what is to be cut.
pub fn batch(metrics: &[Metric], params: &mut [Param], tags: &mut [Tag]) -> Result<(), Error> {
    // Counted first: a batch of a million bad points is refused for its size, not read through.
    batch_of("metrics", METRICS_PER_BATCH, metrics.len())?;
    batch_of("params", PARAMS_OR_TAGS_PER_BATCH, params.len())?;
    batch_of("tags", PARAMS_OR_TAGS_PER_BATCH, tags.len())?;
    let total = metrics.len() + params.len() + tags.len();
    batch_of("metrics, params, and tags", ENTITIES_PER_BATCH, total)?;
    for (i, point) in metrics.iter().enumerate() {
        metric(point, &format!("metrics[{i}]"))?;
    }
    for (i, one) in params.iter_mut().enumerate() {
        param(one, &format!("params[{i}]"))?;
    }
    for (i, one) in tags.iter_mut().enumerate() {
        tag(one, &format!("tags[{i}]"))?;
    }
    let mut seen = std::collections::HashSet::new();
    let twice: Vec<&str> =
        params.iter().map(|p| p.key.as_str()).filter(|key| !seen.insert(*key)).collect();
    if twice.is_empty() {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "Duplicate parameter keys have been submitted: {twice:?}. Please ensure the request \
         contains only one param value per param key."
    )))
}

/// Checks the datasets of one request.
pub fn datasets(inputs: &[super::DatasetInput]) -> Result<(), Error> {
    batch_of("datasets", DATASETS_PER_BATCH, inputs.len())?;
    for (i, input) in inputs.iter().enumerate() {
        let dataset = &input.dataset;
        let values = [
            Some(&dataset.name),
            Some(&dataset.digest),
            Some(&dataset.source),
            dataset.schema.as_ref(),
            dataset.profile.as_ref(),
        ];
        for ((field, limit), value) in DATASET_CHARS.iter().zip(values) {
            at_most(&format!("datasets[{i}].dataset.{field}"), *limit, value.map_or("", |v| v))?;
        }
        for (j, tag) in input.tags.iter().enumerate() {
            at_most(&format!("datasets[{i}].tags[{j}].key"), 255, &tag.key)?;
            at_most(&format!("datasets[{i}].tags[{j}].value"), 500, &tag.value)?;
        }
    }
    Ok(())
}
