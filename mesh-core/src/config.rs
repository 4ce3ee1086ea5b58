//! The mesh as plain public data: what every control plane produces and what a [`Snapshot`] is compiled from.
//!
//! One [`Config`] is the whole truth of one process: where its requests may go, how, and what its own servers demand of
//! callers. It is compared, serialised and shared, never mutated in place; each part that can be large is behind an
//! `Arc`, so an update that changes one cluster shares all the others with its predecessor. Defaults are Envoy's, and
//! each field names its source. Nothing here decides anything: compiled forms and decisions live in the files named
//! after the subject (`route.rs`, `cluster.rs`, ...).
//!
//! [`Snapshot`]: crate::snapshot::Snapshot

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

mod authz;
mod balance;
mod cluster;
mod clusters;
mod connections;
mod gateway;
mod hash;
mod health_check;
mod http;
mod inbound;
mod jwt;
mod load_reports;
mod outlier;
mod policy;
mod rate_limit;
mod route;
mod session;
mod subset;
mod target;
mod telling;
mod value;

pub use authz::{
    AuditCondition, AuthzService, Condition, ExtAuthz, Guard, MetadataMatch, Rbac, RbacAction, RbacPolicy, RbacRules,
    ShadowMatch, ToldBody, ValueMatch,
};
pub use balance::{
    ClientWeighted, ConsistentHash, Custom, HashFunction, LeastRequest, LoadBalancer, Maglev, PickFirst, RingHash,
    SlowStart, ZoneAware,
};
pub use cluster::{
    CertificateFiles, Cluster, Discovery, Dns, DnsFamily, DnsName, DropOverload, Endpoint, EndpointAddress,
    EndpointMore, Endpoints, Health, Labels, Local, Locality, LocalityEndpoints, Protocol, RetryBudget, ServiceName,
    Thresholds, TlsMode, TlsVersions, UpstreamTls, Workload,
};
pub(crate) use clusters::Chunk as ClusterChunk;
pub use clusters::{Clusters, Iter as ClustersIter};
pub use connections::{Connections, Http2, Keepalive, SocketOption, TcpKeepalive};
pub use gateway::{
    CallerCertificate, Gateway, GatewayCertificate, GatewayChain, GatewayRoots, GatewayTls, GatewayTo, KeyPair,
    PrivateKey, RootCertificates,
};
pub use hash::{HashCookie, HashPolicy, HashSource, RoutingPriority};
pub use health_check::{GrpcCheck, HealthCheck, HttpCheck, Probe, TcpCheck};
pub use http::{FilterOverride, HttpSettings, OwnFilter};
pub use inbound::{
    ClientCertHeader, EVERY_PORT, EscapedSlashes, ForwardClientCert, HttpLimits, Inbound, MtlsMode, PathNormalization,
    Underscores,
};
pub use jwt::{JwtAuthn, JwtKeys, JwtProvider, JwtRequirement, JwtRule};
pub use load_reports::LoadReports;
pub use outlier::{FailurePercentage, LatencyOutlier, Monitor, OutlierDetection, SuccessRate};
pub use policy::{
    Abort, AbortStatus, BackOff, Fault, FaultDelay, GrpcRetry, HedgePolicy, HttpRetry, RateLimitedBackOff, ResetFormat,
    ResetHeader, RetryConditions, RetryPolicy,
};
pub use rate_limit::{
    GlobalOverride, GlobalRateLimit, LimitAction, LimitDescriptor, LimitedRequests, LocalRateLimit, RateLimit,
    TokenBucket,
};
pub use route::{
    Action, CookieMatch, DirectResponse, Format, FormatError, Forward, HeaderChange, HeaderChanges, HeaderChoice,
    HeaderMatch, HeaderMatcher, HostRewrite, Mirror, Operator, PathMatch, PathRewrite, QueryMatch, QueryMatcher,
    Redirect, Route, RouteMatch, RouteTable, SplitBy, Upgrade, VirtualHost, WeightedCluster,
};
pub(crate) use route::{HeaderSource, Part};
pub use session::{Session, SessionState};
pub use subset::{Criteria, Metadata, MetadataValue, SelectorFallback, SubsetFallback, SubsetSelector, Subsets};
pub use target::{Chain, ChainMatch, Network, Serving, SourceType, Target};
pub use telling::{AccessLog, CustomTag, LogFormat, MetricChange, TagValue, Telling, Tracing};
pub use value::{Fraction, Regex, RegexError, StringMatch};

/// A name given by the control plane: of a cluster, a route, a virtual host. Compared once when compiling.
pub type Name = Arc<str>;

/// The whole configuration of one process.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Config {
    /// Where requests go, by destination port (for a gateway: by the port its listener was declared with).
    ///
    /// Source: one outbound `Listener` each, with its `RouteConfiguration`.
    pub outbound: BTreeMap<u16, Arc<RouteTable>>,
    /// What holds for all requests of a port, whatever their route; absent is nothing.
    pub http: BTreeMap<u16, Arc<HttpSettings>>,
    /// Where requests go that name no port but a target they were dialled as, by the name of its listener (gRPC's profile).
    pub targets: BTreeMap<Name, Target>,
    /// What this process's servers demand of callers, by the port they listen on; [`EVERY_PORT`] is for all others.
    pub inbound: BTreeMap<u16, Arc<Inbound>>,
    /// What a gateway takes in at ports that are not for plain HTTP alone, by the port its listener was declared with.
    pub gateways: BTreeMap<u16, Arc<Gateway>>,
    /// The same where servers are told by a listener of their own, by its name (gRPC's profile).
    pub serving: BTreeMap<Name, Arc<Serving>>,
    /// Who this process is among those like it: what depends on its place, and on it being another than they.
    pub local: Local,
    /// Every cluster a route may name. A route naming a cluster that is not here answers 503 with flag `NC`.
    pub clusters: Clusters,
}
