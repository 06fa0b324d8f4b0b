//! What usually comes, learnt from what came.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imbl::OrdMap;

use super::{Ask, Free};

/// Sequences that a node is followed through, and the jobs in each. So many jobs fill the largest
/// nodes; twice as many sequences decide hardly better and take twice as long.
const SEQUENCES: usize = 16;
const LENGTH: usize = 40;

/// The first lesson; each next one comes when half as many jobs again have come.
const FIRST: u64 = 16;

/// States remembered; beyond that all are forgotten, and found again as they are needed.
const REMEMBERED: usize = 1 << 20;

/// How often each kind of GPU job came, and sequences drawn from that.
#[derive(Clone, Debug, Default)]
pub struct Futures {
    came: OrdMap<Ask, u64>,
    count: u64,
    /// The sequences are drawn anew when so many have come.
    next: u64,
    /// One after the other.
    drawn: Arc<Vec<Ask>>,
    /// Found before with these sequences, by this value or a clone of it. Forgetting it changes no
    /// decision.
    found: Arc<Mutex<HashMap<Free, u64>>>,
}

impl Futures {
    /// Takes note of a job that came. Those without GPUs strand none and tell nothing.
    pub fn learn(&mut self, ask: &Ask) {
        if ask.milli_gpus() == 0 {
            return;
        }
        *self.came.entry(*ask).or_default() += 1;
        self.count += 1;
        if self.count >= self.next.max(FIRST) {
            self.next = self.count + self.count / 2;
            self.draw();
        }
    }

    /// Draws the sequences anew: independent draws by how often each kind came. Which, depends on
    /// the counts alone.
    fn draw(&mut self) {
        let mut up_to = 0;
        let shares: Vec<(u64, Ask)> = self
            .came
            .iter()
            .map(|(ask, times)| {
                up_to += times;
                (up_to, *ask)
            })
            .collect();
        let mut random = SplitMix(self.count);
        let one = |_| {
            let at = random.below(up_to);
            let index = shares.partition_point(|(up_to, _)| *up_to <= at);
            shares.get(index).map(|(_, ask)| *ask)
        };
        self.drawn = Arc::new((0..SEQUENCES * LENGTH).filter_map(one).collect());
        self.found = Arc::default();
    }

    fn found(&self) -> MutexGuard<'_, HashMap<Free, u64>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The GPU, in thousandths, that stays free on a node when it takes what fits of each sequence;
    /// summed over the sequences. Zero while nothing has been learnt.
    pub fn stranded(&self, free: &Free) -> u64 {
        if self.drawn.is_empty() || free.milli_gpus() == 0 {
            return 0;
        }
        if let Some(known) = self.found().get(free) {
            return *known;
        }
        let mut node = free.clone();
        let mut stranded = 0;
        for sequence in self.drawn.chunks(LENGTH) {
            node.clone_from(free);
            for ask in sequence {
                if node.fits(ask) {
                    node.take(ask);
                }
            }
            stranded += node.milli_gpus();
        }
        let mut found = self.found();
        if found.len() >= REMEMBERED {
            found.clear();
        }
        found.insert(free.clone(), stranded);
        stranded
    }
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): small, and the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; zero if that is zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or_default()
    }
}
