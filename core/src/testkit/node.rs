//! A simulated node: an agent that may die, freeze or forget, and the processes it started, which
//! live on without it until they end or the lease does.

use std::collections::{BTreeMap, VecDeque};

use crate::id::{AttemptNumber, Epoch, JobName};
use crate::job::{AttemptEnd, AttemptKey, Cause, Exit, Failure, Progress, Report};
use crate::live::Effect;
use crate::node::{GpuOut, LeasePolicy, NodeChange, NodeRecord};
use crate::resource::{GpuIndex, MilliGpu};
use crate::spec::OnNodeLoss;
use crate::time::Timestamp;

/// How a job's command behaves.
#[derive(Clone, PartialEq, Debug)]
pub struct Script {
    /// Milliseconds of preparation.
    pub prepare_ms: u64,
    /// Milliseconds that the command runs.
    pub run_ms: u64,
    /// Milliseconds of storing outputs.
    pub finalize_ms: u64,
    /// How each attempt ends; the last one counts for all that follow.
    pub finishes: Vec<Finish>,
}

/// How an attempt ends if nobody interferes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finish {
    /// The command exits with this code.
    Exit(i32),
    /// Something else goes wrong.
    Problem(Cause),
    /// Something goes wrong before the command begins.
    Unprepared(Cause),
    /// Something goes wrong so soon that nobody is told before that the command began.
    Unseen(Cause),
}

impl Script {
    /// A command that succeeds after `run_ms`.
    pub fn succeeds(run_ms: u64) -> Self {
        Self { prepare_ms: 0, run_ms, finalize_ms: 0, finishes: vec![Finish::Exit(0)] }
    }

    /// The same with these ends of the attempts.
    #[must_use]
    pub fn with(self, finishes: &[Finish]) -> Self {
        Self { finishes: finishes.to_vec(), ..self }
    }

    fn finish(&self, attempt: AttemptNumber) -> Finish {
        let last = self.finishes.len().saturating_sub(1);
        let index = (attempt.0 as usize).saturating_sub(1).min(last);
        self.finishes.get(index).copied().unwrap_or(Finish::Exit(0))
    }

    /// The longest that an attempt takes.
    pub(super) fn total_ms(&self) -> u64 {
        self.prepare_ms + self.run_ms + self.finalize_ms
    }
}

/// A command that was told to stop obeys after so long.
const STOP_MS: u64 = 20;
/// What outlives its lease by this much is dead. Less than the daemon's margin.
const KILL_MS: u64 = 150;
/// An end that is not acknowledged is told again after so long.
const REPEAT_MS: u64 = 500;
/// Heartbeats without an answer after which the agent hangs up.
const SILENT_BEATS: usize = 3;
/// After a session has ended, the agent waits this long.
const RETRY_MS: u64 = 30;

/// Node to daemon.
#[derive(Clone, Debug)]
pub(super) enum Up {
    Hello { record: Box<NodeRecord>, reports: Vec<Report> },
    Heartbeat(u64),
    Report(Report),
    Changed(Box<NodeChange>),
    Close,
}

/// Daemon to node.
#[derive(Clone, Debug)]
pub(super) enum Down {
    Welcome,
    HeartbeatAck(u64),
    Order(Effect),
    Close,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Agent {
    Up,
    /// Stopped by a signal: takes nothing in, forgets nothing.
    Frozen {
        until: u64,
    },
    /// Not there: what is on its disk remains.
    Down {
        until: u64,
    },
}

pub(super) struct Session {
    pub id: u64,
    welcomed: bool,
    /// Since the Hello was made, and the daemon is not told yet.
    has_changed: bool,
    hello_at: u64,
    next_beat: u64,
    number: u64,
    unanswered: VecDeque<(u64, u64)>,
    /// Everything reported in it, for replays.
    pub sent: Vec<Report>,
}

/// What the agent knows of an attempt; on its disk.
struct Known {
    key: AttemptKey,
    gpus: Vec<GpuIndex>,
    /// Thousandths of each of them.
    share: MilliGpu,
    /// Its process gets no lease: it goes on however long the daemon is away.
    kept: bool,
    /// It serves the command of the head and goes on until that is over, or it is told to stop.
    serves: bool,
    stage: Stage,
    /// What it says of it.
    latest: Progress,
}

enum Stage {
    Preparing { until: u64 },
    Running,
    Finalizing { until: u64, end: Box<AttemptEnd> },
    Ended { told_at: u64 },
}

/// A process that truly runs.
#[derive(Debug)]
pub(super) struct Process {
    pub key: AttemptKey,
    pub gpus: Vec<GpuIndex>,
    /// Thousandths of each of them.
    pub share: MilliGpu,
    started_at: Timestamp,
    ends_at: u64,
    finish: Finish,
    stopped: bool,
    kept: bool,
    /// It ends soon after its head's does, as a failure.
    serves: bool,
    /// Its agent has forgotten it: its lease ends then and is never renewed.
    orphaned: Option<u64>,
    /// Its lease has run out: dead by then at the latest.
    killed_by: Option<u64>,
}

/// What a supervisor leaves on disk.
enum Exited {
    Itself { exit: Exit, problem: Option<Cause>, started_at: Timestamp },
    ByLease,
    WithTheMachine,
}

pub(super) struct Node {
    /// What it says of itself at the next hello.
    pub record: NodeRecord,
    pub agent: Agent,
    known: BTreeMap<Epoch, Known>,
    pub processes: BTreeMap<Epoch, Process>,
    exits: BTreeMap<Epoch, Exited>,
    lease_until: u64,
    pub session: Option<Session>,
    retry_at: u64,
    /// Messages under way, with the session they belong to.
    pub up: VecDeque<(u64, Up)>,
    pub down: VecDeque<(u64, Down)>,
    /// The network swallows what goes this way until then.
    pub cut_up: u64,
    pub cut_down: u64,
}

impl Node {
    pub(super) fn new(record: NodeRecord) -> Self {
        Self {
            record,
            agent: Agent::Up,
            known: BTreeMap::new(),
            processes: BTreeMap::new(),
            exits: BTreeMap::new(),
            lease_until: 0,
            session: None,
            retry_at: 0,
            up: VecDeque::new(),
            down: VecDeque::new(),
            cut_up: 0,
            cut_down: 0,
        }
    }

    /// Lets the node live until `now`.
    pub(super) fn step(
        &mut self,
        now: u64,
        wall: Timestamp,
        lease: LeasePolicy,
        scripts: &BTreeMap<JobName, Script>,
        sessions: &mut u64,
    ) {
        self.supervise(now);
        match self.agent {
            Agent::Frozen { until } | Agent::Down { until } if now < until => return,
            _ => self.agent = Agent::Up,
        }
        if now >= self.cut_down {
            self.listen(now, lease, scripts);
        }
        if now >= self.lease_until {
            self.give_up_unstarted(now);
        }
        self.work(now, wall, scripts);
        self.speak(now, lease, sessions);
    }

    /// The supervisors: they see an end, and the end of the lease, without the agent.
    fn supervise(&mut self, now: u64) {
        let lease_until = self.lease_until;
        let mut over = Vec::new();
        for (epoch, process) in &mut self.processes {
            let lease = process.orphaned.unwrap_or(lease_until);
            if now >= lease && !process.kept && process.killed_by.is_none() {
                process.killed_by = Some(lease + KILL_MS);
            }
            if now >= process.ends_at {
                let (exit, problem) = match (process.stopped, process.finish) {
                    (true, _) => (Exit::Signal(15), Some(Cause::Canceled)),
                    (false, Finish::Exit(code)) => (Exit::Code(code), None),
                    (
                        false,
                        Finish::Problem(cause) | Finish::Unprepared(cause) | Finish::Unseen(cause),
                    ) => (Exit::Signal(9), Some(cause)),
                };
                let started_at = process.started_at;
                over.push((*epoch, Exited::Itself { exit, problem, started_at }));
            } else if process.killed_by.is_some_and(|at| now >= at) {
                over.push((*epoch, Exited::ByLease));
            }
        }
        for (epoch, exited) in over {
            self.processes.remove(&epoch);
            if self.known.contains_key(&epoch) {
                self.exits.insert(epoch, exited);
            }
        }
    }

    fn listen(&mut self, now: u64, lease: LeasePolicy, scripts: &BTreeMap<JobName, Script>) {
        while let Some((session, message)) = self.down.pop_front() {
            let Some(current) = self.session.as_mut().filter(|s| s.id == session) else { continue };
            match message {
                Down::Welcome => {
                    current.welcomed = true;
                    current.next_beat = now + lease.heartbeat_ms;
                    self.lease_until = self.lease_until.max(current.hello_at + lease.lease_ms);
                    if current.has_changed {
                        self.tell_change();
                    }
                }
                Down::HeartbeatAck(number) => {
                    while let Some((sent, at)) = current.unanswered.front().copied() {
                        if sent > number {
                            break;
                        }
                        current.unanswered.pop_front();
                        self.lease_until = self.lease_until.max(at + lease.lease_ms);
                    }
                }
                Down::Close => self.hang_up(now),
                Down::Order(Effect::Assign { key, reservation, spec, rank, .. }) => {
                    let kept = spec.on_node_loss == OnNodeLoss::Keep;
                    let serves = rank > 0 && spec.has_head();
                    let share = reservation.of_each_gpu();
                    self.assign(key, (reservation.gpus, share), (kept, serves), now, scripts);
                }
                Down::Order(Effect::Stop { key, .. }) => self.stop(&key, now),
                Down::Order(Effect::Acknowledge { key, .. } | Effect::Discard { key, .. }) => {
                    // A made-up key may carry the epoch of another job.
                    if self.known.get(&key.epoch).is_some_and(|known| known.key == key) {
                        self.forget(key.epoch);
                    }
                }
                Down::Order(
                    Effect::AttemptOver { .. }
                    | Effect::JobOver { .. }
                    | Effect::Release { .. }
                    | Effect::AddNode { .. }
                    | Effect::RemoveNode { .. },
                ) => {}
            }
        }
    }

    fn assign(
        &mut self,
        key: AttemptKey,
        (gpus, share): (Vec<GpuIndex>, MilliGpu),
        (kept, serves): (bool, bool),
        now: u64,
        scripts: &BTreeMap<JobName, Script>,
    ) {
        if let Some(known) = self.known.get(&key.epoch) {
            let report = Report { key, progress: known.latest.clone() };
            self.tell(report);
            return;
        }
        if self.known.values().any(|known| known.key.job == key.job && known.key.epoch > key.epoch)
        {
            return;
        }
        let overtaken: Vec<Epoch> = self
            .known
            .iter()
            .filter(|(_, known)| {
                known.key.job == key.job && !matches!(known.stage, Stage::Ended { .. })
            })
            .map(|(epoch, _)| *epoch)
            .collect();
        for epoch in overtaken {
            self.forget(epoch);
        }
        let until = now + scripts.get(&key.job).map_or(0, |script| script.prepare_ms);
        let latest = Progress::Preparing { step: "received".to_owned() };
        let stage = Stage::Preparing { until };
        let (own, said) = (key.clone(), latest.clone());
        let known = Known { key: own, gpus, share, kept, serves, stage, latest: said };
        self.known.insert(key.epoch, known);
        self.tell(Report { key, progress: latest });
    }

    fn stop(&mut self, key: &AttemptKey, now: u64) {
        if let Some(process) = self.processes.get_mut(&key.epoch) {
            if now < process.ends_at {
                process.ends_at = process.ends_at.min(now + STOP_MS);
                process.stopped = true;
            }
        } else if let Some(known) = self.known.get_mut(&key.epoch)
            && matches!(known.stage, Stage::Preparing { .. })
        {
            let end = failed_end(Cause::Canceled, "asked to stop");
            known.stage = Stage::Finalizing { until: now, end: Box::new(end) };
        }
    }

    /// The attempts whose heads run here.
    pub(super) fn heads(&self) -> impl Iterator<Item = Epoch> {
        self.processes.iter().filter(|(_, process)| !process.serves).map(|(epoch, _)| *epoch)
    }

    /// What serves a head that was there and is not any more finds itself alone.
    pub(super) fn lose_heads(&mut self, now: u64, is_gone: impl Fn(&Epoch) -> bool) {
        let alone = |(epoch, process): &(&Epoch, &mut Process)| {
            process.serves && !process.stopped && process.ends_at == u64::MAX && is_gone(epoch)
        };
        for (_, process) in self.processes.iter_mut().filter(alone) {
            process.ends_at = now + STOP_MS;
            process.finish = Finish::Exit(1);
        }
    }

    fn forget(&mut self, epoch: Epoch) {
        self.known.remove(&epoch);
        self.exits.remove(&epoch);
        self.processes.remove(&epoch);
    }

    /// What was assigned under a lease that has run out must not start under the next one.
    fn give_up_unstarted(&mut self, now: u64) {
        for known in self.known.values_mut() {
            if matches!(known.stage, Stage::Preparing { .. }) {
                let end = failed_end(Cause::LeaseExpired, "the lease ran out before the start");
                known.stage = Stage::Finalizing { until: now, end: Box::new(end) };
            }
        }
    }

    fn work(&mut self, now: u64, wall: Timestamp, scripts: &BTreeMap<JobName, Script>) {
        let mut news = Vec::new();
        for (epoch, known) in &mut self.known {
            let script = scripts.get(&known.key.job);
            loop {
                let next = match &mut known.stage {
                    Stage::Preparing { until } if now >= *until => {
                        let finish =
                            script.map_or(Finish::Exit(0), |s| s.finish(known.key.attempt));
                        if let Finish::Unprepared(cause) | Finish::Unseen(cause) = finish {
                            let mut end = failed_end(cause, "it cannot be made ready");
                            end.started_at = matches!(finish, Finish::Unseen(_)).then_some(wall);
                            known.stage = Stage::Finalizing { until: now, end: Box::new(end) };
                            continue;
                        }
                        let process = Process {
                            key: known.key.clone(),
                            gpus: known.gpus.clone(),
                            share: known.share,
                            started_at: wall,
                            ends_at: match known.serves {
                                true => u64::MAX,
                                false => now + script.map_or(0, |s| s.run_ms),
                            },
                            finish,
                            stopped: false,
                            kept: known.kept,
                            serves: known.serves,
                            orphaned: None,
                            killed_by: None,
                        };
                        self.processes.insert(*epoch, process);
                        (Stage::Running, Progress::Running { since: wall, idle_since: None })
                    }
                    Stage::Running => {
                        let Some(exited) = self.exits.remove(epoch) else { break };
                        let end = Box::new(end_of(exited));
                        let exit = end.exit;
                        let until = now + script.map_or(0, |s| s.finalize_ms);
                        (Stage::Finalizing { until, end }, Progress::Finalizing { exit })
                    }
                    Stage::Finalizing { until, end } if now >= *until => {
                        (Stage::Ended { told_at: now }, Progress::Ended(end.clone()))
                    }
                    Stage::Ended { told_at } if now >= *told_at + REPEAT_MS => {
                        *told_at = now;
                        news.push(Report {
                            key: known.key.clone(),
                            progress: known.latest.clone(),
                        });
                        break;
                    }
                    _ => break,
                };
                known.stage = next.0;
                known.latest = next.1;
                news.push(Report { key: known.key.clone(), progress: known.latest.clone() });
            }
        }
        for report in news {
            self.tell(report);
        }
    }

    fn tell(&mut self, report: Report) {
        if let Some(session) = self.session.as_mut().filter(|session| session.welcomed) {
            session.sent.push(report.clone());
            self.up.push_back((session.id, Up::Report(report)));
        }
    }

    /// A device breaks, or one that broke is whole again.
    pub(super) fn break_gpu(&mut self, index: GpuIndex) {
        let NodeRecord { capacity, gpus_out, .. } = &mut self.record;
        if let Some(device) = capacity.gpus.remove(&index) {
            gpus_out.insert(index, GpuOut { device, reason: "it fell off the bus".to_owned() });
        } else if let Some(out) = gpus_out.remove(&index) {
            capacity.gpus.insert(index, out.device);
        }
        self.tell_change();
    }

    /// A fact about the machine becomes this one, or is none any more.
    pub(super) fn change_fact(&mut self, name: &str, fact: Option<&str>) {
        match fact {
            Some(fact) => self.record.facts.insert(name.to_owned(), fact.to_owned()),
            None => self.record.facts.remove(name),
        };
        self.tell_change();
    }

    fn tell_change(&mut self) {
        let NodeRecord { capacity, gpus_out, facts, .. } = &self.record;
        let (gpus, gpus_out, facts) = (capacity.gpus.clone(), gpus_out.clone(), facts.clone());
        // An agent that is down says it when it joins.
        let Some(session) = &mut self.session else { return };
        session.has_changed = !session.welcomed;
        if session.welcomed {
            let change = Box::new(NodeChange { gpus, gpus_out, facts });
            self.up.push_back((session.id, Up::Changed(change)));
        }
    }

    fn speak(&mut self, now: u64, lease: LeasePolicy, sessions: &mut u64) {
        let Some(session) = &mut self.session else {
            if now >= self.retry_at {
                *sessions += 1;
                let reports = self.inventory();
                self.up.push_back((
                    *sessions,
                    Up::Hello { record: self.record.clone().into(), reports },
                ));
                self.session = Some(Session {
                    id: *sessions,
                    welcomed: false,
                    has_changed: false,
                    hello_at: now,
                    next_beat: now + SILENT_BEATS as u64 * lease.heartbeat_ms,
                    number: 0,
                    unanswered: VecDeque::new(),
                    sent: Vec::new(),
                });
            }
            return;
        };
        if now < session.next_beat {
            return;
        }
        if !session.welcomed || session.unanswered.len() >= SILENT_BEATS {
            self.hang_up(now);
            return;
        }
        session.number += 1;
        session.next_beat = now + lease.heartbeat_ms;
        session.unanswered.push_back((session.number, now));
        self.up.push_back((session.id, Up::Heartbeat(session.number)));
    }

    /// Everything that it knows.
    pub(super) fn inventory(&self) -> Vec<Report> {
        self.known
            .values()
            .map(|known| Report { key: known.key.clone(), progress: known.latest.clone() })
            .collect()
    }

    fn hang_up(&mut self, now: u64) {
        if let Some(session) = self.session.take() {
            self.up.push_back((session.id, Up::Close));
            self.retry_at = now + RETRY_MS;
        }
    }

    /// The agent is killed; its processes and its disk stay.
    pub(super) fn kill_agent(&mut self, now: u64, until: u64) {
        self.hang_up(now);
        self.agent = Agent::Down { until };
    }

    /// Everything stops at once, without a word.
    pub(super) fn lose_power(&mut self, until: u64) {
        self.session = None;
        self.up.clear();
        self.down.clear();
        for epoch in std::mem::take(&mut self.processes).into_keys() {
            if self.known.contains_key(&epoch) {
                self.exits.insert(epoch, Exited::WithTheMachine);
            }
        }
        self.agent = Agent::Down { until };
    }

    /// The agent is killed and its folder deleted: what runs is known to nobody here any more.
    /// A process whose start the daemon cannot know (`unheard`) is reaped with it.
    pub(super) fn wipe(&mut self, now: u64, until: u64, unheard: impl Fn(&AttemptKey) -> bool) {
        self.kill_agent(now, until);
        self.known.clear();
        self.exits.clear();
        self.processes.retain(|_, process| !unheard(&process.key));
        for process in self.processes.values_mut() {
            process.orphaned.get_or_insert(self.lease_until);
        }
        self.lease_until = 0;
    }
}

fn end_of(exited: Exited) -> AttemptEnd {
    match exited {
        Exited::Itself { exit, problem, started_at } => AttemptEnd {
            exit: Some(exit),
            problem: problem.map(|cause| failure(cause, "as the script has it")),
            started_at: Some(started_at),
            manifest: None,
            outputs: Vec::new(),
            log_bytes: 1,
            usage: None,
            survivors: 0,
        },
        Exited::ByLease => failed_end(Cause::LeaseExpired, "the lease ran out"),
        Exited::WithTheMachine => failed_end(Cause::AgentError, "the machine stopped"),
    }
}

fn failed_end(cause: Cause, message: &str) -> AttemptEnd {
    AttemptEnd {
        exit: None,
        problem: Some(failure(cause, message)),
        started_at: None,
        manifest: None,
        outputs: Vec::new(),
        log_bytes: 0,
        usage: None,
        survivors: 0,
    }
}

fn failure(cause: Cause, message: &str) -> Failure {
    Failure { cause, message: message.to_owned() }
}
