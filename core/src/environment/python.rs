//! Which Python an environment gets.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::conda::{Clause, Operator, clauses};

/// A released version of Python; what follows the digits (`rc1`, `+`) is left out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PythonVersion {
    /// 3
    pub major: u32,
    /// 11 in 3.11.7
    pub minor: u32,
    /// 7 in 3.11.7
    pub patch: u32,
}

/// A text that is no version of Python.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a version of Python: expected something like 3.11.7")]
pub struct InvalidPythonVersion;

impl FromStr for PythonVersion {
    type Err = InvalidPythonVersion;
    fn from_str(text: &str) -> Result<Self, InvalidPythonVersion> {
        let mut numbers = text.trim().split('.').map(|part| {
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..end].parse::<u32>()
        });
        let mut next = || numbers.next().unwrap_or(Ok(0)).map_err(|_| InvalidPythonVersion);
        Ok(Self { major: next()?, minor: next()?, patch: next()? })
    }
}

impl TryFrom<String> for PythonVersion {
    type Error = InvalidPythonVersion;
    fn try_from(text: String) -> Result<Self, InvalidPythonVersion> {
        text.parse()
    }
}

impl From<PythonVersion> for String {
    fn from(version: PythonVersion) -> Self {
        version.to_string()
    }
}

impl fmt::Display for PythonVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The Python a conda document asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PythonRequest {
    clauses: Vec<Clause>,
}

impl PythonRequest {
    /// The request that these comparisons make; `None` when any Python will do.
    pub fn new(clauses: Vec<Clause>) -> Option<Self> {
        (!clauses.is_empty()).then_some(Self { clauses })
    }

    /// Reads `3.10`, `>=3.8,<3.11`; a bare version means its series.
    ///
    /// # Errors
    /// What is no version specification, in words.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let bare = text.trim().starts_with(|c: char| c.is_ascii_digit());
        let text = if bare { format!("={}", text.trim()) } else { text.to_owned() };
        clauses(&text, false).map(Self::new)
    }

    /// Whether this version is what was asked for.
    pub fn accepts(&self, version: PythonVersion) -> bool {
        self.clauses.iter().all(|clause| holds(clause, version))
    }

    /// The request in PEP 440's words, as `uv python install` takes it.
    pub fn specifier(&self) -> String {
        if let [Clause { operator: Operator::Prefix | Operator::Equal, version }] =
            self.clauses.as_slice()
        {
            return version.clone();
        }
        self.clauses.iter().map(Clause::to_pep440).collect::<Vec<_>>().join(",")
    }

    /// Where in the row of versions the request points to.
    fn target(&self) -> PythonVersion {
        let parsed = |clause: &Clause| clause.version.parse::<PythonVersion>().ok();
        let of = |wanted: &[Operator]| {
            self.clauses.iter().filter(|c| wanted.contains(&c.operator)).find_map(parsed)
        };
        of(&[Operator::Equal, Operator::Prefix, Operator::Compatible])
            .or_else(|| of(&[Operator::Below, Operator::AtMost]))
            .or_else(|| of(&[Operator::AtLeast, Operator::Above]))
            .unwrap_or(PythonVersion { major: 3, minor: 11, patch: 0 })
    }
}

impl fmt::Display for PythonRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.specifier())
    }
}

fn numbers(version: &str) -> Vec<u32> {
    version.split('.').map_while(|part| part.parse().ok()).collect()
}

fn holds(clause: &Clause, version: PythonVersion) -> bool {
    let have = [version.major, version.minor, version.patch];
    let want = numbers(&clause.version);
    let starts = |want: &[u32]| have.iter().zip(want).all(|(have, want)| have == want);
    let mut padded = [0; 3];
    for (slot, number) in padded.iter_mut().zip(&want) {
        *slot = *number;
    }
    match clause.operator {
        // Debian's python3.11 is all there is of `==3.11`: a two-part version means the series.
        Operator::Equal | Operator::Prefix => starts(&want),
        Operator::NotEqual if want.len() < 3 => have != padded,
        Operator::NotEqual | Operator::NotPrefix => !starts(&want),
        Operator::AtLeast => have >= padded,
        Operator::Above => have > padded,
        Operator::AtMost => have <= padded || (want.len() < 3 && starts(&want)),
        Operator::Below => have < padded,
        Operator::Compatible => {
            let series = if want.len() > 1 { &want[..want.len() - 1] } else { &want[..] };
            have >= padded && starts(series)
        }
    }
}

/// A Python found on a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Installed {
    /// The program.
    pub path: String,
    /// Its version.
    pub version: PythonVersion,
    /// What `python3` (or `python`) means on this node.
    pub default: bool,
}

/// What was chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice<'a> {
    /// What was asked for.
    Asked(&'a Installed),
    /// The nearest that is installed.
    Nearest(&'a Installed),
}

/// The oldest minor version of Python 3 that environments can be built for unless it is asked for
/// by name: virtual environment tools and most packages have left the older ones.
const OLDEST_MINOR: u32 = 8;

/// Chooses among the installed Pythons: one that the request accepts (the node's default first,
/// then the newest), else the nearest, a tie going to the newer.
pub fn choose<'a>(
    request: Option<&PythonRequest>,
    installed: &'a [Installed],
) -> Option<Choice<'a>> {
    let usable =
        |python: &&Installed| python.version.major == 3 && python.version.minor >= OLDEST_MINOR;
    let best = |candidates: &mut dyn Iterator<Item = &'a Installed>| {
        candidates.max_by_key(|python| (python.default, python.version))
    };
    let Some(request) = request else {
        return best(&mut installed.iter().filter(usable)).map(Choice::Asked);
    };
    if let Some(python) =
        best(&mut installed.iter().filter(|python| request.accepts(python.version)))
    {
        return Some(Choice::Asked(python));
    }
    let target = request.target();
    installed
        .iter()
        .filter(usable)
        .min_by_key(|python| {
            let version = python.version;
            (
                version.major.abs_diff(target.major),
                version.minor.abs_diff(target.minor),
                version.patch.abs_diff(target.patch),
                std::cmp::Reverse(version),
                !python.default,
            )
        })
        .map(Choice::Nearest)
}
