//! `atelier backup` and `atelier restore`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::job::time;
use super::{Context, Error, Kind};
use crate::backup::{
    self, Create, Created, Elsewhere, Manifest, Opened, Opening, Restore, Restored, Sealing,
    VaultKey, create, keygen, restore, verify,
};
use crate::config::{SourceParser, data_dir, vault_key};
use crate::daemon::Clock;
use crate::store::copy::Contents;
use crate::vault::{KeySource, TextSource};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a backup on the daemon's machine, while the daemon runs or not, as the user whom it runs as
    ///
    /// One encrypted file has the database as it is at one instant, the workspace's keys and tokens, its certificate
    /// authority, and what else is in the data folder. It does not have the data in datastores, which are named with
    /// the places that they lie in, nor the vault's key, unless --with-vault-key says so. It is read back and compared
    /// before it gets its name, and overwrites nothing.
    #[command(after_help = "\
Examples:
  atelier backup keygen backup-key.txt           once; keep the file elsewhere
  atelier backup create /backups/monday.age --recipient age1…
  atelier backup create monday.age --recipients-file admins.txt --data-dir /srv/atelier
  atelier backup create monday.age --passphrase-file pass --with-vault-key")]
    Create(CreateArguments),
    /// Open a backup, compare all of it with its digests, and look through its database
    #[command(after_help = "\
Examples:
  atelier backup verify monday.age --identity backup-key.txt
  atelier backup verify monday.age --passphrase-file pass --query created_at")]
    Verify(VerifyArguments),
    /// Make a key that opens backups, in a new file, and print the public one, for which they are made
    #[command(after_help = "Example:\n  atelier backup keygen backup-key.txt")]
    Keygen {
        /// The file; keep it apart from the backups and from the daemon's machine
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Args)]
pub(super) struct CreateArguments {
    /// The file to be made
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// A public key (age1…) whose holder can open the backup; may be given several times
    #[arg(long, value_name = "KEY", conflicts_with = "passphrase_file")]
    recipient: Vec<String>,
    /// A file of public keys, one a line; may be given several times
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_file")]
    recipients_file: Vec<PathBuf>,
    /// A file with a passphrase in its first line, which opens the backup; - is standard input
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// The workspace's data folder [default: `<home>/workspace`]
    #[arg(long, env = "ATELIER_DATA_DIR", value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Take the vault's key along, if it is in a file: who opens the backup then opens every secret
    #[arg(long)]
    with_vault_key: bool,
    /// The file with the vault's key, as `serve` has it: file:/PATH [default: the workspace's own]
    #[arg(
        long,
        value_name = "SOURCE",
        requires = "with_vault_key",
        value_parser = SourceParser::<KeySource>::default()
    )]
    vault_key: Option<KeySource>,
}

/// With what a backup is opened.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Key {
    /// A file with a private key, as `atelier backup keygen` makes it
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// A file with the passphrase in its first line; - is standard input
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Key {
    fn opening(&self) -> Result<Opening, Error> {
        match (&self.identity, &self.passphrase_file) {
            (Some(file), _) => Ok(Opening::identities(file)?),
            (None, Some(file)) => Ok(Opening::passphrase(file)?),
            (None, None) => Err(Error::usage("with what is it opened? Give --identity FILE")),
        }
    }
}

#[derive(Args)]
pub(super) struct VerifyArguments {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    key: Key,
}

/// Put a backup back, on the machine where the daemon is to run, while it is stopped
///
/// Everything is opened and compared before the data folder is touched. A workspace that is there is put aside with
/// --force; its storage, and the folders of nodes on this machine, stay where they are. Stop the daemon that the backup
/// is of first, wherever it runs. What came after the backup is lost; jobs start again once nothing of that time can
/// run any more.
#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier restore monday.age --identity backup-key.txt --data-dir /srv/atelier
  atelier restore monday.age --passphrase-file pass --force")]
pub(super) struct RestoreArguments {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    key: Key,
    /// The workspace's data folder [default: `<home>/workspace`]
    #[arg(long, env = "ATELIER_DATA_DIR", value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Put aside the workspace that the folder holds
    #[arg(long)]
    force: bool,
    /// Where the vault's key goes, if the backup has it [default: where `serve` looks for it]
    #[arg(long, value_name = "FILE")]
    vault_key_file: Option<PathBuf>,
}

fn folder(given: Option<&PathBuf>) -> Result<PathBuf, Error> {
    data_dir(given).map_err(|error| Error::usage(error.to_string()))
}

pub(super) fn run(command: Command, context: &Context) -> Result<(), Error> {
    match command {
        Command::Create(arguments) => made(arguments, context),
        Command::Verify(VerifyArguments { file, key }) => {
            let Opened { manifest, contents } = verify(&file, &key.opening()?)?;
            context.output.show(&view(&manifest, Some(&contents)))
        }
        Command::Keygen { file } => {
            let public = keygen(&file)?;
            context.output.show(&json!({ "recipient": public, "identity_file": file }))?;
            context.output.note(&format!(
                "Keep {} apart from the backups and from the daemon's machine: without it none opens.",
                file.display()
            ));
            Ok(())
        }
    }
}

fn made(arguments: CreateArguments, context: &Context) -> Result<(), Error> {
    let data_dir = folder(arguments.data_dir.as_ref())?;
    let sealing = match &arguments.passphrase_file {
        Some(file) => Sealing::passphrase(file)?,
        None => Sealing::recipients(&arguments.recipient, &arguments.recipients_file)?,
    };
    let vault_key = match (arguments.with_vault_key, arguments.vault_key) {
        (false, _) => VaultKey::Leave,
        (true, Some(source)) => VaultKey::Take(source),
        (true, None) => VaultKey::Take(own_key(&data_dir)),
    };
    let wanted = Create { data_dir, file: arguments.file, sealing, vault_key };
    let made = create(wanted, Clock::default().wall())?;
    let Created { manifest, bytes, file, has_vault_key, unnoted } = made;
    let mut shown = view(&manifest, None);
    shown["file"] = json!(file);
    shown["bytes"] = json!(bytes);
    shown["has_vault_key"] = json!(has_vault_key);
    context.output.show(&shown)?;
    let not_here = |Elsewhere { what, location }: &Elsewhere| format!("{what} in {location}");
    context.output.note(&format!(
        "Not in it, to be backed up by its own means, after this: {}.",
        manifest.elsewhere.iter().map(not_here).collect::<Vec<_>>().join("; ")
    ));
    if let Some(error) = unnoted {
        context.output.warn(&format!(
            "the backup is whole, but the data folder does not tell of it, and `atelier doctor` will miss it: {error}"
        ));
    }
    if has_vault_key {
        context
            .output
            .warn("the backup holds the vault's key: whoever opens it opens every secret");
    } else if !manifest.vault_keys.is_empty() {
        context.output.warn(&format!(
            "the vault's key {} is not in it: keep a copy of that elsewhere; without it no secret opens, and the \
             restored daemon does not start",
            manifest.vault_keys.join(", ")
        ));
    }
    Ok(())
}

/// Where the daemon has the vault's key unless it is told otherwise.
fn own_key(data_dir: &std::path::Path) -> KeySource {
    let marker = std::fs::read(data_dir.join("workspace.json")).ok();
    let workspace: Option<crate::daemon::Workspace> =
        marker.and_then(|text| serde_json::from_slice(&text).ok());
    match workspace.and_then(|found| vault_key(&found.id)) {
        Some(path) => KeySource::Text(TextSource::File(path)),
        None => KeySource::Nowhere,
    }
}

pub(super) fn run_restore(arguments: RestoreArguments, context: &Context) -> Result<(), Error> {
    let RestoreArguments { file, key, data_dir: given, force, vault_key_file } = arguments;
    let data_dir = folder(given.as_ref())?;
    let opening = key.opening()?;
    let wanted = Restore { file, data_dir, force, vault_key_file };
    let restored = restore(wanted, &opening, Clock::default().wall())?;
    let Restored { manifest, contents, data_dir, aside, vault_key } = restored;
    let mut shown = view(&manifest, Some(&contents));
    shown["data_dir"] = json!(data_dir);
    shown["put_aside"] = json!(aside);
    shown["vault_key"] = json!(vault_key);
    context.output.show(&shown)?;
    let output = &context.output;
    let instant = time(manifest.created_at.as_millis());
    let instant = instant.as_str().unwrap_or("the backup");
    output.warn(&format!(
        "everything is as it was at {instant}: tokens and nodes' credentials that were revoked since are good again; \
         revoke them once more"
    ));
    output.note(&format!(
        "Jobs that ended since run again. None starts before what may still run of that time has ended: after the \
         lease and its margin ({} waits or runs).",
        contents.live_jobs
    ));
    if !contents.kept.is_empty() {
        let names: Vec<&str> = contents.kept.iter().map(|name| name.as_str()).collect();
        output.warn(&format!(
            "these wait, and would go on on a node that hears nothing (on_node_loss: keep): {}; before nodes that were \
             away get jobs, see that none of these runs there, or cancel them",
            names.join(", ")
        ));
    }
    if vault_key.is_none() && !contents.vault_keys.is_empty() {
        let keys: Vec<String> =
            contents.vault_keys.iter().map(|(key, _)| key.to_string()).collect();
        output.note(&format!("The daemon needs the vault's key {}.", keys.join(", ")));
    }
    for Elsewhere { what, location } in &manifest.elsewhere {
        output.note(&format!("Not in the backup, and to be there: {what} in {location}."));
    }
    Ok(())
}

fn view(manifest: &Manifest, contents: Option<&Contents>) -> Value {
    let elsewhere: Vec<Value> = manifest
        .elsewhere
        .iter()
        .map(|Elsewhere { what, location }| json!({ "what": what, "location": location }))
        .collect();
    let mut shown = json!({
        "workspace": manifest.workspace.name.as_str(),
        "workspace_id": manifest.workspace.id,
        "created_at": time(manifest.created_at.as_millis()),
        "made_by": manifest.version,
        "schema": manifest.schema,
        "files": manifest.files.len(),
        "not_in_it": elsewhere,
        "vault_keys": manifest.vault_keys,
    });
    if let Some(contents) = contents {
        shown["live_jobs"] = json!(contents.live_jobs);
        let audit = contents.audit.as_ref();
        shown["audit_head"] = json!(audit.map(|(_, head)| head.to_string()));
    }
    shown
}

impl From<backup::Error> for Error {
    fn from(error: backup::Error) -> Self {
        use backup::Error as E;
        let kind = match &error {
            E::NoWorkspace(_) => Kind::NotFound,
            E::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Kind::NotFound
            }
            E::Foreign { .. } => Kind::NotAllowed,
            error if error.is_refusal() => Kind::Refused,
            _ => Kind::Failed,
        };
        Self::new(kind, error.to_string())
    }
}
