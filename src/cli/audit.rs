//! `atelier audit`

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use atelier_core::audit::{Chain, Entry};
use atelier_core::content::Digest;
use atelier_proto::audit::v1::{
    ListAuditEntriesRequest, ListAuditEntriesResponse, PruneAuditLogRequest,
};
use clap::Subcommand;
use serde_json::{Value, json};

use super::job::time;
use super::output::moment;
use super::pages::pages;
use super::{Column, Context, Error, Kind};
use crate::client::Client;

/// The largest page of entries that a daemon gives.
const PAGE: u32 = 500;
/// The longest line of an export that is read.
const LINE: usize = 1 << 20;

#[derive(Subcommand)]
pub(super) enum Command {
    /// List who changed what, the newest first
    #[command(after_help = "\
Examples:
  atelier audit list
  atelier audit list --since 7d --principal ana --limit 20
  atelier audit list --resource compute/gpu -o yaml
  atelier audit list --action DeleteJob --query '[].resource' -o tsv")]
    List {
        /// Only since then: a time as 2026-01-31T12:00:00Z, or so long ago, as 90m, 12h or 7d
        #[arg(long, value_name = "TIME", value_parser = since)]
        since: Option<i64>,
        /// Only what this one did
        #[arg(long, value_name = "NAME")]
        principal: Option<String>,
        /// Only actions with this in their name
        #[arg(long, value_name = "TEXT")]
        action: Option<String>,
        /// Only of this resource, as KIND/NAME, or of this kind
        #[arg(long, value_name = "RESOURCE")]
        resource: Option<String>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
    },
    /// Check that every entry is as it was written and that none is missing
    ///
    /// Each entry holds the hash of the one before it. Who changes one has to make all hashes after it anew, so that
    /// the last one, the head, becomes another: note it elsewhere, and give it with --head to have that found too.
    #[command(after_help = "\
Examples:
  atelier audit verify
  atelier audit verify --head f4d65b2483b34a8d50bcf2c9e053077c4dc7c00b65008ce1988ce4eca45741c8
  atelier audit verify audit.jsonl               an export, without a daemon")]
    Verify {
        /// An export to check instead of the daemon's log; it may begin with any entry
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// The hash of an entry that must be there, as it was noted elsewhere
        #[arg(long, value_name = "HASH")]
        head: Option<Digest>,
    },
    /// Take away old entries; what is left can still be checked
    ///
    /// An entry tells who did it and where the log was cut. Export it first: what is gone comes back from a backup alone.
    #[command(after_help = "\
Examples:
  atelier audit prune --before 365d
  atelier audit prune --before 2026-01-01T00:00:00Z --yes")]
    Prune {
        /// Entries from before then go: a time as 2026-01-31T12:00:00Z, or so long ago, as 90d; a day at least
        #[arg(long, value_name = "TIME", value_parser = since)]
        before: i64,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Write the log as lines of JSON, the oldest first
    #[command(after_help = "\
Examples:
  atelier audit export > audit.jsonl
  atelier audit export --file audit.jsonl
  atelier audit export --after 1200 --file audit-2.jsonl   what came since")]
    Export {
        /// Where to; it is replaced [default: standard output]
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Only entries after the one of this number
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        after: u64,
    },
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    match command {
        Command::List { since, principal, action, resource, limit } => {
            let client = context.client().await?;
            let wanted = ListAuditEntriesRequest {
                since_ms: since.unwrap_or_default(),
                principal: principal.unwrap_or_default(),
                action: action.unwrap_or_default(),
                resource: resource.unwrap_or_default(),
                ..ListAuditEntriesRequest::default()
            };
            let entries = pages(limit, async |size, page_token| {
                let page_size = size.min(PAGE);
                let request = ListAuditEntriesRequest { page_size, page_token, ..wanted.clone() };
                let answer = client.call(client.audit().list_audit_entries(request)).await?;
                let entries = answer.entries.into_iter().map(|entry| view(&entry.into()));
                Ok((entries.collect(), answer.next_page_token))
            });
            context.output.list(entries.await?, COLUMNS)
        }
        Command::Verify { file: Some(file), head } => verified(of_file(&file, head)?, context),
        Command::Verify { file: None, head } => {
            verified(of_daemon(&context.client().await?, head).await?, context)
        }
        Command::Prune { before, yes } => prune(before, yes, context).await,
        Command::Export { file, after } => export(file.as_deref(), after, context).await,
    }
}

async fn prune(before_ms: i64, yes: bool, context: &Context) -> Result<(), Error> {
    if !yes {
        let question =
            "Take these entries out of the audit log for good? Is there an export of them?";
        context.confirmed(question, "atelier audit prune --before TIME --yes")?;
    }
    let client = context.client().await?;
    let request = PruneAuditLogRequest { before_ms };
    let pruned = client.call(client.audit().prune_audit_log(request)).await?;
    match pruned.entries {
        0 => context.output.note("No entry is that old: all stay."),
        _ => context.output.note(
            "An entry tells where the log was cut. Note its new head (atelier audit verify) elsewhere, for --head.",
        ),
    }
    context.output.show(&json!({
        "entries": pruned.entries,
        "through": (pruned.entries > 0).then_some(pruned.through),
        "head": (pruned.entries > 0).then_some(pruned.head),
    }))
}

/// What was found of a log: the numbers of the first and the last entry, and the hash of the last.
type Found = Option<(u64, u64, Digest)>;

fn verified(found: Found, context: &Context) -> Result<(), Error> {
    let (first, last, head) = match found {
        Some((first, last, head)) => (first, last, Some(head)),
        None => (0, 0, None),
    };
    let entries = if head.is_some() { last - first + 1 } else { 0 };
    context.output.note("Every entry is as it was written. Note the head elsewhere, for --head.");
    context.output.show(&json!({
        "entries": entries,
        "first": first,
        "last": last,
        "head": head.map(|head| head.to_string()),
    }))
}

fn broken(fault: impl std::fmt::Display) -> Error {
    Error::new(Kind::Refused, format!("the audit log is not as it was written: {fault}")).help(
        "compare with an earlier export (atelier audit export), or with a backup of the database",
    )
}

fn chain(whole: bool, head: Option<Digest>) -> Chain {
    let chain = if whole { Chain::whole() } else { Chain::part() };
    match head {
        Some(head) => chain.with_head(head),
        None => chain,
    }
}

async fn of_daemon(client: &Client, head: Option<Digest>) -> Result<Found, Error> {
    let mut chain = chain(true, head);
    let mut given = 0;
    each_page(client, 0, |answer| {
        given = answer.last_seq;
        for entry in answer.entries {
            chain.follow(&entry.into()).map_err(broken)?;
        }
        Ok(())
    })
    .await?;
    let found = chain.end().map_err(broken)?;
    let last = found.map_or(0, |(_, last, _)| last);
    if given > last {
        return Err(broken(format!("entries {} to {given} are missing", last + 1)));
    }
    Ok(found)
}

fn of_file(file: &Path, head: Option<Digest>) -> Result<Found, Error> {
    let failed = |error| Error::file("read", file, &error);
    let mut lines = BufReader::new(File::open(file).map_err(failed)?);
    let mut chain = chain(false, head);
    let (mut line, mut number) = (Vec::new(), 0u64);
    loop {
        line.clear();
        let bounded = &mut std::io::Read::take(&mut lines, LINE as u64);
        if bounded.read_until(b'\n', &mut line).map_err(failed)? == 0 {
            break;
        }
        number += 1;
        let wrong = |why: String| broken(format!("line {number} of {}: {why}", file.display()));
        let text = std::str::from_utf8(&line).map_err(|error| wrong(error.to_string()))?.trim();
        if text.is_empty() {
            continue;
        }
        let entry = Entry::of_line(text).map_err(wrong)?;
        chain.follow(&entry).map_err(|fault| wrong(fault.to_string()))?;
    }
    chain.end().map_err(broken)
}

/// Every page of the log after this entry, the oldest first.
async fn each_page(
    client: &Client,
    after_seq: u64,
    mut take: impl FnMut(ListAuditEntriesResponse) -> Result<(), Error>,
) -> Result<(), Error> {
    let wanted = ListAuditEntriesRequest {
        oldest_first: true,
        after_seq,
        page_size: PAGE,
        ..ListAuditEntriesRequest::default()
    };
    let mut page_token = String::new();
    loop {
        let request = ListAuditEntriesRequest { page_token, ..wanted.clone() };
        let mut answer = client.call(client.audit().list_audit_entries(request)).await?;
        page_token = std::mem::take(&mut answer.next_page_token);
        take(answer)?;
        if page_token.is_empty() {
            return Ok(());
        }
    }
}

async fn export(file: Option<&Path>, after: u64, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let Some(file) = file else {
        return each_page(&client, after, |answer| {
            for entry in answer.entries {
                context.output.bytes(format!("{}\n", Entry::from(entry).to_line()).as_bytes())?;
            }
            Ok(())
        })
        .await;
    };
    let failed = |error| Error::file("write", file, &error);
    let mut out = BufWriter::new(File::create(file).map_err(failed)?);
    let mut count = 0u64;
    each_page(&client, after, |answer| {
        for entry in answer.entries {
            writeln!(out, "{}", Entry::from(entry).to_line()).map_err(failed)?;
            count += 1;
        }
        Ok(())
    })
    .await?;
    let written = out.into_inner().map_err(|error| failed(error.into_error()))?;
    written.sync_all().map_err(failed)?;
    context.output.note(&format!("{count} entries are in {}.", file.display()));
    Ok(())
}

/// When something is said to begin, in milliseconds since the epoch.
fn since(text: &str) -> Result<i64, String> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(at.as_millisecond());
    }
    let (number, unit) = text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => 0,
    };
    match number.parse::<u32>() {
        Ok(number) if seconds > 0 => {
            let ago = i64::from(number) * seconds * 1000;
            Ok(jiff::Timestamp::now().as_millisecond().saturating_sub(ago).max(1))
        }
        _ => {
            Err("give a time as 2026-01-31T12:00:00Z, or so long ago, as 90m, 12h or 7d".to_owned())
        }
    }
}

fn view(entry: &Entry) -> Value {
    let record = |text: &Option<String>| {
        let text = text.as_deref()?;
        Some(serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())))
    };
    json!({
        "seq": entry.seq,
        "at": time(entry.at.as_millis()),
        "principal": entry.principal,
        "role": entry.role,
        "from": entry.from,
        "action": entry.action,
        "resource": entry.resource,
        "refused": entry.refused,
        "before": record(&entry.before),
        "after": record(&entry.after),
        "hash": entry.hash.to_string(),
    })
}

const COLUMNS: &[Column] = &[
    Column { title: "SEQ", cell: |e| Some(e["seq"].to_string()) },
    Column { title: "AT", cell: |e| moment(&e["at"]) },
    Column { title: "PRINCIPAL", cell: |e| Some(e["principal"].as_str()?.to_owned()) },
    Column { title: "FROM", cell: |e| Some(e["from"].as_str()?.to_owned()) },
    Column { title: "ACTION", cell: |e| Some(e["action"].as_str()?.to_owned()) },
    Column { title: "RESOURCE", cell: |e| Some(e["resource"].as_str()?.to_owned()) },
    Column { title: "REFUSED", cell: |e| Some(e["refused"].as_str()?.to_owned()) },
];

#[cfg(test)]
mod tests {
    use super::since;

    #[test]
    fn a_beginning_is_a_time_or_so_long_ago() {
        assert_eq!(since("1970-01-01T00:00:01Z"), Ok(1000));
        let now = jiff::Timestamp::now().as_millisecond();
        let two_hours = now - since("2h").unwrap();
        assert!((7_200_000 - 60_000..=7_200_000).contains(&two_hours), "{two_hours}");
        for wrong in ["", "h", "7", "-1d", "1.5h", "ä", "tomorrow", "7w"] {
            assert!(since(wrong).is_err(), "{wrong}");
        }
    }
}
