//! The objects people write: Istio's and Kubernetes' kinds, parsed with positions and checked one by one.
//!
//! [`parse()`] reads a file of YAML documents into [`Object`]s or says everything that is wrong with it, at once. What only
//! shows between objects (a subset nobody defines) is [`analyze`](crate::analyze); what objects mean to a workload is
//! [`compile`](crate::compile). Each kind has its own file under `kinds/`.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::diagnostic::{Diagnostic, Level, codes};

mod authorization_policy;
mod deployment;
mod destination_rule;
mod envoy_filter;
mod gateway;
mod gateway_api;
mod mesh_config;
mod parse;
mod peer_authentication;
mod read;
mod refused;
mod request_authentication;
mod schema;
mod secret;
mod service;
mod service_entry;
mod sidecar;
mod telemetry;
mod virtual_service;
mod workload_entry;
mod workload_group;
mod yaml;

pub use authorization_policy::{Attribute, AuthorizationPolicy, AuthzAction, AuthzRule, Term};
pub(crate) use authorization_policy::{
    network as authz_network, regex_syntax_escape as regex_escape, template as authz_template,
};
pub use deployment::Deployment;
pub use destination_rule::{
    Balancing, Choice, ConnectionPool, DestinationRule, Distribute, H2Upgrade, Locating, Settings, Subset, Tls,
    TlsKind, TrafficPolicy,
};
pub use envoy_filter::{EnvoyFilter, HttpLimit, Patch, Patched, RoutesPatch, Side};
pub use gateway::{Gateway, Server, ServerTls, TlsServer};
pub use gateway_api::{ApiByteRoute, ApiGateway, ApiListener, ApiParent, ApiRoute, Grant, ParentKind};
pub(crate) use gateway_api::{GATEWAY_NAME, gateway_labels};
pub use mesh_config::{AuthzProvider, MeshConfig, ProviderAddress, TelemetryProvider};
pub use parse::parse;
pub(crate) use parse::parse_source;
pub use peer_authentication::PeerAuthentication;
pub use request_authentication::{RequestAuthentication, TokenRule};
pub use schema::schema;
pub use secret::Secret;
pub(crate) use secret::{certificates, lists};
pub use service::{PortProtocol, Service, ServicePort, TargetPort};
pub use service_entry::{Resolution, ServiceEntry};
pub use sidecar::{Egress, Sidecar};
pub use telemetry::{Mode, Telemetry, Tracing};
pub use virtual_service::{
    ByteMatch, ByteRoute, DelegateTo, Destination, HttpAction, HttpMatch, HttpRoute, MirrorTo, RedirectTo,
    VirtualService,
};
pub use workload_entry::WorkloadEntry;
pub use workload_group::WorkloadGroup;
pub use yaml::{At, Spot};

pub(crate) use read::nearest;
use read::{Fields, Reader};
pub(crate) use virtual_service::default_retries;

/// A kind of object this control plane takes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[non_exhaustive]
pub enum Kind {
    /// Kubernetes `Service`: a name, its ports, and which workloads are behind it.
    Service,
    /// Kubernetes `ServiceAccount`: an identity.
    ServiceAccount,
    /// Kubernetes `Deployment`: labels and account of workloads, a hint of who will run.
    Deployment,
    /// Istio `ServiceEntry`: a service that is written down, inside or outside the mesh.
    ServiceEntry,
    /// Istio `WorkloadEntry`: an endpoint that is written down.
    WorkloadEntry,
    /// Istio `DestinationRule`: how a host is reached, and its subsets.
    DestinationRule,
    /// Istio `VirtualService`: where requests to a host go.
    VirtualService,
    /// Istio `Gateway`: what an ingress listens for.
    Gateway,
    /// Istio `PeerAuthentication`: whether callers must show a certificate.
    PeerAuthentication,
    /// Istio `RequestAuthentication`: whose tokens servers believe.
    RequestAuthentication,
    /// Istio `AuthorizationPolicy`: who may ask what.
    AuthorizationPolicy,
    /// Istio `WorkloadGroup`: what workloads that register themselves have in common.
    WorkloadGroup,
    /// Istio `Sidecar`: what the workloads of a namespace see of the mesh.
    Sidecar,
    /// Istio `Telemetry`: what is told of requests.
    Telemetry,
    /// Gateway API `GatewayClass`: whose gateways are meant.
    GatewayClass,
    /// Gateway API `Gateway`: what an ingress listens for.
    #[serde(rename = "Gateway.gateway.networking.k8s.io")]
    KubeGateway,
    /// Gateway API `HTTPRoute`: where requests go, for services and gateways.
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    /// Gateway API `GRPCRoute`: where calls go, by service and method.
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
    /// Gateway API `ReferenceGrant`: who may name the services of another namespace.
    ReferenceGrant,
    /// Kubernetes `Secret`: a certificate that a gateway shows.
    Secret,
    /// Gateway API `TLSRoute`: where connections go by the name in the TLS handshake, at gateways.
    #[serde(rename = "TLSRoute")]
    TlsRoute,
    /// Gateway API `TCPRoute`: where connections go by the port, at gateways.
    #[serde(rename = "TCPRoute")]
    TcpRoute,
    /// Istio `MeshConfig`, of the ConfigMap `istio`: what holds for the whole mesh.
    MeshConfig,
    /// Istio `EnvoyFilter`, of which rate limits are taken.
    EnvoyFilter,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 24] = [
        Self::Service,
        Self::ServiceAccount,
        Self::Deployment,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::DestinationRule,
        Self::VirtualService,
        Self::Gateway,
        Self::PeerAuthentication,
        Self::RequestAuthentication,
        Self::AuthorizationPolicy,
        Self::WorkloadGroup,
        Self::Sidecar,
        Self::Telemetry,
        Self::GatewayClass,
        Self::KubeGateway,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::ReferenceGrant,
        Self::Secret,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::MeshConfig,
        Self::EnvoyFilter,
    ];

    /// As `kind:` names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::ServiceAccount => "ServiceAccount",
            Self::Deployment => "Deployment",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::DestinationRule => "DestinationRule",
            Self::VirtualService => "VirtualService",
            Self::Gateway | Self::KubeGateway => "Gateway",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::WorkloadGroup => "WorkloadGroup",
            Self::Sidecar => "Sidecar",
            Self::Telemetry => "Telemetry",
            Self::GatewayClass => "GatewayClass",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::Secret => "Secret",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::MeshConfig => "MeshConfig",
            Self::EnvoyFilter => "EnvoyFilter",
        }
    }

    /// As one types it: the name in any case, singular or plural, or the short name (`vs`, `dr`, `gw`, `se`, `we`, `pa`,
    /// `svc`, `sa`, `deploy`, `wg`, `gtw`, ...), with or without the group (`virtualservices.networking.istio.io`). Without it, a
    /// `gateway` is Istio's.
    pub fn from_word(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        let (word, group) = word.split_once('.').map_or((word.as_str(), None), |(word, group)| (word, Some(group)));
        Self::ALL.into_iter().find(|kind| {
            let name = kind.as_str().to_ascii_lowercase();
            group.is_none_or(|group| group == kind.group() || group.ends_with(&format!(".{}", kind.group())))
                && (word == name || word == kind.plural() || word == kind.short())
        })
    }

    /// `virtualservices`.
    pub fn plural(self) -> String {
        let name = self.as_str().to_ascii_lowercase();
        match name.strip_suffix('y') {
            Some(stem) if name.ends_with("try") || name.ends_with("policy") => format!("{stem}ies"),
            _ if name.ends_with("ss") => format!("{name}es"),
            _ => format!("{name}s"),
        }
    }

    /// `vs`.
    pub fn short(self) -> &'static str {
        match self {
            Self::Service => "svc",
            Self::ServiceAccount => "sa",
            Self::Deployment => "deploy",
            Self::ServiceEntry => "se",
            Self::WorkloadEntry => "we",
            Self::DestinationRule => "dr",
            Self::VirtualService => "vs",
            Self::Gateway => "gw",
            Self::PeerAuthentication => "pa",
            Self::RequestAuthentication => "ra",
            Self::AuthorizationPolicy => "ap",
            Self::WorkloadGroup => "wg",
            Self::Sidecar => "sidecar",
            Self::Telemetry => "tele",
            Self::GatewayClass => "gc",
            Self::KubeGateway => "gtw",
            Self::HttpRoute => "httproute",
            Self::GrpcRoute => "grpcroute",
            Self::ReferenceGrant => "refgrant",
            Self::Secret => "secret",
            Self::TlsRoute => "tlsroute",
            Self::TcpRoute => "tcproute",
            Self::MeshConfig => "mc",
            Self::EnvoyFilter => "ef",
        }
    }

    /// The API group, empty for Kubernetes' core.
    pub fn group(self) -> &'static str {
        match self {
            Self::Service | Self::ServiceAccount | Self::Secret => "",
            Self::Deployment => "apps",
            Self::MeshConfig => "mesh.istio.io",
            Self::PeerAuthentication | Self::AuthorizationPolicy | Self::RequestAuthentication => "security.istio.io",
            Self::GatewayClass
            | Self::KubeGateway
            | Self::HttpRoute
            | Self::GrpcRoute
            | Self::ReferenceGrant
            | Self::TlsRoute
            | Self::TcpRoute => "gateway.networking.k8s.io",
            Self::Telemetry => "telemetry.istio.io",
            _ => "networking.istio.io",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an object is found by.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// A key of its parts.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

/// `VirtualService default/reviews`.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Where an object was written.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Source {
    /// The file as the caller named it; `-` is standard input.
    pub file: Arc<str>,
    /// The line of the file that `text` begins with, from 1.
    pub first_line: u32,
    /// The document, as written.
    pub text: Arc<str>,
}

/// One object.
#[derive(Clone, Debug)]
pub struct Object {
    /// Kind, namespace and name.
    pub key: Key,
    /// As written, such as `networking.istio.io/v1`.
    pub api_version: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// First applied, in Unix milliseconds; kept over a re-apply, since the oldest of conflicting objects wins. 0 before
    /// the [`Store`](crate::store::Store) took it.
    pub created: u64,
    /// What it says.
    pub spec: Spec,
    /// What it says, as a tree, for `get -o yaml` and `-o json`.
    pub raw: Arc<serde_json::Value>,
    /// Where it was written.
    pub source: Source,
}

/// Objects that say the same are equal, wherever and whenever they were written.
impl PartialEq for Object {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key && self.raw == other.raw
    }
}

/// What an object says, by kind.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[expect(clippy::large_enum_variant, reason = "objects are few, and each is kept once")]
pub enum Spec {
    /// A `Service`.
    Service(Service),
    /// A `ServiceAccount`; its name says all.
    ServiceAccount,
    /// A `Deployment`.
    Deployment(Deployment),
    /// A `ServiceEntry`.
    ServiceEntry(ServiceEntry),
    /// A `WorkloadEntry`.
    WorkloadEntry(WorkloadEntry),
    /// A `DestinationRule`.
    DestinationRule(DestinationRule),
    /// A `VirtualService`.
    VirtualService(VirtualService),
    /// A `Gateway`.
    Gateway(Gateway),
    /// A `PeerAuthentication`.
    PeerAuthentication(PeerAuthentication),
    /// A `RequestAuthentication`.
    RequestAuthentication(RequestAuthentication),
    /// An `AuthorizationPolicy`.
    AuthorizationPolicy(AuthorizationPolicy),
    /// A `WorkloadGroup`.
    WorkloadGroup(WorkloadGroup),
    /// A `Sidecar`.
    Sidecar(Sidecar),
    /// A `Telemetry`.
    Telemetry(Telemetry),
    /// A `GatewayClass`; its name says all.
    GatewayClass,
    /// A `Gateway` of the Gateway API.
    KubeGateway(ApiGateway),
    /// An `HTTPRoute` or `GRPCRoute`.
    ApiRoute(ApiRoute),
    /// A `ReferenceGrant`.
    ReferenceGrant(Vec<Grant>),
    /// A `Secret`.
    Secret(Secret),
    /// A `TLSRoute` or `TCPRoute`.
    ApiByteRoute(ApiByteRoute),
    /// A `MeshConfig`.
    MeshConfig(MeshConfig),
    /// An `EnvoyFilter`.
    EnvoyFilter(EnvoyFilter),
}

impl Object {
    /// A finding about this object, at a place in its document.
    pub(crate) fn diagnostic(&self, code: &'static str, level: Level, at: Spot, message: &str) -> Diagnostic {
        self.source.diagnostic(code, level, at, format!("{}: {message}", self.key))
    }
}

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// In the order written.
    pub objects: Vec<Object>,
    /// Warnings and remarks; no errors.
    pub diagnostics: Vec<Diagnostic>,
}

/// Who may see an object: `.` its own namespace, `*` everyone (also when empty), `~` nobody, or namespaces.
fn export_to(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Vec<String> {
    let names = fields.read("exportTo", |node, path| Some(reader.texts(node, path))).unwrap_or_default();
    for (n, name) in names.iter().enumerate() {
        if names.iter().take(n).any(|other| other == name) {
            reader.report(codes::INVALID, Level::Error, name.at, format!("spec.exportTo names {:?} twice", name.value));
        }
    }
    for name in &names {
        let alone = matches!(name.value.as_str(), "*" | "~") && names.len() > 1;
        let sound = matches!(name.value.as_str(), "*" | "~" | ".") || parse::is_dns_name(name, 63);
        if alone {
            reader.invalid(name.at, format!("spec.exportTo: {:?} stands alone or not at all", name.value));
        } else if !sound {
            reader.invalid(name.at, format!("spec.exportTo: {:?} is no namespace", name.value)).help =
                Some("write . for the own namespace, * for all, ~ for none, or namespaces".to_owned());
        }
    }
    names.into_iter().map(|at| at.value).collect()
}

#[cfg(test)]
pub(crate) mod tests;
