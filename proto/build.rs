//! Compiles the protocol definitions without a `protoc` binary and keeps the descriptor set for
//! gRPC reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 16] = [
    "atelier/agent/v1/agent.proto",
    "atelier/asset/v1/asset.proto",
    "atelier/audit/v1/audit.proto",
    "atelier/component/v1/component.proto",
    "atelier/compute/v1/compute.proto",
    "atelier/content/v1/content.proto",
    "atelier/environment/v1/environment.proto",
    "atelier/identity/v1/authority.proto",
    "atelier/identity/v1/identity.proto",
    "atelier/identity/v1/sign_in.proto",
    "atelier/job/v1/channel.proto",
    "atelier/job/v1/job.proto",
    "atelier/job/v1/spec.proto",
    "atelier/node/v1/node.proto",
    "atelier/vault/v1/vault.proto",
    "atelier/workspace/v1/workspace.proto",
];

/// What must not come into a log by way of `Debug`; see `convert::datastore`.
const SECRET: [&str; 13] = [
    "atelier.agent.v1.OpenedSecret",
    "atelier.identity.v1.CreateTokenResponse",
    "atelier.node.v1.CreateJoinTokenResponse",
    "atelier.node.v1.JoinNodeRequest",
    "atelier.identity.v1.AskProviderRequest",
    "atelier.identity.v1.AskProviderResponse",
    "atelier.identity.v1.SignInRequest",
    "atelier.identity.v1.SignInResponse",
    "atelier.vault.v1.SetSecretRequest",
    "atelier.workspace.v1.DatastoreCredentials",
    "atelier.workspace.v1.DatastoreCredentials.kind",
    "atelier.workspace.v1.ServicePrincipal",
    "atelier.workspace.v1.S3Keys",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=atelier");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .skip_debug(SECRET)
        .compile_fds(descriptors)?;
    Ok(())
}
