//! The conditions of a rule. Source: Istio `HTTPMatchRequest`, `StringMatch`.

use mesh_core::config::{
    HeaderMatch, HeaderMatcher, PathMatch, QueryMatch, QueryMatcher, Regex, RegexError, StringMatch,
};

use super::{HttpMatch, mark};
use crate::kinds::{
    read::{Fields, Reader},
    yaml::{Node, Value},
};

/// A condition, or `None` when it is faulty.
pub(super) fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<HttpMatch> {
    let mut fields = reader.fields(node, path)?;
    let mut out = HttpMatch { at: mark(node.at), ..HttpMatch::default() };
    out.name = fields.read("name", |node, path| reader.text(node, path)).map(|at| at.value).unwrap_or_default();
    let ignore_case = fields.read("ignoreUriCase", |node, path| reader.boolean(node, path)).unwrap_or_default();
    if let Some((node, path)) = fields.take("uri") {
        out.request.path = match string(node, &path, reader)? {
            Some(StringMatch::Exact { value, .. }) => PathMatch::Exact { value, ignore_case },
            Some(StringMatch::Prefix { value, .. }) => PathMatch::Prefix { value, ignore_case },
            Some(StringMatch::Regex(regex)) => PathMatch::Regex(regex),
            _ => PathMatch::any(),
        };
    }
    for (field, header) in [("scheme", ":scheme"), ("method", ":method"), ("authority", ":authority")] {
        if let Some((node, path)) = fields.take(field) {
            let matcher = string(node, &path, reader)?;
            let matcher = matcher.map_or(HeaderMatcher::Present(true), HeaderMatcher::Value);
            out.request.headers.push(HeaderMatch {
                name: header.into(),
                matcher,
                invert: false,
                missing_as_empty: false,
            });
        }
    }
    headers(&mut fields, "headers", false, &mut out.request.headers, reader);
    headers(&mut fields, "withoutHeaders", true, &mut out.request.headers, reader);
    if let Some((node, path)) = fields.take("queryParams") {
        for (name, node) in reader.map(node, &path) {
            let value = string(node, &format!("{path}.{}", name.value), reader)?;
            let matcher = value.map_or(QueryMatcher::Present(true), QueryMatcher::Value);
            out.request.query.push(QueryMatch { name: name.value.clone(), matcher });
        }
        out.request.query.sort_by(|a, b| a.name.cmp(&b.name));
    }
    out.gateways = fields.read("gateways", |node, path| Some(reader.texts(node, path)));
    out.port = fields.read("port", |node, path| reader.port(node, path));
    out.source_labels = fields.read("sourceLabels", |node, path| Some(reader.labels(node, path))).unwrap_or_default();
    out.source_namespace =
        fields.read("sourceNamespace", |node, path| reader.text(node, path)).map(|at| at.value).unwrap_or_default();
    fields.ignored(reader, &["statPrefix"], "statistics have Istio's standard names only");
    fields.close(reader);
    Some(out)
}

/// Istio sorts them by name; so an unchanged object gives an unchanged route.
fn headers(
    fields: &mut Fields<'_>,
    field: &'static str,
    without: bool,
    out: &mut Vec<HeaderMatch>,
    reader: &mut Reader<'_>,
) {
    let Some((node, path)) = fields.take(field) else { return };
    let mut found = Vec::new();
    for (name, node) in reader.map(node, &path) {
        let path = format!("{path}.{}", name.value);
        if name.starts_with('@') {
            reader.unsupported(name.at, &path, "routes do not go by the claims of a token: gateways verify none; let an AuthorizationPolicy of the workload behind decide by request.auth.claims");
            continue;
        }
        let Some(matcher) = string(node, &path, reader) else { continue };
        let present = matcher.is_none();
        found.push(HeaderMatch {
            name: name.to_ascii_lowercase().into(),
            matcher: matcher.map_or(HeaderMatcher::Present(true), HeaderMatcher::Value),
            invert: without,
            // A missing header is not the value, so it satisfies "without"; Envoy needs to be told.
            missing_as_empty: without && !present,
        });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    out.extend(found);
}

/// A string match: `Some(None)` is present with any value, `None` faulty.
pub(super) fn string(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Option<StringMatch>> {
    if let Value::Text(_) = node.value {
        let diagnostic = reader.invalid(node.at, format!("{path} must say how it is compared"));
        diagnostic.help = Some("write exact:, prefix: or regex: before the value".to_owned());
        return None;
    }
    let mut fields = reader.fields(node, path)?;
    let exact = fields.read("exact", |node, path| reader.text(node, path));
    let prefix = fields.read("prefix", |node, path| reader.text(node, path));
    let regex = fields.read("regex", |node, path| reader.text(node, path));
    let many = [&exact, &prefix, &regex].iter().filter(|one| one.is_some()).count() > 1;
    fields.close(reader);
    if many {
        reader.invalid(node.at, format!("{path} can be only one of exact, prefix and regex"));
        return None;
    }
    let matcher = if let Some(value) = exact.filter(|at| !at.is_empty()) {
        Some(StringMatch::Exact { value: value.value, ignore_case: false })
    } else if let Some(value) = prefix.filter(|at| !at.is_empty()) {
        Some(StringMatch::Prefix { value: value.value, ignore_case: false })
    } else if let Some(value) = regex.filter(|at| !at.is_empty() && at.value != "*") {
        match value.parse::<Regex>() {
            Ok(regex) => Some(StringMatch::Regex(regex)),
            Err(error) => {
                reader.invalid(value.at, format!("{path}.regex: {}", one_line(&error)));
                return None;
            }
        }
    } else {
        None
    };
    Some(matcher)
}

/// The fault without the drawing of it, which has its own place in a diagnostic.
pub(super) fn one_line(error: &RegexError) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}
