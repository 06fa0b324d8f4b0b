//! `atelier simulate`

mod placement;
mod queue;
mod replay;
mod trace;

#[cfg(test)]
mod tests;

use clap::Subcommand;

use super::{Context, Error};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Fill a cluster with a trace's tasks, and see how much of its GPUs is allocated in the end
    ///
    /// The tasks come one at a time in random order, and more drawn from them, until they ask for
    /// --inflate times the cluster's GPUs. Each is placed at once or dropped for good. The policy sees
    /// what the scheduler would see: the cluster, the task, and those that came before.
    #[command(after_help = "\
Files are CSV with a header; further columns are ignored:
  nodes   cpu_milli, memory_mib, gpu (devices), model
  tasks   cpu_milli, memory_mib, num_gpu, gpu_milli (of one device); gpu_spec (models, A|B) may be absent

Examples:
  atelier simulate placement --nodes nodes.csv --tasks tasks.csv
  atelier simulate placement --nodes nodes.csv --tasks tasks.csv --inflate 1.3 --seeds 42..51 -o json")]
    Placement(placement::Arguments),
    /// Play a trace's tasks in virtual time: who waits how long, and how full the cluster is
    ///
    /// Each task comes when it came and takes as long as it took (deletion_time less scheduled_time,
    /// at most its timeout). When and where it starts, the scheduler itself decides. Tasks that were
    /// never scheduled, have no end, or end before they start are left out, and counted.
    #[command(after_help = "\
Files are CSV with a header; further columns are ignored:
  nodes   cpu_milli, memory_mib, gpu (devices), model
  tasks   cpu_milli, memory_mib, num_gpu, gpu_milli (of one device); gpu_spec (models, A|B) may be absent;
          creation_time, scheduled_time, deletion_time (seconds);
          user, instance_count (nodes), timeout (seconds) may be absent

Examples:
  atelier simulate queue --nodes nodes.csv --tasks tasks.csv
  atelier simulate queue --nodes nodes.csv --tasks tasks.csv --add-nodes 2 --query wait_seconds
  atelier simulate queue --nodes nodes.csv --tasks tasks.csv --add-nodes 4xA10 -o table")]
    Queue(queue::Arguments),
    /// Play the workspace's own jobs again: how long they waited, and would wait with more nodes
    ///
    /// Jobs come when they were submitted, hold as much and as long as they did, and the scheduler
    /// decides where and when each starts, on the nodes that the compute has now. Those submitted up to
    /// as long again before --since are played too, so that the nodes are not empty at the outset, and
    /// do not count. One that still runs takes as long as it has so far.
    #[command(after_help = "\
Examples:
  atelier simulate replay
  atelier simulate replay --since 7d --add-nodes 2 -o table
  atelier simulate replay --compute gpu --add-nodes 1xA100 --query wait_seconds")]
    Replay(replay::Arguments),
}

pub(super) async fn run(command: Command, context: &Context) -> Result<(), Error> {
    match command {
        Command::Placement(arguments) => placement::run(&arguments, context),
        Command::Queue(arguments) => queue::run(&arguments, context),
        Command::Replay(arguments) => replay::run(&arguments, context).await,
    }
}
