//! What this node keeps of what it built and fetched, as the daemon is told of it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atelier_proto::compute::v1::cache_entry::Kind as Told;
use atelier_proto::compute::v1::{CacheEntry, NodeCache, PruneNodeCacheRequest};

use crate::container::{Containers, KeptImage};
use crate::data::{DataPlane, Held, Kind};
use crate::environment::{Environments, Kept};

/// Environments that are told of at most; a message has a bound.
const MOST: usize = 5000;
/// Of the data, what is told as what.
const DATA: [(&[Kind], Told); 2] =
    [(&[Kind::Objects], Told::Code), (&[Kind::Files, Kind::Blocks], Told::Inputs)];

/// Images that were made on this node.
#[derive(Default)]
pub(crate) struct Images {
    kept: Vec<KeptImage>,
    removed: Vec<KeptImage>,
    limit: u64,
}

impl Images {
    /// What is kept, with `prune` after what is not in use was removed.
    pub(crate) async fn of(
        containers: Option<&Containers>,
        prune: Option<&PruneNodeCacheRequest>,
    ) -> Self {
        let Some(containers) = containers else { return Self::default() };
        let removed = match prune {
            Some(prune) => containers.prune(Duration::from_secs(prune.unused_for_s)).await,
            None => Vec::new(),
        };
        Self { kept: containers.kept().await, removed, limit: containers.limit() }
    }
}

/// Tells what is kept, with `prune` after what is not in use was removed. Waits for the disk.
pub(crate) fn report(
    environments: &Environments,
    images: Images,
    data: Option<&DataPlane>,
    prune: Option<&PruneNodeCacheRequest>,
) -> NodeCache {
    let mut removed = prune.map(|prune| pruned(environments, data, prune)).unwrap_or_default();
    removed.extend(images.removed.iter().take(MOST).map(image));
    let (kept, packages) = environments.kept();
    let mut entries: Vec<CacheEntry> = kept.iter().take(MOST).map(environment).collect();
    entries.extend(of_packages(packages));
    entries.extend(images.kept.iter().take(MOST).map(image));
    for (kinds, told) in DATA {
        entries
            .extend(data.and_then(|data| of_data(together(kinds, |kind| data.held(kind)), told)));
    }
    NodeCache {
        entries,
        environment_limit: environments.limit(),
        image_limit: images.limit,
        data_limit: data.map_or(0, DataPlane::cache_limit),
        removed,
    }
}

fn pruned(
    environments: &Environments,
    data: Option<&DataPlane>,
    prune: &PruneNodeCacheRequest,
) -> Vec<CacheEntry> {
    let unused_for = Duration::from_secs(prune.unused_for_s);
    // Packages have no time of their last use; they are kept for what is still young.
    let (gone, packages) = environments.prune(unused_for, prune.all && unused_for.is_zero());
    let mut removed: Vec<CacheEntry> = gone.iter().take(MOST).map(environment).collect();
    removed.extend(of_packages(packages));
    if prune.all {
        for (kinds, told) in DATA {
            let prune = |data: &DataPlane| together(kinds, |kind| data.prune(kind, unused_for));
            removed.extend(data.and_then(|data| of_data(prune(data), told)));
        }
    }
    tracing::info!(entries = removed.len(), "the cache was pruned");
    removed
}

fn environment(kept: &Kept) -> CacheEntry {
    CacheEntry {
        kind: Told::Environment.into(),
        name: kept.key.clone(),
        description: kept.description(),
        bytes: kept.bytes,
        count: 1,
        last_used_ms: millis(kept.last_used),
        in_use: kept.in_use,
        building: kept.building,
    }
}

fn image(kept: &KeptImage) -> CacheEntry {
    CacheEntry {
        kind: Told::Image.into(),
        name: kept.key.clone(),
        description: kept.description.clone(),
        bytes: kept.bytes,
        count: 1,
        last_used_ms: millis(kept.last_used),
        in_use: kept.in_use,
        building: false,
    }
}

fn of_packages(bytes: u64) -> Option<CacheEntry> {
    (bytes > 0).then(|| CacheEntry {
        kind: Told::Packages.into(),
        description: "packages that the installer keeps".to_owned(),
        bytes,
        count: 1,
        ..CacheEntry::default()
    })
}

fn together(kinds: &[Kind], of: impl Fn(Kind) -> Held) -> Held {
    kinds.iter().map(|kind| of(*kind)).fold(Held::default(), Held::and)
}

fn of_data(held: Held, told: Told) -> Option<CacheEntry> {
    (held.count > 0).then(|| CacheEntry {
        kind: told.into(),
        description: format!("{} files", held.count),
        bytes: held.bytes,
        count: held.count,
        in_use: held.in_use,
        last_used_ms: held.last_used.map_or(0, millis),
        ..CacheEntry::default()
    })
}

fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
