//! What nobody may read in a log of those who sign in.

use std::fmt;

use crate::identity::v1 as pb;

impl fmt::Debug for pb::AskProviderRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AskProviderRequest")
            .field("endpoint", &self.endpoint())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for pb::AskProviderResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let succeeded = self.succeeded;
        f.debug_struct("AskProviderResponse").field("succeeded", &succeeded).finish_non_exhaustive()
    }
}

impl fmt::Debug for pb::SignInRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SignInRequest(…)")
    }
}

impl fmt::Debug for pb::SignInResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token: _, user, role, expires_at_ms, token_id } = self;
        f.debug_struct("SignInResponse")
            .field("user", user)
            .field("role", role)
            .field("expires_at_ms", expires_at_ms)
            .field("token_id", token_id)
            .finish_non_exhaustive()
    }
}
