//! The services: convert, ask the handle, convert.

mod agent;
mod asset;
mod audit;
mod authority;
mod channels;
mod component;
mod compute;
pub(crate) mod content;
mod environment;
mod forecast;
mod identity;
mod job;
mod node;
mod queue;
mod retention;
mod sign_in;
mod status;
#[cfg(test)]
mod tests;
mod vault;
mod workspace;

pub(crate) use status::told;

use atelier_core::access::Caller;
use atelier_core::audit::Actor;
use atelier_proto::{
    DESCRIPTORS, agent as a, asset as s, audit as l, component as p, compute as c, environment as e,
};
use atelier_proto::{identity as i, job as j, node as n, vault as v, workspace as w};
use tonic::service::Routes;
use tonic::{Request, Status};

use crate::daemon::Shared;
use crate::identity::{Asking, Origin};

/// A batch of metrics or a job's specification may be this long; more belongs into uploads.
const MESSAGE: usize = 4 << 20;

/// What needs no token may be this long: a provider's ID token with many groups.
const STRANGERS_MESSAGE: usize = 128 << 10;

/// Every service, with health and reflection.
pub async fn routes(shared: &Shared) -> axum::Router {
    let (reporter, health) = tonic_health::server::health_reporter();
    let health = health.max_decoding_message_size(STRANGERS_MESSAGE);
    reporter.set_serving::<j::v1::job_service_server::JobServiceServer<job::Service>>().await;
    let channels = channels::Channels::new(shared);
    let jobs = job::Service(shared.clone(), channels.clone());
    let jobs =
        j::v1::job_service_server::JobServiceServer::new(jobs).max_decoding_message_size(MESSAGE);
    let computes =
        c::v1::compute_service_server::ComputeServiceServer::new(compute::Service(shared.clone()));
    let content = content::Content::new(shared.content.clone()).into_service();
    let workspace = w::v1::workspace_service_server::WorkspaceServiceServer::new(
        workspace::Service(shared.clone()),
    );
    let environments = e::v1::environment_service_server::EnvironmentServiceServer::new(
        environment::Service(shared.clone()),
    )
    .max_decoding_message_size(MESSAGE);
    let assets =
        s::v1::asset_service_server::AssetServiceServer::new(asset::Service(shared.clone()))
            .max_decoding_message_size(MESSAGE);
    let components = p::v1::component_service_server::ComponentServiceServer::new(
        component::Service(shared.clone()),
    )
    .max_decoding_message_size(MESSAGE);
    let identity = identity::Service(shared.clone());
    let tokens = i::v1::token_service_server::TokenServiceServer::new(identity.clone());
    let users = i::v1::user_service_server::UserServiceServer::new(identity.clone());
    let roles = i::v1::role_service_server::RoleServiceServer::new(identity.clone());
    let auth = i::v1::auth_service_server::AuthServiceServer::new(identity);
    let nodes = n::v1::node_identity_service_server::NodeIdentityServiceServer::new(node::Service(
        shared.clone(),
    ))
    .max_decoding_message_size(STRANGERS_MESSAGE);
    let authority = i::v1::authority_service_server::AuthorityServiceServer::new(
        authority::Service(shared.clone()),
    );
    let sign_in =
        i::v1::sign_in_service_server::SignInServiceServer::new(sign_in::Service(shared.clone()))
            .max_decoding_message_size(STRANGERS_MESSAGE);
    let audit =
        l::v1::audit_service_server::AuditServiceServer::new(audit::Service(shared.clone()));
    let vault =
        v::v1::vault_service_server::VaultServiceServer::new(vault::Service(shared.clone()));
    let agents = agent::Service::new(shared.clone(), channels);
    let agents = a::v1::agent_service_server::AgentServiceServer::new(agents)
        .max_decoding_message_size(MESSAGE);
    let mut routes = Routes::new(jobs)
        .add_service(computes)
        .add_service(content)
        .add_service(workspace)
        .add_service(environments)
        .add_service(assets)
        .add_service(components)
        .add_service(tokens)
        .add_service(users)
        .add_service(roles)
        .add_service(auth)
        .add_service(nodes)
        .add_service(authority)
        .add_service(sign_in)
        .add_service(vault)
        .add_service(audit)
        .add_service(agents)
        .add_service(health);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    if let (Ok(v1), Ok(v1alpha)) = (reflection().build_v1(), reflection().build_v1alpha()) {
        routes = routes.add_service(v1).add_service(v1alpha);
    }
    // What browsers can speak, too.
    routes.into_axum_router().route_layer(tonic_web::GrpcWebLayer::new())
}

/// Who calls. The door has put this there; without it nothing is served.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .ok_or_else(|| Status::unauthenticated("the caller is not known"))
}

/// Who calls, from where, and for what.
fn asking<T>(request: &Request<T>) -> Result<Asking, Status> {
    Ok(Asking { caller: caller(request)?, origin: origin(request) })
}

/// From where a call comes, and for what; whoever calls.
fn origin<T>(request: &Request<T>) -> Origin {
    request.extensions().get::<Origin>().cloned().unwrap_or_default()
}

/// The same as the audit log tells of it.
fn actor<T>(request: &Request<T>) -> Result<Actor, Status> {
    asking(request).map(|asking| asking.actor())
}

/// The most bytes of an idempotency key.
const MAX_KEY: usize = 128;

/// An idempotency key, if there is one.
fn checked_key(key: String) -> Result<Option<String>, Status> {
    if key.len() > MAX_KEY {
        return Err(Status::invalid_argument(format!(
            "idempotency_key: is {} bytes long, at most {MAX_KEY} are allowed",
            key.len()
        )));
    }
    Ok(Some(key).filter(|key| !key.is_empty()))
}

/// Work that takes its time, off the threads that serve others.
async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(ask)
        .await
        .map_err(|_| Status::internal("the request was interrupted; try again"))
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
