//! `atelier ui`: MLflow's own web pages, on the workspace.
//!
//! The pages are those of an `mlflow` that is installed here. What they ask for goes through this program, which adds the
//! user's token and speaks to the daemon as every other command does. So no browser holds a token, nobody must teach a
//! browser to trust the daemon's own authority, and the daemon serves nothing to browsers.
//!
//! Only the browser of whoever ran the command gets in: by a code that is good once, for a cookie that is sent from these
//! pages alone. The pages have a name of their own below `localhost` (RFC 6761, 6.3: Chromium and Firefox take it for this
//! machine themselves), since browsers send a cookie of `127.0.0.1` to whatever listens there, at any port.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use atelier_proto::identity::v1::WhoAmIRequest;
use clap::Args;
use serde_json::json;
use tokio::net::TcpListener;

use super::{Context, Error, Kind, login};

mod pages;
mod proxy;
#[cfg(test)]
mod tests;

/// Open MLflow's web pages on the workspace: experiments, runs, charts, artifacts, models
///
/// The pages come from an mlflow that is installed here (pip install mlflow; mlflow-skinny has none). They are served on
/// this machine alone, for your browser alone, until Ctrl-C.
#[derive(Args)]
#[command(after_help = "\
Examples:
  atelier ui
  atelier ui --no-browser --port 5000           then open the address that it prints
  atelier ui --pages venv/lib/python3.12/site-packages/mlflow/server/js/build")]
pub(super) struct Arguments {
    /// The port on this machine [default: one that is free]
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// Print the address and open nothing
    #[arg(long)]
    no_browser: bool,
    /// The folder of the pages [env: ATELIER_MLFLOW_PAGES] [default: those of the mlflow that python has]
    #[arg(long, value_name = "FOLDER")]
    pages: Option<PathBuf>,
}

pub(super) async fn run(arguments: Arguments, context: &Context) -> Result<(), Error> {
    let named = arguments.pages.or_else(|| {
        let named = std::env::var_os("ATELIER_MLFLOW_PAGES").filter(|value| !value.is_empty());
        named.map(PathBuf::from)
    });
    let pages = pages::Pages::find(named)?;
    // Whoever has no daemon, or may not speak to it, learns it here and not from an empty page.
    let client = context.client().await?;
    let user = client.call(client.auth().who_am_i(WhoAmIRequest {})).await?;
    let (port, listeners) =
        listen(arguments.port).await.map_err(|error| taken(arguments.port, &error))?;
    let door = proxy::Door::new(port).map_err(|error| {
        Error::new(
            Kind::Failed,
            format!("cannot make a code: the system gave no random bytes: {error}"),
        )
    })?;
    let address = door.address();
    let proxy = proxy::Proxy::new(Arc::new(door), pages, context.clone(), &client)?;

    // A command line can be read by everybody on this machine: the browser is told by a file that only the user reads.
    let way = (!arguments.no_browser && login::has_browser()).then(|| leading_to(&address));
    let way = way.transpose().map_err(|error| {
        Error::new(Kind::Failed, format!("cannot write a file for the browser: {error}"))
            .help("run it with --no-browser")
    })?;
    let opened = way.as_ref().is_some_and(|way| {
        login::open(&format!("file://{}", way.path().join("index.html").display()))
    });
    let hint = if opened { "A browser should open; if it does not, go to" } else { "Go to" };
    context.output.note(&format!(
        "MLflow's pages on {}, as {}. {hint} the address below, which opens them once. Ctrl-C ends it.",
        client.target().server,
        user.principal,
    ));
    if context.output.is_plain() {
        context.output.print(&format!("{address}\n"))?;
    } else {
        context.output.show(&json!({ "url": address, "pages": proxy.pages() }))?;
    }
    let served = listeners
        .into_iter()
        .map(|listener| axum::serve(listener, proxy.clone().router()).into_future());
    tokio::select! {
        served = futures::future::try_join_all(served) => served.map(drop).map_err(|error| {
            Error::new(Kind::Failed, format!("cannot go on serving the pages: {error}"))
        }),
        _ = tokio::signal::ctrl_c() => Err(Error::new(Kind::Interrupted, "the pages are closed")),
    }
}

/// Listens on loopback of both kinds: browsers ask a name below `localhost` at `::1` first, where otherwise another user
/// could wait for the code.
async fn listen(port: u16) -> io::Result<(u16, Vec<TcpListener>)> {
    /// Ports that are free for one kind and taken for the other are rare.
    const TRIES: u32 = 20;
    let mut left = TRIES;
    loop {
        left -= 1;
        let four = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let free = four.local_addr()?.port();
        match TcpListener::bind((Ipv6Addr::LOCALHOST, free)).await {
            Ok(six) => return Ok((free, vec![four, six])),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && port == 0 && left > 0 => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            // This machine has no addresses of version 6, and nobody listens at any.
            Err(_) => return Ok((free, vec![four])),
        }
    }
}

/// A folder that only the user reads, with a page that leads to an address.
fn leading_to(address: &str) -> io::Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("atelier-ui-").tempdir()?;
    let page = format!("<!doctype html><meta http-equiv=\"refresh\" content=\"0;url={address}\">");
    std::fs::write(folder.path().join("index.html"), page)?;
    Ok(folder)
}

fn taken(port: u16, error: &io::Error) -> Error {
    let cause = format!("cannot listen on port {port} of this machine: {error}");
    Error::new(Kind::Refused, cause).help("choose another --port, or none for one that is free")
}
