//! What the names in a search of runs mean.

use super::super::Error;
use super::cursor::{self, Comparison, Cursor, Identifier, Right};
use super::{NumberTest, OrderBy, TextTest, check_orderings};

/// Text that every run has, or may have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TextAttribute {
    /// `run_id`
    RunId,
    /// `run_name`
    RunName,
    /// `status`
    Status,
    /// `user_id`
    UserId,
    /// `artifact_uri`
    ArtifactUri,
}

/// Times that a run has, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NumberAttribute {
    /// `start_time`, `created`
    StartTime,
    /// `end_time`
    EndTime,
}

/// What of a dataset is compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DatasetField {
    /// `dataset.name`
    Name,
    /// `dataset.digest`
    Digest,
    /// `dataset.context`
    Context,
}

/// One comparison of a search of runs.
#[derive(Clone, PartialEq, Debug)]
pub enum RunClause {
    /// The latest point of a metric.
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
    /// A text of the run itself.
    Text {
        /// Which.
        attribute: TextAttribute,
        /// The comparison.
        test: TextTest,
    },
    /// A time of the run itself.
    Number {
        /// Which.
        attribute: NumberAttribute,
        /// The operator.
        test: NumberTest,
        /// A finite number.
        value: f64,
    },
    /// Any dataset that the run read.
    Dataset {
        /// What of it.
        field: DatasetField,
        /// The comparison.
        test: TextTest,
    },
}

/// What runs are ordered by.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum RunKey {
    /// The latest point of a metric.
    Metric(String),
    /// A parameter.
    Param(String),
    /// A tag.
    Tag(String),
    /// A text of the run itself.
    Text(TextAttribute),
    /// A time of the run itself.
    Number(NumberAttribute),
}

enum Subject {
    Key(RunKey),
    Dataset(DatasetField),
}

fn resolve(cursor: &Cursor<'_>, identifier: Identifier) -> Result<Subject, Error> {
    let Identifier { entity, key, at } = identifier;
    let subject = match entity.as_deref() {
        Some("metric" | "metrics") => Subject::Key(RunKey::Metric(key)),
        Some("parameter" | "parameters" | "param" | "params") => Subject::Key(RunKey::Param(key)),
        Some("tag" | "tags") => Subject::Key(RunKey::Tag(key)),
        Some("dataset" | "datasets") => Subject::Dataset(match key.as_str() {
            "name" => DatasetField::Name,
            "digest" => DatasetField::Digest,
            "context" => DatasetField::Context,
            other => {
                let why = format!(
                    "Invalid dataset key '{other}' specified. Valid keys are 'name', 'digest', \
                     'context'"
                );
                return Err(cursor.refuse(at, &why));
            }
        }),
        None | Some("attribute" | "attributes" | "attr" | "run") => {
            Subject::Key(match key.as_str() {
                "run_id" => RunKey::Text(TextAttribute::RunId),
                "run_name" | "run name" | "Run name" | "Run Name" => {
                    RunKey::Text(TextAttribute::RunName)
                }
                "status" => RunKey::Text(TextAttribute::Status),
                "user_id" => RunKey::Text(TextAttribute::UserId),
                "artifact_uri" => RunKey::Text(TextAttribute::ArtifactUri),
                "start_time" | "created" | "Created" => RunKey::Number(NumberAttribute::StartTime),
                "end_time" => RunKey::Number(NumberAttribute::EndTime),
                other => {
                    let why = format!(
                        "Invalid attribute key '{other}' specified. Valid keys are 'run_id', \
                         'run_name', 'status', 'user_id', 'artifact_uri', 'start_time', \
                         'end_time'"
                    );
                    return Err(cursor.refuse(at, &why));
                }
            })
        }
        Some(other) => {
            let why = format!(
                "Invalid entity type '{other}'. Valid values are ['metric', 'parameter', 'tag', \
                 'attribute', 'dataset']"
            );
            return Err(cursor.refuse(at, &why));
        }
    };
    Ok(subject)
}

/// The number right of a number.
pub(super) fn number(
    cursor: &Cursor<'_>,
    what: &str,
    c: &Comparison,
) -> Result<(NumberTest, f64), Error> {
    match &c.right {
        Right::Number { test, text } => {
            let value = text.parse().map_err(|_| cursor.refuse(c.value_at, "Invalid number"))?;
            Ok((*test, value))
        }
        Right::OrderedText(text)
        | Right::Text(TextTest::Equal(text) | TextTest::NotEqual(text)) => {
            let why = format!(
                "Expected numeric value type for {what}. Found '{}'",
                super::super::limits::excerpt(text)
            );
            Err(cursor.refuse(c.value_at, &why))
        }
        Right::Text(_) => {
            let why = format!(
                "Invalid comparator '{}' not one of >, >=, !=, =, <, <=: {what} is a number",
                c.operator
            );
            Err(cursor.refuse(c.operator_at, &why))
        }
    }
}

/// Which comparisons of text a name takes.
pub(super) struct Allowed {
    pub(super) lists: bool,
    pub(super) null: bool,
}

pub(super) fn text(
    cursor: &Cursor<'_>,
    what: &str,
    c: &Comparison,
    allowed: &Allowed,
) -> Result<TextTest, Error> {
    let refuse = |why: String| Err(cursor.refuse(c.operator_at, &why));
    match &c.right {
        Right::Number { test: NumberTest::Equal | NumberTest::NotEqual, text } => {
            let why = format!(
                "Expected a quoted string value for {what} (e.g. 'my-value'). Got value {text}"
            );
            Err(cursor.refuse(c.value_at, &why))
        }
        Right::Number { .. } | Right::OrderedText(_) => {
            refuse(format!("Invalid comparator '{}' not one of =, !=, LIKE, ILIKE", c.operator))
        }
        Right::Text(TextTest::In(_) | TextTest::NotIn(_)) if !allowed.lists => refuse(format!(
            "Invalid comparator '{}' for {what}: only run_id and datasets take lists",
            c.operator
        )),
        Right::Text(TextTest::IsNull | TextTest::IsNotNull) if !allowed.null => refuse(format!(
            "IS NULL / IS NOT NULL is only supported for tags and params, not for {what}"
        )),
        Right::Text(test) => Ok(test.clone()),
    }
}

/// Reads a filter of runs; an empty one lets every run pass.
pub fn run_filter(filter: &str) -> Result<Vec<RunClause>, Error> {
    cursor::filter(filter, |cursor, mut c| {
        let left =
            std::mem::replace(&mut c.left, Identifier { entity: None, key: String::new(), at: 0 });
        let keyed = Allowed { lists: false, null: true };
        Ok(match resolve(cursor, left)? {
            Subject::Key(RunKey::Metric(key)) => {
                let (test, value) = number(cursor, "metric", &c)?;
                RunClause::Metric { key, test, value }
            }
            Subject::Key(RunKey::Number(attribute)) => {
                let (test, value) = number(cursor, "numeric attribute", &c)?;
                RunClause::Number { attribute, test, value }
            }
            Subject::Key(RunKey::Param(key)) => {
                RunClause::Param { key, test: text(cursor, "parameter", &c, &keyed)? }
            }
            Subject::Key(RunKey::Tag(key)) => {
                RunClause::Tag { key, test: text(cursor, "tag", &c, &keyed)? }
            }
            Subject::Key(RunKey::Text(attribute)) => {
                let lists = attribute == TextAttribute::RunId;
                let test = text(cursor, "attributes", &c, &Allowed { lists, null: false })?;
                RunClause::Text { attribute, test }
            }
            Subject::Dataset(field) => {
                let allowed = Allowed { lists: true, null: false };
                RunClause::Dataset { field, test: text(cursor, "dataset", &c, &allowed)? }
            }
        })
    })
}

/// Reads the orderings of a search of runs.
pub fn run_order(texts: &[String]) -> Result<Vec<OrderBy<RunKey>>, Error> {
    let orderings = texts
        .iter()
        .take(super::ORDERINGS + 1)
        .map(|text| {
            cursor::order(text, |cursor, identifier| {
                let at = identifier.at;
                match resolve(cursor, identifier)? {
                    Subject::Key(key) => Ok(key),
                    Subject::Dataset(_) => {
                        Err(cursor.refuse(at, "Runs cannot be ordered by a dataset"))
                    }
                }
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    check_orderings(&orderings, texts)?;
    Ok(orderings)
}
