//! Users, tokens and roles over a real database.

use std::path::PathBuf;

use atelier_core::access::RoleFile;

use super::*;
use crate::identity::Door;
use crate::store::audit::AuditQuery;
use crate::store::tests::{Folder, who};

const START: i64 = 1_700_000_000_000;
const DAY_MS: u64 = 86_400_000;

struct World {
    folder: Folder,
    door: Door,
    time: Arc<AtomicI64>,
}

fn open(folder: &Folder, time: &Arc<AtomicI64>) -> Door {
    let key: PathBuf = folder.at().join("token.key");
    let time = time.clone();
    let clock = Arc::new(move || Timestamp::from_millis(time.load(Ordering::SeqCst)));
    Door::with_clock(folder.open(), &key, "test", clock).unwrap()
}

impl World {
    /// With the admin that every workspace has.
    async fn new() -> Self {
        let (folder, time) = (Folder::new(), Arc::new(AtomicI64::new(START)));
        let door = open(&folder, &time);
        door.create_token(who("root"), Role::Admin, who("root"), Timestamp::from_millis(START))
            .await
            .unwrap();
        Self { folder, door, time }
    }

    fn reopened(self) -> Self {
        let Self { folder, door, time } = self;
        drop(door);
        let door = open(&folder, &time);
        Self { folder, door, time }
    }

    fn later(&self, ms: u64) {
        self.time.fetch_add(i64::try_from(ms).unwrap(), Ordering::SeqCst);
    }

    fn people(&self) -> &People {
        self.door.people()
    }

    fn knock(&self, token: &str) -> Result<Caller, Denied> {
        self.door.authenticate(Some(&format!("Bearer {token}")))
    }

    async fn issue(
        &self,
        by: &Asking,
        user: &str,
        role: Option<Role>,
        lives_ms: Option<u64>,
    ) -> Result<Issued, Error> {
        self.people().issue(NewToken { principal: who(user), role, lives_ms }, by).await
    }

    async fn token(&self, user: &str, role: Role) -> Issued {
        self.issue(&root(), user, Some(role), None).await.unwrap()
    }
}

fn none() -> BTreeSet<GroupName> {
    BTreeSet::new()
}

fn groups(names: &[&str]) -> BTreeSet<GroupName> {
    names.iter().map(|name| GroupName::new(name).unwrap()).collect()
}

fn root() -> Asking {
    as_role("root", Role::Admin)
}

fn as_role(name: &str, role: Role) -> Asking {
    Caller { principal: who(name), role }.into()
}

fn refused<T>(result: Result<T, Error>) -> Refused {
    match result {
        Err(Error::Refused(refused)) => refused,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was done"),
    }
}

fn file(name: &str, actions: &[&str]) -> RoleFile {
    let actions = actions.iter().map(|action| (*action).to_owned()).collect();
    RoleFile { name: name.to_owned(), actions, ..RoleFile::default() }
}

#[tokio::test]
async fn a_token_opens_until_its_time_is_over() {
    let world = World::new().await;
    world.token("ana", Role::DataScientist).await;
    world.later(1);
    let made = world.issue(&root(), "ana", None, Some(30 * DAY_MS)).await.unwrap();
    assert_eq!(made.listed.record.role, Role::DataScientist);
    assert_eq!(made.listed.record.created_by, Some(who("root")));
    let token = made.secret;
    world.knock(&token).unwrap();
    world.later(30 * DAY_MS - 1);
    world.knock(&token).unwrap();
    world.later(1);
    let world = world.reopened();
    let denied = world.knock(&token).unwrap_err();
    let at = Timestamp::from_millis(START + 1 + 30 * 86_400_000);
    assert!(matches!(denied, Denied::Expired { at: told, .. } if told == at), "{denied}");
    assert!(
        denied.to_string().contains("2023-12-14") && denied.to_string().contains("ask an admin")
    );
    let listed = world.people().tokens(Some(&who("ana")));
    assert_eq!(listed.iter().map(|token| token.is_over).collect::<Vec<_>>(), [false, true]);
    let endless = world.issue(&root(), "ana", None, Some(u64::MAX)).await;
    assert_eq!(refused(endless), Refused::TooLong);
}

#[tokio::test]
async fn a_revoked_token_opens_nothing_and_is_known_by_its_id_alone() {
    let world = World::new().await;
    let (first, second) =
        (world.token("ana", Role::Reader).await, world.token("ana", Role::Reader).await);
    let ben = world.token("ben", Role::DataScientist).await;
    let ana = Asking::from(world.knock(&first.secret).unwrap());
    // Of others one does not even hear that they are there.
    let id = ben.listed.id.to_string();
    let missing = Refused::NoSuchToken(id.clone());
    assert_eq!(refused(world.people().revoke(&id, &ana).await), missing);
    for id in ["", "*", "zz", &first.secret] {
        assert!(matches!(
            refused(world.people().revoke(id, &root()).await),
            Refused::NoSuchToken(_)
        ));
    }
    world.people().revoke(&first.listed.id.to_string(), &ana).await.unwrap();
    world.people().revoke(&id, &root()).await.unwrap();
    let world = world.reopened();
    assert_eq!(world.knock(&first.secret), Err(Denied::WrongToken));
    assert_eq!(world.knock(&ben.secret), Err(Denied::WrongToken));
    assert_eq!(world.knock(&second.secret).unwrap(), ana.caller);
    // What goes on hears that it was revoked.
    let bearer = format!("Bearer {}", first.secret);
    assert_eq!(world.door.authenticate_again(Some(&bearer)), Err(Denied::Revoked));
    // No list holds a token, or its hash.
    let shown = format!("{:?}", world.people().tokens(None)[0].id);
    assert!(shown.len() < 30, "{shown}");
}

#[tokio::test]
async fn an_operator_gives_nodes_tokens_and_takes_them_back_and_nothing_else() {
    let world = World::new().await;
    let olga = as_role("olga", Role::ComputeOperator);
    let node = || Some(Role::Node(NodeName::new("gpu-1").unwrap()));
    let made = world.issue(&olga, "node:gpu-1", node(), None).await.unwrap();
    assert!(matches!(world.knock(&made.secret).unwrap().role, Role::Node(_)));
    for role in [Role::Reader, Role::ComputeOperator, Role::Admin] {
        let above = world.issue(&olga, "eve", Some(role.clone()), None).await;
        assert!(matches!(refused(above), Refused::Above { .. }), "{role}");
    }
    let token = world.token("ana", Role::Reader).await;
    let above = world.people().revoke(&token.listed.id.to_string(), &olga).await;
    assert!(matches!(refused(above), Refused::Above { .. }));
    world.people().revoke(&made.listed.id.to_string(), &olga).await.unwrap();
    assert_eq!(world.knock(&made.secret), Err(Denied::WrongToken));
    let above = world.issue(&as_role("ana", Role::DataScientist), "node:x", node(), None).await;
    assert!(matches!(refused(above), Refused::Above { .. }));
}

#[tokio::test]
async fn when_a_token_was_used_is_told_and_kept() {
    let world = World::new().await;
    let made = world.token("ana", Role::Reader).await;
    let used = |world: &World| world.people().tokens(Some(&who("ana")))[0].record.last_used_at;
    assert_eq!(used(&world), None);
    world.knock(&made.secret).unwrap();
    let first = Some(Timestamp::from_millis(START));
    assert_eq!(used(&world), first);
    // To the minute.
    world.later(59_999);
    world.knock(&made.secret).unwrap();
    assert_eq!(used(&world), first);
    world.later(1);
    world.knock(&made.secret).unwrap();
    let last = Some(Timestamp::from_millis(START + 60_000));
    assert_eq!(used(&world), last);
    world.people().write_uses().await;
    let world = world.reopened();
    assert_eq!(used(&world), last);
}

#[tokio::test]
async fn a_user_s_role_holds_for_all_tokens_at_once() {
    let world = World::new().await;
    let people = world.people();
    people.create_user(who("ana"), Role::DataScientist, none(), &root()).await.unwrap();
    let token = world.issue(&root(), "ana", None, None).await.unwrap().secret;
    let narrow = world.issue(&root(), "ana", Some(Role::Reader), None).await.unwrap().secret;
    let roles = |world: &World| {
        [&token, &narrow].map(|token| world.knock(token).map(|caller| caller.role.to_string()))
    };
    let (scientist, reader) = (Ok("data-scientist".to_owned()), Ok("reader".to_owned()));
    assert_eq!(roles(&world), [scientist, reader.clone()]);
    let wide = world.issue(&root(), "ana", Some(Role::Admin), None).await;
    assert!(matches!(refused(wide), Refused::AboveUser { .. }));
    let twice = people.create_user(who("ana"), Role::Reader, none(), &root()).await;
    assert!(matches!(refused(twice), Refused::UserTaken { .. }));
    people.update_user("ana", Role::Reader, &root()).await.unwrap();
    assert_eq!(roles(&world), [reader.clone(), reader.clone()]);
    let world = world.reopened();
    assert_eq!(roles(&world), [reader.clone(), reader]);
    world.people().delete_user("ana", &root()).await.unwrap();
    assert_eq!(roles(&world), [Err(Denied::WrongToken), Err(Denied::WrongToken)]);
    let world = world.reopened();
    assert_eq!(roles(&world), [Err(Denied::WrongToken), Err(Denied::WrongToken)]);
    // Who is made anew under the name has none of the old tokens.
    world.people().create_user(who("ana"), Role::Admin, none(), &root()).await.unwrap();
    assert_eq!(roles(&world), [Err(Denied::WrongToken), Err(Denied::WrongToken)]);
    let gone = world.people().delete_user("nobody", &root()).await;
    assert_eq!(refused(gone), Refused::NoSuchUser("nobody".to_owned()));
}

#[tokio::test]
async fn one_admin_stays_and_some_names_are_nobody_s() {
    let world = World::new().await;
    let people = world.people();
    let last = Refused::LastAdmin(who("root"));
    assert_eq!(refused(people.delete_user("root", &root()).await), last);
    assert_eq!(refused(people.update_user("root", Role::Reader, &root()).await), last);
    people.create_user(who("ana"), Role::Admin, none(), &root()).await.unwrap();
    people.update_user("root", Role::Reader, &root()).await.unwrap();
    assert!(people.changes_any(&who("ana")) && !people.changes_any(&who("root")));
    for name in ["daemon", "atelier", "node:n1", "attempt:j/1"] {
        let made = people.create_user(who(name), Role::Reader, none(), &root()).await;
        assert_eq!(refused(made), Refused::Kept(who(name)));
        let made = world.issue(&root(), name, Some(Role::Reader), None).await;
        assert_eq!(refused(made), Refused::Kept(who(name)));
    }
    let unknown = world.issue(&root(), "new", None, None).await;
    assert_eq!(refused(unknown), Refused::NoRole(who("new")));
}

#[tokio::test]
async fn nobody_gives_or_takes_above_their_own_role() {
    let world = World::new().await;
    let people = world.people();
    let keeper = file("keeper", &["workspaces/roleAssignments/write", "*/read"]);
    people.put_role(keeper, false, &root()).await.unwrap();
    let keeper = people.role_named("keeper").unwrap();
    people.create_user(who("kim"), keeper, none(), &root()).await.unwrap();
    let token = world.issue(&root(), "kim", None, None).await.unwrap().secret;
    let kim = Asking::from(world.knock(&token).unwrap());
    let ana = world.token("ana", Role::DataScientist).await;

    people.create_user(who("rita"), Role::Reader, none(), &kim).await.unwrap();
    world.issue(&kim, "rita", None, None).await.unwrap();
    people.delete_user("rita", &kim).await.unwrap();
    let above = |refused: Refused| assert!(matches!(refused, Refused::Above { .. }), "{refused}");
    above(refused(people.create_user(who("x"), Role::DataScientist, none(), &kim).await));
    above(refused(people.update_user("ana", Role::Reader, &kim).await));
    above(refused(people.update_user("kim", Role::Admin, &kim).await));
    above(refused(people.delete_user("root", &kim).await));
    above(refused(people.revoke(&ana.listed.id.to_string(), &kim).await));
    above(refused(world.issue(&kim, "root", None, None).await));
    above(refused(world.issue(&kim, "ana", Some(Role::Reader), None).await));
    above(refused(people.put_role(file("all", &["*"]), false, &kim).await));
    let own = file("keeper", &["workspaces/roleAssignments/write", "workspaces/jobs/*"]);
    above(refused(people.put_role(own, true, &kim).await));
    people.put_role(file("looks", &["*/read"]), false, &kim).await.unwrap();
}

#[tokio::test]
async fn a_custom_role_holds_as_it_is_now() {
    use atelier_core::access::Permission as P;
    let world = World::new().await;
    let people = world.people();
    people.put_role(file("ops", &["workspaces/jobs/*"]), false, &root()).await.unwrap();
    let token = world.token("olga", people.role_named("ops").unwrap()).await.secret;
    let may = |world: &World, permission| world.knock(&token).unwrap().may(permission);
    assert!(may(&world, P::CancelAny) && !may(&world, P::ReadComputes));
    assert_eq!(world.knock(&token).unwrap().role.to_string(), "ops");
    let world = world.reopened();
    assert!(may(&world, P::CancelAny) && !may(&world, P::ReadComputes));
    let people = world.people();
    people.put_role(file("ops", &["workspaces/computes/read"]), true, &root()).await.unwrap();
    assert!(!may(&world, P::CancelAny) && may(&world, P::ReadComputes));

    let used = refused(people.delete_role("ops", &root()).await);
    assert!(matches!(&used, Refused::RoleUsed { users, .. } if users == "olga"), "{used}");
    let taken = refused(people.put_role(file("ops", &["*"]), false, &root()).await);
    assert!(matches!(taken, Refused::RoleTaken(_)));
    let fixed = refused(people.put_role(file("admin", &["*"]), true, &root()).await);
    assert_eq!(fixed, Refused::RoleFixed("admin".to_owned()));
    assert!(matches!(refused(people.delete_role("reader", &root()).await), Refused::RoleFixed(_)));
    let unknown = people.role_named("opps").unwrap_err();
    assert!(unknown.to_string().contains("did you mean 'ops'"), "{unknown}");
    people.delete_user("olga", &root()).await.unwrap();
    people.delete_role("ops", &root()).await.unwrap();
    let world = world.reopened();
    assert!(world.people().role_named("ops").is_err());
}

#[tokio::test]
async fn a_change_that_could_not_be_kept_is_not_seen() {
    let world = World::new().await;
    let token = world.token("ana", Role::Reader).await;
    let other = rusqlite::Connection::open(&world.folder.path).unwrap();
    other.execute_batch("DROP TABLE users; DROP TABLE tokens").unwrap();
    let people = world.people();
    assert!(people.update_user("ana", Role::Admin, &root()).await.is_err());
    assert!(people.create_user(who("eve"), Role::Admin, none(), &root()).await.is_err());
    assert!(people.revoke(&token.listed.id.to_string(), &root()).await.is_err());
    assert!(world.issue(&root(), "ana", None, None).await.is_err());
    assert_eq!(world.knock(&token.secret).unwrap().role, Role::Reader);
    assert_eq!(people.users().len(), 2);
    assert_eq!(people.tokens(None).len(), 2);
}

#[tokio::test]
async fn each_change_has_an_entry_of_who_asked() {
    let world = World::new().await;
    let people = world.people();
    let by = |action: &str| {
        let origin = Origin { from: Some([10, 0, 0, 7].into()), action: action.to_owned() };
        Asking { origin, ..root() }
    };
    people.create_user(who("ana"), Role::Reader, none(), &by("create")).await.unwrap();
    people.update_user("ana", Role::DataScientist, &by("update")).await.unwrap();
    let issued = world.issue(&by("issue"), "ana", Some(Role::Reader), None).await.unwrap();
    let kept = world.issue(&by("issue"), "ana", None, None).await.unwrap();
    people.revoke(&issued.listed.id.to_string(), &by("revoke")).await.unwrap();
    people.put_role(file("ops", &["workspaces/jobs/*"]), false, &by("role")).await.unwrap();
    people.put_role(file("ops", &["workspaces/jobs/read"]), true, &by("role")).await.unwrap();
    people.delete_role("ops", &by("role")).await.unwrap();
    people.delete_user("ana", &by("delete")).await.unwrap();
    people.delete_user("ana", &by("delete")).await.unwrap_err();
    let user = sign_in::User { principal: who("o"), role: Role::Reader, groups: none() };
    let origin = by("sign-in").origin;
    let session = people.sign_in(user, Duration::from_secs(60), &origin).await.unwrap();
    people.write_uses().await;

    let World { folder, door, .. } = world;
    drop(door);
    let query = AuditQuery { oldest_first: true, limit: 100, ..AuditQuery::default() };
    let entries = folder.open().audited(&query).unwrap();
    let told: Vec<(&str, &str, &str, bool, bool)> = entries
        .iter()
        .map(|e| {
            let is = (e.before.is_some(), e.after.is_some());
            (e.principal.as_str(), e.action.as_str(), e.resource.as_str(), is.0, is.1)
        })
        .collect();
    assert_eq!(
        told,
        [
            ("root", "test", "user/root", false, true),
            ("root", "test", "token/root", false, true),
            ("root", "create", "user/ana", false, true),
            ("root", "update", "user/ana", true, true),
            ("root", "issue", "token/ana", false, true),
            ("root", "issue", "token/ana", false, true),
            ("root", "revoke", "token/ana", true, false),
            ("root", "role", "role/ops", false, true),
            ("root", "role", "role/ops", true, true),
            ("root", "role", "role/ops", true, false),
            ("root", "delete", "token/ana", true, false),
            ("root", "delete", "user/ana", true, false),
            ("o", "sign-in", "user/o", false, true),
            ("o", "sign-in", "token/o", false, true),
        ]
    );
    assert!(entries[2..].iter().all(|entry| entry.from == "10.0.0.7"));
    let id = issued.listed.id.to_string();
    assert!(entries[6].before.as_ref().unwrap().contains(&id), "{:?}", entries[6]);
    let lines: String = entries.iter().map(atelier_core::audit::Entry::to_line).collect();
    for token in [issued.secret, kept.secret, session.secret] {
        let hash = Digest::of(token.as_bytes()).to_string();
        assert!(!lines.contains(&token) && !lines.contains(&hash));
    }
}

#[tokio::test]
async fn nobody_is_put_into_a_group_by_who_neither_is_in_it_nor_manages_computes() {
    let world = World::new().await;
    let people = world.people();
    let ana = people
        .create_user(who("ana"), Role::Reader, groups(&["nlp", "/research/vision lab"]), &root())
        .await
        .unwrap();
    assert_eq!(ana.groups.len(), 2);
    // Somebody who manages users alone.
    people
        .put_role(file("hr", &["workspaces/roleAssignments/write"]), false, &root())
        .await
        .unwrap();
    let hr = people.role_named("hr").unwrap();
    people.create_user(who("hal"), hr.clone(), groups(&["web"]), &root()).await.unwrap();
    let hal = as_role("hal", hr.clone());
    let change = |add: &[&str], remove: &[&str]| UserChange {
        role: None,
        add: groups(add),
        remove: groups(remove),
    };
    let peer = || people.create_user(who("hil"), hr.clone(), groups(&["vision"]), &hal);
    assert!(matches!(refused(peer().await), Refused::AboveGroup { .. }));
    people.create_user(who("hil"), hr.clone(), groups(&["web"]), &hal).await.unwrap();
    for (add, remove) in [(&["vision"][..], &[][..]), (&["web", "vision"], &[]), (&[], &["nlp"])] {
        let told = refused(people.update_user("hil", change(add, remove), &hal).await);
        assert!(matches!(told, Refused::AboveGroup { .. }), "{told}");
    }
    people.update_user("hil", change(&[], &["web"]), &hal).await.unwrap();
    // Nor is it given with a token of somebody who is in it, or taken by forgetting them.
    people.update_user("hil", change(&["vision"], &[]), &root()).await.unwrap();
    let told = refused(world.issue(&hal, "hil", None, None).await);
    assert!(matches!(told, Refused::AboveGroup { .. }), "{told}");
    let told = refused(people.delete_user("hil", &hal).await);
    assert!(matches!(told, Refused::AboveGroup { .. }), "{told}");

    let told = refused(people.update_user("ana", change(&["web"], &["chess"]), &root()).await);
    let ana = || who("ana");
    let group = GroupName::new("chess").unwrap();
    assert_eq!(told, Refused::NotInGroup { user: ana(), group });
    let changed = people.update_user("ana", change(&["web"], &["nlp"]), &root()).await.unwrap();
    assert_eq!(
        (changed.role, changed.groups),
        (Role::Reader, groups(&["/research/vision lab", "web"]))
    );
    let many: Vec<String> = (0..=MAX_GROUPS).map(|n| format!("g{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let told = refused(people.update_user("ana", change(&many, &[]), &root()).await);
    assert_eq!(told, Refused::TooManyGroups(ana()));

    // The provider's groups are the provider's to say, and are what it said last.
    let user = |names: &[&str]| sign_in::User {
        principal: who("o"),
        role: Role::Reader,
        groups: groups(names),
    };
    let origin = Origin::default();
    let lives = Duration::from_secs(60);
    people.sign_in(user(&["vision"]), lives, &origin).await.unwrap();
    let told = refused(people.update_user("o", change(&["web"], &[]), &root()).await);
    assert_eq!(told, Refused::GivenByProvider(who("o")));
    people.sign_in(user(&["chess"]), lives, &origin).await.unwrap();
    let World { folder, door, .. } = world.reopened();
    assert_eq!(door.people().groups_of(&who("o")), groups(&["chess"]));
    let known = people_in(&*folder.open()).unwrap();
    assert_eq!(known.of(&who("ana")).groups, groups(&["/research/vision lab", "web"]));
    let manage = |name: &str| known.of(&who(name)).manages;
    assert!(manage("root") && !manage("hal") && !manage("o"));
}

#[tokio::test]
async fn who_is_blocked_comes_in_no_more_also_after_being_deleted() {
    let world = World::new().await;
    let people = world.people();
    let root: Asking = Caller { principal: who("root"), role: Role::Admin }.into();
    let signs_in = async |people: &People| {
        let user = sign_in::User { principal: who("ana"), role: Role::Reader, groups: groups(&[]) };
        people.sign_in(user, Duration::from_secs(60), &Origin::default()).await
    };
    let session = signs_in(people).await.unwrap().secret;
    world.knock(&session).unwrap();
    // Deleted, she comes in again; blocked, she does not, and what is open is over.
    people.delete_user("ana", &root).await.unwrap();
    let session = signs_in(people).await.unwrap().secret;
    assert!(matches!(
        people.block(who("ana"), " ", &root).await,
        Err(Error::Refused(Refused::Reason { .. }))
    ));
    people.block(who("ana"), "has left", &root).await.unwrap();
    assert!(matches!(world.knock(&session), Err(Denied::WrongToken)));
    people.delete_user("ana", &root).await.unwrap();
    // She may be given any role when she comes back: only an admin has a say in that.
    people.put_role(file("hr", &["workspaces/roleAssignments/write"]), false, &root).await.unwrap();
    let hal = as_role("hal", people.role_named("hr").unwrap());
    assert!(matches!(
        people.unblock(&who("ana"), &hal).await,
        Err(Error::Refused(Refused::Above { .. }))
    ));

    let world = world.reopened();
    let people = world.people();
    let Err(refused) = signs_in(people).await else { panic!("she came in") };
    let said = refused.to_string();
    assert!(said.contains("has left") && said.contains("user unblock"), "{said}");
    assert!(matches!(
        world.issue(&root, "ana", Some(Role::Reader), None).await,
        Err(Error::Refused(Refused::Blocked { .. }))
    ));
    assert!(matches!(
        people.block(who("root"), "no", &root).await,
        Err(Error::Refused(Refused::LastAdmin(_)))
    ));
    assert_eq!(people.blocked().len(), 1);
    people.unblock(&who("ana"), &root).await.unwrap();
    let session = signs_in(people).await.unwrap().secret;
    world.knock(&session).unwrap();
    assert!(matches!(
        people.unblock(&who("ana"), &root).await,
        Err(Error::Refused(Refused::NotBlocked(_)))
    ));
    let World { folder, door, .. } = world;
    drop(door);
    let query = AuditQuery { resource: "block".to_owned(), limit: 10, ..AuditQuery::default() };
    assert_eq!(folder.open().audited(&query).unwrap().len(), 2);
}
