//! Atelier's wire: the generated stubs, and the only code that knows both a wire type and a core
//! type (`convert`).

pub mod convert;

/// The header of `/healthz` in which the daemon says at which URL jobs find it.
pub const JOBS_URL: &str = "atelier-jobs-url";
/// The header in which a daemon says beside that what its clock is, in milliseconds since the Unix epoch.
pub const CLOCK: &str = "atelier-clock";

/// The header in which the data gateway says what it has stored: the BLAKE3 digest, in hexadecimal digits.
pub const STORED: &str = "atelier-stored";

/// What a join token begins with.
pub const JOIN_TOKEN: &str = "atj_";

/// Between daemon and node agent.
pub mod agent {
    /// Generated from `atelier/agent/v1`.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("atelier.agent.v1");
    }
}
/// Data assets and models that the workspace keeps.
pub mod asset {
    /// Generated from `atelier/asset/v1`.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("atelier.asset.v1");
    }
}
/// The audit log.
pub mod audit {
    /// Generated from `atelier/audit/v1`.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("atelier.audit.v1");
    }
}
/// Computes and their nodes.
pub mod compute {
    /// Generated from `atelier/compute/v1`.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("atelier.compute.v1");
    }
}
/// The content store.
pub mod content {
    /// Generated from `atelier/content/v1`.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("atelier.content.v1");
    }
}
/// Components that the workspace keeps.
pub mod component {
    /// Generated from `atelier/component/v1`.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("atelier.component.v1");
    }
}
/// Environments that the workspace keeps.
pub mod environment {
    /// Generated from `atelier/environment/v1`.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("atelier.environment.v1");
    }
}
/// Tokens.
pub mod identity {
    /// Generated from `atelier/identity/v1`.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("atelier.identity.v1");
    }
}
/// Jobs and their specification.
pub mod job {
    /// Generated from `atelier/job/v1`.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("atelier.job.v1");
    }
}
/// What nodes are known by.
pub mod node {
    /// Generated from `atelier/node/v1`.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("atelier.node.v1");
    }
}
/// Secrets that the workspace keeps.
pub mod vault {
    /// Generated from `atelier/vault/v1`.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("atelier.vault.v1");
    }
}
/// The workspace, its datastores and experiments.
pub mod workspace {
    /// Generated from `atelier/workspace/v1`.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("atelier.workspace.v1");
    }
}

impl std::fmt::Debug for agent::v1::OpenedSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenedSecret").field("variable", &self.variable).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for vault::v1::SetSecretRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SetSecretRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for node::v1::CreateJoinTokenResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("CreateJoinTokenResponse");
        shown.field("expires_at_ms", &self.expires_at_ms).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for node::v1::JoinNodeRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinNodeRequest").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Every definition, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
