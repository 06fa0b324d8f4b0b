//! `atelier ca`

use clap::Subcommand;
use serde_json::json;

use super::{Context, Error, Kind, workspace};
use crate::tls::Certificate;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Print the certificate of the workspace's own authority: whoever has it knows the daemon
    ///
    /// In PEM, for --ca-file and ATELIER_CA_FILE on other machines; with -o also its fingerprint and how long it lasts.
    /// Where the daemon has a certificate of its admin's (--tls-cert), other machines need the authority of that one.
    /// This one is no secret, but has to come from the daemon that is meant: compare fingerprints where in doubt.
    #[command(after_help = "\
Examples:
  atelier ca show > ca.pem
  atelier ca show --query fingerprint_sha256 -o tsv")]
    Show,
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    let Command::Show = command;
    let client = context.client().await?;
    let workspace = workspace::get(&client).await?;
    let authority = workspace.certificate_authority;
    if authority.is_empty() {
        return Err(Error::new(
            Kind::NotFound,
            "the daemon speaks plain HTTP and has no authority",
        )
        .help(
            "other machines reach one that listens for them: `atelier serve --listen 0.0.0.0:7420`",
        ));
    }
    if workspace.has_given_certificate {
        context.output.warn(
            "the daemon shows other machines the certificate of --tls-cert, for which this authority does not vouch: \
             they need the authority of that one",
        );
    }
    if context.output.is_plain() {
        return context.output.print(&authority);
    }
    let said = Certificate::of_pem(&authority).map_err(|problem| {
        Error::new(Kind::Failed, format!("the daemon's authority cannot be read: {problem}"))
    })?;
    context.output.show(&json!({
        "certificate": authority,
        "fingerprint_sha256": said.fingerprint,
        "not_before": said.not_before.to_string(),
        "not_after": said.not_after.to_string(),
    }))
}
