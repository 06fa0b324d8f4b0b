//! The summary of a sealed file: its points in short, so that a curve of millions of points is drawn without reading them.
//!
//! It is a Parquet file of its own within the file, one row for each 1,024 points of a metric that follow each other in
//! the order of storage (the last has fewer), sorted as they are:
//!
//! | column | type |
//! |---|---|
//! | `key` | string |
//! | `points` | `INT64`: how many |
//! | `first_step`, `first_timestamp`, `first` | the first point, with the types of the file |
//! | `last_step`, `last_timestamp`, `last` | the last |
//! | `lowest_step`, `lowest_timestamp`, `lowest` | the first of the lowest; NaN only if all are |
//! | `highest_step`, `highest_timestamp`, `highest` | the first of the highest |

use std::sync::Arc;

use atelier_core::track::{Block, Point, StoredMetric};
use bytes::Bytes;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::{ParquetError, Result as Parquet};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

use super::parquet::{doubles, integers, keys, rows_of, write_column};

/// Points of a block; few for tests.
pub(super) const BLOCK: u64 = if cfg!(test) { 8 } else { 1024 };
/// The points that a row names, in the order of its columns.
const NAMED: [&str; 4] = ["first", "last", "lowest", "highest"];

/// A summary in the making.
#[derive(Default)]
pub(super) struct Summary {
    keys: Vec<(String, Vec<Block>)>,
}

/// Adds what comes next to the last block, or opens another.
pub(super) fn push(blocks: &mut Vec<Block>, point: Point) {
    match blocks.last_mut() {
        Some(block) if block.points < BLOCK => block.extend(&point.into()),
        _ => blocks.push(point.into()),
    }
}

impl Summary {
    /// Takes in the next point, in the order of storage.
    pub(super) fn add(&mut self, point: &StoredMetric) {
        match self.keys.last_mut() {
            Some((key, blocks)) if *key == point.key => push(blocks, point.point()),
            _ => self.keys.push((point.key.clone(), vec![point.point().into()])),
        }
    }

    pub(super) fn encode(self) -> Parquet<Vec<u8>> {
        let mut schema =
            "message summary { REQUIRED BYTE_ARRAY key (STRING); REQUIRED INT64 points; "
                .to_owned();
        let mut properties = WriterProperties::builder()
            .set_created_by(concat!("atelier ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_dictionary_enabled(false)
            .set_column_dictionary_enabled(ColumnPath::from("key"), true);
        for name in NAMED {
            schema.push_str(&format!(
                "REQUIRED INT64 {name}_step; REQUIRED INT64 {name}_timestamp (TIMESTAMP(MILLIS, true)); \
                 REQUIRED DOUBLE {name}; "
            ));
            for column in ["step", "timestamp"] {
                properties = properties.set_column_encoding(
                    ColumnPath::from(format!("{name}_{column}")),
                    parquet::basic::Encoding::DELTA_BINARY_PACKED,
                );
            }
        }
        schema.push('}');
        let schema = Arc::new(parse_message_type(&schema)?);
        let mut file = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties.build()))?;
        let rows: Vec<Block> = self.keys.iter().flat_map(|(_, blocks)| blocks).copied().collect();
        let mut group = file.next_row_group()?;
        let keys = self.keys.iter().flat_map(|(key, blocks)| {
            let key = ByteArray::from(key.as_str());
            std::iter::repeat_n(key, blocks.len())
        });
        write_column::<ByteArrayType, _>(&mut group, &keys.collect::<Vec<_>>())?;
        let counts = rows.iter().map(|block| i64::try_from(block.points).unwrap_or(i64::MAX));
        write_column::<Int64Type, _>(&mut group, &counts.collect::<Vec<_>>())?;
        let points: [fn(&Block) -> Point; 4] =
            [|block| block.first, |block| block.last, |block| block.lowest, |block| block.highest];
        for point in points {
            let of =
                |number: fn(Point) -> i64| rows.iter().map(point).map(number).collect::<Vec<_>>();
            write_column::<Int64Type, _>(&mut group, &of(|point| point.step))?;
            write_column::<Int64Type, _>(&mut group, &of(|point| point.timestamp))?;
            let values: Vec<f64> = rows.iter().map(|block| point(block).value()).collect();
            write_column::<DoubleType, _>(&mut group, &values)?;
        }
        group.close()?;
        file.into_inner()
    }
}

/// The blocks of one metric.
pub(super) fn decode(bytes: Bytes, key: &str) -> Parquet<Vec<Block>> {
    let reader = SerializedFileReader::new(bytes)?;
    let group = reader.get_row_group(0)?;
    let group = group.as_ref();
    let rows = rows_of(&keys(group, 0)?, key);
    let counts = integers(group, 1)?;
    let unexpected = || ParquetError::General("its summary is not one of metrics".to_owned());
    let mut points = Vec::with_capacity(NAMED.len());
    for column in (2..).step_by(3).take(NAMED.len()) {
        let steps = integers(group, column)?;
        let (times, values) = (integers(group, column + 1)?, doubles(group, column + 2)?);
        let all = steps.into_iter().zip(times).zip(values);
        let all = all.map(|((step, timestamp), value)| Point::new(step, timestamp, value));
        points.push(all.collect::<Vec<_>>());
    }
    rows.map(|row| {
        let point = |named: usize| points.get(named).and_then(|all| all.get(row)).copied();
        Some(Block {
            points: u64::try_from(*counts.get(row)?).ok()?,
            first: point(0)?,
            last: point(1)?,
            lowest: point(2)?,
            highest: point(3)?,
        })
    })
    .map(|block| block.ok_or_else(unexpected))
    .collect()
}
