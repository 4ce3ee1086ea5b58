//! What arrived and what came back, through Envoy and through ours, with every difference between them.
//!
//! Left out is only what each hop says of itself on every request, whatever its routes say: `OF_THE_HOP`. Everything else is
//! compared; what may differ is one of [`EXPLAINED`], by name and with its reason. What ours tells every try, where Envoy says
//! nothing or less, is held to be true instead, and counted: [`told_more`].

use std::{collections::BTreeMap, fmt};

use http::HeaderMap;
use serde_json::Value;

use crate::{
    ask::{Answer, Ask},
    upstream::Arrived,
};

/// Headers by which a hop tells of itself or frames a message: never taken from routes. What those say that number a try, tell it
/// how much time is left or by which scheme its caller came is compared by itself, in `facts`.
const OF_THE_HOP: [&str; 21] = [
    "connection",
    "content-length",
    "date",
    "grpc-previous-rpc-attempts",
    "grpc-timeout",
    "server",
    "traceparent",
    "tracestate",
    "transfer-encoding",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-spanid",
    "x-b3-traceid",
    "x-envoy-attempt-count",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-upstream-service-time",
    "x-forwarded-proto",
    "x-request-id",
    "keep-alive",
    "x-envoy-internal",
    PAIR,
];

/// The limits of time that there are, in milliseconds: what is left of one has nearly that size.
const LIMITS: [u128; 4] = [500, 9_000, 15_000, 20_000];

/// The header that says which pair a request is of, and through whom it goes: so that all that arrives can be told apart.
pub(crate) const PAIR: &str = "x-pair";

/// One thing that was not the same.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Difference {
    /// What of: `status`, `upstream`, `arrived x-a`, `answered x-up`.
    pub(crate) what: String,
    /// Through Envoy.
    pub(crate) envoy: String,
    /// Through ours.
    pub(crate) ours: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} through Envoy, {} through ours", self.what, self.envoy, self.ours)
    }
}

/// A difference that is meant.
pub(crate) struct Explained {
    /// Its name.
    pub(crate) name: &'static str,
    /// Why it is so.
    #[allow(dead_code, reason = "for whoever reads the list")]
    pub(crate) reason: &'static str,
    /// Whether this is it.
    pub(crate) is: fn(&Ask, Option<&Value>, &Difference) -> bool,
}

/// All differences that are meant; of a request, the rule that took it if one did, and what differs.
pub(crate) const EXPLAINED: &[Explained] = &[
    Explained {
        name: "no route is UNAVAILABLE to gRPC",
        reason: "gRFC A28 has a gRPC client say UNAVAILABLE where nothing matches; Envoy translates its 404 to UNIMPLEMENTED",
        is: |_, rule, difference| {
            let Difference { what, envoy, ours } = difference;
            rule.is_none() && what == "answered grpc-status" && envoy == "\"12\"" && ours == "\"14\""
        },
    },
    Explained {
        name: "the reason is told to gRPC",
        reason: "a status of ours says in its message why, where Envoy's says nothing",
        is: |_, _, difference| difference.what == "answered grpc-message" && difference.envoy == "nothing",
    },
    Explained {
        name: "time that is up is DEADLINE_EXCEEDED to gRPC",
        reason: "a gRPC client is told 4 when its time is up; Envoy makes UNAVAILABLE of every 504 of its own",
        is: |ask, _, difference| {
            let Difference { what, envoy, ours } = difference;
            let stalls = ask.headers.iter().any(|(name, _)| name == "x-stall");
            stalls && what == "answered grpc-status" && envoy == "\"14\"" && ours == "\"4\""
        },
    },
    Explained {
        name: "a status without content has none",
        reason: "over HTTP/2 Envoy sends the body that a route gives to a 204, which RFC 9110 does not allow; we never do",
        is: |_, rule, difference| {
            let status = rule.map_or(&Value::Null, |rule| &rule["direct_response"]["status"]);
            status == 204 && difference.what == "body" && difference.ours == "\"\""
        },
    },
    Explained {
        name: "a redirect leaves the request as it came",
        reason: "Envoy writes the path that a rewriting redirect leads to into the request before it renders `%REQ(:path)%` in the \
                 headers of the answer; we render the path that was asked for",
        is: |_, rule, difference| {
            let redirect = rule.map_or(&Value::Null, |rule| &rule["redirect"]);
            let rewrites = ["prefix_rewrite", "regex_rewrite"].iter().any(|kind| redirect.get(*kind).is_some());
            rewrites && difference.what.starts_with("answered x-") && difference.ours.contains('/')
        },
    },
    Explained {
        name: "an answer is told which host was asked for",
        reason: "Envoy writes the endpoint's name into the request before it renders `%REQ(:authority)%` in the headers of the \
                 answer; we render the host that was asked for",
        is: |_, rule, difference| {
            names_endpoints(rule) && difference.what.starts_with("answered ") && difference.envoy.contains(ENDPOINT)
        },
    },
    Explained {
        name: "the original host is the caller's",
        reason: "a second try of Envoy's says that it came as the endpoint's name of the first try; ours says what the caller asked for",
        is: |_, rule, difference| {
            let Difference { what, envoy, .. } = difference;
            let original = what == "arrived x-envoy-original-host" || what == "arrived x-forwarded-host";
            names_endpoints(rule) && original && envoy.contains(ENDPOINT)
        },
    },
    Explained {
        name: "a host that is none is not sent",
        reason: "where a substitution in the path yields no host, Envoy sends it all the same; we leave the authority as it was",
        is: |_, rule, difference| {
            let rewrites = rule.is_some_and(|rule| rule["route"].get("host_rewrite_path_regex").is_some());
            rewrites && difference.what == "authority" && difference.envoy.contains(['/', '%', ';'])
        },
    },
];

/// How the names of endpoints begin.
pub(crate) const ENDPOINT: &str = "host-of-";

/// Does the rule send the endpoint's name as the authority?
fn names_endpoints(rule: Option<&Value>) -> bool {
    rule.is_some_and(|rule| rule["route"]["auto_host_rewrite"] == true)
}

/// The explanation of a difference.
pub(crate) fn explained(ask: &Ask, rule: Option<&Value>, difference: &Difference) -> Option<&'static Explained> {
    EXPLAINED.iter().find(|explained| (explained.is)(ask, rule, difference))
}

/// What ours tells a try, and Envoy does not or with a longer limit, if it is true: the number of the try, of so many that arrived, and
/// a limit of time that there is. The name it is counted by.
pub(crate) fn told_more(rule: Option<&Value>, difference: &Difference, tries: usize) -> Option<&'static str> {
    let Difference { what, envoy, ours } = difference;
    let limit = |limit: u128| *ours == format!("of {limit} ms");
    let of_stream = rule.map_or(&Value::Null, |rule| &rule["route"]["max_stream_duration"]);
    let of_stream = of_stream.as_object().into_iter().flat_map(|limits| limits.values());
    let mut of_stream = of_stream.filter_map(|time| time.as_str()?.strip_suffix('s')?.parse::<f64>().ok());
    match (what.as_str(), envoy.as_str()) {
        ("try number", "nothing") => (*ours == tries.to_string()).then_some("which try it is"),
        // Of the time a stream has in all, which Envoy keeps to itself, ours tells each try as well.
        ("try time", _) if of_stream.any(|seconds| limit((seconds * 1e3) as u128)) => Some("the time of its stream"),
        ("try time", "nothing") => LIMITS.into_iter().any(limit).then_some("the time that is left"),
        _ => None,
    }
}

/// Everything that is not the same.
pub(crate) fn differences(envoy: &Result<Answer, String>, ours: &Result<Answer, String>) -> Vec<Difference> {
    let (envoy, ours) = (facts(envoy), facts(ours));
    let mut names: Vec<&String> = envoy.keys().chain(ours.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let missing = || "nothing".to_owned();
    let of = |side: &BTreeMap<String, String>, name: &String| side.get(name).cloned().unwrap_or_else(missing);
    let both = names.into_iter().map(|name| (name, of(&envoy, name), of(&ours, name)));
    // Two that fail are alike, whatever they say.
    both.filter(|(name, envoy, ours)| {
        let both_fail = *name == "no answer" && envoy != "nothing" && ours != "nothing";
        // A proxy says by which scheme it was called, a caller to nobody.
        let of_a_proxy = *name == "forwarded scheme" && envoy == "http" && ours == "nothing";
        envoy != ours && !both_fail && !of_a_proxy
    })
    .map(|(what, envoy, ours)| Difference { what: what.clone(), envoy, ours })
    .collect()
}

/// What an upstream got, beside what the answer tells of it.
pub(crate) fn told(arrived: &Arrived) -> String {
    let mut facts = BTreeMap::new();
    // What Envoy's own client adds to what it sends for itself.
    let own = ["x-envoy-internal", "x-forwarded-for"];
    let headers = arrived.headers.iter().filter(|(name, _)| !own.contains(&name.as_str()));
    gather("", headers.map(|(name, value)| (name.as_str(), value.clone())), &mut facts);
    let Arrived { upstream, version, method, path, authority, body, .. } = arrived;
    format!("{upstream} {version} {method} {authority} {path} {body:?} {facts:?}")
}

/// An answer, and what it tells of the request's arrival, taken apart.
fn facts(answer: &Result<Answer, String>) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            facts.insert("no answer".to_owned(), format!("{error:?}"));
            return facts;
        }
    };
    facts.insert("status".to_owned(), answer.status.to_string());
    headers("answered", &answer.headers, &mut facts);
    headers("trailer", &answer.trailers, &mut facts);
    // A gRPC message has five bytes in front.
    let body = [0, 5].into_iter().find_map(|skip| serde_json::from_slice::<Arrived>(answer.body.get(skip..)?).ok());
    let Some(arrived) = body else {
        facts.insert("body".to_owned(), format!("{:?}", String::from_utf8_lossy(&answer.body)));
        return facts;
    };
    facts.extend(arrived.all("x-envoy-attempt-count").map(|count| ("try number".to_owned(), count.to_owned())));
    facts.extend(arrived.all("x-forwarded-proto").map(|scheme| ("forwarded scheme".to_owned(), scheme.to_owned())));
    facts.extend(time_left(&arrived).map(|limit| ("try time".to_owned(), format!("of {limit} ms"))));
    for (name, value) in [
        ("upstream", arrived.upstream),
        ("version", arrived.version),
        ("method", arrived.method),
        ("path", arrived.path),
        ("authority", arrived.authority),
        ("request body", arrived.body),
    ] {
        facts.insert(name.to_owned(), value);
    }
    gather("arrived", arrived.headers.iter().map(|(name, value)| (name.as_str(), value.clone())), &mut facts);
    facts
}

/// The limit of time that a try is told the rest of, by whichever header says the least: to gRPC ours says it in gRPC's own
/// header alone.
fn time_left(arrived: &Arrived) -> Option<u128> {
    let ours = arrived.all("x-envoy-expected-rq-timeout-ms").filter_map(|time| time.parse().ok());
    let grpc = arrived.all("grpc-timeout").filter_map(mesh_core::timeout::parse_grpc_timeout);
    let left = ours.chain(grpc.map(|time| time.as_millis())).min()?;
    Some(LIMITS.into_iter().find(|limit| left <= *limit).unwrap_or(left))
}

fn headers(kind: &str, headers: &HeaderMap, facts: &mut BTreeMap<String, String>) {
    let all =
        headers.iter().map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
    gather(kind, all, facts);
}

fn gather<'a>(kind: &str, headers: impl Iterator<Item = (&'a str, String)>, facts: &mut BTreeMap<String, String>) {
    let mut all: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in headers.filter(|(name, _)| !OF_THE_HOP.contains(name)) {
        all.entry(name).or_default().push(value);
    }
    for (name, mut values) in all {
        // Several lines of one header mean the same as one line with commas, and empty elements nothing (RFC 9110, 5.3 and
        // 5.6.1); Envoy folds some.
        if values.len() > 1 {
            values.retain(|value| !value.is_empty());
        }
        facts.insert(format!("{kind} {name}"), format!("{:?}", values.join(",")));
    }
}
