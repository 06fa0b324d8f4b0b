//! Code snapshots.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use atelier_core::content::{
    Chunk, Digest, Directory, Encoded, Entry, EntryKind, EntryName, FileContent, LinkTarget,
    MAX_INLINE, content_of, cut, encode_chunk,
};
use bytes::Bytes;

use super::super::Error;
use super::tree;
use super::world::World;

/// Objects of a snapshot being made.
struct Maker<'a>(&'a World);

impl Maker<'_> {
    fn add(&self, object: Encoded) -> Digest {
        let digest = object.digest;
        self.0.daemon.lock().unwrap().content.insert(digest, Bytes::from(object.bytes));
        digest
    }

    fn file(&self, name: &str, bytes: &[u8], executable: bool) -> Entry {
        let content = if bytes.len() <= MAX_INLINE {
            FileContent::Inline(bytes.to_vec())
        } else {
            let (mut chunks, mut rest) = (Vec::new(), bytes);
            while let Some(length) = cut(rest, true) {
                let digest = self.add(encode_chunk(&rest[..length]).unwrap());
                chunks.push(Chunk { digest, length: length as u64 });
                rest = &rest[length..];
            }
            let (content, lists) = content_of(&chunks);
            for list in lists {
                self.add(list);
            }
            content
        };
        entry(name, EntryKind::File { executable, size: bytes.len() as u64, content })
    }

    fn folder(&self, entries: Vec<Entry>) -> Digest {
        let encoded = Directory::new(entries).unwrap().encode().unwrap();
        for object in encoded.objects {
            self.add(object);
        }
        encoded.digest
    }
}

fn entry(name: &str, kind: EntryKind) -> Entry {
    Entry { name: EntryName::new(name.as_bytes()).unwrap(), kind }
}

fn link(name: &str, target: &str) -> Entry {
    entry(name, EntryKind::Symlink(LinkTarget::new(target.as_bytes()).unwrap()))
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[tokio::test]
async fn a_snapshot_becomes_fresh_files() {
    let world = World::new(false).await;
    let make = Maker(&world);
    let big = noise(5 << 20, 1);
    let middle = noise(40_000, 2);
    // Large enough to be cut into parts.
    let many: Vec<Entry> = (0..3000)
        .map(|i| make.file(&format!("{i:05}.txt"), format!("{i}").repeat(20).as_bytes(), false))
        .collect();
    let many = make.folder(many);
    let empty = make.folder(Vec::new());
    let package = make.folder(vec![
        make.file("__init__.py", b"", false),
        make.file("weights.bin", &big, false),
        link("up", "../train.py"),
        link("gone", "no-such-file"),
    ]);
    let root = make.folder(vec![
        make.file("train.py", b"print(1)", false),
        make.file("run.sh", &middle, true),
        make.file("same.sh", &middle, true),
        entry("package", EntryKind::Directory(package)),
        entry("many", EntryKind::Directory(many)),
        entry("empty", EntryKind::Directory(empty)),
    ]);
    let work = world.folder.path().join("work");
    fs::create_dir(&work).unwrap();
    world.fail_next(2);
    let started = Instant::now();
    world.plane.code(root, &work).await.unwrap();
    tracing::info!(elapsed = ?started.elapsed(), "first");

    let files = tree(&work);
    assert_eq!(files.len(), 3 + 4 + 3000);
    assert_eq!(files["package/weights.bin"], big);
    assert_eq!(files["package/up"], b"print(1)");
    assert_eq!(files["many/02999.txt"], "2999".repeat(20).as_bytes());
    assert!(work.join("empty").is_dir());
    assert_eq!(fs::read_link(work.join("package/gone")).unwrap().to_str(), Some("no-such-file"));
    let mode = |name: &str| fs::metadata(work.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("run.sh"), 0o755);
    assert_eq!(mode("train.py") & 0o700, 0o600);

    // Files are the job's own; the next job gets what was stored, from the node's cache.
    fs::write(work.join("run.sh"), "changed").unwrap();
    let given = world.daemon.lock().unwrap().given;
    let other = world.folder.path().join("other");
    fs::create_dir(&other).unwrap();
    world.plane.code(root, &other).await.unwrap();
    assert_eq!(tree(&other)["run.sh"], middle);
    assert_eq!(tree(&other)["same.sh"], middle);
    assert_eq!(world.daemon.lock().unwrap().given, given);
    // Over what an earlier try left, even where kinds differ.
    fs::remove_file(work.join("train.py")).unwrap();
    fs::remove_file(work.join("package/gone")).unwrap();
    fs::create_dir(work.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", work.join("package/gone")).unwrap();
    fs::remove_dir(work.join("empty")).unwrap();
    std::os::unix::fs::symlink("elsewhere", work.join("empty")).unwrap();
    world.plane.code(root, &work).await.unwrap();
    fs::remove_dir(work.join("elsewhere")).unwrap();
    assert_eq!(tree(&work), tree(&other));
    assert!(fs::symlink_metadata(work.join("empty")).unwrap().is_dir());
}

#[tokio::test]
async fn jobs_that_start_together_share_one_fetch() {
    let world = World::new(false).await;
    let make = Maker(&world);
    let files = (0..50).map(|i| make.file(&format!("f{i}"), &noise(5000, i), false)).collect();
    let root = make.folder(files);
    let folders: Vec<_> = (0..6).map(|i| world.folder.path().join(format!("w{i}"))).collect();
    let jobs = folders.iter().map(|folder| {
        fs::create_dir(folder).unwrap();
        world.plane.code(root, folder)
    });
    futures::future::try_join_all(jobs).await.unwrap();
    assert_eq!(world.daemon.lock().unwrap().given, 51);
    assert!(folders.iter().all(|folder| tree(folder).len() == 50));
}

#[tokio::test]
async fn a_snapshot_larger_than_the_cache_is_put_together_all_the_same() {
    let world = World::with_cache(false, Some(10_000)).await;
    let make = Maker(&world);
    let files = (0..20).map(|i| make.file(&format!("f{i}"), &noise(5000, i), false)).collect();
    let root = make.folder(files);
    world.plane.code(root, &world.inputs()).await.unwrap();
    assert_eq!(tree(&world.inputs()).len(), 20);
}

#[tokio::test]
async fn a_damaged_cache_is_noticed_and_mended() {
    let world = World::new(false).await;
    let root = Maker(&world).folder(vec![Maker(&world).file("f", &noise(5000, 1), false)]);
    world.plane.code(root, &world.inputs()).await.unwrap();
    for (name, bytes) in tree(&world.folder.path().join("cache/objects")) {
        let path = world.folder.path().join("cache/objects").join(name);
        fs::remove_file(&path).unwrap();
        fs::write(&path, vec![b'x'; bytes.len()]).unwrap();
    }
    // One damaged object is found at a time: the root, then the chunk.
    for _ in 0..2 {
        let error = world.plane.code(root, &world.inputs()).await.unwrap_err();
        assert!(matches!(error, Error::Snapshot { .. }) && !error.is_users(), "{error}");
    }
    world.plane.code(root, &world.inputs()).await.unwrap();
    assert_eq!(tree(&world.inputs())["f"], noise(5000, 1));
}

#[tokio::test]
async fn links_that_lead_out_are_refused() {
    let world = World::new(false).await;
    let make = Maker(&world);
    let secret = world.folder.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let inner = make.folder(vec![link("e", "."), make.file("f", b"", false)]);
    let with = |name: &str, target: &str| {
        make.folder(vec![entry("d", EntryKind::Directory(inner)), link(name, target)])
    };
    let deep = make.folder(vec![entry("sub", EntryKind::Directory(with("l", "../../secret")))]);
    // As text `d/e/../../..` has as many folders as dots; through the link it has not.
    for (number, root) in
        [with("l", "../secret"), with("l", "d/e/../../secret"), deep].into_iter().enumerate()
    {
        let work = world.folder.path().join(format!("work{number}"));
        fs::create_dir(&work).unwrap();
        let error = world.plane.code(root, &work).await.unwrap_err();
        assert!(matches!(error, Error::Path { .. }), "{number}: {error}");
        assert!(error.to_string().contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn snapshots_that_do_not_fit_together_are_refused() {
    let world = World::new(false).await;
    let make = Maker(&world);
    let chunk = make.add(encode_chunk(b"0123456789").unwrap());
    let file = |content| entry("f", EntryKind::File { executable: false, size: 11, content });
    let missing = Digest::of(b"nowhere");
    for (root, word) in [
        (chunk, "not a directory"),
        (missing, "no object"),
        (make.folder(vec![file(FileContent::Chunk(chunk))]), "sizes"),
        (make.folder(vec![entry("d", EntryKind::Directory(chunk))]), "not a directory"),
    ] {
        let error = world.plane.code(root, &world.inputs()).await.unwrap_err();
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
}
