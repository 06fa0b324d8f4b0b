//! How messages look, and what bounds a document and them.

use super::*;

#[test]
fn a_message_shows_the_line() {
    assert_eq!(
        errors("type: command\ncomand: python train.py\nresources: {instance_count: -1}\n"),
        "\
job.yml:2:1: unknown field 'comand' in a command job
  2 | comand: python train.py
    | ^^^^^^
  help: did you mean 'command'?
job.yml:3:29: 'resources.instance_count' is out of range: expected a whole number from 1 to 10000, found -1
  3 | resources: {instance_count: -1}
    |                             ^^"
    );
}

#[test]
fn a_long_line_is_cut_around_the_place() {
    let yaml = format!("command: 'é{} ${{{{inputs.x}}}} {}'\n", "a".repeat(300), "b".repeat(300));
    let message = errors(&yaml);
    let lines: Vec<&str> = message.lines().collect();
    assert!(
        lines[0].starts_with("job.yml:1:313: in 'command': there is no input 'x'"),
        "{message}"
    );
    assert!(lines[1].chars().count() < 140, "{message}");
    let caret = lines[2].chars().position(|c| c == '^').unwrap();
    let under: String = lines[1].chars().skip(caret).take(13).collect();
    assert_eq!(under, "${{inputs.x}}", "{message}");
}

#[test]
fn many_faults_are_cut_to_twenty() {
    let yaml: String = (0..200).map(|i| format!("field{i}: 1\n")).collect();
    let Err(errors) = parse(&yaml) else { panic!("accepted") };
    assert_eq!(errors.iter().count(), 21);
    assert!(errors.to_string().ends_with("and 180 more"));
}

#[test]
fn files_that_are_not_utf_8_are_refused() {
    let read = |bytes: &[u8]| {
        let parsed = parse_job(bytes, &origin(), &[], &disk());
        parsed.unwrap_err().iter().map(short).collect::<Vec<_>>().join("\n")
    };
    let resave = "save it as UTF-8 (in Notepad: Save as, Encoding: UTF-8)";
    let utf16 = format!("1:1: the file is UTF-16, not UTF-8 | {resave}");
    let little: Vec<u8> = "command: x\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = "command: x\n".encode_utf16().flat_map(u16::to_be_bytes).collect();
    assert_eq!(read(&little), utf16);
    assert_eq!(read(&big), utf16);
    assert_eq!(read(&[b"\xFF\xFE".as_slice(), &little].concat()), utf16);
    assert_eq!(read(&[b"\xFE\xFF".as_slice(), &big].concat()), utf16);
    assert_eq!(
        read(b"command: x\ntags: {a: \xE9t\xE9}\n"),
        format!("2:11: the file is not UTF-8: these bytes are no character | {resave}")
    );
    assert_eq!(
        read(b"command: x\0y\n"),
        "1:11: the character U+0000 cannot stand in YAML | remove it, or write it as an escape in \
         a double-quoted text"
    );
}

#[test]
fn documents_that_are_too_large_are_refused() {
    let large = format!("command: x\ndescription: {}\n", "x".repeat(5 << 20));
    assert_eq!(
        errors(&large),
        "job.yml: the file has 5242905 bytes; at most 1 MiB are read\n  help: is this the right \
         file? Data belongs into an input, code into 'code'"
    );
    check(
        &format!("command: {}\n", "x".repeat((64 << 10) + 1)),
        "1:10: 'command' has 65537 bytes; at most 65536 are allowed | put the command into a \
         script in the code folder",
    );
    assert_eq!(job(&format!("command: {}\n", "x".repeat(64 << 10))).command.len(), 64 << 10);
    let tags: String = (0..1001).map(|i| format!("  t{i}: x\n")).collect();
    check(
        &format!("command: x\ntags:\n{tags}"),
        "3:3: 'tags' has 1001 entries; at most 1000 are allowed | put the values into a file that \
         is an input",
    );
    check(
        &format!("command: x\ntags: {{a: {}}}\n", "x".repeat(8001)),
        "2:11: 'tags.a' has 8001 bytes; at most 8000 are allowed | put it into a file of the code \
         folder",
    );
}

#[test]
fn documents_that_grow_are_refused() {
    let mut bomb = "command: x\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..20 {
        let before = i - 1;
        let refs = vec![format!("*a{before}"); 10].join(", ");
        bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    let message = errors(&bomb);
    assert!(
        message.contains(
            "the document is too large here: more than 50000 values or 4 MiB of text, its aliases \
             put in place"
        ),
        "{message}"
    );
    let long = format!("command: x\na: &a {}\nb: [{}]\n", "x".repeat(500_000), "*a, ".repeat(100));
    assert!(errors(&long).contains("4 MiB of text"), "not refused");
    let merges = format!(
        "command: x\na: &a {{{}}}\n{}",
        (0..2000).map(|i| format!("k{i}: v, ")).collect::<String>(),
        (0..200).map(|i| format!("m{i}: {{<<: *a}}\n")).collect::<String>(),
    );
    assert!(errors(&merges).contains("the document is too large"), "not refused");
    for nested in [
        format!("command: x\na: {}{}\n", "[".repeat(100_000), "]".repeat(100_000)),
        format!("command: x\na: {}x{}\n", "{a: ".repeat(80), "}".repeat(80)),
        (0..200).map(|i| format!("{}a:\n", " ".repeat(i))).collect(),
    ] {
        assert!(parse(&nested).is_err());
    }
}

#[test]
fn aliases_build_nothing_deeper_than_may_be_written() {
    let chain = |length: usize| {
        let links: String =
            (1..length).map(|i| format!("    a{i}: &a{i} [*a{}]\n", i - 1)).collect();
        format!(
            "command: x\nresources:\n  properties:\n    a0: &a0 [x]\n{links}    last: *a{}\n",
            length - 1
        )
    };
    // The root, 'resources' and 'properties' stand around the chain.
    assert_eq!(job(&chain(61)).resources.properties["last"].to_string().len(), 61 * 2 + 3);
    check(
        &chain(62),
        "65:16: more than 64 lists and mappings within each other | a job needs no more than a \
         handful",
    );
}

#[test]
fn many_bad_references_make_few_and_short_messages() {
    let inputs: String = (0..1000).map(|i| format!("  {}{i}: 1\n", "n".repeat(250))).collect();
    let references: String = (0..2000).map(|i| format!(" ${{{{inputs.q{i}}}}}")).collect();
    let yaml = format!("command: x{references}\ninputs:\n{inputs}");
    let size = |errors: &Diagnostics| errors.iter().map(|e| e.to_string().len()).sum::<usize>();
    let Err(errors) = parse(&yaml) else { panic!("accepted") };
    assert_eq!((errors.iter().count(), size(&errors) < 64 << 10), (21, true));
    assert!(errors.to_string().ends_with("and 1980 more"));

    let mut job = job(&format!("command: x\ninputs:\n{inputs}"));
    job.command = references.clone();
    // Those of other fields count as well.
    job.environment_variables = [("A".to_owned(), references.clone())].into();
    let errors = validate_submitted(&job).unwrap_err();
    assert_eq!((errors.iter().count(), size(&errors) < 64 << 10), (21, true));
    assert!(errors.to_string().ends_with("and 3980 more"));
}

/// A line looked up for each of them took a minute.
#[test]
fn lines_are_shown_of_the_first_of_many_faults() {
    let tags: String = (0..24_000).map(|i| format!("  t{i}: [] # and a remark\n")).collect();
    let yaml = format!("command: x\ntags:\n{tags}");
    let Err(errors) = parse(&yaml) else { panic!("accepted") };
    assert!(errors.to_string().ends_with("and 23980 more"));
    assert!(errors.iter().take(20).all(|error| error.snippet.is_some()));
}

#[test]
fn many_warnings_are_cut_to_twenty() {
    let tags: String = (0..200).map(|i| format!("  t{i}: yes\n")).collect();
    let Parsed { warnings, .. } = parse(&format!("command: x\ntags:\n{tags}")).unwrap();
    assert_eq!(warnings.len(), 21);
    assert!(warnings[0].snippet.as_deref().unwrap().contains("3 |   t0: yes"));
    assert_eq!(warnings[20].message, "and 180 more");
}

#[test]
fn anchors_within_each_other_copy_no_more_than_a_document_may_hold() {
    // Each level keeps a copy of all that is below it.
    let nested = |values: usize| {
        let (open, close): (String, String) =
            ((0..60).map(|i| format!("&a{i} [")).collect(), "]".repeat(60));
        let values = "x, ".repeat(values);
        format!("command: x\nresources: {{properties: {{a: {open}{values}{close}}}}}\n")
    };
    job(&nested(700));
    let message = parse(&nested(40_000)).map(drop).unwrap_err().to_string();
    assert!(message.starts_with("job.yml:2:"), "{message}");
    assert!(message.contains("the document is too large here: more than 50000"), "{message}");
}
