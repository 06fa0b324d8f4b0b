//! The only owner of live state.
//!
//! It takes whatever has gathered, lets core decide, writes the whole batch in one transaction,
//! and only then answers and acts. Nothing is acknowledged before it is on disk.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use atelier_core::content::Digest;
use atelier_core::id::{ComputeName, JobName, NodeName, Principal};
use atelier_core::job::{Event, EventKind, Job};
use atelier_core::live::{Counters, Decisions, Live, Refusal, Submission};
use atelier_core::node::{LeasePolicy, Now};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::Clock;
use super::effects::{Effects, ToNode};
use super::handle::{Command, Error, Handle, Join, Look, NodeView, Reply, SubmitRequest};
use super::runs;
use crate::store::{self, Batch, Recovered, Store, Submitted};

/// At most so many commands in one transaction.
const BATCH: usize = 512;
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
}

/// The reactor's task: ends with an error when the store can no longer be trusted.
pub(super) type Running = tokio::task::JoinHandle<Result<(), Arc<store::Error>>>;

struct Session {
    id: u64,
    instance: String,
    outbox: mpsc::UnboundedSender<ToNode>,
}

/// An answer that waits for the disk.
type Answer = Box<dyn FnOnce(Result<&BTreeMap<JobName, Job>, Arc<store::Error>>) + Send>;

#[derive(Default)]
struct Round {
    decisions: Decisions,
    submitted: Vec<Submitted>,
    deleted: Vec<JobName>,
    answers: Vec<Answer>,
    looks: Vec<Look>,
    stop: Option<oneshot::Sender<()>>,
}

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
        let live = recovered(&settings, store.recover()?, clock.now());
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
        };
        Ok((handle, tokio::spawn(reactor.run(queue))))
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Command>) -> Result<(), Arc<store::Error>> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut commands = Vec::with_capacity(BATCH);
        loop {
            let timers = self.live.has_timers();
            tokio::select! {
                biased;
                count = queue.recv_many(&mut commands, BATCH) => {
                    if count == 0 {
                        return Ok(());
                    }
                }
                _ = ticks.tick(), if timers => {}
            }
            if self.round(commands.drain(..)).await? {
                return Ok(());
            }
        }
    }

    /// One batch: decide, write, answer, act. Returns whether to stop.
    async fn round(
        &mut self,
        commands: impl Iterator<Item = Command>,
    ) -> Result<bool, Arc<store::Error>> {
        let now = self.clock.now();
        let mut round = Round::default();
        for command in commands {
            self.take(command, now, &mut round);
        }
        self.live.tick(now, &mut round.decisions);
        self.live.schedule(now, &mut round.decisions);
        let Round { mut decisions, submitted, deleted, answers, looks, stop } = round;
        let runs = runs::follow(&submitted, &decisions, &deleted);
        let batch = Batch {
            runs,
            submitted,
            changed: std::mem::take(&mut decisions.changed),
            events: std::mem::take(&mut decisions.events),
            nodes: std::mem::take(&mut decisions.nodes),
            deleted,
            counters: Some(self.live.counters()),
        };
        let idle = batch.changed.is_empty()
            && batch.events.is_empty()
            && batch.nodes.is_empty()
            && batch.deleted.is_empty();
        let changed = batch.changed.clone();
        let events: Vec<Arc<Event>> = batch.events.iter().cloned().map(Arc::new).collect();
        if !idle && let Err(error) = self.store.commit(batch).await {
            self.not_written(error, answers)?;
            self.show(looks);
            return Ok(false);
        }
        for answer in answers {
            answer(Ok(&changed));
        }
        self.show(looks);
        for event in events {
            // Nobody may be watching.
            let _ = self.events.send(event);
        }
        for effect in decisions.effects {
            let sessions = &self.sessions;
            self.effects.perform(effect, |node| sessions.get(node).map(|s| &s.outbox));
        }
        if let Some(stop) = stop {
            let _ = stop.send(());
            return Ok(true);
        }
        Ok(false)
    }

    /// Nothing of this round is on disk: say so, and go back to what is. Nodes are asked to come
    /// again and tell what they have.
    fn not_written(
        &mut self,
        error: store::Error,
        answers: Vec<Answer>,
    ) -> Result<(), Arc<store::Error>> {
        tracing::error!(%error, "a batch of decisions could not be written");
        let error = Arc::new(error);
        for answer in answers {
            answer(Err(error.clone()));
        }
        if error.is_fatal() {
            return Err(error);
        }
        let recovered_state = self.store.recover().map_err(Arc::new)?;
        self.live = recovered(&self.settings, recovered_state, self.clock.now());
        self.effects.resume(self.live.jobs());
        self.sessions.clear();
        Ok(())
    }

    fn take(&mut self, command: Command, now: Now, round: &mut Round) {
        match command {
            Command::Submit { request, reply } => self.submit(*request, reply, now, round),
            Command::Cancel { job, by, reason, reply } => {
                let result = self.live.cancel(&job, by, &reason, now, &mut round.decisions);
                let result = match result {
                    // It may be over, which is as good.
                    Err(Refusal::NoSuchJob(name)) => self.must_exist(&name).map(drop),
                    other => other.map_err(Error::from),
                };
                round.answer(reply, result, |()| |_| Ok(()));
            }
            Command::Archive { job, archived, by, reply } => {
                let result = self.finished(&job, round);
                if let Ok(found) = &result
                    && found.archived != archived
                {
                    let mut found = found.clone();
                    found.archived = archived;
                    let kind = if archived { EventKind::Archived } else { EventKind::Restored };
                    self.live.note(&found, by, kind, now, &mut round.decisions);
                    round.decisions.changed.insert(job.clone(), found);
                }
                round.answer(reply, result, |before| {
                    move |changed| Ok(changed.get(&job).cloned().unwrap_or(before))
                });
            }
            Command::Forget { job, reply } => {
                let result = self.finished(&job, round).map(drop);
                if result.is_ok() {
                    round.deleted.push(job);
                }
                round.answer(reply, result, |()| |_| Ok(()));
            }
            Command::NodeJoined { join, reply } => {
                let result = self.join(*join, now, round);
                round.answer(reply, result, |()| |_| Ok(()));
            }
            Command::NodeReport { node, session, report } => {
                if self.session(&node, session) {
                    self.live.report(&node, *report, now, &mut round.decisions);
                }
            }
            Command::NodeLeft { node, session } => {
                if self.session(&node, session) {
                    self.sessions.remove(&node);
                    self.live.node_left(&node, now);
                }
            }
            Command::Heartbeat { node, session, at, usage } => {
                if self.session(&node, session) {
                    self.views.insert(node, NodeView { last_seen: at, usage });
                }
            }
            Command::Tell { node, message, heard } => {
                let session = self.sessions.get(&node);
                let sent = session.is_some_and(|session| session.outbox.send(message).is_ok());
                // The asker may have gone away.
                let _ = heard.send(sent);
            }
            // What is not on disk is not shown.
            Command::Look(look) => round.looks.push(look),
            Command::Stop(reply) => round.stop = Some(reply),
        }
    }

    fn show(&self, looks: Vec<Look>) {
        for look in looks {
            look(&self.live, &self.views);
        }
    }

    fn session(&self, node: &NodeName, id: u64) -> bool {
        self.sessions.get(node).is_some_and(|session| session.id == id)
    }

    fn submit(&mut self, request: SubmitRequest, reply: Reply<Job>, now: Now, round: &mut Round) {
        let SubmitRequest { name, spec, principal, key } = request;
        let lookup = store::Lookup {
            principal: &principal,
            key: key.as_ref().map(|key| key.key.as_str()),
            name: &name,
            experiment: &spec.experiment_name,
        };
        let known = match self.store.look_up(&lookup) {
            Ok(known) => known,
            Err(error) => {
                let _ = reply.send(Err(Error::Store(Arc::new(error))));
                return;
            }
        };
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
        let result = if known.is_job {
            Err(Refusal::NameTaken(name.clone()))
        } else if known.is_run {
            Err(Refusal::NameOfRun(name.clone()))
        } else if known.experiment_deleted {
            Err(Refusal::ExperimentDeleted(spec.experiment_name.clone()))
        } else {
            let submission = Submission { name: name.clone(), spec, principal };
            self.live.submit(submission, now, &mut round.decisions)
        };
        if result.is_ok() {
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
        self.must_exist(name)
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
        let Join { record, reports, session, instance, outbox } = join;
        let node = record.name.clone();
        if let Some(other) = self.sessions.get(&node)
            && other.instance != instance
            && !other.outbox.is_closed()
        {
            return Err(Error::NodeTaken(node));
        }
        tracing::info!(%node, compute = %record.compute, attempts = reports.len(), "node joined");
        self.sessions.insert(node.clone(), Session { id: session, instance, outbox });
        self.views.entry(node).or_default().last_seen = now.wall.as_millis();
        self.live.node_joined(record, reports, now, &mut round.decisions);
        Ok(())
    }
}

impl Round {
    /// The job that this key makes in this very round, if any, and of which specification.
    fn first_of(
        &self,
        principal: &Principal,
        key: &store::IdempotencyKey,
    ) -> Option<(JobName, Digest)> {
        self.submitted.iter().find_map(|submitted| {
            let first = submitted.key.as_ref().filter(|first| first.key == key.key)?;
            let job = self.decisions.changed.get(&submitted.job)?;
            (&job.created_by == principal).then(|| (submitted.job.clone(), first.fingerprint))
        })
    }

    /// Refuses once the round is on disk: the reason may lie in what the round decided.
    fn refuse<U: Send + 'static>(&mut self, reply: Reply<U>, error: Error) {
        self.answers.push(Box::new(move |written| {
            // The asker may have gone away.
            let _ = reply.send(Err(match written {
                Ok(_) => error,
                Err(failed) => Error::Store(failed),
            }));
        }));
    }

    /// Answers once the round is on disk; at once if there is nothing to wait for.
    fn answer<T, U, F>(
        &mut self,
        reply: Reply<U>,
        result: Result<T, Error>,
        then: impl FnOnce(T) -> F,
    ) where
        U: Send + 'static,
        F: FnOnce(&BTreeMap<JobName, Job>) -> Result<U, Error> + Send + 'static,
    {
        match result {
            Ok(value) => {
                let then = then(value);
                self.answers.push(Box::new(move |written| {
                    // The asker may have gone away.
                    let _ = reply.send(match written {
                        Ok(changed) => then(changed),
                        Err(error) => Err(Error::Store(error)),
                    });
                }));
            }
            Err(error) => self.refuse(reply, error),
        }
    }
}

fn recovered(settings: &Settings, recovered: Recovered, now: Now) -> Live {
    let Recovered { jobs, nodes, counters } = recovered;
    let live_jobs = jobs.len();
    let mut live = Live::new(
        settings.computes.iter().cloned(),
        settings.default_compute.clone(),
        settings.principal.clone(),
        settings.lease,
        Counters { ..counters },
    );
    live.recover(nodes, jobs, now.mono);
    tracing::info!(jobs = live_jobs, "live state recovered");
    live
}
