//! The session with the daemon: control only, opened from here and opened again whenever it ends.
//!
//! Attempts live on without it. What they report meanwhile is kept and told with the next Hello.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use atelier_core::egress::Egress;
use atelier_proto::agent::v1 as pb;
use atelier_proto::job::v1::open_channel::What;
use pb::agent_message::Message as Up;
use pb::daemon_message::Message as Down;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use crate::args::AgentArgs;
use crate::attempt::{News, Node, Services, let_go, make_whole};
use crate::caches::Images;
use crate::data::{self, DataPlane};
use crate::exec::{self, Channel, Place};
use crate::facts::Facts;
use crate::monitor::NodeSampler;
use crate::notify::Notifier;
use crate::reach::{self, Closed, Daemon, Urls};
use crate::trust::{self, Doubt};
use crate::{builds, caches, clock, gpu, identity, logs};

mod connection;
mod held;
mod join;
mod ports;
mod registry;

use connection::Connection;
pub(crate) use connection::{Caller, Client, connect};
use held::Held;
use ports::{AGAIN, Look};
pub(crate) use registry::Registry;

/// How long to wait for an answer to Hello.
const WELCOME: Duration = Duration::from_secs(10);
/// Heartbeats without an answer after which the connection is taken to be dead.
const SILENT_BEATS: u32 = 3;
/// Logs followed at once.
const FOLLOWERS: usize = 256;
/// Channels into jobs at once.
const CHANNELS: usize = 512;
/// An end that was reported and not acknowledged for so long is reported again.
const REPEAT: Duration = Duration::from_secs(30);

/// Why a session ended or could not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no address of the daemon: cannot read {}", .path.display())]
    NoAddress { path: std::path::PathBuf, source: std::io::Error },
    #[error("cannot use '{address}' as the address of the daemon: {why}")]
    BadAddress { address: String, why: &'static str },
    #[error(transparent)]
    Trust(trust::Error),
    #[error("cannot trust who answers at {address}: {doubt}; {}", .doubt.remedy())]
    Untrusted { address: String, doubt: Doubt },
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error("cannot join the workspace at {address}: {}", .status.message())]
    NotJoined { address: String, status: tonic::Status },
    #[error(
        "who answers at {address} is not the daemon that made the join token: its authority is another; check the \
         address, or, where the daemon has a certificate of its admin's, give the authority of that with --ca-file; where \
         the workspace's own was replaced since the token was made (`atelier ca retire`), have an admin make another"
    )]
    NotTheOne { address: String },
    #[error(
        "who answers at {address} is vouched for by an authority that this node does not know; where the workspace's was \
         replaced while the node was away (`atelier ca rotate`, `ca retire`), have an admin make a join token (atelier \
         node token create --node {node}) and start the agent with it once"
    )]
    NotKnown { address: String, node: String },
    #[error("the token holds characters that no token has")]
    BadToken,
    #[error("cannot reach the daemon at {address}")]
    Unreachable { address: String, source: tonic::transport::Error },
    #[error("the daemon at {address} refused this node: {}", .status.message())]
    Refused { address: String, status: tonic::Status },
    #[error(
        "cannot reach the daemon's port for jobs at {url}; let this machine reach port {port} too, or forward it \
         (ssh -L {port}:127.0.0.1:{port})"
    )]
    NoJobsPort { url: String, port: u16, source: reqwest::Error },
    #[error(transparent)]
    NotFound(#[from] reach::NotFound),
    #[error("the session ended: {}", .0.message())]
    Lost(tonic::Status),
    #[error("the daemon closed the session")]
    Closed,
    #[error("the daemon was silent for {0:?}")]
    Silent(Duration),
    #[error("the daemon's first message was not a welcome")]
    NoWelcome,
    #[error("cannot set up the node's data folder")]
    Data(#[from] data::Error),
}

impl Error {
    /// Whether only a person can mend it.
    pub(crate) fn is_final(&self) -> bool {
        use tonic::Code;
        match self {
            Self::Refused { status, .. } => {
                matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied)
            }
            Self::NotJoined { status, .. } => !join::passes(status.code()),
            Self::Identity(error) => {
                !matches!(error, identity::Error::Unread { .. } | identity::Error::File { .. })
            }
            Self::NotTheOne { .. }
            | Self::NotKnown { .. }
            | Self::BadToken
            | Self::BadAddress { .. }
            | Self::Untrusted { doubt: Doubt::Authority | Doubt::Name(_) | Doubt::Plain, .. } => {
                true
            }
            _ => false,
        }
    }
}

/// The session's task.
pub(crate) struct Session {
    pub(crate) args: AgentArgs,
    pub(crate) name: String,
    pub(crate) instance_id: String,
    pub(crate) facts: Facts,
    pub(crate) sampler: NodeSampler,
    pub(crate) node: Arc<Node>,
    pub(crate) registry: Registry,
    pub(crate) news: mpsc::UnboundedReceiver<News>,
    pub(crate) services: watch::Sender<Option<Arc<Services>>>,
    pub(crate) client: watch::Sender<Option<Client>>,
    pub(crate) connected: watch::Sender<bool>,
    /// By what the daemon was found last.
    pub(crate) urls: Urls,
    pub(crate) cache: std::path::PathBuf,
    pub(crate) notifier: Arc<Notifier>,
    /// A permit for each channel into a job.
    pub(crate) channels: Arc<Semaphore>,
    /// A permit for each environment that is made ready before a job needs it.
    pub(crate) builds: Arc<Semaphore>,
    /// The node's certificate is to be renewed now.
    pub(crate) due: Arc<Notify>,
}

impl Session {
    /// Permits for as many channels as a node carries at once.
    pub(crate) fn channels() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(CHANNELS))
    }

    /// Keeps a session open until `shutdown`. Fails only if the daemon refuses this node before it
    /// ever welcomed it.
    pub(crate) async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        tokio::pin!(shutdown);
        let (mut welcomed, mut backoff) = (false, Backoff::default());
        loop {
            let before = welcomed;
            let ended = tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                ended = self.open(&mut welcomed) => ended,
            };
            self.connected.send_replace(false);
            let Err(error) = ended else { continue };
            if !welcomed && error.is_final() {
                return Err(error);
            }
            if welcomed && !before
                || matches!(error, Error::Lost(_) | Error::Closed | Error::Silent(_))
            {
                backoff = Backoff::default();
            }
            let pause = backoff.next();
            tracing::warn!(error = %chain(&error), ?pause, "no session with the daemon, trying again");
            // Ready all the same: to wait for a daemon is an agent's work, and what ran before runs
            // on. Only one that may never join, which returned above, has failed to start.
            self.notifier.ready(&format!("no session with the daemon: {}", chain(&error)));
            self.notifier.progress();
            let resume = tokio::time::sleep(pause);
            tokio::pin!(resume);
            loop {
                tokio::select! {
                    biased;
                    () = &mut shutdown => return Ok(()),
                    () = &mut resume => break,
                    Some(news) = self.news.recv() => {
                        self.registry.note(news);
                    }
                }
            }
        }
    }

    /// One session, from the connection to its loss.
    async fn open(&mut self, welcomed: &mut bool) -> Result<(), Error> {
        join::ensure(&self.args).await?;
        let connection = connection::connect(&self.args).await?;
        let (client, address) = (connection.client.clone(), connection.address.clone());
        let trust = connection.trust.clone();
        self.due = Arc::default();
        let renewed = join::renewed(self.args.clone(), connection.caller(), self.due.clone());
        let (up, messages) = mpsc::unbounded_channel();
        // What happened until now goes into the Hello, what happens from now on after it.
        while let Ok(news) = self.news.try_recv() {
            self.registry.note(news);
        }
        if self.args.address.is_none()
            && let Some(own) = connection::own_address(&address).await
        {
            self.facts.address = own;
        }
        // Before the daemon decides by what the Hello says of it, and gives this node a job.
        let jobs = ports::jobs_url(&address, &trust).await;
        if !jobs.is_empty() {
            self.reach_jobs_port(&jobs, &trust).await?;
        }
        self.close(&self.urls.likely(&address, &jobs)).await?;
        let hello_at = clock::boottime_ms();
        // What changes after the Hello was made is told after it.
        let devices = self.node.devices.subscribe();
        let _ = up.send(message(Up::Hello(self.hello())));
        let opening = async {
            let mut stream =
                client.clone().session(UnboundedReceiverStream::new(messages)).await?.into_inner();
            let first = stream.message().await?;
            Ok::<_, tonic::Status>((stream, first))
        };
        let (stream, first) = tokio::time::timeout(WELCOME, opening)
            .await
            .map_err(|_| Error::Silent(WELCOME))?
            .map_err(|status| Error::Refused { address: address.clone(), status })?;
        let Some(Down::Welcome(welcome)) = first.and_then(|first| first.message) else {
            return Err(Error::NoWelcome);
        };
        let lease = LeaseKeeper::new(&self.node, &welcome);
        lease.renewed_by_what_was_sent_at(hello_at);
        let told = self.facts.other.clone();
        // One of an earlier version has no other port than the one by which it is reached.
        if !welcome.control_url.is_empty() && welcome.http_url != jobs {
            self.reach_jobs_port(&welcome.http_url, &trust).await?;
        }
        let urls = Urls {
            control: vec![address.clone(), welcome.control_url.clone()],
            jobs: welcome.http_url.clone(),
            trust,
            dialled: address.clone(),
        };
        self.close(&urls).await?;
        self.know(urls);
        if self.facts.other != told {
            let _ = up.send(message(Up::Changed(self.change())));
        }
        tracing::info!(%address, node = self.name, workspace = welcome.workspace, "joined the workspace");
        *welcomed = true;
        self.notifier.ready(&format!("joined the workspace {} at {address}", welcome.workspace));
        let closed = Closed::with(&Daemon::find(&self.urls).await?);
        self.welcome(&welcome, connection, Arc::new(closed))?;
        self.connected.send_replace(true);
        self.registry.resume(&self.node);
        tokio::select! {
            ended = self.talk(stream, up, client, &welcome, lease, devices) => ended,
            // The next session shows it.
            () = renewed => Ok(()),
        }
    }

    fn hello(&self) -> pb::Hello {
        pb::Hello {
            node: self.name.clone(),
            compute: self.args.compute.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: self.facts.hostname.clone(),
            os: self.facts.os.clone(),
            cpu_milli: self.facts.cpu_milli,
            memory_mib: self.facts.memory_mib,
            gpus: self.node.devices.offered(),
            facts: self.facts(),
            attempts: self.registry.reports(),
            instance_id: self.instance_id.clone(),
            disk_mib: self.facts.disk_mib,
            labels: self.facts.labels.clone(),
            address: self.facts.address.clone(),
            kept: Some(self.node.kept.told()),
        }
    }

    fn facts(&self) -> BTreeMap<String, String> {
        let mut facts = self.facts.other.clone();
        facts.extend(self.node.devices.facts());
        facts
    }

    fn change(&self) -> pb::Changed {
        pb::Changed { gpus: self.node.devices.offered(), facts: self.facts() }
    }

    /// Makes what the attempts need of this daemon.
    fn welcome(
        &mut self,
        welcome: &pb::Welcome,
        connection: Connection,
        closed: Arc<Closed>,
    ) -> Result<(), Error> {
        let probe = &welcome.shared_probe_path;
        let is_here = !probe.is_empty()
            && std::fs::read(probe).is_ok_and(|read| read == welcome.shared_probe_value.as_bytes());
        let has_files = is_here && !welcome.storage_is_elsewhere;
        let shared = has_files && !self.args.no_shared_store;
        // On another machine there is no such folder, or it is not the daemon's.
        let here = |paths: &[String]| -> Vec<PathBuf> {
            let paths = paths.iter().map(PathBuf::from);
            paths.filter(|path| is_here && path.is_absolute()).collect()
        };
        self.facts.other.insert("shared_store".to_owned(), shared.to_string());
        let data = DataPlane::new(data::Options {
            http_url: welcome.http_url.clone(),
            channel: connection.channel,
            token: connection.token,
            trust: connection.trust.clone(),
            shared,
            cache_dir: self.cache.clone(),
            cache_bytes: self.args.data_cache,
            closed: Arc::clone(&closed),
            egress: welcome.egress.as_ref().map(egress),
        })?;
        self.client.send_replace(Some(connection.client.clone()));
        self.services.send_replace(Some(Arc::new(Services {
            client: connection.client,
            data,
            http_url: welcome.http_url.clone(),
            trust: connection.trust,
            apart: !welcome.control_url.is_empty(),
            workspace: welcome.workspace.clone(),
            workspace_id: welcome.workspace_id.clone(),
            hidden: here(&[vec![welcome.home.clone()], welcome.hidden_folders.clone()].concat()),
            masked: here(&welcome.hidden_files),
            closed,
        })));
        Ok(())
    }

    /// The session itself.
    async fn talk(
        &mut self,
        mut stream: Streaming<pb::DaemonMessage>,
        up: mpsc::UnboundedSender<pb::AgentMessage>,
        client: Client,
        welcome: &pb::Welcome,
        mut lease: LeaseKeeper,
        mut devices: watch::Receiver<gpu::State>,
    ) -> Result<(), Error> {
        let interval = Duration::from_millis(welcome.heartbeat_ms.max(20));
        let mut beat = tokio::time::interval_at(Instant::now() + interval, interval);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut number = 0;
        let mut followers = JoinSet::new();
        let mut again = tokio::time::interval_at(Instant::now() + AGAIN, AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut looks, mut held) = (JoinSet::new(), Held::new());
        let services = self.services.borrow().clone();
        loop {
            // The beat turns this loop at the latest.
            self.notifier.progress();
            tokio::select! {
                received = stream.message() => {
                    let received = received.map_err(Error::Lost)?.ok_or(Error::Closed)?;
                    match received.message {
                        Some(Down::FollowLog(request)) => self.follow(request, &client, &mut followers),
                        Some(Down::HeartbeatAck(ack)) => lease.acknowledged(ack.number),
                        Some(Down::RenewCertificate(_)) => self.due.notify_one(),
                        Some(other) => self.take(other, &up),
                        None => tracing::debug!("a message of a kind this agent does not know"),
                    }
                }
                Some(news) = self.news.recv() => {
                    if matches!(news, News::Kept) {
                        let _ = up.send(message(Up::Kept(self.node.kept.told())));
                    } else if let News::Held(now) = news {
                        held.tell(now, &up);
                    } else if let Some(report) = self.registry.note(news) {
                        let _ = up.send(message(Up::Report(report)));
                    }
                }
                Ok(()) = devices.changed() => {
                    let _ = up.send(message(Up::Changed(self.change())));
                }
                _ = beat.tick() => {
                    if lease.unanswered() >= SILENT_BEATS {
                        return Err(Error::Silent(interval * SILENT_BEATS));
                    }
                    number += 1;
                    lease.sent(number);
                    let mut usage = self.sampler.sample();
                    usage.extend(self.node.devices.usage());
                    usage.extend(self.node.monitor.usage());
                    let heartbeat = pb::Heartbeat { number, usage, clock_ms: clock::system().as_millis() };
                    let _ = up.send(message(Up::Heartbeat(heartbeat)));
                    for report in self.registry.unacknowledged(REPEAT) {
                        let _ = up.send(message(Up::Report(report)));
                    }
                }
                now = held.look(services.clone()) => held.tell(now, &up),
                Some(_) = followers.join_next(), if !followers.is_empty() => {}
                _ = again.tick(), if looks.is_empty() && self.may_be_mended() => {
                    looks.spawn(Look::at(self.urls.clone()));
                }
                Some(look) = looks.join_next(), if !looks.is_empty() => {
                    if look.is_ok_and(|look| self.looked(look)) {
                        let _ = up.send(message(Up::Changed(self.change())));
                    }
                }
            }
        }
    }

    fn take(&mut self, received: Down, up: &mpsc::UnboundedSender<pb::AgentMessage>) {
        match received {
            Down::Assign(assignment) => {
                if let Some(report) = self.registry.assign(&self.node, assignment) {
                    let _ = up.send(message(Up::Report(report)));
                }
            }
            Down::Cancel(cancel) => self.registry.cancel(cancel),
            Down::Acknowledge(key) => self.registry.acknowledge(&self.node, &key),
            Down::Discard(key) => self.registry.discard(&self.node, &key),
            Down::Release(key) => let_go(&self.node, key.epoch),
            Down::OpenChannel(request) => self.open_channel(request),
            Down::AskCache(ask) => self.tell_cache(ask, up),
            Down::BuildEnvironment(ask) => self.build_environment(ask, up),
            Down::Welcome(_)
            | Down::FollowLog(_)
            | Down::HeartbeatAck(_)
            | Down::RenewCertificate(_) => {}
        }
    }

    /// It outlives this session: it has a connection of its own.
    fn open_channel(&self, request: pb::OpenChannel) {
        let permit = self.channels.clone().try_acquire_owned();
        let debugs =
            request.open.as_ref().is_some_and(|open| matches!(open.what, Some(What::Debug(_))));
        let attempt = match (&permit, &request.key) {
            (Err(_), _) => {
                Err("too many are in jobs on its node already; try again later".to_owned())
            }
            (Ok(_), Some(key)) if debugs => self.node.kept.enter(&self.node, key),
            (Ok(_), key) => {
                let known = key.as_ref().and_then(|key| self.registry.place(key));
                known.ok_or_else(|| "the job's command has ended on its node".to_owned())
            }
        };
        let services = self.services.borrow().clone();
        let closed = services.map(|services| Arc::clone(&services.closed));
        let mut channel = Channel { request, node: self.name.clone(), attempt, closed };
        let args = self.args.clone();
        tokio::task::spawn_local(async move {
            if let Ok(Place { folder, kept: Some(_), .. }) = &channel.attempt
                && let Err(why) = make_whole(folder).await
            {
                channel.attempt = Err(why);
            }
            exec::answer(args, channel).await;
            drop(permit);
        });
    }

    /// Tells what is kept here. Looking at the disk is done off this thread.
    fn tell_cache(&self, ask: pb::AskCache, up: &mpsc::UnboundedSender<pb::AgentMessage>) {
        let services = self.services.borrow().clone();
        let (environments, up) = (self.node.environments.clone(), up.clone());
        let containers = self.node.containers.clone();
        tokio::task::spawn_local(async move {
            let images = Images::of(containers.as_ref(), ask.prune.as_ref()).await;
            let report = tokio::task::spawn_blocking(move || {
                let data = services.as_ref().map(|services| &services.data);
                caches::report(&environments, images, data, ask.prune.as_ref())
            });
            let Ok(cache) = report.await else { return };
            let report = pb::CacheReport { request_id: ask.request_id, cache: Some(cache) };
            // The session may have ended; then nobody waits any more.
            let _ = up.send(message(Up::Cache(report)));
        });
    }

    /// It goes on when this session ends.
    fn build_environment(
        &self,
        ask: pb::BuildEnvironment,
        up: &mpsc::UnboundedSender<pb::AgentMessage>,
    ) {
        let services = self.services.borrow().clone();
        let (node, places) = (self.node.clone(), self.builds.clone());
        let bound = self.args.build_timeout;
        tokio::task::spawn_local(builds::build(node, services, places, ask, bound, up.clone()));
    }

    fn follow(&self, request: pb::FollowLog, client: &Client, followers: &mut JoinSet<()>) {
        let log = request.key.as_ref().and_then(|key| self.registry.log(key, request.process));
        let Some((path, complete)) = log else {
            tracing::debug!(request = request.request_id, "asked for a log that is not here");
            followers.spawn(logs::refuse(client.clone(), request.request_id));
            return;
        };
        let client = client.clone();
        if followers.len() >= FOLLOWERS {
            tracing::warn!(limit = FOLLOWERS, "too many logs are followed, one has to ask again");
            followers.spawn(logs::refuse(client, request.request_id));
            return;
        }
        followers.spawn(async move {
            let id = request.request_id;
            if let Err(error) = logs::push(client, path, request, complete).await {
                tracing::debug!(request = id, error = %chain(&error), "a log is no longer followed");
            }
        });
    }
}

fn message(message: Up) -> pb::AgentMessage {
    pb::AgentMessage { message: Some(message) }
}

/// An error and what it comes from, on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let (mut text, mut next) = (error.to_string(), error.source());
    while let Some(error) = next {
        text.push_str(&format!(": {error}"));
        next = error.source();
    }
    text
}

/// Moves the lease on with each heartbeat that the daemon answered.
///
/// The lease runs from the moment the heartbeat was sent: the daemon counts from its arrival, which
/// is later, so the node never believes in its lease for longer than the daemon does.
struct LeaseKeeper {
    node: Arc<Node>,
    lease_ms: u64,
    sent: VecDeque<(u64, u64)>,
}

impl LeaseKeeper {
    fn new(node: &Arc<Node>, welcome: &pb::Welcome) -> Self {
        Self { node: node.clone(), lease_ms: welcome.lease_ms, sent: VecDeque::new() }
    }

    fn renewed_by_what_was_sent_at(&self, sent_at: u64) {
        let now = clock::boottime_ms();
        if self.node.lease.until().is_ok_and(|until| until <= now) {
            self.node.leases_lost.fetch_add(1, Ordering::Relaxed);
        }
        let until = match self.lease_ms {
            0 => crate::supervisor::Lease::NEVER,
            lease_ms => sent_at.saturating_add(lease_ms),
        };
        if let Err(error) = self.node.lease.set(until) {
            tracing::error!(%error, "cannot renew the node's lease; its jobs will end");
        }
    }

    fn sent(&mut self, number: u64) {
        self.sent.push_back((number, clock::boottime_ms()));
    }

    fn acknowledged(&mut self, number: u64) {
        while let Some(&(sent, at)) = self.sent.front() {
            if sent > number {
                break;
            }
            self.sent.pop_front();
            if sent == number {
                self.renewed_by_what_was_sent_at(at);
            }
        }
    }

    fn unanswered(&self) -> u32 {
        u32::try_from(self.sent.len()).unwrap_or(u32::MAX)
    }
}

/// Growing pauses, each shortened at random so that many nodes do not come at once.
#[derive(Default)]
struct Backoff {
    tries: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LAST: Duration = Duration::from_secs(5);

    fn next(&mut self) -> Duration {
        let full = Self::FIRST.saturating_mul(1 << self.tries.min(10)).min(Self::LAST);
        self.tries += 1;
        let mut random = [0; 1];
        let _ = getrandom::fill(&mut random);
        full.mul_f64(0.5 + f64::from(random[0]) / 512.0)
    }
}

/// What a daemon says of where users' URLs may lead. What is not understood opens nothing.
fn egress(told: &pb::Egress) -> Arc<Egress> {
    let networks = told.networks.iter().filter_map(|network| network.parse().ok()).collect();
    let servers = told.hosts.iter().filter_map(|server| server.parse().ok()).collect();
    Arc::new(Egress { networks, servers })
}
