//! `atelier doctor`: gathers facts, has core judge them, and prints what it says.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use atelier_core::doctor::{
    self, CoreLimit, DatabaseFact, FileFact, FileKind, Finding, NodeFact, Severity, VaultFact,
};
use atelier_core::node::is_loopback;
use atelier_core::time::Timestamp;
use atelier_proto::compute::v1::{ListNodesRequest, NodeState};
use atelier_proto::workspace::v1::{ListDatastoresRequest, TestDatastoreRequest};
use clap::Args;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use super::{Column, Context, Error, workspace};
use crate::backup::Record;
use crate::client::{Client, Wanted};
use crate::config::{data_dir, vault_key};
use crate::daemon::{Clock, Workspace};
use crate::store::SCHEMA_VERSION;
use crate::store::copy::{Contents, look_over};
use crate::tls::Certificate;
use crate::vault::TextSource;

/// Check an installation, and say what is unsafe and what to do about it
///
/// On the daemon's machine, as its user, it looks at the data folder, the database, keys, certificates and the machine.
/// The daemon, if it answers, is asked for its nodes and datastores; with --server, or a context that is not 'local', that
/// is all (unless --data-dir names a folder as well). Nothing is changed, but for an object that each datastore is tried
/// with. Exit code 1: something is wrong.
#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier doctor
  atelier doctor --data-dir /srv/atelier -o json
  atelier --context team doctor
  atelier doctor --server https://gate.example.com:7420 --token-file admin.token
  atelier doctor --query \"[?severity!='ok'].found\"")]
pub(super) struct Arguments {
    /// The workspace's data folder [default: `<home>/workspace`]
    #[arg(long, env = "ATELIER_DATA_DIR", value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Warn if the last backup is older
    #[arg(long, default_value_t = 7, value_name = "DAYS")]
    backup_days: u32,
}

/// From when before its end people are told of the authority's certificate, which everybody is to be given anew.
const AUTHORITY_DAYS: i64 = 180;

pub(super) async fn run(arguments: Arguments, context: &Context) -> Result<ExitCode, Error> {
    let now = Clock::default().wall();
    let folder = match (&arguments.data_dir, context.wanted.is_elsewhere()?) {
        (None, true) => None,
        (given, _) => {
            let folder =
                data_dir(given.as_ref()).map_err(|error| Error::usage(error.to_string()))?;
            Some(folder).filter(|folder| folder.join("workspace.json").exists())
        }
    };
    let mut found = vec![doctor::clock(now)];
    if let Some(folder) = &folder {
        found.extend(of_folder(folder, now, arguments.backup_days));
        found.extend(of_machine(folder));
    } else if let Some(given) = &arguments.data_dir {
        found.push(Finding::error(
            "data folder",
            format!("there is no workspace in {}", given.display()),
            "name the data folder of the daemon (serve --data-dir)",
        ));
    }
    found.extend(of_daemon(folder.as_deref(), context).await);
    let worst = found.iter().map(|one| one.severity).max().unwrap_or(Severity::Ok);
    context.output.list(found.iter().map(view).collect(), COLUMNS)?;
    let count = |severity| found.iter().filter(|one| one.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    context.output.note(&format!("{errors} errors, {warnings} warnings, {} checks.", found.len()));
    Ok(if worst == Severity::Error { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn view(finding: &Finding) -> Value {
    let remedy = (!finding.remedy.is_empty()).then_some(&finding.remedy);
    json!({
        "check": finding.check,
        "severity": finding.severity.as_str(),
        "found": finding.found,
        "remedy": remedy,
    })
}

const COLUMNS: &[Column] = &[
    Column { title: "", cell: |f| Some(f["severity"].as_str()?.to_owned()) },
    Column { title: "CHECK", cell: |f| Some(f["check"].as_str()?.to_owned()) },
    Column { title: "FOUND", cell: |f| Some(f["found"].as_str()?.to_owned()) },
    Column { title: "REMEDY", cell: |f| Some(f["remedy"].as_str().unwrap_or("").to_owned()) },
];

/// What the data folder tells.
fn of_folder(folder: &Path, now: Timestamp, backup_days: u32) -> Vec<Finding> {
    let owner = match fs::metadata(folder) {
        Ok(found) => found.uid(),
        Err(error) => {
            return vec![Finding::error(
                "data folder",
                format!("cannot look at {}: {error}", folder.display()),
                "run this as the daemon's user",
            )];
        }
    };
    let mut found = doctor::files(&file_facts(folder), owner);
    found.push(doctor::user(owner));
    if let Ok(space) = rustix::fs::statvfs(folder) {
        let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
        let (free, total) = (bytes(space.f_bavail), bytes(space.f_blocks));
        found.push(doctor::disk(&folder.display().to_string(), free, total));
    }
    let database = folder.join("atelier.db");
    let log = fs::metadata(folder.join("atelier.db-wal")).map_or(0, |log| log.len());
    // Others than its owner would leave files beside it that shut the daemon out.
    let is_own = owner == rustix::process::geteuid().as_raw();
    match is_own.then(|| look_over(&database)) {
        None => found.push(Finding::warning(
            "database",
            format!("it was not looked at: the data folder is user {owner}'s"),
            "run this as the daemon's user",
        )),
        Some(Ok(contents)) => {
            let fact = DatabaseFact::Read {
                schema: contents.schema,
                latest: SCHEMA_VERSION,
                log_bytes: log,
            };
            found.push(doctor::database(&fact));
            found.push(doctor::vault(&vault_fact(folder, &contents)));
        }
        Some(Err(error)) => {
            found.push(doctor::database(&DatabaseFact::Unusable(error.to_string())));
        }
    }
    found.push(doctor::backup(Record::read(folder).map(|last| last.created_at), now, backup_days));
    let (certificate, key) = (folder.join("tls/ca.pem"), folder.join("tls/ca.key"));
    found.extend(doctor::authority(certificate.exists(), key.exists()));
    if let Ok(text) = fs::read_to_string(&certificate) {
        found.push(match Certificate::of_pem(&text) {
            Ok(said) => doctor::certificate(
                "the certificate of the workspace's authority",
                said.not_after,
                now,
                AUTHORITY_DAYS,
                "have another take over in time, which nodes learn of by themselves and clients elsewhere are to be given: \
                 atelier ca rotate",
            ),
            Err(error) => Finding::error(
                "certificate",
                format!("tls/ca.pem is damaged ({error})"),
                "restore it from a backup",
            ),
        });
        let counted =
            CertificateDer::pem_slice_iter(text.as_bytes()).filter_map(Result::ok).count();
        found.extend(doctor::authority_before(counted > 1));
    }
    found
}

fn file_facts(folder: &Path) -> Vec<FileFact> {
    let fact = |path: PathBuf, kind: FileKind| {
        // What a link leads to is what counts.
        let found = fs::metadata(&path).ok()?;
        let (mode, owner) = (found.mode() & 0o7777, found.uid());
        Some(FileFact { path: path.display().to_string(), mode, owner, kind })
    };
    let mut facts: Vec<FileFact> = fact(folder.to_owned(), FileKind::Folder).into_iter().collect();
    let names = ["atelier.db", "atelier.db-wal", "atelier.db-shm", "tls/ca.key"];
    facts.extend(names.iter().filter_map(|name| fact(folder.join(name), FileKind::Secret)));
    facts.extend(fact(folder.join("tls/ca.pem"), FileKind::Public));
    let listed = |folder: PathBuf| {
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
    };
    let is_secret = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "token" || extension == "key")
    };
    facts.extend(
        listed(folder.to_owned()).filter(is_secret).filter_map(|path| fact(path, FileKind::Secret)),
    );
    let tokens = listed(folder.join("nodes")).map(|node| node.join("token"));
    facts.extend(tokens.filter_map(|path| fact(path, FileKind::Secret)));
    facts
}

fn vault_fact(folder: &Path, contents: &Contents) -> VaultFact {
    if contents.vault_keys.is_empty() {
        return VaultFact::Unused;
    }
    if contents.vault_keys.iter().all(|(key, _)| key.as_str().starts_with("transit:")) {
        return VaultFact::Transit;
    }
    let marker = fs::read(folder.join("workspace.json")).ok();
    let workspace: Option<Workspace> = marker.and_then(|text| serde_json::from_slice(&text).ok());
    let own = workspace.and_then(|workspace| vault_key(&workspace.id)).filter(|path| path.exists());
    let Some(path) = own else { return VaultFact::Unknown };
    let shown = path.display().to_string();
    match TextSource::File(path).key_id(folder) {
        Ok(id) if contents.vault_keys.iter().any(|(key, _)| key == &id) => VaultFact::File(shown),
        _ => VaultFact::OtherFile(shown),
    }
}

/// What this machine does with the daemon's memory.
fn of_machine(folder: &Path) -> Vec<Finding> {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let devices = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let devices: Vec<String> = devices.map(str::to_owned).collect();
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    vec![doctor::swap(&devices), doctor::core_dumps(&pattern, core_limit(folder))]
}

/// The daemon's, which is whoever holds the lock of the data folder. This program's own says nothing of it.
fn core_limit(folder: &Path) -> CoreLimit {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let limits = fs::metadata(folder.join("lock"))
        .ok()
        .and_then(|lock| holder(&locks, &lock))
        .and_then(|process| fs::read_to_string(format!("/proc/{process}/limits")).ok());
    CoreLimit::of(&limits.unwrap_or_default())
}

/// Which process holds a file with `flock`, as `/proc/locks` has it: `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`.
fn holder(locks: &str, file: &fs::Metadata) -> Option<u32> {
    let device = file.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let wanted = format!("{major:02x}:{minor:02x}:{}", file.ino());
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [_, "FLOCK", _, "WRITE", process, place, ..] if place == wanted => process.parse().ok(),
            _ => None,
        }
    })
}

/// What the daemon tells, if there is one.
async fn of_daemon(folder: Option<&Path>, context: &Context) -> Vec<Finding> {
    const CHECK: &str = "daemon";
    let client = match connect(folder, context).await {
        Ok(client) => client,
        Err(error) => {
            let remedy =
                error.help.unwrap_or_else(|| "start it, and name it with --server".to_owned());
            return vec![Finding::warning(CHECK, error.cause, remedy)];
        }
    };
    let seen = match workspace::get(&client).await {
        Ok(seen) => seen,
        Err(error) => {
            let remedy = error.help.unwrap_or_else(|| "look at its log".to_owned());
            return vec![Finding::error(CHECK, error.cause, remedy)];
        }
    };
    let mut found = vec![Finding::ok(CHECK, format!("workspace {} answers", seen.name))];
    let server = client.target().server.to_string();
    let host = server.parse::<http::Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
    found.push(doctor::address(&server, host.is_some_and(|host| is_loopback(&host))));
    found.push(doctor::versions(crate::VERSION, &seen.version));
    found.extend(skew(&client, &server).await.unwrap_or_default());
    match client.call(client.computes().list_nodes(ListNodesRequest::default())).await {
        Ok(answer) => found.extend(answer.nodes.iter().flat_map(|node| {
            let skew = node.clock_ahead_ms.map(|ahead| doctor::node_skew(&node.name, ahead));
            let skew = skew.filter(|skew| skew.severity != Severity::Ok);
            let facts: BTreeMap<String, String> = node.facts.clone().into_iter().collect();
            let is_unusable = node.state() == NodeState::Unusable;
            let trouble = is_unusable.then(|| node.reason.clone());
            let (name, version) = (node.name.clone(), node.agent_version.clone());
            let lacks = doctor::node(&NodeFact { name, trouble, version, facts }, &seen.version);
            skew.into_iter().chain(lacks)
        })),
        Err(error) => found.push(unasked("node", error.into())),
    }
    let stores = client.call(client.workspace().list_datastores(ListDatastoresRequest {})).await;
    match stores {
        Ok(answer) => {
            for store in answer.datastores {
                found.push(datastore(&client, store.name).await);
            }
        }
        Err(error) => found.push(unasked("datastore", error.into())),
    }
    found
}

/// The daemon of the data folder, unless another is named.
async fn connect(folder: Option<&Path>, context: &Context) -> Result<Client, Error> {
    let is_elsewhere = context.wanted.is_elsewhere()?;
    let Some(folder) = folder.filter(|_| !is_elsewhere) else {
        return context.client().await;
    };
    let Ok(server) = fs::read_to_string(folder.join("endpoint")) else {
        let error = Error::new(super::Kind::Unreachable, "no daemon runs on the data folder");
        return Err(error.help("start it: atelier serve, or atelier local start"));
    };
    let authority = folder.join("tls/ca.pem");
    let is_own = server.starts_with("https") && context.wanted.ca_file.is_none();
    let wanted = Wanted {
        server: Some(server.trim().to_owned()),
        token_file: context.wanted.token_file.clone().or_else(|| Some(folder.join("admin.token"))),
        ca_file: if is_own { Some(authority) } else { context.wanted.ca_file.clone() },
        ..Wanted::default()
    };
    Ok(Client::connect(wanted.resolve()?).await?)
}

fn unasked(check: &'static str, error: Error) -> Finding {
    Finding::warning(check, error.cause, error.help.unwrap_or_else(|| "ask as an admin".to_owned()))
}

/// The daemon's clock beside this machine's, as its answers' dates have it.
async fn skew(client: &Client, server: &str) -> Option<Vec<Finding>> {
    let answer = client.http().ok()?.get(format!("{server}/healthz")).send().await.ok()?;
    let date = answer.headers().get(http::header::DATE)?.to_str().ok()?.to_owned();
    let daemon = jiff::fmt::rfc2822::parse(&date).ok()?.timestamp();
    let machine = Timestamp::from_millis(daemon.as_millisecond());
    let mut found = vec![doctor::skew(machine, Clock::default().wall())];
    let own = answer.headers().get(atelier_proto::CLOCK).and_then(|own| own.to_str().ok());
    if let Some(own) = own.and_then(|own| own.parse().ok()) {
        found.extend(doctor::drawn(Timestamp::from_millis(own), machine));
    }
    Some(found)
}

async fn datastore(client: &Client, name: String) -> Finding {
    let request = TestDatastoreRequest { name: name.clone() };
    match client.call(client.workspace().test_datastore(request)).await {
        Ok(answer) => {
            let failed = answer.trials.into_iter().filter(|trial| !trial.problem.is_empty());
            let problems: Vec<_> = failed.map(|trial| (trial.operation, trial.problem)).collect();
            doctor::datastore(&name, &problems)
        }
        Err(error) => {
            let error = Error::from(error);
            Finding::warning(
                "datastore",
                format!("{name} was not tried: {}", error.cause),
                "ask as an admin",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::{FlockOperation, flock};

    use super::*;

    #[test]
    fn the_limit_is_that_of_who_holds_the_data_folder() {
        let folder = tempfile::tempdir().unwrap();
        let own = CoreLimit::of(&fs::read_to_string("/proc/self/limits").unwrap());
        assert_ne!(own, CoreLimit::Unknown);
        assert_eq!(core_limit(folder.path()), CoreLimit::Unknown, "it has no lock");
        let lock = File::create(folder.path().join("lock")).unwrap();
        assert_eq!(core_limit(folder.path()), CoreLimit::Unknown, "nobody has it");
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let found = holder(&locks, &lock.metadata().unwrap());
        assert_eq!(found, Some(std::process::id()));
        assert_eq!(core_limit(folder.path()), own);
    }
}
