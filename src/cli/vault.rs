//! `atelier vault`

use std::fmt::Write as _;

use atelier_proto::vault::v1::{
    DamagedVersion, GetVaultRequest, RotateKeysRequest, RotateKeysResponse,
};
use clap::Subcommand;
use serde_json::{Value, json};

use super::job::time;
use super::{Context, Error, Kind};
use crate::client::Client;

/// Versions that do not open are named, so many at most.
const NAMED: usize = 100;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Show where the vault's key is, and which keys secrets are sealed with
    #[command(after_help = "Example:\n  atelier vault status")]
    Status,
    /// Seal with the daemon's newest key what is sealed with an older one
    ///
    /// Start the daemon with the new key (`serve --vault-key`) and the old one (`--vault-old-key`) first. When
    /// this is done, the old one is not needed any more. Cut short, it goes on where it was when it is run again; with
    /// --data-keys it finishes what was cut short and then gives all of them a new one.
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
            let mut ended = rotate(&client, data_keys, context).await?;
            if ended.was_begun {
                let began = time(ended.answer.begun_at_ms);
                context.output.note(&format!(
                    "that was the rest of a rotation which began at {} and was cut short; now all data keys from then on",
                    began.as_str().unwrap_or("an earlier time")
                ));
                ended = rotate(&client, data_keys, context).await?;
            }
            rotated(&ended, context)
        }
    }
}

/// A rotation that came to its end.
struct Ended {
    /// The last of its answers.
    answer: RotateKeysResponse,
    /// Whether it had begun before the first of them.
    was_begun: bool,
    /// Versions that were sealed anew.
    versions: u64,
    /// What does not open, as far as it is told.
    damaged: Vec<DamagedVersion>,
}

/// Has the daemon go on until a rotation is over.
async fn rotate(client: &Client, data_keys: bool, context: &Context) -> Result<Ended, Error> {
    let (mut was_begun, mut versions, mut damaged) = (None, 0, Vec::new());
    let mut cursor = String::new();
    loop {
        let request = RotateKeysRequest { data_keys, cursor };
        let mut answer = client.call(client.vault().rotate_keys(request)).await?;
        versions += answer.versions;
        let was_begun = *was_begun.get_or_insert(answer.was_begun);
        for one in std::mem::take(&mut answer.damaged) {
            let is_told = |told: &DamagedVersion| {
                told.version == one.version
                    && told.secret == one.secret
                    && told.datastore == one.datastore
            };
            if damaged.len() < NAMED && !damaged.iter().any(is_told) {
                damaged.push(one);
            }
        }
        if !answer.goes_on {
            return Ok(Ended { answer, was_begun, versions, damaged });
        }
        let RotateKeysResponse { done, total, .. } = answer;
        context.output.note(&format!("{done} of {total} versions are sealed anew"));
        cursor = answer.cursor;
    }
}

/// Tells how a rotation ended.
fn rotated(ended: &Ended, context: &Context) -> Result<(), Error> {
    let Ended { answer, versions, damaged, .. } = ended;
    let RotateKeysResponse { key, total, damaged_total, .. } = answer;
    let damaged_total = (*damaged_total).max(damaged.len() as u64);
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
        "damaged_total": damaged_total,
    }))?;
    match damaged.as_slice() {
        [] => Ok(()),
        damaged => Err(not_opened(damaged, damaged_total)),
    }
}

/// What does not open, and what to do about it.
fn not_opened(damaged: &[DamagedVersion], total: u64) -> Error {
    let mut cause = format!(
        "{total} of the versions do not open and stay sealed as they are; all others are rotated:"
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
    let more = total.saturating_sub(damaged.len() as u64);
    if more > 0 {
        let _ = write!(cause, "\n  and {more} more");
        help.push("mend these, then rotate again for the names of the others".to_owned());
    }
    help.push("or restore a backup of the database".to_owned());
    Error::new(Kind::Refused, cause).help(help.join("; "))
}
