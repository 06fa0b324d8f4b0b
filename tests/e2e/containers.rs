//! Jobs in containers, with images from a registry of this machine.

use std::time::{Duration, Instant};

use atelier_proto::job::v1::{Job, JobError, JobStatus};

use crate::harness::{Cluster, Hang, Outcome, Registry, Settings, needs, processes_with, until};

/// Tells what it finds, as `name=yes` or `name=no`.
const LOOK: &str = r#"
say() { if eval "$2" >/dev/null 2>&1; then echo "$1=yes"; else echo "$1=no"; fi; }
say is_in_the_image 'test -e /etc/of-the-image && test "$OF_THE_IMAGE" = yes'
say writes_work 'echo x > here'
say writes_outputs 'echo x > outputs/kept.txt'
say writes_named_output 'echo x > "$AZURE_ML_OUTPUT_model/kept.txt"'
say writes_tmp 'echo x > /tmp/mine && echo x > /var/tmp/mine'
say writes_home 'mkdir -p ~/.cache/x && echo x > ~/.cache/x/y'
say writes_memory 'echo x > /dev/shm/mine'
say has_its_variables 'test "$TOLD" = "it'"'"'s \"here\" \$HOME"'
say finds_its_tools 'case $PATH in /bin:/tools) ;; *) false ;; esac'
say sees_the_host "test -e $OUTSIDE || test -e /etc/shadow || test -e /root"
say sees_admin_token "cat $HOME_OF_DAEMON/admin.token"
say sees_the_daemon "test -e $HOME_OF_DAEMON"
say sees_records "cat $FOLDER_OF_AGENT/attempts/*/launch.json"
say sees_lease "test -e $FOLDER_OF_AGENT/lease"
say sees_other_processes 'ps | grep -q "[a]telier supervise"'
say writes_kernel 'cat /proc/sys/vm/swappiness > /proc/sys/vm/swappiness'
say writes_groups 'for one in /sys/fs/cgroup/*/; do mkdir "$one/atelier-was-here" && exit; done; false'
say can_mount 'mount -t tmpfs none /mnt'
say can_give_away 'chown 12:12 here'
grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status | tr -d '\t'
"#;

pub(crate) fn in_image(image: &str, command: &str, more: &str) -> String {
    let block: String = command.lines().map(|line| format!("  {line}\n")).collect();
    format!("command: |\n{block}environment: {{image: {image}}}\n{more}")
}

/// A daemon and a node that runs images.
pub(crate) fn start(registry: &Registry) -> Cluster {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&registry.agent("local"));
    cluster
}

pub(crate) fn log(cluster: &Cluster, job: &str) -> String {
    String::from_utf8(cluster.log(job)).unwrap()
}

#[test]
fn a_job_runs_in_its_image_and_sees_nothing_of_its_node() {
    needs("containers");
    let registry = Registry::start();
    let cluster = start(&registry);
    let outside = tempfile::NamedTempFile::new().unwrap();
    let more = format!(
        "outputs: {{model: {{type: uri_folder}}}}\nenvironment_variables:\n  TOLD: |-\n    it's \"here\" \
         $HOME\n  OUTSIDE: {}\n  HOME_OF_DAEMON: {}\n  FOLDER_OF_AGENT: {}\n",
        outside.path().display(),
        cluster.data().display(),
        cluster.agent_data("local").display()
    );
    let job = cluster.create(&in_image(&registry.shell(), LOOK, &more));
    cluster.completed(&job);
    let log = log(&cluster, &job);
    let yes: Vec<&str> = log.lines().filter_map(|line| line.strip_suffix("=yes")).collect();
    let wanted = [
        "is_in_the_image",
        "writes_work",
        "writes_outputs",
        "writes_named_output",
        "writes_tmp",
        "writes_home",
        "writes_memory",
        "has_its_variables",
        "finds_its_tools",
    ];
    assert_eq!(yes, wanted, "{log}");
    let none = "0".repeat(16);
    for line in [format!("CapEff:{none}"), format!("CapBnd:{none}"), "NoNewPrivs:1".to_owned()] {
        assert!(log.lines().any(|said| said == line), "{log}");
    }
    assert!(log.contains(&format!("image '{}' is sha256:", registry.shell())), "{log}");
    let artifacts = cluster.rpc().artifacts(&job);
    assert!(artifacts.iter().any(|path| path == "outputs/kept.txt"), "{artifacts:?}");
    let node = cluster.atelier(["node", "show", "local", "-o", "json"]).ok().json();
    let runtime = node["facts"]["container_runtime"].as_str().unwrap();
    assert!(runtime.starts_with("podman "), "{node}");
    until("nothing is left of the container", || registry.containers().is_empty().then_some(()));
}

#[test]
fn what_a_container_writes_and_how_it_ends_is_told_as_of_any_job() {
    needs("containers");
    let registry = Registry::start();
    let cluster = start(&registry);
    let bytes = "printf 'a\\000b\\n\\377 no end'; printf ' to stderr' >&2; exit 7";
    let job = cluster.create(&in_image(&registry.shell(), bytes, ""));
    let ended = cluster.ended(&job);
    assert_eq!(ended.exit_code, Some(7), "{ended:?}");
    let log = cluster.log(&job);
    assert!(log.ends_with(b"a\0b\n\xff no end to stderr"), "{}", String::from_utf8_lossy(&log));
    // The shell's own code, also where the runtime uses the same.
    for (command, expected) in
        [("exit 125", 125), ("exit 126", 126), ("there-is-no-such-program", 127)]
    {
        let job = cluster.create(&in_image(&registry.shell(), command, ""));
        let ended = cluster.ended(&job);
        assert_eq!(ended.exit_code, Some(expected), "{ended:?}");
        if expected == 127 {
            assert!(
                error(&ended).message.contains("'there-is-no-such-program' was not found"),
                "{ended:?}"
            );
        }
    }
}

#[test]
fn a_container_is_told_to_end_and_then_made_to() {
    needs("containers");
    let registry = Registry::start();
    let serve = ["--grace", "5"].map(str::to_owned).into();
    let cluster = Cluster::with(Settings { serve, ..Settings::default() });
    cluster.start_daemon();
    cluster.start_agent(&registry.agent("local"));
    let polite = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let deaf = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    for command in [polite, deaf] {
        let job = cluster.create(&in_image(&registry.shell(), command, ""));
        let stream = cluster.atelier(["job", "stream", &job]).spawn();
        stream.prints("ready");
        cluster.atelier(["job", "cancel", &job]).ok();
        let ended = cluster.ended(&job);
        assert_eq!(ended.status(), JobStatus::Canceled, "{ended:?}");
        assert_eq!(log(&cluster, &job).contains("told"), command == polite);
        until("nothing is left of the container", || {
            registry.containers().is_empty().then_some(())
        });
    }
}

#[test]
fn a_container_has_the_limits_of_its_job() {
    needs("containers");
    needs("cgroup");
    let registry = Registry::start();
    let cluster = start(&registry);
    // The shell would go on without the program that was killed.
    let command =
        "echo begins; awk 'BEGIN { x = \"x\"; while (1) x = x x }'; sleep 5; echo went on";
    let job = cluster.create(&in_image(
        &registry.shell(),
        command,
        "keep_failed: 0\nresources: {memory: 64MiB}\n",
    ));
    let ended = cluster.ended(&job);
    assert_eq!(error(&ended).code, "OutOfMemory", "{ended:?}");
    assert!(error(&ended).message.contains("64 MiB"), "{ended:?}");
    let log = log(&cluster, &job);
    assert!(log.contains("begins") && !log.contains("went on"), "{log}");
    let job = cluster.create(&in_image(
        &registry.shell(),
        "echo in time; sleep 600",
        "limits: {timeout: 2}\n",
    ));
    let ended = cluster.ended(&job);
    assert_eq!(ended.status(), JobStatus::Canceled, "{ended:?}");
    assert!(error(&ended).message.contains("limits.timeout of 2 s"), "{ended:?}");
    until("nothing is left of the containers", || registry.containers().is_empty().then_some(()));
}

#[test]
fn a_container_outlives_its_agent() {
    needs("containers");
    let registry = Registry::start();
    let cluster = start(&registry);
    let (folder, go) = (cluster.files(), cluster.files().join("go"));
    let command =
        format!("echo ready; until test -e {}; do sleep 0.1; done; echo went on", go.display());
    let job = cluster.create(&in_image(&registry.shell(), &command, ""));
    let stream = cluster.atelier(["job", "stream", &job]).spawn();
    stream.prints("ready");
    let before = registry.containers();
    assert!(before.starts_with("atelier-"), "{before}");
    cluster.agent("local", |agent| agent.kill());
    cluster.start_agent(&registry.agent("local"));
    assert_eq!(registry.containers(), before);
    std::fs::write(folder.join("go"), "").unwrap();
    cluster.completed(&job);
    assert!(log(&cluster, &job).ends_with("ready\nwent on\n"));
    until("nothing is left of the container", || registry.containers().is_empty().then_some(()));
}

#[test]
fn processes_of_a_job_have_a_container_each() {
    needs("containers");
    let registry = Registry::start();
    let cluster = start(&registry);
    let more = "keep_failed: 0\ndistribution: {type: pytorch, process_count_per_instance: 2}\n";
    // The one that fails ends the other, which has to have come so far.
    let look = "echo \"$LOCAL_RANK of $WORLD_SIZE\" > outputs/.$RANK; mv outputs/.$RANK outputs/$RANK; \
                test $RANK = 0 || { until [ -e outputs/0 ]; do sleep 0.05; done; exit 6; }";
    let job = cluster.create(&in_image(&registry.shell(), look, more));
    let ended = cluster.ended(&job);
    assert_eq!(ended.exit_code, Some(6), "{ended:?}");
    let folder = cluster.path().join("artifacts");
    cluster
        .atelier(["job", "download", &job, "--all", "--download-path", folder.to_str().unwrap()])
        .ok();
    for (rank, expected) in [("0", "0 of 2\n"), ("1", "1 of 2\n")] {
        let found = std::fs::read_to_string(folder.join("artifacts/outputs").join(rank));
        assert_eq!(found.unwrap(), expected);
    }
    // What starts several by itself has to be in the image.
    let more = "keep_failed: 0\ndistribution: {type: mpi, process_count_per_instance: 2}\n";
    let ended = cluster.ended(&cluster.create(&in_image(&registry.shell(), "echo x", more)));
    assert_eq!(error(&ended).code, "CommandNotFound", "{ended:?}");
    assert!(error(&ended).message.contains("mpirun"), "{ended:?}");
    until("nothing is left of the containers", || registry.containers().is_empty().then_some(()));
}

#[test]
fn a_job_chooses_what_is_harmless_about_its_container() {
    needs("containers");
    let registry = Registry::start();
    let cluster = start(&registry);
    let look =
        "stat -f -c 'shm %b %S' /dev/shm; echo \"$TOLD\"; ulimit -n; touch /new || echo read-only";
    let more = "resources:\n  shm_size: 8m\n  docker_args: --read-only -e 'TOLD=a b' --ulimit nofile=300:300\n";
    let job = cluster.create(&in_image(&registry.shell(), look, more));
    cluster.completed(&job);
    let told = log(&cluster, &job);
    for line in [format!("shm {} 4096", (8 << 20) / 4096).as_str(), "a b", "300", "read-only"] {
        assert!(told.lines().any(|said| said == line), "no {line} in {told}");
    }
    // Without a word of it there is as much as on Azure.
    let job = cluster.create(&in_image(&registry.shell(), look, ""));
    cluster.completed(&job);
    let told = log(&cluster, &job);
    assert!(
        told.lines().any(|said| said == format!("shm {} 4096", (2_u64 << 30) / 4096)),
        "{told}"
    );

    for argument in ["--privileged", "-v /:/host", "--pid=host", "--device=/dev/kmsg"] {
        let more = format!("resources: {{docker_args: '{argument}'}}\n");
        let yaml = in_image(&registry.shell(), "echo x", &more);
        let name = argument.split([' ', '=']).next().unwrap();
        let refused = cluster.atelier(["job", "create", "-f", "-"]).stdin(yaml).fails(1);
        refused.says(&["resources.docker_args", name, "not an option that a job may give"]);
    }
    // Harmless, but not to be had.
    let more = "resources: {docker_args: --ulimit nofile=1:999999999}\n";
    let job = cluster.create(&in_image(&registry.shell(), "echo x", more));
    let ended = cluster.ended(&job);
    assert_eq!(error(&ended).code, "EnvironmentFailed", "{ended:?}");
    assert!(error(&ended).message.contains("docker_args"), "{ended:?}");
}

/// Why it did not end well.
#[track_caller]
pub(crate) fn error(job: &Job) -> JobError {
    job.error.clone().unwrap_or_else(|| panic!("it has no error: {job:?}"))
}

#[test]
fn a_command_beside_the_job_is_in_its_container() {
    needs("containers");
    let registry = Registry::start();
    let cluster = start(&registry);
    let job = cluster.create(&in_image(&registry.shell(), "echo up; sleep 600", ""));
    cluster.atelier(["job", "stream", &job, "-q"]).spawn().prints("up\n");
    let look = "test -e /etc/of-the-image && echo $ATELIER_JOB; pwd; \
                grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'";
    let told = cluster.atelier(["job", "exec", &job, "--", "/bin/sh", "-c", look]).ok().stdout();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines[0], job, "{told}");
    assert!(lines[1].ends_with("/work"), "{told}");
    assert_eq!(&lines[2..], ["CapEff:0000000000000000", "NoNewPrivs:1", "Seccomp:2"], "{told}");
    cluster.atelier(["job", "exec", &job, "--", "/bin/sh", "-c", "exit 7"]).run().code(7);
    cluster.atelier(["job", "cancel", &job]).ok();
    assert_eq!(cluster.ended(&job).status(), JobStatus::Canceled);
}

/// A job in a container that fails and is kept; what it left is as [`debug`] finds it.
fn failed(registry: &Registry, cluster: &Cluster, command: &str) -> String {
    let more = "keep_failed: 30m\nenvironment_variables: {OWN: a word}\n";
    let job = cluster.create(&in_image(&registry.shell(), command, more));
    let ended = cluster.ended(&job);
    assert_eq!((ended.status(), ended.sandboxes.len()), (JobStatus::Failed, 1), "{ended:?}");
    job
}

fn debug(cluster: &Cluster, job: &str, command: &str) -> Outcome {
    cluster.atelier(["job", "debug", job, "--", "sh", "-c", command]).run()
}

#[test]
fn what_a_failed_container_left_is_as_the_job_saw_it() {
    needs("containers");
    let registry = Registry::start();
    let cluster = start(&registry);
    let look = "cat note /tmp/note /etc/note; pwd; echo $OWN $ATELIER_JOB $OF_THE_IMAGE $PATH; id -u; id -g; ls / /etc; \
                grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp:)' /proc/self/status";
    let command = format!(
        "echo mine > note; echo temporary > /tmp/note; echo layer > /etc/note; ({look}) > look; exit 3"
    );
    let job = failed(&registry, &cluster, &command);
    let kept = registry.containers();
    // All of it is the same there, what was written into the container too.
    let same = format!("test \"$({look})\" = \"$(cat look)\" && echo same");
    assert_eq!(debug(&cluster, &job, &same).ok().word(), "same");
    let own = "echo \"($MLFLOW_TRACKING_TOKEN)($AZUREML_RUN_TOKEN)($CUDA_VISIBLE_DEVICES)\"";
    assert_eq!(debug(&cluster, &job, own).ok().word(), "()()()");
    debug(&cluster, &job, "exit 7").code(7);
    debug(&cluster, &job, "kill -TERM $$").code(128 + 15);
    let none = cluster.atelier(["job", "debug", &job, "--", "no-such-program"]).run();
    none.code(127).says(&["no command 'no-such-program'"]);
    debug(&cluster, &job, "STAYS=in-a-container sleep 500 & echo gone").ok();
    let stays = || processes_with("STAYS=in-a-container").is_empty().then_some(());
    until("what was left is gone", stays);
    // What is changed there stays there, also for a new agent.
    debug(&cluster, &job, "echo changed > /etc/note").ok();
    let terminal = ["job", "debug", &job, "-t", "--", "sh", "-c", "test -t 0 && echo a terminal"];
    assert_eq!(cluster.atelier(terminal).ok().stdout().trim_end(), "a terminal");
    cluster.agent("local", |agent| agent.kill());
    cluster.start_agent(&registry.agent("local"));
    cluster.node_is_ready("local");
    assert_eq!(registry.containers(), kept);
    assert_eq!(debug(&cluster, &job, "cat /etc/note").ok().word(), "changed");
    // Nothing stays behind what is let go of.
    let inside = cluster.atelier(["job", "debug", &job, "--", "sh", "-c", "echo in; sleep 600"]);
    let inside = inside.spawn();
    inside.prints("in");
    cluster.atelier(["job", "debug", &job, "--release"]).ok();
    inside.wait().code(137).says(&["nothing is kept of the job any more"]);
    until("nothing is left of the container", || registry.containers().is_empty().then_some(()));
    let folder = cluster.agent_data("local").join("attempts").display().to_string();
    let layers = registry.images().join("overlay/").display().to_string();
    until("nothing of it runs or is mounted", || {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        (processes_with(&folder).is_empty() && !mounts.contains(&layers)).then_some(())
    });
    // Of a container that was killed with the agent an image was made, to start it again.
    until("no image is left but the job's", || {
        let images = registry.try_podman(&["images", "--quiet"]).ok()?;
        (images.lines().count() == 1).then_some(())
    });
}

#[test]
fn a_container_that_was_killed_is_entered_all_the_same() {
    needs("containers");
    needs("cgroup");
    let registry = Registry::start();
    let cluster = start(&registry);
    let command = "echo mine > /etc/note; awk 'BEGIN { x = \"x\"; while (1) x = x x }'; sleep 5";
    let more = "keep_failed: 30m\nresources: {memory: 64MiB}\n";
    let job = cluster.create(&in_image(&registry.shell(), command, more));
    assert_eq!(error(&cluster.ended(&job)).code, "OutOfMemory");
    assert_eq!(debug(&cluster, &job, "cat /etc/note").ok().word(), "mine");
    // It has limits there too, and is there for the next when it ran into them.
    debug(&cluster, &job, "awk 'BEGIN { x = \"x\"; while (1) x = x x }'").code(137);
    assert_eq!(debug(&cluster, &job, "cat /etc/note").ok().word(), "mine");
    // A job that did not ask for it has no container any more once it is over.
    cluster.atelier(["job", "delete", &job, "--yes"]).ok();
    until("nothing is left of the container", || registry.containers().is_empty().then_some(()));
    let yaml = in_image(&registry.shell(), "exit 3", "keep_failed: 0\n");
    assert!(cluster.ended(&cluster.create(&yaml)).sandboxes.is_empty());
    until("nothing is left of the container", || registry.containers().is_empty().then_some(()));
}

#[test]
fn of_several_containers_the_one_that_failed_is_entered() {
    needs("containers");
    let registry = Registry::start();
    let cluster = start(&registry);
    let more = "keep_failed: 30m\ndistribution: {type: pytorch, process_count_per_instance: 2}\n";
    let command = "echo $RANK > /etc/rank; test $RANK = 0 && sleep 600; exit 6";
    let job = cluster.create(&in_image(&registry.shell(), command, more));
    assert_eq!(cluster.ended(&job).status(), JobStatus::Failed);
    assert_eq!(debug(&cluster, &job, "cat /etc/rank; echo $RANK").ok().stdout(), "1\n1\n");
    cluster.atelier(["job", "debug", &job, "--release"]).ok();
    until("nothing is left of the containers", || registry.containers().is_empty().then_some(()));
}

/// In memory: what is linked there from the daemon's store is a symbolic link.
#[test]
fn inputs_on_another_file_system_are_reached_in_a_container() {
    needs("containers");
    let registry = Registry::start();
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let data = tempfile::tempdir_in("/dev/shm").unwrap();
    cluster.start_agent(&registry.agent("local").data(data.path()));
    cluster.write("given/deep/a.txt", "A\n");
    cluster.write("one.txt", "B\n");
    let cat = "cat ${{inputs.folder}}/deep/a.txt ${{inputs.file}}";
    let inputs = "inputs:\n  folder: {type: uri_folder, path: given}\n  file: {type: uri_file, path: \
                  one.txt}\n";
    cluster.write("job.yml", in_image(&registry.shell(), cat, inputs));
    let made = cluster.atelier(["job", "create", "-f", "job.yml", "--query", "name", "-o", "tsv"]);
    let job = made.ok().word();
    cluster.completed(&job);
    assert!(log(&cluster, &job).ends_with("A\nB\n"), "{}", log(&cluster, &job));
}

#[test]
fn a_start_that_waits_for_a_folder_can_be_cancelled_and_its_node_goes_on() {
    needs("containers");
    needs("fuse");
    let registry = Registry::start();
    let image = registry.shell();
    let cluster = Cluster::empty();
    cluster.start_daemon();
    let share = tempfile::tempdir().unwrap();
    let data = share.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let agent = || registry.agent("local").with(&format!("--writable={}", data.display()));
    cluster.start_agent(&agent());
    let _hang = Hang::at(share.path());
    let waiting = |cluster: &Cluster| {
        let job = cluster.create(&in_image(&image, "true", ""));
        let attempts = cluster.agent_data("local").join("attempts");
        until("its container is to be made", || {
            let mut all = std::fs::read_dir(&attempts).unwrap();
            all.any(|one| one.unwrap().path().join("container.json").exists()).then_some(())
        });
        let asked = Instant::now();
        cluster.atelier(["job", "cancel", &job]).ok();
        assert_eq!(cluster.ended(&job).status(), JobStatus::Canceled);
        // Of itself it would give up after a minute.
        assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
    };
    waiting(&cluster);
    cluster.agent("local", |agent| agent.kill());
    // The next one starts all the same.
    cluster.start_agent(&agent());
    waiting(&cluster);
}
