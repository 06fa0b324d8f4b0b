//! `atelier.environment.v1.EnvironmentService`.

use atelier_core::access::{Caller, Permission};
use atelier_core::audit::Change;
use atelier_core::environment::Draft;
use atelier_core::id::{AssetName, NodeName};
use atelier_core::live::Asker;
use atelier_core::node::Link;
use atelier_core::spec::AssetRef;
use atelier_proto::convert;
use atelier_proto::environment::v1 as pb;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use serde_json::json;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::compute::no_compute;
use super::status::told;
use super::{actor, blocking, caller};
use crate::daemon::{Curated, FoundEnvironment, HandleError, Shared};
use crate::store::Archived;
use crate::store::assets::AssetQuery;
use crate::store::environments::ListedEnvironment;

/// Environments: make versions, look, put away, have nodes build.
pub(super) struct Service(pub(super) Shared);

/// Pages of the list.
const PAGE: u32 = 50;
const MAX_PAGE: u32 = 1000;

#[tonic::async_trait]
impl pb::environment_service_server::EnvironmentService for Service {
    async fn create_environment(
        &self,
        request: Request<pb::CreateEnvironmentRequest>,
    ) -> Result<Response<pb::Environment>, Status> {
        let by = actor(&request)?;
        let draft = Draft::try_from(request.into_inner()).map_err(told)?;
        let at = self.0.clock.wall();
        let made = self.0.environments.register(draft, by, at).await.map_err(told)?;
        let asset = AssetRef::exact(&made.name, &made.version);
        let found = self.0.environments.find(&asset).map_err(told)?;
        Ok(Response::new(describe(found)))
    }

    async fn get_environment(
        &self,
        request: Request<pb::GetEnvironmentRequest>,
    ) -> Result<Response<pb::Environment>, Status> {
        let asset = request.into_inner().environment;
        let asset = asset.ok_or_else(|| Status::invalid_argument("environment: is required"))?;
        let asset = AssetRef::try_from(asset).map_err(|e| told(e.under("environment")))?;
        let found = self.0.environments.find(&asset).map_err(told)?;
        Ok(Response::new(describe(found)))
    }

    async fn list_environments(
        &self,
        request: Request<pb::ListEnvironmentsRequest>,
    ) -> Result<Response<pb::ListEnvironmentsResponse>, Status> {
        let request = request.into_inner();
        let limit = match request.page_size {
            0 => PAGE,
            size if size <= MAX_PAGE => size,
            size => {
                return Err(Status::invalid_argument(format!(
                    "page_size: is {size}, at most {MAX_PAGE} is allowed"
                )));
            }
        };
        let is_of_one = !request.name.is_empty();
        let query = AssetQuery {
            name: is_of_one.then(|| AssetName::new(&request.name)).transpose().map_err(told)?,
            version: None,
            archived: match (request.archived_only, request.include_archived) {
                (true, _) => Archived::Only,
                (false, true) => Archived::With,
                (false, false) => Archived::Without,
            },
            after: Some(request.page_token).filter(|token| !token.is_empty()),
            limit: limit as usize,
        };
        let shared = self.0.clone();
        let is_first = query.after.is_none();
        let shows_curated = !is_of_one && query.archived != Archived::Only;
        let asset = AssetRef::latest(&request.name);
        let found = blocking(move || {
            let (listed, more) = shared.environments.list(&query)?;
            if is_of_one && is_first && listed.is_empty() {
                // A curated one has no versions; one that nobody knows is an error.
                let found = shared.environments.find(&asset);
                return Ok((listed, more, found.map(known)));
            }
            let curated =
                if shows_curated && !more { shared.environments.curated() } else { vec![] };
            Ok::<_, crate::daemon::EnvironmentError>((listed, more, Ok(curated)))
        });
        let (listed, more, curated) = found.await?.map_err(told)?;
        let curated = match curated {
            Ok(curated) => curated,
            // All of its versions are archived.
            Err(error) if error.is_archived() => Vec::new(),
            Err(error) => return Err(told(error)),
        };
        let next = listed.last().filter(|_| more).map(|last| last.after.clone());
        let environments = listed.iter().map(version).chain(curated.iter().map(of_table)).collect();
        Ok(Response::new(pb::ListEnvironmentsResponse {
            environments,
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn archive_environment(
        &self,
        request: Request<pb::ArchiveEnvironmentRequest>,
    ) -> Result<Response<pb::Environment>, Status> {
        let by = actor(&request)?;
        let pb::ArchiveEnvironmentRequest { name, version, archived } = request.into_inner();
        let found =
            self.0.environments.archive(&name, &version, archived, by).await.map_err(told)?;
        Ok(Response::new(describe(found)))
    }

    type BuildEnvironmentStream = BoxStream<'static, Result<pb::BuildEnvironmentResponse, Status>>;

    async fn build_environment(
        &self,
        request: Request<pb::BuildEnvironmentRequest>,
    ) -> Result<Response<Self::BuildEnvironmentStream>, Status> {
        use pb::build_environment_response::Message;
        let (by, caller) = (actor(&request)?, caller(&request)?);
        let pb::BuildEnvironmentRequest { environment, compute } = request.into_inner();
        let asset =
            environment.ok_or_else(|| Status::invalid_argument("environment: is required"))?;
        let asset = AssetRef::try_from(asset).map_err(|e| told(e.under("environment")))?;
        let found = self.0.environments.find(&asset).map_err(told)?;
        let content = match &found {
            FoundEnvironment::Version(listed) => listed.version.environment.clone(),
            FoundEnvironment::Curated(curated) => curated.content.clone(),
        };
        let (compute, nodes) = self.ready_nodes(compute, caller).await?;
        let (name, count) = (asset.name.as_str(), nodes.len());
        tracing::info!(environment = name, %compute, nodes = count, by = %by.principal, "environment is built ahead of jobs");
        let change = Change::done(
            format!("environment/{name}"),
            &json!({ "built_on": compute, "nodes": count }),
        );
        self.0.audit.note(by, change).await.map_err(super::told)?;
        let told = self.0.builds.start(&nodes, &content, self.0.args.require_containers);
        let nodes = nodes.iter().map(ToString::to_string).collect();
        let environment = Some(describe(found));
        let asked = Message::Asked(pb::BuildAsked { environment, compute, nodes });
        let all = stream::iter([asked]).chain(ReceiverStream::new(told).map(Message::Node));
        let mut stopping = self.0.stopping.clone();
        let stopped = async move {
            let _ = stopping.wait_for(|stop| *stop).await;
        };
        let all = all.map(|message| Ok(pb::BuildEnvironmentResponse { message: Some(message) }));
        Ok(Response::new(all.take_until(stopped).boxed()))
    }
}

impl Service {
    /// The compute, the default one if it has no name, and those of its nodes that are
    /// ready and get jobs. The caller may use it.
    async fn ready_nodes(
        &self,
        compute: String,
        caller: Caller,
    ) -> Result<(String, Vec<NodeName>), Status> {
        let missing = no_compute(&compute);
        let found = self.0.handle.look(move |live, _| {
            let found = match compute.as_str() {
                "" => live.compute(live.default_compute()),
                _ => live.computes().find(|known| known.name.as_str() == compute),
            }?;
            let name = found.name.clone();
            let manages = caller.may(Permission::ManageCompute);
            if let Err(refusal) = live.may_use(&name, Asker { user: &caller.principal, manages }) {
                return Some(Err(refusal));
            }
            let scaled = found.cluster.as_ref().filter(|_| found.is_scaled());
            let may_be_empty = scaled.is_some_and(|cluster| cluster.min_instances == 0);
            let of_it = live.nodes().filter(|node| node.record.compute == name);
            let stays = |node: &NodeName| {
                live.instance(node).is_none_or(|instance| instance.state.takes_jobs())
            };
            let ready = of_it.filter(|node| {
                node.link == Link::Ready
                    && node.record.drain.is_none()
                    && live.unfit(&node.record.name).is_none()
                    && stays(&node.record.name)
            });
            let mut nodes: Vec<NodeName> = ready.map(|node| node.record.name.clone()).collect();
            nodes.sort();
            Some(Ok((name.to_string(), nodes, may_be_empty)))
        });
        let found = found.await.map_err(told)?.ok_or(missing)?;
        let (name, nodes, may_be_empty) =
            found.map_err(|refusal| told(HandleError::from(refusal)))?;
        if nodes.is_empty() {
            let remedy = match may_be_empty {
                true => "set its min_instances, or let a job start a node",
                false => "see 'atelier node list'",
            };
            return Err(Status::failed_precondition(format!(
                "compute '{name}' has no node that is ready for jobs, and so none to build on; {remedy}"
            )));
        }
        Ok((name, nodes))
    }
}

fn known(found: FoundEnvironment) -> Vec<Curated> {
    match found {
        FoundEnvironment::Curated(curated) => vec![*curated],
        FoundEnvironment::Version(_) => Vec::new(),
    }
}

fn describe(found: FoundEnvironment) -> pb::Environment {
    match found {
        FoundEnvironment::Version(listed) => version(&listed),
        FoundEnvironment::Curated(curated) => of_table(&curated),
    }
}

fn version(listed: &ListedEnvironment) -> pb::Environment {
    convert::environment_version(&listed.version, listed.latest, listed.archived)
}

fn of_table(curated: &Curated) -> pb::Environment {
    pb::Environment {
        name: curated.name.clone(),
        description: curated.description.clone().unwrap_or_default(),
        content: Some((&curated.content).into()),
        latest: true,
        ..pb::Environment::default()
    }
}
