use super::*;
use crate::store::Store;

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

#[test]
fn a_gang_writes_again_once_each_of_its_nodes_is_let_in() {
    let (a, b, c) = (node("a"), node("b"), node("c"));
    let gang = [a.clone(), b.clone()];
    let fenced = |cut_off: &[&NodeName]| {
        is_fenced(&gang, &cut_off.iter().map(|&node| node.clone()).collect())
    };
    assert!(fenced(&[&a, &b]));
    assert!(fenced(&[&b, &c]));
    assert!(!fenced(&[&c]));
    assert!(!fenced(&[]));
}

struct World {
    _folder: tempfile::TempDir,
    store: Arc<SqliteStore>,
    door: Arc<Door>,
    nodes: Nodes,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(&folder.path().join("atelier.db"), false).unwrap());
        let door = Arc::new(Door::open(store.clone(), &folder.path().join("key"), "w").unwrap());
        let (clock, life) = (Clock::default(), Duration::from_secs(60));
        let nodes = Nodes::open(store.clone(), door.clone(), None, "w", clock, life).unwrap();
        Self { _folder: folder, store, door, nodes }
    }

    /// Whether the door and the disk say the same of a token, and what.
    fn opens(&self, token: &str) -> Result<bool, (bool, bool)> {
        let hash = Digest::of(token.as_bytes());
        let kept = self.store.tokens().unwrap().iter().any(|token| token.hash == hash);
        let opens = self.door.authenticate(Some(&format!("Bearer {token}"))).is_ok();
        if kept == opens { Ok(opens) } else { Err((kept, opens)) }
    }
}

fn by() -> Actor {
    Actor::daemon(Principal::new("root").unwrap(), "test")
}

/// A token of a node's that is made at the moment of its revocation was dropped by it, on disk and at the door, or is
/// as one that was made after it: never one and not the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_token_of_the_moment_of_a_revocation_opens_if_it_is_kept_and_only_then() {
    let world = Arc::new(World::new());
    for round in 0..200 {
        let name = node(&format!("n{round}"));
        let issued = {
            let (world, name) = (world.clone(), name.clone());
            tokio::spawn(async move {
                let who = Principal::new(&format!("node:{name}")).unwrap();
                let now = Clock::default().wall();
                world.door.create_token(who, Role::Node(name), by(), now).await.unwrap()
            })
        };
        let revoked = {
            let (world, name) = (world.clone(), name.clone());
            tokio::spawn(async move {
                let _order = world.nodes.hold().await;
                world.nodes.cut_off(&name, by()).await.unwrap();
            })
        };
        let (token, revoked) = tokio::join!(issued, revoked);
        revoked.unwrap();
        let opens = world.opens(&token.unwrap());
        assert!(opens.is_ok(), "round {round}: kept and opens: {opens:?}");
    }
}

#[tokio::test]
async fn join_tokens_are_listed_while_they_open_and_deleted_before_they_are_used() {
    let world = World::new();
    let nodes = &world.nodes;
    let made = nodes.make_token(None, Some(node("a")), None, by()).await.unwrap();
    let over = nodes.make_token(None, None, Some(Duration::ZERO), by()).await.unwrap();
    let listed = nodes.tokens().unwrap();
    assert_eq!((listed.len(), listed[0].id()), (1, made.id.clone()));
    assert!(!listed[0].id().contains(&made.token) && !made.token.contains(&listed[0].id()));
    assert_eq!(nodes.delete_token(&made.id, by()).await.unwrap().node, Some(node("a")));
    let told = nodes.delete_token(&made.id, by()).await.unwrap_err().to_string();
    assert!(told.contains("no join token") && told.contains("node token list"), "{told}");
    nodes.delete_token(&over.id, by()).await.unwrap();
    let used = nodes.make_token(None, None, None, by()).await.unwrap();
    let shows = Shows::TokenHash(vec![7; 32]);
    let (compute, origin) = (ComputeName::new("local").unwrap(), Origin::new(None, "POST", "/x"));
    nodes.join(&used.token, node("b"), compute, shows, &origin).await.unwrap();
    assert!(nodes.tokens().unwrap().is_empty());
    let told = nodes.delete_token(&used.id, by()).await.unwrap_err().to_string();
    assert!(told.contains("was used") && told.contains("node revoke b"), "{told}");
}
