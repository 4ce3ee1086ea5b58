//! Rules of subsets of endpoints, and of asking for them.

use mesh_core::config::{Action, MetadataValue};
use mesh_xds::{
    proto::{
        Any,
        envoy::{
            config::{
                cluster::v3::{
                    Cluster, LoadBalancingPolicy,
                    cluster::{
                        LbSubsetConfig,
                        lb_subset_config::{
                            LbSubsetSelector, lb_subset_selector::LbSubsetSelectorFallbackPolicy as Policy,
                        },
                    },
                    load_balancing_policy,
                },
                core::v3::{Metadata, TypedExtensionConfig},
                route::v3::{
                    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster,
                    route::Action as Kind, route_action::ClusterSpecifier, route_match::PathSpecifier,
                    weighted_cluster::ClusterWeight,
                },
            },
            extensions::load_balancing_policies::round_robin::v3::RoundRobin,
        },
    },
    translate,
};
use prost_types::{ListValue, Struct, Value, value::Kind as ValueKind};

use crate::body;

fn text(text: &str) -> Value {
    Value { kind: Some(ValueKind::StringValue(text.into())) }
}

fn lb(fields: &[(&str, Value)]) -> Metadata {
    let fields = fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    Metadata { filter_metadata: [("envoy.lb".to_owned(), Struct { fields })].into(), ..Metadata::default() }
}

/// RA8: what a destination asks for goes over what its route asks for; other owners' metadata plays no part, lists are told.
#[test]
fn criteria_are_put_together() {
    let list = Value { kind: Some(ValueKind::ListValue(ListValue { values: vec![text("x")] })) };
    let own = lb(&[("version", text("v2")), ("odd", list)]);
    let weight = ClusterWeight { name: "a".into(), weight: Some(1), metadata_match: Some(own), ..Default::default() };
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: vec![weight],
            ..WeightedCluster::default()
        })),
        metadata_match: Some(lb(&[("version", text("v1")), ("stage", text("prod"))])),
        ..RouteAction::default()
    };
    let route = Route {
        r#match: Some(RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..RouteMatch::default() }),
        action: Some(Kind::Route(action)),
        ..Route::default()
    };
    let host = VirtualHost { name: "h".into(), domains: vec!["*".into()], routes: vec![route], ..Default::default() };
    let table = RouteConfiguration { name: "r".into(), virtual_hosts: vec![host], ..Default::default() };
    let decoded = translate::route(&body(&table)).unwrap();
    let Action::Forward(forward) = &decoded.value.virtual_hosts[0].routes[0].action else { panic!("{decoded:?}") };
    let expected = [("stage", "prod"), ("version", "v2")].map(|(key, value)| (key.into(), MetadataValue::from(value)));
    assert_eq!(forward.clusters[0].criteria.metadata, expected);
    assert_eq!(decoded.ignored.len(), 1, "{:?}", decoded.ignored);
    assert!(decoded.ignored[0].contains("metadata_match") && decoded.ignored[0].contains("\"odd\""), "{decoded:?}");
}

/// RA8: selectors are checked, and beside the newer list of policies subsets count for nothing, which is told.
#[test]
fn subsets_are_checked() {
    let cluster = |selector: LbSubsetSelector| Cluster {
        name: "c".into(),
        lb_subset_config: Some(LbSubsetConfig { subset_selectors: vec![selector], ..LbSubsetConfig::default() }),
        ..Cluster::default()
    };
    let keys = |keys: &[&str]| LbSubsetSelector {
        keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        ..LbSubsetSelector::default()
    };
    let fewer = |fewer: &[&str]| LbSubsetSelector {
        fallback_policy: Policy::KeysSubset.into(),
        fallback_keys_subset: fewer.iter().map(|key| (*key).to_owned()).collect(),
        ..keys(&["a", "b"])
    };
    for (selector, field) in [
        (keys(&[]), "subset_selectors[0].keys"),
        (LbSubsetSelector { single_host_per_subset: true, ..keys(&["a", "b"]) }, "single_host_per_subset"),
        (fewer(&[]), "fallback_keys_subset"),
        (fewer(&["a", "b"]), "fallback_keys_subset"),
        (fewer(&["c"]), "fallback_keys_subset"),
    ] {
        let error = translate::cluster(&body(&cluster(selector))).unwrap_err().to_string();
        assert!(error.contains("lb_subset_config") && error.contains(field), "{error}");
    }
    let good = translate::cluster(&body(&cluster(fewer(&["b"])))).unwrap();
    assert_eq!(good.value.subsets.as_ref().unwrap().selectors[0].keys.len(), 2);
    let policies = vec![load_balancing_policy::Policy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: "round_robin".into(),
            typed_config: Some(Any::pack(&RoundRobin::default())),
        }),
    }];
    let both = Cluster { load_balancing_policy: Some(LoadBalancingPolicy { policies }), ..cluster(keys(&["a"])) };
    let both = translate::cluster(&body(&both)).unwrap();
    assert!(both.value.subsets.is_none());
    assert_eq!(both.ignored, ["lb_subset_config"]);
}
