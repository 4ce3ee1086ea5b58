//! The other way: what a cluster's policy is sent as.

use bytes::Bytes;

use super::{
    Any, Config, ConsistentHash, Discovery, Function, HashFunction, LbConfig, LbPolicy, LeastRequest, LoadBalancer,
    LoadBalancingPolicy, RingHash, RuntimeDouble, SlowStart, SlowStartConfig, TypedFunction, ZoneAware, common, hash,
    locality, policies, shared, value, weighted,
};
use crate::proto::envoy::{
    config::{
        cluster::v3::{
            cluster::{
                CommonLbConfig, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig, RoundRobinLbConfig,
                common_lb_config::ConsistentHashingLbConfig,
            },
            load_balancing_policy::Policy,
        },
        core::v3::TypedExtensionConfig,
    },
    r#type::v3::Percent,
};

/// The fields of a cluster message that say how it is balanced.
#[derive(Debug, Default)]
pub(in super::super) struct Encoded {
    pub(in super::super) policy: LbPolicy,
    pub(in super::super) config: Option<LbConfig>,
    pub(in super::super) list: Option<LoadBalancingPolicy>,
    pub(in super::super) common: CommonLbConfig,
}

pub(in super::super) fn encode(cluster: &Config) -> Encoded {
    let mut encoded = Encoded {
        common: CommonLbConfig {
            locality_config_specifier: match (cluster.locality_weighted, &cluster.zone_aware) {
                (true, _) => {
                    Some(common::LocalityConfigSpecifier::LocalityWeightedLbConfig(common::LocalityWeightedLbConfig {}))
                }
                (false, Some(aware)) => Some(common::LocalityConfigSpecifier::ZoneAwareLbConfig(zone_aware(aware))),
                (false, None) => None,
            },
            ..CommonLbConfig::default()
        },
        ..Encoded::default()
    };
    if cluster.discovery == Discovery::OriginalDestination || matches!(cluster.discovery, Discovery::Aggregate(_)) {
        encoded.policy = LbPolicy::ClusterProvided;
        return encoded;
    }
    let balancer = &cluster.load_balancer;
    if cluster.subset_size.is_some() || !cluster.hash.is_empty() || listed(balancer) {
        encoded.policy = LbPolicy::LoadBalancingPolicyConfig;
        encoded.list = Some(list(cluster));
        return encoded;
    }
    let slow_start = cluster.slow_start.as_ref().map(older_slow_start);
    (encoded.policy, encoded.config) = match balancer {
        LoadBalancer::RoundRobin => {
            let config = slow_start.map(|slow_start| RoundRobinLbConfig { slow_start_config: Some(slow_start) });
            (LbPolicy::RoundRobin, config.map(LbConfig::RoundRobinLbConfig))
        }
        LoadBalancer::LeastRequest(config) => {
            let default = LeastRequest::default();
            let plain = *config == default && slow_start.is_none();
            let config = LeastRequestLbConfig {
                choice_count: (config.choices != default.choices).then_some(config.choices),
                active_request_bias: (config.bias != default.bias).then(|| double(config.bias)),
                slow_start_config: slow_start,
            };
            (LbPolicy::LeastRequest, (!plain).then_some(LbConfig::LeastRequestLbConfig(config)))
        }
        LoadBalancer::RingHash(config) => {
            encoded.common.consistent_hashing_lb_config = consistent(config.common);
            let function = match config.function {
                HashFunction::Xx => Function::XxHash,
                HashFunction::Murmur2 => Function::MurmurHash2,
            };
            let ring = RingHashLbConfig {
                minimum_ring_size: Some(config.min_size),
                maximum_ring_size: Some(config.max_size),
                hash_function: function.into(),
            };
            let plain = RingHash { common: config.common, ..RingHash::default() } == *config;
            (LbPolicy::RingHash, (!plain).then_some(LbConfig::RingHashLbConfig(ring)))
        }
        LoadBalancer::Maglev(config) => {
            encoded.common.consistent_hashing_lb_config = consistent(config.common);
            let table = MaglevLbConfig { table_size: Some(config.table_size) };
            (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(table)))
        }
        LoadBalancer::Random => (LbPolicy::Random, None),
        // Not in xDS, the nearest that is; the others are sent as a list.
        _ => (LbPolicy::LeastRequest, None),
    };
    encoded
}

/// Policies that only the list can name.
fn listed(balancer: &LoadBalancer) -> bool {
    matches!(balancer, LoadBalancer::ClientWeighted(_) | LoadBalancer::PickFirst(_) | LoadBalancer::Custom(_))
}

fn list(cluster: &Config) -> LoadBalancingPolicy {
    let mut any = typed(cluster);
    if cluster.locality_weighted && !cluster.load_balancer.is_hashing() {
        any = Any::pack(&policies::wrr_locality::v3::WrrLocality { endpoint_picking_policy: Some(of(any)) });
    }
    if let Some(size) = cluster.subset_size {
        any = Any::pack(&policies::random_subsetting::v3::RandomSubsetting {
            subset_size: Some(size),
            child_policy: Some(of(any)),
        });
    }
    of(any)
}

fn of(any: Any) -> LoadBalancingPolicy {
    let name = any.message_name().to_owned();
    let config = TypedExtensionConfig { name, typed_config: Some(any) };
    LoadBalancingPolicy { policies: vec![Policy { typed_extension_config: Some(config) }] }
}

fn typed(cluster: &Config) -> Any {
    let slow_start_config = cluster.slow_start.as_ref().map(|config| {
        let older = older_slow_start(config);
        shared::SlowStartConfig {
            slow_start_window: older.slow_start_window,
            aggression: older.aggression,
            min_weight_percent: older.min_weight_percent,
        }
    });
    let zones = cluster.zone_aware.as_ref().filter(|_| !cluster.locality_weighted).map(|aware| {
        let older = zone_aware(aware);
        let config = locality::ZoneAwareLbConfig {
            routing_enabled: older.routing_enabled,
            min_cluster_size: older.min_cluster_size,
            fail_traffic_on_panic: older.fail_traffic_on_panic,
            force_locality_direct_routing: false,
            force_local_zone: older
                .force_local_zone
                .map(|force| locality::zone_aware_lb_config::ForceLocalZone { min_size: force.min_size }),
        };
        shared::LocalityLbConfig {
            locality_config_specifier: Some(locality::LocalityConfigSpecifier::ZoneAwareLbConfig(config)),
        }
    });
    let weighted = cluster.locality_weighted.then_some(locality::LocalityWeightedLbConfig {});
    let hashing = |config: ConsistentHash| {
        Some(shared::ConsistentHashingLbConfig {
            use_hostname_for_hashing: config.by_hostname,
            hash_balance_factor: (config.balance_factor > 0).then_some(config.balance_factor),
            hash_policy: hash::encode(&cluster.hash),
        })
    };
    match &cluster.load_balancer {
        LoadBalancer::RoundRobin => {
            Any::pack(&policies::round_robin::v3::RoundRobin { slow_start_config, locality_lb_config: zones })
        }
        LoadBalancer::LeastRequest(config) => Any::pack(&policies::least_request::v3::LeastRequest {
            choice_count: Some(config.choices),
            active_request_bias: (config.bias != LeastRequest::default().bias).then(|| double(config.bias)),
            slow_start_config,
            locality_lb_config: zones,
        }),
        LoadBalancer::Random => Any::pack(&policies::random::v3::Random { locality_lb_config: zones }),
        // Not in xDS, the nearest that is.
        LoadBalancer::PeakEwma => Any::pack(&policies::least_request::v3::LeastRequest::default()),
        LoadBalancer::RingHash(config) => Any::pack(&policies::ring_hash::v3::RingHash {
            hash_function: match config.function {
                HashFunction::Xx => TypedFunction::XxHash,
                HashFunction::Murmur2 => TypedFunction::MurmurHash2,
            }
            .into(),
            minimum_ring_size: Some(config.min_size),
            maximum_ring_size: Some(config.max_size),
            consistent_hashing_lb_config: hashing(config.common),
            locality_weighted_lb_config: weighted,
            ..Default::default()
        }),
        LoadBalancer::Maglev(config) => Any::pack(&policies::maglev::v3::Maglev {
            table_size: Some(config.table_size),
            consistent_hashing_lb_config: hashing(config.common),
            locality_weighted_lb_config: weighted,
        }),
        LoadBalancer::ClientWeighted(config) => Any::pack(&weighted::encode(config)),
        LoadBalancer::PickFirst(config) => {
            Any::pack(&policies::pick_first::v3::PickFirst { shuffle_address_list: config.shuffle })
        }
        LoadBalancer::Custom(custom) => {
            Any { type_url: format!("type.googleapis.com/{}", custom.name), value: Bytes::from(custom.config.clone()) }
        }
    }
}

fn double(value: f64) -> RuntimeDouble {
    // Envoy asks for a key where there is a value.
    RuntimeDouble { default_value: value, runtime_key: "mesh.unused".to_owned() }
}

fn consistent(config: ConsistentHash) -> Option<ConsistentHashingLbConfig> {
    (config != ConsistentHash::default()).then(|| ConsistentHashingLbConfig {
        use_hostname_for_hashing: config.by_hostname,
        hash_balance_factor: (config.balance_factor > 0).then_some(config.balance_factor),
    })
}

fn older_slow_start(config: &SlowStart) -> SlowStartConfig {
    let default = SlowStart::default();
    SlowStartConfig {
        slow_start_window: Some(value::encode_duration(config.window)),
        aggression: (config.aggression != default.aggression).then(|| double(config.aggression)),
        min_weight_percent: (config.min_percent != default.min_percent)
            .then_some(Percent { value: config.min_percent }),
    }
}

fn zone_aware(config: &ZoneAware) -> common::ZoneAwareLbConfig {
    common::ZoneAwareLbConfig {
        routing_enabled: Some(Percent { value: config.enabled_percent }),
        min_cluster_size: Some(config.min_cluster_size),
        fail_traffic_on_panic: config.fail_on_panic,
        force_locality_direct_routing: false,
        force_local_zone: config
            .force_local
            .map(|least| common::zone_aware_lb_config::ForceLocalZone { min_size: Some(least) }),
    }
}
