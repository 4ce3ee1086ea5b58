//! Retry policies, and requests with the script of their own tries.

use http::Version;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

use crate::{ask::Ask, upstream::message};

const PREVIOUS_HOSTS: &str = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";

/// A policy, and requests that try it.
pub(super) struct Trial {
    pub(super) routes: Value,
    pub(super) asks: Vec<Ask>,
}

/// Conditions that are shown each alone first, over which protocol, and what is answered that they are for. What asks about
/// connections is shown where there are none.
const ALONE: [(&str, &str, &str); 13] = [
    ("5xx", "h1-one", "500"),
    ("gateway-error", "h1-one", "504"),
    ("reset", "h1-one", "close"),
    ("refused-stream", "h2-one", "refuse"),
    ("retriable-4xx", "h1-one", "409"),
    ("retriable-status-codes", "h1-one", "418"),
    ("retriable-headers", "h1-one", "again"),
    ("envoy-ratelimited", "h1-one", "limited"),
    ("cancelled", "grpc", "grpc-1"),
    ("deadline-exceeded", "grpc", "grpc-4"),
    ("internal", "grpc", "grpc-13"),
    ("resource-exhausted", "grpc", "grpc-8"),
    ("unavailable", "grpc", "grpc-14"),
];

pub(super) const HTTP_WORDS: [&str; 11] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "refused-stream",
    "retriable-4xx",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "5xx",
];
pub(super) const GRPC_WORDS: [&str; 5] =
    ["cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"];
pub(super) const HTTP_ANSWERS: [&str; 17] = [
    "500",
    "501",
    "502",
    "503",
    "504",
    "503",
    "409",
    "400",
    "404",
    "429",
    "418",
    "close",
    "refuse",
    "cancel",
    "overloaded",
    "limited",
    "again",
];
pub(super) const GRPC_ANSWERS: [&str; 12] = [
    "grpc-1", "grpc-4", "grpc-8", "grpc-13", "grpc-14", "grpc-2", "grpc-5", "late-14", "late-1", "late-13", "503",
    "refuse",
];

/// The trial that a seed and a number mean, with this many requests.
pub(super) fn trial(seed: u64, number: u64, requests: usize) -> Trial {
    if let Some(one) = ALONE.get(number as usize) {
        return alone(number, *one, requests);
    }
    let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(number));
    let rng = &mut rng;
    let over_http2 = rng.random_bool(0.5);
    let grpc = over_http2 && rng.random_bool(0.5);
    let level = rng.random_range(0..10);
    // Without a policy nothing is avoided.
    let avoids = level != 2 && rng.random_bool(0.2);
    let all = avoids || rng.random_bool(0.2);
    let name = format!("{}-{}", if over_http2 { "h2" } else { "h1" }, if all { "all" } else { "one" });
    let stalls = rng.random_bool(0.15);
    let mut action = json!({"cluster": name, "timeout": "15s"});
    let mut policy = policy(rng, grpc, stalls);
    if avoids {
        policy["retry_host_predicate"] = json!([{
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {"@type": PREVIOUS_HOSTS},
        }]);
        policy["host_selection_retry_max_attempts"] = json!(60);
    }
    let mut host = json!({});
    // The host's is for routes without one, and not added to theirs.
    match level {
        0 => host["retry_policy"] = policy,
        1 => {
            host["retry_policy"] =
                json!({"retry_on": "5xx,retriable-4xx,unavailable", "num_retries": 3, "retry_back_off": soon()});
            action["retry_policy"] = policy;
        }
        2 => {}
        _ => action["retry_policy"] = policy,
    }
    if stalls {
        action["timeout"] = json!(if rng.random_bool(0.3) { "0.7s" } else { "2s" });
    }
    let mut routes = routes(number, action);
    routes["virtual_hosts"][0].as_object_mut().unwrap().extend(host.as_object().unwrap().clone());
    let asks = (0..requests).map(|_| ask(rng, over_http2, grpc, stalls, avoids)).collect();
    Trial { routes, asks }
}

/// One condition, and an answer that it is for before a good one, or more of them than there may be tries.
fn alone(number: u64, (word, over, answer): (&str, &str, &str), requests: usize) -> Trial {
    let grpc = over == "grpc";
    let policy = json!({
        "retry_on": word,
        "num_retries": 2,
        "retriable_status_codes": [418],
        "retriable_headers": [{"name": "x-again"}],
        "retry_back_off": soon(),
    });
    let cluster = if grpc { "h2-one" } else { over };
    let ask = |n: usize| {
        let mut ask = if grpc { Ask::grpc("host", "/a.B/C") } else { Ask::get("host", "/x") };
        if grpc {
            ask.body = message(b"sent again");
        }
        let script = [answer].repeat(1 + n % 4).join(" ");
        ask.with("x-script", &format!("{script} 200"))
    };
    let routes = routes(number, json!({"cluster": cluster, "timeout": "15s", "retry_policy": policy}));
    Trial { routes, asks: (0..requests).map(ask).collect() }
}

fn policy(rng: &mut StdRng, grpc: bool, stalls: bool) -> Value {
    let mut words: Vec<&str> = Vec::new();
    for _ in 0..rng.random_range(1..4) {
        let list = if grpc && rng.random_bool(0.7) { &GRPC_WORDS[..] } else { &HTTP_WORDS[..] };
        words.extend(list.choose(rng));
    }
    let mut policy = json!({"retry_on": words.join(","), "retry_back_off": soon()});
    if rng.random_bool(0.8) {
        policy["num_retries"] = json!(rng.random_range(0..5));
    }
    if rng.random_bool(0.4) {
        policy["retriable_status_codes"] = json!([*[418, 503, 404, 200].choose(rng).unwrap(), 501]);
    }
    if rng.random_bool(0.4) {
        policy["retriable_headers"] = match rng.random_bool(0.6) {
            true => json!([{"name": "x-again"}]),
            false => json!([{"name": "x-again", "string_match": {"exact": "no"}, "invert_match": true}]),
        };
    }
    if rng.random_bool(0.25) {
        policy["retriable_request_headers"] =
            json!([{"name": ":method", "string_match": {"exact": "GET"}}, {"name": "x-may"}]);
    }
    if stalls {
        policy["per_try_timeout"] = json!("0.4s");
    }
    policy
}

fn ask(rng: &mut StdRng, over_http2: bool, grpc: bool, stalls: bool, avoids: bool) -> Ask {
    let mut ask = if grpc { Ask::grpc("host", "/a.B/C") } else { Ask::get("host", "/x") };
    if !grpc {
        ask.version = if rng.random_bool(0.5) { Version::HTTP_2 } else { Version::HTTP_11 };
        ask.method = ["GET", "GET", "POST", "PUT", "DELETE"].choose(rng).unwrap().parse().unwrap();
        if ask.method == http::Method::POST {
            ask.body = "sent again".into();
        }
    } else {
        ask.body = message(b"sent again");
    }
    let mut script = Vec::new();
    for _ in 0..rng.random_range(1..4) {
        let list = if grpc { &GRPC_ANSWERS[..] } else { &HTTP_ANSWERS[..] };
        let word = *list.choose(rng).unwrap();
        let word = if matches!(word, "refuse" | "cancel") && !over_http2 { "close" } else { word };
        let word = if stalls && rng.random_bool(0.4) { "stall" } else { word };
        // Bad times come in rows.
        script.extend(std::iter::repeat_n(word, rng.random_range(1..3)));
    }
    if rng.random_bool(0.8) {
        script.push("200");
    }
    ask = ask.with("x-script", &script.join(" "));
    if avoids {
        ask = ask.with("x-avoids", "1");
    }
    if rng.random_bool(0.3) {
        ask = ask.with("x-may", "1");
    }
    if rng.random_bool(0.3) {
        ask = own_words(rng, ask, grpc);
    }
    ask
}

/// What a request asks for itself.
fn own_words(rng: &mut StdRng, mut ask: Ask, grpc: bool) -> Ask {
    let pick = |rng: &mut StdRng, list: &[&str]| (*list.choose(rng).unwrap()).to_owned();
    // Envoy listens to callers of the same mesh only: by their address.
    ask = ask.with("x-forwarded-for", "10.0.0.1");
    if rng.random_bool(0.6) {
        ask = ask.with("x-envoy-retry-on", &pick(rng, &HTTP_WORDS));
    }
    if grpc && rng.random_bool(0.7) {
        ask = ask.with("x-envoy-retry-grpc-on", &pick(rng, &GRPC_WORDS));
    }
    if rng.random_bool(0.5) {
        ask = ask.with("x-envoy-max-retries", &pick(rng, &["0", "1", "3", "4", "x"]));
    }
    if rng.random_bool(0.4) {
        ask = ask.with("x-envoy-retriable-status-codes", &pick(rng, &["404", "418,429", "400, 500", "many"]));
    }
    if rng.random_bool(0.4) {
        ask = ask.with("x-envoy-retriable-header-names", &pick(rng, &["x-again", "X-Again,x-other", "x-other"]));
    }
    if rng.random_bool(0.2) {
        ask = ask.with("x-envoy-upstream-rq-timeout-ms", "8000");
    }
    if rng.random_bool(0.2) {
        ask = ask.with("x-envoy-upstream-rq-per-try-timeout-ms", &pick(rng, &["600", "700", "60000"]));
    }
    ask
}

/// Which kinds a policy is of.
pub(super) fn words(routes: &Value) -> Vec<String> {
    let host = &routes["virtual_hosts"][0];
    let mut kinds = Vec::new();
    for (level, policy) in [("host", &host["retry_policy"]), ("route", &host["routes"][0]["route"]["retry_policy"])] {
        let Some(fields) = policy.as_object() else { continue };
        kinds.push(level.to_owned());
        kinds.extend(fields.keys().cloned());
    }
    kinds.extend(in_force(routes).into_iter().map(str::to_owned));
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

/// The conditions of the policy in force, which is the route's own where there is one.
pub(super) fn in_force(routes: &Value) -> Vec<&str> {
    let host = &routes["virtual_hosts"][0];
    let own = &host["routes"][0]["route"]["retry_policy"];
    let policy = if own.is_object() { own } else { &host["retry_policy"] };
    policy["retry_on"].as_str().into_iter().flat_map(|words| words.split(',')).collect()
}

/// Waits that no test waits for.
pub(super) fn soon() -> Value {
    json!({"base_interval": "0.001s", "max_interval": "0.005s"})
}

/// Every request by one route.
pub(super) fn routes(number: u64, action: Value) -> Value {
    json!({"virtual_hosts": [{
        "name": format!("host-{number}"),
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": action}],
    }]})
}
