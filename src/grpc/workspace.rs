//! `atelier.workspace.v1.WorkspaceService`.

use atelier_core::layout;
use atelier_proto::workspace::v1 as pb;
use tonic::{Request, Response, Status};

use super::caller;
use super::status::told;
use crate::daemon::Shared;
use crate::storage::Datastore;

/// The workspace, its datastores and experiments.
pub(super) struct Service(pub(super) Shared);

#[tonic::async_trait]
impl pb::workspace_service_server::WorkspaceService for Service {
    async fn get_workspace(
        &self,
        request: Request<pb::GetWorkspaceRequest>,
    ) -> Result<Response<pb::Workspace>, Status> {
        let caller = caller(&request)?;
        let workspace = self.0.folder.workspace();
        let default_compute = self.0.handle.default_compute().await.map_err(told)?;
        Ok(Response::new(pb::Workspace {
            name: workspace.name.to_string(),
            id: workspace.id.clone(),
            version: crate::VERSION.to_owned(),
            default_datastore: layout::BLOB_STORE.to_owned(),
            default_compute: default_compute.to_string(),
            created_at_ms: workspace.created_at.as_millis(),
            principal: caller.principal.to_string(),
            role: caller.role.to_string(),
        }))
    }

    async fn list_datastores(
        &self,
        _request: Request<pb::ListDatastoresRequest>,
    ) -> Result<Response<pb::ListDatastoresResponse>, Status> {
        let datastores = self.0.datastores.iter().map(describe).collect();
        Ok(Response::new(pb::ListDatastoresResponse { datastores }))
    }

    async fn get_datastore(
        &self,
        request: Request<pb::GetDatastoreRequest>,
    ) -> Result<Response<pb::Datastore>, Status> {
        let datastore = self.0.datastores.get(&request.get_ref().name).map_err(told)?;
        Ok(Response::new(describe(datastore)))
    }

    async fn list_experiments(
        &self,
        _request: Request<pb::ListExperimentsRequest>,
    ) -> Result<Response<pb::ListExperimentsResponse>, Status> {
        let experiments = self.0.experiments().await.map_err(told)?;
        Ok(Response::new(pb::ListExperimentsResponse { experiments }))
    }
}

fn describe(datastore: &Datastore) -> pb::Datastore {
    let name = datastore.name().to_string();
    let description = match name.as_str() {
        layout::BLOB_STORE => "code, inputs and named outputs",
        layout::FILE_STORE => "people's own files",
        layout::ARTIFACT_STORE => "logs, metrics and artifacts of runs",
        _ => "",
    };
    pb::Datastore {
        is_default: name == layout::BLOB_STORE,
        name,
        r#type: "local".to_owned(),
        description: description.to_owned(),
        location: datastore.folder().map(|p| p.display().to_string()).unwrap_or_default(),
    }
}
