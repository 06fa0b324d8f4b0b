//! Joining a workspace, and keeping the certificate that comes of it.

use std::sync::Arc;
use std::time::Duration;

use atelier_core::time::Timestamp;
use atelier_proto::node::v1 as pb;
use pb::node_identity_service_client::NodeIdentityServiceClient;
use tokio::sync::Notify;
use tonic::Code;

use super::connection::{self, Caller};
use super::{Error, chain};
use crate::args::AgentArgs;
use crate::clock::{system, wall};
use crate::identity::{self, Begin, Begun, Identity, JoinToken, Proof, Told};
use crate::trust::Trust;

/// How long the daemon may take to answer.
const ANSWER: Duration = Duration::from_secs(20);
/// Between two looks at the clock, which may be set meanwhile, and between two tries to renew.
const LOOK: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_secs(60);
/// Nodes that are all told to renew do it within this time.
const SPREAD: Duration = Duration::from_secs(2);

/// Joins, if this agent was given a join token that its identity does not come of.
pub(super) async fn ensure(args: &AgentArgs) -> Result<(), Error> {
    let Told::Join(token) = identity::told(args)? else { return Ok(()) };
    let name = identity::name(args);
    // One that is damaged is replaced.
    let before = identity::kept(args).ok().flatten();
    if before.as_ref().is_some_and(|before| before.is_of(&token, &name)) {
        return Ok(());
    }
    match join(args, &token, &name).await {
        Err(error @ Error::NotJoined { .. })
            if error.is_final() && before.is_some_and(|before| before.check(&name).is_ok()) =>
        {
            tracing::warn!(error = %chain(&error), "the node keeps the identity that it has");
            Ok(())
        }
        joined => joined,
    }
}

async fn join(args: &AgentArgs, token: &JoinToken, name: &str) -> Result<(), Error> {
    let address = connection::address(args)?;
    let is_encrypted = address.starts_with("https://");
    let trust = connection::trust(args, &address)?;
    // What was named on this machine counts; the fingerprint is for who has nothing else.
    let pin = token.fingerprint.filter(|_| is_encrypted && trust == Trust::System);
    let endpoint = connection::endpoint(&address)?;
    let connected = match &pin {
        Some(pin) => Trust::connect_pinned(&endpoint, *pin).await,
        None => trust.connect(&endpoint).await,
    };
    let channel = connected.map_err(|failed| match connection::failed(&address, failed) {
        Error::Untrusted { address, .. } if pin.is_some() => Error::NotTheOne { address },
        other => other,
    })?;
    let begun = Begun::with(args, token, name, is_encrypted)?;
    let (signing_request, token_hash) = match &begun.proof {
        Begin::Key { request, .. } => (request.clone(), Vec::new()),
        Begin::Token(own) => (Vec::new(), blake3::hash(own.as_bytes()).as_bytes().to_vec()),
    };
    let request = pb::JoinNodeRequest {
        token: token.secret.clone(),
        node: name.to_owned(),
        compute: args.compute.to_string(),
        signing_request: signing_request.into(),
        token_hash: token_hash.into(),
    };
    let mut client = NodeIdentityServiceClient::new(channel);
    let answer = tokio::time::timeout(ANSWER, client.join_node(request))
        .await
        .map_err(|_| Error::Silent(ANSWER))?
        .map_err(|status| Error::NotJoined { address: address.clone(), status })?
        .into_inner();
    let proof = match begun.proof {
        Begin::Key { key, .. } => certificate(answer.certificate, key, answer.lasts_ms),
        Begin::Token(own) => Proof::Token(own),
    };
    crate::failpoint::panics("joined");
    let authority = pin.map(|_| answer.authority);
    Identity::new(name, token, authority, proof).keep(args)?;
    tracing::info!(node = name, "the node has an identity");
    Ok(())
}

/// One that lasts so long from now. It is renewed after about two thirds of that: not by all nodes at once.
fn certificate(certificate: String, key: String, lasts_ms: u64) -> Proof {
    let part = 0.63 + 0.07 * random();
    let at = |ms: u64| -> Timestamp { now().plus_millis(i64::try_from(ms).unwrap_or(i64::MAX)) };
    let renew_at = at((lasts_ms as f64 * part) as u64);
    Proof::Certificate { certificate, key, until: at(lasts_ms), renew_at }
}

/// The later of the system's clock and the process's own, which may be far behind where the system's was when the process
/// began: too early is a certificate renewed in vain, too late is a node that is lost.
fn now() -> Timestamp {
    wall().max(system())
}

/// Whether a certificate is to be renewed, or how long that has time yet. One of a time to come, since a clock was set
/// back, is: it would be too late by the time that is told.
fn wait(now: Timestamp, renew_at: Timestamp, until: Timestamp) -> Option<Duration> {
    let left = renew_at.as_millis() - now.as_millis();
    // At first it is at most 0.7 of its life, and what is after it 0.3.
    let most = (until.as_millis() - renew_at.as_millis()).saturating_mul(5) / 2;
    (1..=most).contains(&left).then(|| Duration::from_millis(left.unsigned_abs()))
}

/// Between 0 and 1.
fn random() -> f64 {
    let mut random = [0; 1];
    let _ = getrandom::fill(&mut random);
    f64::from(random[0]) / 255.0
}

/// Returns once the node has its next certificate, if it has one: in time, or when that is due at once.
pub(super) async fn renewed(args: AgentArgs, caller: Caller, due: Arc<Notify>) {
    let Ok(Told::Join(_) | Told::Nothing) = identity::told(&args) else {
        return std::future::pending().await;
    };
    let mut is_due = false;
    loop {
        let kept = match identity::kept(&args) {
            Ok(Some(kept)) => kept,
            _ => return std::future::pending().await,
        };
        let Proof::Certificate { until, renew_at, .. } = &kept.proof else {
            return std::future::pending().await;
        };
        let wait = wait(now(), *renew_at, *until);
        if let Some(wait) = wait.filter(|_| !is_due) {
            tokio::select! {
                () = tokio::time::sleep(wait.min(LOOK)) => {}
                () = due.notified() => {
                    // All nodes are told so at the same time.
                    tokio::time::sleep(SPREAD.mul_f64(random())).await;
                    is_due = true;
                }
            }
            continue;
        }
        // More often where little is left.
        let left = until.as_millis() - now().as_millis();
        let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
        let pause = AGAIN.min(left / 8).max(Duration::from_millis(200));
        match renew(&args, kept, caller.clone()).await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(error = %chain(&error), ?pause, "the node's certificate is not renewed yet");
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn renew(args: &AgentArgs, kept: Identity, caller: Caller) -> Result<(), Error> {
    let made = identity::new_key();
    let Ok(Begin::Key { key, request }) = made else {
        return Err(Error::Lost(tonic::Status::internal("no key could be made")));
    };
    let request = pb::RenewCertificateRequest { signing_request: request.into() };
    let mut client = NodeIdentityServiceClient::new(caller);
    let answer = tokio::time::timeout(ANSWER, client.renew_certificate(request))
        .await
        .map_err(|_| Error::Silent(ANSWER))?
        .map_err(Error::Lost)?
        .into_inner();
    let proof = certificate(answer.certificate, key, answer.lasts_ms);
    // What vouches for the daemon is in the same file: either is never kept without the other.
    crate::failpoint::panics("renewed");
    let authority = kept.authority.as_ref().map(|_| answer.authority);
    Identity { authority, proof, ..kept }.keep(args)?;
    tracing::info!("the node has its next certificate");
    Ok(())
}

/// Whether a refusal may be another one soon.
pub(super) fn passes(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Internal
            | Code::ResourceExhausted
            | Code::Aborted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_in_time_whatever_clocks_do() {
        const HOUR: i64 = 3_600_000;
        let at = |hours: i64| Timestamp::from_millis(1_790_000_000_000 + hours * HOUR);
        let (renew_at, until) = (at(16), at(24));
        let left = |hours| wait(at(hours), renew_at, until);
        assert_eq!(left(0), Some(Duration::from_secs(16 * 3600)));
        assert_eq!(left(15), Some(Duration::from_secs(3600)));
        assert_eq!((left(16), left(30)), (None, None));
        // The clock was set back by days since, or the certificate was noted by one that was ahead.
        assert_eq!(left(-5), None);
    }
}
