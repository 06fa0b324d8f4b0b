//! With the real uv and packages from the real index.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use atelier_core::environment::Installed;
use serde_json::{Value, json};

use super::shared::Reporter;
use super::uv::Builder;
use super::*;

#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl Log {
    fn text(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }

    fn count(&self, word: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|line| line.contains(word)).count()
    }
}

impl BuildLog for Log {
    fn line(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

/// uv itself, installed once for all tests of this build folder.
fn real_uv() -> &'static Path {
    static UV: OnceLock<PathBuf> = OnceLock::new();
    UV.get_or_init(|| {
        let machine = Machine::from_environment();
        if let Some(uv) = machine.uv.or_else(|| find_program(&machine.path, "uv")) {
            return uv;
        }
        let exe = std::env::current_exe().unwrap();
        let target = exe.ancestors().nth(2).unwrap();
        let home = Home {
            root: target.join("environment-tests"),
            path: Machine::from_environment().path,
            uv: None,
        };
        fs::create_dir_all(&home.root).unwrap();
        let python = find_program(&home.path, "python3").expect("tests need python3");
        let python = Installed {
            path: python.to_str().unwrap().into(),
            version: "3".parse().unwrap(),
            default: true,
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let found = std::thread::scope(|scope| {
            let task = async { home.builder(&python, &Reporter::detached()).await };
            scope.spawn(move || runtime.block_on(task)).join().unwrap()
        });
        match found.unwrap() {
            Builder::Uv(uv) => uv,
            Builder::Pip => panic!("tests need uv, and it cannot be installed with pip"),
        }
    })
}

/// A machine whose uv is a script: it notes its arguments in `calls`, runs `before` in the shell,
/// and becomes the real one.
struct Bench {
    folder: tempfile::TempDir,
    machine: Machine,
}

impl Bench {
    fn new(before: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("uv");
        let text = format!(
            "#!/bin/sh\ncd {folder}\necho \"$@\" >> calls\n{before}\nexec {uv} \"$@\"\n",
            folder = folder.path().display(),
            uv = real_uv().display(),
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        // Only the default Python, so that tests mean the same on every machine.
        let machine = Machine {
            uv: Some(script),
            python_collections: Vec::new(),
            ..Machine::from_environment()
        };
        Self { folder, machine }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("environments")
    }

    fn environments(&self) -> Environments {
        Environments::new(self.root(), self.machine.clone())
    }

    fn calls(&self, word: &str) -> usize {
        let calls = fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        calls.lines().filter(|call| call.starts_with(word)).count()
    }

    /// Names in the root that are not the builder's own.
    fn built(&self) -> Vec<String> {
        names(&self.root()).into_iter().filter(|name| !name.starts_with('.')).collect()
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

fn conda(dependencies: Value) -> Wanted {
    Wanted::Inline {
        environment: InlineEnvironment {
            conda: Some(json!({ "dependencies": dependencies })),
            ..InlineEnvironment::default()
        },
        images: ImagePolicy::HostPython,
    }
}

/// Runs Python in an environment as a job would; its output.
fn python(realised: &Realised, code: &str) -> String {
    let output = Command::new(realised.path[0].join("python"))
        .args(["-c", code])
        .envs(&realised.variables)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[tokio::test]
async fn built_once_then_ready_without_building() {
    let bench = Bench::new("");
    let wanted = conda(json!(["packaging", {"pip": ["six==1.16.0"]}]));
    let environments = bench.environments();
    let log = Log::default();
    let first = environments.realise(&wanted, &log).await.unwrap();
    assert_eq!(python(&first, "import six, packaging; print(six.__version__)"), "1.16.0");
    assert_eq!(python(&first, "import site; print(site.ENABLE_USER_SITE)"), "False");
    assert!(first.description.ends_with("5 packages"), "{}", first.description);
    assert_eq!(log.count("environment built in"), 1, "{}", log.text());
    assert_eq!(bench.calls("pip install"), 1);
    assert_eq!(first.variables["VIRTUAL_ENV"], first.path[0].parent().unwrap().to_str().unwrap());
    // Scripts run from where the environment ended up.
    let pip = Command::new(first.path[0].join("pip")).arg("--version").output().unwrap();
    assert!(pip.status.success());

    let log = Log::default();
    let mut fastest = Duration::MAX;
    for _ in 0..50 {
        let started = Instant::now();
        let again = environments.realise(&wanted, &log).await.unwrap();
        fastest = fastest.min(started.elapsed());
        assert_eq!(again, first);
    }
    assert!(fastest < Duration::from_millis(5), "a warm environment took {fastest:?}");
    tracing::info!(?fastest, "warm realise");

    // A new agent on the same folder finds it too.
    let again = bench.environments().realise(&wanted, &log).await.unwrap();
    assert_eq!(again, first);
    assert_eq!(log.text(), "");
    assert_eq!(bench.calls("pip install"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_ask_at_once_share_one_build_and_its_log() {
    let bench = Bench::new("");
    let wanted = conda(json!(["six"]));
    let environments = bench.environments();
    // Another process opens the same folder by itself, as this does.
    let other_process = bench.environments();
    let logs: Vec<Log> = (0..12).map(|_| Log::default()).collect();
    let asking = logs.iter().enumerate().map(|(number, log)| {
        let asked = if number % 4 == 0 { &other_process } else { &environments };
        asked.realise(&wanted, log)
    });
    let all = futures::future::try_join_all(asking).await.unwrap();
    assert!(all.iter().all(|realised| *realised == all[0]));
    assert_eq!(bench.calls("pip install"), 1);
    assert_eq!(bench.built().len(), 1);
    let builders = logs.iter().filter(|log| log.count("environment built in") == 1).count();
    let waiters = logs.iter().filter(|log| log.count("another process") == 1).count();
    assert_eq!((builders, waiters), if logs[0].count("built in") == 1 { (3, 9) } else { (9, 3) });
}

#[tokio::test]
async fn a_package_that_does_not_exist_is_the_users_fault_and_named() {
    let bench = Bench::new("");
    let environments = bench.environments();
    for (package, word) in [
        ("atelier-no-such-package-zzqy", "atelier-no-such-package-zzqy"),
        ("six==99.5", "six==99.5"),
    ] {
        let log = Log::default();
        let error =
            environments.realise(&conda(json!([{ "pip": [package] }])), &log).await.unwrap_err();
        assert!(matches!(error, Error::Packages { .. }), "{error}");
        assert_eq!(error.fault(), Fault::User);
        assert!(error.to_string().contains(word), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    assert_eq!(bench.built(), [""; 0]);
    assert_eq!(names(&bench.root().join(".building")), [""; 0]);
}

/// Waits until `ready`, at most half a minute.
async fn wait_for(what: &str, ready: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !ready() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A uv that installs the packages, says so and then hangs, as long as the file `hang` is there.
const HANGS: &str = "if [ \"$1\" = pip ] && [ -e hang ]; then\n\
    REAL \"$@\" || exit\necho $$ > hanging.new; mv hanging.new hanging; exec sleep 600\nfi";

fn hanging_bench() -> Bench {
    let bench = Bench::new(&HANGS.replace("REAL", &real_uv().display().to_string()));
    fs::write(bench.folder.path().join("hang"), "").unwrap();
    bench
}

fn alive(pid: &str) -> bool {
    // A zombie that its new parent has not looked at yet has no command line.
    fs::read(format!("/proc/{}/cmdline", pid.trim())).is_ok_and(|line| !line.is_empty())
}

#[tokio::test]
async fn a_build_that_no_one_waits_for_is_stopped_and_leaves_nothing() {
    let bench = hanging_bench();
    let hanging = bench.folder.path().join("hanging");
    let wanted = conda(json!(["six"]));
    let environments = bench.environments();
    let log = Log::default();
    {
        let one = environments.realise(&wanted, &log);
        let other_log = Log::default();
        let mut other = Box::pin(environments.realise(&wanted, &other_log));
        tokio::select! {
            _ = one => panic!("it ended"),
            _ = &mut other => panic!("it ended"),
            () = wait_for("the build to hang", || hanging.exists()) => {}
        }
        // One has left; the build goes on for the other.
        let pid = fs::read_to_string(&hanging).unwrap();
        tokio::select! {
            _ = &mut other => panic!("it ended"),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        assert!(alive(&pid));
    }
    let pid = fs::read_to_string(&hanging).unwrap();
    wait_for("the builder to be killed", || !alive(&pid)).await;
    let building = bench.root().join(".building");
    wait_for("the half-made environment to go", || names(&building).is_empty()).await;
    assert_eq!(bench.built(), [""; 0]);
    // Asked for again, it is built.
    fs::remove_file(bench.folder.path().join("hang")).unwrap();
    let realised = environments.realise(&wanted, &log).await.unwrap();
    assert_eq!(python(&realised, "import six; print(1)"), "1");
}

const CHILD: &str = "ATELIER_TEST_BUILD_IN";

/// Not a test of its own: the process that the next test kills.
#[tokio::test]
#[ignore = "run by killing_the_process_in_mid_build_leaves_nothing_half_made"]
async fn child_that_builds() {
    let folder = PathBuf::from(std::env::var_os(CHILD).unwrap());
    let machine = Machine { uv: Some(folder.join("uv")), ..Machine::from_environment() };
    let machine = Machine { python_collections: Vec::new(), ..machine };
    let environments = Environments::new(folder.join("environments"), machine);
    let _ = environments.realise(&conda(json!(["six"])), &Log::default()).await;
}

#[tokio::test]
async fn killing_the_process_in_mid_build_leaves_nothing_half_made() {
    let bench = hanging_bench();
    let hanging = bench.folder.path().join("hanging");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "environment::tests::child_that_builds", "--ignored"])
        .env(CHILD, bench.folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the build to hang", || hanging.exists()).await;
    assert_eq!(names(&bench.root().join(".building")).len(), 1);
    // While it lives, another agent on the folder leaves its work alone.
    let environments = bench.environments();
    assert_eq!(names(&bench.root().join(".building")).len(), 1);

    child.kill().unwrap();
    child.wait().unwrap();
    let pid = fs::read_to_string(&hanging).unwrap();
    wait_for("the builder to die with its parent", || !alive(&pid)).await;
    assert_eq!(bench.built(), [""; 0], "nothing stands where an environment would");
    // The next agent removes what is left, and the next job builds.
    drop(environments);
    let environments = bench.environments();
    assert_eq!(names(&bench.root().join(".building")), [""; 0]);
    fs::remove_file(bench.folder.path().join("hang")).unwrap();
    let realised = environments.realise(&conda(json!(["six"])), &Log::default()).await.unwrap();
    assert_eq!(python(&realised, "import six; print(1)"), "1");
    assert_eq!(bench.built().len(), 1);
}

#[tokio::test]
async fn the_nearest_python_stands_in_for_one_that_cannot_be_had() {
    let bench = Bench::new("[ \"$1\" = python ] && { echo 'error: no network here'; exit 2; }");
    let environments = bench.environments();
    let log = Log::default();
    // No such Python will ever be.
    let wanted = conda(json!(["python=3.98", "six"]));
    let realised = environments.realise(&wanted, &log).await.unwrap();
    assert_eq!(log.count("fetching it"), 1, "{}", log.text());
    assert_eq!(log.count("cannot be fetched (no network here): using Python 3."), 1);
    assert_eq!(python(&realised, "import six; print(1)"), "1");
    // It is said every time, and not tried every time.
    let log = Log::default();
    environments.realise(&wanted, &log).await.unwrap();
    assert_eq!((log.count("fetching it"), log.count("the nearest on this node")), (0, 1));
    assert_eq!(bench.calls("python install"), 1);
}

#[tokio::test]
async fn images_and_build_contexts_without_a_container_runtime() {
    let mut bench = Bench::new("");
    let programs = bench.folder.path().join("programs");
    fs::create_dir(&programs).unwrap();
    let python3 = find_program(&bench.machine.path, "python3").unwrap();
    std::os::unix::fs::symlink(python3, programs.join("python3")).unwrap();
    bench.machine.path = programs.clone().into();
    let environments = bench.environments();
    let image = |images| Wanted::Inline {
        environment: InlineEnvironment {
            image: Some("registry.example.com/train:7".into()),
            ..InlineEnvironment::default()
        },
        images,
    };
    let log = Log::default();
    let error = environments.realise(&image(ImagePolicy::Refuse), &log).await.unwrap_err();
    assert_eq!(error.fault(), Fault::User);
    let text = error.to_string();
    assert!(text.contains("registry.example.com/train:7") && text.contains("no container"));

    let realised = environments.realise(&image(ImagePolicy::HostPython), &log).await.unwrap();
    assert_eq!(log.count("image 'registry.example.com/train:7' is not used"), 1);
    assert_eq!(log.count("no container runtime"), 1);
    let prefix = python(&realised, "import sys; print(sys.prefix != sys.base_prefix)");
    assert_eq!(prefix, "True");

    let build = Some(atelier_core::spec::BuildContext {
        path: atelier_core::spec::Code::Local("ctx".into()),
        dockerfile_path: "Dockerfile".into(),
    });
    let environment = InlineEnvironment { build, ..InlineEnvironment::default() };
    let wanted = Wanted::Inline { environment, images: ImagePolicy::HostPython };
    let error = environments.realise(&wanted, &log).await.unwrap_err();
    assert!(matches!(error, Error::BuildContext { .. }), "{error}");

    // Where there is one that does not work, the reason says so.
    bench.machine.no_containers = "podman: no subordinate ids".into();
    let error = bench.environments().realise(&wanted, &log).await.unwrap_err();
    assert!(error.to_string().contains("podman: no subordinate ids"), "{error}");

    // Programs are looked for on the node.
    let error = environments.realise(&conda(json!(["ffmpeg"])), &log).await.unwrap_err();
    assert!(error.to_string().contains("'ffmpeg' (ffmpeg)"), "{error}");
    assert_eq!(error.fault(), Fault::User);
}

#[tokio::test]
async fn host_python_is_found_under_the_name_that_jobs_use() {
    let mut bench = Bench::new("");
    let programs = bench.folder.path().join("programs");
    fs::create_dir(&programs).unwrap();
    bench.machine.path = programs.clone().into();
    let log = Log::default();
    let realise = async || bench.environments().realise(&Wanted::Host, &log).await.unwrap();
    assert!(realise().await.path.is_empty());

    let python3 = find_program(&Machine::from_environment().path, "python3").unwrap();
    std::os::unix::fs::symlink(python3, programs.join("python3")).unwrap();
    for _ in 0..2 {
        let realised = realise().await;
        assert_eq!(python(&realised, "print(40 + 2)"), "42");
    }
    fs::copy("/bin/true", programs.join("python")).unwrap();
    assert!(realise().await.path.is_empty());
}

#[tokio::test]
async fn a_node_without_uv_gets_it_and_one_that_cannot_uses_pip() {
    let bench = Bench::new("");
    let mut machine = bench.machine.clone();
    machine.uv = None;
    // Everything but uv.
    let keep = |folder: &PathBuf| !folder.join("uv").exists();
    machine.path = std::env::join_paths(std::env::split_paths(&machine.path).filter(keep)).unwrap();
    let environments = Environments::new(bench.root(), machine.clone());
    let log = Log::default();
    let realised = environments.realise(&conda(json!(["six"])), &log).await.unwrap();
    assert_eq!(log.count("installing uv, once for this node"), 1, "{}", log.text());
    assert_eq!(python(&realised, "import six; print(1)"), "1");
    assert_eq!(bench.calls(""), 0);

    // Python's own tools make the same, and what they make works where it is moved to.
    let home = &environments.0.home;
    let (_, python_here) = environments.installed(None, false).await.unwrap();
    let recipe = Recipe::from_conda(&json!({ "dependencies": [{ "pip": ["six==1.16.0"] }] }));
    let from = bench.folder.path().join("from");
    let reporter = Reporter::detached();
    let recipe = recipe.unwrap();
    let installation = install::Installation {
        home,
        builder: &Builder::Pip,
        python: &python_here,
        recipe: &recipe,
        into: &from,
        place: &install::Place::Free,
        reporter: &reporter,
    };
    let packages = installation.run().await.unwrap().packages;
    assert!(packages.contains(&"six==1.16.0".to_owned()), "{packages:?}");
    let to = bench.folder.path().join("to");
    build::rewrite_scripts(&from, &to).unwrap();
    fs::rename(&from, &to).unwrap();
    let pip = Command::new(to.join("bin").join("pip")).arg("--version").output().unwrap();
    let text = String::from_utf8_lossy(&pip.stdout).into_owned();
    assert!(pip.status.success() && text.contains(to.to_str().unwrap()), "{text}");

    machine.uv = Some("/no/such/uv".into());
    let environments = Environments::new(bench.folder.path().join("other"), machine);
    let error = environments.realise(&conda(json!(["six"])), &log).await.unwrap_err();
    assert!(error.to_string().contains("ATELIER_UV"), "{error}");
}

/// Runs a command as a job would, with the environment's programs first.
fn shell(realised: &Realised, command: &str) -> String {
    let mut path = realised.path.clone();
    path.extend(std::env::split_paths(&Machine::from_environment().path));
    let output = Command::new("/bin/sh")
        .args(["-c", command])
        .envs(&realised.variables)
        .env("PATH", std::env::join_paths(path).unwrap())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    assert!(output.status.success(), "{command}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[tokio::test]
async fn what_a_job_installs_is_its_own() {
    let bench = Bench::new("");
    // A package with a program, so that the program too is seen to run in the layer.
    let wanted = conda(json!([{ "pip": ["six==1.16.0", "packaging", "chardet"] }]));
    let environments = bench.environments();
    let shared = environments.realise(&wanted, &Log::default()).await.unwrap();
    let layer = bench.folder.path().join("attempt 1").join("environment");
    let started = Instant::now();
    let own = shared.clone().layered(layer.clone()).await.unwrap();
    let elapsed = started.elapsed();
    assert!(elapsed < Duration::from_millis(250), "a layer took {elapsed:?}");
    let version = "python -c 'import six; print(six.__version__)'";
    assert_eq!(shell(&own, version), "1.16.0");
    assert_eq!(shell(&own, "python -c 'import sys; print(sys.prefix)'"), layer.to_str().unwrap());
    let script = shared.path[0].join("chardetect");
    let before = fs::read(&script).unwrap();
    // pip sees what is shared, and puts what is new into the layer.
    let pip = "pip install --quiet --disable-pip-version-check";
    shell(&own, &format!("{pip} six==1.16.0 && {pip} six==1.17.0 iniconfig"));
    assert_eq!(shell(&own, version), "1.17.0");
    let probe = "python -c 'import iniconfig, packaging, chardet; print(chardet.__file__)'";
    assert!(shell(&own, probe).starts_with(bench.root().to_str().unwrap()));
    assert!(shell(&own, "chardetect --version").contains("chardet"));
    assert!(shell(&own, "command -v chardetect").starts_with(layer.to_str().unwrap()));
    shell(&own, &format!("{pip} --force-reinstall --no-deps chardet"));
    assert_eq!(fs::read(&script).unwrap(), before);

    // The next job, and the shared environment itself, see none of it.
    let again = environments.realise(&wanted, &Log::default()).await.unwrap();
    let other = bench.folder.path().join("attempt 2");
    let next = again.clone().layered(other.clone()).await.unwrap();
    for realised in [&again, &next] {
        assert_eq!(shell(realised, version), "1.16.0");
        assert_eq!(shell(realised, "python -c 'import iniconfig' 2>/dev/null || echo no"), "no");
        assert!(shell(realised, "chardetect --version").contains("chardet"));
    }
    // Made anew over what an earlier try left; the node's own programs need none.
    next.layered(other).await.unwrap();
    let host = environments.realise(&Wanted::Host, &Log::default()).await.unwrap();
    assert_eq!(host.clone().layered("/no/such/folder".into()).await.unwrap(), host);
}
