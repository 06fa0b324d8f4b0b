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
        let is_nan = value.is_nan();
        // `+ 0.0` turns -0.0 into 0.0, so that the two are one point.
        let value = if is_nan { 0.0 } else { value.clamp(f64::MIN, f64::MAX) + 0.0 };
        Self { key, step, timestamp, value, is_nan }
    }
}

impl StoredMetric {
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
            .then(self.value.total_cmp(&other.value))
            .then(self.is_nan.cmp(&other.is_nan))
    }

    /// The order in which a metric's history is shown: by timestamp, then step, then value.
    pub fn in_history(&self, other: &Self) -> Ordering {
        (self.timestamp, self.step)
            .cmp(&(other.timestamp, other.step))
            .then(self.value.total_cmp(&other.value))
            .then(self.is_nan.cmp(&other.is_nan))
    }

    /// The order in which points are kept: by key, then step, timestamp and value.
    pub fn in_storage(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key).then_with(|| self.later(other))
    }
}

/// At most `most` of some points, evenly chosen from what is in order: the first of each of `most` parts of nearly the
/// same length, and instead of the last of these the last point of all.
pub fn sampled(points: Vec<StoredMetric>, most: usize) -> Vec<StoredMetric> {
    let all = points.len();
    if all <= most {
        return points;
    }
    let Some((length, longer)) = all.checked_div(most).zip(all.checked_rem(most)) else {
        return Vec::new();
    };
    let mut chosen: Vec<StoredMetric> = (0..most)
        .filter_map(|part| points.get(part * length + part.min(longer)).cloned())
        .collect();
    if let (Some(last), Some(end)) = (chosen.last_mut(), points.last()) {
        last.clone_from(end);
    }
    chosen
}
