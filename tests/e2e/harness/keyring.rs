//! A user's session: a bus of its own, and GNOME's keyring on it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use super::cli::Cli;
use super::process::Process;
use super::wait::until;

/// Everybody on the bus may do everything; no service is started by asking for it.
const CONFIG: &str = r#"<busconfig><type>session</type><listen>unix:path=BUS</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>
"#;

/// A session. What it keeps is gone when it is dropped.
pub(crate) struct Session {
    keyring: Option<Process>,
    _bus: Process,
    folder: TempDir,
}

impl Session {
    /// One without a keyring.
    pub(crate) fn without_keyring() -> Self {
        let folder = tempfile::Builder::new().prefix("atelier-session-").tempdir().unwrap();
        let bus = folder.path().join("bus");
        let config = folder.path().join("bus.conf");
        fs::write(&config, CONFIG.replace("BUS", bus.to_str().unwrap())).unwrap();
        let mut command = Command::new("dbus-daemon");
        command.args(["--nofork", "--nopidfile", "--config-file"]).arg(config);
        let process = Process::spawn("dbus-daemon", command, &folder.path().join("bus.log"));
        until("the bus listens", || bus.exists().then_some(()));
        Self { keyring: None, _bus: process, folder }
    }

    /// One whose keyring its user has opened.
    pub(crate) fn start() -> Self {
        let mut session = Self::without_keyring();
        fs::write(session.folder.path().join("password"), "open").unwrap();
        let mut command = Command::new("sh");
        session.clean(&mut command);
        // As whoever logs in at a desktop: by the password, which it reads.
        let start =
            "exec gnome-keyring-daemon --foreground --unlock --components=secrets < password";
        command.args(["-c", start]);
        let log = session.folder.path().join("keyring.log");
        session.keyring = Some(Process::spawn("gnome-keyring-daemon", command, &log));
        until("the keyring is open", || session.keeps("ready", "x").then_some(()));
        session
    }

    fn clean(&self, command: &mut Command) {
        let folder = self.folder.path();
        command.env_clear().current_dir(folder);
        command.env("PATH", std::env::var_os("PATH").unwrap());
        command.env("HOME", folder).env("XDG_RUNTIME_DIR", folder).env("LANG", "C.UTF-8");
        command.env("DBUS_SESSION_BUS_ADDRESS", self.address());
    }

    pub(crate) fn address(&self) -> String {
        format!("unix:path={}", self.folder.path().join("bus").display())
    }

    /// A command of this session's user.
    pub(crate) fn of(&self, command: Cli) -> Cli {
        command.env("DBUS_SESSION_BUS_ADDRESS", self.address())
    }

    fn secret_tool(&self, arguments: &[&str], input: &Path) -> Output {
        let mut command = Command::new("timeout");
        self.clean(&mut command);
        let input =
            if input.exists() { fs::File::open(input).unwrap().into() } else { Stdio::null() };
        let command = command.args(["20", "secret-tool"]).args(arguments).stdin(input);
        command.output().unwrap()
    }

    fn keeps(&self, name: &str, secret: &str) -> bool {
        let input = self.folder.path().join("input");
        fs::write(&input, secret).unwrap();
        let kept = self.secret_tool(&["store", "--label=x", "name", name], &input);
        kept.status.success()
    }

    /// All that the command line has in the keyring, as another program shows it.
    #[track_caller]
    pub(crate) fn shows(&self) -> String {
        let nothing = self.folder.path().join("none");
        let found = self.secret_tool(&["search", "--all", "application", "atelier"], &nothing);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(found.stdout.is_empty() || found.status.success(), "{}", text(&found.stderr));
        text(&found.stdout)
    }

    /// Locks the keyring.
    #[track_caller]
    pub(crate) fn lock(&self) {
        // `secret-tool lock` crashes on Debian 12.
        let mut command = Command::new("timeout");
        self.clean(&mut command);
        let service = "/org/freedesktop/secrets";
        let collection = format!("array:objpath:{service}/collection/login");
        command.args(["20", "dbus-send", "--session", "--print-reply"]);
        command.args(["--dest=org.freedesktop.secrets", service]);
        command.args(["org.freedesktop.Secret.Service.Lock", &collection]);
        let locked = command.output().unwrap();
        assert!(locked.status.success(), "{}", String::from_utf8_lossy(&locked.stderr));
    }

    /// The keyring's program answers nothing any more.
    pub(crate) fn freeze(&self) {
        self.keyring.as_ref().unwrap().freeze();
    }
}
