//! `atelier.workspace.v1.WorkspaceService`.

use atelier_core::datastore::{DatastoreRecord, Draft};
use atelier_core::layout;
use atelier_proto::workspace::v1 as pb;
use tonic::{Request, Response, Status};

use super::caller;
use super::status::told;
use crate::daemon::{Shared, Trial};
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
        let datastores = self.0.datastores.all().iter().map(describe).collect();
        Ok(Response::new(pb::ListDatastoresResponse { datastores }))
    }

    async fn get_datastore(
        &self,
        request: Request<pb::GetDatastoreRequest>,
    ) -> Result<Response<pb::Datastore>, Status> {
        let found = self.0.datastore_changes.find(&request.get_ref().name).map_err(told)?;
        Ok(Response::new(describe(&found)))
    }

    async fn create_datastore(
        &self,
        request: Request<pb::CreateDatastoreRequest>,
    ) -> Result<Response<pb::Datastore>, Status> {
        let by = caller(&request)?.principal;
        let draft = draft(request.into_inner().datastore)?;
        let at = self.0.clock.wall();
        let made = self.0.datastore_changes.create(draft, by, at).await.map_err(told)?;
        Ok(Response::new(describe(&made)))
    }

    async fn update_datastore(
        &self,
        request: Request<pb::UpdateDatastoreRequest>,
    ) -> Result<Response<pb::Datastore>, Status> {
        let draft = draft(request.into_inner().datastore)?;
        let changed = self.0.datastore_changes.update(draft).await.map_err(told)?;
        Ok(Response::new(describe(&changed)))
    }

    async fn delete_datastore(
        &self,
        request: Request<pb::DeleteDatastoreRequest>,
    ) -> Result<Response<pb::DeleteDatastoreResponse>, Status> {
        self.0.datastore_changes.delete(&request.get_ref().name).await.map_err(told)?;
        Ok(Response::new(pb::DeleteDatastoreResponse {}))
    }

    async fn test_datastore(
        &self,
        request: Request<pb::TestDatastoreRequest>,
    ) -> Result<Response<pb::TestDatastoreResponse>, Status> {
        let trials = self.0.datastore_changes.test(&request.get_ref().name).await;
        let trial = |trial: Trial| pb::DatastoreTrial {
            operation: trial.operation.to_owned(),
            problem: trial.problem.unwrap_or_default(),
        };
        let trials = trials.map_err(told)?.into_iter().map(trial).collect();
        Ok(Response::new(pb::TestDatastoreResponse { trials }))
    }

    async fn list_experiments(
        &self,
        _request: Request<pb::ListExperimentsRequest>,
    ) -> Result<Response<pb::ListExperimentsResponse>, Status> {
        let experiments = self.0.experiments().await.map_err(told)?;
        Ok(Response::new(pb::ListExperimentsResponse { experiments }))
    }
}

fn draft(sent: Option<pb::DatastoreDraft>) -> Result<Draft, Status> {
    let sent = sent.ok_or_else(|| Status::invalid_argument("datastore: is required"))?;
    Draft::try_from(sent).map_err(|error| told(error.under("datastore")))
}

fn describe(datastore: &Datastore) -> pb::Datastore {
    let name = datastore.name().to_string();
    let location = datastore.folder().display().to_string();
    if let Some(DatastoreRecord { datastore, created_by, created_at }) = datastore.record() {
        return pb::Datastore {
            name,
            r#type: datastore.folder.kind.as_str().to_owned(),
            description: datastore.description.clone().unwrap_or_default(),
            location,
            tags: datastore.tags.clone(),
            properties: datastore.properties.clone(),
            created_by: created_by.to_string(),
            created_at_ms: created_at.as_millis(),
            is_default: false,
        };
    }
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
        location,
        ..pb::Datastore::default()
    }
}
