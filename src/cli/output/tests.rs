//! What is printed where, in each format.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::{Column, Format, Output, Query, Sink, moment};
use crate::cli::{Error, Kind};

/// What went to standard output and error.
pub(in crate::cli) struct Captured {
    data: Arc<Mutex<Vec<u8>>>,
    notes: Arc<Mutex<Vec<u8>>>,
}

impl Captured {
    fn text(buffer: &Mutex<Vec<u8>>) -> String {
        let bytes = buffer.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8(bytes.clone()).unwrap()
    }

    pub(in crate::cli) fn data(&self) -> String {
        Self::text(&self.data)
    }

    pub(in crate::cli) fn notes(&self) -> String {
        Self::text(&self.notes)
    }
}

/// An output into memory.
pub(in crate::cli) fn captured(format: Option<Format>, query: Option<&str>) -> (Output, Captured) {
    let captured = Captured { data: Arc::default(), notes: Arc::default() };
    let (data, notes): (Sink, Sink) = (captured.data.clone(), captured.notes.clone());
    let query = query.map(|query| Query::new(query).unwrap());
    (Output::to(format, query, data, notes), captured)
}

const COLUMNS: &[Column] = &[
    Column { title: "NAME", cell: |j| Some(j["name"].as_str()?.to_owned()) },
    Column { title: "CREATED", cell: |j| moment(&j["at"]) },
    Column { title: "LAST", cell: |j| Some(j["last"].as_str()?.to_owned()) },
];

fn jobs() -> Vec<Value> {
    vec![
        json!({ "name": "a_long_name", "at": "2026-11-23T10:49:46.123Z", "last": "x" }),
        json!({ "name": "b", "at": null, "last": "two\nlines\u{1b}[31m" }),
    ]
}

fn listed(format: Option<Format>, query: Option<&str>) -> String {
    let (output, captured) = captured(format, query);
    output.list(jobs(), COLUMNS).unwrap();
    assert_eq!(captured.notes(), "");
    captured.data()
}

#[test]
fn a_list_is_a_table_unless_asked_otherwise() {
    let table = "\
NAME         CREATED              LAST
a_long_name  2026-11-23 10:49:46  x
b                                 two lines\u{fffd}[31m
";
    assert_eq!(listed(None, None), table);
    assert_eq!(listed(Some(Format::Table), None), table);
    let json: Value = serde_json::from_str(&listed(Some(Format::Json), None)).unwrap();
    assert_eq!(json, Value::Array(jobs()));
    assert!(listed(Some(Format::Yaml), None).starts_with("- name: a_long_name\n  at: "));
}

#[test]
fn an_empty_list_is_a_heading_or_an_empty_array() {
    let (output, captured_table) = captured(None, None);
    output.list(Vec::new(), COLUMNS).unwrap();
    assert_eq!(captured_table.data(), "NAME  CREATED  LAST\n");
    let (output, captured_json) = captured(Some(Format::Json), None);
    output.list(Vec::new(), COLUMNS).unwrap();
    assert_eq!(captured_json.data(), "[]\n");
}

#[test]
fn one_thing_is_json_where_no_terminal_is() {
    let (output, captured) = captured(None, None);
    output.show(&json!({ "b": 1, "a": [true] })).unwrap();
    assert_eq!(captured.data(), "{\n  \"b\": 1,\n  \"a\": [\n    true\n  ]\n}\n");
}

#[test]
fn yaml_keeps_its_types_for_yaml_1_1_readers() {
    let (output, captured) = captured(Some(Format::Yaml), None);
    let long = "word ".repeat(60).trim_end().to_owned();
    let item = json!({
        "text": "yes", "number": "1e-3", "digits": "042", "none": null, "n": 0.5, "deep": {"k": []},
        "lines": "a\nb\n", "long": long,
    });
    output.show(&item).unwrap();
    let text = captured.data();
    assert!(text.contains("\nnumber: \"1e-3\"") || text.contains("\nnumber: '1e-3'"), "{text}");
    assert!(text.starts_with("text: \"yes\"") || text.starts_with("text: 'yes'"), "{text}");
    assert!(text.contains(&long), "{text}");
    assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), item);
}

#[test]
fn an_object_as_a_table_has_a_line_for_each_field() {
    let (output, captured) = captured(Some(Format::Table), None);
    output.show(&json!({ "a": { "b": 1, "c": {} }, "d": null })).unwrap();
    assert_eq!(captured.data(), "FIELD  VALUE\na.b    1\na.c    {}\nd\n");
}

#[test]
fn queries_pick_in_every_format_and_keep_the_order_of_columns() {
    assert_eq!(listed(None, Some("[].name")), "[\n  \"a_long_name\",\n  \"b\"\n]\n");
    assert_eq!(listed(Some(Format::Tsv), Some("[].name")), "a_long_name\nb\n");
    assert_eq!(listed(Some(Format::Tsv), Some("[0].name")), "a_long_name\n");
    assert_eq!(listed(Some(Format::Tsv), Some("nothing")), "");
    assert_eq!(
        listed(Some(Format::Tsv), Some("[].{z: name, a: last}")).lines().next(),
        Some("a_long_name\tx")
    );
    assert_eq!(
        listed(Some(Format::Table), Some("[?name=='b'].{Who: name, At: at}")),
        "WHO  AT\nb\n"
    );
    assert_eq!(listed(Some(Format::Table), Some("length(@)")), "2\n");
}

#[test]
fn a_faulty_query_is_a_usage_error() {
    let error = Query::new("[?").err().unwrap();
    assert_eq!(error.kind, Kind::Usage);
    assert!(error.cause.starts_with("--query '[?' is not JMESPath: "), "{}", error.cause);
    let (output, _) = captured(None, Some("abs('x')"));
    assert_eq!(output.list(jobs(), COLUMNS).unwrap_err().kind, Kind::Refused);
}

#[test]
fn a_stream_has_an_item_a_line() {
    let item = &jobs()[0];
    let streamed = |format, query| {
        let (output, captured) = captured(format, query);
        output.item(item, COLUMNS).unwrap();
        output.item(item, COLUMNS).unwrap();
        captured.data()
    };
    assert_eq!(streamed(None, None), "a_long_name  2026-11-23 10:49:46  x\n".repeat(2));
    assert_eq!(streamed(Some(Format::Json), None), format!("{item}\n").repeat(2));
    assert_eq!(streamed(Some(Format::Tsv), Some("name")), "a_long_name\n".repeat(2));
    assert!(streamed(Some(Format::Yaml), None).starts_with("---\nname: a_long_name\n"));
}

#[test]
fn everything_but_data_goes_to_standard_error() {
    let (output, captured) = captured(None, None);
    output.note("good to know");
    output.warn("odd\u{7}");
    output.error(&Error::new(Kind::Refused, "no").help("do that"));
    output.error(&Error::new(Kind::Quiet, "never printed"));
    assert_eq!(captured.data(), "");
    assert_eq!(
        captured.notes(),
        "good to know\nwarning: odd\u{fffd}\nerror: no\n  help: do that\n"
    );
}

#[test]
fn a_reader_that_went_away_ends_the_program_quietly() {
    struct Closed;
    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let output =
        Output::to(None, None, Arc::new(Mutex::new(Closed)), Arc::new(Mutex::new(Vec::new())));
    assert_eq!(output.print("x").unwrap_err().kind, Kind::Quiet);
    assert_eq!(Kind::Quiet.code(), 0);
}
