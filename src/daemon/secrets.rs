//! Secrets on their way to a node that runs a job.

use atelier_core::access::{Caller, Role};
use atelier_core::id::NodeName;
use atelier_core::job::AttemptKey;
use atelier_core::spec::SecretRef;
use zeroize::Zeroizing;

use super::handle;
use super::serve::Shared;
use crate::store;
use crate::vault::{self, NotRevealed};

/// Bytes of a job's secrets together.
const MOST: usize = 1 << 20;

/// Why a node does not get an attempt's secrets.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not run the attempt.
    #[error("attempt {attempt} of job '{job}' does not run on node '{node}'")]
    NotThere {
        /// Of which job.
        job: String,
        /// Which.
        attempt: String,
        /// Who asks.
        node: NodeName,
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
    /// Each log of the job is looked through for all of them.
    #[error(
        "the job's secrets have more than {} KiB together; name fewer, or have it fetch large ones itself",
        MOST >> 10
    )]
    TooMuch,
    /// The reactor did not answer.
    #[error(transparent)]
    Reactor(#[from] handle::Error),
}

impl Shared {
    /// The secrets that an attempt's job names, by variable, for a node that runs a member of it. The job's user
    /// must be allowed to use them now, whatever was so when the job was submitted.
    pub(crate) async fn open_secrets(
        &self,
        node: NodeName,
        key: AttemptKey,
    ) -> Result<Vec<(String, Zeroizing<Vec<u8>>)>, Error> {
        let (asked, at) = (key.clone(), node.clone());
        let found = self.handle.look(move |live, _| {
            let job =
                live.job(&asked.job).filter(|job| job.attempt_key().as_ref() == Some(&asked))?;
            let runs = job.active()?.working().any(|(_, member)| member.node == at);
            runs.then(|| (job.spec.clone(), job.created_by.clone()))
        });
        let Some((spec, created_by)) = found.await? else {
            let (job, attempt) = (key.job.to_string(), key.attempt.to_string());
            return Err(Error::NotThere { job, attempt, node });
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
            NotRevealed::One { index, error } => {
                Error::Vault { variable: variables.get(index).cloned().unwrap_or_default(), error }
            }
        })?;
        if values.iter().map(|value| value.len()).sum::<usize>() > MOST {
            return Err(Error::TooMuch);
        }
        let by = &caller.principal;
        for secret in &named {
            tracing::info!(%secret, job = %key.job, attempt = %key.attempt, %node, %by, "secret given to a job");
        }
        Ok(variables.into_iter().zip(values).collect())
    }
}
