use std::os::unix::fs::PermissionsExt as _;

use clap::Parser as _;

use super::*;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: AgentArgs,
}

fn args(folder: &Path, more: &[&str]) -> AgentArgs {
    let folder = folder.display().to_string();
    let line = ["agent", "--server", "https://gate.example:7420", "--node", "one"];
    let data = ["--data-dir", folder.as_str()];
    let line = line.iter().chain(&data).chain(more).copied();
    Line::try_parse_from(line).unwrap_or_else(|error| panic!("{error}")).args
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn token(secret: &str) -> JoinToken {
    JoinToken::parse(secret).ok().unwrap()
}

/// Fails with words about it.
#[track_caller]
fn refused<T>(result: Result<T, Error>, says: &str) {
    let said = result.err().unwrap().to_string();
    assert!(said.contains(says), "{said}");
}

#[test]
fn a_join_token_has_a_secret_and_perhaps_a_fingerprint() {
    let print = URL_SAFE_NO_PAD.encode([7; 32]);
    let with = token(&format!("atj_abc.{print}"));
    assert_eq!((with.secret.as_str(), with.fingerprint), ("atj_abc", Some([7; 32])));
    let without = token("atj_abc");
    assert_eq!((without.secret.as_str(), without.fingerprint), ("atj_abc", None));
    assert_eq!(with.hash, without.hash);
    let cut = format!("atj_abc.{}", &print[..20]);
    for bad in ["atj_abc.", "atj_abc.ab", "atj_abc.%", &cut] {
        refused(JoinToken::parse(bad), "damaged");
    }
}

#[test]
fn a_join_that_has_begun_is_tried_again_with_the_same_key() {
    let folder = tempfile::tempdir().unwrap();
    let args = args(folder.path(), &["--token", "atj_abc"]);
    let key = |token: &str, node: &str, encrypted| match Begun::with(
        &args,
        &self::token(token),
        node,
        encrypted,
    ) {
        Ok(Begun { proof: Begin::Key { key, .. } | Begin::Token(key), .. }) => key,
        Err(error) => panic!("{error}"),
    };
    let first = key("atj_abc", "one", true);
    assert_eq!(mode(&folder.path().join(BEGUN)), 0o600);
    assert_eq!(key("atj_abc", "one", true), first);
    // What was begun otherwise is no use.
    for other in
        [key("atj_abd", "one", true), key("atj_abd", "two", true), key("atj_abd", "two", false)]
    {
        assert_ne!(other, first);
    }
    assert!(key("atj_abd", "two", false).starts_with("atl_"));
    fs::write(folder.path().join(BEGUN), "cut").unwrap();
    refused(Begun::with(&args, &token("atj_abc"), "one", true), "damaged");
}

#[test]
fn what_a_node_is_known_by_is_kept_for_its_owner_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let with = args(folder.path(), &["--token", "atj_abc"]);
    let file = folder.path().join("token");
    let without = args(folder.path(), &["--token-file", &file.display().to_string()]);
    refused(credential(&without), "cannot read");
    let Ok(Begin::Key { key, .. }) = new_key() else { panic!("no key") };
    let identity = |until: i64| {
        let until = wall().plus_millis(until);
        let proof = Proof::Certificate {
            certificate: String::new(),
            key: key.clone(),
            until,
            renew_at: until,
        };
        Identity::new("one", &token("atj_abc"), Some("pem".to_owned()), proof)
    };
    identity(60_000).keep(&with).unwrap();
    assert_eq!(mode(&folder.path().join(KEPT)), 0o600);
    // The file of the token that was used may be gone.
    for args in [&with, &without] {
        let (credential, authority) = credential(args).unwrap();
        assert!(matches!(credential, Credential::Certificate(_)));
        assert_eq!(authority.as_deref(), Some("pem"));
    }
    fs::write(&file, "atl_lasting").unwrap();
    assert!(
        matches!(credential(&without), Ok((Credential::Token(token), None)) if token == "atl_lasting")
    );
    refused(credential(&args(folder.path(), &["--token", "atl_lasting"])), "--token-file");
    let mut other = with.clone();
    other.node = Some("two".parse().unwrap());
    refused(credential(&other), "--node one");
    identity(-1).keep(&with).unwrap();
    refused(credential(&with), "node token create --node one");
    fs::write(folder.path().join(KEPT), "cut").unwrap();
    refused(credential(&with), "damaged");
}
