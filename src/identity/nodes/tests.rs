use super::*;

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(1_790_000_000_000 + ms)
}

fn node() -> NodeName {
    NodeName::new("one").unwrap()
}

fn identity(id: &str) -> NodeIdentity {
    let (id, since) = (id.to_owned(), at(0));
    NodeIdentity { node: node(), id, compute: None, since, revoked_at: None }
}

fn peer(identity: &str) -> Peer {
    Peer { node: node(), identity: identity.to_owned(), until: at(1000), authority: [1; 32] }
}

#[test]
fn a_certificate_opens_while_it_lasts_and_its_identity_is_in_force() {
    let nodes = Identities::default();
    let said = |identity: &str, ms: i64| match nodes.caller(&peer(identity), at(ms)) {
        Ok(caller) => caller.principal.to_string(),
        Err(denied) => denied.to_string(),
    };
    assert!(said("a", 0).contains("no such node"));
    nodes.set(&node(), Some(identity("a")));
    assert_eq!(said("a", 0), "node:one");
    assert_eq!(said("a", 999), "node:one");
    assert!(said("a", 1000).contains("expired"), "{}", said("a", 1000));
    assert!(said("b", 0).contains("joined under that name since"));
    let revoked = NodeIdentity { revoked_at: Some(at(5)), ..identity("a") };
    nodes.set(&node(), Some(revoked));
    assert_eq!(nodes.revoked(), [node()]);
    assert_eq!(nodes.in_force(&node()), None);
    let told = said("a", 0);
    assert!(told.contains("revoked") && told.contains("node token create --node one"), "{told}");
    // A new one of that name opens by its own certificates alone.
    nodes.set(&node(), Some(identity("b")));
    assert_eq!(said("b", 0), "node:one");
    assert!(said("a", 0).contains("since"));
}

#[test]
fn a_certificate_of_an_authority_that_was_retired_opens_nothing() {
    let nodes = Identities::default();
    nodes.set(&node(), Some(identity("a")));
    let by = |authority: u8| Peer { authority: [authority; 32], ..peer("a") };
    nodes.caller(&by(1), at(5)).unwrap();
    assert_eq!(nodes.known_by(&identity("a"), [1; 32]), Some(at(5)));
    assert_eq!(nodes.known_by(&identity("a"), [2; 32]), None);
    // What was opened with the one before goes on beside.
    nodes.caller(&by(2), at(6)).unwrap();
    nodes.caller(&by(1), at(7)).unwrap();
    nodes.caller(&by(2), at(8)).unwrap();
    assert_eq!(nodes.known_by(&identity("a"), [2; 32]), Some(at(6)));
    nodes.retire(vec![[1; 32]]);
    let told = nodes.caller(&by(1), at(9)).unwrap_err().to_string();
    assert!(told.contains("retired") && told.contains("node token create --node one"), "{told}");
    nodes.caller(&by(2), at(9)).unwrap();
    // A machine that has joined under the name since has shown nothing yet.
    assert_eq!(nodes.known_by(&identity("b"), [2; 32]), None);
}

#[tokio::test]
async fn a_pass_is_void_from_the_cut_on_and_the_next_one_is_not() {
    let nodes = Identities::default();
    let before = nodes.pass(&node());
    let other = nodes.pass(&NodeName::new("two").unwrap());
    assert!(!before.is_void());
    nodes.cut(&node());
    let after = nodes.pass(&node());
    assert!(before.is_void() && !after.is_void() && !other.is_void());
    before.clone().void().await;
    let waiting = tokio::spawn(after.clone().void());
    nodes.cut(&node());
    waiting.await.unwrap();
    // It lasts no longer than the certificate.
    let short = nodes.pass(&node()).until(at(20), at(0));
    short.clone().void().await;
    assert!(short.is_void() && !nodes.pass(&node()).until(at(60_000), at(0)).is_void());
    assert!(nodes.pass(&node()).until(at(0), at(20)).is_void());
}
