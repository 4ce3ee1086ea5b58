//! What a rule of a route changes on the way. Source: Gateway API `HTTPRouteFilter`, `GRPCRouteFilter`.

use mesh_core::config::{Format, Fraction, HeaderChange, HeaderChanges, PathRewrite};

use super::route::{backend, fraction};
use crate::kinds::{
    MirrorTo, RedirectTo,
    read::{Fields, Reader},
    yaml::{At, Node},
};

/// The filters of a rule or of one of its destinations.
#[derive(Clone, Debug, Default)]
pub(super) struct Filters {
    pub(super) headers: HeaderChanges,
    pub(super) redirect: Option<RedirectTo>,
    pub(super) path: Option<PathRewrite>,
    pub(super) host: Option<String>,
    pub(super) mirrors: Vec<MirrorTo>,
}

/// `namespace` is the object's. A destination's own filters may only change headers.
pub(super) fn filters(
    fields: &mut Fields<'_>,
    namespace: &str,
    of_destination: bool,
    reader: &mut Reader<'_>,
) -> Filters {
    let mut out = Filters::default();
    let Some((node, path)) = fields.take("filters") else { return out };
    for (node, path) in reader.list(node, &path) {
        let Some(mut fields) = reader.fields(node, &path) else { continue };
        let kind = fields.read("type", |node, path| reader.text(node, path));
        if kind.is_none() && !fields.seen("type") {
            reader.missing(&fields, "type");
        }
        let word = kind.as_ref().map(|kind| kind.value.clone()).unwrap_or_default();
        if let Some((node, path)) = fields.take("requestHeaderModifier") {
            out.headers.request.extend(changes(node, &path, reader));
        }
        if let Some((node, path)) = fields.take("responseHeaderModifier") {
            out.headers.response.extend(changes(node, &path, reader));
        }
        let route_only = ["requestMirror", "requestRedirect", "urlRewrite"];
        if of_destination {
            fields.refused(reader, &route_only, "write it as a filter of the rule");
        }
        if let Some((node, path)) = fields.take("requestMirror") {
            out.mirrors.extend(mirror(node, &path, namespace, reader));
        }
        if let Some((node, path)) = fields.take("requestRedirect") {
            out.redirect = redirect(node, &path, reader);
        }
        if let Some((node, path)) = fields.take("urlRewrite")
            && let Some(mut rewrite) = reader.fields(node, &path)
        {
            out.host = rewrite.read("hostname", |node, path| reader.text(node, path)).map(|at| at.value);
            out.path = rewrite.read("path", |node, path| new_path(node, path, reader));
            rewrite.close(reader);
        }
        fields.ignored(reader, &["cors"], "CORS is not answered by the mesh yet; the application has to");
        fields.refused(
            reader,
            &["extensionRef", "externalAuth"],
            "no filter of others is known here; write a Tower layer instead",
        );
        fields.close(reader);
        let known = [
            "RequestHeaderModifier",
            "ResponseHeaderModifier",
            "RequestMirror",
            "RequestRedirect",
            "URLRewrite",
            "CORS",
            "ExtensionRef",
            "ExternalAuth",
        ];
        if let Some(kind) = kind
            && !known.contains(&word.as_str())
        {
            reader.invalid(kind.at, format!("{path}.type cannot be {word:?}")).help =
                Some(format!("it is one of {}", known.join(", ")));
        }
    }
    out
}

/// `set`, `add` and `remove`, in this order.
fn changes(node: &Node, path: &str, reader: &mut Reader<'_>) -> Vec<HeaderChange> {
    let Some(mut fields) = reader.fields(node, path) else { return Vec::new() };
    let mut out = Vec::new();
    for field in ["set", "add"] {
        let Some((node, path)) = fields.take(field) else { continue };
        for (node, path) in reader.list(node, &path) {
            let Some(mut header) = reader.fields(node, &path) else { continue };
            let name = header.read("name", |node, path| reader.text(node, path));
            let value = header.read("value", |node, path| reader.text(node, path));
            header.close(reader);
            let (Some(name), Some(value)) = (name, value) else { continue };
            // The text is sent as it is: a % begins nothing here, unlike in Envoy's own formats.
            let (name, value) = (name.to_ascii_lowercase(), Format::literal(&value));
            out.push(match field {
                "set" => HeaderChange::Set { name, value },
                _ => HeaderChange::Append { name, value },
            });
        }
    }
    let removed = fields.read("remove", |node, path| Some(reader.texts(node, path))).unwrap_or_default();
    fields.close(reader);
    out.extend(removed.into_iter().map(|name| HeaderChange::Remove { name: name.to_ascii_lowercase() }));
    out
}

fn mirror(node: &Node, path: &str, namespace: &str, reader: &mut Reader<'_>) -> Option<MirrorTo> {
    let mut fields = reader.fields(node, path)?;
    let percent = fields.read("percent", |node, path| reader.percent(node, path)).map(Fraction::percent);
    let share = fields.read("fraction", |node, path| fraction(node, path, reader)).or(percent);
    let Some((node, path)) = fields.take("backendRef") else {
        reader.missing(&fields, "backendRef");
        return None;
    };
    let destination = reader.fields(node, &path).and_then(|mut fields| {
        let destination = backend(&mut fields, node, &path, namespace, reader);
        fields.close(reader);
        destination
    });
    fields.close(reader);
    let destination = destination?;
    share.is_none_or(|share| share.numerator > 0).then_some(MirrorTo { destination, fraction: share })
}

fn redirect(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<RedirectTo> {
    let mut fields = reader.fields(node, path)?;
    let mut out = RedirectTo { status: 302, ..RedirectTo::default() };
    let words = [("http", "http"), ("https", "https")];
    out.scheme = fields.read("scheme", |node, path| reader.word(node, path, &words)).map(|scheme| scheme.to_owned());
    out.authority = fields.read("hostname", |node, path| reader.text(node, path)).map(|at| at.value);
    out.port = fields.read("port", |node, path| reader.port(node, path));
    // With a new scheme the port is that scheme's, else the listener's.
    out.request_port = out.scheme.is_none();
    if let Some((node, path)) = fields.take("statusCode") {
        let status = reader.integer(node, &path, 300, 399)?;
        if ![301, 302, 303, 307, 308].contains(&status.value) {
            reader.invalid(node.at, format!("{path} cannot be {}", status.value)).help =
                Some("it is one of 301, 302, 303, 307, 308".to_owned());
            return None;
        }
        out.status = u16::try_from(status.value).ok()?;
    }
    match fields.read("path", |node, path| new_path(node, path, reader)) {
        Some(PathRewrite::Full(full)) => out.uri = Some(full),
        Some(PathRewrite::Prefix(prefix)) => out.prefix_rewrite = Some(prefix),
        _ => {}
    }
    fields.close(reader);
    Some(out)
}

/// Source: Gateway API `HTTPPathModifier`.
fn new_path(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<PathRewrite> {
    let mut fields = reader.fields(node, path)?;
    let words = [("ReplaceFullPath", true), ("ReplacePrefixMatch", false)];
    let full = fields.read("type", |node, path| reader.word(node, path, &words));
    if full.is_none() && !fields.seen("type") {
        reader.missing(&fields, "type");
    }
    let text = |fields: &mut Fields<'_>, name, reader: &mut Reader<'_>| -> Option<At<String>> {
        fields.read(name, |node, path| reader.text(node, path))
    };
    let whole = text(&mut fields, "replaceFullPath", reader);
    let prefix = text(&mut fields, "replacePrefixMatch", reader);
    fields.close(reader);
    match (full?, whole, prefix) {
        (true, Some(whole), None) => Some(PathRewrite::Full(whole.value)),
        (false, None, Some(prefix)) => Some(PathRewrite::Prefix(prefix.value)),
        (full, ..) => {
            let field = if full { "replaceFullPath" } else { "replacePrefixMatch" };
            reader.invalid(node.at, format!("{path} needs {field}, and nothing else beside its type"));
            None
        }
    }
}
