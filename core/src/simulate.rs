//! What-if: the scheduler's own decisions on a trace, in no time at all.

mod placement;
mod queue;

#[cfg(test)]
mod tests;

pub use placement::{Saturation, TraceNode, TraceTask, saturate};
pub use queue::{Amounts, Fate, Played, PlayedJob, Spread, play};
