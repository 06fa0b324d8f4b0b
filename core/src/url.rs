//! Parts of URLs.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What is not as it is in a path: all but the unreserved characters (RFC 3986, 2.3) and `/`.
const ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// A path, or a part of a query, as URLs have it: its own `/` stay, what else means something there is `%XX`.
pub fn encoded(path: &str) -> String {
    utf8_percent_encode(path, ENCODED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_in_a_url_is_encoded() {
        assert_eq!(encoded("a/b c?d#e%f&ä~_-."), "a/b%20c%3Fd%23e%25f%26%C3%A4~_-.");
    }
}
