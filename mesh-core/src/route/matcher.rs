//! Does a request meet the conditions of a route? Headers, query parameters, paths and shares, compared as Envoy does;
//! strings are compared in `route/text.rs`.
//!
//! Conditions are compiled once, so that a request costs comparisons and no allocation. The path is compared without its
//! query; of several values of a header any may match, and of gRPC calls they are one text (RM10); of a repeated query parameter only the first counts (RM13).

use http::{HeaderMap, HeaderName, HeaderValue, header::COOKIE};

use crate::{
    config::{CookieMatch, HeaderMatch, HeaderMatcher, HeaderSource, PathMatch, QueryMatch, QueryMatcher, RouteMatch},
    error::CompileError,
    request::RequestView,
    rng::{GOLDEN, mix},
};

use super::describe;

/// Does a header of these meet the condition? Pseudo-headers are not among them. For retry policies and the like.
pub fn header_matches(wanted: &HeaderMatch, headers: &HeaderMap) -> bool {
    let name = HeaderName::from_bytes(wanted.name.as_bytes()).ok();
    let values = name.map(|name| Value::Headers(headers.get_all(name).into_iter()));
    judge(wanted, values.unwrap_or(Value::Missing))
}

/// Does the request meet the condition? Pseudo-headers are among them. For policies asked after routing.
pub fn view_matches(wanted: &HeaderMatch, view: &RequestView<'_>) -> bool {
    HeaderSource::parse(&wanted.name).is_some_and(|source| judge(wanted, source.value(view)))
}

/// The compiled conditions of one route.
#[derive(Debug)]
pub(crate) struct Matcher {
    config: RouteMatch,
    names: Vec<HeaderSource>,
}

impl Matcher {
    /// Compiles the conditions; an error names the field below `matches`.
    pub(crate) fn compile(config: &RouteMatch, resource: &str, field: &str) -> Result<Self, CompileError> {
        let mut names = Vec::with_capacity(config.headers.len());
        for (i, header) in config.headers.iter().enumerate() {
            names.push(HeaderSource::parse(&header.name).ok_or_else(|| {
                let message =
                    format!("{:?} is neither a header name nor :method, :authority, :scheme, :path", header.name);
                CompileError::new(resource, format!("{field}.headers[{i}].name"), message)
            })?);
        }
        Ok(Self { config: config.clone(), names })
    }

    pub(crate) fn config(&self) -> &RouteMatch {
        &self.config
    }

    /// Does the request meet every condition? `path` is the path that routes of its table compare. `bits` are the
    /// request's random bits and `index` the route's place: each route's share is drawn from both, whatever order routes
    /// are looked at in.
    pub(crate) fn is_match(&self, path: &str, view: &RequestView<'_>, bits: u64, index: usize) -> bool {
        self.mismatch(path, view, bits, index).is_none()
    }

    /// The first condition that is not met.
    pub(crate) fn mismatch(&self, path: &str, view: &RequestView<'_>, bits: u64, index: usize) -> Option<Mismatch<'_>> {
        if !self.config.path.is_match(path) {
            return Some(Mismatch::Path(&self.config.path));
        }
        if self.config.grpc_only && !view.is_grpc() {
            return Some(Mismatch::NotGrpc);
        }
        for (wanted, source) in self.config.headers.iter().zip(&self.names) {
            if !judge(wanted, source.value(view)) {
                return Some(Mismatch::Header(wanted));
            }
        }
        if let Some(wanted) = self.config.query.iter().find(|wanted| !query_matches(wanted, view.query())) {
            return Some(Mismatch::Query(wanted));
        }
        if let Some(wanted) = self.config.cookies.iter().find(|wanted| !cookie_matches(wanted, view.headers)) {
            return Some(Mismatch::Cookie(wanted));
        }
        let fraction = self.config.fraction?;
        let drawn = mix(bits.wrapping_add(GOLDEN.wrapping_mul(index as u64 + 1)));
        (!fraction.hit(drawn)).then_some(Mismatch::Fraction)
    }
}

impl Matcher {
    /// The conditions in words.
    pub(crate) fn describe(&self) -> String {
        let mut parts = vec![describe::path(&self.config.path)];
        parts.extend(self.config.grpc_only.then(|| "it is gRPC".to_owned()));
        parts.extend(self.config.headers.iter().map(describe::header));
        parts.extend(self.config.query.iter().map(describe::query));
        parts.extend(self.config.cookies.iter().map(describe::cookie));
        parts
            .extend(self.config.fraction.map(|share| format!("{} of {} requests", share.numerator, share.denominator)));
        parts.join(", ")
    }
}

/// The condition that was not met.
#[derive(Debug)]
pub(crate) enum Mismatch<'a> {
    Path(&'a PathMatch),
    NotGrpc,
    Header(&'a HeaderMatch),
    Query(&'a QueryMatch),
    Cookie(&'a CookieMatch),
    Fraction,
}

impl HeaderSource {
    /// The values of a request.
    pub(crate) fn value<'a>(&self, view: &RequestView<'a>) -> Value<'a> {
        match self {
            Self::Method => Value::Text(view.method.as_str()),
            Self::Authority if view.authority.is_empty() => Value::Missing,
            Self::Authority => Value::Text(view.authority),
            Self::Scheme => Value::Text(view.scheme),
            Self::Path => Value::Text(view.path),
            // gRFC A28: binary headers of a gRPC call take no part in routing.
            Self::Header(name) if name.as_str().ends_with("-bin") && view.is_grpc() => Value::Missing,
            Self::Header(name) if view.is_grpc() => Value::Joined(view.headers.get_all(name).into_iter()),
            Self::Header(name) => Value::Headers(view.headers.get_all(name).into_iter()),
        }
    }
}

/// The values of a header, as far as they are there.
pub(crate) enum Value<'a> {
    Missing,
    Text(&'a str),
    /// Several lines, each for itself.
    Headers(http::header::ValueIter<'a, HeaderValue>),
    /// Several lines as one text, joined by `,`: those of gRPC calls (gRFC A28).
    Joined(http::header::ValueIter<'a, HeaderValue>),
}

impl Value<'_> {
    /// Looks at the values as one text, joined by `,` on the stack; only very long ones cost an allocation.
    pub(crate) fn joined<R>(self, look: impl FnOnce(Option<&[u8]>) -> R) -> R {
        let mut values = match self {
            Value::Text(text) => return look(Some(text.as_bytes())),
            Value::Missing => return look(None),
            Value::Headers(values) | Value::Joined(values) => values,
        };
        let Some(first) = values.next() else { return look(None) };
        let Some(second) = values.next() else { return look(Some(first.as_bytes())) };
        let mut joined = Joined::default();
        for part in [first, second].into_iter().chain(values) {
            joined.push(part.as_bytes());
        }
        look(Some(joined.as_bytes()))
    }
}

/// One header condition against its values. Of several lines any may meet it, each by itself; turned round, none may.
/// Source: Envoy 1.40 by experiment, though its documentation speaks of one text joined by commas.
fn judge(wanted: &HeaderMatch, value: Value<'_>) -> bool {
    match value {
        Value::Missing => judge_text(wanted, None),
        Value::Text(text) => judge_text(wanted, Some(text)),
        Value::Joined(values) => Value::Joined(values).joined(|value| match value {
            None => judge_text(wanted, None),
            Some(bytes) => judge_bytes(wanted, bytes),
        }),
        Value::Headers(mut values) => match values.next() {
            None => judge_text(wanted, None),
            Some(first) => {
                // Each is turned round by itself, so that none may meet the condition is that all meet the opposite.
                let mut all = std::iter::once(first).chain(values).map(|value| judge_bytes(wanted, value.as_bytes()));
                if wanted.invert { all.all(|it| it) } else { all.any(|it| it) }
            }
        },
    }
}

fn judge_bytes(wanted: &HeaderMatch, bytes: &[u8]) -> bool {
    match std::str::from_utf8(bytes) {
        Ok(text) => judge_text(wanted, Some(text)),
        // What is no text is there, and equals no text.
        Err(_) => matches!(wanted.matcher, HeaderMatcher::Present(true)) != wanted.invert,
    }
}

fn judge_text(wanted: &HeaderMatch, text: Option<&str>) -> bool {
    let text = text.or(if wanted.missing_as_empty { Some("") } else { None });
    let holds = match (&wanted.matcher, text) {
        (HeaderMatcher::Present(present), text) => text.is_some() == *present,
        // RM9: a header that is not there never meets a condition on its value, inverted or not.
        (_, None) => return false,
        (HeaderMatcher::Range { start, end }, Some(text)) => {
            text.parse().is_ok_and(|number: i64| (*start..*end).contains(&number))
        }
        (HeaderMatcher::Value(matcher), Some(text)) => matcher.is_match(text),
    };
    holds != wanted.invert
}

pub(crate) fn query_matches(wanted: &QueryMatch, query: Option<&str>) -> bool {
    let mut parameters = query.unwrap_or("").split('&').filter(|parameter| !parameter.is_empty());
    let first = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        (name == wanted.name).then_some(value)
    });
    match (first, &wanted.matcher) {
        (there, QueryMatcher::Present(present)) => there.is_some() == *present,
        (None, QueryMatcher::Value(_)) => false,
        (Some(value), QueryMatcher::Value(matcher)) => matcher.is_match(value),
    }
}

/// RM14: a cookie that is not there does not meet its condition, and so matches where that is turned round.
fn cookie_matches(wanted: &CookieMatch, headers: &HeaderMap) -> bool {
    let value = headers.get_all(COOKIE).iter().filter_map(|cookies| cookies.to_str().ok()).find_map(|cookies| {
        cookies.split(';').find_map(|cookie| {
            let (name, value) = cookie.split_once('=')?;
            (name.trim() == wanted.name).then(|| value.trim())
        })
    });
    let bare = |value: &str| value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).map(str::len);
    let value = value.map(|value| bare(value).map_or(value, |length| &value[1..=length]));
    value.is_some_and(|value| wanted.value.is_match(value)) != wanted.invert
}

/// Header values joined by `,` in a small buffer.
struct Joined {
    inline: [u8; Self::INLINE],
    len: usize,
    begun: bool,
    /// The whole text once it outgrew the buffer.
    spilled: Vec<u8>,
}

impl Joined {
    const INLINE: usize = 256;

    fn push(&mut self, part: &[u8]) {
        if self.begun {
            self.extend(b",");
        }
        self.begun = true;
        self.extend(part);
    }

    fn extend(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        if self.spilled.is_empty() && end <= Self::INLINE {
            self.inline[self.len..end].copy_from_slice(bytes);
            self.len = end;
            return;
        }
        if self.spilled.is_empty() {
            self.spilled.extend_from_slice(&self.inline[..self.len]);
        }
        self.spilled.extend_from_slice(bytes);
    }

    fn as_bytes(&self) -> &[u8] {
        if self.spilled.is_empty() { &self.inline[..self.len] } else { &self.spilled }
    }
}

impl Default for Joined {
    fn default() -> Self {
        Self { inline: [0; Self::INLINE], len: 0, begun: false, spilled: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{Method, request::Parts};

    use super::*;
    use crate::config::{Fraction, StringMatch};

    /// RM2, RM3, RM19: paths are compared without their query, prefixes by characters or by segments, regular expressions
    /// whole, and case can be ignored but not in regular expressions.
    #[test]
    fn paths() {
        let exact = |value: &str, ignore_case| PathMatch::Exact { value: value.to_owned(), ignore_case };
        let prefix = |value: &str, ignore_case| PathMatch::Prefix { value: value.to_owned(), ignore_case };
        let segment = |value: &str, ignore_case| PathMatch::SegmentPrefix { value: value.to_owned(), ignore_case };
        let regex = |value: &str| PathMatch::Regex(value.parse().unwrap());
        for (path, matcher, expected) in [
            ("/a?x=y", exact("/a", false), true),
            ("/a/", exact("/a", false), false),
            ("/A", exact("/a", false), false),
            ("/A", exact("/a", true), true),
            ("/foobar", prefix("/foo", false), true),
            ("/fo", prefix("/foo", false), false),
            ("/FOObar", prefix("/foo", true), true),
            ("/anything", prefix("/", false), true),
            ("/anything", prefix("", false), true),
            ("/foo", segment("/foo", false), true),
            ("/foo/x?y", segment("/foo", false), true),
            ("/foobar", segment("/foo", false), false),
            ("/Foo/x", segment("/foo", true), true),
            ("/b?x=/b/c", regex("/b"), true),
            ("/b/c", regex("/b"), false),
            ("/b/c", regex("/b.*"), true),
            ("/B", regex("/b"), false),
        ] {
            let route = RouteMatch { path: matcher.clone(), ..RouteMatch::default() };
            assert_eq!(takes(&route, &parts(path, &[]), 0), expected, "{path} {matcher:?}");
        }
    }

    /// RM6, RM7, RM8, RM9, RM18: each kind of header condition with a value, another value, none, and turned round; one on a
    /// header that is not there holds only if it asks for absence.
    #[test]
    fn headers() {
        let text = |value: StringMatch| HeaderMatcher::Value(value);
        let exact = |ignore_case| text(StringMatch::Exact { value: "Jason".into(), ignore_case });
        // (condition, value, plain, inverted)
        for (matcher, value, plain, inverted) in [
            (exact(false), Some("Jason"), true, false),
            (exact(false), Some("jason"), false, true),
            (exact(true), Some("jASON"), true, false),
            (exact(false), Some(""), false, true),
            (exact(false), None, false, false),
            (text(StringMatch::Prefix { value: "ja".into(), ignore_case: false }), Some("jason"), true, false),
            (text(StringMatch::Prefix { value: "ja".into(), ignore_case: false }), Some("j"), false, true),
            (text(StringMatch::Prefix { value: "JA".into(), ignore_case: true }), Some("jason"), true, false),
            (text(StringMatch::Suffix { value: "son".into(), ignore_case: false }), Some("jason"), true, false),
            (text(StringMatch::Suffix { value: "son".into(), ignore_case: false }), Some("on"), false, true),
            (text(StringMatch::Contains { value: "aso".into(), ignore_case: false }), Some("jason"), true, false),
            (text(StringMatch::Contains { value: "ASO".into(), ignore_case: true }), Some("jason"), true, false),
            (text(StringMatch::Contains { value: "xyz".into(), ignore_case: false }), Some("jason"), false, true),
            (text(StringMatch::Contains { value: "xyz".into(), ignore_case: false }), None, false, false),
            (text(StringMatch::Regex("ja.*".parse().unwrap())), Some("jason"), true, false),
            (text(StringMatch::Regex("as".parse().unwrap())), Some("jason"), false, true),
            (text(StringMatch::Regex(".*".parse().unwrap())), None, false, false),
            (HeaderMatcher::Range { start: -10, end: 10 }, Some("-10"), true, false),
            (HeaderMatcher::Range { start: -10, end: 10 }, Some("9"), true, false),
            (HeaderMatcher::Range { start: -10, end: 10 }, Some("10"), false, true),
            (HeaderMatcher::Range { start: -10, end: 10 }, Some("1.5"), false, true),
            (HeaderMatcher::Range { start: -10, end: 10 }, Some("9 "), false, true),
            (HeaderMatcher::Range { start: -10, end: 10 }, None, false, false),
            (HeaderMatcher::Present(true), Some(""), true, false),
            (HeaderMatcher::Present(true), None, false, true),
            (HeaderMatcher::Present(false), Some("x"), false, true),
            (HeaderMatcher::Present(false), None, true, false),
        ] {
            let headers: &[(&str, &str)] = &value.map(|value| ("end-user", value)).into_iter().collect::<Vec<_>>();
            for (invert, expected) in [(false, plain), (true, inverted)] {
                let wanted =
                    HeaderMatch { name: "end-user".into(), matcher: matcher.clone(), invert, missing_as_empty: false };
                assert_eq!(takes(&asking(wanted), &parts("/", headers), 0), expected, "{matcher:?} {value:?} {invert}");
            }
        }
    }

    /// RM9: treated as empty, a missing header is compared as the empty string.
    #[test]
    fn a_missing_header_can_be_empty() {
        let wanted = |invert| HeaderMatch {
            name: "end-user".into(),
            matcher: HeaderMatcher::Value(StringMatch::Exact { value: "jason".into(), ignore_case: false }),
            invert,
            missing_as_empty: true,
        };
        assert!(!takes(&asking(wanted(false)), &parts("/", &[]), 0));
        assert!(takes(&asking(wanted(true)), &parts("/", &[]), 0));
    }

    /// RM10: of several values any may match, and turned round none may; those of a gRPC call are one text joined by
    /// commas, however long.
    #[test]
    fn several_values() {
        let long = "x".repeat(300);
        for (values, joined) in [(vec!["a", "b"], "a,b"), (vec!["a", "", "c"], "a,,c"), (vec!["", "b"], ",b")] {
            let headers: Vec<_> = values.iter().map(|value| ("x-tag", *value)).collect();
            let mut get = parts("/", &headers);
            let not = |value: &str| asking(HeaderMatch { invert: true, ..is("x-tag", value) });
            for value in &values {
                assert!(takes(&asking(is("x-tag", value)), &get, 0), "{values:?}");
                assert!(!takes(&not(value), &get, 0), "{values:?}");
            }
            assert!(!takes(&asking(is("x-tag", joined)), &get, 0) && takes(&not(joined), &get, 0), "{values:?}");
            get.headers.insert("content-type", HeaderValue::from_static("application/grpc"));
            assert!(takes(&asking(is("x-tag", joined)), &get, 0) && !takes(&not(joined), &get, 0), "{values:?}");
            assert!(!takes(&asking(is("x-tag", values[1])), &get, 0), "{values:?}");
        }
        let headers = [("x-tag", "a"), ("x-tag", long.as_str()), ("x-tag", "c"), ("content-type", "application/grpc")];
        assert!(takes(&asking(is("x-tag", &format!("a,{long},c"))), &parts("/", &headers), 0));
    }

    /// RM11, RM15, RM16: method, authority, scheme and path are headers too; binary headers of gRPC calls are not there.
    #[test]
    fn pseudo_and_binary_headers() {
        let mut get = parts("http://Shop:8080/a?b", &[("trace-bin", "AAA")]);
        for (name, value) in [
            (":method", "GET"),
            (":authority", "Shop:8080"),
            ("host", "Shop:8080"),
            (":scheme", "http"),
            (":path", "/a?b"),
            ("trace-bin", "AAA"),
        ] {
            assert!(takes(&asking(is(name, value)), &get, 0), "{name}");
            assert!(!takes(&asking(is(name, "other")), &get, 0), "{name}");
        }
        get.method = Method::POST;
        assert!(!takes(&asking(is(":method", "GET")), &get, 0));
        let grpc = parts("/", &[("trace-bin", "AAA"), ("content-type", "application/grpc")]);
        assert!(!takes(&asking(is("trace-bin", "AAA")), &grpc, 0));
        assert!(takes(&asking(is("content-type", "application/grpc")), &grpc, 0));
        assert!(takes(&RouteMatch { grpc_only: true, ..RouteMatch::default() }, &grpc, 0));
        assert!(!takes(&RouteMatch { grpc_only: true, ..RouteMatch::default() }, &get, 0));
        let bad = asking(is(":status", "200"));
        let error = Matcher::compile(&bad, "virtual host \"a\"", "routes[0].matches").unwrap_err();
        assert_eq!(error.field, "routes[0].matches.headers[0].name");
    }

    /// RM12: 0 % never, 100 % and more always, drawn anew for each request and each rule.
    #[test]
    fn shares_of_requests() {
        let route = |numerator, denominator| RouteMatch {
            fraction: Some(Fraction { numerator, denominator }),
            ..RouteMatch::default()
        };
        let get = parts("/", &[]);
        let hits = |route: &RouteMatch| (0..10_000_u64).filter(|n| takes(route, &get, mix(*n))).count();
        assert_eq!(hits(&route(0, 100)), 0);
        assert_eq!(hits(&route(100, 100)), 10_000);
        assert_eq!(hits(&route(101, 100)), 10_000);
        assert_eq!(hits(&route(0, 1_000_000)), 0);
        // Five standard deviations of Binomial(10 000, 1/4) are 217.
        assert!((2_283..=2_717).contains(&hits(&route(2_500, 10_000))));
        let matcher = Matcher::compile(&route(50, 100), "", "").unwrap();
        let view = RequestView::of(&get, None);
        let both = (0..10_000_u64).filter(|n| {
            let bits = mix(*n);
            matcher.is_match("/", &view, bits, 0) && matcher.is_match("/", &view, bits, 1)
        });
        assert!((2_283..=2_717).contains(&both.count()), "rules draw apart");
    }

    /// RM13: only the first of a repeated parameter counts, undecoded; presence needs no value.
    #[test]
    fn query_parameters() {
        let wanted = |name: &str, value: Option<&str>| RouteMatch {
            query: vec![QueryMatch {
                name: name.to_owned(),
                matcher: match value {
                    Some(value) => {
                        QueryMatcher::Value(StringMatch::Exact { value: value.to_owned(), ignore_case: false })
                    }
                    None => QueryMatcher::Present(true),
                },
            }],
            ..RouteMatch::default()
        };
        for (path, name, value, expected) in [
            ("/?a=1&b=2", "b", Some("2"), true),
            ("/?a=1&a=2", "a", Some("2"), false),
            ("/?a=1&a=2", "a", Some("1"), true),
            ("/?a", "a", None, true),
            ("/?a", "a", Some(""), true),
            ("/?a=%31", "a", Some("1"), false),
            ("/?A=1", "a", None, false),
            ("/?&&a=b=c", "a", Some("b=c"), true),
            ("/", "a", None, false),
        ] {
            assert_eq!(takes(&wanted(name, value), &parts(path, &[]), 0), expected, "{path} {name} {value:?}");
        }
        let absent = QueryMatch { name: "a".into(), matcher: QueryMatcher::Present(false) };
        let absent = RouteMatch { query: vec![absent], ..RouteMatch::default() };
        assert!(takes(&absent, &parts("/?b", &[]), 0) && !takes(&absent, &parts("/?a", &[]), 0));
    }

    /// RM14: the first of a name counts, over all headers; quotes do not; one that is missing matches turned round.
    #[test]
    fn cookies() {
        let wanted = |invert| RouteMatch {
            cookies: vec![CookieMatch {
                name: "user".into(),
                value: StringMatch::Exact { value: "jason".into(), ignore_case: false },
                invert,
            }],
            ..RouteMatch::default()
        };
        for (cookies, expected) in [
            (&["user=jason"][..], true),
            (&["a=b; user=\"jason\" ; c"], true),
            (&["a=b;user= jason"], true),
            (&["user=mary; user=jason"], false),
            (&["user=mary", "user=jason"], false),
            (&["a=b", "user=jason"], true),
            (&["User=jason"], false),
            (&["xuser=jason"], false),
            (&["user=\""], false),
            (&["user"], false),
            (&[], false),
        ] {
            let headers: Vec<_> = cookies.iter().map(|cookie| ("cookie", *cookie)).collect();
            let parts = parts("/", &headers);
            assert_eq!(takes(&wanted(false), &parts, 0), expected, "{cookies:?}");
            assert_eq!(takes(&wanted(true), &parts, 0), !expected, "{cookies:?}");
        }
    }

    #[test]
    fn a_value_that_is_no_text_is_there_and_equals_nothing() {
        let mut get = parts("/", &[]);
        get.headers.insert("x", HeaderValue::from_bytes(b"\xff").unwrap());
        assert!(!takes(&asking(is("x", "a")), &get, 0));
        let present = |there, invert| {
            asking(HeaderMatch {
                name: "x".into(),
                matcher: HeaderMatcher::Present(there),
                invert,
                missing_as_empty: false,
            })
        };
        for (there, invert) in [(true, false), (false, true)] {
            assert!(takes(&present(there, invert), &get, 0));
            assert!(!takes(&present(there, !invert), &get, 0));
        }
    }

    fn takes(route: &RouteMatch, parts: &Parts, bits: u64) -> bool {
        let matcher = Matcher::compile(route, "test", "matches").unwrap();
        let view = RequestView::of(parts, None);
        matcher.is_match(view.path_only(), &view, bits, 0)
    }

    fn is(name: &str, value: &str) -> HeaderMatch {
        let matcher = HeaderMatcher::Value(StringMatch::Exact { value: value.to_owned(), ignore_case: false });
        HeaderMatch { name: name.into(), matcher, invert: false, missing_as_empty: false }
    }

    fn asking(header: HeaderMatch) -> RouteMatch {
        RouteMatch { headers: vec![header], ..RouteMatch::default() }
    }

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut builder = http::Request::builder().uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }
}
