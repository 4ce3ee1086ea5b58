//! Istio `VirtualService`: where requests to a host go.
//!
//! Matches and policies are read straight into the configuration's own types; what depends on who asks (gateways, source
//! labels, ports, which cluster a destination is) stays as written and is settled in `compile/route.rs`.
//! Source: `istio.networking.v1.VirtualService`.

use std::time::Duration;

use mesh_core::config::{Fault, HeaderChanges, Labels, Name, PathRewrite, RetryPolicy, RouteMatch};

use super::{
    read::{Fields, Reader},
    yaml::{At, Node, Spot},
};

mod action;
mod bytes;
mod matches;
mod policy;

pub use action::{DelegateTo, Destination, HttpAction, MirrorTo, RedirectTo};
pub use bytes::{ByteMatch, ByteRoute};
pub(crate) use policy::default_retries;

/// A `VirtualService`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VirtualService {
    /// The hosts meant; short names are of the object's namespace. Empty is an object that others delegate to.
    pub hosts: Vec<At<String>>,
    /// `mesh` (also when empty), and gateways as `name` or `namespace/name`.
    pub gateways: Vec<At<String>>,
    /// In order, the first that matches counts.
    pub http: Vec<HttpRoute>,
    /// At gateways: connections by the name in the TLS handshake, which is not ended there.
    pub tls: Vec<ByteRoute>,
    /// At gateways: any other connections.
    pub tcp: Vec<ByteRoute>,
    /// Who may see it.
    pub export_to: Vec<String>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRoute {
    /// Where it is written.
    pub at: At<()>,
    /// Its name; may be empty.
    pub name: String,
    /// Any of these; empty is every request.
    pub matches: Vec<HttpMatch>,
    /// What to do.
    pub action: HttpAction,
    /// New path.
    pub path_rewrite: Option<PathRewrite>,
    /// New host.
    pub host_rewrite: Option<String>,
    /// Changed headers.
    pub headers: HeaderChanges,
    /// Who gets copies.
    pub mirrors: Vec<MirrorTo>,
    /// `None` is no limit.
    pub timeout: Option<Duration>,
    /// Retries, Istio's default where the object is silent; `None` is none.
    pub retry: Option<RetryPolicy>,
    /// The object said something of retries.
    pub retry_given: bool,
    /// Injected faults.
    pub fault: Option<Fault>,
    /// The status for destinations that are not there; 0 is 503. The Gateway API demands 500.
    pub no_cluster_status: u16,
    /// Whose rule it is, when not that of the object it stands in: `http-route/default/reviews`.
    pub origin: Option<Name>,
}

/// One of the conditions of a rule; all its parts must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpMatch {
    /// Where it is written.
    pub at: At<()>,
    /// Its name; may be empty.
    pub name: String,
    /// What a request must look like.
    pub request: RouteMatch,
    /// Only callers at these gateways (or `mesh`); `None` is those of the object.
    pub gateways: Option<Vec<At<String>>>,
    /// Only this port.
    pub port: Option<u16>,
    /// Only callers with these labels.
    pub source_labels: Labels,
    /// Only callers in this namespace; empty is any.
    pub source_namespace: String,
}

impl HttpMatch {
    /// Does every request match, of those callers it is for?
    pub fn is_catch_all(&self) -> bool {
        action::is_catch_all(&self.request)
    }

    /// Is it for every caller and port?
    pub fn is_for_all(&self) -> bool {
        self.gateways.is_none()
            && self.port.is_none()
            && self.source_labels.is_empty()
            && self.source_namespace.is_empty()
    }
}

impl VirtualService {
    pub(crate) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        let hosts = fields.take("hosts");
        let mut out = Self {
            hosts: hosts.as_ref().map(|(node, path)| reader.texts(node, path)).unwrap_or_default(),
            gateways: fields.read("gateways", |node, path| Some(reader.texts(node, path))).unwrap_or_default(),
            ..Self::default()
        };
        if let Some((node, path)) = hosts
            && out.hosts.is_empty()
        {
            reader.invalid(node.at, format!("{path} is empty")).help =
                Some("name at least one host, or leave it out of an object that others delegate to".to_owned());
        }
        if hosts_left_out(fields) && !out.gateways.is_empty() {
            let at = out.gateways.first().map_or(fields.at, |gateway| gateway.at);
            reader.invalid(at, "spec.gateways: an object that others delegate to has no gateways".to_owned()).help =
                Some("it serves where the object does that delegates to it; name hosts, or remove this".to_owned());
        }
        let mesh = out.gateways.is_empty() || out.gateways.iter().any(|gateway| gateway.value == "mesh");
        for (n, host) in out.hosts.iter().enumerate() {
            if host.value == "*" && mesh {
                reader.invalid(host.at, "spec.hosts cannot be * in the mesh".to_owned()).help =
                    Some("name the hosts, or bind it to a gateway with spec.gateways".to_owned());
            }
            if out.hosts.iter().take(n).any(|other| other == host) {
                reader.invalid(host.at, format!("spec.hosts names {:?} twice", host.value));
            }
        }
        let http = fields.take("http");
        if let Some((node, path)) = &http {
            for (node, path) in reader.list(node, path) {
                out.http.extend(http_route(node, &path, reader));
            }
        }
        let other = fields.seen("tcp") || fields.seen("tls");
        if out.gateways.iter().any(|gateway| gateway.value != "mesh") {
            out.tls = bytes::read("tls", fields, reader);
            out.tcp = bytes::read("tcp", fields, reader);
        } else {
            let why = "only HTTP and gRPC requests of programs are routed; other connections are at gateways";
            fields.ignored(reader, &["tcp", "tls"], why);
        }
        if http.is_none() && !other {
            reader.missing(fields, "http");
        }
        out.check_delegation(reader);
        out.export_to = super::export_to(fields, reader);
        out
    }

    /// Do others delegate to it? Then it has no hosts of its own.
    pub fn is_delegate(&self) -> bool {
        self.hosts.is_empty()
    }

    /// One level only, as in Istio.
    fn check_delegation(&self, reader: &mut Reader<'_>) {
        if !self.is_delegate() {
            return;
        }
        for rule in &self.http {
            if let HttpAction::Delegate(to) = &rule.action {
                reader.invalid(to.name.at, "an object without hosts cannot delegate further".to_owned()).help =
                    Some("name hosts if it is no delegate; else write the rules of the other here".to_owned());
            }
        }
    }
}

fn hosts_left_out(fields: &Fields<'_>) -> bool {
    !fields.seen("hosts")
}

fn http_route(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<HttpRoute> {
    let mut fields = reader.fields(node, path)?;
    let name = fields.read("name", |node, path| reader.text(node, path)).map(|at| at.value).unwrap_or_default();
    let mut matches = Vec::new();
    if let Some((node, path)) = fields.take("match") {
        for (node, path) in reader.list(node, &path) {
            matches.extend(matches::read(node, &path, reader));
        }
    }
    let headers = fields.take("headers").map(|(node, path)| policy::headers(node, &path, reader)).unwrap_or_default();
    let action = action::read(&mut fields, reader);
    let mirrors = action::mirrors(&mut fields, reader);
    let mut path_rewrite = None;
    let mut host_rewrite = headers.1;
    if let Some((node, path)) = fields.take("rewrite") {
        let (new_path, new_host) = policy::rewrite(node, &path, reader);
        path_rewrite = new_path;
        host_rewrite = new_host.or(host_rewrite);
        if matches!(action, Some(HttpAction::Redirect(_))) {
            reader.invalid(node.at, format!("{path} cannot be set with redirect"));
        }
    }
    let timeout = fields.read("timeout", |node, path| reader.duration(node, path)).filter(|time| !time.is_zero());
    let retries = fields.take("retries");
    let retry_given = retries.is_some();
    let retry = match retries {
        Some((node, path)) => policy::retries(node, &path, reader),
        None => Some(default_retries()),
    };
    let fault = fields.read("fault", |node, path| policy::fault(node, path, reader));
    fields.ignored(reader, &["corsPolicy"], "CORS is not answered by the mesh yet; the application has to");
    if let Some((at, _, path)) = fields.take_entry("websocketUpgrade") {
        reader.deprecated(at, format!("{path} has no effect"), "remove it");
    }
    fields.close(reader);
    Some(HttpRoute {
        at: mark(node.at),
        name,
        matches,
        action: action?,
        path_rewrite,
        host_rewrite,
        headers: headers.0,
        mirrors,
        timeout,
        retry,
        retry_given,
        fault,
        no_cluster_status: 0,
        origin: None,
    })
}

pub(in crate::kinds) fn mark(at: Spot) -> At<()> {
    At { value: (), at }
}
