use super::*;
use crate::environment::Error;
use crate::environment::shared::Reporter;

const DAY: Duration = Duration::from_secs(86_400);
const FILE: usize = 64 << 10;

/// A folder of environments that were not made by an installer.
struct Bench {
    folder: tempfile::TempDir,
    builds: Arc<Builds<Built>>,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), builds: Arc::default() }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("environments")
    }

    fn keep(&self, limit: u64) -> Arc<Keep> {
        Arc::new(Keep::new(self.root(), Some(limit)))
    }

    /// An environment that was last used so many days ago.
    fn environment(&self, key: &str, days: u32) {
        let folder = self.root().join(key);
        fs::create_dir_all(folder.join("lib")).unwrap();
        fs::write(folder.join("lib/module.py"), vec![7; FILE]).unwrap();
        let marker = folder.join(MARKER);
        let text = r#"{"version": 1, "python": "3.11.2", "python_path": "/usr/bin/python3",
            "requirements": ["six"], "packages": ["six==1.16.0"], "seconds": 1.0}"#;
        fs::write(&marker, text).unwrap();
        let used = SystemTime::now() - DAY * days;
        File::options().write(true).open(marker).unwrap().set_modified(used).unwrap();
    }

    /// The folder of an attempt.
    fn attempt(&self, epoch: u64) -> PathBuf {
        let attempt = self.folder.path().join(format!("attempts/{epoch}"));
        fs::create_dir_all(&attempt).unwrap();
        attempt
    }

    fn left(&self) -> Vec<String> {
        let names = fs::read_dir(self.root()).into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }
}

fn keys(gone: (Vec<Kept>, u64)) -> Vec<String> {
    gone.0.into_iter().map(|kept| kept.key).collect()
}

#[test]
fn environments_are_told_with_size_last_use_and_users() {
    let bench = Bench::new();
    bench.environment("aa", 3);
    bench.environment("bb", 1);
    fs::create_dir_all(bench.root().join("cc")).unwrap();
    let keep = bench.keep(1 << 30);
    let (one, two) = (bench.attempt(1), bench.attempt(2));
    keep.pin("bb").note_use(&one).unwrap();
    keep.pin("bb").note_use(&two).unwrap();
    // An attempt that is prepared again counts once.
    keep.pin("bb").note_use(&two).unwrap();
    let [a, b, c] = &keep.list(&bench.builds)[..] else { panic!("not three") };
    assert_eq!((&*a.key, a.in_use, &*a.description()), ("aa", 0, "Python 3.11.2, 1 packages"));
    assert_eq!((&*b.key, b.in_use, b.building), ("bb", 2, false));
    assert_eq!((&*c.key, &*c.description()), ("cc", "incomplete"));
    assert!(a.bytes >= FILE as u64 && a.bytes < 4 * FILE as u64, "{}", a.bytes);
    let ago = |kept: &Kept| SystemTime::now().duration_since(kept.last_used).unwrap();
    assert!(ago(a) > DAY * 2 && ago(b) < DAY / 2, "use counts as use");
    fs::remove_dir_all(one).unwrap();
    assert_eq!(keep.list(&bench.builds)[1].in_use, 1);
}

#[test]
fn what_is_in_use_is_never_removed() {
    let bench = Bench::new();
    for (key, days) in [("aa", 9), ("bb", 8), ("cc", 7), ("dd", 1)] {
        bench.environment(key, days);
    }
    let keep = bench.keep(1);
    let attempt = bench.attempt(1);
    keep.pin("aa").note_use(&attempt).unwrap();
    let pin = keep.pin("bb");
    // Another process builds it anew.
    let lock = lock::try_acquire(&bench.root(), "cc").unwrap().unwrap();
    keep.shrink(&bench.builds);
    assert_eq!(bench.left(), ["aa", "bb", "cc"]);
    assert_eq!(keys(keep.prune(&bench.builds, Duration::ZERO, true)), [""; 0]);
    drop(lock);
    // The next agent knows of the attempt, which outlived the last one.
    let again = bench.keep(1);
    assert_eq!(keys(again.prune(&bench.builds, Duration::ZERO, false)), ["bb", "cc"]);
    assert_eq!(bench.left(), ["aa"]);
    drop(pin);
    assert_eq!(keys(again.prune(&bench.builds, Duration::ZERO, false)), [""; 0]);
    // It is over: only now, whatever its last use was.
    fs::remove_dir_all(attempt).unwrap();
    assert_eq!(keys(again.prune(&bench.builds, DAY * 7, false)), [""; 0]);
    assert_eq!(keys(again.prune(&bench.builds, Duration::ZERO, false)), ["aa"]);
    // Nothing half removed is left either.
    assert_eq!(fs::read_dir(bench.root().join(".building")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(bench.root().join(USES)).unwrap().count(), 0);
}

#[test]
fn what_was_in_use_until_just_now_goes_when_no_age_is_asked_for() {
    let bench = Bench::new();
    bench.environment("aa", 3);
    let keep = bench.keep(1 << 30);
    let attempt = bench.attempt(1);
    keep.pin("aa").note_use(&attempt).unwrap();
    fs::remove_dir_all(attempt).unwrap();
    assert_eq!(keys(keep.prune(&bench.builds, Duration::ZERO, false)), ["aa"]);
}

#[test]
fn the_bound_is_kept_and_what_was_used_last_stays() {
    let bench = Bench::new();
    for (key, days) in [("aa", 2), ("bb", 9), ("cc", 1), ("dd", 5)] {
        bench.environment(key, days);
    }
    let one = bench.keep(u64::MAX).list(&bench.builds)[0].bytes;
    bench.keep(4 * one).shrink(&bench.builds);
    assert_eq!(bench.left().len(), 4, "it is not over the bound");
    // Nine tenths of three and a half: three.
    bench.keep(7 * one / 2).shrink(&bench.builds);
    assert_eq!(bench.left(), ["aa", "cc", "dd"]);
    bench.keep(one + one / 2).shrink(&bench.builds);
    assert_eq!(bench.left(), ["cc"]);
    assert_eq!(keys(bench.keep(0).prune(&bench.builds, DAY * 3, false)), [""; 0]);
}

#[test]
fn packages_count_as_far_as_nobody_shares_them_and_go_first() {
    let bench = Bench::new();
    bench.environment("aa", 2);
    bench.environment("bb", 1);
    let packages = bench.root().join(PACKAGES).join("archive");
    fs::create_dir_all(&packages).unwrap();
    fs::hard_link(bench.root().join("aa/lib/module.py"), packages.join("shared.py")).unwrap();
    let keep = bench.keep(1 << 30);
    assert_eq!(keep.packages(), 0);
    fs::write(packages.join("own.py"), vec![1; FILE]).unwrap();
    let own = keep.packages();
    assert!(own >= FILE as u64 && own < 2 * FILE as u64, "{own}");
    let environments: u64 = keep.list(&bench.builds).iter().map(|kept| kept.bytes).sum();
    bench.keep(environments + own / 2).shrink(&bench.builds);
    assert!(!packages.exists());
    assert_eq!(bench.left(), ["aa", "bb"]);
    assert!(bench.root().join("aa/lib/module.py").exists());
    // Asked for, they go, too.
    fs::create_dir_all(&packages).unwrap();
    fs::write(packages.join("own.py"), vec![1; FILE]).unwrap();
    let (_, freed) = keep.prune(&bench.builds, DAY * 9, false);
    assert_eq!((freed, packages.exists()), (0, true));
    let (_, freed) = keep.prune(&bench.builds, DAY * 9, true);
    assert_eq!((freed, packages.exists()), (own, false));
}

#[tokio::test]
async fn what_is_being_built_is_told_and_stays() {
    let bench = Bench::new();
    bench.environment("aa", 9);
    fs::create_dir_all(bench.root().join(PACKAGES)).unwrap();
    fs::write(bench.root().join(PACKAGES).join("own.py"), vec![1; FILE]).unwrap();
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let builds = bench.builds.clone();
    let begun = Arc::new(tokio::sync::Notify::new());
    let signal = begun.clone();
    let build = tokio::spawn(async move {
        let log = Silent;
        let start = |_: Reporter| async move {
            signal.notify_one();
            let _ = gone.await;
            Err(Error::Stopped)
        };
        builds.join("aa", &log, start).await.map(drop)
    });
    begun.notified().await;
    let keep = bench.keep(1);
    let [kept] = &keep.list(&bench.builds)[..] else { panic!("not one") };
    assert!(kept.building);
    keep.shrink(&bench.builds);
    assert_eq!(keys(keep.prune(&bench.builds, Duration::ZERO, true)), [""; 0]);
    assert_eq!(bench.left(), ["aa"]);
    assert!(keep.packages() > 0, "the build may need them");
    go.send(()).unwrap();
    assert!(build.await.unwrap().is_err());
    keep.shrink(&bench.builds);
    assert_eq!(bench.left(), [""; 0]);
    assert_eq!(keep.packages(), 0);
}

struct Silent;

impl crate::environment::BuildLog for Silent {
    fn line(&self, _: &str) {}
}
