//! Route configurations and the requests that try them, made by chance out of few words, so that they often meet.
//!
//! A configuration is written as proto JSON, as people write it, and becomes bytes once, for both sides. A request is kept
//! as what it aims at (a rule of the configuration, and what to get wrong about it), so that it still makes sense while a
//! failing configuration is made smaller.

use proptest::{collection::vec, prelude::*, sample::select, strategy::BoxedStrategy};
use serde_json::{Map, Value, json};

#[path = "generate/action.rs"]
mod action;
#[path = "generate/aim.rs"]
mod aim;
#[path = "generate/header.rs"]
mod header;
#[path = "generate/matches.rs"]
mod matches;

pub(crate) use aim::Aim;

/// A configuration with the requests that try it.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// The `RouteConfiguration`, as JSON, without its name.
    pub(crate) routes: Value,
    /// The requests.
    pub(crate) aims: Vec<Aim>,
}

/// The protocol of the clusters a configuration names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Flavour {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, which gRPC needs.
    Http2,
}

impl Flavour {
    /// The cluster that gets copies, and nothing else.
    pub(crate) fn mirror(self) -> &'static str {
        match self {
            Self::Http1 => "h1-mirror",
            Self::Http2 => "h2-mirror",
        }
    }

    /// The names of its clusters.
    pub(crate) fn clusters(self) -> [&'static str; 3] {
        match self {
            Self::Http1 => ["h1-a", "h1-b", "h1-c"],
            Self::Http2 => ["h2-a", "h2-b", "h2-c"],
        }
    }
}

/// Domains, one of which occurs once in a configuration.
const DOMAINS: [&str; 16] = [
    "*",
    "a.example.com",
    "b.example.com",
    "a.example.com:8080",
    "*.example.com",
    "*.a.example.com",
    "*-b.example.com",
    "*.com",
    "*.com:8080",
    "example.*",
    "a.*",
    "a.example.*",
    "shop",
    "shop:80",
    "UPPER.example.com",
    "127.0.0.1",
];

/// A configuration with this many requests.
pub(crate) fn case(requests: usize) -> impl Strategy<Value = Case> {
    prop_oneof![Just(Flavour::Http1), Just(Flavour::Http2)].prop_flat_map(move |clusters| {
        (configuration(clusters), vec(aim::aim(clusters), requests)).prop_map(|(routes, aims)| Case { routes, aims })
    })
}

fn configuration(clusters: Flavour) -> impl Strategy<Value = Value> {
    let hosts = vec((vec(select(&DOMAINS[1..]), 1..4), vec(route(clusters), 1..6), extras()), 1..4);
    let flags = (
        // What gRPC is told where nothing matches is not what Envoy says: mostly something does.
        prop::bool::weighted(if clusters == Flavour::Http2 { 0.98 } else { 0.7 }),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
        prop::bool::weighted(if clusters == Flavour::Http2 { 0.95 } else { 0.0 }),
    );
    (hosts, flags, header::changes(15)).prop_map(
        move |(hosts, (catch_all, ignore_port, specific_wins, ignore_parameters, rest), headers)| {
            let mut taken: Vec<String> = Vec::new();
            let last = hosts.len() - 1;
            let hosts = hosts.into_iter().enumerate().filter_map(|(i, (mut domains, routes, extras))| {
                if catch_all && i == last {
                    domains.push("*");
                }
                domains.retain(|domain| {
                    let is_new = !taken.contains(&domain.to_ascii_lowercase());
                    taken.push(domain.to_ascii_lowercase());
                    is_new
                });
                let named = |(j, mut route): (usize, Value)| {
                    route["name"] = json!(format!("host-{i} route-{j}"));
                    route
                };
                let mut routes: Vec<Value> = routes;
                if rest && let Some(cluster) = clusters.clusters().get(i % 3) {
                    routes.push(json!({"match": {"prefix": "/"}, "route": {"cluster": cluster}}));
                }
                let routes: Vec<Value> = routes.into_iter().enumerate().map(named).collect();
                let mut host = json!({"name": format!("host-{i}"), "domains": domains, "routes": routes});
                merge(&mut host, extras);
                (!host["domains"].as_array()?.is_empty()).then_some(host)
            });
            let hosts: Vec<Value> = hosts.collect();
            let mut configuration = json!({"virtual_hosts": hosts});
            set(&mut configuration, "ignore_port_in_host_matching", ignore_port.then_some(json!(true)));
            let specific_wins = specific_wins.then_some(json!(true));
            set(&mut configuration, "most_specific_header_mutations_wins", specific_wins);
            // Envoy compares templates with the parameters all the same.
            let ignores = ignore_parameters && !configuration.to_string().contains("path_match_policy");
            let ignore_parameters = ignores.then_some(json!(true));
            set(&mut configuration, "ignore_path_parameters_in_path_matching", ignore_parameters);
            merge(&mut configuration, headers);
            configuration
        },
    )
}

/// What a virtual host has besides domains and routes.
fn extras() -> impl Strategy<Value = Value> {
    let retry = maybe(6, action::retry());
    let attempts = maybe(15, Just(json!(true)));
    (header::changes(20), maybe(8, action::fault_level()), retry, attempts).prop_map(
        |(mut extras, fault, retry, attempts)| {
            set(&mut extras, "retry_policy", retry);
            set(&mut extras, "include_request_attempt_count", attempts);
            let filters = fault.map(|fault| json!({"envoy.filters.http.fault": fault}));
            set(&mut extras, "typed_per_filter_config", filters);
            extras
        },
    )
}

/// A template of a path is rewritten by another with its variables; Envoy takes no other rewrite beside it.
fn rewrite_template(template: &str, forward: &mut Value) {
    let Some(fields) = forward.as_object_mut() else { return };
    if fields.remove("prefix_rewrite").or_else(|| fields.remove("regex_rewrite")).is_none() {
        return;
    }
    let by = match template {
        "/a/{rest=**}" => "/moved/{rest}",
        "/{one}/{two}" => "/{two}/{one}",
        "/{one=*}/b" => "/b/{one}",
        _ => "/whole",
    };
    let rewrite = json!({"name": "envoy.path.rewrite.uri_template.uri_template_rewriter", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig",
        "path_template_rewrite": by,
    }});
    fields.insert("path_rewrite_policy".to_owned(), rewrite);
}

fn route(clusters: Flavour) -> BoxedStrategy<Value> {
    (matches::route_match(), action::action(clusters), header::changes(25), maybe(9, action::fault_level()))
        .prop_map(|(matches, mut action, headers, fault)| {
            let template = matches["path_match_policy"]["typed_config"]["path_template"].as_str();
            if let (Some(_), Some(redirect)) = (template, action.get_mut("redirect").and_then(Value::as_object_mut)) {
                redirect.remove("prefix_rewrite");
            }
            if let (Some(template), Some(forward)) = (template, action.get_mut("route")) {
                rewrite_template(template, forward);
            }
            let mut route = json!({"match": matches});
            merge(&mut route, action);
            merge(&mut route, headers);
            let filters = fault.map(|fault| json!({"envoy.filters.http.fault": fault}));
            set(&mut route, "typed_per_filter_config", filters);
            route
        })
        .boxed()
}

/// Something, in so many of a hundred cases.
fn maybe<T: std::fmt::Debug>(percent: u32, of: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    prop::option::weighted(f64::from(percent) / 100.0, of)
}

fn set(object: &mut Value, name: &str, value: Option<Value>) {
    if let (Some(object), Some(value)) = (object.as_object_mut(), value) {
        object.insert(name.to_owned(), value);
    }
}

fn merge(object: &mut Value, more: Value) {
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
}

/// An object of the fields that are there.
fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let there = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(there.collect::<Map<_, _>>())
}
