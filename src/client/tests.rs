//! Which server and which token.

use std::fs;

use super::{Error, Home, Wanted};

#[test]
fn a_server_is_an_address_with_a_port() {
    let resolve = |server: &str| {
        let wanted = Wanted {
            server: Some(server.to_owned()),
            token: Some(" t0k\n".to_owned()),
            ..Wanted::default()
        };
        wanted.resolve().map(|target| target.server).map_err(|error| error.to_string())
    };
    assert_eq!(resolve("http://127.0.0.1:80/"), Ok("http://127.0.0.1:80".to_owned()));
    assert_eq!(resolve("[::1]:8080"), Ok("http://[::1]:8080".to_owned()));
    assert_eq!(resolve("https://h:1"), Ok("https://h:1".to_owned()));
    assert!(resolve("http://h:1").unwrap_err().contains("write https://"));
    assert!(resolve("https://host").unwrap_err().ends_with("the port is missing"));
    for bad in ["", "http://", "http://a b:1", "http://u:p@h:1", "http://h:99999", "h:1/path"] {
        assert!(resolve(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_local_workspace_is_the_default() {
    let folder = tempfile::tempdir().unwrap();
    let home = Home::new(folder.path());
    let wanted = Wanted { home: Some(home.clone()), ..Wanted::default() };
    assert!(matches!(wanted.resolve(), Err(Error::NoLocalDaemon)));
    fs::create_dir_all(home.data()).unwrap();
    fs::write(home.endpoint(), "http://127.0.0.1:4242\n").unwrap();
    // An address that a daemon left behind when it was killed: who listens there now?
    let lock = fs::File::create(home.data().join("lock")).unwrap();
    assert!(matches!(wanted.resolve(), Err(Error::NoLocalDaemon)));
    lock.lock().unwrap();
    assert!(matches!(wanted.resolve(), Err(Error::Read { .. })));
    fs::write(home.admin_token(), "secret\n").unwrap();
    let target = wanted.resolve().unwrap();
    assert_eq!(
        (target.server.as_str(), target.token.secret()),
        ("http://127.0.0.1:4242", "secret")
    );
    assert!(target.local);
    // Over TLS it is its own authority that counts, whatever the environment says of others'.
    fs::write(home.endpoint(), "https://127.0.0.1:4242\n").unwrap();
    let secure = Wanted { ca_file: Some("others.pem".into()), ..wanted.clone() };
    let told = secure.resolve().err().unwrap().to_string();
    assert!(told.contains("local/tls/ca.pem"), "{told}");
    fs::write(home.endpoint(), "http://127.0.0.1:4242\n").unwrap();
    assert_eq!(format!("{:?}", target.token), "Token(…)");
    // The token in the environment is for other servers.
    let foreign = Wanted { token: Some("foreign".to_owned()), ..wanted.clone() };
    assert_eq!(foreign.resolve().unwrap().token.secret(), "secret");
    // The local admin's token is never sent to another server.
    let other = Wanted { server: Some("h:1".to_owned()), ..wanted };
    assert!(matches!(other.resolve(), Err(Error::NoToken { .. })));
}

#[test]
fn a_token_of_blanks_or_with_line_breaks_is_refused() {
    for token in ["", " \n", "a b", "a\nb", "é"] {
        let wanted = Wanted {
            server: Some("h:1".to_owned()),
            token: Some(token.to_owned()),
            ..Wanted::default()
        };
        assert!(matches!(wanted.resolve(), Err(Error::BadToken)), "{token:?}");
    }
}
