//! `atelier serve`: the daemon, in the foreground.

use super::{Error, Kind};
use crate::config::ServeArgs;
use crate::vault::KeySource;
use crate::{daemon, telemetry};

/// Runs the daemon until a termination signal.
pub(super) fn run(arguments: ServeArgs) -> Result<(), Error> {
    telemetry::start(arguments.log_format);
    // SAFETY: Only this thread runs; the runtime starts below.
    let notifier = unsafe { atelier_agent::Notifier::take() };
    let mut arguments = arguments;
    let keys = arguments.vault_key.iter_mut().chain(&mut arguments.vault_old_key);
    let texts = keys.filter_map(|source| match source {
        KeySource::Text(text) => Some(text),
        KeySource::Transit(_) | KeySource::Nowhere => None,
    });
    let texts = texts.chain(arguments.transit.sources()).chain(&mut arguments.oidc.client_secret);
    for source in texts {
        // SAFETY: As above.
        unsafe { source.take() };
    }
    allow_open_files();
    let failed = |message: String| Error::new(Kind::Failed, message);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("daemon")
        .build()
        .map_err(|error| failed(format!("cannot start the daemon's runtime: {error}")))?;
    let result = runtime.block_on(daemon::serve(arguments, notifier));
    // Streams that clients hold open do not keep a stopped daemon alive.
    runtime.shutdown_background();
    result.map_err(|error| Error::new(kind(&error), error.to_string()))
}

/// As many open files as the system lets this process have: agents, clients and the levels of a listed folder take
/// one each, and the usual 1024 are for programs that use `select`.
fn allow_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    // If it cannot be raised it is as it was.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// What the admin can put right is no failure of the daemon.
fn kind(error: &daemon::Error) -> Kind {
    use daemon::Error as E;
    match error {
        E::Home(_) => Kind::Usage,
        E::Provider(_) => Kind::Refused,
        E::Folder(_) | E::Listen { .. } | E::Curated { .. } | E::Sizes { .. } | E::Name(_) => {
            Kind::Refused
        }
        E::Tls(error) if error.is_refusal() => Kind::Refused,
        E::Vault(error) if error.is_refusal() => Kind::Refused,
        E::Place(error) if error.is_refusal() => Kind::Refused,
        E::Vault(_)
        | E::Tls(_)
        | E::Store(_)
        | E::StoreFailed(_)
        | E::Storage(_)
        | E::Place(_)
        | E::Identity(_)
        | E::Nodes(_)
        | E::Server(_) => Kind::Failed,
    }
}
