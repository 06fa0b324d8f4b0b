//! `atelier.identity.v1.SignInService`.

use std::sync::Arc;

use atelier_core::sign_in::passing::{Endpoint, Parameters};
use atelier_core::time::Timestamp;
use atelier_proto::identity::v1 as pb;
use tonic::{Request, Response, Status};

use super::status::told;
use crate::daemon::Shared;
use crate::identity::people::Issued;
use crate::oidc::Provider;

/// Takes a provider's word for who somebody is.
pub(super) struct Service(pub(super) Shared);

impl Service {
    fn provider(&self) -> Result<&Arc<Provider>, Status> {
        self.0.provider.as_ref().ok_or_else(|| {
            Status::not_found(
                "this workspace has no OpenID Connect provider to sign in at; ask an admin for a token",
            )
        })
    }
}

#[tonic::async_trait]
impl pb::sign_in_service_server::SignInService for Service {
    async fn get_sign_in(
        &self,
        _: Request<pb::GetSignInRequest>,
    ) -> Result<Response<pb::GetSignInResponse>, Status> {
        let provider = self.provider()?;
        Ok(Response::new(pb::GetSignInResponse {
            issuer: provider.issuer.clone(),
            client_id: provider.client_id.clone(),
            scopes: provider.scopes.clone(),
            workspace: self.0.folder.workspace().name.to_string(),
            asks_for_clients: provider.has_secret(),
        }))
    }

    async fn ask_provider(
        &self,
        request: Request<pb::AskProviderRequest>,
    ) -> Result<Response<pb::AskProviderResponse>, Status> {
        use pb::ProviderEndpoint as P;
        let provider = self.provider()?;
        let from = super::origin(&request).from;
        let request = request.into_inner();
        let endpoint = match request.endpoint() {
            P::Token => Endpoint::Token,
            P::DeviceAuthorization => Endpoint::DeviceAuthorization,
            P::Revocation => Endpoint::Revocation,
            P::Unspecified => {
                return Err(Status::invalid_argument("which endpoint of the provider is meant?"));
            }
        };
        let parameters: Parameters = request.parameters.into_iter().collect();
        let passed = provider.ask(endpoint, &parameters, from).await.map_err(|refused| {
            tracing::info!(error = %refused, "the provider was not asked");
            told(refused)
        })?;
        let body = passed.body.to_string().into_bytes().into();
        Ok(Response::new(pb::AskProviderResponse { succeeded: passed.succeeded, body }))
    }

    async fn sign_in(
        &self,
        request: Request<pb::SignInRequest>,
    ) -> Result<Response<pb::SignInResponse>, Status> {
        let provider = self.provider()?;
        let origin = super::origin(&request);
        let token = request.into_inner().id_token;
        let user = provider.user(&token).await;
        let user = user.and_then(|user| provider.take(&token).map(|()| user));
        let user = user.map_err(|rejected| {
            tracing::info!(error = %rejected, "nobody signed in");
            told(rejected)
        })?;
        let name = user.principal.to_string();
        let made = self.0.door.people().sign_in(user, provider.session, &origin).await;
        let Issued { secret, listed } = made.map_err(|refused| {
            tracing::info!(error = %refused, user = name, "nobody signed in");
            told(refused)
        })?;
        let record = &listed.record;
        tracing::info!(user = name, role = %record.role, id = %listed.id, "signed in");
        Ok(Response::new(pb::SignInResponse {
            token: secret,
            user: name,
            role: record.role.to_string(),
            expires_at_ms: record.expires_at.map_or(0, Timestamp::as_millis),
            token_id: listed.id.to_string(),
        }))
    }
}
