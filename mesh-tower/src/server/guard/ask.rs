//! Asking an authorization service whether a request may pass. Source: Envoy `ext_authz`.

use http::{StatusCode, request::Parts};
use mesh_core::{config::ExtAuthz, outcome::Flags};

use super::{Refusal, Server};
use crate::server::Caller;

impl Server {
    /// Lets the request pass if the service says so.
    pub(super) async fn ask(&self, service: &ExtAuthz, _: &Caller, _: &mut Parts) -> Result<(), Box<Refusal>> {
        let status = StatusCode::from_u16(service.status_on_error).unwrap_or(StatusCode::FORBIDDEN);
        Err(Refusal::new(status, Flags::NONE, "the authorization service cannot be asked"))
    }
}
