//! How a request changes on its way out, a response on its way back, and where a redirect points.
//!
//! Envoy's order: header changes of the drawn destination and its new authority, those of the route, the virtual host and
//! the route table (RA13), then the authority (RA12), then the path (RA11). What was there before is told to the
//! destination in `x-envoy-original-host` and `x-envoy-original-path`.

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::HOST,
    request::Parts,
    uri::{Authority, PathAndQuery},
};

use crate::{
    config::{Forward, HostRewrite, PathRewrite, Redirect},
    error::CompileError,
    plan::Plan,
    request::{RequestView, split_port},
};

mod edit;
mod format;

pub use edit::HeaderEdits;

use format::{Caller, Facts};

/// New authority and path of a route's requests.
#[derive(Clone, Debug, Default)]
pub struct Rewrite {
    /// New authority.
    pub host: Option<HostRewrite>,
    /// The authority before is added to `x-forwarded-host`.
    pub append_forwarded_host: bool,
    /// New path.
    pub path: Option<PathRewrite>,
    /// How many bytes of the path the route's prefix took; `None` when it matched the whole path.
    pub matched_prefix: Option<usize>,
}

impl Rewrite {
    /// The rewrite of a route whose path condition took `matched_prefix` bytes.
    pub(crate) fn new(forward: &Forward, matched_prefix: Option<usize>) -> Result<Self, CompileError> {
        let invalid = |what| Err(CompileError::new("rewrite", "action.host_rewrite", what));
        match &forward.host_rewrite {
            Some(HostRewrite::Literal(host)) if HeaderValue::from_str(host).is_err() => {
                return invalid("not a valid header value");
            }
            Some(HostRewrite::Header(name)) if HeaderName::from_bytes(name.as_bytes()).is_err() => {
                return invalid("not a valid header name");
            }
            _ => {}
        }
        Ok(Self {
            host: forward.host_rewrite.clone(),
            append_forwarded_host: forward.append_forwarded_host,
            path: forward.path_rewrite.clone(),
            matched_prefix,
        })
    }

    /// The path with its query after the rewrite. A prefix takes the place of what matched and nothing is tidied:
    /// `/a` rewritten to `/` makes `//b` of `/a/b`, as in Envoy.
    fn new_path(&self, rewrite: &PathRewrite, path_and_query: &str) -> String {
        let end = path_and_query.find('?').unwrap_or(path_and_query.len());
        let (path, query) = path_and_query.split_at(end);
        let mut new = match rewrite {
            PathRewrite::Full(new) => new.clone(),
            PathRewrite::Prefix(new) => {
                let rest = self.matched_prefix.and_then(|taken| path.get(taken..)).unwrap_or("");
                format!("{new}{rest}")
            }
            PathRewrite::Regex { pattern, substitution } => pattern.rewrite(path, substitution),
        };
        new.push_str(query);
        new
    }

    /// The new authority; `None` leaves it, as does [`HostRewrite::Auto`] until an endpoint is picked.
    fn new_host(&self, parts: &Parts) -> Option<HeaderValue> {
        let host = match self.host.as_ref()? {
            HostRewrite::Auto => return None,
            HostRewrite::Literal(host) => HeaderValue::from_str(host).ok(),
            HostRewrite::Header(name) => parts.headers.get(&**name).cloned(),
            HostRewrite::PathRegex { pattern, substitution } => {
                let path = RequestView::of(parts, None).path_only();
                HeaderValue::try_from(pattern.rewrite(path, substitution)).ok()
            }
        };
        host.filter(|host| !host.is_empty())
    }
}

/// Changes the head of a request as its plan says, made while somebody at `source` is served, if so. Called once, before the
/// first try.
pub fn apply(plan: &Plan, source: Option<IpAddr>, parts: &mut Parts) {
    let rewrite = &plan.route.rewrite;
    let host_rewrite = plan.destination().is_some_and(|destination| destination.host_rewrite.is_some());
    if !plan.changes_headers() && !host_rewrite && rewrite.host.is_none() && rewrite.path.is_none() {
        return;
    }
    if let Some(source) = source.filter(|_| plan.changes_headers()) {
        parts.extensions.insert(Caller(source));
    }
    if let Some(destination) = plan.destination() {
        edit(plan, &destination.edits, parts);
        if let Some(host) = &destination.host_rewrite {
            set_authority(parts, host);
        }
    }
    edit(plan, &plan.route.headers, parts);
    if let Some(host) = rewrite.new_host(parts) {
        rewrite_host(rewrite, &host, parts);
    }
    if let Some(path) = &rewrite.path {
        let original = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let new = rewrite.new_path(path, original);
        if let Ok(original) = HeaderValue::from_str(original) {
            parts.headers.insert(ORIGINAL_PATH, original);
        }
        if let Ok(new) = PathAndQuery::try_from(new) {
            set_uri(parts, |uri| uri.path_and_query = Some(new));
        }
    }
}

pub(crate) fn edit(plan: &Plan, edits: &HeaderEdits, parts: &mut Parts) {
    for level in &edits.request {
        level.remove(&mut parts.headers);
        let settled = level.settle(&parts.headers, &Facts { plan, request: Some(parts), response: None });
        level.write(&mut parts.headers, settled.as_deref());
    }
}

/// The authority becomes the name of the endpoint that was picked, for each try anew; an empty name changes nothing.
/// Source: Envoy `auto_host_rewrite`.
#[inline]
pub fn apply_endpoint(plan: &Plan, host: &str, parts: &mut Parts) {
    if matches!(plan.route.rewrite.host, Some(HostRewrite::Auto))
        && !host.is_empty()
        && let Ok(value) = HeaderValue::from_str(host)
    {
        rewrite_host(&plan.route.rewrite, &value, parts);
    }
}

fn rewrite_host(rewrite: &Rewrite, host: &HeaderValue, parts: &mut Parts) {
    let before = HeaderValue::from_str(RequestView::of(parts, None).authority).ok();
    if let Some(before) = before.filter(|before| !before.is_empty()) {
        if rewrite.append_forwarded_host {
            append_forwarded_host(&before, &mut parts.headers);
        }
        parts.headers.insert(ORIGINAL_HOST, before);
    }
    set_authority(parts, host);
}

/// Unless it is the last one there already, letter by letter.
fn append_forwarded_host(host: &HeaderValue, headers: &mut HeaderMap) {
    let there: Vec<&[u8]> = headers.get_all(FORWARDED_HOST).iter().map(HeaderValue::as_bytes).collect();
    let mut there = there.join(&b',');
    let last = there.split(|byte| *byte == b',').rfind(|token| !token.is_empty());
    if last == Some(host.as_bytes()) {
        return;
    }
    if !there.is_empty() {
        there.push(b',');
    }
    there.extend_from_slice(host.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&there) {
        headers.insert(FORWARDED_HOST, value);
    }
}

/// What [`on_response`] needs to know of the request, if it needs anything: its head as it was sent.
#[inline]
pub fn remembered(plan: &Plan, parts: &Parts) -> Option<Box<Parts>> {
    if !plan.changes_headers() {
        return None;
    }
    let asks = plan.destination().is_some_and(|it| it.edits.asks_request()) || plan.route.headers.asks_request();
    asks.then(|| Box::new(parts.clone()))
}

/// Sets the cookies that make the next request go where this one went. Only on what a destination answered.
#[inline]
pub fn set_cookies(plan: &Plan, headers: &mut HeaderMap) {
    if plan.fresh.is_none() {
        return;
    }
    let own = plan.cluster().map(|cluster| &cluster.hashing).filter(|own| !own.is_empty());
    own.unwrap_or(&plan.route.hash).set_cookies(plan.fresh, headers);
}

/// Changes the headers of a response, a destination's or the mesh's own, as its plan says; `request` is what
/// [`remembered`] gave.
#[inline]
pub fn on_response(plan: &Plan, request: Option<&Parts>, status: u16, headers: &mut HeaderMap) {
    if !plan.changes_headers() {
        return;
    }
    let own = plan.destination().map(|destination| &destination.edits.response);
    for level in own.into_iter().flatten().chain(&plan.route.headers.response) {
        level.remove(headers);
        let settled = level.settle(headers, &Facts { plan, request, response: Some((status, headers)) });
        level.write(headers, settled.as_deref());
    }
}

/// The `location` of an answer made here: where a redirected caller is sent, and of a direct response that was created
/// or redirects (201, 3xx) where it came from, as in Envoy. Empty for any other.
///
/// Source: Envoy `RedirectAction`; a port that was the old scheme's default is dropped when the scheme changes.
pub fn location(plan: &Plan, view: &RequestView<'_>) -> String {
    let none = Redirect::default();
    let redirect = match (&plan.route.redirect, &plan.route.respond) {
        (Some(redirect), _) => redirect,
        (None, Some(response)) if matches!(response.status, 201 | 300..400) => &none,
        _ => return String::new(),
    };
    let scheme = redirect.scheme.as_deref().unwrap_or(view.scheme);
    let authority = match &redirect.host {
        Some(host) => host.as_str(),
        None if redirect.port.is_some() || drops_port(scheme, view) => view.host(),
        None => view.authority,
    };
    let port = redirect.port.map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{authority}{port}{}", redirect_path(plan, redirect, view))
}

fn drops_port(scheme: &str, view: &RequestView<'_>) -> bool {
    let port = split_port(view.authority).1;
    scheme != view.scheme && matches!((view.scheme, port), ("http", Some(80)) | ("https", Some(443)))
}

fn redirect_path(plan: &Plan, redirect: &Redirect, view: &RequestView<'_>) -> String {
    let current = if redirect.strip_query { view.path_only() } else { view.path };
    match &redirect.path {
        None => current.to_owned(),
        // A new path with a query of its own replaces both.
        Some(PathRewrite::Full(new)) if new.contains('?') => new.clone(),
        Some(rewrite) => plan.route.rewrite.new_path(rewrite, current),
    }
}

/// Both places that name the host change, so that HTTP/1.1 and HTTP/2 send the same.
pub(crate) fn set_authority(parts: &mut Parts, host: &HeaderValue) {
    let authority = Authority::try_from(host.as_bytes()).ok();
    let in_uri = parts.uri.authority().is_some();
    if !in_uri || parts.headers.contains_key(HOST) {
        parts.headers.insert(HOST, host.clone());
    }
    if in_uri && authority.is_some() {
        set_uri(parts, |uri| uri.authority = authority);
    }
}

fn set_uri(parts: &mut Parts, change: impl FnOnce(&mut http::uri::Parts)) {
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    let before = uri_parts(&uri);
    change(&mut uri);
    parts.uri = Uri::from_parts(uri).or_else(|_| Uri::from_parts(before)).unwrap_or_default();
}

fn uri_parts(uri: &http::uri::Parts) -> http::uri::Parts {
    let mut copy = http::uri::Parts::default();
    copy.scheme = uri.scheme.clone();
    copy.authority = uri.authority.clone();
    copy.path_and_query = uri.path_and_query.clone();
    copy
}

/// The path that a rewrite replaced. Source: Envoy `x-envoy-original-path`.
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
/// The authority that a rewrite replaced. Source: Envoy `x-envoy-original-host`.
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{net::Ipv4Addr, sync::Arc};

    use super::*;
    use crate::{
        config::{Format, HeaderChange, HeaderChanges},
        plan::{RoutePolicy, Target},
    };

    /// RA11: what matched is replaced, the query stays, and the original path is told.
    #[test]
    fn paths() {
        let prefix = |new: &str| PathRewrite::Prefix(new.to_owned());
        let regex = |pattern: &str, by: &str| PathRewrite::Regex {
            pattern: pattern.parse().unwrap(),
            substitution: by.to_owned(),
        };
        for (path, matched_prefix, rewrite, expected) in [
            ("/api/v1/x?q=1", Some(4), prefix("/new"), "/new/v1/x?q=1"),
            ("/api", Some(4), prefix("/"), "/"),
            ("/api/x", Some(4), prefix("/"), "//x"),
            ("/api/x", Some(5), prefix("/"), "/x"),
            ("/API/x", Some(4), prefix("/new"), "/new/x"),
            ("/exact?q", None, prefix("/new"), "/new?q"),
            ("/any?q", Some(1), PathRewrite::Full("/whole".to_owned()), "/whole?q"),
            ("/a/b?x=/a/", Some(1), regex("^/a/(.*)$", r"/c/\1"), "/c/b?x=/a/"),
            ("/a/a", None, regex("a", "b"), "/b/b"),
        ] {
            let policy = RoutePolicy {
                rewrite: Rewrite { path: Some(rewrite), matched_prefix, ..Rewrite::default() },
                ..RoutePolicy::default()
            };
            let mut parts = parts(&format!("http://reviews:9080{path}"), &[]);
            apply(&plan(policy), None, &mut parts);
            assert_eq!(parts.uri.to_string(), format!("http://reviews:9080{expected}"), "{path}");
            assert_eq!(parts.headers["x-envoy-original-path"], path);
        }
    }

    /// RA12: authority and Host change together, and where there was no Host none is made up.
    #[test]
    fn hosts() {
        let policy = || RoutePolicy {
            rewrite: Rewrite { host: Some(HostRewrite::Literal("new:1".to_owned())), ..Rewrite::default() },
            ..RoutePolicy::default()
        };
        for (uri, host, new_uri, new_host) in [
            ("http://old/a", None, "http://new:1/a", None),
            ("http://old/a", Some("old"), "http://new:1/a", Some("new:1")),
            ("/a", Some("old"), "/a", Some("new:1")),
        ] {
            let headers: Vec<_> = host.map(|host| ("host", host)).into_iter().collect();
            let mut parts = parts(uri, &headers);
            apply(&plan(policy()), None, &mut parts);
            assert_eq!(parts.uri, new_uri);
            assert_eq!(parts.headers.get("host").map(|host| host.to_str().unwrap()), new_host);
        }
    }

    /// RA12: from a header, from the path, from the endpoint; the host before is told, and forwarded where asked for.
    #[test]
    fn hosts_come_from_elsewhere() {
        let header = || Some(HostRewrite::Header("x-host".into()));
        let path = || {
            let pattern = "^/to/([^/]*).*$".parse().unwrap();
            Some(HostRewrite::PathRegex { pattern, substitution: r"\1".to_owned() })
        };
        let none = &[][..];
        for (host, uri, headers, expected) in [
            (header(), "http://old/a", &[("x-host", "one"), ("x-host", "two")][..], Some("one")),
            (header(), "http://old/a", none, None),
            (header(), "http://old/a", &[("x-host", "")], None),
            (path(), "http://old/to/new?to/x", none, Some("new")),
            (path(), "http://old/to/", none, None),
            (Some(HostRewrite::Auto), "http://old/a", none, None),
        ] {
            let rewrite = Rewrite { host, append_forwarded_host: true, ..Rewrite::default() };
            let mut parts = parts(uri, headers);
            apply(&plan(RoutePolicy { rewrite, ..RoutePolicy::default() }), None, &mut parts);
            assert_eq!(parts.uri.host(), Some(expected.unwrap_or("old")), "{uri} {headers:?}");
            for told in ["x-envoy-original-host", "x-forwarded-host"] {
                let told = parts.headers.get(told).map(|value| value.to_str().unwrap());
                assert_eq!(told, expected.map(|_| "old"));
            }
        }
        let rewrite = Rewrite { host: Some(HostRewrite::Auto), append_forwarded_host: true, ..Rewrite::default() };
        let plan = plan(RoutePolicy { rewrite, ..RoutePolicy::default() });
        for (before, after) in [(None, "old"), (Some("z, old"), "z, old,old"), (Some("z,old"), "z,old")] {
            let headers: Vec<_> = before.map(|before| ("x-forwarded-host", before)).into_iter().collect();
            let mut parts = parts("http://old/", &headers);
            apply_endpoint(&plan, "", &mut parts);
            assert_eq!(parts.uri, "http://old/");
            apply_endpoint(&plan, "endpoint:1", &mut parts);
            assert_eq!(parts.uri, "http://endpoint:1/");
            assert_eq!(parts.headers["x-forwarded-host"], after);
        }
    }

    /// RA13: the most specific changes come first, so that less specific ones have the last word, as in Envoy.
    #[test]
    fn header_changes_apply_from_the_inside_out() {
        let level = |request: Vec<HeaderChange>, response| HeaderChanges { request, response };
        let edits = HeaderEdits::compile([
            &level(vec![set("x-a", "cluster"), append("x-b", "cluster"), remove("x-gone")], vec![]),
            &level(vec![append("x-b", "route")], vec![set("x-r", "route")]),
            &level(vec![set("x-a", "host")], vec![remove("server")]),
        ])
        .unwrap();
        let plan = plan(RoutePolicy { headers: edits, ..RoutePolicy::default() });
        let mut parts = parts("http://old/", &[("x-a", "own"), ("x-b", "own"), ("x-gone", "1")]);
        apply(&plan, None, &mut parts);
        let all = |name| parts.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((all("x-a"), all("x-b"), all("x-gone")), (vec!["host"], vec!["own", "cluster", "route"], vec![]));
        let mut response = HeaderMap::from_iter([(http::header::SERVER, HeaderValue::from_static("x"))]);
        on_response(&plan, None, 200, &mut response);
        assert_eq!((response.len(), &response["x-r"]), (1, &HeaderValue::from_static("route")));
        for bad in [remove("host"), remove(":path"), set(":authority", "x"), set("a b", "c"), set("a", "\n")] {
            assert!(HeaderEdits::compile([&level(vec![bad.clone()], vec![])]).is_err(), "{bad:?}");
        }
    }

    /// RA13: within a level all conditions are settled first, then what is set is set, then what is added is added.
    #[test]
    fn actions_of_a_level_do_not_see_each_other() {
        let if_absent = |name: &str, value: &str| HeaderChange::AddIfAbsent { name: name.into(), value: format(value) };
        let if_present =
            |name: &str, value: &str| HeaderChange::SetIfPresent { name: name.into(), value: format(value) };
        let request = vec![
            append("x-d", "added"),
            if_absent("x-a", "1"),
            if_absent("x-a", "2"),
            set("x-b", "1"),
            if_present("x-b", "2"),
            set("x-c", "%REQ(x-b)%-%REQ(x-n)%"),
            set("x-d", "set"),
            if_absent("x-gone", "new"),
            set("x-e", "%REQ(x-n)%"),
            HeaderChange::Set { name: "x-f".into(), value: format("%REQ(x-n)%").keeping_empty() },
            remove("x-gone"),
        ];
        let edits = HeaderEdits::compile([&HeaderChanges { request, response: vec![] }]).unwrap();
        let plan = plan(RoutePolicy { headers: edits, ..RoutePolicy::default() });
        let expected = [
            (&[][..], [&["1", "2"][..], &["1"], &["-"], &["set", "added"], &["new"], &[], &[""]]),
            (
                &[("x-a", "own"), ("x-b", "own"), ("x-b", "own2"), ("x-d", "own"), ("x-gone", "1")],
                [&["own"], &["2"], &["own-"], &["set", "added"], &["new"], &[], &[""]],
            ),
        ];
        for (headers, expected) in expected {
            let mut parts = parts("http://old/", headers);
            apply(&plan, None, &mut parts);
            for (name, expected) in ["x-a", "x-b", "x-c", "x-d", "x-gone", "x-e", "x-f"].iter().zip(expected) {
                let all: Vec<_> = parts.headers.get_all(*name).iter().map(|v| v.to_str().unwrap()).collect();
                assert_eq!(all, expected, "{name} {headers:?}");
            }
        }
    }

    /// RA14: operators are filled in from the request, the response and the plan; what is not there is nothing.
    #[test]
    fn operators_are_filled_in() {
        let asked = "%REQ(:method)% %REQ(:authority)%%REQ(:path)% %REQ(:scheme)% %PROTOCOL% %ROUTE_NAME%";
        let changes = HeaderChanges {
            request: vec![
                set("x-1", asked),
                set("x-2", "a%REQ(X-MISS?X-Y)%b"),
                set("x-3", "%REQ(x-y):2%"),
                set("x-4", "100%%"),
                set("x-7", "from %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
                set("x-5", "%RESP(x-up)%%RESPONSE_CODE%%UPSTREAM_CLUSTER%"),
            ],
            response: vec![set(
                "x-6",
                "%RESP(x-up)%|%RESP(x-no?x-up):1%|%REQ(x-1)%|%RESPONSE_CODE%|%REQ(host)%|%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
            )],
        };
        let headers = HeaderEdits::compile([&changes]).unwrap();
        let plan = plan(RoutePolicy { name: "r".into(), headers, ..RoutePolicy::default() });
        let mut parts = parts("http://old:1/a?b", &[("x-y", "yyy"), ("x-y", "zzz")]);
        apply(&plan, Some(Ipv4Addr::new(10, 1, 2, 3).into()), &mut parts);
        for (name, expected) in [
            ("x-1", "GET old:1/a?b http HTTP/1.1 r"),
            ("x-2", "ayyyb"),
            ("x-3", "yy"),
            ("x-4", "100%"),
            ("x-7", "from 10.1.2.3"),
        ] {
            assert_eq!(parts.headers[name], expected, "{name}");
        }
        assert!(!parts.headers.contains_key("x-5"), "nothing of it is known yet");
        let request = remembered(&plan, &parts).unwrap();
        let mut response = HeaderMap::from_iter([(HeaderName::from_static("x-up"), HeaderValue::from_static("up"))]);
        on_response(&plan, Some(&request), 404, &mut response);
        assert_eq!(response["x-6"], "up|u|GET old:1/a?b http HTTP/1.1 r|404|old:1|10.1.2.3");
    }

    /// RA10: scheme, host, port, path and query of a redirect, each kept unless replaced.
    #[test]
    fn redirects() {
        let none = Redirect::default;
        let text = |text: &str| Some(text.to_owned());
        let full = |text: &str| Some(PathRewrite::Full(text.to_owned()));
        for (redirect, expected) in [
            (none(), "http://shop:8080/api/x?q=1"),
            (Redirect { scheme: text("https"), ..none() }, "https://shop:8080/api/x?q=1"),
            (Redirect { host: text("new"), ..none() }, "http://new/api/x?q=1"),
            (Redirect { port: Some(90), ..none() }, "http://shop:90/api/x?q=1"),
            (Redirect { strip_query: true, ..none() }, "http://shop:8080/api/x"),
            (Redirect { path: full("/new"), ..none() }, "http://shop:8080/new?q=1"),
            (Redirect { path: full("/new?z"), ..none() }, "http://shop:8080/new?z"),
            (Redirect { path: Some(PathRewrite::Prefix("/v2".into())), ..none() }, "http://shop:8080/v2/x?q=1"),
        ] {
            let policy = RoutePolicy {
                rewrite: Rewrite { matched_prefix: Some(4), ..Rewrite::default() },
                redirect: Some(redirect),
                ..RoutePolicy::default()
            };
            let parts = parts("http://shop:8080/api/x?q=1", &[]);
            assert_eq!(location(&plan(policy), &RequestView::of(&parts, None)), expected);
        }
        let policy = RoutePolicy { redirect: Some(Redirect { scheme: text("https"), ..none() }), ..Default::default() };
        let parts = parts("http://shop:80/", &[]);
        assert_eq!(location(&plan(policy), &RequestView::of(&parts, None)), "https://shop/");
    }

    /// RA9: an answer that says something was created, or is elsewhere, says where: at the request's own address.
    #[test]
    fn direct_responses_have_a_location() {
        for (status, expected) in [(200, ""), (201, "http://shop:80/a?b"), (302, "http://shop:80/a?b"), (404, "")] {
            let respond = Some(crate::config::DirectResponse { status, body: String::new() });
            let parts = parts("http://shop:80/a?b", &[]);
            let policy = RoutePolicy { respond, ..Default::default() };
            assert_eq!(location(&plan(policy), &RequestView::of(&parts, None)), expected, "{status}");
        }
    }

    fn format(text: &str) -> Format {
        text.parse().unwrap()
    }

    fn set(name: &str, value: &str) -> HeaderChange {
        HeaderChange::Set { name: name.into(), value: value.parse().unwrap() }
    }

    fn append(name: &str, value: &str) -> HeaderChange {
        HeaderChange::Append { name: name.into(), value: value.parse().unwrap() }
    }

    fn remove(name: &str) -> HeaderChange {
        HeaderChange::Remove { name: name.into() }
    }

    fn plan(policy: RoutePolicy) -> Plan {
        Plan::new(Arc::new(policy), Target::Inbound)
    }

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut builder = http::Request::builder().uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }
}
