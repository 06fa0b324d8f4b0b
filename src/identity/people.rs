//! Users, their tokens, and roles that somebody has made.
//!
//! **Invariant:** what is asked here is answered from memory, and memory has what the store has: each change is
//! on disk before it is seen. One change at a time, so that what it was checked against still holds.

#[cfg(test)]
mod tests;

mod blocked;
mod refused;
mod roles;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use atelier_core::access::{
    self, Caller, CustomRole, Held, MAX_GROUPS, Permission, Permissions, Person, Role,
};
use atelier_core::audit::Actor;
use atelier_core::content::Digest;
use atelier_core::id::{GroupName, NodeName, Principal, RoleName};
use atelier_core::sign_in;
use atelier_core::time::Timestamp;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::sync::{Mutex, MutexGuard};

use super::{Asking, Denied, Error, Origin};
use crate::daemon::Handle;
use crate::store::blocked::BlockRecord;
use crate::store::people::{PeopleChange, UserRecord};
use crate::store::{Store, TokenRecord};
pub use refused::Refused;

pub(super) const USER_PREFIX: &str = "atl_";
/// How often it is written when tokens were last used; who reads it wants to know which are not needed any more.
const WRITTEN_EVERY: Duration = Duration::from_secs(300);
/// A use within so many milliseconds of the last is none.
const USED_EVERY_MS: i64 = 60_000;
/// So many sessions somebody has at most who signs in; with the next the oldest is over.
const SESSIONS: usize = 50;
/// The longest that a token may live, where it does not live for ever: ten years.
const MOST_MS: u64 = 10 * 366 * 86_400_000;

/// Tells the time.
pub type WallClock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Who may come in, and as what.
pub struct People {
    store: Arc<dyn Store>,
    clock: WallClock,
    known: RwLock<Known>,
    changing: Mutex<()>,
    scheduler: OnceLock<Handle>,
}

#[derive(Default)]
struct Known {
    users: BTreeMap<Principal, UserRecord>,
    blocked: BTreeMap<Principal, BlockRecord>,
    roles: BTreeMap<RoleName, (CustomRole, Permissions)>,
    tokens: HashMap<Digest, Token>,
}

/// Who is in which group, and who manages computes, as the store has it.
pub(crate) fn people_in(store: &dyn Store) -> Result<access::People, crate::store::Error> {
    Known::read(store).map(|known| known.people())
}

struct Token {
    record: TokenRecord,
    /// In milliseconds since the epoch; zero: never.
    used: AtomicI64,
    /// What of it is on disk.
    written: AtomicI64,
}

impl Token {
    fn new(record: TokenRecord) -> Self {
        let used = record.last_used_at.map_or(0, Timestamp::as_millis);
        Self { record, used: AtomicI64::new(used), written: AtomicI64::new(used) }
    }

    fn is_of(&self, node: &NodeName) -> bool {
        matches!(&self.record.role, Role::Node(name) if name == node)
    }

    fn is_over(&self, now: Timestamp) -> bool {
        self.record.expires_at.is_some_and(|end| end <= now)
    }
}

/// What a token is called, where it is not shown: the first digits of its hash.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TokenId(String);

impl TokenId {
    fn of(hash: &Digest) -> Self {
        Self(hash.as_bytes().iter().take(6).map(|byte| format!("{byte:02x}")).collect())
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A token as it is listed.
#[derive(Clone, PartialEq, Debug)]
pub struct ListedToken {
    /// What it is called.
    pub id: TokenId,
    /// What is stored of it.
    pub record: TokenRecord,
    /// Whether it opens nothing any more.
    pub is_over: bool,
}

/// A token that was just made.
pub struct Issued {
    /// The token itself, which nobody has again.
    pub secret: String,
    /// How it is listed.
    pub listed: ListedToken,
}

/// A token to make.
pub struct NewToken {
    /// Whose; `node:NAME` for a node's.
    pub principal: Principal,
    /// At most as what; nothing: whatever its user is.
    pub role: Option<Role>,
    /// For how long it opens something.
    pub lives_ms: Option<u64>,
}

/// A change of a user.
#[derive(Clone, Default, Debug)]
pub struct UserChange {
    /// Another role; nothing: the one they have.
    pub role: Option<Role>,
    /// Groups that they are put into.
    pub add: BTreeSet<GroupName>,
    /// Groups that they are taken out of.
    pub remove: BTreeSet<GroupName>,
}

impl From<Role> for UserChange {
    fn from(role: Role) -> Self {
        Self { role: Some(role), ..Self::default() }
    }
}

/// Names that nobody may have.
fn is_kept(name: &Principal) -> bool {
    let name = name.as_str();
    let of_others = ["node:", "attempt:", "group:"].iter().any(|kept| name.starts_with(kept));
    of_others || ["atelier", "daemon"].contains(&name)
}

impl Known {
    /// The role as it is now: of a custom one what it allows now.
    fn resolved(&self, role: &Role) -> Role {
        match role {
            Role::Custom(held) => {
                let name = held.name.clone();
                let permissions = self.roles.get(&name).map_or(Permissions::NONE, |(_, all)| *all);
                Role::Custom(Held { name, permissions })
            }
            other => other.clone(),
        }
    }

    /// All but the tokens.
    fn read(store: &dyn Store) -> Result<Self, crate::store::Error> {
        let users = store.users()?.into_iter().map(|user| (user.name.clone(), user)).collect();
        let roles = store.roles()?.into_iter().map(|role| {
            let permissions = role.permissions();
            (role.name.clone(), (role, permissions))
        });
        let blocked = store.blocked()?.into_iter();
        let blocked = blocked.map(|block| (block.name.clone(), block)).collect();
        Ok(Self { users, blocked, roles: roles.collect(), tokens: HashMap::new() })
    }

    /// Who is in which group, and who manages computes.
    fn people(&self) -> access::People {
        let person = |user: &UserRecord| {
            let manages = self.resolved(&user.role).permissions().has(Permission::ManageCompute);
            (user.name.clone(), Person { groups: user.groups.clone(), manages })
        };
        self.users.values().map(person).collect()
    }

    fn caller(&self, token: &TokenRecord) -> Result<Caller, Denied> {
        let principal = token.principal.clone();
        let role = if token.role.is_for_people() {
            let user =
                self.users.get(&principal).filter(|_| !self.blocked.contains_key(&principal));
            let user = user.ok_or(Denied::WrongToken)?;
            let role = self.resolved(&user.role);
            match token.role == user.role {
                true => role,
                false => self.resolved(&token.role).within(&role),
            }
        } else {
            token.role.clone()
        };
        Ok(Caller { principal, role })
    }

    /// Whether another user than this one is an admin, and stays one whatever a provider says.
    fn has_other_admin(&self, name: &Principal) -> bool {
        let is_admin = |user: &UserRecord| user.role == Role::Admin && !user.signs_in;
        let others = self.users.values().filter(|user| &user.name != name);
        others.filter(|user| is_admin(user)).any(|user| !self.blocked.contains_key(&user.name))
    }
}

impl People {
    pub(super) fn open(store: Arc<dyn Store>, clock: WallClock) -> Result<Self, Error> {
        let tokens = store.tokens()?.into_iter().map(|t| (t.hash, Token::new(t))).collect();
        let known = RwLock::new(Known { tokens, ..Known::read(&*store)? });
        Ok(Self { store, clock, known, changing: Mutex::new(()), scheduler: OnceLock::new() })
    }

    /// Tells the scheduler of changes from now on; what is so now it has read itself.
    pub(crate) fn tell(&self, scheduler: Handle) {
        // Told of one only.
        let _ = self.scheduler.set(scheduler);
    }

    /// Tells the scheduler who is in which group now, and who manages computes. It goes by that when this returns.
    async fn tell_people(&self) {
        let Some(scheduler) = self.scheduler.get() else { return };
        let people = self.known().people();
        if let Err(error) = scheduler.people(people).await {
            // It stops, and reads them when it starts again.
            tracing::warn!(%error, "the scheduler was not told of a change of users");
        }
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn know(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Whose token it is.
    pub(super) fn of_token(&self, token: &str) -> Result<Caller, Denied> {
        let known = self.known();
        let token = known.tokens.get(&Digest::of(token.as_bytes())).ok_or(Denied::WrongToken)?;
        let now = self.now();
        if token.is_over(now) {
            return Err(Denied::Expired { at: token.record.expires_at.unwrap_or(now), now });
        }
        let now = now.as_millis();
        if now.saturating_sub(token.used.load(Ordering::Relaxed)) >= USED_EVERY_MS {
            token.used.store(now, Ordering::Relaxed);
        }
        known.caller(&token.record)
    }

    /// Whether a token is known and opens something.
    pub(super) fn is_known(&self, token: &str) -> bool {
        let known = self.known();
        let token = known.tokens.get(&Digest::of(token.as_bytes()));
        token.is_some_and(|token| !token.is_over(self.now()))
    }

    /// Whether somebody is an admin, now.
    pub(super) fn is_admin(&self, principal: &Principal) -> bool {
        self.known().users.get(principal).is_some_and(|user| user.role == Role::Admin)
    }

    /// Whether somebody may change what others made, now.
    pub(super) fn changes_any(&self, principal: &Principal) -> bool {
        let known = self.known();
        let role = known.users.get(principal).map(|user| known.resolved(&user.role));
        role.is_some_and(|role| role.permissions().has(Permission::ChangeAny))
    }

    /// Every user, by name.
    pub fn users(&self) -> Vec<UserRecord> {
        self.known().users.values().cloned().collect()
    }

    /// A user, and the tokens they have.
    ///
    /// # Errors
    /// If there is none.
    pub fn user(&self, name: &str) -> Result<(UserRecord, Vec<ListedToken>), Refused> {
        let user = {
            let known = self.known();
            let found = Principal::new(name).ok().and_then(|name| known.users.get(&name).cloned());
            found.ok_or_else(|| Refused::NoSuchUser(name.chars().take(80).collect()))?
        };
        let tokens = self.tokens(Some(&user.name));
        Ok((user, tokens))
    }

    /// Tokens, of one principal or all, the oldest first.
    pub fn tokens(&self, of: Option<&Principal>) -> Vec<ListedToken> {
        let now = self.now();
        let known = self.known();
        let wanted =
            known.tokens.values().filter(|token| of.is_none_or(|of| of == &token.record.principal));
        let listed = |token: &Token| {
            let used = token.used.load(Ordering::Relaxed);
            let last_used_at = (used != 0).then(|| Timestamp::from_millis(used));
            let record = TokenRecord { last_used_at, ..token.record.clone() };
            ListedToken { id: TokenId::of(&record.hash), record, is_over: token.is_over(now) }
        };
        let mut found: Vec<ListedToken> = wanted.map(listed).collect();
        found.sort_by(|a, b| (a.record.created_at, &a.id).cmp(&(b.record.created_at, &b.id)));
        found
    }

    fn check_grant(&self, by: &Caller, what: &str, role: &Role) -> Result<(), Refused> {
        if by.may_grant(role) {
            return Ok(());
        }
        Err(Refused::Above {
            principal: by.principal.clone(),
            role: by.role.to_string(),
            what: what.to_owned(),
            wanted: format!("the role {role}"),
        })
    }

    /// What is changed of others must be within what the changer has, too.
    fn check_over(&self, by: &Caller, user: &UserRecord) -> Result<(), Refused> {
        let role = self.known().resolved(&user.role);
        if by.may_grant(&role) {
            return Ok(());
        }
        Err(Refused::Above {
            principal: by.principal.clone(),
            role: by.role.to_string(),
            what: "or take anything from".to_owned(),
            wanted: format!("user '{}', whose role is {role}", user.name),
        })
    }

    async fn put_user(&self, user: UserRecord, by: Actor) -> Result<UserRecord, Error> {
        self.store.change_people(PeopleChange::PutUser(user.clone()), by).await?;
        self.know().users.insert(user.name.clone(), user.clone());
        self.tell_people().await;
        Ok(user)
    }

    /// Whether somebody may put others into groups, or take them out: nobody gives more than they have.
    fn check_groups<'a>(
        &self,
        by: &Caller,
        mut groups: impl Iterator<Item = &'a GroupName>,
    ) -> Result<(), Refused> {
        if by.may(Permission::ManageCompute) {
            return Ok(());
        }
        let own = self.groups_of(&by.principal);
        match groups.find(|group| !own.contains(*group)) {
            None => Ok(()),
            Some(group) => Err(Refused::AboveGroup {
                principal: by.principal.clone(),
                role: by.role.to_string(),
                group: group.clone(),
            }),
        }
    }

    /// The groups that somebody is in.
    pub fn groups_of(&self, name: &Principal) -> BTreeSet<GroupName> {
        self.known().users.get(name).map(|user| user.groups.clone()).unwrap_or_default()
    }

    /// Makes a user.
    pub async fn create_user(
        &self,
        name: Principal,
        role: Role,
        groups: BTreeSet<GroupName>,
        by: &Asking,
    ) -> Result<UserRecord, Error> {
        let _alone = self.changing.lock().await;
        if is_kept(&name) {
            return Err(Refused::Kept(name).into());
        }
        self.check_grant(by, &format!("user '{name}'"), &role)?;
        self.check_groups(by, groups.iter())?;
        if groups.len() > MAX_GROUPS {
            return Err(Refused::TooManyGroups(name).into());
        }
        if let Some(user) = self.known().users.get(&name) {
            let role = user.role.to_string();
            return Err(Refused::UserTaken { name, role }.into());
        }
        let created_by = Some(by.principal.clone());
        let created_at = self.now();
        let user = UserRecord { name, role, created_by, created_at, signs_in: false, groups };
        self.put_user(user, by.actor()).await
    }

    /// Gives a user another role, or other groups. It counts at once, also for jobs that wait.
    pub async fn update_user(
        &self,
        name: &str,
        change: impl Into<UserChange>,
        by: &Asking,
    ) -> Result<UserRecord, Error> {
        let _alone = self.changing.lock().await;
        let (user, _) = self.user(name)?;
        self.check_over(by, &user)?;
        let UserChange { role, add, remove } = change.into();
        let role = role.unwrap_or_else(|| user.role.clone());
        if role != user.role {
            self.check_grant(by, &format!("user '{}'", user.name), &role)?;
        }
        self.check_groups(by, add.iter().chain(&remove))?;
        if user.signs_in {
            return Err(Refused::GivenByProvider(user.name).into());
        }
        if role != Role::Admin
            && user.role == Role::Admin
            && !self.known().has_other_admin(&user.name)
        {
            return Err(Refused::LastAdmin(user.name).into());
        }
        let mut groups = user.groups.clone();
        if let Some(group) = remove.iter().find(|group| !groups.remove(*group)) {
            return Err(Refused::NotInGroup { user: user.name, group: group.clone() }.into());
        }
        groups.extend(add);
        if groups.len() > MAX_GROUPS {
            return Err(Refused::TooManyGroups(user.name).into());
        }
        self.put_user(UserRecord { role, groups, ..user }, by.actor()).await
    }

    /// Forgets a user; their tokens open nothing from now on. What they made stays.
    pub async fn delete_user(&self, name: &str, by: &Asking) -> Result<UserRecord, Error> {
        let _alone = self.changing.lock().await;
        let (user, _) = self.user(name)?;
        self.check_over(by, &user)?;
        self.check_groups(by, user.groups.iter())?;
        let is_kept = user.role == Role::Admin && !user.signs_in;
        if is_kept && !self.known().has_other_admin(&user.name) {
            return Err(Refused::LastAdmin(user.name).into());
        }
        self.store.change_people(PeopleChange::DeleteUser(user.name.clone()), by.actor()).await?;
        {
            let mut known = self.know();
            known.users.remove(&user.name);
            known.tokens.retain(|_, token| token.record.principal != user.name);
        }
        self.tell_people().await;
        Ok(user)
    }

    /// Makes a token, for somebody who may give it. Of a user who is not there yet it makes one, with the token's
    /// role.
    pub async fn issue(&self, new: NewToken, by: &Asking) -> Result<Issued, Error> {
        let _alone = self.changing.lock().await;
        let NewToken { principal, role, lives_ms } = new;
        self.known().may_come_in(&principal)?;
        let now = self.now();
        let expires_at = match lives_ms {
            None => None,
            Some(ms) if ms > MOST_MS => return Err(Refused::TooLong.into()),
            Some(ms) => {
                let end = now.as_millis().saturating_add(i64::try_from(ms).unwrap_or(i64::MAX));
                Some(Timestamp::from_millis(end))
            }
        };
        let is_node = matches!(role, Some(Role::Node(_)));
        if !is_node && is_kept(&principal) {
            return Err(Refused::Kept(principal).into());
        }
        let role = if is_node {
            role.unwrap_or(Role::Reader)
        } else {
            let user = self.known().users.get(&principal).cloned();
            match (user, role) {
                (None, None) => return Err(Refused::NoRole(principal).into()),
                (None, Some(role)) => {
                    self.check_grant(by, &format!("user '{principal}'"), &role)?;
                    let (name, created_by) = (principal.clone(), Some(by.principal.clone()));
                    let user = UserRecord {
                        name,
                        role: role.clone(),
                        created_by,
                        created_at: now,
                        signs_in: false,
                        groups: BTreeSet::new(),
                    };
                    self.put_user(user, by.actor()).await?;
                    role
                }
                (Some(user), _) if user.signs_in => {
                    return Err(Refused::SignsIn(principal).into());
                }
                (Some(user), role) => {
                    self.check_over(by, &user)?;
                    if user.name != by.principal {
                        self.check_groups(by, user.groups.iter())?;
                    }
                    let limit = self.known().resolved(&user.role);
                    let role = role.unwrap_or(user.role);
                    let wanted = self.known().resolved(&role);
                    if !wanted.permissions().within(limit.permissions()) {
                        let (user, role) = (principal, limit.to_string());
                        let wanted = wanted.to_string();
                        return Err(Refused::AboveUser { user, role, wanted }.into());
                    }
                    role
                }
            }
        };
        let granted = self.known().resolved(&role);
        self.check_grant(by, &format!("a token of {principal}"), &granted)?;
        self.add((principal, role), Some(by.principal.clone()), now, expires_at, by.actor()).await
    }

    /// Makes a token as the daemon itself does, which nobody has to be allowed; of a person, with the user.
    pub(super) async fn make(
        &self,
        principal: Principal,
        role: Role,
        by: Actor,
        now: Timestamp,
    ) -> Result<String, Error> {
        let _alone = self.changing.lock().await;
        if role.is_for_people() && !self.known().users.contains_key(&principal) {
            let (name, role) = (principal.clone(), role.clone());
            let groups = BTreeSet::new();
            let user = UserRecord {
                name,
                role,
                created_by: None,
                created_at: now,
                signs_in: false,
                groups,
            };
            self.put_user(user, by.clone()).await?;
        }
        Ok(self.add((principal, role), None, now, None, by).await?.secret)
    }

    /// Lets somebody in whom a provider vouches for: keeps them as a user, with the groups that they are in now and the
    /// role that those give, and makes a token for one session. Sessions of theirs that are over are forgotten.
    ///
    /// # Errors
    /// If the name is that of a user who is no provider's: whoever an admin made is somebody else.
    pub async fn sign_in(
        &self,
        user: sign_in::User,
        lives: Duration,
        origin: &Origin,
    ) -> Result<Issued, Error> {
        let _alone = self.changing.lock().await;
        let sign_in::User { principal, role, groups } = user;
        self.known().may_come_in(&principal)?;
        let role = match role {
            Role::Custom(held) => self.role_named(held.name.as_str())?,
            role => role,
        };
        let known = self.known().users.get(&principal).cloned();
        if is_kept(&principal) || known.as_ref().is_some_and(|user| !user.signs_in) {
            return Err(Refused::NotTheProviders(principal).into());
        }
        let now = self.now();
        let by = origin.actor(&Caller { principal: principal.clone(), role: role.clone() });
        if known.as_ref().is_none_or(|user| user.role != role || user.groups != groups) {
            let created_at = known.map_or(now, |user| user.created_at);
            let (name, role) = (principal.clone(), role.clone());
            let user =
                UserRecord { name, role, created_by: None, created_at, signs_in: true, groups };
            self.put_user(user, by.clone()).await?;
        }
        let (mut over, lasting): (Vec<_>, Vec<_>) =
            self.tokens(Some(&principal)).into_iter().partition(|token| token.is_over);
        let surplus = (lasting.len() + 1).saturating_sub(SESSIONS);
        over.extend(lasting.into_iter().take(surplus));
        let over: Vec<Digest> = over.into_iter().map(|token| token.record.hash).collect();
        if !over.is_empty() {
            self.forget(over, by.clone()).await?;
        }
        let lives = i64::try_from(lives.as_millis()).unwrap_or(i64::MAX);
        self.add((principal, role), None, now, Some(now.plus_millis(lives)), by).await
    }

    /// The one place where a token comes to be.
    async fn add(
        &self,
        (principal, role): (Principal, Role),
        created_by: Option<Principal>,
        created_at: Timestamp,
        expires_at: Option<Timestamp>,
        by: Actor,
    ) -> Result<Issued, Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|_| Error::Random)?;
        let secret = format!("{USER_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        let hash = Digest::of(secret.as_bytes());
        let last_used_at = None;
        let record =
            TokenRecord { hash, principal, role, created_at, created_by, expires_at, last_used_at };
        self.store.put_token(record.clone(), by).await?;
        self.know().tokens.insert(hash, Token::new(record.clone()));
        let id = TokenId::of(&hash);
        Ok(Issued { secret, listed: ListedToken { id, record, is_over: false } })
    }

    /// Makes a token worthless, by its id: one's own, or another's whose role one could give.
    pub async fn revoke(&self, id: &str, by: &Asking) -> Result<ListedToken, Error> {
        let _alone = self.changing.lock().await;
        let sees_others = by.may(Permission::ManageTokens) || by.may(Permission::JoinNodes);
        let own = (!sees_others).then_some(&by.principal);
        let listed = self.tokens(own).into_iter().find(|token| token.id.0 == id);
        let missing = || Refused::NoSuchToken(id.chars().take(80).collect());
        let token = listed.ok_or_else(missing)?;
        if token.record.principal != by.principal {
            let role = self.known().resolved(&token.record.role);
            let user = self.known().users.get(&token.record.principal).cloned();
            match user {
                Some(user) => self.check_over(by, &user)?,
                None => self.check_grant(by, "or take the token of", &role)?,
            }
        }
        self.forget(vec![token.record.hash], by.actor()).await?;
        Ok(token)
    }

    async fn forget(&self, hashes: Vec<Digest>, by: Actor) -> Result<(), Error> {
        self.store.forget_tokens(hashes.clone(), by).await?;
        self.know().tokens.retain(|hash, _| !hashes.contains(hash));
        Ok(())
    }

    /// Lets the holder of a token in that is on disk already.
    pub(super) fn know_token(&self, record: TokenRecord) {
        self.know().tokens.insert(record.hash, Token::new(record));
    }

    /// Whether a token lets a node in.
    pub(super) fn has_node(&self, node: &NodeName) -> bool {
        let known = self.known();
        known.tokens.values().any(|token| token.is_of(node) && !token.is_over(self.now()))
    }

    /// Nothing of tokens is changed while this is held.
    pub(super) async fn hold(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Lets in no token of a node any more; none is on disk.
    pub(super) fn forget_node(&self, node: &NodeName) {
        self.know().tokens.retain(|_, token| !token.is_of(node));
    }

    /// Writes now and then when tokens were last used. Never ends by itself.
    pub async fn tend(&self) {
        let mut tick = tokio::time::interval(WRITTEN_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.write_uses().await;
        }
    }

    /// Writes when tokens were last used, as far as that is news.
    pub async fn write_uses(&self) {
        let news: Vec<(Digest, Timestamp)> = {
            let known = self.known();
            let news = known.tokens.iter().filter_map(|(hash, token)| {
                let used = token.used.load(Ordering::Relaxed);
                (used != token.written.load(Ordering::Relaxed))
                    .then(|| (*hash, Timestamp::from_millis(used)))
            });
            news.collect()
        };
        if news.is_empty() {
            return;
        }
        if let Err(error) = self.store.note_uses(news.clone()).await {
            tracing::warn!(%error, "when tokens were last used could not be written");
            return;
        }
        let known = self.known();
        for (hash, used) in news {
            if let Some(token) = known.tokens.get(&hash) {
                token.written.store(used.as_millis(), Ordering::Relaxed);
            }
        }
    }
}
