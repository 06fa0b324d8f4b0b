//! What starts the command in each member.

use std::path::Path;
use std::process::{Command, Stdio};

use atelier_core::spec::{Ray, quote};

use super::ray::Share;
use super::*;

fn addresses(all: &[&str]) -> Vec<String> {
    all.iter().map(|&address| address.to_owned()).collect()
}

#[test]
fn mpirun_runs_in_the_first_member_and_reaches_the_others_by_this_program() {
    let program = Path::new("/opt/at elier");
    let one = addresses(&["10.0.0.1"]);
    let alone = mpi::start(&Members::new(&one, 0, "w", 7), 1, "\"$1\"", program);
    assert_eq!(alone, r#"exec mpirun -n 1 "$0" -c "$1""#);
    let several = mpi::start(&Members::new(&one, 0, "w", 7), 4, "\"$1\"", program);
    let inside = format!("\"$0\" -c {} \"$0\" \"$1\"", quote(&mpi::inside(4)));
    assert_eq!(several, format!("exec mpirun -n 4 {inside}"));
    let all = addresses(&["10.0.0.1", "10.0.0.2"]);
    let head = mpi::start(&Members::new(&all, 0, "w", 7), 4, "\"$1\"", program);
    assert_eq!(
        head,
        format!(
            "export OMPI_MCA_plm_rsh_agent='/opt/at elier supervise --mpi-shell' \
             PRTE_MCA_plm_ssh_agent='/opt/at elier supervise --mpi-shell' \
             HYDRA_LAUNCHER_EXEC=\"$ATELIER_ATTEMPT_FOLDER/launcher/shell\" \
             I_MPI_HYDRA_BOOTSTRAP_EXEC=\"$ATELIER_ATTEMPT_FOLDER/launcher/shell\" \
             HYDRA_LAUNCHER=ssh I_MPI_HYDRA_BOOTSTRAP=ssh\n\
             case $(mpirun --version 2>&1) in\n\
             *HYDRA* | *'Intel(R) MPI'*) exec mpirun -genvnone -wdir / -localhost 10.0.0.1 \
             -hosts localhost,member-1 -ppn 4 -n 8 {inside} ;;\n\
             *) exec mpirun --leave-session-attached --map-by ppr:4:node:oversubscribe \
             --wdir / --host localhost:4,member-1:4 -n 8 {inside} ;;\n\
             esac"
        )
    );
    let other = mpi::start(&Members::new(&all, 1, "w", 7), 4, "\"$1\"", program);
    assert_eq!(other, "exec '/opt/at elier' supervise --mpi-member 1");
}

/// What a process prints is found in the log of its own.
#[test]
fn each_process_of_mpi_begins_in_its_members_folder_with_its_own_output() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["launcher", "work"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    let cat = |process: u32| {
        let pipe = at("launcher").join(process.to_string());
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        Command::new("cat").arg(pipe).stdout(Stdio::piped()).spawn().unwrap()
    };
    let said = |rank: Option<(&str, &str)>| {
        let run = Command::new("sh")
            .args(["-c", &mpi::inside(2), "sh", "pwd; echo err >&2"])
            .env("ATELIER_ATTEMPT_FOLDER", folder.path())
            .env("AZUREML_CR_EXECUTION_WORKING_DIR_PATH", at("work"))
            .env_remove("PMI_RANK")
            .envs(rank)
            .output()
            .unwrap();
        assert!(run.status.success(), "{run:?}");
        String::from_utf8(run.stdout).unwrap()
    };
    let work = format!("{}\n", at("work").display());
    // Without pipes it is the launcher's.
    assert_eq!(said(Some(("PMI_RANK", "5"))), work);
    for (process, rank) in [
        (1, Some(("OMPI_COMM_WORLD_RANK", "5"))),
        (0, Some(("PMI_RANK", "2"))),
        // Of a launcher that is not known.
        (0, None),
    ] {
        let reader = cat(process);
        assert_eq!(said(rank), "");
        let read = String::from_utf8(reader.wait_with_output().unwrap().stdout).unwrap();
        assert_eq!(read, format!("{work}err\n"));
        std::fs::remove_file(at("launcher").join(process.to_string())).unwrap();
    }
}

/// What Hydra's proxy is to the process.
#[test]
fn a_process_of_hydra_that_fails_takes_its_launcher_along_and_says_so() {
    use std::os::unix::process::ExitStatusExt as _;
    let run = |code: u32| {
        // Another command follows, so that this shell waits for the process.
        Command::new("sh")
            .args(["-c", "sh -c \"$1\" sh \"$2\"; echo $? >&2; exit 0", "proxy", &mpi::inside(1)])
            .arg(format!("exit {code}"))
            .env("AZUREML_CR_EXECUTION_WORKING_DIR_PATH", "/")
            .env("PMI_RANK", "3")
            .output()
            .unwrap()
    };
    let ended = run(7);
    assert_eq!(ended.status.signal(), Some(libc::SIGTERM), "{ended:?}");
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(said, "atelier: the process of rank 3 ended with exit code 7\n");
    let ended = run(0);
    assert!(ended.status.success() && ended.stderr == b"0\n", "{ended:?}");
}

#[test]
fn what_cannot_be_run_in_a_member_ends_the_mpirun_that_waits_for_it() {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::ExitStatusExt as _;
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("at elier");
    let told = "#!/bin/sh\n[ \"$1 $2 $3\" = 'supervise --mpi-shell member-1' ] && exit $4\n";
    std::fs::write(&program, told).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    mpi::write_script(folder.path(), &program).unwrap();
    let ended = |code: &str| {
        let mut mpirun = Command::new("sh");
        mpirun.args(["-c", "\"$@\"; exit $?", "mpirun"]).arg(folder.path().join("shell"));
        mpirun.args(["member-1", code]).status().unwrap()
    };
    assert_eq!(ended("5").code(), Some(5));
    assert_eq!(ended("127").signal(), Some(libc::SIGTERM));
}

#[test]
fn ray_is_started_with_what_the_job_has_and_says() {
    let share = Share { cpu_milli: 1_500, memory_mib: 1_000, gpus: 2 };
    let given = Ray {
        include_dashboard: Some(false),
        dashboard_port: Some(8_888),
        head_node_additional_args: Some("--labels 'a b'".to_owned()),
        worker_node_additional_args: Some("--num-cpus 7".to_owned()),
        ..Ray::default()
    };
    let all = addresses(&["10.0.0.1", "node-b"]);
    let port = Members::new(&all, 0, "w", 7).port(0);
    let head = ray::start(&Members::new(&all, 0, "w", 7), &given, &share, "\"$1\"");
    assert_eq!(
        head,
        format!(
            "ray start --head --port={port} --node-ip-address=10.0.0.1 --num-cpus=2 --num-gpus=2 \
             --min-worker-port=0 --max-worker-port=0 --object-store-memory=314572800 \
             --include-dashboard=false --dashboard-port=8888 --labels 'a b' || exit; exec \"$0\" -c \"$1\""
        )
    );
    let other = ray::start(&Members::new(&all, 1, "w", 7), &given, &share, "\"$1\"");
    // It has a name, of which Ray finds the address.
    let start = format!(
        "ray start --address=10.0.0.1:{port} --block --num-cpus=2 --num-gpus=2 \
         --min-worker-port=0 --max-worker-port=0 --object-store-memory=314572800 --num-cpus 7\n"
    );
    assert!(other.contains(&start), "{other}");
    assert!(!other.contains("$1\n") && other.ends_with("exit \"$code\""), "{other}");
}

#[test]
fn the_head_of_a_ray_cluster_is_where_its_job_says() {
    let of = |address: Option<&str>, port: Option<u16>, members: &[&str]| {
        let given = Ray { address: address.map(str::to_owned), port, ..Ray::default() };
        let all = addresses(members);
        let mut found = std::collections::BTreeMap::new();
        ray::variables(
            &Members::new(&all, 1, "w", 7),
            &given,
            "attempt-token",
            &mut |name, value| {
                found.insert(name.to_owned(), value.to_owned());
            },
        );
        assert!(
            !found.values().any(|value| value.contains("attempt-token")),
            "the attempt's own token"
        );
        assert_eq!(found["RAY_AUTH_TOKEN"].len(), 64);
        found["RAY_ADDRESS"].clone()
    };
    let own = Members::new(&[], 0, "w", 7).port(0);
    assert_eq!(of(None, None, &["a", "b"]), format!("a:{own}"));
    assert_eq!(of(None, None, &["a"]), format!("127.0.0.1:{own}"));
    assert_eq!(of(None, Some(6379), &["fd00::1", "b"]), "[fd00::1]:6379");
    assert_eq!(of(Some("head.lan"), None, &["a", "b"]), format!("head.lan:{own}"));
    assert_eq!(of(Some("head.lan:1"), Some(2), &["a", "b"]), "head.lan:1");
    assert_eq!(of(Some("fd00::9"), Some(2), &["a", "b"]), "[fd00::9]:2");
    assert_eq!(of(Some("[fd00::9]:1"), None, &["a", "b"]), "[fd00::9]:1");
}
