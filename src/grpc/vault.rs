//! `atelier.vault.v1.VaultService`.

use std::time::Duration;

use atelier_core::audit::Change;
use atelier_core::id::{Principal, SecretName, SecretVersion};
use atelier_core::secret::{Grant, SealedName, Secret, Use};
use atelier_core::time::Timestamp;
use atelier_proto::vault::v1 as pb;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::status::told;
use super::{actor, asking, blocking};
use crate::daemon::Shared;
use crate::vault;

/// Secrets: set, look what there is, say whose jobs may use them, delete, rotate their keys. None gives a value out.
pub(super) struct Service(pub(super) Shared);

/// Pages of the list.
const PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;
/// How long a call may seal anew. A client waits for a minute, and what is begun may take as long again.
const SLICE: Duration = Duration::from_secs(20);
/// Uses that are told of a secret.
const USES: usize = 20;

#[tonic::async_trait]
impl pb::vault_service_server::VaultService for Service {
    async fn set_secret(
        &self,
        request: Request<pb::SetSecretRequest>,
    ) -> Result<Response<pb::Secret>, Status> {
        let caller = asking(&request)?;
        let by = caller.principal.clone();
        let pb::SetSecretRequest { name, value } = request.into_inner();
        let value = Zeroizing::new(Vec::from(value));
        let name = SecretName::new(&name).map_err(told)?;
        let at = self.0.clock.wall();
        let kept = self.0.vault.set(name, value, caller, at).await.map_err(told)?;
        tracing::info!(secret = %kept.name, version = %kept.version, %by, "secret set");
        self.granted(kept).await
    }

    async fn get_secret(
        &self,
        request: Request<pb::GetSecretRequest>,
    ) -> Result<Response<pb::Secret>, Status> {
        let (vault, name) = (self.0.vault.clone(), request.into_inner().name);
        let found = blocking(move || {
            let secret = vault.get(&name)?;
            let (grants, uses) = (vault.grants(&secret.name)?, vault.uses(&secret.name, USES)?);
            Ok::<_, vault::Error>((secret, grants, uses))
        });
        let (secret, grants, uses) = found.await?.map_err(told)?;
        Ok(Response::new(describe(&secret, grants, uses)))
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
        let found = blocking(move || {
            let with_grants = |secret: Secret| Ok((vault.grants(&secret.name)?, secret));
            let found = vault.list(&page_token, limit + 1)?.into_iter().map(with_grants);
            found.collect::<Result<Vec<_>, vault::Error>>()
        });
        let mut found = found.await?.map_err(told)?;
        let is_last = found.len() <= limit;
        found.truncate(limit);
        let next = found.last().filter(|_| !is_last).map(|(_, last)| last.name.to_string());
        let secrets = found.into_iter().map(|(grants, it)| describe(&it, grants, Vec::new()));
        Ok(Response::new(pb::ListSecretsResponse {
            secrets: secrets.collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn delete_secret(
        &self,
        request: Request<pb::DeleteSecretRequest>,
    ) -> Result<Response<pb::DeleteSecretResponse>, Status> {
        let caller = asking(&request)?;
        let by = caller.principal.clone();
        let name = request.into_inner().name;
        let at = self.0.clock.wall();
        let name = self.0.vault.delete(&name, caller, at).await.map_err(told)?;
        tracing::info!(secret = %name, %by, "secret deleted");
        Ok(Response::new(pb::DeleteSecretResponse {}))
    }

    async fn delete_secret_version(
        &self,
        request: Request<pb::DeleteSecretVersionRequest>,
    ) -> Result<Response<pb::DeleteSecretVersionResponse>, Status> {
        let caller = asking(&request)?;
        let by = caller.principal.clone();
        let pb::DeleteSecretVersionRequest { name, version } = request.into_inner();
        let version = SecretVersion(version);
        // A job that was checked before is one of the live ones by now.
        let _alone = self.0.datastores.let_go().await;
        let users = self.0.users_of_secret(&name, version).await.map_err(told)?;
        let deleted = self.0.vault.delete_version(&name, version, users, caller).await;
        let name = deleted.map_err(told)?;
        tracing::info!(secret = %name, %version, %by, "secret deleted");
        Ok(Response::new(pb::DeleteSecretVersionResponse {}))
    }

    async fn grant_secret(
        &self,
        request: Request<pb::GrantSecretRequest>,
    ) -> Result<Response<pb::Secret>, Status> {
        let caller = asking(&request)?;
        let by = caller.principal.clone();
        let pb::GrantSecretRequest { name, user, everyone } = request.into_inner();
        let to = grantee(&user, everyone)?;
        let at = self.0.clock.wall();
        let secret = self.0.vault.grant(&name, to, caller, at).await.map_err(told)?;
        tracing::info!(secret = %secret.name, user, everyone, %by, "secret granted");
        self.granted(secret).await
    }

    async fn revoke_secret(
        &self,
        request: Request<pb::RevokeSecretRequest>,
    ) -> Result<Response<pb::Secret>, Status> {
        let caller = asking(&request)?;
        let by = caller.principal.clone();
        let pb::RevokeSecretRequest { name, user, everyone } = request.into_inner();
        let to = grantee(&user, everyone)?;
        let secret = self.0.vault.revoke(&name, to, caller).await.map_err(told)?;
        tracing::info!(secret = %secret.name, user, everyone, %by, "secret revoked");
        self.granted(secret).await
    }

    async fn get_vault(
        &self,
        _request: Request<pb::GetVaultRequest>,
    ) -> Result<Response<pb::Vault>, Status> {
        let status = self.0.vault.status().await.map_err(told)?;
        let keys = status.keys.into_iter().map(|of| pb::KeyUse {
            key: of.key.to_string(),
            versions: of.versions,
            source: of.source,
        });
        Ok(Response::new(pb::Vault {
            key: status.key.map(|key| key.to_string()).unwrap_or_default(),
            key_source: status.source,
            keys: keys.collect(),
            problem: status.problem.unwrap_or_default(),
        }))
    }

    async fn rotate_keys(
        &self,
        request: Request<pb::RotateKeysRequest>,
    ) -> Result<Response<pb::RotateKeysResponse>, Status> {
        let asked = actor(&request)?;
        let by = asked.principal.clone();
        let pb::RotateKeysRequest { data_keys, cursor } = request.into_inner();
        let from = match cursor.as_str() {
            "" => None,
            cursor => Some(
                cursor
                    .parse::<vault::Cursor>()
                    .map_err(|problem| Status::invalid_argument(format!("cursor: {problem}")))?,
            ),
        };
        let at = self.0.clock.wall();
        if from.is_none() {
            // It is many transactions: told before the first.
            let change = Change::done("vault/keys", &serde_json::json!({ "data_keys": data_keys }));
            self.0.audit.note(asked, change).await.map_err(told)?;
        }
        let rotated = self.0.vault.rotate(data_keys, from, at, SLICE).await.map_err(told)?;
        let vault::Rotation { key, versions, done, total, next, begun_at, was_begun, .. } = rotated;
        let vault::Rotation { damaged, damaged_total, .. } = rotated;
        let key = key.map(|key| key.to_string()).unwrap_or_default();
        tracing::info!(%key, versions, done, total, data_keys, %by, "the vault's keys are rotated");
        for vault::Damage { name, version, problem } in &damaged {
            tracing::warn!(%name, %version, problem, "it does not open, and stays sealed as it is");
        }
        let damaged = damaged.into_iter().map(|vault::Damage { name, version, problem }| {
            let (secret, datastore) = match name {
                SealedName::Secret(name) => (name.to_string(), String::new()),
                SealedName::Datastore(name) => (String::new(), name.to_string()),
            };
            pb::DamagedVersion { secret, datastore, version: version.0, problem }
        });
        Ok(Response::new(pb::RotateKeysResponse {
            key,
            versions,
            done,
            total,
            goes_on: next.is_some(),
            damaged: damaged.collect(),
            damaged_total,
            cursor: next.map(|cursor| cursor.to_string()).unwrap_or_default(),
            begun_at_ms: begun_at.map_or(0, Timestamp::as_millis),
            was_begun,
        }))
    }
}

impl Service {
    /// A secret, with whose jobs may use it.
    async fn granted(&self, secret: Secret) -> Result<Response<pb::Secret>, Status> {
        let (vault, name) = (self.0.vault.clone(), secret.name.clone());
        let grants = blocking(move || vault.grants(&name)).await?.map_err(told)?;
        Ok(Response::new(describe(&secret, grants, Vec::new())))
    }
}

/// `None`: everybody.
fn grantee(user: &str, everyone: bool) -> Result<Option<Principal>, Status> {
    match (user, everyone) {
        ("", true) => Ok(None),
        (user, false) => Principal::new(user).map(Some).map_err(told),
        (_, true) => Err(Status::invalid_argument("user: must be empty with everyone")),
    }
}

fn describe(secret: &Secret, grants: Vec<Grant>, uses: Vec<Use>) -> pb::Secret {
    let grants = grants.into_iter().map(|grant| pb::SecretGrant {
        user: grant.to.map(|to| to.to_string()).unwrap_or_default(),
        granted_by: grant.by.to_string(),
        granted_at_ms: grant.at.as_millis(),
    });
    let uses = uses.into_iter().map(|one| pb::SecretUse {
        job: one.job.to_string(),
        version: one.version.0,
        used_by: one.by.to_string(),
        used_at_ms: one.at.as_millis(),
    });
    pb::Secret {
        name: secret.name.to_string(),
        version: secret.version.0,
        created_by: secret.owner.to_string(),
        created_at_ms: secret.created_at.as_millis(),
        updated_by: secret.updated_by.to_string(),
        updated_at_ms: secret.updated_at.as_millis(),
        grants: grants.collect(),
        uses: uses.collect(),
    }
}
