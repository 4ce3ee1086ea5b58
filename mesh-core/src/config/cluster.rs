//! Clusters: a named set of endpoints with the policy of reaching them. Source: Envoy `Cluster`, `ClusterLoadAssignment`.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Connections, Fraction, HashPolicy, HealthCheck, LoadBalancer, LoadReports, Metadata, MetadataValue, Name,
    OutlierDetection, SlowStart, StringMatch, Subsets, ZoneAware,
};

/// A named set of endpoints and how to reach them. Source: Envoy `Cluster`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Cluster {
    /// Its name (`outbound|9080|v1|reviews.default.svc.cluster.local`).
    pub name: Name,
    /// The service it belongs to, for telemetry. Envoy metadata `istio.services[0]`.
    pub service: Option<ServiceName>,
    /// Where its endpoints come from.
    pub discovery: Discovery,
    /// How the names of [`Discovery::StrictDns`] and [`Discovery::LogicalDns`] are resolved.
    pub dns: Dns,
    /// The endpoints, as far as they are known. An empty set answers 503 with flag `UH`.
    pub endpoints: Arc<Endpoints>,
    /// Which endpoint a request gets.
    pub load_balancer: LoadBalancer,
    /// How new endpoints get their share, with [`LoadBalancer::RoundRobin`] and [`LoadBalancer::LeastRequest`]; `None` is at
    /// once. Envoy `slow_start_config`.
    pub slow_start: Option<SlowStart>,
    /// Only so many endpoints of each priority are used, which ones is drawn once a process; `None` is all. Envoy
    /// `RandomSubsetting.subset_size`, gRFC A68.
    pub subset_size: Option<u32>,
    /// Subsets of the endpoints that requests may ask for by label; `None` is none. Envoy `lb_subset_config`.
    pub subsets: Option<Arc<Subsets>>,
    /// What is hashed whatever the route says; empty leaves it to the route. Envoy `ConsistentHashingLbConfig.hash_policy`.
    pub hash: Vec<HashPolicy>,
    /// Including the TLS handshake. Envoy `Cluster.connect_timeout`, default 5 s.
    pub connect_timeout: Duration,
    /// The HTTP version spoken to the endpoints.
    pub protocol: Protocol,
    /// How connections to the endpoints are opened, kept and given up.
    pub connections: Connections,
    /// Limits of what may be under way at once.
    pub thresholds: Thresholds,
    /// The same of requests of routes with priority `HIGH`, which are counted apart. Connections count for the priority they
    /// were opened for, and then serve both.
    pub high_thresholds: Thresholds,
    /// When an endpoint is left out for failing; `None` is never.
    pub outlier_detection: Option<OutlierDetection>,
    /// How endpoints are asked whether they are well; `None` is not at all. Envoy `health_checks`.
    pub health_check: Option<Arc<HealthCheck>>,
    /// An endpoint to which connecting failed is passed over for half a second, doubling up to five, while there are
    /// others. Ours, default true; Envoy tries it as any other.
    pub avoid_unreachable: bool,
    /// TLS towards the endpoints.
    pub tls: TlsMode,
    /// Below this percentage of healthy endpoints all are used. Envoy `healthy_panic_threshold`, default 50; 0 is never.
    pub panic_threshold: u32,
    /// The weights of localities count; otherwise localities only place endpoints.
    ///
    /// Envoy `locality_weighted_lb_config`, the policy `wrr_locality`; default false.
    pub locality_weighted: bool,
    /// Endpoints of the own zone are preferred; `None` is not. Not together with weights of localities. Envoy
    /// `zone_aware_lb_config`.
    pub zone_aware: Option<ZoneAware>,
    /// The health in which an endpoint that a session asks for is still used. Envoy `override_host_status`, by default
    /// healthy and degraded.
    pub override_host: Vec<Health>,
    /// What of its load is reported to the control plane; `None` is nothing. Envoy `lrs_server` (`self`).
    pub load_reports: Option<Arc<LoadReports>>,
    /// Why it cannot be used, when the control plane or the translation said so; every request answers 503 (XD14).
    pub failed: Option<String>,
    /// The object its policy was written in. Envoy metadata `istio.config`.
    pub origin: Option<Name>,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            name: Name::default(),
            service: None,
            discovery: Discovery::default(),
            dns: Dns::default(),
            endpoints: Arc::default(),
            load_balancer: LoadBalancer::default(),
            slow_start: None,
            subset_size: None,
            subsets: None,
            hash: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            protocol: Protocol::default(),
            connections: Connections::default(),
            thresholds: Thresholds::default(),
            high_thresholds: Thresholds::default(),
            outlier_detection: None,
            health_check: None,
            avoid_unreachable: true,
            tls: TlsMode::default(),
            panic_threshold: 50,
            locality_weighted: false,
            zone_aware: None,
            override_host: vec![Health::Healthy, Health::Degraded],
            load_reports: None,
            failed: None,
            origin: None,
        }
    }
}

/// The service a cluster belongs to, as telemetry names it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ServiceName {
    /// `reviews.default.svc.cluster.local`.
    pub host: Name,
    /// `reviews`.
    pub name: Name,
    /// `default`.
    pub namespace: Name,
}

/// Where endpoints come from. Source: Envoy `Cluster.type`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Discovery {
    /// Listed in the configuration itself.
    #[default]
    Static,
    /// Pushed by the control plane under this name. Envoy `EDS`; the name is the cluster's unless `service_name` is set.
    Eds(Name),
    /// Every address of each name is an endpoint. Envoy `STRICT_DNS`.
    StrictDns(Vec<DnsName>),
    /// One address of the name at a time. Envoy `LOGICAL_DNS`.
    LogicalDns(DnsName),
    /// Those of the first of these clusters that has any that can be used. Envoy `AggregateCluster`.
    Aggregate(Vec<Name>),
    /// The host the caller named, resolved as it is. Envoy `ORIGINAL_DST`; Istio's `PassthroughCluster`.
    OriginalDestination,
}

/// How names are resolved again and again. Source: Envoy `Cluster.dns_refresh_rate` and its neighbours.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Dns {
    /// After an answer. Envoy `dns_refresh_rate`, default 5 s.
    pub refresh: Duration,
    /// After the first failure, and after many, doubling in between; `None` is as after an answer. Envoy
    /// `dns_failure_refresh_rate`.
    pub after_failure: Option<(Duration, Duration)>,
    /// Which addresses of an answer count.
    pub family: DnsFamily,
}

impl Default for Dns {
    fn default() -> Self {
        Self { refresh: Duration::from_secs(5), after_failure: None, family: DnsFamily::default() }
    }
}

/// Which addresses of a name count. Source: Envoy `DnsLookupFamily`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsFamily {
    /// Those of IPv6, or if there are none those of IPv4. Envoy `AUTO`.
    Auto,
    /// Those of IPv4.
    V4Only,
    /// Those of IPv6.
    V6Only,
    /// Those of IPv4, or if there are none those of IPv6.
    V4Preferred,
    /// All. The default of clusters made in code; Envoy's is `AUTO`.
    #[default]
    All,
}

/// A DNS name and port to resolve.
pub type DnsName = (String, u16);

/// All endpoints of a cluster. Source: Envoy `ClusterLoadAssignment`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Endpoints {
    /// By locality and priority.
    pub localities: Vec<LocalityEndpoints>,
    /// In percent. Envoy `Policy.overprovisioning_factor`, default 140 when 0.
    pub overprovisioning: u32,
    /// The health of a priority is that of its weight, not of its number of endpoints. Envoy `weighted_priority_health`.
    pub weighted_priority_health: bool,
    /// Requests to be dropped, one category after the other. Envoy `Policy.drop_overloads`.
    pub drops: Vec<DropOverload>,
}

/// A share of requests to be dropped. Source: Envoy `ClusterLoadAssignment.Policy.DropOverload`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct DropOverload {
    /// What they are counted as.
    pub category: Name,
    /// Of those that earlier categories left.
    pub fraction: Fraction,
}

/// Who a process is. Source: Envoy bootstrap `node`, `local_cluster_name`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Local {
    /// What tells it from others. `node.id`.
    pub id: Name,
    /// Where it runs. `node.locality`.
    pub locality: Locality,
    /// The cluster of its own service, which says how those like it are spread; empty is not known. `local_cluster_name`.
    pub cluster: Name,
}

/// The endpoints of one locality at one priority. Source: Envoy `LocalityLbEndpoints`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct LocalityEndpoints {
    /// Where.
    pub locality: Locality,
    /// 0 is used first.
    pub priority: u32,
    /// Share among localities of one priority; `None` when localities are not weighted.
    pub weight: Option<u32>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A place. Source: Envoy `Locality`.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(default)]
pub struct Locality {
    /// `eu-west-1`.
    pub region: Name,
    /// `a`.
    pub zone: Name,
    /// Below the zone.
    pub sub_zone: Name,
}

/// One endpoint. Source: Envoy `LbEndpoint`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Endpoint {
    /// Where it listens.
    pub address: EndpointAddress,
    /// Its share, at least 1. Envoy `load_balancing_weight`.
    pub weight: u32,
    /// What the control plane says of its health.
    pub health: Health,
    /// It takes Istio's mutual TLS. Envoy metadata `envoy.transport_socket_match {tlsMode: istio}`.
    pub mtls: bool,
    /// Who answers there, for telemetry. Envoy metadata `istio.workload`.
    pub workload: Option<Arc<Workload>>,
    /// Its host name; empty is none. Envoy `Endpoint.hostname`.
    #[serde(default)]
    pub hostname: Name,
    /// What it is known by to hashing policies, if not by its address. Envoy metadata `envoy.lb.hash_key`, gRFC A76.
    #[serde(default)]
    pub hash_key: Option<Name>,
    /// What few endpoints have.
    #[serde(default)]
    pub more: Option<Arc<EndpointMore>>,
}

/// What few endpoints have, apart, so that the many do not pay for it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct EndpointMore {
    /// Other addresses of the same endpoint, tried beside the first when that does not answer at once. Envoy
    /// `Endpoint.additional_addresses`, gRFC A61.
    pub addresses: Vec<SocketAddr>,
    /// What it says of itself. Envoy metadata `envoy.lb`.
    pub metadata: Metadata,
}

impl Endpoint {
    /// A healthy endpoint of weight 1 in plaintext, of which nothing else is known.
    pub fn at(address: EndpointAddress) -> Self {
        Self {
            address,
            weight: 1,
            health: Health::Healthy,
            mtls: false,
            workload: None,
            hostname: Name::default(),
            hash_key: None,
            more: None,
        }
    }

    /// Its other addresses.
    pub fn other_addresses(&self) -> &[SocketAddr] {
        self.more.as_ref().map_or(&[], |more| &more.addresses)
    }

    /// What it says of itself.
    pub fn metadata(&self) -> &[(Name, MetadataValue)] {
        self.more.as_ref().map_or(&[], |more| &more.metadata)
    }
}

impl From<SocketAddr> for Endpoint {
    /// A healthy endpoint of weight 1 in plaintext, of which nothing else is known: for clusters made in code.
    fn from(address: SocketAddr) -> Self {
        Self::at(EndpointAddress::Socket(address))
    }
}

/// Where an endpoint listens.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointAddress {
    /// An IP address and port.
    Socket(SocketAddr),
    /// A Unix domain socket. Envoy `Pipe`.
    Unix(String),
    /// A host to resolve by DNS, only of passthrough and DNS clusters.
    Host(String, u16),
}

impl std::fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// What the control plane says of an endpoint. Source: Envoy `HealthStatus`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Usable (`UNKNOWN`, `HEALTHY`).
    #[default]
    Healthy,
    /// Finishes what it has, gets nothing new.
    Draining,
    /// Not usable (`UNHEALTHY`, `TIMEOUT`).
    Unhealthy,
    /// Used when nothing better is left.
    Degraded,
}

/// Who a workload is: what its node metadata and its certificate say.
///
/// Source: Istio node metadata, `x-envoy-peer-metadata`, endpoint metadata `istio.workload`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Workload {
    /// `reviews-v1`.
    pub name: Name,
    /// `default`.
    pub namespace: Name,
    /// `bookinfo-reviews`.
    pub service_account: Name,
    /// `reviews`, by label `service.istio.io/canonical-name`, else `app`, else the workload's name.
    pub canonical_name: Name,
    /// `v1`, else `latest`.
    pub canonical_revision: Name,
    /// `Kubernetes`.
    pub cluster: Name,
    /// Label `app`.
    pub app: Name,
    /// Label `version`.
    pub version: Name,
}

/// The HTTP version spoken to the endpoints. Source: Envoy `HttpProtocolOptions`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1; Envoy's choice without options. gRPC requests use HTTP/2 all the same.
    #[default]
    Http1,
    /// HTTP/2.
    Http2,
    /// HTTP/2 where TLS agrees on it, else HTTP/1.1. Envoy `auto_config`.
    Auto,
    /// As the caller's request came: HTTP/2 as HTTP/2, else HTTP/1.1. Envoy `use_downstream_protocol_config`.
    Caller,
}

/// Limits of what is under way at once in a cluster. Source: Envoy `CircuitBreakers.Thresholds`; beyond is 503 `UO`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Thresholds {
    /// Envoy default 1024.
    pub max_connections: u32,
    /// Waiting for a connection. Envoy default 1024.
    pub max_pending_requests: u32,
    /// Envoy default 1024.
    pub max_requests: u32,
    /// Envoy default 3.
    pub max_retries: u32,
    /// Replaces `max_retries`: retries are a share of what is under way. Envoy `retry_budget`.
    pub retry_budget: Option<RetryBudget>,
    /// At one endpoint, so that a slow one cannot hold all of the cluster's. Ours, default no limit.
    pub max_requests_per_endpoint: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
            max_requests_per_endpoint: u32::MAX,
        }
    }
}

/// How many retries may be under way at once, by how many requests are. Source: Envoy `Thresholds.RetryBudget`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct RetryBudget {
    /// Of the requests under way or waiting for a connection. Envoy `budget_percent`, default 20.
    pub percent: f64,
    /// However few are. Envoy `min_retry_concurrency`, default 3.
    pub min_concurrency: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20.0, min_concurrency: 3 }
    }
}

/// TLS towards the endpoints of a cluster. Source: Envoy `transport_socket`, `transport_socket_matches`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TlsMode {
    /// Plaintext.
    #[default]
    Disable,
    /// Every endpoint.
    Always(Arc<UpstreamTls>),
    /// Endpoints whose [`Endpoint::mtls`] is set, plaintext to the others: Istio's auto-mTLS.
    IfEndpointCan(Arc<UpstreamTls>),
}

/// A TLS client context. Source: Envoy `UpstreamTlsContext`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct UpstreamTls {
    /// The server name sent (`outbound_.9080_.v1_.reviews.default.svc.cluster.local`); empty sends the host.
    pub sni: String,
    /// The endpoint's host name goes before `sni` where it has one. Envoy `auto_host_sni`.
    pub host_sni: bool,
    /// Offered protocols, in order.
    pub alpn: Vec<String>,
    /// Our own workload certificate is presented and the mesh's roots are trusted (SDS `default` and `ROOTCA`);
    /// false: `certificate` and `roots` say.
    pub workload_identity: bool,
    /// Any one must match a subject alternative name of the server. Empty with workload identity: any identity of the
    /// trust domain's roots; empty without: the host name, as web TLS does.
    pub subject_alt_names: Vec<StringMatch>,
    /// What is presented without workload identity; `None` is nothing. Istio `ClientTLSSettings.clientCertificate`,
    /// `privateKey`; SDS `file-cert:CHAIN~KEY`.
    pub certificate: Option<CertificateFiles>,
    /// A file of PEM certificates that are trusted without workload identity; `None` is the system's roots. Istio
    /// `ClientTLSSettings.caCertificates`; SDS `file-root:FILE`.
    pub roots: Option<String>,
    /// What is spoken.
    pub versions: TlsVersions,
}

/// A certificate in files of PEM, which are read again when they change.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct CertificateFiles {
    /// The chain, leaf first.
    pub chain: String,
    /// Its key.
    pub key: String,
}

/// Which versions of TLS are spoken. Source: Envoy `TlsParameters.tls_minimum_protocol_version`,
/// `tls_maximum_protocol_version`; Istio `meshMTLS.minProtocolVersion`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TlsVersions {
    /// TLS 1.3, and 1.2 with those who have no better. Nothing older is ever spoken.
    #[default]
    Both,
    /// TLS 1.2 alone.
    Only12,
    /// TLS 1.3 alone.
    Only13,
}

/// Labels of a workload.
pub type Labels = BTreeMap<String, String>;
