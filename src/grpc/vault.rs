//! `atelier.vault.v1.VaultService`.

use atelier_core::id::SecretName;
use atelier_core::secret::Secret;
use atelier_proto::vault::v1 as pb;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::status::told;
use super::{blocking, caller};
use crate::daemon::Shared;

/// Secrets: set, look what there is, delete, rotate their keys. None gives a value out.
pub(super) struct Service(pub(super) Shared);

/// Pages of the list.
const PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;

#[tonic::async_trait]
impl pb::vault_service_server::VaultService for Service {
    async fn set_secret(
        &self,
        request: Request<pb::SetSecretRequest>,
    ) -> Result<Response<pb::Secret>, Status> {
        let caller = caller(&request)?;
        let by = caller.principal.clone();
        let pb::SetSecretRequest { name, value } = request.into_inner();
        let value = Zeroizing::new(Vec::from(value));
        let name = SecretName::new(&name).map_err(told)?;
        let at = self.0.clock.wall();
        let kept = self.0.vault.set(name, value, caller, at).await.map_err(told)?;
        tracing::info!(secret = %kept.name, version = %kept.version, %by, "secret set");
        Ok(Response::new(describe(&kept)))
    }

    async fn get_secret(
        &self,
        request: Request<pb::GetSecretRequest>,
    ) -> Result<Response<pb::Secret>, Status> {
        let secret = self.0.vault.get(&request.into_inner().name).map_err(told)?;
        Ok(Response::new(describe(&secret)))
    }

    async fn list_secrets(
        &self,
        request: Request<pb::ListSecretsRequest>,
    ) -> Result<Response<pb::ListSecretsResponse>, Status> {
        let pb::ListSecretsRequest { page_size, page_token } = request.into_inner();
        let limit = match page_size {
            0 => PAGE,
            size if size <= MAX_PAGE => size,
            size => {
                return Err(Status::invalid_argument(format!(
                    "page_size: is {size}, at most {MAX_PAGE} is allowed"
                )));
            }
        };
        let vault = self.0.vault.clone();
        let limit = limit as usize;
        // One more than asked tells whether there are more.
        let found = blocking(move || vault.list(&page_token, limit + 1)).await?.map_err(told)?;
        let page = &found[..found.len().min(limit)];
        let next = page.last().filter(|_| found.len() > limit);
        Ok(Response::new(pb::ListSecretsResponse {
            secrets: page.iter().map(describe).collect(),
            next_page_token: next.map(|last| last.name.to_string()).unwrap_or_default(),
        }))
    }

    async fn delete_secret(
        &self,
        request: Request<pb::DeleteSecretRequest>,
    ) -> Result<Response<pb::DeleteSecretResponse>, Status> {
        let caller = caller(&request)?;
        let by = caller.principal.clone();
        let name = request.into_inner().name;
        let at = self.0.clock.wall();
        let name = self.0.vault.delete(&name, caller, at).await.map_err(told)?;
        tracing::info!(secret = %name, %by, "secret deleted");
        Ok(Response::new(pb::DeleteSecretResponse {}))
    }

    async fn get_vault(
        &self,
        _request: Request<pb::GetVaultRequest>,
    ) -> Result<Response<pb::Vault>, Status> {
        let vault = self.0.vault.clone();
        let status = blocking(move || vault.status()).await?.map_err(told)?;
        let keys = status.keys.into_iter().map(|of| pb::KeyUse {
            key: of.key.to_string(),
            versions: of.versions,
            source: of.source,
        });
        Ok(Response::new(pb::Vault {
            key: status.key.map(|key| key.to_string()).unwrap_or_default(),
            key_source: status.source,
            keys: keys.collect(),
        }))
    }

    async fn rotate_keys(
        &self,
        request: Request<pb::RotateKeysRequest>,
    ) -> Result<Response<pb::RotateKeysResponse>, Status> {
        let by = caller(&request)?.principal;
        let data_keys = request.into_inner().data_keys;
        let vault = &self.0.vault;
        let versions = vault.rotate(data_keys, self.0.clock.wall()).await.map_err(told)?;
        let key = vault.status().map_err(told)?.key;
        let key = key.map(|key| key.to_string()).unwrap_or_default();
        tracing::info!(%key, versions, data_keys, %by, "the vault's keys are rotated");
        Ok(Response::new(pb::RotateKeysResponse { key, versions }))
    }
}

fn describe(secret: &Secret) -> pb::Secret {
    pb::Secret {
        name: secret.name.to_string(),
        version: secret.version.0,
        created_by: secret.owner.to_string(),
        created_at_ms: secret.created_at.as_millis(),
        updated_by: secret.updated_by.to_string(),
        updated_at_ms: secret.updated_at.as_millis(),
    }
}
