//! Secrets on their way to a node that runs a job.

use atelier_core::access::{Caller, Role};
use atelier_core::id::{JobName, NodeName, SecretVersion};
use atelier_core::job::{AttemptKey, Job};
use atelier_core::spec::SecretRef;
use zeroize::Zeroizing;

use super::handle;
use super::serve::Shared;
use crate::store;
use crate::vault::{self, NotRevealed};

/// Why a node does not get an attempt's secrets.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not run the attempt.
    #[error("attempt {attempt} of job '{job}' does not run on node '{node}': {now}")]
    NotThere {
        /// Of which job.
        job: String,
        /// Which.
        attempt: String,
        /// Who asks.
        node: NodeName,
        /// Which attempt there is now.
        now: String,
    },
    /// The vault gives it to nobody, or not to this job.
    #[error("environment_variables.{variable}: {error}")]
    Vault {
        /// The variable that names it.
        variable: String,
        /// Why.
        #[source]
        error: vault::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// They are too long together.
    #[error("{0}")]
    TooMuch(NotRevealed),
    /// The reactor did not answer.
    #[error(transparent)]
    Reactor(#[from] handle::Error),
}

impl Shared {
    /// Jobs that are not over and mean this version of a secret: they have done so since they were submitted, whether
    /// or not they named one.
    pub(crate) async fn users_of_secret(
        &self,
        name: &str,
        version: SecretVersion,
    ) -> Result<Vec<JobName>, handle::Error> {
        let name = name.to_owned();
        let means = move |secret: &SecretRef| {
            secret.version == Some(version) && secret.name.as_str().eq_ignore_ascii_case(&name)
        };
        let users = self.handle.look(move |live, _| {
            let is_user = |job: &&Job| {
                job.ended().is_none() && job.spec.secrets().any(|(_, secret)| means(&secret))
            };
            live.jobs().filter(is_user).map(|job| job.name.clone()).collect()
        });
        users.await
    }

    /// The secrets that an attempt's job names, by variable, for a node that runs a member of it. The job's user
    /// must be allowed to use them now, whatever was so when the job was submitted.
    pub(crate) async fn open_secrets(
        &self,
        node: NodeName,
        key: AttemptKey,
    ) -> Result<Vec<(String, Zeroizing<Vec<u8>>)>, Error> {
        let (asked, at) = (key.clone(), node.clone());
        let found = self.handle.look(move |live, _| {
            let none = || "the job has no attempt now".to_owned();
            let Some(job) = live.job(&asked.job) else { return Err(none()) };
            let Some(current) = job.attempt_key() else { return Err(none()) };
            if current != asked {
                return Err(format!("the job's current attempt is {}", current.attempt));
            }
            let runs = job
                .active()
                .is_some_and(|active| active.working().any(|(_, member)| member.node == at));
            if runs {
                Ok((job.spec.clone(), job.created_by.clone()))
            } else {
                Err("it runs elsewhere".to_owned())
            }
        });
        let (spec, created_by) = match found.await? {
            Ok(found) => found,
            Err(now) => {
                let (job, attempt) = (key.job.to_string(), key.attempt.to_string());
                return Err(Error::NotThere { job, attempt, node, now });
            }
        };
        // By what it is now: it has no token here.
        let role = match self.door.is_admin(&created_by) {
            true => Role::Admin,
            false => Role::DataScientist,
        };
        let caller = Caller { principal: created_by, role };
        let (variables, named): (Vec<String>, Vec<SecretRef>) =
            spec.secrets().map(|(variable, secret)| (variable.to_owned(), secret)).unzip();
        let at = self.clock.wall();
        let values = self.vault.reveal_all(&key.job, named.clone(), &caller, at).await;
        let values = values.map_err(|error| match error {
            NotRevealed::Store(error) => Error::Store(error),
            NotRevealed::TooMuch => Error::TooMuch(error),
            NotRevealed::One { index, error } => {
                Error::Vault { variable: variables.get(index).cloned().unwrap_or_default(), error }
            }
        })?;
        let by = &caller.principal;
        for secret in &named {
            tracing::info!(%secret, job = %key.job, attempt = %key.attempt, %node, %by, "secret given to a job");
        }
        Ok(variables.into_iter().zip(values).collect())
    }
}
