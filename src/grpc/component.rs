//! `atelier.component.v1.ComponentService`.

use atelier_core::component::{Change, Draft};
use atelier_core::id::AssetName;
use atelier_core::spec::AssetRef;
use atelier_proto::component::v1 as pb;
use atelier_proto::convert;
use atelier_proto::job::v1 as job;
use tonic::{Request, Response, Status};

use super::asset::page;
use super::status::told;
use super::{actor, asking, blocking};
use crate::daemon::{ComponentError, Shared};
use crate::store::Archived;
use crate::store::assets::AssetQuery;
use crate::store::components::ListedComponent;

/// Components: make versions, look, change, put away, forget.
pub(super) struct Service(pub(super) Shared);

#[tonic::async_trait]
impl pb::component_service_server::ComponentService for Service {
    async fn create_component(
        &self,
        request: Request<pb::CreateComponentRequest>,
    ) -> Result<Response<pb::Component>, Status> {
        let by = actor(&request)?;
        let draft = Draft::try_from(request.into_inner()).map_err(told)?;
        let draft = self.0.admission.pin_component(draft).await.map_err(told)?;
        let at = self.0.clock.wall();
        let made = self.0.components.register(draft, by, at).await.map_err(told)?;
        let asset = AssetRef::exact(&made.name, &made.version);
        let found = self.0.components.find(&asset).map_err(told)?;
        Ok(Response::new(describe(&found)))
    }

    async fn get_component(
        &self,
        request: Request<pb::GetComponentRequest>,
    ) -> Result<Response<pb::Component>, Status> {
        let component = reference(request.into_inner().component)?;
        let found = self.0.components.find(&component).map_err(told)?;
        Ok(Response::new(describe(&found)))
    }

    async fn list_components(
        &self,
        request: Request<pb::ListComponentsRequest>,
    ) -> Result<Response<pb::ListComponentsResponse>, Status> {
        let request = request.into_inner();
        let name = Some(request.name).filter(|name| !name.is_empty());
        let query = AssetQuery {
            name: name.as_deref().map(AssetName::new).transpose().map_err(told)?,
            version: None,
            archived: match (request.archived_only, request.include_archived) {
                (true, _) => Archived::Only,
                (false, true) => Archived::With,
                (false, false) => Archived::Without,
            },
            after: Some(request.page_token).filter(|token| !token.is_empty()),
            limit: page(request.page_size)? as usize,
        };
        let components = self.0.components.clone();
        let found = blocking(move || {
            let (listed, more) = components.list(&query)?;
            if let Some(name) = &query.name
                && listed.is_empty()
                && query.after.is_none()
            {
                components.must_know(name)?;
            }
            Ok::<_, ComponentError>((listed, more))
        });
        let (listed, more) = found.await?.map_err(told)?;
        let next = listed.last().filter(|_| more).map(|last| last.after.clone());
        Ok(Response::new(pb::ListComponentsResponse {
            components: listed.iter().map(describe).collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn update_component(
        &self,
        request: Request<pb::UpdateComponentRequest>,
    ) -> Result<Response<pb::Component>, Status> {
        let by = actor(&request)?;
        let mut request = request.into_inner();
        let component = reference(request.component.take())?;
        let change = Change::try_from(request).map_err(told)?;
        let changed = self.0.components.change(&component, change, by).await.map_err(told)?;
        Ok(Response::new(describe(&changed)))
    }

    async fn archive_component(
        &self,
        request: Request<pb::ArchiveComponentRequest>,
    ) -> Result<Response<pb::Component>, Status> {
        let by = actor(&request)?;
        let pb::ArchiveComponentRequest { name, version, archived } = request.into_inner();
        let found = self.0.components.archive(&name, &version, archived, by).await.map_err(told)?;
        Ok(Response::new(describe(&found)))
    }

    async fn delete_component(
        &self,
        request: Request<pb::DeleteComponentRequest>,
    ) -> Result<Response<pb::Component>, Status> {
        let caller = asking(&request)?;
        let component = reference(request.into_inner().component)?;
        let gone = self.0.components.delete(&component, &caller).await.map_err(told)?;
        let (name, version, by) = (&gone.version.name, &gone.version.version, &caller.principal);
        tracing::info!(%name, %version, %by, "component deleted");
        Ok(Response::new(describe(&gone)))
    }
}

fn reference(component: Option<job::AssetRef>) -> Result<AssetRef, Status> {
    let component = component.ok_or_else(|| Status::invalid_argument("component: is required"))?;
    AssetRef::try_from(component).map_err(|error| told(error.under("component")))
}

fn describe(listed: &ListedComponent) -> pb::Component {
    convert::component_version(&listed.version, listed.latest, listed.archived, &listed.labels)
}
