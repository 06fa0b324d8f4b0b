//! Errors as MLflow's clients read them.

use atelier_core::track::{Error as Refusal, limits};
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode};
use serde_json::json;

use crate::storage;
use crate::store;
use crate::track;

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Failure {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(super) fn unauthenticated() -> Self {
        let message = "The request carries no valid token. Set MLFLOW_TRACKING_TOKEN.";
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", message)
    }

    pub(super) fn not_served(path: &str) -> Self {
        let message = format!(
            "No API found for '{}'. Atelier serves MLflow's experiments, runs, metrics, logged \
             models, registered models and artifacts.",
            limits::excerpt(path)
        );
        Self::new(StatusCode::NOT_FOUND, "ENDPOINT_NOT_FOUND", message)
    }

    pub(super) fn wrong_method(method: &Method, path: &str) -> Self {
        let message = format!("'{}' does not take {method}.", limits::excerpt(path));
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "BAD_REQUEST", message)
    }

    pub(super) fn no_workspace(named: &str, own: &str) -> Self {
        let message = format!(
            "Workspace '{}' not found. This is workspace '{own}': set MLFLOW_WORKSPACE to that, or to nothing.",
            limits::excerpt(named)
        );
        Self::new(StatusCode::NOT_FOUND, "RESOURCE_DOES_NOT_EXIST", message)
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "TEMPORARILY_UNAVAILABLE", message)
    }

    fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error, "an MLflow call failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR", error.to_string())
    }
}

impl Failure {
    /// The code and what it says, if it is the request's fault.
    ///
    /// # Errors
    /// The failure, if it is not.
    pub(super) fn told(self) -> Result<(&'static str, String), Self> {
        if self.status.is_client_error() { Ok((self.code, self.message)) } else { Err(self) }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = json!({ "error_code": self.code, "message": self.message });
        (self.status, axum::Json(body)).into_response()
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let code = refusal.code();
        let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::BAD_REQUEST);
        Self::new(status, code.as_str(), refusal.to_string())
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Track(refusal) => refusal.into(),
            // Clients repeat these for a while: perhaps someone frees space meanwhile.
            store::Error::Full { .. } | store::Error::Locked { .. } | store::Error::Closed => {
                Self::unavailable(error.to_string())
            }
            error => Self::internal(&error),
        }
    }
}

impl From<storage::Error> for Failure {
    fn from(error: storage::Error) -> Self {
        use storage::Error as E;
        let message = error.to_string();
        match &error {
            E::NotFound(_) => Self::new(StatusCode::NOT_FOUND, "RESOURCE_DOES_NOT_EXIST", message),
            E::Path(_) | E::Conflict(_) | E::Link(_) => {
                Self::new(StatusCode::BAD_REQUEST, "INVALID_PARAMETER_VALUE", message)
            }
            E::Interrupted(_) => Self::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", message),
            E::Full | E::Away { .. } => Self::unavailable(message),
            _ => Self::internal(&error),
        }
    }
}

impl From<track::Error> for Failure {
    fn from(error: track::Error) -> Self {
        match error {
            track::Error::Store(error) => error.into(),
            track::Error::Storage(error) => error.into(),
            track::Error::Stopping => Self::unavailable(error.to_string()),
            error @ track::Error::Sealed { .. } => Self::internal(&error),
        }
    }
}
