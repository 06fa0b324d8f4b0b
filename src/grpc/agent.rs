//! `atelier.agent.v1.AgentService`: the daemon's side of a node's session.

use std::future::ready;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atelier_core::egress::Egress;
use atelier_core::id::NodeName;
use atelier_core::job::{AttemptKey, Report};
use atelier_core::layout;
use atelier_proto::agent::v1 as pb;
use atelier_proto::{convert, job::v1 as job_pb};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use super::caller;
use super::channels::{Channels, FromClient};
use super::status::told;
use crate::daemon::{self, Grant, InputSource, Join, NodeView, Shared, ToNode};
use crate::identity::{AskedAs, Denied, Door, Pass};
use crate::tls::{Peer, Secure};

/// Between daemon and node agent.
#[derive(Clone)]
pub(super) struct Service {
    shared: Shared,
    channels: Channels,
    sessions: Arc<AtomicU64>,
}

/// A node must say hello within this time.
const HELLO: Duration = Duration::from_secs(10);

impl Service {
    pub(super) fn new(shared: Shared, channels: Channels) -> Self {
        Self { shared, channels, sessions: Arc::default() }
    }

    fn node<T>(&self, request: &Request<T>) -> Result<NodeName, Status> {
        let caller = caller(request)?;
        Door::node_of(&caller).cloned().ok_or_else(|| {
            let role = caller.role.to_string();
            let principal = caller.principal;
            told(Denied::NotAllowed { principal, role, action: "act as a node" })
        })
    }

    async fn join(
        &self,
        node: &NodeName,
        hello: pb::Hello,
        session: u64,
        outbox: daemon::Outbox,
    ) -> Result<(), Status> {
        if hello.node != node.as_str() {
            return Err(Status::permission_denied(format!(
                "the token belongs to node '{node}', and the agent says it is '{}'; start it with \
                 --node {node}, or get a token for '{}' (atelier token create --role node)",
                hello.node, hello.node
            )));
        }
        if let Some(of) = self.shared.door.nodes().compute_of(node)
            && hello.compute != of.as_str()
        {
            return Err(Status::permission_denied(format!(
                "node '{node}' was let in for the compute '{of}', and its agent joins '{}'; start it with --compute \
                 {of}, or have it join anew with another token (atelier node token create --node {node})",
                hello.compute
            )));
        }
        let record = convert::node_record(node, &hello, self.shared.clock.wall()).map_err(told)?;
        let kept = convert::sandboxes(hello.kept.unwrap_or_default()).map_err(told)?;
        let reports = hello
            .attempts
            .into_iter()
            .map(Report::try_from)
            .collect::<Result<Vec<_>, _>>()
            .map_err(told)?;
        let handle = &self.shared.handle;
        let instance = hello.instance_id;
        let join = Join { record, reports, kept, session, instance, outbox };
        handle.node_joined(join).await.map_err(told)
    }

    /// The folder of the workspace's own datastores, unless it lies in the data folder, which jobs do not see.
    fn storage_elsewhere(&self) -> Option<PathBuf> {
        let home = self.shared.folder.path();
        let own = self.shared.datastores.get(layout::BLOB_STORE).ok()?;
        let folder = own.own_folder()?.parent()?;
        let is_in_home = std::fs::canonicalize(home).is_ok_and(|home| folder.starts_with(home));
        (!is_in_home).then(|| folder.to_owned())
    }

    fn welcome(&self, asked: Option<&AskedAs>) -> pb::DaemonMessage {
        let lease = self.shared.args.lease_policy();
        let workspace = self.shared.folder.workspace();
        let shown = |paths: Vec<PathBuf>| -> Vec<String> {
            paths.iter().map(|path| path.display().to_string()).collect()
        };
        let probe = &self.shared.probe;
        let storage_file = self.shared.storage_file.clone();
        // The admin's own key; that of the workspace's authority lies in the data folder.
        let tls_key = self.shared.args.tls_key.as_ref();
        let tls_key = tls_key.and_then(|key| std::path::absolute(key).ok());
        daemon_message(pb::daemon_message::Message::Welcome(pb::Welcome {
            heartbeat_ms: lease.heartbeat_ms,
            lease_ms: lease.lease_ms,
            shared_probe_path: probe.path.display().to_string(),
            shared_probe_value: probe.value.to_string(),
            storage_is_elsewhere: probe.storage_is_elsewhere,
            egress: Some(egress(self.shared.args.egress())),
            http_url: self.shared.addresses.jobs_url(asked),
            workspace: workspace.name.to_string(),
            workspace_id: workspace.id.clone(),
            home: self.shared.folder.path().display().to_string(),
            control_url: self.shared.addresses.control_url(asked),
            hidden_folders: shown(
                self.shared
                    .vault
                    .key_folders()
                    .into_iter()
                    .chain(self.storage_elsewhere())
                    .collect(),
            ),
            hidden_files: shown(
                self.shared
                    .vault
                    .key_files()
                    .into_iter()
                    .chain(storage_file)
                    .chain(tls_key)
                    .collect(),
            ),
        }))
    }
}

#[tonic::async_trait]
impl pb::agent_service_server::AgentService for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<pb::DaemonMessage, Status>> + Send>>;

    #[tracing::instrument(skip_all, name = "node", fields(node))]
    async fn session(
        &self,
        request: Request<Streaming<pb::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let node = self.node(&request)?;
        tracing::Span::current().record("node", node.as_str());
        let (asked, pass) = (request.extensions().get::<AskedAs>().cloned(), pass(&request)?);
        let peer = request.extensions().get::<Arc<Peer>>().cloned();
        let mut messages = request.into_inner();
        let first = tokio::time::timeout(HELLO, messages.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the node did not say hello"))??;
        let Some(pb::AgentMessage { message: Some(pb::agent_message::Message::Hello(hello)) }) =
            first
        else {
            return Err(Status::failed_precondition("the first message must be Hello"));
        };
        let session = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        let (outbox, orders) = mpsc::unbounded_channel();
        // Only the reactor keeps the session's way out open: when it gives the session up, the
        // node's stream ends and the node comes again.
        let acknowledge = outbox.downgrade();
        self.join(&node, hello, session, outbox).await?;
        // One that was cut off meanwhile is heard no more: the first that is done is to hear of that.
        let listening =
            listen(self.shared.clone(), node, session, messages, acknowledge, pass.clone());
        tokio::spawn(listening.in_current_span());
        let welcome = stream::iter([Ok(self.welcome(asked.as_ref()))]);
        let orders = UnboundedReceiverStream::new(orders).map(to_wire);
        let again = comes_again(self.shared.secure.as_ref(), peer.is_some());
        let orders = until_first_ends(orders, renewals(&self.shared, peer)).map(Ok);
        let mut stopping = self.shared.stopping.clone();
        let stopped = async move {
            let _ = stopping.wait_for(|stop| *stop).await;
        };
        let orders = welcome.chain(orders).take_until(stopped);
        let orders = orders.take_until(again);
        let orders: BoxStream<'static, _> = orders.take_until(pass.void()).boxed();
        Ok(Response::new(orders))
    }

    async fn push_log(
        &self,
        request: Request<Streaming<pb::PushLogRequest>>,
    ) -> Result<Response<pb::PushLogResponse>, Status> {
        let node = self.node(&request)?;
        let pass = pass(&request)?;
        let mut pieces = request.into_inner();
        let mut last = None;
        while let Some(piece) = pieces.message().await? {
            if pass.is_void() {
                return Err(cut_off(&node));
            }
            last = Some(piece.request_id);
            let logs = &self.shared.logs;
            let wanted =
                logs.pushed(&node, piece.request_id, piece.offset, piece.data, piece.end).await;
            if !wanted {
                return Ok(Response::new(pb::PushLogResponse {}));
            }
        }
        if let Some(request) = last {
            self.shared.logs.push_ended(&node, request);
        }
        Ok(Response::new(pb::PushLogResponse {}))
    }

    async fn record_metrics(
        &self,
        request: Request<pb::RecordMetricsRequest>,
    ) -> Result<Response<pb::RecordMetricsResponse>, Status> {
        let node = self.node(&request)?;
        self.shared.record_samples(&node, request.into_inner().samples).await?;
        Ok(Response::new(pb::RecordMetricsResponse {}))
    }

    async fn open_secrets(
        &self,
        request: Request<pb::OpenSecretsRequest>,
    ) -> Result<Response<pb::OpenSecretsResponse>, Status> {
        let node = self.node(&request)?;
        let key = request.into_inner().key.unwrap_or_default();
        let key = AttemptKey::try_from(key).map_err(told)?;
        let opened = self.shared.open_secrets(node, key).await.map_err(told)?;
        let secrets = opened.into_iter().map(|(variable, value)| pb::OpenedSecret {
            variable,
            value: Bytes::from_owner(value),
        });
        Ok(Response::new(pb::OpenSecretsResponse { secrets: secrets.collect() }))
    }

    type JoinChannelStream = FromClient;

    async fn join_channel(
        &self,
        request: Request<Streaming<pb::JoinChannelRequest>>,
    ) -> Result<Response<FromClient>, Status> {
        let node = self.node(&request)?;
        let pass = pass(&request)?;
        let mut messages = request.into_inner();
        let first = tokio::time::timeout(HELLO, messages.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the node did not name the channel"))??;
        let Some(pb::join_channel_request::Message::Channel(channel)) =
            first.and_then(|first| first.message)
        else {
            return Err(Status::failed_precondition("the first message must name the channel"));
        };
        self.channels.join(&node, channel, messages, pass).map(Response::new)
    }
}

/// What either gives, for as long as the first goes on.
fn until_first_ends<T>(
    first: impl Stream<Item = T>,
    other: impl Stream<Item = T>,
) -> impl Stream<Item = T> {
    let first = first.map(Some).chain(stream::iter([None]));
    let both = stream::select(first, other.map(Some));
    both.take_while(|item| ready(item.is_some())).filter_map(ready)
}

/// What a node is told when other authorities count: to renew its certificate, with which it learns of them. Also where
/// the one that it has shown is not of the one that issues.
fn renewals(
    shared: &Shared,
    peer: Option<Arc<Peer>>,
) -> impl Stream<Item = pb::DaemonMessage> + use<> {
    let begin = shared.secure.as_ref().zip(peer).map(|(secure, peer)| {
        let changes = secure.changes();
        (changes, peer.authority != secure.fingerprint())
    });
    stream::unfold(begin, |state| async {
        let Some((mut changes, is_due)) = state else { return std::future::pending().await };
        if !is_due {
            // An error is the end of the daemon.
            changes.changed().await.ok()?;
        }
        let renew = pb::daemon_message::Message::RenewCertificate(pb::RenewCertificate {});
        Some((daemon_message(renew), Some((changes, false))))
    })
}

/// When other authorities count: a node that has no certificate to renew reads them from a file, once it comes again.
fn comes_again(secure: Option<&Arc<Secure>>, has_certificate: bool) -> BoxFuture<'static, ()> {
    let changes = secure.filter(|_| !has_certificate).map(|secure| secure.changes());
    Box::pin(async {
        match changes {
            Some(mut changes) => drop(changes.changed().await),
            None => std::future::pending().await,
        }
    })
}

fn egress(egress: Egress) -> pb::Egress {
    let networks = egress.networks.iter().map(ToString::to_string).collect();
    let hosts = egress.servers.iter().map(ToString::to_string).collect();
    pb::Egress { networks, hosts }
}

/// The door's leave to speak for the node.
fn pass<T>(request: &Request<T>) -> Result<Pass, Status> {
    let pass = request.extensions().get::<Pass>().cloned();
    pass.ok_or_else(|| Status::unauthenticated("the caller is not known"))
}

fn cut_off(node: &NodeName) -> Status {
    Status::unauthenticated(format!("node '{node}' was cut off"))
}

/// Hears what a node says until it hangs up, or is cut off.
async fn listen(
    shared: Shared,
    node: NodeName,
    session: u64,
    mut messages: Streaming<pb::AgentMessage>,
    outbox: mpsc::WeakUnboundedSender<ToNode>,
    pass: Pass,
) {
    use pb::agent_message::Message;
    let silence = Duration::from_millis(shared.args.lease_policy().unreachable_ms);
    loop {
        let heard = tokio::select! {
            biased;
            () = pass.clone().void() => {
                tracing::warn!(%node, "node was cut off");
                break;
            }
            heard = tokio::time::timeout(silence, messages.message()) => heard,
        };
        let message = match heard {
            Ok(Ok(Some(message))) => message.message,
            Ok(Ok(None)) => break,
            Ok(Err(status)) => {
                tracing::info!(%node, %status, "session broke");
                break;
            }
            Err(_) => {
                tracing::warn!(%node, "node fell silent");
                break;
            }
        };
        let Some(outbox) = outbox.upgrade() else { break };
        let result = match message {
            Some(Message::Heartbeat(heartbeat)) => {
                // A node that has hung up ends the loop above.
                let _ = outbox.send(ToNode::HeartbeatAck(heartbeat.number));
                let clock_ahead_ms = (heartbeat.clock_ms > 0)
                    .then(|| heartbeat.clock_ms - shared.clock.system().as_millis());
                let view = NodeView {
                    last_seen: shared.clock.wall().as_millis(),
                    usage: heartbeat.usage,
                    clock_ahead_ms,
                };
                shared.handle.heartbeat(node.clone(), session, view).await
            }
            Some(Message::Report(report)) => match Report::try_from(report) {
                Ok(report) => shared.handle.node_report(node.clone(), session, report).await,
                Err(error) => {
                    tracing::warn!(%node, %error, "a report was not understood");
                    Ok(())
                }
            },
            Some(Message::Cache(report)) => {
                let cache = report.cache.unwrap_or_default();
                shared.caches.told(&node, report.request_id, cache);
                Ok(())
            }
            Some(Message::Build(report)) => {
                shared.builds.told(&node, report);
                Ok(())
            }
            Some(Message::Changed(changed)) => match convert::node_change(&changed) {
                Ok(change) => shared.handle.node_changed(node.clone(), session, change).await,
                Err(error) => {
                    tracing::warn!(%node, %error, "a change of a node was not understood");
                    Ok(())
                }
            },
            Some(Message::Kept(kept)) => match convert::sandboxes(kept) {
                Ok(kept) => shared.handle.node_keeps(node.clone(), session, kept).await,
                Err(error) => {
                    tracing::warn!(%node, %error, "what a node keeps was not understood");
                    Ok(())
                }
            },
            Some(Message::Held(held)) => match convert::held_inputs(held) {
                Ok(held) => shared.handle.node_holds(node.clone(), session, held).await,
                Err(error) => {
                    tracing::warn!(%node, %error, "what a node's cache holds was not understood");
                    Ok(())
                }
            },
            // A second hello would need a second reconciliation: let it open a new session.
            Some(Message::Hello(_)) => break,
            None => Ok(()),
        };
        if result.is_err() {
            break;
        }
    }
    tracing::info!(%node, "session ended");
    shared.logs.node_gone(&node);
    // The daemon may be stopping.
    let _ = shared.handle.node_left(node.clone(), session).await;
    // Whoever asked before the reactor hears of it has been let in by now; later ones are turned away.
    shared.caches.session_ended(&node, session);
    shared.builds.session_ended(&node, session);
}

fn daemon_message(message: pb::daemon_message::Message) -> pb::DaemonMessage {
    pb::DaemonMessage { message: Some(message) }
}

fn to_wire(order: ToNode) -> pb::DaemonMessage {
    use pb::daemon_message::Message;
    daemon_message(match order {
        ToNode::Assign(assignment) => Message::Assign(assign(*assignment)),
        ToNode::Stop { key, reason } => {
            Message::Cancel(pb::CancelAttempt { key: Some((&key).into()), reason })
        }
        ToNode::Acknowledge(key) => Message::Acknowledge((&key).into()),
        ToNode::Discard(key) => Message::Discard((&key).into()),
        ToNode::Release(key) => Message::Release((&key).into()),
        ToNode::FollowLog { request, key, process, offset, follow } => {
            let (request_id, key) = (request, Some((&key).into()));
            Message::FollowLog(pb::FollowLog { request_id, key, offset, follow, process })
        }
        ToNode::OpenChannel { channel, key, open } => Message::OpenChannel(pb::OpenChannel {
            channel,
            key: Some((&key).into()),
            open: Some(*open),
        }),
        ToNode::AskCache { request, prune } => {
            Message::AskCache(pb::AskCache { request_id: request, prune })
        }
        ToNode::Build { request, environment, require_containers } => {
            Message::BuildEnvironment(pb::BuildEnvironment {
                request_id: request,
                environment: Some((&*environment).into()),
                image_policy: image_policy(require_containers).into(),
            })
        }
        ToNode::HeartbeatAck(number) => Message::HeartbeatAck(pb::HeartbeatAck { number }),
    })
}

fn store_path(grant: Grant) -> pb::StorePath {
    pb::StorePath {
        datastore: grant.datastore.to_string(),
        path: grant.path,
        shared_root: grant.shared_root.map(|p| p.display().to_string()).unwrap_or_default(),
    }
}

const fn image_policy(require_containers: bool) -> pb::ImagePolicy {
    match require_containers {
        true => pb::ImagePolicy::Refuse,
        false => pb::ImagePolicy::HostPython,
    }
}

fn assign(assignment: daemon::Assignment) -> pb::Assignment {
    let inputs = assignment
        .inputs
        .into_iter()
        .map(|(name, source)| {
            let source = match source {
                InputSource::Store(grant) => pb::input_grant::Source::Store(store_path(grant)),
                InputSource::Url(url) => pb::input_grant::Source::Url(url),
            };
            (name.to_string(), pb::InputGrant { source: Some(source) })
        })
        .collect();
    let outputs = assignment
        .outputs
        .into_iter()
        .map(|(name, grant)| (name.to_string(), pb::OutputGrant { store: Some(store_path(grant)) }))
        .collect();
    pb::Assignment {
        key: Some((&assignment.key).into()),
        spec: Some(job_pb::CommandJob::from(assignment.spec.as_ref())),
        experiment_id: assignment.experiment_id,
        gpu_indices: assignment.reservation.gpus.into_iter().map(u32::from).collect(),
        cpu_milli: assignment.reservation.cpu,
        memory_mib: assignment.reservation.memory,
        token: assignment.token,
        inputs,
        outputs,
        artifacts: Some(pb::ArtifactGrant {
            root: Some(store_path(assignment.artifacts)),
            log_path: assignment.log_path,
            manifest_path: assignment.manifest_path,
        }),
        environment: assignment.environment.as_ref().map(Into::into),
        image_policy: image_policy(assignment.require_containers).into(),
        log_limit_bytes: assignment.log_limit,
        grace_s: assignment.grace,
        created_by: assignment.created_by.to_string(),
        rank: assignment.rank,
        addresses: assignment.addresses,
        user_seed: assignment.user_seed,
        failed: assignment.failed,
    }
}
