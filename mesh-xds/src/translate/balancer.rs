//! Load balancing policies of clusters. Source: Envoy `lb_policy`, `load_balancing_policy`, gRFC A52 (LB1).

use mesh_core::config::{Discovery, LeastRequest, LoadBalancer};

use super::read::{Ignored, Within, Wrong, wrong};
use crate::proto::{
    Any,
    envoy::{
        config::cluster::v3::{
            Cluster, LoadBalancingPolicy,
            cluster::{LbConfig, LbPolicy, LeastRequestLbConfig},
        },
        extensions::load_balancing_policies as policies,
    },
};

/// How deep policies may nest. Source: gRFC A52.
const DEPTH: usize = 16;

pub(super) struct Decoded {
    pub(super) choice: LoadBalancer,
    /// Localities are drawn by weight first.
    pub(super) by_locality: bool,
}

/// The list of policies counts when there is one: the first that is supported.
pub(super) fn decode(message: &Cluster, ignored: &mut Ignored) -> Result<Decoded, Wrong> {
    if let Some(policy) = &message.load_balancing_policy {
        return list(policy, DEPTH, ignored).under("load_balancing_policy");
    }
    let policy = LbPolicy::try_from(message.lb_policy)
        .map_err(|_| wrong("lb_policy", format!("{} is no policy", message.lb_policy)))?;
    let choice = match policy {
        LbPolicy::RoundRobin => LoadBalancer::RoundRobin,
        LbPolicy::LeastRequest => match &message.lb_config {
            Some(LbConfig::LeastRequestLbConfig(config)) => {
                least_request(config.choice_count).under("least_request_lb_config")?
            }
            _ => LoadBalancer::default(),
        },
        LbPolicy::Random => LoadBalancer::Random,
        // Without a hash these draw at random, and hash policies of routes are not acted upon.
        LbPolicy::RingHash | LbPolicy::Maglev => {
            ignored.add("", &format!("lb_policy {} (drawn at random)", policy.as_str_name()));
            LoadBalancer::Random
        }
        LbPolicy::ClusterProvided => LoadBalancer::default(),
        LbPolicy::LoadBalancingPolicyConfig => return Err(wrong("load_balancing_policy", "is missing")),
    };
    Ok(Decoded { choice, by_locality: false })
}

fn list(policy: &LoadBalancingPolicy, depth: usize, ignored: &mut Ignored) -> Result<Decoded, Wrong> {
    if depth == 0 {
        return Err(wrong("", format!("nests deeper than {DEPTH}")));
    }
    for (i, candidate) in policy.policies.iter().enumerate() {
        let Some(any) = candidate.typed_extension_config.as_ref().and_then(|config| config.typed_config.as_ref())
        else {
            continue;
        };
        if let Some(decoded) = one(any, depth, ignored).within(|| format!("policies[{i}]"))? {
            return Ok(decoded);
        }
    }
    Err(wrong("policies", "none of them is supported"))
}

fn one(any: &Any, depth: usize, ignored: &mut Ignored) -> Result<Option<Decoded>, Wrong> {
    const PLACE: &str = "load_balancing_policy.policies";
    let choice = if any.is::<policies::round_robin::v3::RoundRobin>() {
        ignored.open::<policies::round_robin::v3::RoundRobin>(any, PLACE)?;
        LoadBalancer::RoundRobin
    } else if any.is::<policies::least_request::v3::LeastRequest>() {
        least_request(ignored.open::<policies::least_request::v3::LeastRequest>(any, PLACE)?.choice_count)?
    } else if any.is::<policies::random::v3::Random>() {
        ignored.open::<policies::random::v3::Random>(any, PLACE)?;
        LoadBalancer::Random
    } else if any.is::<policies::wrr_locality::v3::WrrLocality>() {
        let policy: policies::wrr_locality::v3::WrrLocality = ignored.open(any, PLACE)?;
        let Some(inner) = &policy.endpoint_picking_policy else {
            return Err(wrong("endpoint_picking_policy", "is missing"));
        };
        let inner = list(inner, depth - 1, ignored).under("endpoint_picking_policy")?;
        return Ok(Some(Decoded { by_locality: true, ..inner }));
    } else {
        return Ok(None);
    };
    Ok(Some(Decoded { choice, by_locality: false }))
}

fn least_request(choices: Option<u32>) -> Result<LoadBalancer, Wrong> {
    match choices {
        Some(choices @ 0..2) => Err(wrong("choice_count", format!("is {choices}, below 2"))),
        Some(choices) => Ok(LoadBalancer::LeastRequest(LeastRequest { choices })),
        None => Ok(LoadBalancer::default()),
    }
}

pub(super) fn encode(balancer: &LoadBalancer, discovery: &Discovery) -> (LbPolicy, Option<LbConfig>) {
    match balancer {
        _ if *discovery == Discovery::OriginalDestination => (LbPolicy::ClusterProvided, None),
        LoadBalancer::RoundRobin => (LbPolicy::RoundRobin, None),
        LoadBalancer::LeastRequest(config) => {
            let choice_count = (*config != LeastRequest::default()).then_some(config.choices);
            let config = choice_count.map(|count| LeastRequestLbConfig { choice_count: Some(count) });
            (LbPolicy::LeastRequest, config.map(LbConfig::LeastRequestLbConfig))
        }
        LoadBalancer::Random => (LbPolicy::Random, None),
        // Not in xDS; the nearest that is.
        LoadBalancer::PeakEwma => (LbPolicy::LeastRequest, None),
    }
}
