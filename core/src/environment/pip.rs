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
    if text.starts_with('-') {
        return option(text);
    }
    if is_local(text) {
        return Err("a local path does not exist on the node: put the package into the code \
                    folder and install it in the command, or give a URL"
            .into());
    }
    if let Some((_, url)) = text.split_once('@')
        && url.trim_start().starts_with("file:")
    {
        return Err("a 'file:' URL does not exist on the node: give an https or git URL".into());
    }
    Ok(Line::Requirement(text.split_whitespace().collect::<Vec<_>>().join(" ")))
}

fn is_local(text: &str) -> bool {
    text == "."
        || text.starts_with(['/', '~'])
        || ["./", "../", "file:", ".["].iter().any(|start| text.starts_with(start))
        || (text.ends_with(".whl") && !text.contains("://"))
}

fn option(text: &str) -> Result<Line, String> {
    let split = text.find([' ', '=']).unwrap_or(text.len());
    let (name, rest) = text.split_at(split);
    let value = rest.trim_start_matches(['=', ' ']).trim();
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
        "-e" | "--editable" if value.contains("://") => Ok(Line::Requirement(value.to_owned())),
        "-e" | "--editable" => Err("an editable local package does not exist on the node: put it \
                                    into the code folder and install it in the command"
            .into()),
        "-r" | "--requirement" | "-c" | "--constraint" => {
            Err("another file cannot be read on the node: write its lines into the 'pip:' list"
                .into())
        }
        _ if IGNORED.contains(&name) => Ok(Line::Ignored(text.to_owned())),
        _ => Err(format!("'{name}' is not supported here: write packages and index options only")),
    }
}
