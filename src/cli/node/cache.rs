//! `atelier node cache`

use atelier_proto::compute::v1::{
    self as pb, GetNodeCacheRequest, PruneNodeCacheRequest, cache_entry::Kind,
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::seconds;
use crate::cli::job::{size, time};
use crate::cli::output::moment;
use crate::cli::{Column, Context, Error, Name};
use crate::client::Client;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show what a node keeps: environments, images made there, packages, code and inputs, and what of it is in use
    #[command(after_help = "\
Examples:
  atelier node cache show local
  atelier node cache show gpu-3 --query \"entries[?in_use==`0`].[name, bytes]\" -o tsv")]
    Show(Name),
    /// Remove environments, and images made there, that nothing uses from a node
    ///
    /// What is in use or being built stays. What was removed is built or fetched again when a job needs
    /// it.
    #[command(after_help = "\
Examples:
  atelier node cache prune gpu-3
  atelier node cache prune gpu-3 --older-than 7d
  atelier node cache prune gpu-3 --all")]
    Prune(Prune),
}

#[derive(Args)]
pub(crate) struct Prune {
    #[command(flatten)]
    name: Name,
    /// Code and inputs too, and the installer's packages unless --older-than is given
    #[arg(long)]
    all: bool,
    /// Only what was not used for so long, for example 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = seconds, default_value = "0", hide_default_value = true)]
    older_than: u64,
}

pub(super) async fn run(command: Command, client: &Client, context: &Context) -> Result<(), Error> {
    let mut computes = client.computes();
    match command {
        Command::Show(name) => {
            let name = name.get();
            let request = GetNodeCacheRequest { name: name.to_owned() };
            let cache = client.call(computes.get_node_cache(request)).await?;
            if !context.output.is_plain() {
                return context.output.show(&view(name, &cache));
            }
            context.output.list(entries(&cache.entries), COLUMNS)?;
            context.output.note(&totals(&cache));
            Ok(())
        }
        Command::Prune(Prune { name, all, older_than }) => {
            let name = name.get();
            let request =
                PruneNodeCacheRequest { name: name.to_owned(), all, unused_for_s: older_than };
            let cache = client.call(computes.prune_node_cache(request)).await?;
            if !context.output.is_plain() {
                let mut view = view(name, &cache);
                view["removed"] = json!(entries(&cache.removed));
                return context.output.show(&view);
            }
            context.output.list(entries(&cache.removed), COLUMNS)?;
            let removed = size(bytes(&cache.removed, &[]));
            context.output.note(&format!("Removed {removed}. Left: {}", totals(&cache)));
            Ok(())
        }
    }
}

/// What is kept in the bound of environments, in that of images, and in that of data.
const BOUNDS: [&[Kind]; 3] =
    [&[Kind::Environment, Kind::Packages], &[Kind::Image], &[Kind::Code, Kind::Inputs]];

/// Of these kinds; of all if there are none.
fn bytes(entries: &[pb::CacheEntry], kinds: &[Kind]) -> u64 {
    let counted = entries.iter().filter(|entry| kinds.is_empty() || kinds.contains(&entry.kind()));
    counted.map(|entry| entry.bytes).fold(0, u64::saturating_add)
}

fn totals(cache: &pb::NodeCache) -> String {
    let [environments, images, data] = BOUNDS.map(|kinds| size(bytes(&cache.entries, kinds)));
    let images = match cache.image_limit {
        0 => String::new(),
        limit => format!("images made here {images} of at most {}, ", size(limit)),
    };
    format!(
        "environments and packages {environments} of at most {}, {images}code and inputs {data} of at most {}.",
        size(cache.environment_limit),
        size(cache.data_limit)
    )
}

fn view(node: &str, cache: &pb::NodeCache) -> Value {
    let [environments, images, data] = BOUNDS.map(|kinds| bytes(&cache.entries, kinds));
    json!({
        "node": node,
        "environments": { "bytes": environments, "limit_bytes": cache.environment_limit },
        "images": { "bytes": images, "limit_bytes": cache.image_limit },
        "data": { "bytes": data, "limit_bytes": cache.data_limit },
        "entries": entries(&cache.entries),
    })
}

fn entries(entries: &[pb::CacheEntry]) -> Vec<Value> {
    let view = |entry: &pb::CacheEntry| {
        json!({
            "kind": kind(entry.kind()),
            "name": (!entry.name.is_empty()).then_some(&entry.name),
            "description": entry.description,
            "bytes": entry.bytes,
            "count": entry.count,
            "last_used": time(entry.last_used_ms),
            "in_use": entry.in_use,
            "building": entry.building,
        })
    };
    entries.iter().map(view).collect()
}

const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Unspecified => "unknown",
        Kind::Environment => "environment",
        Kind::Packages => "packages",
        Kind::Code => "code",
        Kind::Inputs => "inputs",
        Kind::Image => "image",
    }
}

const COLUMNS: &[Column] = &[
    Column { title: "KIND", cell: |e| Some(e["kind"].as_str()?.to_owned()) },
    Column { title: "NAME", cell: |e| Some(e["name"].as_str()?.to_owned()) },
    Column { title: "SIZE", cell: |e| Some(size(e["bytes"].as_u64()?)) },
    Column { title: "LAST USED", cell: |e| moment(&e["last_used"]) },
    Column {
        title: "IN USE",
        cell: |e| {
            Some(match (e["building"] == true, e["in_use"].as_u64()?) {
                (true, _) => "being built".to_owned(),
                (false, 0) => String::new(),
                (false, count) => count.to_string(),
            })
        },
    },
    Column { title: "DESCRIPTION", cell: |e| Some(e["description"].as_str()?.to_owned()) },
];
