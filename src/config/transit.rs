//! Where transit is, for keys of the vault's that it has.

use std::path::PathBuf;

use crate::vault::{Login, TextSource, TransitSettings};

use super::serve::SourceParser;

/// How HashiCorp Vault or OpenBao is reached.
#[derive(clap::Args, Clone, Debug)]
pub struct TransitArgs {
    /// Address of the server (HashiCorp Vault or OpenBao) that has keys named transit:MOUNT/NAME:
    /// https://HOST:PORT, or http on this machine
    #[arg(
        id = "transit_address",
        long = "vault-transit-address",
        value_name = "URL",
        requires = "transit_login"
    )]
    address: Option<String>,
    /// Its namespace
    #[arg(
        id = "transit_namespace",
        long = "vault-transit-namespace",
        value_name = "NAME",
        requires = "transit_address"
    )]
    namespace: Option<String>,
    /// Certificates of the authorities that it is known by, in PEM, in place of the system's
    #[arg(
        id = "transit_ca",
        long = "vault-transit-ca",
        value_name = "FILE",
        requires = "transit_address"
    )]
    ca: Option<PathBuf>,
    /// Where the token is that the daemon has there: file:/PATH, credential:NAME, env:NAME. It is renewed as long
    /// as that may be
    #[arg(
        id = "transit_token",
        long = "vault-transit-token",
        value_name = "SOURCE",
        value_parser = SourceParser::<TextSource>::default(),
        group = "transit_login",
        requires = "transit_address"
    )]
    token: Option<TextSource>,
    /// The id of the role that the daemon logs in as there (AppRole), in place of a token
    #[arg(
        id = "transit_role_id",
        long = "vault-transit-role-id",
        value_name = "ID",
        group = "transit_login",
        requires = "transit_secret_id"
    )]
    role_id: Option<String>,
    /// Where the role's secret id is: file:/PATH, credential:NAME, env:NAME
    #[arg(
        id = "transit_secret_id",
        long = "vault-transit-secret-id",
        value_name = "SOURCE",
        value_parser = SourceParser::<TextSource>::default(),
        requires = "transit_role_id"
    )]
    secret_id: Option<TextSource>,
    /// Where logging in with a role is mounted there
    #[arg(
        id = "transit_auth",
        long = "vault-transit-auth",
        value_name = "MOUNT",
        default_value = "approle"
    )]
    auth: String,
}

impl TransitArgs {
    /// Which server that is, if one is said.
    pub fn settings(&self) -> Option<TransitSettings> {
        let login = match (&self.token, &self.role_id, &self.secret_id) {
            (Some(token), ..) => Login::Token(token.clone()),
            (None, Some(role_id), Some(secret_id)) => Login::AppRole {
                mount: self.auth.clone(),
                role_id: role_id.clone(),
                secret_id: secret_id.clone(),
            },
            _ => return None,
        };
        Some(TransitSettings {
            address: self.address.clone()?,
            namespace: self.namespace.clone().filter(|given| !given.is_empty()),
            ca: self.ca.clone(),
            login,
        })
    }

    /// Where that is with which the daemon logs in.
    pub fn sources(&mut self) -> impl Iterator<Item = &mut TextSource> {
        self.token.iter_mut().chain(&mut self.secret_id)
    }
}

impl Default for TransitArgs {
    fn default() -> Self {
        Self {
            address: None,
            namespace: None,
            ca: None,
            token: None,
            role_id: None,
            secret_id: None,
            auth: "approle".to_owned(),
        }
    }
}
