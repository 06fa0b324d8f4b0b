//! Inputs.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use atelier_core::spec::{DataKind, DataUri, Input, InputMode};
use atelier_proto::agent::v1 as pb;

use super::super::Error;
use super::super::direct::Wanted;
use super::super::files::{self, Stop, StopOnDrop};
use super::super::transfer::Second;
use super::tree;
use super::world::{STORE, TOKEN, World};
use crate::data::Places;

fn data(kind: DataKind, mode: InputMode) -> Input {
    Input::Data { kind, mode, uri: DataUri::Http(String::new()), asset: None, address: None }
}

impl World {
    pub(super) async fn input(
        &self,
        name: &str,
        path: &str,
        kind: DataKind,
        mode: InputMode,
    ) -> Result<String, Error> {
        let grant = pb::InputGrant { source: Some(pb::input_grant::Source::Store(self.at(path))) };
        let input = data(kind, mode);
        self.plane.input(name, &input, Some(&grant), TOKEN, &self.inputs()).await
    }

    async fn url(&self, name: &str, path: &str, mode: InputMode) -> Result<String, Error> {
        let url = format!("http://{}/web/{path}", self.address);
        let grant = pb::InputGrant { source: Some(pb::input_grant::Source::Url(url)) };
        let input = data(DataKind::UriFile, mode);
        self.plane.input(name, &input, Some(&grant), TOKEN, &self.inputs()).await
    }
}

#[tokio::test]
async fn files_and_folders_in_every_mode() {
    for shared in [false, true] {
        let world = World::new(shared).await;
        world.store("data/iris.csv", b"a,b");
        for name in ["x", "d/y z#?%.txt", "d/e/größe", "d/empty", "l/1", "l/2", "l/3"] {
            world.store(&format!("folder/{name}"), name.as_bytes());
        }
        // A neighbour whose name begins alike is no part of it.
        world.store("folder2/no", b"no");
        world.fail_next(2);
        for mode in [InputMode::RoMount, InputMode::Download] {
            let path = world.input("one", "data/iris.csv", DataKind::UriFile, mode).await.unwrap();
            assert_eq!(path, world.inputs().join("one/iris.csv").to_str().unwrap());
            assert_eq!(fs::read(&path).unwrap(), b"a,b");
            for at in ["folder", "folder/"] {
                let path = world.input("all", at, DataKind::UriFolder, mode).await.unwrap();
                assert_eq!(path, world.inputs().join("all").to_str().unwrap());
                let files = tree(path.as_ref());
                assert_eq!(files.len(), 7);
                assert!(files.iter().all(|(name, bytes)| name.as_bytes() == bytes), "{files:?}");
            }
        }
        for (kind, at) in [
            (DataKind::CustomModel, "data/iris.csv"),
            (DataKind::CustomModel, "folder"),
            (DataKind::MlTable, "folder"),
            (DataKind::MlflowModel, "folder"),
        ] {
            world.input("model", at, kind, InputMode::RoMount).await.unwrap();
        }
        let direct = world.input("u", "data/iris.csv", DataKind::UriFile, InputMode::Direct).await;
        assert_eq!(direct.unwrap(), "azureml://datastores/workspaceblobstore/paths/data/iris.csv");
    }
}

#[tokio::test]
async fn a_download_is_the_jobs_own_and_a_mount_is_not_copied() {
    for shared in [false, true] {
        let world = World::new(shared).await;
        world.store("d/a.txt", b"stored");
        let download = InputMode::Download;
        let path = world.input("own", "d", DataKind::UriFolder, download).await.unwrap();
        let file = format!("{path}/a.txt");
        OpenOptions::new().append(true).open(&file).unwrap().write_all(b" changed").unwrap();
        assert_eq!(world.stored("d/a.txt").unwrap(), b"stored");

        let path = world.input("ro", "d", DataKind::UriFolder, InputMode::RoMount).await.unwrap();
        let meta = fs::metadata(format!("{path}/a.txt")).unwrap();
        // Root's own file nobody else could change as it is.
        let open = if !shared && rustix::process::geteuid().is_root() { 0o022 } else { 0o222 };
        assert_eq!(meta.permissions().mode() & open, 0, "it is read-only");
        assert_eq!(meta.nlink(), 2, "a second name of the stored or cached file");
        // The folder is the job's: what it removes or adds there is not the store's.
        fs::remove_file(format!("{path}/a.txt")).unwrap();
        assert_eq!(world.stored("d/a.txt").unwrap(), b"stored");
        // Again, over what an earlier try left.
        fs::write(format!("{path}/stray"), "").unwrap();
        world.input("ro", "d", DataKind::UriFolder, InputMode::RoMount).await.unwrap();
        assert_eq!(tree(path.as_ref()).into_keys().collect::<Vec<_>>(), ["a.txt"]);
    }
}

#[tokio::test]
async fn what_is_missing_or_of_another_kind_is_the_users_fault() {
    for shared in [false, true] {
        let world = World::new(shared).await;
        world.store("file", b"x");
        world.store("folder/x", b"x");
        if shared {
            fs::create_dir_all(world.store_root().join("empty/inside")).unwrap();
        }
        let mount = InputMode::RoMount;
        for (at, kind, word) in [
            ("missing", DataKind::UriFile, "nothing is stored at azureml://datastores/"),
            ("missing/deep/er", DataKind::UriFolder, "nothing is stored"),
            ("file/below", DataKind::UriFolder, "nothing is stored"),
            ("empty", DataKind::UriFolder, "nothing is stored"),
            ("folder", DataKind::UriFile, "'uri_file', but"),
            ("file", DataKind::UriFolder, "'uri_folder', but"),
            ("file", DataKind::MlflowModel, "use 'uri_file'"),
            ("../etc", DataKind::UriFolder, "'..'"),
            ("folder/../../etc", DataKind::UriFolder, "'..'"),
        ] {
            let error = world.input("training", at, kind, mount).await.unwrap_err();
            assert!(error.is_users(), "{at}: {error}");
            let text = error.to_string();
            assert!(text.contains(word), "{at}: {text}");
            assert!(text.contains("training") || text.contains("path"), "{text}");
        }
        let eval = world.input("x", "folder", DataKind::UriFolder, InputMode::EvalMount).await;
        assert!(eval.unwrap_err().is_users());
        let input = data(DataKind::UriFile, mount);
        let none = world.plane.input("x", &input, None, TOKEN, &world.inputs()).await;
        assert!(!none.unwrap_err().is_users());
    }
}

#[tokio::test]
async fn links_in_a_shared_store_are_not_followed() {
    let world = World::new(true).await;
    world.store("d/good", b"good");
    fs::write(world.folder.path().join("secret"), "secret").unwrap();
    let root = world.store_root();
    std::os::unix::fs::symlink("../../secret", root.join("d/link")).unwrap();
    std::os::unix::fs::symlink(world.folder.path(), root.join("out")).unwrap();
    let mount = InputMode::RoMount;
    let path = world.input("d", "d", DataKind::UriFolder, mount).await.unwrap();
    assert_eq!(tree(path.as_ref()).into_keys().collect::<Vec<_>>(), ["good"]);
    world.store(".uncommitted/j/o/0/x", b"another's");
    let all = world.input("all", "", DataKind::UriFolder, mount).await.unwrap();
    assert_eq!(tree(all.as_ref()).into_keys().collect::<Vec<_>>(), ["d/good"]);
    for at in ["d/link", "out", "out/secret", ".staging", ".uncommitted", ".uncommitted/j"] {
        let error = world.input("d", at, DataKind::CustomModel, mount).await.unwrap_err();
        assert!(matches!(error, Error::Missing { .. }), "{at}: {error}");
    }
}

#[tokio::test]
async fn marks_of_folders_are_no_files() {
    let world = World::new(false).await;
    for (path, text) in [("d", ""), ("d/a", ""), ("d/a/b", "b"), ("d/empty", "")] {
        world.store(path, text.as_bytes());
    }
    for mode in [InputMode::RoMount, InputMode::Download] {
        let path = world.input("i", "d", DataKind::UriFolder, mode).await.unwrap();
        assert_eq!(tree(path.as_ref()).into_keys().collect::<Vec<_>>(), ["a/b", "empty"]);
    }
    world.store("d/a", b"bytes");
    assert!(world.input("j", "d", DataKind::UriFolder, InputMode::Download).await.is_err());
}

#[tokio::test]
async fn jobs_share_what_was_read_until_it_changes() {
    let world = World::new(false).await;
    let bytes = vec![7; 300_000];
    world.store("d/a", &bytes);
    let mount = InputMode::RoMount;
    let all = ["i1", "i2", "i3"].map(|name| world.input(name, "d", DataKind::UriFolder, mount));
    for path in futures::future::try_join_all(all).await.unwrap() {
        assert_eq!(fs::read(format!("{path}/a")).unwrap(), bytes);
    }
    assert_eq!(world.requests("GET d/a"), 1);
    world.input("i4", "d", DataKind::UriFolder, InputMode::Download).await.unwrap();
    assert_eq!(world.requests("GET d/a"), 1);
    world.store("d/a", b"new");
    let path = world.input("i5", "d", DataKind::UriFolder, mount).await.unwrap();
    assert_eq!(fs::read(format!("{path}/a")).unwrap(), b"new");
    assert_eq!(world.requests("GET d/a"), 2);
}

/// Small objects come in memory, those that are read in ranges are written twice as they come, and others are copied.
#[tokio::test]
async fn a_copy_of_ones_own_is_whole_and_nobody_elses() {
    let world = World::new(false).await;
    let bytes = |length: u32| (0..length).map(|i| (i / 7) as u8).collect::<Vec<u8>>();
    let all = [("empty", 0), ("small", 70_000), ("middle", 3 << 20), ("large", (33 << 20) + 5)];
    for (name, length) in all {
        world.store(&format!("d/{name}"), &bytes(length));
    }
    world.break_next(3);
    let (mode, kind) = (InputMode::Download, DataKind::UriFolder);
    for (number, input) in ["first", "second"].into_iter().enumerate() {
        let folder = world.input(input, "d", kind, mode).await.unwrap();
        for (name, length) in all {
            let path = format!("{folder}/{name}");
            assert!(fs::read(&path).unwrap() == bytes(length), "{name} of the {input}");
            let meta = fs::metadata(&path).unwrap();
            assert_eq!((meta.mode() & 0o777, meta.nlink()), (0o644, 1), "{name}");
            // What a job makes of its own is not seen by the next.
            OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap();
        }
        if number == 0 {
            world.daemon.lock().unwrap().requests.clear();
        }
    }
    let sent = world.daemon.lock().unwrap().requests.clone();
    assert!(!sent.iter().any(|line| line.starts_with("GET ")), "{sent:?}");
}

#[tokio::test]
async fn a_second_file_is_written_too_and_what_fails_with_it_is_its_own() {
    let world = World::new(false).await;
    let bytes: Vec<u8> = (0..(33_u32 << 20) + 5).map(|i| (i / 7) as u8).collect();
    world.store("d/large", &bytes);
    world.store("d/middle", &bytes[..1 << 20]);
    let folder = world.folder.path();
    let read = async |key: &str, size: usize, to: &str, second: &str, stop: Stop| {
        let etag = world.daemon.lock().unwrap().objects[key].1.clone();
        let wanted = Wanted { datastore: STORE, key, etag: &etag, token: TOKEN };
        let (to, path) = (folder.join(to), folder.join(second));
        let second = Second { path: path.clone(), stop };
        let gateway = &world.plane.0.gateway;
        let twice = gateway.get_with(&wanted, size as u64, &to, Some(second)).await.unwrap();
        assert!(fs::read(to).unwrap() == bytes[..size], "{key}");
        assert_eq!(fs::read(path).is_ok_and(|copy| copy == bytes[..size]), twice, "{key}");
        twice
    };
    world.break_next(2);
    // On file systems that share blocks it is left to who copies.
    let shares =
        files::can_share(&fs::File::open(folder.join("store")).unwrap(), &folder.join("x"));
    assert_eq!(read("d/large", bytes.len(), "1", "second", Stop::default()).await, !shares);
    assert!(!read("d/middle", 1 << 20, "2", "none", Stop::default()).await);
    assert!(!read("d/large", bytes.len(), "3", "no/folder", Stop::default()).await);
    // Nobody wants it any more.
    let stop = Stop::default();
    drop(StopOnDrop(stop.clone()));
    assert!(!read("d/large", bytes.len(), "4", "unwanted", stop).await);
    assert!(!folder.join("unwanted").exists());
    // Something is there.
    fs::write(folder.join("there"), "x").unwrap();
    assert!(!read("d/large", bytes.len(), "5", "there", Stop::default()).await);
    assert_eq!(fs::read(folder.join("there")).unwrap(), b"x");
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_broke() {
    let world = World::new(false).await;
    let bytes: Vec<u8> = (0..400_000_u32).map(|i| (i % 251) as u8).collect();
    world.store("d/a", &bytes);
    // The listing fails once, then the transfer breaks in half twice.
    world.fail_next(1);
    world.break_next(2);
    let mode = InputMode::Download;
    let path = world.input("x", "d/a", DataKind::UriFile, mode).await.unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    let sent: Vec<String> = world.daemon.lock().unwrap().requests.clone();
    let sent: Vec<&str> = sent.iter().filter_map(|line| line.strip_prefix("SENT ")).collect();
    assert_eq!(sent[0], "400000");
    assert_eq!(sent.len(), 3);
    assert!(sent[2].parse::<u32>().unwrap() < 400_000, "{sent:?}");
    // A server that fails for good is given up.
    world.store("d/b", &bytes);
    world.break_next(1000);
    let error = world.input("x", "d/b", DataKind::UriFile, mode).await.unwrap_err();
    assert!(matches!(error, Error::Gateway { transient: true, .. }) && !error.is_users());
}

#[tokio::test]
async fn what_is_too_large_for_the_cache_goes_past_it() {
    let world = World::with_cache(false, Some(1000)).await;
    world.store("d/large", &[1; 5000]);
    for mode in [InputMode::Download, InputMode::RoMount] {
        let path = world.input("x", "d/large", DataKind::UriFile, mode).await.unwrap();
        assert_eq!(fs::read(path).unwrap(), [1; 5000]);
    }
    assert!(tree(&world.folder.path().join("cache/files")).is_empty());
}

#[tokio::test]
async fn inputs_from_the_web() {
    let world = World::new(false).await;
    let bytes = vec![3; 100_000];
    world.store("pub/iris.csv", &bytes);
    world.store("untagged/t.csv", b"t");
    let mount = InputMode::RoMount;
    world.break_next(1);
    for (name, mode) in [("a", mount), ("b", InputMode::Download), ("c", mount)] {
        let path = world.url(name, "pub/iris.csv?sig=secret", mode).await.unwrap();
        assert_eq!(path, world.inputs().join(name).join("iris.csv").to_str().unwrap());
        assert_eq!(fs::read(&path).unwrap(), bytes);
        let writable = fs::metadata(&path).unwrap().permissions().mode() & 0o200 != 0;
        assert_eq!(writable, mode == InputMode::Download);
    }
    // Broken once and then resumed; asked for twice more, and not sent again.
    assert_eq!(world.requests("SENT"), 2);
    world.store("pub/iris.csv", b"new");
    let path = world.url("d", "pub/iris.csv?sig=secret", mount).await.unwrap();
    assert_eq!(fs::read(path).unwrap(), b"new");
    for content in ["t", "u"] {
        world.store("untagged/t.csv", content.as_bytes());
        let path = world.url("e", "untagged/t.csv", mount).await.unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), content);
    }
    let direct = world.url("f", "pub/iris.csv", InputMode::Direct).await.unwrap();
    assert!(direct.starts_with("http://") && direct.ends_with("/web/pub/iris.csv"));

    for (path, word) in [("nowhere.csv?sig=secret", "404"), ("forbidden", "credentials")] {
        let error = world.url("input1", path, mount).await.unwrap_err();
        let text = error.to_string();
        assert!(error.is_users() && text.contains(word) && text.contains("input1"), "{text}");
        assert!(!text.contains("secret") && !text.contains("html"), "{text}");
    }
    let ask = async |url: &str, kind| {
        let grant = pb::InputGrant { source: Some(pb::input_grant::Source::Url(url.into())) };
        let input = data(kind, mount);
        world.plane.input("x", &input, Some(&grant), TOKEN, &world.inputs()).await.unwrap_err()
    };
    assert!(ask("file:///etc/passwd", DataKind::UriFile).await.is_users());
    assert!(ask("not a url", DataKind::UriFile).await.is_users());
    // The node itself may go there, and jobs may not.
    for url in ["http://169.254.169.254/latest", "http://[::ffff:a9fe:a9fe]/", "http://2852039166/"]
    {
        let error = ask(url, DataKind::UriFile).await;
        assert!(error.is_users() && error.to_string().contains("closed to jobs"), "{error}");
    }
    // Nor to where the daemon takes orders; other ports of the node's loopback address are open, see above.
    let port = world.control.port();
    for host in ["127.0.0.1", "127.9.9.9", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"] {
        let error = ask(&format!("http://{host}:{port}/web/pub/iris.csv"), DataKind::UriFile).await;
        let said = error.to_string();
        assert!(error.is_users() && said.contains("closed to jobs"), "{host}: {said}");
    }
    // Nor to any address that is not public and that no admin allows: by its number, by a name, by a redirect.
    let web = world.web_port();
    for host in ["127.0.0.2", "[::1]", "10.0.0.1", "192.168.0.1", "[fd00::1]", "[64:ff9b::a00:1]"] {
        let error = ask(&format!("http://{host}:{web}/web/pub/iris.csv"), DataKind::UriFile).await;
        let said = error.to_string();
        assert!(error.is_users() && said.contains("--allow-egress"), "{host}: {said}");
        let error = world.url("g", &format!("to/{host}:{web}"), mount).await.unwrap_err();
        let said = error.to_string();
        assert!(error.is_users() && said.contains("--allow-egress"), "to {host}: {said}");
    }
    for (host, why) in [
        ("169.254.169.254", "closed to jobs"),
        (&format!("127.0.0.1:{port}"), "closed to jobs"),
        (&format!("localhost:{port}"), "another port of the server"),
    ] {
        let error = world.url("g", &format!("to/{host}"), mount).await.unwrap_err();
        assert!(error.to_string().contains(why), "{host}: {error}");
    }
    assert!(ask("http://example.com/d", DataKind::UriFolder).await.is_users());
}

#[tokio::test]
async fn a_table_is_evaluated_to_the_files_it_names() {
    for shared in [false, true] {
        let world = World::new(shared).await;
        world.store("t/MLTable", b"paths:\n  - pattern: ./*.csv\n  - folder: ./more\n");
        for name in ["a.csv", "b.csv", "c.txt", "more/d.txt"] {
            world.store(&format!("t/{name}"), b"x");
        }
        for mode in [InputMode::EvalMount, InputMode::EvalDownload] {
            let path = world.input("t", "t", DataKind::MlTable, mode).await.unwrap();
            let names: Vec<String> = tree(path.as_ref()).into_keys().collect();
            assert_eq!(names, ["a.csv", "b.csv", "more/d.txt"]);
        }
        let path = world.input("t", "t", DataKind::MlTable, InputMode::RoMount).await.unwrap();
        assert_eq!(tree(path.as_ref()).len(), 5);
        world.store("u/x", b"x");
        let error =
            world.input("u", "u", DataKind::MlTable, InputMode::EvalMount).await.unwrap_err();
        assert!(error.to_string().contains("no file 'MLTable'"), "{error}");
    }
}

#[tokio::test]
async fn what_is_to_be_merged_is_the_cache_s_own_files() {
    for shared in [false, true] {
        let world = World::new(shared).await;
        for name in ["x", "d/y"] {
            world.store(&format!("folder/{name}"), name.as_bytes());
        }
        let overlays = world.inputs().with_file_name("overlays");
        let inputs = world.inputs();
        let places = Places { inputs: &inputs, mounts: None, overlays: Some(&overlays) };
        let source = Some(pb::input_grant::Source::Store(world.at("folder")));
        let grant = pb::InputGrant { source };
        let give = async |name: &str, mode| {
            let input = data(DataKind::UriFolder, mode);
            let given = world.plane.give_input(name, &input, Some(&grant), TOKEN, places);
            assert_eq!(given.await.unwrap().text, inputs.join(name).to_str().unwrap());
        };
        give("given", InputMode::Download).await;
        let place = if shared { inputs.join("given") } else { overlays.join("given/lower") };
        assert_eq!(tree(&place).len(), 2);
        assert_eq!(overlays.exists(), !shared);
        for name in ["x", "d/y"] {
            let found = fs::metadata(place.join(name)).unwrap();
            let links = if shared { 1 } else { 2 };
            assert_eq!((found.nlink(), found.mode() & 0o777), (links, 0o644), "{name}");
        }
        // Where what is linked for those who may only read it is closed for it, whoever merges it next gets a copy.
        give("read", InputMode::RoMount).await;
        give("next", InputMode::Download).await;
        let place = if shared { inputs.join("next") } else { overlays.join("next/lower") };
        let found = fs::metadata(place.join("x")).unwrap();
        let links = if !shared && rustix::process::geteuid().is_root() { 4 } else { 1 };
        assert_eq!((found.nlink(), found.mode() & 0o777), (links, 0o644));
    }
}

#[tokio::test]
async fn what_the_cache_cannot_keep_all_of_goes_straight_to_its_place() {
    let world = World::with_cache(false, Some(1000)).await;
    for name in ["a", "b", "c"] {
        world.store(&format!("folder/{name}"), &[7; 400]);
    }
    world.store("small/a", &[7; 400]);
    let cached = || {
        let files = tree(&world.folder.path().join("cache/files"));
        files.into_values().filter(|bytes| bytes.len() == 400).count()
    };
    for mode in [InputMode::Download, InputMode::RoMount] {
        let path = world.input("all", "folder", DataKind::UriFolder, mode).await.unwrap();
        assert_eq!(tree(path.as_ref()).into_values().map(|bytes| bytes.len()).sum::<usize>(), 1200);
        assert_eq!(cached(), 0);
    }
    // What is there is not read again for that.
    world.input("one", "folder/b", DataKind::UriFile, InputMode::RoMount).await.unwrap();
    assert_eq!(cached(), 1);
    let before = world.requests("GET ");
    world.input("all", "folder", DataKind::UriFolder, InputMode::RoMount).await.unwrap();
    assert_eq!(world.requests("GET ") - before, 2);
}
