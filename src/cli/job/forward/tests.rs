//! Which ports are meant.

use super::*;

#[test]
fn ports_are_written_as_elsewhere() {
    let both = |local, remote| Ok(Pair { local, remote });
    assert_eq!(pair("6006"), both(6006, 6006));
    assert_eq!(pair("8080:80"), both(8080, 80));
    assert_eq!(pair(":80"), both(0, 80));
    assert_eq!(pair("0:80"), both(0, 80));
    for wrong in ["", ":", "0", "80:", "80:0", "70000", "a", "80:b", "-1", "1:2:3"] {
        let refused = pair(wrong).unwrap_err();
        assert!(refused.contains("LOCAL:PORT"), "{wrong}: {refused}");
    }
}
