//! Hashing, warming up and places, as destination rules ask for them.

use std::time::Duration;

use mesh_core::config::{HashCookie, HashSource, LoadBalancer, Maglev, RingHash, SlowStart};

use super::*;

fn balanced(balancer: &str) -> mesh_core::config::Cluster {
    let mut mesh = Mesh::bookinfo();
    mesh.apply(&format!("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews}}\nspec:\n  host: reviews\n  trafficPolicy:\n    loadBalancer: {balancer}\n"));
    let config = mesh.config(&node("productpage-v1"));
    (*config.clusters[&*format!("outbound|9080||{REVIEWS}")]).clone()
}

/// SA1, LB16: each form of consistent hashing says what is hashed and where it is looked up.
#[test]
fn consistent_hashing_says_what_and_where() {
    let ring = |min_size| LoadBalancer::RingHash(RingHash { min_size, ..RingHash::default() });
    let cookie = HashCookie {
        name: "user".into(),
        ttl: Some(Duration::from_secs(5)),
        path: "/x".into(),
        attributes: Vec::new(),
    };
    for (hash, source, balancer) in [
        ("{httpHeaderName: X-User}", HashSource::Header { name: "x-user".into(), rewrite: None }, ring(1024)),
        ("{useSourceIp: true, minimumRingSize: 7}", HashSource::SourceIp, ring(7)),
        ("{httpQueryParameterName: u, ringHash: {minimumRingSize: 9}}", HashSource::Query("u".into()), ring(9)),
        (
            "{httpCookie: {name: user, ttl: 5s, path: /x}, maglev: {tableSize: 11}}",
            HashSource::Cookie(cookie),
            LoadBalancer::Maglev(Maglev { table_size: 11, ..Maglev::default() }),
        ),
    ] {
        let cluster = balanced(&format!("{{consistentHash: {hash}}}"));
        assert_eq!(cluster.load_balancer, balancer, "{hash}");
        assert_eq!(cluster.hash.iter().map(|policy| &policy.source).collect::<Vec<_>>(), [&source], "{hash}");
    }
}

/// LB20: both ways of warming up.
#[test]
fn warming_up_is_slow_start() {
    let slow = |seconds, aggression, min_percent| {
        Some(SlowStart { window: Duration::from_secs(seconds), aggression, min_percent })
    };
    for (text, expected) in [
        ("{simple: ROUND_ROBIN, warmupDurationSecs: 30s}", slow(30, 1.0, 10.0)),
        ("{simple: ROUND_ROBIN, warmup: {duration: 60s, minimumPercent: 20, aggression: 2}}", slow(60, 2.0, 20.0)),
        ("{simple: ROUND_ROBIN}", None),
    ] {
        assert_eq!(balanced(text).slow_start, expected, "{text}");
    }
}
