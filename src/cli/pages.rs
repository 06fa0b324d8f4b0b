//! Lists that a daemon gives in pages.

use serde_json::Value;

use super::Error;

/// The largest page a daemon gives.
pub(super) const PAGE: u32 = 1000;

/// At most `most` items. `page` asks for so many of them, from a token on, which is empty for the first, and gives the
/// next token, which is empty after the last.
pub(super) async fn pages(
    most: u32,
    mut page: impl AsyncFnMut(u32, String) -> Result<(Vec<Value>, String), Error>,
) -> Result<Vec<Value>, Error> {
    let (mut items, mut token) = (Vec::new(), String::new());
    loop {
        let lacking = most - u32::try_from(items.len()).unwrap_or(most);
        if lacking == 0 {
            return Ok(items);
        }
        let (more, next) = page(lacking.min(PAGE), token).await?;
        items.extend(more);
        items.truncate(most as usize);
        token = next;
        if token.is_empty() {
            return Ok(items);
        }
    }
}
