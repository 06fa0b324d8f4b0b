//! What happened, judged afterwards: starts and ends that the jobs themselves wrote (no job twice
//! at once), and the database's own invariants.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::cluster::Cluster;

/// A file to which jobs append durable lines.
pub(crate) struct History(PathBuf);

impl History {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self(cluster.shared_file("history"))
    }

    /// A job that writes a line when it starts and when it ends, and keeps writing meanwhile.
    pub(crate) fn job(&self, seconds: f64) -> String {
        super::cluster::job_yaml(&self.command(seconds))
    }

    /// Its command.
    pub(crate) fn command(&self, seconds: f64) -> String {
        let ticks = (seconds / 0.05).ceil();
        self.ticking(&format!("[ $n -lt {ticks} ]"))
    }

    /// The command of a job that goes on until `file` is there.
    pub(crate) fn command_until(&self, file: &Path) -> String {
        self.ticking(&format!("[ ! -e {} ]", file.display()))
    }

    fn ticking(&self, condition: &str) -> String {
        let file = self.0.display();
        format!(
            "me=\"$AZUREML_RUN_ID $(cat /proc/sys/kernel/random/uuid)\"\necho \"start $me\" >> {file}; sync {file}\nn=0\n\
             while {condition}; do n=$((n+1)); sleep 0.05; echo \"tick $me\" >> {file}; done\n\
             echo \"end $me\" >> {file}; sync {file}\n"
        )
    }

    fn lines(&self) -> Vec<(String, String, String)> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        text.lines()
            .map(|line| {
                let mut words = line.split(' ').map(str::to_owned);
                let mut next = || words.next().unwrap_or_default();
                (next(), next(), next())
            })
            .collect()
    }

    /// Whether this job has written such a line.
    pub(crate) fn has(&self, what: &str, job: &str) -> bool {
        self.lines().iter().any(|(word, name, _)| word == what && name == job)
    }

    /// How often this job was started.
    pub(crate) fn starts(&self, job: &str) -> usize {
        self.lines().iter().filter(|(word, name, _)| word == "start" && name == job).count()
    }

    /// I1: whatever one process of a job writes, no other process of that job has written in
    /// between.
    #[track_caller]
    pub(crate) fn never_two_at_once(&self) {
        let mut gone: BTreeSet<(String, String)> = BTreeSet::new();
        let mut now: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
        for (_, job, process) in self.lines() {
            if now.get(&job) == Some(&process) {
                continue;
            }
            assert!(
                !gone.contains(&(job.clone(), process.clone())),
                "two processes of {job} lived at once:\n{}",
                fs::read_to_string(&self.0).unwrap()
            );
            if let Some(before) = now.insert(job.clone(), process) {
                gone.insert((job, before));
            }
        }
    }

    /// Each of these started once and ended once.
    #[track_caller]
    pub(crate) fn once_each<'a>(&self, jobs: impl IntoIterator<Item = &'a String>) {
        self.never_two_at_once();
        let lines = self.lines();
        for job in jobs {
            let count =
                |what: &str| lines.iter().filter(|(w, name, _)| w == what && name == job).count();
            assert_eq!((count("start"), count("end")), (1, 1), "starts and ends of {job}");
        }
    }
}

/// What must hold in the database at any moment, asked of the file itself.
#[track_caller]
pub(crate) fn check_database(cluster: &Cluster) {
    let path = cluster.data().join("atelier.db");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(path, flags).unwrap();
    database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    let none = |what: &str, query: &str| {
        let mut statement = database.prepare(query).unwrap();
        let found: Vec<String> =
            statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert!(found.is_empty(), "{what}: {found:?}");
    };
    let whole: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(whole, "ok");
    let finals = "('Completed', 'Failed', 'Canceled')";
    none(
        "more than one final event (I4)",
        &format!(
            "SELECT j.name FROM events e JOIN jobs j ON j.seq = e.job
             WHERE json_extract(kind, '$.kind') IN {finals} GROUP BY j.name HAVING count(*) > 1"
        ),
    );
    none(
        "ended without a final event",
        &format!(
            "SELECT name FROM jobs WHERE live = 0 AND seq NOT IN
             (SELECT job FROM events WHERE json_extract(kind, '$.kind') IN {finals})"
        ),
    );
    none(
        "live and final at once",
        &format!("SELECT name FROM jobs WHERE (live = 0) <> (status IN {finals})"),
    );
    none(
        "a job without its submission",
        "SELECT name FROM jobs WHERE seq NOT IN (SELECT job FROM events)",
    );
    none(
        "a key without its job",
        "SELECT key FROM idempotency WHERE job NOT IN (SELECT name FROM jobs)",
    );
    none(
        "events out of step with the counter",
        "SELECT 'events' FROM counters WHERE name = 'event'
         AND value < (SELECT coalesce(max(seq), 0) FROM events)",
    );
}
