//! Whose rules a client follows in reading resources: Envoy's, as a sidecar would, or gRPC's own.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::bootstrap::Files;

/// Whose rules.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// A sidecar's: all listeners and clusters there are; fields without effect are reported, not refused.
    #[default]
    Envoy,
    /// A gRPC client's, to the letter of the gRFCs: API listeners by the name dialled, everything else by name.
    Grpc,
}

/// What the reading of a resource depends on besides the resource.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Context {
    /// Whose rules.
    pub profile: Profile,
    /// The server may ask for what bears on security, such as another authority in requests. Source: gRFC A81
    /// `trusted_xds_server`. For Envoy every server is.
    pub trusted: bool,
    /// The files of the certificate providers that the bootstrap names, by instance (gRFC A29): a reference to any other is
    /// refused.
    pub certificates: BTreeMap<String, Files>,
    /// The one of them that this process's own certificate and its roots come from.
    pub identity: Option<String>,
    /// The process is a gateway: its listeners are for connections from outside, and it takes the keys it shows them. By the node
    /// type `router`.
    pub gateway: bool,
}
