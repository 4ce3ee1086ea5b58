//! Load balancing policies: which of several is taken, what is checked, what is refused by name.

use mesh_core::{
    balance,
    config::{ClientWeighted, Cluster, LoadBalancer, Maglev, PickFirst, RingHash},
};
use mesh_xds::{
    proto::{
        Any,
        envoy::{
            config::{
                cluster::v3::{
                    Cluster as Message, LoadBalancingPolicy,
                    cluster::{
                        CommonLbConfig, LbConfig, LbPolicy, MaglevLbConfig, RingHashLbConfig,
                        common_lb_config::ConsistentHashingLbConfig,
                    },
                    load_balancing_policy::Policy,
                },
                core::v3::TypedExtensionConfig,
                route::v3::route_action::{HashPolicy, hash_policy},
            },
            extensions::load_balancing_policies as policies,
        },
        xds,
    },
    translate,
};
use prost::Message as _;

fn decode(message: &Message) -> Result<(Cluster, Vec<String>), String> {
    let bytes = Message { name: "c".into(), ..message.clone() }.encode_to_vec();
    let decoded = translate::cluster(&bytes.into()).map_err(|error| error.to_string())?;
    Ok(((*decoded.value).clone(), decoded.ignored))
}

fn list(policies: Vec<Any>) -> Message {
    let policy = |any: Any| Policy {
        typed_extension_config: Some(TypedExtensionConfig { name: "policy".into(), typed_config: Some(any) }),
    };
    let policies = policies.into_iter().map(policy).collect();
    Message { load_balancing_policy: Some(LoadBalancingPolicy { policies }), ..Message::default() }
}

fn any(name: &str) -> Any {
    Any { type_url: format!("type.googleapis.com/{name}"), value: prost::bytes::Bytes::new() }
}

fn balancer(message: &Message) -> LoadBalancer {
    decode(message).unwrap().0.load_balancer
}

/// LB1: the list wins over the older field, its first supported policy is taken, and a list of none is refused.
#[test]
fn the_first_supported_policy_is_taken() {
    let older = |list: Message| Message { lb_policy: LbPolicy::Maglev.into(), ..list };
    let random = Any::pack(&policies::random::v3::Random::default());
    let first = Any::pack(&policies::pick_first::v3::PickFirst { shuffle_address_list: true });
    let both = older(list(vec![any("example.Unknown"), first, random]));
    assert_eq!(balancer(&both), LoadBalancer::PickFirst(PickFirst { shuffle: true }));
    assert_eq!(balancer(&older(Message::default())), LoadBalancer::Maglev(Maglev::default()));
    let refused = decode(&older(list(vec![any("example.Unknown")]))).unwrap_err();
    assert!(refused.contains("none of them is supported: example.Unknown"), "{refused}");
}

/// LB19, LB23, LB24: policies that are not there are refused by their names.
#[test]
fn other_policies_are_refused_by_name() {
    const PLACE: &str = "envoy.extensions.load_balancing_policies";
    for name in [
        "deterministic_aperture.v3.DeterministicAperture",
        "override_host.v3.OverrideHost",
        "load_aware_locality.v3.LoadAwareLocality",
        "rendezvous.v3.Rendezvous",
        "subset.v3.Subset",
    ] {
        let name = format!("{PLACE}.{name}");
        let refused = decode(&list(vec![any(&name)])).unwrap_err();
        assert!(refused.contains(&name), "{refused}");
    }
}

/// LB8, LB12, LB13: sizes have limits, a table's is a prime, a balance factor is at least 100; absent, they are Envoy's.
#[test]
fn tables_are_checked() {
    let ring = |min: Option<u64>, max: Option<u64>| Message {
        lb_policy: LbPolicy::RingHash.into(),
        lb_config: Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
            minimum_ring_size: min,
            maximum_ring_size: max,
            ..RingHashLbConfig::default()
        })),
        ..Message::default()
    };
    assert_eq!(balancer(&ring(None, None)), LoadBalancer::RingHash(RingHash::default()));
    for (min, max, why) in [
        (Some(2_000), Some(1_000), "above maximum_ring_size"),
        (None, Some(8_388_609), "not in 1..=8388608"),
        (Some(0), None, "not in 1..=8388608"),
    ] {
        let refused = decode(&ring(min, max)).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
    let table = |size| Message {
        lb_policy: LbPolicy::Maglev.into(),
        lb_config: Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: Some(size) })),
        ..Message::default()
    };
    assert_eq!(balancer(&table(11)), LoadBalancer::Maglev(Maglev { table_size: 11, ..Maglev::default() }));
    for size in [10, 5_000_012, 5_000_081] {
        let refused = decode(&table(size)).unwrap_err();
        assert!(refused.contains("no prime"), "{refused}");
    }
    let hashing = ConsistentHashingLbConfig { hash_balance_factor: Some(99), ..Default::default() };
    let common = CommonLbConfig { consistent_hashing_lb_config: Some(hashing), ..CommonLbConfig::default() };
    let refused = decode(&Message { common_lb_config: Some(common), ..table(11) }).unwrap_err();
    assert!(refused.contains("hash_balance_factor") && refused.contains("below 100"), "{refused}");
}

/// LB7, TE24: what is absent is gRPC's, a penalty below zero is refused, reports may come apart from responses.
#[test]
fn weights_by_load_are_checked() {
    type Weighted = policies::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin;
    let of = |message: Weighted| decode(&list(vec![Any::pack(&message)]));
    let (cluster, ignored) = of(Weighted::default()).unwrap();
    assert_eq!(cluster.load_balancer, LoadBalancer::ClientWeighted(ClientWeighted::default()));
    assert!(ignored.is_empty());
    let below = Weighted { error_utilization_penalty: Some(-1.0), ..Weighted::default() };
    assert!(of(below).unwrap_err().contains("error_utilization_penalty"));
    for (period, expected) in [(None, 10), (Some(crate::seconds(3)), 3)] {
        let message =
            Weighted { enable_oob_load_report: Some(true), oob_reporting_period: period, ..Weighted::default() };
        let (cluster, ignored) = of(message).unwrap();
        let LoadBalancer::ClientWeighted(config) = cluster.load_balancer else { panic!() };
        assert_eq!((config.out_of_band, ignored), (Some(std::time::Duration::from_secs(expected)), Vec::new()));
    }
}

/// LB18: a subset has a size and a policy within.
#[test]
fn subsets_are_checked() {
    type Subsetting = policies::random_subsetting::v3::RandomSubsetting;
    let child = list(vec![Any::pack(&policies::random::v3::Random::default())]).load_balancing_policy;
    let of = |subset_size, child_policy| decode(&list(vec![Any::pack(&Subsetting { subset_size, child_policy })]));
    let (cluster, _) = of(Some(3), child.clone()).unwrap();
    assert_eq!((cluster.subset_size, cluster.load_balancer), (Some(3), LoadBalancer::Random));
    for (size, child, why) in
        [(Some(0), child.clone(), "subset_size"), (None, child, "subset_size"), (Some(1), None, "child_policy")]
    {
        let refused = of(size, child).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
}

/// LB11: a cluster has hash policies of its own, which is how a header is named where there is no route for it.
#[test]
fn a_cluster_has_hash_policies_of_its_own() {
    let header = hash_policy::Header { header_name: "X-User".into(), ..hash_policy::Header::default() };
    let specifier = Some(hash_policy::PolicySpecifier::Header(header));
    let hashing = policies::common::v3::ConsistentHashingLbConfig {
        hash_policy: vec![HashPolicy { policy_specifier: specifier, terminal: true }],
        ..Default::default()
    };
    let ring = policies::ring_hash::v3::RingHash { consistent_hashing_lb_config: Some(hashing), ..Default::default() };
    let (cluster, ignored) = decode(&list(vec![Any::pack(&ring)])).unwrap();
    let shown = format!("{:?}", cluster.hash);
    assert!(shown.contains("x-user") && shown.contains("terminal: true") && ignored.is_empty(), "{shown}");
}

/// LB25: a policy that the program knows is taken by its name, in a `TypedStruct` too; what it does not take is refused.
#[test]
fn a_policy_of_ones_own_is_known_by_name() {
    #[derive(Debug)]
    struct First;

    impl balance::Policy for First {
        fn pick(
            &self,
            endpoints: &[std::sync::Arc<mesh_core::endpoint::Endpoint>],
            may: &dyn Fn(&mesh_core::endpoint::Endpoint) -> bool,
            _: &mesh_core::pick::Ask<'_>,
            _: mesh_core::time::Time,
            _: &mut dyn rand::RngCore,
        ) -> Option<usize> {
            endpoints.iter().position(|endpoint| may(endpoint))
        }
    }

    balance::register("example.lb.First", |config| match config {
        [] => Ok(std::sync::Arc::new(First)),
        _ => Err("takes no configuration".to_owned()),
    });
    let typed = xds::r#type::v3::TypedStruct { type_url: "types.example/example.lb.First".into(), value: None };
    for any in [any("example.lb.First"), Any::pack(&typed)] {
        let LoadBalancer::Custom(custom) = balancer(&list(vec![any])) else { panic!("not the program's own") };
        assert_eq!(&*custom.name, "example.lb.First");
    }
    let wrong = Any { value: vec![1].into(), ..any("example.lb.First") };
    assert!(decode(&list(vec![wrong])).unwrap_err().contains("takes no configuration"));
}
