//! `atelier login` and `atelier logout`

use std::io::IsTerminal as _;
use std::process::{Command, Stdio};

use atelier_core::sign_in::passing::Endpoint;
use atelier_core::time::Timestamp;
use atelier_proto::identity::v1::sign_in_service_client::SignInServiceClient;
use atelier_proto::identity::v1::{
    AskProviderRequest, GetSignInRequest, GetSignInResponse, ProviderEndpoint, RevokeTokenRequest,
    SignInRequest, SignInResponse,
};
use futures::FutureExt as _;
use serde_json::json;
use tonic::Code;
use tonic::transport::Channel;

use super::{Context, Error, Kind};
use crate::client::keyring::NotKept;
use crate::client::{self, Client, Forgotten, Place, Session, Sessions, Target, Wish};
use crate::oidc::Passed;
use crate::oidc::flows::{App, Failed, Granted, Through};

/// Sign in to a workspace where your organisation signs you in
///
/// A browser opens at the workspace's OpenID Connect provider; where there is none, or over ssh, a code is shown that
/// is to be entered in one elsewhere. What the provider says of you (groups and all) decides what you may do. From then
/// on commands for that server need no token; the session is renewed by itself as long as the provider lets it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  atelier login --server https://gate.example.com:7420
  atelier login --device                               with ATELIER_SERVER set; the code goes into any browser")]
pub(super) struct Arguments {
    /// Show a code for a browser elsewhere
    #[arg(long, conflicts_with = "browser")]
    device: bool,
    /// Open a browser here
    #[arg(long)]
    browser: bool,
}

/// Sign out: forget the session with a workspace, here and at the provider
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  atelier logout --server https://gate.example.com:7420")]
pub(super) struct LogoutArguments {}

/// A session that ends sooner is renewed before it is used.
const MARGIN_MS: i64 = 60_000;

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        let cause = failed.to_string();
        match failed {
            Failed::Provider(_) => Self::new(Kind::Unreachable, cause)
                .help("check that this machine reaches the provider, and what `atelier serve` was told of it"),
            Failed::NoDevices | Failed::Listen(_) => Self::new(Kind::Refused, cause),
            Failed::Refused(_) => Self::new(Kind::NotAllowed, cause),
            Failed::TooLate | Failed::SignInAgain => {
                Self::new(Kind::NotAllowed, cause).help("run `atelier login`")
            }
        }
    }
}

fn sessions(context: &Context) -> Result<&Sessions, Error> {
    context.wanted.sessions.as_ref().ok_or_else(|| {
        Error::usage("there is no folder for sessions").help("set XDG_CONFIG_HOME or HOME")
    })
}

/// A connection without a token.
async fn stranger(
    context: &Context,
) -> Result<(String, SignInServiceClient<Channel>, Client), Error> {
    let target = context.wanted.stranger()?;
    let server = target.server.clone();
    let client = Client::connect(target).await?;
    Ok((server, SignInServiceClient::new(client.channel()), client))
}

pub(super) async fn login(arguments: Arguments, context: &Context) -> Result<(), Error> {
    let sessions = sessions(context)?;
    if !context.wanted.is_elsewhere()? {
        return Err(Error::usage("which workspace?").help(
            "name it: atelier login --server https://HOST:PORT; the one of this machine (`atelier local`) needs none",
        ));
    }
    let (server, mut service, client) = stranger(context).await?;
    let place = match client.call(service.get_sign_in(GetSignInRequest {})).await {
        Err(client::Error::Rpc(status)) if status.code() == Code::NotFound => {
            return Err(Error::new(Kind::NotFound, client::reason(&status)).help(
                "an admin makes one (`atelier token create`), or names a provider (`atelier serve --oidc-issuer`)",
            ));
        }
        place => place?,
    };
    let through = place.asks_for_clients.then(|| through(&client));
    let app = App::new(&place.issuer, &place.client_id, &place.scopes, through);
    let app = app.await.map_err(Failed::from)?;
    let granted = if arguments.device || (!arguments.browser && !has_browser()) {
        app.device(|code| {
            context.output.tell(&format!(
                "Open {} in a browser, and enter the code {}",
                code.page, code.code
            ));
            if let Some(page) = &code.page_with_code {
                context.output.note(&format!("or open {page}"));
            }
        })
        .await?
    } else {
        app.browser(|page| {
            let opens = open(page);
            let hint = if opens { "A browser should open; if it does not, go to" } else { "Go to" };
            context.output.tell(&format!("{hint} {page}"));
        })
        .await?
    };
    let signed_in = sign_in(&client, &mut service, &granted).await?;
    let told = json!({
        "server": server,
        "workspace": place.workspace,
        "user": signed_in.user,
        "role": signed_in.role,
        "expires_at": Timestamp::from_millis(signed_in.expires_at_ms).to_string(),
    });
    let session = session(signed_in, &place, granted.refresh_token);
    tell(context, sessions.lock()?.keep(&server, session, Wish::Keyring)?);
    context.output.show(&told)
}

/// Has the daemon ask the provider.
fn through(client: &Client) -> Through {
    let client = client.clone();
    Box::new(move |endpoint, parameters| {
        let client = client.clone();
        async move {
            let endpoint = match endpoint {
                Endpoint::Token => ProviderEndpoint::Token,
                Endpoint::DeviceAuthorization => ProviderEndpoint::DeviceAuthorization,
                Endpoint::Revocation => ProviderEndpoint::Revocation,
            };
            let request = AskProviderRequest { endpoint: endpoint.into(), parameters };
            let mut service = SignInServiceClient::new(client.channel());
            let answer = client.call(service.ask_provider(request)).await;
            let answer = answer.map_err(|error| error.to_string())?;
            let body = serde_json::from_slice(&answer.body);
            let body = body.map_err(|_| "the daemon passes on something else".to_owned())?;
            Ok(Passed { succeeded: answer.succeeded, body })
        }
        .boxed()
    })
}

/// Where a token is that was to be in the keyring and is not.
fn tell(context: &Context, (_, not_kept): (Place, Option<NotKept>)) {
    for told in not_kept.iter().flat_map(|not_kept| not_kept.told("session")) {
        context.output.warn(&told);
    }
}

async fn sign_in(
    client: &Client,
    service: &mut SignInServiceClient<Channel>,
    granted: &Granted,
) -> Result<SignInResponse, Error> {
    let request = SignInRequest { id_token: granted.id_token.clone() };
    Ok(client.call(service.sign_in(request)).await?)
}

fn session(
    signed_in: SignInResponse,
    place: &GetSignInResponse,
    refresh_token: Option<String>,
) -> Session {
    let provider = (place.issuer.clone(), place.client_id.clone(), place.scopes.clone());
    let token = (signed_in.token, signed_in.token_id, signed_in.expires_at_ms);
    Session::new(token, signed_in.user, provider, refresh_token)
        .asking_daemon(place.asks_for_clients)
}

/// Renews the session that the next connection would use, if it ends about now and can be renewed.
pub(super) async fn renew(context: &Context) -> Result<(), Error> {
    let Some(server) = context.wanted.session_server()? else { return Ok(()) };
    let sessions = sessions(context)?;
    let ends = |session: &Session| session.expires_at_ms - now_ms() < MARGIN_MS;
    // Its token is not needed for this: that may lie in the keyring.
    if !sessions.listed(&server)?.is_some_and(|session| ends(&session)) {
        return Ok(());
    }
    let locked = sessions.lock()?;
    // Somebody else may have renewed it meanwhile.
    let Some(old) = locked.at(&server)?.filter(ends) else { return Ok(()) };
    let Some(refresh_token) = old.refresh_token() else { return Ok(()) };
    // First: a refresh token may be good for one use, and the daemon may be away.
    let (_, mut service, client) = stranger(context).await?;
    // An admin may have changed how the provider is asked since.
    let place = client.call(service.get_sign_in(GetSignInRequest {})).await?;
    if (&place.issuer, &place.client_id) != (&old.issuer, &old.client_id) {
        return Err(Failed::SignInAgain.into());
    }
    let through = place.asks_for_clients.then(|| through(&client));
    let app = App::new(&place.issuer, &place.client_id, &place.scopes, through);
    let app = app.await.map_err(Failed::from)?;
    let granted = app.refresh(refresh_token).await?;
    // The old refresh token may be used up: the new one is kept, whatever the daemon says.
    let renewable = old.with_refresh_token(granted.refresh_token.clone());
    tell(context, locked.keep(&server, renewable, Wish::AsBefore)?);
    let signed_in = sign_in(&client, &mut service, &granted).await?;
    let session = session(signed_in, &place, granted.refresh_token);
    tell(context, locked.keep(&server, session, Wish::AsBefore)?);
    Ok(())
}

fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_millis()).unwrap_or(i64::MAX))
}

pub(super) async fn logout(_: LogoutArguments, context: &Context) -> Result<(), Error> {
    let sessions = sessions(context)?;
    let target = context.wanted.stranger()?;
    let Some(Forgotten { session, left }) = sessions.lock()?.forget(&target.server)? else {
        return Err(Error::new(
            Kind::NotFound,
            format!("nobody is signed in at {}", target.server),
        ));
    };
    let gone = || "the keyring has its token no more".to_owned();
    let problem = left.map(|problem| problem.to_string());
    if let Some(problem) = problem.or_else(|| (!session.has_token()).then(gone)) {
        let told = format!(
            "{problem}: the session is forgotten here, but its token may count until {}, unless an admin ends it before \
             (`atelier token revoke {}`)",
            Timestamp::from_millis(session.expires_at_ms),
            session.token_id
        );
        context.output.warn(&told);
    }
    if !session.has_token() {
        return Ok(());
    }
    // Here it is forgotten in any case; whoever has a copy of the files is to have nothing.
    let own = Target { token: session.token(), ..target.clone() };
    let revoked = async {
        let client = Client::connect(own).await?;
        let request = RevokeTokenRequest { id: session.token_id.clone() };
        client.call(client.tokens().revoke_token(request)).await
    };
    if let Err(failed) = revoked.await {
        context
            .output
            .warn(&format!("the session is forgotten here, but not at the daemon: {failed}"));
    }
    if let Some(token) = session.refresh_token() {
        let revoked = async {
            let (issuer, client_id) = (&session.issuer, &session.client_id);
            let through = match session.asks_daemon {
                true => Some(through(&stranger(context).await?.2)),
                false => None,
            };
            let app = App::new(issuer, client_id, &session.scopes, through).await;
            let revoked = app.map_err(Failed::from)?.revoke(token).await;
            revoked.map_err(Error::from)
        };
        if let Err(failed) = revoked.await {
            let failed: Error = failed;
            let cause = failed.cause;
            let told = format!("the session is forgotten here, but not at the provider: {cause}");
            context.output.warn(&told);
        }
    }
    context.output.note(&format!("{} is signed out of {}", session.user, target.server));
    Ok(())
}

/// Whether somebody sits before this machine and has a browser.
pub(super) fn has_browser() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_remote = set("SSH_CONNECTION") || set("SSH_TTY");
    let has_screen = cfg!(target_os = "macos") || set("DISPLAY") || set("WAYLAND_DISPLAY");
    std::io::stdin().is_terminal() && has_screen && !is_remote
}

/// Has the desktop open a page.
pub(super) fn open(page: &str) -> bool {
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    use std::os::unix::process::CommandExt as _;
    // In a group of its own: the terminal's Ctrl-C is not for the browser.
    let opened = Command::new(program)
        .arg(page)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match opened {
        Ok(mut child) => {
            std::thread::spawn(move || child.wait());
            true
        }
        Err(_) => false,
    }
}
