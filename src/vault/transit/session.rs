//! Who the daemon is at the server: the token that it has, renewed as long as that may be, then another one.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::request::{self, Problem};
use super::{Error, Login, Transit};

/// How long a token that does not end is left alone.
const IDLE: Duration = Duration::from_secs(3600);
/// Between two tries to renew one, or to get one.
const AGAIN: Duration = Duration::from_secs(15);
/// The same for one that may not say how long it lives, and for one that is over, which looks the same.
const UNSURE: Duration = Duration::from_secs(60);
/// For so long a role's token that is one speaks for all that the role may do.
const FRESH: Duration = Duration::from_secs(3600);
/// At least so long between two renewals, however short the token's life is.
const SHORTEST: Duration = Duration::from_millis(500);

/// A token, and how long it is one.
#[derive(Clone)]
pub(super) struct Session {
    token: Zeroizing<String>,
    /// When it was got.
    since: Instant,
    /// `None`: it does not end, or the server does not say.
    lease: Option<Lease>,
    /// Whether the server says.
    is_sure: bool,
}

impl Session {
    /// Whether nothing but the server's taking it back would have it refused.
    fn is_new(&self) -> bool {
        let is_on = self.lease.is_none_or(|lease| lease.left() * 2 > lease.lasts);
        is_on && self.since.elapsed() < UNSURE
    }
}

/// Who the daemon is at the server now.
#[derive(Default)]
pub(super) struct Held {
    /// Nobody waits for the server while this is locked.
    session: Mutex<Option<Session>>,
    /// Locked by who logs in; how the last login went.
    login: tokio::sync::Mutex<Option<LastLogin>>,
}

struct LastLogin {
    began: Instant,
    ended: Instant,
    outcome: Result<(), Problem>,
}

impl LastLogin {
    /// Whether it went for somebody who asked then as one of their own would have gone. What it logged in with may have
    /// been replaced since it began; a server that is away is away.
    fn tells(&self, asked: Instant) -> bool {
        let is_away = self.outcome.as_ref().is_err_and(Problem::passes);
        self.began >= asked || (is_away && self.ended >= asked)
    }
}

impl Held {
    fn session(&self) -> MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token that there is, if it is `fit`.
    fn token(&self, fit: impl Fn(&Session) -> bool) -> Option<Zeroizing<String>> {
        self.session().as_ref().filter(|session| fit(session)).map(|session| session.token.clone())
    }
}

#[derive(Clone, Copy)]
struct Lease {
    ends: Instant,
    lasts: Duration,
    renewable: bool,
}

impl Lease {
    /// `None`: it does not end.
    fn of(seconds: u64, renewable: bool) -> Option<Self> {
        let lasts = Duration::from_secs(seconds);
        let ends = Instant::now().checked_add(lasts).filter(|_| seconds > 0)?;
        Some(Self { ends, lasts, renewable })
    }

    fn left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }
}

/// What a token says of itself.
#[derive(Deserialize)]
struct Lookup {
    data: LookupData,
}

#[derive(Deserialize)]
struct LookupData {
    #[serde(default)]
    ttl: u64,
    #[serde(default)]
    renewable: bool,
}

/// What a login or a renewal gives.
#[derive(Deserialize)]
struct Granted {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    client_token: String,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

#[derive(Serialize)]
struct Role<'a> {
    role_id: &'a str,
    secret_id: &'a str,
}

impl Transit {
    /// Keeps the daemon logged in, and tells when it is not. Never returns.
    pub(in crate::vault) async fn tend(&self) {
        let mut is_told = false;
        loop {
            let pause = match self.tended().await {
                Ok(pause) => {
                    if is_told {
                        tracing::info!(
                            address = self.settings().address,
                            "logged in at transit again"
                        );
                    }
                    is_told = false;
                    pause
                }
                Err(problem) => {
                    let error = Error::of(self.settings(), None, problem);
                    if !is_told {
                        tracing::warn!(%error, "secrets cannot be set or opened until that is well");
                    }
                    is_told = true;
                    AGAIN
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // Who asked has found another token in the place of the last, which may end sooner.
                () = self.0.changed.notified() => {}
            }
        }
    }

    /// Logs in, or has the token live longer. How long that will do. Who asks meanwhile has the token that there is.
    async fn tended(&self) -> Result<Duration, Problem> {
        let was = self.0.held.session().clone();
        let renewed = match &was {
            None => None,
            Some(Session { lease: None, is_sure: true, .. }) => return Ok(IDLE),
            Some(session) => self.renewed(session).await?,
        };
        match (renewed, &was) {
            (Some(lease), Some(was)) => {
                let mut held = self.0.held.session();
                // It may be another by now.
                if let Some(same) = held.as_mut().filter(|held| held.token == was.token) {
                    same.lease = Some(lease);
                }
            }
            _ => {
                let is_other =
                    |now: &Session| was.as_ref().is_none_or(|was| now.token != was.token);
                self.log_in(is_other).await?;
            }
        }
        let now = self.0.held.session().clone();
        let lease = now.as_ref().and_then(|session| session.lease);
        if let (None, Some(lease), Login::Token(source), true) =
            (renewed, lease, &self.settings().login, was.is_some())
        {
            let seconds = lease.left().as_secs();
            tracing::warn!(%source, seconds, "the token for transit ends then and cannot be renewed for longer; put another in its place");
        }
        let otherwise = if now.is_some_and(|session| session.is_sure) { IDLE } else { UNSURE };
        Ok(lease.map_or(otherwise, |lease| (lease.left() * 2 / 3).clamp(SHORTEST, IDLE)))
    }

    /// `None`: it does not live much longer, however often it is renewed.
    async fn renewed(&self, session: &Session) -> Result<Option<Lease>, Problem> {
        let Some(was) = session.lease.filter(|lease| lease.renewable) else { return Ok(None) };
        let renewal = self.send("auth/token/renew-self", Some(&session.token), Some(b"{}")).await;
        let answer = match renewal {
            Ok(answer) => answer,
            Err(problem) if problem.passes() => return Err(problem),
            // Over, or taken back.
            Err(_) => return Ok(None),
        };
        let Granted { auth } = request::read(&answer)?;
        drop(Zeroizing::new(auth.client_token));
        let lease = Lease::of(auth.lease_duration, auth.renewable);
        Ok(lease.filter(|lease| lease.lasts * 2 > was.lasts))
    }

    /// The token to ask with.
    pub(super) async fn token(&self) -> Result<Zeroizing<String>, Problem> {
        let is_on = |session: &Session| session.lease.is_none_or(|lease| !lease.left().is_zero());
        if let Some(token) = self.0.held.token(is_on) {
            return Ok(token);
        }
        let token = self.log_in(is_on).await?;
        self.0.changed.notify_one();
        Ok(token)
    }

    /// Another token than this, which the server does not take; `None`: there is no other.
    pub(super) async fn other(&self, refused: &str) -> Result<Option<Zeroizing<String>>, Problem> {
        let is_other = |session: &Session| session.token.as_str() != refused;
        if let Some(token) = self.0.held.token(is_other) {
            return Ok(Some(token));
        }
        if self.is_for_want_of_policy(refused).await? {
            return Ok(None);
        }
        let token = self.log_in(is_other).await?;
        let is_other = token.as_str() != refused;
        if is_other {
            self.0.changed.notify_one();
        }
        Ok(is_other.then_some(token))
    }

    /// Whether a role's token was refused since the role may not do what was asked, and another would be, too. Each login
    /// is a lease at the server, and one of those that the secret id is good for.
    async fn is_for_want_of_policy(&self, refused: &str) -> Result<bool, Problem> {
        if !matches!(self.settings().login, Login::AppRole { .. }) {
            return Ok(false);
        }
        let held = self.0.held.session().clone();
        let Some(held) = held.filter(|held| held.token.as_str() == refused) else {
            return Ok(false);
        };
        Ok(match self.looked_up(refused).await? {
            (_, true) => held.since.elapsed() < FRESH,
            // It may not say, or it is over.
            (_, false) => held.is_new(),
        })
    }

    /// Logs in, once for all who wait for that: each that tried by itself where the server hangs would have the next
    /// wait so much longer. The token is one that somebody else has got meanwhile, if it is `fit`.
    async fn log_in(&self, fit: impl Fn(&Session) -> bool) -> Result<Zeroizing<String>, Problem> {
        let asked = Instant::now();
        let mut last = self.0.held.login.lock().await;
        if let Some(token) = self.0.held.token(fit) {
            return Ok(token);
        }
        if let Some(last) = last.as_ref().filter(|last| last.tells(asked)) {
            last.outcome.clone()?;
            if let Some(token) = self.0.held.token(|_| true) {
                return Ok(token);
            }
        }
        let began = Instant::now();
        let session = self.login().await;
        let outcome = session.as_ref().map(drop).map_err(Problem::clone);
        *last = Some(LastLogin { began, ended: Instant::now(), outcome });
        let token = self.0.held.session().insert(session?).token.clone();
        Ok(token)
    }

    async fn login(&self) -> Result<Session, Problem> {
        let login = &self.settings().login;
        let source = login.source();
        let read = source.read(&self.0.data_dir);
        let read = read.map_err(|problem| Problem::Login {
            place: source.to_string(),
            problem: problem.to_string(),
        })?;
        let text = str::from_utf8(read.trim_ascii()).ok();
        let text =
            text.filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()));
        let text = text.ok_or_else(|| Problem::NoToken(source.to_string()))?;
        match login {
            Login::Token(_) => {
                let token = Zeroizing::new(text.to_owned());
                let (lease, is_sure) = self.looked_up(&token).await?;
                Ok(Session { token, since: Instant::now(), lease, is_sure })
            }
            Login::AppRole { mount, role_id, .. } => {
                let role = Role { role_id, secret_id: text };
                let path = format!("auth/{mount}/login");
                let role = Zeroizing::new(request::body(&role)?);
                let answer = match self.send(&path, None, Some(&role)).await {
                    // As whom it cannot be is answered like a request that cannot be.
                    Err(Problem::Refused { words, .. } | Problem::NoKey(words)) => {
                        return Err(Problem::Denied(words));
                    }
                    answer => answer?,
                };
                let Granted { auth } = request::read(&answer)?;
                let lease = Lease::of(auth.lease_duration, auth.renewable);
                let token = Zeroizing::new(auth.client_token);
                Ok(Session { token, since: Instant::now(), lease, is_sure: true })
            }
        }
    }

    /// How long a token lives, and whether that is sure: one that may not look at itself may still be one.
    async fn looked_up(&self, token: &str) -> Result<(Option<Lease>, bool), Problem> {
        match self.send("auth/token/lookup-self", Some(token), None).await {
            Ok(answer) => {
                let Lookup { data } = request::read(&answer)?;
                Ok((Lease::of(data.ttl, data.renewable), true))
            }
            Err(Problem::Denied(_)) => Ok((None, false)),
            Err(problem) => Err(problem),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_tells_others_what_one_of_their_own_would() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let away = || Err(Problem::Unreachable(String::new()));
        let denied = || Err(Problem::Denied(String::new()));
        for (asked, outcome, tells) in [
            // What it logs in with may have been replaced since it began.
            (5, Ok(()), false),
            (5, denied(), false),
            (5, away(), true),
            (2, Ok(()), true),
            (2, denied(), true),
            // Long ago.
            (9, away(), false),
        ] {
            let last = LastLogin { began: at(3), ended: at(8), outcome };
            assert_eq!(last.tells(at(asked)), tells, "{asked} {:?}", last.outcome);
        }
    }
}
