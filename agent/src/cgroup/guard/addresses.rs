//! Addresses that the processes of a group cannot connect or send to, and those that they cannot take for
//! themselves: the kernel asks a program each time (`BPF_PROG_TYPE_CGROUP_SOCK_ADDR`), and what it refuses fails
//! with `EPERM` at once.
//!
//! The programs belong to the group of all attempts, so that one change holds for every job, also those that
//! run; what a job starts, whoever it runs as, cannot get out of them.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use super::bpf::{Beside, Instruction, Question, attach, load};

/// What holds for the addresses that begin alike, at one port or at all. Of several rules the first that
/// matches counts; what none matches is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rule {
    pub(crate) address: IpAddr,
    /// How many of the address's bits count.
    pub(crate) bits: u32,
    /// `None`: at every port.
    pub(crate) port: Option<u16>,
    pub(crate) open: bool,
}

/// What the processes of a group are held to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Rules {
    /// Where they connect and send.
    pub(crate) to: Vec<Rule>,
    /// What they take for themselves, to listen there or to be seen as coming from there.
    pub(crate) own: Vec<Rule>,
}

/// How an address is written in what the kernel asks about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Family {
    V4,
    /// Those of version 4 too, mapped.
    V6,
}

/// `BPF_CGROUP_INET4_CONNECT`, `INET6_CONNECT`, `UDP4_SENDMSG` and `UDP6_SENDMSG`: what connects, and what
/// sends without having connected.
const TO: [(u32, Family); 4] =
    [(10, Family::V4), (11, Family::V6), (14, Family::V4), (15, Family::V6)];

/// `BPF_CGROUP_INET4_BIND` and `INET6_BIND`.
const OWN: [(u32, Family); 2] = [(8, Family::V4), (9, Family::V6)];

/// Holds the processes of a group, and of those below it, to rules, instead of those before. All of them are
/// loaded before the first counts.
pub(in crate::cgroup) fn hold(folder: &Path, rules: &Rules) -> io::Result<()> {
    let mut ready = Vec::new();
    let to = TO.map(|question| (question, &rules.to));
    let own = OWN.map(|question| (question, &rules.own));
    for ((attachment, family), rules) in to.into_iter().chain(own) {
        let question = Question { program: 18, attachment };
        ready.push((question, load(question, &program(family, rules))?));
    }
    ready
        .iter()
        .try_for_each(|(question, program)| attach(*question, program, folder, Beside::Nothing))
}

/// Registers.
const WORD: u8 = 2;
const PORT: u8 = 3;

/// Where `struct bpf_sock_addr` has `user_ip4`, `user_ip6` and `user_port`, all of them as the network writes
/// them.
const IP4: i16 = 4;
const IP6: i16 = 8;
const PORT_OFFSET: i16 = 24;

/// Answers 0 for what the rules close, and 1 for all else.
fn program(family: Family, rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![Instruction::load(PORT, PORT_OFFSET)];
    for rule in rules {
        program.extend(rule.instructions(family));
    }
    program.extend([Instruction::answer(1), Instruction::EXIT]);
    program
}

impl Rule {
    /// Asks word by word, and goes on behind the rule at the first difference.
    fn instructions(&self, family: Family) -> Vec<Instruction> {
        let Some(words) = self.words(family) else { return Vec::new() };
        let answer = [Instruction::answer(i32::from(self.open)), Instruction::EXIT];
        // From the end, where it is known how much is to be skipped.
        let mut backwards: Vec<Instruction> = answer.into_iter().rev().collect();
        let skip = |register, value: u32, behind: &[Instruction]| {
            let count = i16::try_from(behind.len()).unwrap_or(i16::MAX);
            Instruction::skip_unless(register, value.cast_signed(), count)
        };
        if let Some(port) = self.port {
            backwards.push(skip(PORT, port.to_be().into(), &backwards));
        }
        for Word { offset, mask, value } in words.into_iter().rev() {
            backwards.push(skip(WORD, value, &backwards));
            if mask != u32::MAX {
                backwards.push(Instruction::and(WORD, mask.cast_signed()));
            }
            backwards.push(Instruction::load(WORD, offset));
        }
        backwards.reverse();
        backwards
    }

    /// The words of an address that count, with their values in the network's order; `None`: no address of
    /// the family matches.
    fn words(&self, family: Family) -> Option<Vec<Word>> {
        let (octets, bits, first) = match (family, self.address) {
            (Family::V4, IpAddr::V4(address)) => (address.octets().to_vec(), self.bits, IP4),
            (Family::V4, IpAddr::V6(_)) => return None,
            (Family::V6, IpAddr::V4(address)) => {
                (address.to_ipv6_mapped().octets().to_vec(), 96 + self.bits, IP6)
            }
            (Family::V6, IpAddr::V6(address)) => {
                (Ipv6Addr::octets(&address).to_vec(), self.bits, IP6)
            }
        };
        let mut words = Vec::new();
        for (number, four) in (0_u32..).zip(octets.chunks_exact(4)) {
            let counted = bits.saturating_sub(32 * number).min(32);
            let mask = u32::MAX.checked_shl(32 - counted).unwrap_or(0).to_be();
            if mask != 0 {
                let value = four.try_into().map(u32::from_ne_bytes).unwrap_or_default() & mask;
                let offset = first + 4 * i16::try_from(number).unwrap_or_default();
                words.push(Word { offset, mask, value });
            }
        }
        Some(words)
    }
}

/// A part of an address, in the network's order.
struct Word {
    offset: i16,
    mask: u32,
    value: u32,
}

#[cfg(test)]
mod tests;
