//! `atelier environment build`

use std::collections::BTreeMap;

use atelier_core::spec::environment_reference;
use atelier_proto::environment::v1::build_environment_response::Message;
use atelier_proto::environment::v1::{
    BuildAsked, BuildEnvironmentRequest, BuildEnvironmentResponse, BuildResult, NodeBuild,
};
use clap::Args;
use serde_json::{Value, json};
use tonic::{Status, Streaming};

use super::Which;
use crate::cli::job::follow::interruptible;
use crate::cli::job::length;
use crate::cli::{Column, Context, Error, Kind};

#[derive(Args)]
pub(in crate::cli) struct Build {
    #[command(flatten)]
    which: Which,
    /// On its nodes that are ready [default: the workspace's default compute]
    #[arg(short, long, value_name = "NAME")]
    compute: Option<String>,
    /// Return once the nodes have begun
    #[arg(long)]
    no_wait: bool,
}

/// Failures that an error spells out; the list has all.
const SPELLED_OUT: usize = 3;

/// What is known of each node that was asked.
#[derive(Default)]
struct Nodes {
    asked: Vec<String>,
    begun: BTreeMap<String, Option<BuildResult>>,
}

pub(super) async fn run(arguments: Build, context: &Context) -> Result<(), Error> {
    let environment = Some((&arguments.which.reference(environment_reference)?).into());
    let compute = arguments.compute.unwrap_or_default();
    let client = context.client().await?;
    let request = BuildEnvironmentRequest { environment, compute };
    let told = client.call(client.environments().build_environment(request)).await?;
    let mut nodes = Nodes::default();
    let followed = follow(told, &mut nodes, arguments.no_wait, context);
    let Some(followed) = interruptible(followed).await else {
        let cause = "detached; the nodes go on building";
        return Err(Error::new(Kind::Interrupted, cause)
            .help("look at one with `atelier node cache show NAME`"));
    };
    followed?;
    context.output.list(nodes.shown(), COLUMNS)?;
    nodes.verdict()
}

/// Reads what the nodes tell until all are ready, or with `no_wait` until all have begun.
async fn follow(
    mut told: Streaming<BuildEnvironmentResponse>,
    nodes: &mut Nodes,
    no_wait: bool,
    context: &Context,
) -> Result<(), Error> {
    let broken = |status: Status| Error::from(&status);
    while let Some(response) = told.message().await.map_err(broken)? {
        match response.message {
            Some(Message::Asked(asked)) => nodes.asked(asked, context),
            Some(Message::Node(NodeBuild { node, lines, result })) => {
                for line in lines {
                    context.output.note(&format!("{node}: {line}"));
                }
                *nodes.begun.entry(node).or_default() = result;
            }
            None => {}
        }
        if nodes.is_done(no_wait) {
            return Ok(());
        }
    }
    let cause = "the daemon stopped before all nodes had told how their builds ended";
    Err(Error::new(Kind::Unreachable, cause)
        .help("the nodes go on; run the command again to follow them"))
}

impl Nodes {
    fn asked(&mut self, asked: BuildAsked, context: &Context) {
        let environment = asked.environment.unwrap_or_default();
        let version = match environment.version.as_str() {
            "" => String::new(),
            version => format!(":{version}"),
        };
        let (name, compute, count) = (environment.name, asked.compute, asked.nodes.len());
        let nodes = if count == 1 { "node" } else { "nodes" };
        let text = format!("Building {name}{version} on {count} {nodes} of {compute}.");
        context.output.note(&text);
        self.asked = asked.nodes;
    }

    fn is_done(&self, no_wait: bool) -> bool {
        let is_over = |node| self.begun.get(node).is_some_and(|result| no_wait || result.is_some());
        !self.asked.is_empty() && self.asked.iter().all(is_over)
    }

    fn shown(&self) -> Vec<Value> {
        let shown = |node: &String| {
            let result = self.begun.get(node).cloned().flatten();
            let state = match &result {
                None => "Building",
                Some(result) if result.error.is_empty() => "Ready",
                Some(_) => "Failed",
            };
            let result = result.unwrap_or_default();
            let text = |text: String| (!text.is_empty()).then_some(text);
            json!({
                "node": node,
                "state": state,
                "environment": text(result.description),
                "error": text(result.error),
                "duration": (state != "Building").then_some(result.took_ms as f64 / 1000.0),
            })
        };
        self.asked.iter().map(shown).collect()
    }

    /// An error if a node failed.
    fn verdict(&self) -> Result<(), Error> {
        let errors = |node: &String| {
            let error = self.begun.get(node)?.as_ref()?.error.clone();
            (!error.is_empty()).then(|| format!("node '{node}': {error}"))
        };
        let errors: Vec<String> = self.asked.iter().filter_map(errors).collect();
        if errors.is_empty() {
            return Ok(());
        }
        let (failed, all) = (errors.len(), self.asked.len());
        let some = errors[..failed.min(SPELLED_OUT)].join("\n");
        let cause = format!("the environment is not ready on {failed} of {all} nodes\n{some}");
        Err(Error::new(Kind::Refused, cause))
    }
}

const COLUMNS: &[Column] = &[
    Column { title: "NODE", cell: |n| Some(n["node"].as_str()?.to_owned()) },
    Column { title: "STATE", cell: |n| Some(n["state"].as_str()?.to_owned()) },
    Column { title: "DURATION", cell: |n| Some(length((n["duration"].as_f64()? * 1000.0) as i64)) },
    Column {
        title: "ENVIRONMENT",
        cell: |n| Some(n["environment"].as_str().or(n["error"].as_str())?.to_owned()),
    },
];
