//! The only owner of live state.
//!
//! It takes whatever has gathered, lets core decide, writes the whole batch in one transaction,
//! and only then answers and acts. Nothing is acknowledged before it is on disk.
//!
//! While one round is made durable the next is decided, on the state that the first leaves. If the
//! first cannot be written, the store refuses the second, both are answered with the failure, and
//! the state is what the disk has. Questions that the disk or the state as a whole answers wait
//! until nothing is under way.

mod round;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use atelier_core::audit::Change;
use atelier_core::id::{ComputeName, JobName, NodeName, Principal};
use atelier_core::job::{Event, EventKind, Job};
use atelier_core::live::{
    Counters, Decisions, Effect, Entering, Live, Refusal, Restored, Sandbox, Submission,
};
use atelier_core::node::{Drain, LeasePolicy, Now};
use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use self::round::Round;
use super::Clock;
use super::effects::{Effects, ToNode};
use super::handle::{
    Command, ComputeChange, DebugRequest, DrainRequest, EnterRequest, Error, Handle, Join, Look,
    NodeView, Provided, Reply, SubmitRequest,
};
use super::runs;
use crate::identity::people::people_in;
use crate::store::{self, Batch, Known, Recovered, Store, Submitted, Taken};

/// At most so many commands in one transaction.
const BATCH: usize = 512;
/// So many are taken in any case.
const SMALL: usize = 16;
/// So many rounds may be on their way to the disk: one that is written, one that waits for it.
const ROUNDS: usize = 2;
/// At most so many commands waiting; beyond it callers wait for room.
const QUEUE: usize = 8192;
/// How many live events a watcher may lag behind before it reads the store.
const EVENTS: usize = 8192;
/// How often time is let pass.
const TICK: Duration = Duration::from_millis(250);

/// What does not change while the daemon runs.
pub(super) struct Settings {
    pub computes: Vec<ComputeName>,
    pub default_compute: ComputeName,
    pub principal: Principal,
    pub lease: LeasePolicy,
}

pub(super) struct Reactor {
    settings: Settings,
    live: Live,
    store: Arc<dyn Store>,
    effects: Effects,
    clock: Clock,
    sessions: HashMap<NodeName, Session>,
    views: HashMap<NodeName, NodeView>,
    events: broadcast::Sender<Arc<Event>>,
    /// Rounds on their way to the disk, the oldest first.
    under_way: VecDeque<UnderWay>,
}

/// A round that is decided, and answered and acted upon once it is on disk.
struct UnderWay {
    written: BoxFuture<'static, Result<(), store::Error>>,
    batch: Arc<Batch>,
    answers: Vec<Answer>,
    looks: Vec<Look>,
    effects: Vec<Effect>,
    stop: Option<oneshot::Sender<()>>,
}

/// The reactor's task: ends with an error when the store can no longer be trusted.
pub(super) type Running = tokio::task::JoinHandle<Result<(), Arc<store::Error>>>;

struct Session {
    id: u64,
    instance: String,
    outbox: mpsc::UnboundedSender<ToNode>,
}

/// What the store knows of the submissions of a round.
type Looked = Result<std::vec::IntoIter<Known>, Arc<store::Error>>;

/// Whether the oldest round is on disk, once that is known; never if there is none.
async fn next(under_way: &mut VecDeque<UnderWay>) -> Result<(), store::Error> {
    match under_way.front_mut() {
        Some(oldest) => (&mut oldest.written).await,
        None => std::future::pending().await,
    }
}

/// An answer that waits for the disk.
type Answer = Box<dyn FnOnce(Result<&BTreeMap<JobName, Job>, Arc<store::Error>>) + Send>;

impl Reactor {
    /// Recovers what the store holds and starts. The task ends when the handle says stop, or with
    /// an error when the store can no longer be trusted.
    pub(super) fn start(
        settings: Settings,
        store: Arc<dyn Store>,
        effects: Effects,
        clock: Clock,
    ) -> Result<(Handle, Running), store::Error> {
        let (commands, queue) = mpsc::channel(QUEUE);
        let (events, _) = broadcast::channel(EVENTS);
        let handle = Handle::new(commands, events.clone());
        let live = recovered(&settings, &*store, clock.now())?;
        effects.resume(live.jobs());
        let reactor = Self {
            settings,
            live,
            store,
            effects,
            clock,
            sessions: HashMap::new(),
            views: HashMap::new(),
            events,
            under_way: VecDeque::new(),
        };
        Ok((handle, tokio::spawn(reactor.run(queue))))
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Command>) -> Result<(), Arc<store::Error>> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut commands = Vec::with_capacity(BATCH);
        loop {
            let open = self.takes_more();
            let timers = open && self.live.has_timers();
            // Half of what waits: while it is written, those answered before it come back. Taking
            // all would leave the disk idle while they do (measured: a third more submissions a
            // second with 64 in flight).
            let half = (queue.len() / 2).clamp(SMALL, BATCH);
            tokio::select! {
                biased;
                written = next(&mut self.under_way) => {
                    if self.settle(written).await? {
                        return Ok(());
                    }
                    continue;
                }
                count = queue.recv_many(&mut commands, half), if open => {
                    if count == 0 {
                        return self.settle_all().await.map(drop);
                    }
                }
                _ = ticks.tick(), if timers => {}
            }
            if commands.iter().any(|command| self.must_wait(command)) && self.settle_all().await? {
                return Ok(());
            }
            self.round(&mut commands);
        }
    }

    /// Whether another round may be decided. Not beside one that shows the state as it is on disk.
    fn takes_more(&self) -> bool {
        let shows = |round: &UnderWay| !round.looks.is_empty() || round.stop.is_some();
        self.under_way.len() < ROUNDS && !self.under_way.iter().any(shows)
    }

    /// Whether a command depends on what is on disk in a way that what is under way may change.
    fn must_wait(&self, command: &Command) -> bool {
        if self.under_way.is_empty() {
            return false;
        }
        match command {
            Command::Submit { request, .. } => self.under_way.iter().any(|round| {
                let collides = |submitted: &Submitted| {
                    submitted.job == request.name
                        || match (&submitted.key, &request.key) {
                            (Some(theirs), Some(own)) => theirs.key == own.key,
                            _ => false,
                        }
                };
                !round.batch.deleted.is_empty() || round.batch.submitted.iter().any(collides)
            }),
            Command::Cancel { job, .. } => self.live.job(job).is_none(),
            // Whose it is says the disk, which still has what is being deleted.
            Command::NodeKeeps { .. } => {
                self.under_way.iter().any(|round| !round.batch.deleted.is_empty())
            }
            Command::Archive { .. }
            | Command::Forget { .. }
            | Command::NodeJoined { .. }
            | Command::NodeLeft { .. }
            // What is told is about what the asker has seen on disk, and must not come before it.
            | Command::Tell { .. } => true,
            Command::Enter { .. }
            | Command::Debug { .. }
            | Command::Release { .. }
            | Command::NodeReport { .. }
            | Command::NodeChanged { .. }
            | Command::NodeHolds { .. }
            | Command::Drain { .. }
            | Command::Resume { .. }
            | Command::Compute { .. }
            | Command::People { .. }
            | Command::Provided(_)
            | Command::Heartbeat { .. }
            | Command::Look(_)
            | Command::Stop(_) => false,
        }
    }

    /// Decides one round and hands it to the store.
    fn round(&mut self, commands: &mut Vec<Command>) {
        let now = self.clock.now();
        let mut round = Round::default();
        let mut known = self.look_up(commands);
        for command in commands.drain(..) {
            self.take(command, now, &mut known, &mut round);
        }
        self.live.tick(now, &mut round.decisions);
        self.live.schedule(now, &mut round.decisions);
        let Round { decisions, submitted, deleted, audit, answers, looks, stop } = round;
        let runs = runs::follow(&submitted, &decisions, &deleted);
        for node in &decisions.nodes_gone {
            // Its agent, if there still is one, is told when it comes again.
            self.sessions.remove(node);
            self.views.remove(node);
        }
        let Decisions {
            events,
            changed,
            nodes,
            nodes_gone,
            computes,
            computes_gone,
            instances,
            instances_gone,
            hold_over,
            effects,
            submitted: _,
        } = decisions;
        let batch = Batch {
            runs,
            submitted,
            changed,
            events,
            nodes,
            nodes_gone,
            computes,
            computes_gone,
            instances,
            instances_gone,
            deleted,
            hold_over,
            audit,
            counters: Some(self.live.counters()),
        };
        let idle = batch.is_empty();
        let batch = Arc::new(batch);
        let written = if idle { ready(Ok(())).boxed() } else { self.store.commit(batch.clone()) };
        self.under_way.push_back(UnderWay { written, batch, answers, looks, effects, stop });
    }

    /// What the store knows of each submission, in order.
    fn look_up(&self, commands: &[Command]) -> Looked {
        let submissions: Vec<store::Lookup<'_>> = commands
            .iter()
            .filter_map(|command| match command {
                Command::Submit { request, .. } => Some(store::Lookup {
                    principal: &request.by.principal,
                    key: request.key.as_ref().map(|key| key.key.as_str()),
                    name: &request.name,
                    experiment: &request.spec.experiment_name,
                }),
                _ => None,
            })
            .collect();
        if submissions.is_empty() {
            return Ok(Vec::new().into_iter());
        }
        self.store.look_up(&submissions).map(Vec::into_iter).map_err(Arc::new)
    }

    /// Lets everything under way reach the disk. Returns whether to stop.
    async fn settle_all(&mut self) -> Result<bool, Arc<store::Error>> {
        let mut stop = false;
        while !self.under_way.is_empty() {
            let written = next(&mut self.under_way).await;
            stop |= self.settle(written).await?;
        }
        Ok(stop)
    }

    /// The oldest round is on disk, or is not: answer and act. Returns whether to stop.
    async fn settle(
        &mut self,
        written: Result<(), store::Error>,
    ) -> Result<bool, Arc<store::Error>> {
        if let Err(error) = written {
            self.not_written(error).await?;
            return Ok(false);
        }
        let Some(round) = self.under_way.pop_front() else { return Ok(false) };
        let UnderWay { batch, answers, looks, effects, stop, .. } = round;
        for answer in answers {
            answer(Ok(&batch.changed));
        }
        self.show(looks);
        let events = Arc::try_unwrap(batch).map_or_else(|kept| kept.events.clone(), |b| b.events);
        for event in events {
            // Nobody may be watching.
            let _ = self.events.send(Arc::new(self.as_written(event)));
        }
        for effect in effects {
            let sessions = &self.sessions;
            self.effects.perform(effect, |node| sessions.get(node).map(|s| &s.outbox));
        }
        let Some(stop) = stop else { return Ok(false) };
        let _ = stop.send(());
        Ok(true)
    }

    /// An event as it is on disk: what registering an asset came to is known only there.
    fn as_written(&self, event: Event) -> Event {
        if !matches!(event.kind, EventKind::AssetRegistering { .. }) {
            return event;
        }
        crate::failpoint::hit("asset-committed");
        let before = event.seq.0.saturating_sub(1);
        match self.store.events(Some(&event.job), before, 1) {
            Ok(mut written) => written.pop().unwrap_or(event),
            Err(error) => {
                tracing::warn!(job = %event.job, %error, "an event could not be read again");
                event
            }
        }
    }

    /// Nothing of what is under way is on disk: say so, and go back to what is. Nodes are asked to
    /// come again and tell what they have.
    async fn not_written(&mut self, error: store::Error) -> Result<(), Arc<store::Error>> {
        tracing::error!(%error, "a batch of decisions could not be written");
        let error = Arc::new(error);
        let mut looks = Vec::new();
        let mut fatal = error.is_fatal();
        let failed = std::mem::take(&mut self.under_way);
        for (index, round) in failed.into_iter().enumerate() {
            // The later ones are refused by the store; none is left behind there.
            if index > 0
                && let Err(error) = round.written.await
            {
                fatal |= error.is_fatal();
            }
            for answer in round.answers {
                answer(Err(error.clone()));
            }
            looks.extend(round.looks);
        }
        if fatal {
            return Err(error);
        }
        self.live = recovered(&self.settings, &*self.store, self.clock.now()).map_err(Arc::new)?;
        self.effects.resume(self.live.jobs());
        self.sessions.clear();
        self.show(looks);
        Ok(())
    }

    fn take(&mut self, command: Command, now: Now, known: &mut Looked, round: &mut Round) {
        match command {
            Command::Submit { request, told, reply } => {
                let known = match known {
                    Ok(known) => Ok(known.next().unwrap_or_default()),
                    Err(error) => Err(error.clone()),
                };
                match known {
                    Ok(known) => self.submit(*request, *told, known, reply, now, round),
                    Err(error) => round.refuse(reply, Error::Store(error)),
                }
            }
            Command::Cancel { job, by, reason, reply } => {
                let status = |live: &Live, round: &Round| {
                    let job = round.decisions.changed.get(&job).or_else(|| live.job(&job));
                    job.map(|job| json!({ "status": job.status().as_str() }))
                };
                let before = status(&self.live, round);
                let who = by.principal.clone();
                let result = self.live.cancel(&job, who, &reason, now, &mut round.decisions);
                if result.is_ok() {
                    let mut after = status(&self.live, round);
                    if let Some(Value::Object(after)) = &mut after {
                        after.insert("reason".to_owned(), reason.into());
                    }
                    let (before, after) = (before.as_ref(), after.as_ref());
                    round.tell(*by, Change::new(format!("job/{job}"), before, after));
                }
                let result = match result {
                    // It may be over, which is as good.
                    Err(Refusal::NoSuchJob(name)) => self.must_exist(&name).map(drop),
                    other => other.map_err(Error::from),
                };
                round.answer(reply, result, |()| |_| Ok(()));
            }
            Command::Enter { request, reply } => {
                let EnterRequest { job, rank, what, by } = *request;
                let who = by.principal.clone();
                let result = self.live.enter(&job, rank, &what, who, now, &mut round.decisions);
                if result.is_ok() {
                    let what = match &what {
                        Entering::Command(_) => json!({ "rank": rank, "what": "command" }),
                        Entering::Shell => json!({ "rank": rank, "what": "shell" }),
                        Entering::Ports(ports) => json!({ "rank": rank, "ports": ports }),
                    };
                    round.tell(by, Change::done(format!("job/{job}"), &what));
                }
                let result = match result {
                    Err(Refusal::NoSuchJob(name)) => match self.known(&name, round) {
                        Ok(job) => Err(Error::JobOver { status: job.status(), job: name }),
                        Err(error) => Err(error),
                    },
                    other => other.map_err(Error::from),
                };
                round.answer(reply, result, |entered| |_| Ok(entered));
            }
            Command::Debug { request, reply } => {
                let DebugRequest { job, rank, command, by } = *request;
                let who = by.principal.clone();
                let result = self.known(&job, round).and_then(|job| {
                    let out = &mut round.decisions;
                    self.live.debug(&job, rank, &command, who, now, out).map_err(Error::from)
                });
                if result.is_ok() {
                    let what = json!({ "rank": rank, "what": "what is left of it" });
                    round.tell(by, Change::done(format!("job/{job}"), &what));
                }
                round.answer(reply, result, |entered| |_| Ok(entered));
            }
            Command::Release { job, by, reply } => {
                let who = by.principal.clone();
                let result = self.known(&job, round).and_then(|job| {
                    let out = &mut round.decisions;
                    self.live.release(&job, who, now, out).map_err(Error::from)
                });
                if let Ok(gone) = &result {
                    let what = json!({ "released": gone.len() });
                    round.tell(*by, Change::done(format!("job/{job}"), &what));
                }
                round.answer(reply, result, |gone| |_| Ok(gone));
            }
            Command::Archive { job, archived, by, reply } => {
                let result = self.finished(&job, round);
                if let Ok(found) = &result
                    && found.archived != archived
                {
                    let mut found = found.clone();
                    found.archived = archived;
                    let kind = if archived { EventKind::Archived } else { EventKind::Restored };
                    let who = by.principal.clone();
                    self.live.note(&found, who, kind, now, &mut round.decisions);
                    let [before, after] = [!archived, archived].map(|is| json!({ "archived": is }));
                    let change = Change::new(format!("job/{job}"), Some(&before), Some(&after));
                    round.tell(*by, change);
                    round.decisions.changed.insert(job.clone(), found);
                }
                round.answer(reply, result, |before| {
                    move |changed| Ok(changed.get(&job).cloned().unwrap_or(before))
                });
            }
            Command::Forget { job, by, reply } => {
                let found = self.finished(&job, round);
                let result = match found {
                    Ok(found) => {
                        let before = json!({
                            "experiment_name": found.spec.experiment_name,
                            "compute": found.compute,
                            "created_by": found.created_by,
                            "status": found.status().as_str(),
                        });
                        let resource = format!("job/{job}");
                        round.tell(*by, Change::new(resource, Some(&before), None));
                        Ok(())
                    }
                    Err(error) => Err(error),
                };
                if result.is_ok() {
                    self.live.let_go(&job, &mut round.decisions);
                    round.deleted.push(job);
                }
                round.answer(reply, result, |()| |_| Ok(()));
            }
            Command::NodeJoined { join, reply } => {
                let result = self.join(*join, now, round);
                round.answer(reply, result, |()| |_| Ok(()));
            }
            Command::Drain { request, reply } => {
                let DrainRequest { node, by, reason, deadline_s, update } = *request;
                let since = now.wall;
                let deadline = deadline_s.map(|s| since.plus_millis(i64::from(s) * 1000));
                let drain = Drain { by: by.principal.clone(), reason, since, deadline };
                let before = self.drain_of(&node);
                let result = self.live.drain(&node, drain, update, now, &mut round.decisions);
                if result.is_ok() {
                    let after = self.drain_of(&node);
                    round.tell(
                        by,
                        Change::new(format!("node/{node}"), before.as_ref(), after.as_ref()),
                    );
                }
                round.answer(reply, result.map_err(Error::from), |()| |_| Ok(()));
            }
            Command::Resume { node, by, reply } => {
                let before = self.drain_of(&node);
                let result = self.live.resume(&node, &mut round.decisions);
                if result.is_ok() && before.is_some() {
                    round.tell(*by, Change::new(format!("node/{node}"), before.as_ref(), None));
                }
                round.answer(reply, result.map_err(Error::from), |()| |_| Ok(()));
            }
            Command::Compute { change, by, reply } => {
                let name = change.name().clone();
                let before = self.live.compute(&name).cloned();
                let who = by.principal.clone();
                let result = self.compute(*change, who, now, &mut round.decisions);
                if result.is_ok() {
                    let after = self.live.compute(&name);
                    round.tell(*by, Change::new(format!("compute/{name}"), before.as_ref(), after));
                }
                round.answer(reply, result.map_err(Error::from), |()| |_| Ok(()));
            }
            Command::People { people, reply } => {
                self.live.set_people(*people);
                round.answer(reply, Ok(()), |()| |_| Ok(()));
            }
            Command::Provided(word) => {
                let out = &mut round.decisions;
                match word {
                    Provided::Added { node, result } => {
                        self.live.node_made(&node, result, now, out);
                    }
                    Provided::Removed { node, result } => {
                        self.live.node_gone(&node, result, now, out);
                    }
                    Provided::TakenAway(taken) => self.live.node_taken_away(taken, now, out),
                }
            }
            Command::NodeReport { node, session, report } => {
                if self.session(&node, session) {
                    self.live.report(&node, *report, now, &mut round.decisions);
                }
            }
            Command::NodeChanged { node, session, change } => {
                if self.session(&node, session) {
                    self.live.node_changed(&node, *change, &mut round.decisions);
                }
            }
            Command::NodeKeeps { node, session, kept } => {
                if self.session(&node, session) {
                    self.keeps(&node, kept, round);
                }
            }
            Command::NodeHolds { node, session, held } => {
                if self.session(&node, session) {
                    self.live.node_holds(&node, held);
                }
            }
            Command::NodeLeft { node, session } => {
                if self.session(&node, session) {
                    self.sessions.remove(&node);
                    self.live.node_left(&node, now);
                }
            }
            Command::Heartbeat { node, session, view } => {
                if self.session(&node, session) {
                    self.views.insert(node, view);
                }
            }
            Command::Tell { node, message, heard } => {
                let session = self.sessions.get(&node);
                let sent = session.filter(|session| session.outbox.send(message).is_ok());
                let sent = sent.map(|session| session.id);
                // The asker may have gone away.
                let _ = heard.send(sent);
            }
            // What is not on disk is not shown.
            Command::Look(look) => round.looks.push(look),
            Command::Stop(reply) => round.stop = Some(reply),
        }
    }

    fn compute(
        &mut self,
        change: ComputeChange,
        by: Principal,
        now: Now,
        out: &mut Decisions,
    ) -> Result<(), Refusal> {
        match change {
            ComputeChange::Put { cluster } => self.live.put_cluster(*cluster, by, now, out),
            ComputeChange::Change { name, change } => self.live.change_cluster(&name, change, out),
            ComputeChange::Delete(name) => self.live.delete_cluster(&name, now, out),
            ComputeChange::Drain { name, reason, deadline_s, update } => {
                let since = now.wall;
                let deadline = deadline_s.map(|s| since.plus_millis(i64::from(s) * 1000));
                let drain = Drain { by, reason, since, deadline };
                self.live.drain_compute(&name, drain, update, now, out)
            }
            ComputeChange::Resume(name) => self.live.resume_compute(&name, out),
            ComputeChange::Quota { name, of, limits } => {
                self.live.set_quota(&name, of, limits, out)
            }
            ComputeChange::Access { name, change } => self.live.change_access(&name, change, out),
        }
    }

    /// Why a node gets no jobs, if an admin has said so.
    fn drain_of(&self, node: &NodeName) -> Option<Drain> {
        self.live.node(node)?.record.drain.clone()
    }

    fn show(&self, looks: Vec<Look>) {
        for look in looks {
            look(&self.live, &self.views);
        }
    }

    fn session(&self, node: &NodeName, id: u64) -> bool {
        self.sessions.get(node).is_some_and(|session| session.id == id)
    }

    fn submit(
        &mut self,
        request: SubmitRequest,
        told: Change,
        known: Known,
        reply: Reply<Job>,
        now: Now,
        round: &mut Round,
    ) {
        let SubmitRequest { name, spec, by, manages, key } = request;
        let principal = by.principal.clone();
        if let Some(key) = &key
            && let Some((first, fingerprint)) =
                known.first.or_else(|| round.first_of(&principal, key))
        {
            let result = if fingerprint == key.fingerprint {
                self.known(&first, round)
            } else {
                Err(Error::KeyReused { job: first.clone() })
            };
            round.answer(reply, result, |before| {
                move |changed| Ok(changed.get(&first).cloned().unwrap_or(before))
            });
            return;
        }
        let result = match known.taken {
            Some(Taken::ByJob) => Err(Refusal::NameTaken(name.clone())),
            Some(Taken::ByRun) => Err(Refusal::NameOfRun(name.clone())),
            None if known.experiment_deleted => {
                Err(Refusal::ExperimentDeleted(spec.experiment_name.clone()))
            }
            None => {
                let submission = Submission { name: name.clone(), spec, principal, manages };
                self.live.submit(submission, now, &mut round.decisions)
            }
        };
        if result.is_ok() {
            round.tell(by, told);
            round.submitted.push(Submitted { job: name.clone(), key });
        }
        round.answer(reply, result.map_err(Error::from), |()| {
            move |changed| {
                changed.get(&name).cloned().ok_or_else(|| Error::NoSuchJob(name.to_string()))
            }
        });
    }

    fn known(&self, name: &JobName, round: &Round) -> Result<Job, Error> {
        if let Some(job) = round.decisions.changed.get(name).or_else(|| self.live.job(name)) {
            return Ok(job.clone());
        }
        // Over, perhaps in a round that is not on disk yet.
        match self.under_way.iter().rev().find_map(|round| round.batch.changed.get(name)) {
            Some(job) => Ok(job.clone()),
            None => self.must_exist(name),
        }
    }

    fn must_exist(&self, name: &JobName) -> Result<Job, Error> {
        self.store
            .job(name)
            .map_err(|e| Error::Store(Arc::new(e)))?
            .ok_or_else(|| Error::NoSuchJob(name.to_string()))
    }

    fn finished(&self, name: &JobName, round: &Round) -> Result<Job, Error> {
        if self.live.job(name).is_some() {
            return Err(Error::StillLive(name.clone()));
        }
        // It may have ended in this very round: the row on disk is older then.
        self.known(name, round)
    }

    fn join(&mut self, join: Join, now: Now, round: &mut Round) -> Result<(), Error> {
        let Join { record, reports, kept, session, instance, outbox } = join;
        let node = record.name.clone();
        if let Some(other) = self.sessions.get(&node)
            && other.instance != instance
            && !other.outbox.is_closed()
        {
            return Err(Error::NodeTaken(node));
        }
        self.live.may_join(&record)?;
        tracing::info!(%node, compute = %record.compute, attempts = reports.len(), "node joined");
        self.sessions.insert(node.clone(), Session { id: session, instance, outbox });
        self.views.entry(node.clone()).or_default().last_seen = now.wall.as_millis();
        self.live.node_joined(record, reports, now, &mut round.decisions);
        self.keeps(&node, kept, round);
        Ok(())
    }

    /// A node says what it keeps: of which of the jobs that there are, core decides.
    fn keeps(&mut self, node: &NodeName, kept: Vec<Sandbox>, round: &mut Round) {
        let mut jobs = BTreeMap::new();
        for name in kept.iter().map(|kept| &kept.key.job) {
            let found = match round.deleted.contains(name) {
                true => Ok(None),
                false => self.known(name, round).map(Some),
            };
            match found {
                Ok(job) => jobs.insert(name.clone(), job),
                Err(Error::NoSuchJob(_)) => jobs.insert(name.clone(), None),
                // Nothing goes for a fault of the disk; the node says it again.
                Err(_) => None,
            };
        }
        self.live.node_keeps(node, kept, &jobs, &mut round.decisions);
    }
}

/// Usage that is older weighs less than a hundredth: it is halved every day.
const USAGE_MS: i64 = 7 * 86_400_000;

fn recovered(settings: &Settings, store: &dyn Store, now: Now) -> Result<Live, store::Error> {
    let Recovered { jobs, nodes, computes, instances, counters, restored } = store.recover()?;
    let live_jobs = jobs.len();
    let mut live = Live::new(
        settings.computes.iter().cloned(),
        settings.default_compute.clone(),
        settings.principal.clone(),
        settings.lease,
        Counters { ..counters },
    );
    live.set_people(people_in(store)?);
    live.recover_computes(computes, instances);
    live.recover(nodes, Vec::new(), now.mono);
    match store.usage_since(now.wall.plus_millis(-USAGE_MS)) {
        Ok(used) => live.recover_usage(used),
        // It is about who goes first, which is no reason not to start.
        Err(error) => tracing::warn!(%error, "fair share begins anew"),
    }
    live.recover(Vec::new(), jobs, now.mono);
    live.recover_restored(restored, now.mono);
    if live.is_held() {
        tracing::warn!("{}", Restored::HOLDS);
    }
    tracing::info!(jobs = live_jobs, "live state recovered");
    Ok(live)
}
