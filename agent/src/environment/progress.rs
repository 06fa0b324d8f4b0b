//! What of an installer's output goes to a job's log.

use std::time::{Duration, Instant};

use super::exec::Watch;
use super::shared::Reporter;

/// Lines shown within [`WINDOW`]; the rest is counted.
const LINES_PER_WINDOW: u32 = 8;
const MOST_PACKAGES: usize = 10_000;
const WINDOW: Duration = Duration::from_secs(1);
/// Silence after which the log says that work goes on.
const SILENCE: Duration = Duration::from_secs(10);

/// Follows one installer.
pub(crate) struct Progress<'a> {
    reporter: &'a Reporter,
    started: Instant,
    window: Instant,
    shown: u32,
    withheld: u32,
    said: Instant,
    failed: bool,
    /// `name==version` of what was installed.
    pub(crate) packages: Vec<String>,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(reporter: &'a Reporter) -> Self {
        let now = Instant::now();
        Self {
            reporter,
            started: now,
            window: now,
            shown: 0,
            withheld: 0,
            said: now,
            failed: false,
            packages: Vec::new(),
        }
    }

    fn close_window(&mut self) {
        if self.withheld > 0 {
            self.reporter.line(format!("  … and {} more lines", self.withheld));
        }
        self.window = Instant::now();
        self.shown = 0;
        self.withheld = 0;
    }

    fn show(&mut self, line: &str) {
        if self.window.elapsed() >= WINDOW {
            self.close_window();
        }
        if self.shown < LINES_PER_WINDOW {
            self.shown += 1;
            self.said = Instant::now();
            self.reporter.line(format!("  {}", scrub(line)));
        } else {
            self.withheld += 1;
        }
    }
}

impl Watch for Progress<'_> {
    fn line(&mut self, line: &str) {
        if let Some(package) = line.strip_prefix(" + ") {
            // What a build prints can look like it without end.
            if self.packages.len() < MOST_PACKAGES {
                self.packages.push(scrub(package.trim()));
            }
            return;
        }
        let line = line.trim();
        // What follows an error is its explanation, which the job's own error gives.
        self.failed |= begins_reason(line);
        let noise = [
            "Using ",
            "Creating virtual",
            "Activate with",
            "Requirement already",
            "Downloaded",
            "Cached",
        ];
        if line.is_empty() || self.failed || noise.iter().any(|start| line.starts_with(start)) {
            return;
        }
        self.show(line);
    }

    fn tick(&mut self) {
        if self.withheld > 0 && self.window.elapsed() >= WINDOW {
            self.close_window();
        }
        if self.said.elapsed() >= SILENCE {
            self.said = Instant::now();
            self.reporter
                .line(format!("  still at it after {} s", self.started.elapsed().as_secs()));
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.close_window();
    }
}

/// Takes user and password out of the URLs in a text.
pub(crate) fn scrub(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        clean.push_str(before);
        let end = after
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '`' | '\'' | '"' | ',' | ')'))
            .unwrap_or(after.len());
        let (authority, remainder) = after.split_at(end);
        match authority.rsplit_once('@') {
            Some((_, host)) => {
                clean.push_str("***@");
                clean.push_str(host);
            }
            None => clean.push_str(authority),
        }
        rest = remainder;
    }
    clean.push_str(rest);
    clean
}

/// Whether an installer begins to say here what went wrong.
pub(crate) fn begins_reason(line: &str) -> bool {
    let line = line.trim_start();
    ["error:", "ERROR:", "×"].iter().any(|start| line.starts_with(start))
}

/// An installer's reason, from its last lines, in as few words as it gave.
pub(crate) fn reason(tail: &[String]) -> String {
    let from = tail.iter().position(|line| begins_reason(line));
    let from = from.unwrap_or(tail.len().saturating_sub(5));
    let mut words = String::new();
    for line in &tail[from..] {
        // Frames around the text, and marks under it.
        let line = line.trim_matches(|c: char| {
            c.is_whitespace() || matches!(c, '│' | '╰' | '─' | '▶' | '×' | '├' | '^' | '~')
        });
        let line = line.trim_start_matches("error: ").trim_start_matches("ERROR: ");
        let (line, cause) = match line.strip_prefix("cause: ") {
            Some(line) => (line, true),
            None => (line, false),
        };
        if line.is_empty() {
            continue;
        }
        if cause && !words.is_empty() && !words.ends_with(':') {
            words.push(':');
        }
        words.push(' ');
        words.push_str(line);
    }
    let words = scrub(&words.split_whitespace().collect::<Vec<_>>().join(" "));
    let tail = ", we can conclude that your requirements are unsatisfiable.";
    shortened(words.strip_suffix(tail).unwrap_or(&words))
}

/// What failed is said first, and why last.
fn shortened(words: &str) -> String {
    const FIRST: usize = 300;
    const LAST: usize = 700;
    if words.len() <= FIRST + LAST {
        return words.to_owned();
    }
    let (first, last) =
        (words.floor_char_boundary(FIRST), words.ceil_char_boundary(words.len() - LAST));
    format!("{} … {}", &words[..first], &words[last..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> String {
        reason(&text.lines().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn reasons_are_short() {
        assert_eq!(
            of("Using Python 3.10.13 environment at: e1\n\
                error: No solution found when resolving dependencies\n  \
                cause: Because zzqy was not found in the package registry and you require zzqy, we \
                can conclude that your requirements are unsatisfiable."),
            "No solution found when resolving dependencies: Because zzqy was not found in the \
             package registry and you require zzqy"
        );
        assert_eq!(
            of("  × No solution found when resolving dependencies:\n  ╰─▶ Because there is no \
                version of six==99 and you require six==99, we can\n      conclude that your \
                requirements are unsatisfiable."),
            "No solution found when resolving dependencies: Because there is no version of six==99 \
             and you require six==99"
        );
        assert_eq!(of("one\ntwo"), "one two");
        let long =
            format!("error: Failed to build `a`\n{}\nno such header: ü.h", "ü ".repeat(2000));
        let short = of(&long);
        assert!(short.len() < 1100, "{short}");
        assert!(short.starts_with("Failed to build `a` ü"), "{short}");
        assert!(short.ends_with(" ü no such header: ü.h"), "{short}");
        assert_eq!(of(""), "");
    }

    #[test]
    fn passwords_in_urls_are_not_repeated() {
        assert_eq!(
            scrub("from https://me:secret@host.example/simple, http://a@b/c and git+ssh://x/y@z"),
            "from https://***@host.example/simple, http://***@b/c and git+ssh://x/y@z"
        );
        assert_eq!(scrub("https://me:se/cret"), "https://me:se/cret");
    }
}
