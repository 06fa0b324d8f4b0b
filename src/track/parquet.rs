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

use std::collections::VecDeque;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use atelier_core::track::{Metric, RunId, StoredMetric};
use bytes::{Buf as _, Bytes, BytesMut};
use futures::TryStreamExt as _;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::reader::ColumnReader;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::{ParquetError, Result as Parquet};
use parquet::file::metadata::{
    KeyValue, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData, SortingColumn,
};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{ChunkReader, FileReader as _, Length, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

use super::Error;
use crate::storage::{self, Datastore, ObjectPath, Opened};
use crate::store::tracking::SealedPointer;

const SCHEMA: &str = "message metrics {
    REQUIRED BYTE_ARRAY key (STRING);
    REQUIRED INT64 step;
    REQUIRED INT64 timestamp (TIMESTAMP(MILLIS, true));
    REQUIRED DOUBLE value;
}";

/// Rows of a row group.
pub(super) const GROUP_ROWS: usize = 65_536;
/// How much of a file's end is read at first: footers, and small files whole.
const TAIL: u64 = 64 * 1024;
/// Files whose ends are remembered.
const REMEMBERED: usize = 32;

/// Writes points in the order of storage.
pub(crate) struct Writer<W: Write + Send> {
    file: SerializedFileWriter<W>,
    rows: Vec<StoredMetric>,
    points: u64,
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
        Ok(Self { file, rows: Vec::new(), points: 0 })
    }

    pub(crate) fn add(&mut self, point: StoredMetric) -> Parquet<()> {
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
        if let Some(mut column) = group.next_column()? {
            column.typed::<ByteArrayType>().write_batch(&keys, None, None)?;
            column.close()?;
        }
        for numbers in [&steps, &times] {
            if let Some(mut column) = group.next_column()? {
                column.typed::<Int64Type>().write_batch(numbers, None, None)?;
                column.close()?;
            }
        }
        if let Some(mut column) = group.next_column()? {
            column.typed::<DoubleType>().write_batch(&values, None, None)?;
            column.close()?;
        }
        group.close()?;
        Ok(())
    }

    /// Ends the file; how many points it has.
    pub(crate) fn finish(mut self) -> Parquet<u64> {
        self.flush()?;
        let mut out = self.file.into_inner()?;
        out.flush()?;
        Ok(self.points)
    }
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

    /// The points of one row group. Nothing if the file has been replaced since it was opened.
    pub(super) async fn group(&self, index: usize) -> Result<Option<Vec<StoredMetric>>, Error> {
        let damaged = |source| Error::Sealed { object: self.path.to_string(), source };
        let range = group_range(self.metadata.row_group(index));
        let mut pieces = vec![self.tail.clone()];
        if range.start < self.tail.0 {
            let opened = self.datastore.open(&self.path).await?;
            if opened.meta.etag != self.etag {
                return Ok(None);
            }
            pieces.insert(0, (range.start, read(opened, range).await?));
        }
        decode(Pieces { length: self.length, pieces }, index).map(Some).map_err(damaged)
    }

    /// Row groups that may hold points of the key.
    fn groups_of(&self, key: &str) -> Vec<usize> {
        let may_hold = |index: &usize| {
            let statistics = self.metadata.row_group(*index).column(0).statistics();
            let min = statistics.and_then(|s| s.min_bytes_opt());
            let max = statistics.and_then(|s| s.max_bytes_opt());
            min.is_none_or(|min| min <= key.as_bytes())
                && max.is_none_or(|max| key.as_bytes() <= max)
        };
        (0..self.groups()).filter(may_hold).collect()
    }
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

fn decode(pieces: Pieces, index: usize) -> Parquet<Vec<StoredMetric>> {
    let reader = SerializedFileReader::new(pieces)?;
    let group = reader.get_row_group(index)?;
    let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
    let unexpected = || ParquetError::General("its columns are not those of metrics".to_owned());
    let (mut keys, mut steps, mut times, mut values) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    match group.get_column_reader(0)? {
        ColumnReader::ByteArrayColumnReader(mut column) => {
            column.read_records(rows, None, None, &mut keys)?;
        }
        _ => return Err(unexpected()),
    }
    for (index, numbers) in [(1, &mut steps), (2, &mut times)] {
        match group.get_column_reader(index)? {
            ColumnReader::Int64ColumnReader(mut column) => {
                column.read_records(rows, None, None, numbers)?;
            }
            _ => return Err(unexpected()),
        }
    }
    match group.get_column_reader(3)? {
        ColumnReader::DoubleColumnReader(mut column) => {
            column.read_records(rows, None, None, &mut values)?;
        }
        _ => return Err(unexpected()),
    }
    if [keys.len(), steps.len(), times.len(), values.len()] != [rows; 4] {
        return Err(unexpected());
    }
    let numbers = steps.into_iter().zip(times).zip(values);
    keys.into_iter()
        .zip(numbers)
        .map(|(key, ((step, timestamp), value))| {
            let key = key.as_utf8()?.to_owned();
            Ok(Metric { key, value, timestamp, step }.into())
        })
        .collect()
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

    /// The sealed points of one metric.
    pub(super) async fn points(
        &self,
        datastore: &Datastore,
        pointer: &SealedPointer,
        key: &str,
    ) -> Result<Vec<StoredMetric>, Error> {
        let mut known = self.recent(&pointer.object);
        // A file may be replaced (by one that holds more) while it is read: then once more.
        for _ in 0..3 {
            let file = match known.take() {
                Some(file) if file.length == pointer.bytes => file,
                _ => Arc::new(File::open(datastore, &pointer.object).await?),
            };
            if let Some(points) = points_of(&file, key).await? {
                self.remember(file);
                return Ok(points);
            }
        }
        Err(Error::Sealed {
            object: pointer.object.clone(),
            source: ParquetError::General("it keeps changing; try again".to_owned()),
        })
    }
}

async fn points_of(file: &File, key: &str) -> Result<Option<Vec<StoredMetric>>, Error> {
    let mut points = Vec::new();
    for index in file.groups_of(key) {
        let Some(group) = file.group(index).await? else { return Ok(None) };
        points.extend(group.into_iter().filter(|point| point.key == key));
    }
    Ok(Some(points))
}

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
