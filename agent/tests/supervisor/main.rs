//! Real processes under a real supervisor.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use isolated::{isolated, under_rules};

mod isolated;
mod starts;

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

struct Attempt {
    folder: tempfile::TempDir,
    launch: Value,
}

struct Ended {
    exited: Value,
    log: Vec<u8>,
}

impl Attempt {
    fn new(command: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("work")).unwrap();
        let launch = json!({
            "version": 1,
            "program": "/bin/sh",
            "arguments": ["-c", command],
            "environment": {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/"},
            "directory": folder.path().join("work"),
            "log": folder.path().join("std_log.txt"),
            "log_limit": null,
            "grace_ms": 20_000,
        });
        Self { folder, launch }
    }

    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.launch[key] = value.into();
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self) -> Child {
        fs::write(self.path("launch.json"), serde_json::to_vec(&self.launch).unwrap()).unwrap();
        self.start_again()
    }

    fn start_again(&self) -> Child {
        Command::new(env!("CARGO_BIN_EXE_atelier-agent"))
            .arg("supervise")
            .arg(self.folder.path())
            .spawn()
            .unwrap()
    }

    /// Starts it and waits for the job to write this file.
    fn start_and_wait(self, name: &str) -> (Self, Child) {
        let supervisor = self.start();
        self.wait_for_file(name);
        (self, supervisor)
    }

    fn end(&self, supervisor: &mut Child) -> Ended {
        wait_for("the supervisor's end", || supervisor.try_wait().unwrap());
        self.ended()
    }

    fn ended(&self) -> Ended {
        let exited = fs::read(self.path("exited.json")).expect("exited.json");
        Ended {
            exited: serde_json::from_slice(&exited).unwrap(),
            log: fs::read(self.path("std_log.txt")).unwrap(),
        }
    }

    fn run(&self) -> Ended {
        self.end(&mut self.start())
    }

    /// Waits for a file that the job writes into its working directory.
    fn wait_for_file(&self, name: &str) -> String {
        let path = self.path("work").join(name);
        wait_for(name, || fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n')))
            .trim()
            .to_owned()
    }
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat[stat.rfind(')').unwrap()..].starts_with(") Z"))
}

fn signal(process: &Child, signal: i32) {
    assert_eq!(unsafe { libc::kill(i32::try_from(process.id()).unwrap(), signal) }, 0);
}

fn boottime_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(time.tv_sec * 1000 + time.tv_nsec / 1_000_000).unwrap()
}

fn set_lease(path: &Path, until: u64) {
    let file = fs::File::options().write(true).create(true).truncate(false).open(path).unwrap();
    file.write_all_at(&until.to_le_bytes(), 0).unwrap();
}

#[test]
fn exit_codes_and_output_are_recorded() {
    let ended = Attempt::new("echo out; echo err >&2; pwd; exit 7").run();
    assert_eq!(ended.exited["outcome"], json!({"code": 7}));
    assert_eq!(ended.exited["ended_by"], Value::Null);
    let log = String::from_utf8(ended.log).unwrap();
    assert!(log.starts_with("out\nerr\n/") && log.ends_with("/work\n"), "{log}");
    assert_eq!(ended.exited["log_bytes"], log.len());
    assert!(ended.exited["exited_at_ms"].as_i64() >= ended.exited["started_at_ms"].as_i64());
}

#[test]
fn a_job_sees_only_its_own_variables_default_signals_and_no_open_files() {
    let command = "cat; env; grep -E '^Sig(Blk|Ign)' /proc/self/status; ls -l /proc/self/fd";
    let ended = Attempt::new(command).run();
    let log = String::from_utf8(ended.log).unwrap();
    assert!(!log.contains("CARGO"), "{log}");
    assert!(log.contains("SigBlk:\t0000000000000000\n"), "{log}");
    // Signals 32 and up belong to the C library and whoever runs the tests.
    let ignored = log.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & 0x7fff_ffff, 0, "{log}");
    // Input, output, error, and what `ls` itself has open.
    assert_eq!(log.matches(" -> ").count(), 4, "{log}");
}

#[test]
fn what_was_in_the_log_before_stays() {
    let attempt = Attempt::new("echo from the job");
    fs::write(attempt.path("std_log.txt"), "environment built\n").unwrap();
    assert_eq!(attempt.run().log, b"environment built\nfrom the job\n");
}

#[test]
fn a_signal_is_told_from_an_exit_code() {
    let ended = Attempt::new("kill -SEGV $$").run();
    assert_eq!(ended.exited["outcome"], json!({"signal": libc::SIGSEGV}));
    assert_eq!(ended.exited["ended_by"], Value::Null);
}

#[test]
fn usage_covers_all_processes() {
    let ended = Attempt::new(
        "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; (head -c 50000000 /dev/zero | tail -c 50000000 >/dev/null)",
    )
    .run();
    assert!(ended.exited["cpu_seconds"].as_f64().unwrap() > 0.01, "{}", ended.exited);
    assert!(ended.exited["peak_memory_kib"].as_u64().unwrap() > 40_000, "{}", ended.exited);
}

#[test]
fn processes_left_behind_die_with_the_command() {
    // One in the background, one in a session of its own, one orphaned twice over.
    let attempt = Attempt::new(
        "sleep 1000 & echo $! >>pids
         setsid sh -c 'echo $$ >>pids; sleep 1000' &
         (setsid sh -c '(trap \"\" TERM HUP; echo $$ >>pids; sh -c \"echo \\$\\$ >>pids; sleep 1000\") &' &)
         while [ $(wc -l <pids) -lt 4 ]; do sleep 0.01; done; echo all >ready; exit 3",
    );
    let ended = attempt.run();
    assert_eq!(ended.exited["outcome"], json!({"code": 3}));
    assert_eq!(ended.exited["survivors"], 0);
    let pids = fs::read_to_string(attempt.path("work/pids")).unwrap();
    assert_eq!(pids.lines().count(), 4);
    for pid in pids.lines() {
        assert!(!alive(pid), "process {pid} survived");
    }
}

/// The job's child and its session save what they have when it is asked to end, and it ends of that.
fn all_have_time_to_save(attempt: &Attempt) {
    let mut supervisor = attempt.start();
    for file in ["child", "session", "main"] {
        attempt.wait_for_file(file);
    }
    signal(&supervisor, libc::SIGTERM);
    let ended = attempt.end(&mut supervisor);
    assert_eq!(ended.exited["ended_by"], "terminate");
    assert_eq!(ended.exited["outcome"], json!({"signal": libc::SIGTERM}));
    assert_eq!(attempt.wait_for_file("saved"), "child saved");
    assert_eq!(attempt.wait_for_file("other"), "other saved");
}

#[test]
fn a_process_whose_name_is_no_text_dies_with_the_command() {
    let attempt = Attempt::new(
        "name=$(printf 'a\\377b'); cp /bin/sleep \"./$name\"; \"./$name\" 1000 & echo $! >pid; exit 3",
    );
    let ended = attempt.run();
    assert_eq!(ended.exited["outcome"], json!({"code": 3}));
    assert_eq!(ended.exited["survivors"], 0);
    assert!(!alive(&attempt.wait_for_file("pid")));
}

#[test]
fn a_terminate_reaches_every_process_and_gives_them_time() {
    let attempt = Attempt::new(
        "sh -c 'trap \"echo child saved >saved; exit 0\" TERM; echo up >child; while :; do sleep 0.01; done' &
         setsid sh -c 'trap \"echo other saved >other; exit 0\" TERM; echo up >session; while :; do sleep 0.01; done' &
         echo up >main; wait",
    );
    all_have_time_to_save(&attempt);
}

#[test]
fn a_job_that_ignores_the_terminate_is_killed_after_the_grace_period() {
    let attempt = Attempt::new("trap '' TERM; echo $$ >up; while :; do sleep 0.01; done")
        .with("grace_ms", 300);
    let mut supervisor = attempt.start();
    let pid = attempt.wait_for_file("up");
    signal(&supervisor, libc::SIGTERM);
    let start = Instant::now();
    let ended = attempt.end(&mut supervisor);
    assert!(start.elapsed() >= Duration::from_millis(290));
    assert_eq!(ended.exited["ended_by"], "terminate");
    assert_eq!(ended.exited["outcome"], json!({"signal": libc::SIGKILL}));
    assert!(!alive(&pid));
}

#[test]
fn a_stopped_job_can_be_cancelled() {
    let attempt = Attempt::new("echo $$ >up; kill -STOP $$; sleep 1000");
    let mut supervisor = attempt.start();
    attempt.wait_for_file("up");
    signal(&supervisor, libc::SIGTERM);
    assert_eq!(attempt.end(&mut supervisor).exited["ended_by"], "terminate");
}

#[test]
fn quit_kills_without_grace() {
    let attempt = Attempt::new("trap '' TERM; echo $$ >up; while :; do sleep 0.01; done");
    let mut supervisor = attempt.start();
    attempt.wait_for_file("up");
    signal(&supervisor, libc::SIGQUIT);
    let ended = attempt.end(&mut supervisor);
    assert_eq!(ended.exited["ended_by"], "kill");
    assert_eq!(ended.exited["outcome"], json!({"signal": libc::SIGKILL}));
}

#[test]
fn the_time_limit_needs_no_agent() {
    let ended = Attempt::new("echo begun; sleep 1000").with("timeout_ms", 200).run();
    assert_eq!(ended.exited["ended_by"], "timeout");
    assert_eq!(ended.log, b"begun\n");
}

#[test]
fn a_command_that_ends_within_its_limit_is_left_alone() {
    let ended = Attempt::new("exit 0").with("timeout_ms", 60_000).run();
    assert_eq!(ended.exited["ended_by"], Value::Null);
}

#[test]
fn a_lease_that_is_renewed_holds_and_one_that_is_not_ends_the_job() {
    let attempt = Attempt::new("echo $$ >up; sleep 1000");
    let lease = attempt.path("lease");
    let attempt = attempt.with("lease", lease.to_str().unwrap());
    let first = boottime_ms() + 300;
    set_lease(&lease, first);
    let mut supervisor = attempt.start();
    let pid = attempt.wait_for_file("up");
    let second = boottime_ms() + 1500;
    set_lease(&lease, second);
    while boottime_ms() < first + 300 {
        assert!(alive(&pid), "the first end of the lease was taken for its last");
        std::thread::sleep(Duration::from_millis(5));
    }
    let ended = attempt.end(&mut supervisor);
    assert!(boottime_ms() >= second);
    assert_eq!(ended.exited["ended_by"], "lease");
    assert!(!alive(&pid));
}

#[test]
fn a_killed_supervisor_takes_the_command_with_it() {
    let attempt = Attempt::new("echo $$ >up; exec sleep 1000");
    let mut supervisor = attempt.start();
    let pid = attempt.wait_for_file("up");
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    wait_for("the command's death", || (!alive(&pid)).then_some(()));
    assert!(!attempt.path("exited.json").exists());
}

/// What has left the command's session dies too, without anybody who would look for it.
fn all_die_with_a_killed_supervisor(attempt: &Attempt) {
    let mut supervisor = attempt.start();
    let pids: Vec<String> =
        ["main", "session", "orphan"].map(|file| attempt.wait_for_file(file)).into();
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    for pid in &pids {
        wait_for("the death of the whole tree", || (!alive(pid)).then_some(()));
    }
    assert!(!attempt.path("exited.json").exists());
}

/// Processes in sessions of their own, one of them orphaned.
const SESSIONS: &str = "setsid sh -c 'trap \"\" TERM HUP; echo $$ >session; sleep 1000; sleep 1000' &
     (setsid sh -c '(trap \"\" TERM HUP; sh -c \"echo \\$\\$ >orphan; sleep 1000; sleep 1000\") &' &)
     echo $$ >main; wait; sleep 1000";

#[test]
fn a_killed_supervisor_takes_the_whole_tree_with_it() {
    all_die_with_a_killed_supervisor(&Attempt::new(SESSIONS));
}

/// A job can name its leader, and kill it where they are of one user.
fn a_leader_is_killed(attempt: &Attempt) -> Ended {
    let mut supervisor = attempt.start();
    let pids: Vec<String> =
        ["main", "session", "orphan"].map(|file| attempt.wait_for_file(file)).into();
    let children = format!("/proc/{0}/task/{0}/children", supervisor.id());
    let leader: i32 = fs::read_to_string(children).unwrap().trim().parse().unwrap();
    assert_eq!(unsafe { libc::kill(leader, libc::SIGKILL) }, 0);
    let ended = attempt.end(&mut supervisor);
    for pid in &pids {
        assert!(!alive(pid), "process {pid} survived");
    }
    ended
}

#[test]
fn a_killed_leader_is_not_the_commands_end() {
    let ended = a_leader_is_killed(&Attempt::new(SESSIONS));
    assert_eq!(ended.exited["outcome"], "lost", "{}", ended.exited);
    assert_eq!(ended.exited["survivors"], 0);
    let ended = a_leader_is_killed(&under_rules(SESSIONS));
    assert_eq!(ended.exited["outcome"], "lost", "{}", ended.exited);
}

#[test]
fn a_job_that_stops_its_leader_does_not_delay_its_end() {
    for make in [Attempt::new, under_rules] {
        let ended = make("kill -STOP $PPID; exit 3").run();
        assert_eq!(ended.exited["outcome"], json!({"code": 3}), "{}", ended.exited);
        let attempt =
            make("trap 'exit 4' TERM; kill -STOP $PPID; echo up >up; while :; do sleep 0.01; done");
        let (attempt, mut supervisor) = attempt.start_and_wait("up");
        signal(&supervisor, libc::SIGTERM);
        let ended = attempt.end(&mut supervisor);
        assert_eq!(ended.exited["ended_by"], "terminate");
        assert_eq!(ended.exited["outcome"], json!({"code": 4}), "{}", ended.exited);
    }
}

#[test]
fn a_job_that_goes_on_stopping_its_leader_is_ended() {
    let attempt = Attempt::new("echo $$ >up; while :; do kill -STOP $PPID; done");
    let (attempt, mut supervisor) = attempt.start_and_wait("up");
    let ended = attempt.end(&mut supervisor);
    assert_eq!(ended.exited["outcome"], "lost", "{}", ended.exited);
    assert!(!alive(&attempt.wait_for_file("up")));
}

#[test]
fn of_two_supervisors_one_runs_the_command() {
    let attempt = Attempt::new("echo run >>runs; sleep 0.2");
    let mut supervisors = vec![attempt.start()];
    supervisors.extend((0..5).map(|_| attempt.start_again()));
    let codes: Vec<_> = supervisors
        .iter_mut()
        .map(|supervisor| supervisor.wait().unwrap().code().unwrap())
        .collect();
    assert_eq!(codes.iter().filter(|&&code| code == 0).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|&&code| code == 75).count(), 5, "{codes:?}");
    assert_eq!(fs::read_to_string(attempt.path("work/runs")).unwrap(), "run\n");
}

#[test]
fn a_log_beyond_its_limit_is_cut_and_says_so() {
    const PRINTED: u64 = 200_000_000;
    const LIMIT: u64 = 1_000_000;
    let attempt = Attempt::new(&format!("yes | head -c {PRINTED}; echo done >finished"))
        .with("log_limit", LIMIT)
        .with("log_rate", 1_u64 << 40);
    let ended = attempt.run();
    assert_eq!(ended.exited["outcome"], json!({"code": 0}));
    assert_eq!(attempt.wait_for_file("finished"), "done");
    assert_eq!(ended.exited["log_dropped"], PRINTED - LIMIT);
    let log = String::from_utf8(ended.log).unwrap();
    assert_eq!(ended.exited["log_bytes"], log.len());
    let (kept, notes) = log.split_at(usize::try_from(LIMIT).unwrap());
    assert!(kept.bytes().all(|byte| byte == b'y' || byte == b'\n'));
    assert_eq!(
        notes,
        "[atelier] log limit of 1000000 bytes reached: further output is dropped\n\
         [atelier] 199000000 bytes of output were dropped\n"
    );
}

/// As what a launcher of processes starts has them, which got no files from its parent.
#[test]
fn what_is_written_to_a_named_pipe_goes_into_its_log_up_to_the_limit() {
    let write =
        "echo one >../0; echo two >../1; echo more >../1; printf 1234567890 >../2; printf x >../2";
    let attempt = Attempt::new(&format!("echo own; {write}")).with("log_limit", 10);
    let pipe = |process: usize| {
        let path = attempt.path(&process.to_string());
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let log = match process {
            0 => attempt.path("std_log.txt"),
            _ => attempt.path(&format!("std_log_{process}.txt")),
        };
        json!({"path": path, "log": log})
    };
    let pipes: Vec<Value> = (0..3).map(pipe).collect();
    let attempt = attempt.with("pipes", pipes);
    let ended = attempt.run();
    assert_eq!(ended.exited["outcome"], json!({"code": 0}));
    assert_eq!(ended.exited["process"], Value::Null);
    assert_eq!(String::from_utf8(ended.log).unwrap(), "own\none\n");
    assert_eq!(fs::read_to_string(attempt.path("std_log_1.txt")).unwrap(), "two\nmore\n");
    assert_eq!(
        fs::read_to_string(attempt.path("std_log_2.txt")).unwrap(),
        "1234567890\n[atelier] log limit of 10 bytes reached: further output is dropped\n\
         [atelier] 1 bytes of output were dropped\n"
    );
    assert_eq!(ended.exited["log_dropped"], 1);
}

#[test]
fn output_that_comes_too_fast_is_waited_for_and_none_of_it_is_lost() {
    // A second's worth goes at once.
    let attempt =
        Attempt::new("head -c 500000 /dev/zero | tr '\\0' x; echo end").with("log_rate", 100_000);
    let began = Instant::now();
    let ended = attempt.run();
    let took = began.elapsed();
    assert!(took > Duration::from_secs(2), "{took:?}");
    let log = String::from_utf8(ended.log).unwrap();
    let (written, told) = log.split_once("end\n").unwrap();
    assert_eq!((written.len(), written.trim_matches('x')), (500_000, ""));
    assert!(
        told.starts_with("[atelier] output was read at 0.1 MiB/s at most: the job waited "),
        "{told}"
    );
}

#[test]
fn a_log_of_exactly_the_limit_is_not_marked() {
    let ended = Attempt::new("printf 12345678").with("log_limit", 8).run();
    assert_eq!(ended.log, b"12345678");
    let ended = Attempt::new("printf 123456789").with("log_limit", 8).run();
    assert!(ended.log.starts_with(b"12345678\n[atelier] log limit of 8 bytes"));
}

#[test]
fn a_program_that_is_not_there_is_an_outcome() {
    let ended = Attempt::new("").with("program", "/no/such/shell").run();
    assert_eq!(ended.exited["outcome"]["not_started"]["errno"], libc::ENOENT);
    let what = ended.exited["outcome"]["not_started"]["what"].as_str().unwrap();
    assert!(what.contains("/no/such/shell"), "{what}");
    let ended = Attempt::new("").with("directory", "/no/such/folder").run();
    let what = ended.exited["outcome"]["not_started"]["what"].as_str().unwrap();
    assert!(what.contains("/no/such/folder"), "{what}");
}

#[test]
fn a_long_command_is_refused_by_the_system_and_recorded() {
    let ended = Attempt::new(&"x".repeat(200_000)).run();
    assert_eq!(ended.exited["outcome"]["not_started"]["errno"], libc::E2BIG);
}

/// Three processes of one command.
fn three(command: &str) -> Attempt {
    let attempt = Attempt::new(command);
    let process = |number: usize| {
        let log = attempt.path(&format!("log_{number}.txt"));
        json!({"environment": {"LOCAL_RANK": number.to_string()}, "log": log})
    };
    let processes: Vec<Value> = (0..3).map(process).collect();
    fs::write(attempt.path("std_log.txt"), "").unwrap();
    attempt.with("processes", processes)
}

#[test]
fn several_processes_have_a_log_each_and_the_last_ones_end_counts() {
    let attempt = three("echo I am $LOCAL_RANK; sleep 0.0$LOCAL_RANK");
    let ended = attempt.run();
    assert_eq!(ended.exited["outcome"], json!({"code": 0}), "{}", ended.exited);
    for number in 0..3 {
        let log = fs::read_to_string(attempt.path(&format!("log_{number}.txt"))).unwrap();
        assert_eq!(log, format!("I am {number}\n"));
    }
}

#[test]
fn of_several_processes_the_first_failure_is_told_and_the_others_have_time_to_save() {
    let attempt = three(
        "trap 'echo saved >saved$LOCAL_RANK; exit 9' TERM; echo up >up$LOCAL_RANK
         if [ $LOCAL_RANK = 1 ]; then while [ ! -e up0 -o ! -e up2 ]; do sleep 0.01; done; exit 5; fi
         while :; do sleep 0.01; done",
    );
    let ended = attempt.run();
    assert_eq!(ended.exited["outcome"], json!({"code": 5}), "{}", ended.exited);
    assert_eq!((&ended.exited["process"], &ended.exited["ended_by"]), (&json!(1), &Value::Null));
    assert!(attempt.path("work/saved0").exists() && attempt.path("work/saved2").exists());
}
