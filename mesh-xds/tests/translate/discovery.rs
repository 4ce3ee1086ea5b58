//! Further ways of discovering parts of resources, which are not gone: told by name where a resource asks for them.

use mesh_xds::{
    proto::envoy::config::{
        endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints},
        route::v3::RouteConfiguration,
    },
    translate,
};
use prost::Message;

/// XD33 (envoy): virtual hosts fetched one by one are told as ignored; those in the resource are used.
#[test]
fn virtual_host_discovery_is_told() {
    let message = RouteConfiguration { name: "80".into(), ..RouteConfiguration::default() };
    // Field 9 is `vhds`.
    let bytes = [message.encode_to_vec(), vec![0x4a, 0]].concat();
    assert_eq!(translate::route(&bytes.into()).unwrap().ignored, ["vhds"]);
}

/// XD32 (envoy): endpoints of a locality that are a collection of their own are told as ignored.
#[test]
fn locality_endpoint_discovery_is_told() {
    // Field 8 of a locality is `leds_cluster_locality_config`; its weight is 3.
    let locality = [LocalityLbEndpoints::default().encode_to_vec(), vec![0x1a, 2, 8, 1, 0x42, 0]].concat();
    let message = ClusterLoadAssignment { cluster_name: "c".into(), ..ClusterLoadAssignment::default() };
    let length = u8::try_from(locality.len()).unwrap();
    let bytes = [message.encode_to_vec(), vec![0x12, length], locality].concat();
    let decoded = translate::endpoints(&bytes.into()).unwrap();
    assert_eq!(decoded.ignored, ["endpoints.leds_cluster_locality_config"]);
}
