//! What the service manager is told, in systemd's `sd_notify` protocol: that the service is ready, what
//! it does, that it makes progress, that it stops.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// A service manager that does not read is not waited for any longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way to the service manager, where there is one.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    /// After so long without a sign of progress the service is killed and started again.
    watchdog: Option<Duration>,
    is_ready: AtomicBool,
    last_sign: Mutex<Option<Instant>>,
}

impl Notifier {
    /// Takes `NOTIFY_SOCKET` and what belongs to it out of this process's environment. No program
    /// that is started later, a job least of all, has them; the socket itself closes on exec.
    ///
    /// # Safety
    /// No other thread runs yet: one could read the environment meanwhile.
    #[allow(
        clippy::disallowed_methods,
        reason = "no other thread: what it warns of is its contract"
    )]
    pub unsafe fn take() -> Self {
        let (address, watchdog, pid) =
            (env::var_os("NOTIFY_SOCKET"), variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"));
        for name in VARIABLES {
            // SAFETY: The caller says that there is no other thread.
            unsafe { env::remove_var(name) };
        }
        let Some(address) = address.filter(|address| !address.is_empty()) else {
            return Self::default();
        };
        match connect(address.as_encoded_bytes()) {
            Ok(socket) => {
                // A pid that is not ours: the variables were meant for whoever started us.
                let ours = pid.is_none_or(|pid| pid == u64::from(std::process::id()));
                let watchdog = watchdog.filter(|&usec| usec > 0 && ours).map(Duration::from_micros);
                Self { socket: Some(socket), watchdog, ..Self::default() }
            }
            Err(error) => {
                tracing::warn!(?address, %error, "cannot reach the service manager at NOTIFY_SOCKET");
                Self::default()
            }
        }
    }

    /// The service does what it is for: `systemctl start` returns. Only the first time counts, later
    /// ones tell the status.
    pub fn ready(&self, status: &str) {
        let first = !self.is_ready.swap(true, Ordering::Relaxed);
        let status = one_line(status);
        self.send(&format!("{}STATUS={status}", if first { "READY=1\n" } else { "" }));
    }

    /// The service is not ready yet and does this first, for `at_most` so long: however long it took until now, it is
    /// not given up meanwhile.
    pub fn starting(&self, what: &str, at_most: Duration) {
        let (micros, what) = (at_most.as_micros(), one_line(what));
        self.send(&format!("EXTEND_TIMEOUT_USEC={micros}\nSTATUS={what}"));
    }

    /// One line for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", one_line(status)));
    }

    /// The service ends, as it was asked to.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=stopping");
    }

    /// How often [`Self::progress`] must be called, with room to spare; `None`: nobody waits for it.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog.map(|watchdog| watchdog / 3)
    }

    /// The work itself moves on; to be called from where it would stand still, as often as is
    /// convenient.
    pub fn progress(&self) {
        let Some(period) = self.watchdog() else { return };
        let mut last = self.last_sign.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= period / 2) {
            *last = Some(Instant::now());
            self.send("WATCHDOG=1");
        }
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::debug!(%error, message, "the service manager was not told");
        }
    }
}

/// What a service manager sets for its service alone. No process that a service starts may have it.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

fn variable(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// A path, or a name in the abstract namespace, which begins with `@`.
fn connect(address: &[u8]) -> io::Result<UnixDatagram> {
    use std::os::unix::ffi::OsStrExt as _;
    let address = match address.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(address))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// A line break would begin another assignment.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}
