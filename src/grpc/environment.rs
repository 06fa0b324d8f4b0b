//! `atelier.environment.v1.EnvironmentService`.

use atelier_core::environment::Draft;
use atelier_core::id::AssetName;
use atelier_core::spec::AssetRef;
use atelier_proto::convert;
use atelier_proto::environment::v1 as pb;
use tonic::{Request, Response, Status};

use super::status::told;
use super::{blocking, caller};
use crate::daemon::{Curated, FoundEnvironment, Shared};
use crate::store::Archived;
use crate::store::environments::{EnvironmentQuery, ListedEnvironment};

/// Environments: make versions, look, put away.
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
        let by = caller(&request)?.principal;
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
        let query = EnvironmentQuery {
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
        let pb::ArchiveEnvironmentRequest { name, version, archived } = request.into_inner();
        let found = self.0.environments.archive(&name, &version, archived).await.map_err(told)?;
        Ok(Response::new(describe(found)))
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
