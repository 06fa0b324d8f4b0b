//! `atelier.identity.v1.AuthorityService`.

use atelier_proto::identity::v1 as pb;
use tonic::{Request, Response, Status};

use super::actor;
use super::status::told;
use crate::daemon::{AuthorityView, Shared};

/// The workspace's own certificate authority.
pub(super) struct Service(pub(super) Shared);

#[tonic::async_trait]
impl pb::authority_service_server::AuthorityService for Service {
    async fn get_authority(
        &self,
        _request: Request<pb::GetAuthorityRequest>,
    ) -> Result<Response<pb::Authority>, Status> {
        let seen = self.0.authority.look().await.map_err(told)?;
        Ok(Response::new(view(seen)))
    }

    async fn rotate_authority(
        &self,
        request: Request<pb::RotateAuthorityRequest>,
    ) -> Result<Response<pb::Authority>, Status> {
        let seen = self.0.authority.rotate(actor(&request)?).await.map_err(told)?;
        Ok(Response::new(view(seen)))
    }

    async fn retire_authority(
        &self,
        request: Request<pb::RetireAuthorityRequest>,
    ) -> Result<Response<pb::Authority>, Status> {
        let by = actor(&request)?;
        let force = request.get_ref().force;
        let seen = self.0.authority.retire(force, by).await.map_err(told)?;
        Ok(Response::new(view(seen)))
    }
}

fn view(seen: AuthorityView) -> pb::Authority {
    let AuthorityView { certificate, previous, behind } = seen;
    let (previous, rotated_at_ms) = match previous {
        Some(before) => (before.certificate, before.rotated_at.as_millis()),
        None => (String::new(), 0),
    };
    let nodes = behind.nodes.iter().map(ToString::to_string).collect();
    let jobs = behind.jobs.iter().map(ToString::to_string).collect();
    pb::Authority { certificate, previous, rotated_at_ms, nodes, jobs }
}
