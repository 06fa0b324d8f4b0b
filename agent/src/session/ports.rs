//! The daemon's two ports, as this node finds them: jobs are kept from the one and need the other.

use std::time::Duration;

use atelier_core::node::NOT_REACHED;

use super::{Error, Session, chain};
use crate::reach::{self, Daemon, EARLIER_JOBS, KEPT, NOT_CLOSED, NotFound, Urls};
use crate::spool::Spools;
use crate::trust::{self, Trust};
use crate::{attempt, record};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long until it is looked again whether what is amiss has been mended.
pub(super) const AGAIN: Duration = Duration::from_secs(5);

/// What a second look at the daemon's ports has found.
pub(super) struct Look {
    reached: Result<(), Error>,
    daemon: Result<Daemon, NotFound>,
}

impl Look {
    pub(super) async fn at(urls: Urls) -> Self {
        let (reached, daemon) = tokio::join!(answers(&urls.jobs, &urls.trust), Daemon::find(&urls));
        Self { reached, daemon }
    }
}

impl Session {
    /// Sees whether jobs will reach the daemon.
    ///
    /// # Errors
    /// They will not. A node with attempts of which the daemon has to hear joins all the same, or they would be
    /// lost: then its facts say why, and it gets no
    /// others.
    pub(super) async fn reach_jobs_port(&mut self, url: &str, trust: &Trust) -> Result<(), Error> {
        self.facts.other.remove(NOT_REACHED);
        let Err(error) = answers(url, trust).await else { return Ok(()) };
        if !self.registry.has_attempts() {
            return Err(error);
        }
        tracing::error!(error = %chain(&error), "no further jobs start here");
        self.facts.other.insert(NOT_REACHED.to_owned(), error.to_string());
        Ok(())
    }

    /// Keeps jobs from the port by which the daemon takes orders, and says among the node's facts whether they are.
    ///
    /// # Errors
    /// It cannot be told where the daemon is.
    pub(super) async fn close(&mut self, urls: &Urls) -> Result<(), Error> {
        self.hold(Daemon::find(urls).await?);
        Ok(())
    }

    fn hold(&mut self, mut daemon: Daemon) {
        if attempt::some_need_control(&self.node.attempts) {
            daemon.open();
        }
        let engines = self.node.containers.as_ref().is_some_and(|all| !all.are_in_groups());
        let own = self.node.spools.as_ref().map(Spools::port);
        reach::close(&self.node.cgroups, engines, &daemon, own, &mut self.facts);
    }

    /// Whether something is amiss with the daemon's ports that may be mended while the session stands.
    pub(super) fn may_be_mended(&self) -> bool {
        self.facts.other.contains_key(NOT_REACHED)
            || self.is_open() && !attempt::some_need_control(&self.node.attempts)
    }

    /// Whether jobs were left a way to all of the daemon.
    fn is_open(&self) -> bool {
        self.facts.other.get(NOT_CLOSED).is_some_and(|why| why == EARLIER_JOBS)
    }

    /// Takes in what a second look has found. Whether the node's facts are others now.
    pub(super) fn looked(&mut self, look: Look) -> bool {
        let told = self.facts.other.clone();
        if look.reached.is_ok() {
            self.facts.other.remove(NOT_REACHED);
        }
        if let Ok(daemon) = look.daemon
            && self.is_open()
        {
            self.hold(daemon);
        }
        self.facts.other != told
    }

    /// Keeps the daemon's URLs for the time when the daemon is away.
    pub(super) fn know(&mut self, urls: Urls) {
        if self.urls == urls {
            return;
        }
        if let Err(error) = record::write(&self.node.root, KEPT, &urls) {
            tracing::warn!(%error, "cannot keep where the daemon is");
        }
        self.urls = urls;
    }
}

/// Where the daemon says, before a session, that jobs find it; empty if it does not, as one of an earlier
/// version.
pub(super) async fn jobs_url(address: &str, trust: &Trust) -> String {
    let answer = get(address, trust).await.ok();
    let header = answer.as_ref().and_then(|answer| answer.headers().get(atelier_proto::JOBS_URL));
    header.and_then(|url| url.to_str().ok()).unwrap_or_default().to_owned()
}

async fn answers(url: &str, trust: &Trust) -> Result<(), Error> {
    let answered = get(url, trust).await.and_then(|answer| Ok(answer.error_for_status()?));
    answered.map(drop).map_err(|failed| {
        let source = match failed {
            NotAsked::Trust(error) => return Error::Trust(error),
            NotAsked::Http(error) => error,
        };
        let uri = url.parse::<tonic::transport::Uri>().ok();
        let port = uri.and_then(|uri| uri.port_u16()).unwrap_or(80);
        Error::NoJobsPort { url: url.to_owned(), port, source }
    })
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum NotAsked {
    #[error(transparent)]
    Trust(trust::Error),
    #[error(transparent)]
    Http(#[from] reqwest::Error),
}

async fn get(url: &str, trust: &Trust) -> Result<reqwest::Response, NotAsked> {
    let client = reqwest::Client::builder().timeout(PATIENCE);
    let client = trust.http(client).map_err(NotAsked::Trust)?.build()?;
    Ok(client.get(format!("{}/healthz", url.trim_end_matches('/'))).send().await?)
}

#[cfg(test)]
mod tests;
