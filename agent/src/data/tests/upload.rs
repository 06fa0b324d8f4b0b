//! Outputs.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;

use atelier_core::content::Digest;
use atelier_core::content::manifest::ManifestEntry;

use super::super::{Error, Fault};
use super::tree;
use super::world::{STORE, TOKEN, World};

const TO: &str = "azureml/job_1/model";

impl World {
    /// A folder as a job leaves it.
    fn outputs(&self) -> PathBuf {
        let folder = self.folder.path().join("outputs");
        fs::create_dir_all(folder.join("d/e")).unwrap();
        fs::create_dir_all(folder.join("nothing")).unwrap();
        fs::write(folder.join("model.pkl"), vec![9; 700_000]).unwrap();
        fs::write(folder.join("empty"), "").unwrap();
        fs::write(folder.join("d/e/a b#?%.txt"), "odd").unwrap();
        folder
    }

    async fn upload(&self, from: &std::path::Path) -> Result<Vec<ManifestEntry>, Error> {
        self.plane.upload(from, &self.at(TO), "named-outputs/model", TOKEN).await
    }

    fn check(&self, entries: &[ManifestEntry]) {
        let mut paths = Vec::new();
        for entry in entries {
            let bytes = self.stored(&entry.key).unwrap();
            assert_eq!(entry.datastore.as_str(), STORE);
            assert_eq!(entry.bytes, bytes.len() as u64);
            assert_eq!(entry.digest, Digest::of(&bytes));
            let below = entry.key.strip_prefix(TO).unwrap();
            assert_eq!(entry.path, format!("named-outputs/model{below}"));
            paths.push(entry.key.clone());
        }
        paths.sort();
        assert_eq!(paths, self.paths());
        assert!(entries.is_sorted_by(|one, other| one.path < other.path));
        if self.store_root().exists() {
            let staged = fs::read_dir(self.store_root().join(".staging")).unwrap().count();
            assert_eq!(staged, 0, "nothing is left in the staging folder");
        }
    }
}

#[tokio::test]
async fn a_folder_is_stored_with_its_digests() {
    for shared in [false, true] {
        let world = World::new(shared).await;
        let folder = world.outputs();
        world.fail_next(3);
        let entries = world.upload(&folder).await.unwrap();
        assert_eq!(entries.len(), 3);
        world.check(&entries);
        // Once more, as after a restart in the middle: the same in the same places.
        assert_eq!(world.upload(&folder).await.unwrap(), entries);
        world.check(&entries);
        // Enough files to be synced together.
        for i in 0..200 {
            fs::write(folder.join(format!("d/{i}")), format!("{i}")).unwrap();
        }
        let entries = world.upload(&folder).await.unwrap();
        assert_eq!(entries.len(), 203);
        world.check(&entries);
    }
}

#[tokio::test]
async fn a_single_file_is_stored_under_the_path_itself() {
    for shared in [false, true] {
        let world = World::new(shared).await;
        let file = world.outputs().join("model.pkl");
        let entries = world.upload(&file).await.unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(
            (entries[0].key.as_str(), entries[0].path.as_str()),
            (TO, "named-outputs/model")
        );
        world.check(&entries);
    }
}

#[tokio::test]
async fn a_shared_store_gets_the_file_itself_unless_it_has_another_name() {
    let world = World::new(true).await;
    let folder = world.outputs();
    let model = folder.join("model.pkl");
    fs::hard_link(&model, world.folder.path().join("elsewhere")).unwrap();
    world.upload(&folder).await.unwrap();
    let stored = |name: &str| fs::metadata(world.store_root().join(TO).join(name)).unwrap();
    let inode = |path: &str| fs::metadata(folder.join(path)).unwrap().ino();
    assert_eq!(stored("empty").ino(), inode("empty"), "linked, not copied");
    assert_eq!(stored("empty").permissions().mode() & 0o222, 0, "nobody changes it any more");
    // Someone may write to it under its other name.
    assert_ne!(stored("model.pkl").ino(), inode("model.pkl"));
    fs::write(world.folder.path().join("elsewhere"), "changed").unwrap();
    assert_eq!(world.stored(&format!("{TO}/model.pkl")).unwrap(), vec![9; 700_000]);
}

#[tokio::test]
async fn links_inside_are_followed_and_others_refused_by_name() {
    for shared in [false, true] {
        let world = World::new(shared).await;
        let folder = world.outputs();
        fs::write(world.folder.path().join("secret"), "secret").unwrap();
        symlink("model.pkl", folder.join("latest.pkl")).unwrap();
        symlink(folder.join("d"), folder.join("other-d")).unwrap();
        let entries = world.upload(&folder).await.unwrap();
        let stored: Vec<&str> = entries
            .iter()
            .map(|entry| entry.path.trim_start_matches("named-outputs/model/"))
            .collect();
        assert_eq!(
            stored,
            ["d/e/a b#?%.txt", "empty", "latest.pkl", "model.pkl", "other-d/e/a b#?%.txt"]
        );
        world.check(&entries);

        symlink("../secret", folder.join("stolen")).unwrap();
        symlink("/etc", folder.join("d/etc")).unwrap();
        symlink("nowhere", folder.join("dangling")).unwrap();
        symlink("..", folder.join("d/circle")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.join("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from(0o600),
            0,
        )
        .unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
        let mut error = world.upload(&folder).await.unwrap_err();
        assert_eq!(error.fault(), Fault::User);
        let Error::Refused { refused, .. } = &error else { panic!("{error}") };
        for (name, why) in [
            ("'stolen'", "leaves the folder"),
            ("'d/etc'", "leaves the folder"),
            ("'dangling'", "which cannot be read"),
            ("'d/circle'", "that it lies in"),
            ("'other-d/circle'", "that it lies in"),
            ("'pipe'", "a named pipe"),
            ("'socket'", "a socket"),
        ] {
            let of_name: Vec<&String> = refused.iter().filter(|r| r.starts_with(name)).collect();
            assert!(
                matches!(of_name.as_slice(), [one] if one.contains(why)),
                "{name}: {refused:?}"
            );
        }
        assert!(error.to_string().contains("and 3 more"), "{error}");
        // What is good is stored all the same.
        assert_eq!(error.take_stored(), entries);
        assert!(!world.paths().iter().any(|path| path.contains("stolen")));
    }
}

/// Twenty folders of two links each name a million folders.
#[tokio::test]
async fn links_that_lead_to_one_another_come_to_an_end() {
    let world = World::new(true).await;
    let folder = world.outputs();
    for n in 0..20 {
        let chain = folder.join(format!("chain-{n}"));
        fs::create_dir(&chain).unwrap();
        for name in ["a", "b"] {
            let next = format!("../chain-{}", n + 1);
            symlink(next, chain.join(name)).unwrap();
        }
    }
    fs::create_dir(folder.join("chain-20")).unwrap();
    let mut error = world.upload(&folder).await.unwrap_err();
    assert_eq!(error.fault(), Fault::User);
    let Error::Refused { refused, .. } = &error else { panic!("{error}") };
    assert!(matches!(refused.as_slice(), [one] if one.contains("more than 250000")), "{error}");
    assert!(error.take_stored().iter().any(|entry| entry.path.ends_with("/model.pkl")));
}

#[tokio::test]
async fn odd_names() {
    for shared in [false, true] {
        let world = World::new(shared).await;
        let folder = world.folder.path().join("outputs");
        fs::create_dir(&folder).unwrap();
        let odd: [&[u8]; 4] = [b"back\\slash", b"not\xffutf8", b"new\nline", "größe".as_bytes()];
        for name in odd {
            fs::write(folder.join(OsStr::from_bytes(name)), name).unwrap();
        }
        let entries = world.upload(&folder).await.unwrap();
        world.check(&entries);
        let names: Vec<&str> = entries.iter().map(|entry| &entry.key[TO.len() + 1..]).collect();
        assert_eq!(names, ["back%5Cslash", "größe", "new%0Aline", "not%FFutf8"]);
        // Two files that would become one.
        fs::write(folder.join("not%FFutf8"), "").unwrap();
        let error = world.upload(&folder).await.unwrap_err();
        assert!(error.is_users() && error.to_string().contains("two files"), "{error}");
    }
}

#[tokio::test]
async fn what_was_not_written_or_is_a_link_itself_is_refused() {
    let world = World::new(false).await;
    let folder = world.outputs();
    let link = world.folder.path().join("link");
    symlink(&folder, &link).unwrap();
    for (path, word) in [(world.folder.path().join("none"), "was not written"), (link, "link")] {
        let error = world.upload(&path).await.unwrap_err();
        assert!(error.is_users() && error.to_string().contains(word), "{error}");
    }
    let at = super::pb::StorePath { path: "../x".into(), ..world.at("") };
    let error = world.plane.upload(&folder, &at, "x", TOKEN).await.unwrap_err();
    assert!(matches!(error, Error::Path { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_changes_meanwhile_is_refused() {
    for shared in [false, true] {
        let world = World::new(shared).await;
        let folder = world.outputs();
        let growing = folder.join("growing.log");
        File::create(&growing).unwrap().set_len(48 << 20).unwrap();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (path, stopped) = (growing.clone(), stop.clone());
        let writer = std::thread::spawn(move || {
            use std::io::Write as _;
            let mut file = File::options().append(true).open(path).unwrap();
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                file.write_all(b"more").unwrap();
                std::thread::yield_now();
            }
        });
        let result = world.upload(&folder).await;
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().unwrap();
        let mut error = result.unwrap_err();
        assert!(error.is_users(), "{error}");
        assert!(error.to_string().contains("'growing.log' changed"), "{error}");
        assert_eq!(error.take_stored().len(), 3);
    }
}

#[tokio::test]
async fn a_store_that_leads_out_by_a_link_is_not_written_to() {
    let world = World::new(true).await;
    let outside = world.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir_all(world.store_root().join("azureml")).unwrap();
    symlink(&outside, world.store_root().join("azureml/job_1")).unwrap();
    let error = world.upload(&world.outputs()).await.unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert!(tree(&outside).is_empty());
    assert_eq!(fs::read_dir(world.store_root().join(".staging")).unwrap().count(), 0);
}

/// A daemon that is not root changes and removes what an agent that is root stored.
#[tokio::test]
async fn users_own_what_root_stores_in_their_datastore() {
    let world = World::new(true).await;
    let folder = world.outputs();
    let (user, group) = (12_345, 12_346);
    std::os::unix::fs::chown(world.store_root(), Some(user), Some(group)).unwrap();
    let entries = world.upload(&folder).await.unwrap();
    world.check(&entries);
    for path in [TO, "azureml", "azureml/job_1/model/d/e", "azureml/job_1/model/d/e/a b#?%.txt"] {
        let stat = fs::metadata(world.store_root().join(path)).unwrap();
        assert_eq!((stat.uid(), stat.gid()), (user, group), "{path}");
    }
}
