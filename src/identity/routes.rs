//! What every route needs. A route that is not named here does not exist for anybody.

#[cfg(test)]
mod tests;

use atelier_core::access::Permission;

/// What a route needs of its caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Nothing: it tells nothing about the workspace.
    Public,
    /// A known caller with this permission.
    One(Permission),
    /// A known caller who may read runs, or write to them; the handler knows which.
    Tracking,
}

/// What the route of this path needs; `None` for a path that nobody has declared.
pub fn need_of(path: &str) -> Option<Need> {
    use Permission as P;
    if let Some((service, method)) = path.strip_prefix('/').and_then(|p| p.split_once('/'))
        && service.contains('.')
    {
        return rpc(service, method);
    }
    match path {
        "/healthz" | "/readyz" => return Some(Need::Public),
        "/health" | "/version" => return Some(Need::Tracking),
        _ => {}
    }
    if path.starts_with("/data/v1/") {
        return Some(Need::One(P::Data));
    }
    if path.starts_with("/api/") || path.starts_with("/ajax-api/") {
        return Some(Need::Tracking);
    }
    None
}

fn rpc(service: &str, method: &str) -> Option<Need> {
    use Permission as P;
    let permission = match (service, method) {
        ("atelier.job.v1.JobService", "CreateJob" | "PlanJob") => P::Submit,
        ("atelier.job.v1.JobService", "CancelJob" | "ArchiveJob" | "DeleteJob") => P::ChangeJob,
        ("atelier.job.v1.JobService", "EnterJob" | "ReleaseSandbox") => P::EnterJob,
        (
            "atelier.job.v1.JobService",
            "GetJob" | "ListJobs" | "ExplainJob" | "ListQueue" | "ListEvents" | "WatchEvents"
            | "StreamLog" | "ListArtifacts",
        ) => P::Read,
        ("atelier.content.v1.ContentService", "FindMissing" | "Put") => P::Submit,
        ("atelier.content.v1.ContentService", "Get") => P::ReadContent,
        (
            "atelier.compute.v1.ComputeService",
            "ListComputes" | "GetCompute" | "ListNodes" | "GetNode" | "GetNodeCache" | "ListSizes",
        ) => P::Read,
        (
            "atelier.compute.v1.ComputeService",
            "DrainNode" | "ResumeNode" | "PutCompute" | "UpdateCompute" | "DeleteCompute"
            | "DrainCompute" | "ResumeCompute" | "SetQuota" | "DeleteQuota" | "PruneNodeCache",
        ) => P::ManageCompute,
        (
            "atelier.workspace.v1.WorkspaceService",
            "GetWorkspace" | "ListDatastores" | "GetDatastore" | "ListExperiments" | "GetRetention",
        ) => P::Read,
        (
            "atelier.workspace.v1.WorkspaceService",
            "SetRetention" | "PreviewRetention" | "ApplyRetention",
        ) => P::ManageRetention,
        (
            "atelier.workspace.v1.WorkspaceService",
            "CreateDatastore" | "UpdateDatastore" | "DeleteDatastore",
        ) => P::ManageDatastores,
        // It writes.
        ("atelier.workspace.v1.WorkspaceService", "TestDatastore") => P::Submit,
        (
            "atelier.environment.v1.EnvironmentService",
            "CreateEnvironment" | "ArchiveEnvironment" | "BuildEnvironment",
        ) => P::WriteAssets,
        ("atelier.environment.v1.EnvironmentService", "GetEnvironment" | "ListEnvironments") => {
            P::Read
        }
        (
            "atelier.asset.v1.AssetService",
            "CreateAsset" | "UpdateAsset" | "ArchiveAsset" | "DeleteAsset",
        ) => P::WriteAssets,
        (
            "atelier.asset.v1.AssetService",
            "GetAsset" | "ListAssets" | "ListAssetUses" | "ListAssetsAt",
        ) => P::Read,
        (
            "atelier.component.v1.ComponentService",
            "CreateComponent" | "UpdateComponent" | "ArchiveComponent" | "DeleteComponent",
        ) => P::WriteAssets,
        ("atelier.component.v1.ComponentService", "GetComponent" | "ListComponents") => P::Read,
        (
            "atelier.vault.v1.VaultService",
            "SetSecret" | "DeleteSecret" | "DeleteSecretVersion" | "GrantSecret" | "RevokeSecret",
        ) => P::WriteSecrets,
        ("atelier.vault.v1.VaultService", "GetSecret" | "ListSecrets") => P::Read,
        ("atelier.vault.v1.VaultService", "GetVault" | "RotateKeys") => P::ManageVault,
        ("atelier.identity.v1.TokenService", "CreateToken") => P::ManageTokens,
        (
            "atelier.agent.v1.AgentService",
            "Session" | "PushLog" | "RecordMetrics" | "JoinChannel" | "OpenSecrets",
        ) => P::ActAsNode,
        ("grpc.health.v1.Health", "Check" | "Watch" | "List") => return Some(Need::Public),
        (
            "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection",
            "ServerReflectionInfo",
        ) => P::Read,
        _ => return None,
    };
    Some(Need::One(permission))
}
