//! Clusters. Source: Envoy `Cluster`.

use std::sync::Arc;

use bytes::Bytes;
use mesh_core::config::{
    Cluster, Discovery, DnsName, Endpoint, EndpointAddress, Endpoints, Health, LoadReports, LocalityEndpoints, Name,
    ServiceName, TlsMode,
};
use prost_types::{ListValue, Value, value::Kind};

use super::{
    balancer, breaker, connection, dns, endpoint, extra, health_check, outlier,
    read::{Ignored, Within, Wrong, wrong},
    subset, tls, value,
};
use crate::proto::{
    Any,
    envoy::{
        config::{
            cluster::v3::{
                Cluster as Message,
                cluster::{
                    ClusterDiscoveryType, CommonLbConfig, CustomClusterType, DiscoveryType, EdsClusterConfig, LbPolicy,
                    TransportSocketMatch,
                },
            },
            core::v3::{
                ApiVersion, ConfigSource, RoutingPriority, SelfConfigSource, TransportSocket,
                config_source::ConfigSourceSpecifier,
            },
            endpoint::v3::ClusterLoadAssignment,
        },
        extensions::clusters::aggregate::v3::ClusterConfig as AggregateConfig,
        r#type::v3::Percent,
    },
};

pub(super) fn decode(body: &Bytes, name: &mut String, ignored: &mut Ignored) -> Result<Cluster, Wrong> {
    let mut message: Message = ignored.read(body, "")?;
    name.clone_from(&message.name);
    if name.is_empty() {
        return Err(wrong("name", "is missing"));
    }
    let mut load_balancer = balancer::decode(&message, ignored)?;
    if ignored.is_grpc() {
        check_grpc(&message)?;
        // Without a list of policies localities are drawn by weight first (gRFC A27).
        load_balancer.by_locality |= message.load_balancing_policy.is_none();
    }
    let assignment = message.load_assignment.take();
    let (discovery, endpoints) = discovery(&message, assignment, ignored)?;
    let (protocol, connections) = connection::decode(&message, ignored)?;
    let (mut panic_threshold, override_host) = common(message.common_lb_config.as_ref())?;
    if ignored.is_grpc() {
        // An endpoint that is not healthy is never used.
        panic_threshold = 0;
    }
    let outlier = message.outlier_detection.as_ref();
    let mut cluster = Cluster {
        name: message.name.as_str().into(),
        service: service(&message),
        discovery,
        dns: dns::decode(&message, ignored)?,
        endpoints: Arc::new(endpoints),
        connect_timeout: value::positive(message.connect_timeout, "connect_timeout")?
            .unwrap_or_else(|| Cluster::default().connect_timeout),
        protocol,
        connections,
        thresholds: breaker::decode(message.circuit_breakers.as_ref(), RoutingPriority::Default, ignored)?,
        high_thresholds: breaker::decode(message.circuit_breakers.as_ref(), RoutingPriority::High, ignored)?,
        outlier_detection: outlier
            .map(|outlier| outlier::decode(outlier, ignored))
            .transpose()
            .under("outlier_detection")?,
        health_check: health_check::decode(&message.health_checks, ignored).under("health_checks")?.map(Arc::new),
        avoid_unreachable: true,
        tls: tls_mode(&message, ignored)?,
        panic_threshold,
        locality_weighted: load_balancer.by_locality,
        zone_aware: load_balancer.zone_aware.filter(|_| !load_balancer.by_locality),
        slow_start: load_balancer.slow_start,
        subset_size: load_balancer.subset_size,
        subsets: subset::decode(&message, ignored).under("lb_subset_config")?.map(Arc::new),
        hash: load_balancer.hash,
        override_host,
        load_balancer: load_balancer.choice,
        load_reports: load_reports(&message, ignored)?,
        failed: None,
        origin: value::origin(message.metadata.as_ref()),
    };
    extra::decode(message.metadata.as_ref(), &mut cluster, ignored)?;
    Ok(cluster)
}

fn discovery(
    message: &Message,
    assignment: Option<ClusterLoadAssignment>,
    ignored: &mut Ignored,
) -> Result<(Discovery, Endpoints), Wrong> {
    let kind = match &message.cluster_discovery_type {
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(kind)) => {
            DiscoveryType::try_from(*kind).map_err(|_| wrong("type", format!("{kind} is no cluster type")))?
        }
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            if let Some(any) = custom.typed_config.as_ref().filter(|any| any.is::<AggregateConfig>()) {
                let aggregate: AggregateConfig = ignored.open(any, "cluster_type.typed_config")?;
                if aggregate.clusters.is_empty() {
                    return Err(wrong("cluster_type.typed_config.clusters", "is empty"));
                }
                let names = aggregate.clusters.into_iter().map(Name::from).collect();
                return Ok((Discovery::Aggregate(names), Endpoints::default()));
            }
            return Err(wrong("cluster_type", format!("{:?} is not supported", custom.name)));
        }
    };
    match kind {
        DiscoveryType::Static => {
            let endpoints = endpoint::assignment(assignment.unwrap_or_default(), ignored);
            Ok((Discovery::Static, endpoints.under("load_assignment")?))
        }
        DiscoveryType::Eds => {
            let Some(eds) = &message.eds_cluster_config else {
                return Err(wrong("eds_cluster_config", "is missing in a cluster of type EDS"));
            };
            value::is_over_ads(eds.eds_config.as_ref(), "eds_cluster_config.eds_config")?;
            let name = if eds.service_name.is_empty() { &message.name } else { &eds.service_name };
            Ok((Discovery::Eds(name.as_str().into()), Endpoints::default()))
        }
        DiscoveryType::StrictDns => {
            let names = dns_names(assignment.unwrap_or_default(), ignored).under("load_assignment")?;
            Ok((Discovery::StrictDns(names), Endpoints::default()))
        }
        DiscoveryType::LogicalDns => {
            let names = dns_names(assignment.unwrap_or_default(), ignored).under("load_assignment")?;
            match <[DnsName; 1]>::try_from(names) {
                Ok([name]) => Ok((Discovery::LogicalDns(name), Endpoints::default())),
                Err(names) => {
                    let why = format!("has {} endpoints; a cluster of type LOGICAL_DNS has exactly one", names.len());
                    Err(wrong("load_assignment", why))
                }
            }
        }
        DiscoveryType::OriginalDst => Ok((Discovery::OriginalDestination, Endpoints::default())),
    }
}

/// What gRPC refuses a cluster for. Source: gRFC A27, A37, A47.
fn check_grpc(message: &Message) -> Result<(), Wrong> {
    match &message.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind))
            if [i32::from(DiscoveryType::Eds), DiscoveryType::LogicalDns.into()].contains(kind) => {}
        Some(ClusterDiscoveryType::ClusterType(_)) => {}
        _ => return Err(wrong("type", "must be EDS, LOGICAL_DNS or an aggregate cluster")),
    }
    let policies = [LbPolicy::RoundRobin, LbPolicy::LeastRequest, LbPolicy::RingHash].map(i32::from);
    if message.load_balancing_policy.is_none() && !policies.contains(&message.lb_policy) {
        return Err(wrong("lb_policy", "must be ROUND_ROBIN, LEAST_REQUEST or RING_HASH"));
    }
    let eds_name = message.eds_cluster_config.as_ref().map(|eds| eds.service_name.as_str());
    if eds_name == Some("") && message.name.starts_with("xdstp:") {
        return Err(wrong("eds_cluster_config.service_name", "is missing, and the cluster's name is an xdstp name"));
    }
    Ok(())
}

/// Loads are reported to whom the cluster comes from, or nowhere.
fn load_reports(message: &Message, ignored: &mut Ignored) -> Result<Option<Arc<LoadReports>>, Wrong> {
    let Some(source) = &message.lrs_server else {
        if !message.lrs_report_endpoint_metrics.is_empty() {
            ignored.add("", "lrs_report_endpoint_metrics");
        }
        return Ok(None);
    };
    if !matches!(source.config_source_specifier, Some(ConfigSourceSpecifier::Self_(_))) {
        if ignored.is_grpc() {
            return Err(wrong("lrs_server", "must be `self`: loads are reported to whom the cluster comes from"));
        }
        ignored.add("", "lrs_server");
        return Ok(None);
    }
    let (metrics, unknown): (Vec<_>, Vec<_>) =
        message.lrs_report_endpoint_metrics.iter().cloned().partition(|metric| LoadReports::knows(metric));
    if !unknown.is_empty() {
        ignored.add("", "lrs_report_endpoint_metrics");
    }
    Ok(Some(Arc::new(LoadReports { metrics })))
}

fn encode_load_reports(cluster: &Cluster) -> (Option<ConfigSource>, Vec<String>) {
    cluster.load_reports.as_ref().map_or_else(Default::default, |reports| {
        let own = ConfigSourceSpecifier::Self_(SelfConfigSource { transport_api_version: ApiVersion::V3.into() });
        (Some(ConfigSource { config_source_specifier: Some(own), ..ConfigSource::default() }), reports.metrics.clone())
    })
}

fn dns_names(assignment: ClusterLoadAssignment, ignored: &mut Ignored) -> Result<Vec<DnsName>, Wrong> {
    // Weights and metadata of names are not kept.
    let endpoints = endpoint::assignment(assignment, ignored)?;
    let endpoints = endpoints.localities.into_iter().flat_map(|locality| locality.endpoints);
    endpoints
        .map(|endpoint| match endpoint.address {
            EndpointAddress::Host(host, port) => Ok((host, port)),
            EndpointAddress::Socket(socket) => Ok((socket.ip().to_string(), socket.port())),
            EndpointAddress::Unix(_) => Err(wrong("endpoints", "a Unix socket is no DNS name")),
        })
        .collect()
}

fn service(message: &Message) -> Option<ServiceName> {
    let fields = value::metadata(message.metadata.as_ref(), "istio")?;
    let Some(Kind::ListValue(services)) = &fields.get("services")?.kind else { return None };
    let Some(Kind::StructValue(first)) = &services.values.first()?.kind else { return None };
    let part = |key| Name::from(value::text(&first.fields, key).unwrap_or_default());
    Some(ServiceName { host: part("host"), name: part("name"), namespace: part("namespace") })
}

/// Panic threshold in percent, and whether the weights of localities count.
fn common(config: Option<&CommonLbConfig>) -> Result<(u32, Vec<Health>), Wrong> {
    let default = Cluster::default();
    let Some(config) = config else { return Ok((default.panic_threshold, default.override_host)) };
    let panic_threshold = match config.healthy_panic_threshold {
        None => default.panic_threshold,
        // Whole percent only; the fraction is cut off (LO3).
        Some(Percent { value }) if (0.0..=100.0).contains(&value) => value as u32,
        Some(Percent { value }) => {
            return Err(wrong("common_lb_config.healthy_panic_threshold", format!("{value} is no percentage")));
        }
    };
    let override_host = match &config.override_host_status {
        None => default.override_host,
        Some(set) => {
            let mut kept = Vec::new();
            for status in &set.statuses {
                let health = endpoint::health(*status).under("common_lb_config.override_host_status")?;
                if !kept.contains(&health) {
                    kept.push(health);
                }
            }
            kept
        }
    };
    Ok((panic_threshold, override_host))
}

fn tls_mode(message: &Message, ignored: &mut Ignored) -> Result<TlsMode, Wrong> {
    let socket = |socket: Option<&TransportSocket>, place: &'static str, ignored: &mut Ignored| {
        socket.map_or(Ok(None), |socket| tls::upstream(socket, place, ignored))
    };
    let mut otherwise =
        socket(message.transport_socket.as_ref(), "transport_socket", ignored).under("transport_socket")?;
    let mut if_able = None;
    for (i, candidate) in message.transport_socket_matches.iter().enumerate() {
        const PLACE: &str = "transport_socket_matches.transport_socket";
        let at = || super::read::element("transport_socket_matches", i, &candidate.name);
        let context =
            socket(candidate.transport_socket.as_ref(), PLACE, ignored).under("transport_socket").within(at)?;
        let fields = candidate.r#match.as_ref().map(|fields| &fields.fields);
        match fields {
            Some(fields)
                if fields.len() == 1 && value::text(fields, endpoint::TLS_MODE.0) == Some(endpoint::TLS_MODE.1) =>
            {
                if_able.get_or_insert(context);
            }
            // Every endpoint: nothing behind it is ever looked at.
            Some(fields) if !fields.is_empty() => {
                return Err(wrong("match", "only {tlsMode: istio} and {} are supported")).within(at);
            }
            _ => {
                otherwise = context;
                break;
            }
        }
    }
    match (if_able, otherwise) {
        (None | Some(None), None) => Ok(TlsMode::Disable),
        (None, Some(tls)) => Ok(TlsMode::Always(tls)),
        (Some(Some(tls)), None) => Ok(TlsMode::IfEndpointCan(tls)),
        (Some(Some(tls)), Some(other)) if tls == other => Ok(TlsMode::Always(tls)),
        (Some(_), Some(_)) => {
            let why = "two kinds of TLS in one cluster are not supported: one of them must be plaintext";
            Err(wrong("transport_socket_matches", why))
        }
    }
}

pub(super) fn encode(cluster: &Cluster) -> Message {
    let (kind, eds, assignment) = encode_discovery(cluster);
    let (socket, matches) = encode_tls(&cluster.tls);
    let balancer = balancer::encode(cluster);
    let (lrs_server, lrs_report_endpoint_metrics) = encode_load_reports(cluster);
    let mut message = Message {
        name: cluster.name.to_string(),
        cluster_discovery_type: Some(kind),
        eds_cluster_config: eds,
        load_assignment: assignment,
        connect_timeout: Some(value::encode_duration(cluster.connect_timeout)),
        lb_policy: balancer.policy.into(),
        lb_config: balancer.config,
        lb_subset_config: cluster.subsets.as_ref().map(|subsets| subset::encode(subsets)),
        load_balancing_policy: balancer.list,
        circuit_breakers: Some(breaker::encode(&cluster.thresholds, &cluster.high_thresholds)),
        typed_extension_protocol_options: connection::encode_http(cluster),
        outlier_detection: cluster.outlier_detection.as_ref().map(outlier::encode),
        health_checks: cluster.health_check.iter().map(|check| health_check::encode(check)).collect(),
        common_lb_config: Some(CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: cluster.panic_threshold.into() }),
            override_host_status: (cluster.override_host != Cluster::default().override_host)
                .then(|| endpoint::encode_statuses(&cluster.override_host)),
            ..balancer.common
        }),
        transport_socket: socket,
        transport_socket_matches: matches,
        metadata: encode_metadata(cluster),
        lrs_server,
        lrs_report_endpoint_metrics,
        ..Message::default()
    };
    connection::encode(&cluster.connections, &mut message);
    dns::encode(cluster, &mut message);
    message
}

type Found = (ClusterDiscoveryType, Option<EdsClusterConfig>, Option<ClusterLoadAssignment>);

fn encode_discovery(cluster: &Cluster) -> Found {
    let of_type = |kind: DiscoveryType| ClusterDiscoveryType::Type(kind.into());
    match &cluster.discovery {
        Discovery::Static => {
            (of_type(DiscoveryType::Static), None, Some(endpoint::encode(&cluster.name, &cluster.endpoints)))
        }
        Discovery::Eds(name) => {
            let service_name = if *name == cluster.name { String::new() } else { name.to_string() };
            let config = EdsClusterConfig { eds_config: Some(value::over_ads()), service_name };
            (of_type(DiscoveryType::Eds), Some(config), None)
        }
        Discovery::StrictDns(names) => {
            (of_type(DiscoveryType::StrictDns), None, Some(encode_dns(&cluster.name, names)))
        }
        Discovery::LogicalDns(name) => {
            (of_type(DiscoveryType::LogicalDns), None, Some(encode_dns(&cluster.name, std::slice::from_ref(name))))
        }
        Discovery::OriginalDestination => (of_type(DiscoveryType::OriginalDst), None, None),
        Discovery::Aggregate(names) => {
            let config = AggregateConfig { clusters: names.iter().map(ToString::to_string).collect() };
            let name = "envoy.clusters.aggregate".to_owned();
            let custom = CustomClusterType { name, typed_config: Some(Any::pack(&config)) };
            (ClusterDiscoveryType::ClusterType(custom), None, None)
        }
    }
}

fn encode_dns(cluster: &str, names: &[DnsName]) -> ClusterLoadAssignment {
    let endpoints = names.iter().map(|(host, port)| Endpoint::at(EndpointAddress::Host(host.clone(), *port)));
    let locality = LocalityEndpoints { endpoints: endpoints.collect(), ..LocalityEndpoints::default() };
    endpoint::encode(cluster, &Endpoints { localities: vec![locality], ..Default::default() })
}

fn encode_tls(mode: &TlsMode) -> (Option<TransportSocket>, Vec<TransportSocketMatch>) {
    match mode {
        TlsMode::Disable => (None, Vec::new()),
        TlsMode::Always(context) => (Some(tls::encode_upstream(context)), Vec::new()),
        TlsMode::IfEndpointCan(context) => {
            let able = value::structure([(endpoint::TLS_MODE.0, value::text_value(endpoint::TLS_MODE.1))]);
            let istio = TransportSocketMatch {
                name: "tlsMode-istio".to_owned(),
                r#match: Some(able),
                transport_socket: Some(tls::encode_upstream(context)),
            };
            let disabled = TransportSocketMatch {
                name: "tlsMode-disabled".to_owned(),
                r#match: Some(value::structure([])),
                transport_socket: Some(tls::encode_plaintext()),
            };
            (None, vec![istio, disabled])
        }
    }
}

fn encode_metadata(cluster: &Cluster) -> Option<crate::proto::envoy::config::core::v3::Metadata> {
    let service = cluster.service.as_ref().map(|service| {
        let service = value::structure([
            ("host", value::text_value(&*service.host)),
            ("name", value::text_value(&*service.name)),
            ("namespace", value::text_value(&*service.namespace)),
        ]);
        let list = ListValue { values: vec![Value { kind: Some(Kind::StructValue(service)) }] };
        ("services".to_owned(), Value { kind: Some(Kind::ListValue(list)) })
    });
    let origin = cluster.origin.as_ref().map(|origin| ("config".to_owned(), value::encode_origin(origin)));
    let mut metadata = value::istio_metadata(service.into_iter().chain(origin).collect());
    if let Some((key, fields)) = extra::encode(cluster) {
        metadata.get_or_insert_default().filter_metadata.insert(key, fields);
    }
    metadata
}
