//! What the names in a search of experiments mean.

use super::super::{Error, ExperimentId};
use super::cursor::{self, Cursor, Identifier, Right};
use super::{NumberTest, OrderBy, TextTest, check_orderings};

/// What experiments are ordered by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ExperimentKey {
    /// `name`
    Name,
    /// `experiment_id`
    Id,
    /// `creation_time`, in milliseconds since the Unix epoch
    Created,
    /// `last_update_time`, in milliseconds since the Unix epoch
    Updated,
}

/// One comparison of a search of experiments.
#[derive(Clone, PartialEq, Debug)]
pub enum ExperimentClause {
    /// The name.
    Name(TextTest),
    /// The id is, or is not, one of these.
    Id {
        /// Whether it must be one of them.
        within: bool,
        /// The ids.
        ids: Vec<ExperimentId>,
    },
    /// A time.
    Time {
        /// [`ExperimentKey::Created`] or [`ExperimentKey::Updated`].
        key: ExperimentKey,
        /// The operator.
        test: NumberTest,
        /// Milliseconds.
        value: i64,
    },
    /// A tag.
    Tag {
        /// Its key.
        key: String,
        /// The comparison.
        test: TextTest,
    },
}

enum Subject {
    Key(ExperimentKey),
    Tag(String),
}

fn resolve(cursor: &Cursor<'_>, identifier: Identifier) -> Result<Subject, Error> {
    let Identifier { entity, key, at } = identifier;
    Ok(match entity.as_deref() {
        Some("tag" | "tags") => Subject::Tag(key),
        None | Some("attribute" | "attributes") => Subject::Key(match key.as_str() {
            "name" => ExperimentKey::Name,
            "experiment_id" => ExperimentKey::Id,
            "creation_time" => ExperimentKey::Created,
            "last_update_time" => ExperimentKey::Updated,
            other => {
                let why = format!(
                    "Invalid attribute key '{other}' specified. Valid keys are 'name', \
                     'experiment_id', 'creation_time', 'last_update_time'"
                );
                return Err(cursor.refuse(at, &why));
            }
        }),
        Some(other) => {
            let why = format!(
                "Invalid entity type '{other}'. Valid entity types are ('attribute', 'tag', \
                 'tags')"
            );
            return Err(cursor.refuse(at, &why));
        }
    })
}

/// Reads a filter of experiments; an empty one lets every experiment pass.
pub fn experiment_filter(filter: &str) -> Result<Vec<ExperimentClause>, Error> {
    cursor::filter(filter, |cursor, c| {
        let operator = c.operator;
        let invalid = |what: &str| {
            cursor.refuse(c.operator_at, &format!("Invalid comparator for {what}: {operator}"))
        };
        Ok(match (resolve(cursor, c.left)?, c.right) {
            (Subject::Tag(_), Right::Text(TextTest::In(_) | TextTest::NotIn(_))) => {
                return Err(invalid("tag"));
            }
            (Subject::Tag(key), Right::Text(test)) => ExperimentClause::Tag { key, test },
            (Subject::Key(ExperimentKey::Name), Right::Text(test)) => match test {
                TextTest::Equal(_)
                | TextTest::NotEqual(_)
                | TextTest::Like(_)
                | TextTest::ILike(_) => ExperimentClause::Name(test),
                _ => return Err(invalid("string attribute")),
            },
            (Subject::Key(ExperimentKey::Id), Right::Text(test)) => {
                let (within, texts) = match test {
                    TextTest::Equal(text) => (true, vec![text]),
                    TextTest::NotEqual(text) => (false, vec![text]),
                    TextTest::In(texts) => (true, texts),
                    TextTest::NotIn(texts) => (false, texts),
                    _ => return Err(invalid("experiment_id")),
                };
                let ids =
                    texts.iter().map(|id| ExperimentId::parse(id)).collect::<Result<_, _>>()?;
                ExperimentClause::Id { within, ids }
            }
            (
                Subject::Key(key @ (ExperimentKey::Created | ExperimentKey::Updated)),
                Right::Number { test, text },
            ) => {
                let value = text.parse().map_err(|_| {
                    cursor.refuse(c.value_at, "Invalid value for numeric attribute: not an integer")
                })?;
                ExperimentClause::Time { key, test, value }
            }
            (Subject::Tag(_), Right::OrderedText(_)) => return Err(invalid("tag")),
            (Subject::Key(ExperimentKey::Name), Right::OrderedText(_)) => {
                return Err(invalid("string attribute"));
            }
            (Subject::Key(ExperimentKey::Id), Right::OrderedText(_)) => {
                return Err(invalid("experiment_id"));
            }
            (Subject::Key(_), Right::Text(_) | Right::OrderedText(_)) => {
                return Err(invalid("numeric attribute"));
            }
            (_, Right::Number { .. }) => {
                return Err(cursor.refuse(
                    c.value_at,
                    "Expected a quoted string value (e.g. 'my-value'), got a number",
                ));
            }
        })
    })
}

/// Reads the orderings of a search of experiments.
pub fn experiment_order(texts: &[String]) -> Result<Vec<OrderBy<ExperimentKey>>, Error> {
    let orderings = texts
        .iter()
        .take(super::ORDERINGS + 1)
        .map(|text| {
            cursor::order(text, |cursor, identifier| {
                let at = identifier.at;
                match resolve(cursor, identifier)? {
                    Subject::Key(key) => Ok(key),
                    Subject::Tag(_) => Err(cursor.refuse(at, "Invalid order_by entity: tag")),
                }
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    check_orderings(&orderings, texts)?;
    Ok(orderings)
}
