//! How a request changes on its way out, a response on its way back, and where a redirect points.
//!
//! Envoy's order: header changes of the drawn destination, the route, the virtual host and the route table (RA13), then
//! the authority (RA12), then the path (RA11), whose original goes into `x-envoy-original-path`.

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::HOST,
    request::Parts,
    uri::{Authority, PathAndQuery},
};

use crate::{
    config::{Forward, HeaderChange, HeaderChanges, PathRewrite, Redirect},
    error::CompileError,
    plan::Plan,
    request::{RequestView, split_port},
};

/// New authority and path of a route's requests.
#[derive(Clone, Debug, Default)]
pub struct Rewrite {
    /// New authority. Envoy `host_rewrite_literal`.
    pub host: Option<HeaderValue>,
    /// New path.
    pub path: Option<PathRewrite>,
    /// How many bytes of the path the route's prefix took; `None` when it matched the whole path.
    pub matched_prefix: Option<usize>,
}

impl Rewrite {
    /// The rewrite of a route whose path condition took `matched_prefix` bytes.
    pub(crate) fn new(forward: &Forward, matched_prefix: Option<usize>) -> Result<Self, CompileError> {
        let host = forward
            .host_rewrite
            .as_deref()
            .map(HeaderValue::from_str)
            .transpose()
            .map_err(|_| CompileError::new("rewrite", "action.host_rewrite", "not a valid header value"))?;
        Ok(Self { host, path: forward.path_rewrite.clone(), matched_prefix })
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
}

/// Changes of headers, parsed and in the order they apply.
#[derive(Clone, Debug, Default)]
pub struct HeaderEdits {
    request: Vec<HeaderEdit>,
    response: Vec<HeaderEdit>,
}

#[derive(Clone, Debug)]
enum HeaderEdit {
    Append(HeaderName, HeaderValue),
    Set(HeaderName, HeaderValue),
    Authority(HeaderValue),
    Remove(HeaderName),
}

impl HeaderEdits {
    /// Parses the changes of several levels, most specific first.
    pub fn compile<'a>(levels: impl IntoIterator<Item = &'a HeaderChanges>) -> Result<Self, CompileError> {
        let mut edits = Self::default();
        for level in levels {
            for change in &level.request {
                edits.request.push(edit(change)?);
            }
            for change in &level.response {
                edits.response.push(edit(change)?);
            }
        }
        Ok(edits)
    }

    /// Nothing to change.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

fn edit(change: &HeaderChange) -> Result<HeaderEdit, CompileError> {
    let (HeaderChange::Append { name, .. } | HeaderChange::Set { name, .. } | HeaderChange::Remove { name }) = change;
    let invalid = |what: &str| CompileError::new("header change", format!("{name:?}"), what);
    let removes = matches!(change, HeaderChange::Remove { .. });
    if name == ":authority" || name.eq_ignore_ascii_case("host") {
        return match change {
            HeaderChange::Append { value, .. } | HeaderChange::Set { value, .. } => HeaderValue::from_str(value)
                .map(HeaderEdit::Authority)
                .map_err(|_| invalid("the value is not a valid header value")),
            HeaderChange::Remove { .. } => Err(invalid("the host cannot be removed; set it instead")),
        };
    }
    let message = if removes { "pseudo-headers cannot be removed" } else { "not a valid header name" };
    let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid(message))?;
    match change {
        HeaderChange::Remove { .. } => Ok(HeaderEdit::Remove(parsed)),
        HeaderChange::Append { value, .. } | HeaderChange::Set { value, .. } => {
            let value = HeaderValue::from_str(value).map_err(|_| invalid("the value is not a valid header value"))?;
            Ok(match change {
                HeaderChange::Append { .. } => HeaderEdit::Append(parsed, value),
                _ => HeaderEdit::Set(parsed, value),
            })
        }
    }
}

/// Changes the head of a request as its plan says. Called once, before the first try.
pub fn apply(plan: &Plan, parts: &mut Parts) {
    for edit in &plan.header_edits().request {
        match edit {
            HeaderEdit::Authority(value) => set_authority(parts, value),
            other => change(&mut parts.headers, other),
        }
    }
    let rewrite = &plan.route.rewrite;
    if let Some(host) = &rewrite.host {
        set_authority(parts, host);
    }
    if let Some(path) = &rewrite.path {
        let original = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let new = rewrite.new_path(path, original);
        if let (Ok(new), Ok(original)) = (PathAndQuery::try_from(new), HeaderValue::from_str(original)) {
            parts.headers.insert(ORIGINAL_PATH, original);
            set_uri(parts, |uri| uri.path_and_query = Some(new));
        }
    }
}

/// Changes the headers of a response as its plan says.
pub fn on_response(plan: &Plan, headers: &mut HeaderMap) {
    for edit in &plan.header_edits().response {
        change(headers, edit);
    }
    plan.route.hash.set_cookies(plan.fresh, headers);
}

/// Where a redirected caller is sent: the `location` of the answer. Empty when the plan redirects nowhere.
///
/// Source: Envoy `RedirectAction`; a port that was the old scheme's default is dropped when the scheme changes.
pub fn redirect_location(plan: &Plan, view: &RequestView<'_>) -> String {
    let Some(redirect) = &plan.route.redirect else { return String::new() };
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

fn change(headers: &mut HeaderMap, edit: &HeaderEdit) {
    match edit {
        HeaderEdit::Append(name, value) => {
            headers.append(name, value.clone());
        }
        HeaderEdit::Set(name, value) => {
            headers.insert(name, value.clone());
        }
        HeaderEdit::Remove(name) => {
            headers.remove(name);
        }
        // Responses have no authority.
        HeaderEdit::Authority(_) => {}
    }
}

/// Both places that name the host change, so that HTTP/1.1 and HTTP/2 send the same.
fn set_authority(parts: &mut Parts, host: &HeaderValue) {
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

/// Where the path went that a rewrite replaced. Source: Envoy `x-envoy-original-path`.
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use super::*;
    use crate::plan::{RoutePolicy, Target};

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
                rewrite: Rewrite { host: None, path: Some(rewrite), matched_prefix },
                ..RoutePolicy::default()
            };
            let mut parts = parts(&format!("http://reviews:9080{path}"), &[]);
            apply(&plan(policy), &mut parts);
            assert_eq!(parts.uri.to_string(), format!("http://reviews:9080{expected}"), "{path}");
            assert_eq!(parts.headers["x-envoy-original-path"], path);
        }
    }

    /// RA12: authority and Host change together, and where there was no Host none is made up.
    #[test]
    fn hosts() {
        let policy = || RoutePolicy {
            rewrite: Rewrite { host: Some(HeaderValue::from_static("new:1")), ..Rewrite::default() },
            ..RoutePolicy::default()
        };
        for (uri, host, new_uri, new_host) in [
            ("http://old/a", None, "http://new:1/a", None),
            ("http://old/a", Some("old"), "http://new:1/a", Some("new:1")),
            ("/a", Some("old"), "/a", Some("new:1")),
        ] {
            let headers: Vec<_> = host.map(|host| ("host", host)).into_iter().collect();
            let mut parts = parts(uri, &headers);
            apply(&plan(policy()), &mut parts);
            assert_eq!(parts.uri, new_uri);
            assert_eq!(parts.headers.get("host").map(|host| host.to_str().unwrap()), new_host);
        }
    }

    /// RA13: the most specific changes come first, so that less specific ones have the last word, as in Envoy.
    #[test]
    fn header_changes_apply_from_the_inside_out() {
        let set = |name: &str, value: &str| HeaderChange::Set { name: name.into(), value: value.into() };
        let append = |name: &str, value: &str| HeaderChange::Append { name: name.into(), value: value.into() };
        let remove = |name: &str| HeaderChange::Remove { name: name.into() };
        let level = |request: Vec<HeaderChange>, response| HeaderChanges { request, response };
        let edits = HeaderEdits::compile([
            &level(vec![set("x-a", "cluster"), append("x-b", "cluster"), remove("x-gone")], vec![]),
            &level(vec![append("x-b", "route"), set(":authority", "other")], vec![set("x-r", "route")]),
            &level(vec![set("x-a", "host")], vec![remove("server")]),
        ])
        .unwrap();
        let plan = plan(RoutePolicy { headers: edits, ..RoutePolicy::default() });
        let mut parts = parts("http://old/", &[("x-a", "own"), ("x-b", "own"), ("x-gone", "1")]);
        apply(&plan, &mut parts);
        let all = |name| parts.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((all("x-a"), all("x-b"), all("x-gone")), (vec!["host"], vec!["own", "cluster", "route"], vec![]));
        assert_eq!(parts.uri, "http://other/");
        let mut response = HeaderMap::from_iter([(http::header::SERVER, HeaderValue::from_static("x"))]);
        on_response(&plan, &mut response);
        assert_eq!((response.len(), &response["x-r"]), (1, &HeaderValue::from_static("route")));
        for bad in [remove("host"), remove(":path"), set("a b", "c"), set("a", "\n")] {
            assert!(HeaderEdits::compile([&level(vec![bad.clone()], vec![])]).is_err(), "{bad:?}");
        }
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
            assert_eq!(redirect_location(&plan(policy), &RequestView::of(&parts, None)), expected);
        }
        let policy = RoutePolicy { redirect: Some(Redirect { scheme: text("https"), ..none() }), ..Default::default() };
        let parts = parts("http://shop:80/", &[]);
        assert_eq!(redirect_location(&plan(policy), &RequestView::of(&parts, None)), "https://shop/");
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
