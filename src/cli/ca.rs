//! `atelier ca`

use atelier_proto::identity::v1::{
    Authority, GetAuthorityRequest, RetireAuthorityRequest, RotateAuthorityRequest,
};
use clap::Subcommand;
use serde_json::{Value, json};

use super::job::time;
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
    /// Show how the authority stands, and who relies on the one before while that counts still
    #[command(after_help = "\
Examples:
  atelier ca status
  atelier ca status --query previous.nodes")]
    Status,
    /// Have a new authority take over at once, for which the present one vouches
    ///
    /// The daemon's certificate and those of nodes are of the new one from then on, without a restart. The one before
    /// counts still: clients that know it alone go on, as do nodes that are away, and join tokens that were made with
    /// it. Nodes that are connected get a certificate of the new one within seconds, and learn of it. Give the new
    /// one (`atelier ca show`) to clients that have a file; then `atelier ca retire` ends the one before.
    #[command(after_help = "\
Examples:
  atelier ca rotate
  atelier ca show > ca.pem            for clients; `atelier context update NAME --ca-file ca.pem` there")]
    Rotate,
    /// Have the authority before count no more
    ///
    /// Refused while nodes may have no certificate of the present one yet, or jobs run that may not know it; --force
    /// does it all the same. Clients whose file has the one before alone are not known to the daemon: they are
    /// told to get the present one.
    #[command(after_help = "\
Examples:
  atelier ca retire
  atelier ca retire --force           when the key of the one before may be in wrong hands")]
    Retire {
        /// Also where nodes or jobs rely on it: such nodes have to join anew, such jobs reach the daemon no more
        #[arg(long)]
        force: bool,
    },
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    let client = context.client().await?;
    match command {
        Command::Show => {
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
                    "the daemon shows other machines the certificate of --tls-cert, for which this authority does not \
                     vouch: they need the authority of that one",
                );
            }
            if context.output.is_plain() {
                return context.output.print(&authority);
            }
            let said = read(&authority)?;
            context.output.show(&json!({
                "certificate": authority,
                "fingerprint_sha256": said.fingerprint,
                "not_before": said.not_before.to_string(),
                "not_after": said.not_after.to_string(),
            }))
        }
        Command::Status => {
            let seen =
                client.call(client.authority().get_authority(GetAuthorityRequest {})).await?;
            context.output.show(&view(&seen)?)
        }
        Command::Rotate => {
            let request = RotateAuthorityRequest {};
            let seen = client.call(client.authority().rotate_authority(request)).await?;
            context.output.show(&view(&seen)?)?;
            context.output.note(
                "Nodes that are connected move by themselves (atelier ca status). Give the new authority to clients \
                 elsewhere that have a file of it (atelier ca show), then end the one before: atelier ca retire",
            );
            Ok(())
        }
        Command::Retire { force } => {
            let request = RetireAuthorityRequest { force };
            let seen = client.call(client.authority().retire_authority(request)).await?;
            context.output.show(&view(&seen)?)
        }
    }
}

fn read(authority: &str) -> Result<Certificate, Error> {
    Certificate::of_pem(authority).map_err(|problem| {
        Error::new(Kind::Failed, format!("the daemon's authority cannot be read: {problem}"))
    })
}

fn view(seen: &Authority) -> Result<Value, Error> {
    let own = read(&seen.certificate)?;
    let previous = (!seen.previous.is_empty()).then(|| read(&seen.previous)).transpose()?;
    Ok(json!({
        "fingerprint_sha256": own.fingerprint,
        "not_after": own.not_after.to_string(),
        "previous": previous.map(|before| json!({
            "fingerprint_sha256": before.fingerprint,
            "not_after": before.not_after.to_string(),
            "rotated_at": time(seen.rotated_at_ms),
            "nodes": seen.nodes,
            "jobs": seen.jobs,
        })),
    }))
}
