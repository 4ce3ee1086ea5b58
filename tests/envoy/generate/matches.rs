//! Conditions of routes, with an example of what meets each.

use proptest::{collection::vec, prelude::*, sample::select, strategy::BoxedStrategy};
use serde_json::{Value, json};

use super::{maybe, object};

/// Paths that conditions and requests share.
pub(super) const PATHS: [&str; 12] =
    ["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/A/B", "/api/v1/users", "/api/v2", "/a//b", "/a%20b", "/pkg.Echo/Say"];

const PREFIXES: [&str; 9] = ["/", "", "/a", "/a/", "/a/b", "/ap", "/api/v", "/A", "/pkg.Echo/"];
const SEGMENTS: [&str; 6] = ["/a", "/a/b", "/api", "/api/v1", "/A", "/pkg.Echo"];

/// Regular expressions of paths, with a path that each matches.
pub(super) const PATH_REGEXES: [(&str, &str); 8] = [
    ("/a/.*", "/a/x"),
    ("/(a|ab)", "/ab"),
    ("/api/v[0-9]+/[^/]*", "/api/v1/users"),
    (".*", "/any"),
    ("/a/?", "/a/"),
    ("(?i)/API.*", "/api/x"),
    ("/a|/a/b", "/a/b"),
    ("/[[:alpha:]]{1,3}", "/ab"),
];

/// Templates of paths, with a path that each matches.
pub(super) const TEMPLATES: [(&str, &str); 5] = [
    ("/a/{rest=**}", "/a/b/c"),
    ("/{one}/{two}", "/a/b"),
    ("/api/*/users", "/api/v1/users"),
    ("/{one=*}/b", "/a/b"),
    ("/api/**", "/api/v2"),
];

pub(super) fn template_match(template: &str) -> Value {
    json!({"name": "envoy.path.match.uri_template.uri_template_matcher", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
        "path_template": template,
    }})
}

/// Regular expressions of values, with a value that each matches.
pub(super) const VALUE_REGEXES: [(&str, &str); 8] = [
    ("[0-9]+", "42"),
    ("jas.*", "jason"),
    ("(?i)JASON", "jason"),
    ("a|b", "b"),
    (".*", "any"),
    ("x?", ""),
    ("\\d{2}", "42"),
    ("[^,]+", "one"),
];

/// Names of headers that conditions, changes and requests share.
pub(super) const HEADERS: [&str; 6] = ["x-a", "x-b", "x-num", "end-user", "x-multi", "user-agent"];

/// Values that conditions, changes and requests share.
pub(super) const VALUES: [&str; 12] =
    ["1", "42", "-5", "007", "jason", "Jason", "jas", "JASON", "a", "a,b", "one", "v 1"];

/// Names of query parameters.
pub(super) const KEYS: [&str; 4] = ["k", "q", "Q", "empty"];

/// Names of cookies.
pub(super) const COOKIES: [&str; 3] = ["session", "user", "User"];

pub(super) fn route_match() -> impl Strategy<Value = Value> {
    (
        path(),
        maybe(15, Just(json!(false))),
        headers(),
        queries(),
        cookies(),
        maybe(8, fraction()),
        maybe(6, Just(json!({}))),
    )
        .prop_map(|(mut route, case_sensitive, headers, queries, cookies, fraction, grpc)| {
            // A template says itself what it means.
            let is_template = route.get("path_match_policy").is_some();
            super::set(&mut route, "case_sensitive", case_sensitive.filter(|_| !is_template));
            super::set(&mut route, "cookies", cookies);
            super::set(&mut route, "headers", headers);
            super::set(&mut route, "query_parameters", queries);
            super::set(&mut route, "runtime_fraction", fraction);
            super::set(&mut route, "grpc", grpc);
            route
        })
}

fn path() -> BoxedStrategy<Value> {
    prop_oneof![
        4 => select(&PREFIXES[..]).prop_map(|prefix| json!({"prefix": prefix})),
        3 => select(&PATHS[..]).prop_map(|path| json!({"path": path})),
        2 => select(&PATH_REGEXES[..]).prop_map(|(regex, _)| json!({"safe_regex": {"regex": regex}})),
        2 => select(&SEGMENTS[..]).prop_map(|prefix| json!({"path_separated_prefix": prefix})),
        1 => select(&TEMPLATES[..]).prop_map(|(template, _)| json!({"path_match_policy": template_match(template)})),
    ]
    .boxed()
}

fn headers() -> impl Strategy<Value = Option<Value>> {
    let some = vec(header(), 1..3).prop_map(|headers| json!(headers));
    maybe(45, some)
}

/// One condition of a header.
pub(super) fn header() -> BoxedStrategy<Value> {
    let ordinary = (select(&HEADERS[..]), header_condition())
        .prop_map(|(name, mut matcher)| {
            matcher["name"] = json!(name);
            matcher
        })
        .boxed();
    let pseudo = prop_oneof![
        Just(json!({"name": ":method", "string_match": {"exact": "GET"}})),
        Just(json!({"name": ":method", "exact_match": "POST"})),
        Just(json!({"name": ":method", "safe_regex_match": {"regex": "GET|PUT"}})),
        Just(json!({"name": ":authority", "string_match": {"suffix": ".example.com"}})),
        Just(json!({"name": ":authority", "string_match": {"prefix": "a.", "ignore_case": true}})),
        Just(json!({"name": ":path", "string_match": {"prefix": "/a"}})),
        Just(json!({"name": ":path", "contains_match": "?"})),
        Just(json!({"name": ":scheme", "string_match": {"exact": "http"}})),
        Just(json!({"name": "content-type", "string_match": {"prefix": "application/"}})),
    ];
    (prop_oneof![5 => ordinary, 1 => pseudo.boxed()], maybe(20, Just(json!(true))), maybe(12, Just(json!(true))))
        .prop_map(|(mut matcher, invert, missing)| {
            super::set(&mut matcher, "invert_match", invert);
            super::set(&mut matcher, "treat_missing_header_as_empty", missing);
            matcher
        })
        .boxed()
}

fn header_condition() -> BoxedStrategy<Value> {
    let value = || select(&VALUES[..]);
    prop_oneof![
        5 => string().prop_map(|matcher| json!({"string_match": matcher})),
        1 => value().prop_map(|value| json!({"exact_match": value})),
        1 => value().prop_map(|value| json!({"prefix_match": value})),
        1 => value().prop_map(|value| json!({"suffix_match": value})),
        1 => value().prop_map(|value| json!({"contains_match": value})),
        1 => select(&VALUE_REGEXES[..]).prop_map(|(regex, _)| json!({"safe_regex_match": {"regex": regex}})),
        2 => select(&[(-10, 10), (0, 43), (42, 43), (5, 5), (i64::MIN, i64::MAX)][..])
            .prop_map(|(start, end)| json!({"range_match": {"start": start, "end": end}})),
        1 => Just(json!({"present_match": true})),
        1 => Just(json!({"present_match": false})),
        1 => Just(json!({})),
    ]
    .boxed()
}

/// A `StringMatcher`.
pub(super) fn string() -> BoxedStrategy<Value> {
    let kinds = prop_oneof![
        select(&VALUES[..]).prop_map(|value| ("exact", json!(value))),
        select(&["j", "jas", "4", "a", "J"][..]).prop_map(|value| ("prefix", json!(value))),
        select(&["n", "on", "2", "b", "N"][..]).prop_map(|value| ("suffix", json!(value))),
        select(&["a", "AS", ",", "0"][..]).prop_map(|value| ("contains", json!(value))),
        select(&VALUE_REGEXES[..]).prop_map(|(regex, _)| ("safe_regex", json!({"regex": regex}))),
    ];
    (kinds, maybe(25, Just(json!(true))))
        .prop_map(|((kind, value), ignore_case)| {
            // Envoy refuses it beside a regular expression, where it has no effect.
            object([(kind, Some(value)), ("ignore_case", ignore_case.filter(|_| kind != "safe_regex"))])
        })
        .boxed()
}

fn queries() -> impl Strategy<Value = Option<Value>> {
    let condition = prop_oneof![
        4 => string().prop_map(|matcher| json!({"string_match": matcher})),
        1 => Just(json!({"present_match": true})),
        1 => Just(json!({"present_match": false})),
        1 => Just(json!({})),
    ];
    let one = (select(&KEYS[..]), condition).prop_map(|(name, mut matcher)| {
        matcher["name"] = json!(name);
        matcher
    });
    maybe(20, vec(one, 1..3).prop_map(|queries| json!(queries)))
}

fn cookies() -> impl Strategy<Value = Option<Value>> {
    let one = (select(&COOKIES[..]), string(), maybe(30, Just(json!(true)))).prop_map(|(name, matcher, invert)| {
        object([("name", Some(json!(name))), ("string_match", Some(matcher)), ("invert_match", invert)])
    });
    maybe(10, vec(one, 1..3).prop_map(|cookies| json!(cookies)))
}

/// All or nothing, so that chance does not decide.
pub(super) fn fraction() -> BoxedStrategy<Value> {
    select(
        &[
            (0, "HUNDRED"),
            (100, "HUNDRED"),
            (0, "MILLION"),
            (1_000_000, "MILLION"),
            (10_000, "TEN_THOUSAND"),
            (250, "HUNDRED"),
        ][..],
    )
    .prop_map(|(numerator, denominator)| json!({"default_value": {"numerator": numerator, "denominator": denominator}}))
    .boxed()
}
