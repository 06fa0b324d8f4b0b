use super::*;

#[test]
fn sizes_are_read_as_people_write_them() {
    for (text, expected) in [
        ("4GiB", 4 << 30),
        ("4 gib", 4 << 30),
        ("4G", 4 << 30),
        ("4Gi", 4 << 30),
        ("4GB", 4_000_000_000),
        ("1.5MiB", 1_572_864),
        ("100", 100),
        ("7B", 7),
    ] {
        assert_eq!(bytes(text), Ok(expected), "{text}");
    }
    for text in ["", "GiB", "4 apples", "-1G", "0", "1e3", "9999999T", "4GiBs", "1.2.3M"] {
        assert!(bytes(text).is_err(), "{text}");
    }
}

#[test]
fn cpus_are_exact_thousandths() {
    assert_eq!(cpus("0.1"), Ok(100));
    assert_eq!(cpus("2"), Ok(2000));
    for text in ["0", "-1", "NaN", "inf", "many"] {
        assert!(cpus(text).is_err(), "{text}");
    }
}
