//! Storage that fails on purpose, by `tests/scripts/faults`.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

fn faults(arguments: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/faults");
    let mut command = Command::new(script);
    command.args(arguments);
    command
}

fn script(arguments: &[&str]) -> Result<String, String> {
    let done = faults(arguments).output().map_err(|e| e.to_string())?;
    if done.status.success() {
        Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&done.stderr).into_owned())
    }
}

/// Fails where a machine does not allow a kind of fault: `tests/run` leaves the tests that need it
/// out, and says so.
#[track_caller]
pub(crate) fn needs(fault: &str) {
    assert!(
        can(fault),
        "this machine does not allow the fault '{fault}' (tests/scripts/faults check); leave this \
         test out with --skip"
    );
}

/// Whether this machine allows it.
pub(crate) fn can(fault: &str) -> bool {
    static KINDS: OnceLock<String> = OnceLock::new();
    let kinds = KINDS.get_or_init(|| match std::env::var("ATELIER_FAULTS") {
        Ok(kinds) => kinds,
        Err(_) => script(&["check"]).unwrap_or_default(),
    });
    kinds.split_whitespace().any(|kind| kind == fault)
}

/// A small file system of its own. Dropping it unmounts it.
pub(crate) struct Disk {
    _parent: TempDir,
    folder: PathBuf,
}

impl Disk {
    pub(crate) fn create(size: &str) -> Self {
        let parent = tempfile::Builder::new().prefix("atelier-disk-").tempdir().unwrap();
        let folder = parent.path().join("disk");
        let disk = Self { _parent: parent, folder };
        disk.act("create", &["--size", size]);
        disk
    }

    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    #[track_caller]
    fn act(&self, verb: &str, more: &[&str]) {
        let folder = self.folder.display().to_string();
        let mut arguments = vec!["disk", verb, &folder];
        arguments.extend(more);
        script(&arguments).unwrap_or_else(|error| panic!("{verb}: {error}"));
    }

    /// Nothing more fits.
    #[track_caller]
    pub(crate) fn fill(&self) {
        self.act("fill", &[]);
    }

    /// All that `fill` wrote is gone.
    #[track_caller]
    pub(crate) fn drain(&self) {
        self.act("drain", &[]);
    }

    /// What was not synced is lost, and every call fails from now on.
    #[track_caller]
    pub(crate) fn power_loss(&self) {
        self.act("power-loss", &[]);
    }

    /// The power is back.
    #[track_caller]
    pub(crate) fn remount(&self) {
        self.act("remount", &[]);
    }

    /// At most so many writes a second reach it.
    #[track_caller]
    pub(crate) fn slow(&self, writes: u32) {
        self.act("slow", &["--writes", &writes.to_string()]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let folder = self.folder.display().to_string();
        if let Err(error) = script(&["disk", "destroy", &folder]) {
            eprintln!("the disk {folder} stays mounted: {error}");
        }
    }
}

/// What is in a folder never answers, until this is dropped.
pub(crate) struct Hang(Child);

impl Hang {
    pub(crate) fn at(folder: &Path) -> Self {
        let mut command = faults(&["hang", folder.to_str().unwrap()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "hangs\n");
        Self(child)
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// The wall clock of those processes that have its variables.
pub(crate) struct FaultyClock {
    control: PathBuf,
    /// For the processes' environment.
    pub(crate) variables: Vec<(String, String)>,
}

impl FaultyClock {
    /// One that is right; how it is off is kept in the file `control`.
    pub(crate) fn new(control: &Path) -> Self {
        let library = script(&["preload", "clock"]).unwrap();
        let variables = [
            ("LD_PRELOAD", library),
            ("ATELIER_FAULTCLOCK_CONTROL", control.display().to_string()),
        ];
        let clock = Self {
            control: control.to_owned(),
            variables: variables.map(|(key, value)| (key.to_owned(), value)).into(),
        };
        clock.jump(0);
        clock
    }

    /// It is off by so many seconds from now on.
    pub(crate) fn jump(&self, seconds: i64) {
        let fresh = self.control.with_extension("new");
        std::fs::write(&fresh, seconds.to_string()).unwrap();
        std::fs::rename(fresh, &self.control).unwrap();
    }
}

/// Rules for one process's syncs and writes below a folder, changed while it runs.
pub(crate) struct FaultyIo {
    control: PathBuf,
    /// For the process's environment.
    pub(crate) variables: Vec<(String, String)>,
}

impl FaultyIo {
    /// Rules for what lies below `folder`; kept in the file `control`.
    pub(crate) fn below(folder: &Path, control: &Path) -> Self {
        let library = script(&["preload"]).unwrap();
        let folder = folder.canonicalize().unwrap();
        let variables = [
            ("LD_PRELOAD", library),
            ("ATELIER_FAULTIO_PATH", folder.display().to_string()),
            ("ATELIER_FAULTIO_CONTROL", control.display().to_string()),
        ];
        let faulty = Self {
            control: control.to_owned(),
            variables: variables.map(|(key, value)| (key.to_owned(), value)).into(),
        };
        faulty.set("");
        faulty
    }

    /// What happens from now on, for example `sync EIO`; empty: nothing.
    pub(crate) fn set(&self, rules: &str) {
        let fresh = self.control.with_extension("new");
        std::fs::write(&fresh, rules).unwrap();
        std::fs::rename(fresh, &self.control).unwrap();
    }
}
