//! `atelier.node.v1.NodeIdentityService`.

use std::time::Duration;

use atelier_core::id::{ComputeName, NodeName};
use atelier_core::join::JoinToken;
use atelier_proto::node::v1 as pb;
use tonic::{Request, Response, Status};

use super::status::told;
use super::{actor, caller, origin};
use crate::daemon::{Given, NodesError, Revoked, Shared, Shows};
use crate::identity::{AskedAs, Denied, Door};

/// What nodes are known by.
pub(super) struct Service(pub(super) Shared);

#[tonic::async_trait]
impl pb::node_identity_service_server::NodeIdentityService for Service {
    async fn create_join_token(
        &self,
        request: Request<pb::CreateJoinTokenRequest>,
    ) -> Result<Response<pb::CreateJoinTokenResponse>, Status> {
        let by = actor(&request)?;
        let asked = request.extensions().get::<AskedAs>().cloned();
        let pb::CreateJoinTokenRequest { compute, node, expires_s } = request.into_inner();
        let named = |name: String| Some(name).filter(|name| !name.is_empty());
        let compute = named(compute).map(|name| ComputeName::new(&name)).transpose();
        let compute = compute.map_err(told)?;
        let node = named(node).map(|name| NodeName::new(&name)).transpose().map_err(told)?;
        if let Some(compute) = compute.clone() {
            let name = compute.clone();
            let look = self.0.handle.look(move |live, _| live.compute(&name).is_some());
            if !look.await.map_err(told)? {
                return Err(told(NodesError::NoSuchCompute(compute)));
            }
        }
        let opens = (expires_s > 0).then(|| Duration::from_secs(expires_s));
        tracing::info!(?compute, ?node, by = %by.principal, "join token made");
        let made = self.0.nodes.make_token(compute, node, opens, by).await.map_err(told)?;
        Ok(Response::new(pb::CreateJoinTokenResponse {
            token: made.token,
            expires_at_ms: made.expires_at.as_millis(),
            server: self.0.addresses.control_url(asked.as_ref()),
            id: made.id,
        }))
    }

    async fn list_join_tokens(
        &self,
        _request: Request<pb::ListJoinTokensRequest>,
    ) -> Result<Response<pb::ListJoinTokensResponse>, Status> {
        let tokens = self.0.nodes.tokens().map_err(told)?.iter().map(view).collect();
        Ok(Response::new(pb::ListJoinTokensResponse { tokens }))
    }

    async fn delete_join_token(
        &self,
        request: Request<pb::DeleteJoinTokenRequest>,
    ) -> Result<Response<pb::JoinToken>, Status> {
        let by = actor(&request)?;
        let deleted = self.0.nodes.delete_token(&request.get_ref().id, by).await.map_err(told)?;
        Ok(Response::new(view(&deleted)))
    }

    async fn join_node(
        &self,
        request: Request<pb::JoinNodeRequest>,
    ) -> Result<Response<pb::JoinNodeResponse>, Status> {
        let origin = origin(&request);
        let pb::JoinNodeRequest { token, node, compute, signing_request, token_hash } =
            request.into_inner();
        let node = NodeName::new(&node).map_err(told)?;
        let compute = ComputeName::new(&compute).map_err(told)?;
        let shows = match token_hash.is_empty() {
            true => Shows::Request(signing_request.into()),
            false => Shows::TokenHash(token_hash.into()),
        };
        let nodes = &self.0.nodes;
        let Given { certificate, authority, lasts_ms } =
            nodes.join(&token, node.clone(), compute, shows, &origin).await.map_err(told)?;
        nodes.lift(&node, &self.0.handle).await.map_err(told)?;
        Ok(Response::new(pb::JoinNodeResponse { certificate, authority, lasts_ms }))
    }

    async fn renew_certificate(
        &self,
        request: Request<pb::RenewCertificateRequest>,
    ) -> Result<Response<pb::RenewCertificateResponse>, Status> {
        let caller = caller(&request)?;
        let Some(node) = Door::node_of(&caller).cloned() else {
            let (principal, role) = (caller.principal, caller.role.to_string());
            return Err(told(Denied::NotAllowed { principal, role, action: "act as a node" }));
        };
        let request = request.into_inner().signing_request;
        let Given { certificate, authority, lasts_ms } =
            self.0.nodes.renew(&node, &request).map_err(told)?;
        Ok(Response::new(pb::RenewCertificateResponse { certificate, authority, lasts_ms }))
    }

    async fn revoke_node(
        &self,
        request: Request<pb::RevokeNodeRequest>,
    ) -> Result<Response<pb::RevokeNodeResponse>, Status> {
        let by = actor(&request)?;
        let node = NodeName::new(&request.into_inner().name).map_err(told)?;
        let who = by.principal.clone();
        let revoked = self.0.nodes.revoke(&node, &self.0.handle, by).await.map_err(told)?;
        let Revoked { attempts, join_tokens, never_joined } = revoked;
        tracing::warn!(%node, by = %who, attempts, join_tokens, never_joined, "a node was revoked");
        Ok(Response::new(pb::RevokeNodeResponse { attempts, join_tokens, never_joined }))
    }
}

fn view(token: &JoinToken) -> pb::JoinToken {
    let text = |name: Option<&str>| name.unwrap_or_default().to_owned();
    pb::JoinToken {
        id: token.id(),
        compute: text(token.compute.as_ref().map(ComputeName::as_str)),
        node: text(token.node.as_ref().map(NodeName::as_str)),
        created_by: token.created_by.to_string(),
        created_at_ms: token.created_at.as_millis(),
        expires_at_ms: token.expires_at.as_millis(),
    }
}
