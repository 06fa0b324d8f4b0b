//! `atelier simulate`

mod placement;
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
}

pub(super) fn run(command: Command, context: &Context) -> Result<(), Error> {
    match command {
        Command::Placement(arguments) => placement::run(&arguments, context),
    }
}
