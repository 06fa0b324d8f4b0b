//! The world that the daemon and its nodes live in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::daemon::{Batch, Command, Daemon};
use super::node::{Agent, Down, Node, Up};
use super::provider::{Done, Provider};
use super::{Checked, Script, Store, ensure};
use crate::access::People;
use crate::compute::{AccessChange, Cluster};
use crate::id::{ComputeName, Epoch, JobName, NodeName};
use crate::job::{Job, Phase, Report, Tries};
use crate::live::{Effect, Live, TakenAway};
use crate::node::{LeasePolicy, NodeRecord};
use crate::resource::{Capacity, GpuIndex, WHOLE_GPU};
use crate::sched::{DataPlace, Limits, QuotaOf, WaitReason};
use crate::spec::{CommandJob, OnNodeLoss};
use crate::time::Timestamp;

/// What happens to the next batch that has something to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommitFault {
    /// It is not written, and the store says so.
    Refused,
    /// It is written, and the store says that it is not.
    Unsure,
    /// The daemon dies before it is written, and is away for so many milliseconds.
    CrashBefore(u64),
    /// The daemon dies after it is written and before anything is done about it.
    CrashAfter(u64),
}

/// What happens to a node, for so many milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outage {
    /// What it says does not arrive.
    CannotSpeak,
    /// What is said to it does not arrive.
    CannotHear,
    /// Neither does.
    Cut,
    /// The agent is stopped and goes on later as if nothing had been.
    Frozen,
    /// The agent is killed and started again.
    AgentDies,
    /// The machine stops and starts again.
    PowerLoss,
    /// The agent's folder is deleted with the agent, and a new one starts.
    Forgets,
}

/// A daemon, its store, nodes, and the messages between them. Time passes only in
/// [`World::advance`], in steps of at most one heartbeat.
pub struct World {
    /// Milliseconds since the beginning, truly.
    clock: u64,
    /// By how much the daemon's wall clock is wrong.
    wall_skew: i64,
    widest_skew: u64,
    lease: LeasePolicy,
    computes: Vec<ComputeName>,
    /// All of the daemon that survives it.
    pub store: Store,
    daemon: Option<Daemon>,
    daemon_returns_at: u64,
    nodes: BTreeMap<NodeName, Node>,
    /// As they were built: what heals goes back to this.
    records: BTreeMap<NodeName, NodeRecord>,
    scripts: BTreeMap<JobName, Script>,
    acknowledged: BTreeSet<JobName>,
    fault: Option<CommitFault>,
    sessions: u64,
    provider: Provider,
    /// Machines that were taken away, with when the daemon is told next.
    preempted: BTreeMap<NodeName, u64>,
    /// Every attempt whose process ever ran.
    started: BTreeMap<JobName, BTreeSet<Epoch>>,
    /// Every attempt whose process of rank 0 ever ran.
    heads: BTreeSet<Epoch>,
    /// Every effect that was performed, in order.
    pub effects: Vec<Effect>,
}

/// A provider that has failed is asked again after ten minutes at most; twice, as nodes leave before
/// others come.
const SUPPLY_MS: u64 = 1_300_000;
/// A provider that is asked which machines there are says so this often.
const TELL_MS: u64 = 300;
const WALL: i64 = 1_700_000_000_000;

impl World {
    /// A world with these nodes. The first compute is the default.
    pub fn new(lease: LeasePolicy, computes: &[&str], nodes: &[NodeRecord]) -> Self {
        let records: BTreeMap<NodeName, NodeRecord> =
            nodes.iter().map(|record| (record.name.clone(), record.clone())).collect();
        Self {
            clock: 0,
            wall_skew: 0,
            widest_skew: 0,
            lease,
            computes: computes.iter().map(|name| super::compute_name(name)).collect(),
            store: Store::default(),
            daemon: None,
            daemon_returns_at: 0,
            nodes: records.values().map(|r| (r.name.clone(), Node::new(r.clone()))).collect(),
            records,
            scripts: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            fault: None,
            sessions: 0,
            provider: Provider::default(),
            preempted: BTreeMap::new(),
            started: BTreeMap::new(),
            heads: BTreeSet::new(),
            effects: Vec::new(),
        }
    }

    /// Milliseconds since the beginning.
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// The daemon's live state, unless it is down.
    pub fn live(&self) -> Option<&Live> {
        self.daemon.as_ref().map(|daemon| &daemon.live)
    }

    fn wall(&self) -> Timestamp {
        let clock = i64::try_from(self.clock).unwrap_or(i64::MAX);
        Timestamp::from_millis(WALL + clock + self.wall_skew)
    }

    /// The processes of a job that run now, with their nodes.
    pub fn processes(&self, job: &JobName) -> Vec<(NodeName, Epoch)> {
        self.nodes
            .iter()
            .flat_map(|(name, node)| node.processes.values().map(move |p| (name, p)))
            .filter(|(_, process)| &process.key.job == job)
            .map(|(name, process)| (name.clone(), process.key.epoch))
            .collect()
    }

    /// How many attempts of a job ever ran.
    pub fn starts(&self, job: &JobName) -> usize {
        self.started.get(job).map_or(0, BTreeSet::len)
    }

    /// Submissions that were acknowledged, in order of their names.
    pub fn acknowledged(&self) -> impl Iterator<Item = &JobName> {
        self.acknowledged.iter()
    }

    /// Asks for a job. It is decided on with the next batch; a daemon that is down hears nothing.
    pub fn submit(&mut self, name: &JobName, spec: Arc<CommandJob>, script: Script) {
        self.scripts.entry(name.clone()).or_insert(script);
        if let Some(daemon) = &mut self.daemon {
            daemon.inbox.push(Command::Submit { name: name.clone(), spec });
        }
    }

    /// Asks a job to stop.
    pub fn cancel(&mut self, name: &JobName) {
        if let Some(daemon) = &mut self.daemon {
            daemon.inbox.push(Command::Cancel(name.clone()));
        }
    }

    /// Drains a node; with a time, its jobs go back in the queue that much later.
    pub fn drain(&mut self, node: &NodeName, deadline_ms: Option<i64>) {
        let deadline = deadline_ms.map(|ms| self.wall().plus_millis(ms));
        if let Some(daemon) = &mut self.daemon {
            daemon.inbox.push(Command::Drain { node: node.clone(), deadline });
        }
    }

    /// Lets a drained node have jobs again.
    pub fn resume(&mut self, node: &NodeName) {
        if let Some(daemon) = &mut self.daemon {
            daemon.inbox.push(Command::Resume(node.clone()));
        }
    }

    /// Decides what becomes of the next batch that has something to write.
    pub fn fail_next_commit(&mut self, fault: CommitFault) {
        self.fault = Some(fault);
    }

    /// Kills the daemon; it starts again after so many milliseconds.
    pub fn kill_daemon(&mut self, for_ms: u64) {
        self.daemon = None;
        self.daemon_returns_at = self.clock + for_ms;
        for node in self.nodes.values_mut() {
            if let Some(session) = &node.session {
                node.down.push_back((session.id, Down::Close));
            }
        }
    }

    /// Everything on disk as it is now.
    pub fn backup(&self) -> Store {
        self.store.clone()
    }

    /// Kills the daemon and puts a backup in the place of what is on disk; it starts again after so many
    /// milliseconds. What was acknowledged since the backup is lost.
    pub fn restore(&mut self, backup: Store, for_ms: u64) {
        self.kill_daemon(for_ms);
        // What is judged at the end is what the backup and all after it knows.
        let known = backup.counters.epoch;
        self.started.values_mut().for_each(|started| started.retain(|epoch| *epoch <= known));
        self.store = backup.restored(self.wall());
        self.acknowledged.retain(|name| self.store.jobs.contains_key(name));
    }

    /// Makes the daemon's wall clock wrong by so many milliseconds.
    pub fn set_wall_clock(&mut self, skew_ms: i64) {
        self.wall_skew = skew_ms;
        self.widest_skew = self.widest_skew.max(skew_ms.unsigned_abs());
    }

    /// Makes something happen to a node.
    pub fn strike(&mut self, name: &NodeName, outage: Outage, for_ms: u64) {
        let (now, until) = (self.clock, self.clock + for_ms);
        let Some(node) = self.nodes.get_mut(name) else { return };
        match outage {
            Outage::CannotSpeak => node.cut_up = until,
            Outage::CannotHear => node.cut_down = until,
            Outage::Cut => (node.cut_up, node.cut_down) = (until, until),
            Outage::Frozen => {
                if node.agent == Agent::Up {
                    node.agent = Agent::Frozen { until };
                }
            }
            Outage::AgentDies => node.kill_agent(now, until),
            Outage::PowerLoss => node.lose_power(until),
            Outage::Forgets => {
                let jobs = &self.store.jobs;
                // The daemon gives such an attempt to the node a second time, because it cannot
                // tell a lost assignment from a lost memory.
                node.wipe(now, until, |key| {
                    jobs.get(&key.job).and_then(Job::active).is_some_and(|active| {
                        let member = active.on(name).map(|(_, member)| &member.phase);
                        active.epoch == key.epoch && member == Some(&Phase::Starting)
                    })
                });
            }
        }
    }

    /// Restarts a node's agent with another capacity or in another compute.
    pub fn change_node(
        &mut self,
        name: &NodeName,
        capacity: Option<Capacity>,
        compute: Option<ComputeName>,
    ) {
        let now = self.clock;
        let Some(node) = self.nodes.get_mut(name) else { return };
        if let Some(capacity) = capacity {
            node.record.capacity = capacity;
        }
        if let Some(compute) = compute {
            node.record.compute = compute;
        }
        node.kill_agent(now, now);
    }

    /// A device of a node breaks while its agent runs, or one that broke is whole again.
    pub fn break_gpu(&mut self, name: &NodeName, index: GpuIndex) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.break_gpu(index);
        }
    }

    /// A fact about a node becomes this one while its agent runs, or is none any more.
    pub fn change_fact(&mut self, name: &NodeName, fact: &str, is: Option<&str>) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.change_fact(fact, is);
        }
    }

    /// A node says what its cache holds of which inputs, in bytes.
    pub fn hold(&mut self, name: &NodeName, held: Vec<(DataPlace, u64)>) {
        if let Some(daemon) = &mut self.daemon {
            daemon.inbox.push(Command::Holds { node: name.clone(), held });
        }
    }

    /// Repeats a report of the node's session, behind everything that is under way.
    pub fn replay(&mut self, name: &NodeName, which: usize) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        if let Some(session) = &node.session
            && !session.sent.is_empty()
        {
            let report = session.sent[which % session.sent.len()].clone();
            node.up.push_back((session.id, Up::Report(report)));
        }
    }

    /// Lets the newest message from a node arrive before all others that are under way.
    pub fn reorder(&mut self, name: &NodeName) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        if let Some(last) = node.up.pop_back() {
            node.up.push_front(last);
        }
    }

    /// A node reports, in its own session, something that is not its own.
    pub fn forge(&mut self, name: &NodeName, report: Report) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        if let Some(session) = &node.session {
            node.up.push_back((session.id, Up::Report(report)));
        }
    }

    /// What a node knows, as it would tell it now.
    pub fn inventory(&self, name: &NodeName) -> Vec<Report> {
        self.nodes.get(name).map(Node::inventory).unwrap_or_default()
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// The first promise that is broken on the way.
    pub fn advance(&mut self, ms: u64) -> Checked {
        let end = self.clock + ms;
        loop {
            self.clock = end.min(self.clock + self.lease.heartbeat_ms);
            self.pump()?;
            if self.clock == end {
                return Ok(());
            }
        }
    }

    /// One breath: nodes act and speak, the daemon hears, decides and answers.
    fn pump(&mut self) -> Checked {
        if self.daemon.is_none() && self.clock >= self.daemon_returns_at {
            let (lease, clock) = (self.lease, self.clock);
            let daemon = Daemon::recover(&self.store, &self.computes, lease, clock, clock)?;
            daemon.judge_written(&self.store)?;
            self.daemon = Some(daemon);
        }
        let wall = Timestamp::from_millis(WALL + i64::try_from(self.clock).unwrap_or(i64::MAX));
        let names: Vec<NodeName> = self.nodes.keys().cloned().collect();
        for name in &names {
            let Some(node) = self.nodes.get_mut(name) else { continue };
            node.step(self.clock, wall, self.lease, &self.scripts, &mut self.sessions);
            self.judge_processes(name)?;
        }
        let heads: BTreeSet<Epoch> = self.nodes.values().flat_map(Node::heads).collect();
        self.heads.extend(&heads);
        for node in self.nodes.values_mut() {
            let is_gone = |epoch: &Epoch| self.heads.contains(epoch) && !heads.contains(epoch);
            node.lose_heads(self.clock, is_gone);
        }
        self.provide()?;
        self.carry();
        self.round()
    }

    /// The provider does what it was asked, when its time has come.
    fn provide(&mut self) -> Checked {
        let clock = self.clock;
        let due: Vec<NodeName> = self
            .preempted
            .iter_mut()
            .filter(|(_, at)| **at <= clock)
            .map(|(node, at)| {
                *at = clock + TELL_MS;
                node.clone()
            })
            .collect();
        for node in due {
            let reason = "preempted".to_owned();
            self.tell(Command::TakenAway(TakenAway { node, reason, preempted: true }));
        }
        for done in self.provider.due(self.clock) {
            match done {
                Done::Added { node, record } => {
                    if let Some(record) = record
                        && !self.nodes.contains_key(&node)
                    {
                        self.nodes.insert(node.clone(), Node::new(*record));
                    }
                    self.tell(Command::Made { node, made: Ok(()) });
                }
                Done::Removed { node } => {
                    self.judge_removal(&node)?;
                    self.nodes.remove(&node);
                    self.tell(Command::Gone { node, gone: Ok(()) });
                }
                Done::Failed { node, adds: true } => {
                    self.tell(Command::Made { node, made: Err("none to be had".to_owned()) });
                }
                Done::Failed { node, adds: false } => {
                    self.tell(Command::Gone { node, gone: Err("no answer".to_owned()) });
                }
            }
        }
        let mut machines: BTreeMap<&ComputeName, u32> = BTreeMap::new();
        for (name, node) in &self.nodes {
            if !self.records.contains_key(name) {
                *machines.entry(&node.record.compute).or_default() += 1;
            }
        }
        for (compute, machines) in machines {
            let most = self.provider.most(compute);
            ensure(machines <= most, "scale", || {
                format!("{compute} has {machines} machines, and {most} are allowed")
            })?;
        }
        Ok(())
    }

    /// No node is taken away while a job of the daemon's runs there.
    fn judge_removal(&self, name: &NodeName) -> Checked {
        let Some(node) = self.nodes.get(name) else { return Ok(()) };
        for (epoch, process) in &node.processes {
            let active = self.store.jobs.get(&process.key.job).and_then(Job::active);
            let works =
                active.is_some_and(|active| &active.epoch == epoch && active.on(name).is_some());
            ensure(!works, "scale", || format!("{name} was removed with {:?}", process.key))?;
        }
        Ok(())
    }

    /// A daemon that is down hears nothing.
    fn tell(&mut self, command: Command) {
        if let Some(daemon) = &mut self.daemon {
            daemon.inbox.push(command);
        }
    }

    /// Makes a cluster, or changes it.
    pub fn put_cluster(&mut self, cluster: Cluster) {
        self.provider.allow(&cluster);
        self.tell(Command::PutCluster(Box::new(cluster)));
    }

    /// Deletes a cluster.
    pub fn delete_cluster(&mut self, name: &ComputeName) {
        self.tell(Command::DeleteCluster(name.clone()));
    }

    /// Drains a compute; with a time, its jobs go back in the queue that much later.
    pub fn drain_compute(&mut self, compute: &ComputeName, deadline_ms: Option<i64>) {
        let deadline = deadline_ms.map(|ms| self.wall().plus_millis(ms));
        self.tell(Command::DrainCompute { compute: compute.clone(), deadline });
    }

    /// Lets a drained compute have jobs again.
    pub fn resume_compute(&mut self, compute: &ComputeName) {
        self.tell(Command::ResumeCompute(compute.clone()));
    }

    /// Says what somebody's jobs may hold of a compute, or takes that back.
    pub fn set_quota(&mut self, compute: &ComputeName, of: QuotaOf, limits: Option<Limits>) {
        self.tell(Command::SetQuota { compute: compute.clone(), of, limits });
    }

    /// Changes who may use a compute.
    pub fn change_access(&mut self, compute: &ComputeName, change: AccessChange) {
        self.tell(Command::ChangeAccess { compute: compute.clone(), change });
    }

    /// Says who is in which group.
    pub fn set_people(&mut self, people: People) {
        self.store.people = people.clone();
        self.tell(Command::SetPeople(people));
    }

    /// The provider fails at everything for so many milliseconds.
    pub fn fail_provider(&mut self, for_ms: u64) {
        self.provider.fails_until = self.clock + for_ms;
    }

    /// The machines of a cluster that truly are there.
    pub fn machines(&self, compute: &ComputeName) -> Vec<NodeName> {
        let theirs = self.nodes.iter().filter(|(name, node)| {
            &node.record.compute == compute && !self.records.contains_key(*name)
        });
        theirs.map(|(name, _)| name.clone()).collect()
    }

    /// A machine of a cluster will be taken away, and still works when the daemon is told.
    pub fn warn_of_preemption(&mut self, node: &NodeName) {
        self.preempted.insert(node.clone(), self.clock);
    }

    /// Machines that are added from now on have so much memory, in MiB, whatever their size says.
    pub fn shrink_machines(&mut self, memory: u64) {
        self.provider.memory = Some(memory);
    }

    /// Machines that are added from now on have none of their cluster's labels.
    pub fn forget_labels(&mut self) {
        self.provider.forgets_labels = true;
    }

    /// A machine of a cluster is taken from under its node, and the daemon is told.
    pub fn preempt(&mut self, node: &NodeName) {
        if self.records.contains_key(node) || self.nodes.remove(node).is_none() {
            return;
        }
        self.preempted.insert(node.clone(), self.clock);
    }

    /// I1: the processes of a job are of one attempt, whatever the daemon believes, and each is on a
    /// node of its own; and no device in two hands.
    fn judge_processes(&mut self, stepped: &NodeName) -> Checked {
        let mut alive: BTreeMap<&JobName, (&NodeName, Epoch)> = BTreeMap::new();
        for (name, node) in &self.nodes {
            let mut devices: BTreeMap<GpuIndex, u32> = BTreeMap::new();
            for process in node.processes.values() {
                let other = alive.insert(&process.key.job, (name, process.key.epoch));
                let peer = |(node, epoch)| node != name && epoch == process.key.epoch;
                ensure(other.is_none_or(peer), "I1", || {
                    format!("{:?} runs on {name} and, twice, on {other:?}", process.key)
                })?;
                for gpu in &process.gpus {
                    let used = devices.entry(*gpu).or_default();
                    *used += u32::from(process.share);
                    ensure(*used <= WHOLE_GPU.into(), "I9", || {
                        format!("{used} of GPU {gpu} of {name} are used, by {:?} too", process.key)
                    })?;
                }
            }
        }
        let Some(node) = self.nodes.get(stepped) else { return Ok(()) };
        let known =
            node.processes.values().filter(|process| !self.store.is_lost(process.key.epoch));
        for process in known {
            let started = self.started.entry(process.key.job.clone()).or_default();
            started.insert(process.key.epoch);
        }
        Ok(())
    }

    /// Carries to the daemon what nodes have said.
    fn carry(&mut self) {
        for (name, node) in &mut self.nodes {
            if self.clock < node.cut_up {
                continue;
            }
            while let Some((session, message)) = node.up.pop_front() {
                // A connection opens only where both ways are open.
                if matches!(message, Up::Hello { .. }) && self.clock < node.cut_down {
                    node.up.push_front((session, message));
                    break;
                }
                let answer = match &mut self.daemon {
                    Some(daemon) => daemon.hear(name, session, message, self.clock),
                    None => Some(Down::Close),
                };
                node.down.extend(answer.map(|answer| (session, answer)));
            }
        }
    }

    /// Decides, writes, answers, acts.
    fn round(&mut self) -> Checked {
        let wall = self.wall();
        let Some(daemon) = &mut self.daemon else { return Ok(()) };
        let closed = daemon.hang_up(self.lease, self.clock);
        if daemon.inbox.is_empty() && !daemon.live.has_timers() {
            return Ok(());
        }
        let now = daemon.now(self.clock, wall);
        let batch = daemon.decide(now, &self.store)?;
        self.close(closed);
        if batch.is_idle() {
            return self.act(batch);
        }
        match self.fault.take() {
            None => {
                self.write(&batch)?;
                self.act(batch)
            }
            Some(CommitFault::Refused) => self.roll_back(),
            Some(CommitFault::Unsure) => {
                self.write(&batch)?;
                self.roll_back()
            }
            Some(CommitFault::CrashBefore(ms)) => {
                self.kill_daemon(ms);
                Ok(())
            }
            Some(CommitFault::CrashAfter(ms)) => {
                self.write(&batch)?;
                self.kill_daemon(ms);
                Ok(())
            }
        }
    }

    fn write(&mut self, batch: &Batch) -> Checked {
        let Some(daemon) = &self.daemon else { return Ok(()) };
        self.store.commit(&batch.decisions, daemon.live.counters())?;
        daemon.judge_written(&self.store)?;
        for name in &self.acknowledged {
            let known = self.store.jobs.contains_key(name);
            ensure(known, "I2", || format!("{name} was acknowledged and is gone"))?;
        }
        Ok(())
    }

    fn roll_back(&mut self) -> Checked {
        let Some(daemon) = &mut self.daemon else { return Ok(()) };
        let closed = daemon.roll_back(&self.store, &self.computes, self.lease, self.clock)?;
        daemon.judge_written(&self.store)?;
        self.close(closed);
        Ok(())
    }

    fn act(&mut self, batch: Batch) -> Checked {
        for name in batch.submitted {
            ensure(self.store.jobs.contains_key(&name), "I2", || {
                format!("{name} is acknowledged before it is written")
            })?;
            self.acknowledged.insert(name);
        }
        self.close(batch.refused);
        for (name, session) in batch.joined {
            if let Some(node) = self.nodes.get_mut(&name) {
                node.down.push_back((session, Down::Welcome));
            }
        }
        let Some(daemon) = &self.daemon else { return Ok(()) };
        for effect in batch.decisions.effects {
            let target = match &effect {
                Effect::Assign { node, .. }
                | Effect::Stop { node, .. }
                | Effect::Acknowledge { node, .. }
                | Effect::Discard { node, .. }
                | Effect::Release { node, .. } => Some(node),
                Effect::AddNode { cluster, node } => {
                    self.provider.add(cluster, node, self.clock);
                    None
                }
                Effect::RemoveNode { node, .. } => {
                    self.provider.remove(node, self.clock);
                    None
                }
                Effect::AttemptOver { .. } | Effect::JobOver { .. } => None,
            };
            if let Some(name) = target
                && let Some(session) = daemon.sessions.get(name)
                && let Some(node) = self.nodes.get_mut(name)
            {
                node.down.push_back((*session, Down::Order(effect.clone())));
            }
            self.effects.push(effect);
        }
        Ok(())
    }

    fn close(&mut self, sessions: Vec<(NodeName, u64)>) {
        for (name, session) in sessions {
            if let Some(node) = self.nodes.get_mut(&name) {
                node.down.push_back((session, Down::Close));
            }
        }
    }

    /// Ends every fault: everything is reachable, up, and as it was built.
    pub fn heal(&mut self) {
        self.fault = None;
        self.provider.fails_until = 0;
        self.wall_skew = 0;
        self.daemon_returns_at = self.clock;
        for (name, node) in &mut self.nodes {
            (node.cut_up, node.cut_down) = (0, 0);
            match &mut node.agent {
                Agent::Up => {}
                Agent::Frozen { until } | Agent::Down { until } => *until = self.clock,
            }
            if let Some(record) = self.records.get(name)
                && &node.record != record
            {
                node.record = record.clone();
                node.kill_agent(self.clock, self.clock);
            }
        }
    }

    /// I18: heals, and lets time pass until every job has ended. Those that shall wait for a node
    /// that has forgotten them are cancelled when nothing else is left.
    ///
    /// # Errors
    /// I18 if something is left after the time that all of it takes one after the other.
    pub fn finish(&mut self) -> Checked {
        self.heal();
        // What was asked for is heard first.
        self.advance(0)?;
        for name in self.nodes.keys().cloned().collect::<Vec<_>>() {
            self.resume(&name);
        }
        for (compute, record) in self.store.computes.clone() {
            self.resume_compute(&compute);
            // One that was lowered may never again allow a job that was accepted before.
            self.set_quota(&compute, QuotaOf::Each, None);
            for user in record.quotas.users.into_keys() {
                self.set_quota(&compute, QuotaOf::User(user), None);
            }
            for group in record.quotas.groups.into_keys() {
                self.set_quota(&compute, QuotaOf::Group(group), None);
            }
            self.change_access(&compute, AccessChange::Open);
        }
        self.advance(0)?;
        // Attempts of a job's own fault and of the platform's, with the pauses between them.
        let longest: u64 = self
            .store
            .unfinished()
            .map(|job| {
                let of_platform = u64::from(Tries::MAX_LOST + Tries::MAX_UNSTARTED);
                let tries = u64::from(job.spec.retry.max_attempts) + 1 + of_platform;
                let doublings = job.spec.retry.max_attempts.min(10);
                // 1 s and 2 s, and those up to a minute before what cannot be made ready is given up.
                let pauses = (job.spec.retry.backoff << doublings) + 4 + 130;
                let one = self.scripts.get(&job.name).map_or(0, Script::total_ms);
                tries * (one + 20 * self.lease.heartbeat_ms) + pauses * 1_000
            })
            .sum();
        let lease = self.lease.lease_ms + self.lease.margin_ms + self.lease.unreachable_ms;
        // Back-offs count the wall clock.
        let supply = if self.store.computes.is_empty() { 0 } else { SUPPLY_MS };
        let limit = self.clock + longest + 3 * lease + 2 * self.widest_skew + supply;
        while self.store.unfinished().next().is_some() && self.clock < limit {
            self.advance(self.lease.heartbeat_ms * 10)?;
        }
        // A job that shall wait for its node waits, and so does one for which there were nodes enough
        // when it came and are not now.
        let waits = |job: &&Job| {
            let reason = self.live().and_then(|live| live.wait_reason(job));
            (job.spec.on_node_loss == OnNodeLoss::Keep && job.active().is_some())
                || matches!(reason, Some(WaitReason::TooFew { .. }))
        };
        let stuck: Vec<JobName> =
            self.store.unfinished().filter(waits).map(|job| job.name.clone()).collect();
        let limit = self.clock + 2 * lease + longest;
        for name in &stuck {
            self.cancel(name);
        }
        while self.store.unfinished().next().is_some() && self.clock < limit && !stuck.is_empty() {
            self.advance(self.lease.heartbeat_ms * 10)?;
        }
        let left: Vec<_> = self.store.unfinished().map(|job| (&job.name, &job.state)).collect();
        ensure(left.is_empty(), "I18", || format!("these never ended: {left:?}"))?;
        self.advance(self.lease.unreachable_ms)?;
        self.judge_end()
    }

    /// When all is over: nothing runs, nothing is held, and each job has ended once.
    fn judge_end(&self) -> Checked {
        for (name, node) in &self.nodes {
            ensure(node.processes.is_empty(), "I13", || {
                format!("{:?} still run on {name}", node.processes)
            })?;
            ensure(node.inventory().is_empty(), "I18", || {
                format!("{name} still keeps {:?}", node.inventory())
            })?;
        }
        let Some(live) = self.live() else { return Ok(()) };
        for compute in live.computes() {
            let Some(pool) = live.sched().pool(&compute.name) else { continue };
            for (node, ledger, _) in pool.nodes() {
                ensure(ledger.is_idle(), "I9", || format!("{node} still holds {ledger:?}"))?;
            }
        }
        for (name, job) in &self.store.jobs {
            let ends = self
                .store
                .story(name)
                .into_iter()
                .filter(|kind| matches!(*kind, "Completed" | "Failed" | "Canceled"))
                .count();
            ensure(ends == 1, "I4", || format!("{name} ended {ends} times"))?;
            let most = (job.spec.retry.max_attempts + 2 + job.tries.evicted) as usize;
            ensure(self.starts(name) <= most, "I16", || {
                format!("{name} was started {} times", self.starts(name))
            })?;
        }
        Ok(())
    }
}
