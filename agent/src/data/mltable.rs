//! The `paths` of an `MLTable` file, as far as they name files of its own folder.

use serde::Deserialize;

use super::Error;
use super::store::Found;

/// The file's name in its folder.
pub(super) const FILE: &str = "MLTable";

#[derive(Deserialize)]
struct Table {
    #[serde(default)]
    paths: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    File(String),
    Folder(String),
    Pattern(String),
}

/// The objects of the table's folder that its `paths` name, as `eval_mount` and `eval_download`
/// give them.
pub(super) fn select(name: &str, text: &str, found: Vec<Found>) -> Result<Vec<Found>, Error> {
    let unsupported = |problem: String| Error::Unsupported { name: name.to_owned(), problem };
    let table: Table = serde_saphyr::from_str(text).map_err(|error| {
        unsupported(format!("its MLTable file cannot be read ({error}): mount it with ro_mount"))
    })?;
    if table.paths.is_empty() {
        return Err(unsupported("its MLTable file has no 'paths'".into()));
    }
    let mut chosen = vec![false; found.len()];
    for entry in &table.paths {
        let (written, kind) = match entry {
            Entry::File(path) => (path, "file"),
            Entry::Folder(path) => (path, "folder"),
            Entry::Pattern(path) => (path, "pattern"),
        };
        let relative = written.strip_prefix("./").unwrap_or(written);
        let relative = relative.strip_suffix('/').unwrap_or(relative);
        let leaves = relative.contains("://")
            || relative.starts_with('/')
            || relative.split('/').any(|part| part == "..");
        if leaves {
            return Err(unsupported(format!(
                "its MLTable file names '{written}', which is not in its own folder: only \
                 relative paths can be evaluated here; mount it with ro_mount and read it with \
                 the mltable package"
            )));
        }
        let mut any = false;
        for (object, chosen) in found.iter().zip(&mut chosen) {
            let below = object.below.as_str();
            let named = match kind {
                "file" => below == relative,
                "folder" if matches!(relative, "." | "") => below != FILE,
                "folder" => below.strip_prefix(relative).is_some_and(|rest| rest.starts_with('/')),
                _ => matches(relative.as_bytes(), below.as_bytes()),
            };
            *chosen |= named;
            any |= named;
        }
        if !any {
            return Err(unsupported(format!(
                "its MLTable file names the {kind} '{written}', and nothing there matches"
            )));
        }
    }
    let chosen = found.into_iter().zip(chosen).filter(|(_, chosen)| *chosen);
    Ok(chosen.map(|(object, _)| object).collect())
}

/// Whether a path matches a pattern: `*` and `?` stay within a segment, `**` does not.
fn matches(pattern: &[u8], path: &[u8]) -> bool {
    // One row for each byte of the pattern, so that stars cannot make it take forever.
    let mut reached = vec![false; path.len() + 1];
    reached[0] = true;
    let mut rest = pattern;
    while let Some((&first, after)) = rest.split_first() {
        let deep = first == b'*' && after.first() == Some(&b'*');
        rest = if deep { &after[1..] } else { after };
        // `**/` matches nothing at all, too.
        let skips = deep && rest.first() == Some(&b'/');
        let mut next = vec![false; path.len() + 1];
        for at in 0..=path.len() {
            let here = path.get(at).copied();
            match first {
                b'*' => {
                    if reached[at] {
                        next[at] = true;
                    }
                    if next[at] && here.is_some_and(|c| deep || c != b'/') {
                        next[at + 1] = true;
                    }
                }
                b'?' if reached[at] && here.is_some_and(|c| c != b'/') => next[at + 1] = true,
                literal if reached[at] && here == Some(literal) && literal != b'?' => {
                    next[at + 1] = true;
                }
                _ => {}
            }
        }
        if skips {
            // After `**/`, a path may go on where `**` began.
            let begun = reached.clone();
            let mut with_slash = vec![false; path.len() + 1];
            for at in 0..path.len() {
                if next[at] && path[at] == b'/' {
                    with_slash[at + 1] = true;
                }
            }
            for (at, begun) in begun.into_iter().enumerate() {
                with_slash[at] |= begun;
            }
            next = with_slash;
            rest = &rest[1..];
        }
        reached = next;
    }
    reached[path.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, path, expected) in [
            ("*.csv", "a.csv", true),
            ("*.csv", "d/a.csv", false),
            ("d/*.csv", "d/a.csv", true),
            ("**/*.csv", "d/e/a.csv", true),
            ("**/*.csv", "a.csv", true),
            ("**", "d/e/a.csv", true),
            ("part-?.txt", "part-1.txt", true),
            ("part-?.txt", "part-12.txt", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXbY", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), expected, "{pattern} {path}");
        }
        // Would take forever with naive backtracking.
        assert!(!matches("*a".repeat(40).as_bytes(), "a".repeat(39).as_bytes()));
    }

    fn chosen(text: &str) -> Result<Vec<String>, Error> {
        let found = ["MLTable", "a.csv", "b.csv", "d/c.csv", "d/e/f.txt"].map(|below| Found {
            below: below.into(),
            size: 1,
            etag: String::new(),
        });
        let chosen = select("data", text, found.into())?;
        Ok(chosen.into_iter().map(|object| object.below).collect())
    }

    #[test]
    fn paths_of_the_tables_own_folder() {
        assert_eq!(chosen("paths:\n- file: ./a.csv\n").unwrap(), ["a.csv"]);
        let text = "type: mltable\npaths:\n  - folder: ./d\n  - pattern: ./*.csv\n\
                    transformations:\n  - read_delimited:\n      delimiter: ','\n";
        assert_eq!(chosen(text).unwrap(), ["a.csv", "b.csv", "d/c.csv", "d/e/f.txt"]);
        assert_eq!(chosen("paths: [{folder: .}]").unwrap().len(), 4);
    }

    #[test]
    fn what_cannot_be_evaluated_is_named() {
        for (text, word) in [
            ("paths: [{file: ./no.csv}]", "'./no.csv', and nothing"),
            ("paths: [{file: ../x.csv}]", "'../x.csv'"),
            ("paths: [{file: 'https://example.com/x.csv'}]", "https://example.com"),
            ("paths: []", "no 'paths'"),
            ("paths: [{other: 1}]", "cannot be read"),
            ("[", "cannot be read"),
        ] {
            let error = chosen(text).unwrap_err();
            assert!(error.is_users() && error.to_string().contains(word), "{text}: {error}");
        }
    }
}
