//! Endpoints. Source: Envoy `ClusterLoadAssignment`, validated as gRFC A27 asks (NR7).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use mesh_core::config::{
    DropOverload, Endpoint, EndpointAddress, EndpointMore, Endpoints, Health, Locality, LocalityEndpoints, Name,
    Workload,
};

use super::{
    read::{Ignored, Within, Wrong, wrong},
    subset,
    value::{encode_fraction, fraction, istio_metadata, metadata, structure, text, text_value},
};
use crate::proto::envoy::config::{
    core::v3::{
        self as core, Address, HealthStatus, HealthStatusSet, Metadata, Pipe, SocketAddress,
        address::Address as Kind,
        socket_address::{PortSpecifier, Protocol},
    },
    endpoint::v3::{
        ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints,
        cluster_load_assignment::{Policy, policy},
        endpoint::AdditionalAddress,
        lb_endpoint::HostIdentifier,
    },
};

/// Metadata key and value of an endpoint that takes Istio's mutual TLS.
pub(super) const TLS_MODE: (&str, &str) = ("tlsMode", "istio");
/// Metadata key of what an endpoint is known by to hashing policies. Source: gRFC A76.
const HASH_KEY: &str = "hash_key";
pub(super) const LB: &str = "envoy.lb";
const PLACE: &str = "endpoints.lb_endpoints";
const SOCKET_MATCH: &str = "envoy.transport_socket_match";

/// Localities and endpoints of one cluster: no process needs as many (OP15).
const MOST_ENDPOINTS: usize = 200_000;

/// The highest priority there may be. Source: Envoy `LocalityLbEndpoints.priority`.
const LAST_PRIORITY: u32 = 128;

pub(super) fn decode(body: &Bytes, name: &mut String, ignored: &mut Ignored) -> Result<Endpoints, Wrong> {
    let message: ClusterLoadAssignment = ignored.read(body, "")?;
    name.clone_from(&message.cluster_name);
    if name.is_empty() {
        return Err(wrong("cluster_name", "is missing"));
    }
    let mut endpoints = assignment(message, ignored)?;
    if ignored.is_grpc() {
        by_weight(&mut endpoints)?;
    }
    Ok(endpoints)
}

/// gRPC passes over localities that have no weight, and has nothing to do where a priority is left without any.
fn by_weight(endpoints: &mut Endpoints) -> Result<(), Wrong> {
    endpoints.localities.retain(|group| group.weight.is_some());
    let priorities: BTreeSet<u32> = endpoints.localities.iter().map(|group| group.priority).collect();
    match (0..).zip(priorities).find(|(expected, priority)| expected != priority) {
        Some((expected, _)) => Err(wrong("endpoints.priority", format!("{expected} has no locality with a weight"))),
        None => Ok(()),
    }
}

/// The endpoints of an assignment, in a resource of its own or within a cluster.
pub(super) fn assignment(message: ClusterLoadAssignment, ignored: &mut Ignored) -> Result<Endpoints, Wrong> {
    let count = message.endpoints.iter().map(|group| 1 + group.lb_endpoints.len()).sum::<usize>();
    if count > MOST_ENDPOINTS {
        let why = format!("have {count} localities and endpoints together, more than {MOST_ENDPOINTS}");
        return Err(wrong("endpoints", why));
    }
    let mut localities = Vec::with_capacity(message.endpoints.len());
    let mut told = Told::default();
    let mut seen = BTreeSet::new();
    let mut weights: BTreeMap<u32, u64> = BTreeMap::new();
    for (i, group) in message.endpoints.into_iter().enumerate() {
        let group = locality(group, &mut told, ignored).within(|| format!("endpoints[{i}]"))?;
        let sum = weights.entry(group.priority).or_default();
        *sum += u64::from(group.weight.unwrap_or(0));
        if *sum > u64::from(u32::MAX) {
            let why = format!("exceeds {} in sum at priority {}", u32::MAX, group.priority);
            return Err(wrong(format!("endpoints[{i}].load_balancing_weight"), why));
        }
        if !seen.insert((group.priority, group.locality.clone())) {
            return Err(wrong(format!("endpoints[{i}].locality"), "occurs twice at one priority"));
        }
        localities.push(group);
    }
    // Sorted and distinct, so they are contiguous from 0 exactly if each is its own place.
    for (expected, priority) in (0..).zip(weights.into_keys()) {
        if expected != priority {
            return Err(wrong("endpoints.priority", format!("{expected} is skipped: priorities count up from 0")));
        }
    }
    let policy = message.policy.unwrap_or_default();
    let mut drops = Vec::with_capacity(policy.drop_overloads.len());
    for (i, drop) in policy.drop_overloads.into_iter().enumerate() {
        let at = || format!("policy.drop_overloads[{i}].drop_percentage");
        let fraction = drop.drop_percentage.ok_or_else(|| wrong("", "is missing")).and_then(fraction).within(at)?;
        drops.push(DropOverload { category: drop.category.into(), fraction });
    }
    Ok(Endpoints {
        localities,
        overprovisioning: policy.overprovisioning_factor.unwrap_or(0),
        weighted_priority_health: policy.weighted_priority_health,
        drops,
    })
}

/// What the endpoints of an assignment have said so far.
#[derive(Default)]
struct Told {
    addresses: BTreeSet<EndpointAddress>,
    /// By description: those that say the same share one.
    workloads: BTreeMap<String, Option<Arc<Workload>>>,
}

impl Told {
    fn workload(&mut self, description: &str) -> Option<Arc<Workload>> {
        if let Some(known) = self.workloads.get(description) {
            return known.clone();
        }
        let workload = decode_workload(description).map(Arc::new);
        self.workloads.insert(description.to_owned(), workload.clone());
        workload
    }
}

fn locality(group: LocalityLbEndpoints, told: &mut Told, ignored: &mut Ignored) -> Result<LocalityEndpoints, Wrong> {
    if group.priority > LAST_PRIORITY {
        return Err(wrong("priority", format!("is {}, above {LAST_PRIORITY}", group.priority)));
    }
    let mut endpoints = Vec::with_capacity(group.lb_endpoints.len());
    let mut sum = 0_u64;
    for (i, message) in group.lb_endpoints.into_iter().enumerate() {
        let at = || format!("lb_endpoints[{i}]");
        let endpoint = endpoint(message, told, ignored).within(at)?;
        sum += u64::from(endpoint.weight);
        if sum > u64::from(u32::MAX) {
            return Err(wrong("load_balancing_weight", format!("exceeds {} in sum", u32::MAX))).within(at);
        }
        let others = endpoint.other_addresses().iter().map(|address| EndpointAddress::Socket(*address));
        for address in std::iter::once(endpoint.address.clone()).chain(others) {
            let text = address.to_string();
            if !told.addresses.insert(address) {
                return Err(wrong("endpoint.address", format!("{text} occurs twice"))).within(at);
            }
        }
        endpoints.push(endpoint);
    }
    let locality = group.locality.unwrap_or_default();
    Ok(LocalityEndpoints {
        locality: Locality {
            region: locality.region.into(),
            zone: locality.zone.into(),
            sub_zone: locality.sub_zone.into(),
        },
        priority: group.priority,
        weight: group.load_balancing_weight.filter(|weight| *weight > 0),
        endpoints,
    })
}

fn endpoint(message: LbEndpoint, told: &mut Told, ignored: &mut Ignored) -> Result<Endpoint, Wrong> {
    let weight = match message.load_balancing_weight {
        Some(0) => return Err(wrong("load_balancing_weight", "is 0; leave the endpoint out instead")),
        weight => weight.unwrap_or(1),
    };
    let health = health(message.health_status).under("health_status")?;
    let hash_key = metadata(message.metadata.as_ref(), LB).and_then(|fields| text(fields, HASH_KEY));
    let hash_key = hash_key.filter(|key| !key.is_empty()).map(Name::from);
    let Some(HostIdentifier::Endpoint(host)) = message.host_identifier else {
        return Err(wrong("endpoint", "is missing"));
    };
    let mtls = metadata(message.metadata.as_ref(), SOCKET_MATCH)
        .is_some_and(|fields| text(fields, TLS_MODE.0) == Some(TLS_MODE.1));
    let workload = metadata(message.metadata.as_ref(), "istio").and_then(|fields| text(fields, "workload"));
    let own = address(host.address).under("endpoint.address")?;
    let more = EndpointMore {
        addresses: other_addresses(host.additional_addresses, &own).under("endpoint")?,
        metadata: subset::metadata(message.metadata.as_ref(), &[HASH_KEY], PLACE, ignored),
    };
    Ok(Endpoint {
        address: own,
        weight,
        health,
        mtls,
        workload: workload.and_then(|description| told.workload(description)),
        hostname: host.hostname.into(),
        hash_key,
        more: (more != EndpointMore::default()).then(|| Arc::new(more)),
    })
}

/// Other addresses of one endpoint, of the same kind as its first: they are raced (gRFC A61).
fn other_addresses(messages: Vec<AdditionalAddress>, own: &EndpointAddress) -> Result<Vec<SocketAddr>, Wrong> {
    let mut addresses = Vec::with_capacity(messages.len());
    for (i, message) in messages.into_iter().enumerate() {
        let at = || format!("additional_addresses[{i}].address");
        match (address(message.address).within(at)?, own) {
            (EndpointAddress::Socket(other), EndpointAddress::Socket(_)) => addresses.push(other),
            _ => return Err(wrong("", "only IP addresses may have other addresses beside them")).within(at),
        }
    }
    Ok(addresses)
}

/// What a status says.
pub(super) fn health(status: i32) -> Result<Health, Wrong> {
    match HealthStatus::try_from(status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy) => Ok(Health::Healthy),
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) => Ok(Health::Unhealthy),
        Ok(HealthStatus::Draining) => Ok(Health::Draining),
        Ok(HealthStatus::Degraded) => Ok(Health::Degraded),
        Err(_) => Err(wrong("", format!("{status} is no health status"))),
    }
}

/// A set of statuses; what is healthy is said in both its forms.
pub(super) fn encode_statuses(healths: &[Health]) -> HealthStatusSet {
    let mut statuses = Vec::new();
    for health in healths {
        if *health == Health::Healthy {
            statuses.push(HealthStatus::Healthy.into());
        }
        statuses.push(status(*health).into());
    }
    HealthStatusSet { statuses }
}

fn status(health: Health) -> HealthStatus {
    match health {
        Health::Healthy => HealthStatus::Unknown,
        Health::Draining => HealthStatus::Draining,
        Health::Unhealthy => HealthStatus::Unhealthy,
        Health::Degraded => HealthStatus::Degraded,
    }
}

/// An address, which may be a host name: clusters resolved by DNS have those.
pub(super) fn address(address: Option<Address>) -> Result<EndpointAddress, Wrong> {
    match address.and_then(|address| address.address) {
        Some(Kind::SocketAddress(socket)) => {
            let (host, port) = socket_address(socket).under("socket_address")?;
            Ok(match host.parse::<IpAddr>() {
                Ok(ip) => EndpointAddress::Socket((ip, port).into()),
                Err(_) => EndpointAddress::Host(host, port),
            })
        }
        Some(Kind::Pipe(pipe)) => Ok(EndpointAddress::Unix(pipe.path)),
        None => Err(wrong("", "is missing or of a kind that is not supported")),
    }
}

/// Host and port to connect to.
pub(super) fn socket_address(socket: SocketAddress) -> Result<(String, u16), Wrong> {
    match local_address(socket)? {
        (_, 0) => Err(wrong("port_value", "is 0, not in 1..=65535")),
        address => Ok(address),
    }
}

/// Host and port of our own end: port 0 leaves it to the system.
pub(super) fn local_address(socket: SocketAddress) -> Result<(String, u16), Wrong> {
    if socket.protocol != i32::from(Protocol::Tcp) {
        return Err(wrong("protocol", "must be TCP"));
    }
    if socket.address.is_empty() {
        return Err(wrong("address", "is missing"));
    }
    match socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => {
            let port = u16::try_from(port).map_err(|_| wrong("port_value", format!("is {port}, not in 1..=65535")))?;
            Ok((socket.address, port))
        }
        None => Err(wrong("port_value", "is missing")),
    }
}

/// `workload;namespace;canonical name;canonical revision;cluster`, the last ones may be missing.
fn decode_workload(description: &str) -> Option<Workload> {
    let mut parts = description.split(';').map(Name::from);
    let mut next = || parts.next().unwrap_or_default();
    let workload = Workload {
        name: next(),
        namespace: next(),
        canonical_name: next(),
        canonical_revision: next(),
        cluster: next(),
        ..Workload::default()
    };
    (workload != Workload::default()).then_some(workload)
}

pub(super) fn encode(name: &str, endpoints: &Endpoints) -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: endpoints.localities.iter().map(encode_locality).collect(),
        policy: encode_policy(endpoints),
    }
}

fn encode_policy(endpoints: &Endpoints) -> Option<Policy> {
    let overload = |drop: &DropOverload| policy::DropOverload {
        category: drop.category.to_string(),
        drop_percentage: Some(encode_fraction(drop.fraction)),
    };
    let policy = Policy {
        overprovisioning_factor: (endpoints.overprovisioning > 0).then_some(endpoints.overprovisioning),
        weighted_priority_health: endpoints.weighted_priority_health,
        drop_overloads: endpoints.drops.iter().map(overload).collect(),
    };
    (policy != Policy::default()).then_some(policy)
}

fn encode_locality(group: &LocalityEndpoints) -> LocalityLbEndpoints {
    let Locality { region, zone, sub_zone } = &group.locality;
    let locality =
        core::Locality { region: region.to_string(), zone: zone.to_string(), sub_zone: sub_zone.to_string() };
    LocalityLbEndpoints {
        locality: (group.locality != Locality::default()).then_some(locality),
        lb_endpoints: group.endpoints.iter().map(encode_endpoint).collect(),
        load_balancing_weight: group.weight,
        priority: group.priority,
    }
}

fn encode_endpoint(endpoint: &Endpoint) -> LbEndpoint {
    let host = crate::proto::envoy::config::endpoint::v3::Endpoint {
        address: Some(encode_address(&endpoint.address)),
        hostname: endpoint.hostname.to_string(),
        additional_addresses: endpoint.other_addresses().iter().map(encode_other).collect(),
    };
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(host)),
        health_status: status(endpoint.health).into(),
        metadata: encode_metadata(endpoint),
        load_balancing_weight: Some(endpoint.weight),
    }
}

fn encode_other(address: &SocketAddr) -> AdditionalAddress {
    AdditionalAddress { address: Some(encode_address(&EndpointAddress::Socket(*address))) }
}

fn encode_metadata(endpoint: &Endpoint) -> Option<Metadata> {
    let workload = endpoint.workload.iter().map(|workload| {
        let Workload { name, namespace, canonical_name, canonical_revision, cluster, .. } = &**workload;
        let description = format!("{name};{namespace};{canonical_name};{canonical_revision};{cluster}");
        ("workload".to_owned(), text_value(description))
    });
    let mut metadata = istio_metadata(workload.collect());
    if endpoint.mtls {
        let tls_mode = structure([(TLS_MODE.0, text_value(TLS_MODE.1))]);
        metadata.get_or_insert_default().filter_metadata.insert(SOCKET_MATCH.to_owned(), tls_mode);
    }
    if let Some(key) = &endpoint.hash_key {
        let fields = structure([(HASH_KEY, text_value(&**key))]);
        metadata.get_or_insert_default().filter_metadata.insert(LB.to_owned(), fields);
    }
    if !endpoint.metadata().is_empty() {
        let lb = metadata.get_or_insert_default().filter_metadata.entry(LB.to_owned()).or_default();
        lb.fields.extend(subset::encode_metadata(endpoint.metadata()).fields);
    }
    metadata
}

pub(super) fn encode_address(address: &EndpointAddress) -> Address {
    let kind = match address {
        EndpointAddress::Socket(socket) => encode_socket_address(&socket.ip().to_string(), socket.port()),
        EndpointAddress::Host(host, port) => encode_socket_address(host, *port),
        EndpointAddress::Unix(path) => Kind::Pipe(Pipe { path: path.clone(), mode: 0 }),
    };
    Address { address: Some(kind) }
}

fn encode_socket_address(host: &str, port: u16) -> Kind {
    Kind::SocketAddress(SocketAddress {
        address: host.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(port.into())),
        ..SocketAddress::default()
    })
}
