//! Traces: nodes and tasks from CSV files.

use std::path::Path;

use atelier_core::resource::WHOLE_GPU;
use atelier_core::simulate::{TraceNode, TraceTask};
use csv::{Reader, StringRecord};

use crate::cli::{Error, Kind};

/// A file's rows, by the names of its columns.
struct Table<'a> {
    file: &'a Path,
    rows: Reader<std::fs::File>,
    header: StringRecord,
}

/// One row of a [`Table`].
struct Row<'a> {
    table: (&'a Path, &'a StringRecord),
    line: u64,
    cells: &'a StringRecord,
}

impl<'a> Table<'a> {
    /// Opens a file that must have these columns.
    fn open(file: &'a Path, columns: &[&str]) -> Result<Self, Error> {
        let cannot = |error: csv::Error| {
            let kind = match error.kind() {
                csv::ErrorKind::Io(io) if io.kind() == std::io::ErrorKind::NotFound => {
                    Kind::NotFound
                }
                _ => Kind::Refused,
            };
            Error::new(kind, format!("cannot read {}: {error}", file.display()))
        };
        let mut rows =
            csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(file).map_err(cannot)?;
        let header = rows.headers().map_err(cannot)?.clone();
        let missing: Vec<&str> =
            columns.iter().copied().filter(|column| !header.iter().any(|h| h == *column)).collect();
        if !missing.is_empty() {
            let there: Vec<&str> = header.iter().collect();
            let what = format!("{} has no column {}", file.display(), missing.join(", "));
            return Err(Error::new(Kind::Refused, what).help(format!(
                "it needs {}, and has {}",
                columns.join(", "),
                there.join(", ")
            )));
        }
        Ok(Self { file, rows, header })
    }

    /// Reads every row.
    fn read<T>(mut self, of: impl Fn(&Row<'_>) -> Result<T, Error>) -> Result<Vec<T>, Error> {
        let mut read = Vec::new();
        for record in self.rows.records() {
            let cells = record.map_err(|error| {
                Error::new(Kind::Refused, format!("cannot read {}: {error}", self.file.display()))
            })?;
            let line = cells.position().map_or(0, csv::Position::line);
            read.push(of(&Row { table: (self.file, &self.header), line, cells: &cells })?);
        }
        Ok(read)
    }
}

impl Row<'_> {
    /// The text of a cell; empty if there is no such column.
    fn text(&self, column: &str) -> &str {
        let index = self.table.1.iter().position(|name| name == column);
        index.and_then(|index| self.cells.get(index)).unwrap_or_default()
    }

    /// A whole number of at most `limit`; an empty cell is zero.
    fn number(&self, column: &str, limit: u64) -> Result<u64, Error> {
        let text = self.text(column);
        if text.is_empty() {
            return Ok(0);
        }
        text.parse().ok().filter(|number| *number <= limit).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            let place = format!("{} line {}: {column}", self.table.0.display(), self.line);
            Error::new(Kind::Refused, format!("{place} is '{shown}'"))
                .help(format!("write a whole number from 0 to {limit}"))
        })
    }
}

/// Enough for any machine.
const MAX_AMOUNT: u64 = 1 << 40;
const MAX_GPUS: u64 = 1024;

/// The nodes of a file.
pub(super) fn nodes(file: &Path) -> Result<Vec<TraceNode>, Error> {
    Table::open(file, &["cpu_milli", "memory_mib", "gpu", "model"])?.read(|row| {
        Ok(TraceNode {
            cpu: row.number("cpu_milli", MAX_AMOUNT)?,
            memory: row.number("memory_mib", MAX_AMOUNT)?,
            gpus: u16::try_from(row.number("gpu", MAX_GPUS)?).unwrap_or(u16::MAX),
            model: row.text("model").to_owned(),
        })
    })
}

/// The tasks of a file.
pub(super) fn tasks(file: &Path) -> Result<Vec<TraceTask>, Error> {
    Table::open(file, &["cpu_milli", "memory_mib", "num_gpu", "gpu_milli"])?.read(|row| {
        let share = row.number("gpu_milli", WHOLE_GPU.into())?;
        let models = row.text("gpu_spec").split('|').filter(|model| !model.is_empty());
        Ok(TraceTask {
            cpu: row.number("cpu_milli", MAX_AMOUNT)?,
            memory: row.number("memory_mib", MAX_AMOUNT)?,
            gpus: u16::try_from(row.number("num_gpu", MAX_GPUS)?).unwrap_or(u16::MAX),
            share: u16::try_from(share).unwrap_or(WHOLE_GPU),
            models: models.map(str::to_owned).collect(),
        })
    })
}
