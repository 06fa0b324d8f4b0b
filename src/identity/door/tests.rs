use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use atelier_core::content::Digest;

use super::*;
use crate::identity::grants::tests::{job, store as datastore};
use crate::identity::people::USER_PREFIX;
use crate::store::SqliteStore;
use crate::store::tests::{Folder, name, spec, who};

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

struct World {
    folder: Folder,
    door: Door,
}

impl World {
    fn new() -> Self {
        let folder = Folder::new();
        let door = Door::open(folder.open(), &folder.at().join("token.key"), "test").unwrap();
        Self { folder, door }
    }

    fn secret(&self) -> PathBuf {
        self.folder.at().join("token.key")
    }

    /// The door of a daemon that was started again.
    fn reopened(self) -> Self {
        let Self { folder, door } = self;
        drop(door);
        let door = Door::open(folder.open(), &folder.at().join("token.key"), "test").unwrap();
        Self { folder, door }
    }

    async fn token(&self, principal: &str, role: Role) -> String {
        self.door.create_token(who(principal), role, who("root"), NOW).await.unwrap()
    }

    fn knock(&self, token: &str) -> Result<Caller, Denied> {
        self.door.authenticate(Some(&format!("Bearer {token}")))
    }
}

fn attempt(job: &str, attempt: u32, epoch: u64) -> AttemptKey {
    AttemptKey { job: name(job), attempt: AttemptNumber(attempt), epoch: Epoch(epoch) }
}

#[tokio::test]
async fn a_token_names_its_caller_and_nothing_else_does() {
    let world = World::new();
    let token = world.token("ana", Role::DataScientist).await;
    let other = world.token("ben", Role::Reader).await;
    let ana = Caller { principal: who("ana"), role: Role::DataScientist };
    assert_eq!(world.knock(&token), Ok(ana.clone()));
    assert_eq!(world.knock(&other).unwrap().principal, who("ben"));
    for scheme in ["bearer", "BEARER", "Bearer "] {
        assert_eq!(world.door.authenticate(Some(&format!("{scheme} {token}"))), Ok(ana.clone()));
    }
    assert_eq!(world.door.authenticate(None), Err(Denied::NoToken));
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("ana:{token}"));
    let hash = Digest::of(token.as_bytes()).to_string();
    for header in [
        String::new(),
        " ".to_owned(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        token.clone(),
        format!("Token {token}"),
        format!("Bearer{token}"),
        format!("Bearer:{token}"),
        format!("Basic {basic}"),
        format!("Bearer {token} {token}"),
        format!("Bearer {token},{other}"),
        format!("Bearer {}", &token[..token.len() - 1]),
        format!("Bearer {token}A"),
        format!("Bearer {}", token.to_uppercase()),
        format!("Bearer {}", &token[USER_PREFIX.len()..]),
        // What the database holds opens nothing.
        format!("Bearer {hash}"),
        format!("Bearer {USER_PREFIX}{hash}"),
        "Bearer ata_".to_owned(),
        "Bearer ata_.".to_owned(),
        "Bearer ata_e30.e30".to_owned(),
        "Bearer \u{fc}\u{0}".to_owned(),
    ] {
        let denied = world.door.authenticate(Some(&header));
        assert_eq!(denied, Err(Denied::WrongToken), "{header:?}");
    }
    let said = Denied::WrongToken.to_string();
    assert!(said.contains("atelier token create") && !said.contains(&token), "{said}");
}

#[tokio::test]
async fn tokens_survive_a_restart_and_are_stored_hashed() {
    let world = World::new();
    let token = world.token("ana", Role::Admin).await;
    let world = world.reopened();
    assert_eq!(world.knock(&token).unwrap().role, Role::Admin);
    for file in ["atelier.db", "atelier.db-wal", "token.key"] {
        let Ok(bytes) = fs::read(world.folder.at().join(file)) else { continue };
        let secret = &token.as_bytes()[USER_PREFIX.len()..];
        let held = bytes.windows(secret.len()).any(|part| part == secret);
        assert!(!held, "{file} holds a token");
    }
    // Two tokens of one person are two: both open.
    let second = world.token("ana", Role::Admin).await;
    assert_ne!(token, second);
    world.knock(&token).unwrap();
    world.knock(&second).unwrap();
}

#[tokio::test]
async fn an_attempt_s_token_opens_while_that_attempt_lives() {
    let world = World::new();
    let (first, second) = (attempt("mine", 1, 7), attempt("mine", 2, 9));
    let token = world.door.admit_attempt(&first, &spec("true"));
    let caller = world.knock(&token).unwrap();
    assert_eq!(caller.principal, who("attempt:mine/1"));
    let scope = AttemptScope { job: first.job.clone(), attempt: first.attempt, epoch: first.epoch };
    assert_eq!(caller.role, Role::Attempt(scope));
    // Sent again, it is the same.
    assert_eq!(world.door.admit_attempt(&first, &spec("true")), token);

    let newer = world.door.admit_attempt(&second, &spec("true"));
    assert_eq!(world.knock(&token), Err(Denied::AttemptOver));
    assert_eq!(world.knock(&newer).unwrap().principal, who("attempt:mine/2"));
    // The late end of the first attempt is no end of the second.
    world.door.dismiss_attempt(&first);
    world.knock(&newer).unwrap();
    world.door.dismiss_attempt(&second);
    assert_eq!(world.knock(&newer), Err(Denied::AttemptOver));
    assert_eq!(world.knock(&token), Err(Denied::AttemptOver));

    // A daemon that was started again lets in whoever the store says is alive.
    let world = world.reopened();
    assert_eq!(world.knock(&newer), Err(Denied::AttemptOver));
    assert_eq!(world.door.admit_attempt(&second, &spec("true")), newer);
    world.knock(&newer).unwrap();
    // Another workspace has another secret.
    let other = World::new();
    other.door.admit_attempt(&second, &spec("true"));
    assert_eq!(other.knock(&newer), Err(Denied::WrongToken));
}

#[tokio::test]
async fn an_attempt_s_token_cannot_be_changed() {
    let world = World::new();
    let token = world.door.admit_attempt(&attempt("mine", 1, 7), &spec("true"));
    world.door.admit_attempt(&attempt("other", 1, 8), &spec("true"));
    for at in 0..token.len() {
        for letter in ['A', 'b', '0', '_', '.', '=', ' '] {
            let mut changed = token.clone().into_bytes();
            if changed[at] == letter as u8 {
                continue;
            }
            changed[at] = letter as u8;
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(world.knock(&changed), Err(Denied::WrongToken), "{at} {letter}");
        }
    }
    // Another's scope under this one's seal, and no seal at all.
    let parts: Vec<&str> = token.split('.').collect();
    let [head, body, seal] = parts[..] else { panic!("{token}") };
    let decoded = String::from_utf8(URL_SAFE_NO_PAD.decode(body).unwrap()).unwrap();
    let forged = URL_SAFE_NO_PAD.encode(decoded.replace("mine", "other").replace('7', "8"));
    let unsigned = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
    let hashed = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let zero = URL_SAFE_NO_PAD.encode([0; 64]);
    for (head, body, seal) in [
        (head, forged.as_str(), seal),
        (unsigned.as_str(), body, ""),
        (unsigned.as_str(), body, seal),
        (hashed.as_str(), body, seal),
        (head, body, zero.as_str()),
        (head, body, ""),
        (head, "", seal),
        (head, body, &seal[..seal.len() - 4]),
    ] {
        let token = format!("{head}.{body}.{seal}");
        assert_eq!(world.knock(&token), Err(Denied::WrongToken), "{token}");
    }
}

#[tokio::test]
async fn anybody_can_verify_an_attempt_s_token_by_the_published_key() {
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
    let world = World::new();
    let token = world.door.admit_attempt(&attempt("mine", 2, 7), &spec("true"));
    let keys = world.door.keys();
    let key = &keys["keys"][0];
    assert_eq!(
        (&key["kty"], &key["crv"], &key["alg"]),
        (&"OKP".into(), &"Ed25519".into(), &"EdDSA".into())
    );
    let (signed, seal) = token.rsplit_once('.').unwrap();
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let public = decode(key["x"].as_str().unwrap());
    let verified =
        UnparsedPublicKey::new(&ED25519, public).verify(signed.as_bytes(), &decode(seal));
    verified.unwrap();
    let (head, body) = signed.split_once('.').unwrap();
    let read = |text: &str| serde_json::from_slice::<serde_json::Value>(&decode(text)).unwrap();
    let head = read(head);
    assert_eq!(
        (&head["alg"], &head["typ"], &head["kid"]),
        (&"EdDSA".into(), &"JWT".into(), &key["kid"])
    );
    let expected = serde_json::json!({
        "iss": "atelier:test", "sub": "attempt:mine/2", "aud": "atelier",
        "job": "mine", "attempt": 2, "epoch": 7,
    });
    assert_eq!(read(body), expected);
    assert!(!keys.to_string().contains("\"d\""), "a private key is published");
    // The same after a restart; another workspace has another.
    let again = world.reopened();
    assert_eq!(again.door.keys(), keys);
    assert_ne!(World::new().door.keys(), keys);
}

#[tokio::test]
async fn a_token_that_an_earlier_version_gave_opens_while_its_attempt_lives() {
    let world = World::new();
    let key = attempt("mine", 1, 7);
    let secret: [u8; 32] = fs::read(world.secret()).unwrap().try_into().unwrap();
    let body = br#"{"job":"mine","attempt":1,"epoch":7}"#;
    let seal = URL_SAFE_NO_PAD.encode(blake3::keyed_hash(&secret, body).as_bytes());
    let old = format!("{ATTEMPT_PREFIX}{}.{seal}", URL_SAFE_NO_PAD.encode(body));
    assert_eq!(world.knock(&old), Err(Denied::AttemptOver));
    world.door.admit_attempt(&key, &spec("true"));
    assert_eq!(world.knock(&old).unwrap().principal, who("attempt:mine/1"));
    assert_eq!(world.knock(&old.replacen("ata_e", "ata_f", 1)), Err(Denied::WrongToken));
    world.door.dismiss_attempt(&key);
    assert_eq!(world.knock(&old), Err(Denied::AttemptOver));
}

#[tokio::test]
async fn an_attempt_of_a_node_that_is_cut_off_writes_nothing_until_it_is_back() {
    let world = World::new();
    let key = attempt("mine", 1, 7);
    let token = world.door.admit_attempt(&key, &spec("true"));
    let caller = world.knock(&token).unwrap();
    world.door.fence_attempt(&key, true);
    assert_eq!(world.knock(&token), Err(Denied::AttemptOver));
    assert_eq!(world.door.still_open(&caller), Err(Denied::AttemptOver));
    // Another attempt of the job is not meant, and to be told again changes nothing.
    assert_eq!(world.door.admit_attempt(&key, &spec("true")), token);
    world.door.fence_attempt(&attempt("mine", 1, 6), false);
    assert_eq!(world.knock(&token), Err(Denied::AttemptOver));
    world.door.fence_attempt(&key, false);
    world.knock(&token).unwrap();
}

#[tokio::test]
async fn each_role_reaches_the_objects_that_are_its_own() {
    let world = World::new();
    let key = attempt("mine", 1, 7);
    let token = world.door.admit_attempt(&key, &job());
    let running = world.knock(&token).unwrap();
    let caller = |role| Caller { principal: who("somebody"), role };
    let node = Role::Node(NodeName::new("n1").unwrap());
    let (admin, scientist) = (caller(Role::Admin), caller(Role::DataScientist));
    let (reader, node) = (caller(Role::Reader), caller(node));
    let may = |caller: &Caller, store: &str, path: &str, write: bool| {
        world.door.authorize_data(caller, &datastore(store), path, write).is_ok()
    };
    let (blobs, artifacts) = ("workspaceblobstore", "workspaceartifactstore");
    // For admin, data scientist, reader, node and attempt: r may read, w may write too.
    let (own, others) = (["w", "w", "r", "-", "-"], ["w", "r", "r", "-", "-"]);
    for (store, path, expected) in [
        (blobs, &*format!("{}/abc/x.csv", layout::uploads_root(&who("somebody"))), own),
        (blobs, &*format!("{}/abc/x.csv", layout::uploads_root(&who("other"))), others),
        (blobs, &*format!("{}x/y", layout::uploads_root(&who("somebody"))), others),
        (blobs, "LocalUpload/abc/x.csv", others),
        (blobs, "LocalUploads/abc", own),
        (blobs, "", others),
        ("workspacefilestore", "notes/x", own),
        ("datasets", "", own),
        ("datasets", "LocalUpload/abc", own),
        (blobs, "data/in/x", ["w", "w", "r", "-", "r"]),
        (blobs, "azureml/mine/out/x", ["w", "r", "r", "-", "w"]),
        (blobs, "azureml/other/out/x", ["w", "r", "r", "-", "-"]),
        (blobs, ".uncommitted/mine/kept/0/x", ["-", "-", "-", "-", "w"]),
        (blobs, ".uncommitted/other/kept/0/x", ["-", "-", "-", "-", "-"]),
        ("datasets", ".uncommitted", ["-", "-", "-", "-", "-"]),
        (artifacts, "ExperimentRun/dcid.mine/outputs/x", ["w", "r", "r", "-", "w"]),
        (artifacts, "ExperimentRun/dcid.other/outputs/x", ["w", "r", "r", "-", "-"]),
        (artifacts, "", ["w", "r", "r", "-", "-"]),
    ] {
        let callers = [&admin, &scientist, &reader, &node, &running];
        let found =
            callers.map(|who| match (may(who, store, path, false), may(who, store, path, true)) {
                (true, true) => "w",
                (true, false) => "r",
                (false, false) => "-",
                (false, true) => "writes and may not read",
            });
        assert_eq!(found, expected, "{store} {path}");
    }
    let refused = world.door.authorize_data(&reader, &datastore(blobs), "x", true).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "somebody has the role reader, which may not write this object; ask an admin"
    );

    // A request that came in before the attempt was replaced writes nothing after it.
    let own = "azureml/mine/out/x";
    world.door.admit_attempt(&attempt("mine", 2, 9), &job());
    assert!(!may(&running, blobs, own, true) && !may(&running, blobs, own, false));
    world.door.admit_attempt(&key, &job());
    assert!(may(&running, blobs, own, true));
    world.door.dismiss_attempt(&key);
    assert!(!may(&running, blobs, own, true) && !may(&running, blobs, own, false));
}

#[tokio::test]
async fn the_secret_is_its_owner_s_alone_and_never_made_anew_over_a_damaged_one() {
    let world = World::new();
    let mode = fs::metadata(world.secret()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let secret = fs::read(world.secret()).unwrap();
    assert!(secret.len() == 32 && secret != [0; 32]);
    fs::write(world.secret(), &secret[..31]).unwrap();
    let folder = world.folder;
    let refused = Door::open(folder.open(), &folder.at().join("token.key"), "test").err().unwrap();
    let said = refused.to_string();
    assert!(said.contains("token.key") && said.contains("restore"), "{said}");
    assert_eq!(fs::read(folder.at().join("token.key")).unwrap().len(), 31);
}

#[tokio::test]
async fn a_token_file_holds_a_token_that_opens() {
    let world = World::new();
    let file = world.folder.at().join("admin.token");
    let make = || world.door.token_file(&file, who("admin"), Role::Admin, NOW);
    let read = || fs::read_to_string(&file).unwrap();
    make().await.unwrap();
    let first = read();
    assert_eq!(world.knock(first.trim()).unwrap().principal, who("admin"));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // A valid one stays; an unknown one (of another workspace, or damaged) is replaced.
    make().await.unwrap();
    assert_eq!(read(), first);
    fs::write(&file, "atl_of-another-workspace\n").unwrap();
    make().await.unwrap();
    assert_ne!(read(), first);
    world.knock(read().trim()).unwrap();
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let said = make().await.unwrap_err().to_string();
    assert!(said.contains("admin.token"), "{said}");
}

#[tokio::test]
async fn a_token_that_could_not_be_kept_is_not_given() {
    let world = World::new();
    let store: Arc<SqliteStore> = world.folder.open();
    let other = rusqlite::Connection::open(&world.folder.path).unwrap();
    other.execute_batch("DROP TABLE tokens").unwrap();
    drop(store);
    let made = world.door.create_token(who("eve"), Role::Admin, who("root"), NOW).await;
    assert!(made.is_err());
    assert!(world.door.people().tokens(None).is_empty());
}
