//! Points of a metric, and which of them is the latest.

use std::cmp::Ordering;

/// A point of a metric as a client sends it.
#[derive(Clone, PartialEq, Debug)]
pub struct Metric {
    /// The metric's name, at most 250 characters.
    pub key: String,
    /// Any double, NaN and the infinities included.
    pub value: f64,
    /// Milliseconds since the Unix epoch, not negative.
    pub timestamp: i64,
    /// The training step, or whatever the client counts; may be negative.
    pub step: i64,
}

/// A point as it is kept and compared: NaN is a flag beside the value 0, and an infinity is the
/// largest finite double of its sign, as in MLflow's own store. So every value has an order and
/// equal points are equal bit for bit.
#[derive(Clone, PartialEq, Debug)]
pub struct StoredMetric {
    /// The metric's name.
    pub key: String,
    /// The training step.
    pub step: i64,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// A finite number; 0 for NaN.
    pub value: f64,
    /// Whether the value is NaN.
    pub is_nan: bool,
}

impl From<Metric> for StoredMetric {
    fn from(metric: Metric) -> Self {
        let Metric { key, value, timestamp, step } = metric;
        let Point { value, is_nan, .. } = Point::new(step, timestamp, value);
        Self { key, step, timestamp, value, is_nan }
    }
}

impl StoredMetric {
    /// A point of the metric `key`.
    pub fn of(key: &str, point: Point) -> Self {
        let Point { step, timestamp, value, is_nan } = point;
        Self { key: key.to_owned(), step, timestamp, value, is_nan }
    }

    /// Without the metric's name.
    pub const fn point(&self) -> Point {
        let Self { step, timestamp, value, is_nan, .. } = *self;
        Point { step, timestamp, value, is_nan }
    }

    /// The value as clients see it: NaN again where it was NaN.
    pub const fn value(&self) -> f64 {
        self.point().value()
    }

    /// Which of two points of one metric is later: see [`Point::later`].
    pub fn later(&self, other: &Self) -> Ordering {
        self.point().later(&other.point())
    }

    /// The order in which a metric's history is shown: see [`Point::in_history`].
    pub fn in_history(&self, other: &Self) -> Ordering {
        self.point().in_history(&other.point())
    }

    /// The order in which points are kept: by key, then step, timestamp and value.
    pub fn in_storage(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key).then_with(|| self.later(other))
    }
}

/// A [`StoredMetric`] of a metric that is known: histories are long.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Point {
    /// The training step.
    pub step: i64,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// A finite number; 0 for NaN.
    pub value: f64,
    /// Whether the value is NaN.
    pub is_nan: bool,
}

impl Point {
    /// The point as it is kept.
    pub fn new(step: i64, timestamp: i64, value: f64) -> Self {
        let is_nan = value.is_nan();
        // `+ 0.0` turns -0.0 into 0.0, so that the two are one point.
        let value = if is_nan { 0.0 } else { value.clamp(f64::MIN, f64::MAX) + 0.0 };
        Self { step, timestamp, value, is_nan }
    }

    /// The value as clients see it: NaN again where it was NaN.
    pub const fn value(&self) -> f64 {
        if self.is_nan { f64::NAN } else { self.value }
    }

    /// Which of two points of one metric is later: by step, then timestamp, then value. MLflow
    /// leaves a tie between NaN and 0 to the order of arrival; here NaN is the later one, so that
    /// the answer does not depend on the order in which retried requests arrive.
    pub fn later(&self, other: &Self) -> Ordering {
        (self.step, self.timestamp)
            .cmp(&(other.step, other.timestamp))
            .then_with(|| self.by_value(other))
    }

    /// The order in which a metric's history is shown: by timestamp, then step, then value.
    pub fn in_history(&self, other: &Self) -> Ordering {
        (self.timestamp, self.step)
            .cmp(&(other.timestamp, other.step))
            .then_with(|| self.by_value(other))
    }

    fn by_value(&self, other: &Self) -> Ordering {
        self.value.total_cmp(&other.value).then(self.is_nan.cmp(&other.is_nan))
    }
}

/// Some points of one metric that follow each other, in short.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Block {
    /// How many points.
    pub points: u64,
    /// The first, by [`Point::later`].
    pub first: Point,
    /// The last.
    pub last: Point,
    /// The first of the lowest; NaN only if all are.
    pub lowest: Point,
    /// The first of the highest; NaN only if all are.
    pub highest: Point,
}

impl From<Point> for Block {
    fn from(point: Point) -> Self {
        Self { points: 1, first: point, last: point, lowest: point, highest: point }
    }
}

impl Block {
    /// Takes in the points of a block that comes after this one.
    pub fn extend(&mut self, next: &Self) {
        self.points += next.points;
        self.last = next.last;
        self.lowest = lower(self.lowest, next.lowest);
        self.highest = higher(self.highest, next.highest);
    }
}

fn lower(one: Point, other: Point) -> Point {
    if !other.is_nan && (one.is_nan || other.value < one.value) { other } else { one }
}

fn higher(one: Point, other: Point) -> Point {
    if !other.is_nan && (one.is_nan || other.value > one.value) { other } else { one }
}

/// At most `most` points out of blocks in order (by their first points): as [`sampled`] chooses, except that only the
/// first of a block and the last of all can be chosen, and that where `most` is at least 4, the lowest and the highest of
/// all are among them.
pub fn drawn(blocks: &[Block], most: usize) -> Vec<Point> {
    let Some(mut whole) = blocks.first().copied() else { return Vec::new() };
    blocks.iter().skip(1).for_each(|block| whole.extend(block));
    let last = blocks.iter().map(|block| block.last).max_by(Point::later).unwrap_or(whole.last);
    let extremes = if most < 4 { Vec::new() } else { vec![whole.lowest, whole.highest] };
    let even = most - extremes.len();
    let mut chosen = Vec::with_capacity(most);
    let (mut rest, mut before, mut part) = (blocks.iter(), 0, 0);
    let mut block = rest.next();
    while let Some(held) = block.filter(|_| part < even) {
        let rank = start(whole.points, even as u64, part as u64);
        if rank < before + held.points {
            chosen.push(held.first);
            part += 1;
        } else {
            before += held.points;
            block = rest.next();
        }
    }
    chosen.dedup();
    if chosen.len() == even {
        chosen.pop();
    }
    if even > 0 {
        chosen.push(last);
    }
    chosen.extend(extremes);
    chosen.sort_by(Point::later);
    chosen.dedup();
    chosen
}

/// Where the `part`-th of `parts` parts of nearly the same length begins: the longer ones come first.
fn start(all: u64, parts: u64, part: u64) -> u64 {
    let (Some(length), Some(longer)) = (all.checked_div(parts), all.checked_rem(parts)) else {
        return 0;
    };
    part * length + part.min(longer)
}

/// At most `most` of some points, evenly chosen from what is in order: the first of each of `most` parts of nearly the
/// same length, and instead of the last of these the last point of all.
pub fn sampled<T: Clone>(points: Vec<T>, most: usize) -> Vec<T> {
    let all = points.len();
    if all <= most {
        return points;
    }
    let mut chosen: Vec<T> = (0..most as u64)
        .filter_map(|part| {
            let at = start(all as u64, most as u64, part);
            points.get(usize::try_from(at).ok()?).cloned()
        })
        .collect();
    if let (Some(last), Some(end)) = (chosen.last_mut(), points.last()) {
        last.clone_from(end);
    }
    chosen
}
