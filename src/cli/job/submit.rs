//! Sending a job to the daemon, once and only once.

use std::time::Duration;

use atelier_core::spec::CommandJob;
use atelier_proto::job::v1::{CreateJobRequest, Job, JobSpec};
use prost::Message as _;
use tokio::time::{Instant, sleep};

use super::materials;
use crate::cli::{Context, Error, Kind};
use crate::client::{Client, Error as ClientError};

/// The largest request that a daemon takes, less what the frame around it needs.
const MAX_REQUEST: usize = (4 << 20) - 1024;
/// How long a lost daemon is waited for. The key makes trying again safe.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends what the job needs from here, and creates it. When this returns, the daemon has it on
/// disk.
///
/// The same random key goes with every try, so that a daemon which took the job and died before it
/// could say so gives the same job again.
pub(in crate::cli) async fn create(
    context: &Context,
    client: &Client,
    mut job: CommandJob,
) -> Result<Job, Error> {
    materials::send(context, client, &mut job).await?;
    let request =
        CreateJobRequest { spec: Some(JobSpec::from(&job)), idempotency_key: random_key()? };
    let bytes = request.encoded_len();
    if bytes > MAX_REQUEST {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "the job is {:.1} MiB when sent, and at most {} MiB are taken",
                bytes as f64 / f64::from(1 << 20),
                MAX_REQUEST.div_ceil(1 << 20)
            ),
        )
        .help("give large values as input files rather than in the job itself"));
    }
    let made = keyed(context, client, async |client: &Client| {
        client.call(client.jobs().create_job(request.clone())).await
    });
    made.await?.job.ok_or_else(|| {
        Error::new(Kind::Failed, "the daemon took the job but did not return it")
            .help("see it with `atelier job list`")
    })
}

/// Asks for something with a key, again if no answer came: the daemon may have died before it could say that it has
/// done it, or after.
pub(in crate::cli) async fn keyed<T>(
    context: &Context,
    client: &Client,
    ask: impl AsyncFn(&Client) -> Result<T, ClientError>,
) -> Result<T, Error> {
    let mut client = client.clone();
    let begun = Instant::now();
    let mut pause = Duration::from_millis(50);
    loop {
        let error = match ask(&client).await {
            Ok(answer) => return Ok(answer),
            Err(error) if error.is_transient() && begun.elapsed() < PATIENCE => error,
            Err(error) => return Err(error.into()),
        };
        tracing::debug!(%error, "asking again");
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
        if let Ok(target) = context.wanted.resolve()
            && let Ok(connected) = Client::connect(target).await
        {
            client = connected;
        }
    }
}

/// 128 random bits.
pub(in crate::cli) fn random_key() -> Result<String, Error> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).map_err(|error| {
        Error::new(Kind::Failed, format!("the system gives no random numbers: {error}"))
    })?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bits)))
}
