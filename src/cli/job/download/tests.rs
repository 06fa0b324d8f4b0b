//! Where artifacts go.

use std::path::PathBuf;

use super::place;

#[test]
fn artifacts_and_named_outputs_lie_as_azure_puts_them() {
    assert_eq!(place("outputs/model.pkl"), Some(PathBuf::from("artifacts/outputs/model.pkl")));
    assert_eq!(place("./a"), Some(PathBuf::from("artifacts/a")));
    assert_eq!(place("named-outputs/m/x/y"), Some(PathBuf::from("named-outputs/m/x/y")));
    assert_eq!(place("ünï cödé"), Some(PathBuf::from("artifacts/ünï cödé")));
}

#[test]
fn nothing_leads_out_of_the_folder() {
    for path in
        ["", "..", "../x", "a/../../x", "named-outputs/../../x", "/etc/passwd", "a\0b", "a\\..\\b"]
    {
        assert_eq!(place(path), None, "{path:?}");
    }
}
