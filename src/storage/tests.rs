use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use atelier_core::content::{Directory, Entry, EntryKind, EntryName, FileContent, encode_chunk};
use atelier_core::datastore::{Credentials, Draft, FolderKind, KeptCredentials};
use atelier_core::id::Principal;
use atelier_core::layout::BLOB_STORE;
use atelier_core::time::Timestamp;
use proptest::prelude::*;

use super::cloud::tests::Server;
use super::*;

fn path(text: &str) -> ObjectPath {
    ObjectPath::new(text).unwrap()
}

struct World {
    folder: tempfile::TempDir,
    stores: Datastores,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stores = Datastores::open_folders(folder.path()).unwrap();
        Self { folder, stores }
    }

    fn blob(&self) -> Datastore {
        self.stores.get(BLOB_STORE).unwrap().clone()
    }

    fn on_disk(&self) -> std::path::PathBuf {
        self.folder.path().join(BLOB_STORE)
    }

    fn staged(&self) -> usize {
        std::fs::read_dir(self.on_disk().join(STAGING)).unwrap().count()
    }
}

async fn all(store: &Datastore, below: Option<&ObjectPath>, limit: usize) -> Vec<String> {
    let (mut found, mut after) = (Vec::new(), None::<ObjectPath>);
    loop {
        let page = store.list(below, after.as_ref().map(ObjectPath::as_str), limit).await.unwrap();
        assert!(page.objects.len() <= limit);
        found.extend(page.objects.into_iter().map(|object| object.path.to_string()));
        match page.next {
            Some(next) => after = Some(next),
            None => return found,
        }
    }
}

#[test]
fn paths_cannot_lead_out() {
    for good in ["a", "a/b.c", "...", "a/..b", "ä ö/#1", "a%2fb", "%2e%2e%2e", "-", "a:b", "100%"]
    {
        assert_eq!(ObjectPath::new(good).unwrap().as_str(), good);
    }
    let long = "x".repeat(256);
    let longest = "x/".repeat(1024) + "x";
    for bad in [
        "", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "..\\b", "a\\b", "a\0b", "%2e%2e",
        "a/%2E./b", ".%2e/x", "%2E", &long, &longest,
    ] {
        assert!(ObjectPath::new(bad).is_err(), "{bad:?}");
    }
    let shown = ObjectPath::new("a\n/../\u{1b}[0m").unwrap_err().to_string();
    assert!(!shown.contains(['\n', '\u{1b}']), "{shown}");
}

#[tokio::test]
async fn objects_come_back_whole_and_replace_each_other() {
    let world = World::new();
    let store = world.blob();
    let at = path("azureml/brave_owl/model/weights #1");
    assert!(matches!(store.get(&at, 10).await, Err(Error::NotFound(_))));
    let first = store.put(&at, Bytes::from_static(b"first")).await.unwrap();
    assert_eq!(store.get(&at, 10).await.unwrap(), "first");
    let opened = store.open(&at).await.unwrap();
    let second = store.put(&at, Bytes::from_static(b"other")).await.unwrap();
    assert_ne!(first.etag, second.etag);
    assert_eq!(store.head(&at).await.unwrap(), second);
    // Who reads goes on reading what was there.
    let pieces: Vec<Bytes> = opened.stream(1..4).try_collect().await.unwrap();
    assert_eq!(pieces.concat(), b"irs");
    assert!(matches!(store.get(&at, 4).await, Err(Error::TooLarge { size: 5, limit: 4, .. })));
    store.put(&path("empty"), Bytes::new()).await.unwrap();
    assert_eq!(store.get(&path("empty"), 0).await.unwrap(), "");
    assert_eq!(world.staged(), 0);
}

#[tokio::test]
async fn a_stream_that_breaks_off_stores_nothing() {
    let world = World::new();
    let store = world.blob();
    let piece = Bytes::from(vec![7; 400_000]);
    let broken = futures::stream::iter([
        Ok(piece.clone()),
        Ok(piece.clone()),
        Err(io::Error::other("the line is dead")),
    ]);
    let error = store.put_stream(&path("a/b"), broken).await.unwrap_err();
    assert!(matches!(error, Error::Interrupted(_)), "{error}");
    assert_eq!(all(&store, None, 10).await, Vec::<String>::new());
    assert_eq!(world.staged(), 0);
    // A client that goes away in the middle: the future is dropped.
    let (waits, waiting) = tokio::sync::oneshot::channel();
    let then_silence = futures::stream::once(async move {
        waits.send(()).unwrap();
        std::future::pending().await
    });
    let endless = futures::stream::iter([Ok::<_, io::Error>(piece)]).chain(then_silence);
    let at = path("a/b");
    tokio::select! {
        stored = store.put_stream(&at, endless) => panic!("{stored:?}"),
        waited = waiting => waited.unwrap(),
    }
    assert_eq!(world.staged(), 0);
    let pieces =
        || futures::stream::iter((0..5).map(|i| Ok::<_, io::Error>(Bytes::from(vec![i; 300_000]))));
    // One whose writer is over by the time all of it is on the disk.
    let over: Still = Arc::new(|| Err("the attempt is over".to_owned()));
    let error = store.put_stream_if(&path("a/b"), pieces(), over).await.unwrap_err();
    assert!(matches!(error, Error::Interrupted(_)), "{error}");
    assert!(matches!(store.head(&path("a/b")).await, Err(Error::NotFound(_))));
    assert_eq!(world.staged(), 0);
    assert!(matches!(store.delete_object(&path("a")).await, Err(Error::NotFound(_))));
    store.put_stream(&path("a/b"), pieces()).await.unwrap();
    assert!(matches!(store.delete_object(&path("a")).await, Err(Error::NotFound(_))));
    assert_eq!(store.head(&path("a/b")).await.unwrap().size, 1_500_000);
}

#[tokio::test]
async fn objects_and_folders_do_not_share_a_path() {
    let world = World::new();
    let store = world.blob();
    store.put(&path("a/b"), Bytes::new()).await.unwrap();
    for taken in ["a", "a/b/c", "a/b/c/d", ".staging", ".staging/x", ".Staging./x"] {
        let error = store.put(&path(taken), Bytes::new()).await.unwrap_err();
        assert!(matches!(error, Error::Conflict(_)), "{taken}: {error}");
    }
    for absent in ["a", "a/b/c", "a/c", ".staging", ".staging/x", ".STAGING/x"] {
        assert!(matches!(store.head(&path(absent)).await, Err(Error::NotFound(_))), "{absent}");
    }
    assert_eq!(world.staged(), 0);
}

#[tokio::test]
async fn links_lead_nowhere() {
    let world = World::new();
    let store = world.blob();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "s").unwrap();
    let root = world.on_disk();
    symlink(outside.path(), root.join("dir")).unwrap();
    symlink(outside.path().join("secret"), root.join("file")).unwrap();
    for through in ["dir/secret", "file"] {
        let error = store.open(&path(through)).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Link(_)), "{through}: {error}");
    }
    let error = store.put(&path("dir/new"), Bytes::new()).await.unwrap_err();
    assert!(matches!(error, Error::Link(_)), "{error}");
    assert!(!outside.path().join("new").exists());
    // A link at an object's own place is replaced, not written through.
    store.put(&path("file"), Bytes::from_static(b"mine")).await.unwrap();
    assert_eq!(std::fs::read_to_string(outside.path().join("secret")).unwrap(), "s");
    assert_eq!(all(&store, None, 10).await, ["file"]);
    // A pipe is no object, and opening one does not wait for a writer.
    let status = std::process::Command::new("mkfifo").arg(root.join("pipe")).status().unwrap();
    assert!(status.success());
    assert!(matches!(store.head(&path("pipe")).await, Err(Error::NotFound(_))));
    // Deleting a folder removes its links, not what they point to.
    assert!(store.delete(&path("dir")).await.unwrap().is_empty());
    assert!(outside.path().join("secret").exists());
}

#[tokio::test]
async fn listings_are_ordered_and_go_on_where_they_ended() {
    let world = World::new();
    let store = world.blob();
    let mut stored = BTreeSet::new();
    for name in ["a/b", "a-b", "a.b/c", "a/b c/ü", "a0", "b", "a/z/y/x", "z/#3", "run#1", "a/b\n"]
    {
        store.put(&path(name), Bytes::from(name)).await.unwrap();
        stored.insert(name.to_owned());
    }
    // What is there but is no object of the store.
    std::fs::write(world.on_disk().join("back\\slash"), "").unwrap();
    std::fs::create_dir_all(world.on_disk().join("empty/er")).unwrap();
    let expected: Vec<String> = stored.iter().cloned().collect();
    for limit in [1, 2, 3, 100] {
        assert_eq!(all(&store, None, limit).await, expected, "pages of {limit}");
    }
    for (below, expected) in [
        ("a", vec!["a/b", "a/b\n", "a/b c/ü", "a/z/y/x"]),
        ("a/z", vec!["a/z/y/x"]),
        ("a0", vec!["a0"]),
        ("a0/x", vec![]),
        ("nothing/here", vec![]),
        ("empty", vec![]),
    ] {
        let mut expected: Vec<String> = expected.into_iter().map(String::from).collect();
        expected.sort();
        assert_eq!(all(&store, Some(&path(below)), 2).await, expected, "{below}");
    }
    let page = store.list(None, Some("a/b c"), 2).await.unwrap();
    let found: Vec<&str> = page.objects.iter().map(|object| object.path.as_str()).collect();
    assert_eq!(found, ["a/b c/ü", "a/z/y/x"]);
    assert_eq!(page.objects[0].meta.size, "a/b c/ü".len() as u64);
    assert_eq!(page.objects[0].meta, store.head(&path("a/b c/ü")).await.unwrap());
    assert!(store.delete(&path("a")).await.unwrap().is_empty());
    assert!(store.delete(&path("a0")).await.unwrap().is_empty());
    assert!(store.delete(&path("never/was")).await.unwrap().is_empty());
    assert_eq!(all(&store, None, 100).await, ["a-b", "a.b/c", "b", "run#1", "z/#3"]);
    assert_eq!(world.staged(), 0);
}

#[tokio::test]
async fn a_listing_goes_as_deep_as_paths_do() {
    let world = World::new();
    let store = world.blob();
    // Folders that no path leads to.
    let mut folder = world.on_disk();
    let long = "d".repeat(200);
    for _ in 0..10 {
        folder.push(&long);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("f"), "").unwrap();
    }
    // The next is past what a system call takes, so it is made from inside.
    let mut at = std::fs::File::open(&folder).unwrap();
    for _ in 0..200 {
        rustix::fs::mkdirat(&at, "deeper", rustix::fs::Mode::from(0o755)).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        let next = rustix::fs::openat(&at, "deeper", flags, rustix::fs::Mode::empty());
        at = next.unwrap().into();
        let file = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
        rustix::fs::openat(&at, "f", file, rustix::fs::Mode::from(0o644)).unwrap();
    }
    std::fs::create_dir(world.on_disk().join("lost+found")).unwrap();
    std::fs::write(world.on_disk().join("lost+found/x"), "").unwrap();
    let found = all(&store, None, 3).await;
    let deepest = found.iter().map(String::len).max().unwrap();
    assert!(found.len() > 10 && deepest > 2030 && deepest <= 2048, "{} {deepest}", found.len());
    assert!(!found.iter().any(|path| path.starts_with("lost+found")));
}

#[tokio::test]
async fn a_new_daemon_clears_what_the_last_one_staged() {
    let world = World::new();
    let staging = world.on_disk().join(STAGING);
    std::fs::write(staging.join("put-3"), "half").unwrap();
    std::fs::create_dir_all(staging.join("put-4/deep")).unwrap();
    std::fs::write(staging.join("agent-1"), "not the daemon's").unwrap();
    let again = Datastores::open_folders(world.folder.path()).unwrap();
    again.get(BLOB_STORE).unwrap().put(&path("a"), Bytes::new()).await.unwrap();
    let left: Vec<_> =
        std::fs::read_dir(&staging).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["agent-1"]);
    assert!(matches!(again.get("nostore"), Err(Error::UnknownDatastore(_))));
    assert!(matches!(again.get("../x"), Err(Error::UnknownDatastore(_))));
    assert_eq!(again.all().len(), 3);
}

#[tokio::test]
async fn many_writers_of_one_path_leave_one_whole_object() {
    let world = World::new();
    let store = world.blob();
    let writes = (0..16_u8).map(|i| {
        let store = store.clone();
        tokio::spawn(async move {
            let bytes = Bytes::from(vec![i; 100_000]);
            store.put(&path("new/folder/object"), bytes).await.unwrap();
            assert!(store.delete(&path(&format!("new/other-{i}"))).await.unwrap().is_empty());
        })
    });
    for write in writes {
        write.await.unwrap();
    }
    let bytes = store.get(&path("new/folder/object"), 100_000).await.unwrap();
    assert_eq!(bytes.len(), 100_000);
    assert!(bytes.iter().all(|&byte| byte == bytes[0]));
}

fn object(data: &[u8]) -> (atelier_core::content::Digest, Bytes) {
    let object = encode_chunk(data).unwrap();
    (object.digest, object.bytes.into())
}

fn parent(children: &[atelier_core::content::Digest]) -> (atelier_core::content::Digest, Bytes) {
    let entries = children.iter().enumerate().map(|(i, &digest)| Entry {
        name: EntryName::new(format!("{i:05}").as_bytes()).unwrap(),
        kind: EntryKind::File { executable: false, size: 1, content: FileContent::Chunk(digest) },
    });
    let object = Directory::new(entries.collect()).unwrap().encode().unwrap().objects.remove(0);
    (object.digest, object.bytes.into())
}

/// `fresh` is the same, opened by another daemon.
async fn is_stored_once_and_children_first(content: &ContentStore, fresh: &ContentStore) {
    let (a, b) = (object(b"a"), object(b"b"));
    let both = parent(&[a.0, b.0]);
    let wanted = vec![both.0, a.0, b.0];
    assert_eq!(content.missing(wanted.clone()).await.unwrap(), wanted);

    // A parent whose child is nowhere.
    let early = content.upload().add(vec![a.clone(), both.clone()]).await.unwrap_err();
    assert!(early.to_string().contains(&b.0.to_string()), "{early}");
    // What does not hash to its digest, and what is no object.
    let forged = content.upload().add(vec![(a.0, b.1.clone())]).await.unwrap_err();
    assert!(matches!(forged, Error::Content { .. }), "{forged}");
    let junk = Bytes::from_static(b"\x03junk");
    let junk = (atelier_core::content::Digest::of(&junk), junk);
    assert!(content.upload().add(vec![junk]).await.is_err());
    assert_eq!(content.missing(wanted.clone()).await.unwrap(), wanted);

    let upload = content.upload().add(vec![a.clone(), b.clone(), a.clone()]).await.unwrap();
    let upload = upload.add(vec![both.clone()]).await.unwrap();
    assert_eq!(content.missing(wanted.clone()).await.unwrap(), wanted, "not promised yet");
    assert_eq!(upload.finish().await.unwrap(), 3);
    assert_eq!(content.missing(wanted.clone()).await.unwrap(), []);
    let again = content.upload().add(vec![a.clone(), both.clone()]).await.unwrap();
    assert_eq!(again.finish().await.unwrap(), 0);

    assert_eq!(fresh.missing(wanted.clone()).await.unwrap(), []);
    let read = fresh.read(wanted.clone(), usize::MAX).await.unwrap();
    assert_eq!(read, [both.clone(), a.clone(), b.clone()]);
    assert_eq!(fresh.read(wanted, 1).await.unwrap(), [both]);
}

#[tokio::test]
async fn content_is_stored_once_and_children_first() {
    let world = World::new();
    let content = ContentStore::new(&world.stores).unwrap();
    let fresh = ContentStore::new(&Datastores::open_folders(world.folder.path()).unwrap()).unwrap();
    is_stored_once_and_children_first(&content, &fresh).await;
    assert_eq!(world.staged(), 0);
    let digest = object(b"a").0.to_string();
    assert!(world.on_disk().join(format!("azureml/content/{}/{digest}", &digest[..2])).is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_content_is_stored_once_and_children_first() {
    let server = Server::start();
    let (source, unlock) = server.place(Some("team"));
    let home = Home::Cloud(source, unlock);
    let open = || Datastores::open(&home, std::time::Duration::from_secs(5)).unwrap();
    let content = ContentStore::new(&open()).unwrap();
    is_stored_once_and_children_first(&content, &ContentStore::new(&open()).unwrap()).await;
    // Damaged, it is found and can be stored again.
    let (digest, bytes) = object(b"a");
    let (name, blobs) = (digest.to_string(), open().get("workspaceblobstore").unwrap());
    let at = ObjectPath::new(&format!("azureml/content/{}/{name}", &name[..2])).unwrap();
    blobs.put(&at, Bytes::from_static(b"\x01other")).await.unwrap();
    let error = content.read(vec![digest], 1).await.unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    assert_eq!(content.missing(vec![digest]).await.unwrap(), [digest]);
    let upload = content.upload().add(vec![(digest, bytes.clone())]).await.unwrap();
    upload.finish().await.unwrap();
    assert_eq!(content.read(vec![digest], 1).await.unwrap(), [(digest, bytes)]);
}

#[tokio::test]
async fn many_small_objects_are_stored_in_one_go() {
    let world = World::new();
    let content = ContentStore::new(&world.stores).unwrap();
    let mut objects: Vec<_> = (0..3_000_u32).map(|i| object(&i.to_le_bytes())).collect();
    let digests: Vec<_> = objects.iter().map(|object| object.0).collect();
    for part in digests.chunks(1000) {
        objects.push(parent(part));
    }
    let begin = std::time::Instant::now();
    let mut upload = content.upload();
    for part in objects.chunks(2000) {
        upload = upload.add(part.to_vec()).await.unwrap();
    }
    assert_eq!(upload.finish().await.unwrap(), 3_003);
    eprintln!("3,003 objects durable after {:?}", begin.elapsed());
    assert_eq!(content.missing(digests).await.unwrap(), []);
    assert_eq!(world.staged(), 0);
}

#[tokio::test]
async fn damaged_content_is_found_and_can_be_stored_again() {
    let world = World::new();
    let content = ContentStore::new(&world.stores).unwrap();
    let (digest, bytes) = object(b"precious");
    let upload = content.upload().add(vec![(digest, bytes.clone())]).await.unwrap();
    upload.finish().await.unwrap();
    let name = digest.to_string();
    let file = world.on_disk().join(format!("azureml/content/{}/{name}", &name[..2]));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&file, b"\x01precioux").unwrap();
    let error = content.read(vec![digest], 1).await.unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    assert_eq!(content.missing(vec![digest]).await.unwrap(), [digest]);
    let upload = content.upload().add(vec![(digest, bytes.clone())]).await.unwrap();
    upload.finish().await.unwrap();
    assert_eq!(content.read(vec![digest], 1).await.unwrap(), [(digest, bytes)]);
}

proptest! {
    /// Whatever text is taken as a path stays below the folder it is joined to.
    #[test]
    fn any_path_stays_inside(text in "[a./%2eE\\\\\u{0}-]{0,12}|.{0,20}") {
        if let Ok(path) = ObjectPath::new(&text) {
            let joined = Path::new("/root").join(path.as_str());
            let normal = |part| matches!(part, std::path::Component::Normal(_));
            prop_assert!(joined.components().skip(2).all(normal));
            prop_assert_eq!(joined.components().count(), 2 + path.segments().count());
        }
    }
}

fn record(name: &str, kind: FolderKind, path: &Path) -> DatastoreRecord {
    DatastoreRecord {
        datastore: Draft {
            name: DatastoreName::new(name).unwrap(),
            description: None,
            tags: [].into(),
            properties: [].into(),
            source: Source::Folder(FolderSource { kind, path: path.to_str().unwrap().to_owned() }),
        },
        credentials: KeptCredentials::None,
        created_by: Principal::new("ana").unwrap(),
        created_at: Timestamp::from_millis(7),
    }
}

/// The credentials of a folder.
fn nothing() -> Unlock {
    Arc::new(|| Ok(Credentials::None))
}

#[tokio::test]
async fn a_folder_of_somebodys_is_left_as_it_is_until_something_is_written() {
    let world = World::new();
    let theirs = tempfile::tempdir().unwrap();
    let place = std::fs::canonicalize(theirs.path()).unwrap();
    std::fs::write(place.join("given"), "given").unwrap();
    for name in ["one", "two"] {
        world.stores.put(record(name, FolderKind::Local, &place), "w", nothing());
    }
    let [one, two] = ["one", "two"].map(|name| world.stores.get(name).unwrap());
    assert_eq!(all(&one, None, 10).await, ["given"]);
    assert!(one.delete(&path("nothing")).await.unwrap().is_empty());
    assert_eq!(one.get(&path("given"), 9).await.unwrap(), "given");
    assert!(
        !place.join(STAGING).exists()
            || std::fs::read_dir(place.join(STAGING)).unwrap().count() == 0
    );

    // What another daemon, or another datastore of the folder, has staged is not cleared away.
    let staging = place.join(STAGING);
    std::fs::create_dir_all(&staging).unwrap();
    std::fs::write(staging.join("put-0"), "another's").unwrap();
    let (started, wait) =
        (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let pieces = {
        let (started, wait) = (started.clone(), wait.clone());
        futures::stream::iter([0, 1]).then(move |number| {
            let (started, wait) = (started.clone(), wait.clone());
            async move {
                if number == 1 {
                    started.notify_one();
                    wait.notified().await;
                }
                Ok::<_, io::Error>(Bytes::from(vec![b'x'; 600 << 10]))
            }
        })
    };
    let slow = tokio::spawn(async move { one.put_stream(&path("slow"), pieces).await });
    started.notified().await;
    two.put(&path("quick"), Bytes::from_static(b"quick")).await.unwrap();
    // Said anew meanwhile, it is still the one that has something staged.
    world.stores.put(record("one", FolderKind::Local, &place), "w", nothing());
    let again = world.stores.get("one").unwrap();
    again.put(&path("again"), Bytes::from_static(b"again")).await.unwrap();
    wait.notify_one();
    assert_eq!(slow.await.unwrap().unwrap().size, 1200 << 10);
    let names = std::fs::read_dir(&staging).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["put-0"]);
    assert_eq!(all(&two, None, 10).await, ["again", "given", "quick", "slow"]);
}

#[tokio::test]
async fn a_mount_is_needed_where_one_is_said_to_be() {
    let world = World::new();
    let theirs = tempfile::tempdir().unwrap();
    let place = std::fs::canonicalize(theirs.path()).unwrap();
    world.stores.put(record("share", FolderKind::Nfs, &place), "w", nothing());
    let share = world.stores.get("share").unwrap();
    let refused = share.put(&path("x"), Bytes::from_static(b"x")).await.unwrap_err().to_string();
    assert!(refused.contains("nothing is mounted at"), "{refused}");
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
    assert!(matches!(share.list(None, None, 1).await, Err(Error::Away { .. })));
    // The kernel's own mounts are ones.
    let look = |path: &str| FolderSource { kind: FolderKind::Nfs, path: path.to_owned() };
    assert_eq!(check_place(&look("/proc/"), &place).await.unwrap(), "/proc");
    let refused = check_place(&look("/proc/self"), &place).await.unwrap_err().to_string();
    assert!(refused.contains("nothing is mounted at"), "{refused}");
}
