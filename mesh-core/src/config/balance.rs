//! How an endpoint of a cluster is chosen. Source: Envoy `lb_policy`, `load_balancing_policy`, gRFC A52.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Name;

/// How an endpoint is chosen. Source: Envoy `lb_policy`, `load_balancing_policy`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadBalancer {
    /// In turn, by weight.
    RoundRobin,
    /// The least loaded of a few drawn at random.
    LeastRequest(LeastRequest),
    /// At random.
    Random,
    /// The one expected to answer soonest of two drawn at random; not in xDS, chosen in code.
    PeakEwma,
    /// Consistently by the request's hash, on a ring (Ketama). Requests without a hash go anywhere.
    RingHash(RingHash),
    /// Consistently by the request's hash, in a table. Requests without a hash go anywhere.
    Maglev(Maglev),
    /// In turn, by weights that follow from what the endpoints report of their load (ORCA).
    ClientWeighted(ClientWeighted),
    /// The first that can be reached, and that one only.
    PickFirst(PickFirst),
    /// One that the program brought along, see [`balance::register`](crate::balance::register).
    Custom(Custom),
}

impl Default for LoadBalancer {
    fn default() -> Self {
        Self::LeastRequest(LeastRequest::default())
    }
}

impl LoadBalancer {
    /// Does it choose by the request's hash?
    pub fn is_hashing(&self) -> bool {
        matches!(self, Self::RingHash(_) | Self::Maglev(_))
    }
}

/// Source: Envoy `LeastRequest`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct LeastRequest {
    /// How many are drawn, at least 2. Envoy `choice_count`.
    pub choices: u32,
    /// How much requests under way count where weights differ: 0 is not at all, which leaves the weights. Envoy
    /// `active_request_bias`, default 1.
    pub bias: f64,
}

impl Default for LeastRequest {
    fn default() -> Self {
        Self { choices: 2, bias: 1.0 }
    }
}

/// Source: Envoy `RingHash`, `RingHashLbConfig`; gRFC A42, A76.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct RingHash {
    /// Entries at least. Envoy default 1024.
    pub min_size: u64,
    /// Entries at most. Envoy default and limit 8 388 608.
    pub max_size: u64,
    /// What places entries on the ring.
    pub function: HashFunction,
    /// What is common to hashing policies.
    pub common: ConsistentHash,
}

impl RingHash {
    /// The largest ring there may be. Source: Envoy `maximum_ring_size`.
    pub const LARGEST: u64 = 8 * 1024 * 1024;
}

impl Default for RingHash {
    fn default() -> Self {
        Self {
            min_size: 1024,
            max_size: Self::LARGEST,
            function: HashFunction::default(),
            common: ConsistentHash::default(),
        }
    }
}

/// Source: Envoy `RingHashLbConfig.HashFunction`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HashFunction {
    /// XXH64.
    #[default]
    Xx,
    /// MurmurHash2, 64 bits, as the C++ library seeds it.
    Murmur2,
}

/// Source: Envoy `Maglev`, `MaglevLbConfig`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Maglev {
    /// Slots, a prime. Envoy default 65 537, at most 5 000 011.
    pub table_size: u64,
    /// What is common to hashing policies.
    pub common: ConsistentHash,
}

impl Maglev {
    /// The largest table there may be. Source: Envoy `MaglevLbConfig.table_size`.
    pub const LARGEST: u64 = 5_000_011;
}

impl Default for Maglev {
    fn default() -> Self {
        Self { table_size: 65_537, common: ConsistentHash::default() }
    }
}

/// What is common to hashing policies. Source: Envoy `ConsistentHashingLbConfig`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ConsistentHash {
    /// Endpoints are known by their host names where they have one, not by their addresses. Envoy
    /// `use_hostname_for_hashing`.
    pub by_hostname: bool,
    /// An endpoint with more than this percentage of the average load is passed over; 0 is never, else at least 100.
    /// Envoy `hash_balance_factor`.
    pub balance_factor: u32,
}

/// Source: Envoy `ClientSideWeightedRoundRobin`, gRFC A58, A114.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ClientWeighted {
    /// Reports come in streams of their own, this often, and not with responses. Envoy `enable_oob_load_report`,
    /// `oob_reporting_period`; default not.
    pub out_of_band: Option<Duration>,
    /// How long an endpoint has to report before its reports count. Default 10 s.
    pub blackout: Duration,
    /// After how long without a report the old ones no longer count. Default 3 min.
    pub expiration: Duration,
    /// How often weights are worked out anew, at least 100 ms. Default 1 s.
    pub update: Duration,
    /// How much errors lower a weight. Default 1.
    pub error_penalty: f64,
    /// Reported metrics whose largest is the utilisation where the application reports none of its own (`named_metrics.cost`,
    /// `cpu_utilization`). gRFC A114.
    pub metrics: Vec<String>,
}

impl Default for ClientWeighted {
    fn default() -> Self {
        Self {
            out_of_band: None,
            blackout: Duration::from_secs(10),
            expiration: Duration::from_secs(180),
            update: Duration::from_secs(1),
            error_penalty: 1.0,
            metrics: Vec::new(),
        }
    }
}

/// Source: Envoy `PickFirst`, gRFC A62, A113.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct PickFirst {
    /// Which one is first is drawn by weight, once a client. Envoy `shuffle_address_list`, default false.
    pub shuffle: bool,
}

/// A policy that the program brought along.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Custom {
    /// The full name of its configuration message: what follows the last `/` of the type URL.
    pub name: Name,
    /// Its configuration, as it was sent.
    pub config: Vec<u8>,
}

/// How an endpoint that is new gets its share little by little. Source: Envoy `SlowStartConfig`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct SlowStart {
    /// How long it takes.
    pub window: Duration,
    /// 1 is a straight line; higher gets more early. Envoy default 1.
    pub aggression: f64,
    /// The least share, in percent. Envoy default 10.
    pub min_percent: f64,
}

impl Default for SlowStart {
    fn default() -> Self {
        Self { window: Duration::ZERO, aggression: 1.0, min_percent: 10.0 }
    }
}

/// Preferring endpoints of the own zone. Source: Envoy `ZoneAwareLbConfig`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ZoneAware {
    /// The percentage of requests for which zones count. Default 100.
    pub enabled_percent: f64,
    /// With fewer endpoints zones do not count. Default 6.
    pub min_cluster_size: u64,
    /// In panic there is no endpoint at all instead of any. Default false.
    pub fail_on_panic: bool,
    /// With at least this many endpoints in the own zone, all requests stay there; `None` balances zones by their sizes.
    /// Envoy `force_local_zone.min_size`.
    pub force_local: Option<u32>,
}

impl Default for ZoneAware {
    fn default() -> Self {
        Self { enabled_percent: 100.0, min_cluster_size: 6, fail_on_panic: false, force_local: None }
    }
}
