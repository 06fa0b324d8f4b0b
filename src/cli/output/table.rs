//! Tables of JSON values.

use comfy_table::{Cell, ContentArrangement, Table, presets};
use serde_json::Value;

use super::printable;

/// A column of a list: its title, and what stands in it.
pub(crate) struct Column {
    /// In capitals.
    pub(crate) title: &'static str,
    /// The cell of an item, or nothing.
    pub(crate) cell: fn(&Value) -> Option<String>,
}

/// An RFC 3339 time cut to whole seconds: `2026-11-23 10:49:46`. UTC.
pub(crate) fn moment(time: &Value) -> Option<String> {
    let text = time.as_str()?;
    let (date, time) = text.split_once('T')?;
    Some(format!("{date} {}", time.get(..8)?))
}

/// A list with its own columns.
pub(crate) fn of(items: &[Value], columns: &[Column]) -> String {
    let rows = items.iter().map(|item| {
        columns.iter().map(|column| cell((column.cell)(item).as_deref().unwrap_or(""))).collect()
    });
    drawn(columns.iter().map(|column| column.title.to_owned()).collect(), rows.collect())
}

/// One row of a stream, columns two blanks apart; without a heading.
pub(crate) fn line(item: &Value, columns: &[Column]) -> String {
    let cells: Vec<String> = columns
        .iter()
        .filter_map(|column| (column.cell)(item))
        .map(|text| cell(&text))
        .filter(|text| !text.is_empty())
        .collect();
    cells.join("  ") + "\n"
}

/// Rows of values below titles that only the data knows.
pub(crate) fn grid(titles: Vec<String>, rows: Vec<Vec<Value>>) -> String {
    let rows = rows.iter().map(|row| row.iter().map(|value| cell(&bare(value))).collect());
    drawn(titles.iter().map(|title| cell(title)).collect(), rows.collect())
}

/// Any JSON value: objects as rows, or as field and value when there is one only.
pub(crate) fn any(data: &Value, keys: Option<Vec<String>>) -> String {
    match data {
        Value::Array(items) if items.iter().any(Value::is_object) => {
            let keys = keys.unwrap_or_else(|| scalar_keys(items));
            let rows = items
                .iter()
                .map(|item| keys.iter().map(|key| cell(&bare(&item[key.as_str()]))).collect());
            drawn(keys.iter().map(|key| key.to_uppercase()).collect(), rows.collect())
        }
        Value::Array(items) => {
            let rows = items.iter().map(|item| match item {
                Value::Array(cells) => cells.iter().map(|value| cell(&bare(value))).collect(),
                value => vec![cell(&bare(value))],
            });
            drawn(Vec::new(), rows.collect())
        }
        Value::Object(_) => {
            let mut rows = Vec::new();
            fields("", data, &mut rows);
            drawn(vec!["FIELD".to_owned(), "VALUE".to_owned()], rows)
        }
        value => bare(value) + "\n",
    }
}

/// Bare values: a line per item, a tab between values.
pub(crate) fn tsv(data: &Value, keys: Option<Vec<String>>) -> String {
    let row = |item: &Value| -> String {
        let values: Vec<String> = match (item, &keys) {
            (Value::Object(_), Some(keys)) => {
                keys.iter().map(|key| bare(&item[key.as_str()])).collect()
            }
            (Value::Object(map), None) => map.values().map(bare).collect(),
            (Value::Array(cells), _) => cells.iter().map(bare).collect(),
            (value, _) => vec![bare(value)],
        };
        let values: Vec<String> =
            values.iter().map(|value| value.replace(['\t', '\n', '\r'], " ")).collect();
        values.join("\t") + "\n"
    };
    match data {
        Value::Array(items) => items.iter().map(row).collect(),
        Value::Null => String::new(),
        // A single text stays as it is, line breaks and all.
        Value::String(text) => format!("{text}\n"),
        item => row(item),
    }
}

fn scalar_keys(items: &[Value]) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for (key, value) in items.iter().filter_map(Value::as_object).flatten() {
        if !value.is_object() && !value.is_array() && !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    keys
}

fn fields(path: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                fields(&path, value, rows);
            }
        }
        value => rows.push(vec![cell(path), cell(&bare(value))]),
    }
}

fn bare(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// A cell keeps to one line.
fn cell(text: &str) -> String {
    printable(text).replace(['\n', '\t'], " ").trim_end().to_owned()
}

fn drawn(titles: Vec<String>, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !titles.is_empty() {
        table.set_header(titles.into_iter().map(Cell::new));
    }
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text: String =
        table.lines().flat_map(|line| [line.trim_end().to_owned(), "\n".to_owned()]).collect();
    if text.trim().is_empty() {
        text.clear();
    }
    text
}
