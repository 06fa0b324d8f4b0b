//! What holds for every document, good or bad.

use proptest::prelude::*;

use super::documents::TRAIN;
use super::*;
use crate::spec::quantity;
use crate::spec::shell::split;

/// Pieces that documents are made of, to hit the reader's seams more often than chance would.
const PIECES: &[&str] = &[
    "command: ",
    "inputs:\n",
    "  a: ",
    "{",
    "}",
    "[",
    "]",
    "${{inputs.a}}",
    "$[[",
    "]]",
    "}}",
    "\n",
    "  ",
    "\t",
    "- ",
    "|",
    ">-\n",
    "&x ",
    "*x",
    "<<: ",
    "!!int ",
    "'",
    "\"",
    "#",
    ": ",
    "---\n",
    "...\n",
    "%YAML 1.1\n",
    "0x",
    "1e3",
    ".nan",
    "2024-01-01",
    "-1",
    "yes",
    "null",
    "type: ",
    "uri_file",
    "path: ./data",
    "azureml:",
    "azureml://datastores/",
    "resources: ",
    "cpus: 0.5",
    "é",
    "\u{1F600}",
    "\u{FEFF}",
    "\r\n",
    "?",
    "environment: ",
    "conda_file: ",
    "outputs: ",
];

/// The valid document with some of its text replaced by pieces.
fn mutated() -> impl Strategy<Value = String> {
    let change = (any::<prop::sample::Index>(), 0..12usize, prop::sample::select(PIECES));
    proptest::collection::vec(change, 1..6).prop_map(|changes| {
        let mut text = TRAIN.to_owned();
        for (at, length, piece) in changes {
            let floor = |mut i: usize| {
                while !text.is_char_boundary(i) {
                    i -= 1;
                }
                i
            };
            let start = floor(at.index(text.len().max(1)).min(text.len()));
            let end = floor((start + length).min(text.len()));
            text.replace_range(start..end, piece);
        }
        text
    })
}

/// Whatever was read has to hold by itself, and to survive the store.
fn holds(parsed: Result<Parsed, Diagnostics>) {
    match parsed {
        Ok(Parsed { job, warnings }) => {
            validate(&job).unwrap();
            let json = serde_json::to_string(&job).unwrap();
            assert_eq!(serde_json::from_str::<CommandJob>(&json).unwrap(), job);
            warnings.iter().for_each(|warning| drop(warning.to_string()));
        }
        Err(errors) => {
            assert!(errors.iter().next().is_some());
            assert!(errors.iter().all(|error| !error.message.is_empty()));
            drop(errors.to_string());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        holds(parse_job(&bytes, &origin(), &[], &disk()));
    }

    #[test]
    fn any_text_is_read_or_refused(
        pieces in proptest::collection::vec(prop::sample::select(PIECES), 0..40)
    ) {
        holds(parse(&pieces.concat()));
    }

    #[test]
    fn any_change_to_a_good_document_is_read_or_refused(text in mutated()) {
        holds(parse(&text));
    }

    #[test]
    fn any_override_is_read_or_refused(text in "[a-z.\"'0-2]{0,12}={0,1}[a-z\\[\\]{}:, '\"$.0-9]{0,12}") {
        if let Ok(change) = Override::parse(&text) {
            holds(parse_job(TRAIN.as_bytes(), &origin(), &[change], &disk()));
        }
    }

    #[test]
    fn quoted_text_is_kept_to_the_letter(text in "[^\\p{C}\\p{Z}]([^\\p{C}]{0,30}[^\\p{C}\\p{Z}])?") {
        let yaml = format!("command: x\ntags: {{a: '{}'}}\n", text.replace('\'', "''"));
        prop_assert_eq!(&job(&yaml).tags["a"], &text);
    }

    #[test]
    fn whole_numbers_print_as_python_prints_them(number in any::<i128>()) {
        let yaml = format!("command: x\ntags: {{a: {number}, b: 0x{:x}}}\n", number.unsigned_abs());
        let job = job(&yaml);
        prop_assert_eq!(&job.tags["a"], &number.to_string());
        prop_assert_eq!(&job.tags["b"], &number.unsigned_abs().to_string());
    }

    #[test]
    fn floats_print_to_what_reads_back(number in any::<f64>()) {
        prop_assume!(number.is_finite());
        let written = format!("{number:?}");
        // Rust writes 1e300, which is text in YAML 1.1.
        let written = match written.split_once('e') {
            Some((digits, exponent)) => {
                let point = if digits.contains('.') { "" } else { "." };
                let plus = if exponent.starts_with('-') { "" } else { "+" };
                format!("{digits}{point}e{plus}{exponent}")
            }
            None => written,
        };
        let job = job(&format!("command: x\ntags: {{a: {written}}}\n"));
        prop_assert_eq!(job.tags["a"].parse::<f64>().unwrap(), number);
    }

    #[test]
    fn a_shell_reads_back_the_arguments(arguments in proptest::collection::vec("[ -~é\n]{0,12}", 1..6)) {
        let line = arguments.iter().map(|a| quote(a)).collect::<Vec<_>>().join(" ");
        prop_assert_eq!(split(&line).unwrap(), arguments);
    }

    #[test]
    fn amounts_are_read_or_refused(text in "[-+]?[0-9]{0,25}(\\.[0-9]{0,25})?[a-zA-Z ]{0,4}") {
        let _ = quantity::cpus(&text);
        let _ = quantity::memory(&text);
        let _ = quantity::shared_memory(&text);
        let _ = quantity::seconds(&text);
        let _ = quantity::percent(&text);
    }

    #[test]
    fn amounts_round_up(milli in 1u64..1_000_000_000) {
        let text = format!("{}.{:06}", milli / 1_000_000, milli % 1_000_000);
        prop_assert_eq!(quantity::cpus(&text).unwrap(), milli.div_ceil(1000));
    }
}
