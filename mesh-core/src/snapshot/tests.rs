//! Planning and compiling whole configurations: routes to clusters, sharing with the previous snapshot, admission, and that
//! `explain` tells what `plan` does.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use http::request::Parts;

use super::*;
use crate::{
    admit::{Admit, InboundView},
    authz::Heard,
    config::{
        Abort, AbortStatus, Action, DirectResponse, Endpoint, EndpointAddress, Endpoints, Fault, FaultDelay, Forward,
        Fraction, HeaderChange, HeaderChanges, HeaderMatch, HeaderMatcher, Inbound, LocalityEndpoints, Mirror,
        MtlsMode, PathMatch, Redirect, RetryPolicy, Route, RouteMatch, StringMatch, VirtualHost, WeightedCluster,
    },
    identity::SpiffeId,
    outcome::Flags,
    pick::Ask,
    rng::RequestRng,
    time::Time,
};

mod changes;

/// RM1, RA1: the first rule that matches decides, in the order of the configuration and not by length.
#[test]
fn the_first_matching_rule_wins() {
    for fillers in [0, 20] {
        let mut routes = vec![
            route("jason", when("/", Some("jason")), to(&[("v2", 1)])),
            route("short", when("/a", None), to(&[("v1", 1)])),
            route("long", when("/a/b", None), to(&[("v3", 1)])),
        ];
        // More rules than are tried in turn.
        routes.extend((0..fillers).map(|n| route("filler", when(&format!("/filler/{n}"), None), to(&[("v3", 1)]))));
        let snapshot = Snapshot::compile(&config(routes), None).unwrap();
        for (path, user, expected) in [
            ("/a/b", None, Ok("v1")),
            ("/a/b", Some("jason"), Ok("v2")),
            ("/filler/0", Some("jason"), Ok("v2")),
            ("/b", None, Err(NoRoute::Rule)),
        ] {
            let planned = plan(&snapshot, &request(&format!("http://reviews:9080{path}"), user), 0);
            assert_eq!(
                planned.as_ref().map(cluster).map_err(|error| *error),
                expected.map(str::to_owned),
                "{path} {user:?}"
            );
        }
        for (uri, expected) in
            [("http://reviews:9081/a", NoRoute::Port(9081)), ("http://ratings:9080/a", NoRoute::VirtualHost)]
        {
            assert_eq!(plan(&snapshot, &request(uri, None), 0).unwrap_err(), expected);
        }
    }
}

/// RA3, RA4: a 50/50 split is drawn once a request, and every pick of a plan stays in the drawn cluster.
#[test]
fn a_split_is_drawn_once() {
    let snapshot = compile(&config(vec![route("", when("/", None), to(&[("v1", 50), ("v3", 50)]))]), None);
    let mut first = 0;
    for n in 0..2_000 {
        let mut rng = RequestRng::new(11, n);
        let parts = request("http://reviews:9080/", None);
        let plan = snapshot.plan(&RequestView::of(&parts, None), &mut rng).unwrap();
        let name = cluster(&plan);
        first += u32::from(name == "v1");
        for _ in 0..3 {
            let pick = plan.cluster().unwrap().pick(&Ask::default(), Time::ZERO, &mut rng).unwrap();
            assert_eq!(**pick.cluster().name(), *name);
        }
    }
    assert_eq!(first, 1_000, "each window of two has one of each");
}

/// RA1: a route to a cluster that does not exist plans nothing else, so that the caller answers 503 with `NC`.
#[test]
fn a_missing_cluster_is_told() {
    let snapshot = compile(&config(vec![route("", when("/", None), to(&[("nowhere", 1)]))]), None);
    let plan = plan(&snapshot, &request("http://reviews:9080/", None), 0).unwrap();
    assert!(matches!(plan.target, Target::NoCluster(name) if &*name == "nowhere"));
}

/// RA9, RA10, RA15: direct responses, redirects and per-route policy come with the plan.
#[test]
fn actions_and_policy_of_the_route() {
    let mut forward = forward(&[("v1", 1)]);
    forward.timeout = Some(Duration::from_millis(500));
    let redirect = Redirect { status: 307, host: Some("new".into()), ..Redirect::default() };
    let respond = DirectResponse { status: 418, body: "tea".into() };
    let snapshot = compile(
        &config(vec![
            route("r", when("/redirect", None), Action::Redirect(redirect)),
            route("d", when("/respond", None), Action::DirectResponse(respond)),
            route("f", when("/", None), Action::Forward(forward)),
        ]),
        None,
    );
    let plan = |path: &str| plan(&snapshot, &request(&format!("http://reviews:9080{path}"), None), 0).unwrap();
    let redirected = plan("/redirect");
    assert!(matches!(redirected.target, Target::Redirect));
    assert_eq!(redirected.route.redirect.as_ref().unwrap().status, 307);
    let responded = plan("/respond");
    assert!(matches!(responded.target, Target::Respond));
    assert_eq!(responded.route.respond.as_ref().unwrap().body, "tea");
    assert_eq!(plan("/").route.timeout, Some(Duration::from_millis(500)));
    assert_eq!((&*plan("/").route.name, &*plan("/").route.virtual_host), ("f", "reviews"));
}

/// RT5: a route's retry policy replaces its virtual host's whole.
#[test]
fn retry_policies_replace_and_do_not_merge() {
    let per_try_timeout = Some(Duration::from_secs(1));
    let mut own = forward(&[("v1", 1)]);
    own.retry = Some(RetryPolicy { retries: 7, ..RetryPolicy::default() });
    let mut config = config(vec![
        route("own", when("/own", None), Action::Forward(own)),
        route("host", when("/", None), to(&[("v1", 1)])),
    ]);
    change_host(&mut config, |host| {
        host.retry = Some(RetryPolicy { retries: 3, per_try_timeout, ..RetryPolicy::default() });
    });
    let snapshot = compile(&config, None);
    let retry = |path| {
        let plan = plan(&snapshot, &request(path, None), 0).unwrap();
        plan.route.retry.as_ref().map(|retry| (retry.retries, retry.per_try_timeout)).unwrap()
    };
    assert_eq!(retry("http://reviews:9080/own"), (7, None));
    assert_eq!(retry("http://reviews:9080/"), (3, per_try_timeout));
}

/// FI5: faults belong to the rule: those who match another rule are left alone.
#[test]
fn faults_are_injected_where_the_rule_matches() {
    let mut jason = route("", when("/", Some("jason")), to(&[("v1", 1)]));
    jason.fault = Some(Fault {
        delay: Some(FaultDelay { duration: Some(Duration::from_secs(7)), fraction: Fraction::ALL }),
        abort: Some(Abort { status: AbortStatus::Http(500), fraction: Fraction::NONE }),
        ..Fault::default()
    });
    let snapshot = compile(&config(vec![jason, route("", when("/", None), to(&[("v1", 1)]))]), None);
    let fault = |user| plan(&snapshot, &request("http://reviews:9080/", user), 0).unwrap().fault;
    assert_eq!(fault(Some("jason")).delay, Some(Duration::from_secs(7)));
    assert_eq!(fault(Some("jason")).abort, None);
    assert!(fault(None).is_none());
}

/// XD14: what did not change is shared with the previous snapshot, pointer by pointer, and old plans keep their version.
#[test]
fn unchanged_parts_are_shared() {
    let old_config = config(vec![route("", when("/", None), to(&[("v1", 1)]))]);
    let old = compile(&old_config, None);
    let old_plan = plan(&old, &request("http://reviews:9080/", None), 0).unwrap();
    let held = old_plan.cluster().unwrap().pick(&Ask::default(), Time::ZERO, &mut RequestRng::new(0, 0)).unwrap();
    let mut changed = old_config;
    changed.clusters.insert("v1".into(), Arc::new(config::Cluster { panic_threshold: 1, ..cluster_config("v1", 1) }));
    // An equal value in another allocation is the same as well.
    changed.clusters.insert("v2".into(), Arc::new(cluster_config("v2", 2)));
    let new = compile(&changed, Some(&old));
    assert!(Arc::ptr_eq(&old.outbound[&9080], &new.outbound[&9080]));
    assert!(Arc::ptr_eq(old.cluster("v2").unwrap(), new.cluster("v2").unwrap()));
    assert!(!Arc::ptr_eq(old.cluster("v1").unwrap(), new.cluster("v1").unwrap()));
    assert!(Arc::ptr_eq(&old.clusters.index, &new.clusters.index));
    assert_eq!(new.cluster("v1").unwrap().requests_in_flight(), 1, "live cells are carried over");
    let new_plan = plan(&new, &request("http://reviews:9080/", None), 0).unwrap();
    assert!(Arc::ptr_eq(new_plan.cluster().unwrap(), new.cluster("v1").unwrap()));
    assert!(Arc::ptr_eq(old_plan.cluster().unwrap(), old.cluster("v1").unwrap()));
    // A cluster that is away for a version is found again while its requests last.
    let mut without = changed.clone();
    without.clusters.remove("v1");
    let without = compile(&without, Some(&new));
    assert!(without.cluster("v1").is_none());
    drop((old, new, old_plan, new_plan));
    let back = compile(&changed, Some(&without));
    assert_eq!(back.cluster("v1").unwrap().requests_in_flight(), 1);
    drop(held);
    assert_eq!(back.cluster("v1").unwrap().requests_in_flight(), 0);
    assert_eq!(back.clusters().map(|cluster| cluster.name().to_string()).collect::<Vec<_>>(), ["v1", "v2", "v3"]);
}

/// XD14: a virtual host that did not change is shared though its table did.
#[test]
fn unchanged_virtual_hosts_are_shared() {
    let one = config(vec![route("", when("/", None), to(&[("v1", 1)]))]);
    let old = compile(&one, None);
    let mut two = one;
    let other = VirtualHost { name: "other".into(), domains: vec!["other".into()], ..VirtualHost::default() };
    Arc::make_mut(two.outbound.get_mut(&9080).unwrap()).virtual_hosts.insert(0, Arc::new(other));
    let new = compile(&two, Some(&old));
    assert!(Arc::ptr_eq(&old.outbound[&9080].hosts()[0], &new.outbound[&9080].hosts()[1]));
    assert!(plan(&new, &request("http://reviews:9080/", None), 0).is_ok());
    assert_eq!(plan(&new, &request("http://other:9080/", None), 0).unwrap_err(), NoRoute::VirtualHost);
}

/// OP16: a configuration that cannot be compiled is an error that names the part, the field, and what to do.
#[test]
fn errors_name_resource_and_field() {
    let mut no_weight = to(&[("v1", 0)]);
    if let Action::Forward(forward) = &mut no_weight {
        forward.clusters[0].weight = 0;
    }
    let bad_status = Action::Redirect(Redirect { status: 200, ..Redirect::default() });
    let bad_response = Action::DirectResponse(DirectResponse { status: 100, body: String::new() });
    for (action, expected) in [
        (
            no_weight,
            "virtual host \"reviews\": field routes[0]: weight: the sum of weights is zero; give at least one a weight",
        ),
        (bad_status, "virtual host \"reviews\": field routes[0].redirect.status: use 301, 302, 303, 307 or 308"),
        (
            bad_response,
            "virtual host \"reviews\": field routes[0].direct_response.status: use a status from 200 to 599",
        ),
    ] {
        let error = Snapshot::compile(&config(vec![route("", when("/", None), action)]), None).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    let bad_header =
        HeaderChanges { request: vec![HeaderChange::Remove { name: ":path".into() }], ..Default::default() };
    let mut rule = route("", when("/", None), to(&[("v1", 1)]));
    rule.headers = bad_header;
    let error = Snapshot::compile(&config(vec![rule]), None).unwrap_err().to_string();
    assert!(error.contains("routes[0]") && error.contains(":path"), "{error}");
}

/// AD6, C14: `explain` tells which rule and why not the others, the weights, the cluster and its endpoints, and decides as
/// `plan` does with the same random stream; of a split it takes the next turn.
#[test]
fn explain_tells_what_plan_does() {
    let mut half = when("/", None);
    half.fraction = Some(Fraction::percent(50.0));
    let mut rules = vec![
        route("jason", when("/", Some("jason")), to(&[("v2", 1)])),
        route("half", half, to(&[("v1", 50), ("v3", 50)])),
        route("rest", when("/", None), to(&[("v3", 1)])),
        route("never", when("/", None), to(&[("v1", 1)])),
    ];
    rules.extend((0..20).map(|n| route("filler", when(&format!("/filler/{n}"), None), to(&[("v3", 1)]))));
    let snapshot = compile(&config(rules), None);
    for n in 0..200 {
        let parts = request("http://reviews:9080/x", None);
        let view = RequestView::of(&parts, None);
        let told = snapshot.explain(&view, &mut RequestRng::new(5, n));
        let plan = snapshot.plan(&view, &mut RequestRng::new(5, n)).unwrap();
        let rule = told.rules.iter().find(|rule| rule.chosen).unwrap();
        assert_eq!(rule.name, &*plan.route.name);
        let chosen = told.weights.iter().find(|weight| weight.chosen).unwrap();
        // Destinations take turns, whoever asks.
        let is_split = told.weights.len() > 1;
        assert!(told.weights.iter().any(|weight| weight.cluster == cluster(&plan)));
        assert!(is_split || chosen.cluster == cluster(&plan));
        assert_eq!(told.rules.len(), 24);
    }
    let parts = request("http://reviews:9080/x", Some("jason"));
    let told = snapshot.explain(&RequestView::of(&parts, None), &mut RequestRng::new(0, 0));
    let text = told.to_string();
    for line in [
        "GET http://reviews:9080/x",
        "virtual host \"reviews\": domain reviews:9080 takes \"reviews:9080\"",
        "-> rule 1 \"jason\": path begins with /, header end-user is \"jason\"",
        "   rule 2 \"half\": not looked at: an earlier rule matches",
        "-> cluster v2: weight 1 of 1",
        "  127.0.0.1:2 unknown workload: healthy, priority 0, weight 1",
        "sent to cluster v2",
    ] {
        assert!(text.lines().any(|told| told == line), "{line}\n{text}");
    }
    let parts = request("http://reviews:9080/x", Some("bob"));
    let text = snapshot.explain(&RequestView::of(&parts, None), &mut RequestRng::new(0, 0)).to_string();
    assert!(text.contains("header end-user is \"jason\"; the request has \"bob\""), "{text}");
    for (uri, expected) in [
        ("http://reviews:1/", "404 NR: no routes for port 1; there are some for 9080"),
        ("http://ratings:9080/", "404 NR: no virtual host takes the authority \"ratings:9080\""),
    ] {
        let parts = request(uri, None);
        let told = snapshot.explain(&RequestView::of(&parts, None), &mut RequestRng::new(0, 0));
        assert_eq!(told.decision, expected);
        let json = serde_json::to_string(&told).unwrap();
        assert_eq!(serde_json::from_str::<crate::explain::Explanation>(&json).unwrap(), told);
    }
}

/// AN4, AN6: an identity where one is demanded, one of those let in, a route that leads to the application, a chain
/// that can be enforced.
#[test]
fn admission() {
    let peer: SpiffeId = "spiffe://cluster.local/ns/default/sa/productpage".parse().unwrap();
    let to_application = |path: &str| Route { action: Action::NonForwarding, ..route("", when(path, None), to(&[])) };
    let inbound = |mtls, routes: Vec<Route>, refused: Option<&str>| {
        let host = VirtualHost { name: "inbound".into(), domains: vec!["*".into()], routes, ..VirtualHost::default() };
        let routes = config::RouteTable { virtual_hosts: vec![Arc::new(host)], ..config::RouteTable::default() };
        Arc::new(Inbound { mtls, routes: Arc::new(routes), refused: refused.map(str::to_owned), ..Inbound::default() })
    };
    let respond = Action::DirectResponse(DirectResponse { status: 403, body: "no".into() });
    let mut config = Config::default();
    config.inbound.insert(1, inbound(MtlsMode::Strict, vec![to_application("/")], None));
    config.inbound.insert(2, inbound(MtlsMode::Permissive, vec![to_application("/a")], None));
    config.inbound.insert(3, inbound(MtlsMode::Disable, vec![route("", when("/", None), respond)], None));
    config.inbound.insert(4, inbound(MtlsMode::Strict, vec![to_application("/")], Some("filter x is not supported")));
    let routes = Arc::default();
    config.inbound.insert(5, Arc::new(Inbound { mtls: MtlsMode::Disable, routes, ..Inbound::default() }));
    for (port, caller) in [(7, "spiffe://cluster.local/"), (8, "spiffe://elsewhere/")] {
        let callers = vec![StringMatch::Prefix { value: caller.into(), ignore_case: false }];
        let open = inbound(MtlsMode::Permissive, vec![to_application("/")], None);
        config.inbound.insert(port, Arc::new(Inbound { callers, ..(*open).clone() }));
    }
    let snapshot = compile(&config, None);
    for (port, peer, expected) in [
        (7, Some(&peer), Ok(())),
        (8, Some(&peer), Err((403, Flags::NONE))),
        (8, None, Ok(())),
        (1, Some(&peer), Ok(())),
        (1, None, Err((403, Flags::NONE))),
        (2, None, Ok(())),
        (2, Some(&peer), Ok(())),
        (3, None, Err((403, Flags::NONE))),
        (4, Some(&peer), Err((503, Flags::NONE))),
        (5, None, Ok(())),
        (6, None, Err((403, Flags::NONE))),
        (6, Some(&peer), Ok(())),
    ] {
        let parts = request("http://reviews:9080/a", None);
        let view = InboundView { peer, ..InboundView::of(port, RequestView::of(&parts, None)) };
        let admitted = match snapshot.admit(&view, 0, &mut Heard::default()) {
            Admit::Allow => Ok(()),
            Admit::Ask { .. } => Err((0, Flags::NONE)),
            Admit::Refuse { status, flags, .. } => Err((status, flags)),
        };
        assert_eq!(admitted, expected, "{port}");
    }
    let parts = request("http://reviews:9080/b", None);
    let view = InboundView::of(2, RequestView::of(&parts, None));
    let admitted = snapshot.admit(&view, 0, &mut Heard::default());
    assert!(matches!(admitted, Admit::Refuse { status: 404, flags: Flags::NR, .. }));
}

/// Virtual host `reviews` on port 9080 with these rules, and clusters v1, v2, v3 with one endpoint each.
fn config(routes: Vec<Route>) -> Config {
    let domains = vec!["reviews".into(), "reviews:9080".into()];
    let host = VirtualHost { name: "reviews".into(), domains, routes, ..VirtualHost::default() };
    let table = config::RouteTable { name: "9080".into(), virtual_hosts: vec![Arc::new(host)], ..Default::default() };
    let mut config = Config::default();
    config.outbound.insert(9080, Arc::new(table));
    for (name, port) in [("v1", 1), ("v2", 2), ("v3", 3)] {
        config.clusters.insert(name.into(), Arc::new(cluster_config(name, port)));
    }
    config
}

fn cluster_config(name: &str, port: u16) -> config::Cluster {
    let address = EndpointAddress::Socket(([127, 0, 0, 1], port).into());
    let endpoint = Endpoint::at(address);
    let localities = vec![LocalityEndpoints { endpoints: vec![endpoint], ..LocalityEndpoints::default() }];
    let endpoints = Arc::new(Endpoints { localities, ..Default::default() });
    config::Cluster { name: name.into(), endpoints, ..config::Cluster::default() }
}

fn change_host(config: &mut Config, change: impl FnOnce(&mut VirtualHost)) {
    let table = Arc::make_mut(config.outbound.get_mut(&9080).unwrap());
    change(Arc::make_mut(&mut table.virtual_hosts[0]));
}

fn route(name: &str, matches: RouteMatch, action: Action) -> Route {
    let headers = HeaderChanges::default();
    Route { name: name.into(), origin: None, matches, action, fault: None, headers, operation: None }
}

fn when(prefix: &str, user: Option<&str>) -> RouteMatch {
    let header = |user: &str| HeaderMatch {
        name: "end-user".into(),
        matcher: HeaderMatcher::Value(StringMatch::Exact { value: user.into(), ignore_case: false }),
        invert: false,
        missing_as_empty: false,
    };
    let path = PathMatch::Prefix { value: prefix.into(), ignore_case: false };
    RouteMatch { path, headers: user.map(header).into_iter().collect(), ..RouteMatch::default() }
}

fn to(clusters: &[(&str, u32)]) -> Action {
    Action::Forward(forward(clusters))
}

fn forward(clusters: &[(&str, u32)]) -> Forward {
    let cluster = |(name, weight): &(&str, u32)| WeightedCluster {
        cluster: (*name).into(),
        weight: *weight,
        ..WeightedCluster::default()
    };
    Forward { clusters: clusters.iter().map(cluster).collect(), ..Forward::default() }
}

fn request(uri: &str, user: Option<&str>) -> Parts {
    let mut builder = http::Request::builder().uri(uri);
    if let Some(user) = user {
        builder = builder.header("end-user", user);
    }
    builder.body(()).unwrap().into_parts().0
}

fn compile(config: &Config, previous: Option<&Snapshot>) -> Snapshot {
    Snapshot::compile(config, previous).unwrap()
}

fn plan(snapshot: &Snapshot, parts: &Parts, n: u64) -> Result<Plan, NoRoute> {
    snapshot.plan(&RequestView::of(parts, None), &mut RequestRng::new(1, n))
}

fn cluster(plan: &Plan) -> String {
    plan.cluster().map(|cluster| cluster.name().to_string()).unwrap_or_default()
}
