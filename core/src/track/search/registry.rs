//! What the names in a search of registered models, and of their versions, mean.

use super::super::Error;
use super::super::registry::PROMPT_TAG;
use super::cursor::{self, Comparison, Cursor, Identifier, Right};
use super::{NumberTest, OrderBy, TextTest, check_orderings};

/// What registered models are ordered by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RegisteredKey {
    /// `name`
    Name,
    /// `creation_timestamp`
    Created,
    /// `last_updated_timestamp`, `timestamp`
    Updated,
}

/// One comparison of a search of registered models.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RegisteredClause {
    /// The name.
    Name(TextTest),
    /// A tag.
    Tag {
        /// Its key.
        key: String,
        /// The comparison.
        test: TextTest,
    },
    /// It is a prompt, of which there are none.
    Prompts,
}

/// What versions are ordered by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum VersionKey {
    /// `name`
    Name,
    /// `version_number`
    Number,
    /// `creation_timestamp`
    Created,
    /// `last_updated_timestamp`
    Updated,
}

/// One comparison of a search of versions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VersionClause {
    /// The model's name.
    Name(TextTest),
    /// The run it was made by.
    Run(TextTest),
    /// `source_path`: what it was made of.
    Source(TextTest),
    /// Its number.
    Number {
        /// The operator.
        test: NumberTest,
        /// With what.
        value: i64,
    },
    /// A tag.
    Tag {
        /// Its key.
        key: String,
        /// The comparison.
        test: TextTest,
    },
    /// It is a prompt's, of which there are none.
    Prompts,
}

enum Named {
    Attribute(String),
    Tag(String),
}

fn named(cursor: &Cursor<'_>, identifier: Identifier) -> Result<Named, Error> {
    let Identifier { entity, key, at } = identifier;
    match entity.as_deref() {
        Some("tag" | "tags") => Ok(Named::Tag(key)),
        None | Some("attribute") => Ok(Named::Attribute(key)),
        Some(other) => {
            let why = format!(
                "Invalid entity type '{other}'. Valid entity types are ('attribute', 'tag', 'tags')"
            );
            Err(cursor.refuse(at, &why))
        }
    }
}

fn unknown(cursor: &Cursor<'_>, at: usize, key: &str, valid: &str) -> Error {
    let why = format!("Invalid attribute key '{key}' specified. Valid keys are {valid}");
    cursor.refuse(at, &why)
}

/// A comparison with a text; a list only where lists are taken.
fn text(cursor: &Cursor<'_>, what: &str, lists: bool, c: &Comparison) -> Result<TextTest, Error> {
    match &c.right {
        Right::Text(TextTest::In(_) | TextTest::NotIn(_)) if !lists => {}
        Right::Text(TextTest::IsNull | TextTest::IsNotNull) | Right::OrderedText(_) => {}
        Right::Text(test) => return Ok(test.clone()),
        Right::Number { text, .. } => {
            let why = format!(
                "Expected a quoted string value for {what} (e.g. 'my-value'). Got value {text}"
            );
            return Err(cursor.refuse(c.value_at, &why));
        }
    }
    let why = format!("Invalid comparator for {what}: {}", c.operator);
    Err(cursor.refuse(c.operator_at, &why))
}

fn take(c: &mut Comparison) -> Identifier {
    std::mem::replace(&mut c.left, Identifier { entity: None, key: String::new(), at: 0 })
}

/// Whether a comparison of the tag that prompts have asks for prompts; every other says what is so anyway.
fn asks_for_prompts(test: &TextTest) -> bool {
    match test {
        TextTest::Equal(text) => text.eq_ignore_ascii_case("true"),
        TextTest::NotEqual(text) => text.eq_ignore_ascii_case("false"),
        _ => false,
    }
}

/// Reads a filter of registered models; an empty one lets every model pass.
///
/// # Errors
/// Says what is wrong and where.
pub fn registered_filter(filter: &str) -> Result<Vec<RegisteredClause>, Error> {
    let clauses = cursor::filter(filter, |cursor, mut c| {
        let left = take(&mut c);
        let at = left.at;
        Ok(match named(cursor, left)? {
            Named::Tag(key) => {
                let test = text(cursor, "tag", false, &c)?;
                match key == PROMPT_TAG {
                    true => asks_for_prompts(&test).then_some(RegisteredClause::Prompts),
                    false => Some(RegisteredClause::Tag { key, test }),
                }
            }
            Named::Attribute(key) if key == "name" => {
                Some(RegisteredClause::Name(text(cursor, "attribute", true, &c)?))
            }
            Named::Attribute(key) => return Err(unknown(cursor, at, &key, "'name'")),
        })
    })?;
    Ok(clauses.into_iter().flatten().collect())
}

/// Reads the orderings of a search of registered models.
///
/// # Errors
/// Says what is wrong and where.
pub fn registered_order(texts: &[String]) -> Result<Vec<OrderBy<RegisteredKey>>, Error> {
    order(texts, |cursor, at, key| match key {
        "name" => Ok(RegisteredKey::Name),
        "creation_timestamp" => Ok(RegisteredKey::Created),
        "timestamp" | "last_updated_timestamp" => Ok(RegisteredKey::Updated),
        other => {
            let why = format!(
                "Invalid order by key '{other}' specified. Valid keys are 'name', 'timestamp', \
                 'creation_timestamp', 'last_updated_timestamp'"
            );
            Err(cursor.refuse(at, &why))
        }
    })
}

fn order<K: PartialEq>(
    texts: &[String],
    resolve: impl Fn(&Cursor<'_>, usize, &str) -> Result<K, Error>,
) -> Result<Vec<OrderBy<K>>, Error> {
    let orderings = texts
        .iter()
        .take(super::ORDERINGS + 1)
        .map(|text| {
            cursor::order(text, |cursor, identifier| {
                let at = identifier.at;
                match named(cursor, identifier)? {
                    Named::Attribute(key) => resolve(cursor, at, &key),
                    Named::Tag(_) => Err(cursor.refuse(at, "Invalid order_by entity: tag")),
                }
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    check_orderings(&orderings, texts)?;
    Ok(orderings)
}

/// Reads a filter of versions; an empty one lets every version pass.
///
/// # Errors
/// Says what is wrong and where.
pub fn version_filter(filter: &str) -> Result<Vec<VersionClause>, Error> {
    let clauses = cursor::filter(filter, |cursor, mut c| {
        let left = take(&mut c);
        let at = left.at;
        let key = match named(cursor, left)? {
            Named::Tag(key) => {
                let test = text(cursor, "tag", false, &c)?;
                return Ok(match key == PROMPT_TAG {
                    true => asks_for_prompts(&test).then_some(VersionClause::Prompts),
                    false => Some(VersionClause::Tag { key, test }),
                });
            }
            Named::Attribute(key) => key,
        };
        Ok(Some(match key.as_str() {
            "name" => VersionClause::Name(text(cursor, "attribute", true, &c)?),
            "run_id" => VersionClause::Run(text(cursor, "attribute", true, &c)?),
            "source_path" => VersionClause::Source(text(cursor, "attribute", false, &c)?),
            "version_number" => number(cursor, &c)?,
            other => {
                let valid = "'name', 'version_number', 'run_id', 'source_path'";
                return Err(unknown(cursor, at, other, valid));
            }
        }))
    })?;
    Ok(clauses.into_iter().flatten().collect())
}

fn number(cursor: &Cursor<'_>, c: &Comparison) -> Result<VersionClause, Error> {
    let (test, text) = match &c.right {
        Right::Number { test, text } => (*test, text),
        // MLflow reads the number in quotes, too.
        Right::Text(TextTest::Equal(text)) => (NumberTest::Equal, text),
        Right::Text(TextTest::NotEqual(text)) => (NumberTest::NotEqual, text),
        Right::Text(_) | Right::OrderedText(_) => {
            let why = format!("Invalid comparator for attribute version_number: {}", c.operator);
            return Err(cursor.refuse(c.operator_at, &why));
        }
    };
    let value = text.parse().map_err(|_| {
        cursor.refuse(
            c.value_at,
            "Invalid value for numeric attribute 'version_number': not an integer",
        )
    })?;
    Ok(VersionClause::Number { test, value })
}

/// Reads the orderings of a search of versions.
///
/// # Errors
/// Says what is wrong and where.
pub fn version_order(texts: &[String]) -> Result<Vec<OrderBy<VersionKey>>, Error> {
    order(texts, |cursor, at, key| match key {
        "name" => Ok(VersionKey::Name),
        "version_number" => Ok(VersionKey::Number),
        "creation_timestamp" => Ok(VersionKey::Created),
        "last_updated_timestamp" => Ok(VersionKey::Updated),
        other => {
            let why = format!(
                "Invalid order by key '{other}' specified. Valid keys are 'name', 'version_number', \
                 'creation_timestamp', 'last_updated_timestamp'"
            );
            Err(cursor.refuse(at, &why))
        }
    })
}
