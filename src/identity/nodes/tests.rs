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
    Peer { node: node(), identity: identity.to_owned(), until: at(1000) }
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
