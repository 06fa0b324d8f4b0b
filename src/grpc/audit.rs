//! `atelier.audit.v1.AuditService`.

use atelier_core::access::Permission;
use atelier_core::audit::Checkpoint;
use atelier_core::time::Timestamp;
use atelier_proto::audit::v1 as pb;
use tonic::{Request, Response, Status};

use super::status::told;
use super::{asking, blocking};
use crate::daemon::Shared;
use crate::store::{self, audit::AuditQuery};

/// The audit log, to be read.
pub(super) struct Service(pub(super) Shared);

/// Pages of the log.
const PAGE: u32 = 100;
const MAX_PAGE: u32 = 500;
/// A page that is longer in bytes is cut.
const BYTES: usize = 8 << 20;
/// What is younger stays.
const DAY_MS: i64 = 86_400_000;

#[tonic::async_trait]
impl pb::audit_service_server::AuditService for Service {
    async fn list_audit_entries(
        &self,
        request: Request<pb::ListAuditEntriesRequest>,
    ) -> Result<Response<pb::ListAuditEntriesResponse>, Status> {
        let request = request.into_inner();
        let limit = match request.page_size {
            0 => PAGE,
            size if size <= MAX_PAGE => size,
            size => {
                return Err(Status::invalid_argument(format!(
                    "page_size: is {size}, at most {MAX_PAGE} is allowed"
                )));
            }
        };
        let after = match request.page_token.as_str() {
            "" => Some(request.after_seq).filter(|after| *after > 0),
            token => Some(token.parse().map_err(|_| {
                Status::invalid_argument("page_token: is none that this daemon has given")
            })?),
        };
        // One more than asked tells whether there are more.
        let limit = limit as usize;
        let query = AuditQuery {
            oldest_first: request.oldest_first,
            after,
            since: (request.since_ms > 0).then(|| Timestamp::from_millis(request.since_ms)),
            principal: request.principal,
            action: request.action,
            resource: request.resource,
            limit: limit + 1,
        };
        let audit = self.0.audit.clone();
        // The head first: what is appended meanwhile is listed, and not missed.
        let found = blocking(move || Ok::<_, store::Error>((audit.head()?, audit.list(&query)?)));
        let ((given, last, _), mut entries) = found.await?.map_err(told)?;
        let mut bytes = 0;
        let fits = entries.iter().take(limit).take_while(|entry| {
            let records = [&entry.before, &entry.after].into_iter().flatten();
            bytes += records.map(String::len).sum::<usize>();
            bytes <= BYTES
        });
        let fits = fits.count().max(1);
        let more = entries.len() > fits;
        entries.truncate(fits);
        let next = entries.last().filter(|_| more).map(|last| last.seq.to_string());
        Ok(Response::new(pb::ListAuditEntriesResponse {
            entries: entries.into_iter().map(Into::into).collect(),
            next_page_token: next.unwrap_or_default(),
            last_seq: given.max(last),
        }))
    }

    async fn prune_audit_log(
        &self,
        request: Request<pb::PruneAuditLogRequest>,
    ) -> Result<Response<pb::PruneAuditLogResponse>, Status> {
        let by = asking(&request)?;
        if !by.may(Permission::ReadAudit) {
            return Err(Status::permission_denied(format!(
                "prune the audit log: the role {} may not {}, and nobody takes away what they may not see",
                by.role,
                Permission::ReadAudit.told()
            )));
        }
        let before = Timestamp::from_millis(request.get_ref().before_ms);
        let youngest = self.0.clock.wall().plus_millis(-DAY_MS);
        if before > youngest {
            return Err(Status::invalid_argument(format!(
                "before: is {before}; entries of the last day stay, so that it is at most {youngest}"
            )));
        }
        let pruned = self.0.audit.prune(by.actor(), before).await.map_err(told)?;
        let answer = pruned.map(|(entries, Checkpoint { through, head })| {
            tracing::info!(entries, through, %head, by = %by.principal, "the audit log was pruned");
            pb::PruneAuditLogResponse { entries, through, head: head.to_string() }
        });
        Ok(Response::new(answer.unwrap_or_default()))
    }
}
