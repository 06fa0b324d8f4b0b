//! Stands in place of ssh where `mpirun` starts processes on the other nodes of a job.
//!
//! ```text
//! rank 0:  mpirun --> shell (HOST COMMAND…) --(command, MAC)--> member --> /bin/sh -c COMMAND   on HOST
//!                                           <--(exit code)-----
//! ```
//! Both ends are processes of the job: what a member runs, it runs within its own limits and its own view of
//! the node. Only who knows the attempt's secret is obeyed, once: the member gives a number that nobody has
//! seen before, and the MAC is of that and the command. What the command prints goes to its own member's log;
//! what MPI's processes print comes to `mpirun` by MPI's own ways.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// The argument that makes this program what `mpirun` calls: then a host and a command follow.
pub(crate) const SHELL: &str = "--mpi-shell";
/// The argument that makes it what waits for the command: then the member's rank follows.
pub(crate) const MEMBER: &str = "--mpi-member";
/// The variable that says where the members wait, by rank.
pub(crate) const MEMBERS: &str = "ATELIER_MPI_MEMBERS";
/// The variable with the attempt's secret, in hexadecimal digits.
pub(crate) const KEY: &str = "ATELIER_MPI_KEY";

/// Bytes of a command at most.
const MAX_COMMAND: usize = 1 << 20;
/// How long the other side may take for the exchange.
const STEP: Duration = Duration::from_secs(10);
/// Between two tries to reach a member, which may have to be prepared yet.
const PAUSE: Duration = Duration::from_millis(250);
/// When somebody who looks into the log is told what is waited for, and again.
const SAID_AFTER: Duration = Duration::from_secs(30);
const SAID_AGAIN: Duration = Duration::from_secs(600);
/// What ssh exits with if it, and not the command, failed.
const FAILED: u8 = 255;

const REFUSED: u8 = 0;
const TAKEN: u8 = 1;

type Key = [u8; blake3::KEY_LEN];
type Nonce = [u8; 32];

/// What `mpirun` calls the node of this rank; it takes the first for its own.
pub(crate) fn host_of(rank: usize) -> String {
    match rank {
        0 => "localhost".to_owned(),
        _ => format!("{PREFIX}{rank}"),
    }
}

const PREFIX: &str = "member-";

/// Which member a host is, as [`host_of`] calls it.
fn rank_of(host: &str) -> Option<usize> {
    host.strip_prefix(PREFIX)?.parse().ok().filter(|rank| *rank > 0)
}

/// What went wrong, for the job's log.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0} is not set: this is called by a job's mpirun, and by nothing else")]
    NotSet(&'static str),
    #[error("'{0}' is none of the job's nodes: leave the choice of hosts to Atelier")]
    NoSuchHost(String),
    #[error("there is no command to run")]
    NoCommand,
    #[error("the command for '{0}' has {1} bytes; at most {MAX_COMMAND} are sent")]
    TooLong(String, usize),
    #[error("member {rank} at {address} does not know this attempt")]
    Refused { rank: usize, address: String },
    #[error("member {rank} at {address}: the connection broke")]
    Broken { rank: usize, address: String, source: io::Error },
    #[error("cannot listen at {address} for the command of the head")]
    Listen { address: String, source: io::Error },
    #[error("cannot run the command of the head")]
    Run(#[source] io::Error),
}

/// What both ends know.
struct Job {
    members: Vec<String>,
    key: Key,
}

impl Job {
    fn of_variables() -> Result<Self, Error> {
        let given = |name| std::env::var(name).map_err(|_| Error::NotSet(name));
        let members = given(MEMBERS)?.split(',').map(str::to_owned).collect();
        let key = blake3::Hash::from_hex(given(KEY)?).map_err(|_| Error::NotSet(KEY))?;
        Ok(Self { members, key: *key.as_bytes() })
    }

    fn address(&self, rank: usize, host: &str) -> Result<String, Error> {
        self.members.get(rank).cloned().ok_or_else(|| Error::NoSuchHost(host.to_owned()))
    }
}

/// Acts as one of the two ends if the role says so; `arguments` are those after it.
pub(crate) fn act_if_asked(
    role: &OsString,
    arguments: impl Iterator<Item = OsString>,
) -> Option<ExitCode> {
    let texts = arguments.map(|argument| argument.to_string_lossy().into_owned());
    let done = match role.to_str()? {
        SHELL => Job::of_variables().and_then(|job| shell(&job, texts)),
        MEMBER => Job::of_variables().and_then(|job| member(&job, texts)),
        _ => return None,
    };
    Some(done.unwrap_or_else(|error| {
        say(&error);
        ExitCode::from(FAILED)
    }))
}

/// Into the job's log.
fn say(error: &dyn std::error::Error) {
    let source = error.source().map_or_else(String::new, |source| format!(": {source}"));
    let _ = writeln!(io::stderr(), "atelier: {error}{source}");
}

/// Has the member run the command, and exits as that does. As of ssh, options before the host are passed over.
fn shell(job: &Job, arguments: impl Iterator<Item = String>) -> Result<ExitCode, Error> {
    let mut arguments = arguments.skip_while(|argument| argument.starts_with('-'));
    let host = arguments.next().ok_or(Error::NoCommand)?;
    let rank = rank_of(&host).ok_or_else(|| Error::NoSuchHost(host.clone()))?;
    let address = job.address(rank, &host)?;
    let command = arguments.collect::<Vec<_>>().join(" ");
    if command.is_empty() {
        return Err(Error::NoCommand);
    }
    if command.len() > MAX_COMMAND {
        return Err(Error::TooLong(host, command.len()));
    }
    let broken = |source| Error::Broken { rank, address: address.clone(), source };
    let (mut stream, nonce) = reach(rank, &address);
    let mut taken = [REFUSED];
    ask(&mut stream, &job.key, &nonce, &command).map_err(broken)?;
    read_within(&mut stream, &mut taken, Instant::now() + STEP).map_err(broken)?;
    if taken != [TAKEN] {
        return Err(Error::Refused { rank, address });
    }
    let mut code = [0];
    stream.set_read_timeout(None).map_err(broken)?;
    stream.read_exact(&mut code).map_err(broken)?;
    if code != [0] {
        let said = format!("what mpirun runs in member {rank} ended with exit code {}", code[0]);
        let _ = writeln!(io::stderr(), "atelier: {said}; see that member's log");
    }
    Ok(ExitCode::from(code[0]))
}

/// A connection to a member that waits, however long it takes to be there: if it never is, the attempt ends.
fn reach(rank: usize, address: &str) -> (TcpStream, Nonce) {
    let mut say_at = Instant::now() + SAID_AFTER;
    loop {
        let error = match connect(address) {
            Ok(reached) => return reached,
            Err(error) => error,
        };
        if Instant::now() >= say_at {
            say_at = Instant::now() + SAID_AGAIN;
            let _ =
                writeln!(io::stderr(), "atelier: waiting for member {rank} at {address}: {error}");
        }
        std::thread::sleep(PAUSE);
    }
}

fn connect(address: &str) -> io::Result<(TcpStream, Nonce)> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in address.to_socket_addrs()? {
        let met = TcpStream::connect_timeout(&address, STEP).and_then(|mut stream| {
            let mut nonce = Nonce::default();
            stream.set_write_timeout(Some(STEP))?;
            read_within(&mut stream, &mut nonce, Instant::now() + STEP)?;
            Ok((stream, nonce))
        });
        match met {
            Ok(met) => return Ok(met),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Fills the buffer, however small the pieces are in which it comes.
fn read_within(stream: &mut TcpStream, mut buffer: &mut [u8], until: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => buffer = &mut buffer[bytes..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// That a command comes from who knows the key, and answers this nonce.
fn mac(key: &Key, nonce: &Nonce, command: &[u8]) -> blake3::Hash {
    blake3::Hasher::new_keyed(key).update(nonce).update(command).finalize()
}

fn ask(stream: &mut TcpStream, key: &Key, nonce: &Nonce, command: &str) -> io::Result<()> {
    let length = u32::try_from(command.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(command.as_bytes())?;
    stream.write_all(mac(key, nonce, command.as_bytes()).as_bytes())
}

/// Waits for the command of the head, runs it and tells how it ended.
fn member(job: &Job, mut arguments: impl Iterator<Item = String>) -> Result<ExitCode, Error> {
    let rank = arguments.next().and_then(|rank| rank.parse().ok()).ok_or(Error::NoCommand)?;
    let address = job.address(rank, &host_of(rank))?;
    let listener = listen(&address).map_err(|source| Error::Listen { address, source })?;
    let (mut stream, command) = next_command(&listener, &job.key);
    // One command is all that is taken.
    drop(listener);
    let run = Command::new("/bin/sh").arg("-c").arg(command).stdin(Stdio::null()).status();
    let status = run.map_err(Error::Run)?;
    let code = status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(FAILED.into());
    let code = u8::try_from(code).unwrap_or(FAILED);
    // The head knows, and it decides what that means.
    let told = stream.write_all(&[code]).is_ok();
    Ok(ExitCode::from(if told { 0 } else { code }))
}

/// At this address; on all of the node's where others know it by one that it has not itself.
fn listen(address: &str) -> io::Result<TcpListener> {
    let known: Vec<SocketAddr> = address.to_socket_addrs()?.collect();
    TcpListener::bind(&known[..]).or_else(|error| {
        let port = known.first().map(SocketAddr::port).ok_or(error)?;
        TcpListener::bind((IpAddr::from([0_u16; 8]), port))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
    })
}

/// The first command that comes from the head; whoever else calls is sent away.
fn next_command(listener: &TcpListener, key: &Key) -> (TcpStream, String) {
    loop {
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::sleep(PAUSE);
            continue;
        };
        match take(&mut stream, key) {
            Ok(Some(command)) => return (stream, command),
            Ok(None) => drop(stream.write_all(&[REFUSED])),
            // It may call again.
            Err(_) => {}
        }
    }
}

/// The command, if it is the head's.
fn take(stream: &mut TcpStream, key: &Key) -> io::Result<Option<String>> {
    let until = Instant::now() + STEP;
    stream.set_write_timeout(Some(STEP))?;
    let mut nonce = Nonce::default();
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    stream.write_all(&nonce)?;
    let mut length = [0; 4];
    read_within(stream, &mut length, until)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_COMMAND {
        return Ok(None);
    }
    let mut command = vec![0; length];
    read_within(stream, &mut command, until)?;
    let mut given = [0; blake3::OUT_LEN];
    read_within(stream, &mut given, until)?;
    // Takes the same time for every wrong one.
    if mac(key, &nonce, &command) != blake3::Hash::from_bytes(given) {
        return Ok(None);
    }
    let Ok(command) = String::from_utf8(command) else { return Ok(None) };
    stream.write_all(&[TAKEN])?;
    Ok(Some(command))
}
