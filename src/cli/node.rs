//! `atelier node`

mod cache;

use atelier_core::resource::Memory;
use atelier_proto::compute::v1::{
    self as pb, DrainNodeRequest, GetNodeRequest, ListNodesRequest, NodeState, ResumeNodeRequest,
};
use atelier_proto::node::v1::{
    CreateJoinTokenRequest, DeleteJoinTokenRequest, JoinToken, ListJoinTokensRequest,
    RevokeNodeRequest,
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::compute::{drained, resources, share};
use super::job::time;
use super::output::moment;
use super::{Column, Context, Error, Name, top};
use crate::client::Client;

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the nodes
    #[command(visible_alias = "ls", after_help = "Example:\n  atelier node list --compute local")]
    List {
        /// Only those of this compute
        #[arg(long, value_name = "COMPUTE")]
        compute: Option<String>,
    },
    /// Show one node: what it has, what it can, what runs there
    #[command(after_help = "Example:\n  atelier node show local --query facts")]
    Show(Name),
    /// Keep new jobs away from a node, until it is resumed
    ///
    /// Jobs that run there run to their end, unless --deadline or --requeue says otherwise.
    #[command(after_help = "\
Examples:
  atelier node drain gpu-3 --reason 'the fan is loud'
  atelier node drain gpu-3 --reason 'new driver' --deadline 30m
  atelier node drain gpu-3 --reason 'new driver, now' --requeue --update")]
    Drain(Drain),
    /// Let a drained node have jobs again
    #[command(after_help = "Example:\n  atelier node resume gpu-3")]
    Resume(Name),
    /// Make tokens with which machines become nodes, see which still open, and delete them
    #[command(subcommand)]
    Token(Token),
    /// Cut a node off at once: all that it is let in by is worth nothing from then on
    ///
    /// What runs there writes nothing more and ends within its lease; its jobs then go elsewhere, as those of a node
    /// that was lost. A node that was revoked comes back with a join token for its name. Of a name that no machine has
    /// joined under yet its unused join tokens open no more.
    #[command(after_help = "Example:\n  atelier node revoke gpu-3")]
    Revoke(Name),
    /// See what a node keeps of what it built and fetched, and remove what is not in use
    #[command(subcommand)]
    Cache(cache::Command),
    /// Watch what nodes do: CPU, memory, each GPU, jobs
    ///
    /// A picture that is drawn anew every two seconds, until Ctrl-C; where it cannot be drawn, or with
    /// --once, it is printed once.
    #[command(after_help = "\
Examples:
  atelier node top
  atelier node top --compute gpu --once
  atelier node top -o json --query 'nodes[].gpus[]'")]
    Top(top::nodes::Arguments),
}

#[derive(Subcommand)]
pub(super) enum Token {
    /// Make a token with which one machine becomes a node, once; it is shown once
    ///
    /// It carries the fingerprint of the daemon's authority, so that the machine needs no --ca-file. From then on the
    /// node is known by a certificate of its own, which it renews by itself.
    #[command(after_help = "\
Examples:
  atelier node token create
  atelier node token create --node gpu-3 --compute gpu --expires 1h
  atelier node token create --query token -o tsv > join.token")]
    Create {
        /// The only compute that may be joined with it [default: any]
        #[arg(long, value_name = "COMPUTE")]
        compute: Option<String>,
        /// The only name that may be joined under, also of a node that is to join anew [default: any that no node has]
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
        /// For how long it opens, 7 days at most
        #[arg(long, value_name = "TIME", default_value = "15m", value_parser = seconds)]
        expires: u64,
    },
    /// List the join tokens that still open; the tokens themselves are shown once, when they are made
    #[command(visible_alias = "ls", after_help = "Example:\n  atelier node token list")]
    List,
    /// Have a join token open no more
    #[command(
        visible_alias = "rm",
        after_help = "Example:\n  atelier node token delete 3f9a02c4be17"
    )]
    Delete {
        /// Its id, as `node token list` shows it
        #[arg(value_name = "ID")]
        id: String,
    },
}

#[derive(Args)]
pub(super) struct Drain {
    #[command(flatten)]
    pub(super) name: Name,
    /// Why, for those who ask later
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: String,
    /// Jobs that still run after so long go back in the queue, for example 30m or 2h
    #[arg(long, value_name = "TIME", value_parser = seconds, conflicts_with = "requeue")]
    deadline: Option<u64>,
    /// Jobs that run there go back in the queue now
    #[arg(long)]
    requeue: bool,
    /// Jobs that run there run to their end (the default)
    #[arg(long, conflicts_with_all = ["requeue", "deadline"])]
    wait: bool,
    /// Change what was said of one that is drained already
    #[arg(long)]
    pub(super) update: bool,
}

impl Drain {
    /// Seconds until the jobs there go back in the queue; `None`: they run to their end.
    pub(super) fn deadline_s(&self) -> Option<u64> {
        if self.requeue { Some(0) } else { self.deadline }
    }
}

/// `90`, `30m`, `2h 15m`, `7d`: in whole seconds.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let wrong = || "write for example 90s, 30m, 2h or 7d".to_owned();
    let span: jiff::Span = text.parse().map_err(|_| wrong())?;
    let time = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    u64::try_from(time.as_secs()).map_err(|_| wrong())
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let mut computes = client.computes();
    match command {
        Command::List { compute } => list(&client, context, &compute.unwrap_or_default()).await,
        Command::Top(arguments) => top::nodes::run(arguments, context).await,
        Command::Show(name) => {
            let request = GetNodeRequest { name: name.get().to_owned() };
            context.output.show(&view(&client.call(computes.get_node(request)).await?))
        }
        Command::Drain(drain) => {
            let request = DrainNodeRequest {
                name: drain.name.get().to_owned(),
                deadline_s: drain.deadline_s(),
                reason: drain.reason,
                update: drain.update,
            };
            let node = client.call(computes.drain_node(request)).await?;
            context.output.show(&view(&node))?;
            let resume =
                format!("Let it have jobs again with `atelier node resume {}`.", node.name);
            context.output.note(&resume);
            Ok(())
        }
        Command::Token(Token::Create { compute, node, expires }) => {
            let request = CreateJoinTokenRequest {
                compute: compute.clone().unwrap_or_default(),
                node: node.clone().unwrap_or_default(),
                // None at all is the daemon's own choice.
                expires_s: expires.max(1),
            };
            let made = client.call(client.nodes().create_join_token(request)).await?;
            let option = |name: &str, value: &Option<String>| {
                value.as_ref().map(|value| format!(" --{name} {value}")).unwrap_or_default()
            };
            context.output.note(&format!(
                "On the machine, once: atelier agent --server {}{}{} --token TOKEN",
                made.server,
                option("node", &node),
                option("compute", &compute)
            ));
            context.output.show(&json!({
                "token": made.token,
                "id": made.id,
                "expires_at": time(made.expires_at_ms),
                "compute": compute,
                "node": node,
                "server": made.server,
            }))
        }
        Command::Token(Token::List) => {
            let request = ListJoinTokensRequest {};
            let answer = client.call(client.nodes().list_join_tokens(request)).await?;
            context.output.list(answer.tokens.iter().map(token).collect(), TOKEN_COLUMNS)
        }
        Command::Token(Token::Delete { id }) => {
            let request = DeleteJoinTokenRequest { id };
            let deleted = client.call(client.nodes().delete_join_token(request)).await?;
            context.output.show(&token(&deleted))
        }
        Command::Revoke(name) => {
            let request = RevokeNodeRequest { name: name.get().to_owned() };
            let revoked = client.call(client.nodes().revoke_node(request)).await?;
            let name = name.get();
            context.output.note(&if revoked.never_joined {
                let tokens = revoked.join_tokens;
                format!("No machine has joined as '{name}'; its join tokens ({tokens}) open no more.")
            } else {
                format!("It comes back with a token for its name: atelier node token create --node {name}")
            });
            context.output.show(&json!({
                "name": name,
                "attempts": revoked.attempts,
                "join_tokens": revoked.join_tokens,
            }))
        }
        Command::Cache(command) => cache::run(command, &client, context).await,
        Command::Resume(name) => {
            let request = ResumeNodeRequest { name: name.get().to_owned() };
            context.output.show(&view(&client.call(computes.resume_node(request)).await?))
        }
    }
}

/// A join token as it is shown, without the token itself.
fn token(token: &JoinToken) -> Value {
    let named = |name: &String| (!name.is_empty()).then_some(name.clone());
    json!({
        "id": token.id,
        "node": named(&token.node),
        "compute": named(&token.compute),
        "created_by": token.created_by,
        "created_at": time(token.created_at_ms),
        "expires_at": time(token.expires_at_ms),
    })
}

const TOKEN_COLUMNS: &[Column] = &[
    Column { title: "ID", cell: |t| Some(t["id"].as_str()?.to_owned()) },
    Column { title: "NODE", cell: |t| Some(t["node"].as_str().unwrap_or("any").to_owned()) },
    Column { title: "COMPUTE", cell: |t| Some(t["compute"].as_str().unwrap_or("any").to_owned()) },
    Column { title: "BY", cell: |t| Some(t["created_by"].as_str()?.to_owned()) },
    Column { title: "EXPIRES", cell: |t| moment(&t["expires_at"]) },
];

/// Lists the nodes of one compute, or all if it is empty.
pub(super) async fn list(client: &Client, context: &Context, compute: &str) -> Result<(), Error> {
    let request = ListNodesRequest { compute: compute.to_owned() };
    let answer = client.call(client.computes().list_nodes(request)).await?;
    context.output.list(answer.nodes.iter().map(view).collect(), COLUMNS)
}

/// Azure's word for a node's state.
pub(super) const fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Unspecified => "unknown",
        NodeState::Idle => "idle",
        NodeState::Running => "running",
        NodeState::Preparing => "preparing",
        NodeState::Unusable => "unusable",
        NodeState::Leaving => "leaving",
        NodeState::Preempted => "preempted",
    }
}

fn view(node: &pb::Node) -> Value {
    let gpus: Vec<Value> = node
        .gpus
        .iter()
        .map(|gpu| {
            json!({
                "index": gpu.index,
                "model": gpu.model,
                "memory": Memory(gpu.memory_mib).to_string(),
                "uuid": gpu.uuid,
                "free": gpu.free,
                "free_share": f64::from(gpu.free_milli) / 1000.0,
                "out": (!gpu.out.is_empty()).then_some(&gpu.out),
            })
        })
        .collect();
    json!({
        "name": node.name,
        "compute": node.compute,
        "state": state(node.state()),
        "reason": node.reason,
        "drain": drained(node.drain.as_ref()),
        "capacity": resources(node.capacity.as_ref()),
        "free": resources(node.free.as_ref()),
        "gpus": gpus,
        "jobs": node.jobs,
        "last_seen": time(node.last_seen_ms),
        "clock_ahead_s": node.clock_ahead_ms.map(|ms| ms / 1000),
        "agent_version": node.agent_version,
        "hostname": node.hostname,
        "address": node.address,
        "os": node.os,
        "facts": node.facts,
        "labels": node.labels,
        "usage": node.usage,
    })
}

const COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |n| Some(n["name"].as_str()?.to_owned()) },
    Column { title: "COMPUTE", cell: |n| Some(n["compute"].as_str()?.to_owned()) },
    Column { title: "STATE", cell: |n| Some(n["state"].as_str()?.to_owned()) },
    Column { title: "FREE CPUS", cell: |n| share(n, "cpus") },
    Column { title: "FREE MEMORY", cell: |n| share(n, "memory") },
    Column { title: "FREE GPUS", cell: |n| share(n, "gpus") },
    Column { title: "JOBS", cell: |n| Some(n["jobs"].as_array()?.len().to_string()) },
    Column { title: "LAST SEEN", cell: |n| moment(&n["last_seen"]) },
    Column { title: "REASON", cell: |n| Some(n["reason"].as_str()?.to_owned()) },
];
