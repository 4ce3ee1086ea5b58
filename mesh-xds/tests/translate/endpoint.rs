//! Rules of endpoint assignments.

use mesh_core::config::{EndpointAddress, Endpoints, Health};
use mesh_xds::{
    proto::envoy::config::{
        core::v3::{Address, HealthStatus, Pipe, SocketAddress, address, socket_address::PortSpecifier},
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, cluster_load_assignment::Policy,
            endpoint::AdditionalAddress, lb_endpoint::HostIdentifier,
        },
    },
    translate,
};

use crate::body;

fn endpoint(host: &str, port: u32) -> LbEndpoint {
    let socket = SocketAddress {
        address: host.into(),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..SocketAddress::default()
    };
    let address = Address { address: Some(address::Address::SocketAddress(socket)) };
    let host = Endpoint { address: Some(address), ..Endpoint::default() };
    LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(host)), ..LbEndpoint::default() }
}

fn locality(zone: &str, priority: u32, endpoints: Vec<LbEndpoint>) -> LocalityLbEndpoints {
    let locality = mesh_xds::proto::envoy::config::core::v3::Locality { zone: zone.into(), ..Default::default() };
    LocalityLbEndpoints { locality: Some(locality), priority, lb_endpoints: endpoints, ..Default::default() }
}

fn decode(endpoints: Vec<LocalityLbEndpoints>) -> Result<Endpoints, String> {
    let message = ClusterLoadAssignment { cluster_name: "c".into(), endpoints, policy: None };
    let decoded = translate::endpoints(&body(&message)).map_err(|error| error.to_string())?;
    assert_eq!(&*decoded.name, "c");
    Ok((*decoded.value).clone())
}

fn weighing(weight: u32, endpoint: LbEndpoint) -> LbEndpoint {
    LbEndpoint { load_balancing_weight: Some(weight), ..endpoint }
}

/// NR7, LB21: gaps, repetitions and weights beyond bounds are refused, each by name.
#[test]
fn broken_assignments_are_refused() {
    let weighted =
        |weight, zone| LocalityLbEndpoints { load_balancing_weight: Some(weight), ..locality(zone, 0, vec![]) };
    let a = || endpoint("10.0.0.1", 80);
    let cases = [
        (vec![locality("a", 1, vec![])], "endpoints.priority", "0 is skipped"),
        (vec![locality("a", 0, vec![]), locality("a", 2, vec![])], "endpoints.priority", "1 is skipped"),
        (vec![locality("a", 129, vec![])], "endpoints[0].priority", "above 128"),
        (vec![locality("a", 0, vec![]), locality("a", 0, vec![])], "endpoints[1].locality", "occurs twice"),
        (vec![weighted(u32::MAX, "a"), weighted(1, "b")], "endpoints[1].load_balancing_weight", "exceeds"),
        (
            vec![locality("a", 0, vec![a(), a()])],
            "endpoints[0].lb_endpoints[1].endpoint.address",
            "10.0.0.1:80 occurs twice",
        ),
        (
            vec![locality("a", 0, vec![a()]), locality("b", 0, vec![a()])],
            "endpoints[1].lb_endpoints[0].endpoint.address",
            "occurs twice",
        ),
        (vec![locality("a", 0, vec![weighing(0, a())])], "endpoints[0].lb_endpoints[0].load_balancing_weight", "is 0"),
        (
            vec![locality("a", 0, vec![weighing(u32::MAX, a()), weighing(1, endpoint("10.0.0.2", 80))])],
            "endpoints[0].lb_endpoints[1].load_balancing_weight",
            "exceeds",
        ),
        (
            vec![locality("a", 0, vec![endpoint("10.0.0.1", 70_000)])],
            "endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value",
            "70000",
        ),
        (vec![locality("a", 0, vec![LbEndpoint::default()])], "endpoints[0].lb_endpoints[0].endpoint", "missing"),
    ];
    for (message, field, why) in cases {
        let error = decode(message).unwrap_err();
        assert!(error.starts_with(&format!("EDS \"c\": field {field}: ")) && error.contains(why), "{error}");
    }
}

/// NR7: one locality may stand at several priorities, and the order of the list does not matter.
#[test]
fn priorities_may_come_in_any_order() {
    let good = decode(vec![
        locality("a", 1, vec![endpoint("10.0.0.2", 80)]),
        locality("a", 0, vec![endpoint("10.0.0.1", 80)]),
    ]);
    assert_eq!(good.unwrap().localities.len(), 2);
}

/// NR9, NR16: an IP address may have others beside it, none twice; a socket without a name on the network may not.
#[test]
fn other_addresses_are_read() {
    let of = |address: address::Address| Some(Address { address: Some(address) });
    let with = |own: LbEndpoint, others: &[LbEndpoint]| {
        let inner = |endpoint: LbEndpoint| match endpoint.host_identifier {
            Some(HostIdentifier::Endpoint(host)) => host,
            None => Endpoint::default(),
        };
        let additional_addresses =
            others.iter().map(|other| AdditionalAddress { address: inner(other.clone()).address }).collect();
        let host = Endpoint { additional_addresses, ..inner(own) };
        LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(host)), ..LbEndpoint::default() }
    };
    let (a, b) = (endpoint("10.0.0.1", 80), endpoint("fd00::1", 80));
    let good = decode(vec![locality("a", 0, vec![with(a.clone(), std::slice::from_ref(&b))])]).unwrap();
    let read = &good.localities[0].endpoints[0];
    assert_eq!(read.other_addresses(), ["[fd00::1]:80".parse().unwrap()]);
    let twice = decode(vec![locality("a", 0, vec![with(a.clone(), std::slice::from_ref(&a))])]).unwrap_err();
    assert!(
        twice.contains("lb_endpoints[0].endpoint.address") && twice.contains("10.0.0.1:80 occurs twice"),
        "{twice}"
    );
    let name = decode(vec![locality("a", 0, vec![with(a, &[endpoint("a.test", 80)])])]).unwrap_err();
    assert!(name.contains("additional_addresses[0].address: only IP addresses"), "{name}");
    let pipe = Pipe { path: "@x".into(), mode: 0 };
    let host = Endpoint { address: of(address::Address::Pipe(pipe)), ..Endpoint::default() };
    let pipe = LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(host)), ..LbEndpoint::default() };
    let read = decode(vec![locality("a", 0, vec![pipe.clone()])]).unwrap();
    assert_eq!(read.localities[0].endpoints[0].address, EndpointAddress::Unix("@x".into()));
    assert!(decode(vec![locality("a", 0, vec![with(pipe, &[b])])]).unwrap_err().contains("only IP addresses"));
    // Envoy's own kind of address within one process, and whatever else there may be.
    let host = Endpoint { address: Some(Address { address: None }), ..Endpoint::default() };
    let strange = LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(host)), ..LbEndpoint::default() };
    let error = decode(vec![locality("a", 0, vec![strange])]).unwrap_err();
    assert!(error.contains("of a kind that is not supported"), "{error}");
}

/// NR10: what endpoints say of themselves is kept by key; metadata of types that are not known, and of other owners, is passed over.
#[test]
fn metadata_is_read() {
    use mesh_core::config::MetadataValue;
    use prost_types::{Struct, Value, value::Kind};

    let value = |kind| Value { kind: Some(kind) };
    let fields = [
        ("hash_key", value(Kind::StringValue("pod-1".into()))),
        ("version", value(Kind::StringValue("v1".into()))),
        ("shard", value(Kind::NumberValue(2.0))),
        ("canary", value(Kind::BoolValue(true))),
        ("none", value(Kind::NullValue(0))),
    ];
    let fields = Struct { fields: fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect() };
    let typed = crate::any("test.translate.Unknown", b"x");
    let metadata = mesh_xds::proto::envoy::config::core::v3::Metadata {
        filter_metadata: [("envoy.lb".to_owned(), fields), ("other".to_owned(), Struct::default())].into(),
        typed_filter_metadata: [("envoy.lb".to_owned(), typed)].into(),
    };
    let message = LbEndpoint { metadata: Some(metadata), ..endpoint("10.0.0.1", 80) };
    let endpoints = vec![locality("a", 0, vec![message])];
    let message = ClusterLoadAssignment { cluster_name: "c".into(), endpoints, policy: None };
    let decoded = translate::endpoints(&body(&message)).unwrap();
    let read = &decoded.value.localities[0].endpoints[0];
    assert_eq!(read.hash_key.as_deref(), Some("pod-1"));
    let expected = [
        ("canary", MetadataValue::Bool(true)),
        ("shard", MetadataValue::Number("2".into())),
        ("version", MetadataValue::from("v1")),
    ];
    assert_eq!(read.metadata(), expected.map(|(key, value)| (key.into(), value)));
    assert!(decoded.ignored.iter().any(|path| path.contains("\"none\"")), "{:?}", decoded.ignored);
}

/// NR13: an assignment stays in force however old; that it should not is told as ignored.
#[test]
fn staleness_is_told() {
    let policy = Policy { overprovisioning_factor: Some(150), ..Policy::default() };
    let message = ClusterLoadAssignment { cluster_name: "c".into(), policy: Some(policy), ..Default::default() };
    // endpoint_stale_after: 1 s.
    let mut bytes = body(&message).to_vec();
    bytes.extend([0x22, 0x04, 0x22, 0x02, 0x08, 0x01]);
    let decoded = translate::endpoints(&bytes.into()).unwrap();
    assert_eq!(decoded.ignored, ["policy.endpoint_stale_after"]);
}

/// NR8: what each health status comes to.
#[test]
fn health_statuses_are_read() {
    for (status, health) in [
        (HealthStatus::Unknown, Health::Healthy),
        (HealthStatus::Healthy, Health::Healthy),
        (HealthStatus::Unhealthy, Health::Unhealthy),
        (HealthStatus::Timeout, Health::Unhealthy),
        (HealthStatus::Draining, Health::Draining),
        (HealthStatus::Degraded, Health::Degraded),
    ] {
        let message = LbEndpoint { health_status: status.into(), ..endpoint("::1", 80) };
        let decoded = decode(vec![locality("a", 0, vec![message])]).unwrap();
        let endpoint = &decoded.localities[0].endpoints[0];
        assert_eq!((endpoint.health, endpoint.weight), (health, 1));
        assert_eq!(endpoint.address, EndpointAddress::Socket("[::1]:80".parse().unwrap()));
    }
}
