//! Rules of route tables: what is accepted, what it means, what is refused and in which words.

use std::time::Duration;

use mesh_core::config::{
    Action, Format, Forward, Fraction, HeaderChange, HeaderMatcher, PathMatch, PathRewrite, QueryMatcher, Redirect,
    RouteTable, SplitBy, StringMatch,
};
use mesh_xds::{
    proto::envoy::{
        config::{
            core::v3::{
                DataSource, HeaderValue, HeaderValueOption, RuntimeFractionalPercent, TypedExtensionConfig,
                data_source::Specifier,
            },
            route::v3::{
                DirectResponseAction, HeaderMatcher as HeaderMessage, QueryParameterMatcher, RedirectAction, Route,
                RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster,
                header_matcher::HeaderMatchSpecifier,
                redirect_action::PathRewriteSpecifier,
                route::Action as ActionMessage,
                route_action::{ClusterSpecifier, MaxStreamDuration},
                route_match::PathSpecifier,
                weighted_cluster::{ClusterWeight, RandomValueSpecifier},
            },
        },
        r#type::{
            matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
            v3::{FractionalPercent, Int64Range},
        },
    },
    translate::{self, Decoded},
};
use prost::Message;

use crate::{any, body, seconds};

mod changes;
mod policy;

const PLACE: &str = r#"virtual_hosts[0 "host"].routes[0 "r"]"#;

fn action() -> RouteAction {
    RouteAction { cluster_specifier: Some(ClusterSpecifier::Cluster("c".into())), ..RouteAction::default() }
}

fn route() -> Route {
    Route {
        name: "r".into(),
        r#match: Some(RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..RouteMatch::default() }),
        action: Some(ActionMessage::Route(action())),
        ..Route::default()
    }
}

fn host(routes: Vec<Route>) -> VirtualHost {
    VirtualHost { name: "host".into(), domains: vec!["*".into()], routes, ..VirtualHost::default() }
}

fn table(hosts: Vec<VirtualHost>) -> RouteConfiguration {
    RouteConfiguration { name: "9080".into(), virtual_hosts: hosts, ..RouteConfiguration::default() }
}

fn decode(route: Route) -> Result<Decoded<std::sync::Arc<RouteTable>>, String> {
    translate::route(&body(&table(vec![host(vec![route])]))).map_err(|error| error.to_string())
}

fn decoded(route: Route) -> mesh_core::config::Route {
    decode(route).unwrap().value.virtual_hosts[0].routes[0].clone()
}

fn forward(action: RouteAction) -> Forward {
    match decoded(Route { action: Some(ActionMessage::Route(action)), ..route() }).action {
        Action::Forward(forward) => forward,
        other => panic!("{other:?}"),
    }
}

fn refused(route: Route, field: &str, why: &str) {
    let error = decode(route).unwrap_err();
    let wanted = format!("RDS \"9080\": field {PLACE}.{field}: ");
    assert!(error.starts_with(&wanted) && error.contains(why), "{error}\nwanted {wanted}...{why}");
}

fn with_match(change: impl FnOnce(&mut RouteMatch)) -> Route {
    let mut route = route();
    change(route.r#match.as_mut().unwrap());
    route
}

fn with_action(change: impl FnOnce(&mut RouteAction)) -> Route {
    let mut action = action();
    change(&mut action);
    Route { action: Some(ActionMessage::Route(action)), ..route() }
}

/// TO1: absent is 15 s, zero is none.
#[test]
fn a_timeout_not_set_is_fifteen_seconds() {
    let timeout = |timeout| forward(RouteAction { timeout, ..action() }).timeout;
    assert_eq!(timeout(None), Some(Duration::from_secs(15)));
    assert_eq!(timeout(Some(seconds(0))), None);
    assert_eq!(timeout(Some(seconds(3))), Some(Duration::from_secs(3)));
    refused(with_action(|action| action.timeout = Some(seconds(-1))), "route.timeout", "negative");
}

/// TO2: both limits are read as they are; which one counts is decided by the kind of request, and zero is a word.
#[test]
fn the_grpc_timeout_limit_replaces_the_stream_limit() {
    let limit = |max, header| {
        let limit = MaxStreamDuration { max_stream_duration: max, grpc_timeout_header_max: header };
        let read = forward(RouteAction { max_stream_duration: Some(limit), ..action() });
        (read.max_stream_duration, read.grpc_timeout_header_max)
    };
    let read = |seconds| Some(Duration::from_secs(seconds));
    assert_eq!(limit(Some(seconds(1)), None), (read(1), None));
    assert_eq!(limit(Some(seconds(1)), Some(seconds(9))), (read(1), read(9)));
    assert_eq!(limit(Some(seconds(0)), Some(seconds(0))), (read(0), read(0)));
    assert_eq!(limit(None, None), (None, None));
    let older = forward(RouteAction { max_grpc_timeout: Some(seconds(4)), idle_timeout: Some(seconds(0)), ..action() });
    assert_eq!((older.max_grpc_timeout, older.idle_timeout), (read(4), read(0)));

    // Even when it says nothing it stands in place of the older ones.
    let newer = forward(RouteAction {
        timeout: Some(seconds(3)),
        max_grpc_timeout: Some(seconds(4)),
        max_stream_duration: Some(MaxStreamDuration::default()),
        ..action()
    });
    assert_eq!((newer.timeout, newer.max_grpc_timeout), (None, None));
}

/// RA3: no weight in sum and too much weight are refused; zero among others is fine.
#[test]
fn weights_need_a_sum_between_one_and_u32_max() {
    let split = |weights: &[Option<u32>]| {
        let clusters = weights.iter().map(|&weight| ClusterWeight { name: "c".into(), weight, ..Default::default() });
        let split = WeightedCluster { clusters: clusters.collect(), ..WeightedCluster::default() };
        with_action(|action| action.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(split)))
    };
    for (weights, why) in
        [(&[][..], "no weight"), (&[Some(0), None], "no weight"), (&[Some(u32::MAX), Some(1)], "more than 4294967295")]
    {
        refused(split(weights), "route.weighted_clusters.clusters", why);
    }
    let Action::Forward(forward) = decoded(split(&[Some(0), Some(u32::MAX)])).action else { panic!() };
    assert_eq!(forward.clusters.iter().map(|cluster| cluster.weight).collect::<Vec<_>>(), [0, u32::MAX]);
}

/// RM2, RM3, RM19: kinds of path, their case, and what a segment prefix must look like.
#[test]
fn paths_are_read_with_their_case() {
    let path = |specifier, case| {
        decoded(with_match(|matches| {
            matches.path_specifier = Some(specifier);
            matches.case_sensitive = case;
        }))
        .matches
        .path
    };
    let value = || "/a".to_owned();
    assert_eq!(path(PathSpecifier::Path(value()), None), PathMatch::Exact { value: value(), ignore_case: false });
    assert_eq!(
        path(PathSpecifier::Prefix(value()), Some(true)),
        PathMatch::Prefix { value: value(), ignore_case: false }
    );
    assert_eq!(
        path(PathSpecifier::Prefix(value()), Some(false)),
        PathMatch::Prefix { value: value(), ignore_case: true }
    );
    assert_eq!(
        path(PathSpecifier::PathSeparatedPrefix(value()), Some(false)),
        PathMatch::SegmentPrefix { value: value(), ignore_case: true }
    );
    for bad in ["/a/", "a", "/a?b", "/a#b", "/", ""] {
        let route = with_match(|m| m.path_specifier = Some(PathSpecifier::PathSeparatedPrefix(bad.into())));
        refused(route, "match.path_separated_prefix", "must begin");
    }
    refused(with_match(|matches| matches.path_specifier = None), "match.path_specifier", "missing");
    let bad = RegexMatcher { regex: "(".into(), ..RegexMatcher::default() };
    let route = with_match(|matches| matches.path_specifier = Some(PathSpecifier::SafeRegex(bad)));
    refused(route, "match.safe_regex.regex", "cannot be used");
}

/// RM6, RM7, RM8: old scalar fields and string_match say the same; empty affixes are refused.
#[test]
fn header_conditions_of_both_generations_are_read() {
    use HeaderMatchSpecifier::{
        ContainsMatch, ExactMatch, PrefixMatch, PresentMatch, RangeMatch, SafeRegexMatch, StringMatch as StringForm,
        SuffixMatch,
    };
    let header = |specifier| {
        let header = HeaderMessage {
            name: "End-User".into(),
            header_match_specifier: specifier,
            invert_match: true,
            treat_missing_header_as_empty: true,
        };
        with_match(|matches| matches.headers = vec![header])
    };
    let string = |pattern| StringForm(StringMatcher { match_pattern: Some(pattern), ignore_case: false });
    let text = || "a".to_owned();
    let regex = || RegexMatcher { regex: text(), ..RegexMatcher::default() };
    let old_and_new = [
        (ExactMatch(text()), MatchPattern::Exact(text()), "a"),
        (PrefixMatch(text()), MatchPattern::Prefix(text()), "ab"),
        (SuffixMatch(text()), MatchPattern::Suffix(text()), "ba"),
        (ContainsMatch(text()), MatchPattern::Contains(text()), "bab"),
        (SafeRegexMatch(regex()), MatchPattern::SafeRegex(regex()), "a"),
    ];
    for (old, new, matching) in old_and_new {
        let old = decoded(header(Some(old))).matches.headers;
        assert_eq!(old, decoded(header(Some(string(new)))).matches.headers);
        assert_eq!((&*old[0].name, old[0].invert, old[0].missing_as_empty), ("end-user", true, true));
        let HeaderMatcher::Value(value) = &old[0].matcher else { panic!() };
        assert!(value.is_match(matching) && !value.is_match("x"));
    }
    let matcher = |specifier| decoded(header(specifier)).matches.headers[0].matcher.clone();
    assert_eq!(matcher(None), HeaderMatcher::Present(true), "no condition asks for presence");
    assert_eq!(matcher(Some(PresentMatch(false))), HeaderMatcher::Present(false));
    let range = Int64Range { start: -1, end: 9 };
    assert_eq!(matcher(Some(RangeMatch(range))), HeaderMatcher::Range { start: -1, end: 9 });

    let place = r#"match.headers[0 "End-User"]"#;
    refused(header(Some(PrefixMatch(String::new()))), &format!("{place}.prefix_match"), "empty");
    refused(header(Some(SuffixMatch(String::new()))), &format!("{place}.suffix_match"), "empty");
    refused(header(Some(ContainsMatch(String::new()))), &format!("{place}.contains_match"), "empty");
    let empty = string(MatchPattern::Prefix(String::new()));
    refused(header(Some(empty)), &format!("{place}.string_match.prefix"), "empty");
    let none = StringForm(StringMatcher::default());
    refused(header(Some(none)), &format!("{place}.string_match.match_pattern"), "missing");
}

/// RM12, XD35: denominators, and the runtime key that nobody looks up.
#[test]
fn fractions_have_three_denominators() {
    let fraction = |denominator| {
        let default_value = Some(FractionalPercent { numerator: 5, denominator });
        with_match(|matches| {
            matches.runtime_fraction = Some(RuntimeFractionalPercent { default_value, runtime_key: "key".into() });
        })
    };
    for (wire, denominator) in [(0, 100), (1, 10_000), (2, 1_000_000)] {
        assert_eq!(decoded(fraction(wire)).matches.fraction, Some(Fraction { numerator: 5, denominator }));
    }
    refused(fraction(3), "match.runtime_fraction.default_value.denominator", "is 3");
    assert_eq!(decode(fraction(0)).unwrap().ignored, ["virtual_hosts.routes.match.runtime_fraction.runtime_key"]);
}

/// RM13: a query parameter with a value or with any.
#[test]
fn query_parameters_are_read() {
    let query = |specifier| {
        let parameter = QueryParameterMatcher { name: "q".into(), query_parameter_match_specifier: specifier };
        with_match(|matches| matches.query_parameters = vec![parameter])
    };
    use mesh_xds::proto::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier as Query;
    let exact = StringMatcher { match_pattern: Some(MatchPattern::Exact("1".into())), ignore_case: true };
    let value = |specifier| decoded(query(specifier)).matches.query[0].matcher.clone();
    let wanted = StringMatch::Exact { value: "1".into(), ignore_case: true };
    assert_eq!(value(Some(Query::StringMatch(exact))), QueryMatcher::Value(wanted));
    assert_eq!(value(Some(Query::PresentMatch(true))), QueryMatcher::Present(true));
    assert_eq!(value(Some(Query::PresentMatch(false))), QueryMatcher::Present(false));
    assert_eq!(value(None), QueryMatcher::Present(true));
}

/// RM5, RM21, RA20: a condition this library does not know refuses the table; ignoring it would widen the route.
#[test]
fn unknown_conditions_are_refused() {
    // By their tags within RouteMatch, which our sources do not declare.
    let conditions = [
        (&[0x6a][..], "dynamic_metadata"),
        (&[0x5a], "tls_context"),
        (&[0x82, 0x01], "filter_state"),
        (&[0x62], "connect_matcher"),
    ];
    for (key, name) in conditions {
        let mut matches = route().r#match.unwrap().encode_to_vec();
        matches.extend(key);
        matches.push(0);
        let mut message = vec![0x0a, matches.len() as u8];
        message.extend(matches);
        let mut host = vec![0x0a, 1, b'h', 0x12, 1, b'*', 0x1a, message.len() as u8];
        host.extend(message);
        let mut table = vec![0x0a, 1, b't', 0x12, host.len() as u8];
        table.extend(host);
        let error = translate::route(&table.into()).unwrap_err();
        assert_eq!(error.field, format!("virtual_hosts.routes.match.{name}"));
        assert!(error.message.contains("leave it out"), "{error}");
    }
}

/// NR3: domains are compared in lower case, occur once, and have one wildcard at one end.
#[test]
fn domains_are_checked() {
    let hosts = |lists: &[&[&str]]| {
        let host = |domains: &&[&str]| VirtualHost {
            name: "host".into(),
            domains: domains.iter().map(|&domain| domain.into()).collect(),
            ..VirtualHost::default()
        };
        translate::route(&body(&table(lists.iter().map(host).collect())))
    };
    let good = hosts(&[&["Reviews", "*.foo", "foo.*"], &["*"]]).unwrap().value;
    assert_eq!(good.virtual_hosts[0].domains, ["reviews", "*.foo", "foo.*"]);
    for (lists, place, why) in [
        (&[&["a"][..], &["A"]][..], "virtual_hosts[1 \"host\"].domains", "\"a\" occurs twice"),
        (&[&["*.a.*"]], "virtual_hosts[0 \"host\"].domains", "single `*`"),
        (&[&["a.*.b"]], "virtual_hosts[0 \"host\"].domains", "single `*`"),
        (&[&[""]], "virtual_hosts[0 \"host\"].domains", "single `*`"),
        (&[&[]], "virtual_hosts[0 \"host\"].domains", "empty"),
    ] {
        let error = hosts(lists).unwrap_err();
        assert!(error.field == place && error.message.contains(why), "{error}");
    }
}

/// RA9: status and body of direct responses are checked, and no file is read.
#[test]
fn direct_responses_are_inline() {
    let response = |status, specifier| Route {
        action: Some(ActionMessage::DirectResponse(DirectResponseAction {
            status,
            body: Some(DataSource { specifier: Some(specifier) }),
        })),
        ..route()
    };
    let text = || Specifier::InlineString("x".into());
    let Action::DirectResponse(good) = decoded(response(200, text())).action else { panic!() };
    assert_eq!((good.status, good.body.as_str()), (200, "x"));
    refused(response(199, text()), "direct_response.status", "200..=599");
    refused(response(600, text()), "direct_response.status", "200..=599");
    refused(response(200, Specifier::Filename("/etc/passwd".into())), "direct_response.body", "inline");
    refused(response(200, Specifier::EnvironmentVariable("HOME".into())), "direct_response.body", "inline");
}

/// RA10: every redirect status, and the three ways to a new path.
#[test]
fn redirects_are_read() {
    let redirect = |message| match decoded(Route { action: Some(ActionMessage::Redirect(message)), ..route() }).action {
        Action::Redirect(redirect) => redirect,
        other => panic!("{other:?}"),
    };
    for (code, status) in [(0, 301), (1, 302), (2, 303), (3, 307), (4, 308)] {
        assert_eq!(redirect(RedirectAction { response_code: code, ..Default::default() }).status, status);
    }
    let https = mesh_xds::proto::envoy::config::route::v3::redirect_action::SchemeRewriteSpecifier::HttpsRedirect(true);
    let full = RedirectAction {
        scheme_rewrite_specifier: Some(https),
        path_rewrite_specifier: Some(PathRewriteSpecifier::PathRedirect("/new".into())),
        ..RedirectAction::default()
    };
    let wanted = Redirect {
        status: 301,
        scheme: Some("https".into()),
        path: Some(PathRewrite::Full("/new".into())),
        ..Redirect::default()
    };
    assert_eq!(redirect(full), wanted);
    let bad = RedirectAction { port_redirect: 70_000, ..RedirectAction::default() };
    refused(Route { action: Some(ActionMessage::Redirect(bad)), ..route() }, "redirect.port_redirect", "no port");
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    refused(Route { action: None, ..route() }, "action", "not supported");
    refused(Route { r#match: None, ..route() }, "match", "missing");
    let header = Some(ClusterSpecifier::ClusterHeader("a b".into()));
    refused(with_action(|action| action.cluster_specifier = header), "route.cluster_header", "no header");
    refused(with_action(|action| action.cluster_specifier = None), "route.cluster_specifier", "missing");
    let both = with_action(|action| {
        action.prefix_rewrite = "/x".into();
        action.regex_rewrite = Some(Default::default());
    });
    refused(both, "route.prefix_rewrite", "only one");
    let error = translate::route(&vec![0xff].into()).unwrap_err();
    assert!(error.to_string().starts_with("RDS \"\": is no RouteConfiguration"), "{error}");
}

/// XD17, RA21: fields that have no effect are named, known to us or not.
#[test]
fn fields_without_effect_are_reported_once() {
    let mut action = action().encode_to_vec();
    // cors {} twice, flush_timeout {}, and field 500.
    action.extend([0x8a, 0x01, 0, 0x8a, 0x01, 0, 0xd2, 0x02, 0, 0xa2, 0x1f, 0]);
    let mut message = route().r#match.unwrap().encode_to_vec();
    message.splice(0..0, [0x0a, message.len() as u8]);
    message.extend([0x12, action.len() as u8]);
    message.extend(action);
    let mut host = vec![0x0a, 1, b'h', 0x12, 1, b'*', 0x1a, message.len() as u8];
    host.extend(message);
    let mut table = vec![0x0a, 1, b't', 0x12, host.len() as u8];
    table.extend(host);
    let place = "virtual_hosts.routes.route";
    let wanted = ["#500", "cors", "flush_timeout"].map(|field| format!("{place}.{field}"));
    assert_eq!(translate::route(&table.into()).unwrap().ignored, wanted);
    let settings =
        [("envoy.filters.http.cors".to_owned(), any("envoy.extensions.filters.http.cors.v3.CorsPolicy", &[]))];
    let decoded = decode(Route { typed_per_filter_config: settings.into(), ..route() }).unwrap();
    assert_eq!(decoded.ignored, ["virtual_hosts.routes.typed_per_filter_config.envoy.filters.http.cors"]);
}

/// TE9: names for statistics of routes and of virtual clusters have no effect, and are named as such.
#[test]
fn names_for_statistics_are_reported() {
    let mut message = route().encode_to_vec();
    // stat_prefix "s".
    message.extend([0x9a, 0x01, 1, b's']);
    let mut host = vec![0x0a, 1, b'h', 0x12, 1, b'*', 0x1a, message.len() as u8];
    host.extend(message);
    // virtual_clusters {}.
    host.extend([0x2a, 0]);
    let mut table = vec![0x0a, 1, b't', 0x12, host.len() as u8];
    table.extend(host);
    let wanted = ["virtual_hosts.routes.stat_prefix", "virtual_hosts.virtual_clusters"];
    assert_eq!(translate::route(&table.into()).unwrap().ignored, wanted);
}
