//! Waiting for a daemon that went away, and finding it again.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cli::{Context, Error, Kind};
use crate::client::{Client, Error as ClientError};

/// How long a lost daemon is waited for.
const PATIENCE: Duration = Duration::from_secs(5 * 60);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// An absence shorter than this is not worth a word.
const WORTH_A_WORD: Duration = Duration::from_secs(1);

/// Why watching stopped short.
pub(super) enum Broken {
    /// The connection or the daemon went away, with the cause; try again.
    Lost(String),
    /// Trying again would not help.
    Fatal(Error),
}

impl From<ClientError> for Broken {
    fn from(error: ClientError) -> Self {
        if error.is_transient() { Self::Lost(error.to_string()) } else { Self::Fatal(error.into()) }
    }
}

impl From<tonic::Status> for Broken {
    fn from(status: tonic::Status) -> Self {
        ClientError::from(status).into()
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// How long the daemon has been away. A daemon that is silent because nothing happens is there.
pub(super) struct Patience {
    lost: Option<Instant>,
    pause: Duration,
    told: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    Pause(Duration),
    TellAndPause(Duration),
    GiveUp,
}

impl Patience {
    /// Nothing is lost yet.
    pub(super) const fn new() -> Self {
        Self { lost: None, pause: FIRST_PAUSE, told: false }
    }

    /// The daemon has answered.
    pub(super) fn heard(&mut self) {
        *self = Self::new();
    }

    /// What to do about a daemon that is away at `now`.
    fn next(&mut self, now: Instant) -> Next {
        let away = now.saturating_duration_since(*self.lost.get_or_insert(now));
        if away > PATIENCE {
            return Next::GiveUp;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        if away > WORTH_A_WORD && !self.told {
            self.told = true;
            return Next::TellAndPause(pause);
        }
        Next::Pause(pause)
    }

    /// Pauses, and connects again if somebody is there; tells if it takes long. The daemon is
    /// looked up each time, as a local one may come back at another address.
    ///
    /// # Errors
    /// When the daemon has been away for minutes, or refuses this client.
    pub(super) async fn again(
        &mut self,
        context: &Context,
        client: &mut Client,
        name: &str,
        broken: Broken,
    ) -> Result<(), Error> {
        let cause = match broken {
            Broken::Lost(cause) => cause,
            Broken::Fatal(error) => return Err(error),
        };
        tracing::debug!(cause, "lost the daemon");
        let pause = match self.next(Instant::now()) {
            Next::GiveUp => {
                let minutes = PATIENCE.as_secs() / 60;
                let gone = format!("lost the daemon for {minutes} minutes: {cause}");
                return Err(Error::new(Kind::Unreachable, gone).help(format!(
                    "the job may still run; follow it with `atelier job stream {name}`"
                )));
            }
            Next::TellAndPause(pause) => {
                context.output.note(&format!("Lost the daemon ({cause}); trying again."));
                pause
            }
            Next::Pause(pause) => pause,
        };
        context.output.waiting("Lost the daemon; trying again");
        sleep(pause).await;
        match context.wanted.resolve() {
            Ok(target) => match Client::connect(target).await {
                Ok(connected) => *client = connected,
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(error.into()),
            },
            Err(ClientError::NoLocalDaemon) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
