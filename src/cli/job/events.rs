//! `atelier job events`

use atelier_proto::job::v1::{ListEventsRequest, WatchEventsRequest};
use clap::Args;

use super::view;
use crate::cli::output::moment;
use crate::cli::{Column, Context, Error, Name};

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
        let request = WatchEventsRequest { job, after_seq: arguments.after };
        let mut events = client.call(client.jobs().watch_events(request)).await?;
        while let Some(event) = events.message().await? {
            context.output.item(&view::event(&event), COLUMNS)?;
        }
        return Ok(());
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
