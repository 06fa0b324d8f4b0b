use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use atelier_core::access::Role;
use atelier_core::content::{EntryKind, FileContent, Object, decode};
use tokio::io::AsyncReadExt as _;

use super::*;
use crate::client::{Client, Target, Token};
use crate::grpc::content::tests::Service;
use crate::storage::ContentStore;

mod inputs;

fn silent() -> Report {
    Arc::new(|_| {})
}

/// A file of a snapshot: whether it is executable, and its bytes. A link has its target.
type Tree = BTreeMap<Vec<u8>, (char, Vec<u8>)>;

/// Reads a snapshot back from the store.
async fn fetch(store: &ContentStore, root: Digest) -> Tree {
    let (mut tree, mut open) = (Tree::new(), vec![(Vec::new(), root)]);
    while let Some((place, digest)) = open.pop() {
        for entry in directory(store, digest).await {
            let mut path: Vec<u8> = place.clone();
            path.extend_from_slice(entry.name.as_bytes());
            match entry.kind {
                EntryKind::Directory(digest) => {
                    path.push(b'/');
                    tree.insert(path.clone(), ('d', Vec::new()));
                    open.push((path, digest));
                }
                EntryKind::Symlink(target) => {
                    tree.insert(path, ('l', target.as_bytes().to_vec()));
                }
                EntryKind::File { executable, size, content } => {
                    let bytes = match content {
                        FileContent::Inline(bytes) => bytes,
                        FileContent::Chunk(digest) | FileContent::List(digest) => {
                            bytes(store, digest).await
                        }
                    };
                    assert_eq!(bytes.len() as u64, size);
                    tree.insert(path, (if executable { 'x' } else { 'f' }, bytes));
                }
            }
        }
    }
    tree
}

async fn object(store: &ContentStore, digest: Digest) -> bytes::Bytes {
    store.read(vec![digest], 1).await.unwrap().remove(0).1
}

async fn directory(store: &ContentStore, digest: Digest) -> Vec<atelier_core::content::Entry> {
    match decode(&object(store, digest).await).unwrap() {
        Object::Directory(directory) => directory.into_entries(),
        Object::Parts(parts) => {
            let mut entries = Vec::new();
            for part in parts {
                entries.extend(Box::pin(directory(store, part)).await);
            }
            entries
        }
        other => panic!("{other:?}"),
    }
}

async fn bytes(store: &ContentStore, digest: Digest) -> Vec<u8> {
    match decode(&object(store, digest).await).unwrap() {
        Object::Chunk(data) => data.to_vec(),
        Object::List(list) => {
            let mut all = Vec::new();
            for item in list.items {
                all.extend(Box::pin(bytes(store, item.digest)).await);
            }
            all
        }
        other => panic!("{other:?}"),
    }
}

fn target(server: String) -> Target {
    Target { server, token: Token::new("t0ken"), local: false, trust: Default::default() }
}

async fn connect(server: String) -> ContentServiceClient<Authorized> {
    Client::connect(target(server)).await.unwrap().content()
}

async fn stub(service: &Service) -> ContentServiceClient<Authorized> {
    connect(format!("http://{}", service.address)).await
}

struct World {
    service: Service,
    home: tempfile::TempDir,
    code: tempfile::TempDir,
    uploader: Uploader,
}

impl World {
    async fn new() -> Self {
        Self::with(Role::DataScientist).await
    }

    async fn with(role: Role) -> Self {
        let service = Service::with(Some(role)).await;
        let home = tempfile::tempdir().unwrap();
        let code = tempfile::tempdir().unwrap();
        let uploader = Uploader::new(stub(&service).await, home.path());
        Self { service, home, code, uploader }
    }

    fn write(&self, name: impl AsRef<OsStr>, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.code.path().join(name.as_ref());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    async fn upload(&self) -> Uploaded {
        self.uploader.code(self.code.path(), silent()).await.unwrap()
    }

    async fn refusal(&self) -> String {
        self.uploader.code(self.code.path(), silent()).await.unwrap_err().to_string()
    }

    async fn tree(&self) -> Tree {
        fetch(&self.service.store, self.upload().await.root).await
    }

    async fn names(&self) -> Vec<String> {
        self.tree().await.into_keys().map(|name| String::from_utf8(name).unwrap()).collect()
    }

    /// Waits until a stat of the files written so far is proof of their content: the file system's
    /// clock must have ticked.
    fn settle(&self) {
        let marker = self.home.path().join("marker");
        fs::write(&marker, "").unwrap();
        let written = fs::metadata(&marker).unwrap().modified().unwrap();
        while written.elapsed().unwrap_or_default() < Duration::from_millis(25) {
            std::thread::yield_now();
        }
    }
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = (seed << 1) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

#[tokio::test]
async fn a_folder_comes_back_as_it_was() {
    let world = World::new().await;
    let mut expected = Tree::new();
    let longest = "n".repeat(255);
    for (name, length) in [
        (&b"train.py"[..], 300),
        (b"empty", 0),
        (b"  spaces  ", 5),
        (b"new\nline", 5),
        (b"back\\slash", 5),
        (b"not utf-8 \xff\xfe", 2000),
        ("ü/ä/中文.txt".as_bytes(), 1024),
        (b"a-b", 1025),
        (b"a/b", 1025),
        (b"-rf", 1),
        (b"%2e%2e", 1),
        (b"run#1", 1),
        (longest.as_bytes(), 1),
        (b"big.bin", 3_500_000),
        (b"deep/deep/deep/deep/deep/file", 70_000),
    ] {
        let data = noise(name.len() as u64, length);
        world.write(OsStr::from_bytes(name), &data);
        expected.insert(name.to_vec(), ('f', data));
        for (i, _) in name.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            expected.insert(name[..=i].to_vec(), ('d', Vec::new()));
        }
    }
    let script = world.write("run.sh", "#!/bin/sh\n");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    expected.insert(b"run.sh".to_vec(), ('x', b"#!/bin/sh\n".to_vec()));
    fs::create_dir(world.code.path().join("nothing")).unwrap();
    expected.insert(b"nothing/".to_vec(), ('d', Vec::new()));

    let uploaded = world.upload().await;
    assert_eq!(uploaded.files, 16);
    assert_eq!(uploaded.files_read, 16);
    assert_eq!(uploaded.bytes, expected.values().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
    assert!(uploaded.warnings.is_empty());
    assert!(uploaded.bytes_sent > uploaded.bytes);
    let found = fetch(&world.service.store, uploaded.root).await;
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(found == expected);
}

#[tokio::test]
async fn an_unchanged_folder_is_not_read_and_costs_one_question() {
    let world = World::new().await;
    for i in 0..50 {
        world.write(format!("src/{i}.py"), noise(i, 4000));
    }
    world.write("weights.bin", noise(1, 3_000_000));
    world.settle();
    let first = world.upload().await;
    assert_eq!((first.files_read, first.objects_sent > 50), (51, true));

    let calls = world.service.calls.load(Ordering::Relaxed);
    let second = world.upload().await;
    assert_eq!((second.root, second.files_read, second.objects_sent), (first.root, 0, 0));
    assert_eq!(world.service.calls.load(Ordering::Relaxed), calls + 1);

    // The same size, another byte: only that file is read, its chunk and its folders are sent.
    let mut edited = noise(7, 4000);
    edited[2000] ^= 1;
    world.write("src/7.py", edited);
    let third = world.upload().await;
    assert_eq!((third.files_read, third.objects_sent), (1, 3));
    assert!(third.bytes_sent < 10_000, "{}", third.bytes_sent);

    // Another workspace knows nothing; nothing needs to be read to find out what to send.
    let other = Service::new().await;
    world.settle();
    world.upload().await;
    let uploader = Uploader::new(stub(&other).await, world.home.path());
    let fourth = uploader.code(world.code.path(), silent()).await.unwrap();
    assert_eq!((fourth.root, fourth.files_read), (third.root, 0));
    assert_eq!(
        fetch(&other.store, fourth.root).await,
        fetch(&world.service.store, third.root).await
    );
}

/// Two writes in one tick of the file system's clock leave the same stat if the size is the same.
#[tokio::test]
async fn a_file_written_just_before_is_read_again() {
    let world = World::new().await;
    world.write("a.txt", "one");
    let first = world.upload().await;
    world.write("a.txt", "two");
    let second = world.upload().await;
    assert_ne!(first.root, second.root);
    assert_eq!(world.tree().await[&b"a.txt"[..]].1, b"two");
}

#[tokio::test]
async fn ten_thousand_small_files() {
    let world = World::new().await;
    for i in 0..10_000_u64 {
        world.write(format!("{}/{i}.json", i % 100), noise(i, 800 + (i % 700) as usize));
    }
    world.settle();
    let begin = Instant::now();
    let first = world.upload().await;
    eprintln!("10,000 files, first: {first:?} in {:?}", begin.elapsed());
    assert_eq!((first.files, first.files_read), (10_000, 10_000));
    let begin = Instant::now();
    let second = world.upload().await;
    eprintln!("10,000 files, unchanged: {second:?} in {:?}", begin.elapsed());
    assert_eq!((second.root, second.files_read, second.objects_sent), (first.root, 0, 0));
    world.write("42/42.json", "{}");
    world.write("42/new.json", noise(5, 5000));
    let begin = Instant::now();
    let third = world.upload().await;
    eprintln!("10,000 files, two changed: {third:?} in {:?}", begin.elapsed());
    // A chunk, the folder (perhaps in parts) and the root.
    assert_eq!(third.files_read, 2);
    assert!(third.objects_sent <= 5, "{third:?}");
    assert_eq!(fetch(&world.service.store, third.root).await.len(), 10_101);
}

/// `ATELIER_TEST_LARGE_MB` makes it larger.
#[tokio::test]
async fn a_byte_in_a_large_file_sends_little() {
    let megabytes: usize =
        std::env::var("ATELIER_TEST_LARGE_MB").map_or(24, |value| value.parse().unwrap());
    let world = World::new().await;
    let mut data = noise(9, megabytes * 1_000_000);
    world.write("data.bin", &data);
    let begin = Instant::now();
    let first = world.upload().await;
    eprintln!("{megabytes} MB, first: {first:?} in {:?}", begin.elapsed());
    let mut largest = 0;
    for at in [0, data.len() / 3, data.len() - 1] {
        data[at] ^= 0xff;
        world.write("data.bin", &data);
        let begin = Instant::now();
        let edited = world.upload().await;
        eprintln!("a byte at {at} changed: {edited:?} in {:?}", begin.elapsed());
        largest = largest.max(edited.bytes_sent);
    }
    // The last chunks of one size on average; the longest possible is one MiB.
    assert!(largest < 1_200_000, "{largest}");
    let root = world.upload().await.root;
    assert!(fetch(&world.service.store, root).await[&b"data.bin"[..]].1 == data);
}

#[tokio::test]
async fn links_are_followed_inside_and_refused_outside() {
    let world = World::new().await;
    let root = world.code.path();
    world.write("data/real.txt", "real");
    world.write("lib/util.py", "pass");
    symlink("data/real.txt", root.join("to_file")).unwrap();
    symlink(root.join("data/real.txt"), root.join("absolute")).unwrap();
    symlink("../lib", root.join("data/to_folder")).unwrap();
    symlink("to_file", root.join("to_link")).unwrap();
    // Those that cannot be followed: to the root from two places, to itself, to nothing.
    symlink("..", root.join("data/up")).unwrap();
    symlink(root, root.join("lib/root")).unwrap();
    symlink("self", root.join("self")).unwrap();
    symlink("user@host.1234:99", root.join(".#lock")).unwrap();
    let tree = world.tree().await;
    let of = |name: &str| {
        let (kind, bytes) = &tree[name.as_bytes()];
        (*kind, String::from_utf8(bytes.clone()).unwrap())
    };
    assert_eq!(of("to_file"), ('f', "real".into()));
    assert_eq!(of("absolute"), ('f', "real".into()));
    assert_eq!(of("to_link"), ('f', "real".into()));
    assert_eq!(of("data/to_folder/util.py"), ('f', "pass".into()));
    assert_eq!(of("data/up"), ('l', "..".into()));
    assert_eq!(of("lib/root"), ('l', "..".into()));
    // Reached over data/to_folder, the root is two folders up.
    assert_eq!(of("data/to_folder/root"), ('l', "../..".into()));
    assert_eq!(of("self"), ('l', "self".into()));
    assert_eq!(of(".#lock"), ('l', "user@host.1234:99".into()));

    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    let sneaky = root.join("sneaky");
    let up = "../".repeat(root.components().count());
    for target in [
        outside.path().to_owned(),
        outside.path().join("secret"),
        PathBuf::from("/etc/hostname"),
        PathBuf::from("/nowhere/at/all"),
        PathBuf::from(format!("{up}etc/hostname")),
        PathBuf::from(".."),
        PathBuf::from("nothing/../../x"),
        PathBuf::from("../nothing"),
    ] {
        symlink(&target, &sneaky).unwrap();
        let refused = world.refusal().await;
        assert!(refused.contains("'sneaky'"), "{refused}");
        assert!(refused.contains("outside"), "{refused}");
        fs::remove_file(&sneaky).unwrap();
    }
    // A link that an ignore file names is not looked at.
    symlink("/etc", &sneaky).unwrap();
    world.write(".amlignore", "sneaky\n");
    world.upload().await;
}

#[tokio::test]
async fn ignore_files_of_the_root_apply() {
    let world = World::new().await;
    for name in [
        "keep.py",
        "model.ckpt",
        "logs/a.log",
        "logs/keep.me",
        "src/__pycache__/m.pyc",
        "src/deep.ckpt",
        "src/.gitignore",
        "src/ignored_by_src",
        ".git/config",
        "vendored/.git/config",
        "vendored/lib.py",
    ] {
        world.write(name, name);
    }
    world.write("src/.gitignore", "ignored_by_src\n");
    let without = world.names().await;
    assert!(!without.iter().any(|name| name.contains(".git/")), "{without:?}");
    assert!(without.contains(&"src/__pycache__/m.pyc".to_owned()));
    assert!(without.contains(&"src/ignored_by_src".to_owned()));
    assert!(without.contains(&"vendored/lib.py".to_owned()));

    world.write(".gitignore", "*.ckpt\n/logs/*\n!/logs/keep.me\n__pycache__/\n");
    assert_eq!(
        world.names().await,
        [
            ".gitignore",
            "keep.py",
            "logs/",
            "logs/keep.me",
            "src/",
            "src/.gitignore",
            "src/ignored_by_src",
            "vendored/",
            "vendored/lib.py",
        ]
    );
    // .amlignore is read instead, not as well.
    world.write(".amlignore", "src\nvendored/\n.gitignore\n");
    assert_eq!(
        world.names().await,
        [".amlignore", "keep.py", "logs/", "logs/a.log", "logs/keep.me", "model.ckpt"]
    );
    world.write(".amlignore", "*\n");
    let refused = world.refusal().await;
    assert!(refused.contains(".amlignore") && refused.contains("no files"), "{refused}");
}

#[tokio::test]
async fn folders_that_cannot_be_sent_are_named() {
    let world = World::new().await;
    let refused = world.refusal().await;
    let folder = world.code.path().display().to_string();
    assert!(refused.contains(&folder) && refused.contains("no files"), "{refused}");
    fs::create_dir_all(world.code.path().join("only/folders")).unwrap();
    assert!(world.refusal().await.contains("no files"));

    let file = world.write("file.py", "");
    for (path, expected) in [
        (world.code.path().join("absent"), "does not exist"),
        (file.join("x"), "cannot open"),
        (file.clone(), "is not a folder"),
    ] {
        let refused = world.uploader.code(&path, silent()).await.unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
        assert!(refused.contains(&path.display().to_string()), "{refused}");
    }
    let status = std::process::Command::new("mkfifo").arg(world.code.path().join("pipe")).status();
    assert!(status.unwrap().success());
    let uploaded = world.upload().await;
    assert_eq!(uploaded.warnings.len(), 1);
    assert!(uploaded.warnings[0].contains("'pipe'"), "{:?}", uploaded.warnings);

    let mut deep = world.code.path().to_owned();
    for _ in 0..300 {
        deep.push("d");
    }
    fs::create_dir_all(deep).unwrap();
    assert!(world.refusal().await.contains("folders deep"));
}

#[tokio::test]
async fn the_home_folder_is_not_sent_along() {
    let world = World::new().await;
    world.write("train.py", "x");
    let home = world.code.path().join(".atelier");
    fs::create_dir_all(home.join("local/storage")).unwrap();
    fs::write(home.join("local/admin.token"), "secret").unwrap();
    let uploader = Uploader::new(stub(&world.service).await, &home);
    let uploaded = uploader.code(world.code.path(), silent()).await.unwrap();
    let again = uploader.code(world.code.path(), silent()).await.unwrap();
    assert_eq!(uploaded.root, again.root);
    let tree = fetch(&world.service.store, uploaded.root).await;
    assert_eq!(tree.keys().collect::<Vec<_>>(), [b"train.py"]);
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_read_again() {
    let world = World::new().await;
    let file = world.write("log.txt", noise(1, 5000));
    // Between the read and the stat that follows it.
    let changing = file.clone();
    let report: Report = Arc::new(move |progress| {
        if let Progress::Reading { .. } = progress {
            fs::write(&changing, noise(2, 6000)).unwrap();
        }
    });
    let uploaded = world.uploader.code(world.code.path(), report).await.unwrap();
    let tree = fetch(&world.service.store, uploaded.root).await;
    assert_eq!(tree[&b"log.txt"[..]].1, noise(2, 6000));
}

#[tokio::test]
async fn a_file_that_changes_between_reading_and_sending_starts_over_once() {
    let world = World::new().await;
    let file = world.write("log.txt", noise(1, 5000));
    let versions = Arc::new(Mutex::new(vec![noise(3, 5000), noise(2, 7000)]));
    let (changing, left) = (file.clone(), versions.clone());
    let report: Report = Arc::new(move |progress| {
        if let Progress::Sending { done: 0, .. } = progress
            && let Some(next) = left.lock().unwrap().pop()
        {
            fs::write(&changing, next).unwrap();
        }
    });
    let refused = world.uploader.code(world.code.path(), report.clone()).await.unwrap_err();
    assert!(matches!(&refused, Error::Changed(_)), "{refused}");
    assert!(refused.to_string().contains("log.txt"), "{refused}");
    versions.lock().unwrap().push(noise(4, 9000));
    let uploaded = world.uploader.code(world.code.path(), report).await.unwrap();
    let tree = fetch(&world.service.store, uploaded.root).await;
    assert_eq!(tree[&b"log.txt"[..]].1, noise(4, 9000));
}

#[tokio::test]
async fn a_damaged_cache_is_as_good_as_none() {
    let world = World::new().await;
    world.write("a.txt", noise(1, 2000));
    world.settle();
    let first = world.upload().await;
    let caches = world.home.path().join("cache/snapshots");
    let cache = fs::read_dir(&caches).unwrap().next().unwrap().unwrap().path();
    let good = fs::read(&cache).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for bad in [&flipped[..], &good[..good.len() / 2], b"", b"nonsense"] {
        fs::write(&cache, bad).unwrap();
        let again = world.upload().await;
        assert_eq!((again.root, again.files_read), (first.root, 1));
    }
    // Another version is not understood, even if it is whole.
    let mut newer = good[..good.len() - 32].to_vec();
    newer[1] = 2;
    newer.extend_from_slice(Digest::of(&newer).as_bytes());
    fs::write(&cache, newer).unwrap();
    assert_eq!(world.upload().await.files_read, 1);
    // One that cannot be written does not stand in the way.
    fs::remove_dir_all(world.home.path().join("cache")).unwrap();
    fs::write(world.home.path().join("cache"), "in the way").unwrap();
    assert_eq!(world.upload().await.root, first.root);
}

#[tokio::test]
async fn what_the_workspace_says_reaches_the_user() {
    let world = World::with(Role::Reader).await;
    world.write("a.txt", "x");
    let refused = world.refusal().await;
    assert!(refused.contains("may not upload"), "{refused}");
    // The daemon goes away after the connection was made.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { drop(listener.accept().await) });
    let gone = connect(server).await;
    let uploader = Uploader::new(gone, world.home.path());
    let refused = uploader.code(world.code.path(), silent()).await.unwrap_err();
    assert!(matches!(refused, Error::Workspace(_)), "{refused}");
}

#[tokio::test]
async fn progress_ends_where_it_should() {
    let world = World::new().await;
    world.write("a.bin", noise(1, 5_000_000));
    world.write("b.bin", noise(2, 900_000));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let seen_by = seen.clone();
    let report: Report = Arc::new(move |progress| seen_by.lock().unwrap().push(progress));
    let uploaded = world.uploader.code(world.code.path(), report).await.unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.contains(&Progress::Reading { done: 5_900_000, total: 5_900_000 }));
    let total = uploaded.bytes_sent;
    assert_eq!(seen.last(), Some(&Progress::Sending { done: total, total }));
    assert!(seen.contains(&Progress::Sending { done: 0, total }));
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_again() {
    let world = World::new().await;
    world.write("data.bin", noise(1, 12_000_000));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let (daemon, ways) = (world.service.address, Arc::new(AtomicUsize::new(0)));
    let counted = ways.clone();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            // The first breaks in the middle.
            let room = match counted.fetch_add(1, Ordering::Relaxed) {
                0 => 8_000_000,
                _ => u64::MAX,
            };
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(daemon).await.unwrap();
                let ((read, mut answer), (mut answers, mut write)) = (near.split(), far.split());
                let mut read = read.take(room);
                tokio::select! {
                    _ = tokio::io::copy(&mut read, &mut write) => {}
                    _ = tokio::io::copy(&mut answers, &mut answer) => {}
                }
            });
        }
    });
    let uploader = Uploader::new(connect(server).await, world.home.path());
    let uploaded = uploader.code(world.code.path(), silent()).await.unwrap();
    assert_eq!(ways.load(Ordering::Relaxed), 2);
    let tree = fetch(&world.service.store, uploaded.root).await;
    assert!(tree[&b"data.bin"[..]].1 == noise(1, 12_000_000));
}
