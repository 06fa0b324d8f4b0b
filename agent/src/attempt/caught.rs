//! Panics of an attempt's task: a fault of this program, which must not leave a job without an end.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use futures::FutureExt as _;

thread_local! {
    /// Where this thread has last panicked.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Waits for what does not panic; of what does, the place and the words.
pub(super) async fn caught<T>(task: impl Future<Output = T>) -> Result<T, String> {
    note_places();
    // What it leaves is the attempt's, which is not used again but to end it.
    AssertUnwindSafe(task).catch_unwind().await.map_err(|payload| {
        let place = PLACE.take().unwrap_or_else(|| "an unknown place".to_owned());
        format!("{place}: {}", words(payload.as_ref()))
    })
}

/// Only a hook is told the place.
fn note_places() {
    static NOTED: Once = Once::new();
    NOTED.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let place = panic.location().map(ToString::to_string);
            // A thread that ends has no place for it any more.
            let _ = PLACE.try_with(|kept| kept.replace(place));
            before(panic);
        }));
    });
}

fn words(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_told_with_its_place_and_words() {
        assert_eq!(caught(async { 7 }).await, Ok(7));
        let line = line!() + 2;
        let told = caught(async {
            let none: Option<u8> = std::hint::black_box(None);
            assert!(none.is_some(), "nothing there, {}", 1 + 1);
        });
        let told = told.await.unwrap_err();
        assert!(told.starts_with(file!()) && told.contains(&format!(":{}:", line + 1)), "{told}");
        assert!(told.ends_with("nothing there, 2"), "{told}");
    }
}
