//! From an attempt's file to the daemon.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use serde::Deserialize;

use super::{Batch, Spool, Spools};
use crate::attempt::Services;

/// How long one request may take.
const ANSWER: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(5);
/// Between two tries: doubled up to the second.
const WAITS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// From when all is sent until more is, unless somebody waits for it: what a loop logs one by
/// one costs the daemon ten requests a second, and the job's CPUs as few.
const LINGER: Duration = Duration::from_millis(100);
/// Characters of what the daemon says that are told.
const TOLD: usize = 500;

/// A daemon, and the connections to it.
pub(super) struct Daemon {
    services: Arc<Services>,
    client: reqwest::Client,
}

/// Why a batch is not sent.
enum NotSent {
    /// Another try may do.
    Later(String),
    /// The daemon does not know the attempt's token.
    Unknown,
    /// No try will do.
    Refused(String),
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

impl Spools {
    /// The newest daemon; waits for the first.
    pub(super) async fn daemon(&self) -> (Arc<Services>, reqwest::Client) {
        let mut services = self.0.services.clone();
        loop {
            let newest = services.borrow_and_update().clone();
            let made = newest.map(|newest| self.client(newest));
            match made {
                Some(Ok(made)) => return made,
                Some(Err(error)) => tracing::error!(error, "jobs cannot log: no way to the daemon"),
                None => {}
            }
            if services.changed().await.is_err() {
                // The agent stops, and this with it.
                std::future::pending::<()>().await;
            }
        }
    }

    fn client(&self, newest: Arc<Services>) -> Result<(Arc<Services>, reqwest::Client), String> {
        let mut known = self.0.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_mut()
            && known.services.trust == newest.trust
        {
            known.services = newest.clone();
            return Ok((newest, known.client.clone()));
        }
        // How long a file may take is its client's to say.
        let builder = reqwest::Client::builder().connect_timeout(CONNECT).tcp_nodelay(true);
        let builder = newest.trust.http(builder).map_err(|error| error.to_string())?;
        let client = builder.build().map_err(|error| error.to_string())?;
        *known = Some(Daemon { services: newest.clone(), client: client.clone() });
        Ok((newest, client))
    }

    async fn try_one(&self, spool: &Spool, batch: &Batch) -> Result<(), NotSent> {
        let (services, client) = self.daemon().await;
        let base = services.http_url.trim_end_matches('/');
        let sent = client
            .post(format!("{base}/api/2.0/mlflow/runs/log-batch"))
            .bearer_auth(&spool.token)
            .header("content-type", "application/json")
            .timeout(ANSWER)
            .body(batch.body.clone())
            .send()
            .await
            .map_err(|error| NotSent::Later(crate::session::chain(&error)))?;
        let status = sent.status();
        if status.is_success() {
            return Ok(());
        }
        let text = sent.text().await.unwrap_or_default();
        let said = serde_json::from_str(&text).map_or(text, |Refusal { message }| message);
        let said = format!("{status}: {}", said.chars().take(TOLD).collect::<String>());
        Err(match status {
            StatusCode::UNAUTHORIZED => NotSent::Unknown,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => NotSent::Later(said),
            status if status.is_client_error() => NotSent::Refused(said),
            _ => NotSent::Later(said),
        })
    }
}

/// Sends what an attempt logs, for as long as its task holds the spool.
pub(super) async fn forward(spools: Spools, spool: Arc<Spool>) {
    let mut over = spool.over.subscribe();
    tokio::select! {
        _ = over.wait_for(|over| *over) => {}
        () = send_all(&spools, &spool) => {}
    }
}

async fn send_all(spools: &Spools, spool: &Spool) {
    let (job, epoch) = (spool.job.as_str(), spool.epoch);
    let mut wait = WAITS.0;
    loop {
        let Some(unsent) = spool.unsent() else {
            spool.work.notified().await;
            continue;
        };
        let batch = match unsent.first() {
            Ok(Some(batch)) => batch,
            Ok(None) => continue,
            Err(error) => {
                let lost = spool.shut();
                tracing::error!(job, epoch, lost, %error, "cannot read what a job has logged: batches are lost");
                return;
            }
        };
        match spools.try_one(spool, &batch).await {
            Ok(()) => {
                spool.forget(&batch);
                spool.is_known(true);
                wait = WAITS.0;
                if unsent.is(&batch) {
                    let _ = tokio::time::timeout(LINGER, spool.hurry.notified()).await;
                }
                continue;
            }
            Err(NotSent::Refused(why)) => {
                // The next that it logs to this run is asked of the daemon, and the job hears the answer itself.
                spool.forget_run(&batch.run);
                spool.forget(&batch);
                let (run, lost) = (&batch.run, batch.points);
                tracing::warn!(
                    job,
                    epoch,
                    run,
                    lost,
                    why,
                    "the daemon refuses points that a job has logged"
                );
                continue;
            }
            // Of a node that was cut off: it may be let in again, or else its attempts end.
            Err(NotSent::Unknown) => spool.is_known(false),
            Err(NotSent::Later(why)) => {
                tracing::debug!(job, epoch, why, "points wait for the daemon");
            }
        }
        let mut connected = spools.0.connected.clone();
        connected.mark_unchanged();
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = connected.changed() => {}
        }
        wait = (wait * 2).min(WAITS.1);
    }
}
