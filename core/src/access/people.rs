//! Who somebody is where computes are given out: in which groups, and whether they give computes out themselves.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::id::{GroupName, Principal};

/// Groups that one user may be in.
pub const MAX_GROUPS: usize = 1_000;

/// A person, as far as computes ask.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Person {
    /// The groups they are in.
    #[serde(default)]
    pub groups: BTreeSet<GroupName>,
    /// Whether their role may change computes, and so use any.
    #[serde(default)]
    pub manages: bool,
}

impl Person {
    /// Their groups in words: `group 'nlp'`, `groups 'nlp', 'vision'`, `no group`.
    pub fn told_groups(&self) -> String {
        match self.groups.len() {
            0 => "no group".to_owned(),
            1 => format!("group {}", listed(&self.groups)),
            _ => format!("groups {}", listed(&self.groups)),
        }
    }
}

/// Everybody of whom there is something to know.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct People {
    by_name: BTreeMap<Principal, Person>,
}

/// Whoever is in no group and manages nothing.
const NOBODY: &Person = &Person { groups: BTreeSet::new(), manages: false };

impl People {
    /// What is known of somebody.
    pub fn of(&self, who: &Principal) -> &Person {
        self.by_name.get(who).unwrap_or(NOBODY)
    }

    /// Says who somebody is.
    pub fn set(&mut self, who: Principal, person: Person) {
        if person == *NOBODY {
            self.by_name.remove(&who);
        } else {
            self.by_name.insert(who, person);
        }
    }
}

impl FromIterator<(Principal, Person)> for People {
    fn from_iter<I: IntoIterator<Item = (Principal, Person)>>(all: I) -> Self {
        let mut people = Self::default();
        all.into_iter().for_each(|(who, person)| people.set(who, person));
        people
    }
}

/// So many names are told before the rest is left out.
const TOLD: usize = 5;

/// `'nlp', 'vision'`; of many the first few.
pub(crate) fn listed<T: ToString>(names: &BTreeSet<T>) -> String {
    let first: Vec<String> =
        names.iter().take(TOLD).map(|name| format!("'{}'", name.to_string())).collect();
    let more = names.len().saturating_sub(TOLD);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    first.join(", ") + &more
}
