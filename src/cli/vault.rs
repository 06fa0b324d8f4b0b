//! `atelier vault`

use atelier_proto::vault::v1::{GetVaultRequest, RotateKeysRequest};
use clap::Subcommand;
use serde_json::{Value, json};

use super::{Context, Error};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Show where the vault's key is, and which keys secrets are sealed with
    #[command(after_help = "Example:\n  atelier vault status")]
    Status,
    /// Seal with the daemon's newest key what is sealed with an older one
    ///
    /// Start the daemon with the new key (`serve --vault-key`) and the old one (`--vault-old-key`) first. When
    /// this is done, the old one is not needed any more. Cut short, it goes on where it was when it is run again.
    #[command(after_help = "\
Examples:
  atelier vault rotate
  atelier vault rotate --data-keys")]
    Rotate {
        /// Also give every version of a secret a new data key: each value is sealed anew
        #[arg(long)]
        data_keys: bool,
    },
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    match command {
        Command::Status => {
            let vault = client.call(client.vault().get_vault(GetVaultRequest {})).await?;
            let keys = vault.keys.iter().map(|of| {
                json!({
                    "key": of.key,
                    "versions": of.versions,
                    "source": of.source,
                    "is_newest": of.key == vault.key,
                })
            });
            let key = (!vault.key.is_empty()).then_some(&vault.key);
            let keys: Vec<Value> = keys.collect();
            let problem = (!vault.problem.is_empty()).then_some(&vault.problem);
            let shown = json!({
                "key": key,
                "source": vault.key_source,
                "problem": problem,
                "keys": keys,
            });
            context.output.show(&shown)
        }
        Command::Rotate { data_keys } => {
            let request = RotateKeysRequest { data_keys };
            let done = client.call(client.vault().rotate_keys(request)).await?;
            let key = (!done.key.is_empty()).then_some(&done.key);
            context.output.show(&json!({ "key": key, "versions": done.versions }))
        }
    }
}
