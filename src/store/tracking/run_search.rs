//! Searching runs: `EXISTS` for each comparison, pages by key, and where runs are many, by the index of
//! [ranked](super::ranked) metrics.

use std::fmt::Write as _;

use atelier_core::track::search::{
    DatasetField, NumberAttribute, NumberTest, OrderBy, RunClause, RunKey, TextAttribute,
};
use atelier_core::track::{
    Cell, DATASET_CONTEXT_TAG, ExperimentId, PageToken, RUN_NAME_TAG, Run, ViewType,
};
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::super::Error;
use super::read::{self, RunRow};
use super::search::{PAGE_BYTES, Page, Query, cells, not_given_out, sql, view};

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

/// Runs read at once.
const CHUNK: usize = 200;

/// How the runs of a search are come by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Plan {
    /// Each run of the experiments is looked at, in their order where there is an index for it.
    Each,
    /// By the index of ranked metrics, the few runs that pass this comparison of the filter.
    Filter(usize),
    /// By the index of ranked metrics, runs in the order of the first metric that they are ordered by. Those that pass this
    /// comparison, if any is named, are collected from the index before, where else each run's value is looked up.
    Order(Option<usize>),
}

/// So many runs are looked at one by one without further thought.
pub(super) const FEW_RUNS: i64 = 2000;
/// A comparison that so few runs pass is where to begin.
const FEW_PASS: i64 = 3000;
/// Unless so many in all experiments do.
const FEW_READ: i64 = 20_000;
/// The first of an order that are looked at to tell how many pass.
const SAMPLE: i64 = 1000;
/// Runs whose values are looked up in the time of thinking about it.
const FEW_LOOKS: i64 = 5000;
/// Runs that are collected at most.
const MANY_PASS: i64 = 100_000;

impl Plan {
    pub(super) fn of(conn: &Connection, search: &RunQuery) -> Result<Self, Error> {
        let mut runs = Query::default();
        in_experiments(&mut runs, "experiment", search)?;
        if count(conn, &runs, "runs", FEW_RUNS)? <= FEW_RUNS {
            return Ok(Self::Each);
        }
        let mut best: Option<(i64, usize)> = None;
        for (index, clause) in search.filter.iter().enumerate() {
            let mut query = Query::default();
            if !ranked_range(&mut query, "latest_metrics", clause) {
                continue;
            }
            // The index has all experiments: those that nobody asked for are read, too.
            let mut everywhere = Query::default();
            ranked_range(&mut everywhere, "latest_metrics", clause);
            if count(conn, &everywhere, RANKED, FEW_READ)? > FEW_READ {
                continue;
            }
            in_experiments(&mut query, "latest_metrics.experiment", search)?;
            let passing = count(conn, &query, RANKED, FEW_PASS)?;
            if passing <= FEW_PASS && best.is_none_or(|(least, _)| passing < least) {
                best = Some((passing, index));
            }
        }
        let by_metric =
            matches!(search.order.first(), Some(OrderBy { key: RunKey::Metric(_), .. }));
        Ok(match best {
            Some((_, index)) => Self::Filter(index),
            None if by_metric => Self::Order(worth_collecting(conn, search)?),
            None => Self::Each,
        })
    }

    /// The statements whose rows, one after another, are the search's.
    pub(super) fn statements(self, search: &RunQuery) -> Result<Vec<(String, Vec<Value>)>, Error> {
        let whole = |part: Part| {
            let mut query = Query::default();
            let from = part.write(&mut query, search)?;
            Ok::<_, Error>((query, from))
        };
        let limit = search.limit.saturating_add(1);
        Ok(match self {
            Self::Each => {
                let (mut query, from) = whole(Part::Each)?;
                let text = query.finish(read::RUN_COLUMNS, from, limit);
                vec![(text, query.values)]
            }
            Self::Filter(index) => {
                let (query, from) = whole(Part::Filter(index))?;
                vec![united(query, from, Part::Unranked(None), 0, search)?]
            }
            Self::Order(collected) => {
                let begun = match search.after.as_ref().map(|token| token.after.first()) {
                    None => 0,
                    Some(Some(Cell::Int(rank))) => *rank,
                    Some(_) => return Err(not_given_out()),
                };
                let mut statements = Vec::new();
                for rank in Rank::ALL {
                    if rank as i64 >= begun && rank.is_possible(search) {
                        let (query, from) = whole(Part::Order(rank, collected))?;
                        let equal = if rank == Rank::Number { 1 } else { 2 };
                        let rest = Part::Unranked(Some(rank));
                        statements.push(united(query, from, rest, equal, search)?);
                    }
                }
                statements
            }
        })
    }
}

const RANKED: &str = "latest_metrics INDEXED BY latest_ranked";

/// How many rows there are, up to one more than `most`.
fn count(conn: &Connection, query: &Query, from: &str, most: i64) -> Result<i64, Error> {
    let found = query.conditions.join(" AND ");
    let most = most + 1;
    let text = format!("SELECT count(*) FROM (SELECT 1 FROM {from} WHERE {found} LIMIT {most})");
    conn.prepare_cached(&text)
        .and_then(|mut s| s.query_row(params_from_iter(&query.values), |row| row.get(0)))
        .map_err(sql)
}

/// The comparison that so few of the first runs pass that it is sooner known of all which do: who asks for the most
/// accurate among the slow looks at all that are fast, else.
fn worth_collecting(conn: &Connection, search: &RunQuery) -> Result<Option<usize>, Error> {
    let Some(OrderBy { key: RunKey::Metric(by), ascending }) = search.order.first() else {
        return Ok(None);
    };
    let limit = i64::try_from(search.limit).unwrap_or(i64::MAX);
    let mut worth = None;
    let mut looks = FEW_LOOKS;
    for (index, clause) in search.filter.iter().enumerate() {
        let mut passing = Query::default();
        if !ranked_range(&mut passing, "latest_metrics", clause)
            || matches!(clause, RunClause::Metric { key, .. } if key == by)
        {
            continue;
        }
        let mut first = Query::default();
        in_experiments(&mut first, "o.experiment", search)?;
        let key = first.bind(by.clone());
        first
            .conditions
            .push(format!("o.experiment IS NOT NULL AND o.key = {key} AND o.is_nan = 0"));
        if let Some([Cell::Int(0), Cell::Real(value), ..]) =
            search.after.as_ref().map(|token| token.after.as_slice())
        {
            let value = first.bind(*value);
            first
                .conditions
                .push(format!("o.value {} {value}", if *ascending { ">=" } else { "<=" }));
        }
        let test = run_clause(&mut first, clause, "s.run")?;
        let text = format!(
            "SELECT count(*) FROM (SELECT o.run FROM latest_metrics o INDEXED BY latest_ranked
                 WHERE {} ORDER BY o.value {} LIMIT {SAMPLE}) s WHERE {test}",
            first.conditions.join(" AND "),
            if *ascending { "ASC" } else { "DESC" }
        );
        let passed: i64 = conn
            .prepare_cached(&text)
            .and_then(|mut s| s.query_row(params_from_iter(&first.values), |row| row.get(0)))
            .map_err(sql)?;
        let estimate = limit.saturating_mul(SAMPLE) / passed.max(1);
        if estimate <= looks {
            continue;
        }
        in_experiments(&mut passing, "latest_metrics.experiment", search)?;
        let most = MANY_PASS.min(estimate);
        if count(conn, &passing, RANKED, most)? <= most {
            (worth, looks) = (Some(index), estimate);
        }
    }
    Ok(worth)
}

/// Where a run stands among those ordered by a metric, whatever the direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rank {
    Number = 0,
    NaN = 1,
    /// It has no such metric.
    Nothing = 2,
}

impl Rank {
    const ALL: [Self; 3] = [Self::Number, Self::NaN, Self::Nothing];

    /// Whether a run that stands here may pass the filter.
    fn is_possible(self, search: &RunQuery) -> bool {
        let Some(OrderBy { key: RunKey::Metric(key), .. }) = search.order.first() else {
            return true;
        };
        !search.filter.iter().any(|clause| match clause {
            RunClause::Metric { key: tested, test, .. } if tested == key => match self {
                Self::Number => false,
                Self::NaN => *test != NumberTest::NotEqual,
                Self::Nothing => true,
            },
            _ => false,
        })
    }
}

/// A statement over some of the runs of a search.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Each,
    /// Ranked runs that pass a comparison.
    Filter(usize),
    /// Ranked runs that stand here, in order; those that pass this comparison are collected before.
    Order(Rank, Option<usize>),
    /// Runs that are not ranked, all or those that stand here.
    Unranked(Option<Rank>),
}

impl Part {
    /// Writes columns, joins and conditions; what it is of.
    fn write(self, query: &mut Query, search: &RunQuery) -> Result<&'static str, Error> {
        in_experiments(query, "r.experiment", search)?;
        query.conditions.extend(view(search.view, "r"));
        let first = search.order.first();
        let from = match self {
            Self::Each => "runs r",
            Self::Unranked(_) => {
                query.conditions.push("r.ranked <> 1".to_owned());
                "runs r INDEXED BY runs_unranked"
            }
            Self::Filter(_) => {
                query.conditions.push("r.seq = f.run AND r.ranked = 1".to_owned());
                in_experiments(query, "f.experiment", search)?;
                "latest_metrics f INDEXED BY latest_ranked CROSS JOIN runs r"
            }
            Self::Order(Rank::Nothing, _) => {
                query.conditions.push("r.ranked = 1".to_owned());
                "runs r"
            }
            Self::Order(rank, _) => {
                query.conditions.push("r.seq = o0.run AND r.ranked = 1".to_owned());
                in_experiments(query, "o0.experiment", search)?;
                if let Some(OrderBy { key: RunKey::Metric(key), .. }) = first {
                    let (key, nan) = (query.bind(key.clone()), rank == Rank::NaN);
                    query.conditions.push(format!(
                        "o0.experiment IS NOT NULL AND o0.key = {key} AND o0.is_nan = {}",
                        i64::from(nan)
                    ));
                }
                "latest_metrics o0 INDEXED BY latest_ranked CROSS JOIN runs r"
            }
        };
        // What is known before the run is read is asked before.
        let owner = match self {
            Self::Filter(_) => "f.run",
            Self::Order(Rank::Number | Rank::NaN, _) => "o0.run",
            Self::Order(Rank::Nothing, _) | Self::Each | Self::Unranked(_) => "r.seq",
        };
        for (index, clause) in search.filter.iter().enumerate() {
            if self == Self::Filter(index) && ranked_range(query, "f", clause) {
                continue;
            }
            if let Self::Order(_, Some(collected)) = self
                && collected == index
            {
                let mut passing =
                    Query { values: std::mem::take(&mut query.values), ..Query::default() };
                let is_range = ranked_range(&mut passing, "c", clause);
                if is_range {
                    in_experiments(&mut passing, "c.experiment", search)?;
                    query.conditions.push(format!(
                        "{owner} IN (SELECT c.run FROM latest_metrics c INDEXED BY latest_ranked WHERE {})",
                        passing.conditions.join(" AND ")
                    ));
                }
                query.values = passing.values;
                if is_range {
                    continue;
                }
            }
            // What the runs are ordered by is at hand.
            if matches!(self, Self::Order(Rank::Number, _))
                && let RunClause::Metric { key, test, value } = clause
                && matches!(first, Some(OrderBy { key: RunKey::Metric(by), .. }) if by == key)
            {
                let value = query.bind(*value);
                query.conditions.push(format!("o0.value {} {value}", test.as_str()));
                continue;
            }
            let condition = run_clause(query, clause, owner)?;
            query.conditions.push(condition);
        }
        for (index, ordering) in search.order.iter().enumerate() {
            match (self, index) {
                (Self::Order(rank, _), 0) => {
                    let value = if rank == Rank::Nothing { "NULL" } else { "o0.value" };
                    query.columns.push(((rank as i64).to_string(), true));
                    query.columns.push((value.to_owned(), ordering.ascending));
                    if rank == Rank::Nothing
                        && let RunKey::Metric(key) = &ordering.key
                    {
                        let key = query.bind(key.clone());
                        query.conditions.push(format!(
                            "NOT EXISTS (SELECT 1 FROM latest_metrics t WHERE t.run = r.seq AND t.key = {key})"
                        ));
                    }
                }
                _ => run_ordering(query, index, ordering),
            }
        }
        if let Self::Unranked(Some(rank)) = self
            && let Some((place, _)) = query.columns.first_mut()
        {
            let place = std::mem::replace(place, (rank as i64).to_string());
            query.conditions.push(format!("{place} = {}", rank as i64));
        }
        let by_start = RunKey::Number(NumberAttribute::StartTime);
        if !search.order.iter().any(|ordering| ordering.key == by_start) {
            query.columns.push(("r.started".to_owned(), false));
        }
        query.columns.push(("r.id".to_owned(), true));
        self.after(query, search)?;
        Ok(from)
    }

    /// Leaves out what was on the pages before.
    fn after(self, query: &mut Query, search: &RunQuery) -> Result<(), Error> {
        let Some(token) = &search.after else { return Ok(()) };
        let (Self::Order(rank, _) | Self::Unranked(Some(rank))) = self else {
            return query.after(token);
        };
        if token.after.len() != query.columns.len() {
            return Err(not_given_out());
        }
        // Pages before have ended in a rank before.
        if token.after.first() != Some(&Cell::Int(rank as i64)) {
            return Ok(());
        }
        query.after_columns(1, token);
        // The same again in a form that the index serves.
        if let (Self::Order(Rank::Number, _), Some(Cell::Real(value)), Some(ordering)) =
            (self, token.after.get(1), search.order.first())
        {
            let beyond = if ordering.ascending { ">=" } else { "<=" };
            let value = query.bind(*value);
            query.conditions.push(format!("o0.value {beyond} {value}"));
        }
        Ok(())
    }
}

/// A part and the rest of a search as one statement, ordered by their columns without the first `equal`, which are equal.
fn united(
    query: Query,
    from: &str,
    rest: Part,
    equal: usize,
    search: &RunQuery,
) -> Result<(String, Vec<Value>), Error> {
    let text = query.select(read::RUN_COLUMNS, from);
    let mut other = Query { values: query.values, ..Query::default() };
    let from = rest.write(&mut other, search)?;
    let rest = other.select(read::RUN_COLUMNS, from);
    let fixed = read::RUN_COLUMNS.split(',').count();
    let order = query.columns.iter().enumerate().skip(equal).map(|(index, (_, up))| {
        format!("{} {}", fixed + index + 1, if *up { "ASC" } else { "DESC" })
    });
    let order = order.collect::<Vec<_>>().join(", ");
    let limit = i64::try_from(search.limit.saturating_add(1)).unwrap_or(i64::MAX);
    let limit = other.bind(limit);
    let text = format!("{text} UNION ALL {rest} ORDER BY {order} LIMIT {limit}");
    Ok((text, other.values))
}

/// The experiments of a search as a condition on a column.
fn in_experiments(query: &mut Query, column: &str, search: &RunQuery) -> Result<(), Error> {
    let condition = match search.experiments.as_slice() {
        [one] => format!("{column} = {}", query.bind(one.0)),
        many => {
            let ids: Vec<i64> = many.iter().map(|id| id.0).collect();
            format!("{column} IN {}", query.bind_list(&ids)?)
        }
    };
    query.conditions.push(condition);
    Ok(())
}

/// A comparison as a range of the index of ranked metrics, if it is one.
fn ranked_range(query: &mut Query, table: &str, clause: &RunClause) -> bool {
    let RunClause::Metric { key, test, value } = clause else { return false };
    if *test == NumberTest::NotEqual {
        return false;
    }
    let (key, value) = (query.bind(key.clone()), query.bind(*value));
    query.conditions.push(format!(
        "{table}.experiment IS NOT NULL AND {table}.key = {key} AND {table}.is_nan = 0
         AND {table}.value {} {value}",
        test.as_str()
    ));
    true
}

/// A page in the making.
struct Filling<'a> {
    conn: &'a Connection,
    search: &'a RunQuery,
    page: Page<Run>,
    bytes: usize,
    last: Option<Vec<Cell>>,
    rows: Vec<RunRow>,
    places: Vec<Vec<Cell>>,
}

impl Filling<'_> {
    /// Takes the next run; whether there is room for more.
    fn take(&mut self, row: RunRow, place: Vec<Cell>) -> Result<bool, Error> {
        if self.page.items.len() + self.rows.len() == self.search.limit {
            if self.fill()? {
                self.end();
            }
            return Ok(false);
        }
        self.rows.push(row);
        self.places.push(place);
        if self.rows.len() == CHUNK { self.fill() } else { Ok(true) }
    }

    /// Adds to the page what was taken; whether there is room for more.
    fn fill(&mut self) -> Result<bool, Error> {
        let (rows, places) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.places));
        for (run, place) in read::fill(self.conn, rows)?.into_iter().zip(places) {
            let size = weight(&run);
            if self.bytes + size > PAGE_BYTES && !self.page.items.is_empty() {
                self.end();
                return Ok(false);
            }
            self.bytes += size;
            self.last = Some(place);
            self.page.items.push(run);
        }
        Ok(true)
    }

    /// There is more than this page.
    fn end(&mut self) {
        let search = self.search.fingerprint;
        self.page.next = self.last.take().map(|after| PageToken { search, after });
    }
}

/// Runs that pass a filter, in order, a page at a time.
///
/// # Errors
/// [`Refusal::Invalid`] for a page token of another search.
pub fn search_runs(conn: &Connection, search: &RunQuery) -> Result<Page<Run>, Error> {
    if search.experiments.is_empty() {
        return Ok(Page { items: Vec::new(), next: None });
    }
    search_by(conn, search, Plan::of(conn, search)?)
}

/// The same by a given plan.
pub(super) fn search_by(
    conn: &Connection,
    search: &RunQuery,
    plan: Plan,
) -> Result<Page<Run>, Error> {
    let statements = plan.statements(search)?;
    // Several statements see the same.
    let several = statements.len() > 1 && conn.is_autocommit();
    let _snapshot = several.then(|| conn.unchecked_transaction()).transpose().map_err(sql)?;
    let page = Page { items: Vec::new(), next: None };
    let (rows, places) = (Vec::new(), Vec::new());
    let mut filling = Filling { conn, search, page, bytes: 0, last: None, rows, places };
    let fixed = read::RUN_COLUMNS.split(',').count();
    for (text, values) in statements {
        let mut statement = conn.prepare(&text).map_err(sql)?;
        let columns = statement.column_count() - fixed;
        let mut found = statement.query(params_from_iter(&values)).map_err(sql)?;
        while let Some(row) = found.next().map_err(sql)? {
            let place = cells(row, fixed, columns).map_err(sql)?;
            if !filling.take(read::run_row(row).map_err(sql)?, place)? {
                return Ok(filling.page);
            }
        }
    }
    filling.fill()?;
    Ok(filling.page)
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

/// A clause as a condition on a run, whose number `run` is.
fn run_clause(query: &mut Query, clause: &RunClause, run: &str) -> Result<String, Error> {
    let owner = format!("t.run = {run}");
    Ok(match clause {
        RunClause::Metric { key, test, value } => {
            let key = query.bind(key.clone());
            let value = query.bind(*value);
            let operator = test.as_str();
            // NaN is stored as a flagged 0. It equals nothing and differs from everything.
            let nan = if operator == "!=" { "OR t.is_nan = 1" } else { "AND t.is_nan = 0" };
            format!(
                "EXISTS (SELECT 1 FROM latest_metrics t WHERE {owner} AND t.key = {key}
                         AND (t.value {operator} {value} {nan}))"
            )
        }
        RunClause::Param { key, test } => query.keyed("params", &owner, key, test)?,
        RunClause::Tag { key, test } if key == RUN_NAME_TAG => query.text("r.name", test)?,
        RunClause::Tag { key, test } => query.keyed("run_tags", &owner, key, test)?,
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
            format!("EXISTS (SELECT 1 FROM run_inputs t WHERE {owner} AND {condition})")
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
