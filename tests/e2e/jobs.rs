//! A job from its YAML to its log, outputs and exit code, as a user sees them.

use std::fs;
use std::time::Duration;

use atelier_proto::job::v1::JobStatus;
use rustix::process::Signal;

use crate::harness::{Agent, Cluster, memory, processes_with, until};

#[test]
fn a_job_reads_its_inputs_and_leaves_its_outputs() {
    let cluster = Cluster::start();
    cluster.write("code/say.sh", "echo \"said $1\"\n");
    cluster.write("names.txt", "Ada\nGrace\n");
    cluster.write("folder/a.txt", "A");
    cluster.write("folder/deep/b.txt", "B");
    let job = cluster.write(
        "job.yml",
        r#"
$schema: https://azuremlschemas.azureedge.net/latest/commandJob.schema.json
code: code
command: >-
  sh say.sh ${{inputs.word}} && wc -l < ${{inputs.names}} &&
  cat ${{inputs.folder}}/a.txt ${{inputs.folder}}/deep/b.txt &&
  echo kept > outputs/kept.txt && echo named > ${{outputs.model}}/m.txt
  $[[ && echo ${{inputs.left_out}} ]]
inputs:
  word: 1e-3
  names: {type: uri_file, path: names.txt}
  folder: {type: uri_folder, path: folder, mode: download}
  left_out: {type: string, optional: true}
outputs:
  model: {type: uri_folder}
tags: {kind: test}
"#,
    );
    let run = cluster
        .atelier(
            ["job", "create", "--stream", "-f"]
                .map(str::to_owned)
                .into_iter()
                .chain([job.display().to_string()]),
        )
        .ok();
    assert!(run.stdout().contains("said 1e-3\n2\nAB"), "{run:?}");
    let name = cluster.rpc().jobs().unwrap()[0].name.clone();
    let artifacts = cluster.rpc().artifacts(&name);
    assert!(artifacts.contains(&"outputs/kept.txt".to_owned()), "{artifacts:?}");
    assert!(artifacts.contains(&"named-outputs/model/m.txt".to_owned()), "{artifacts:?}");
    assert!(artifacts.contains(&"user_logs/std_log.txt".to_owned()), "{artifacts:?}");
    cluster.atelier(["job", "download", &name, "--all", "--download-path", "got"]).ok();
    let found: Vec<_> = walk(&cluster.files().join("got"));
    let has = |end: &str, text: &str| {
        found.iter().any(|path| {
            path.ends_with(end) && fs::read_to_string(path).is_ok_and(|found| found == text)
        })
    };
    assert!(has("outputs/kept.txt", "kept\n") && has("model/m.txt", "named\n"), "{found:?}");
    let show = cluster.atelier(["job", "show", &name, "-o", "json"]).ok().json();
    assert_eq!(show["status"], "Completed");
    assert_eq!(show["inputs"]["word"], "1e-3");
    assert_eq!(show["tags"]["kind"], "test");
    // The output of one job is the input of the next.
    let next = cluster.create(&format!(
        "command: cat ${{{{inputs.m}}}}/m.txt\ninputs:\n  m:\n    type: uri_folder\n    \
         path: azureml://jobs/{name}/outputs/model/paths/\n"
    ));
    cluster.completed(&next);
    assert_eq!(cluster.log(&next), b"named\n");
}

/// An output that is one file is one object, found by its name, and no other's that begins with it.
#[test]
fn a_file_output_is_downloaded_by_its_name() {
    let cluster = Cluster::start();
    let name = cluster.create(
        "command: echo one > ${{outputs.m}} && echo two > ${{outputs.model}}/two.txt\n\
         outputs: {m: {type: uri_file}, model: {type: uri_folder}}\n",
    );
    cluster.completed(&name);
    let show = cluster.atelier(["job", "show", &name, "-o", "json"]).ok().json();
    let stored = format!("azureml://datastores/workspaceblobstore/paths/azureml/{name}/m");
    assert_eq!(show["outputs"]["m"]["path"], stored, "{show}");
    for (output, file, text) in [("m", "m", "one\n"), ("model", "model/two.txt", "two\n")] {
        let to = cluster.files().join(format!("got-{output}"));
        let path = to.display().to_string();
        cluster.atelier(["job", "download", &name, "--output-name", output, "-p", &path]).ok();
        assert_eq!(walk(&to), [to.join("named-outputs").join(file)]);
        assert_eq!(fs::read_to_string(to.join("named-outputs").join(file)).unwrap(), text);
    }
}

/// Whoever follows through a pipe whose reader goes away is not told that all went well.
#[test]
fn a_reader_that_goes_away_is_no_success() {
    let cluster = Cluster::start();
    let line = format!(
        "{} job create -f - --stream | head -n 1; echo ${{PIPESTATUS[0]}}",
        crate::harness::PROGRAM
    );
    let mut command = std::process::Command::new("bash");
    cluster.clean(&mut command);
    let mut child = command
        .args(["-c", &line])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let yaml = "command: seq 200000; exit 3\n";
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), yaml.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ended.stdout), "1\n141\n");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.contains("Job ") && said.contains("atelier job stream"), "{said}");
}

/// Nobody reads what is printed, and Ctrl-C is heard all the same.
#[test]
fn ctrl_c_detaches_although_the_log_is_not_read() {
    let cluster = Cluster::start();
    let name = cluster.shell("seq 2000000; sleep 600");
    cluster.running(&name);
    let mut command = cluster.command();
    command.args(["job", "stream", &name]);
    let (unread, log) = std::io::pipe().unwrap();
    let mut child = command.stdout(log).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(command);
    // The pipe is full: what comes next blocks.
    let full = until("the pipe is full", || {
        let waiting = rustix::io::ioctl_fionread(&unread).unwrap();
        (waiting >= 65_536).then_some(waiting)
    });
    assert!(full >= 65_536);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    let status = until("it detaches", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(130));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("detached") && said.contains("atelier job cancel"), "{said}");
    cluster.atelier(["job", "cancel", &name]).ok();
}

/// What the gateway refuses is told as that.
#[test]
fn a_role_that_may_not_upload_is_told_so() {
    let cluster = Cluster::start();
    cluster.write("names.txt", "Ada\n");
    let token = cluster.token_for("rea", "reader");
    cluster
        .atelier_at(&cluster.server(), ["job", "create", "-f", "-"])
        .env("ATELIER_TOKEN", token)
        .stdin("command: ls\ninputs: {n: {type: uri_file, path: names.txt}}\n")
        .fails(5)
        .says(&["may"]);
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}

#[test]
fn exit_codes_are_the_jobs_own() {
    let cluster = Cluster::start();
    let stream = |command: &str| {
        cluster
            .atelier(["job", "create", "--stream", "-f", "-"])
            .stdin(format!("command: {command}"))
    };
    stream("exit 7").fails(7).says(&["failed", "exit code 7"]);
    stream("kill -9 $$").fails(137);
    stream("no-such-program-here").fails(127).says(&["no-such-program-here"]);
    let failed = cluster.rpc().jobs().unwrap();
    assert_eq!(failed.len(), 3);
    assert!(failed.iter().all(|job| job.status() == JobStatus::Failed));
    assert_eq!(failed[0].error.as_ref().unwrap().code, "CommandNotFound");
}

#[test]
fn partial_outputs_of_a_failed_job_are_kept_and_marked() {
    let cluster = Cluster::start();
    let name = cluster.create(
        "command: echo half > ${{outputs.model}}/half.txt; exit 1\noutputs: {model: {type: uri_folder}}\n",
    );
    let job = cluster.ended(&name);
    assert_eq!(job.status(), JobStatus::Failed);
    assert!(job.outputs[0].partial && job.outputs[0].files == 1, "{:?}", job.outputs);
}

#[test]
fn nothing_is_visible_before_the_manifest() {
    let cluster = Cluster::start();
    let name = cluster.shell("echo early > outputs/early.txt; echo written; sleep 600");
    cluster.atelier(["job", "stream", &name, "-q"]).spawn().prints("written\n");
    assert!(cluster.rpc().artifacts(&name).is_empty());
    cluster.atelier(["job", "cancel", &name]).ok();
    assert_eq!(cluster.ended(&name).status(), JobStatus::Canceled);
    assert!(cluster.rpc().artifacts(&name).contains(&"outputs/early.txt".to_owned()));
}

#[test]
fn a_failed_attempt_is_tried_again_and_a_late_one_is_cancelled() {
    let cluster = Cluster::start();
    let marks = cluster.shared_file("marks");
    let name = cluster.create(&format!(
        "command: echo x >> {0}; test $(wc -l < {0}) -ge 2\nretry: {{max_attempts: 3, backoff: 1}}\n",
        marks.display()
    ));
    let job = cluster.completed(&name);
    assert_eq!(job.attempt, 2);
    let late = cluster.create("command: sleep 600\nlimits: {timeout: 1}\n");
    let job = cluster.ended(&late);
    assert_eq!(job.status(), JobStatus::Canceled);
    assert!(job.error.unwrap().message.contains("timeout"));
}

#[test]
fn what_a_failed_attempt_wrote_is_in_no_output_of_a_completed_job() {
    let cluster = Cluster::start();
    let marks = cluster.shared_file("marks");
    let name = cluster.create(&format!(
        "command: |\n  echo x >> {0}\n  n=$(wc -l < {0})\n  echo $n > ${{{{outputs.model}}}}/$n\n  \
         test $n -ge 2\noutputs:\n  model:\nretry: {{max_attempts: 2}}\n",
        marks.display()
    ));
    let job = cluster.completed(&name);
    assert_eq!(job.attempt, 2);
    let lists = |path: &str| {
        let reader = cluster.create(&format!(
            "command: ls ${{{{inputs.model}}}}\ninputs:\n  model:\n    type: uri_folder\n    path: {path}\n",
        ));
        cluster.completed(&reader);
        String::from_utf8(cluster.log(&reader)).unwrap()
    };
    assert_eq!(lists(&format!("azureml://jobs/{name}/outputs/model")), "2\n");
    let place = format!("azureml://datastores/workspaceblobstore/paths/azureml/{name}/model");
    assert_eq!(lists(&place), "2\n");
}

/// The job has the URI and nothing else, and what it writes there stays whatever its manifest says.
#[test]
fn an_output_of_mode_direct_is_the_jobs_own_to_write() {
    let cluster = Cluster::start();
    let marks = cluster.shared_file("marks");
    let of = |path: &str| format!("{{type: uri_folder, mode: direct{path}}}");
    let name = cluster.create(&format!(
        "command: |\n  echo x >> {0}\n  echo ${{{{outputs.own}}}} ${{{{outputs.named}}}}\n  \
         echo $WHERE\n  test $(wc -l < {0}) -ge 2\n\
         environment_variables: {{WHERE: '${{{{outputs.named}}}}'}}\n\
         outputs:\n  own: {1}\n  named: {2}\n  made: {{name: made, type: uri_folder, mode: direct}}\n\
         retry: {{max_attempts: 2}}\n",
        marks.display(),
        of(""),
        of(", path: 'azureml://datastores/workspaceblobstore/paths/own/${{name}}/'"),
    ));
    let job = cluster.completed(&name);
    assert_eq!(job.attempt, 2);
    let paths = "azureml://datastores/workspaceblobstore/paths";
    let [own, named] = [format!("azureml/{name}/own/"), format!("own/{name}/")];
    let said = format!("{paths}/{own} {paths}/{named}\n{paths}/{named}\n");
    assert_eq!(String::from_utf8(cluster.log(&name)).unwrap(), said.repeat(2));
    // It registers a place like any other output, and nothing of it is taken for left behind.
    let blobs = cluster.data().join("storage/workspaceblobstore");
    for place in [&*own, &named, &format!("azureml/{name}/made/")] {
        std::fs::create_dir_all(blobs.join(place)).unwrap();
        std::fs::write(blobs.join(place).join("x"), place).unwrap();
    }
    let made = cluster.atelier(["data", "show", "made", "--version", "1", "-o", "json"]).ok();
    assert_eq!(made.json()["path"], format!("{paths}/azureml/{name}/made/"));
    let reader = cluster.create(&format!(
        "command: cat ${{{{inputs.own}}}}/x ${{{{inputs.named}}}}/x\ninputs:\n  \
         own: {{type: uri_folder, path: 'azureml://jobs/{name}/outputs/own'}}\n  \
         named: {{type: uri_folder, path: 'azureml://jobs/{name}/outputs/named'}}\n"
    ));
    cluster.completed(&reader);
    assert_eq!(String::from_utf8(cluster.log(&reader)).unwrap(), format!("{own}{named}"));
    // Its place is checked as any other's.
    for (path, code, why) in [
        (", path: /somewhere", 1, "cannot go to '/somewhere'"),
        (", path: 'azureml://datastores/none/paths/x'", 3, "datastore 'none'"),
        (", path: 'azureml://datastores/workspaceblobstore/paths/azureml/other/x'", 1, "kept for"),
    ] {
        let yaml = format!("command: 'true'\noutputs:\n  own: {}\n", of(path));
        let file = cluster.write("direct.yml", yaml);
        cluster
            .atelier(["job".as_ref(), "create".as_ref(), "-f".as_ref(), file.as_os_str()])
            .fails(code)
            .says(&[why]);
    }
}

#[test]
fn a_cancelled_job_leaves_no_process_behind() {
    let cluster = Cluster::start();
    let mark = cluster.files().join("still-here");
    let name = cluster.shell(&format!(
        "trap '' TERM\necho >{0}\nsetsid sh -c 'exec sleep 600' &\n\
         (setsid sh -c 'exec tail -f {0}' &)\nsleep 602",
        mark.display()
    ));
    let mark = format!("-f\0{}", mark.display());
    until("the stray process started", || (processes_with(&mark).len() == 1).then_some(()));
    cluster.atelier(["job", "cancel", &name]).ok();
    assert_eq!(cluster.ended(&name).status(), JobStatus::Canceled);
    assert_eq!(processes_with(&mark), []);
}

#[test]
fn jobs_wait_their_turn_and_say_why() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let early = cluster.shell("true");
    let waiting = cluster.rpc().job(&early).unwrap();
    assert_eq!(waiting.status(), JobStatus::Queued);
    assert!(waiting.wait_reason.contains("no node"), "{}", waiting.wait_reason);
    cluster.start_agent(&Agent::new("local").cpus(1));
    cluster.completed(&early);
    let first = cluster.shell("sleep 600");
    cluster.running(&first);
    let second = cluster.shell("true");
    let third = cluster.shell("true");
    let reason = cluster.rpc().job(&second).unwrap().wait_reason;
    assert!(reason.contains("CPU"), "{reason}");
    let reason = cluster.rpc().job(&third).unwrap().wait_reason;
    assert!(reason.contains(&second), "{reason}");
    cluster.atelier(["job", "cancel", &first]).ok();
    cluster.completed(&second);
    cluster.completed(&third);
}

#[test]
fn the_log_is_live_and_whole_for_every_watcher() {
    let cluster = Cluster::start();
    let go = cluster.files().join("go");
    let name = cluster.shell(&format!(
        "echo first\nwhile [ ! -e {} ]; do sleep 0.05; done\nseq 1 20000",
        go.display()
    ));
    let watchers: Vec<_> =
        (0..3).map(|_| cluster.atelier(["job", "stream", &name, "-q"]).spawn()).collect();
    for watcher in &watchers {
        watcher.prints("first\n");
    }
    fs::write(&go, "").unwrap();
    let whole: String = std::iter::once("first\n".to_owned())
        .chain((1..=20000).map(|n| format!("{n}\n")))
        .collect();
    for watcher in watchers {
        assert_eq!(watcher.wait().ok().stdout(), whole);
    }
    assert_eq!(cluster.log(&name), whole.as_bytes());
}

/// Prints `bytes`, of which a million are kept; neither daemon nor agent grows meanwhile.
fn flood(bytes: u64) {
    const KEPT: usize = 1_000_000;
    let cluster = Cluster::start_with(&["--log-limit", &KEPT.to_string()]);
    let pids = [cluster.daemon(|d| d.pid()), cluster.agent("local", |a| a.pid())];
    let before = pids.map(memory);
    let name = cluster.shell(&format!("head -c {bytes} /dev/zero | tr '\\0' x; echo"));
    let mut most = [0, 0];
    let watcher = cluster.atelier(["job", "stream", &name, "-q"]).spawn();
    let job = until("it has ended", || {
        most = [0, 1].map(|part: usize| most[part].max(memory(pids[part])));
        let job = cluster.rpc().job(&name).unwrap();
        job.status().is_final().then_some(job)
    });
    assert_eq!(job.status(), JobStatus::Completed, "{job:?}");
    for part in [0, 1] {
        let grown = most[part].saturating_sub(before[part]);
        assert!(grown < 32 << 20, "grew by {grown} bytes: {before:?}, {most:?}");
    }
    let log = cluster.log(&name);
    assert!(log.len() < KEPT + 1000, "{} bytes", log.len());
    let end = String::from_utf8_lossy(&log[log.len() - 300..]).into_owned();
    let dropped = bytes + 1 - KEPT as u64;
    assert!(end.contains(&dropped.to_string()) && end.contains("dropped"), "{dropped}: {end}");
    assert_eq!(watcher.wait().ok().stdout().len(), log.len());
}

#[test]
fn a_flood_of_output_is_bounded_and_marked() {
    flood(300_000_000);
}

#[test]
fn soak_a_gigabyte_of_output_neither_blocks_nor_fills_memory() {
    flood(1_000_000_000);
}

#[test]
fn interrupting_the_client_leaves_the_job_alone() {
    let cluster = Cluster::start();
    let go = cluster.files().join("go");
    let client = cluster
        .atelier(["job", "create", "--stream", "-f", "-"])
        .stdin(format!("command: echo up; while [ ! -e {} ]; do sleep 0.05; done", go.display()))
        .spawn();
    client.prints("up\n");
    client.signal(Signal::INT);
    let left = client.wait_within(Duration::from_secs(10));
    let name = cluster.rpc().jobs().unwrap()[0].name.clone();
    assert!(left.stderr.contains(&format!("job stream {name}")), "{left:?}");
    assert_eq!(cluster.rpc().job(&name).unwrap().status(), JobStatus::Running);
    fs::write(&go, "").unwrap();
    cluster.completed(&name);
}

#[test]
fn finished_jobs_are_archived_restored_and_deleted() {
    let cluster = Cluster::start();
    let name = cluster.shell("echo gone");
    cluster.completed(&name);
    cluster.atelier(["job", "archive", &name]).ok();
    let list = || cluster.atelier(["job", "list", "--query", "[].name", "-o", "tsv"]).ok().word();
    assert_eq!(list(), "");
    cluster.atelier(["job", "restore", &name]).ok();
    assert_eq!(list(), name);
    cluster.atelier(["job", "delete", &name, "--yes"]).ok();
    assert_eq!(list(), "");
    cluster.atelier(["job", "show", &name]).fails(3).says(&[&name]);
    let root = format!("workspaceartifactstore/ExperimentRun/dcid.{name}");
    assert!(!cluster.data().join("storage").join(root).exists());
}

#[test]
fn run_starts_a_local_workspace_and_uses_it_again() {
    let cluster = Cluster::empty();
    let first = cluster.atelier(["run", "--", "echo", "hello there"]).ok();
    assert_eq!(first.word(), "hello there");
    let second = cluster.atelier(["run", "--", "sh", "-c", "exit 3"]).fails(3);
    assert!(second.stderr.contains("Failed"), "{second:?}");
    let status = cluster.atelier(["local", "status", "-o", "json"]).ok().json();
    assert_eq!(status["running"], true);
    cluster.atelier(["local", "stop"]).ok();
    let status = cluster.atelier(["local", "status", "-o", "json"]).run().json();
    assert_eq!(status["running"], false);
}

#[test]
fn a_node_that_shares_nothing_moves_data_through_the_gateway() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").with("--no-shared-store"));
    cluster.write("in.txt", "through the gate\n");
    let job = cluster.write(
        "job.yml",
        "command: cat ${{inputs.in}} | tee outputs/out.txt\ninputs: {in: {type: uri_file, path: in.txt}}\n",
    );
    let run = cluster
        .atelier([
            "job".as_ref(),
            "create".as_ref(),
            "--stream".as_ref(),
            "-f".as_ref(),
            job.as_os_str(),
        ])
        .ok();
    assert_eq!(run.stdout(), "through the gate\n");
    let name = cluster.rpc().jobs().unwrap()[0].name.clone();
    assert!(cluster.rpc().artifacts(&name).contains(&"outputs/out.txt".to_owned()));
}
