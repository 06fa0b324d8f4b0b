//! Jobs in containers, with images from a registry of this machine.

use atelier_proto::job::v1::{Job, JobStatus};

use crate::harness::{Cluster, Registry, Settings, needs, until};

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

fn in_image(image: &str, command: &str, more: &str) -> String {
    let block: String = command.lines().map(|line| format!("  {line}\n")).collect();
    format!("command: |\n{block}environment: {{image: {image}}}\n{more}")
}

/// A daemon and a node that runs images.
fn start(registry: &Registry) -> Cluster {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&registry.agent("local"));
    cluster
}

fn log(cluster: &Cluster, job: &str) -> String {
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
    assert_eq!(code(&ended), Some(7), "{ended:?}");
    let log = cluster.log(&job);
    assert!(log.ends_with(b"a\0b\n\xff no end to stderr"), "{}", String::from_utf8_lossy(&log));
    // The shell's own code, also where the runtime uses the same.
    for (command, expected) in
        [("exit 125", 125), ("exit 126", 126), ("there-is-no-such-program", 127)]
    {
        let job = cluster.create(&in_image(&registry.shell(), command, ""));
        let ended = cluster.ended(&job);
        assert_eq!(code(&ended), Some(expected), "{ended:?}");
        if expected == 127 {
            assert!(
                reason(&ended).contains("'there-is-no-such-program' was not found"),
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

/// The command's exit code.
fn code(job: &Job) -> Option<i32> {
    job.exit_code
}

/// Why it did not end well.
fn reason(job: &Job) -> String {
    job.error
        .as_ref()
        .map_or_else(String::new, |error| format!("{}: {}", error.code, error.message))
}
