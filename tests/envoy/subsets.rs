//! Which endpoints a request with criteria goes to: ours and Envoy's, for every fallback.
//!
//! Endpoints say of themselves what stage and version they are; routes ask for both, one or none, for what is there and for what is
//! not. Each side is asked often enough that every endpoint that can be picked is.

use std::{collections::BTreeSet, sync::Arc};

use mesh_xds::proto::envoy::config::{
    cluster::v3::{
        Cluster,
        cluster::{
            LbSubsetConfig,
            lb_subset_config::{
                LbSubsetFallbackPolicy, LbSubsetSelector, lb_subset_selector::LbSubsetSelectorFallbackPolicy as Own,
            },
        },
    },
    core::v3::Metadata,
    route::v3::RouteAction,
};
use prost::Message;

use crate::{
    ask::{Ask, Caller},
    both::{Both, cluster, route, routes, to},
    process::Options,
    upstream::{Upstream, answer},
};

/// How often each route is asked on each side: three endpoints take turns, or none is there.
const ASKS: usize = 9;

/// A field of protobuf's bytes; all of it is short.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(value.len()).unwrap()], value].concat()
}

/// A `Struct` of texts.
fn texts(pairs: &[(&str, &str)]) -> Vec<u8> {
    let entry = |(key, value): &(&str, &str)| {
        field(1, &[field(1, key.as_bytes()), field(2, &field(3, value.as_bytes()))].concat())
    };
    pairs.iter().flat_map(entry).collect()
}

fn metadata(pairs: &[(&str, &str)]) -> Metadata {
    let entry = [field(1, b"envoy.lb"), field(2, &texts(pairs))].concat();
    Metadata::decode(field(1, &entry).as_slice()).unwrap()
}

fn selector(keys: &[&str], fallback: Own, fewer: &[&str]) -> LbSubsetSelector {
    let names = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
    LbSubsetSelector {
        keys: names(keys),
        fallback_policy: fallback.into(),
        fallback_keys_subset: names(fewer),
        ..LbSubsetSelector::default()
    }
}

/// RA8: the same endpoints for every combination of criteria and fallbacks, and nobody where Envoy has nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_endpoints_are_asked_for() {
    let Some(mut both) = Both::start(&Options::default()).await else { return };
    let said = [("prod", "v1"), ("prod", "v2"), ("test", "v2")];
    let mut upstreams = Vec::new();
    for (stage, version) in said {
        let name: Arc<str> = format!("{stage}-{version}").into();
        let at = Arc::clone(&name);
        upstreams.push(
            Upstream::start(&name, move |_| {
                let at = Arc::clone(&at);
                async move { Some(answer(200, &[("x-at", &at)], "")) }
            })
            .await,
        );
    }
    let mut clusters = Vec::new();
    for fallback in
        [LbSubsetFallbackPolicy::NoFallback, LbSubsetFallbackPolicy::AnyEndpoint, LbSubsetFallbackPolicy::DefaultSubset]
    {
        for (own, fewer) in [(Own::NotDefined, vec![]), (Own::NoFallback, vec![]), (Own::KeysSubset, vec!["version"])] {
            let mut cluster = cluster(&format!("{fallback:?}-{own:?}"), upstreams.iter().map(Upstream::address));
            let endpoints = &mut cluster.load_assignment.as_mut().unwrap().endpoints[0].lb_endpoints;
            for (endpoint, (stage, version)) in endpoints.iter_mut().zip(said) {
                endpoint.metadata = Some(metadata(&[("stage", stage), ("version", version)]));
            }
            let default = LbSubsetConfig::decode(field(2, &texts(&[("stage", "prod")])).as_slice()).unwrap();
            let subsets = LbSubsetConfig {
                fallback_policy: fallback.into(),
                subset_selectors: vec![
                    selector(&["stage", "version"], own, &fewer),
                    selector(&["version"], Own::NotDefined, &[]),
                ],
                ..default
            };
            clusters.push(Cluster { lb_subset_config: Some(subsets), ..cluster });
        }
    }
    both.clusters(&clusters).await;
    let criteria = [
        vec![],
        vec![("version", "v1")],
        vec![("version", "v2")],
        vec![("version", "v3")],
        vec![("stage", "prod")],
        vec![("stage", "test"), ("version", "v2")],
        vec![("stage", "test"), ("version", "v1")],
        vec![("stage", "prod"), ("version", "v3")],
    ];
    let mut rules = Vec::new();
    for cluster in &clusters {
        for (n, pairs) in criteria.iter().enumerate() {
            let metadata_match = (!pairs.is_empty()).then(|| metadata(pairs));
            rules.push(route(&format!("/{}/{n}", cluster.name), RouteAction { metadata_match, ..to(&cluster.name) }));
        }
    }
    for verdict in both.routes(vec![routes(rules)]).await {
        assert_eq!((verdict.envoy, verdict.ours), (Ok(()), Ok(Vec::new())));
    }
    let mut seen = BTreeSet::new();
    for cluster in &clusters {
        for (n, pairs) in criteria.iter().enumerate() {
            let path = format!("/{}/{n}", cluster.name);
            let ours = reached(both.through_ours(0), &path).await;
            let envoys = reached(both.through_envoy(0), &path).await;
            assert_eq!(ours, envoys, "{} {pairs:?}", cluster.name);
            seen.insert(ours);
        }
    }
    assert!(seen.len() > 4, "{seen:?}");
}

/// Who answers, over several requests.
async fn reached(caller: &Caller, path: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    for _ in 0..ASKS {
        let answer = caller.ask(&Ask::get("host", path)).await.unwrap();
        let at = answer.headers.get("x-at").map(|at| at.to_str().unwrap().to_owned());
        reached.insert(at.unwrap_or_else(|| answer.status.to_string()));
    }
    reached
}
