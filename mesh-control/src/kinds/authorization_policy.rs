//! Istio `AuthorizationPolicy`: who may ask what of which workloads.
//!
//! Source: `istio.security.v1beta1.AuthorizationPolicy`. Every condition, whether it is written under `from`, `to` or `when`, is read
//! into one form: what is looked at, the values of which one must match, and those of which none may. What could never
//! match, or means nothing, is told here, since a policy that says less than it seems to is a door left open.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_core::config::Labels;

use super::{
    read::{Fields, Reader},
    yaml::{At, Node, Spot},
};
use crate::diagnostic::{Level, codes};

/// An `AuthorizationPolicy`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuthorizationPolicy {
    /// Labels of the workloads meant; empty is the whole namespace, in the root namespace the whole mesh.
    pub selector: Labels,
    /// Services whose workloads are meant, in place of the selector. `targetRefs` of the kind `Service`.
    pub services: Vec<String>,
    /// What a match means.
    pub action: AuthzAction,
    /// Who is asked, of the action `CUSTOM`. `provider.name`.
    pub provider: Option<String>,
    /// Any of these matches; none at all match nothing.
    pub rules: Vec<AuthzRule>,
}

/// Source: `AuthorizationPolicy.Action`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AuthzAction {
    /// Who matches may pass; who matches no policy of this kind may not.
    #[default]
    Allow,
    /// Who matches may not pass.
    Deny,
    /// Who matches is told of.
    Audit,
    /// Whether who matches may pass is for a provider to say.
    Custom,
}

/// Matches if any of `from`, any of `to` and all of `when` do; lists that are empty match everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuthzRule {
    /// Who asks.
    pub from: Vec<Vec<Term>>,
    /// What is asked.
    pub to: Vec<Vec<Term>>,
    /// What else must be so.
    pub when: Vec<Term>,
    /// Its first line.
    pub line: u32,
}

/// One condition.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// What is looked at.
    pub attribute: Attribute,
    /// One of these matches; empty is any.
    pub values: Vec<String>,
    /// None of these matches.
    pub not_values: Vec<String>,
}

/// What a condition looks at. Source: Istio `source`, `operation`, and the keys of `when`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Attribute {
    /// `source.principal`: `cluster.local/ns/default/sa/reviews`.
    Principal,
    /// `source.namespace`.
    Namespace,
    /// `source.serviceAccount`: `NAME`, of the policy's namespace, or `NAMESPACE/NAME`.
    ServiceAccount,
    /// `source.trustDomain`.
    TrustDomain,
    /// `source.ip`.
    SourceIp,
    /// `remote.ip`.
    RemoteIp,
    /// `request.auth.principal`: `ISSUER/SUBJECT`.
    RequestPrincipal,
    /// `request.auth.audiences`.
    Audience,
    /// `request.auth.presenter`.
    Presenter,
    /// `request.auth.claims[a][b]`.
    Claim(Vec<String>),
    /// `request.headers[name]`.
    Header(String),
    /// `operation.hosts`.
    Host,
    /// `operation.methods`.
    Method,
    /// `operation.paths`.
    Path,
    /// `destination.port`, `operation.ports`.
    DestinationPort,
    /// `destination.ip`.
    DestinationIp,
    /// `connection.sni`.
    ServerName,
    /// `experimental.envoy.filters.FILTER[KEY]`.
    Filter(String, String),
}

impl Attribute {
    /// Does it tell who the caller is? A provider is asked before anybody knows.
    fn is_identity(&self) -> bool {
        matches!(
            self,
            Self::Principal
                | Self::Namespace
                | Self::ServiceAccount
                | Self::TrustDomain
                | Self::RequestPrincipal
                | Self::Audience
                | Self::Presenter
                | Self::Claim(_)
        )
    }

    /// Is it about what is asked, and not about who asks?
    pub(crate) fn is_permission(&self) -> bool {
        matches!(
            self,
            Self::Host
                | Self::Method
                | Self::Path
                | Self::DestinationPort
                | Self::DestinationIp
                | Self::ServerName
                | Self::Filter(..)
        )
    }

    fn of_key(key: &str) -> Option<Self> {
        let bracketed = |prefix: &str| {
            let inside = key.strip_prefix(prefix)?.strip_prefix('[')?.strip_suffix(']')?;
            let names: Vec<String> = inside.split("][").map(str::to_owned).collect();
            names.iter().all(|name| !name.is_empty() && !name.contains(['[', ']'])).then_some(names)
        };
        Some(match key {
            "source.ip" => Self::SourceIp,
            "remote.ip" => Self::RemoteIp,
            "source.namespace" => Self::Namespace,
            "source.principal" => Self::Principal,
            "source.serviceAccount" => Self::ServiceAccount,
            "source.trustDomain" => Self::TrustDomain,
            "request.auth.principal" => Self::RequestPrincipal,
            "request.auth.audiences" => Self::Audience,
            "request.auth.presenter" => Self::Presenter,
            "destination.ip" => Self::DestinationIp,
            "destination.port" => Self::DestinationPort,
            "connection.sni" => Self::ServerName,
            _ if key.starts_with("request.headers") => match bracketed("request.headers")?.as_slice() {
                [name] if http::HeaderName::from_bytes(name.as_bytes()).is_ok() => Self::Header(name.clone()),
                _ => return None,
            },
            _ if key.starts_with("request.auth.claims") => Self::Claim(bracketed("request.auth.claims")?),
            _ => {
                let rest = key.strip_prefix("experimental.envoy.filters.")?;
                let (filter, inside) = rest.split_once('[')?;
                let inside = inside.strip_suffix(']').filter(|inside| !inside.is_empty())?;
                Self::Filter(filter.to_owned(), inside.to_owned())
            }
        })
    }

    /// Why a value could never match, if it could not.
    fn fault(&self, value: &str) -> Option<&'static str> {
        if value.is_empty() {
            return Some("is empty");
        }
        let wildcards = value.matches('*').count();
        match self {
            Self::SourceIp | Self::RemoteIp | Self::DestinationIp => {
                network(value).is_none().then_some("is neither an address nor a range such as 10.0.0.0/8")
            }
            Self::DestinationPort => match value.parse::<u16>() {
                Ok(port) if port > 0 => None,
                _ => Some("is no port number"),
            },
            Self::Path if value.contains(['{', '}']) => template(value).is_none().then_some(
                "is no template: a segment is {*} for any one, or {**} for any rest, once, and no other braces or * stand in it",
            ),
            Self::ServiceAccount if wildcards > 0 => Some("may have no *"),
            Self::ServiceAccount if value.matches('/').count() > 1 => Some("is neither NAME nor NAMESPACE/NAME"),
            Self::RequestPrincipal if value != "*" && !value.contains('/') => Some("is not ISSUER/SUBJECT"),
            Self::Namespace | Self::TrustDomain | Self::RequestPrincipal => None,
            _ if wildcards > 1 || (wildcards == 1 && !value.starts_with('*') && !value.ends_with('*')) => {
                Some("may have one * only, at its beginning or its end")
            }
            _ => None,
        }
    }
}

/// An address, or a range of them.
pub(crate) fn network(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from)).map(|net| net.trunc())
}

/// A path template as a regular expression. Source: Istio `operation.paths`, Envoy `UriTemplateMatchConfig`.
pub(crate) fn template(text: &str) -> Option<String> {
    const ONE: &str = "[a-zA-Z0-9._~%!$&'()+,;:@=-]+";
    const REST: &str = "[a-zA-Z0-9._~%!$&'()+,;:@=/-]*";
    let mut out = String::new();
    let mut rest = false;
    for segment in text.strip_prefix('/')?.split('/') {
        out.push('/');
        match segment {
            "{*}" => out.push_str(ONE),
            "{**}" if !rest => {
                rest = true;
                out.push_str(REST);
            }
            _ if segment.contains(['{', '}', '*']) => return None,
            literal => out.push_str(&regex_syntax_escape(literal)),
        }
    }
    Some(out)
}

/// A text as a regular expression that matches just it.
pub(crate) fn regex_syntax_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

impl AuthorizationPolicy {
    pub(crate) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        let mut out = Self::default();
        if let Some((node, path)) = fields.take("selector")
            && let Some(mut selector) = reader.fields(node, &path)
        {
            out.selector =
                selector.read("matchLabels", |node, path| Some(reader.labels(node, path))).unwrap_or_default();
            selector.close(reader);
        }
        for name in ["targetRef", "targetRefs"] {
            let Some((node, path)) = fields.take(name) else { continue };
            let refs = if name == "targetRef" { vec![(node, path)] } else { reader.list(node, &path) };
            out.services.extend(refs.into_iter().filter_map(|(node, path)| target(node, &path, reader)));
            if !out.selector.is_empty() {
                reader.invalid(node.at, format!("spec.{name} and spec.selector exclude each other"));
            }
        }
        let words = [
            ("ALLOW", AuthzAction::Allow),
            ("DENY", AuthzAction::Deny),
            ("AUDIT", AuthzAction::Audit),
            ("CUSTOM", AuthzAction::Custom),
        ];
        out.action = fields.read("action", |node, path| reader.word(node, path, &words)).unwrap_or_default();
        if let Some((node, path)) = fields.take("provider")
            && let Some(mut provider) = reader.fields(node, &path)
        {
            out.provider = provider.read("name", |node, path| reader.text(node, path)).map(|name| name.value);
            provider.close(reader);
            if out.action != AuthzAction::Custom {
                reader.invalid(node.at, format!("{path} is for the action CUSTOM only"));
            }
        }
        if out.action == AuthzAction::Custom && out.provider.is_none() {
            reader.missing(fields, "provider");
        }
        if let Some((node, path)) = fields.take("rules") {
            for (node, path) in reader.list(node, &path) {
                out.rules.extend(rule(node, &path, out.action, reader));
            }
        }
        if out.rules.is_empty() && out.action != AuthzAction::Allow {
            let message = "spec.rules is missing: a policy of this action without rules never matches".to_owned();
            reader.invalid(fields.at, message).help = Some("write rules: [{}] for every request".to_owned());
        }
        out
    }
}

fn target(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<String> {
    let mut fields = reader.fields(node, path)?;
    let kind = fields.read("kind", |node, path| reader.text(node, path));
    let name = fields.read("name", |node, path| reader.text(node, path));
    fields.skip(&["group", "namespace"]);
    match &kind {
        Some(kind) if kind.value == "Service" => {}
        Some(kind) => reader.unsupported(
            kind.at,
            &format!("{path}.kind {:?}", kind.value),
            "only a Service is taken; gateways let everybody in and leave authorization to the workloads behind",
        ),
        None => reader.missing(&fields, "kind"),
    }
    if name.is_none() {
        reader.missing(&fields, "name");
    }
    fields.close(reader);
    name.map(|name| name.value)
}

fn rule(node: &Node, path: &str, action: AuthzAction, reader: &mut Reader<'_>) -> Option<AuthzRule> {
    let mut fields = reader.fields(node, path)?;
    let mut out = AuthzRule { line: node.at.line, ..AuthzRule::default() };
    if let Some((node, path)) = fields.take("from") {
        for (node, path) in some(node, &path, reader) {
            let Some(mut from) = reader.fields(node, &path) else { continue };
            out.from.extend(from.read("source", |node, path| source(node, path, reader)));
            from.close(reader);
        }
    }
    if let Some((node, path)) = fields.take("to") {
        for (node, path) in some(node, &path, reader) {
            let Some(mut to) = reader.fields(node, &path) else { continue };
            out.to.extend(to.read("operation", |node, path| operation(node, path, reader)));
            to.close(reader);
        }
    }
    if let Some((node, path)) = fields.take("when") {
        for (node, path) in some(node, &path, reader) {
            out.when.extend(condition(node, &path, reader));
        }
    }
    fields.close(reader);
    if action == AuthzAction::Custom {
        let mut terms = out.from.iter().flatten().chain(&out.when);
        if terms.any(|term| term.attribute.is_identity()) {
            let message = format!("{path} asks who the caller is, which a provider is asked before anybody knows");
            reader.invalid(node.at, message).help =
                Some("leave identities to a policy of the action ALLOW or DENY".to_owned());
        }
    }
    Some(out)
}

/// A list that has to have something in it.
fn some<'n>(node: &'n Node, path: &str, reader: &mut Reader<'_>) -> Vec<(&'n Node, String)> {
    let items = reader.list(node, path);
    if items.is_empty() {
        reader.invalid(node.at, format!("{path} is empty")).help = Some("leave it out where any will do".to_owned());
    }
    items
}

fn source(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Vec<Term>> {
    let mut fields = reader.fields(node, path)?;
    let terms = [
        ("principals", "notPrincipals", Attribute::Principal),
        ("requestPrincipals", "notRequestPrincipals", Attribute::RequestPrincipal),
        ("namespaces", "notNamespaces", Attribute::Namespace),
        ("serviceAccounts", "notServiceAccounts", Attribute::ServiceAccount),
        ("trustDomains", "notTrustDomains", Attribute::TrustDomain),
        ("ipBlocks", "notIpBlocks", Attribute::SourceIp),
        ("remoteIpBlocks", "notRemoteIpBlocks", Attribute::RemoteIp),
    ];
    Some(read_terms(&mut fields, terms, reader)).inspect(|_| fields.close(reader))
}

fn operation(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Vec<Term>> {
    let mut fields = reader.fields(node, path)?;
    let terms = [
        ("hosts", "notHosts", Attribute::Host),
        ("ports", "notPorts", Attribute::DestinationPort),
        ("methods", "notMethods", Attribute::Method),
        ("paths", "notPaths", Attribute::Path),
    ];
    Some(read_terms(&mut fields, terms, reader)).inspect(|_| fields.close(reader))
}

fn read_terms<const N: usize>(
    fields: &mut Fields<'_>,
    terms: [(&'static str, &'static str, Attribute); N],
    reader: &mut Reader<'_>,
) -> Vec<Term> {
    let mut out = Vec::new();
    for (name, not_name, attribute) in terms {
        let values = fields.read(name, |node, path| Some(values(node, path, &attribute, reader))).unwrap_or_default();
        let not_values =
            fields.read(not_name, |node, path| Some(self::values(node, path, &attribute, reader))).unwrap_or_default();
        if !values.is_empty() || !not_values.is_empty() {
            out.push(Term { attribute, values, not_values });
        }
    }
    if out.is_empty() {
        let message = format!("{} says nothing", fields.path);
        reader.invalid(fields.at, message).help = Some("leave it out where any will do".to_owned());
    }
    out
}

fn values(node: &Node, path: &str, attribute: &Attribute, reader: &mut Reader<'_>) -> Vec<String> {
    let mut out = Vec::new();
    for (node, path) in some(node, path, reader) {
        let Some(value) = reader.text(node, &path) else { continue };
        if let Some(fault) = attribute.fault(&value) {
            reader.invalid(value.at, format!("{path}: {:?} {fault}", value.value));
            continue;
        }
        lower_case(attribute, &value, value.at, &path, reader);
        out.push(value.value);
    }
    out
}

/// A method in lower case is one nobody sends.
fn lower_case(attribute: &Attribute, value: &At<String>, at: Spot, path: &str, reader: &mut Reader<'_>) {
    if *attribute == Attribute::Method && value.value.chars().any(|c| c.is_ascii_lowercase()) {
        let message = format!("{path}: {:?} is compared as it stands, and methods are in upper case", value.value);
        reader.report(codes::INVALID_WARNING, Level::Warning, at, message);
    }
}

fn condition(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Term> {
    let mut fields = reader.fields(node, path)?;
    let key = fields.read("key", |node, path| reader.text(node, path));
    let attribute = key.as_ref().and_then(|key| Attribute::of_key(key));
    match (&key, &attribute) {
        (None, _) => reader.missing(&fields, "key"),
        (Some(key), None) => {
            reader.invalid(key.at, format!("{path}.key: {:?} is no attribute", key.value)).help = Some(
                "it is one of request.headers[..], source.{ip, namespace, principal, serviceAccount, trustDomain}, remote.ip, \
                 request.auth.{principal, audiences, presenter, claims[..]}, destination.{ip, port}, connection.sni"
                    .to_owned(),
            );
        }
        _ => {}
    }
    let of = attribute.clone().unwrap_or(Attribute::Host);
    let values = fields.read("values", |node, path| Some(values(node, path, &of, reader))).unwrap_or_default();
    let not_values =
        fields.read("notValues", |node, path| Some(self::values(node, path, &of, reader))).unwrap_or_default();
    if values.is_empty() && not_values.is_empty() {
        reader.invalid(fields.at, format!("{path} has neither values nor notValues"));
    }
    fields.close(reader);
    Some(Term { attribute: attribute?, values, not_values })
}
