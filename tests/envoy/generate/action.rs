//! What routes do with requests.

use proptest::{collection::vec, prelude::*, sample::select, strategy::BoxedStrategy};
use serde_json::{Value, json};

use super::{
    Flavour, header as changes,
    matches::{fraction, header},
    maybe, merge, object, set,
};

/// A limit of time that is reached where an upstream is asked to stall, and nowhere else.
pub(super) const SHORT: &str = "0.5s";

/// Rewrites of paths by regular expression.
const REWRITES: [(&str, &str); 6] = [
    ("^/a/(.*)$", "/moved/\\1"),
    ("a", "b"),
    ("^/([^/]+)/([^/]+)", "/\\2/\\1"),
    ("/+", "/"),
    ("nothing-like-this", "/x"),
    ("^.*$", "/whole"),
];

/// The action of a route, as the field it stands in.
pub(super) fn action(clusters: Flavour) -> BoxedStrategy<Value> {
    prop_oneof![
        7 => forward(clusters).prop_map(|action| json!({"route": action})),
        2 => redirect().prop_map(|action| json!({"redirect": action})),
        1 => direct_response().prop_map(|action| json!({"direct_response": action})),
    ]
    .boxed()
}

fn forward(clusters: Flavour) -> BoxedStrategy<Value> {
    let to = prop_oneof![
        10 => select(clusters.clusters().to_vec()).prop_map(|name| json!({"cluster": name})),
        2 => (Just("gone"), maybe(70, select(&["NOT_FOUND", "INTERNAL_SERVER_ERROR", "SERVICE_UNAVAILABLE"][..])))
            .prop_map(|(name, code)| object([("cluster", Some(json!(name))),
                ("cluster_not_found_response_code", code.map(|code| json!(code)))])),
        1 => Just(json!({"cluster_header": "x-cluster"})),
        4 => weighted(clusters).prop_map(|split| json!({"weighted_clusters": split})),
    ];
    let more = (maybe(10, mirrors(clusters)), maybe(12, retry()), limits(), handling());
    (to, path_rewrite(), host_rewrite(), maybe(12, Just(json!(true))), more)
        .prop_map(|(mut action, path, host, append_host, (mirrors, retry, limits, handling))| {
            set(&mut action, "append_x_forwarded_host", append_host);
            set(&mut action, "request_mirror_policies", mirrors);
            set(&mut action, "retry_policy", retry);
            merge(&mut action, limits);
            merge(&mut action, handling);
            if let Some(policies) =
                action["weighted_clusters"].as_object_mut().and_then(|split| split.remove("policies"))
            {
                action["hash_policy"] = policies;
            }
            merge(&mut action, path.unwrap_or_default());
            merge(&mut action, host.unwrap_or_default());
            action
        })
        .boxed()
}

/// A time that is either shorter than an upstream that is asked to stall, or longer than any answer takes.
fn time(percent: u32) -> impl Strategy<Value = Option<Value>> {
    maybe(percent, select(&[SHORT, "20s", "0s"][..]).prop_map(|time| json!(time)))
}

/// Limits of time.
fn limits() -> impl Strategy<Value = Value> {
    let stream = (time(80), maybe(60, select(&[SHORT, "20s"][..]))).prop_map(|(whole, grpc)| {
        object([("max_stream_duration", whole), ("grpc_timeout_header_max", grpc.map(|time| json!(time)))])
    });
    (time(12), time(7), maybe(7, stream), time(7)).prop_map(|(timeout, idle, stream, grpc)| {
        object([
            ("timeout", timeout),
            ("idle_timeout", idle),
            ("max_stream_duration", stream),
            ("max_grpc_timeout", grpc),
        ])
    })
}

/// What changes nothing that a caller sees while there is room for its request.
fn handling() -> impl Strategy<Value = Value> {
    let upgrades = any::<bool>().prop_map(|enabled| json!([{"upgrade_type": "websocket", "enabled": enabled}]));
    // Nobody asks for it where endpoints take turns, so no cookie is given.
    let hash = Just(json!([{"cookie": {"name": "sticky", "ttl": "60s"}}]));
    (maybe(6, select(&["HIGH", "DEFAULT"][..])), maybe(6, upgrades), maybe(4, hash)).prop_map(
        |(priority, upgrades, hash)| {
            object([
                ("priority", priority.map(|priority| json!(priority))),
                ("upgrade_configs", upgrades),
                ("hash_policy", hash),
            ])
        },
    )
}

/// Copies, always or never, so that chance does not decide.
fn mirrors(clusters: Flavour) -> BoxedStrategy<Value> {
    let one = (
        select(vec![clusters.mirror(), clusters.mirror(), "gone"]),
        maybe(40, fraction()),
        maybe(30, Just(json!(true))),
        maybe(35, Just(json!("mirror.example.com"))),
        maybe(
            35,
            Just(json!([
                {"append": {"header": {"key": "x-copied", "value": "yes"}}},
                {"remove": "x-a"},
            ])),
        ),
    )
        .prop_map(|(cluster, fraction, keep_host, host, headers)| {
            object([
                ("cluster", Some(json!(cluster))),
                ("runtime_fraction", fraction),
                ("disable_shadow_host_suffix_append", keep_host),
                ("host_rewrite_literal", host),
                ("request_headers_mutations", headers),
            ])
        });
    vec(one, 1..3).prop_map(|mirrors| json!(mirrors)).boxed()
}

/// Trying again, without waits that a test would wait for.
pub(super) fn retry() -> BoxedStrategy<Value> {
    let words = [
        "5xx",
        "gateway-error",
        "retriable-4xx",
        "retriable-status-codes",
        "unavailable",
        "5xx,unavailable,internal",
        "reset,connect-failure",
        "retriable-headers",
        "retriable-4xx,gateway-error",
    ];
    (
        select(words.to_vec()),
        maybe(70, 0..4_u32),
        maybe(40, select(&[409, 418, 500][..])),
        maybe(30, select(&["x-kept", "x-other"][..])),
        (time(25), time(30)),
    )
        .prop_map(|(words, retries, code, header, (per_try, per_try_idle))| {
            object([
                ("retry_on", Some(json!(words))),
                ("num_retries", retries.map(|retries| json!(retries))),
                ("retriable_status_codes", code.map(|code| json!([code]))),
                ("retriable_headers", header.map(|header| json!([{"name": header}]))),
                ("per_try_timeout", per_try),
                ("per_try_idle_timeout", per_try_idle),
                ("retry_back_off", Some(json!({"base_interval": "0.001s", "max_interval": "0.004s"}))),
            ])
        })
        .boxed()
}

/// One destination has all the weight, or the request's header or its hash says which, so that chance does not decide.
fn weighted(clusters: Flavour) -> BoxedStrategy<Value> {
    let host = || maybe(15, Just(json!("of-the-cluster.example.com")));
    (
        (0..3_usize, select(&[1, 100, 5][..]), 0..5_u32, vec(select(&[0, 1, 2, 3, 7, 100, 1000][..]), 3), 0..3_usize),
        (changes::changes(30), changes::changes(30)),
        (host(), host(), maybe(8, fault_level())),
    )
        .prop_map(move |((chosen, weight, by, weights, hash), (ours, theirs), (our_host, their_host, fault))| {
            let (by_header, by_hash) = (by == 0, by == 1);
            let entry = |(i, name): (usize, &str)| {
                let (is_chosen, other) = (i == chosen, if by_header || by_hash { weights[i] } else { 0 });
                let mut entry = json!({"name": name, "weight": if is_chosen { weight } else { other }});
                merge(&mut entry, if is_chosen { ours.clone() } else { theirs.clone() });
                set(&mut entry, "host_rewrite_literal", if is_chosen { our_host.clone() } else { their_host.clone() });
                let filters = fault.clone().map(|fault| json!({"envoy.filters.http.fault": fault}));
                set(&mut entry, "typed_per_filter_config", filters);
                entry
            };
            let entries: Vec<Value> = clusters.clusters().into_iter().enumerate().map(entry).collect();
            let mut split = json!({"clusters": entries});
            set(&mut split, "header_name", by_header.then_some(json!("x-split")));
            set(&mut split, "use_hash_policy", by_hash.then_some(json!(true)));
            let split_by = json!({"header": {"header_name": "x-split"}});
            let policies = [
                json!([split_by]),
                json!([{"header": {"header_name": "x-multi"}}, split_by]),
                json!([{"query_parameter": {"name": "k"}, "terminal": true}, split_by]),
            ];
            // Moved to where it belongs by the route.
            set(&mut split, "policies", by_hash.then(|| policies[hash].clone()));
            split
        })
        .boxed()
}

fn path_rewrite() -> impl Strategy<Value = Option<Value>> {
    let prefix =
        select(&["/new", "/", "/new/", "/a", "/n?x=1"][..4]).prop_map(|prefix| json!({"prefix_rewrite": prefix}));
    let regex = regex_rewrite().prop_map(|regex| json!({"regex_rewrite": regex}));
    maybe(35, prop_oneof![prefix.boxed(), regex.boxed()])
}

fn regex_rewrite() -> BoxedStrategy<Value> {
    select(&REWRITES[..]).prop_map(|(regex, by)| json!({"pattern": {"regex": regex}, "substitution": by})).boxed()
}

fn host_rewrite() -> impl Strategy<Value = Option<Value>> {
    let kinds = prop_oneof![
        2 => select(&["rewritten.example.com", "rewritten:8080"][..]).prop_map(|host| json!({"host_rewrite_literal": host})),
        1 => Just(json!({"host_rewrite_header": "x-host"})),
        1 => Just(json!({"auto_host_rewrite": true})),
        1 => select(&[("^/([a-zA-Z]*).*$", "x\\1.example.com"), ("^.*$", "of-path")][..]).prop_map(|(regex, by)| {
            json!({"host_rewrite_path_regex": {"pattern": {"regex": regex}, "substitution": by}})
        }),
    ];
    maybe(25, kinds)
}

fn redirect() -> BoxedStrategy<Value> {
    let path = prop_oneof![
        select(&["/elsewhere", "/elsewhere?own=1", "/"][..]).prop_map(|path| json!({"path_redirect": path})),
        select(&["/new", "/"][..]).prop_map(|prefix| json!({"prefix_rewrite": prefix})),
        regex_rewrite().prop_map(|regex| json!({"regex_rewrite": regex})),
    ];
    let scheme = prop_oneof![
        2 => Just(json!({"https_redirect": true})),
        1 => Just(json!({"https_redirect": false})),
        1 => Just(json!({"scheme_redirect": "https"})),
        1 => Just(json!({"scheme_redirect": "http"})),
    ];
    let codes = select(&["MOVED_PERMANENTLY", "FOUND", "SEE_OTHER", "TEMPORARY_REDIRECT", "PERMANENT_REDIRECT"][..]);
    (
        maybe(50, path),
        maybe(40, scheme),
        maybe(40, select(&["elsewhere.example.com", "elsewhere:99"][..])),
        maybe(25, select(&[80, 443, 8443][..])),
        maybe(60, codes),
        maybe(30, Just(json!(true))),
    )
        .prop_map(|(path, scheme, host, port, code, strip)| {
            let mut redirect = object([
                ("host_redirect", host.map(|host| json!(host))),
                ("port_redirect", port.map(|port| json!(port))),
                ("response_code", code.map(|code| json!(code))),
                ("strip_query", strip),
            ]);
            merge(&mut redirect, path.unwrap_or_default());
            merge(&mut redirect, scheme.unwrap_or_default());
            redirect
        })
        .boxed()
}

fn direct_response() -> BoxedStrategy<Value> {
    (
        select(&[200, 204, 404, 418, 503, 599][..]),
        maybe(70, select(&["", "said here", "{\"json\": true}"][..])),
        any::<bool>(),
    )
        .prop_map(|(status, body, bytes)| {
            let mut action = json!({"status": status});
            let body = body.map(|text| match bytes && !text.is_empty() {
                true => json!({"inline_bytes": base64(text)}),
                false => json!({"inline_string": text}),
            });
            set(&mut action, "body", body);
            action
        })
        .boxed()
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// A fault that always or never happens, unless the request asks for it.
pub(super) fn fault() -> BoxedStrategy<Value> {
    let abort = prop_oneof![
        3 => select(&[404, 503, 429][..]).prop_map(|status| json!({"http_status": status})),
        3 => select(&[5, 13, 14][..]).prop_map(|code| json!({"grpc_status": code})),
        2 => Just(json!({"header_abort": {}})),
    ];
    let delay = prop_oneof![Just(json!({"fixed_delay": "0.01s"})), Just(json!({"header_delay": {}}))];
    let what = prop_oneof![
        3 => abort.prop_map(|abort| (Some(abort), None)).boxed(),
        2 => delay.prop_map(|delay| (None, Some(delay))).boxed(),
    ];
    (what, select(&[0, 100, 100][..]), maybe(25, header()))
        .prop_map(|((abort, delay), percent, condition)| {
            let with_share = |mut fault: Value| {
                fault["percentage"] = json!({"numerator": percent, "denominator": "HUNDRED"});
                fault
            };
            let mut fault = object([
                ("abort", abort.map(with_share)),
                ("delay", delay.map(with_share)),
                ("headers", condition.map(|condition| json!([condition]))),
            ]);
            fault["@type"] = json!("type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault");
            fault
        })
        .boxed()
}

/// A fault of a level, or the word that there is none.
pub(super) fn fault_level() -> BoxedStrategy<Value> {
    prop_oneof![
        2 => fault(),
        1 => Just(json!({"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true})),
    ]
    .boxed()
}
