//! `atelier vault`

use std::fmt::Write as _;

use atelier_proto::vault::v1::{
    DamagedVersion, GetVaultRequest, RotateKeysRequest, RotateKeysResponse,
};
use clap::Subcommand;
use serde_json::{Value, json};

use super::{Context, Error, Kind};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Show where the vault's key is, and which keys secrets are sealed with
    #[command(after_help = "Example:\n  atelier vault status")]
    Status,
    /// Seal with the daemon's newest key what is sealed with an older one
    ///
    /// Start the daemon with the new key (`serve --vault-key`) and the old one (`--vault-old-key`) first. When
    /// this is done, the old one is not needed any more. Cut short, it goes on where it was when it is run again.
    /// What does not open stays as it is, and is named at the end, with exit code 1.
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
            let mut versions = 0;
            loop {
                let request = RotateKeysRequest { data_keys };
                let answer = client.call(client.vault().rotate_keys(request)).await?;
                versions += answer.versions;
                if !answer.goes_on {
                    return rotated(&answer, versions, context);
                }
                let RotateKeysResponse { done, total, .. } = answer;
                context.output.note(&format!("{done} of {total} versions are sealed anew"));
            }
        }
    }
}

/// Tells how a rotation ended, in which so many versions were sealed anew.
fn rotated(answer: &RotateKeysResponse, versions: u64, context: &Context) -> Result<(), Error> {
    let RotateKeysResponse { key, total, damaged, .. } = answer;
    let shown = damaged.iter().map(|one| {
        let given = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        json!({
            "secret": given(&one.secret),
            "datastore": given(&one.datastore),
            "version": one.version,
            "problem": one.problem,
        })
    });
    let key = (!key.is_empty()).then_some(key);
    context.output.show(&json!({
        "key": key,
        "versions": versions,
        "total": total,
        "damaged": shown.collect::<Vec<Value>>(),
    }))?;
    match damaged.as_slice() {
        [] => Ok(()),
        damaged => Err(not_opened(damaged)),
    }
}

/// What does not open, and what to do about it.
fn not_opened(damaged: &[DamagedVersion]) -> Error {
    let mut cause = format!(
        "{} of the versions do not open and stay sealed as they are; all others are rotated:",
        damaged.len()
    );
    let mut help = Vec::new();
    for DamagedVersion { secret, datastore, version, problem } in damaged {
        let _ = write!(cause, "\n  {problem}");
        help.push(match datastore.is_empty() {
            true => format!(
                "set secret '{secret}' anew if {version} is its latest version (atelier secret set {secret}), then \
                 atelier secret delete {secret} --version {version}"
            ),
            false => format!(
                "give the credentials of datastore '{datastore}' anew (atelier datastore update)"
            ),
        });
    }
    help.push("or restore a backup of the database".to_owned());
    Error::new(Kind::Refused, cause).help(help.join("; "))
}
