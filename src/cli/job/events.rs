//! `atelier job events`

use atelier_proto::job::v1::{GetJobRequest, ListEventsRequest, WatchEventsRequest};
use clap::Args;

use super::patience::{Broken, Patience};
use super::view;
use crate::cli::output::moment;
use crate::cli::{Column, Context, Error, Name};
use crate::client::Client;

/// Events asked for at a time.
const PAGE: u32 = 1000;

#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier job events calm_apple_x1
  atelier job events calm_apple_x1 --follow -o json      one JSON object a line")]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    name: Name,
    /// Print further ones as they come, until the job ends
    #[arg(long)]
    follow: bool,
    /// Only those after this sequence number
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    after: u64,
}

pub(super) async fn run(arguments: &Arguments, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    let job = arguments.name.get().to_owned();
    if arguments.follow {
        return follow(context, client, &job, arguments.after).await;
    }
    let mut events = Vec::new();
    let mut after_seq = arguments.after;
    loop {
        let request = ListEventsRequest { job: job.clone(), after_seq, limit: PAGE };
        let page = client.call(client.jobs().list_events(request)).await?.events;
        let full = page.len() >= PAGE as usize;
        after_seq = page.last().map_or(after_seq, |event| event.seq);
        events.extend(page.iter().map(view::event));
        if !full {
            return context.output.list(events, COLUMNS);
        }
    }
}

/// Prints events as they come, across restarts of the daemon, until the job has ended.
async fn follow(
    context: &Context,
    mut client: Client,
    job: &str,
    mut seen: u64,
) -> Result<(), Error> {
    let mut patience = Patience::new();
    loop {
        match until_it_breaks(context, &client, job, &mut seen, &mut patience).await {
            Ok(true) => return Ok(()),
            Ok(false) => {
                let broken = Broken::Lost("the daemon closed the stream".to_owned());
                patience.again(context, &mut client, job, broken).await?;
            }
            Err(broken) => patience.again(context, &mut client, job, broken).await?,
        }
    }
}

/// Whether the job has ended when its events do.
async fn until_it_breaks(
    context: &Context,
    client: &Client,
    job: &str,
    seen: &mut u64,
    patience: &mut Patience,
) -> Result<bool, Broken> {
    let request = WatchEventsRequest { job: job.to_owned(), after_seq: *seen };
    let mut events = client.call(client.jobs().watch_events(request)).await?;
    while let Some(event) = events.message().await? {
        patience.heard();
        context.output.settle();
        *seen = event.seq;
        context.output.item(&view::event(&event), COLUMNS)?;
    }
    let request = GetJobRequest { name: job.to_owned(), advise: false };
    let job = client.call(client.jobs().get_job(request)).await?;
    Ok(job.status().is_final())
}

const COLUMNS: &[Column] = &[
    Column { title: "SEQ", cell: |e| Some(e["seq"].to_string()) },
    Column { title: "TIME", cell: |e| moment(&e["time"]) },
    Column {
        title: "ATTEMPT",
        cell: |e| match e["attempt"].as_u64()? {
            0 => Some(String::new()),
            attempt => Some(attempt.to_string()),
        },
    },
    Column { title: "EVENT", cell: |e| Some(e["kind"].as_str()?.to_owned()) },
    Column { title: "BY", cell: |e| Some(e["principal"].as_str()?.to_owned()) },
    Column { title: "MESSAGE", cell: |e| Some(e["message"].as_str()?.to_owned()) },
];
