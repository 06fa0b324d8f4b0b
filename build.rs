//! Stamps the version and the commit it was built from into the binary, as `ATELIER_VERSION`.

use std::env;
use std::process::Command;

fn main() {
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    // A packaged source tree has no repository; it then goes by its version alone.
    let stamped = match git(&["rev-parse", "--short=9", "HEAD"]) {
        Some(commit) => {
            // The log of HEAD changes with every commit and checkout, also in a linked work tree.
            for file in ["HEAD", "logs/HEAD"] {
                if let Some(path) = git(&["rev-parse", "--git-path", file]) {
                    println!("cargo:rerun-if-changed={path}");
                }
            }
            format!("{version} ({commit})")
        }
        None => version,
    };
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=ATELIER_VERSION={stamped}");
    place();
}

/// Has the linker place programs that are not optimised at a fixed address. Each start of one that can lie anywhere
/// has 440,000 pointers to set first, half of what a short command costs; and the tests start thousands. Programs for
/// users keep to addresses that nobody can tell beforehand.
fn place() {
    let is = |variable: &str, value: &str| env::var(variable).is_ok_and(|found| found == value);
    if is("OPT_LEVEL", "0")
        && is("CARGO_CFG_TARGET_OS", "linux")
        && is("CARGO_CFG_TARGET_ENV", "gnu")
    {
        println!("cargo:rustc-link-arg=-no-pie");
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
