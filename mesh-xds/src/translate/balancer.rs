//! Load balancing policies of clusters, and what goes with them: slow start, localities, subsets. Source: Envoy `lb_policy`,
//! `load_balancing_policy`, gRFC A52 (LB1).
//!
//! A list of policies counts when there is one, the first that is supported; else the older fields do. What we send are the older
//! fields, which every client reads, except for policies that only the list can name.

use mesh_core::{
    balance,
    config::{
        Cluster as Config, ConsistentHash, Custom, Discovery, HashFunction, HashPolicy, LeastRequest, LoadBalancer,
        Maglev, PickFirst, RingHash, SlowStart, ZoneAware,
    },
};
use prost::Message as _;

use super::{
    hash,
    read::{Ignored, Within, Wrong, wrong},
    value,
};
use crate::proto::{
    Any,
    envoy::{
        config::{
            cluster::v3::{
                Cluster, LoadBalancingPolicy,
                cluster::{
                    LbConfig, LbPolicy, SlowStartConfig, common_lb_config as common,
                    ring_hash_lb_config::HashFunction as Function,
                },
            },
            core::v3::RuntimeDouble,
        },
        extensions::load_balancing_policies::{
            self as policies,
            common::v3::{self as shared, locality_lb_config as locality},
            ring_hash::v3::ring_hash::HashFunction as TypedFunction,
        },
    },
    udpa, xds,
};

mod encode;
mod weighted;

pub(super) use encode::encode;

/// How deep policies may nest. Source: gRFC A52.
const DEPTH: usize = 16;
const PLACE: &str = "load_balancing_policy.policies";

#[derive(Debug, Default)]
pub(super) struct Decoded {
    pub(super) choice: LoadBalancer,
    /// Localities are drawn by weight first.
    pub(super) by_locality: bool,
    pub(super) zone_aware: Option<ZoneAware>,
    pub(super) slow_start: Option<SlowStart>,
    pub(super) subset_size: Option<u32>,
    pub(super) hash: Vec<HashPolicy>,
}

impl From<LoadBalancer> for Decoded {
    fn from(choice: LoadBalancer) -> Self {
        Self { choice, ..Self::default() }
    }
}

pub(super) fn decode(message: &Cluster, ignored: &mut Ignored) -> Result<Decoded, Wrong> {
    if let Some(policy) = &message.load_balancing_policy {
        // With a list the older fields do not count, localities included.
        return list(policy, DEPTH, ignored).under("load_balancing_policy");
    }
    let policy = LbPolicy::try_from(message.lb_policy)
        .map_err(|_| wrong("lb_policy", format!("{} is no policy", message.lb_policy)))?;
    let common = message.common_lb_config.as_ref();
    let hashing = || match common.and_then(|common| common.consistent_hashing_lb_config.as_ref()) {
        None => Ok(ConsistentHash::default()),
        Some(config) => consistent(config.use_hostname_for_hashing, config.hash_balance_factor)
            .under("common_lb_config.consistent_hashing_lb_config"),
    };
    let mut decoded = Decoded::from(match (policy, &message.lb_config) {
        (LbPolicy::RoundRobin, _) => LoadBalancer::RoundRobin,
        (LbPolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(config))) => {
            least_request(config.choice_count, config.active_request_bias.as_ref()).under("least_request_lb_config")?
        }
        (LbPolicy::LeastRequest, _) | (LbPolicy::ClusterProvided, _) => LoadBalancer::default(),
        (LbPolicy::Random, _) => LoadBalancer::Random,
        (LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config))) => {
            let function = match Function::try_from(config.hash_function) {
                Ok(Function::XxHash) => HashFunction::Xx,
                Ok(Function::MurmurHash2) => HashFunction::Murmur2,
                Err(_) => return Err(wrong("ring_hash_lb_config.hash_function", "is no hash function")),
            };
            ring_hash(config.minimum_ring_size, config.maximum_ring_size, function, hashing()?)
                .under("ring_hash_lb_config")?
        }
        (LbPolicy::RingHash, _) => LoadBalancer::RingHash(RingHash { common: hashing()?, ..RingHash::default() }),
        (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(config))) => {
            maglev(config.table_size, hashing()?).under("maglev_lb_config")?
        }
        (LbPolicy::Maglev, _) => LoadBalancer::Maglev(Maglev { common: hashing()?, ..Maglev::default() }),
        (LbPolicy::LoadBalancingPolicyConfig, _) => return Err(wrong("load_balancing_policy", "is missing")),
    });
    decoded.slow_start = match &message.lb_config {
        Some(LbConfig::RoundRobinLbConfig(config)) if policy == LbPolicy::RoundRobin => {
            config.slow_start_config.as_ref().map(older_slow_start).transpose().map(Option::flatten)
        }
        Some(LbConfig::LeastRequestLbConfig(config)) if policy == LbPolicy::LeastRequest => {
            config.slow_start_config.as_ref().map(older_slow_start).transpose().map(Option::flatten)
        }
        _ => Ok(None),
    }
    .under("slow_start_config")?;
    match common.and_then(|common| common.locality_config_specifier.as_ref()) {
        Some(common::LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => decoded.by_locality = true,
        Some(common::LocalityConfigSpecifier::ZoneAwareLbConfig(config)) => {
            let force = config.force_local_zone.as_ref().map(|force| force.min_size.unwrap_or(1));
            decoded.zone_aware = Some(ZoneAware {
                enabled_percent: config.routing_enabled.as_ref().map_or(100.0, |percent| percent.value),
                min_cluster_size: config.min_cluster_size.unwrap_or(6),
                fail_on_panic: config.fail_traffic_on_panic,
                force_local: force.or_else(|| config.force_locality_direct_routing.then_some(1)),
            });
        }
        None => {}
    }
    Ok(decoded)
}

fn list(policy: &LoadBalancingPolicy, depth: usize, ignored: &mut Ignored) -> Result<Decoded, Wrong> {
    if depth == 0 {
        return Err(wrong("", format!("nests deeper than {DEPTH}")));
    }
    let mut unknown = Vec::new();
    for (i, candidate) in policy.policies.iter().enumerate() {
        let Some(any) = candidate.typed_extension_config.as_ref().and_then(|config| config.typed_config.as_ref())
        else {
            continue;
        };
        if let Some(decoded) = one(any, depth, ignored).within(|| format!("policies[{i}]"))? {
            return Ok(decoded);
        }
        unknown.push(any.message_name());
    }
    Err(wrong("policies", format!("none of them is supported: {}", unknown.join(", "))))
}

fn one(any: &Any, depth: usize, ignored: &mut Ignored) -> Result<Option<Decoded>, Wrong> {
    if any.is::<policies::round_robin::v3::RoundRobin>() {
        let policy: policies::round_robin::v3::RoundRobin = ignored.open(any, PLACE)?;
        let mut decoded = Decoded::from(LoadBalancer::RoundRobin);
        decoded.slow_start = slow_start(policy.slow_start_config.as_ref())?;
        return Ok(Some(decoded.placed(policy.locality_lb_config.as_ref())));
    }
    if any.is::<policies::least_request::v3::LeastRequest>() {
        let policy: policies::least_request::v3::LeastRequest = ignored.open(any, PLACE)?;
        let mut decoded = Decoded::from(least_request(policy.choice_count, policy.active_request_bias.as_ref())?);
        decoded.slow_start = slow_start(policy.slow_start_config.as_ref())?;
        return Ok(Some(decoded.placed(policy.locality_lb_config.as_ref())));
    }
    if any.is::<policies::random::v3::Random>() {
        let policy: policies::random::v3::Random = ignored.open(any, PLACE)?;
        return Ok(Some(Decoded::from(LoadBalancer::Random).placed(policy.locality_lb_config.as_ref())));
    }
    if any.is::<policies::ring_hash::v3::RingHash>() {
        return typed_ring_hash(ignored.open(any, PLACE)?, ignored).map(Some);
    }
    if any.is::<policies::maglev::v3::Maglev>() {
        let policy: policies::maglev::v3::Maglev = ignored.open(any, PLACE)?;
        let (common, hash) = typed_consistent(policy.consistent_hashing_lb_config, ignored)?;
        let choice = maglev(policy.table_size, common)?;
        let by_locality = policy.locality_weighted_lb_config.is_some();
        return Ok(Some(Decoded { choice, by_locality, hash, ..Decoded::default() }));
    }
    if any.is::<policies::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin>() {
        return weighted::decode(ignored.open(any, PLACE)?).map(|choice| Some(choice.into()));
    }
    if any.is::<policies::pick_first::v3::PickFirst>() {
        let policy: policies::pick_first::v3::PickFirst = ignored.open(any, PLACE)?;
        let choice = LoadBalancer::PickFirst(PickFirst { shuffle: policy.shuffle_address_list });
        return Ok(Some(choice.into()));
    }
    if any.is::<policies::wrr_locality::v3::WrrLocality>() {
        let policy: policies::wrr_locality::v3::WrrLocality = ignored.open(any, PLACE)?;
        let Some(inner) = &policy.endpoint_picking_policy else {
            return Err(wrong("endpoint_picking_policy", "is missing"));
        };
        let inner = list(inner, depth - 1, ignored).under("endpoint_picking_policy")?;
        return Ok(Some(Decoded { by_locality: true, ..inner }));
    }
    if any.is::<policies::random_subsetting::v3::RandomSubsetting>() {
        let policy: policies::random_subsetting::v3::RandomSubsetting = ignored.open(any, PLACE)?;
        let size = policy.subset_size.filter(|size| *size > 0);
        let size = size.ok_or_else(|| wrong("subset_size", "is missing or 0"))?;
        let inner = policy.child_policy.as_ref().ok_or_else(|| wrong("child_policy", "is missing"))?;
        let inner = list(inner, depth - 1, ignored).under("child_policy")?;
        return Ok(Some(Decoded { subset_size: Some(size), ..inner }));
    }
    own(any, ignored)
}

/// A policy of the program's own, by the name of its message or, in a `TypedStruct`, by the type it names there.
fn own(any: &Any, ignored: &mut Ignored) -> Result<Option<Decoded>, Wrong> {
    let (name, config) = if any.is::<xds::r#type::v3::TypedStruct>() {
        let typed: xds::r#type::v3::TypedStruct = ignored.open(any, PLACE)?;
        (typed.type_url, typed.value.unwrap_or_default().encode_to_vec())
    } else if any.is::<udpa::r#type::v1::TypedStruct>() {
        let typed: udpa::r#type::v1::TypedStruct = ignored.open(any, PLACE)?;
        (typed.type_url, typed.value.unwrap_or_default().encode_to_vec())
    } else {
        (any.type_url.clone(), any.value.to_vec())
    };
    let name = name.rsplit('/').next().unwrap_or_default();
    if !balance::is_registered(name) {
        return Ok(None);
    }
    let custom = Custom { name: name.into(), config };
    balance::make(&custom).map_err(|why| wrong("typed_config", why))?;
    Ok(Some(LoadBalancer::Custom(custom).into()))
}

impl Decoded {
    fn placed(mut self, config: Option<&shared::LocalityLbConfig>) -> Self {
        match config.and_then(|config| config.locality_config_specifier.as_ref()) {
            Some(locality::LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => self.by_locality = true,
            Some(locality::LocalityConfigSpecifier::ZoneAwareLbConfig(config)) => {
                let force = config.force_local_zone.as_ref().map(|force| force.min_size.unwrap_or(1));
                self.zone_aware = Some(ZoneAware {
                    enabled_percent: config.routing_enabled.as_ref().map_or(100.0, |percent| percent.value),
                    min_cluster_size: config.min_cluster_size.unwrap_or(6),
                    fail_on_panic: config.fail_traffic_on_panic,
                    force_local: force.or_else(|| config.force_locality_direct_routing.then_some(1)),
                });
            }
            None => {}
        }
        self
    }
}

fn least_request(choices: Option<u32>, bias: Option<&RuntimeDouble>) -> Result<LoadBalancer, Wrong> {
    let default = LeastRequest::default();
    let bias = bias.map_or(default.bias, |bias| bias.default_value);
    if bias.is_nan() || bias < 0.0 {
        return Err(wrong("active_request_bias", format!("is {bias}, below 0")));
    }
    match choices {
        Some(choices @ 0..2) => Err(wrong("choice_count", format!("is {choices}, below 2"))),
        choices => {
            let choices = choices.unwrap_or(default.choices);
            Ok(LoadBalancer::LeastRequest(LeastRequest { choices, bias }))
        }
    }
}

fn typed_ring_hash(policy: policies::ring_hash::v3::RingHash, ignored: &mut Ignored) -> Result<Decoded, Wrong> {
    let function = match TypedFunction::try_from(policy.hash_function) {
        Ok(TypedFunction::DefaultHash | TypedFunction::XxHash) => HashFunction::Xx,
        Ok(TypedFunction::MurmurHash2) => HashFunction::Murmur2,
        Err(_) => return Err(wrong("hash_function", "is no hash function")),
    };
    // The older places of these settings count where the newer is not there.
    let (common, hash) = match policy.consistent_hashing_lb_config {
        None => (consistent(policy.use_hostname_for_hashing, policy.hash_balance_factor)?, Vec::new()),
        newer => typed_consistent(newer, ignored)?,
    };
    let choice = ring_hash(policy.minimum_ring_size, policy.maximum_ring_size, function, common)?;
    let by_locality = policy.locality_weighted_lb_config.is_some();
    Ok(Decoded { choice, by_locality, hash, ..Decoded::default() })
}

fn ring_hash(
    min: Option<u64>,
    max: Option<u64>,
    function: HashFunction,
    common: ConsistentHash,
) -> Result<LoadBalancer, Wrong> {
    let default = RingHash::default();
    let (min_size, max_size) = (min.unwrap_or(default.min_size), max.unwrap_or(default.max_size));
    for (size, field) in [(min_size, "minimum_ring_size"), (max_size, "maximum_ring_size")] {
        if size == 0 || size > RingHash::LARGEST {
            return Err(wrong(field, format!("is {size}, not in 1..={}", RingHash::LARGEST)));
        }
    }
    if min_size > max_size {
        return Err(wrong("minimum_ring_size", format!("is {min_size}, above maximum_ring_size {max_size}")));
    }
    Ok(LoadBalancer::RingHash(RingHash { min_size, max_size, function, common }))
}

fn maglev(size: Option<u64>, common: ConsistentHash) -> Result<LoadBalancer, Wrong> {
    let table_size = size.unwrap_or_else(|| Maglev::default().table_size);
    if table_size > Maglev::LARGEST || !balance::is_prime(table_size) {
        return Err(wrong("table_size", format!("is {table_size}, no prime up to {}", Maglev::LARGEST)));
    }
    Ok(LoadBalancer::Maglev(Maglev { table_size, common }))
}

fn consistent(by_hostname: bool, factor: Option<u32>) -> Result<ConsistentHash, Wrong> {
    match factor {
        Some(factor @ 0..100) => Err(wrong("hash_balance_factor", format!("is {factor}, below 100"))),
        factor => Ok(ConsistentHash { by_hostname, balance_factor: factor.unwrap_or(0) }),
    }
}

fn typed_consistent(
    config: Option<shared::ConsistentHashingLbConfig>,
    ignored: &mut Ignored,
) -> Result<(ConsistentHash, Vec<HashPolicy>), Wrong> {
    let Some(config) = config else { return Ok((ConsistentHash::default(), Vec::new())) };
    const FIELD: &str = "consistent_hashing_lb_config";
    let common = consistent(config.use_hostname_for_hashing, config.hash_balance_factor).under(FIELD)?;
    Ok((common, hash::decode(config.hash_policy, PLACE, ignored).under(FIELD)?))
}

fn slow_start(config: Option<&shared::SlowStartConfig>) -> Result<Option<SlowStart>, Wrong> {
    let config = config.map(|config| SlowStartConfig {
        slow_start_window: config.slow_start_window,
        aggression: config.aggression.clone(),
        min_weight_percent: config.min_weight_percent,
    });
    config.as_ref().map(older_slow_start).transpose().under("slow_start_config").map(Option::flatten)
}

fn older_slow_start(config: &SlowStartConfig) -> Result<Option<SlowStart>, Wrong> {
    let default = SlowStart::default();
    let window = config.slow_start_window.map(|window| value::duration(window, "slow_start_window")).transpose()?;
    let aggression = config.aggression.as_ref().map_or(default.aggression, |aggression| aggression.default_value);
    if aggression.is_nan() || aggression <= 0.0 {
        return Err(wrong("aggression", format!("is {aggression}, must be above 0")));
    }
    let min_percent = config.min_weight_percent.as_ref().map_or(default.min_percent, |percent| percent.value);
    let window = window.filter(|window| !window.is_zero());
    Ok(window.map(|window| SlowStart { window, aggression, min_percent }))
}
