//! Endpoints of every kind: by what they say of themselves, with several addresses, at Unix sockets, in any state of health, or none.

use std::sync::Arc;

use mesh_tower::config::{
    Action, Cluster, Criteria, Endpoint, EndpointAddress, EndpointMore, Endpoints, Forward, Health, LoadBalancer,
    Locality, LocalityEndpoints, Metadata, RouteMatch, SubsetFallback, SubsetSelector, Subsets, WeightedCluster,
};
use tokio::net::TcpListener;

use crate::harness::{Answer, Kind, Program, Upstream, cluster, config, route, to};

fn with(cluster: Cluster, endpoints: Vec<Endpoint>) -> Cluster {
    let localities = vec![LocalityEndpoints { endpoints, ..LocalityEndpoints::default() }];
    let endpoints = Arc::new(Endpoints { localities, ..Endpoints::default() });
    Cluster { endpoints, load_balancer: LoadBalancer::RoundRobin, ..cluster }
}

fn metadata(pairs: &[(&str, &str)]) -> Metadata {
    pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

fn saying(upstream: &Upstream, pairs: &[(&str, &str)]) -> Endpoint {
    let more = EndpointMore { metadata: metadata(pairs), ..EndpointMore::default() };
    Endpoint { more: Some(Arc::new(more)), ..Endpoint::from(upstream.address) }
}

/// Whom so many requests reach.
async fn reached(program: &Program, path: &str, requests: usize) -> Vec<String> {
    let mut seen = Vec::new();
    for _ in 0..requests {
        let answer = program.get(path).await;
        seen.push(if answer.is_ok() { answer.header("x-upstream") } else { answer.flags });
    }
    seen.sort_unstable();
    seen.dedup();
    seen
}

fn asking(path: &str, pairs: &[(&str, &str)]) -> mesh_tower::config::Route {
    let criteria = Criteria { metadata: metadata(pairs), ..Criteria::default() };
    let only = WeightedCluster { cluster: "app".into(), weight: 1, criteria, ..WeightedCluster::default() };
    let matches = RouteMatch {
        path: mesh_tower::config::PathMatch::Prefix { value: path.to_owned(), ignore_case: false },
        ..RouteMatch::default()
    };
    route(matches, Action::Forward(Forward { clusters: vec![only], ..Forward::default() }))
}

/// RA8, NR10: a route asks for endpoints by what they say of themselves; what no endpoint is goes by the fallback.
#[tokio::test]
async fn routes_ask_for_endpoints_by_label() {
    for kind in Kind::ALL {
        let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
        let three = Upstream::start("three").await;
        let endpoints = vec![
            saying(&one, &[("stage", "prod"), ("version", "v1")]),
            saying(&two, &[("stage", "prod"), ("version", "v2")]),
            saying(&three, &[("stage", "test"), ("version", "v2")]),
        ];
        let selector = |keys: &[&str]| SubsetSelector {
            keys: keys.iter().map(|key| (*key).into()).collect(),
            ..SubsetSelector::default()
        };
        let subsets = |fallback| Subsets {
            selectors: vec![selector(&["version"]), selector(&["stage", "version"])],
            fallback,
            default: metadata(&[("stage", "prod")]),
            ..Subsets::default()
        };
        for (fallback, nobody) in [
            (SubsetFallback::None, vec!["UH"]),
            (SubsetFallback::Default, vec!["one", "two"]),
            (SubsetFallback::Any, vec!["one", "three", "two"]),
        ] {
            let app = with(cluster(kind, "app", &[]), endpoints.clone());
            let app = Cluster { subsets: Some(Arc::new(subsets(fallback))), ..app };
            let routes = vec![
                asking("/v1", &[("version", "v1")]),
                asking("/v2", &[("version", "v2")]),
                asking("/test", &[("stage", "test"), ("version", "v2")]),
                asking("/nobody", &[("version", "v3")]),
                asking("/", &[]),
            ];
            let program = Program::new(kind, config([app], routes)).await;
            assert_eq!(reached(&program, "/v1", 6).await, ["one"], "{kind:?}");
            assert_eq!(reached(&program, "/v2", 6).await, ["three", "two"], "{kind:?}");
            assert_eq!(reached(&program, "/test", 6).await, ["three"], "{kind:?}");
            assert_eq!(reached(&program, "/nobody", 9).await, nobody, "{kind:?}");
            assert_eq!(reached(&program, "/", 9).await, nobody, "{kind:?}");
        }
    }
}

/// NR9: an endpoint with several addresses is one endpoint, reached at whichever of them answers.
#[tokio::test]
async fn an_endpoint_may_have_several_addresses() {
    for kind in Kind::ALL {
        let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
        let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let more = EndpointMore { addresses: vec![one.address], ..EndpointMore::default() };
        let both = Endpoint { more: Some(Arc::new(more)), ..Endpoint::from(refused) };
        let app = with(cluster(kind, "app", &[]), vec![both, Endpoint::from(two.address)]);
        let program =
            Program::new(kind, config([app], vec![route(RouteMatch::default(), Action::Forward(to("app")))])).await;
        for _ in 0..20 {
            let answer = program.get("/").await;
            assert!(answer.is_ok(), "{kind:?}: {answer:?}");
        }
        // Half of the requests each: weight is by endpoint, not by address.
        assert_eq!((one.count(), two.count()), (10, 10), "{kind:?}");
    }
}

/// NR8: what the control plane says of an endpoint decides whether it gets requests; degraded ones come last.
#[tokio::test]
async fn health_as_the_control_plane_says() {
    for kind in Kind::ALL {
        let mut upstreams = Vec::new();
        for name in ["well", "draining", "unhealthy", "degraded"] {
            upstreams.push(Upstream::start(name).await);
        }
        let healths = [Health::Healthy, Health::Draining, Health::Unhealthy, Health::Degraded];
        let program = |skip: usize| {
            let all = upstreams.iter().zip(healths).skip(skip);
            let endpoints = all.map(|(upstream, health)| Endpoint { health, ..Endpoint::from(upstream.address) });
            // Otherwise so few that are well are panic.
            let app = Cluster { panic_threshold: 0, ..with(cluster(kind, "app", &[]), endpoints.collect()) };
            let overprovisioned = Endpoints { overprovisioning: 1_000, ..(*app.endpoints).clone() };
            let app = Cluster { endpoints: Arc::new(overprovisioned), ..app };
            Program::new(kind, config([app], vec![route(RouteMatch::default(), Action::Forward(to("app")))]))
        };
        assert_eq!(reached(&program(0).await, "/", 10).await, ["well"], "{kind:?}");
        assert_eq!(reached(&program(1).await, "/", 10).await, ["degraded"], "{kind:?}");
    }
}

/// NR12: without an endpoint that can be used the answer says which cluster has none, and an aggregate moves on at once.
#[tokio::test]
async fn an_empty_cluster_says_so() {
    for kind in Kind::ALL {
        let other = Upstream::start("other").await;
        let empty = cluster(kind, "empty", &[]);
        let sick = Endpoint { health: Health::Unhealthy, ..Endpoint::from(other.address) };
        let sick = Cluster { panic_threshold: 0, ..with(cluster(kind, "sick", &[]), vec![sick]) };
        let either = Cluster {
            discovery: mesh_tower::config::Discovery::Aggregate(vec!["empty".into(), "sick".into(), "other".into()]),
            ..cluster(kind, "either", &[])
        };
        let clusters = [empty, sick, either, cluster(kind, "other", &[&other])];
        for (name, flags) in [("empty", "UH"), ("sick", "UH"), ("either", "-")] {
            let routes = vec![route(RouteMatch::default(), Action::Forward(to(name)))];
            let answer: Answer = Program::new(kind, config(clusters.clone(), routes)).await.get("/").await;
            assert_eq!(answer.flags, flags, "{kind:?} {name}: {answer:?}");
            match flags {
                "-" => assert!(answer.is_ok() && answer.header("x-upstream") == "other", "{kind:?}: {answer:?}"),
                _ => assert!(answer.is(kind, 503), "{kind:?} {name}: {answer:?}"),
            }
        }
    }
}

/// NR16: an endpoint may be a Unix domain socket, with a file or, on Linux, without one.
#[cfg(unix)]
#[tokio::test]
async fn an_endpoint_may_be_a_unix_socket() {
    use std::os::unix::net::UnixListener;

    let folder = tempfile::tempdir().unwrap();
    for kind in Kind::ALL {
        let path = folder.path().join(format!("{kind:?}.sock"));
        let mut places = vec![(path.to_str().unwrap().to_owned(), UnixListener::bind(&path).unwrap())];
        #[cfg(target_os = "linux")]
        {
            use std::os::linux::net::SocketAddrExt;
            let name = format!("mesh-test-{}-{kind:?}", std::process::id());
            let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
            places.push((format!("@{name}"), UnixListener::bind_addr(&address).unwrap()));
        }
        for (path, listener) in places {
            let upstream = Upstream::at_unix("unix", listener);
            let endpoint = Endpoint::at(EndpointAddress::Unix(path.clone()));
            let app = with(cluster(kind, "app", &[]), vec![endpoint]);
            let routes = vec![route(RouteMatch::default(), Action::Forward(to("app")))];
            let answer = Program::new(kind, config([app], routes)).await.get("/").await;
            assert!(answer.is_ok() && upstream.count() == 1, "{kind:?} {path}: {answer:?}");
        }
    }
}

/// LO4: a locality's share is its weight times what it can take: 1.4 times the part of it that is well, and all of it at most.
#[tokio::test]
async fn a_sick_locality_gets_less_than_its_weight() {
    for kind in Kind::ALL {
        let (sick, well) = (Upstream::start("sick").await, Upstream::start("well").await);
        let mut listeners = Vec::new();
        let mut others = async |health| {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = Endpoint { health, ..Endpoint::from(listener.local_addr().unwrap()) };
            listeners.push(listener);
            endpoint
        };
        let mut first = vec![Endpoint::from(sick.address)];
        for _ in 0..3 {
            first.push(others(Health::Unhealthy).await);
        }
        let place = |zone: &str, weight, endpoints| LocalityEndpoints {
            locality: Locality { zone: zone.into(), ..Locality::default() },
            weight: Some(weight),
            endpoints,
            ..LocalityEndpoints::default()
        };
        let localities = vec![place("a", 3, first), place("b", 1, vec![Endpoint::from(well.address)])];
        let endpoints = Arc::new(Endpoints { localities, ..Endpoints::default() });
        // Two of five are well, which is no panic here.
        let app = Cluster { endpoints, locality_weighted: true, panic_threshold: 0, ..cluster(kind, "app", &[]) };
        let rules = vec![route(RouteMatch::default(), Action::Forward(to("app")))];
        let program = Program::new(kind, config([app], rules)).await;
        for _ in 0..400 {
            assert!(program.get("/").await.is_ok(), "{kind:?}");
        }
        // 3 x 1.4 / 4 = 1.05 to 1. Binomial(400, 1.05 / 2.05): mean 205, five standard deviations are 50. By weight alone it were
        // 300, by health alone 104.
        assert!((155..=255).contains(&sick.count()), "{kind:?}: {}", sick.count());
        assert_eq!(sick.count() + well.count(), 400, "{kind:?}");
    }
}
