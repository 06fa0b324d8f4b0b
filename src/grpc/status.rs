//! The one table from errors to gRPC statuses.

use atelier_core::asset::{Refusal as AssetRefusal, Unresolved};
use atelier_core::datastore::Refusal as DatastoreRefusal;
use atelier_core::join::{NotDeleted, Refusal as JoinRefusal};
use atelier_core::live::Refusal;
use atelier_core::secret::Refusal as SecretRefusal;
use tonic::{Code, Status};

use crate::{daemon, identity, oidc, storage, store, tls, track, vault};

fn code_of_store(error: &store::Error) -> Code {
    match error {
        store::Error::Full { .. } => Code::ResourceExhausted,
        store::Error::Locked { .. } | store::Error::Superseded | store::Error::Closed => {
            Code::Unavailable
        }
        store::Error::Track(_) => Code::InvalidArgument,
        store::Error::Open { .. }
        | store::Error::Unaudited { .. }
        | store::Error::Damaged { .. }
        | store::Error::Corrupt { .. }
        | store::Error::Sqlite { .. } => Code::Internal,
    }
}

fn code_of_storage(error: &storage::Error) -> Code {
    match error {
        storage::Error::UnknownDatastore(_) | storage::Error::NotFound(_) => Code::NotFound,
        storage::Error::Path(_) | storage::Error::Unfit(_) => Code::InvalidArgument,
        storage::Error::Away { .. }
        | storage::Error::Denied { .. }
        | storage::Error::Public { .. }
        | storage::Error::Unsupported { .. } => Code::FailedPrecondition,
        storage::Error::Changed(_) => Code::Aborted,
        storage::Error::Full => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}

fn code_of_vault(error: &vault::Error) -> Code {
    match error {
        vault::Error::Refused(refusal) => match refusal {
            SecretRefusal::NoSuch(_)
            | SecretRefusal::NoSuchVersion { .. }
            | SecretRefusal::NoSuchGrant { .. } => Code::NotFound,
            SecretRefusal::NotOwner { .. } | SecretRefusal::NotGranted { .. } => {
                Code::PermissionDenied
            }
            SecretRefusal::Empty(_) | SecretRefusal::TooLarge { .. } => Code::InvalidArgument,
            SecretRefusal::NoVersionLeft(_)
            | SecretRefusal::Latest { .. }
            | SecretRefusal::InUse { .. } => Code::FailedPrecondition,
        },
        vault::Error::Stopped { error, .. } => code_of_vault(error),
        vault::Error::Late { .. } => Code::Unavailable,
        vault::Error::Transit(error) | vault::Error::NotOpened { error, .. } => {
            if error.passes() {
                Code::Unavailable
            } else {
                Code::FailedPrecondition
            }
        }
        vault::Error::Key(_)
        | vault::Error::NoTransit(_)
        | vault::Error::Missing { .. }
        | vault::Error::WrongKey { .. } => Code::FailedPrecondition,
        vault::Error::Damaged { .. } | vault::Error::Random | vault::Error::Cipher => {
            Code::Internal
        }
        vault::Error::Store(error) => code_of_store(error),
    }
}

fn code_of_tracking(error: &track::Error) -> Code {
    match error {
        track::Error::Store(error) => code_of_store(error),
        track::Error::Storage(error) => code_of_storage(error),
        track::Error::Sealed { .. } => Code::Internal,
        track::Error::Stopping => Code::Unavailable,
    }
}

fn code_of_handle(error: &daemon::HandleError) -> Code {
    use daemon::HandleError as E;
    match error {
        E::Refused(Refusal::NameTaken(_) | Refusal::NameOfRun(_)) | E::KeyReused { .. } => {
            Code::AlreadyExists
        }
        E::Refused(
            Refusal::UnknownCompute { .. }
            | Refusal::NoSuchCompute(_)
            | Refusal::NoSuchJob(_)
            | Refusal::NoSuchNode(_)
            | Refusal::NoSuchQuota { .. },
        )
        | E::NoSuchJob(_) => Code::NotFound,
        E::Refused(
            Refusal::NeverFits { .. }
            | Refusal::NoSuchLabels { .. }
            | Refusal::GangTooLarge { .. }
            | Refusal::ExperimentDeleted(_)
            | Refusal::AlreadyDrained { .. }
            | Refusal::NotDrained(_)
            | Refusal::NotACluster(_)
            | Refusal::DefaultCompute(_)
            | Refusal::ComputeDeleted(_)
            | Refusal::FixedField { .. }
            | Refusal::ComputeBusy { .. }
            | Refusal::ComputeDrained { .. }
            | Refusal::ComputeNotDrained(_)
            | Refusal::NotOfCluster { .. }
            | Refusal::NotContained { .. }
            | Refusal::OverQuota { .. }
            | Refusal::AccessUnchanged { .. }
            | Refusal::NotRunning { .. }
            | Refusal::NotKept { .. }
            | Refusal::KeeperAway { .. },
        )
        | E::StillLive(_)
        | E::JobOver { .. } => Code::FailedPrecondition,
        E::Refused(
            Refusal::BadCluster(_) | Refusal::BadQuota { .. } | Refusal::NoSuchMember { .. },
        ) => Code::InvalidArgument,
        E::Refused(Refusal::NoAccess { .. }) => Code::PermissionDenied,
        E::NodeTaken(_) => Code::AlreadyExists,
        E::Store(error) => code_of_store(error),
        E::Stopping => Code::Unavailable,
    }
}

fn code_of_asset(refusal: &AssetRefusal) -> Code {
    match refusal {
        AssetRefusal::Fixed { .. }
        | AssetRefusal::Deleted { .. }
        | AssetRefusal::KeyReused { .. } => Code::AlreadyExists,
        AssetRefusal::Archived { .. }
        | AssetRefusal::NoNumberLeft { .. }
        | AssetRefusal::WholeArchived { .. }
        | AssetRefusal::FixedLabel { .. }
        | AssetRefusal::InUse { .. }
        | AssetRefusal::Unresolved(
            Unresolved::Archived { .. } | Unresolved::ArchivedLabel { .. },
        ) => Code::FailedPrecondition,
        AssetRefusal::Unresolved(_) => Code::NotFound,
    }
}

macro_rules! status {
    ($Error:ty, $error:ident => $code:expr) => {
        impl From<$Error> for Told {
            fn from($error: $Error) -> Self {
                let code = $code;
                if code == Code::Internal {
                    tracing::error!(error = %$error, "a request failed");
                }
                Self(Status::new(code, excerpt($error.to_string())))
            }
        }
    };
}

/// A status travels in a header, and clients refuse headers beyond 16 KiB. Its bytes may triple on
/// the way (they are percent-encoded).
const MAX_MESSAGE: usize = 4 << 10;

fn excerpt(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        message.push('…');
    }
    message
}

/// An error on its way to the caller. `?` turns every error of the daemon into one.
pub(crate) struct Told(Status);

impl From<Told> for Status {
    fn from(told: Told) -> Self {
        told.0
    }
}

fn code_of_people(refused: &identity::people::Refused) -> Code {
    use identity::people::Refused as R;
    match refused {
        R::Above { .. } | R::AboveGroup { .. } | R::NotTheProviders(_) | R::Blocked { .. } => {
            Code::PermissionDenied
        }
        R::NoSuchUser(_) | R::NoSuchToken(_) | R::NoSuchRole { .. } | R::NotBlocked(_) => {
            Code::NotFound
        }
        R::UserTaken { .. } | R::RoleTaken(_) => Code::AlreadyExists,
        R::GivenByProvider(_)
        | R::NotInGroup { .. }
        | R::SignsIn(_)
        | R::AboveUser { .. }
        | R::LastAdmin(_)
        | R::RoleFixed(_)
        | R::RoleUsed { .. } => Code::FailedPrecondition,
        R::NoRole(_)
        | R::RoleInvalid(_)
        | R::Kept(_)
        | R::TooLong
        | R::TooManyGroups(_)
        | R::Reason { .. } => Code::InvalidArgument,
    }
}

fn code_of_retention(error: &daemon::RetentionError) -> Code {
    match error {
        daemon::RetentionError::Refused(_) => Code::InvalidArgument,
        daemon::RetentionError::Name(_) => Code::Internal,
        daemon::RetentionError::Store(error) => code_of_store(error),
    }
}

/// Turns an error into its status.
pub(crate) fn told(error: impl Into<Told>) -> Status {
    error.into().0
}

status!(store::Error, error => code_of_store(&error));
status!(storage::Error, error => code_of_storage(&error));
status!(daemon::HandleError, error => code_of_handle(&error));
status!(daemon::RemovalError, error => match &error {
    daemon::RemovalError::Reactor(error) => code_of_handle(error),
    daemon::RemovalError::Kept { .. } | daemon::RemovalError::Used { .. } => Code::FailedPrecondition,
    daemon::RemovalError::Assets(daemon::AssetError::Store(error)) => code_of_store(error),
    daemon::RemovalError::Assets(daemon::AssetError::Refused(refusal)) => code_of_asset(refusal),
    daemon::RemovalError::Assets(_) => Code::Internal,
    daemon::RemovalError::Storage(error) => code_of_storage(error),
    daemon::RemovalError::Tracking(error) => code_of_tracking(error),
    daemon::RemovalError::Retention(error) => code_of_retention(error),
    daemon::RemovalError::Name(_) => Code::Internal,
});
status!(daemon::RetentionError, error => code_of_retention(&error));
status!(daemon::AdmissionError, error => match &error {
    daemon::AdmissionError::Invalid { .. } => Code::InvalidArgument,
    daemon::AdmissionError::Missing { .. } => Code::NotFound,
    daemon::AdmissionError::NotYet { .. } => Code::Unimplemented,
    daemon::AdmissionError::Secret { error, .. } => code_of_vault(error),
    daemon::AdmissionError::Store(error) => code_of_store(error),
    daemon::AdmissionError::Storage(error) => code_of_storage(error),
});
status!(daemon::EnvironmentError, error => match &error {
    daemon::EnvironmentError::Refused(refusal) => code_of_asset(refusal),
    daemon::EnvironmentError::Invalid(_) => Code::InvalidArgument,
    daemon::EnvironmentError::NoSnapshot(_) => Code::NotFound,
    daemon::EnvironmentError::Store(error) => code_of_store(error),
    daemon::EnvironmentError::Storage(error) => code_of_storage(error),
});
status!(daemon::AssetError, error => match &error {
    daemon::AssetError::Refused(refusal) => code_of_asset(refusal),
    daemon::AssetError::Invalid(_) => Code::InvalidArgument,
    daemon::AssetError::OtherKind { .. } | daemon::AssetError::Registry { .. } => Code::NotFound,
    daemon::AssetError::NotOwner(_) => Code::PermissionDenied,
    daemon::AssetError::Store(error) => code_of_store(error),
});
status!(daemon::ComponentError, error => match &error {
    daemon::ComponentError::Refused(refusal) => code_of_asset(refusal),
    daemon::ComponentError::Invalid(_) => Code::InvalidArgument,
    daemon::ComponentError::Registry(_) => Code::NotFound,
    daemon::ComponentError::NotOwner(_) => Code::PermissionDenied,
    daemon::ComponentError::Store(error) => code_of_store(error),
});
status!(daemon::DatastoreError, error => match &error {
    daemon::DatastoreError::Refused(refusal) => match refusal {
        DatastoreRefusal::Taken(_) | DatastoreRefusal::SameButForCase { .. } => Code::AlreadyExists,
        DatastoreRefusal::Default(_)
        | DatastoreRefusal::Own { .. }
        | DatastoreRefusal::FixedPlace { .. }
        | DatastoreRefusal::InUse { .. }
        | DatastoreRefusal::HoldsAssets { .. } => Code::FailedPrecondition,
        DatastoreRefusal::Credentials { .. } | DatastoreRefusal::Malformed { .. } => {
            Code::InvalidArgument
        }
        DatastoreRefusal::NoSuch { .. } => Code::NotFound,
    },
    daemon::DatastoreError::Invalid(_) => Code::InvalidArgument,
    daemon::DatastoreError::Store(error) => code_of_store(error),
    daemon::DatastoreError::Vault(error) => code_of_vault(error),
    daemon::DatastoreError::Storage(error) => code_of_storage(error),
    daemon::DatastoreError::Reactor(error) => code_of_handle(error),
});
status!(daemon::LogError, error => match &error {
    daemon::LogError::NoSuchJob(_) => Code::NotFound,
    daemon::LogError::Store(error) => code_of_store(error),
    daemon::LogError::Storage(error) => code_of_storage(error),
    daemon::LogError::Reactor(error) => code_of_handle(error),
});
status!(daemon::CacheError, error => match &error {
    daemon::CacheError::Away(_) => Code::FailedPrecondition,
    daemon::CacheError::Silent { .. } => Code::DeadlineExceeded,
    daemon::CacheError::Busy(_) => Code::ResourceExhausted,
    daemon::CacheError::Reactor(error) => code_of_handle(error),
});
status!(vault::Error, error => code_of_vault(&error));
status!(daemon::SecretsError, error => match &error {
    daemon::SecretsError::NotThere { .. } | daemon::SecretsError::TooMuch(_) => {
        Code::FailedPrecondition
    }
    daemon::SecretsError::Vault { error, .. } => code_of_vault(error),
    daemon::SecretsError::Store(error) => code_of_store(error),
    daemon::SecretsError::Reactor(error) => code_of_handle(error),
});
status!(track::Error, error => code_of_tracking(&error));
status!(daemon::SharedError, error => match &error {
    daemon::SharedError::Storage(error) => code_of_storage(error),
    daemon::SharedError::Tracking(error) => code_of_tracking(error),
    daemon::SharedError::Name(_) => Code::Internal,
    daemon::SharedError::Store(error) => code_of_store(error),
});
status!(daemon::AuthorityError, error => match &error {
    daemon::AuthorityError::None
    | daemon::AuthorityError::ReliedOn(_)
    | daemon::AuthorityError::Tls(tls::Error::NotRetired | tls::Error::NothingBefore) => {
        Code::FailedPrecondition
    }
    daemon::AuthorityError::Tls(_) | daemon::AuthorityError::Cut(_) => Code::Internal,
    daemon::AuthorityError::Store(error) => code_of_store(error),
    daemon::AuthorityError::Stopping(error) => code_of_handle(error),
});
status!(daemon::NodesError, error => match &error {
    daemon::NodesError::Refused(refusal) => match refusal {
        JoinRefusal::Unknown | JoinRefusal::Used { .. } | JoinRefusal::Expired(_) => {
            Code::Unauthenticated
        }
        JoinRefusal::OtherNode { .. } | JoinRefusal::OtherCompute { .. } => Code::PermissionDenied,
        JoinRefusal::Taken(_) => Code::AlreadyExists,
    },
    daemon::NodesError::Invalid(_) | daemon::NodesError::Tls(tls::Error::Request(_)) => {
        Code::InvalidArgument
    }
    daemon::NodesError::NotDeleted(NotDeleted::Used { .. }) => Code::FailedPrecondition,
    daemon::NodesError::NotDeleted(NotDeleted::Unknown(_))
    | daemon::NodesError::NoSuchNode(_)
    | daemon::NodesError::NoSuchCompute(_) => Code::NotFound,
    daemon::NodesError::NoCertificate(_) => Code::FailedPrecondition,
    daemon::NodesError::Tls(_) | daemon::NodesError::Random => Code::Internal,
    daemon::NodesError::Store(error) => code_of_store(error),
    daemon::NodesError::Stopping(error) => code_of_handle(error),
});
status!(identity::Error, error => match &error {
    identity::Error::Store(error) => code_of_store(error),
    identity::Error::File { .. }
    | identity::Error::Key
    | identity::Error::Random
    | identity::Error::Name(_) => Code::Internal,
    identity::Error::Refused(refused) => code_of_people(refused),
});
status!(identity::Denied, error => match &error {
    identity::Denied::NoToken
    | identity::Denied::WrongToken
    | identity::Denied::Expired { .. }
    | identity::Denied::Revoked
    | identity::Denied::AttemptOver
    | identity::Denied::Certificate { .. } => Code::Unauthenticated,
    identity::Denied::NotAllowed { .. }
    | identity::Denied::NotOwner { .. }
    | identity::Denied::NotEntered { .. }
    | identity::Denied::Foreign(_) => Code::PermissionDenied,
    identity::Denied::UnknownRoute => Code::Unimplemented,
});
status!(oidc::Rejected, error => match &error {
    oidc::Rejected::BadToken(_) | oidc::Rejected::Taken => Code::Unauthenticated,
    oidc::Rejected::TooMany => Code::ResourceExhausted,
    oidc::Rejected::Refused(_) => Code::PermissionDenied,
    oidc::Rejected::Provider(_) => Code::FailedPrecondition,
});
status!(oidc::NotAsked, error => match &error {
    oidc::NotAsked::NotPassedOn(_) => Code::InvalidArgument,
    oidc::NotAsked::Often { .. } => Code::ResourceExhausted,
    oidc::NotAsked::NoSecret | oidc::NotAsked::Secret | oidc::NotAsked::Provider(_) => {
        Code::FailedPrecondition
    }
});
status!(atelier_proto::convert::Error, error => Code::InvalidArgument);
status!(atelier_core::id::InvalidName, error => Code::InvalidArgument);
