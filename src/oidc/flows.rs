//! How somebody at a terminal signs in at a provider: in a browser here (RFC 8252, with PKCE), or with a code in a
//! browser elsewhere (RFC 8628).

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use atelier_core::sign_in::passing::{Endpoint, Parameters};
use axum::extract::{Query, State};
use axum::response::Html;
use futures::future::{BoxFuture, FutureExt as _};
use oauth2::basic::{
    BasicErrorResponse, BasicErrorResponseType, BasicRevocationErrorResponse,
    BasicTokenIntrospectionResponse, BasicTokenType,
};
use oauth2::{
    AuthUrl, AuthorizationCode, ClientId, CsrfToken, DeviceAuthorizationUrl,
    DeviceCodeErrorResponseType, EndpointMaybeSet, EndpointNotSet, EndpointSet, ErrorResponse,
    ExtraTokenFields, HttpRequest, HttpResponse, PkceCodeChallenge, RedirectUrl, RefreshToken,
    RequestTokenError, RevocationUrl, Scope, StandardDeviceAuthorizationResponse,
    StandardRevocableToken, StandardTokenResponse, TokenResponse as _, TokenUrl,
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, oneshot};

use super::{Asker, Error, Metadata, Passed, bounded};

/// How long somebody has at most for signing in.
const PATIENCE: Duration = Duration::from_secs(600);

/// Why nobody has signed in.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The provider cannot be asked.
    #[error(transparent)]
    Provider(#[from] Error),
    /// It does not know the flow.
    #[error(
        "the provider gives no codes for devices; sign in with a browser: atelier login --browser"
    )]
    NoDevices,
    /// No port of this machine could be listened on.
    #[error("cannot wait for the browser: {0}")]
    Listen(std::io::Error),
    /// The provider, or who was asked there, said no.
    #[error("the provider refused: {0}")]
    Refused(String),
    /// Nobody signed in, in time.
    #[error("nobody signed in within {} minutes", PATIENCE.as_secs() / 60)]
    TooLate,
    /// The refresh token is used up, withdrawn or too old.
    #[error("the provider wants you to sign in again")]
    SignInAgain,
}

/// What a provider gives to somebody who has signed in.
#[derive(Clone)]
pub struct Granted {
    /// Who they are, for the daemon.
    pub id_token: String,
    /// With which the next one is had without asking.
    pub refresh_token: Option<String>,
}

impl fmt::Debug for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Granted(…)")
    }
}

/// A code that is to be entered in a browser elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceCode {
    /// Where.
    pub page: String,
    /// What.
    pub code: String,
    /// A page that has the code already.
    pub page_with_code: Option<String>,
}

/// What answers tell besides what OAuth 2 has.
#[derive(Clone, Serialize, Deserialize)]
struct WithId {
    id_token: Option<String>,
}

impl fmt::Debug for WithId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WithId(…)")
    }
}

impl ExtraTokenFields for WithId {}

type Answer = StandardTokenResponse<WithId, BasicTokenType>;
type Client = oauth2::Client<
    BasicErrorResponse,
    Answer,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointSet,
    EndpointMaybeSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointSet,
>;

/// Asks a provider in place of a client that has no secret; says why if it cannot.
pub type Through =
    Box<dyn Fn(Endpoint, Parameters) -> BoxFuture<'static, Result<Passed, String>> + Send + Sync>;

/// A program in which somebody signs in.
pub struct App {
    asker: Asker,
    issuer: String,
    client: Client,
    scopes: Vec<Scope>,
    /// Who asks for it, by which addresses of the provider, if it does not ask itself.
    through: Option<(Through, Vec<(String, Endpoint)>)>,
    /// Refresh tokens are asked for in Google's way.
    asks_for_offline: bool,
}

/// The provider did not answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Lost(String);

impl App {
    /// Asks the provider where to go. What is asked for later is asked `through` somebody else, if the provider wants
    /// to see a secret.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn new(
        issuer: &str,
        client_id: &str,
        scopes: &[String],
        through: Option<Through>,
    ) -> Result<Self, Error> {
        let asker = Asker::new(issuer)?;
        let metadata = asker.metadata().await?;
        let optional = [
            (metadata.device_authorization_endpoint.clone(), Endpoint::DeviceAuthorization),
            (metadata.revocation_endpoint.clone(), Endpoint::Revocation),
        ];
        let optional = optional.into_iter().filter_map(|(address, of)| Some((address?, of)));
        let token = (metadata.token_endpoint.clone(), Endpoint::Token);
        let endpoints = optional.chain([token]).collect();
        let asks_for_offline = !metadata.knows_offline_access();
        let client = client(client_id, metadata)
            .map_err(|error| asker.unavailable("read the metadata", error.to_string()))?;
        // One that does not know the scope refuses it.
        let scopes =
            scopes.iter().filter(|scope| !(asks_for_offline && *scope == "offline_access"));
        let scopes = scopes.cloned().map(Scope::new).collect();
        let through = through.map(|through| (through, endpoints));
        Ok(Self { asker, issuer: issuer.to_owned(), client, scopes, through, asks_for_offline })
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, Lost> {
        if let Some((through, endpoints)) = &self.through {
            let address = request.uri().to_string();
            let same =
                |known: &str| oauth2::url::Url::parse(known).is_ok_and(|k| k.as_str() == address);
            let Some((_, endpoint)) = endpoints.iter().find(|(known, _)| same(known)) else {
                return Err(Lost(format!("{address} is not asked for clients")));
            };
            let form = oauth2::url::form_urlencoded::parse(request.body()).into_owned();
            // Who the client is says whoever asks for it.
            let parameters = form.filter(|(name, _)| name != "client_id").collect();
            let passed = through(*endpoint, parameters).await.map_err(Lost)?;
            let mut response = HttpResponse::new(passed.body.to_string().into_bytes());
            if !passed.succeeded {
                *response.status_mut() = http::StatusCode::BAD_REQUEST;
            }
            return Ok(response);
        }
        let lost = |error: reqwest::Error| Lost(crate::client::innermost(&error));
        let request = reqwest::Request::try_from(request).map_err(lost)?;
        let answer = self.asker.http.execute(request).await.map_err(lost)?;
        let mut response = HttpResponse::new(Vec::new());
        *response.status_mut() = answer.status();
        *response.headers_mut() = answer.headers().clone();
        *response.body_mut() = bounded(answer).await.map_err(Lost)?;
        Ok(response)
    }

    fn sender<'a>(&'a self) -> impl Fn(HttpRequest) -> BoxFuture<'a, Result<HttpResponse, Lost>> {
        move |request| self.send(request).boxed()
    }

    /// In a browser on this machine, that `open` is given the page for.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn browser(&self, open: impl FnOnce(&str)) -> Result<Granted, Failed> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(Failed::Listen)?;
        let port = listener.local_addr().map_err(Failed::Listen)?.port();
        let redirect = RedirectUrl::new(format!("http://127.0.0.1:{port}/callback"))
            .map_err(|error| Failed::Refused(error.to_string()))?;
        let client = self.client.clone().set_redirect_uri(redirect);
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let nonce = CsrfToken::new_random();
        let mut asking = client.authorize_url(CsrfToken::new_random);
        if self.asks_for_offline {
            // What Google has in place of the scope. Others ignore what they do not know (RFC 6749, section 3.1).
            asking = asking.add_extra_param("access_type", "offline");
        }
        let (page, state) = asking
            .add_scopes(self.scopes.iter().cloned())
            .add_extra_param("nonce", nonce.secret())
            // Without it a provider may leave offline_access out (section 11).
            .add_extra_param("prompt", "consent")
            .set_pkce_challenge(challenge)
            .url();

        let (tell, told) = oneshot::channel();
        let waiting = Arc::new(Waiting {
            state: state.into_secret(),
            issuer: self.issuer.clone(),
            tell: Mutex::new(Some(tell)),
        });
        let router = axum::Router::new()
            .route("/callback", axum::routing::get(called_back))
            .with_state(waiting);
        // It ends with the last answer, or when nobody waits any more.
        let (done, ended) = oneshot::channel::<()>();
        let serving = tokio::spawn(async move {
            let until = async { drop(ended.await) };
            axum::serve(listener, router).with_graceful_shutdown(until).await
        });
        open(page.as_str());
        let code = tokio::time::timeout(PATIENCE, told).await;
        drop(done);
        // The page that says how it went is still on its way.
        let _ = tokio::time::timeout(Duration::from_secs(2), serving).await;
        let code = code.map_err(|_| Failed::TooLate)?.map_err(|_| Failed::TooLate)??;

        let exchange =
            client.exchange_code(AuthorizationCode::new(code)).set_pkce_verifier(verifier);
        let answer =
            exchange.request_async(&self.sender()).await.map_err(|error| self.failed(error))?;
        let granted = granted(&answer)?;
        match nonce_of(&granted.id_token) {
            Some(found) if found == *nonce.secret() => Ok(granted),
            _ => Err(Failed::Refused("its token was made for another sign-in".to_owned())),
        }
    }

    /// With a code, which `show` is given, in a browser anywhere.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn device(&self, show: impl FnOnce(&DeviceCode)) -> Result<Granted, Failed> {
        let sender = self.sender();
        let request = self.client.exchange_device_code().map_err(|_| Failed::NoDevices)?;
        let codes: StandardDeviceAuthorizationResponse = request
            .add_scopes(self.scopes.iter().cloned())
            .request_async(&sender)
            .await
            .map_err(|error| self.failed(error))?;
        show(&DeviceCode {
            page: codes.verification_uri().to_string(),
            code: codes.user_code().secret().clone(),
            page_with_code: codes.verification_uri_complete().map(|page| page.secret().clone()),
        });
        let answer = self
            .client
            .exchange_device_access_token(&codes)
            .request_async(&sender, tokio::time::sleep, Some(PATIENCE))
            .await;
        let answer = answer.map_err(|error| match &error {
            RequestTokenError::ServerResponse(said)
                if *said.error() == DeviceCodeErrorResponseType::ExpiredToken =>
            {
                Failed::TooLate
            }
            _ => self.failed(error),
        })?;
        granted(&answer)
    }

    /// Without asking anybody, for a refresh token of before. The provider may give another refresh token with it,
    /// and take the old one back.
    ///
    /// # Errors
    /// [`Failed::SignInAgain`] if the provider wants to ask.
    pub async fn refresh(&self, token: &str) -> Result<Granted, Failed> {
        let old = RefreshToken::new(token.to_owned());
        let request =
            self.client.exchange_refresh_token(&old).add_scopes(self.scopes.iter().cloned());
        let answer = request.request_async(&self.sender()).await.map_err(|error| match &error {
            RequestTokenError::ServerResponse(said)
                if *said.error() == BasicErrorResponseType::InvalidGrant =>
            {
                Failed::SignInAgain
            }
            _ => self.failed(error),
        })?;
        // A provider need not tell again who it was (section 12.2).
        let mut granted = granted(&answer).map_err(|_| Failed::SignInAgain)?;
        granted.refresh_token.get_or_insert_with(|| token.to_owned());
        Ok(granted)
    }

    /// Has the provider forget a refresh token, if it can.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn revoke(&self, token: &str) -> Result<(), Failed> {
        let token = StandardRevocableToken::RefreshToken(RefreshToken::new(token.to_owned()));
        let Ok(request) = self.client.revoke_token(token) else { return Ok(()) };
        request.request_async(&self.sender()).await.map_err(|error| self.failed(error))
    }

    fn failed<T: ErrorResponse>(&self, error: RequestTokenError<Lost, T>) -> Failed {
        match error {
            RequestTokenError::ServerResponse(said) => Failed::Refused(said.to_string()),
            RequestTokenError::Request(lost) => {
                self.asker.unavailable("get a token", lost.to_string()).into()
            }
            // What cannot be read may be a token.
            RequestTokenError::Parse(error, _) => self
                .asker
                .unavailable("get a token", format!("its answer cannot be read: {error}"))
                .into(),
            RequestTokenError::Other(why) => Failed::Refused(why),
        }
    }
}

fn client(id: &str, metadata: Metadata) -> Result<Client, oauth2::url::ParseError> {
    let device =
        metadata.device_authorization_endpoint.map(DeviceAuthorizationUrl::new).transpose()?;
    let revocation = metadata.revocation_endpoint.map(RevocationUrl::new).transpose()?;
    let client = oauth2::Client::new(ClientId::new(id.to_owned()))
        // A client without a secret names itself in the form.
        .set_auth_type(oauth2::AuthType::RequestBody)
        .set_auth_uri(AuthUrl::new(metadata.authorization_endpoint)?)
        .set_token_uri(TokenUrl::new(metadata.token_endpoint)?)
        .set_device_authorization_url_option(device)
        .set_revocation_url_option(revocation);
    Ok(client)
}

fn granted(answer: &Answer) -> Result<Granted, Failed> {
    let missing =
        || Failed::Refused("it gave no ID token; the scope openid may not be allowed".to_owned());
    let id_token = answer.extra_fields().id_token.clone().ok_or_else(missing)?;
    let refresh_token = answer.refresh_token().map(|token| token.secret().clone());
    Ok(Granted { id_token, refresh_token })
}

/// The token came straight from the provider, so that its signature is the daemon's to check.
fn nonce_of(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        nonce: String,
    }
    jsonwebtoken::dangerous::insecure_decode_claims::<Claims>(token).ok().map(|claims| claims.nonce)
}

/// Who waits for a browser to come back from the provider.
struct Waiting {
    state: String,
    issuer: String,
    tell: Mutex<Option<oneshot::Sender<Result<String, Failed>>>>,
}

/// What the provider has a browser say (RFC 6749, sections 4.1.2; RFC 9207).
#[derive(Deserialize)]
struct Called {
    state: Option<String>,
    code: Option<String>,
    iss: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

async fn called_back(
    State(waiting): State<Arc<Waiting>>,
    Query(called): Query<Called>,
) -> Html<&'static str> {
    // Some page that found the port; the sign-in goes on.
    if called.state.as_deref() != Some(&waiting.state)
        || called.iss.is_some_and(|iss| iss != waiting.issuer)
    {
        return Html("<p>This is not the sign-in that was begun here.</p>");
    }
    let Some(tell) = waiting.tell.lock().await.take() else {
        return Html("<p>This sign-in is over.</p>");
    };
    let (result, page) = match (called.code, called.error) {
        (Some(code), None) => (Ok(code), "<p>You are signed in. You can close this window.</p>"),
        (_, error) => {
            let why =
                called.error_description.or(error).unwrap_or_else(|| "it gave no code".to_owned());
            let why = why.chars().filter(|c| !c.is_control()).take(200).collect();
            (Err(Failed::Refused(why)), "<p>You are not signed in; the terminal says why.</p>")
        }
    };
    let _ = tell.send(result);
    Html(page)
}
