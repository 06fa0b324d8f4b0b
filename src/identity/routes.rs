//! What every route needs. A route that is not named here does not exist for anybody.

#[cfg(test)]
mod tests;

use atelier_core::access::{Caller, Permission};

/// What a route needs of its caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Nothing: it tells nothing about the workspace.
    Public,
    /// A person, in whatever role: it tells and changes what is their own; the handler knows what is.
    Person,
    /// A known caller with this permission.
    One(Permission),
    /// A known caller with one of these; the handler knows for what each is enough.
    Any(&'static [Permission]),
    /// A known caller who may read runs, or write to them; the handler knows which.
    Tracking,
}

impl Need {
    /// The permissions of which one is enough; none for what needs no permission.
    pub fn permissions(self) -> Vec<Permission> {
        match self {
            Self::Public | Self::Person => Vec::new(),
            Self::One(permission) => vec![permission],
            Self::Any(permissions) => permissions.to_vec(),
            Self::Tracking => vec![Permission::ReadRuns, Permission::WriteRun],
        }
    }

    /// Whether the caller has what it needs.
    ///
    /// # Errors
    /// What the caller may not do, as a verb.
    pub fn check(self, caller: &Caller) -> Result<(), &'static str> {
        let is_met = match self {
            Self::Public => true,
            Self::Person => caller.role.is_for_people(),
            _ => self.permissions().into_iter().any(|permission| caller.may(permission)),
        };
        if is_met {
            return Ok(());
        }
        Err(match self {
            Self::Public | Self::Person => "ask what is for people",
            Self::One(permission) => permission.told(),
            Self::Any(&[Permission::ReadData, ..]) => "read or write objects",
            Self::Any(&[first, ..]) => first.told(),
            Self::Any(&[]) => "do this",
            Self::Tracking => "read or write runs",
        })
    }
}

/// What the route of this path needs; `None` for a path that nobody has declared.
pub fn need_of(path: &str) -> Option<Need> {
    use Permission as P;
    match path {
        "/healthz" | "/readyz" | "/.well-known/jwks.json" => return Some(Need::Public),
        "/health" | "/version" | "/get-artifact" | "/graphql" => return Some(Need::Tracking),
        "/model-versions/get-artifact" => return registry("model-versions/get-artifact"),
        _ => {}
    }
    if let Some((service, method)) = path.strip_prefix('/').and_then(|p| p.split_once('/'))
        && service.contains('.')
    {
        return rpc(service, method);
    }
    if path.starts_with("/data/v1/") {
        return Some(Need::Any(&[P::ReadData, P::WriteData]));
    }
    if let Some(call) = path.strip_prefix("/api/").or_else(|| path.strip_prefix("/ajax-api/")) {
        return Some(call.strip_prefix("2.0/mlflow/").and_then(registry).unwrap_or(Need::Tracking));
    }
    None
}

/// What a call of MLflow's model registry needs: its models are assets. A job, which has no permission on assets,
/// reads them and makes versions of what its runs log.
fn registry(call: &str) -> Option<Need> {
    use Permission as P;
    Some(match call {
        "registered-models/get"
        | "registered-models/search"
        | "registered-models/get-latest-versions"
        | "model-versions/get"
        | "model-versions/search"
        | "model-versions/get-download-uri"
        | "model-versions/get-artifact" => Need::Any(&[P::ReadAssets, P::WriteRun]),
        // It is read, set and removed by one path.
        "registered-models/alias" => Need::Any(&[P::ReadAssets, P::WriteAssets, P::WriteRun]),
        "registered-models/create"
        | "registered-models/update"
        | "registered-models/set-tag"
        | "registered-models/delete-tag"
        | "model-versions/create"
        | "model-versions/update"
        | "model-versions/transition-stage"
        | "model-versions/set-tag"
        | "model-versions/delete-tag" => Need::Any(&[P::WriteAssets, P::WriteRun]),
        "registered-models/rename" | "registered-models/delete" | "model-versions/delete" => {
            Need::One(P::DeleteAssets)
        }
        _ => return None,
    })
}

fn rpc(service: &str, method: &str) -> Option<Need> {
    use Permission as P;
    let permission = match (service, method) {
        ("atelier.job.v1.JobService", "CreateJob" | "PlanJob") => P::Submit,
        ("atelier.job.v1.JobService", "CancelJob" | "ReleaseSandbox") => P::CancelJob,
        ("atelier.job.v1.JobService", "ArchiveJob" | "DeleteJob") => P::ChangeJob,
        ("atelier.job.v1.JobService", "EnterJob") => P::EnterJob,
        (
            "atelier.job.v1.JobService",
            "GetJob" | "ListJobs" | "ExplainJob" | "ListQueue" | "ListEvents" | "WatchEvents",
        ) => P::ReadJobs,
        ("atelier.job.v1.JobService", "StreamLog" | "ListArtifacts") => P::ReadRuns,
        ("atelier.content.v1.ContentService", "FindMissing" | "Put") => P::WriteContent,
        ("atelier.content.v1.ContentService", "Get") => P::ReadContent,
        (
            "atelier.compute.v1.ComputeService",
            "ListComputes" | "GetCompute" | "ListNodes" | "GetNode" | "GetNodeCache" | "ListSizes",
        ) => P::ReadComputes,
        (
            "atelier.compute.v1.ComputeService",
            "DrainNode" | "ResumeNode" | "DrainCompute" | "ResumeCompute" | "PruneNodeCache",
        ) => P::DrainCompute,
        // How many instances there are, operators say; the rest only who manages computes.
        ("atelier.compute.v1.ComputeService", "UpdateCompute") => {
            return Some(Need::Any(&[P::ManageCompute, P::ScaleCompute]));
        }
        (
            "atelier.compute.v1.ComputeService",
            "PutCompute" | "SetQuota" | "DeleteQuota" | "GrantAccess" | "RevokeAccess",
        ) => P::ManageCompute,
        ("atelier.compute.v1.ComputeService", "DeleteCompute") => P::DeleteCompute,
        ("atelier.workspace.v1.WorkspaceService", "GetWorkspace" | "GetRetention") => {
            P::ReadWorkspace
        }
        ("atelier.workspace.v1.WorkspaceService", "ListDatastores" | "GetDatastore") => {
            P::ReadDatastores
        }
        ("atelier.workspace.v1.WorkspaceService", "ListExperiments") => P::ReadRuns,
        (
            "atelier.workspace.v1.WorkspaceService",
            "SetRetention" | "PreviewRetention" | "ApplyRetention",
        ) => P::ManageRetention,
        ("atelier.workspace.v1.WorkspaceService", "CreateDatastore" | "UpdateDatastore") => {
            P::ManageDatastores
        }
        ("atelier.workspace.v1.WorkspaceService", "DeleteDatastore") => P::DeleteDatastores,
        // It writes.
        ("atelier.workspace.v1.WorkspaceService", "TestDatastore") => P::TestDatastores,
        (
            "atelier.environment.v1.EnvironmentService",
            "CreateEnvironment" | "ArchiveEnvironment",
        ) => P::WriteEnvironments,
        ("atelier.environment.v1.EnvironmentService", "BuildEnvironment") => P::BuildEnvironments,
        ("atelier.environment.v1.EnvironmentService", "GetEnvironment" | "ListEnvironments") => {
            P::ReadEnvironments
        }
        ("atelier.asset.v1.AssetService", "CreateAsset" | "UpdateAsset" | "ArchiveAsset") => {
            P::WriteAssets
        }
        ("atelier.asset.v1.AssetService", "DeleteAsset") => P::DeleteAssets,
        (
            "atelier.asset.v1.AssetService",
            "GetAsset" | "ListAssets" | "ListAssetUses" | "ListAssetsAt",
        ) => P::ReadAssets,
        (
            "atelier.component.v1.ComponentService",
            "CreateComponent" | "UpdateComponent" | "ArchiveComponent",
        ) => P::WriteComponents,
        ("atelier.component.v1.ComponentService", "DeleteComponent") => P::DeleteComponents,
        ("atelier.component.v1.ComponentService", "GetComponent" | "ListComponents") => {
            P::ReadComponents
        }
        (
            "atelier.vault.v1.VaultService",
            "SetSecret" | "DeleteSecret" | "DeleteSecretVersion" | "GrantSecret" | "RevokeSecret",
        ) => P::WriteSecrets,
        ("atelier.vault.v1.VaultService", "GetSecret" | "ListSecrets") => P::ReadSecrets,
        ("atelier.vault.v1.VaultService", "GetVault" | "RotateKeys") => P::ManageVault,
        ("atelier.audit.v1.AuditService", "ListAuditEntries") => P::ReadAudit,
        // Of a node, whoever may have nodes join.
        ("atelier.identity.v1.TokenService", "CreateToken") => {
            return Some(Need::Any(&[P::ManageTokens, P::JoinNodes]));
        }
        ("atelier.identity.v1.TokenService", "ListTokens" | "RevokeToken")
        | ("atelier.identity.v1.AuthService", "WhoAmI" | "CheckAction" | "ListActions") => {
            return Some(Need::Person);
        }
        (
            "atelier.identity.v1.UserService",
            "CreateUser" | "UpdateUser" | "DeleteUser" | "GetUser" | "ListUsers" | "BlockUser"
            | "UnblockUser",
        )
        | ("atelier.identity.v1.RoleService", "CreateRole" | "UpdateRole" | "DeleteRole")
        | ("atelier.audit.v1.AuditService", "PruneAuditLog") => P::ManageTokens,
        ("atelier.identity.v1.RoleService", "GetRole" | "ListRoles") => P::ReadWorkspace,
        ("atelier.identity.v1.AuthorityService", "GetAuthority") => P::ReadComputes,
        // All nodes, and what runs there, hang on it.
        ("atelier.identity.v1.AuthorityService", "RotateAuthority" | "RetireAuthority") => {
            P::ManageCompute
        }
        (
            "atelier.node.v1.NodeIdentityService",
            "CreateJoinToken" | "ListJoinTokens" | "DeleteJoinToken" | "RevokeNode",
        ) => P::JoinNodes,
        // What it brings is a token of its own.
        ("atelier.node.v1.NodeIdentityService", "JoinNode") => return Some(Need::Public),
        ("atelier.node.v1.NodeIdentityService", "RenewCertificate") => P::ActAsNode,
        (
            "atelier.agent.v1.AgentService",
            "Session" | "PushLog" | "RecordMetrics" | "JoinChannel" | "OpenSecrets",
        ) => P::ActAsNode,
        // Whoever signs in has nothing yet to show.
        ("atelier.identity.v1.SignInService", "GetSignIn" | "SignIn" | "AskProvider") => {
            return Some(Need::Public);
        }
        ("grpc.health.v1.Health", "Check" | "Watch" | "List") => return Some(Need::Public),
        (
            "grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection",
            "ServerReflectionInfo",
        ) => P::ReadWorkspace,
        _ => return None,
    };
    Some(Need::One(permission))
}
