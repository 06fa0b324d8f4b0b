//! Folders that hold so much at most: what was not used for longest goes first.

use std::path::Path;
use std::time::{Duration, SystemTime};

/// A fifth of the file system, at most 50 GiB, in bytes.
pub(crate) fn default_limit(folder: &Path) -> u64 {
    const MOST: u64 = 50 << 30;
    rustix::fs::statvfs(folder)
        .map_or(MOST, |stat| (stat.f_blocks.saturating_mul(stat.f_frsize) / 5).min(MOST))
}

/// If `total` is over `limit`, removes of what is not in use, the least recently used first, until
/// nine tenths of the limit remain. `remove` says how many bytes that freed.
pub(crate) fn shrink<U: Ord, K>(
    total: u64,
    limit: u64,
    mut unused: Vec<(U, K)>,
    mut remove: impl FnMut(K) -> u64,
) {
    if total <= limit {
        return;
    }
    let goal = limit / 10 * 9;
    unused.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut left = total;
    for (_, key) in unused {
        if left <= goal {
            return;
        }
        left = left.saturating_sub(remove(key));
    }
}

/// Whether what was last used then has not been used for so long. With no time, all is: a clock that
/// was set back makes nothing young.
pub(crate) fn unused_for(last_used: SystemTime, time: Duration) -> bool {
    SystemTime::now().duration_since(last_used).unwrap_or_default() >= time
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(total: u64, limit: u64, unused: &[(u64, u64)]) -> Vec<u64> {
        let mut gone = Vec::new();
        shrink(total, limit, unused.to_vec(), |bytes| {
            gone.push(bytes);
            bytes
        });
        gone
    }

    #[test]
    fn the_least_recently_used_goes_first_and_no_more_than_needed() {
        let unused = [(3, 30), (1, 10), (2, 20)];
        assert_eq!(removed(100, 100, &unused), [0; 0]);
        assert_eq!(removed(101, 100, &unused), [10, 20]);
        assert_eq!(removed(150, 100, &unused), [10, 20, 30]);
        assert_eq!(removed(60, 0, &unused), [10, 20, 30]);
        assert_eq!(removed(101, 100, &[]), [0; 0]);
    }
}
