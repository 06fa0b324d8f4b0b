//! Questions to nodes that are open: each goes over its node's session, and ends with that at the latest.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use atelier_core::id::NodeName;

/// Who waits for answers, by the request's number.
pub(super) struct Asked<T> {
    last: AtomicU64,
    open: Mutex<HashMap<u64, Asker<T>>>,
}

struct Asker<T> {
    node: NodeName,
    /// Over which it was asked, once that is known.
    session: Option<u64>,
    answers: T,
}

impl<T> Default for Asked<T> {
    fn default() -> Self {
        Self { last: AtomicU64::new(0), open: Mutex::default() }
    }
}

impl<T> Asked<T> {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Asker<T>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for who asks this node, unless `is_full` says of the nodes that are asked that there is none.
    pub(super) fn enter(
        &self,
        node: &NodeName,
        answers: T,
        is_full: impl FnOnce(&mut dyn Iterator<Item = &NodeName>) -> bool,
    ) -> Option<Place<'_, T>> {
        let mut open = self.open();
        if is_full(&mut open.values().map(|asker| &asker.node)) {
            return None;
        }
        let request = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        open.insert(request, Asker { node: node.clone(), session: None, answers });
        Some(Place { asked: self, request })
    }

    /// Brings a node's answer to who asked it, if they still wait; `give` says whether they go on waiting.
    pub(super) fn told(&self, node: &NodeName, request: u64, give: impl FnOnce(&mut T) -> bool) {
        let mut open = self.open();
        if let Some(asker) = open.get_mut(&request)
            && &asker.node == node
            && !give(&mut asker.answers)
        {
            open.remove(&request);
        }
    }

    /// A session ended: whoever asked over it is told nothing more. One who does not know yet over which may
    /// have been, and asks again.
    pub(super) fn session_ended(&self, node: &NodeName, session: u64) {
        let goes_on = |asker: &Asker<T>| {
            &asker.node != node || asker.session.is_some_and(|other| other != session)
        };
        self.open().retain(|_, asker| goes_on(asker));
    }
}

/// Of one who waits; without it they are forgotten.
pub(super) struct Place<'a, T> {
    asked: &'a Asked<T>,
    /// The request's number.
    pub(super) request: u64,
}

impl<T> Place<'_, T> {
    /// It was asked over this session.
    pub(super) fn over(&self, session: u64) {
        if let Some(asker) = self.asked.open().get_mut(&self.request) {
            asker.session = Some(session);
        }
    }
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        self.asked.open().remove(&self.request);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn a_session_that_ends_takes_those_who_asked_over_it_and_no_others() {
        let (asked, node) = (Asked::default(), NodeName::new("gpu-1").unwrap());
        let (old, mut of_old) = oneshot::channel::<()>();
        let (new, mut of_new) = oneshot::channel();
        let places = [old, new].map(|one| asked.enter(&node, one, |_| false).unwrap());
        places[0].over(1);
        places[1].over(2);
        asked.session_ended(&NodeName::new("gpu-2").unwrap(), 1);
        assert_eq!(of_old.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        asked.session_ended(&node, 1);
        assert_eq!(of_old.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(of_new.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        asked.session_ended(&node, 2);
        assert_eq!(of_new.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }
}
