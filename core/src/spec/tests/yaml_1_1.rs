//! YAML 1.1 as PyYAML reads it. The tables are what PyYAML 6.0.3's `safe_load` made of the same
//! texts (type and `str()`; `E` where it fails).

use super::*;
use crate::spec::yaml::{Node, Value, plain};

#[rustfmt::skip]
const NOT_TEXT: &[(&str, &str)] = &[
    ("yes", "bool True"),
    ("Yes", "bool True"),
    ("YES", "bool True"),
    ("no", "bool False"),
    ("No", "bool False"),
    ("NO", "bool False"),
    ("on", "bool True"),
    ("On", "bool True"),
    ("ON", "bool True"),
    ("off", "bool False"),
    ("Off", "bool False"),
    ("OFF", "bool False"),
    ("true", "bool True"),
    ("True", "bool True"),
    ("TRUE", "bool True"),
    ("false", "bool False"),
    ("False", "bool False"),
    ("FALSE", "bool False"),
    ("~", "null None"),
    ("null", "null None"),
    ("Null", "null None"),
    ("NULL", "null None"),
    ("0", "int 0"),
    ("-0", "int 0"),
    ("+0", "int 0"),
    ("00", "int 0"),
    ("07", "int 7"),
    ("0_7", "int 7"),
    ("0b101", "int 5"),
    ("0b_", "E"),
    ("0x1F", "int 31"),
    ("0x_", "E"),
    ("-0x10", "int -16"),
    ("1_000", "int 1000"),
    ("1__0_", "int 10"),
    ("1.0e+3", "float 1000.0"),
    ("1.5e-7", "float 1.5e-07"),
    ("1.e+3", "float 1000.0"),
    (".5", "float 0.5"),
    (".5_0", "float 0.5"),
    ("5.", "float 5.0"),
    ("-5.", "float -5.0"),
    ("1.50", "float 1.5"),
    (".inf", "float inf"),
    ("-.inf", "float -inf"),
    ("+.INF", "float inf"),
    (".Inf", "float inf"),
    (".nan", "float nan"),
    (".NaN", "float nan"),
    (".NAN", "float nan"),
    ("1:30", "int 90"),
    ("1:5", "int 65"),
    ("1:30:00", "int 5400"),
    ("-1:30", "int -90"),
    ("190:20:30", "int 685230"),
    ("190:20:30.15", "float 685230.15"),
    ("1:30.5", "float 90.5"),
    ("0:30.5", "float 30.5"),
    ("2024-01-01", "time 2024-01-01"),
    ("2024-02-30", "E"),
    ("2024-13-01", "E"),
    ("0000-01-01", "E"),
    ("2001-12-14t21:59:43.10-05:00", "time 2001-12-14 21:59:43.100000-05:00"),
    ("2001-12-15T02:59:43.1Z", "time 2001-12-15 02:59:43.100000+00:00"),
    ("2001-12-14", "time 2001-12-14"),
    ("2001-12-15T2:59:43", "time 2001-12-15 02:59:43"),
    ("1_0.5", "float 10.5"),
    ("1._5", "float 1.5"),
    ("12345678901234567890123456789", "int 12345678901234567890123456789"),
    ("0xffffffffffffffffffffff", "int 309485009821345068724781055"),
    ("1.0", "float 1.0"),
    ("100.0", "float 100.0"),
    ("1.0e+16", "float 1e+16"),
    ("123456789012345678.0", "float 1.2345678901234568e+17"),
    ("1.0e+15", "float 1000000000000000.0"),
    ("0.0001", "float 0.0001"),
    ("0.00001", "float 1e-05"),
    ("1.0e-5", "float 1e-05"),
    ("-0.0", "float -0.0"),
    ("3.14159265358979312", "float 3.141592653589793"),
    ("9.99e+22", "float 9.99e+22"),
    ("1.0e+23", "float 1e+23"),
    ("+12", "int 12"),
    ("0.", "float 0.0"),
    ("0.e+5", "float 0.0"),
    ("00.5", "float 0.5"),
    ("2001-12-14T21:59:43.1234567", "time 2001-12-14 21:59:43.123456"),
    ("2001-12-14T21:59:43Z", "time 2001-12-14 21:59:43+00:00"),
    ("2001-12-14T21:59:43+05", "time 2001-12-14 21:59:43+05:00"),
    ("2001-12-14T21:59:43+25:00", "E"),
    ("2001-12-14T21:59:43-00:00", "time 2001-12-14 21:59:43+00:00"),
    ("2001-12-14T24:00:00", "E"),
    ("2001-12-14T21:60:00", "E"),
    ("0_", "int 0"),
    ("0b1_", "int 1"),
    ("0x_f", "int 15"),
    ("1_:30", "int 90"),
    ("2001-12-14 21:59:43.10 -5", "time 2001-12-14 21:59:43.100000-05:00"),
    ("2001-12-14 21:59:43", "time 2001-12-14 21:59:43"),
    ("2001-12-14  21:59:43 +5:30", "time 2001-12-14 21:59:43+05:30"),
    ("2001-12-14 21:59:43.", "time 2001-12-14 21:59:43"),
    ("731783408440013.25", "float 731783408440013.2"),
];

/// What looks like something else and is text.
const TEXT: &[&str] = &[
    "yEs", "tRue", "y", "n", "Y", "N", "nULL", "08", "0o17", "0b", "0x", "0b-1", "_1", "1e3",
    "1e-3", "1.0e3", "-.5", "+.5", "._5", "-.nan", "1:60", "0:30", "01:30", "2024-1-1", "<<", "=",
    "1e16", "+", "-", ".", "..", ".e+1", "1.e1", "-.", "1-1", "12e", "4.2.1", "1,000", "1:3_0",
];

/// Type and `str()` of a plain scalar.
fn read(text: &str) -> String {
    let Ok(value) = plain(text) else { return "E".to_owned() };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Integer(_) => "int",
        Value::Float(_) => "float",
        Value::Timestamp(_) => "time",
        _ => "str",
    };
    let node = Node { value, mark: Default::default(), spelled: None };
    format!("{kind} {}", node.python_str().unwrap_or_else(|| "None".to_owned()))
}

#[test]
fn plain_scalars_mean_what_pyyaml_says() {
    for (text, expected) in NOT_TEXT {
        assert_eq!(read(text), *expected, "for {text}");
    }
    for text in TEXT {
        assert_eq!(read(text), format!("str {text}"));
    }
}

#[test]
fn numbers_beyond_what_python_prints_are_refused() {
    let digits = "7".repeat(4300);
    assert_eq!(read(&digits), format!("int {digits}"));
    assert_eq!(read(&"7".repeat(4301)), "E");
    assert_eq!(read(&format!("0x{}", "f".repeat(1_000_000))), "E");
    assert_eq!(read(&format!("1{}", ":30".repeat(100_000))), "E");
}

/// The literal that an input becomes.
#[track_caller]
fn literal(yaml: &str) -> String {
    let job = job(&format!("command: x\ninputs:\n  x: {yaml}\n"));
    match job.inputs.values().next() {
        Some(Input::Literal { value }) => value.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn literals_are_pythons_str() {
    for (yaml, expected) in [
        ("42", "42"),
        ("'42'", "42"),
        ("1.0", "1.0"),
        ("1e-3", "1e-3"),
        ("1.0e-3", "0.001"),
        ("True", "True"),
        ("false", "False"),
        ("yes", "True"),
        ("'yes'", "yes"),
        ("y", "y"),
        ("010", "8"),
        ("1:30", "90"),
        ("2024-01-31", "2024-01-31"),
        ("!!str 42", "42"),
        ("!!int '42'", "42"),
        ("!!float 1", "1.0"),
        ("! 42", "42"),
        ("\"a\\tb\"", "a\tb"),
        ("|\n    a\n    b", "a\nb\n"),
        (">-\n    a\n    b\n", "a b"),
        ("&x 5", "5"),
        ("99999999999999999999", "99999999999999999999"),
    ] {
        assert_eq!(literal(yaml), expected, "for {yaml}");
    }
}

#[test]
fn what_changes_its_spelling_is_warned_of() {
    let yaml = "command: x\nenvironment_variables: {A: on, B: 'on', C: true, D: 010, E: 1_000, \
                F: 1:30, G: +5, H: 1.50}\n";
    let job = job(yaml);
    let values: Vec<&str> = job.environment_variables.values().map(String::as_str).collect();
    assert_eq!(values, ["True", "on", "True", "8", "1000", "90", "5", "1.5"]);
    assert_eq!(
        warnings(yaml),
        "2:28: 'environment_variables.A': YAML 1.1 reads on as True | quote it to keep it as \
         written: 'on'\n\
         2:53: 'environment_variables.D': YAML 1.1 reads 010 as 8 | quote it to keep it as \
         written: '010'\n\
         2:61: 'environment_variables.E': YAML 1.1 reads 1_000 as 1000 | quote it to keep it as \
         written: '1_000'\n\
         2:71: 'environment_variables.F': YAML 1.1 reads 1:30 as 90 | quote it to keep it as \
         written: '1:30'"
    );
}

#[test]
fn anchors_aliases_and_merge_keys() {
    let yaml = "
command: x
tags: &common {team: a, stage: dev}
properties:
  <<: *common
  stage: prod
environment_variables:
  <<: [{A: 1, B: 1}, {B: 2, C: 2}]
";
    let job = job(yaml);
    assert_eq!(job.properties["team"], "a");
    assert_eq!(job.properties["stage"], "prod");
    let values: Vec<&str> = job.environment_variables.values().map(String::as_str).collect();
    assert_eq!(values, ["1", "1", "2"]);
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_read() {
    let parsed =
        parse_job(b"\xEF\xBB\xBFcommand: x\r\ntags:\r\n  a: b\r\n", &origin(), &[], &disk());
    assert_eq!(parsed.unwrap().job.tags["a"], "b");
}
