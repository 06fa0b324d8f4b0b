//! The secrets that an attempt's job names: asked of the daemon when all else is ready, and kept in memory alone.

use std::path::PathBuf;
use std::time::Duration;

use atelier_core::spec::{Delivery, SecretRef};
use atelier_proto::agent::v1::{Cause, OpenSecretsRequest, OpenedSecret, Problem};
use tonic::Code;

use super::Attempt;
use super::prepare::PrepareLog;
use super::problem::{self, problem};
use crate::container::script;
use crate::environment::BuildLog as _;
use crate::secrets::{Held, SCRIPT, SHORTEST, Values};

/// How long the daemon may take to answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Between two times of asking.
const PAUSE: Duration = Duration::from_secs(1);
/// More than all that a job may name; a message is as long as that at most.
const MOST: usize = 64 << 20;

/// Asks for the values. As long as the daemon cannot be reached this waits, as all of a preparation does.
pub(super) async fn open(attempt: &Attempt) -> Result<Values, Problem> {
    let mut values = Values::default();
    if attempt.spec.secrets().next().is_none() {
        return Ok(values);
    }
    let opened = ask(attempt).await?;
    for (variable, secret) in attempt.spec.secrets() {
        let found = opened.iter().find(|opened| opened.variable == variable);
        let value = found.map(|opened| opened.value.to_vec()).ok_or_else(|| {
            problem(Cause::Platform, format!("the daemon did not give the secret of {variable}"))
        })?;
        match secret.delivery {
            Delivery::File => {
                values.files.insert(variable.to_owned(), value);
            }
            Delivery::Variable => {
                let value = text(&secret, value)?;
                values.variables.insert(variable.to_owned(), value);
            }
        }
    }
    Ok(values)
}

async fn ask(attempt: &Attempt) -> Result<Vec<OpenedSecret>, Problem> {
    let mut waits = Waits::default();
    loop {
        let client = attempt.services().await.client.clone();
        let mut client = client.max_decoding_message_size(MOST);
        let request = OpenSecretsRequest { key: Some(attempt.key.clone()) };
        let told = match tokio::time::timeout(ANSWER, client.open_secrets(request)).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner().secrets),
            Ok(Err(status)) => status,
            Err(_) => tonic::Status::deadline_exceeded("the daemon did not answer"),
        };
        let cause = match told.code() {
            Code::NotFound | Code::PermissionDenied | Code::FailedPrecondition => Cause::Input,
            // Nothing that another try would change.
            Code::Internal
            | Code::Unimplemented
            | Code::Unauthenticated
            | Code::InvalidArgument
            | Code::OutOfRange => Cause::Platform,
            _ => {
                tracing::warn!(epoch = attempt.key.epoch, %told, "cannot get a job's secrets, trying again");
                // Whose job it is sees why it does not start.
                let message = told.message();
                if waits.is_new(message) {
                    let log = PrepareLog::new(attempt.folder.log());
                    log.line(&format!("[atelier] waiting for the job's secrets: {message}"));
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        return Err(problem(cause, format!("cannot get the job's secrets: {}", told.message())));
    }
}

/// Why secrets are waited for, as the job's log was told: each reason once, and not many, however long that takes.
#[derive(Default)]
struct Waits(Vec<String>);

impl Waits {
    /// More reasons than there are but for names and numbers.
    const MOST: usize = 8;

    /// Whether the log is to tell that.
    fn is_new(&mut self, message: &str) -> bool {
        // How long something took, or which try it was, makes it no other reason.
        let reason: String = message.chars().filter(|c| !c.is_ascii_digit()).collect();
        let is_new = self.0.len() < Self::MOST && !self.0.contains(&reason);
        if is_new {
            self.0.push(reason);
        }
        is_new
    }
}

/// As a variable can have it.
fn text(secret: &SecretRef, value: Vec<u8>) -> Result<String, Problem> {
    String::from_utf8(value).ok().filter(|text| !text.contains('\0')).ok_or_else(|| {
        let name = &secret.name;
        let message = format!(
            "secret '{name}' is no text, which a variable must be; ask for a file: azureml:secrets/{name}?as=file"
        );
        problem(Cause::Input, message)
    })
}

/// Puts the values where the supervisor finds them, and tells in the job's log which of them cannot be hidden.
pub(super) fn hold(
    attempt: &Attempt,
    values: &Values,
    contained: bool,
) -> Result<Option<Held>, Problem> {
    if values.all().next().is_none() {
        return Ok(None);
    }
    let log = PrepareLog::new(attempt.folder.log());
    for (variable, _) in values.all().filter(|(_, value)| value.trim_ascii().len() < SHORTEST) {
        log.line(&format!(
            "[atelier] the secret in {variable} has fewer than {SHORTEST} bytes: it is not hidden in this log"
        ));
    }
    let script = contained.then(|| script::exports(&values.variables));
    Held::write(&attempt.node.root, attempt.key.epoch, values, script.as_deref())
        .map(Some)
        .map_err(|error| problem::of(Cause::Platform, "cannot keep the job's secrets", &error))
}

/// Where the job finds the folder of its files; a container has them beside its other folders.
pub(super) fn seen_at(attempt: &Attempt, held: &Held, contained: bool) -> PathBuf {
    match contained {
        true => attempt.folder.path().join("secrets"),
        false => held.job(),
    }
}

/// Where the script of a container finds the variables.
pub(super) fn script_at(attempt: &Attempt, held: &Held) -> PathBuf {
    seen_at(attempt, held, true).join(SCRIPT)
}

/// Nothing of the attempt runs any more.
pub(super) fn remove(attempt: &Attempt) {
    if let Err(error) = Held::remove_of(&attempt.node.root, attempt.key.epoch) {
        tracing::warn!(epoch = attempt.key.epoch, %error, "cannot remove the secrets of an attempt");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_told_each_reason_to_wait_once_and_not_many() {
        let mut waits = Waits::default();
        let told = |waits: &mut Waits, messages: &[&str]| -> Vec<bool> {
            messages.iter().map(|message| waits.is_new(message)).collect()
        };
        let first = ["no answer in 8 s", "transit is sealed", "no answer in 15 s"];
        assert_eq!(told(&mut waits, &first), [true, true, false]);
        // They take turns for hours.
        for _ in 0..1000 {
            assert_eq!(told(&mut waits, &first), [false; 3]);
        }
        let many = ('a'..='z').filter(|letter| waits.is_new(&format!("reason {letter}"))).count();
        assert_eq!(many, Waits::MOST - 2);
    }
}
