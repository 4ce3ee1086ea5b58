//! Limits of what one resource may ask of a process: beyond them it is refused, and says which (OP15).

use mesh_xds::{
    proto::envoy::{
        config::{
            cluster::v3::Cluster,
            core::v3::{DataSource, data_source::Specifier},
            endpoint::v3::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints},
            route::v3::{
                DirectResponseAction, Route, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
                route_match::PathSpecifier,
            },
        },
        r#type::matcher::v3::RegexMatcher,
    },
    translate,
};

use crate::body;

fn routes(host: VirtualHost) -> String {
    let message = RouteConfiguration { name: "80".into(), virtual_hosts: vec![host], ..Default::default() };
    translate::route(&body(&message)).unwrap_err().to_string()
}

/// OP15: hosts, domains and routes; programs of regular expressions; bodies; endpoints; names.
#[test]
fn each_limit_refuses_what_is_beyond_it() {
    let crowded = VirtualHost { domains: vec!["a".into(); 500_000], ..VirtualHost::default() };
    let regex = RegexMatcher { regex: "(\\w{500}){500}".into(), ..RegexMatcher::default() };
    let of = |path: PathSpecifier, text: String| {
        let body = DataSource { specifier: Some(Specifier::InlineString(text)) };
        let answer = DirectResponseAction { status: 200, body: Some(body) };
        let route = Route {
            r#match: Some(RouteMatch { path_specifier: Some(path), ..RouteMatch::default() }),
            action: Some(Action::DirectResponse(answer)),
            ..Route::default()
        };
        VirtualHost { domains: vec!["*".into()], routes: vec![route], ..VirtualHost::default() }
    };
    let endpoints = LocalityLbEndpoints { lb_endpoints: vec![LbEndpoint::default(); 200_000], ..Default::default() };
    let endpoints =
        ClusterLoadAssignment { cluster_name: "a".into(), endpoints: vec![endpoints], ..Default::default() };
    let long = Cluster { name: "n".repeat(4097), ..Cluster::default() };
    let long = translate::cluster(&body(&long)).unwrap_err().to_string();
    assert!(long.len() < 200, "{long}");
    for (error, expected) in [
        (routes(crowded), "more than 500000"),
        (routes(of(PathSpecifier::SafeRegex(regex), String::new())), "regex"),
        (routes(of(PathSpecifier::Prefix("/".into()), "b".repeat((1 << 20) + 1))), "longer than 1048576"),
        (translate::endpoints(&body(&endpoints)).unwrap_err().to_string(), "more than 200000"),
        (long, "longer than 4096"),
    ] {
        assert!(error.contains(expected), "{error}: {expected}");
    }
}
