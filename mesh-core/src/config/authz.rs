//! What an inbound request must pass before the application gets it, in order. Source: Envoy `http_filters` of an inbound
//! chain: `RBAC`, `ExtAuthz` and their like.
//!
//! Permissions and principals are both conditions on a request here: those of a [`RbacPolicy`] differ by the list they
//! stand in. A condition that this library cannot look at is kept as [`Condition::Undecidable`], so that what is guarded by
//! it stays closed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{HeaderMatch, JwtAuthn, Name, StringMatch};

/// One thing a request must pass. Those of a port are asked in order; the first that refuses has the last word.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Guard {
    /// Rules about who may ask what. Envoy `RBAC`.
    Rbac(Arc<Rbac>),
    /// Somebody else is asked. Envoy `ExtAuthz`.
    ExtAuthz(Arc<ExtAuthz>),
    /// Tokens of end users. Envoy `JwtAuthentication`.
    Jwt(Arc<JwtAuthn>),
}

/// Source: Envoy `envoy.extensions.filters.http.rbac.v3.RBAC`; gRFC A41.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Rbac {
    /// What is enforced; `None` lets everything pass. Envoy `RBAC.rules`.
    pub rules: Option<RbacRules>,
    /// What is decided and told, and never enforced. Envoy `RBAC.shadow_rules`.
    pub shadow: Option<RbacRules>,
    /// In front of the names under which the shadow rules' decision is found. Envoy `RBAC.shadow_rules_stat_prefix`.
    pub shadow_prefix: Name,
}

/// Source: Envoy `envoy.config.rbac.v3.RBAC`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RbacRules {
    /// What it means that a policy matches.
    pub action: RbacAction,
    /// By name; in the order of the names the first that matches is the one that decided.
    pub policies: BTreeMap<Name, RbacPolicy>,
    /// Which decisions are told to the audit log. Envoy `RBAC.audit_logging_options.audit_condition`, gRFC A59.
    pub audit: AuditCondition,
}

/// Source: Envoy `RBAC.Action`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RbacAction {
    /// Who is matched by a policy may pass, nobody else.
    #[default]
    Allow,
    /// Who is matched by a policy may not pass.
    Deny,
    /// All pass; who is matched by a policy is told of.
    Log,
}

/// Source: Envoy `RBAC.AuditLoggingOptions.AuditCondition`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AuditCondition {
    /// No decision.
    #[default]
    None,
    /// Those who are refused.
    OnDeny,
    /// Those who may pass.
    OnAllow,
    /// All.
    OnDenyAndAllow,
}

/// Matches when any permission and any principal does; empty lists match nothing. Source: Envoy `Policy`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct RbacPolicy {
    /// What may be asked.
    pub permissions: Vec<Condition>,
    /// Who may ask.
    pub principals: Vec<Condition>,
}

/// A condition on a request, its caller and its connection. Source: Envoy `Permission`, `Principal`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Always met. Envoy `any`.
    Any,
    /// All of these are met. Envoy `and_rules`, `and_ids`.
    All(Vec<Self>),
    /// One of these is met. Envoy `or_rules`, `or_ids`.
    One(Vec<Self>),
    /// This is not met. Envoy `not_rule`, `not_id`.
    Not(Box<Self>),
    /// A header, or a pseudo-header. Envoy `header`.
    Header(HeaderMatch),
    /// The path without its query. Envoy `url_path`.
    Path(StringMatch),
    /// The address the caller connected to. Envoy `destination_ip`.
    DestinationIp(IpNet),
    /// The port the caller connected to. Envoy `destination_port`.
    DestinationPort(u16),
    /// A range of such ports. Envoy `destination_port_range`.
    DestinationPorts {
        /// First that matches.
        start: u32,
        /// First that does not match any more; up to 65536.
        end: u32,
    },
    /// The name the caller asked for in the TLS handshake; empty in plaintext. Envoy `requested_server_name`.
    ServerName(StringMatch),
    /// What filters in front found out, such as the claims of a token. Envoy `metadata`, `sourced_metadata`.
    Metadata(MetadataMatch),
    /// Who the caller proved to be; `None` is anybody with a certificate. Envoy `authenticated.principal_name`.
    Peer(Option<StringMatch>),
    /// The address at the other end of the connection. Envoy `direct_remote_ip`, `source_ip`.
    DirectIp(IpNet),
    /// The caller's address, told by proxies in front where these are trusted. Envoy `remote_ip`.
    RemoteIp(IpNet),
    /// Something that cannot be looked at here, and its name: neither met nor not met.
    Undecidable(String),
}

/// A condition on a value that filters in front left. Source: Envoy `MetadataMatcher`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct MetadataMatch {
    /// Whose: `envoy.filters.http.jwt_authn`.
    pub filter: Name,
    /// Where in it: `payload`, `iss`.
    pub path: Vec<Name>,
    /// The condition; a value that is not there meets none.
    pub value: ValueMatch,
    /// Turns the answer round.
    pub invert: bool,
}

/// A condition on a JSON-like value. Source: Envoy `ValueMatcher`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ValueMatch {
    /// It is null.
    Null,
    /// It is a number in `start..end`.
    Range {
        /// First that matches.
        start: f64,
        /// First that does not match any more.
        end: f64,
    },
    /// It is this number.
    Number(f64),
    /// It is such a text.
    Text(StringMatch),
    /// It is this.
    Bool(bool),
    /// It is there (true) or not (false).
    Present(bool),
    /// It is a list, and one of its values meets this.
    OneOf(Box<Self>),
    /// It meets one of these.
    Or(Vec<Self>),
}

/// Somebody who is asked whether a request may pass. Source: Envoy `ExtAuthz`, Istio `extensionProviders`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ExtAuthz {
    /// Who is asked, and how.
    pub service: AuthzService,
    /// How long it may take; 200 ms in Envoy, 600 s as Istio writes it.
    pub timeout: Duration,
    /// No answer lets the request pass. Default: it refuses. Envoy `failure_mode_allow`.
    pub failure_allows: bool,
    /// The status of requests that are refused for want of an answer; 403. Envoy `status_on_error`.
    pub status_on_error: u16,
    /// Which headers are sent along; `None` is all over gRPC, and none but those always sent over HTTP. Envoy
    /// `allowed_headers`.
    pub allowed_headers: Option<Vec<StringMatch>>,
    /// Which are not, though allowed. Envoy `disallowed_headers`.
    pub disallowed_headers: Vec<StringMatch>,
    /// How much of the body is told; `None` is nothing. Envoy `with_request_body`.
    pub body: Option<ToldBody>,
    /// Only requests for which earlier shadow rules found such a policy. Envoy `filter_enabled_metadata`.
    pub when: Option<ShadowMatch>,
}

/// How much of a request's body is told. Source: Envoy `BufferSettings`, Istio `includeRequestBodyInCheck`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ToldBody {
    /// The most of it, in bytes; greater than 0. Envoy `max_request_bytes`.
    pub max_bytes: u32,
    /// Of a longer one the beginning is told; without, it is refused (413). Default false. Envoy `allow_partial_message`.
    pub partial: bool,
    /// Over gRPC it is told as bytes; without, as text, and what is none cannot be told. Default false. Envoy `pack_as_bytes`.
    pub as_bytes: bool,
}

/// Source: Envoy `ExtAuthz.services`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthzService {
    /// By `envoy.service.auth.v3.Authorization`.
    Grpc {
        /// The cluster asked.
        cluster: Name,
        /// What `:authority` says; empty is the cluster's name. Envoy `GrpcService.EnvoyGrpc.authority`.
        authority: String,
    },
    /// By a request like the one asked about, without its body unless that is to be told: 200 is yes.
    Http {
        /// The cluster asked.
        cluster: Name,
        /// The host asked for. Envoy `HttpUri.uri`.
        authority: String,
        /// In front of the path. Envoy `HttpService.path_prefix`.
        path_prefix: String,
        /// Headers added to the question. Envoy `AuthorizationRequest.headers_to_add`.
        add: Vec<(Name, String)>,
        /// Headers of a yes that the application gets in place of the caller's. Envoy `allowed_upstream_headers`.
        to_upstream: Vec<StringMatch>,
        /// Headers of a no that the caller gets; empty is all. Envoy `allowed_client_headers`.
        to_client: Vec<StringMatch>,
    },
}

/// Which decision of shadow rules is meant.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ShadowMatch {
    /// Those of [`Rbac::shadow_prefix`].
    pub prefix: Name,
    /// The policy that decided has such a name.
    pub policy: StringMatch,
}
