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
fn labels_are_keys_with_values() {
    let read = |text| label(text).map(|(key, value)| format!("{key} is {value}"));
    assert_eq!(read("zone=b=c").as_deref(), Ok("zone is b=c"));
    assert_eq!(read("site/rack=").as_deref(), Ok("site/rack is "));
    for text in ["zone", "=b", "a b=c", "a=b\n", &format!("k={}", "v".repeat(101))] {
        assert!(label(text).is_err(), "{text}");
    }
}

#[test]
fn an_address_is_a_host_without_a_port_in_brackets_or_a_scheme() {
    for text in ["10.0.0.7", "gpu-07.lab.example", "fe80::1%eth0"] {
        assert_eq!(address(text).as_deref(), Ok(text));
    }
    for text in ["", "a b", "http://a", "a\n", "[::1]:80", &"a".repeat(256)] {
        assert!(address(text).is_err(), "{text}");
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
