//! What a server reads of objects, without a kernel in between.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use atelier_core::spec::{DataKind, InputMode};
use bytes::Bytes;

use super::super::cache::Cache;
use super::super::mount::Failure;
use super::super::mount::fetch::Fetch;
use super::super::mount::partial::BLOCK;
use super::super::mount::source::{Engine, Source};
use super::super::mount::tree::Object;
use super::world::{STORE, TOKEN, World};

const SECOND: Duration = Duration::from_secs(1);

fn engine(world: &World, cache: &Arc<Cache>, patience: Duration) -> Arc<Engine> {
    let root = world.folder.path().to_owned();
    let url = format!("http://{}", world.address);
    let fetch = Fetch::new(&url, Default::default(), TOKEN.to_owned(), root, patience).unwrap();
    let boot = crate::proc::boot_id().unwrap();
    Arc::new(Engine::new(fetch, cache.clone(), boot, tokio::runtime::Handle::current()))
}

/// The world's own.
fn cache(world: &World) -> Arc<Cache> {
    Cache::open(&world.folder.path().join("cache"), None).unwrap()
}

/// Bytes of which no two blocks are alike.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i / 4096 + i % 251) as u8).collect()
}

fn object(world: &World, path: &str) -> Object {
    let (bytes, etag) = world.daemon.lock().unwrap().objects[path].clone();
    Object { datastore: STORE.into(), key: path.into(), size: bytes.len() as u64, etag }
}

async fn read(source: &Arc<Source>) -> Result<Vec<u8>, Failure> {
    let mut all = Vec::new();
    for block in 0..source.blocks() {
        let offset = u64::from(block) * BLOCK;
        let length = BLOCK.min(source.object.size - offset) as usize;
        let piece = match source.at_hand(offset, length) {
            Some(piece) => piece,
            None => source.fetch(block).await?,
        };
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(20 * SECOND, waited).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_is_fetched_once_and_what_was_read_whole_is_kept_as_that() {
    let world = World::new(false).await;
    let all = bytes(3 * BLOCK as usize + 77);
    world.store("d/large", &all);
    world.store("d/small", b"small");
    // The transfer breaks, and goes on.
    world.break_next(2);
    let cache = cache(&world);
    let engine = engine(&world, &cache, 60 * SECOND);
    let source = engine.source(object(&world, "d/large"));
    assert!(Arc::ptr_eq(&source, &engine.source(object(&world, "d/large"))));
    let flights: Vec<_> = (0..20).map(|_| source.fetch(1)).collect();
    for flight in flights {
        let block: Bytes = flight.await.unwrap();
        assert!(*block == all[BLOCK as usize..2 * BLOCK as usize]);
    }
    // Who looked for it before it came, and asks for it after.
    assert!(*source.fetch(1).await.unwrap() == all[BLOCK as usize..2 * BLOCK as usize]);
    assert_eq!(read(&source).await.unwrap(), all);
    assert_eq!(world.requests("GET d/large"), 4 + 2);
    until("the large one is whole", || source.whole().is_some()).await;
    assert_eq!(read(&source).await.unwrap(), all);

    let small = engine.source(object(&world, "d/small"));
    assert_eq!(read(&small).await.unwrap(), b"small");
    until("the small one is kept", || small.whole().is_some()).await;

    // Neither a download nor the next job's server fetches any of it.
    let before = world.requests("GET");
    for (name, expected) in [("d/large", all.as_slice()), ("d/small", b"small")] {
        let input = world.input("x", name, DataKind::UriFile, InputMode::Download).await.unwrap();
        assert!(fs::read(input).unwrap() == expected);
    }
    drop((source, small));
    let next = engine.source(object(&world, "d/large"));
    assert!(next.whole().is_some());
    assert_eq!(read(&next).await.unwrap(), all);
    assert_eq!(world.requests("GET"), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_share_the_blocks_that_each_has_fetched() {
    let world = World::new(false).await;
    let all = bytes(5 * BLOCK as usize);
    world.store("d/large", &all);
    let cache = cache(&world);
    let (one, other) = (engine(&world, &cache, SECOND), engine(&world, &cache, SECOND));
    let (here, there) =
        (one.source(object(&world, "d/large")), other.source(object(&world, "d/large")));
    for block in [0, 2, 4] {
        here.fetch(block).await.unwrap();
        until("it is kept", || there.has(block)).await;
    }
    assert_eq!(read(&there).await.unwrap(), all);
    until("all of it is there", || there.whole().is_some()).await;
    // Who had it open before reads on.
    assert_eq!(read(&here).await.unwrap(), all);
    assert_eq!(world.requests("GET d/large"), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_of_another_content_are_never_mixed_in() {
    let world = World::new(false).await;
    world.store("d/large", &[1; 3 * BLOCK as usize]);
    let cache = cache(&world);
    let engine = engine(&world, &cache, 60 * SECOND);
    let old = engine.source(object(&world, "d/large"));
    old.fetch(0).await.unwrap();
    world.store("d/large", &[2; 3 * BLOCK as usize]);
    let failure = read(&old).await.unwrap_err();
    assert!(matches!(&failure, Failure::Changed { path } if path.ends_with("/d/large")));
    let new = engine.source(object(&world, "d/large"));
    assert_eq!(read(&new).await.unwrap(), [2; 3 * BLOCK as usize]);
    world.daemon.lock().unwrap().objects.clear();
    assert!(matches!(old.fetch(2).await, Err(Failure::Changed { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_away_is_waited_for_and_then_given_up() {
    let world = World::new(false).await;
    world.store("d/x", b"x");
    world.break_next(u32::MAX);
    let cache = cache(&world);
    let source = engine(&world, &cache, SECOND).source(object(&world, "d/x"));
    let failure = source.fetch(0).await.unwrap_err();
    assert!(matches!(failure, Failure::Away { .. }), "{failure}");
    assert!(world.requests("GET d/x") > 1);
    world.break_next(0);
    assert_eq!(source.fetch(0).await.unwrap(), "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_may_be_larger_than_the_cache() {
    let limit = 6 * BLOCK;
    let world = World::with_cache(false, Some(limit)).await;
    let all = bytes(24 * BLOCK as usize);
    world.store("d/large", &all);
    world.store("d/kept", &[9; BLOCK as usize]);
    let cache = cache(&world);
    let engine = engine(&world, &cache, 60 * SECOND);
    let before = engine.source(object(&world, "d/kept"));
    before.fetch(0).await.unwrap();
    until("it is kept", || before.whole().is_some()).await;
    let source = engine.source(object(&world, "d/large"));
    for _ in 0..2 {
        assert_eq!(read(&source).await.unwrap(), all);
    }
    assert!(source.whole().is_none());
    // What is in use stays, also if it is older.
    assert!(before.whole().is_some() && engine.source(object(&world, "d/kept")).has(0));
    let held = || {
        let files = super::tree(&world.folder.path().join("cache/files")).len();
        let blocks = fs::read_dir(world.folder.path().join("cache/blocks")).unwrap().flatten();
        let blocks = blocks.flat_map(|part| fs::read_dir(part.path()).unwrap().flatten());
        let sizes = blocks
            .map(|file| std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512);
        (files, sizes.sum::<u64>())
    };
    // A block that is on its way may be too much for a moment.
    until("it keeps to its bound", || held().0 == 1 && held().1 + BLOCK <= limit + 2 * BLOCK).await;
    // Nobody uses it any more.
    drop(source);
    cache.prune(super::super::Kind::Blocks, Duration::ZERO);
    until("it goes", || {
        cache.prune(super::super::Kind::Blocks, Duration::ZERO);
        held().1 == 0
    })
    .await;
}
