//! The saturation protocol of "Beware of Fragmentation" (Weng et al., USENIX ATC 2023): tasks come one
//! at a time until far more has come than the cluster holds. Each is placed at once or dropped for
//! good. What counts is how much of the GPUs is allocated in the end.

use crate::resource::{MiB, MilliCpu, MilliGpu, WHOLE_GPU};
use crate::sched::pack::{Ask, Free, Models, Packing, SplitMix};

/// A node of a trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TraceNode {
    /// CPU in thousandths of a core.
    pub cpu: MilliCpu,
    /// Memory in MiB.
    pub memory: MiB,
    /// GPU devices.
    pub gpus: u16,
    /// Their model; empty if there are none.
    pub model: String,
}

/// A task of a trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TraceTask {
    /// CPU in thousandths of a core.
    pub cpu: MilliCpu,
    /// Memory in MiB.
    pub memory: MiB,
    /// GPU devices.
    pub gpus: u16,
    /// How much of the device, where it is one.
    pub share: MilliGpu,
    /// The models that will do; empty: any.
    pub models: Vec<String>,
}

/// How one run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Saturation {
    /// Thousandths of GPUs allocated in the end.
    pub allocated: u64,
    /// Thousandths of GPUs that there are.
    pub capacity: u64,
    /// Tasks that came.
    pub tasks: usize,
    /// Tasks that were placed.
    pub placed: usize,
}

impl Saturation {
    /// The share of the GPUs that is allocated, in percent.
    pub fn percent(&self) -> f64 {
        self.allocated as f64 * 100.0 / self.capacity.max(1) as f64
    }
}

/// Runs the protocol: the tasks in an order that `seed` decides, and after them tasks drawn from
/// them, until they ask for `inflate` thousandths of the cluster's GPUs. Deterministic.
pub fn saturate(nodes: &[TraceNode], tasks: &[TraceTask], inflate: u64, seed: u64) -> Saturation {
    let mut models: Vec<&str> = Vec::new();
    let mut packing = Packing::default();
    let mut capacity = 0;
    for (number, node) in (0_u32..).zip(nodes) {
        let model = models.iter().position(|known| *known == node.model).unwrap_or_else(|| {
            models.push(&node.model);
            models.len() - 1
        });
        let gpus = vec![WHOLE_GPU; node.gpus.into()];
        capacity += u64::from(node.gpus) * u64::from(WHOLE_GPU);
        let model = u8::try_from(model).unwrap_or(u8::MAX);
        packing.add(number, Free::new(node.cpu, node.memory, gpus, model));
    }
    let asks: Vec<Ask> = tasks.iter().map(|task| ask(task, &models)).collect();
    let mut random = SplitMix(seed);
    let arrivals = arrivals(&asks, capacity.saturating_mul(inflate) / 1000, &mut random);
    let mut end = Saturation { allocated: 0, capacity, tasks: arrivals.len(), placed: 0 };
    for ask in &arrivals {
        packing.learn(ask);
        if packing.place(ask).is_some() {
            end.allocated += ask.milli_gpus();
            end.placed += 1;
        }
    }
    end
}

fn ask(task: &TraceTask, models: &[&str]) -> Ask {
    let numbers = |wanted: &String| {
        models.iter().position(|model| model == wanted).and_then(|n| u8::try_from(n).ok())
    };
    let allowed = if task.models.is_empty() {
        Models::ANY
    } else {
        Models::of(task.models.iter().filter_map(numbers))
    };
    Ask {
        cpu: task.cpu,
        memory: task.memory,
        gpus: task.gpus.into(),
        share: task.share,
        models: allowed,
    }
}

/// All of them once, in random order (Fisher and Yates), then some again until `wanted` thousandths of
/// GPUs are asked for.
fn arrivals(asks: &[Ask], wanted: u64, random: &mut SplitMix) -> Vec<Ask> {
    let mut arrivals = asks.to_vec();
    for last in (1..arrivals.len()).rev() {
        let other = usize::try_from(random.below(last as u64 + 1)).unwrap_or(last);
        arrivals.swap(last, other);
    }
    let mut asked: u64 = arrivals.iter().map(Ask::milli_gpus).sum();
    // Without any GPU among them it would never end.
    while asked < wanted && asks.iter().any(|ask| ask.milli_gpus() > 0) {
        let index = usize::try_from(random.below(asks.len() as u64)).unwrap_or_default();
        let Some(again) = asks.get(index) else { break };
        asked += again.milli_gpus();
        arrivals.push(*again);
    }
    arrivals
}
