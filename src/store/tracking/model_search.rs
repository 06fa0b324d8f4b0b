//! Searching logged models.

use std::fmt::Write as _;

use atelier_core::track::search::{ModelClause, ModelKey, ModelNumber, ModelText, OrderBy};
use atelier_core::track::{Cell, ExperimentId, LoggedModel, MeasuredOn, PageToken};
use rusqlite::{Connection, params_from_iter};

use super::super::Error;
use super::models::{self, MODEL_COLUMNS};
use super::search::{PAGE_BYTES, Page, Query, cells, sql};

/// A search of logged models in use.
#[derive(Clone, Debug)]
pub struct ModelQuery {
    /// In these experiments; none means no models.
    pub experiments: Vec<ExperimentId>,
    /// All of these hold.
    pub filter: Vec<ModelClause>,
    /// Only points measured on one of these data count; none: all do. Each has a name.
    pub on: Vec<MeasuredOn>,
    /// In this order; then the latest made first, then by id.
    pub order: Vec<OrderBy<ModelKey>>,
    /// At most so many.
    pub limit: usize,
    /// What follows this.
    pub after: Option<PageToken>,
    /// [`atelier_core::track::fingerprint`] of the search.
    pub fingerprint: u64,
}

const fn text_column(attribute: ModelText) -> &'static str {
    match attribute {
        ModelText::Id => "m.id",
        ModelText::Name => "m.name",
        ModelText::Type => "m.type",
        ModelText::SourceRun => "m.source_run",
        ModelText::Status => "m.status",
        ModelText::Experiment => "CAST(m.experiment AS TEXT)",
        ModelText::ArtifactLocation => {
            "('mlflow-artifacts:/' || m.experiment || '/models/' || m.id || '/artifacts')"
        }
    }
}

const fn number_column(attribute: ModelNumber) -> &'static str {
    match attribute {
        ModelNumber::Created => "m.created",
        ModelNumber::Updated => "m.updated",
    }
}

/// A condition on points of these data; nothing if any will do.
fn measured_on(query: &mut Query, on: &[MeasuredOn]) -> Option<String> {
    let each = on.iter().map(|on| {
        let columns = [("t.dataset", &on.name), ("t.digest", &on.digest)];
        let conditions = columns.into_iter().filter_map(|(column, text)| {
            text.as_ref().map(|text| format!("{column} = {}", query.bind(text.clone())))
        });
        conditions.collect::<Vec<_>>().join(" AND ")
    });
    let each: Vec<String> = each.filter(|condition| !condition.is_empty()).collect();
    (!each.is_empty()).then(|| format!("({})", each.join(" OR ")))
}

fn clause(query: &mut Query, clause: &ModelClause, on: &[MeasuredOn]) -> Result<String, Error> {
    const OWNER: &str = "t.model = m.seq";
    Ok(match clause {
        ModelClause::Metric { key, test, value } => {
            let key = query.bind(key.clone());
            let value = query.bind(*value);
            let operator = test.as_str();
            // NaN is stored as a flagged 0. It equals nothing and differs from everything.
            let nan = if operator == "!=" { "OR t.is_nan = 1" } else { "AND t.is_nan = 0" };
            let on = measured_on(query, on).map_or_else(String::new, |on| format!(" AND {on}"));
            format!(
                "EXISTS (SELECT 1 FROM logged_model_metrics t WHERE {OWNER} AND t.key = {key}
                         AND (t.value {operator} {value} {nan}){on})"
            )
        }
        ModelClause::Param { key, test } => query.keyed("logged_model_params", OWNER, key, test)?,
        ModelClause::Tag { key, test } => query.keyed("logged_model_tags", OWNER, key, test)?,
        ModelClause::Text { attribute, test } => query.text(text_column(*attribute), test)?,
        ModelClause::Number { attribute, test, value } => {
            format!("{} {} {}", number_column(*attribute), test.as_str(), query.bind(*value))
        }
    })
}

fn ordering(query: &mut Query, index: usize, ordering: &OrderBy<ModelKey>) {
    let column = match &ordering.key {
        ModelKey::Metric { key, on } => {
            let alias = format!("o{index}");
            let key = query.bind(key.clone());
            let on = measured_on(query, std::slice::from_ref(on));
            let on = on.map_or_else(String::new, |on| format!(" AND {on}"));
            // The latest point of each model: the key's points are kept by time, so the first that will do is it.
            let point = |table: &str| {
                let columns = ["timestamp", "step", "run", "dataset", "digest", "value", "is_nan"];
                columns.map(|column| format!("{table}.{column}")).join(", ")
            };
            let _ = write!(
                query.joins,
                " LEFT JOIN logged_model_metrics {alias} ON {alias}.model = m.seq AND {alias}.key = {key}
                  AND ({}) = (
                      SELECT {} FROM logged_model_metrics t WHERE t.model = m.seq AND t.key = {key}{on}
                      ORDER BY t.timestamp DESC, t.step DESC, t.run, t.dataset, t.digest,
                          t.is_nan DESC, t.value DESC LIMIT 1)",
                point(&alias),
                point("t"),
            );
            let column = format!("{alias}.value");
            let rank = format!(
                "CASE WHEN {alias}.is_nan = 1 THEN 1 WHEN {column} IS NULL THEN 2 ELSE 0 END"
            );
            query.columns.push((rank, true));
            query.columns.push((column, ordering.ascending));
            return;
        }
        ModelKey::Number(attribute) => {
            // Every model has one.
            query.columns.push((number_column(*attribute).to_owned(), ordering.ascending));
            return;
        }
        ModelKey::Text(attribute) => text_column(*attribute).to_owned(),
    };
    // What has no value comes last in either direction.
    query.columns.push((format!("({column} IS NULL)"), true));
    query.columns.push((column, ordering.ascending));
}

/// About how much memory and wire a model takes.
fn weight(model: &LoggedModel) -> usize {
    let params = model.params.iter().map(|p| p.key.len() + p.value.len() + 40);
    let tags = model.tags.iter().map(|t| t.key.len() + t.value.len() + 40);
    let metrics = model.metrics.iter().map(|m| {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        m.point.key.len() + m.run.as_str().len() + text(&m.on.name) + text(&m.on.digest) + 200
    });
    700 + params.chain(tags).chain(metrics).sum::<usize>()
}

/// Models that pass a filter, in order, a page at a time.
///
/// # Errors
/// [`atelier_core::track::Error::Invalid`] for a page token of another search.
pub fn search_models(conn: &Connection, search: &ModelQuery) -> Result<Page<LoggedModel>, Error> {
    let mut query = Query::default();
    if search.experiments.is_empty() {
        return Ok(Page { items: Vec::new(), next: None });
    }
    let ids: Vec<i64> = search.experiments.iter().map(|id| id.0).collect();
    let list = query.bind_list(&ids)?;
    query.conditions.push(format!("m.experiment IN {list}"));
    query.conditions.push("m.deleted = 0".to_owned());
    for one in &search.filter {
        let condition = clause(&mut query, one, &search.on)?;
        query.conditions.push(condition);
    }
    let has_metric = search.filter.iter().any(|one| matches!(one, ModelClause::Metric { .. }));
    if !has_metric && let Some(on) = measured_on(&mut query, &search.on) {
        query.conditions.push(format!(
            "EXISTS (SELECT 1 FROM logged_model_metrics t WHERE t.model = m.seq AND {on})"
        ));
    }
    for (index, one) in search.order.iter().enumerate() {
        ordering(&mut query, index, one);
    }
    query.columns.push(("m.created".to_owned(), false));
    query.columns.push(("m.id".to_owned(), true));
    if let Some(token) = &search.after {
        query.after(token)?;
    }
    let columns = query.columns.len();
    let text = query.finish(MODEL_COLUMNS, "logged_models m", search.limit.saturating_add(1));
    let fixed = MODEL_COLUMNS.split(',').count();

    let mut statement = conn.prepare(&text).map_err(sql)?;
    let mut found = statement.query(params_from_iter(&query.values)).map_err(sql)?;
    let mut page = Page { items: Vec::new(), next: None };
    let (mut bytes, mut last): (usize, Option<Vec<Cell>>) = (0, None);
    while let Some(row) = found.next().map_err(sql)? {
        let place = cells(row, fixed, columns).map_err(sql)?;
        let is_full = page.items.len() == search.limit;
        let model = match is_full {
            true => None,
            false => Some(models::fill(conn, models::model_row(row).map_err(sql)?)?),
        };
        bytes += model.as_ref().map_or(0, weight);
        match model {
            Some(model) if bytes <= PAGE_BYTES || page.items.is_empty() => page.items.push(model),
            _ => {
                page.next = last.map(|after| PageToken { search: search.fingerprint, after });
                break;
            }
        }
        last = Some(place);
    }
    Ok(page)
}
