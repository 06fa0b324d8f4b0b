//! `atelier.workspace.v1.WorkspaceService`.

use atelier_core::audit::{Actor, Change};
use atelier_core::datastore::{Credentials, DatastoreRecord, Draft};
use atelier_core::layout;
use atelier_proto::convert::shown_source;
use atelier_proto::workspace::v1 as pb;
use tonic::{Request, Response, Status};

use super::status::told;
use super::{actor, caller, retention};
use crate::daemon::{Shared, Trial, Wanted};
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
            storage: self.0.storage.to_string(),
            certificate_authority: self
                .0
                .secure
                .as_ref()
                .map(|secure| secure.standing().certificate)
                .unwrap_or_default(),
            has_given_certificate: self.0.secure.as_ref().is_some_and(|secure| secure.is_given()),
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
        let by = actor(&request)?;
        let pb::CreateDatastoreRequest { datastore, credentials } = request.into_inner();
        let wanted = self.wanted(datastore, credentials, by)?;
        let made = self.0.datastore_changes.create(wanted).await.map_err(told)?;
        Ok(Response::new(describe(&made)))
    }

    async fn update_datastore(
        &self,
        request: Request<pb::UpdateDatastoreRequest>,
    ) -> Result<Response<pb::Datastore>, Status> {
        let by = actor(&request)?;
        let pb::UpdateDatastoreRequest { datastore, credentials } = request.into_inner();
        let wanted = self.wanted(datastore, credentials, by)?;
        let changed = self.0.datastore_changes.update(wanted).await.map_err(told)?;
        Ok(Response::new(describe(&changed)))
    }

    async fn delete_datastore(
        &self,
        request: Request<pb::DeleteDatastoreRequest>,
    ) -> Result<Response<pb::DeleteDatastoreResponse>, Status> {
        let (by, at) = (actor(&request)?, self.0.clock.wall());
        let name = &request.get_ref().name;
        self.0.datastore_changes.delete(name, by, at).await.map_err(told)?;
        Ok(Response::new(pb::DeleteDatastoreResponse {}))
    }

    async fn test_datastore(
        &self,
        request: Request<pb::TestDatastoreRequest>,
    ) -> Result<Response<pb::TestDatastoreResponse>, Status> {
        let resource = format!("datastore/{}", request.get_ref().name);
        let trials = self.0.datastore_changes.test(&request.get_ref().name).await;
        if trials.is_ok() {
            let change = Change::done(resource, &serde_json::json!({ "tested": true }));
            self.0.audit.note(actor(&request)?, change).await.map_err(told)?;
        }
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

    async fn get_retention(
        &self,
        _request: Request<pb::GetRetentionRequest>,
    ) -> Result<Response<pb::Retention>, Status> {
        retention::get(&self.0).map(Response::new)
    }

    async fn set_retention(
        &self,
        request: Request<pb::SetRetentionRequest>,
    ) -> Result<Response<pb::Retention>, Status> {
        let by = actor(&request)?;
        retention::set(&self.0, request.into_inner(), by).await.map(Response::new)
    }

    async fn preview_retention(
        &self,
        _request: Request<pb::PreviewRetentionRequest>,
    ) -> Result<Response<pb::RetentionReport>, Status> {
        retention::preview(&self.0).await.map(Response::new)
    }

    async fn apply_retention(
        &self,
        request: Request<pb::ApplyRetentionRequest>,
    ) -> Result<Response<pb::RetentionReport>, Status> {
        retention::apply(&self.0, actor(&request)?).await.map(Response::new)
    }
}

impl Service {
    fn wanted(
        &self,
        draft: Option<pb::DatastoreDraft>,
        credentials: Option<pb::DatastoreCredentials>,
        by: Actor,
    ) -> Result<Wanted, Status> {
        let draft = draft.ok_or_else(|| Status::invalid_argument("datastore: is required"))?;
        let draft = Draft::try_from(draft).map_err(|error| told(error.under("datastore")))?;
        let credentials = credentials.map(Credentials::try_from).transpose();
        let credentials = credentials.map_err(|error| told(error.under("credentials")))?;
        Ok(Wanted { draft, credentials, by, at: self.0.clock.wall() })
    }
}

fn describe(datastore: &Datastore) -> pb::Datastore {
    let name = datastore.name().to_string();
    let (kind, location) = datastore.location();
    if let Some(record) = datastore.record() {
        let DatastoreRecord { datastore, credentials, created_by, created_at } = record;
        return pb::Datastore {
            name,
            r#type: kind.to_owned(),
            description: datastore.description.clone().unwrap_or_default(),
            location,
            tags: datastore.tags.clone(),
            properties: datastore.properties.clone(),
            created_by: created_by.to_string(),
            created_at_ms: created_at.as_millis(),
            is_default: false,
            credential_type: credentials.kind().to_owned(),
            source: shown_source(&datastore.source),
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
        r#type: kind.to_owned(),
        description: description.to_owned(),
        location,
        credential_type: "none".to_owned(),
        ..pb::Datastore::default()
    }
}
