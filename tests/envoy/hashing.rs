//! Which endpoint a request with a hash goes to: ours and Envoy's, key by key.
//!
//! The tables are made of addresses, so both sides are given the same upstreams. Each key is a header's value; other routes
//! hash other things. Every kind of table is asked 10,000 keys, through both sides over real connections.

use std::{collections::BTreeMap, sync::Arc};

use mesh_xds::proto::envoy::{
    config::{
        cluster::v3::{
            Cluster,
            cluster::{
                CommonLbConfig, LbConfig, LbPolicy, MaglevLbConfig, RingHashLbConfig,
                common_lb_config::{LocalityConfigSpecifier, LocalityWeightedLbConfig},
                ring_hash_lb_config::HashFunction,
            },
        },
        core::v3::{HealthStatus, Locality, Metadata},
        endpoint::v3::{LbEndpoint, LocalityLbEndpoints},
        route::v3::{
            Route, RouteAction,
            route_action::{HashPolicy, hash_policy},
        },
    },
    r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher},
};
use prost::Message;
use tokio::task::JoinSet;

use crate::{
    ask::{Ask, Caller},
    both::{Both, cluster, route, routes, to},
    process::Options,
    upstream::{Upstream, answer},
};

/// Keys asked of each table.
const KEYS: usize = 10_000;
/// Under way at once, on each side.
const TASKS: usize = 16;

/// LB8, LB9, LB12, LB14, LB15: rings of both hash functions, sizes and weights, tables of two sizes, by address and by key, over
/// weighted localities and over priorities: the same endpoint for every key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_goes_to_the_same_endpoint() {
    let Some(mut both) = Both::start(&Options::default()).await else { return };
    let upstreams = upstreams(8).await;
    let weights: Vec<u32> = (1..=8).collect();
    let ring = |min: u64, max: u64, function: HashFunction| {
        Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
            minimum_ring_size: Some(min),
            maximum_ring_size: Some(max),
            hash_function: function.into(),
        }))
    };
    let table = |size| Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: Some(size) }));
    let (even, odd) = (vec![1; 8], vec![3, 1, 4, 1, 5, 9, 2, 6]);
    let hashed = |name: &str, lb_config, weights: &[u32]| {
        let policy = match lb_config {
            Some(LbConfig::MaglevLbConfig(_)) => LbPolicy::Maglev,
            _ => LbPolicy::RingHash,
        };
        let mut cluster = Cluster { lb_policy: policy.into(), lb_config, ..of(name, &upstreams) };
        for (endpoint, weight) in endpoints(&mut cluster).zip(weights) {
            endpoint.load_balancing_weight = Some(*weight);
        }
        cluster
    };
    let mut clusters = vec![
        hashed("ring", None, &even),
        hashed("weighted-ring", ring(1_024, 8_388_608, HashFunction::XxHash), &weights),
        hashed("small-ring", ring(16, 19, HashFunction::XxHash), &odd),
        hashed("murmur-ring", ring(500, 10_000, HashFunction::MurmurHash2), &odd),
        hashed("maglev", table(65_537), &even),
        hashed("weighted-maglev", table(1_009), &odd),
    ];
    clusters.push(keyed(hashed("keyed-maglev", table(1_009), &weights)));
    clusters.push(keyed(hashed("keyed-ring", None, &weights)));
    clusters.push(placed(hashed("placed-ring", ring(1_024, 8_388_608, HashFunction::XxHash), &odd)));
    clusters.push(by_priority(hashed("spilling-ring", None, &even)));
    let names: Vec<_> = clusters.iter().map(|cluster| cluster.name.clone()).collect();
    both.clusters(&clusters).await;
    let rules = names.iter().map(|name| route(&format!("/{name}"), hashing(to(name), [header("x-key", None)])));
    taken(&mut both, rules.collect()).await;
    for name in &names {
        let asks = |n: usize| Ask::get("host", &format!("/{name}")).with("x-key", &format!("key-{n}"));
        let (ours, envoys) = answers(&both, KEYS, asks).await;
        let other: Vec<_> = (0..KEYS).filter(|n| ours[*n] != envoys[*n]).collect();
        let first = other.first().map(|n| (n, &ours[*n], &envoys[*n]));
        assert!(other.is_empty(), "{name}: {} of {KEYS} keys go elsewhere, first {first:?}", other.len());
        let used: BTreeMap<_, usize> = ours.into_iter().fold(BTreeMap::new(), |mut used, at| {
            *used.entry(at).or_default() += 1;
            used
        });
        assert!(used.len() > 3, "{name}: {used:?}");
    }
}

/// LB14, LB15, LB17: what is hashed and how it adds up: several headers, several values, rewritten values, cookies, query
/// parameters, terminal policies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_policy_finds_the_same_hash() {
    let Some(mut both) = Both::start(&Options::default()).await else { return };
    let upstreams = upstreams(8).await;
    both.clusters(&[Cluster { lb_policy: LbPolicy::Maglev.into(), ..of("app", &upstreams) }]).await;
    let cookie = |ttl| {
        policy(hash_policy::PolicySpecifier::Cookie(hash_policy::Cookie {
            name: "id".into(),
            ttl,
            ..hash_policy::Cookie::default()
        }))
    };
    let query =
        || policy(hash_policy::PolicySpecifier::QueryParameter(hash_policy::QueryParameter { name: "q".into() }));
    let last = |policy: HashPolicy| HashPolicy { terminal: true, ..policy };
    let rules = vec![
        route("/one", hashing(to("app"), [header("x-a", None)])),
        route("/two", hashing(to("app"), [header("x-a", None), header("x-b", None)])),
        route("/last", hashing(to("app"), [last(header("x-a", None)), header("x-b", None)])),
        route("/rewritten", hashing(to("app"), [header("x-a", Some(("^(.)..", "\\1-")))])),
        route("/path", hashing(to("app"), [header(":path", None)])),
        route("/cookie", hashing(to("app"), [cookie(None), header("x-b", None)])),
        route("/query", hashing(to("app"), [query(), header("x-b", None)])),
    ];
    let paths = ["/one", "/two", "/last", "/rewritten", "/path", "/cookie", "/query"];
    taken(&mut both, rules).await;
    let asks = |n: usize| {
        let path = paths[n % paths.len()];
        let ask = Ask::get("host", &format!("{path}?x=1&q={}&q=other", n / 11));
        // Each request has at least one of what is hashed; some have several values, in either order.
        let ask = ask.with("x-b", &format!("b{}", n % 101)).with("cookie", &format!("other=1; id=\"c{}\"", n % 97));
        match n % 3 {
            0 => ask.with("x-a", &format!("a{n}")),
            1 => ask.with("x-a", &format!("z{n}")).with("x-a", &format!("a{n}")),
            _ => ask.with("x-a", &format!("a{n}")).with("x-a", &format!("z{n}")),
        }
    };
    let (ours, envoys) = answers(&both, KEYS, asks).await;
    let other: Vec<_> = (0..KEYS).filter(|n| ours[*n] != envoys[*n]).collect();
    let first = other.first().map(|n| asks(*n).to_string());
    assert!(other.is_empty(), "{} of {KEYS} go elsewhere, first {first:?}", other.len());
}

async fn upstreams(count: usize) -> Vec<Upstream> {
    let mut upstreams = Vec::new();
    for n in 0..count {
        let name: Arc<str> = format!("up-{n}").into();
        let at = Arc::clone(&name);
        upstreams.push(
            Upstream::start(&name, move |_| {
                let at = Arc::clone(&at);
                async move { Some(answer(200, &[("x-at", &at)], "")) }
            })
            .await,
        );
    }
    upstreams
}

fn of(name: &str, upstreams: &[Upstream]) -> Cluster {
    cluster(name, upstreams.iter().map(Upstream::address))
}

fn groups(cluster: &mut Cluster) -> &mut Vec<LocalityLbEndpoints> {
    &mut cluster.load_assignment.as_mut().unwrap().endpoints
}

fn endpoints(cluster: &mut Cluster) -> impl Iterator<Item = &mut LbEndpoint> {
    groups(cluster).iter_mut().flat_map(|group| &mut group.lb_endpoints)
}

/// Endpoints are known by keys of their own.
fn keyed(mut cluster: Cluster) -> Cluster {
    // A string in a map in a map, in protobuf's bytes; all of it is short.
    let field = |number: u8, value: &[u8]| [&[number << 3 | 2, u8::try_from(value.len()).unwrap()], value].concat();
    let entry = |key: &str, value: &[u8]| field(1, &[field(1, key.as_bytes()), field(2, value)].concat());
    for (n, endpoint) in endpoints(&mut cluster).enumerate() {
        let key = entry("hash_key", &field(3, format!("pod-{n}").as_bytes()));
        endpoint.metadata = Some(Metadata::decode(entry("envoy.lb", &key).as_slice()).unwrap());
    }
    cluster
}

/// In three localities with weights, listed in another order than that of their names; one has no weight.
fn placed(mut cluster: Cluster) -> Cluster {
    let all = std::mem::take(&mut groups(&mut cluster)[0].lb_endpoints);
    let of = |zone: &str, weight, endpoints: &[LbEndpoint]| LocalityLbEndpoints {
        locality: Some(Locality { region: "r".into(), zone: zone.into(), sub_zone: String::new() }),
        lb_endpoints: endpoints.to_vec(),
        load_balancing_weight: weight,
        ..LocalityLbEndpoints::default()
    };
    *groups(&mut cluster) = vec![of("c", Some(1), &all[..3]), of("a", Some(5), &all[3..6]), of("b", None, &all[6..])];
    let weighted = LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {});
    cluster.common_lb_config =
        Some(CommonLbConfig { locality_config_specifier: Some(weighted), ..CommonLbConfig::default() });
    cluster
}

/// In two priorities; of the first, half is not healthy, so that a third of the hashes goes to the second.
fn by_priority(mut cluster: Cluster) -> Cluster {
    let mut all = std::mem::take(&mut groups(&mut cluster)[0].lb_endpoints);
    all[0].health_status = HealthStatus::Unhealthy.into();
    all[2].health_status = HealthStatus::Unhealthy.into();
    let of = |priority, endpoints: &[LbEndpoint]| LocalityLbEndpoints {
        lb_endpoints: endpoints.to_vec(),
        priority,
        ..LocalityLbEndpoints::default()
    };
    *groups(&mut cluster) = vec![of(0, &all[..4]), of(1, &all[4..])];
    cluster
}

fn policy(specifier: hash_policy::PolicySpecifier) -> HashPolicy {
    HashPolicy { policy_specifier: Some(specifier), terminal: false }
}

fn header(name: &str, rewrite: Option<(&str, &str)>) -> HashPolicy {
    let regex_rewrite = rewrite.map(|(regex, substitution)| RegexMatchAndSubstitute {
        pattern: Some(RegexMatcher { regex: regex.into(), ..RegexMatcher::default() }),
        substitution: substitution.into(),
    });
    policy(hash_policy::PolicySpecifier::Header(hash_policy::Header { header_name: name.into(), regex_rewrite }))
}

fn hashing(action: RouteAction, policies: impl IntoIterator<Item = HashPolicy>) -> RouteAction {
    RouteAction { hash_policy: policies.into_iter().collect(), ..action }
}

/// Both sides take the routes, and ours ignores nothing of them.
async fn taken(both: &mut Both, rules: Vec<Route>) {
    for verdict in both.routes(vec![routes(rules)]).await {
        assert_eq!((verdict.envoy, verdict.ours), (Ok(()), Ok(Vec::new())));
    }
}

/// Where each of `count` requests went: through ours, and through Envoy.
async fn answers(both: &Both, count: usize, ask: impl Fn(usize) -> Ask) -> (Vec<String>, Vec<String>) {
    let ours = through(both.through_ours(0), count, &ask).await;
    (ours, through(both.through_envoy(0), count, &ask).await)
}

async fn through(caller: &Caller, count: usize, ask: &impl Fn(usize) -> Ask) -> Vec<String> {
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let asks: Vec<_> = (task..count).step_by(TASKS).map(|n| (n, ask(n))).collect();
        let caller = caller.clone();
        tasks.spawn(async move {
            let mut went = Vec::with_capacity(asks.len());
            for (n, ask) in asks {
                let answer = caller.ask(&ask).await.unwrap();
                let at = answer.headers.get("x-at").map_or("nowhere", |at| at.to_str().unwrap());
                went.push((n, at.to_owned()));
            }
            went
        });
    }
    let mut all: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    all.sort_unstable();
    all.into_iter().map(|(_, at)| at).collect()
}
