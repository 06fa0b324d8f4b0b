//! Against a server in this process that stores in memory and fails when told to, and against
//! folders as a node that shares the daemon's file system sees them.

mod code;
mod direct;
mod input;
mod listing;
mod mount;
mod rw_mount;
mod upload;
mod world;

use std::fs;
use std::path::Path;

use atelier_core::content::Digest;

use super::cache::{Cache, write_draft};
use super::*;
use world::World;

/// All files below a folder with their bytes, by path.
fn tree(folder: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, at: &Path, all: &mut std::collections::BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, all);
            } else {
                let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                // A link to nothing stands for its target.
                let bytes = fs::read(&path).or_else(|_| {
                    fs::read_link(&path).map(|target| target.into_os_string().into_encoded_bytes())
                });
                all.insert(name, bytes.unwrap());
            }
        }
    }
    let mut all = std::collections::BTreeMap::new();
    walk(folder, folder, &mut all);
    all
}

#[test]
fn its_work_can_be_given_to_any_thread() {
    fn sent<T: Send>(_: &T) {}
    fn check(plane: &DataPlane, input: &Input, at: &pb::StorePath) {
        sent(&plane.code(Digest::of(b""), Path::new("/")));
        sent(&plane.input("x", input, None, "", Path::new("/")));
        sent(&plane.upload(Path::new("/"), at, "", ""));
        sent(&plane.put(at, Bytes::new(), ""));
    }
    let _ = check;
}

#[tokio::test]
async fn single_objects_are_put_whole() {
    for shared in [false, true] {
        let world = World::new(shared).await;
        let at = world.at("ExperimentRun/dcid.j/system_logs/manifest_1.json");
        world.fail_next(3);
        for text in ["one", "another"] {
            world.plane.put(&at, Bytes::from(text), world::TOKEN).await.unwrap();
            assert_eq!(world.stored(&at.path).unwrap(), text.as_bytes());
        }
        for bad in ["../x", "a/../../x", "/etc/x", "a//b", ""] {
            let error =
                world.plane.put(&world.at(bad), Bytes::new(), world::TOKEN).await.unwrap_err();
            assert!(matches!(error, Error::Path { .. }), "{bad}: {error}");
        }
        let error = world.plane.put(&at, Bytes::new(), "wrong").await;
        assert_eq!(error.is_err(), !shared, "the gateway looks at the token");
    }
}

#[test]
fn the_cache_keeps_what_was_used_last_and_what_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), Some(1000)).unwrap();
    let digest = |number: u8| Digest::of(&[number]);
    let keep = |number: u8| {
        let draft = cache.draft();
        write_draft(&draft, &[number; 100]).unwrap();
        cache.keep(draft, Kind::Files, digest(number)).unwrap()
    };
    let has = |number: u8| cache.get(Kind::Files, digest(number)).is_some();
    let (_, pinned) = keep(0);
    let (linked, _) = keep(1);
    fs::hard_link(&linked, folder.path().join("an-input")).unwrap();
    for number in 2..10 {
        keep(number);
    }
    assert_eq!(cache.total(), 1000);
    assert!(has(2), "and so used again");
    keep(10);
    assert_eq!(cache.total(), 900);
    let left: Vec<u8> = (0..=10).filter(|number| has(*number)).collect();
    assert_eq!(left, [0, 1, 2, 5, 6, 7, 8, 9, 10]);
    drop(pinned);

    // Another user of the folder in this process sees the same; after all are gone, it is read
    // from the disk, and what was being written is removed.
    assert!(Arc::ptr_eq(&cache, &Cache::open(folder.path(), Some(5)).unwrap()));
    let half = cache.draft();
    write_draft(&half, b"half").unwrap();
    let left_behind = half.path.clone();
    std::mem::forget(half);
    drop(cache);
    let cache = Cache::open(folder.path(), Some(1000)).unwrap();
    assert!(!left_behind.exists());
    assert_eq!(cache.total(), 900);
    assert!(cache.get(Kind::Files, digest(5)).is_some());
    assert!(cache.get(Kind::Objects, digest(5)).is_none());
    // A file of another length than was kept is not given.
    let (path, _pin) = cache.get(Kind::Files, digest(5)).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"short").unwrap();
    assert!(cache.get(Kind::Files, digest(5)).is_none());
}

#[test]
fn no_space_left_is_told_apart() {
    let error =
        Error::io("write", Path::new("/x"), std::io::Error::from_raw_os_error(libc::ENOSPC));
    assert_eq!(error.fault(), Fault::DiskFull);
    let error = Error::errno("write", Path::new("/x"), rustix::io::Errno::DQUOT);
    assert_eq!(error.fault(), Fault::DiskFull);
    // The kernel's own device that is always full.
    let draft = super::cache::Draft { path: "/dev/full".into() };
    let error = write_draft(&draft, b"x").unwrap_err();
    std::mem::forget(draft);
    assert_eq!(error.fault(), Fault::DiskFull, "{error}");
}

#[test]
fn the_cache_tells_what_it_holds_and_lets_go_of_what_is_not_in_use() {
    use std::time::Duration;
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), Some(10_000)).unwrap();
    let keep = |kind: Kind, number: u8| {
        let draft = cache.draft();
        write_draft(&draft, &[number; 100]).unwrap();
        cache.keep(draft, kind, Digest::of(&[number])).unwrap()
    };
    let (_, pinned) = keep(Kind::Files, 1);
    let (linked, _) = keep(Kind::Files, 2);
    fs::hard_link(&linked, folder.path().join("an-input")).unwrap();
    keep(Kind::Files, 3);
    keep(Kind::Objects, 4);
    let held = cache.held(Kind::Files);
    assert_eq!((held.count, held.bytes, held.in_use), (3, 300, 2));
    assert_eq!(cache.held(Kind::Objects).count, 1);
    assert_eq!(cache.prune(Kind::Files, Duration::from_secs(3600)).count, 0);
    let gone = cache.prune(Kind::Files, Duration::ZERO);
    assert_eq!((gone.count, gone.bytes), (1, 100));
    assert_eq!(cache.held(Kind::Files).count, 2);
    assert_eq!(cache.total(), 300);
    drop(pinned);
    assert_eq!(cache.prune(Kind::Files, Duration::ZERO).count, 1);
    assert!(linked.exists(), "an input of a job");
    assert_eq!(cache.held(Kind::Objects).count, 1);
}

#[test]
fn while_all_is_in_use_it_is_not_looked_through_for_each_file_that_comes() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), Some(1600)).unwrap();
    let keep = |number: u8| {
        let draft = cache.draft();
        write_draft(&draft, &[number; 100]).unwrap();
        cache.keep(draft, Kind::Files, Digest::of(&[number])).unwrap().0
    };
    let input = |number: u8| folder.path().join(format!("input-{number}"));
    for number in 0..16 {
        fs::hard_link(keep(number), input(number)).unwrap();
    }
    // It is over the limit, and nothing can go.
    let (last, pin) = {
        let draft = cache.draft();
        write_draft(&draft, &[16; 100]).unwrap();
        cache.keep(draft, Kind::Files, Digest::of(&[16])).unwrap()
    };
    assert_eq!(cache.total(), 1700);
    drop(pin);
    (0..16).for_each(|number| fs::remove_file(input(number)).unwrap());
    // Less than a sixteenth of the limit more.
    let draft = cache.draft();
    write_draft(&draft, b"little").unwrap();
    cache.keep(draft, Kind::Files, Digest::of(b"little")).unwrap();
    assert_eq!(cache.total(), 1706);
    keep(17);
    assert!(cache.total() <= 1440, "{}", cache.total());
    assert!(last.exists());
}
