//! Searching registered models and their versions, pages by key.

use atelier_core::track::search::{
    OrderBy, RegisteredClause, RegisteredKey, VersionClause, VersionKey,
};
use atelier_core::track::{Cell, PageToken};
use rusqlite::{Connection, Row, params_from_iter};

use super::super::super::Error;
use super::super::super::tracking::Page;
use super::super::super::tracking::search::{Query, cells};
use super::{MODEL_COLUMNS, ModelVersion, RegisteredModel, VERSION_COLUMNS, VERSIONS, fill};
use super::{model_row, sql, version_row};

/// A search of registered models.
#[derive(Clone, Debug)]
pub struct ModelQuery {
    /// All of these hold.
    pub filter: Vec<RegisteredClause>,
    /// In this order; then by name.
    pub order: Vec<OrderBy<RegisteredKey>>,
    /// At most so many.
    pub limit: usize,
    /// What follows this.
    pub after: Option<PageToken>,
    /// [`atelier_core::track::fingerprint`] of the search.
    pub fingerprint: u64,
}

/// A search of versions.
#[derive(Clone, Debug)]
pub struct VersionQuery {
    /// All of these hold.
    pub filter: Vec<VersionClause>,
    /// In this order; without any, the last changed first.
    pub order: Vec<OrderBy<VersionKey>>,
    /// At most so many.
    pub limit: usize,
    /// What follows this.
    pub after: Option<PageToken>,
    /// [`atelier_core::track::fingerprint`] of the search.
    pub fingerprint: u64,
}

/// What is on a page is at most so large: it ends early rather than fill the memory.
const PAGE_BYTES: usize = 16 << 20;

/// Where a version lies, as MLflow names a source.
const SOURCE: &str =
    "coalesce(m.source, 'azureml://datastores/' || v.datastore || '/paths/' || v.path)";

/// Reads a page: of each row what it is, about how large that is, and its place.
fn page<T>(
    conn: &Connection,
    query: &Query,
    text: &str,
    (limit, fingerprint): (usize, u64),
    read: impl Fn(&Row<'_>) -> Result<(T, usize, Vec<Cell>), Error>,
) -> Result<Page<T>, Error> {
    let mut statement = conn.prepare(text).map_err(sql)?;
    let mut rows = statement.query(params_from_iter(&query.values)).map_err(sql)?;
    let mut page = Page { items: Vec::new(), next: None };
    let (mut bytes, mut last) = (0, None);
    while let Some(row) = rows.next().map_err(sql)? {
        let (item, size, place) = read(row)?;
        if page.items.len() == limit || (bytes + size > PAGE_BYTES && !page.items.is_empty()) {
            page.next = last.map(|after| PageToken { search: fingerprint, after });
            break;
        }
        bytes += size;
        last = Some(place);
        page.items.push(item);
    }
    Ok(page)
}

fn size_of(version: &ModelVersion) -> usize {
    let own = &version.version;
    let tags = own.tags.iter().chain(&own.properties).map(|(k, v)| k.len() + v.len() + 40);
    let flavors = own.flavors.values().map(|flavor| flavor.to_string().len());
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    500 + version.source.len()
        + text(&version.run_link)
        + text(&own.description)
        + tags.chain(flavors).sum::<usize>()
}

/// Registered models that pass a filter, in order, a page at a time; archived ones aside.
///
/// # Errors
/// [`atelier_core::track::Error::Invalid`] for a page token of another search.
pub fn search_models(
    conn: &Connection,
    search: &ModelQuery,
) -> Result<Page<RegisteredModel>, Error> {
    let mut query = Query::default();
    query.conditions.push("a.archived = 0".to_owned());
    for clause in &search.filter {
        let condition = match clause {
            RegisteredClause::Name(test) => query.text("a.name", test)?,
            RegisteredClause::Tag { key, test } => {
                query.keyed("json_each(r.tags)", "1", key, test)?
            }
            RegisteredClause::Prompts => "0".to_owned(),
        };
        query.conditions.push(condition);
    }
    for OrderBy { key, ascending } in &search.order {
        let column = match key {
            RegisteredKey::Name => "a.name",
            RegisteredKey::Created => "r.created",
            RegisteredKey::Updated => "r.updated",
        };
        query.columns.push((column.to_owned(), *ascending));
    }
    if !search.order.iter().any(|ordering| ordering.key == RegisteredKey::Name) {
        query.columns.push(("a.name".to_owned(), true));
    }
    if let Some(token) = &search.after {
        query.after(token)?;
    }
    let columns = query.columns.len();
    let from = "registered_models r JOIN assets a ON a.id = r.asset AND a.kind = 'model'";
    let text = query.finish(MODEL_COLUMNS, from, search.limit.saturating_add(1));
    let fixed = MODEL_COLUMNS.split(',').count();
    page(conn, &query, &text, (search.limit, search.fingerprint), |row| {
        let (mut model, asset) = model_row(row).map_err(sql)?;
        fill(conn, asset, &mut model)?;
        let tags = model.tags.iter().map(|(key, value)| key.len() + value.len() + 40);
        let size = tags.sum::<usize>() + model.latest.iter().map(size_of).sum::<usize>() + 500;
        Ok((model, size, cells(row, fixed, columns).map_err(sql)?))
    })
}

/// Versions that pass a filter, in order, a page at a time; archived ones aside.
///
/// # Errors
/// [`atelier_core::track::Error::Invalid`] for a page token of another search.
pub fn search_versions(
    conn: &Connection,
    search: &VersionQuery,
) -> Result<Page<ModelVersion>, Error> {
    let mut query = Query::default();
    query.conditions.push("v.deleted = 0 AND NOT (v.archived OR a.archived)".to_owned());
    for clause in &search.filter {
        let condition = match clause {
            VersionClause::Name(test) => query.text("a.name", test)?,
            VersionClause::Run(test) => query.text("m.run", test)?,
            VersionClause::Source(test) => query.text(SOURCE, test)?,
            VersionClause::Number { test, value } => {
                let mark = query.bind(*value);
                format!("CAST(v.number AS INTEGER) {} {mark}", test.as_str())
            }
            VersionClause::Tag { key, test } => {
                query.keyed("json_each(v.record, '$.tags')", "1", key, test)?
            }
            VersionClause::Prompts => "0".to_owned(),
        };
        query.conditions.push(condition);
    }
    let mut order = search.order.clone();
    if order.is_empty() {
        order.push(OrderBy { key: VersionKey::Updated, ascending: false });
    }
    for (key, ascending) in [(VersionKey::Name, true), (VersionKey::Number, false)] {
        if !order.iter().any(|ordering| ordering.key == key) {
            order.push(OrderBy { key, ascending });
        }
    }
    for OrderBy { key, ascending } in order {
        let column = match key {
            VersionKey::Name => "a.name",
            VersionKey::Number => {
                // Versions that are words come last either way.
                query.columns.push(("(v.number IS NULL)".to_owned(), true));
                "v.number"
            }
            VersionKey::Created => "m.created",
            VersionKey::Updated => "m.updated",
        };
        query.columns.push((column.to_owned(), ascending));
    }
    query.columns.push(("v.seq".to_owned(), false));
    if let Some(token) = &search.after {
        query.after(token)?;
    }
    let columns = query.columns.len();
    let text = query.finish(VERSION_COLUMNS, VERSIONS, search.limit.saturating_add(1));
    // What stands in parentheses is one.
    const FIXED: usize = 9;
    page(conn, &query, &text, (search.limit, search.fingerprint), |row| {
        let version = version_row(row).map_err(sql)?;
        let size = size_of(&version);
        Ok((version, size, cells(row, FIXED, columns).map_err(sql)?))
    })
}
