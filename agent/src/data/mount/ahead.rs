//! Which blocks are fetched before anybody asks for them.

use std::ops::Range;

use super::partial::BLOCK;

/// Blocks that are fetched ahead of a reader at most.
const MOST: u32 = 8;
/// How far from where the last one ended a read may begin and still go on with it: the kernel asks for several
/// pieces at once, which come in any order.
const SLACK: u64 = 4 << 20;

/// How one open file is read. The reader that goes on where it was has blocks fetched for it, more the longer it
/// does; one that goes to and fro has none.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Where the reads so far have ended.
    next: u64,
    /// How many blocks are fetched ahead.
    window: u32,
    /// The blocks before this one were asked for already.
    asked: u32,
    begun: bool,
}

impl Ahead {
    /// A read of these bytes of an object of so many blocks; which others to fetch.
    pub(super) fn read(&mut self, offset: u64, end: u64, blocks: u32) -> Range<u32> {
        let (first, last) = ((offset / BLOCK) as u32, ((end - 1) / BLOCK) as u32);
        let goes_on = self.begun && offset.abs_diff(self.next) <= SLACK && end > self.next;
        if !goes_on {
            // A late piece of what was read ahead is nothing new.
            let is_late = self.begun && end <= self.next && self.next - end <= SLACK;
            if !is_late {
                *self = Self { next: end, window: 0, asked: last + 1, begun: true };
            }
            return 0..0;
        }
        let before = (self.next.saturating_sub(1) / BLOCK) as u32;
        if self.window == 0 || last > before {
            self.window = (self.window * 2).clamp(1, MOST);
        }
        self.next = end;
        let to = last.saturating_add(1 + self.window).min(blocks);
        let from = self.asked.max(first + 1).min(to);
        self.asked = to;
        from..to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 1 << 20;

    #[test]
    fn who_reads_on_has_more_and_more_fetched() {
        let (mut ahead, mut fetched) = (Ahead::default(), 0);
        let mut widest = 0;
        for piece in 0..4 * 40 {
            let wanted = ahead.read(piece * PIECE, (piece + 1) * PIECE, 40);
            // Each block once, in order.
            assert!(wanted.is_empty() || fetched == 0 || wanted.start == fetched, "{wanted:?}");
            fetched = fetched.max(wanted.end);
            widest = widest.max(fetched.saturating_sub((piece / 4) as u32 + 1));
        }
        assert_eq!((fetched, widest), (40, MOST));
    }

    #[test]
    fn the_first_read_and_one_elsewhere_fetch_nothing_else() {
        let mut ahead = Ahead::default();
        for block in [0, 50, 3, 77, 20] {
            assert!(ahead.read(block * BLOCK, block * BLOCK + 4096, 100).is_empty());
        }
        assert_eq!(ahead.read(20 * BLOCK + 4096, 20 * BLOCK + 8192, 100), 21..22);
        assert!(ahead.read(90 * BLOCK, 90 * BLOCK + 4096, 100).is_empty());
    }

    #[test]
    fn pieces_may_come_in_another_order() {
        let mut ahead = Ahead::default();
        let mut asked = Vec::new();
        for piece in [0, 2, 1, 3, 5, 4, 7, 6, 8, 9] {
            asked.extend(ahead.read(piece * PIECE, (piece + 1) * PIECE, 100));
        }
        let mut sorted = asked.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(asked, sorted);
        assert!(asked.len() >= 3, "{asked:?}");
    }
}
