//! Rules of routes: conditions, destinations, time limits. Source: Gateway API `HTTPRouteRule`, `GRPCRouteRule`.

use mesh_core::config::{
    BackOff, Fraction, GrpcRetry, HeaderMatch, HeaderMatcher, HttpRetry, PathMatch, PathRewrite, QueryMatch,
    QueryMatcher, Regex, RetryConditions, RetryPolicy, StringMatch,
};

use super::filter::{Filters, filters};
use crate::kinds::{
    Destination, HttpAction, HttpMatch, HttpRoute, default_retries,
    read::{Fields, Reader},
    virtual_service::mark,
    yaml::{At, Node},
};

/// What a rule without a usable destination answers.
const NO_BACKEND: u16 = 500;

/// Adds a rule of each of the conditions; `namespace` is the object's.
pub(super) fn rule(
    node: &Node,
    path: &str,
    namespace: &str,
    grpc: bool,
    out: &mut Vec<HttpRoute>,
    reader: &mut Reader<'_>,
) {
    let Some(mut fields) = reader.fields(node, path) else { return };
    let name = fields.read("name", |node, path| reader.text(node, path)).map(|at| at.value).unwrap_or_default();
    let mut conditions = Vec::new();
    if let Some((node, path)) = fields.take("matches") {
        for (node, path) in reader.list(node, &path) {
            conditions.extend(if grpc { call(node, &path, reader) } else { request(node, &path, reader) });
        }
    }
    let filters = filters(&mut fields, namespace, false, reader);
    let mut destinations = Vec::new();
    if let Some((node, path)) = fields.take("backendRefs") {
        for (node, path) in reader.list(node, &path) {
            destinations.extend(destination(node, &path, namespace, reader));
        }
    }
    let mut timeout = None;
    let mut per_try = None;
    if let Some((node, path)) = fields.take("timeouts")
        && let Some(mut times) = reader.fields(node, &path)
    {
        timeout = times.read("request", |node, path| reader.duration(node, path)).filter(|time| !time.is_zero());
        per_try = times.read("backendRequest", |node, path| reader.duration(node, path)).filter(|time| !time.is_zero());
        if let (Some(whole), Some(one)) = (timeout, per_try)
            && one > whole
        {
            reader.invalid(node.at, format!("{path}: backendRequest is longer than request"));
        }
        times.close(reader);
    }
    let retries = fields.take("retry");
    let retry_given = retries.is_some();
    let mut retry = match retries {
        Some((node, path)) => retry_of(node, &path, reader),
        None => default_retries(),
    };
    retry.per_try_timeout = per_try;
    fields.ignored(reader, &["sessionPersistence"], "use a DestinationRule with loadBalancer.consistentHash");
    fields.close(reader);
    let at = mark(node.at);
    let conditions: Vec<Option<HttpMatch>> = match conditions.is_empty() {
        true => vec![None],
        false => conditions.into_iter().map(Some).collect(),
    };
    for condition in conditions {
        let (action, path_rewrite) = action(&filters, &destinations, condition.as_ref());
        out.push(HttpRoute {
            at,
            name: name.clone(),
            matches: condition.into_iter().collect(),
            action,
            path_rewrite,
            host_rewrite: filters.host.clone(),
            headers: filters.headers.clone(),
            mirrors: filters.mirrors.clone(),
            timeout,
            retry: (retry.retries > 0).then(|| retry.clone()),
            retry_given,
            fault: None,
            no_cluster_status: NO_BACKEND,
            origin: None,
        });
    }
}

fn action(
    filters: &Filters,
    destinations: &[Destination],
    condition: Option<&HttpMatch>,
) -> (HttpAction, Option<PathRewrite>) {
    if let Some(to) = &filters.redirect {
        return (HttpAction::Redirect(to.clone()), None);
    }
    let rewrite = filters.path.clone().map(|rewrite| of_prefix(rewrite, condition));
    if destinations.iter().all(|destination| destination.weight == 0) {
        let answer = mesh_core::config::DirectResponse { status: NO_BACKEND, body: String::new() };
        return (HttpAction::DirectResponse(answer), None);
    }
    (HttpAction::Route(destinations.to_vec()), rewrite)
}

/// A prefix that becomes `/` takes the slash after it along, or the path would begin with two.
fn of_prefix(rewrite: PathRewrite, condition: Option<&HttpMatch>) -> PathRewrite {
    let PathRewrite::Prefix(new) = &rewrite else { return rewrite };
    let Some(PathMatch::SegmentPrefix { value, .. }) = condition.map(|condition| &condition.request.path) else {
        return rewrite;
    };
    if !new.ends_with('/') {
        return rewrite;
    }
    match format!("^{}/*", quoted(value)).parse::<Regex>() {
        Ok(pattern) => PathRewrite::Regex { pattern, substitution: new.replace('\\', "\\\\") },
        Err(_) => rewrite,
    }
}

/// A text as a pattern that matches it alone.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if !c.is_ascii_alphanumeric() && c.is_ascii() && !matches!(c, '/' | '_' | '-') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// The condition of an `HTTPRoute`.
fn request(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<HttpMatch> {
    let mut fields = reader.fields(node, path)?;
    let mut out = HttpMatch { at: mark(node.at), ..HttpMatch::default() };
    if let Some((node, path)) = fields.take("path")
        && let Some(mut fields) = reader.fields(node, &path)
    {
        let words = [("PathPrefix", 0), ("Exact", 1), ("RegularExpression", 2)];
        let kind = fields.read("type", |node, path| reader.word(node, path, &words)).unwrap_or(0);
        let value = fields.read("value", |node, path| reader.text(node, path));
        let value = value.unwrap_or_else(|| At { value: "/".to_owned(), at: node.at });
        fields.close(reader);
        if kind < 2 && !value.starts_with('/') {
            reader.invalid(value.at, format!("{path}.value must begin with /"));
        }
        out.request.path = match kind {
            1 => PathMatch::Exact { value: value.value, ignore_case: false },
            2 => PathMatch::Regex(regex(&value, &path, reader)?),
            _ => match value.trim_end_matches('/') {
                "" => PathMatch::any(),
                prefix => PathMatch::SegmentPrefix { value: prefix.to_owned(), ignore_case: false },
            },
        };
    }
    if let Some(method) = fields.read("method", |node, path| reader.text(node, path)) {
        let value = StringMatch::Exact { value: method.value, ignore_case: false };
        out.request.headers.push(header(":method".to_owned(), value));
    }
    headers(&mut fields, &mut out, reader);
    if let Some((node, path)) = fields.take("queryParams") {
        for (node, path) in reader.list(node, &path) {
            let (name, value) = named(node, &path, reader)?;
            // Of one name the first counts.
            if !out.request.query.iter().any(|other| other.name == name) {
                out.request.query.push(QueryMatch { name, matcher: QueryMatcher::Value(value) });
            }
        }
    }
    fields.close(reader);
    Some(out)
}

/// The condition of a `GRPCRoute`: a method is a path.
fn call(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<HttpMatch> {
    let mut fields = reader.fields(node, path)?;
    let mut out = HttpMatch { at: mark(node.at), ..HttpMatch::default() };
    if let Some((node, path)) = fields.take("method")
        && let Some(mut fields) = reader.fields(node, &path)
    {
        let words = [("Exact", false), ("RegularExpression", true)];
        let is_regex = fields.read("type", |node, path| reader.word(node, path, &words)).unwrap_or(false);
        let service = fields.read("service", |node, path| reader.text(node, path)).map(|at| at.value);
        let method = fields.read("method", |node, path| reader.text(node, path)).map(|at| at.value);
        fields.close(reader);
        let at = |value: String| At { value, at: node.at };
        let exact = |text: &Option<String>| text.as_ref().map(|text| quoted(text));
        let (of_service, of_method) =
            if is_regex { (service.clone(), method.clone()) } else { (exact(&service), exact(&method)) };
        out.request.path = match (is_regex, &service, &method) {
            (_, None, None) => {
                reader.invalid(node.at, format!("{path} needs service or method"));
                return None;
            }
            (false, Some(service), Some(method)) => {
                PathMatch::Exact { value: format!("/{service}/{method}"), ignore_case: false }
            }
            (false, Some(service), None) => PathMatch::Prefix { value: format!("/{service}/"), ignore_case: false },
            _ => {
                let any = || "[^/]+".to_owned();
                let (service, method) = (of_service.unwrap_or_else(any), of_method.unwrap_or_else(any));
                PathMatch::Regex(regex(&at(format!("/{service}/{method}")), &path, reader)?)
            }
        };
    }
    headers(&mut fields, &mut out, reader);
    fields.close(reader);
    Some(out)
}

fn headers(fields: &mut Fields<'_>, out: &mut HttpMatch, reader: &mut Reader<'_>) {
    let Some((node, path)) = fields.take("headers") else { return };
    for (node, path) in reader.list(node, &path) {
        let Some((name, value)) = named(node, &path, reader) else { continue };
        let name = name.to_ascii_lowercase();
        // Of one name the first counts.
        if !out.request.headers.iter().any(|other| *other.name == *name) {
            out.request.headers.push(header(name, value));
        }
    }
}

/// A rule of connections that are no HTTP.
pub(super) fn bytes(
    node: &Node,
    path: &str,
    namespace: &str,
    reader: &mut Reader<'_>,
) -> Option<(At<()>, Vec<Destination>)> {
    let mut fields = reader.fields(node, path)?;
    fields.skip(&["name"]);
    let mut destinations = Vec::new();
    match fields.take("backendRefs") {
        Some((node, path)) => {
            for (node, path) in reader.list(node, &path) {
                destinations.extend(destination(node, &path, namespace, reader));
            }
        }
        None => reader.missing(&fields, "backendRefs"),
    }
    fields.close(reader);
    Some((mark(node.at), destinations))
}

fn header(name: String, value: StringMatch) -> HeaderMatch {
    HeaderMatch { name: name.into(), matcher: HeaderMatcher::Value(value), invert: false, missing_as_empty: false }
}

/// `{type, name, value}` of a header or query parameter.
fn named(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<(String, StringMatch)> {
    let mut fields = reader.fields(node, path)?;
    let words = [("Exact", false), ("RegularExpression", true)];
    let is_regex = fields.read("type", |node, path| reader.word(node, path, &words)).unwrap_or(false);
    let name = fields.read("name", |node, path| reader.text(node, path));
    let value = fields.read("value", |node, path| reader.text(node, path));
    for (field, there) in [("name", name.is_some()), ("value", value.is_some())] {
        if !there && !fields.seen(field) {
            reader.missing(&fields, field);
        }
    }
    fields.close(reader);
    let value = value?;
    let matcher = match is_regex {
        true => StringMatch::Regex(regex(&value, path, reader)?),
        false => StringMatch::Exact { value: value.value, ignore_case: false },
    };
    Some((name?.value, matcher))
}

fn regex(text: &At<String>, path: &str, reader: &mut Reader<'_>) -> Option<Regex> {
    match text.parse::<Regex>() {
        Ok(regex) => Some(regex),
        Err(error) => {
            let line = error.to_string().lines().last().unwrap_or_default().trim_start().to_owned();
            reader.invalid(text.at, format!("{path}: {}", line.trim_start_matches("error: ")));
            None
        }
    }
}

fn destination(node: &Node, path: &str, namespace: &str, reader: &mut Reader<'_>) -> Option<Destination> {
    let mut fields = reader.fields(node, path)?;
    let weight = fields.read("weight", |node, path| reader.integer(node, path, 0, 1_000_000));
    let filters = filters(&mut fields, namespace, true, reader);
    let found = backend(&mut fields, node, path, namespace, reader);
    fields.close(reader);
    let mut destination = found?;
    destination.weight = weight.map_or(1, |weight| u32::try_from(weight.value).unwrap_or(1));
    destination.headers = filters.headers;
    Some(destination)
}

/// `{group, kind, namespace, name, port}`.
pub(super) fn backend(
    fields: &mut Fields<'_>,
    node: &Node,
    path: &str,
    namespace: &str,
    reader: &mut Reader<'_>,
) -> Option<Destination> {
    let group = fields.read("group", |node, path| reader.text(node, path)).map(|at| at.value).unwrap_or_default();
    let kind = fields.read("kind", |node, path| reader.text(node, path));
    let own = fields.read("namespace", |node, path| reader.text(node, path)).map(|at| at.value);
    let host = fields.read("name", |node, path| reader.text(node, path));
    if host.is_none() && !fields.seen("name") {
        reader.missing(fields, "name");
    }
    let port = fields.read("port", |node, path| reader.port(node, path));
    let word = kind.as_ref().map_or("Service", |kind| kind.as_str());
    match (group.as_str(), word) {
        ("" | "core", "Service") => {
            if port.is_none() && !fields.seen("port") {
                reader.missing(fields, "port");
            }
        }
        ("networking.istio.io", "Hostname") => {}
        _ => {
            let at = kind.as_ref().map_or(node.at, |kind| kind.at);
            let help = "requests go to a Service, or to the host of a ServiceEntry (group: networking.istio.io, \
                        kind: Hostname)";
            reader.unsupported(at, &format!("{path}: kind {word:?} of group {group:?}"), help);
            return None;
        }
    }
    Some(Destination {
        host: host?,
        namespace: Some(own.unwrap_or_else(|| namespace.to_owned())),
        subset: None,
        port,
        weight: 1,
        headers: Default::default(),
        host_rewrite: None,
    })
}

/// `{numerator, denominator}`, the latter 100 unless set.
pub(super) fn fraction(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Fraction> {
    let mut fields = reader.fields(node, path)?;
    let part = fields.read("numerator", |node, path| reader.u32(node, path));
    let whole = fields.read("denominator", |node, path| reader.integer(node, path, 1, i32::MAX.into()));
    fields.close(reader);
    let whole = whole.map_or(100.0, |whole| whole.value as f64);
    Some(Fraction::percent((f64::from(part?) * 100.0 / whole).min(100.0)))
}

/// Source: Gateway API `HTTPRouteRetry`; what was surely not processed is tried again, too, as Istio has it.
fn retry_of(node: &Node, path: &str, reader: &mut Reader<'_>) -> RetryPolicy {
    let mut out = default_retries();
    let Some(mut fields) = reader.fields(node, path) else { return out };
    out.on = RetryConditions {
        http: vec![HttpRetry::ConnectFailure, HttpRetry::RefusedStream],
        grpc: vec![GrpcRetry::Unavailable, GrpcRetry::Cancelled],
        ..RetryConditions::default()
    };
    if let Some((node, path)) = fields.take("codes") {
        for (node, path) in reader.list(node, &path) {
            let code = reader.integer(node, &path, 400, 599).and_then(|code| u16::try_from(code.value).ok());
            out.on.status_codes.extend(code);
        }
        if !out.on.status_codes.is_empty() {
            out.on.http.push(HttpRetry::RetriableStatusCodes);
        }
    }
    if let Some(attempts) = fields.read("attempts", |node, path| reader.u32(node, path)) {
        out.retries = attempts;
    }
    if let Some(base) = fields.read("backoff", |node, path| reader.some_time(node, path)) {
        out.back_off = BackOff { base, max: base * 10 };
    }
    fields.close(reader);
    out
}
