//! What went wrong, what to do next, and the exit code.

use std::process::ExitCode;

use tonic::{Code, Status};

use crate::client;
use crate::client::keyring::Unusable;

/// The class of an error; decides the exit code. Documented in `docs/cli.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What was asked for cannot be done: a faulty job file, a taken name, a refused request.
    Refused,
    /// The command line itself is wrong.
    Usage,
    /// What was named does not exist.
    NotFound,
    /// No daemon, or no answer from it.
    Unreachable,
    /// Wrong token, or the role does not allow it.
    NotAllowed,
    /// The daemon or this program failed.
    Failed,
    /// Ctrl-C.
    Interrupted,
    /// Whoever read the output went away; nothing to tell.
    Quiet,
}

impl Kind {
    /// The exit code.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Quiet => 0,
            Self::Refused => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Unreachable => 4,
            Self::NotAllowed => 5,
            Self::Failed => 6,
            Self::Interrupted => 130,
        }
    }
}

/// An error as the user sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Error {
    /// Its class.
    pub(crate) kind: Kind,
    /// The cause; one line, or one block per fault in a file.
    pub(crate) cause: String,
    /// What to do next.
    pub(crate) help: Option<String>,
}

impl Error {
    /// An error of a class with its cause.
    pub(crate) fn new(kind: Kind, cause: impl Into<String>) -> Self {
        Self { kind, cause: cause.into(), help: None }
    }

    /// Adds what to do next.
    #[must_use]
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The command line is wrong.
    pub(crate) fn usage(cause: impl Into<String>) -> Self {
        Self::new(Kind::Usage, cause)
    }

    /// A file could not be read or written.
    pub(crate) fn file(doing: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            _ => Kind::Refused,
        };
        Self::new(kind, format!("cannot {doing} {}: {error}", path.display()))
    }

    /// As the process ends.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind.code())
    }
}

impl From<client::Error> for Error {
    fn from(error: client::Error) -> Self {
        use client::Error as E;
        let cause = error.to_string();
        match error {
            E::NoHome => Self::new(Kind::Usage, cause)
                .help("set ATELIER_HOME to a folder, or name a daemon with --server"),
            E::NoLocalDaemon => Self::new(Kind::Unreachable, cause).help(
                "start one with `atelier local start` (`atelier run` does so by itself), or name \
                 a daemon with --server URL or ATELIER_SERVER",
            ),
            E::BadServer { .. } => Self::new(Kind::Usage, cause)
                .help("write --server https://HOST:PORT, as the daemon prints it at its start"),
            E::NoToken { .. } => Self::new(Kind::NotAllowed, cause).help(
                "run `atelier login` where the workspace has a provider to sign in at; else pass --token-file FILE or \
                 set ATELIER_TOKEN: an admin makes one with `atelier token create`",
            ),
            E::BadToken => Self::new(Kind::NotAllowed, cause)
                .help("write the token, as `atelier token create` printed it, on one line"),
            E::NoContext { .. } => Self::new(Kind::NotFound, cause)
                .help("see `atelier context list`; `atelier context add` makes one"),
            E::ContextTaken(_) => {
                Self::new(Kind::Refused, cause).help("choose another name, or add --replace")
            }
            E::ContextName(_) => Self::new(Kind::Usage, cause),
            E::Contexts { .. } => Self::new(Kind::Refused, cause)
                .help("correct the file, or remove it and add the contexts anew"),
            E::TwoServers => Self::new(Kind::Usage, cause).help("leave out --server or --context"),
            E::Read { .. } => Self::new(Kind::NotAllowed, cause)
                .help("check the path, and that you may read the file"),
            E::Write { .. } => Self::new(Kind::Refused, cause).help("check that you may write there"),
            E::Keyring { problem: Unusable::Off, .. } => Self::new(Kind::NotAllowed, cause).help(
                "unset ATELIER_KEYRING; or keep a token in a file: `atelier login`, or `atelier context add --replace`",
            ),
            E::Keyring { .. } => Self::new(Kind::NotAllowed, cause).help(
                "unlock it (your desktop's program for passwords does); or keep a token in a file: with \
                 ATELIER_KEYRING=off run `atelier login`, or `atelier context add --replace`",
            ),
            E::SessionOver { .. } => Self::new(Kind::NotAllowed, cause).help("run `atelier login`"),
            E::Connect { local: true, .. } => Self::new(Kind::Unreachable, cause).help(
                "the local workspace seems to have died; `atelier local start` starts it again",
            ),
            E::Connect { local: false, .. } => Self::new(Kind::Unreachable, cause)
                .help("check the address, and that `atelier serve` runs there"),
            E::Untrusted { doubt, .. } => Self::new(Kind::Unreachable, cause).help(doubt.remedy()),
            E::Trust(_) => Self::new(Kind::Usage, cause)
                .help("check --ca-file or ATELIER_CA_FILE, and that you may read it"),
            E::Http(_) => Self::new(Kind::Failed, cause),
            E::Timeout { .. } => Self::new(Kind::Unreachable, cause)
                .help("check the daemon's log; the call may still have taken effect"),
            E::Rpc(status) => Self::from(&*status),
        }
    }
}

impl From<&Status> for Error {
    fn from(status: &Status) -> Self {
        let cause = if status.message().is_empty() {
            format!("the daemon answered {:?} without saying why", status.code())
        } else {
            client::reason(status)
        };
        if client::broken(status) {
            return Self::new(Kind::Unreachable, format!("lost the daemon: {cause}"))
                .help("check that it runs, then try again");
        }
        match status.code() {
            Code::NotFound => Self::new(Kind::NotFound, cause),
            Code::Unauthenticated => Self::new(Kind::NotAllowed, cause).help(
                "pass a token that is valid there, with --token-file, ATELIER_TOKEN or by a context \
                 (`atelier context add --replace`)",
            ),
            Code::PermissionDenied => Self::new(Kind::NotAllowed, cause)
                .help("ask an admin for a token of a role that may do this"),
            Code::OutOfRange if cause.contains("message length too large") => {
                Self::new(Kind::Refused, format!("the request is too large: {cause}"))
                    .help("give large values as input files rather than in the job itself")
            }
            Code::InvalidArgument
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Aborted => Self::new(Kind::Refused, cause),
            Code::ResourceExhausted => {
                Self::new(Kind::Refused, cause).help("wait a little and try again")
            }
            // What a daemon knows of but does not do yet comes with its own words.
            Code::Unimplemented if !status.message().is_empty() => Self::new(Kind::Refused, cause),
            Code::Unimplemented => Self::new(Kind::Failed, cause).help(
                "the daemon does not know this call; compare `atelier --version` with the version \
                 in `atelier workspace show`",
            ),
            Code::DeadlineExceeded => Self::new(Kind::Unreachable, cause)
                .help("check the daemon's log; the call may still have taken effect"),
            _ => Self::new(Kind::Failed, format!("the daemon failed: {cause}"))
                .help("see the daemon's log"),
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::from(&status)
    }
}
