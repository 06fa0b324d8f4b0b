//! Sealed metrics as Parquet: written once, read by key.
//!
//! One row for each point, sorted by `key`, `step`, `timestamp`, `value`, in row groups of at most
//! 65,536 rows whose statistics tell which keys they hold:
//!
//! | column | type |
//! |---|---|
//! | `key` | `BYTE_ARRAY` (string), dictionary |
//! | `step` | `INT64`, delta |
//! | `timestamp` | `INT64` (timestamp, milliseconds, UTC), delta |
//! | `value` | `DOUBLE`; NaN as NaN, an infinity as the largest double of its sign |
//!
//! All required, compressed with zstd. The file's metadata has `atelier.run` and
//! `atelier.metrics.version` (1). Any Parquet reader reads it.
//!
//! A file of more than one row group has a [`summary`](super::summary) between its last row group and its footer, where
//! `atelier.metrics.summary` says: offset and length in bytes, decimal, a space between.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::ops::{Range, RangeInclusive};
use std::sync::{Arc, Mutex};

use atelier_core::track::{Block, Point, RunId, StoredMetric};
use bytes::{Buf as _, Bytes, BytesMut};
use futures::TryStreamExt as _;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::reader::ColumnReader;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::errors::{ParquetError, Result as Parquet};
use parquet::file::metadata::{
    KeyValue, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData, SortingColumn,
};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{
    ChunkReader, FileReader as _, Length, RowGroupReader, SerializedFileReader,
};
use parquet::file::statistics::Statistics;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

use super::Error;
use super::summary::{self, Summary};
use crate::storage::{self, Datastore, ObjectPath, Opened};
use crate::store::tracking::SealedPointer;

const SCHEMA: &str = "message metrics {
    REQUIRED BYTE_ARRAY key (STRING);
    REQUIRED INT64 step;
    REQUIRED INT64 timestamp (TIMESTAMP(MILLIS, true));
    REQUIRED DOUBLE value;
}";

/// Rows of a row group; few for tests, which look at files of many.
pub(super) const GROUP_ROWS: usize = if cfg!(test) { 64 } else { 65_536 };
/// How much of a file's end is read at first: footers, and small files whole.
const TAIL: u64 = 64 * 1024;
/// Files whose ends are remembered.
const REMEMBERED: usize = 32;
/// The name, in a file's metadata, of where its summary lies.
const SUMMARY: &str = "atelier.metrics.summary";

/// Writes points in the order of storage.
pub(crate) struct Writer<W: Write + Send> {
    file: SerializedFileWriter<W>,
    rows: Vec<StoredMetric>,
    points: u64,
    summary: Summary,
}

impl<W: Write + Send> Writer<W> {
    pub(crate) fn new(out: W, run: &RunId) -> Parquet<Self> {
        let column = |name: &str| ColumnPath::from(name);
        let sorted =
            |column_idx| SortingColumn { column_idx, descending: false, nulls_first: false };
        let fact = |key: &str, value: &str| KeyValue::new(key.to_owned(), value.to_owned());
        let mut properties = WriterProperties::builder()
            .set_created_by(concat!("atelier ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_statistics_truncate_length(None)
            .set_sorting_columns(Some(vec![sorted(0), sorted(1), sorted(2)]))
            .set_key_value_metadata(Some(vec![
                fact("atelier.run", run.as_str()),
                fact("atelier.metrics.version", "1"),
            ]));
        for (name, encoding) in [
            ("step", Encoding::DELTA_BINARY_PACKED),
            ("timestamp", Encoding::DELTA_BINARY_PACKED),
            ("value", Encoding::BYTE_STREAM_SPLIT),
        ] {
            properties = properties
                .set_column_dictionary_enabled(column(name), false)
                .set_column_encoding(column(name), encoding);
        }
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let file = SerializedFileWriter::new(out, schema, Arc::new(properties.build()))?;
        Ok(Self { file, rows: Vec::new(), points: 0, summary: Summary::default() })
    }

    pub(crate) fn add(&mut self, point: StoredMetric) -> Parquet<()> {
        self.summary.add(&point);
        self.rows.push(point);
        if self.rows.len() == GROUP_ROWS { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Parquet<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        self.points += rows.len() as u64;
        let mut group = self.file.next_row_group()?;
        let keys: Vec<ByteArray> = rows.iter().map(|row| row.key.as_str().into()).collect();
        let steps: Vec<i64> = rows.iter().map(|row| row.step).collect();
        let times: Vec<i64> = rows.iter().map(|row| row.timestamp).collect();
        let values: Vec<f64> = rows.iter().map(StoredMetric::value).collect();
        write_column::<ByteArrayType, W>(&mut group, &keys)?;
        write_column::<Int64Type, W>(&mut group, &steps)?;
        write_column::<Int64Type, W>(&mut group, &times)?;
        write_column::<DoubleType, W>(&mut group, &values)?;
        group.close()?;
        Ok(())
    }

    /// Ends the file; how many points it has.
    pub(crate) fn finish(mut self) -> Parquet<u64> {
        self.flush()?;
        // A single row group is read as a whole.
        if self.points > GROUP_ROWS as u64 {
            let bytes = std::mem::take(&mut self.summary).encode()?;
            let place = format!("{} {}", self.file.bytes_written(), bytes.len());
            self.file.write_all(&bytes)?;
            self.file.append_key_value_metadata(KeyValue::new(SUMMARY.to_owned(), place));
        }
        let mut out = self.file.into_inner()?;
        out.flush()?;
        Ok(self.points)
    }
}

/// Writes the next column of a row group.
pub(super) fn write_column<T: DataType, W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    values: &[T::T],
) -> Parquet<()> {
    let mut column = group
        .next_column()?
        .ok_or_else(|| ParquetError::General("it has too few columns".to_owned()))?;
    column.typed::<T>().write_batch(values, None, None)?;
    column.close()
}

/// Some ranges of a file, held in memory.
struct Pieces {
    length: u64,
    pieces: Vec<(u64, Bytes)>,
}

impl Length for Pieces {
    fn len(&self) -> u64 {
        self.length
    }
}

impl Pieces {
    fn find(&self, start: u64) -> Parquet<Bytes> {
        self.pieces
            .iter()
            .find_map(|(at, bytes)| {
                let offset = usize::try_from(start.checked_sub(*at)?).ok()?;
                (offset <= bytes.len()).then(|| bytes.slice(offset..))
            })
            .ok_or_else(|| ParquetError::EOF(format!("byte {start} was not read")))
    }
}

impl ChunkReader for Pieces {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Parquet<Self::T> {
        Ok(self.find(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Parquet<Bytes> {
        let bytes = self.find(start)?;
        if bytes.len() < length {
            return Err(ParquetError::EOF(format!("{length} bytes from {start} were not read")));
        }
        Ok(bytes.slice(..length))
    }
}

/// A sealed file, its end in memory.
pub(super) struct File {
    datastore: Datastore,
    path: ObjectPath,
    etag: String,
    length: u64,
    tail: (u64, Bytes),
    metadata: ParquetMetaData,
}

async fn read(opened: Opened, range: Range<u64>) -> Result<Bytes, storage::Error> {
    let mut bytes = BytesMut::new();
    let mut stream = opened.stream(range);
    while let Some(piece) = stream.try_next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

impl File {
    pub(super) async fn open(datastore: &Datastore, object: &str) -> Result<Self, Error> {
        let path = ObjectPath::new(object).map_err(storage::Error::from)?;
        let damaged = |source| Error::Sealed { object: object.to_owned(), source };
        let mut wanted = TAIL;
        loop {
            let opened = datastore.open(&path).await?;
            let (length, etag) = (opened.meta.size, opened.meta.etag.clone());
            let from = length.saturating_sub(wanted);
            let bytes = read(opened, from..length).await?;
            let mut reader = ParquetMetaDataReader::new();
            match reader.try_parse_sized(&bytes, length) {
                Ok(()) => {
                    let metadata = reader.finish().map_err(damaged)?;
                    let datastore = datastore.clone();
                    let tail = (from, bytes);
                    return Ok(Self { datastore, path, etag, length, tail, metadata });
                }
                Err(ParquetError::NeedMoreData(more)) if from > 0 => {
                    wanted = (more as u64).max(wanted * 2);
                }
                Err(source) => return Err(damaged(source)),
            }
        }
    }

    pub(super) fn groups(&self) -> usize {
        self.metadata.num_row_groups()
    }

    fn damaged(&self, source: ParquetError) -> Error {
        Error::Sealed { object: self.path.to_string(), source }
    }

    /// The bytes of `range`, and those of the file's end. Nothing if the file has been replaced since it was opened.
    async fn pieces(&self, range: Range<u64>) -> Result<Option<Pieces>, Error> {
        let mut pieces = vec![self.tail.clone()];
        if range.start < self.tail.0 {
            let opened = self.datastore.open(&self.path).await?;
            if opened.meta.etag != self.etag {
                return Ok(None);
            }
            pieces.insert(0, (range.start, read(opened, range).await?));
        }
        Ok(Some(Pieces { length: self.length, pieces }))
    }

    /// The points of one row group. Nothing if the file has been replaced since it was opened.
    pub(super) async fn group(&self, index: usize) -> Result<Option<Vec<StoredMetric>>, Error> {
        let range = group_range(self.metadata.row_group(index));
        let Some(pieces) = self.pieces(range).await? else { return Ok(None) };
        let decode = || {
            let reader = SerializedFileReader::new(pieces)?;
            let group = reader.get_row_group(index)?;
            let keys = keys(group.as_ref(), 0)?;
            let points = points(group.as_ref())?;
            let all = keys.iter().zip(points);
            all.map(|(key, point)| Ok(StoredMetric::of(key.as_utf8()?, point)))
                .collect::<Parquet<Vec<_>>>()
        };
        decode().map(Some).map_err(|source| self.damaged(source))
    }

    /// Row groups that may hold points of the key: some that follow each other.
    pub(super) fn groups_of(&self, key: &str) -> Range<usize> {
        let spans = |index: &usize| {
            let statistics = self.metadata.row_group(*index).column(0).statistics();
            let min = statistics.and_then(|s| s.min_bytes_opt());
            let max = statistics.and_then(|s| s.max_bytes_opt());
            min.is_none_or(|min| min <= key.as_bytes())
                && max.is_none_or(|max| key.as_bytes() <= max)
        };
        let mut groups = (0..self.groups()).filter(spans);
        match groups.next() {
            Some(first) => first..groups.last().unwrap_or(first) + 1,
            None => 0..0,
        }
    }

    /// What the statistics of a row group tell of its points.
    pub(super) fn bounds(&self, index: usize) -> Bounds {
        let group = self.metadata.row_group(index);
        let range = |column| match group.column(column).statistics() {
            Some(Statistics::Int64(found)) => {
                let min = found.min_opt().copied().unwrap_or(i64::MIN);
                min..=found.max_opt().copied().unwrap_or(i64::MAX)
            }
            _ => i64::MIN..=i64::MAX,
        };
        Bounds { steps: range(1), times: range(2) }
    }

    /// The points of a metric in some row groups, in the order of storage. Nothing if the file has been replaced since it
    /// was opened.
    pub(super) async fn points(
        &self,
        groups: &[usize],
        key: &str,
    ) -> Result<Option<Vec<Point>>, Error> {
        let mut all = Vec::new();
        for groups in groups.chunk_by(|one, next| one + 1 == *next) {
            let ranges = groups.iter().map(|index| group_range(self.metadata.row_group(*index)));
            let range = ranges.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
            let Some(pieces) = self.pieces(range.unwrap_or_default()).await? else {
                return Ok(None);
            };
            let (groups, key) = (groups.to_vec(), key.to_owned());
            let decode = move || points_of(pieces, &groups, &key);
            let decoded = tokio::task::spawn_blocking(decode).await.map_err(|_| Error::Stopping)?;
            all.extend(decoded.map_err(|source| self.damaged(source))?);
        }
        Ok(Some(all))
    }

    /// A metric's points in short, if the file has a summary. Nothing if the file has been replaced since it was opened.
    pub(super) async fn summary(&self, key: &str) -> Result<Option<Option<Vec<Block>>>, Error> {
        let facts = self.metadata.file_metadata().key_value_metadata();
        let place = facts.and_then(|facts| facts.iter().find(|fact| fact.key == SUMMARY));
        let Some(place) = place else { return Ok(Some(None)) };
        let unread = || self.damaged(ParquetError::General(format!("it has no {SUMMARY}")));
        let place = place.value.as_deref().and_then(|text| text.split_once(' '));
        let (offset, length) = place.ok_or_else(unread)?;
        let (Ok(offset), Ok(length)) = (offset.parse::<u64>(), length.parse::<usize>()) else {
            return Err(unread());
        };
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.length);
        let end = end.ok_or_else(unread)?;
        let Some(pieces) = self.pieces(offset..end).await? else { return Ok(None) };
        let bytes = pieces.get_bytes(offset, length).map_err(|source| self.damaged(source))?;
        let key = key.to_owned();
        let decode = move || summary::decode(bytes, &key);
        let decoded = tokio::task::spawn_blocking(decode).await.map_err(|_| Error::Stopping)?;
        decoded.map(|blocks| Some(Some(blocks))).map_err(|source| self.damaged(source))
    }
}

/// What is known of a row group without reading it.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub(super) steps: RangeInclusive<i64>,
    pub(super) times: RangeInclusive<i64>,
}

/// Whether a row group holds points of this metric alone.
fn is_of(group: &RowGroupMetaData, key: &str) -> bool {
    group.column(0).statistics().is_some_and(|statistics| {
        let edges = [statistics.min_bytes_opt(), statistics.max_bytes_opt()];
        edges == [Some(key.as_bytes()); 2]
    })
}

/// Which of the sorted keys are this one.
pub(super) fn rows_of(keys: &[ByteArray], key: &str) -> Range<usize> {
    let first = keys.partition_point(|other| other.data() < key.as_bytes());
    first..keys.partition_point(|other| other.data() <= key.as_bytes())
}

/// Where a row group's bytes lie.
fn group_range(group: &RowGroupMetaData) -> Range<u64> {
    let ranges = group.columns().iter().map(|column| column.byte_range());
    let (mut start, mut end) = (u64::MAX, 0);
    for (from, length) in ranges {
        start = start.min(from);
        end = end.max(from.saturating_add(length));
    }
    start.min(end)..end
}

fn unexpected() -> ParquetError {
    ParquetError::General("its columns are not those of metrics".to_owned())
}

/// A row group's column of texts.
pub(super) fn keys(group: &dyn RowGroupReader, column: usize) -> Parquet<Vec<ByteArray>> {
    let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
    let mut read = Vec::with_capacity(rows);
    match group.get_column_reader(column)? {
        ColumnReader::ByteArrayColumnReader(mut column) => {
            column.read_records(rows, None, None, &mut read)?;
        }
        _ => return Err(unexpected()),
    }
    if read.len() == rows { Ok(read) } else { Err(unexpected()) }
}

/// A row group's column of whole numbers.
pub(super) fn integers(group: &dyn RowGroupReader, column: usize) -> Parquet<Vec<i64>> {
    let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
    let mut read = Vec::with_capacity(rows);
    match group.get_column_reader(column)? {
        ColumnReader::Int64ColumnReader(mut column) => {
            column.read_records(rows, None, None, &mut read)?;
        }
        _ => return Err(unexpected()),
    }
    if read.len() == rows { Ok(read) } else { Err(unexpected()) }
}

/// A row group's column of doubles.
pub(super) fn doubles(group: &dyn RowGroupReader, column: usize) -> Parquet<Vec<f64>> {
    let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
    let mut read = Vec::with_capacity(rows);
    match group.get_column_reader(column)? {
        ColumnReader::DoubleColumnReader(mut column) => {
            column.read_records(rows, None, None, &mut read)?;
        }
        _ => return Err(unexpected()),
    }
    if read.len() == rows { Ok(read) } else { Err(unexpected()) }
}

fn points_of(pieces: Pieces, groups: &[usize], key: &str) -> Parquet<Vec<Point>> {
    let reader = SerializedFileReader::new(pieces)?;
    let mut all = Vec::new();
    for index in groups {
        let group = reader.get_row_group(*index)?;
        let rows = match is_of(group.metadata(), key) {
            true => None,
            false => Some(rows_of(&keys(group.as_ref(), 0)?, key)),
        };
        let points = points(group.as_ref())?;
        let own = match rows {
            None => points.as_slice(),
            Some(rows) => points.get(rows).unwrap_or_default(),
        };
        all.extend_from_slice(own);
    }
    Ok(all)
}

fn points(group: &dyn RowGroupReader) -> Parquet<Vec<Point>> {
    let (steps, times, values) = (integers(group, 1)?, integers(group, 2)?, doubles(group, 3)?);
    let all = steps.into_iter().zip(times).zip(values);
    Ok(all.map(|((step, timestamp), value)| Point::new(step, timestamp, value)).collect())
}

/// Files that were read lately.
#[derive(Default)]
pub(super) struct Files {
    recent: Mutex<VecDeque<Arc<File>>>,
}

impl Files {
    fn recent(&self, object: &str) -> Option<Arc<File>> {
        let recent = self.recent.lock().ok()?;
        recent.iter().find(|file| file.path.as_str() == object).cloned()
    }

    fn remember(&self, file: Arc<File>) {
        let Ok(mut recent) = self.recent.lock() else { return };
        recent.retain(|other| other.path != file.path);
        recent.push_front(file);
        recent.truncate(REMEMBERED);
    }

    /// Forgets a file, because another takes its place.
    pub(super) fn forget(&self, object: &str) {
        if let Ok(mut recent) = self.recent.lock() {
            recent.retain(|file| file.path.as_str() != object);
        }
    }

    /// The file that a pointer names, or the one that has taken its place (and holds more).
    pub(super) async fn open(
        &self,
        datastore: &Datastore,
        pointer: &SealedPointer,
    ) -> Result<Arc<File>, Error> {
        if let Some(file) = self.recent(&pointer.object).filter(|file| file.length == pointer.bytes)
        {
            return Ok(file);
        }
        let file = Arc::new(File::open(datastore, &pointer.object).await?);
        self.remember(file.clone());
        Ok(file)
    }
}

/// What to say of a file that was replaced [`AGAIN`] times while it was read.
pub(super) fn keeps_changing(pointer: &SealedPointer) -> Error {
    Error::Sealed {
        object: pointer.object.clone(),
        source: ParquetError::General("it keeps changing; try again".to_owned()),
    }
}

/// How often a file is read anew that is replaced meanwhile.
pub(super) const AGAIN: usize = 3;

/// A part of a file on its way.
pub(super) enum Piece {
    Bytes(Bytes),
    /// The file is whole.
    End,
}

/// Hands what is written to the other end of a channel, in pieces.
pub(super) struct Pipe {
    pub(super) out: tokio::sync::mpsc::Sender<Piece>,
    pub(super) buffer: BytesMut,
}

/// Bytes of a piece.
const PIECE: usize = 512 * 1024;

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = Piece::Bytes(self.buffer.split().freeze());
        self.out.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
