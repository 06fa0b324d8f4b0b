//! What an object store has that nothing here can name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How many keys are kept as examples.
const EXAMPLES: usize = 3;
/// The characters of a key that are shown.
const SHOWN: usize = 120;

/// Keys of an object store that are no path here: how many a listing went past, and some of them. However many there
/// are, this stays small.
#[must_use = "what cannot be named is told, and not passed over"]
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Unnamed {
    /// How many; a folder of them that was not looked into counts as one.
    pub count: u64,
    /// Some, without what cannot be shown.
    pub examples: Vec<String>,
}

impl Unnamed {
    /// Counts a key, as it is in the store below the datastore.
    pub fn add(&mut self, key: &str) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            let cut: String = key.chars().take(SHOWN).collect();
            let more = if cut.len() < key.len() { "…" } else { "" };
            self.examples.push(format!("{}{more}", cut.escape_debug()));
        }
    }

    /// Counts what another listing went past.
    pub fn merge(&mut self, other: Self) {
        self.count += other.count;
        let room = EXAMPLES.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.into_iter().take(room));
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl fmt::Display for Unnamed {
    /// `2 keys that cannot be named here, 'a//b' and 'c/\u{1}'`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted: Vec<String> = self.examples.iter().map(|key| format!("'{key}'")).collect();
        let shown = match quoted.as_slice() {
            [] => String::new(),
            [only] => only.clone(),
            [first @ .., last] => format!("{} and {last}", first.join(", ")),
        };
        match self.count {
            1 => write!(f, "a key that cannot be named here, {shown}"),
            count if count > quoted.len() as u64 => {
                write!(f, "{count} keys that cannot be named here, among them {shown}")
            }
            count => write!(f, "{count} keys that cannot be named here, {shown}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_counted_and_some_are_shown() {
        let mut all = Unnamed::default();
        assert!(all.is_empty());
        all.add("a//b");
        assert_eq!(all.to_string(), "a key that cannot be named here, 'a//b'");
        all.add("\u{1b}[31m\n");
        assert_eq!(
            all.to_string(),
            "2 keys that cannot be named here, 'a//b' and '\\u{1b}[31m\\n'"
        );
        let mut other = Unnamed::default();
        (0..1000).for_each(|_| other.add(&"x".repeat(1000)));
        all.merge(other);
        assert_eq!((all.count, all.examples.len()), (1002, 3));
        assert!(all.examples[2].ends_with("x…") && all.examples[2].chars().count() == 121);
        assert!(
            all.to_string().starts_with("1002 keys that cannot be named here, among them 'a//b', ")
        );
    }
}
