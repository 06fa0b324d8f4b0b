//! `atelier.identity.v1.TokenService`.

use atelier_core::access::Role;
use atelier_core::id::{NodeName, Principal};
use atelier_proto::identity::v1 as pb;
use tonic::{Request, Response, Status};

use super::caller;
use super::status::told;
use crate::daemon::Shared;

/// Who may come in.
pub(super) struct Service(pub(super) Shared);

#[tonic::async_trait]
impl pb::token_service_server::TokenService for Service {
    async fn create_token(
        &self,
        request: Request<pb::CreateTokenRequest>,
    ) -> Result<Response<pb::CreateTokenResponse>, Status> {
        let by = caller(&request)?.principal;
        let request = request.into_inner();
        let (principal, role) = match request.role() {
            pb::Role::Admin => (request.user, Role::Admin),
            pb::Role::DataScientist => (request.user, Role::DataScientist),
            pb::Role::Reader => (request.user, Role::Reader),
            pb::Role::Node => {
                let node = NodeName::new(&request.user).map_err(told)?;
                (format!("node:{node}"), Role::Node(node))
            }
            pb::Role::Unspecified => {
                return Err(Status::invalid_argument(
                    "role: is required: admin, data-scientist, reader or node",
                ));
            }
        };
        let taken = ["node:", "attempt:"].iter().any(|prefix| principal.starts_with(prefix));
        if taken && !matches!(role, Role::Node(_)) {
            return Err(Status::invalid_argument(
                "user: names that begin with 'node:' or 'attempt:' are kept for nodes and attempts",
            ));
        }
        if ["atelier", "daemon"].contains(&principal.as_str()) {
            return Err(Status::invalid_argument(format!(
                "user: '{principal}' is what the daemon calls itself; choose another name"
            )));
        }
        let principal = Principal::new(&principal).map_err(told)?;
        tracing::info!(%principal, %role, %by, "token made");
        let now = self.0.clock.wall();
        let token = self.0.door.create_token(principal, role, now).await.map_err(told)?;
        Ok(Response::new(pb::CreateTokenResponse { token }))
    }
}
