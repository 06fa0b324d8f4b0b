//! What the names in a search of logged models mean.

use super::super::{Error, MeasuredOn, limits};
use super::cursor::{self, Cursor, Identifier};
use super::runs::{Allowed, number, text};
use super::{NumberTest, OrderBy, TextTest};

/// Text that a logged model has, or may have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ModelText {
    /// `model_id`
    Id,
    /// `name`
    Name,
    /// `model_type`
    Type,
    /// `source_run_id`
    SourceRun,
    /// `status`: `PENDING`, `READY` or `FAILED`
    Status,
    /// `experiment_id`
    Experiment,
    /// `artifact_location`
    ArtifactLocation,
}

/// Times that a logged model has, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ModelNumber {
    /// `creation_timestamp`
    Created,
    /// `last_updated_timestamp`
    Updated,
}

/// One comparison of a search of logged models.
#[derive(Clone, PartialEq, Debug)]
pub enum ModelClause {
    /// Any point of a metric.
    Metric {
        /// The metric.
        key: String,
        /// The operator.
        test: NumberTest,
        /// A finite number.
        value: f64,
    },
    /// A parameter.
    Param {
        /// Its key.
        key: String,
        /// The comparison.
        test: TextTest,
    },
    /// A tag.
    Tag {
        /// Its key.
        key: String,
        /// The comparison.
        test: TextTest,
    },
    /// A text of the model itself.
    Text {
        /// Which.
        attribute: ModelText,
        /// The comparison.
        test: TextTest,
    },
    /// A time of the model itself.
    Number {
        /// Which.
        attribute: ModelNumber,
        /// The operator.
        test: NumberTest,
        /// A finite number.
        value: f64,
    },
}

/// What logged models are ordered by.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ModelKey {
    /// The latest point of a metric, of those measured on some data.
    Metric {
        /// The metric.
        key: String,
        /// The data; what is not named may be any.
        on: MeasuredOn,
    },
    /// A text of the model itself.
    Text(ModelText),
    /// A time of the model itself.
    Number(ModelNumber),
}

enum Subject {
    Metric(String),
    Param(String),
    Tag(String),
    Text(ModelText),
    Number(ModelNumber),
}

const ATTRIBUTES: &str = "'model_id', 'name', 'model_type', 'source_run_id', 'status', 'experiment_id', \
                          'artifact_location', 'creation_timestamp', 'last_updated_timestamp'";

fn attribute(name: &str) -> Option<Subject> {
    Some(match name {
        "model_id" => Subject::Text(ModelText::Id),
        "name" => Subject::Text(ModelText::Name),
        "model_type" => Subject::Text(ModelText::Type),
        "source_run_id" => Subject::Text(ModelText::SourceRun),
        "status" => Subject::Text(ModelText::Status),
        "experiment_id" => Subject::Text(ModelText::Experiment),
        "artifact_location" => Subject::Text(ModelText::ArtifactLocation),
        "creation_timestamp" | "creation_time" | "creation_timestamp_ms" => {
            Subject::Number(ModelNumber::Created)
        }
        "last_updated_timestamp" | "last_updated_timestamp_ms" => {
            Subject::Number(ModelNumber::Updated)
        }
        _ => return None,
    })
}

fn resolve(cursor: &Cursor<'_>, identifier: Identifier) -> Result<Subject, Error> {
    let Identifier { entity, key, at } = identifier;
    match entity.as_deref() {
        Some("metric" | "metrics") => Ok(Subject::Metric(key)),
        Some("param" | "params") => Ok(Subject::Param(key)),
        Some("tag" | "tags") => Ok(Subject::Tag(key)),
        None | Some("attribute" | "attributes") => attribute(&key).ok_or_else(|| {
            let key = limits::excerpt(&key);
            let why =
                format!("Invalid attribute key '{key}' specified. Valid keys are {ATTRIBUTES}");
            cursor.refuse(at, &why)
        }),
        Some(other) => {
            let why = format!(
                "Invalid entity type: '{}'. Expected one of ['attributes', 'metrics', 'params', 'tags'].",
                limits::excerpt(other)
            );
            Err(cursor.refuse(at, &why))
        }
    }
}

/// Reads a filter of logged models; an empty one lets every model pass.
pub fn model_filter(filter: &str) -> Result<Vec<ModelClause>, Error> {
    cursor::filter(filter, |cursor, mut c| {
        let left =
            std::mem::replace(&mut c.left, Identifier { entity: None, key: String::new(), at: 0 });
        let allowed = Allowed { lists: true, null: false };
        Ok(match resolve(cursor, left)? {
            Subject::Metric(key) => {
                let (test, value) = number(cursor, "metric", &c)?;
                ModelClause::Metric { key, test, value }
            }
            Subject::Number(attribute) => {
                let (test, value) = number(cursor, "numeric attribute", &c)?;
                ModelClause::Number { attribute, test, value }
            }
            Subject::Param(key) => {
                ModelClause::Param { key, test: text(cursor, "params", &c, &allowed)? }
            }
            Subject::Tag(key) => {
                ModelClause::Tag { key, test: text(cursor, "tags", &c, &allowed)? }
            }
            Subject::Text(attribute) => {
                ModelClause::Text { attribute, test: text(cursor, "attributes", &c, &allowed)? }
            }
        })
    })
}

/// Reads one ordering of a search of logged models; `on` is of metrics alone.
pub fn model_order(
    field: &str,
    ascending: bool,
    on: MeasuredOn,
) -> Result<OrderBy<ModelKey>, Error> {
    let shown = limits::excerpt(field);
    let key = match field.split_once('.') {
        None => match attribute(field) {
            Some(Subject::Text(text)) => ModelKey::Text(text),
            Some(Subject::Number(number)) => ModelKey::Number(number),
            _ => {
                return Err(Error::Invalid(format!(
                    "Invalid order by field name: {shown}. Valid names are {ATTRIBUTES}, and metrics as \
                     metrics.NAME"
                )));
            }
        },
        Some(("metrics", key)) if !key.is_empty() => {
            if on.digest.is_some() && on.name.is_none() {
                return Err(Error::Invalid(format!(
                    "`dataset_name` in the `order_by` clause of {shown} must be specified, since \
                     `dataset_digest` is."
                )));
            }
            ModelKey::Metric { key: key.to_owned(), on }
        }
        Some(_) => {
            return Err(Error::Invalid(format!(
                "Invalid order by field name: {shown}. Only metrics are supported."
            )));
        }
    };
    Ok(OrderBy { key, ascending })
}
