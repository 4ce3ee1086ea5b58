//! Rules of what routes change and how they choose: headers, templates, splits, filter settings; and what is not done.

use super::*;

/// RA13, RA14: actions on headers, protected names, and operators that cannot be filled in.
#[test]
fn header_changes_are_read() {
    let option = |key: &str, value: &str, append, append_action| HeaderValueOption {
        header: Some(HeaderValue { key: key.into(), value: value.into(), ..HeaderValue::default() }),
        append,
        append_action,
        keep_empty_value: false,
    };
    let decoded = decode(Route {
        request_headers_to_add: vec![
            option("X-A", "1", None, 0),
            option("x-b", "100%%", None, 2),
            option("x-c", "3", Some(false), 0),
            option("x-d", "%REQ(x)%", None, 2),
            option("x-e", "5", None, 1),
            option("x-f", "", None, 0),
            option("x-h", "6", None, 3),
            HeaderValueOption { keep_empty_value: true, ..option("x-i", "", None, 0) },
            option("x-j", "%START_TIME%", None, 0),
        ],
        request_headers_to_remove: vec!["X-G".into()],
        ..route()
    })
    .unwrap();
    let text = |text: &str| text.to_owned();
    let format = |text: &str| text.parse::<Format>().unwrap();
    assert_eq!(
        decoded.value.virtual_hosts[0].routes[0].headers.request,
        [
            HeaderChange::Remove { name: text("x-g") },
            HeaderChange::Append { name: text("x-a"), value: format("1") },
            HeaderChange::Set { name: text("x-b"), value: format("100%%") },
            HeaderChange::Set { name: text("x-c"), value: format("3") },
            HeaderChange::Set { name: text("x-d"), value: format("%REQ(x)%") },
            HeaderChange::AddIfAbsent { name: text("x-e"), value: format("5") },
            HeaderChange::SetIfPresent { name: text("x-h"), value: format("6") },
            HeaderChange::Append { name: text("x-i"), value: format("").keeping_empty() },
        ]
    );
    assert_eq!(
        decoded.ignored,
        ["virtual_hosts.routes.request_headers_to_add \"x-j\" (%START_TIME%)"],
        "an operator that is not known is not sent as it stands"
    );
    let malformed = Route { request_headers_to_add: vec![option("x-k", "50% off", None, 0)], ..route() };
    refused(malformed, "request_headers_to_add", "write %%");
    for name in ["host", ":path", "a b"] {
        refused(Route { request_headers_to_remove: vec![name.into()], ..route() }, "request_headers_to_remove", name);
    }
}

/// RM4: a path template is the expression it means, and its rewrite one of its variables; alone a rewrite is refused.
#[test]
fn path_templates_are_read() {
    let policy = |kind: &str, text: &str| {
        let name = format!("envoy.extensions.path.{kind}");
        let config: Vec<u8> = [&[0x0a, text.len() as u8][..], text.as_bytes()].concat();
        Some(TypedExtensionConfig { name: String::new(), typed_config: Some(any(&name, &config)) })
    };
    let matching = |text: &str| policy("match.uri_template.v3.UriTemplateMatchConfig", text).unwrap();
    let mut rewriting = action();
    rewriting.path_rewrite_policy = policy("rewrite.uri_template.v3.UriTemplateRewriteConfig", "/x/{b}/{a}");
    let mut both = with_match(|m| m.path_specifier = Some(PathSpecifier::PathMatchPolicy(matching("/{a}/{b}"))));
    both.action = Some(ActionMessage::Route(rewriting.clone()));
    let route_read = decoded(both);
    assert!(route_read.matches.path.is_match("/1/2") && !route_read.matches.path.is_match("/1/2/3"));
    let Action::Forward(Forward { path_rewrite: Some(PathRewrite::Regex { pattern, substitution }), .. }) =
        route_read.action
    else {
        panic!()
    };
    assert_eq!(pattern.rewrite("/1/2", &substitution), "/x/2/1");
    let alone = Route { action: Some(ActionMessage::Route(rewriting)), ..route() };
    refused(alone, "route.path_rewrite_policy", "needs a match by template");
    let bad = with_match(|m| m.path_specifier = Some(PathSpecifier::PathMatchPolicy(matching("/{a"))));
    refused(bad, "match.path_match_policy.path_template", "open brace");
}

/// RA2, RA5: where the cluster's name and the place in the split come from.
#[test]
fn splits_and_clusters_by_header_are_read() {
    let by_header = forward(RouteAction {
        cluster_specifier: Some(ClusterSpecifier::ClusterHeader("X-Cluster".into())),
        ..action()
    });
    assert_eq!(by_header.clusters[0].cluster_header.as_deref(), Some("x-cluster"));
    let split = |specifier| {
        let clusters = vec![ClusterWeight { name: "c".into(), weight: Some(1), ..Default::default() }];
        let split = WeightedCluster { clusters, random_value_specifier: specifier, ..WeightedCluster::default() };
        forward(RouteAction { cluster_specifier: Some(ClusterSpecifier::WeightedClusters(split)), ..action() }).split_by
    };
    assert_eq!(split(None), SplitBy::Random);
    assert_eq!(split(Some(RandomValueSpecifier::HeaderName("X-User".into()))), SplitBy::Header("x-user".into()));
    assert_eq!(split(Some(RandomValueSpecifier::UseHashPolicy(true))), SplitBy::Hash);
    let both = ClusterWeight { name: "c".into(), cluster_header: "x".into(), weight: Some(1), ..Default::default() };
    let both = WeightedCluster { clusters: vec![both], ..WeightedCluster::default() };
    let both = with_action(|action| action.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(both)));
    refused(both, "route.weighted_clusters.clusters[0 \"c\"]", "either a name or a cluster_header");
}

/// RA16: of destination, route, host and table the most specific that says anything counts, also when it says "none".
#[test]
fn the_most_specific_filter_setting_counts() {
    let abort = |status: u8| {
        // abort { http_status, percentage 100 % }
        let fault = [0x12, 9, 0x10, status, 0x03, 0x1a, 4, 0x08, 100, 0x10, 0];
        [("envoy.filters.http.fault".to_owned(), any("envoy.extensions.filters.http.fault.v3.HTTPFault", &fault))]
            .into()
    };
    // FilterConfig { disabled }
    let off: std::collections::BTreeMap<_, _> =
        [("envoy.filters.http.fault".to_owned(), any("envoy.config.route.v3.FilterConfig", &[0x18, 1]))].into();
    let status = |status: u8| u16::from(status & 0x7f) | 0x180;
    let of = |table_settings, host_settings, route_settings| {
        let route = Route { typed_per_filter_config: route_settings, ..route() };
        let host = VirtualHost { typed_per_filter_config: host_settings, ..host(vec![route]) };
        let table = RouteConfiguration { typed_per_filter_config: table_settings, ..table(vec![host]) };
        let decoded = translate::route(&body(&table)).unwrap();
        assert!(decoded.ignored.is_empty(), "{:?}", decoded.ignored);
        decoded.value.virtual_hosts[0].routes[0].fault.as_ref().map(|fault| fault.abort.unwrap().status)
    };
    let none = std::collections::BTreeMap::new;
    let http = |code| Some(mesh_core::config::AbortStatus::Http(status(code)));
    assert_eq!(of(none(), none(), none()), None);
    assert_eq!(of(abort(0x90), none(), none()), http(0x90));
    assert_eq!(of(abort(0x90), abort(0x91), none()), http(0x91));
    assert_eq!(of(abort(0x90), abort(0x91), abort(0x92)), http(0x92));
    assert_eq!(of(abort(0x90), off.clone(), none()), None);
    assert_eq!(of(none(), abort(0x91), off), None);
}

/// RM22, RA18, RA19: matcher trees and internal redirects are named as ignored, lookups of clusters elsewhere are refused.
#[test]
fn what_is_not_done_is_named() {
    let nested = |tag: &[u8], inner: &[u8]| [tag, &[inner.len() as u8], inner].concat();
    let table = |action: &[u8], host: &[u8]| {
        let route = [nested(&[0x0a], &route().r#match.unwrap().encode_to_vec()), nested(&[0x12], action)].concat();
        let host = [&[0x0a, 1, b'h', 0x12, 1, b'*'][..], &nested(&[0x1a], &route), host].concat();
        translate::route(&[&[0x0a, 1, b't'][..], &nested(&[0x12], &host)].concat().into())
    };
    // internal_redirect_policy {}, and matcher {} of the host.
    let redirecting = [&action().encode_to_vec()[..], &[0x92, 0x02, 0]].concat();
    let wanted = ["virtual_hosts.matcher", "virtual_hosts.routes.route.internal_redirect_policy"];
    assert_eq!(table(&redirecting, &[0xaa, 0x01, 0]).unwrap().ignored, wanted);
    // cluster_specifier_plugin "p" and nothing else.
    let error = table(&[0xaa, 0x02, 1, b'p'], &[]).unwrap_err();
    assert!(error.field.ends_with("route.cluster_specifier"), "{error}");
}
