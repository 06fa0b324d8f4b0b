//! Nodes on the daemon's own machine: agents that offer what their cluster's size says.
//!
//! An agent is a process of its own and outlives the daemon, as its jobs do. One that ends by itself
//! is started again; its jobs do not notice.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use atelier_core::compute::Cluster;
use atelier_core::id::NodeName;
use atelier_core::resource::Cpus;

use super::{Failed, Shared, Site};
use crate::process::{Record, own_program, spawn, tail};

/// How long an agent may take to end by itself.
const GRACE: Duration = Duration::from_secs(10);
/// How often agents are looked after.
const LOOK: Duration = Duration::from_secs(1);
/// An agent that ends this soon after its start has failed to start.
const SETTLED: Duration = Duration::from_millis(300);
/// An agent that keeps ending is started again after pauses that double up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Lines of an agent's log that say why it did not start.
const TAIL: usize = 5;

/// The agents there are.
#[derive(Default)]
pub(super) struct Local {
    agents: Mutex<HashMap<NodeName, Agent>>,
}

struct Agent {
    arguments: Vec<String>,
    folder: PathBuf,
    /// Set where this daemon started it: a process that ended is waited for.
    child: Option<Child>,
    started: Instant,
    restarts: u32,
}

impl Agent {
    fn new(site: &Site, node: &NodeName, cluster: &Cluster) -> Self {
        let folder = site.node_folder(node);
        let text = |path: &Path| path.display().to_string();
        let shape = &cluster.node;
        let arguments = [
            ["--server-file", &text(&site.folder.join("endpoint"))],
            ["--token-file", &text(&folder.join("token"))],
            ["--node", node.as_str()],
            ["--compute", cluster.name.as_str()],
            ["--data-dir", &text(&folder.join("agent"))],
            ["--cpus", &Cpus(shape.cpu).to_string()],
            ["--memory", &format!("{}MiB", shape.memory)],
            ["--gpus", &shape.gpus.to_string()],
        ];
        let disk = (shape.disk > 0).then(|| format!("--disk={}MiB", shape.disk));
        let labels =
            cluster.node_labels.iter().map(|(key, value)| format!("--label={key}={value}"));
        let arguments = arguments.as_flattened().iter().map(|&part| part.to_owned());
        let arguments = arguments.chain(disk).chain(labels);
        Self {
            arguments: std::iter::once("agent".to_owned()).chain(arguments).collect(),
            folder,
            child: None,
            started: Instant::now(),
            restarts: 0,
        }
    }

    fn record(&self) -> PathBuf {
        self.folder.join("agent.json")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// Whether its process is alive, be it this daemon's child or an earlier one's.
    fn is_alive(&mut self) -> bool {
        // Waited for, or it would stay a zombie.
        if let Some(child) = &mut self.child
            && matches!(child.try_wait(), Ok(Some(_)))
        {
            self.child = None;
        }
        Record::read(&self.record()).is_some_and(|record| record.is_alive())
    }

    fn start(&mut self) -> Result<(), Failed> {
        let what = "cannot start an agent on the daemon's machine";
        let failed = |error: std::io::Error| Failed::of(what, error);
        let program = own_program().map_err(failed)?;
        let agent = self.folder.join("agent");
        fs::create_dir_all(&agent).map_err(failed)?;
        let mut begun =
            spawn(&program, &self.arguments, &agent, &self.log(), "").map_err(failed)?;
        if let Err(error) = begun.record.write(&self.record()) {
            // Nobody would find it again.
            let _ = begun.child.kill();
            let _ = begun.child.wait();
            return Err(failed(error));
        }
        self.child = Some(begun.child);
        self.started = Instant::now();
        Ok(())
    }
}

impl Local {
    fn agents(&self) -> MutexGuard<'_, HashMap<NodeName, Agent>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks after an agent that an earlier daemon started.
    pub(super) fn adopt(&self, site: &Site, node: NodeName, cluster: &Cluster) {
        let agent = Agent::new(site, &node, cluster);
        self.agents().insert(node, agent);
    }

    pub(super) async fn add(
        &self,
        site: &Site,
        node: &NodeName,
        cluster: &Cluster,
    ) -> Result<(), Failed> {
        site.token(node).await?;
        let log = {
            let mut agents = self.agents();
            let agent =
                agents.entry(node.clone()).or_insert_with(|| Agent::new(site, node, cluster));
            if !agent.is_alive() {
                agent.start()?;
            }
            agent.log()
        };
        tokio::time::sleep(SETTLED).await;
        if self.agents().get_mut(node).is_some_and(|agent| agent.is_alive()) {
            return Ok(());
        }
        let said = tail(&log, TAIL, 0);
        Err(Failed(format!("the agent of node {node} ended at its start; it said: {said}")))
    }

    pub(super) async fn remove(&self, site: &Site, node: &NodeName) -> Result<(), Failed> {
        let agent = self.agents().remove(node);
        let folder = site.node_folder(node);
        let file = folder.join("agent.json");
        let stopped = tokio::task::spawn_blocking(move || {
            if let Some(record) = Record::read(&file) {
                record.stop(GRACE)?;
            }
            if let Some(mut child) = agent.and_then(|agent| agent.child) {
                child.wait()?;
            }
            Ok::<_, std::io::Error>(())
        });
        let what = || format!("cannot stop the agent of node {node}");
        match stopped.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Failed::of(what(), error)),
            Err(error) => return Err(Failed::of(what(), error)),
        }
        site.clear(node).await
    }

    /// Starts again what has ended by itself.
    fn look(&self) {
        for (node, agent) in self.agents().iter_mut() {
            if agent.is_alive() {
                continue;
            }
            let pause = (LOOK * 2_u32.saturating_pow(agent.restarts.min(10))).min(LONGEST_PAUSE);
            let ran = agent.started.elapsed();
            if ran < pause {
                continue;
            }
            if ran > 2 * LONGEST_PAUSE {
                agent.restarts = 0;
            }
            agent.restarts += 1;
            tracing::warn!(%node, log = %agent.log().display(), "a node's agent has ended; it is started again");
            if let Err(error) = agent.start() {
                tracing::warn!(%node, %error, "a node's agent could not be started");
            }
        }
    }
}

/// Looks after the agents for as long as the daemon runs.
pub(super) async fn watch(shared: Weak<Shared>) {
    let mut look = tokio::time::interval(LOOK);
    loop {
        look.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        shared.local.look();
    }
}
