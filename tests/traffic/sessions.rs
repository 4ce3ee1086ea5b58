//! Requests of one session go to the endpoint it began at.

use std::{sync::Arc, time::Duration};

use mesh_tower::config::{
    Action, Cluster, Config, Endpoint, Endpoints, Forward, HashCookie, Health, HttpRetry, HttpSettings, LoadBalancer,
    LocalityEndpoints, RetryConditions, RetryPolicy, RouteMatch, Session, SessionState,
};

use crate::harness::{Answer, Kind, Program, Reply, Upstream, cluster, config, route, split, to};

fn cookie() -> SessionState {
    SessionState::Cookie(HashCookie {
        name: "at".into(),
        path: "/shop".to_owned(),
        ttl: Some(Duration::from_secs(60)),
        ..HashCookie::default()
    })
}

fn kept(state: SessionState, strict: bool) -> Option<Arc<Session>> {
    Some(Arc::new(Session { state: Some(state), strict }))
}

/// The cookie of an answer as it is sent back: without its attributes.
fn back(answer: &Answer) -> String {
    answer.header("set-cookie").split(';').next().unwrap().to_owned()
}

async fn three() -> Vec<Upstream> {
    vec![Upstream::start("a").await, Upstream::start("b").await, Upstream::start("c").await]
}

fn turns(kind: Kind, name: &str, upstreams: &[Upstream]) -> Cluster {
    let all: Vec<&Upstream> = upstreams.iter().collect();
    Cluster { load_balancer: LoadBalancer::RoundRobin, ..cluster(kind, name, &all) }
}

/// With the health of the first endpoint as it is told by the control plane.
fn first_is(kind: Kind, upstreams: &[Upstream], health: Health, override_host: Vec<Health>) -> Cluster {
    let mut endpoints: Vec<_> = upstreams.iter().map(|upstream| Endpoint::from(upstream.address)).collect();
    endpoints[0].health = health;
    let locality = LocalityEndpoints { endpoints, ..LocalityEndpoints::default() };
    let endpoints = Arc::new(Endpoints { localities: vec![locality], ..Endpoints::default() });
    Cluster { endpoints, override_host, ..turns(kind, "app", upstreams) }
}

fn routed(cluster: Cluster, forward: Forward) -> Config {
    config([cluster], vec![route(RouteMatch::default(), Action::Forward(forward))])
}

/// SA2: the first answer names its endpoint in a cookie, further requests go there and get no new one; elsewhere than below
/// its path the cookie plays no part.
#[tokio::test]
async fn a_cookie_keeps_a_session_at_its_endpoint() {
    for kind in Kind::ALL {
        let upstreams = three().await;
        let forward = Forward { session: kept(cookie(), false), ..to("app") };
        let program = Program::new(kind, routed(turns(kind, "app", &upstreams), forward)).await;
        let first = program.get("/shop/cart").await;
        let at = first.header("x-upstream");
        let set = first.header("set-cookie");
        assert!(set.starts_with("at=\"") && set.ends_with("; Max-Age=60; Path=/shop; HttpOnly"), "{set}");
        for _ in 0..6 {
            let again = program.get_with("/shop/cart", &[("cookie", &back(&first))]).await;
            assert_eq!((again.header("x-upstream"), again.header("set-cookie")), (at.clone(), String::new()));
        }
        let mut elsewhere = std::collections::BTreeSet::new();
        for _ in 0..6 {
            let other = program.get_with("/shopping", &[("cookie", &back(&first))]).await;
            assert_eq!(other.header("set-cookie"), "");
            elsewhere.insert(other.header("x-upstream"));
        }
        assert_eq!(elsewhere.len(), 3);
        for bad in ["at=!", "at=AAAA", "at=\"MTAuOS45Ljk6MQ==\""] {
            let fresh = program.get_with("/shop", &[("cookie", bad)]).await;
            assert!(fresh.is_ok() && fresh.header("set-cookie").starts_with("at="), "{bad}");
        }
    }
}

/// SA2: where a route has several destinations the session stays with the one it was drawn, as long as that has a weight
/// (gRFC A60).
#[tokio::test]
async fn a_session_stays_with_its_destination() {
    for kind in Kind::ALL {
        let (old, new) = (vec![Upstream::start("old").await], vec![Upstream::start("new").await]);
        let clusters = |kind| [turns(kind, "v1", &old), turns(kind, "v2", &new)];
        let half = |weights: [(&str, u32); 2]| {
            let forward = Forward { session: kept(cookie(), false), ..split(&weights) };
            config(clusters(kind), vec![route(RouteMatch::default(), Action::Forward(forward))])
        };
        let program = Program::new(kind, half([("v1", 50), ("v2", 50)])).await;
        let first = program.get("/shop").await;
        let at = first.header("x-upstream");
        for _ in 0..20 {
            assert_eq!(program.get_with("/shop", &[("cookie", &back(&first))]).await.header("x-upstream"), at);
        }
        let gone = if at == "old" { [("v1", 0), ("v2", 1)] } else { [("v1", 1), ("v2", 0)] };
        program.mesh.live().update(&half(gone)).unwrap();
        let moved = program.get_with("/shop", &[("cookie", &back(&first))]).await;
        assert_ne!(moved.header("x-upstream"), at);
        assert!(!back(&moved).is_empty());
    }
}

/// SA2, SA3, AD9: a header that answers set and callers send back, by the port's word, and a route that has none of it: who
/// writes it pins a request to an endpoint.
#[tokio::test]
async fn a_header_keeps_a_session_too() {
    for kind in Kind::ALL {
        let upstreams = three().await;
        let off = Forward { session: Some(Arc::default()), ..to("app") };
        let path = mesh_tower::config::PathMatch::Prefix { value: "/off".to_owned(), ignore_case: false };
        let mut config = config(
            [turns(kind, "app", &upstreams)],
            vec![
                route(RouteMatch { path, ..RouteMatch::default() }, Action::Forward(off)),
                route(RouteMatch::default(), Action::Forward(to("app"))),
            ],
        );
        let settings =
            HttpSettings { session: kept(SessionState::Header("x-at".into()), false), ..HttpSettings::default() };
        config.http.insert(80, Arc::new(settings));
        let program = Program::new(kind, config).await;
        assert_eq!(program.get("/off").await.header("x-at"), "");
        let first = program.get("/").await;
        let at = first.header("x-at");
        assert!(!at.is_empty());
        for _ in 0..6 {
            let again = program.get_with("/", &[("x-at", &at)]).await;
            assert_eq!((again.header("x-upstream"), again.header("x-at")), (first.header("x-upstream"), String::new()));
        }
    }
}

/// SA3: the application's own session is wrapped on its way out, and unwrapped on its way in.
#[tokio::test]
async fn an_envelope_wraps_the_applications_own_session() {
    for kind in Kind::ALL {
        let mut upstreams = Vec::new();
        for name in ["a", "b", "c"] {
            let own = move |_: usize, _: &crate::harness::Arrival| Reply::ok().header("x-session", "mine");
            upstreams.push(Upstream::scripted(name, own).await);
        }
        let forward = Forward { session: kept(SessionState::Envelope("x-session".into()), false), ..to("app") };
        let program = Program::new(kind, routed(turns(kind, "app", &upstreams), forward)).await;
        let first = program.get("/").await;
        let at = first.header("x-session");
        assert!(at.ends_with(";UV:bWluZQ=="), "{at}");
        for _ in 0..4 {
            let again = program.get_with("/", &[("x-session", &at)]).await;
            assert_eq!(
                (again.header("x-upstream"), again.header("x-session")),
                (first.header("x-upstream"), at.clone())
            );
        }
        let upstream = upstreams.iter().find(|upstream| upstream.name == first.header("x-upstream")).unwrap();
        assert_eq!(upstream.last().header("x-session"), "mine");
    }
}

/// SA2, SA4: an endpoint that drains keeps its sessions where that is allowed and gets no others; where it is not, the session
/// moves, or is refused if it is strict.
#[tokio::test]
async fn a_draining_endpoint_keeps_its_sessions() {
    for kind in Kind::ALL {
        for (allowed, strict, stays, status) in
            [(true, false, true, 200), (false, false, false, 200), (true, true, true, 200), (false, true, false, 503)]
        {
            let upstreams = three().await;
            let override_host = match allowed {
                true => vec![Health::Healthy, Health::Draining],
                false => Cluster::default().override_host,
            };
            let forward = || Forward { session: kept(cookie(), strict), ..to("app") };
            let healthy = first_is(kind, &upstreams, Health::Healthy, override_host.clone());
            let program = Program::new(kind, routed(healthy, forward())).await;
            let session = loop {
                let answer = program.get("/shop").await;
                if answer.header("x-upstream") == "a" {
                    break back(&answer);
                }
            };
            let draining = first_is(kind, &upstreams, Health::Draining, override_host);
            program.mesh.live().update(&routed(draining, forward())).unwrap();
            let answer = program.get_with("/shop", &[("cookie", &session)]).await;
            assert!(answer.is(kind, status) || (status == 200 && answer.is_ok()), "{kind:?} {allowed} {strict}");
            assert_eq!(answer.header("x-upstream") == "a", stays, "{kind:?} {allowed} {strict}");
            for _ in 0..6 {
                assert_ne!(program.get("/shop").await.header("x-upstream"), "a");
            }
        }
    }
}

/// SA5: every try of a request is at its session's endpoint, unless the policy has retries go elsewhere.
#[tokio::test]
async fn retries_stay_with_the_session() {
    for kind in Kind::ALL {
        for (avoid, tries) in [(0, 3), (5, 1)] {
            let mut upstreams = Vec::new();
            for name in ["a", "b", "c"] {
                // The first is fine until it has a session.
                let fails = move |n: usize, _: &crate::harness::Arrival| match name {
                    "a" if n > 0 => Reply::unavailable(),
                    _ => Reply::ok(),
                };
                upstreams.push(Upstream::scripted(name, fails).await);
            }
            let conditions = RetryConditions {
                http: vec![HttpRetry::ServerError],
                grpc: vec![mesh_tower::config::GrpcRetry::Unavailable],
                ..RetryConditions::default()
            };
            let retry =
                RetryPolicy { on: conditions, retries: 2, avoid_previous_hosts: avoid, ..RetryPolicy::default() };
            let forward = Forward { session: kept(cookie(), false), retry: Some(retry), ..to("app") };
            let program = Program::new(kind, routed(turns(kind, "app", &upstreams), forward)).await;
            let session = loop {
                let answer = program.get("/shop").await;
                if answer.header("x-upstream") == "a" {
                    break back(&answer);
                }
            };
            let before = upstreams[0].count();
            let answer = program.get_with("/shop", &[("cookie", &session)]).await;
            assert_eq!((upstreams[0].count() - before, answer.is_ok()), (tries, avoid > 0), "{kind:?}");
        }
    }
}
