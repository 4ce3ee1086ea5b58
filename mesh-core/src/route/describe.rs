//! Conditions in words, for `explain`: what a route asks for, and what the request has instead.

use crate::{
    config::{CookieMatch, HeaderMatch, HeaderMatcher, PathMatch, QueryMatch, QueryMatcher, StringMatch},
    request::RequestView,
};

use super::Mismatch;

/// What a rule's path condition asks for.
pub(crate) fn path(wanted: &PathMatch) -> String {
    let case = |ignore: bool| if ignore { " (any case)" } else { "" };
    match wanted {
        PathMatch::Exact { value, ignore_case } => format!("path is {value}{}", case(*ignore_case)),
        PathMatch::Prefix { value, ignore_case } => format!("path begins with {value}{}", case(*ignore_case)),
        PathMatch::SegmentPrefix { value, ignore_case } => {
            format!("path is or lies below {value}{}", case(*ignore_case))
        }
        PathMatch::Regex(regex) => format!("path matches {}", regex.as_str()),
    }
}

/// What a header condition asks for.
pub(crate) fn header(wanted: &HeaderMatch) -> String {
    let name = &wanted.name;
    let (not, present) = if wanted.invert { ("not ", false) } else { ("", true) };
    match &wanted.matcher {
        HeaderMatcher::Present(there) if *there == present => format!("header {name} is there"),
        HeaderMatcher::Present(_) => format!("header {name} is not there"),
        HeaderMatcher::Range { start, end } => {
            format!("header {name} is {not}a number from {start} up to but not {end}")
        }
        HeaderMatcher::Value(value) => format!("header {name} {not}{}", string(value)),
    }
}

/// What a query condition asks for.
pub(crate) fn query(wanted: &QueryMatch) -> String {
    match &wanted.matcher {
        QueryMatcher::Present(true) => format!("query parameter {} is there", wanted.name),
        QueryMatcher::Present(false) => format!("query parameter {} is not there", wanted.name),
        QueryMatcher::Value(value) => format!("query parameter {} {}", wanted.name, string(value)),
    }
}

/// What a cookie condition asks for.
pub(crate) fn cookie(wanted: &CookieMatch) -> String {
    let not = if wanted.invert { "not " } else { "" };
    format!("cookie {} {not}{}", wanted.name, string(&wanted.value))
}

/// Why a rule does not take the request.
pub(crate) fn mismatch(mismatch: &Mismatch<'_>, view: &RequestView<'_>) -> String {
    match mismatch {
        Mismatch::Path(wanted) => format!("{}; the request's is {}", path(wanted), view.path_only()),
        Mismatch::NotGrpc => "only gRPC requests; this is none (content-type application/grpc)".to_owned(),
        Mismatch::Header(wanted) => format!("{}; the request has {}", header(wanted), has_header(&wanted.name, view)),
        Mismatch::Query(wanted) => {
            format!("{}; the request's query is {:?}", query(wanted), view.query().unwrap_or(""))
        }
        // What the request has is a credential as often as not.
        Mismatch::Cookie(wanted) => format!("{}; the request's is not so", cookie(wanted)),
        Mismatch::Fraction => "only a share of requests, and this draw was not in it".to_owned(),
    }
}

fn string(wanted: &StringMatch) -> String {
    let (verb, value, ignore_case) = match wanted {
        StringMatch::Exact { value, ignore_case } => ("is", value.as_str(), *ignore_case),
        StringMatch::Prefix { value, ignore_case } => ("begins with", value.as_str(), *ignore_case),
        StringMatch::Suffix { value, ignore_case } => ("ends with", value.as_str(), *ignore_case),
        StringMatch::Contains { value, ignore_case } => ("contains", value.as_str(), *ignore_case),
        StringMatch::Regex(regex) => ("matches", regex.as_str(), false),
    };
    format!("{verb} {value:?}{}", if ignore_case { " (any case)" } else { "" })
}

fn has_header(name: &str, view: &RequestView<'_>) -> String {
    let text = match name {
        ":method" => view.method.as_str(),
        ":authority" | "host" => view.authority,
        ":scheme" => view.scheme,
        ":path" => view.path,
        // Credentials are told apart from absence, and never shown.
        "authorization" | "cookie" | "proxy-authorization" if view.headers.contains_key(name) => {
            return "one".to_owned();
        }
        _ => {
            let values: Vec<_> =
                view.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
            return if values.is_empty() { "none".to_owned() } else { format!("{:?}", values.join(",")) };
        }
    };
    format!("{text:?}")
}
