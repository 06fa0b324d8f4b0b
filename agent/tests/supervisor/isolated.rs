//! Jobs in views of their own.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::{
    Attempt, SESSIONS, all_die_with_a_killed_supervisor, all_have_time_to_save, boottime_ms,
    set_lease, signal, wait_for,
};

/// The same under a supervisor that isolates the job.
pub(crate) fn isolated(command: &str) -> Attempt {
    let attempt = Attempt::new(command);
    let (work, temporary) = (attempt.path("work"), attempt.path("tmp"));
    fs::create_dir(&temporary).unwrap();
    attempt.with(
        "view",
        json!({
            "hidden": [], "readable": [], "writable": [work], "temporary": temporary,
            "means": "user_namespace", "own_processes": true, "filtered": true,
        }),
    )
}

/// The processes of the machine that were started with this variable.
fn of_job(variable: &str) -> Vec<String> {
    let is_of_job = |pid: &String| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|found| found == variable.as_bytes())
    };
    let entries = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    entries.filter(is_of_job).collect()
}

#[test]
fn isolated_a_job_sees_its_own_processes_only() {
    let ended =
        isolated("echo $$ $PPID; set -- /proc/[0-9]*; echo $*; kill -TERM 1; echo on").run();
    assert_eq!(ended.exited["outcome"], json!({"code": 0}), "{}", ended.exited);
    let log = String::from_utf8(ended.log).unwrap();
    // Its leader and the shell.
    assert_eq!(log, "2 1\n/proc/1 /proc/2\non\n");
}

#[test]
fn isolated_exit_codes_and_signals_are_told() {
    assert_eq!(isolated("exit 7").run().exited["outcome"], json!({"code": 7}));
    let ended = isolated("kill -SEGV $$").run();
    assert_eq!(ended.exited["outcome"], json!({"signal": libc::SIGSEGV}));
    let ended = isolated("i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done").run();
    assert!(ended.exited["cpu_seconds"].as_f64().unwrap() > 0.01, "{}", ended.exited);
}

#[test]
fn isolated_processes_left_behind_die_with_the_command() {
    let attempt = isolated(
        "setsid sh -c '(trap \"\" TERM HUP; echo up >hidden; sleep 1000) &' &
         while [ ! -e hidden ]; do sleep 0.01; done; exit 3",
    );
    let mark = format!("TEST_OF={}", attempt.path("").display());
    let mut attempt = attempt;
    attempt.launch["environment"]["TEST_OF"] = attempt.path("").to_str().unwrap().into();
    let ended = attempt.run();
    assert_eq!(ended.exited["outcome"], json!({"code": 3}), "{}", ended.exited);
    assert_eq!(of_job(&mark), Vec::<String>::new());
}

#[test]
fn isolated_a_terminate_reaches_every_process_and_gives_them_time() {
    let attempt = isolated(
        "sh -c 'trap \"sleep 0.2; echo child saved >saved; exit 0\" TERM; echo up >child; while :; do sleep 0.01; done' &
         (setsid sh -c 'trap \"sleep 0.2; echo other saved >other; exit 0\" TERM; echo up >session; while :; do sleep 0.01; done' &)
         echo up >main; wait",
    );
    all_have_time_to_save(&attempt);
}

#[test]
fn isolated_a_job_that_ignores_the_terminate_is_killed() {
    let attempt = isolated("trap '' TERM; echo $$ >up; while :; do sleep 0.01; done");
    let (attempt, mut supervisor) = attempt.with("grace_ms", 300).start_and_wait("up");
    signal(&supervisor, libc::SIGTERM);
    let ended = attempt.end(&mut supervisor);
    assert_eq!(ended.exited["ended_by"], "terminate");
    assert_eq!(ended.exited["outcome"], json!({"signal": libc::SIGKILL}));
}

#[test]
fn isolated_all_die_with_a_killed_supervisor() {
    let mut attempt = isolated("setsid sh -c 'sleep 1000' & echo $$ >up; sleep 1000");
    let mark = format!("TEST_OF={}", attempt.path("").display());
    attempt.launch["environment"]["TEST_OF"] = attempt.path("").to_str().unwrap().into();
    let (_attempt, mut supervisor) = attempt.start_and_wait("up");
    assert!(of_job(&mark).len() >= 2);
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    wait_for("the job's end", || of_job(&mark).is_empty().then_some(()));
}

#[test]
fn isolated_nothing_of_the_supervisor_is_open_to_the_job() {
    let attempt = isolated(
        "ls -l /proc/1/fd 2>&1; cat /proc/1/environ 2>&1 | wc -c; ls -l /proc/self/fd | grep -c -- '->'
         ls /dev | tr '\\n' ' '; test -b /dev/loop0 || echo no disks; echo x >/dev/null && echo null",
    );
    let lease = attempt.path("lease");
    set_lease(&lease, boottime_ms() + 60_000);
    let attempt = attempt.with("lease", lease.to_str().unwrap());
    let log = String::from_utf8(attempt.run().log).unwrap();
    assert!(log.contains("Permission denied") && !log.contains("lease"), "{log}");
    // Input, output, error, and what `ls` has open.
    assert!(log.contains("\n4\n"), "{log}");
    assert!(log.contains("no disks\nnull\n"), "{log}");
}

/// The device that stands for a GPU's is one that every machine has: `/dev/full`.
#[test]
fn isolated_what_is_withheld_of_the_devices_is_not_there() {
    let looks = "[ -e /dev/full ] && echo full; [ -e /dev/null ] && echo null; true";
    assert_eq!(isolated(looks).run().log, b"full\nnull\n");
    let mut attempt = isolated(looks);
    attempt.launch["view"]["withheld"] = json!(["full"]);
    assert_eq!(attempt.run().log, b"null\n");
}

#[test]
fn isolated_roots_tools_need_not_own_what_they_unpack() {
    // An archive of somebody else's files, as published data sets are.
    let attempt = isolated("mkdir out && tar xf a.tar -C out && cp -a out copy && cat copy/file");
    let archive = "import io, tarfile\nt = tarfile.open('a.tar', 'w')\ni = tarfile.TarInfo('file')\n\
                   i.size, i.uid, i.gid = 5, 2156, 2156\nt.addfile(i, io.BytesIO(b'data\\n'))\nt.close()\n";
    let mut made = Command::new("python3");
    made.args(["-c", archive]).current_dir(attempt.path("work"));
    assert!(made.status().unwrap().success());
    let ended = attempt.run();
    let log = String::from_utf8_lossy(&ended.log).into_owned();
    assert_eq!(ended.exited["outcome"], json!({"code": 0}), "{log}");
    assert_eq!(log, "data\n");
}

#[test]
fn isolated_some_system_calls_fail() {
    let program = r#"
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    return "ok" if libc.syscall(*args) >= 0 else errno.errorcode[ctypes.get_errno()]
NUMBERS = {"x86_64": (272, 321, 425, 435), "aarch64": (97, 280, 425, 435)}[os.uname().machine]
unshare, bpf, io_uring_setup, clone3 = NUMBERS
print(call(unshare, 0x10000000), call(unshare, 0x400), call(bpf, 0, 0, 0), call(io_uring_setup, 1, 0), call(clone3, 0, 0))
import subprocess, threading, multiprocessing
threading.Thread(target=print, args=("thread",)).start()
print(subprocess.run(["echo", "child"], capture_output=True).stdout)
"#;
    let attempt = isolated("python3 probe.py");
    fs::write(attempt.path("work/probe.py"), program).unwrap();
    let log = String::from_utf8(attempt.run().log).unwrap();
    let first = log.lines().next().unwrap_or_default();
    assert_eq!(first, "EPERM ok EPERM EPERM ENOSYS", "{log}");
    assert!(log.contains("thread\n") && log.contains("child"), "{log}");
}

/// Where there are no namespaces.
pub(crate) fn under_rules(command: &str) -> Attempt {
    let mut attempt = isolated(command);
    let hidden = attempt.path("hidden");
    fs::create_dir(&hidden).unwrap();
    fs::write(hidden.join("secret"), "secret\n").unwrap();
    let view = &mut attempt.launch["view"];
    view["means"] = "rules".into();
    view["own_processes"] = false.into();
    view["hidden"] = json!([hidden]);
    attempt
}

#[test]
fn isolated_by_rules_a_job_changes_its_own_folders_only() {
    let attempt = under_rules(
        "echo mine >here && cat here; cat ../hidden/secret; echo x >../beside; echo x >/tmp/atelier-rules-test
         echo x >../tmp/own && echo own; echo x >/dev/null && echo null; kill -0 $SUPERVISOR && echo reached
         python3 -c 'import json; print(json.dumps([1]))'",
    );
    let mut victim = Command::new("sleep").arg("600").spawn().unwrap();
    let mut attempt = attempt;
    attempt.launch["environment"]["SUPERVISOR"] = victim.id().to_string().into();
    let log = String::from_utf8(attempt.run().log).unwrap();
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(
        log.starts_with("mine\n") && log.contains("\nown\n") && log.contains("\nnull\n"),
        "{log}"
    );
    assert!(log.ends_with("[1]\n") && !log.contains("secret\n"), "{log}");
    assert!(!log.contains("reached"), "{log}");
    assert!(!attempt.path("beside").exists() && !Path::new("/tmp/atelier-rules-test").exists());
}

#[test]
fn isolated_by_rules_all_die_with_a_killed_supervisor() {
    all_die_with_a_killed_supervisor(&under_rules(SESSIONS));
}

#[test]
fn isolated_by_rules_its_end_is_told_as_ever() {
    assert_eq!(under_rules("exit 7").run().exited["outcome"], json!({"code": 7}));
    let attempt = under_rules(
        "trap 'echo saved >saved; exit 0' TERM; echo up >up; while :; do sleep 0.01; done",
    );
    let (attempt, mut supervisor) = attempt.start_and_wait("up");
    signal(&supervisor, libc::SIGTERM);
    let ended = attempt.end(&mut supervisor);
    assert_eq!(ended.exited["ended_by"], "terminate");
    assert!(attempt.path("work/saved").exists());
}

/// As NVIDIA's driver does, which fails where it cannot; root without privileges could change the rest.
#[test]
fn isolated_a_job_names_its_threads_and_changes_nothing_of_the_machine() {
    const COMMAND: &str = "printf named > /proc/self/task/$$/comm; cat /proc/$$/comm
        for file in $(find /proc/[a-z]* -maxdepth 4 -type f -perm /222 ! -path '/proc/*self/*'); do
            (: >> $file) 2>/dev/null && echo wrote $file
        done; true";
    let means = match rustix::process::geteuid().is_root() {
        true => &["user_namespace", "root"][..],
        false => &["user_namespace"],
    };
    for means in means {
        for own_processes in [true, false] {
            let attempt = isolated(COMMAND);
            let mut view = attempt.launch["view"].clone();
            (view["means"], view["own_processes"]) = (json!(means), json!(own_processes));
            let ended = attempt.with("view", view).run();
            let log = String::from_utf8(ended.log).unwrap();
            assert_eq!(log, "named\n", "{means} {own_processes}: {}", ended.exited);
        }
    }
}
