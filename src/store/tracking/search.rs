//! Searching runs and experiments: `EXISTS` for each comparison, pages by key, values only ever
//! bound.

use std::fmt::Write as _;

use atelier_core::track::search::{
    DatasetField, ExperimentClause, ExperimentKey, NumberAttribute, OrderBy, RunClause, RunKey,
    TextAttribute, TextTest,
};
use atelier_core::track::{
    Cell, DATASET_CONTEXT_TAG, Error as Refusal, Experiment, ExperimentId, PageToken, RUN_NAME_TAG,
    Run, ViewType,
};
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, Row, params_from_iter};

use super::super::Error;
use super::read;

pub(super) fn sql(source: rusqlite::Error) -> Error {
    Error::sqlite("search the tracking tables", source)
}

/// A search of runs.
#[derive(Clone, Debug)]
pub struct RunQuery {
    /// In these experiments; none means no runs.
    pub experiments: Vec<ExperimentId>,
    /// All of these hold.
    pub filter: Vec<RunClause>,
    /// In this order; then the latest started first, then by id.
    pub order: Vec<OrderBy<RunKey>>,
    /// Active, deleted or both.
    pub view: ViewType,
    /// At most so many.
    pub limit: usize,
    /// What follows this.
    pub after: Option<PageToken>,
    /// [`atelier_core::track::fingerprint`] of the search.
    pub fingerprint: u64,
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
/// Runs read at once.
const CHUNK: usize = 200;

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
            return Err(Refusal::Invalid(
                "Invalid page token: it is not one that this search gave out.".to_owned(),
            )
            .into());
        }
        let mut condition = String::new();
        let columns = self.columns.clone();
        for ((expression, ascending), cell) in columns.iter().zip(&token.after).rev() {
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
        Ok(())
    }

    pub(in crate::store) fn finish(&mut self, select: &str, from: &str, limit: usize) -> String {
        let mut text = format!("SELECT {select}");
        for (expression, _) in &self.columns {
            let _ = write!(text, ", {expression}");
        }
        let _ = write!(text, " FROM {from}{}", self.joins);
        if !self.conditions.is_empty() {
            let _ = write!(text, " WHERE {}", self.conditions.join(" AND "));
        }
        let order: Vec<String> = self
            .columns
            .iter()
            .map(|(expression, up)| format!("{expression} {}", if *up { "ASC" } else { "DESC" }))
            .collect();
        let limit = self.bind(i64::try_from(limit).unwrap_or(i64::MAX));
        let _ = write!(text, " ORDER BY {} LIMIT {limit}", order.join(", "));
        text
    }
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

fn view(view: ViewType, table: &str) -> Option<String> {
    match view {
        ViewType::ActiveOnly => Some(format!("{table}.deleted = 0")),
        ViewType::DeletedOnly => Some(format!("{table}.deleted = 1")),
        ViewType::All => None,
    }
}

const fn text_column(attribute: TextAttribute) -> &'static str {
    match attribute {
        TextAttribute::RunId => "r.id",
        TextAttribute::RunName => "r.name",
        TextAttribute::Status => "r.status",
        TextAttribute::UserId => "r.owner",
        TextAttribute::ArtifactUri => {
            "('mlflow-artifacts:/' || r.experiment || '/' || r.id || '/artifacts')"
        }
    }
}

const fn number_column(attribute: NumberAttribute) -> &'static str {
    match attribute {
        NumberAttribute::StartTime => "r.started",
        NumberAttribute::EndTime => "r.ended",
    }
}

fn run_clause(query: &mut Query, clause: &RunClause) -> Result<String, Error> {
    const OWNER: &str = "t.run = r.seq";
    Ok(match clause {
        RunClause::Metric { key, test, value } => {
            let key = query.bind(key.clone());
            let value = query.bind(*value);
            let operator = test.as_str();
            // NaN is stored as a flagged 0. It equals nothing and differs from everything.
            let nan = if operator == "!=" { "OR t.is_nan = 1" } else { "AND t.is_nan = 0" };
            format!(
                "EXISTS (SELECT 1 FROM latest_metrics t WHERE {OWNER} AND t.key = {key}
                         AND (t.value {operator} {value} {nan}))"
            )
        }
        RunClause::Param { key, test } => query.keyed("params", OWNER, key, test)?,
        RunClause::Tag { key, test } if key == RUN_NAME_TAG => query.text("r.name", test)?,
        RunClause::Tag { key, test } => query.keyed("run_tags", OWNER, key, test)?,
        RunClause::Text { attribute, test } => query.text(text_column(*attribute), test)?,
        RunClause::Number { attribute, test, value } => {
            format!("{} {} {}", number_column(*attribute), test.as_str(), query.bind(*value))
        }
        RunClause::Dataset { field, test } => {
            let condition = match field {
                DatasetField::Name => query.text("t.name", test)?,
                DatasetField::Digest => query.text("t.digest", test)?,
                DatasetField::Context => {
                    let key = query.bind(DATASET_CONTEXT_TAG.to_owned());
                    let value = query.text("c.value ->> 1", test)?;
                    format!(
                        "EXISTS (SELECT 1 FROM json_each(t.tags) c
                                 WHERE c.value ->> 0 = {key} AND {value})"
                    )
                }
            };
            format!("EXISTS (SELECT 1 FROM run_inputs t WHERE {OWNER} AND {condition})")
        }
    })
}

fn run_ordering(query: &mut Query, index: usize, ordering: &OrderBy<RunKey>) {
    let alias = format!("o{index}");
    let mut join = |table: &str, key: &str| {
        let key = query.bind(key.to_owned());
        let _ = write!(
            query.joins,
            " LEFT JOIN {table} {alias} ON {alias}.run = r.seq AND {alias}.key = {key}"
        );
        format!("{alias}.value")
    };
    let mut rank = None;
    let column = match &ordering.key {
        RunKey::Metric(key) => {
            let column = join("latest_metrics", key);
            rank = Some(format!(
                "CASE WHEN {alias}.is_nan = 1 THEN 1 WHEN {column} IS NULL THEN 2 ELSE 0 END"
            ));
            column
        }
        RunKey::Param(key) => join("params", key),
        RunKey::Tag(key) if key == RUN_NAME_TAG => "r.name".to_owned(),
        RunKey::Tag(key) => join("run_tags", key),
        RunKey::Text(attribute) => text_column(*attribute).to_owned(),
        RunKey::Number(NumberAttribute::StartTime) => {
            // Every run has one.
            query.columns.push(("r.started".to_owned(), ordering.ascending));
            return;
        }
        RunKey::Number(attribute) => number_column(*attribute).to_owned(),
    };
    // What has no value comes last in either direction.
    let rank = rank.unwrap_or_else(|| format!("({column} IS NULL)"));
    query.columns.push((rank, true));
    query.columns.push((column, ordering.ascending));
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

/// About how much memory and wire a run takes.
fn weight(run: &Run) -> usize {
    let params = run.params.iter().map(|p| p.key.len() + p.value.len() + 40);
    let tags = run.tags.iter().map(|t| t.key.len() + t.value.len() + 40);
    let metrics = run.metrics.iter().map(|m| m.key.len() + 100);
    let inputs = run.inputs.iter().map(|i| {
        let dataset = &i.dataset;
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        dataset.source.len() + text(&dataset.schema) + text(&dataset.profile) + 1000
    });
    500 + params.chain(tags).chain(metrics).chain(inputs).sum::<usize>()
}

/// Runs that pass a filter, in order, a page at a time.
///
/// # Errors
/// [`Refusal::Invalid`] for a page token of another search.
pub fn search_runs(conn: &Connection, search: &RunQuery) -> Result<Page<Run>, Error> {
    let mut query = Query::default();
    match search.experiments.as_slice() {
        [] => return Ok(Page { items: Vec::new(), next: None }),
        [one] => {
            let mark = query.bind(one.0);
            query.conditions.push(format!("r.experiment = {mark}"));
        }
        many => {
            let ids: Vec<i64> = many.iter().map(|id| id.0).collect();
            let list = query.bind_list(&ids)?;
            query.conditions.push(format!("r.experiment IN {list}"));
        }
    }
    query.conditions.extend(view(search.view, "r"));
    for clause in &search.filter {
        let condition = run_clause(&mut query, clause)?;
        query.conditions.push(condition);
    }
    for (index, ordering) in search.order.iter().enumerate() {
        run_ordering(&mut query, index, ordering);
    }
    let by_start = RunKey::Number(NumberAttribute::StartTime);
    if !search.order.iter().any(|ordering| ordering.key == by_start) {
        query.columns.push(("r.started".to_owned(), false));
    }
    query.columns.push(("r.id".to_owned(), true));
    if let Some(token) = &search.after {
        query.after(token)?;
    }
    let columns = query.columns.len();
    let text = query.finish(read::RUN_COLUMNS, "runs r", search.limit.saturating_add(1));
    let fixed = read::RUN_COLUMNS.split(',').count();

    let mut statement = conn.prepare(&text).map_err(sql)?;
    let mut found = statement.query(params_from_iter(&query.values)).map_err(sql)?;
    let mut page = Page { items: Vec::new(), next: None };
    let mut bytes = 0;
    let mut last: Option<Vec<Cell>> = None;
    loop {
        let mut rows = Vec::new();
        let mut places = Vec::new();
        let mut more = false;
        while rows.len() < CHUNK {
            let Some(row) = found.next().map_err(sql)? else { break };
            if page.items.len() + rows.len() == search.limit {
                more = true;
                break;
            }
            rows.push(read::run_row(row).map_err(sql)?);
            places.push(cells(row, fixed, columns).map_err(sql)?);
        }
        let full = rows.len() == CHUNK;
        for (run, place) in read::fill(conn, rows)?.into_iter().zip(places) {
            let size = weight(&run);
            if bytes + size > PAGE_BYTES && !page.items.is_empty() {
                page.next = last.map(|after| PageToken { search: search.fingerprint, after });
                return Ok(page);
            }
            bytes += size;
            last = Some(place);
            page.items.push(run);
        }
        if more {
            page.next = last.map(|after| PageToken { search: search.fingerprint, after });
            return Ok(page);
        }
        if !full {
            return Ok(page);
        }
    }
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
