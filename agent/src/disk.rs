//! Room that the node keeps for itself on the file system of its folder: records, logs and outputs must still
//! be written when a job has filled the rest. The job that holds most of it is ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use crate::attempt::Folder;
use crate::supervisor::{EXITED, LAUNCH, Launch, STARTED, Started};
use crate::{proc, record};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Looks after which what was done has had its time to help.
const PATIENCE: u32 = 60;
/// Of the file system, what is kept if nothing else is said; at most [`MOST`].
const SHARE: u64 = 100;
const MOST: u64 = 256 << 20;

/// An amount of a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Space {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

/// Which attempt is ended for the room that it takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sentence {
    pub(crate) epoch: u64,
    pub(crate) held: Space,
    pub(crate) free: Space,
    pub(crate) reserve: Space,
}

/// The node's room, and who is ended for it.
pub(crate) struct Reserve {
    root: PathBuf,
    /// Bytes that were asked for; `None`: the default.
    wanted: Option<u64>,
    sentence: watch::Sender<Option<Sentence>>,
}

impl Reserve {
    /// Of the file system on which `root`, the agent's folder, is.
    pub(crate) fn new(root: PathBuf, wanted: Option<u64>) -> Self {
        Self { root, wanted, sentence: watch::Sender::new(None) }
    }

    /// Looks for as long as the agent runs. `make_room` is told whether the disk is short, and says whether
    /// there will be more room without ending a job.
    pub(crate) async fn keep(&self, attempts: &Path, make_room: impl Fn(bool) -> bool) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut keeper = Keeper::default();
        loop {
            looks.tick().await;
            let Some((free, reserve)) = space(&self.root, self.wanted) else { continue };
            let is_in_need = keeper.is_in_need(free, reserve);
            if make_room(is_short(free, reserve)) || !is_in_need {
                continue;
            }
            let (folder, ended) = (attempts.to_owned(), keeper.ended.clone());
            let looked = tokio::task::spawn_blocking(move || held(&folder, &ended)).await;
            match keeper.decide(&looked.unwrap_or_default(), free, reserve) {
                Decision::End(sentence) => {
                    let epoch = sentence.epoch;
                    tracing::warn!(
                        epoch,
                        ?sentence,
                        "an attempt is ended for the disk that it takes"
                    );
                    self.sentence.send_replace(Some(sentence));
                }
                Decision::Warn => {
                    let root = self.root.display();
                    tracing::warn!(%root, ?free, ?reserve, "the disk is nearly full, and not with jobs' files");
                }
                Decision::Wait => {}
            }
        }
    }

    /// Once this attempt has to end.
    pub(crate) async fn sentenced(&self, epoch: u64) -> Sentence {
        let mut sentence = self.sentence.subscribe();
        let is_ours = |sentence: &Option<Sentence>| sentence.is_some_and(|s| s.epoch == epoch);
        match sentence.wait_for(is_ours).await.map(|found| *found) {
            Ok(Some(sentence)) => sentence,
            _ => std::future::pending().await,
        }
    }
}

/// What was done, as far as it decides what to do next.
#[derive(Default)]
struct Keeper {
    /// Attempts that were ended.
    ended: Vec<u64>,
    /// What was free when something was last done, and how many looks ago: it takes a while until an ended
    /// attempt's files are gone.
    last: Option<(Space, u32)>,
}

/// What a look at the attempts comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Decision {
    End(Sentence),
    /// Whoever looks after the node must know.
    Warn,
    Wait,
}

impl Keeper {
    /// Whether something has to be done: at each look, with what is free now.
    fn is_in_need(&mut self, free: Space, reserve: Space) -> bool {
        self.last = self.last.map(|(before, looks)| (before, looks + 1));
        self.last = self.last.filter(|(_, looks)| *looks < PATIENCE);
        if !is_short(free, reserve) {
            self.last = None;
            return false;
        }
        self.last.is_none_or(|(before, _)| is_short(free, half(before)))
    }

    /// What to do, by what each attempt holds.
    fn decide(&mut self, held: &[(u64, Space)], free: Space, reserve: Space) -> Decision {
        match choose(held, free, reserve) {
            Some((epoch, held)) => {
                self.last = Some((free, 0));
                self.ended.push(epoch);
                Decision::End(Sentence { epoch, held, free, reserve })
            }
            None if self.last.is_none() => {
                self.last = Some((free, 0));
                Decision::Warn
            }
            None => Decision::Wait,
        }
    }
}

/// What is free of a file system, and all that it has. Some do not count files: then it has none.
fn measured(root: &Path) -> Option<(Space, Space)> {
    let found = rustix::fs::statvfs(root).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    let free = Space { bytes: bytes(found.f_bavail), files: found.f_favail };
    Some((free, Space { bytes: bytes(found.f_blocks), files: found.f_files }))
}

/// What is free and what is to stay so.
fn space(root: &Path, wanted: Option<u64>) -> Option<(Space, Space)> {
    let (free, all) = measured(root)?;
    let bytes = wanted.unwrap_or_else(|| (all.bytes / SHARE).min(MOST));
    let files = if bytes == 0 { 0 } else { all.files / SHARE };
    Some((free, Space { bytes, files }))
}

/// Whether one part of `parts` of the file system is free, of its bytes and of its files. Not if that cannot be
/// told.
pub(crate) fn has_free(root: &Path, parts: u64) -> bool {
    measured(root).is_some_and(|(free, all)| {
        !is_short(free, Space { bytes: all.bytes / parts, files: all.files / parts })
    })
}

fn is_short(free: Space, reserve: Space) -> bool {
    free.bytes < reserve.bytes || free.files < reserve.files
}

fn half(space: Space) -> Space {
    Space { bytes: space.bytes / 2, files: space.files / 2 }
}

/// The attempt that holds most of what is short, if that is at least half of the reserve: ending jobs that hold
/// little would help nobody, and something else is to blame.
fn choose(held: &[(u64, Space)], free: Space, reserve: Space) -> Option<(u64, Space)> {
    let amount = |held: &Space| match free.bytes < reserve.bytes {
        true => (held.bytes, reserve.bytes),
        false => (held.files, reserve.files),
    };
    let helps = |held: &Space| {
        let (held, reserve) = amount(held);
        held >= reserve.div_ceil(2)
    };
    held.iter().filter(|(_, held)| helps(held)).max_by_key(|(_, held)| amount(held).0).copied()
}

/// What each running attempt holds, but those that are ended already.
fn held(attempts: &Path, ended: &[u64]) -> Vec<(u64, Space)> {
    let Ok(entries) = fs::read_dir(attempts) else { return Vec::new() };
    let of = |entry: fs::DirEntry| {
        let epoch = entry.file_name().to_str()?.parse().ok()?;
        // What does not run cannot be ended.
        let runs = entry.path().join(STARTED).exists() && !entry.path().join(EXITED).exists();
        (runs && !ended.contains(&epoch)).then(|| (epoch, taken(&entry.path())))
    };
    entries.filter_map(|entry| of(entry.ok()?)).collect()
}

/// What a running attempt takes: its folder, and files of its processes that have no name any more.
fn taken(attempt: &Path) -> Space {
    // What of inputs lies in the cache too is counted with the folder, and still there when the job has removed it.
    let mut seen = BTreeSet::new();
    let mut found = size(attempt, &mut seen);
    let mut devices: BTreeSet<u64> =
        fs::metadata(attempt).map(|meta| meta.dev()).into_iter().collect();
    // Those that the job may change are merged, and seem to be on devices of their own.
    let inputs = fs::read_dir(Folder::at(attempt).inputs()).into_iter().flatten().flatten();
    devices.extend(inputs.filter_map(|input| Some(input.metadata().ok()?.dev())));
    for pid in processes(attempt) {
        // A file that was mapped lives on when it is closed, too. What is not shown to this user is not counted.
        for open in ["fd", "map_files"] {
            let entries = fs::read_dir(format!("/proc/{pid}/{open}"));
            for entry in entries.into_iter().flatten().flatten() {
                // Only such are asked for: another one may lie on a server that does not answer.
                let is_removed = fs::read_link(entry.path())
                    .is_ok_and(|path| path.as_os_str().as_encoded_bytes().ends_with(b" (deleted)"));
                let Some(Ok(meta)) = is_removed.then(|| fs::metadata(entry.path())) else {
                    continue;
                };
                if meta.nlink() == 0 && devices.contains(&meta.dev()) && seen.insert(meta.ino()) {
                    found.add(&meta);
                }
            }
        }
    }
    found
}

/// The processes of an attempt's command.
fn processes(attempt: &Path) -> Vec<i32> {
    let launch = record::read::<Launch>(attempt, LAUNCH).ok().flatten();
    if let Some(cgroup) = launch.and_then(|launch| launch.cgroup) {
        return cgroup.processes();
    }
    let started = record::read::<Started>(attempt, STARTED).ok().flatten();
    let is_it = |started: &Started| {
        proc::stat(started.pid).is_some_and(|stat| stat.start_time == started.start_time)
    };
    started.filter(is_it).map_or_else(Vec::new, |started| {
        proc::descendants(&proc::all(), started.pid).iter().map(|stat| stat.pid).collect()
    })
}

/// What an attempt's tree takes. A file of several names counts once if all of them are in the tree; if not, as inputs
/// and what was published, others hold it. Of an input that the job may change the cache has one more, and can give up
/// the file once the attempt is gone: `laid` gets their numbers. What is mounted in the tree is elsewhere.
fn size(root: &Path, laid: &mut BTreeSet<u64>) -> Space {
    let device = fs::symlink_metadata(root).map(|meta| meta.dev()).ok();
    let lowers = Folder::at(root).overlays();
    let (mut found, mut folders) = (Space::default(), vec![root.to_owned()]);
    // How many names of each were found.
    let mut linked: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        let in_cache = u64::from(folder.starts_with(&lowers));
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                found.files += 1;
                if Some(meta.dev()) == device {
                    folders.push(entry.path());
                }
                continue;
            }
            let mut names = 1;
            if meta.nlink() > 1 {
                let before = linked.entry((meta.dev(), meta.ino())).or_default();
                *before += 1;
                names = *before + in_cache;
                laid.extend((in_cache > 0).then_some(meta.ino()));
            }
            if names == meta.nlink() {
                found.add(&meta);
            }
        }
    }
    found
}

impl Space {
    /// With one more file.
    fn add(&mut self, file: &Metadata) {
        self.bytes += file.blocks() * 512;
        self.files += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn space(mib: u64, files: u64) -> Space {
        Space { bytes: mib * MIB, files }
    }

    #[test]
    fn after_an_end_the_next_waits_until_its_files_are_gone_or_half_of_the_rest_is() {
        let (reserve, held) = (space(100, 0), [(1, space(300, 1)), (2, space(200, 1))]);
        let mut keeper = Keeper::default();
        assert!(!keeper.is_in_need(space(100, 0), reserve));
        assert!(keeper.is_in_need(space(80, 0), reserve));
        let ended = keeper.decide(&held, space(80, 0), reserve);
        assert!(matches!(ended, Decision::End(Sentence { epoch: 1, .. })), "{ended:?}");
        assert_eq!(keeper.ended, [1]);
        assert!(!keeper.is_in_need(space(40, 0), reserve));
        assert!(keeper.is_in_need(space(39, 0), reserve));
        let ended = keeper.decide(&held[1..], space(39, 0), reserve);
        assert!(matches!(ended, Decision::End(Sentence { epoch: 2, .. })), "{ended:?}");
        // Enough time has passed, and what is left is of nobody: that is said once.
        for _ in 1..PATIENCE {
            assert!(!keeper.is_in_need(space(39, 0), reserve));
        }
        assert!(keeper.is_in_need(space(39, 0), reserve));
        assert_eq!(keeper.decide(&[], space(39, 0), reserve), Decision::Warn);
        assert!(keeper.is_in_need(space(19, 0), reserve));
        assert_eq!(keeper.decide(&[], space(19, 0), reserve), Decision::Wait);
    }

    #[test]
    fn the_attempt_whose_end_gives_most_of_what_is_missing_is_chosen() {
        let held = [(1, space(5, 10)), (2, space(70, 3)), (3, space(40, 90_000))];
        let enough = space(100, 1_000);
        let chosen = |free| choose(&held, free, enough).map(|(epoch, _)| epoch);
        assert_eq!(chosen(space(20, 5_000)), Some(2));
        assert_eq!(chosen(space(500, 10)), Some(3));
        // None of them is to blame.
        assert_eq!(choose(&held, space(0, 5_000), space(1_000, 1_000)), None);
        assert_eq!(choose(&[], space(0, 0), enough), None);
    }

    #[test]
    fn what_is_short_is_bytes_or_files() {
        assert!(is_short(space(1, 9), space(2, 1)) && is_short(space(9, 1), space(1, 2)));
        assert!(!is_short(space(2, 2), space(2, 2)) && !is_short(space(0, 0), space(0, 0)));
    }

    #[test]
    fn a_tree_is_what_its_own_files_take() {
        let place = tempfile::tempdir().unwrap();
        let tree = place.path().join("tree");
        fs::create_dir(&tree).unwrap();
        for name in ["tree/own", "tree/twice", "others"] {
            fs::write(place.path().join(name), vec![1; 1 << 20]).unwrap();
        }
        // A second name hides nothing, and what has a name elsewhere is of others, whatever names it has here.
        fs::hard_link(tree.join("twice"), tree.join("again")).unwrap();
        for name in ["input", "once more"] {
            fs::hard_link(place.path().join("others"), tree.join(name)).unwrap();
        }
        let found = size(&tree, &mut BTreeSet::new());
        assert_eq!(found.files, 2);
        assert!((2 << 20..3 << 20).contains(&found.bytes), "{found:?}");
    }

    #[test]
    fn of_an_input_that_a_job_may_change_it_takes_what_only_the_cache_has_besides() {
        let place = tempfile::tempdir().unwrap();
        let lower = place.path().join("tree/overlays/given/lower");
        fs::create_dir_all(&lower).unwrap();
        for name in ["cached", "shared"] {
            fs::write(place.path().join(name), vec![1; 1 << 20]).unwrap();
            fs::hard_link(place.path().join(name), lower.join(name)).unwrap();
        }
        // Another job has it too.
        fs::hard_link(place.path().join("shared"), place.path().join("of another")).unwrap();
        fs::write(lower.join("never cached"), vec![1; 1 << 20]).unwrap();
        let mut laid = BTreeSet::new();
        let found = size(&place.path().join("tree"), &mut laid);
        assert_eq!(laid.len(), 2);
        // With three folders.
        assert_eq!(found.files, 5);
        assert!((2 << 20..3 << 20).contains(&found.bytes), "{found:?}");
    }

    #[test]
    fn what_is_open_and_has_no_name_any_more_is_taken_too() {
        use std::io::Write as _;
        let attempt = tempfile::tempdir().unwrap();
        let mut kept = std::process::Command::new("sh")
            .args(["-c", "head -c 1M /dev/zero >x; exec 3<x 4<x; rm x; echo ready; cat"])
            .current_dir(attempt.path())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(kept.stdout.as_mut().unwrap(), &mut ready).unwrap();
        // The shell stands for the child of a supervisor, which is this process.
        let own = proc::stat(std::process::id().cast_signed()).unwrap();
        let started = Started { pid: own.pid, start_time: own.start_time, ..Started::void() };
        record::write(attempt.path(), STARTED, &started).unwrap();
        let found = taken(attempt.path());
        kept.stdin.take().unwrap().flush().unwrap();
        kept.wait().unwrap();
        assert!((1 << 20..2 << 20).contains(&found.bytes), "{found:?}");
        let found = taken(attempt.path());
        assert!(found.bytes < 1 << 20, "{found:?}");
    }
}
