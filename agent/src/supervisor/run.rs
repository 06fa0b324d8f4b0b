//! The supervisor's loop.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Signal;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::journal::{self, CountedMemory, EndedBy, Exited, Launch, OutOfMemory, Outcome, Started};
use super::leader::{Leader, not_started};
use super::output::{Found, Output};
use super::signals::{Came, Signals};
use super::word::Word;
use super::{Lease, tree};
use crate::cgroup::{Cgroup, MemoryUse};
use crate::clock;
use crate::secrets::{Redactor, Values};

/// How long the job's view and its commands may take to be made: what takes longer waits for a file system
/// that does not answer.
const START_PATIENCE_MS: u64 = 60_000;
/// How long they still have once the job is to end: they may run, and the leader not have come to say so.
const START_GRACE_MS: u64 = 1000;
/// Between two rounds of killing what is left.
const KILL_AGAIN_MS: u64 = 20;
/// The daemon counts on jobs being dead soon after the lease; longer grace periods are cut to this.
const LEASE_GRACE_MS: u64 = 10_000;
/// The kernel says that memory ran out before it counts whom it killed for that: how often, and how
/// long apart, to look.
const MEMORY_LOOKS: u32 = 25;
const MEMORY_LOOK_MS: u64 = 20;
/// How long who serves the mounted inputs may take to end.
const MOUNTS_END_MS: u64 = 2000;

/// How often somebody may stop the leader: who goes on with it keeps the job from its end.
const MOST_STOPS: u32 = 100;

/// Where the tree stands. Instants are CLOCK_BOOTTIME milliseconds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting { give_up_at: u64 },
    Running,
    Stopping { kill_at: u64 },
    Killing { again_at: u64, give_up_at: u64 },
}

/// How the job's commands ended: the first one that failed, or the last one.
#[derive(Clone, Copy)]
struct Verdict {
    process: usize,
    /// As waitpid(2) gives it.
    status: libc::c_int,
    /// Wall clock.
    at_ms: i64,
}

struct Supervisor<'a> {
    launch: &'a Launch,
    /// Can be read when memory ran out ([`Cgroup::memory_alarm`](crate::cgroup::Cgroup::memory_alarm)).
    memory_alarm: Option<OwnedFd>,
    /// Looks left at whether the job was killed for it, and when the next is due.
    memory_looks: u32,
    memory_look_at: u64,
    lease: Option<Lease>,
    lease_until: u64,
    timeout_at: u64,
    leader: Leader,
    /// Whether it has been waited for.
    is_leader_gone: bool,
    /// How often somebody has stopped it.
    stops: u32,
    /// Which of the commands have ended.
    ended: Vec<bool>,
    verdict: Option<Verdict>,
    /// Why there is no verdict, where the fault is not the job's.
    failure: Option<Outcome>,
    phase: Phase,
    ended_by: Option<EndedBy>,
    /// No child is left.
    childless: bool,
    survivors: usize,
    /// When who serves the mounted inputs was told to end.
    mounts_told_at: Option<u64>,
}

pub(super) fn failed(what: &str, error: &io::Error) -> Outcome {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    Outcome::NotStarted { what: what.to_owned(), errno }
}

/// Runs the command to its end and that of everything it started. `secrets`: what must not be in its logs.
pub(super) fn run(
    folder: &Path,
    launch: &Launch,
    started: &Started,
    signals: Signals,
    secrets: Option<&Values>,
) -> Result<Exited, Outcome> {
    let (lease, lease_until) = match &launch.lease {
        None => (None, Lease::NEVER),
        Some(path) => {
            let lease = Lease::open(path).map_err(|error| failed("opening the lease", &error))?;
            let until = lease.until().map_err(|error| failed("reading the lease", &error))?;
            (Some(lease), until)
        }
    };
    let timer =
        timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .map_err(|errno| failed("making a timer", &errno.into()))?;
    let (mut outputs, mut writers) = (Vec::new(), Vec::new());
    let patterns = secrets.map(Values::patterns).transpose();
    let patterns = patterns.map_err(|error| failed("looking for secrets in the log", &error))?;
    let patterns = patterns.flatten().map(Arc::new);
    for (log, pipe) in launch.logs() {
        let (mut output, writer) =
            Output::open(&folder.join(log), launch.log_limit, launch.log_rate, pipe)
                .map_err(|error| failed("opening the log", &error))?;
        output.redactor = patterns.clone().map(Redactor::new);
        launch.own(&writer).map_err(|error| failed("giving the job its output", &error))?;
        outputs.push(output);
        writers.push(writer);
    }
    // Nobody has opened these yet, and each may be opened and closed again and again.
    let _held = writers.split_off(launch.commands().min(writers.len()));
    let memory_alarm = launch.cgroup.as_ref().and_then(Cgroup::memory_alarm);
    if clock::boottime_ms() >= lease_until {
        let expired = io::Error::from_raw_os_error(libc::ETIME);
        return Err(failed("starting under a lease that has run out", &expired));
    }
    let ended = vec![false; writers.len()];
    let leader = Leader::start(launch, writers)?;
    let give_up_at = clock::boottime_ms().saturating_add(START_PATIENCE_MS);
    let mut supervisor = Supervisor {
        launch,
        memory_alarm,
        memory_looks: 0,
        memory_look_at: u64::MAX,
        lease,
        lease_until,
        timeout_at: u64::MAX,
        ended,
        leader,
        is_leader_gone: false,
        stops: 0,
        verdict: None,
        failure: None,
        phase: Phase::Starting { give_up_at },
        ended_by: None,
        childless: false,
        survivors: 0,
        mounts_told_at: None,
    };
    supervisor.attend(&signals, &timer, &mut outputs);
    outputs.iter_mut().for_each(Output::finish);
    Ok(supervisor.exited(started, &outputs))
}

impl Supervisor<'_> {
    /// The loop: returns when nothing of the job is left, or what is left cannot be killed.
    fn attend(&mut self, signals: &Signals, timer: &OwnedFd, outputs: &mut [Output]) {
        let (mut open, mut armed) = (vec![true; outputs.len()], None);
        let mut speaks = true;
        while !self.childless && self.survivors == 0 {
            let now = clock::boottime_ms();
            // Which of them are open and not read too fast; with those that are the timer says when to go on.
            let reads: Vec<bool> = outputs
                .iter()
                .zip(&open)
                .map(|(output, open)| *open && output.next() <= now)
                .collect();
            let paused =
                outputs.iter().zip(&open).filter(|(output, open)| **open && output.next() > now);
            let resume_at = paused.map(|(output, _)| output.next()).min().unwrap_or(u64::MAX);
            let wake_at = self.wake_at().min(resume_at);
            if armed != Some(wake_at) {
                arm(timer, wake_at);
                armed = Some(wake_at);
            }
            // Without an alarm, and when the leader has said all, the signals stand in their place.
            let alarm = self.memory_alarm.as_ref().unwrap_or(&signals.file).as_fd();
            let words = if speaks { self.leader.words() } else { signals.file.as_fd() };
            let fixed = [signals.file.as_fd(), timer.as_fd(), alarm, words];
            let pipes = outputs.iter().zip(&reads).filter(|(_, reads)| **reads);
            let pipes = pipes.map(|(output, _)| output.pipe());
            let mut files: Vec<PollFd<'_>> = fixed
                .into_iter()
                .chain(pipes)
                .map(|file| PollFd::from_borrowed_fd(file, PollFlags::IN))
                .collect();
            // An error is the kernel's want of memory: as if nothing had been said.
            let _ = poll(&mut files, None);
            let said: Vec<bool> = files.iter().map(|file| !file.revents().is_empty()).collect();
            let mut readable = said[fixed.len()..].iter();
            let now = clock::boottime_ms();
            for ((output, open), reads) in outputs.iter_mut().zip(&mut open).zip(reads) {
                if reads && readable.next() == Some(&true) && output.pump_at(now) == Found::End {
                    *open = false;
                }
            }
            let came = if said[0] { signals.read() } else { Came::default() };
            if said[3] && speaks {
                speaks = self.listen();
            }
            if came.child {
                self.reap();
                self.keep_leader_going(clock::boottime_ms());
            }
            if said[2]
                && let Some(alarm) = &self.memory_alarm
            {
                let _ = rustix::io::read(alarm, &mut [0_u8; 8]);
                self.memory_looks = MEMORY_LOOKS;
                self.memory_look_at = 0;
            }
            self.step(&came, clock::boottime_ms());
        }
    }

    /// Takes what the leader has said; whether it may say more.
    fn listen(&mut self) -> bool {
        loop {
            let (process, status) = match self.leader.next_word() {
                Ok(Word::Started { pid }) => {
                    self.started(pid);
                    continue;
                }
                Ok(Word::NotStarted { step, errno }) => {
                    self.failure.get_or_insert(not_started(step, errno, self.launch));
                    continue;
                }
                Ok(Word::NotIsolated { what, errno }) => {
                    self.failure.get_or_insert(Outcome::NotStarted { what, errno });
                    continue;
                }
                Ok(Word::Ended { process, status }) => (process, status),
                // Of a leader that was killed nothing more comes.
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            };
            let process = process as usize;
            if let Some(ended) = self.ended.get_mut(process) {
                *ended = true;
            }
            let is_last = self.ended.iter().all(|ended| *ended);
            if self.verdict.is_none() && (status != 0 || is_last) {
                self.verdict = Some(Verdict { process, status, at_ms: clock::now_ms() });
            }
        }
    }

    /// One more command runs.
    fn started(&mut self, pid: libc::pid_t) {
        self.leader.commands.push(pid);
        if self.leader.commands.len() < self.ended.len() {
            return;
        }
        if let Phase::Starting { .. } = self.phase {
            self.phase = Phase::Running;
            let timeout = self.launch.timeout_ms.unwrap_or(u64::MAX);
            let now = clock::boottime_ms();
            self.timeout_at = now.saturating_add(timeout);
            if self.ended_by.is_some() {
                self.stop(self.ended_by, now);
            }
        }
    }

    /// The next instant at which something is due.
    fn wake_at(&self) -> u64 {
        match self.phase {
            Phase::Starting { give_up_at } if self.ended_by.is_some() => give_up_at,
            Phase::Starting { give_up_at } => give_up_at.min(self.lease_until),
            Phase::Running => self.timeout_at.min(self.lease_until).min(self.memory_look_at),
            Phase::Stopping { kill_at } => {
                kill_at.min(self.lease_grace_until()).min(self.memory_look_at)
            }
            Phase::Killing { again_at, .. } => again_at,
        }
    }

    /// Whether the kernel has killed a process of the job for want of memory, as far as it is time to
    /// look.
    fn is_out_of_memory(&mut self, now: u64) -> bool {
        if now < self.memory_look_at {
            return false;
        }
        self.memory_looks = self.memory_looks.saturating_sub(1);
        self.memory_look_at = match self.memory_looks {
            0 => u64::MAX,
            _ => now + MEMORY_LOOK_MS,
        };
        self.launch.cgroup.as_ref().is_some_and(|cgroup| cgroup.memory().kills > 0)
    }

    fn step(&mut self, came: &Came, now: u64) {
        if self.childless {
            return;
        }
        if came.quit && !matches!(self.phase, Phase::Killing { .. }) {
            self.ended_by = self.ended_by.or(Some(EndedBy::Kill));
            return self.kill(now, now + self.launch.give_up_ms);
        }
        // What is left of a job that lost a process would wait for it, or go on without.
        if !matches!(self.phase, Phase::Killing { .. }) && self.is_out_of_memory(now) {
            return self.kill(now, now + self.launch.give_up_ms);
        }
        match self.phase {
            Phase::Starting { give_up_at } => self.step_starting(came, give_up_at, now),
            // The command's own end counts, also if a signal came at the same time.
            Phase::Running if self.ended.iter().all(|ended| *ended) => {
                self.finish(now, now + self.launch.give_up_ms)
            }
            // Of several commands one has failed: the others may save what they have.
            Phase::Running if self.verdict.is_some() => self.stop(None, now),
            Phase::Running if came.terminate => self.stop(Some(EndedBy::Terminate), now),
            Phase::Running if now >= self.timeout_at => self.stop(Some(EndedBy::Timeout), now),
            Phase::Running if now >= self.lease_until => {
                self.look_at_lease();
                if now >= self.lease_until {
                    self.stop(Some(EndedBy::Lease), now);
                }
            }
            Phase::Stopping { .. } if now >= self.lease_grace_until() => {
                self.look_at_lease();
                if now >= self.lease_grace_until() {
                    self.kill(now, now + self.launch.give_up_ms);
                }
            }
            Phase::Stopping { kill_at } if now >= kill_at => {
                self.kill(now, now + self.launch.give_up_ms)
            }
            Phase::Killing { again_at, give_up_at } if now >= again_at => {
                self.kill(now, give_up_at)
            }
            Phase::Running | Phase::Stopping { .. } | Phase::Killing { .. } => {}
        }
    }

    /// The leader has not said yet that the commands run.
    fn step_starting(&mut self, came: &Came, give_up_at: u64, now: u64) {
        if now >= self.lease_until {
            self.look_at_lease();
        }
        let ended_by = match () {
            () if came.terminate => Some(EndedBy::Terminate),
            () if now >= self.lease_until => Some(EndedBy::Lease),
            () => None,
        };
        if self.failure.is_none() && self.ended_by.is_none() && ended_by.is_some() {
            self.ended_by = ended_by;
            self.phase = Phase::Starting { give_up_at: give_up_at.min(now + START_GRACE_MS) };
        } else if self.failure.is_some() || now >= give_up_at {
            if self.ended_by.is_none() && self.failure.is_none() {
                self.failure = Some(start_timed_out());
            }
            self.kill(now, now + self.launch.give_up_ms);
        }
    }

    fn look_at_lease(&mut self) {
        if let Some(Ok(until)) = self.lease.as_ref().map(Lease::until) {
            self.lease_until = self.lease_until.max(until);
        }
    }

    /// Whatever ends it, and however much time it has for that: a job that outlives its lease by more
    /// than this could meet the one that the daemon starts next.
    fn lease_grace_until(&self) -> u64 {
        self.lease_until.saturating_add(self.launch.grace_ms.min(LEASE_GRACE_MS))
    }

    fn stop(&mut self, by: Option<EndedBy>, now: u64) {
        self.ended_by = by;
        let grace = match by {
            Some(EndedBy::Lease) => self.launch.grace_ms.min(LEASE_GRACE_MS),
            _ => self.launch.grace_ms,
        };
        self.phase = Phase::Stopping { kill_at: now.saturating_add(grace) };
        self.leader.terminate(&self.ended);
    }

    /// The commands have ended, and the leader ends: what is left dies with it where it owns all, and comes to
    /// this process where it does not. That is looked for then ([`Self::reap`]): most often nothing is left, and
    /// looking at every process of the machine takes longer than all else here.
    fn finish(&mut self, now: u64, give_up_at: u64) {
        if self.is_leader_gone {
            return self.kill(now, give_up_at);
        }
        self.end_mounts(now);
        self.phase = Phase::Killing { again_at: now + KILL_AGAIN_MS, give_up_at };
    }

    fn kill(&mut self, now: u64, give_up_at: u64) {
        let is_again = matches!(self.phase, Phase::Killing { .. });
        // From here on it is no wonder that the leader dies.
        self.phase = Phase::Killing { again_at: now + KILL_AGAIN_MS, give_up_at };
        if let Some(cgroup) = &self.launch.cgroup {
            cgroup.kill();
        }
        let left = self.leader.kill(self.is_leader_gone);
        // Not before: a read that fails would be for the job to see, which might go on for an instant. Of a process
        // namespace the others die once the first is gone.
        if is_again || self.launch.cgroup.is_some() || !self.leader.owns_all {
            self.end_mounts(now);
        }
        self.reap();
        if !self.childless && now >= give_up_at {
            self.survivors = left.max(1);
        }
    }

    /// A process that waits for what is mounted dies once nobody serves it any more.
    fn end_mounts(&mut self, now: u64) {
        let Some(server) = &self.launch.mounts else { return };
        let told_at = *self.mounts_told_at.get_or_insert(now);
        if told_at == now {
            server.signal(Signal::TERM);
            server.signal(Signal::CONT);
        } else if now >= told_at + MOUNTS_END_MS {
            server.signal(Signal::KILL);
        }
    }

    fn reap(&mut self) {
        loop {
            match tree::reap() {
                Ok(Some((pid, status))) if pid == self.leader.pid => {
                    self.listen();
                    if self.verdict.is_none() {
                        self.leader_ended_early(status);
                    }
                    self.ended.fill(true);
                    self.is_leader_gone = true;
                    if let Phase::Killing { again_at, .. } = &mut self.phase {
                        *again_at = 0;
                    }
                }
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return,
                Err(_) => {
                    self.childless = true;
                    return;
                }
            }
        }
    }

    /// A leader that is stopped hears of nothing and tells nothing.
    fn keep_leader_going(&mut self, now: u64) {
        if self.is_leader_gone || !self.leader.go_on() {
            return;
        }
        self.stops = self.stops.saturating_add(1);
        if self.stops > MOST_STOPS && !matches!(self.phase, Phase::Killing { .. }) {
            self.failure.get_or_insert(Outcome::Lost);
            self.kill(now, now + self.launch.give_up_ms);
        }
    }

    /// It was killed, and its commands with it: by this process, or by somebody who is not the job.
    fn leader_ended_early(&mut self, status: libc::c_int) {
        if let Phase::Killing { .. } = self.phase {
            self.verdict = Some(Verdict { process: 0, status, at_ms: clock::now_ms() });
        } else {
            self.failure.get_or_insert(Outcome::Lost);
        }
    }

    fn exited(&self, started: &Started, outputs: &[Output]) -> Exited {
        let outcome = match (&self.failure, self.verdict.map(|verdict| verdict.status)) {
            (Some(failure), _) => failure.clone(),
            (None, Some(status)) if libc::WIFSIGNALED(status) => {
                Outcome::Signal(libc::WTERMSIG(status))
            }
            (None, Some(status)) => Outcome::Code(libc::WEXITSTATUS(status)),
            (None, None) => Outcome::Signal(libc::SIGKILL),
        };
        let usage = children_usage();
        // What died with the leader's namespace is in nobody's children's times.
        let counted = self.launch.cgroup.as_ref().map(Cgroup::usage).unwrap_or_default();
        let counted_seconds = counted.cpu_us.unwrap_or(0) as f64 / 1e6;
        let memory = self.launch.cgroup.as_ref().map(Cgroup::memory).unwrap_or_default();
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        let process = self.verdict.filter(|_| self.ended.len() > 1).map(|verdict| verdict.process);
        Exited {
            version: journal::VERSION,
            outcome,
            ended_by: self.ended_by,
            started_at_ms: started.started_at_ms,
            exited_at_ms: self.verdict.map_or_else(clock::now_ms, |verdict| verdict.at_ms),
            process: process.and_then(|process| u32::try_from(process).ok()),
            cpu_seconds: (seconds(usage.ru_utime) + seconds(usage.ru_stime)).max(counted_seconds),
            peak_memory_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
            log_bytes: outputs.first().map_or(0, |output| output.written),
            log_dropped: outputs.iter().map(|output| output.dropped).sum(),
            log_error: outputs.iter().find_map(|output| output.error),
            survivors: u32::try_from(self.survivors).unwrap_or(u32::MAX),
            out_of_memory: out_of_memory(&memory),
            memory: memory
                .peak_bytes
                .zip(counted.cached_bytes)
                .map(|(peak_bytes, cached_bytes)| CountedMemory { peak_bytes, cached_bytes }),
        }
    }
}

fn out_of_memory(memory: &MemoryUse) -> Option<OutOfMemory> {
    let MemoryUse { peak_bytes, limit_bytes, kills } = *memory;
    (kills > 0).then_some(OutOfMemory { peak_bytes, limit_bytes, kills })
}

/// The fault of the node, whose mounts do not answer.
fn start_timed_out() -> Outcome {
    let seconds = START_PATIENCE_MS / 1000;
    let what = format!(
        "starting the command: a folder of the job, or one that it would see, has not answered for {seconds} s; \
         look at the node's mounts"
    );
    Outcome::NotStarted { what, errno: libc::ETIMEDOUT }
}

/// What all waited-for children have used, theirs included.
fn children_usage() -> libc::rusage {
    // SAFETY: The struct is plain numbers and ours.
    unsafe {
        let mut usage = MaybeUninit::<libc::rusage>::zeroed().assume_init();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    }
}

/// Sets the timer to an instant of CLOCK_BOOTTIME; [`u64::MAX`] stops it. A timer counts time
/// asleep, which poll's own timeout does not.
fn arm(timer: &OwnedFd, at_ms: u64) {
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let it_value = match i64::try_from(at_ms) {
        // Zero would stop it.
        Ok(ms) => Timespec { tv_sec: ms / 1000, tv_nsec: (ms % 1000) * 1_000_000 + 1 },
        Err(_) => zero,
    };
    let spec = Itimerspec { it_interval: zero, it_value };
    let _ = timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &spec);
}
