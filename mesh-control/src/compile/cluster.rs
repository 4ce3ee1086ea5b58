//! Clusters: one for each port of each service, and one more for each subset.
//!
//! Policies of a destination rule are merged field by field: subset over port over rule, as Istio does.
//! Source: istiod `pilot/pkg/networking/core/cluster*.go`, `MergeTrafficPolicy`.

use std::sync::Arc;

use mesh_core::config::{
    Cluster, Discovery, Endpoint, Labels, LoadBalancer, Name, Protocol, ServiceName, StringMatch, Thresholds, TlsMode,
    UpstreamTls,
};

use super::{NodeInfo, World, locate, visible, world::Service};
use crate::kinds::{
    Choice, H2Upgrade, Key, Object, PortProtocol, Resolution, ServicePort, Settings, Spec, Subset, Tls, TlsKind,
    TrafficPolicy,
};

/// Requests to hosts nobody defined, sent where their own name says.
pub(crate) const PASSTHROUGH: &str = "PassthroughCluster";

/// Requests that go nowhere.
pub(crate) const BLACK_HOLE: &str = "BlackHoleCluster";

/// `outbound|9080|v1|reviews.default.svc.cluster.local`.
pub(crate) fn cluster_name(host: &str, port: u16, subset: &str) -> Name {
    format!("outbound|{port}|{subset}|{host}").into()
}

/// The destination rule of a host for a caller, several objects merged into one.
#[derive(Debug, Default)]
pub(crate) struct Rule<'w> {
    /// The first object with a policy, else the first.
    pub(crate) origin: Option<&'w Key>,
    policy: Option<&'w TrafficPolicy>,
    pub(crate) subsets: Vec<&'w Subset>,
}

/// The rule for a host: of the caller's namespace, else of the service's, else of the root namespace; the most specific
/// host of the first of these that has any.
pub(crate) fn rule<'w>(world: &'w World, node: &NodeInfo, service: &Service) -> Rule<'w> {
    let root = world.mesh.root_namespace.as_str();
    let own = (node.namespace != root).then_some(node.namespace.as_str());
    for namespace in own.into_iter().chain([&*service.namespace, root]) {
        let found = rules_in(world, node, service, namespace);
        let Some(best) = found.iter().map(|(specific, _)| *specific).max() else { continue };
        let mut rule = Rule::default();
        let chosen = found.into_iter().filter(|(specific, _)| *specific == best).map(|(_, object)| object);
        for object in chosen {
            let Spec::DestinationRule(spec) = &object.spec else { continue };
            rule.origin.get_or_insert(&object.key);
            if rule.policy.is_none() && spec.policy != TrafficPolicy::default() {
                rule.policy = Some(&spec.policy);
                rule.origin = Some(&object.key);
            }
            for subset in &spec.subsets {
                if !rule.subsets.iter().any(|other| other.name == subset.name) {
                    rule.subsets.push(subset);
                }
            }
        }
        return rule;
    }
    Rule::default()
}

/// Rules of one namespace that fit, oldest first; those that name their callers come before those for all.
fn rules_in<'w>(
    world: &'w World,
    node: &NodeInfo,
    service: &Service,
    namespace: &str,
) -> Vec<((bool, usize), &'w Arc<Object>)> {
    world
        .by_age
        .iter()
        .filter(|object| object.key.namespace == namespace)
        .filter_map(|object| {
            let Spec::DestinationRule(spec) = &object.spec else { return None };
            if !visible(&spec.export_to, namespace, &node.namespace) {
                return None;
            }
            let for_callers = match &spec.callers {
                Some(labels) if namespace != node.namespace || !super::world::includes(&node.labels, labels) => {
                    return None;
                }
                callers => callers.is_some(),
            };
            let host = world.resolve(&spec.host, namespace);
            let specific = super::specificity(&host, &service.host)?;
            Some(((for_callers, specific), object))
        })
        .collect()
}

/// The clusters of a service for a caller.
pub(crate) fn of_service(world: &World, node: &NodeInfo, service: &Service) -> Vec<Arc<Cluster>> {
    let rule = rule(world, node, service);
    let mut clusters = Vec::new();
    for port in &service.ports {
        clusters.push(Arc::new(cluster(world, node, service, port, &rule, None)));
        for subset in &rule.subsets {
            clusters.push(Arc::new(cluster(world, node, service, port, &rule, Some(subset))));
        }
    }
    clusters
}

/// Clusters every workload has.
pub(crate) fn special(world: &World) -> [Arc<Cluster>; 2] {
    let base = Cluster { connect_timeout: world.mesh.connect_timeout, thresholds: UNLIMITED, ..Cluster::default() };
    let passthrough = Cluster { name: PASSTHROUGH.into(), discovery: Discovery::OriginalDestination, ..base.clone() };
    [Arc::new(Cluster { name: BLACK_HOLE.into(), ..base }), Arc::new(passthrough)]
}

/// Istio lifts Envoy's limits unless a destination rule sets its own.
const UNLIMITED: Thresholds = Thresholds {
    max_connections: u32::MAX,
    max_pending_requests: u32::MAX,
    max_requests: u32::MAX,
    max_retries: u32::MAX,
    retry_budget: None,
    max_requests_per_endpoint: u32::MAX,
};

fn cluster(
    world: &World,
    node: &NodeInfo,
    service: &Service,
    port: &ServicePort,
    rule: &Rule<'_>,
    subset: Option<&Subset>,
) -> Cluster {
    let subset_name = subset.map_or("", |subset| subset.name.as_str());
    let everything = Labels::new();
    let labels = subset.map_or(&everything, |subset| &subset.labels);
    let name = cluster_name(&service.host, port.number, subset_name);
    let settings = effective(rule.policy, subset.map(|subset| &subset.policy), port.number);
    let pool = settings.pool.unwrap_or_default();
    let limit = |limit: Option<u32>| limit.unwrap_or(u32::MAX);
    let http2 = match pool.h2_upgrade {
        H2Upgrade::Upgrade => true,
        // A port declared as HTTP/2 stays so: the policy is about HTTP/1.1 ports.
        H2Upgrade::Default | H2Upgrade::DoNotUpgrade => port.protocol == PortProtocol::Http2,
    };
    let mut load_balancer = LoadBalancer::default();
    let mut passthrough = service.resolution == Resolution::None;
    let balancing = settings.balancing.unwrap_or_default();
    match balancing.choice {
        Some(Choice::Among(chosen)) => load_balancer = chosen,
        Some(Choice::Passthrough) => passthrough = true,
        None => {}
    }
    let mut locality_weighted = false;
    let mut endpoints = Default::default();
    let discovery = match service.resolution {
        _ if passthrough => Discovery::OriginalDestination,
        Resolution::Dns => Discovery::StrictDns(service.dns_names(port, labels)),
        Resolution::DnsRoundRobin => match service.dns_names(port, labels).into_iter().next() {
            Some(name) => Discovery::LogicalDns(name),
            None => Discovery::Static,
        },
        Resolution::Static | Resolution::None => {
            let mut known = service.endpoints(world, port, labels);
            let from = locate::From { locality: &node.locality, labels: &node.labels };
            let (setting, detects) = (balancing.locating.as_ref(), settings.outlier.is_some());
            let of = |endpoint: &Endpoint| service.labels_of(endpoint);
            locality_weighted = locate::locate(&mut known, of, from, setting, detects);
            endpoints = Arc::new(known);
            Discovery::Eds(name.clone())
        }
    };
    let tls = tls(world, service, port, subset_name, http2, settings.tls.as_ref());
    Cluster {
        service: Some(ServiceName {
            host: service.host.clone(),
            name: service.name.clone(),
            namespace: service.namespace.clone(),
        }),
        discovery,
        endpoints,
        load_balancer,
        // Envoy's place for it since hash policies can be a cluster's: every route to it hashes alike.
        hash: balancing.hash,
        slow_start: balancing.warmup,
        locality_weighted,
        connect_timeout: pool.connect_timeout.unwrap_or(world.mesh.connect_timeout),
        protocol: match (pool.client_protocol, http2) {
            (true, _) => Protocol::Caller,
            (false, true) => Protocol::Http2,
            (false, false) => Protocol::Http1,
        },
        connections: pool.connections,
        thresholds: Thresholds {
            max_connections: limit(pool.max_connections),
            max_pending_requests: limit(pool.max_pending_requests),
            max_requests: limit(pool.max_requests),
            max_retries: limit(pool.max_retries),
            retry_budget: settings.retry_budget,
            ..UNLIMITED
        },
        panic_threshold: settings.outlier.as_ref().map_or(50, |(_, healthy)| *healthy),
        outlier_detection: settings.outlier.map(|(outlier, _)| outlier),
        tls,
        origin: rule.origin.map(|key| format!("destination-rule/{}/{}", key.namespace, key.name).into()),
        name,
        ..Cluster::default()
    }
}

/// The settings that count for a port of a subset.
fn effective(rule: Option<&TrafficPolicy>, subset: Option<&TrafficPolicy>, port: u16) -> Settings {
    let of_port = |policy: &TrafficPolicy| {
        policy.ports.iter().find(|(number, _)| *number == port).map(|(_, settings)| settings.clone())
    };
    // A port's settings replace the rule's as a set: what they leave open is the default, not the rule's.
    let mut settings =
        rule.map(|policy| of_port(policy).unwrap_or_else(|| policy.settings.clone())).unwrap_or_default();
    // The budget is no setting of ports.
    settings.retry_budget = rule.and_then(|policy| policy.settings.retry_budget);
    let Some(subset) = subset else { return settings };
    let retry_budget = subset.settings.retry_budget.or(settings.retry_budget);
    if let Some(whole) = of_port(subset) {
        return Settings { retry_budget, ..whole };
    }
    let Settings { balancing, pool, outlier, tls, .. } = subset.settings.clone();
    settings.balancing = balancing.or(settings.balancing);
    settings.pool = pool.or(settings.pool);
    settings.outlier = outlier.or(settings.outlier);
    settings.retry_budget = retry_budget;
    settings.tls = tls.or(settings.tls);
    settings
}

fn tls(
    world: &World,
    service: &Service,
    port: &ServicePort,
    subset: &str,
    http2: bool,
    settings: Option<&Tls>,
) -> TlsMode {
    // The name asked for, and those that may answer, follow from the service unless a rule says others, as to a gateway.
    let mutual = |said: Option<&Tls>| {
        let said_sni = said.map_or("", |tls| tls.sni.as_str());
        let said_names = said.map_or(&[][..], |tls| tls.subject_alt_names.as_slice());
        let alpn: &[&str] = if http2 { &["istio-h2", "istio", "h2"] } else { &["istio-http/1.1", "istio", "http/1.1"] };
        Arc::new(UpstreamTls {
            sni: match said_sni {
                "" => format!("outbound_.{}_.{subset}_.{}", port.number, service.host),
                sni => sni.to_owned(),
            },
            alpn: alpn.iter().map(|&protocol| protocol.to_owned()).collect(),
            workload_identity: true,
            subject_alt_names: match said_names {
                [] => service.accounts.iter().map(|name| exact(name)).collect(),
                names => names.iter().map(|name| exact(name)).collect(),
            },
            ..UpstreamTls::default()
        })
    };
    match settings {
        None if world.mesh.auto_mtls && !service.external => TlsMode::IfEndpointCan(mutual(None)),
        None => TlsMode::Disable,
        Some(tls) => match tls.kind {
            TlsKind::Disable => TlsMode::Disable,
            TlsKind::IstioMutual => TlsMode::Always(mutual(Some(tls))),
            TlsKind::Simple | TlsKind::Mutual => TlsMode::Always(Arc::new(UpstreamTls {
                sni: match tls.sni.as_str() {
                    // As web TLS does, and not the address of whichever endpoint it is.
                    "" if !service.host.contains('*') => service.host.to_string(),
                    sni => sni.to_owned(),
                },
                host_sni: tls.sni.is_empty() && service.host.contains('*'),
                alpn: vec![if http2 { "h2" } else { "http/1.1" }.to_owned()],
                workload_identity: false,
                subject_alt_names: match tls.subject_alt_names.as_slice() {
                    // What the entry of an outside service says of its certificates.
                    [] if service.external => service.accounts.iter().map(|name| exact(name)).collect(),
                    names => names.iter().map(|name| exact(name)).collect(),
                },
                certificate: tls.certificate.clone(),
                roots: tls.roots.clone(),
                ..UpstreamTls::default()
            })),
        },
    }
}

fn exact(value: &str) -> StringMatch {
    StringMatch::Exact { value: value.to_owned(), ignore_case: false }
}
