//! The language in which runs, experiments and logged models are searched: comparisons joined by `AND`.
//!
//! ```text
//! filter     = [ comparison { AND comparison } ]
//! comparison = identifier ( operator value | [NOT] IN "(" text { "," text } ")" | IS [NOT] NULL )
//! identifier = [ entity "." ] key           entity: metrics, params, tags, attributes, datasets
//! key        = word | "`" any "`" | '"' any '"'
//! operator   = "=" | "!=" | ">" | ">=" | "<" | "<=" | LIKE | ILIKE
//! value      = number | "'" text "'" | '"' text '"'
//! order      = identifier [ ASC | DESC ]
//! ```
//!
//! Keywords are read in any case. Within quotes, the doubled quote stands for itself. A parser for
//! the whole, written by hand: the grammar is regular and its errors name the character.

mod cursor;
mod experiments;
mod models;
mod registry;
mod runs;

use super::Error;
pub use experiments::{ExperimentClause, ExperimentKey, experiment_filter, experiment_order};
pub use models::{ModelClause, ModelKey, ModelNumber, ModelText, model_filter, model_order};
pub use registry::{
    RegisteredClause, RegisteredKey, VersionClause, VersionKey, registered_filter,
    registered_order, version_filter, version_order,
};
pub use runs::{
    DatasetField, NumberAttribute, RunClause, RunKey, TextAttribute, run_filter, run_order,
};

/// Bytes of a filter or of one ordering.
pub const BYTES: usize = 64 * 1024;
/// Comparisons in a filter.
pub const CLAUSES: usize = 100;
/// Orderings in a search.
pub const ORDERINGS: usize = 20;
/// Runs of `%` in a pattern: matching time grows with their number.
pub const WILDCARDS: usize = 16;

/// How a number is compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NumberTest {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    Greater,
    /// `>=`
    AtLeast,
}

impl NumberTest {
    /// The operator as written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::Greater => ">",
            Self::AtLeast => ">=",
        }
    }
}

/// How a text is compared.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum TextTest {
    /// `= 'text'`
    Equal(String),
    /// `!= 'text'`; false where there is no value.
    NotEqual(String),
    /// `LIKE 'pattern'`: `%` is any text, `_` any character, case counts.
    Like(String),
    /// `ILIKE 'pattern'`: like `LIKE`, ASCII case does not count.
    ILike(String),
    /// `IN ('a', 'b')`
    In(Vec<String>),
    /// `NOT IN ('a', 'b')`
    NotIn(Vec<String>),
    /// `IS NULL`: there is no value.
    IsNull,
    /// `IS NOT NULL`: there is a value.
    IsNotNull,
}

/// One ordering.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct OrderBy<K> {
    /// By what.
    pub key: K,
    /// Smallest first. What has no value comes last either way.
    pub ascending: bool,
}

/// Refuses more orderings than a search takes, and the same key twice.
fn check_orderings<K: PartialEq>(orderings: &[OrderBy<K>], texts: &[String]) -> Result<(), Error> {
    if orderings.len() > ORDERINGS {
        return Err(Error::Invalid(format!(
            "`order_by` takes at most {ORDERINGS} fields, got {}.",
            orderings.len()
        )));
    }
    for (i, ordering) in orderings.iter().enumerate() {
        if orderings[..i].iter().any(|earlier| earlier.key == ordering.key) {
            return Err(Error::Invalid(format!(
                "`order_by` contains duplicate fields: {}",
                super::limits::excerpt(&texts.join(", "))
            )));
        }
    }
    Ok(())
}
