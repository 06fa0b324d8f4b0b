//! Searching: `EXISTS` for each comparison, pages by key, values only ever bound. And searches of experiments.

use std::fmt::Write as _;

use atelier_core::track::search::{ExperimentClause, ExperimentKey, OrderBy, TextTest};
use atelier_core::track::{Cell, Error as Refusal, Experiment, ExperimentId, PageToken, ViewType};
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, Row, params_from_iter};

use super::super::Error;
use super::read;

pub(super) fn sql(source: rusqlite::Error) -> Error {
    Error::sqlite("search the tracking tables", source)
}

/// A search of experiments.
#[derive(Clone, Debug)]
pub struct ExperimentQuery {
    /// All of these hold.
    pub filter: Vec<ExperimentClause>,
    /// Only this one.
    pub only: Option<ExperimentId>,
    /// In this order; without any, the latest made first.
    pub order: Vec<OrderBy<ExperimentKey>>,
    /// Active, deleted or both.
    pub view: ViewType,
    /// At most so many.
    pub limit: usize,
    /// What follows this.
    pub after: Option<PageToken>,
    /// [`atelier_core::track::fingerprint`] of the search.
    pub fingerprint: u64,
}

/// A page of a search.
#[derive(Clone, PartialEq, Debug)]
pub struct Page<T> {
    /// What was found.
    pub items: Vec<T>,
    /// Where the next page begins, if there is one.
    pub next: Option<PageToken>,
}

/// Runs on a page are at most so large together: a page ends early rather than fill the memory.
pub(super) const PAGE_BYTES: usize = 16 * 1024 * 1024;

/// A statement being written, and its values.
#[derive(Default)]
pub(in crate::store) struct Query {
    pub(in crate::store) joins: String,
    pub(in crate::store) conditions: Vec<String>,
    pub(in crate::store) values: Vec<Value>,
    /// Ordering columns: expression, and whether the smallest comes first.
    pub(in crate::store) columns: Vec<(String, bool)>,
}

impl Query {
    pub(in crate::store) fn bind(&mut self, value: impl Into<Value>) -> String {
        self.values.push(value.into());
        format!("?{}", self.values.len())
    }

    pub(super) fn bind_list<T: serde::Serialize>(&mut self, list: &[T]) -> Result<String, Error> {
        let json = serde_json::to_string(list)
            .map_err(|source| Error::Damaged { what: "a search's list".to_owned(), source })?;
        let mark = self.bind(json);
        Ok(format!("(SELECT value FROM json_each({mark}))"))
    }

    /// A condition on a text that exists; `IS [NOT] NULL` is the caller's.
    pub(in crate::store) fn text(
        &mut self,
        expression: &str,
        test: &TextTest,
    ) -> Result<String, Error> {
        Ok(match test {
            TextTest::Equal(text) => format!("{expression} = {}", self.bind(text.clone())),
            TextTest::NotEqual(text) => format!("{expression} <> {}", self.bind(text.clone())),
            // SQLite's LIKE does not tell case apart; its GLOB does.
            TextTest::Like(pattern) => format!("{expression} GLOB {}", self.bind(glob(pattern))),
            TextTest::ILike(pattern) => {
                format!("{expression} LIKE {}", self.bind(collapsed(pattern)))
            }
            TextTest::In(texts) => format!("{expression} IN {}", self.bind_list(texts)?),
            TextTest::NotIn(texts) => format!("{expression} NOT IN {}", self.bind_list(texts)?),
            TextTest::IsNull => format!("{expression} IS NULL"),
            TextTest::IsNotNull => format!("{expression} IS NOT NULL"),
        })
    }

    /// A condition on a row of `table` with this key.
    pub(in crate::store) fn keyed(
        &mut self,
        table: &str,
        owner: &str,
        key: &str,
        test: &TextTest,
    ) -> Result<String, Error> {
        let key = self.bind(key.to_owned());
        let exists = format!("EXISTS (SELECT 1 FROM {table} t WHERE {owner} AND t.key = {key}");
        Ok(match test {
            TextTest::IsNull => format!("NOT {exists})"),
            TextTest::IsNotNull => format!("{exists})"),
            test => format!("{exists} AND {})", self.text("t.value", test)?),
        })
    }

    /// Adds the condition that a row comes after `token` in the order of the columns.
    pub(in crate::store) fn after(&mut self, token: &PageToken) -> Result<(), Error> {
        if token.after.len() != self.columns.len() {
            return Err(not_given_out());
        }
        self.after_columns(0, token);
        Ok(())
    }

    /// The same without the first columns, which are equal.
    pub(super) fn after_columns(&mut self, equal: usize, token: &PageToken) {
        let mut condition = String::new();
        let columns = self.columns.clone();
        for ((expression, ascending), cell) in columns.iter().zip(&token.after).skip(equal).rev() {
            let mark = self.bind(match cell.clone() {
                Cell::Null => Value::Null,
                Cell::Int(n) => Value::Integer(n),
                Cell::Real(x) => Value::Real(x),
                Cell::Text(text) => Value::Text(text),
            });
            let beyond = if *ascending { '>' } else { '<' };
            condition = if condition.is_empty() {
                format!("{expression} {beyond} {mark}")
            } else {
                format!(
                    "({expression} {beyond} {mark} OR ({expression} IS {mark} AND {condition}))"
                )
            };
        }
        self.conditions.push(condition);
    }

    pub(in crate::store) fn finish(&mut self, select: &str, from: &str, limit: usize) -> String {
        let mut text = self.select(select, from);
        let order: Vec<String> = self
            .columns
            .iter()
            .map(|(expression, up)| format!("{expression} {}", if *up { "ASC" } else { "DESC" }))
            .collect();
        let limit = self.bind(i64::try_from(limit).unwrap_or(i64::MAX));
        let _ = write!(text, " ORDER BY {} LIMIT {limit}", order.join(", "));
        text
    }

    /// The statement without order and limit.
    pub(super) fn select(&self, select: &str, from: &str) -> String {
        let mut text = format!("SELECT {select}");
        for (expression, _) in &self.columns {
            let _ = write!(text, ", {expression}");
        }
        let _ = write!(text, " FROM {from}{}", self.joins);
        if !self.conditions.is_empty() {
            let _ = write!(text, " WHERE {}", self.conditions.join(" AND "));
        }
        text
    }
}

pub(super) fn not_given_out() -> Error {
    let why = "Invalid page token: it is not one that this search gave out.";
    Refusal::Invalid(why.to_owned()).into()
}

/// Many `%` in a row are one.
fn collapsed(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    for c in pattern.chars() {
        if c != '%' || !out.ends_with('%') {
            out.push(c);
        }
    }
    out
}

/// A `LIKE` pattern as a `GLOB` pattern.
fn glob(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    for c in collapsed(pattern).chars() {
        match c {
            '%' => out.push('*'),
            '_' => out.push('?'),
            '*' | '?' | '[' => {
                out.push('[');
                out.push(c);
                out.push(']');
            }
            c => out.push(c),
        }
    }
    out
}

pub(super) fn view(view: ViewType, table: &str) -> Option<String> {
    match view {
        ViewType::ActiveOnly => Some(format!("{table}.deleted = 0")),
        ViewType::DeletedOnly => Some(format!("{table}.deleted = 1")),
        ViewType::All => None,
    }
}

pub(in crate::store) fn cells(
    row: &Row<'_>,
    from: usize,
    columns: usize,
) -> rusqlite::Result<Vec<Cell>> {
    (from..from + columns)
        .map(|i| {
            Ok(match row.get_ref(i)? {
                ValueRef::Integer(n) => Cell::Int(n),
                ValueRef::Real(x) => Cell::Real(x),
                ValueRef::Text(text) => Cell::Text(String::from_utf8_lossy(text).into_owned()),
                ValueRef::Null | ValueRef::Blob(_) => Cell::Null,
            })
        })
        .collect()
}

fn experiment_column(key: ExperimentKey) -> &'static str {
    match key {
        ExperimentKey::Name => "e.name",
        ExperimentKey::Id => "e.id",
        ExperimentKey::Created => "e.created",
        ExperimentKey::Updated => "e.updated",
    }
}

/// Experiments that pass a filter, in order, a page at a time.
///
/// # Errors
/// [`Refusal::Invalid`] for a page token of another search.
pub fn search_experiments(
    conn: &Connection,
    search: &ExperimentQuery,
) -> Result<Page<Experiment>, Error> {
    let mut query = Query::default();
    query.conditions.extend(view(search.view, "e"));
    if let Some(only) = search.only {
        let mark = query.bind(only.0);
        query.conditions.push(format!("e.id = {mark}"));
    }
    for clause in &search.filter {
        let condition = match clause {
            ExperimentClause::Name(test) => query.text("e.name", test)?,
            ExperimentClause::Id { within, ids } => {
                let ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
                let list = query.bind_list(&ids)?;
                format!("e.id {} {list}", if *within { "IN" } else { "NOT IN" })
            }
            ExperimentClause::Time { key, test, value } => {
                format!("{} {} {}", experiment_column(*key), test.as_str(), query.bind(*value))
            }
            ExperimentClause::Tag { key, test } => {
                query.keyed("experiment_tags", "t.experiment = e.id", key, test)?
            }
        };
        query.conditions.push(condition);
    }
    for ordering in &search.order {
        let column = experiment_column(ordering.key).to_owned();
        query.columns.push((column, ordering.ascending));
    }
    if search.order.is_empty() {
        query.columns.push(("e.created".to_owned(), false));
        query.columns.push(("e.id".to_owned(), true));
    } else if !search.order.iter().any(|ordering| ordering.key == ExperimentKey::Id) {
        query.columns.push(("e.id".to_owned(), false));
    }
    if let Some(token) = &search.after {
        query.after(token)?;
    }
    let columns = query.columns.len();
    let fixed = read::EXPERIMENT_COLUMNS.split(',').count();
    let limit = search.limit.saturating_add(1);
    let text = query.finish(read::EXPERIMENT_COLUMNS, "experiments e", limit);
    let mut statement = conn.prepare(&text).map_err(sql)?;
    let found: Vec<(Experiment, Vec<Cell>)> = statement
        .query_map(params_from_iter(&query.values), |row| {
            Ok((read::experiment_row(row)?, cells(row, fixed, columns)?))
        })
        .and_then(Iterator::collect)
        .map_err(sql)?;
    let mut page = Page { items: Vec::new(), next: None };
    let more = found.len() > search.limit;
    for (mut experiment, place) in found.into_iter().take(search.limit) {
        read::add_tags(conn, &mut experiment)?;
        page.items.push(experiment);
        if more {
            page.next = Some(PageToken { search: search.fingerprint, after: place });
        }
    }
    Ok(page)
}
