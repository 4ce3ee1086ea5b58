//! Deciding one request allocates nothing: plan, pick and finish, with many rules, several header values and ejected
//! endpoints. Counted by an allocator of this test alone.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use mesh_core::{
    config::{
        Action, Cluster, Config, Endpoint, EndpointAddress, Endpoints, Forward, HeaderChanges, HeaderMatch,
        HeaderMatcher, Health, LeastRequest, LoadBalancer, LocalityEndpoints, OutlierDetection, PathMatch, Route,
        RouteMatch, RouteTable, StringMatch, VirtualHost, WeightedCluster,
    },
    endpoint::Tried,
    outcome::Outcome,
    pick::Ask,
    request::RequestView,
    retry::RetryBudget,
    rng::RequestRng,
    snapshot::Snapshot,
    time::Time,
};

/// RM23: plan and pick allocate nothing, with every load balancer.
#[test]
fn plan_and_pick_allocate_nothing() {
    for policy in [
        LoadBalancer::RoundRobin,
        LoadBalancer::Random,
        LoadBalancer::PeakEwma,
        LoadBalancer::LeastRequest(LeastRequest::default()),
    ] {
        let snapshot = Snapshot::compile(&config(policy.clone()), None).unwrap();
        let budget = RetryBudget::new();
        let requests = ["http://Host7:9080/prefix/7/x?a=b", "http://host7:9080/exact/9", "http://a.wild:9080/other"];
        for uri in requests {
            let request = http::Request::builder().uri(uri).header("end-user", "a").header("end-user", "b");
            let (parts, ()) = request.body(()).unwrap().into_parts();
            let mut answered = 0;
            let mut requests = || {
                let mut now = Time::ZERO;
                for n in 0..1_000 {
                    let mut rng = RequestRng::new(1, n);
                    budget.deposit();
                    let plan = snapshot.plan(&RequestView::of(&parts, None), &mut rng).unwrap();
                    let mut tried = Tried::avoiding();
                    for _ in 0..2 {
                        let pick = plan
                            .cluster()
                            .unwrap()
                            .pick(&Ask { hash: plan.hash, ..Ask::from(&tried) }, now, &mut rng)
                            .unwrap();
                        tried.push(pick.endpoint());
                        let bad = n % 3 == 0;
                        pick.finish(
                            &Outcome::response(if bad { 503 } else { 200 }),
                            now + Duration::from_millis(n % 7),
                        );
                        answered += 1;
                    }
                    now = now + Duration::from_millis(20);
                }
            };
            // What happened to endpoints is kept until it is told, in a list that grows to what it needs.
            requests();
            snapshot.cluster("reviews").unwrap().take_events();
            let counted = allocation_counter::measure(&mut requests);
            assert_eq!((answered, counted.count_total), (4_000, 0), "{policy:?} {uri}");
        }
    }
}

fn config(load_balancer: LoadBalancer) -> Config {
    let mut config = Config::default();
    let mut virtual_hosts: Vec<_> = (0..20).map(|n| host(&format!("host{n}"))).collect();
    virtual_hosts.push(host("*.wild"));
    let table = RouteTable { virtual_hosts, ignore_port: true, ..RouteTable::default() };
    config.outbound.insert(9080, Arc::new(table));
    let endpoint = |port: u16| Endpoint {
        address: EndpointAddress::Socket(([127, 0, 0, 1], port).into()),
        weight: u32::from(port),
        health: Health::Healthy,
        mtls: false,
        workload: None,
        hostname: "".into(),
        hash_key: None,
    };
    let localities = vec![LocalityEndpoints { endpoints: (1..10).map(endpoint).collect(), ..Default::default() }];
    let cluster = Cluster {
        name: "reviews".into(),
        load_balancer,
        endpoints: Arc::new(Endpoints { localities, ..Default::default() }),
        outlier_detection: Some(OutlierDetection {
            consecutive_5xx: 2,
            max_ejection_percent: 40,
            ..OutlierDetection::default()
        }),
        ..Cluster::default()
    };
    config.clusters.insert("reviews".into(), Arc::new(cluster));
    config
}

fn host(domain: &str) -> Arc<VirtualHost> {
    let exact = (0..100).map(|n| PathMatch::Exact { value: format!("/exact/{n}"), ignore_case: false });
    let prefix = (0..100).map(|n| PathMatch::Prefix { value: format!("/prefix/{n}/"), ignore_case: false });
    let mut routes: Vec<_> = exact.chain(prefix).map(|path| route(path, Some("a,b"))).collect();
    routes.push(route(PathMatch::any(), None));
    Arc::new(VirtualHost { name: domain.into(), domains: vec![domain.into()], routes, ..VirtualHost::default() })
}

fn route(path: PathMatch, user: Option<&str>) -> Route {
    let header = |user: &str| HeaderMatch {
        name: "end-user".into(),
        matcher: HeaderMatcher::Value(StringMatch::Exact { value: user.into(), ignore_case: false }),
        invert: false,
        missing_as_empty: false,
    };
    let to = WeightedCluster { cluster: "reviews".into(), weight: 1, ..WeightedCluster::default() };
    Route {
        name: "".into(),
        origin: None,
        matches: RouteMatch { path, headers: user.map(header).into_iter().collect(), ..RouteMatch::default() },
        action: Action::Forward(Forward { clusters: vec![to], ..Forward::default() }),
        fault: None,
        headers: HeaderChanges::default(),
        operation: None,
    }
}
