//! What the processes of a group receive and send: the kernel hands each packet to a program
//! (`BPF_PROG_TYPE_CGROUP_SKB`), which adds its length to a number.
//!
//! No controller counts that, and jobs share their node's network, so the machine's own counts do not tell them
//! apart. What stays on the machine (its first device, `lo`) does not count.

use std::io;
use std::path::Path;

use super::bpf::{Beside, Instruction, Numbers, Question, attach, load};

/// Counts from when it was made, as long as the group is there.
#[derive(Debug)]
pub(crate) struct Traffic {
    numbers: Numbers<2>,
}

/// `BPF_CGROUP_INET_INGRESS` and `EGRESS`, in the order of the numbers.
const WAYS: [u32; 2] = [0, 1];
/// Where `struct __sk_buff` has `len` and `ifindex`.
const LENGTH: i16 = 0;
const DEVICE: i16 = 40;
/// `lo`, in every network namespace.
const LOOPBACK: i32 = 1;
/// Registers.
const BYTES: u8 = 2;
const INDEX: u8 = 3;
const PLACE: u8 = 4;

impl Traffic {
    /// Begins to count for a group; who did before does no more.
    pub(in crate::cgroup) fn count(folder: &Path) -> io::Result<Self> {
        let numbers = Numbers::new()?;
        for (index, attachment) in WAYS.into_iter().enumerate() {
            let question = Question { program: 8, attachment };
            let counting = load(question, &program(&numbers, index))?;
            attach(question, &counting, folder, Beside::Nothing)?;
        }
        Ok(Self { numbers })
    }

    /// Bytes received and sent so far.
    pub(crate) fn bytes(&self) -> io::Result<(u64, u64)> {
        let [received, sent] = self.numbers.read()?;
        Ok((received, sent))
    }
}

/// Adds the length of each packet, and lets all of them through.
fn program(numbers: &Numbers<2>, index: usize) -> Vec<Instruction> {
    let mut program = vec![
        Instruction::load(BYTES, LENGTH),
        Instruction::load(INDEX, DEVICE),
        // Over the place, which takes two, and the sum.
        Instruction::skip_if(INDEX, LOOPBACK, 3),
    ];
    program.extend(numbers.place(PLACE, index));
    program.extend([Instruction::add_to(PLACE, BYTES), Instruction::answer(1), Instruction::EXIT]);
    program
}

#[cfg(test)]
mod tests;
