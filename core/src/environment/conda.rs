//! Conda documents and match specifications as written in `conda_file`.
//!
//! Source: conda's documentation of environment files and of package match specifications
//! (`channel::name=version=build`, `name>=1,<2`, `name[version='>=1']`).

use serde_json::Value;

/// A conda document that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a mapping with a list of dependencies.
    #[error("conda_file: {0}")]
    Shape(String),
    /// One dependency makes no sense.
    #[error("conda_file: dependency '{text}': {problem}")]
    Dependency {
        /// As written, cut to 200 characters.
        text: String,
        /// What is wrong and what to write instead.
        problem: String,
    },
}

/// A conda document: what to install, from where.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Document {
    /// The environment's name; for people.
    pub name: Option<String>,
    /// Channels as written; the Python Package Index takes their place.
    pub channels: Vec<String>,
    /// Conda packages, in order.
    pub packages: Vec<MatchSpec>,
    /// The lines of the nested `pip:` lists, in order.
    pub pip: Vec<String>,
    /// Variables the document sets for the environment.
    pub variables: Vec<(String, String)>,
}

/// A conda package and which of its versions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MatchSpec {
    /// `conda-forge` in `conda-forge::numpy`.
    pub channel: Option<String>,
    /// Lower case.
    pub name: String,
    /// Which versions; empty means any.
    pub version: Vec<Clause>,
    /// The build string, which means nothing outside conda.
    pub build: Option<String>,
}

/// One comparison of a version specification; all of them must hold.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Clause {
    /// How to compare.
    pub operator: Operator,
    /// With what, without any trailing `.*`.
    pub version: String,
}

/// How a version is compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Operator {
    /// `==1.2`
    Equal,
    /// `=1.2`, `1.2.*`: 1.2 and everything that starts with `1.2.`
    Prefix,
    /// `!=1.2`
    NotEqual,
    /// `!=1.2.*`
    NotPrefix,
    /// `>=1.2`
    AtLeast,
    /// `>1.2`
    Above,
    /// `<=1.2`
    AtMost,
    /// `<1.2`
    Below,
    /// `~=1.2`: at least 1.2 and below 2
    Compatible,
}

impl Clause {
    /// The same comparison in the Python Package Index's words (PEP 440).
    pub fn to_pep440(&self) -> String {
        let version = &self.version;
        // `==1.2rc1.*` is no specifier: a pre-release names one version.
        let plain = version.chars().all(|c| c.is_ascii_digit() || c == '.' || c == '!');
        match self.operator {
            Operator::Equal => format!("=={version}"),
            Operator::Prefix if plain => format!("=={version}.*"),
            Operator::Prefix => format!("=={version}"),
            Operator::NotEqual => format!("!={version}"),
            Operator::NotPrefix if plain => format!("!={version}.*"),
            Operator::NotPrefix => format!("!={version}"),
            Operator::AtLeast => format!(">={version}"),
            Operator::Above => format!(">{version}"),
            Operator::AtMost => format!("<={version}"),
            Operator::Below => format!("<{version}"),
            // `~=1` is valid for conda, and needs two components for PEP 440.
            Operator::Compatible if !version.contains('.') => format!("=={version}.*"),
            Operator::Compatible => format!("~={version}"),
        }
    }
}

fn dependency_error(text: &str, problem: impl Into<String>) -> Error {
    Error::Dependency { text: text.chars().take(200).collect(), problem: problem.into() }
}

impl Document {
    /// Reads a document given as JSON.
    ///
    /// # Errors
    /// What is not a conda document, naming the offending entry.
    pub fn parse(value: &Value) -> Result<Self, Error> {
        let Value::Object(fields) = value else {
            return Err(Error::Shape(
                "expected a mapping with 'dependencies:', as `conda env export` writes it".into(),
            ));
        };
        let mut document = Self::default();
        if let Some(name) = fields.get("name").and_then(Value::as_str) {
            document.name = Some(name.to_owned());
        }
        if let Some(Value::Array(channels)) = fields.get("channels") {
            document.channels =
                channels.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        }
        if let Some(Value::Object(variables)) = fields.get("variables") {
            for (name, value) in variables {
                document.variables.push((name.clone(), scalar(value).unwrap_or_default()));
            }
        }
        match fields.get("dependencies") {
            None | Some(Value::Null) => {}
            Some(Value::Array(entries)) => {
                for entry in entries {
                    document.entry(entry)?;
                }
            }
            Some(_) => return Err(Error::Shape("'dependencies' must be a list".into())),
        }
        Ok(document)
    }

    fn entry(&mut self, entry: &Value) -> Result<(), Error> {
        match entry {
            Value::String(text) => self.packages.push(MatchSpec::parse(text)?),
            Value::Object(map) => {
                for (key, value) in map {
                    match (key.as_str(), value) {
                        ("pip", Value::Null) => {}
                        ("pip", Value::Array(lines)) => self.pip_lines(lines)?,
                        ("pip", _) => {
                            return Err(Error::Shape("'pip:' must hold a list of packages".into()));
                        }
                        _ => {
                            return Err(dependency_error(
                                key,
                                format!("only 'pip:' may be nested; write '{key}=VERSION'"),
                            ));
                        }
                    }
                }
            }
            Value::Null => {}
            other => {
                return Err(dependency_error(&other.to_string(), "expected a package's name"));
            }
        }
        Ok(())
    }

    fn pip_lines(&mut self, lines: &[Value]) -> Result<(), Error> {
        for line in lines {
            match line {
                Value::String(text) if text.trim().is_empty() => {}
                Value::String(text) if text.contains(['\n', '\r', '\0']) => {
                    return Err(dependency_error(text, "a pip requirement must be one line"));
                }
                Value::String(text) => self.pip.push(text.trim().to_owned()),
                Value::Null => {}
                other => {
                    return Err(dependency_error(
                        &other.to_string(),
                        "expected a pip requirement such as 'numpy==1.26.4'",
                    ));
                }
            }
        }
        Ok(())
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(if *flag { "True".into() } else { "False".into() }),
        _ => None,
    }
}

impl MatchSpec {
    /// Reads one specification.
    ///
    /// # Errors
    /// What is no match specification, or an alternative (`1.2|1.3`), which pip cannot express.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let error = |problem: &str| dependency_error(text, problem);
        let mut rest = text.trim();
        if rest.len() > 1000 {
            return Err(error("longer than 1000 characters"));
        }
        let mut channel = None;
        let mut version = Vec::new();
        let mut build = None;

        // name[key='value', …]
        if let Some(inner) = rest.strip_suffix(']') {
            let Some((before, keys)) = inner.split_once('[') else {
                return Err(error("']' without '['"));
            };
            rest = before.trim_end();
            for (key, value) in bracket_pairs(keys).map_err(|problem| error(&problem))? {
                match key.as_str() {
                    "version" => version = clauses(&value, true).map_err(|e| error(&e))?,
                    "build" => build = Some(value),
                    "channel" => channel = Some(value),
                    // Where a package lies says nothing about what it is.
                    "subdir" | "build_number" | "md5" | "sha256" | "url" | "fn" | "license" => {}
                    _ => return Err(error(&format!("unknown key '{key}'"))),
                }
            }
        }
        if let Some((before, after)) = rest.split_once("::") {
            channel = Some(before.trim().to_owned());
            rest = after.trim_start();
        }
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')))
            .unwrap_or(rest.len());
        let (name, tail) = rest.split_at(end);
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if !starts_well {
            return Err(error("expected a package's name, for example 'numpy=1.26'"));
        }
        let tail = tail.trim();
        if !tail.is_empty() {
            let (spec, found) = split_build(tail);
            if let Some(found) = found {
                if found.contains(' ') {
                    return Err(error("expected 'name version build'"));
                }
                build = Some(found);
            }
            // `name=1.2=BUILD` is exactly 1.2; with a build pattern people mean the series.
            let exact = build.as_deref().is_some_and(|build| !build.contains('*'));
            version = clauses(&spec, exact).map_err(|problem| error(&problem))?;
        }
        Ok(Self { channel, name: name.to_ascii_lowercase(), version, build })
    }
}

/// `build='abc', version='>=1,<2'` as pairs.
fn bracket_pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let Some((key, after)) = rest.split_once('=') else {
            return Err("extras in '[…]' are pip's: move the line into the 'pip:' list".into());
        };
        let after = after.trim_start();
        let quote = after.chars().next().filter(|c| matches!(c, '\'' | '"'));
        let (value, remainder) = match quote {
            Some(quote) => {
                after[1..].split_once(quote).ok_or_else(|| "a quote is not closed".to_owned())?
            }
            None => after.split_once(',').unwrap_or((after, "")),
        };
        pairs.push((key.trim().to_owned(), value.trim().to_owned()));
        rest = remainder.trim_start().trim_start_matches(',').trim_start();
    }
    Ok(pairs)
}

/// Parts what follows a name into version specification and build.
fn split_build(tail: &str) -> (String, Option<String>) {
    // Blanks after an operator or a comma belong to the specification.
    let mut joined = String::with_capacity(tail.len());
    for part in tail.split_whitespace() {
        let glue = joined.ends_with([',', '|', '=', '<', '>', '!', '~'])
            || part.starts_with([',', '|'])
            || joined.is_empty();
        if !glue {
            joined.push(' ');
        }
        joined.push_str(part);
    }
    if let Some((spec, build)) = joined.split_once(' ') {
        // `name >=1 <2` is two comparisons; `name 1.2 py_0` a version and a build.
        if build.starts_with(['<', '>', '!', '=', '~']) {
            return (joined.replace(' ', ","), None);
        }
        return (spec.to_owned(), Some(build.trim().to_owned()));
    }
    // `=1.2=build`, `==1.2=build`: the first `=` after the version begins the build.
    let operator = joined.len() - joined.trim_start_matches(['=', '<', '>', '!', '~']).len();
    let (head, body) = joined.split_at(operator);
    if !body.contains(',')
        && let Some((version, build)) = body.split_once('=')
    {
        return (format!("{head}{version}"), Some(build.to_owned()));
    }
    (joined, None)
}

/// Reads a version specification; `exact` says what a single `=` (or none) means.
pub(super) fn clauses(text: &str, exact: bool) -> Result<Vec<Clause>, String> {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    if text.contains(['|', '(', ')', '^', '$']) {
        return Err("alternatives and patterns cannot be given to pip: write one range, for \
                    example '>=1.2,<1.4'"
            .into());
    }
    let mut all = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (operator, version) = [
            ("==", Operator::Equal),
            ("!=", Operator::NotEqual),
            (">=", Operator::AtLeast),
            ("<=", Operator::AtMost),
            ("~=", Operator::Compatible),
            (">", Operator::Above),
            ("<", Operator::Below),
            ("=", if exact { Operator::Equal } else { Operator::Prefix }),
        ]
        .into_iter()
        .find_map(|(sign, operator)| Some((operator, part.strip_prefix(sign)?)))
        // A bare version after a blank is exact: `numpy 1.26.4`.
        .unwrap_or((Operator::Equal, part));
        let bare = version.trim_end_matches('*').trim_end_matches('.');
        let starred = version.ends_with('*');
        if bare.is_empty() {
            if starred {
                continue;
            }
            return Err(format!("'{part}' has no version"));
        }
        let good = bare.chars().all(|c| c.is_ascii_alphanumeric() || "._!+-".contains(c));
        if !good || bare.starts_with(['.', '-', '+']) {
            return Err(format!("'{version}' is no version"));
        }
        let operator = match (operator, starred) {
            (Operator::Equal, true) => Operator::Prefix,
            (Operator::NotEqual, true) => Operator::NotPrefix,
            (operator, _) => operator,
        };
        all.push(Clause { operator, version: bare.replace('_', ".").to_ascii_lowercase() });
    }
    Ok(all)
}
