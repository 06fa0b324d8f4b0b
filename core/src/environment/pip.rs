//! The lines of a conda document's `pip:` list.

/// What a line says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Line {
    /// A package to install, as pip reads it.
    Requirement(String),
    /// A line for the head of the requirements file: an index, a place to look.
    Option(String),
    /// Pre-releases are welcome.
    Prerelease,
    /// A host whose certificate is not checked.
    InsecureHost(String),
    /// Has no meaning here.
    Ignored(String),
}

/// Options that the requirements file takes as they are.
const KEPT: [(&str, &str); 5] = [
    ("-i", "--index-url"),
    ("", "--extra-index-url"),
    ("-f", "--find-links"),
    ("", "--no-binary"),
    ("", "--only-binary"),
];

/// Options that change how pip works, not what it installs.
const IGNORED: [&str; 14] = [
    "--upgrade",
    "-U",
    "--no-cache-dir",
    "--prefer-binary",
    "--use-pep517",
    "--no-use-pep517",
    "--use-feature",
    "--progress-bar",
    "--quiet",
    "-q",
    "--ignore-installed",
    "-I",
    "--user",
    "--no-warn-script-location",
];

/// Reads one line.
///
/// # Errors
/// In words, what cannot be done with it and what to write instead.
pub(super) fn line(text: &str) -> Result<Line, String> {
    // As pip: a comment begins at a '#' after a blank.
    let text = text.split(" #").next().unwrap_or(text).trim();
    if let Some(problem) = needs_file(text) {
        return Err(problem.to_owned());
    }
    if text.starts_with('-') {
        return option(text);
    }
    Ok(Line::Requirement(text.split_whitespace().collect::<Vec<_>>().join(" ")))
}

/// Why a line cannot be used away from the submitter's files, if it takes anything from there.
pub(crate) fn needs_file(text: &str) -> Option<&'static str> {
    let (name, value) = option_parts(text);
    match name {
        "-r" | "--requirement" | "-c" | "--constraint" => {
            Some("another file cannot be read on the node: write its lines into the 'pip:' list")
        }
        "-e" | "--editable" if !value.contains("://") => Some(
            "an editable local package does not exist on the node: put it into the code folder \
             and install it in the command",
        ),
        _ if text.starts_with('-') => None,
        _ if is_local(text) => Some(
            "a local path does not exist on the node: put the package into the code folder and \
             install it in the command, or give a URL",
        ),
        _ => text
            .split_once('@')
            .filter(|(_, url)| url.trim_start().starts_with("file:"))
            .map(|_| "a 'file:' URL does not exist on the node: give an https or git URL"),
    }
}

/// An option's name and its value.
fn option_parts(text: &str) -> (&str, &str) {
    let (name, rest) = text.split_at(text.find([' ', '=']).unwrap_or(text.len()));
    (name, rest.trim_start_matches(['=', ' ']).trim())
}

fn is_local(text: &str) -> bool {
    text == "."
        || text.starts_with(['/', '~'])
        || ["./", "../", "file:", ".["].iter().any(|start| text.starts_with(start))
        || (text.ends_with(".whl") && !text.contains("://"))
}

fn option(text: &str) -> Result<Line, String> {
    let (name, value) = option_parts(text);
    if let Some((_, long)) =
        KEPT.iter().find(|(short, long)| *long == name || (!short.is_empty() && *short == name))
    {
        if value.is_empty() {
            return Err(format!("'{name}' needs a value"));
        }
        return Ok(Line::Option(format!("{long} {value}")));
    }
    match name {
        "--pre" => Ok(Line::Prerelease),
        "--no-index" => Ok(Line::Option("--no-index".into())),
        "--trusted-host" if !value.is_empty() => Ok(Line::InsecureHost(value.to_owned())),
        "-e" | "--editable" => Ok(Line::Requirement(value.to_owned())),
        _ if IGNORED.contains(&name) => Ok(Line::Ignored(text.to_owned())),
        _ => Err(format!("'{name}' is not supported here: write packages and index options only")),
    }
}
