//! What a rule does: destinations with weights, a redirect, or an answer.
//!
//! Source: Istio `HTTPRouteDestination`, `HTTPRedirect`, `HTTPDirectResponse`.

use base64::Engine as _;
use mesh_core::config::{DirectResponse, Fraction, HeaderChanges, PathMatch, RouteMatch};

use super::policy;
use crate::{
    diagnostic::{Level, codes},
    kinds::{
        destination_rule::port_number,
        read::{Fields, Reader},
        yaml::{At, Node},
    },
};

/// What a rule does.
#[derive(Clone, Debug, PartialEq)]
pub enum HttpAction {
    /// Send it on, by weight.
    Route(Vec<Destination>),
    /// Send the caller elsewhere.
    Redirect(RedirectTo),
    /// Answer it here.
    DirectResponse(DirectResponse),
    /// Do what another object says.
    Delegate(DelegateTo),
}

/// The `VirtualService` without hosts that goes on where a rule leaves off. Source: Istio `Delegate`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DelegateTo {
    /// Its name.
    pub name: At<String>,
    /// Its namespace; `None` is that of the object.
    pub namespace: Option<String>,
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq)]
pub struct Destination {
    /// The host; short names are of the object's namespace.
    pub host: At<String>,
    /// Short names are of this namespace instead; the Gateway API says it of every destination.
    pub namespace: Option<String>,
    /// A subset of its destination rule.
    pub subset: Option<At<String>>,
    /// The service's port; `None` is its only one, else the one the request came for.
    pub port: Option<u16>,
    /// Its share among several.
    pub weight: u32,
    /// Changed headers.
    pub headers: HeaderChanges,
    /// New host, by a change of `:authority` or `host`.
    pub host_rewrite: Option<String>,
}

/// Who gets copies of requests.
#[derive(Clone, Debug, PartialEq)]
pub struct MirrorTo {
    /// Its host, subset and port; the rest does not count.
    pub destination: Destination,
    /// Of which share; `None` is all.
    pub fraction: Option<Fraction>,
}

/// Where a caller is sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RedirectTo {
    /// 301 unless set.
    pub status: u16,
    /// New scheme.
    pub scheme: Option<String>,
    /// New host.
    pub authority: Option<String>,
    /// New port.
    pub port: Option<u16>,
    /// The port the request came for. `derivePort: FROM_REQUEST_PORT`.
    pub request_port: bool,
    /// The whole path.
    pub uri: Option<String>,
    /// Or what the matched prefix becomes.
    pub prefix_rewrite: Option<String>,
}

/// The action among the fields of a rule; `None` when faulty.
pub(super) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Option<HttpAction> {
    let route = fields.take("route");
    let redirect = fields.take("redirect");
    let direct = fields.take("directResponse");
    let delegate = fields.take("delegate");
    let given: Vec<_> = [&route, &redirect, &direct, &delegate].into_iter().flatten().collect();
    match given.as_slice() {
        [] => {
            reader.missing(fields, "route");
            return None;
        }
        [_] => {}
        [_, (node, path), ..] => {
            reader.invalid(
                node.at,
                format!("{path}: only one of route, redirect, directResponse and delegate can be set"),
            );
            return None;
        }
    }
    if let Some((node, path)) = redirect {
        return redirect_to(node, &path, reader).map(HttpAction::Redirect);
    }
    if let Some((node, path)) = direct {
        return direct_response(node, &path, reader).map(HttpAction::DirectResponse);
    }
    if let Some((node, path)) = delegate {
        return delegate_to(node, &path, reader).map(HttpAction::Delegate);
    }
    let (node, path) = route?;
    several(node, &path, reader).map(HttpAction::Route)
}

/// The destinations of a rule that has nothing but them.
pub(super) fn destinations(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Option<Vec<Destination>> {
    let Some((node, path)) = fields.take("route") else {
        reader.missing(fields, "route");
        return None;
    };
    several(node, &path, reader)
}

fn several(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Vec<Destination>> {
    let items = reader.list(node, path);
    if items.is_empty() {
        reader.invalid(node.at, format!("{path} has no destination"));
        return None;
    }
    let count = items.len();
    let read: Vec<_> = items.into_iter().filter_map(|(node, path)| destination(node, &path, reader)).collect();
    // A faulty destination is told already; half a split would only add confusion.
    if read.len() < count {
        return None;
    }
    if count > 1 && read.iter().all(|destination| destination.weight == 0) {
        reader.invalid(node.at, format!("{path}: every weight is 0, so nothing would ever be sent")).help =
            Some("give at least one destination a weight".to_owned());
        return None;
    }
    Some(read)
}

fn delegate_to(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<DelegateTo> {
    let mut fields = reader.fields(node, path)?;
    let name = fields.read("name", |node, path| reader.text(node, path));
    if name.is_none() && !fields.seen("name") {
        reader.missing(&fields, "name");
    }
    let namespace = fields.read("namespace", |node, path| reader.text(node, path)).map(|at| at.value);
    fields.close(reader);
    Some(DelegateTo { name: name?, namespace: namespace.filter(|namespace| !namespace.is_empty()) })
}

fn destination(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Destination> {
    let mut fields = reader.fields(node, path)?;
    let weight = fields.take("weight").map(|(node, path)| weight(node, &path, reader));
    let (headers, host_rewrite) =
        fields.take("headers").map(|(node, path)| policy::headers(node, &path, reader)).unwrap_or_default();
    let found = fields.take("destination");
    if found.is_none() {
        reader.missing(&fields, "destination");
    }
    let at = found.and_then(|(node, path)| place(node, &path, reader));
    fields.close(reader);
    let (host, subset, port) = at?;
    // A faulty weight is a faulty destination; an absent one is 0, which counts among several only.
    let weight = weight.unwrap_or(Some(0))?;
    Some(Destination { host, namespace: None, subset, port, weight, headers, host_rewrite })
}

type Place = (At<String>, Option<At<String>>, Option<u16>);

fn place(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Place> {
    let mut fields = reader.fields(node, path)?;
    let host = fields.read("host", |node, path| reader.text(node, path));
    if host.is_none() && !fields.seen("host") {
        reader.missing(&fields, "host");
    }
    let subset = fields.read("subset", |node, path| reader.text(node, path)).filter(|at| !at.is_empty());
    let port = fields.read("port", |node, path| port_number(node, path, reader));
    fields.close(reader);
    Some((host?, subset, port))
}

/// Who gets copies of a rule's requests: `mirrors`, or `mirror` with its percentage. A share of 0 is nobody.
pub(super) fn mirrors(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Vec<MirrorTo> {
    let mut out = Vec::new();
    let mut add = |place: Option<Place>, fraction: Option<Fraction>| {
        let Some((host, subset, port)) = place else { return };
        let (headers, host_rewrite) = (HeaderChanges::default(), None);
        let destination = Destination { host, namespace: None, subset, port, weight: 0, headers, host_rewrite };
        if fraction.is_none_or(|fraction| fraction.numerator > 0) {
            out.push(MirrorTo { destination, fraction });
        }
    };
    let old = fields.take("mirrorPercent");
    let percentage = fields.take("mirrorPercentage");
    let fraction = match (percentage, old) {
        (Some((node, path)), _) => policy::percent_value(node, &path, reader),
        (None, Some((node, path))) => {
            let value = reader.percent(node, &path);
            if let Some(value) = value {
                let help = format!("write mirrorPercentage: {{value: {value}}}");
                reader.deprecated(node.at, format!("{path} is deprecated"), &help);
            }
            value.map(Fraction::percent)
        }
        (None, None) => None,
    };
    if let Some((node, path)) = fields.take("mirror") {
        add(place(node, &path, reader), fraction);
    }
    if let Some((node, path)) = fields.take("mirrors") {
        for (node, path) in reader.list(node, &path) {
            let Some(mut fields) = reader.fields(node, &path) else { continue };
            let found = fields.take("destination");
            if found.is_none() {
                reader.missing(&fields, "destination");
            }
            let to = found.and_then(|(node, path)| place(node, &path, reader));
            let share = fields.take("percentage").and_then(|(node, path)| policy::percent_value(node, &path, reader));
            fields.close(reader);
            add(to, share);
        }
    }
    out
}

fn weight(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<u32> {
    if let crate::kinds::yaml::Value::Int(value) = node.value
        && value < 0
    {
        reader.invalid(node.at, format!("{path} is {value}; a weight cannot be negative")).help =
            Some("weights are shares of their sum: 0 sends nothing, 80 and 20 send four of five".to_owned());
        return None;
    }
    reader.u32(node, path)
}

fn redirect_to(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<RedirectTo> {
    let mut fields = reader.fields(node, path)?;
    let text = |fields: &mut Fields<'_>, reader: &mut Reader<'_>, name| {
        fields.read(name, |node, path| reader.text(node, path)).map(|at| at.value)
    };
    let mut out = RedirectTo { status: 301, ..RedirectTo::default() };
    out.uri = text(&mut fields, reader, "uri");
    out.prefix_rewrite = text(&mut fields, reader, "prefixRewrite");
    out.authority = text(&mut fields, reader, "authority");
    out.scheme = text(&mut fields, reader, "scheme");
    out.port = fields.read("port", |node, path| reader.port(node, path));
    let ports = [("FROM_PROTOCOL_DEFAULT", false), ("FROM_REQUEST_PORT", true)];
    out.request_port = fields.read("derivePort", |node, path| reader.word(node, path, &ports)).unwrap_or_default();
    if let Some((node, path)) = fields.take("redirectCode") {
        let status = reader.integer(node, &path, 300, 399)?;
        if ![301, 302, 303, 307, 308].contains(&status.value) {
            reader.invalid(node.at, format!("{path} cannot be {}", status.value)).help =
                Some("it is one of 301, 302, 303, 307, 308".to_owned());
            return None;
        }
        out.status = status.value as u16;
    }
    if out.uri.is_some() && out.prefix_rewrite.is_some() {
        reader.invalid(node.at, format!("{path}: uri and prefixRewrite exclude each other"));
    }
    fields.close(reader);
    Some(out)
}

fn direct_response(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<DirectResponse> {
    let mut fields = reader.fields(node, path)?;
    let status = fields.read("status", |node, path| reader.integer(node, path, 200, 599));
    if status.is_none() && !fields.seen("status") {
        reader.missing(&fields, "status");
    }
    let mut body = String::new();
    if let Some((node, path)) = fields.take("body")
        && let Some(mut fields) = reader.fields(node, &path)
    {
        if let Some(text) = fields.read("string", |node, path| reader.text(node, path)) {
            body = text.value;
        }
        if let Some(text) = fields.read("bytes", |node, path| reader.text(node, path)) {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text.as_bytes()).ok();
            match bytes.and_then(|bytes| String::from_utf8(bytes).ok()) {
                Some(decoded) => body = decoded,
                None => {
                    let message = format!("{path}.bytes is no base64 of a UTF-8 text");
                    reader.report(codes::INVALID, Level::Error, text.at, message);
                }
            }
        }
        fields.close(reader);
    }
    fields.close(reader);
    Some(DirectResponse { status: status?.value as u16, body })
}

/// Does every request match? Source: Istio `isCatchAllMatch`.
pub(super) fn is_catch_all(request: &RouteMatch) -> bool {
    let any_path = match &request.path {
        PathMatch::Prefix { value, .. } => value.is_empty() || value == "/",
        PathMatch::Regex(regex) => regex.as_str() == ".*",
        _ => false,
    };
    any_path && request.headers.is_empty() && request.query.is_empty()
}
