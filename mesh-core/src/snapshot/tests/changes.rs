//! What a plan says beyond where to: header changes, clusters by header, faults of destinations, mirrors.

use super::*;
use crate::config::Discovery;

/// RA13: header changes of the drawn destination, its route, host and table are merged in that order.
#[test]
fn header_changes_of_every_level() {
    let changes = |value: &str| HeaderChanges {
        request: vec![HeaderChange::Append { name: "x-level".into(), value: value.parse().unwrap() }],
        response: Vec::new(),
    };
    let mut forward = forward(&[("v1", 1), ("v2", 0)]);
    forward.clusters[0].headers = changes("cluster");
    let mut rule = route("", when("/", None), Action::Forward(forward));
    rule.headers = changes("route");
    let mut config = config(vec![rule]);
    change_host(&mut config, |host| host.headers = changes("host"));
    let table = Arc::make_mut(config.outbound.get_mut(&9080).unwrap());
    table.headers = changes("table");
    let levels = |config: &Config| {
        let mut parts = request("http://reviews:9080/", None);
        let plan = plan(&compile(config, None), &parts, 0).unwrap();
        crate::rewrite::apply(&plan, None, &mut parts);
        let values = parts.headers.get_all("x-level").iter();
        values.map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(levels(&config), ["cluster", "route", "host", "table"]);
    Arc::make_mut(config.outbound.get_mut(&9080).unwrap()).most_specific_wins = true;
    assert_eq!(levels(&config), ["cluster", "table", "host", "route"]);
}

/// RA2: the cluster can be named by a header of the request; an unknown one is told, with the route's own status.
#[test]
fn a_header_can_name_the_cluster() {
    let mut forward = forward(&[("", 1)]);
    forward.clusters[0].cluster_header = Some("end-user".into());
    forward.no_cluster_status = 404;
    let snapshot = compile(&config(vec![route("", when("/", None), Action::Forward(forward))]), None);
    let target = |name| plan(&snapshot, &request("http://reviews:9080/", name), 0).unwrap();
    assert_eq!(&**target(Some("v2")).cluster().unwrap().name(), "v2");
    for (name, expected) in [(Some("gone"), "gone"), (None, "")] {
        let plan = target(name);
        assert!(matches!(&plan.target, Target::NoCluster(name) if **name == *expected));
        assert_eq!(plan.route.no_cluster_status, 404);
    }
}

/// RA16: a destination's own fault counts instead of the route's, an empty one is none.
#[test]
fn the_most_specific_fault_counts() {
    let abort = |status| Fault {
        abort: Some(Abort { status: AbortStatus::Http(status), fraction: Fraction::ALL }),
        ..Fault::default()
    };
    for (own, expected) in [
        (None, Some(AbortStatus::Http(500))),
        (Some(abort(418)), Some(AbortStatus::Http(418))),
        (Some(Fault::default()), None),
    ] {
        let mut forward = forward(&[("v1", 1)]);
        forward.clusters[0].fault = own;
        let mut rule = route("", when("/", None), Action::Forward(forward));
        rule.fault = Some(abort(500));
        let plan = plan(&compile(&config(vec![rule]), None), &request("http://reviews:9080/", None), 0).unwrap();
        assert_eq!(plan.fault.abort, expected);
    }
}

/// MI1: each mirror is drawn apart; a route's mirrors replace the host's, and these the table's.
#[test]
fn mirrors_are_drawn_apart() {
    let mirror = |cluster: &str, percent| Mirror {
        cluster: cluster.into(),
        fraction: Some(Fraction::percent(percent)),
        ..Mirror::default()
    };
    let of = |n, config: &Config| {
        let plan = plan(&compile(config, None), &request("http://reviews:9080/", None), n).unwrap();
        plan.mirrors().map(|mirror| mirror.cluster.to_string()).collect::<Vec<_>>()
    };
    let mut config = config(vec![route("", when("/", None), to(&[("v1", 1)]))]);
    assert!(of(0, &config).is_empty());
    Arc::make_mut(config.outbound.get_mut(&9080).unwrap()).mirrors = vec![mirror("table", 100.0)];
    assert_eq!(of(0, &config), ["table"]);
    change_host(&mut config, |host| host.mirrors = vec![mirror("never", 0.0), mirror("host", 100.0)]);
    assert_eq!(of(0, &config), ["host"]);
    let mut forward = forward(&[("v1", 1)]);
    forward.mirrors = vec![mirror("a", 50.0), mirror("b", 50.0), mirror("c", 100.0)];
    change_host(&mut config, |host| host.routes[0].action = Action::Forward(forward));
    let snapshot = compile(&config, None);
    let mut seen = std::collections::BTreeMap::new();
    for n in 0..4_000 {
        let plan = plan(&snapshot, &request("http://reviews:9080/", None), n).unwrap();
        let drawn: Vec<_> = plan.mirrors().map(|mirror| mirror.cluster.to_string()).collect();
        *seen.entry(drawn.join("")).or_insert(0) += 1;
    }
    // Five standard deviations of Binomial(4 000, 1/4) are 137.
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["abc", "ac", "bc", "c"]);
    assert!(seen.values().all(|count| (863..=1_137).contains(count)), "{seen:?}");
}

/// RM2: path parameters can be left out of what is compared.
#[test]
fn path_parameters_can_be_ignored() {
    let mut config = config(vec![route("", when("/a", None), to(&[("v1", 1)]))]);
    change_host(&mut config, |host| {
        host.routes[0].matches.path = PathMatch::Exact { value: "/a".into(), ignore_case: false };
    });
    let matches = |config: &Config, uri| plan(&compile(config, None), &request(uri, None), 0).is_ok();
    assert!(!matches(&config, "http://reviews:9080/a;v=1"));
    Arc::make_mut(config.outbound.get_mut(&9080).unwrap()).ignore_path_parameters = true;
    assert!(matches(&config, "http://reviews:9080/a;v=1/b?c"));
    assert!(!matches(&config, "http://reviews:9080/b;a"));
}

/// RM23, NR5: those made of names are found, in whatever chunk, before and after a change, and nothing is compiled for it.
#[test]
fn clusters_of_names_are_found_without_being_used() {
    let mut config = Config::default();
    let put = |config: &mut Config, n: u32, discovery: Discovery| {
        let name: Name = format!("cluster-{n:04}").into();
        let cluster = config::Cluster { name: name.clone(), discovery, ..config::Cluster::default() };
        config.clusters.insert(name, Arc::new(cluster));
    };
    let by_name = || Discovery::StrictDns(vec![("a".to_owned(), 80)]);
    (0..1_000).for_each(|n| put(&mut config, n, if n == 700 { by_name() } else { Discovery::Static }));
    let found = |snapshot: &Snapshot| -> Vec<String> {
        assert_eq!(snapshot.clusters_in_use().count(), 0);
        snapshot.clusters_of_names().map(|cluster| cluster.name.to_string()).collect()
    };
    let first = Snapshot::compile(&config, None).unwrap();
    assert_eq!(found(&first), ["cluster-0700"]);
    put(&mut config, 3, by_name());
    put(&mut config, 700, Discovery::Static);
    put(&mut config, 999, Discovery::LogicalDns(("b".to_owned(), 80)));
    let second = Snapshot::compile(&config, Some(&first)).unwrap();
    assert_eq!(
        (found(&second).join(" "), found(&first).join(" ")),
        ("cluster-0003 cluster-0999".into(), "cluster-0700".into())
    );
    // Two versions that are cut alike are compared chunk by chunk.
    let (mut same, other) = (config.clone(), first.config());
    assert!(same.clusters == config.clusters && other.clusters != config.clusters);
    put(&mut same, 3, by_name());
    assert_eq!(same.clusters, config.clusters);
}
