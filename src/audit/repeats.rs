//! What repeats itself is told once, and counted.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use atelier_core::audit::Draft;

/// What was told within a while. It never grows beyond a bound.
#[derive(Debug)]
pub struct Repeats {
    window: Duration,
    most: usize,
    seen: HashMap<Key, Seen>,
    /// Those that found no place.
    missed: u64,
}

/// Who, as what, from where; what; of what.
type Key = (String, String, Option<std::net::IpAddr>, String, String);

#[derive(Debug)]
struct Seen {
    since: Instant,
    draft: Draft,
    more: u64,
}

impl Repeats {
    /// Things are the same for so long, and so many of them are told apart.
    pub fn new(window: Duration, most: usize) -> Self {
        Self { window, most, seen: HashMap::new(), missed: 0 }
    }

    /// The draft again, if it is the first of its kind; others are counted.
    pub fn first(&mut self, draft: Draft, now: Instant) -> Option<Draft> {
        let actor = &draft.actor;
        let key = (
            actor.principal.to_string(),
            actor.role.clone(),
            actor.from,
            actor.action.clone(),
            draft.change.resource.clone(),
        );
        if let Some(seen) = self.seen.get_mut(&key) {
            seen.more += 1;
            return None;
        }
        if self.seen.len() >= self.most {
            self.missed += 1;
            return None;
        }
        self.seen.insert(key, Seen { since: now, draft: draft.clone(), more: 0 });
        Some(draft)
    }

    /// One was lost.
    pub fn missed(&mut self) {
        self.missed += 1;
    }

    /// How many were only counted since this was asked last.
    pub fn take_missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }

    /// Of those whose time is over: how often each came again.
    pub fn over(&mut self, now: Instant) -> Vec<Draft> {
        let window = self.window;
        let is_over = |seen: &Seen| now.saturating_duration_since(seen.since) >= window;
        let over = self.seen.extract_if(|_, seen| is_over(seen));
        over.filter_map(|(_, seen)| again(seen)).collect()
    }

    /// The same of all.
    pub fn all(&mut self) -> Vec<Draft> {
        self.seen.drain().filter_map(|(_, seen)| again(seen)).collect()
    }
}

fn again(seen: Seen) -> Option<Draft> {
    let Seen { mut draft, more, .. } = seen;
    if more == 0 {
        return None;
    }
    draft.change.after = Some(serde_json::json!({ "times_more": more }).to_string());
    Some(draft)
}

#[cfg(test)]
mod tests {
    use atelier_core::audit::{Actor, Change};
    use atelier_core::id::Principal;

    use super::*;

    fn draft(who: &str, resource: &str) -> Draft {
        Actor::from(Principal::new(who).unwrap()).changes(Change::refused(resource, "no"))
    }

    #[test]
    fn what_repeats_itself_is_counted_and_a_flood_is_bounded() {
        let mut repeats = Repeats::new(Duration::from_secs(10), 3);
        let start = Instant::now();
        assert!(repeats.first(draft("ana", "a"), start).is_some());
        for _ in 0..5 {
            assert!(repeats.first(draft("ana", "a"), start).is_none());
        }
        let told = (0..100).filter_map(|n| repeats.first(draft("ben", &n.to_string()), start));
        assert_eq!(told.count(), 2);
        assert_eq!((repeats.take_missed(), repeats.take_missed()), (98, 0));
        assert!(repeats.over(start + Duration::from_secs(9)).is_empty());
        let over = repeats.over(start + Duration::from_secs(10));
        assert_eq!(over.len(), 1);
        assert_eq!(over[0].change.after.as_deref(), Some("{\"times_more\":5}"));
        assert!(repeats.first(draft("ana", "a"), start).is_some());
        assert!(repeats.first(draft("ana", "a"), start).is_none());
        assert_eq!(repeats.all().len(), 1);
    }
}
