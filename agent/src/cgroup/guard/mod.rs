//! What the kernel refuses the processes of a group: devices that were given to others, and addresses that
//! jobs have no way to.
//!
//! ```text
//! devices     GPUs of other jobs, by a controller of version 1 or a program in version 2
//! addresses   cloud metadata and the daemon's ports, by programs in version 2
//! traffic     what is received and sent is counted, by programs in version 2
//! bpf         the programs themselves: instructions, and how the kernel gets them
//! ```

mod addresses;
mod bpf;
mod devices;
#[cfg(test)]
mod testing;
mod traffic;

pub(super) use addresses::hold;
pub(crate) use addresses::{Rule, Rules};
pub(crate) use devices::DeviceNode;
pub(super) use devices::{DEVICES, can_load, deny};
pub(crate) use traffic::Traffic;
