//! What can be done, and what it is called.

use std::fmt;

macro_rules! permissions {
    ($($(#[$doc:meta])* $Name:ident => $action:literal, $verb:literal;)*) => {
        /// What a route needs. Every RPC and HTTP route names what it needs.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Permission {
            $($(#[$doc])* $Name,)*
        }

        impl Permission {
            /// All there are, in the order in which tables show them.
            pub const ALL: &'static [Self] = &[$(Self::$Name),*];

            /// Its name, in Azure's words where Azure has some. It never changes: custom roles are made of it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$Name => $action,)* }
            }

            /// What it allows, as a verb.
            pub const fn action(self) -> &'static str {
                match self { $(Self::$Name => $verb,)* }
            }

            /// The same with its name, for whoever is refused: what a role would have to have.
            pub const fn told(self) -> &'static str {
                match self { $(Self::$Name => concat!($verb, " (", $action, ")"),)* }
            }
        }
    };
}

permissions! {
    /// See the workspace itself, its rules and its roles.
    ReadWorkspace => "workspaces/read", "look at the workspace";
    /// See computes, their nodes and quotas, and what nodes keep.
    ReadComputes => "workspaces/computes/read", "look at computes";
    /// Make and change computes, their quotas, and who may use them.
    ManageCompute => "workspaces/computes/write", "manage computes and nodes";
    /// Delete computes.
    DeleteCompute => "workspaces/computes/delete", "delete computes";
    /// Drain and resume computes and nodes, and prune a node's cache.
    DrainCompute => "workspaces/computes/drain/action", "drain computes and nodes";
    /// Say how many nodes a cluster has, and for how long they stay idle.
    ScaleCompute => "workspaces/computes/resize/action", "scale computes";
    /// Have machines join as nodes, and take that back.
    JoinNodes => "workspaces/computes/nodes/write", "have nodes join";
    /// See that there are jobs, whose, where, and how they fare: not what they are made of or have left.
    ReadJobs => "workspaces/jobs/read", "look at jobs";
    /// Submit jobs.
    Submit => "workspaces/jobs/write", "submit jobs";
    /// Cancel a job, or let go of what one left on its node; without [`Self::CancelAny`] only one's own.
    CancelJob => "workspaces/jobs/cancel/action", "cancel jobs";
    /// Cancel jobs of others.
    CancelAny => "workspaces/jobs/cancelAny/action", "cancel jobs of others";
    /// Archive or delete a job; without [`Self::ChangeAny`] only one's own.
    ChangeJob => "workspaces/jobs/delete", "archive or delete jobs";
    /// Run commands in one's own jobs and reach their ports.
    EnterJob => "workspaces/jobs/enter/action", "enter jobs";
    /// See all of jobs and runs: what was run on what, logs, metrics, artifacts.
    ReadRuns => "workspaces/experiments/runs/read", "read jobs and runs";
    /// Write to one's own runs; an attempt only to its own (checked where the run is known).
    WriteRun => "workspaces/experiments/runs/write", "write to runs";
    /// See which datastores there are and where they lie.
    ReadDatastores => "workspaces/datastores/read", "look at datastores";
    /// Make and change datastores, which opens files of the daemon's machine.
    ManageDatastores => "workspaces/datastores/write", "make, change or delete datastores";
    /// Forget datastores.
    DeleteDatastores => "workspaces/datastores/delete", "delete datastores";
    /// Try a datastore, which writes a small file.
    TestDatastores => "workspaces/datastores/test/action", "try datastores";
    /// Read objects through the data gateway; an attempt only its own prefixes.
    ReadData => "workspaces/datastores/objects/read", "read objects";
    /// Write objects through the data gateway; an attempt only its own prefixes.
    WriteData => "workspaces/datastores/objects/write", "write objects";
    /// Fetch content objects (code) by digest.
    ReadContent => "workspaces/codes/read", "read code snapshots";
    /// Upload content objects (code).
    WriteContent => "workspaces/codes/write", "upload code";
    /// See data assets and models.
    ReadAssets => "workspaces/assets/read", "look at assets";
    /// Make, change and archive data assets and models.
    WriteAssets => "workspaces/assets/write", "make, change or archive assets";
    /// Delete data assets and models; without [`Self::ChangeAny`] only one's own.
    DeleteAssets => "workspaces/assets/delete", "delete assets";
    /// See environments.
    ReadEnvironments => "workspaces/environments/read", "look at environments";
    /// Make and archive environments.
    WriteEnvironments => "workspaces/environments/write", "make or archive environments";
    /// Have nodes build environments.
    BuildEnvironments => "workspaces/environments/build/action", "build environments";
    /// See components.
    ReadComponents => "workspaces/components/read", "look at components";
    /// Make, change and archive components.
    WriteComponents => "workspaces/components/write", "make, change or archive components";
    /// Delete components; without [`Self::ChangeAny`] only one's own.
    DeleteComponents => "workspaces/components/delete", "delete components";
    /// See what secrets there are. There is no permission to read one's value.
    ReadSecrets => "workspaces/metadata/secrets/read", "look at which secrets there are";
    /// Set and delete secrets, and say whose jobs may use them; without [`Self::ChangeAny`] only one's own.
    WriteSecrets => "workspaces/metadata/secrets/write", "set, grant or delete secrets";
    /// See which keys the vault's secrets are sealed with, and rotate them.
    ManageVault => "workspaces/vault/write", "manage the vault's keys";
    /// Say how long what jobs left is kept, and have it go.
    ManageRetention => "workspaces/retention/write", "set or apply retention rules";
    /// Make, change and delete users, their tokens and custom roles.
    ManageTokens => "workspaces/roleAssignments/write", "manage users and tokens";
    /// Read the audit log.
    ReadAudit => "workspaces/audit/read", "read the audit log";
    /// Change and delete what others made: jobs, runs, experiments, assets, secrets.
    ChangeAny => "workspaces/changeAny/action", "change what others made";
    /// Open a node session and push what belongs to it. Nodes have it, and no role of a person's.
    ActAsNode => "workspaces/nodes/session/action", "act as a node";
}

/// What Azure puts before the names of actions; may be left out.
const PROVIDER: &str = "Microsoft.MachineLearningServices/";

fn without_provider(action: &str) -> &str {
    match action.split_at_checked(PROVIDER.len()) {
        Some((head, rest)) if head.eq_ignore_ascii_case(PROVIDER) => rest,
        _ => action,
    }
}

/// There is no such action.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no action '{name}'{}; see 'atelier role list-actions'", meant(.similar))]
pub struct UnknownAction {
    /// As written, cut.
    pub name: String,
    /// What may have been meant.
    pub similar: Option<&'static str>,
}

fn meant(similar: &Option<&'static str>) -> String {
    similar.map(|name| format!(" (did you mean '{name}'?)")).unwrap_or_default()
}

impl Permission {
    /// The permission of this name, in any case.
    ///
    /// # Errors
    /// If there is none; says which may have been meant.
    pub fn named(name: &str) -> Result<Self, UnknownAction> {
        let wanted = without_provider(name.trim());
        if let Some(found) = Self::ALL.iter().find(|p| p.name().eq_ignore_ascii_case(wanted)) {
            return Ok(*found);
        }
        let cut: String = wanted.chars().take(120).collect();
        let similar = crate::suggest::closest(&cut, Self::ALL.iter().map(|p| p.name()));
        Err(UnknownAction { name: cut, similar })
    }

    /// Whether a role of a person's may have it.
    pub const fn is_for_people(self) -> bool {
        !matches!(self, Self::ActAsNode)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A set of permissions.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Permissions(u64);

impl Permissions {
    /// None.
    pub const NONE: Self = Self(0);

    /// Whether it is in the set.
    pub const fn has(self, permission: Permission) -> bool {
        self.0 & (1 << permission as u64) != 0
    }

    /// With one more.
    #[must_use]
    pub const fn with(self, permission: Permission) -> Self {
        Self(self.0 | (1 << permission as u64))
    }

    /// What is in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in this one alone.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of it is in the other.
    pub const fn within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Whether nothing is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What is in it, in the order of [`Permission::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::ALL.iter().copied().filter(move |permission| self.has(*permission))
    }
}

impl FromIterator<Permission> for Permissions {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        permissions.into_iter().fold(Self::NONE, Self::with)
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// An action, or several by a `*`, which stands for any characters, as in Azure's roles.
///
/// # Errors
/// If it matches nothing: a word that is wrong must not look as if it allowed or kept out something.
pub(super) fn matching(pattern: &str) -> Result<Permissions, UnknownAction> {
    let wanted = without_provider(pattern.trim());
    if !wanted.contains('*') {
        return Permission::named(wanted).map(|permission| Permissions::NONE.with(permission));
    }
    let wanted = wanted.to_ascii_lowercase();
    let found = Permission::ALL.iter().copied().filter(|permission| {
        permission.is_for_people() && matches(&wanted, &permission.name().to_ascii_lowercase())
    });
    let found: Permissions = found.collect();
    if found.is_empty() {
        let name = pattern.trim().chars().take(120).collect();
        return Err(UnknownAction { name, similar: None });
    }
    Ok(found)
}

/// Whether the text is of the pattern, whose `*` stand for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}
