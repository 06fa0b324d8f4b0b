//! Traces: nodes and tasks from CSV files.

use std::collections::BTreeMap;
use std::path::Path;

use atelier_core::id::Principal;
use atelier_core::resource::{Demand, WHOLE_GPU};
use atelier_core::sched::Request;
use atelier_core::simulate::{PlayedJob, TraceNode, TraceTask};
use atelier_core::spec::{JobTier, Priority};
use atelier_core::time::Timestamp;
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
    fn open(file: &'a Path, columns: &[&'static str]) -> Result<Self, Error> {
        Self::open_for(file, columns, &[], "")
    }

    /// Opens a file that must have these columns, and `times` for what is wanted of it; `help` says
    /// what can be done without those.
    fn open_for(
        file: &'a Path,
        columns: &[&'static str],
        times: &[&'static str],
        help: &str,
    ) -> Result<Self, Error> {
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
        let lacks = |columns: &[&'static str]| -> Vec<&'static str> {
            let there = |column: &&str| header.iter().any(|h| h == *column);
            columns.iter().copied().filter(|column| !there(column)).collect()
        };
        let (missing, untimed) = (lacks(columns), lacks(times));
        if !missing.is_empty() || !untimed.is_empty() {
            let there: Vec<&str> = header.iter().collect();
            let all = [missing.as_slice(), &untimed].concat().join(", ");
            let what = format!("{} has no column {all}", file.display());
            let needed = [columns, times].concat().join(", ");
            let help = if missing.is_empty() { help } else { "" };
            return Err(Error::new(Kind::Refused, what)
                .help(format!("it needs {needed}, and has {}{help}", there.join(", "))));
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
        text.parse()
            .ok()
            .filter(|number| *number <= limit)
            .ok_or_else(|| self.wrong(column, &format!("write a whole number from 0 to {limit}")))
    }

    /// A time or duration in seconds with at most three decimals, as milliseconds; `None` if the
    /// cell is empty.
    fn seconds(&self, column: &str) -> Result<Option<u64>, Error> {
        let text = self.text(column);
        if text.is_empty() {
            return Ok(None);
        }
        let help = format!("write seconds, from 0 to {MAX_SECONDS}, with at most three decimals");
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > 3 {
            return Err(self.wrong(column, &help));
        }
        match (whole.parse::<u64>(), format!("{part:0<3}").parse::<u64>()) {
            (Ok(whole), Ok(part)) if whole <= MAX_SECONDS => Ok(Some(whole * 1000 + part)),
            _ => Err(self.wrong(column, &help)),
        }
    }

    fn wrong(&self, column: &str, help: &str) -> Error {
        let shown: String = self.text(column).chars().take(40).collect();
        let place = format!("{} line {}: {column}", self.table.0.display(), self.line);
        Error::new(Kind::Refused, format!("{place} is '{shown}'")).help(help)
    }
}

/// Enough for any machine.
const MAX_AMOUNT: u64 = 1 << 40;
const MAX_GPUS: u64 = 1024;
/// Beyond the year 5000, also where times count from 1970.
const MAX_SECONDS: u64 = 100_000_000_000;
const MAX_MEMBERS: u64 = 1_000_000;

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

/// What tells what a task asks for.
const SIZES: [&str; 4] = ["cpu_milli", "memory_mib", "num_gpu", "gpu_milli"];
/// What tells when it came and how long it took.
const TIMES: [&str; 3] = ["creation_time", "deletion_time", "scheduled_time"];

/// The tasks of a file.
pub(super) fn tasks(file: &Path) -> Result<Vec<TraceTask>, Error> {
    Table::open(file, &SIZES)?.read(task)
}

fn task(row: &Row<'_>) -> Result<TraceTask, Error> {
    let share = row.number("gpu_milli", WHOLE_GPU.into())?;
    let models = row.text("gpu_spec").split('|').filter(|model| !model.is_empty());
    Ok(TraceTask {
        cpu: row.number("cpu_milli", MAX_AMOUNT)?,
        memory: row.number("memory_mib", MAX_AMOUNT)?,
        gpus: u16::try_from(row.number("num_gpu", MAX_GPUS)?).unwrap_or(u16::MAX),
        share: u16::try_from(share).unwrap_or(WHOLE_GPU),
        models: models.map(str::to_owned).collect(),
    })
}

/// Tasks with their times, and how many were left out, by why.
#[derive(Default)]
pub(super) struct Timed {
    /// In the order of the file.
    pub(super) jobs: Vec<PlayedJob>,
    pub(super) skipped: BTreeMap<&'static str, u64>,
}

/// The tasks of a file that says when each came, started and ended.
pub(super) fn timed(file: &Path) -> Result<Timed, Error> {
    const ELSEWHERE: &str = "; without times there is no queue: 'atelier simulate placement' places \
                             the tasks without any";
    let table = Table::open_for(file, &SIZES, &TIMES, ELSEWHERE)?;
    let users = std::cell::RefCell::new(BTreeMap::new());
    let rows = table.read(|row| timed_task(row, &mut users.borrow_mut()))?;
    let mut timed = Timed {
        skipped: [NOT_SCHEDULED, NOT_DELETED, BACKWARDS].map(|why| (why, 0)).into(),
        ..Timed::default()
    };
    for row in rows {
        match row {
            Ok(job) => timed.jobs.push(job),
            Err(why) => *timed.skipped.entry(why).or_default() += 1,
        }
    }
    Ok(timed)
}

const NOT_SCHEDULED: &str = "no scheduled_time";
const NOT_DELETED: &str = "no deletion_time";
const BACKWARDS: &str = "deletion_time before scheduled_time";

/// One row, or why it is left out.
fn timed_task(
    row: &Row<'_>,
    users: &mut BTreeMap<String, Principal>,
) -> Result<Result<PlayedJob, &'static str>, Error> {
    let task = task(row)?;
    let members = row.number("instance_count", MAX_MEMBERS)?.max(1);
    let timeout = row.seconds("timeout")?.filter(|ms| *ms > 0);
    let arrives = row
        .seconds("creation_time")?
        .ok_or_else(|| row.wrong("creation_time", "write when it came, in seconds"))?;
    let (start, end) = (row.seconds("scheduled_time")?, row.seconds("deletion_time")?);
    // Any text may stand for a user; names here have rules of their own.
    let next = users.len() + 1;
    let user = match users.get(row.text("user")) {
        Some(user) => user.clone(),
        None => {
            let user = Principal::new(&format!("user-{next}"))
                .map_err(|error| Error::new(Kind::Failed, error.to_string()))?;
            users.insert(row.text("user").to_owned(), user.clone());
            user
        }
    };
    let Some(start) = start else { return Ok(Err(NOT_SCHEDULED)) };
    let Some(end) = end else { return Ok(Err(NOT_DELETED)) };
    let Some(length) = end.checked_sub(start) else { return Ok(Err(BACKWARDS)) };
    Ok(Ok(PlayedJob {
        user,
        priority: Priority::Medium,
        tier: JobTier::default(),
        request: Request {
            members: u32::try_from(members).unwrap_or(u32::MAX),
            demand: Demand::from(&task),
        },
        arrives: Timestamp::from_millis(i64::try_from(arrives).unwrap_or(i64::MAX)),
        length_ms: timeout.map_or(length, |timeout| length.min(timeout)),
        most_ms: timeout,
    }))
}
