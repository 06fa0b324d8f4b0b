//! Paths within datastores, and the names of files as parts of them.

use super::Error;
pub(super) use atelier_core::url::encoded as in_url;

/// The longest path, in bytes, that datastores take.
const MAX_PATH: usize = 2048;
/// The longest segment, in bytes.
const MAX_SEGMENT: usize = 255;

/// Refuses what is no path within a datastore: joined to a folder, a path that passes can only lead
/// below it.
pub(super) fn check(path: &str) -> Result<(), Error> {
    let rule = if path.is_empty() {
        Some("it is empty")
    } else if path.len() > MAX_PATH {
        Some("it is longer than 2048 bytes")
    } else if path.contains(['\0', '\\']) {
        Some("it must not contain NUL or '\\'")
    } else {
        path.split('/').find_map(|segment| match segment {
            "" => Some("it begins or ends with '/' or has '//'"),
            "." | ".." => Some("'.' and '..' are not allowed"),
            long if long.len() > MAX_SEGMENT => Some("a segment is longer than 255 bytes"),
            _ => None,
        })
    };
    match rule {
        None => Ok(()),
        Some(rule) => {
            let path: String = path.chars().take(120).collect();
            Err(Error::Path { path: path.escape_debug().to_string(), rule })
        }
    }
}

/// The path without a `/` at its end, checked.
pub(super) fn checked(path: &str) -> Result<&str, Error> {
    let path = path.strip_suffix('/').unwrap_or(path);
    check(path)?;
    Ok(path)
}

/// As [`checked`]; what is empty is the whole datastore.
pub(super) fn place(path: &str) -> Result<&str, Error> {
    match path {
        "" => Ok(path),
        _ => checked(path),
    }
}

/// A file's name as a segment of a path. Names that are no plain text (bytes that are not UTF-8,
/// control characters, a backslash) are percent-encoded, their `%` too.
pub(super) fn segment(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) if !text.chars().any(|c| c.is_control() || c == '\\') => text.to_owned(),
        _ => {
            let mut encoded = String::with_capacity(name.len() + 16);
            for chunk in name.utf8_chunks() {
                for c in chunk.valid().chars() {
                    if c.is_control() || matches!(c, '\\' | '%') {
                        let mut bytes = [0; 4];
                        c.encode_utf8(&mut bytes).bytes().for_each(|b| push_byte(&mut encoded, b));
                    } else {
                        encoded.push(c);
                    }
                }
                chunk.invalid().iter().for_each(|byte| push_byte(&mut encoded, *byte));
            }
            encoded
        }
    }
}

fn push_byte(out: &mut String, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(HEX[usize::from(byte >> 4)]));
    out.push(char::from(HEX[usize::from(byte & 15)]));
}

/// `root/below`, where either may be empty.
pub(super) fn join(root: &str, below: &str) -> String {
    match (root.trim_matches('/'), below.trim_matches('/')) {
        ("", below) => below.to_owned(),
        (root, "") => root.to_owned(),
        (root, below) => format!("{root}/{below}"),
    }
}

/// The last segment.
pub(super) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for bad in
            ["", "/", "/etc", "a//b", "a/", "..", "a/../b", "a/..", ".", "./a", "a\0", "a\\b"]
        {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "a/b.txt", "..a", "a..", "...", "ä ö/%2e%2e?#&"] {
            assert!(check(good).is_ok(), "{good:?}");
        }
        assert!(check(&"a/".repeat(2000)).is_err());
        assert!(check(&"a".repeat(256)).is_err());
        assert_eq!(checked("a/b/").unwrap(), "a/b");
        assert_eq!((place("").unwrap(), place("a/").unwrap()), ("", "a"));
        assert!(place("/").is_err() && place("a//").is_err());
    }

    #[test]
    fn odd_names_become_plain_ones() {
        assert_eq!(segment("größe 100%.txt".as_bytes()), "größe 100%.txt");
        assert_eq!(segment(b"a\xffb%"), "a%FFb%25");
        assert_eq!(segment(b"a\nb\\c"), "a%0Ab%5Cc");
        assert_eq!(in_url("a b/ü?#%"), "a%20b/%C3%BC%3F%23%25");
    }

    proptest! {
        #[test]
        fn encoded_names_are_segments_and_differ(
            one in proptest::collection::vec(any::<u8>(), 1..40),
            other in proptest::collection::vec(any::<u8>(), 1..40),
        ) {
            let fit = |name: &[u8]| !matches!(name, b"." | b"..") && !name.iter().any(|b| matches!(b, 0 | b'/'));
            prop_assume!(fit(&one) && fit(&other));
            let (a, b) = (segment(&one), segment(&other));
            prop_assert!(check(&a).is_ok(), "{a:?}");
            // Only a name that is plain text may look like an encoded one.
            if one != other && a == b {
                prop_assert!(std::str::from_utf8(&one).is_ok() || std::str::from_utf8(&other).is_ok());
            }
        }
    }
}
