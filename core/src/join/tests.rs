#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

const MADE: i64 = 1_790_000_000_000;

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(MADE + ms)
}

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

fn compute(name: &str) -> ComputeName {
    ComputeName::new(name).unwrap()
}

fn token() -> JoinToken {
    JoinToken {
        hash: Digest::of(b"token"),
        compute: None,
        node: None,
        created_by: Principal::new("ana").unwrap(),
        created_at: at(0),
        expires_at: at(900_000),
        used: None,
    }
}

fn asks(name: &str, key: &str) -> Joining {
    Joining { node: node(name), compute: compute("gpu"), key: Digest::of(key.as_bytes()) }
}

fn identity(name: &str, id: &str) -> NodeIdentity {
    let since = at(0);
    NodeIdentity { node: node(name), id: id.to_owned(), compute: None, since, revoked_at: None }
}

#[test]
fn a_token_opens_until_its_end_for_whom_it_was_made() {
    let open = token();
    let admits =
        |token: &JoinToken, ms| token.admits(&asks("a", "k"), None, false, at(ms)).map(drop);
    assert_eq!(admits(&open, 0), Ok(()));
    assert_eq!(admits(&open, 899_999), Ok(()));
    assert_eq!(admits(&open, 900_000), Err(Refusal::Expired(at(900_000))));
    let bound = JoinToken { node: Some(node("a")), compute: Some(compute("gpu")), ..token() };
    assert_eq!(admits(&bound, 1), Ok(()));
    let refused = bound.admits(&asks("b", "k"), None, false, at(1)).unwrap_err();
    assert!(refused.to_string().contains("--node a"), "{refused}");
    let other = JoinToken { compute: Some(compute("cpu")), ..token() };
    let refused = admits(&other, 1).unwrap_err();
    assert!(refused.to_string().contains("--compute cpu"), "{refused}");
}

#[test]
fn a_name_that_a_node_has_takes_a_token_for_that_name() {
    let known = identity("a", "1");
    let taken = Err(Refusal::Taken(node("a")));
    assert_eq!(token().admits(&asks("a", "k"), Some(&known), true, at(1)), taken);
    assert_eq!(token().admits(&asks("a", "k"), None, true, at(1)), taken);
    let bound = JoinToken { node: Some(node("a")), ..token() };
    assert_eq!(bound.admits(&asks("a", "k"), Some(&known), true, at(1)), Ok(Admission::First));
}

#[test]
fn a_token_opens_once_and_tells_the_same_again_who_lost_the_answer() {
    let used = Used {
        at: at(5),
        node: node("a"),
        key: Digest::of(b"k"),
        identity: "1".to_owned(),
        answer: "certificate".to_owned(),
    };
    let spent = JoinToken { used: Some(used.clone()), ..token() };
    let known = identity("a", "1");
    let again = Ok(Admission::Again(&used));
    assert_eq!(spent.admits(&asks("a", "k"), Some(&known), true, at(9)), again);
    // Also when the token has ended meanwhile.
    assert_eq!(spent.admits(&asks("a", "k"), Some(&known), true, at(999_999)), again);
    let refused = Refusal::Used { at: at(5), by: node("a") };
    let revoked = NodeIdentity { revoked_at: Some(at(7)), ..known.clone() };
    for (asks, known) in [
        (asks("a", "other"), &known),
        (asks("b", "k"), &known),
        (asks("a", "k"), &revoked),
        (asks("a", "k"), &identity("a", "2")),
    ] {
        assert_eq!(spent.admits(&asks, Some(known), true, at(9)), Err(refused.clone()), "{asks:?}");
    }
    let said = refused.to_string();
    assert!(said.contains("already used") && said.contains(&at(5).to_string()), "{said}");
}
