//! Reading a metric's points: hot rows and sealed points, each point once.
//!
//! The cost is that of what is answered, not of the history: a page reads the row groups that may hold its points, and a
//! curve of a long history is drawn from the [`summary`](super::summary) of the sealed file.

use std::ops::RangeInclusive;

use atelier_core::track::{
    Block, Cell, Error as Refusal, PageToken, Point, RunId, StoredMetric, drawn, fingerprint,
    sampled,
};

use super::parquet::{AGAIN, Bounds, File, GROUP_ROWS, keeps_changing};
use super::{Error, Inner, Tracking, summary};
use crate::store::tracking::{self, SealedPointer};

/// A part of a metric's history.
#[derive(Clone, PartialEq, Debug)]
pub struct History {
    /// Points by timestamp, step and value.
    pub points: Vec<StoredMetric>,
    /// Where the next part begins, if there is one.
    pub next: Option<PageToken>,
}

/// Row groups read at most to choose from all of their points; of more, the summary is chosen from.
const WHOLE: usize = 8;

impl Tracking {
    /// A metric's history, from where a part ended.
    ///
    /// # Errors
    /// If there is no such run, or the token is not of this history.
    pub async fn history(
        &self,
        run: &RunId,
        key: &str,
        limit: usize,
        after: Option<&str>,
    ) -> Result<History, Error> {
        let search = fingerprint(&["history", run.as_str(), key]);
        let after = after.map(|token| PageToken::parse(token, search)).transpose()?;
        let after = after.map(|token| place(&token)).transpose()?;
        let (run, name) = (run.clone(), key.to_owned());
        let (hot, sealed) = self
            .read(move |conn| {
                // The rows first: what is sealed after that is in both.
                let hot = tracking::hot_points(conn, &run, &name, &(i64::MIN..=i64::MAX))?;
                Ok((hot, tracking::sealed(conn, &run)?))
            })
            .await?;
        let mut page = Page { after, most: limit.saturating_add(1), points: Vec::new() };
        page.add(hot);
        let mut points = match sealed {
            None => page.points,
            Some(pointer) => self.page_with(&page, &pointer, key).await?,
        };
        let more = points.len() > limit;
        points.truncate(limit);
        let next = points.last().filter(|_| more).map(|last| PageToken {
            search,
            after: vec![
                Cell::Int(last.timestamp),
                Cell::Int(last.step),
                Cell::Real(last.value),
                Cell::Int(i64::from(last.is_nan)),
            ],
        });
        let points = points.into_iter().map(|point| StoredMetric::of(key, point)).collect();
        Ok(History { points, next })
    }

    /// At most `most` of a metric's points within some steps, evenly chosen, in order of steps; with the first and the
    /// last of them. Where there are many they are chosen as [`drawn`] says, otherwise exactly as [`sampled`] does.
    ///
    /// # Errors
    /// If there is no such run.
    pub async fn sample(
        &self,
        run: &RunId,
        key: &str,
        steps: RangeInclusive<i64>,
        most: usize,
    ) -> Result<Vec<StoredMetric>, Error> {
        let (run, name, within) = (run.clone(), key.to_owned(), steps.clone());
        let (hot, sealed) = self
            .read(move |conn| {
                let hot = tracking::hot_points(conn, &run, &name, &within)?;
                Ok((hot, tracking::sealed(conn, &run)?))
            })
            .await?;
        let chosen = match sealed {
            None => sampled(hot, most),
            Some(pointer) => self.sample_with(&hot, &pointer, key, &steps, most).await?,
        };
        Ok(chosen.into_iter().map(|point| StoredMetric::of(key, point)).collect())
    }

    async fn page_with(
        &self,
        page: &Page,
        pointer: &SealedPointer,
        key: &str,
    ) -> Result<Vec<Point>, Error> {
        let Inner { artifacts, files, .. } = &*self.inner;
        for _ in 0..AGAIN {
            let file = files.open(artifacts, pointer).await?;
            if let Some(points) = page.of(&file, key).await? {
                return Ok(points);
            }
            files.forget(&pointer.object);
        }
        Err(keeps_changing(pointer))
    }

    async fn sample_with(
        &self,
        hot: &[Point],
        pointer: &SealedPointer,
        key: &str,
        steps: &RangeInclusive<i64>,
        most: usize,
    ) -> Result<Vec<Point>, Error> {
        let Inner { artifacts, files, .. } = &*self.inner;
        for _ in 0..AGAIN {
            let file = files.open(artifacts, pointer).await?;
            if let Some(points) = choose(&file, key, steps, hot, most).await? {
                return Ok(points);
            }
            files.forget(&pointer.object);
        }
        Err(keeps_changing(pointer))
    }
}

/// The point that a page of a history stopped at.
fn place(token: &PageToken) -> Result<Point, Refusal> {
    match token.after.as_slice() {
        [Cell::Int(timestamp), Cell::Int(step), Cell::Real(value), Cell::Int(is_nan)] => {
            let is_nan = *is_nan == 1;
            Ok(Point { step: *step, timestamp: *timestamp, value: *value, is_nan })
        }
        _ => Err(Refusal::Invalid("Invalid page token".to_owned())),
    }
}

/// A page of a history in the making.
#[derive(Clone)]
struct Page {
    after: Option<Point>,
    /// Points wanted.
    most: usize,
    /// The first `most` of what was added, in order, each once.
    points: Vec<Point>,
}

impl Page {
    fn add(&mut self, points: Vec<Point>) {
        let after = self.after;
        let comes = |point: &Point| after.is_none_or(|after| point.in_history(&after).is_gt());
        self.points.extend(points.into_iter().filter(comes));
        self.points.sort_by(Point::in_history);
        self.points.dedup();
        self.points.truncate(self.most);
    }

    /// Whether no point at or after this time and step can be on the page.
    fn ends_before(&self, from: (i64, i64)) -> bool {
        let last = self.points.get(self.most - 1);
        last.is_some_and(|last| (last.timestamp, last.step) < from)
    }

    /// The page with a sealed file's points.
    async fn of(&self, file: &File, key: &str) -> Result<Option<Vec<Point>>, Error> {
        let mut page = self.clone();
        let groups = file.groups_of(key).map(|index| (index, file.bounds(index)));
        for index in in_time(groups, self.after.as_ref()) {
            let bounds = file.bounds(index);
            if page.ends_before((*bounds.times.start(), *bounds.steps.start())) {
                break;
            }
            let Some(points) = file.points(&[index], key).await? else { return Ok(None) };
            page.add(points);
        }
        Ok(Some(page.points))
    }
}

/// Row groups that may hold points after this one, by the earliest that each may hold.
fn in_time(groups: impl Iterator<Item = (usize, Bounds)>, after: Option<&Point>) -> Vec<usize> {
    let may_follow = |bounds: &Bounds| {
        let latest = (*bounds.times.end(), *bounds.steps.end());
        after.is_none_or(|after| latest >= (after.timestamp, after.step))
    };
    let mut groups: Vec<_> = groups
        .filter(|(_, bounds)| may_follow(bounds))
        .map(|(index, bounds)| ((*bounds.times.start(), *bounds.steps.start()), index))
        .collect();
    groups.sort_unstable();
    groups.into_iter().map(|(_, index)| index).collect()
}

/// Chooses among hot and sealed points.
async fn choose(
    file: &File,
    key: &str,
    steps: &RangeInclusive<i64>,
    hot: &[Point],
    most: usize,
) -> Result<Option<Vec<Point>>, Error> {
    let groups = within(file, key, steps);
    if groups.len() <= WHOLE {
        let Some(mut points) = file.points(&groups, key).await? else { return Ok(None) };
        points.retain(|point| steps.contains(&point.step));
        if !hot.is_empty() {
            points.extend_from_slice(hot);
            points.sort_by(Point::later);
            points.dedup();
        }
        return Ok(Some(sampled(points, most)));
    }
    let Some(blocks) = blocks_of(file, key).await? else { return Ok(None) };
    let mut blocks_within = Vec::with_capacity(blocks.len() + hot.len());
    for block in blocks {
        let (first, last) = (block.first.step, block.last.step);
        if steps.contains(&first) && steps.contains(&last) {
            blocks_within.push(block);
        } else if first <= *steps.end() && *steps.start() <= last {
            let Some(points) = edge(file, &groups, key, steps, &block).await? else {
                return Ok(None);
            };
            blocks_within.extend(points.into_iter().map(Block::from));
        }
    }
    blocks_within.extend(hot.iter().copied().map(Block::from));
    blocks_within.sort_by(|one, other| one.first.later(&other.first));
    Ok(Some(drawn(&blocks_within, most)))
}

/// The row groups that may hold a metric's points of these steps.
fn within(file: &File, key: &str, steps: &RangeInclusive<i64>) -> Vec<usize> {
    let holds = |index: &usize| {
        let bounds = file.bounds(*index);
        bounds.steps.start() <= steps.end() && steps.start() <= bounds.steps.end()
    };
    file.groups_of(key).filter(holds).collect()
}

/// A metric's points in short: from the summary or, in a file without one, from the points.
async fn blocks_of(file: &File, key: &str) -> Result<Option<Vec<Block>>, Error> {
    match file.summary(key).await? {
        None => return Ok(None),
        Some(Some(blocks)) => return Ok(Some(blocks)),
        Some(None) => {}
    }
    let mut blocks = Vec::new();
    for index in file.groups_of(key) {
        let Some(points) = file.points(&[index], key).await? else { return Ok(None) };
        points.into_iter().for_each(|point| summary::push(&mut blocks, point));
    }
    Ok(Some(blocks))
}

/// The points within some steps of a block that lies partly beyond them. They are the first or the last of all within.
async fn edge(
    file: &File,
    groups: &[usize],
    key: &str,
    steps: &RangeInclusive<i64>,
    block: &Block,
) -> Result<Option<Vec<Point>>, Error> {
    // A block lies in at most two row groups, and beside them one may seem to hold the steps that holds them of another
    // metric: the first and the last of a metric's groups are shared.
    const NEAR: usize = 3;
    const _: () = assert!(summary::BLOCK <= GROUP_ROWS as u64);
    let near = if block.first.step < *steps.start() {
        groups.get(..NEAR)
    } else {
        groups.len().checked_sub(NEAR).and_then(|from| groups.get(from..))
    };
    let Some(mut points) = file.points(near.unwrap_or(groups), key).await? else { return Ok(None) };
    points.retain(|point| {
        steps.contains(&point.step)
            && point.later(&block.first).is_ge()
            && point.later(&block.last).is_le()
    });
    Ok(Some(points))
}
