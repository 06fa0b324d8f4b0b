//! Moves a job's code, inputs and outputs between storage and this node.

/// Whose a failure is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// What the job asks for cannot be had.
    User,
    /// The node's disk is full.
    DiskFull,
    /// The node, the network or the daemon; another attempt may succeed.
    Platform,
}
