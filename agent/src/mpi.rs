//! Stands in place of ssh where `mpirun` starts processes on the other nodes of a job.
//!
//! ```text
//! rank 0:  mpirun --> shell (HOST COMMAND…) --(command, MAC)----> member --> /bin/sh -c COMMAND   on HOST
//!                                           <--(exit code, MAC)--
//! ```
//! Both ends are processes of the job: what a member runs, it runs within its own limits and its own view of
//! the node. Only who knows the attempt's secret is obeyed, once: the member gives a number that nobody has
//! seen before, and each MAC is of that, the member's rank and what is said. What the command prints goes to its own member's log;
//! what MPI's processes print comes to `mpirun` by MPI's own ways.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, mpsc};
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
/// Callers that a member listens to at once; more may call again.
const CALLERS: usize = 64;
/// Between two looks for a caller.
const LOOK: Duration = Duration::from_millis(20);
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
    let command = called_by_address(arguments, job).collect::<Vec<_>>().join(" ");
    if command.is_empty() {
        return Err(Error::NoCommand);
    }
    if command.len() > MAX_COMMAND {
        return Err(Error::TooLong(host, command.len()));
    }
    let broken = |source| Error::Broken { rank, address: address.clone(), source };
    let (stream, nonce) = reach(rank, &address);
    let mut talk = Talk { stream, nonce, rank, key: job.key };
    talk.ask(&command).map_err(broken)?;
    match talk.hear(Saying::Taken, Some(Instant::now() + STEP)) {
        Ok(TAKEN) => {}
        Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(broken(error)),
        // Also one who cannot say it as only a member of this attempt can.
        Ok(_) | Err(_) => return Err(Error::Refused { rank, address }),
    }
    let code = talk.hear(Saying::Ended, None).map_err(broken)?;
    if code != 0 {
        let said = format!("what mpirun runs in member {rank} ended with exit code {code}");
        let _ = writeln!(io::stderr(), "atelier: {said}; see that member's log");
    }
    Ok(ExitCode::from(code))
}

/// Intel's `mpirun` tells the others the head's own name, which they need not know, and takes no other.
fn called_by_address(
    arguments: impl Iterator<Item = String>,
    job: &Job,
) -> impl Iterator<Item = String> {
    let head = job.members.first().and_then(|member| member.rsplit_once(':'));
    let head = head.map(|(host, _)| host.trim_matches(['[', ']']).to_owned());
    let mut is_name = false;
    arguments.map(move |argument| {
        let was_name = std::mem::replace(&mut is_name, argument == UPSTREAM);
        head.clone().filter(|_| was_name).unwrap_or(argument)
    })
}

/// Before the head's name.
const UPSTREAM: &str = "--upstream-host";

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

/// A conversation of the head and a member. What is said in it holds for this rank and this nonce alone, and
/// only who knows the key can say it.
struct Talk {
    stream: TcpStream,
    nonce: Nonce,
    rank: usize,
    key: Key,
}

/// What can be said.
#[derive(Clone, Copy)]
enum Saying {
    Command,
    /// Whether it was taken.
    Taken,
    /// How it ended.
    Ended,
}

impl Talk {
    fn mac(&self, saying: Saying, words: &[u8]) -> blake3::Hash {
        let rank = u32::try_from(self.rank).unwrap_or(u32::MAX).to_be_bytes();
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&rank).update(&self.nonce).update(&[saying as u8]).update(words).finalize()
    }

    fn ask(&mut self, command: &str) -> io::Result<()> {
        let length = u32::try_from(command.len()).map_err(io::Error::other)?;
        let mac = self.mac(Saying::Command, command.as_bytes());
        self.stream.write_all(&length.to_be_bytes())?;
        self.stream.write_all(command.as_bytes())?;
        self.stream.write_all(mac.as_bytes())
    }

    /// Says one byte to the head.
    fn answer(&mut self, saying: Saying, byte: u8) -> io::Result<()> {
        let mac = self.mac(saying, &[byte]);
        self.stream.write_all(&[[byte].as_slice(), mac.as_bytes()].concat())
    }

    /// Hears one byte from the member, however long it takes where there is no `until`.
    fn hear(&mut self, saying: Saying, until: Option<Instant>) -> io::Result<u8> {
        let mut said = [0; 1 + blake3::OUT_LEN];
        match until {
            Some(until) => read_within(&mut self.stream, &mut said, until)?,
            None => {
                self.stream.set_read_timeout(None)?;
                self.stream.read_exact(&mut said)?;
            }
        }
        let [byte, mac @ ..] = said;
        // Takes the same time for every wrong one.
        match self.mac(saying, &[byte]) == blake3::Hash::from_bytes(mac) {
            true => Ok(byte),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Waits for the command of the head, runs it and tells how it ended.
fn member(job: &Job, mut arguments: impl Iterator<Item = String>) -> Result<ExitCode, Error> {
    let rank = arguments.next().and_then(|rank| rank.parse().ok()).ok_or(Error::NoCommand)?;
    let address = job.address(rank, &host_of(rank))?;
    let listener =
        listen(&address).map_err(|source| Error::Listen { address: address.clone(), source })?;
    let (mut talk, command) = next_command(&listener, rank, job.key)
        .map_err(|source| Error::Listen { address, source })?;
    // One command is all that is taken.
    drop(listener);
    let run = Command::new("/bin/sh").arg("-c").arg(command).stdin(Stdio::null()).status();
    let status = run.map_err(Error::Run)?;
    let code = status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(FAILED.into());
    let code = u8::try_from(code).unwrap_or(FAILED);
    // The head knows, and it decides what that means.
    let told = talk.answer(Saying::Ended, code).is_ok();
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

/// The first command that comes from the head; whoever else calls is sent away, and holds up nobody.
fn next_command(listener: &TcpListener, rank: usize, key: Key) -> io::Result<(Talk, String)> {
    listener.set_nonblocking(true)?;
    let callers = Arc::new(());
    let (sender, found) = mpsc::channel();
    loop {
        match listener.accept() {
            Ok((stream, _)) if Arc::strong_count(&callers) <= CALLERS => {
                let (sender, caller) = (sender.clone(), callers.clone());
                std::thread::spawn(move || {
                    // Of a caller that hangs up or says nothing there is nothing to say; it may call again.
                    if let Ok(Some(taken)) = take(stream, rank, key) {
                        let _ = sender.send(taken);
                    }
                    drop(caller);
                });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => std::thread::sleep(PAUSE),
        }
        if let Ok(taken) = found.recv_timeout(LOOK) {
            return Ok(taken);
        }
    }
}

/// The command, if it is the head's.
fn take(mut stream: TcpStream, rank: usize, key: Key) -> io::Result<Option<(Talk, String)>> {
    let until = Instant::now() + STEP;
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(STEP))?;
    let mut nonce = Nonce::default();
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    stream.write_all(&nonce)?;
    let mut length = [0; 4];
    read_within(&mut stream, &mut length, until)?;
    let length = u32::from_be_bytes(length) as usize;
    let mut talk = Talk { stream, nonce, rank, key };
    if length > MAX_COMMAND {
        talk.answer(Saying::Taken, REFUSED)?;
        return Ok(None);
    }
    let mut command = vec![0; length];
    read_within(&mut talk.stream, &mut command, until)?;
    let mut given = [0; blake3::OUT_LEN];
    read_within(&mut talk.stream, &mut given, until)?;
    let is_heads = talk.mac(Saying::Command, &command) == blake3::Hash::from_bytes(given);
    match String::from_utf8(command) {
        Ok(command) if is_heads => {
            talk.answer(Saying::Taken, TAKEN)?;
            Ok(Some((talk, command)))
        }
        _ => talk.answer(Saying::Taken, REFUSED).map(|()| None),
    }
}
