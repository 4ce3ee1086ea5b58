//! Deciding one request allocates nothing: plan, pick and finish, with many rules, several header values and ejected
//! endpoints. Counted by an allocator of this test alone.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use mesh_core::{
    config::{
        Action, ClientWeighted, Cluster, Config, Endpoint, EndpointAddress, Endpoints, Forward, HeaderChanges,
        HeaderMatch, HeaderMatcher, Health, LeastRequest, LoadBalancer, LocalityEndpoints, Maglev, OutlierDetection,
        PathMatch, PickFirst, RingHash, Route, RouteMatch, RouteTable, StringMatch, VirtualHost, WeightedCluster,
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
        LoadBalancer::LeastRequest(LeastRequest { choices: 5, bias: 1.5 }),
        LoadBalancer::RingHash(RingHash::default()),
        LoadBalancer::Maglev(Maglev::default()),
        LoadBalancer::ClientWeighted(ClientWeighted::default()),
        LoadBalancer::PickFirst(PickFirst::default()),
    ] {
        let mut config = config(policy.clone());
        // Counted for reports of load, which is to cost no more.
        if matches!(policy, LoadBalancer::RoundRobin | LoadBalancer::LeastRequest(_)) {
            config.clusters.values_mut().for_each(|cluster| Arc::make_mut(cluster).load_reports = Some(Arc::default()));
        }
        let snapshot = Snapshot::compile(&config, None).unwrap();
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
            for _ in 0..3 {
                requests();
                snapshot.cluster("reviews").unwrap().take_events();
            }
            let counted = allocation_counter::measure(&mut requests);
            assert_eq!((answered, counted.count_total), (8_000, 0), "{policy:?} {uri}");
        }
    }
}

/// RM23: what a mesh holds in memory follows from its size, and an update of one cluster copies none of the others.
#[test]
fn memory_follows_size() {
    let mesh = |services: usize, endpoints: u8| {
        let (mut config, mut snapshot) = (None, None);
        let of_config = allocation_counter::measure(|| config = Some(large(services, endpoints)));
        let of_snapshot =
            allocation_counter::measure(|| snapshot = Some(Snapshot::compile(config.as_ref().unwrap(), None).unwrap()));
        (of_config.bytes_current, of_snapshot.bytes_current, config.unwrap(), snapshot.unwrap())
    };
    let (few, more, wide) = (mesh(500, 1), mesh(1_000, 1), mesh(500, 11));
    let per = |a: i64, b: i64, count: i64| (b - a) / count;
    let service = (per(few.0, more.0, 500), per(few.1, more.1, 500));
    let endpoint = (per(few.0, wide.0, 5_000), per(few.1, wide.1, 5_000));
    println!("a service with its cluster, route and endpoint: {service:?}; a further endpoint: {endpoint:?}");
    assert!(service.0 < 4_000 && service.1 < 700, "{service:?}");
    // Endpoints of clusters that no request has gone to are in the configuration alone.
    assert!(endpoint.0 < 100 && endpoint.1 == 0, "{endpoint:?}");
    let used = allocation_counter::measure(|| assert!(wide.3.cluster("service-7").is_some()));
    println!("a cluster of eleven endpoints in use: {} bytes", used.bytes_current);
    assert!((1_000..6_000).contains(&used.bytes_current), "{used:?}");

    // Of a thousand clusters one is changed: what is allocated is one chunk of each map, and the cluster.
    let (mut config, snapshot) = (more.2, more.3);
    let changed = Arc::new(of_service(500, 2));
    let counted = allocation_counter::measure(|| {
        let mut next = config.clone();
        next.clusters.insert(changed.name.clone(), changed.clone());
        config = next;
        drop(Snapshot::compile(&config, Some(&snapshot)).unwrap());
    });
    println!("one changed cluster: {} allocations, {} bytes", counted.count_total, counted.bytes_total);
    assert!(counted.count_total < 100 && counted.bytes_total < 40_000, "{counted:?}");
}

fn large(services: usize, endpoints: u8) -> Config {
    let host = |n: usize| {
        let to = WeightedCluster { cluster: format!("service-{n}").into(), weight: 1, ..WeightedCluster::default() };
        let action = Action::Forward(Forward { clusters: vec![to], ..Forward::default() });
        let routes = vec![Route { action, ..route(PathMatch::any(), None) }];
        let name = format!("service-{n}");
        Arc::new(VirtualHost { name: name.as_str().into(), domains: vec![name], routes, ..VirtualHost::default() })
    };
    let table = RouteTable { virtual_hosts: (0..services).map(host).collect(), ..RouteTable::default() };
    let clusters = (0..services).map(|n| of_service(n, endpoints)).map(|of| (of.name.clone(), Arc::new(of)));
    Config { outbound: [(80, Arc::new(table))].into(), clusters: clusters.collect(), ..Config::default() }
}

fn of_service(n: usize, endpoints: u8) -> Cluster {
    let endpoint = |at: u8| Endpoint::from(std::net::SocketAddr::from(([10, (n >> 8) as u8, n as u8, at], 80)));
    let mut listed = Vec::with_capacity(endpoints.into());
    listed.extend((0..endpoints).map(endpoint));
    let localities = vec![LocalityEndpoints { endpoints: listed, ..Default::default() }];
    let endpoints = Arc::new(Endpoints { localities, ..Default::default() });
    Cluster { name: format!("service-{n}").into(), endpoints, ..Cluster::default() }
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
        more: None,
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
