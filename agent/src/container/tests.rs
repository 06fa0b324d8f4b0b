//! Command lines, names and scripts, without a runtime.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::command::{self, Bind, Limits, Plan};
use super::*;
use crate::data::Fault;
use crate::environment::Installer;

fn runtime(kind: Kind, rootless: bool) -> Runtime {
    let program = PathBuf::from(format!("/usr/bin/{}", kind.program()));
    Runtime { kind, program, version: "1.2".to_owned(), rootless, folders: Vec::new() }
}

fn plan<'a>(gpus: &[&str], arguments: &'a [String]) -> Plan<'a> {
    Plan {
        name: "atelier-1-2",
        owner: Path::new("/data"),
        image: "sha256:1",
        script: Path::new("/a/container/start-0.sh"),
        directory: Path::new("/a/work"),
        binds: vec![
            Bind { path: "/a/in,puts".into(), from: None, writable: false },
            Bind { path: "/a/work".into(), from: None, writable: true },
        ],
        temporary: Path::new("/a/tmp"),
        mark: ("MARK", Path::new("/a")),
        shm_bytes: 1024,
        user: (1000, 100),
        root: None,
        limits: Limits { cpu_milli: 1500, memory_mib: 64, processes: 99 },
        gpus: gpus.iter().map(|&gpu| gpu.to_owned()).collect(),
        ulimits: vec![("nofile", 1024)],
        arguments,
    }
}

fn line(words: &[String]) -> String {
    words.join(" ")
}

#[test]
fn podmans_container_stays_with_its_supervisor_and_has_nothing_to_spare() {
    let arguments = ["--read-only".to_owned()];
    let plan = plan(&["nvidia.com/gpu=1"], &arguments);
    let made = command::create(&runtime(Kind::Podman, false), &plan).unwrap();
    assert_eq!(
        line(&made),
        "create --pull=never --replace --log-driver=passthrough --image-volume=ignore --name=atelier-1-2 \
         --label=atelier.agent=/data --network=host --ipc=private --cap-drop=all \
         --security-opt=no-new-privileges --pid=private --cgroups=disabled --systemd=false --user=1000:100 \
         --shm-size=1024b --workdir=/a/work --env=MARK=/a \
         --mount=type=bind,\"source=/a/in,puts\",\"target=/a/in,puts\",readonly \
         --mount=type=bind,source=/a/work,target=/a/work --mount=type=bind,source=/a/tmp,target=/tmp \
         --mount=type=bind,source=/a/tmp,target=/var/tmp --device=nvidia.com/gpu=1 --ulimit=nofile=1024:1024 \
         --read-only --entrypoint=/bin/sh sha256:1 /a/container/start-0.sh"
    );
    assert_eq!(line(&command::start(Kind::Podman, &plan)), "start --attach atelier-1-2");
    let again = command::create_of(&made, "kept");
    assert_eq!(line(&again), line(&made).replace(" sha256:1 ", " kept "));
    assert_eq!(command::end(Kind::Podman, Path::new("podman"), std::iter::empty()), None);
    let rootless = command::create(&runtime(Kind::Podman, true), &plan).unwrap();
    assert!(rootless.contains(&"--userns=keep-id".to_owned()), "{rootless:?}");
    assert!(!line(&made).contains("map="), "{made:?}");
}

#[test]
fn a_containers_root_may_be_a_user_of_the_node() {
    let plan = Plan { user: (0, 0), root: Some(4_294_900_000), ..plan(&[], &[]) };
    let made = line(&command::create(&runtime(Kind::Podman, false), &plan).unwrap());
    // The largest number means none.
    let map = "--user=0:0 --uidmap=0:4294900000:67295 --gidmap=0:4294900000:67295 ";
    assert!(made.contains(map), "{made}");
}

#[test]
fn dockers_engine_is_told_the_limits() {
    let plan = plan(&["0", "2"], &[]);
    let made = line(&command::create(&runtime(Kind::Docker, false), &plan).unwrap());
    for option in [
        "--cpus=1.500",
        "--memory=64m",
        "--memory-swap=64m",
        "--pids-limit=99",
        "--gpus=\"device=0,2\"",
        "--log-driver=none",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        "--user=1000:100",
    ] {
        assert!(made.split(' ').any(|word| word == option), "no {option} in {made}");
    }
    for unknown in ["--cgroups", "--systemd", "--userns", "--image-volume", "--replace"] {
        assert!(!made.contains(unknown), "{made}");
    }
    assert_eq!(line(&command::start(Kind::Docker, &plan)), "start --attach atelier-1-2");
    let remove = command::remove(Kind::Docker, "atelier-1-2").unwrap();
    assert_eq!(line(&remove), "rm --force --volumes atelier-1-2");
    let look = ["ls", "-l"].map(str::to_owned);
    let script = Path::new("/a/container/start-0.sh");
    let exec = |terminal| line(&command::exec("atelier-1-2", terminal, script, &look));
    let rest = "atelier-1-2 /bin/sh /a/container/start-0.sh ls -l";
    assert_eq!(exec(None), format!("exec --interactive {rest}"));
    assert_eq!(exec(Some("")), format!("exec --interactive --tty {rest}"));
    assert_eq!(exec(Some("vt100")), format!("exec --interactive --tty --env=TERM=vt100 {rest}"));
}

#[test]
fn the_end_of_an_engines_containers_is_asked_for_and_looked_at() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("docker");
    let end = |ps: &str| {
        let text = format!("#!/bin/sh\necho \"$@\" >> $0.asked\ncase $1 in ps) {ps} ;; esac\n");
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let names = ["a", "b"].map(str::to_owned).into_iter();
        let words = command::end(Kind::Docker, &program, names).unwrap();
        Command::new(&words[0]).args(&words[1..]).status().unwrap().success()
    };
    assert!(end("true"));
    let asked = fs::read_to_string(folder.path().join("docker.asked")).unwrap();
    assert_eq!(
        asked,
        "stop -t 0 a\nps --quiet --filter name=^/?a$\nstop -t 0 b\nps --quiet --filter name=^/?b$\n"
    );
    assert!(!end("echo 4711"), "it runs yet");
    assert!(!end("exit 1"), "its engine does not answer");
}

#[test]
fn an_images_digest_is_what_its_runtime_says() {
    for (said, expected) in [
        ("sha256:1", "sha256:1"),
        ("[\"a/b@sha256:1\",\"c@sha256:2\"]", "sha256:1"),
        ("[]", ""),
        ("null", ""),
        ("", ""),
    ] {
        assert_eq!(image::digest_of(said), expected, "{said}");
    }
}

#[test]
fn apptainer_makes_and_runs_in_one() {
    let plan = plan(&["0"], &[]);
    assert_eq!(command::create(&runtime(Kind::Apptainer, true), &plan), None);
    assert_eq!(
        line(&command::start(Kind::Apptainer, &plan)),
        "--quiet exec --containall --no-privs --no-eval --bind=/a/in,puts:/a/in,puts:ro \
         --bind=/a/work:/a/work:rw --bind=/a/tmp:/tmp:rw --bind=/a/tmp:/var/tmp:rw --pwd=/a/work --env=MARK=/a \
         --nv sha256:1 /bin/sh /a/container/start-0.sh"
    );
    assert_eq!(command::list(Kind::Apptainer, Path::new("/data")), None);
}

#[test]
fn names_are_read_as_docker_reads_them() {
    for (name, expected) in [
        ("python", "docker.io/library/python"),
        ("python:3.12", "docker.io/library/python:3.12"),
        ("team/tool", "docker.io/team/tool"),
        ("docker://team/tool", "docker.io/team/tool"),
        ("ghcr.io/team/tool@sha256:1", "ghcr.io/team/tool@sha256:1"),
        ("localhost/tool", "localhost/tool"),
        ("registry:5000/tool", "registry:5000/tool"),
    ] {
        assert!(image::is_name(name), "{name}");
        assert_eq!(image::qualified(name), expected);
    }
    for name in ["ghcr.io/Team/tool", "Tool", "a b", "reg:5000/", "team/tööl:1"] {
        assert!(!image::is_name(name), "{name}");
    }
    assert!(image::is_name("Registry.Corp/team/tool:Tag-1") && image::is_name("tool:3@sha256:1"));
    for no_name in
        ["--creds=a:b/x", "docker://--creds=a:b/x", "oci:/path", "docker-archive:/a.tar", ""]
    {
        assert!(!image::is_name(no_name), "{no_name}");
    }
    for here in ["127.0.0.1:5000/a", "localhost:5000/a", "localhost/a", "[::1]:5000/a"] {
        assert!(image::is_on_this_machine(here), "{here}");
    }
    for away in
        ["docker.io/a", "10.0.0.7:5000/a", "localhost.example.com/a", "127.0.0.1.example.com/a"]
    {
        assert!(!image::is_on_this_machine(away), "{away}");
    }
}

#[test]
fn a_build_goes_without_certificates_only_where_all_it_starts_from_is_here() {
    let here = |text: &str| build::starts_on_this_machine(text);
    assert!(here(
        "FROM 127.0.0.1:5000/a AS b\nRUN x\nfrom --platform=linux/amd64 localhost:1/c\nFROM b\n"
    ));
    assert!(!here("FROM 127.0.0.1:5000/a\nFROM ghcr.io/team/b\n"));
    assert!(!here("FROM python:3.12\n"));
    assert!(!here("FROM python:3.12 AS a\nFROM localhost:5000/b\n"));
    assert!(!here("FROM localhost:5000/b\nCOPY --from=registry.corp/x /a /a\n"));
    assert!(!here("ARG B=registry.corp/x\nFROM localhost:5000/b\nFROM ${B}\n"));
    assert!(here(
        "FROM localhost:5000/b AS one\nFROM scratch\nCOPY --from=one /a /a\nCOPY --from=0 /b /b\n"
    ));
    assert!(!here("FROM scratch\n"));
}

#[test]
fn a_dockerfile_lies_in_its_context() {
    let folder = tempfile::tempdir().unwrap();
    let context = folder.path().join("context");
    fs::create_dir_all(context.join("sub")).unwrap();
    fs::write(context.join("sub/Dockerfile"), "").unwrap();
    fs::write(folder.path().join("other"), "").unwrap();
    std::os::unix::fs::symlink("../other", context.join("link")).unwrap();
    std::os::unix::fs::symlink("sub/Dockerfile", context.join("inner")).unwrap();
    for (path, expected) in [
        ("sub/Dockerfile", true),
        ("inner", true),
        ("link", false),
        ("../other", false),
        ("sub", false),
        ("missing", false),
    ] {
        assert_eq!(build::is_within(&context, &context.join(path)), expected, "{path}");
    }
}

#[test]
fn podman_gives_gpus_that_a_cdi_specification_describes() {
    let folder = tempfile::tempdir().unwrap();
    let places = [folder.path().to_owned()];
    let error = gpu::devices(Kind::Podman, &[1], &places).unwrap_err();
    assert_eq!(error.fault(), Fault::Platform);
    assert!(error.to_string().contains("nvidia-ctk cdi generate"), "{error}");
    assert!(gpu::devices(Kind::Podman, &[], &places).unwrap().is_empty());
    fs::write(folder.path().join("nvidia.yaml"), "kind: nvidia.com/gpu\n").unwrap();
    let devices = gpu::devices(Kind::Podman, &[1, 3], &places).unwrap();
    assert_eq!(devices, ["nvidia.com/gpu=1", "nvidia.com/gpu=3"]);
    assert_eq!(gpu::devices(Kind::Docker, &[1, 3], &[]).unwrap(), ["1", "3"]);
}

#[test]
fn a_script_sets_what_a_shell_can_set_and_ends_as_its_command() {
    let folder = tempfile::tempdir().unwrap();
    let variables = [("TOLD", "it's \"here\" $HOME\n`x`"), ("a.b", "dropped")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let secrets = folder.path().join("its secrets");
    let secret = [("SECRET".to_owned(), "'$1'".to_owned())];
    std::fs::write(&secrets, script::exports(&secret.into())).unwrap();
    for kind in [Kind::Podman, Kind::Docker, Kind::Apptainer] {
        let text = script::text(
            kind,
            &BTreeMap::from(variables.clone()),
            Some(&secrets),
            folder.path(),
            "pwd; printf '%s|' \"$TOLD\" \"$SECRET\"; echo err >&2; exit 9",
        );
        let output = Command::new("/bin/sh").args(["-c", &text]).output().unwrap();
        assert_eq!(output.status.code(), Some(9), "{output:?}");
        let expected = format!("{}\nit's \"here\" $HOME\n`x`|'$1'|", folder.path().display());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "err\n");
    }
}

#[test]
fn of_the_agents_variables_a_runtime_gets_what_it_needs() {
    let all = ["PATH", "HOME", "CONTAINERS_STORAGE_CONF", "DOCKER_HOST", "ATELIER_TOKEN", "SECRET"];
    let all = all.map(|name| (OsString::from(name), OsString::from("x")));
    let kept: Vec<String> = own_variables(all.into_iter()).into_keys().collect();
    assert_eq!(kept, ["CONTAINERS_STORAGE_CONF", "DOCKER_HOST", "HOME", "PATH"]);
}

#[test]
fn failures_are_told_apart_by_what_the_runtime_says() {
    let said =
        |lines: &[&str]| reason(&lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>());
    let words = said(&[
        "Trying to pull a...",
        "Error: initializing source docker://a: reading manifest: manifest unknown",
    ]);
    assert_eq!(words, "initializing source docker://a: reading manifest: manifest unknown");
    assert!(matches!(Error::of_pull("a", words), Error::Image { .. }));
    let refused = "pinging container registry a: dial tcp 127.0.0.1:1: connect: connection refused";
    assert!(matches!(Error::of_pull("a", refused.to_owned()), Error::Registry { .. }));
    let full = "writing blob: write /x: no space left on device";
    assert!(matches!(Error::of_pull("a", full.to_owned()), Error::DiskFull { .. }));
    assert!(matches!(Error::of_build("d", "exit status 1".to_owned()), Error::Dockerfile { .. }));
    // A step that the network fails is the Dockerfile's, an image that it starts from is not.
    assert!(matches!(
        Error::of_build("d", "curl: Connection refused".to_owned()),
        Error::Dockerfile { .. }
    ));
    assert!(matches!(
        Error::of_build("d", format!("creating build container: {refused}")),
        Error::Registry { .. }
    ));
}

#[test]
fn an_images_own_conda_makes_the_environment_of_a_conda_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("bin")).unwrap();
    // It tells what it is asked for, and refuses it if it is to.
    let conda = "#!/bin/sh\nset -e\nfor last; do :; done\ngrep -q nothing \"$last\" && { echo no such thing; exit 1; }\n\
                 echo \"asked for $@ in $CONDA_CHANNELS\" | sed \"s:$WORK::g\"\nmkdir -p \"$WORK/into\"\n";
    let run = |program: &str, dependency: &str| {
        let program = at("bin").join(program);
        fs::write(&program, conda).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let (context, installer) = (
            at("context"),
            Installer {
                variables: BTreeMap::from([("CONDA_CHANNELS".to_owned(), "it's".to_owned())]),
                ..Installer::default()
            },
        );
        let document = serde_json::json!({"dependencies": [dependency]});
        let why = Err("it is not to be had from PyPI".to_owned());
        layer::write(&context, &installer, &document, why).unwrap();
        let output = Command::new("/bin/sh")
            .arg(context.join("layer.sh"))
            .arg(&context)
            .args([at("into").as_os_str(), "key".as_ref()])
            .env("PATH", format!("{}:/usr/bin:/bin", at("bin").display()))
            .env("WORK", folder.path())
            .output()
            .unwrap();
        fs::remove_dir_all(context).unwrap();
        fs::remove_file(program).unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    for (program, verb) in
        [("conda", "env create"), ("mamba", "env create"), ("micromamba", "create")]
    {
        let (made, said) = run(program, "cudatoolkit=11");
        assert!(made, "{said}");
        let expected = format!(
            "the image's {program} installs the packages\nasked for {verb} --prefix /into --file \
             PLACE/conda.yml in it's\n"
        );
        // A folder of its own, which is gone.
        let place = said.split(" --file ").nth(1).and_then(|rest| rest.split_once("/conda.yml"));
        let (place, _) = place.unwrap();
        assert_eq!(said, expected.replace("PLACE", place));
        assert!(!fs::exists(place).unwrap());
    }
    let (made, said) = run("conda", "nothing");
    assert!(!made);
    assert!(said.ends_with("error: conda cannot make the environment:\nno such thing\n"), "{said}");
}

#[test]
fn of_a_failed_layer_the_installers_words_are_told() {
    let said = |lines: &[&str]| {
        layer::said(&lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>())
    };
    let words = ["  × No solution found:", "  ╰─▶ there is no six==99"];
    let podman = [words[0], words[1], "Error: building at STEP \"RUN x\": exit status 1"];
    assert_eq!(said(&podman), words);
    let docker = [
        "#7 0.345   × No solution found:",
        "#7 0.345   ╰─▶ there is no six==99",
        "------",
        " > [2/2] RUN x:",
    ];
    assert_eq!(said(&docker), words);
    assert_eq!(said(&["#7 DONE 0.1s", "# a b"]), ["#7 DONE 0.1s", "# a b"]);
    let unsolved = "no solution: Because there is no six==99".to_owned();
    assert_eq!(Error::of_layer("i", unsolved).fault(), Fault::User);
    assert!(matches!(Error::of_layer("i", "dns error".to_owned()), Error::Index { .. }));
}

/// A runtime that says `removing` when it is asked to remove an image, and then never ends.
fn hanging(folder: &Path) -> Runtime {
    use std::os::unix::fs::PermissionsExt as _;
    let program = folder.join("podman");
    let text = format!(
        "#!/bin/sh\ncase $1 in rmi) touch {}; exec sleep 1000 ;; esac\n",
        folder.join("removing").display()
    );
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Runtime { program, ..runtime(Kind::Podman, false) }
}

#[tokio::test]
async fn who_wants_an_image_waits_for_no_other_that_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let all = Containers::new(hanging(folder.path()), folder.path(), None, None, None);
    let removal = all.remove_image_of("going");
    let wanted = async {
        while !folder.path().join("removing").exists() {
            tokio::task::yield_now().await;
        }
        drop(all.pin("other").await);
        let soon = tokio::time::timeout(Duration::from_millis(50), all.pin("going"));
        assert!(soon.await.is_err(), "it was held while it went");
    };
    tokio::select! {
        () = removal => panic!("it hangs"),
        () = wanted => {}
    }
    // Whoever gave up removing it holds nobody up.
    drop(all.pin("going").await);
}

#[tokio::test]
async fn an_image_that_does_not_go_in_time_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let all = Containers::new(hanging(folder.path()), folder.path(), None, None, None);
    let why = all.remove_image("going", Duration::from_millis(100)).await.unwrap_err();
    assert!(why.contains("longer than"), "{why}");
}
