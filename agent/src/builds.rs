//! Environments that are made ready before a job needs them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use atelier_proto::agent::v1::agent_message::Message as Up;
use atelier_proto::agent::v1::{self as pb, BuildReport};
use atelier_proto::environment::v1::BuildResult;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedSender;

use crate::attempt::{Node, Services, images, surroundings};
use crate::environment::{BuildLog, Error, Wanted};
use crate::session::chain;

/// How many go on at once. Jobs' own are not counted.
const MOST: usize = 8;

/// Places of builds that are going on.
pub(crate) fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MOST))
}

/// Tells the daemon of one.
struct Told {
    request_id: u64,
    /// How long it may take.
    bound: Duration,
    up: UnboundedSender<pb::AgentMessage>,
}

impl Told {
    fn report(&self, lines: Vec<String>, result: Option<BuildResult>) {
        let report = BuildReport { request_id: self.request_id, lines, result };
        // The session may have ended; then nobody listens any more, and the build goes on.
        let _ = self.up.send(pb::AgentMessage { message: Some(Up::Build(report)) });
    }
}

impl BuildLog for Told {
    fn line(&self, text: &str) {
        self.report(vec![text.to_owned()], None);
    }

    fn bound(&self) -> Option<Duration> {
        Some(self.bound)
    }
}

/// Makes the environment ready as a job's preparation would, and tells how it goes.
pub(crate) async fn build(
    node: Arc<Node>,
    services: Option<Arc<Services>>,
    places: Arc<Semaphore>,
    ask: pb::BuildEnvironment,
    bound: Duration,
    up: UnboundedSender<pb::AgentMessage>,
) {
    let told = Told { request_id: ask.request_id, bound, up };
    told.report(Vec::new(), None);
    let started = Instant::now();
    let made = made(&node, services, &places, ask, &told).await;
    let (description, error) = match made {
        Ok(description) => (description, String::new()),
        Err(error) => (String::new(), error),
    };
    let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    told.report(Vec::new(), Some(BuildResult { error, description, took_ms }));
}

/// What is ready, or why it is not.
async fn made(
    node: &Node,
    services: Option<Arc<Services>>,
    places: &Semaphore,
    ask: pb::BuildEnvironment,
    log: &Told,
) -> Result<String, String> {
    let Ok(_place) = places.try_acquire() else {
        return Err(format!("it builds {MOST} environments already; try again when one is ready"));
    };
    let services = services.ok_or("the session is not open yet; try again")?;
    let images = images(ask.image_policy());
    let environment = ask.environment.ok_or("the request names no environment")?;
    let environment = environment
        .try_into()
        .map_err(|error| format!("cannot read what the environment is made of: {error}"))?;
    let wanted = Wanted::Inline { environment, images };
    let made = surroundings(node, &services, &wanted, log);
    // A job that has joined one of its builds waits on until that one's own bound.
    let made = tokio::time::timeout(log.bound, made).await;
    let made = made.unwrap_or(Err(Error::Slow { bound: log.bound }));
    made.map(|made| made.description()).map_err(|error| chain(&error))
}
