//! `atelier.asset.v1.AssetService`.

use atelier_core::asset::{Change, Draft, Kind, Version};
use atelier_core::content::Digest;
use atelier_core::id::AssetName;
use atelier_core::spec::{AssetRef, DataUri};
use atelier_proto::asset::v1 as pb;
use atelier_proto::convert;
use atelier_proto::job::v1 as job;
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::status::told;
use super::{actor, asking, blocking, checked_key};
use crate::daemon::{AssetError, NotOwner, Shared};
use crate::store::assets::{AssetQuery, Listed};
use crate::store::{Archived, IdempotencyKey};

/// Data assets and models: make versions, look, change, put away, forget.
pub(super) struct Service(pub(super) Shared);

/// Pages of the lists.
const PAGE: u32 = 50;
const MAX_PAGE: u32 = 1000;

impl Service {
    fn find(&self, kind: i32, asset: Option<job::AssetRef>) -> Result<Listed<Version>, Status> {
        let (kind, asset) = (kind_of(kind)?, reference(asset)?);
        self.0.assets.find(kind, &asset).map_err(told)
    }
}

/// The key of a request, with what it asks for.
fn keyed(request: &mut pb::CreateAssetRequest) -> Result<Option<IdempotencyKey>, Status> {
    let key = checked_key(std::mem::take(&mut request.idempotency_key))?;
    Ok(key.map(|key| IdempotencyKey { key, fingerprint: Digest::of(&request.encode_to_vec()) }))
}

#[tonic::async_trait]
impl pb::asset_service_server::AssetService for Service {
    async fn create_asset(
        &self,
        request: Request<pb::CreateAssetRequest>,
    ) -> Result<Response<pb::Asset>, Status> {
        let by = actor(&request)?;
        let mut request = request.into_inner();
        let key = keyed(&mut request)?;
        let draft = Draft::try_from(request).map_err(told)?;
        // What it lies in must be there until it is known.
        let _held = (self.0.datastores.hold().await, self.0.assets.hold().await);
        let (draft, made_by) = self.0.admission.locate(draft).await.map_err(told)?;
        let at = self.0.clock.wall();
        let by = (by, key);
        let made = self.0.assets.register(draft, made_by, by, at).await.map_err(told)?;
        crate::failpoint::hit("asset-created");
        let found = self.0.assets.find(made.kind(), &made.reference()).map_err(told)?;
        Ok(Response::new(describe(&found)))
    }

    async fn get_asset(
        &self,
        request: Request<pb::GetAssetRequest>,
    ) -> Result<Response<pb::Asset>, Status> {
        let pb::GetAssetRequest { kind, asset } = request.into_inner();
        let found = self.find(kind, asset)?;
        // Who asks where it lies may read it next: nothing of earlier attempts may lie there.
        if let Some(by) = &found.version.made_by
            && let Some(job) = self.0.store.job(&by.job).map_err(told)?
        {
            self.0.committed.tidy(&job).await.map_err(told)?;
        }
        Ok(Response::new(describe(&found)))
    }

    async fn list_assets(
        &self,
        request: Request<pb::ListAssetsRequest>,
    ) -> Result<Response<pb::ListAssetsResponse>, Status> {
        let request = request.into_inner();
        let kind = kind_of(request.kind)?;
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
        let assets = self.0.assets.clone();
        let found = blocking(move || {
            let (listed, more) = assets.list(kind, &query)?;
            if let Some(name) = &name
                && listed.is_empty()
                && query.after.is_none()
            {
                assets.must_know(kind, name)?;
            }
            Ok::<_, AssetError>((listed, more))
        });
        let (listed, more) = found.await?.map_err(told)?;
        let next = listed.last().filter(|_| more).map(|last| last.after.clone());
        Ok(Response::new(pb::ListAssetsResponse {
            assets: listed.iter().map(describe).collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn update_asset(
        &self,
        request: Request<pb::UpdateAssetRequest>,
    ) -> Result<Response<pb::Asset>, Status> {
        let by = actor(&request)?;
        let mut request = request.into_inner();
        let (kind, asset) = (kind_of(request.kind)?, reference(request.asset.take())?);
        let change = Change::try_from(request).map_err(told)?;
        let at = self.0.clock.wall();
        let changed = self.0.assets.change(kind, &asset, change, by, at).await.map_err(told)?;
        Ok(Response::new(describe(&changed)))
    }

    async fn archive_asset(
        &self,
        request: Request<pb::ArchiveAssetRequest>,
    ) -> Result<Response<pb::Asset>, Status> {
        let by = actor(&request)?;
        let pb::ArchiveAssetRequest { kind, name, version, archived } = request.into_inner();
        let kind = kind_of(kind)?;
        let found =
            self.0.assets.archive(kind, &name, &version, archived, by).await.map_err(told)?;
        Ok(Response::new(describe(&found)))
    }

    async fn delete_asset(
        &self,
        request: Request<pb::DeleteAssetRequest>,
    ) -> Result<Response<pb::Asset>, Status> {
        let caller = asking(&request)?;
        let pb::DeleteAssetRequest { kind, asset, with_data } = request.into_inner();
        let found = self.find(kind, asset)?;
        let version = &found.version;
        let run = version.made_by.as_ref().map_or("", |by| by.job.as_str());
        if !caller.owns(&version.created_by, run) {
            return Err(told(AssetError::from(NotOwner {
                principal: caller.caller.principal,
                kind: version.kind(),
                name: version.name.clone(),
                version: version.version.clone(),
                owner: version.created_by.clone(),
            })));
        }
        // A job that names it, and was checked before, is one of those that use it by now.
        let alone = self.0.datastores.let_go().await;
        let removal = &self.0.removal;
        let (deleted, kept) = match with_data {
            true => removal.delete_asset(version, &caller).await.map_err(told)?,
            false => {
                (self.0.assets.delete(version, None, caller.actor()).await.map_err(told)?.0, None)
            }
        };
        let by = &caller.principal;
        tracing::info!(kind = %deleted.kind(), name = %deleted.name, version = %deleted.version, %by, "asset deleted");
        drop(alone);
        let going = with_data && !self.0.retention.soon().await.map_err(told)?;
        let left = match &deleted.uri {
            DataUri::Datastore { datastore, path } if with_data => {
                self.0.retention.left(datastore, path.trim_end_matches('/'))
            }
            _ => None,
        };
        let asset = describe(&Listed { version: deleted, latest: false, ..found });
        Ok(Response::new(pb::Asset {
            data_kept: kept.unwrap_or_default(),
            data_going: going,
            data_left: left.unwrap_or_default(),
            ..asset
        }))
    }

    async fn list_asset_uses(
        &self,
        request: Request<pb::ListAssetUsesRequest>,
    ) -> Result<Response<pb::ListAssetUsesResponse>, Status> {
        let pb::ListAssetUsesRequest { kind, asset, page_size, page_token } = request.into_inner();
        let before = match page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| {
                Status::invalid_argument("page_token: is not one that this workspace gave")
            })?),
        };
        let found = self.find(kind, asset)?;
        let limit = page(page_size)? as usize;
        let assets = self.0.assets.clone();
        let mut uses = blocking(move || assets.uses(&found.version, before, limit + 1))
            .await?
            .map_err(told)?;
        let more = uses.len() > limit;
        uses.truncate(limit);
        let next = uses.last().filter(|_| more).map(|last| last.seq.to_string());
        let uses = uses.into_iter().map(|used| pb::AssetUse {
            job: used.job.to_string(),
            inputs: used.inputs,
            status: job::JobStatus::from(used.status).into(),
            created_at_ms: used.created_at.as_millis(),
        });
        Ok(Response::new(pb::ListAssetUsesResponse {
            uses: uses.collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn list_assets_at(
        &self,
        request: Request<pb::ListAssetsAtRequest>,
    ) -> Result<Response<pb::ListAssetsAtResponse>, Status> {
        let pb::ListAssetsAtRequest { datastore, paths } = request.into_inner();
        if paths.len() > MAX_PAGE as usize {
            let message = format!("paths: are {}, at most {MAX_PAGE} are allowed", paths.len());
            return Err(Status::invalid_argument(message));
        }
        let assets = self.0.assets.clone();
        let found = blocking(move || assets.at(&datastore, &paths)).await?.map_err(told)?;
        let described = found.iter().map(|version| {
            // Where it stands among its versions is not asked.
            convert::asset_version(version, false, false, &[])
        });
        Ok(Response::new(pb::ListAssetsAtResponse { assets: described.collect() }))
    }
}

fn kind_of(number: i32) -> Result<Kind, Status> {
    pb::AssetKind::try_from(number).unwrap_or_default().to_core().map_err(told)
}

fn reference(asset: Option<job::AssetRef>) -> Result<AssetRef, Status> {
    let asset = asset.ok_or_else(|| Status::invalid_argument("asset: is required"))?;
    AssetRef::try_from(asset).map_err(|error| told(error.under("asset")))
}

pub(super) fn page(size: u32) -> Result<u32, Status> {
    match size {
        0 => Ok(PAGE),
        size if size <= MAX_PAGE => Ok(size),
        size => Err(Status::invalid_argument(format!(
            "page_size: is {size}, at most {MAX_PAGE} is allowed"
        ))),
    }
}

fn describe(listed: &Listed<Version>) -> pb::Asset {
    convert::asset_version(&listed.version, listed.latest, listed.archived, &listed.labels)
}
