use super::*;

#[test]
fn a_value_of_one_line_has_no_line_end() {
    for (given, kept) in [
        ("word\n", "word"),
        ("word\r\n", "word"),
        ("word", "word"),
        ("\n", ""),
        ("", ""),
        ("a\nb", "a\nb"),
        ("-----BEGIN\nkey\n-----END\n", "-----BEGIN\nkey\n-----END\n"),
        ("word\n\n", "word\n\n"),
    ] {
        let value = without_line_end(given.as_bytes().to_vec());
        assert_eq!(String::from_utf8(value).unwrap(), kept, "{given:?}");
    }
}
