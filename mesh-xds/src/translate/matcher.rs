//! Conditions of routes. Source: Envoy `RouteMatch`, `HeaderMatcher`, `QueryParameterMatcher`.

use mesh_core::config::{
    CookieMatch, HeaderMatch, HeaderMatcher, PathMatch, QueryMatch, QueryMatcher, RouteMatch, StringMatch,
};

use super::{
    path_template,
    read::{Ignored, Within, Wrong, element, wrong},
    value,
};
use crate::proto::envoy::{
    config::{
        core::v3::RuntimeFractionalPercent,
        route::v3::{
            CookieMatcher, HeaderMatcher as HeaderMessage, QueryParameterMatcher, RouteMatch as Message,
            header_matcher::HeaderMatchSpecifier,
            query_parameter_matcher::QueryParameterMatchSpecifier,
            route_match::{GrpcRouteMatchOptions, PathSpecifier},
        },
    },
    r#type::v3::Int64Range,
};

/// The pseudo-headers a condition may name.
const PSEUDO_HEADERS: [&str; 4] = [":authority", ":method", ":path", ":scheme"];

pub(super) fn decode(message: Message, place: &str, ignored: &mut Ignored) -> Result<RouteMatch, Wrong> {
    let ignore_case = message.case_sensitive == Some(false);
    let path = match message.path_specifier {
        Some(PathSpecifier::Prefix(value)) => PathMatch::Prefix { value, ignore_case },
        Some(PathSpecifier::Path(value)) => PathMatch::Exact { value, ignore_case },
        Some(PathSpecifier::SafeRegex(pattern)) => PathMatch::Regex(value::regex(&pattern).under("safe_regex")?),
        Some(PathSpecifier::PathSeparatedPrefix(value)) => {
            if !value.starts_with('/') || value.ends_with('/') || value.contains(['?', '#']) {
                let why = format!("{value:?} must begin with `/`, not end with it, and have no `?` and no `#`");
                return Err(wrong("path_separated_prefix", why));
            }
            PathMatch::SegmentPrefix { value, ignore_case }
        }
        Some(PathSpecifier::PathMatchPolicy(policy)) => {
            path_template::decode(policy, ignored).map(|template| template.path()).under("path_match_policy")?
        }
        None => return Err(wrong("path_specifier", "is missing")),
    };
    if message.runtime_fraction.as_ref().is_some_and(|fraction| !fraction.runtime_key.is_empty()) {
        ignored.add(place, "runtime_fraction.runtime_key");
    }
    let query = message.query_parameters.into_iter().enumerate();
    let cookies = message.cookies.into_iter().enumerate();
    Ok(RouteMatch {
        path,
        headers: headers(message.headers, "headers")?,
        query: query
            .map(|(i, parameter)| query_parameter(parameter).within(|| format!("query_parameters[{i}]")))
            .collect::<Result<_, _>>()?,
        cookies: cookies
            .map(|(i, cookie)| decode_cookie(cookie).within(|| format!("cookies[{i}]")))
            .collect::<Result<_, _>>()?,
        fraction: message.runtime_fraction.map(value::runtime_fraction).transpose().under("runtime_fraction")?,
        grpc_only: message.grpc.is_some(),
    })
}

pub(super) fn headers(messages: Vec<HeaderMessage>, field: &str) -> Result<Vec<HeaderMatch>, Wrong> {
    let decode = |(i, message): (usize, HeaderMessage)| {
        let name = message.name.clone();
        header(message).within(|| element(field, i, &name))
    };
    messages.into_iter().enumerate().map(decode).collect()
}

pub(super) fn header(message: HeaderMessage) -> Result<HeaderMatch, Wrong> {
    let name = message.name.to_ascii_lowercase();
    if !PSEUDO_HEADERS.contains(&name.as_str()) && http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(wrong("name", format!("{name:?} is no header")));
    }
    let matcher = match message.header_match_specifier {
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => {
            HeaderMatcher::Value(value::string(matcher).under("string_match")?)
        }
        // The four that string_match replaced, and that control planes send to this day (RM6).
        Some(HeaderMatchSpecifier::ExactMatch(value)) => {
            HeaderMatcher::Value(StringMatch::Exact { value, ignore_case: false })
        }
        Some(HeaderMatchSpecifier::PrefixMatch(text)) => {
            HeaderMatcher::Value(value::prefix(text, false, "prefix_match")?)
        }
        Some(HeaderMatchSpecifier::SuffixMatch(text)) => {
            HeaderMatcher::Value(value::suffix(text, false, "suffix_match")?)
        }
        Some(HeaderMatchSpecifier::ContainsMatch(text)) => {
            HeaderMatcher::Value(value::contains(text, false, "contains_match")?)
        }
        Some(HeaderMatchSpecifier::SafeRegexMatch(pattern)) => {
            HeaderMatcher::Value(StringMatch::Regex(value::regex(&pattern).under("safe_regex_match")?))
        }
        Some(HeaderMatchSpecifier::RangeMatch(Int64Range { start, end })) => HeaderMatcher::Range { start, end },
        Some(HeaderMatchSpecifier::PresentMatch(present)) => HeaderMatcher::Present(present),
        None => HeaderMatcher::Present(true),
    };
    Ok(HeaderMatch {
        name: name.into(),
        matcher,
        invert: message.invert_match,
        missing_as_empty: message.treat_missing_header_as_empty,
    })
}

pub(super) fn query_parameter(message: QueryParameterMatcher) -> Result<QueryMatch, Wrong> {
    if message.name.is_empty() {
        return Err(wrong("name", "is missing"));
    }
    let matcher = match message.query_parameter_match_specifier {
        Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => {
            QueryMatcher::Value(value::string(matcher).under("string_match")?)
        }
        Some(QueryParameterMatchSpecifier::PresentMatch(present)) => QueryMatcher::Present(present),
        None => QueryMatcher::Present(true),
    };
    Ok(QueryMatch { name: message.name, matcher })
}

fn decode_cookie(message: CookieMatcher) -> Result<CookieMatch, Wrong> {
    if message.name.is_empty() {
        return Err(wrong("name", "is missing"));
    }
    let value = message.string_match.ok_or_else(|| wrong("string_match", "is missing"))?;
    let value = value::string(value).under("string_match")?;
    Ok(CookieMatch { name: message.name, value, invert: message.invert_match })
}

pub(super) fn encode(matches: &RouteMatch) -> Message {
    let (path, ignore_case) = match &matches.path {
        PathMatch::Exact { value, ignore_case } => (PathSpecifier::Path(value.clone()), *ignore_case),
        PathMatch::Prefix { value, ignore_case } => (PathSpecifier::Prefix(value.clone()), *ignore_case),
        PathMatch::SegmentPrefix { value, ignore_case } => {
            (PathSpecifier::PathSeparatedPrefix(value.clone()), *ignore_case)
        }
        PathMatch::Regex(regex) => (PathSpecifier::SafeRegex(value::encode_regex(regex)), false),
    };
    Message {
        path_specifier: Some(path),
        case_sensitive: ignore_case.then_some(false),
        runtime_fraction: matches.fraction.map(|fraction| RuntimeFractionalPercent {
            default_value: Some(value::encode_fraction(fraction)),
            ..RuntimeFractionalPercent::default()
        }),
        headers: encode_headers(&matches.headers),
        query_parameters: matches.query.iter().map(encode_query).collect(),
        cookies: matches.cookies.iter().map(encode_cookie).collect(),
        grpc: matches.grpc_only.then_some(GrpcRouteMatchOptions {}),
    }
}

pub(super) fn encode_headers(headers: &[HeaderMatch]) -> Vec<HeaderMessage> {
    headers.iter().map(encode_header).collect()
}

pub(super) fn encode_header(header: &HeaderMatch) -> HeaderMessage {
    HeaderMessage {
        name: header.name.to_string(),
        header_match_specifier: Some(match &header.matcher {
            HeaderMatcher::Present(present) => HeaderMatchSpecifier::PresentMatch(*present),
            HeaderMatcher::Range { start, end } => {
                HeaderMatchSpecifier::RangeMatch(Int64Range { start: *start, end: *end })
            }
            HeaderMatcher::Value(value) => HeaderMatchSpecifier::StringMatch(value::encode_string(value)),
        }),
        invert_match: header.invert,
        treat_missing_header_as_empty: header.missing_as_empty,
    }
}

pub(super) fn encode_query(query: &QueryMatch) -> QueryParameterMatcher {
    QueryParameterMatcher {
        name: query.name.clone(),
        query_parameter_match_specifier: Some(match &query.matcher {
            QueryMatcher::Value(value) => QueryParameterMatchSpecifier::StringMatch(value::encode_string(value)),
            QueryMatcher::Present(present) => QueryParameterMatchSpecifier::PresentMatch(*present),
        }),
    }
}

fn encode_cookie(cookie: &CookieMatch) -> CookieMatcher {
    CookieMatcher {
        name: cookie.name.clone(),
        string_match: Some(value::encode_string(&cookie.value)),
        invert_match: cookie.invert,
    }
}
