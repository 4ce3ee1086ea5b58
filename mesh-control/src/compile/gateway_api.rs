//! The Gateway API in Istio's words: a gateway of one server for each listener, a virtual service for each host of what routes join.
//!
//! Several routes of one host are one virtual service whose rules stand in the order the Gateway API demands, wherever they were
//! written: exact paths before prefixes before patterns, the longer first, then by method, headers and query, then by age.
//! Source: istiod `pilot/pkg/config/kube/gateway`.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::config::PathMatch;

use super::{route::origin, specificity};
use crate::kinds::{
    ApiByteRoute, ApiListener, ApiParent, ApiRoute, At, ByteMatch, ByteRoute, Destination, Gateway, HttpAction,
    HttpMatch, HttpRoute, Key, Kind, Object, ParentKind, Server, ServerTls, Spec, VirtualService, gateway_labels,
};

/// No service has this host: what a route must not name answers like what is not there.
const NOT_GRANTED: &str = "not-granted.invalid";

/// What one virtual service is for.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Place {
    /// `namespace/gateway~listener`; `None` is the mesh.
    gateway: Option<String>,
    host: String,
    /// Whose clients: of all, or of a namespace that routes its own requests to a service of another.
    consumer: Option<String>,
}

/// A rule and the route it is from.
struct Placed<'a> {
    object: &'a Arc<Object>,
    index: usize,
    rule: HttpRoute,
}

/// Gateways and virtual services that say what the Gateway API's objects say.
pub(super) fn derived(objects: &[Arc<Object>], domain: &str) -> Vec<Arc<Object>> {
    let mut places: BTreeMap<Place, Vec<Placed<'_>>> = BTreeMap::new();
    let mut out = Vec::new();
    for object in objects {
        match &object.spec {
            Spec::KubeGateway(gateway) => {
                out.extend(gateway.listeners.iter().map(|listener| Arc::new(server(objects, object, listener))));
            }
            Spec::ApiRoute(route) => {
                for parent in &route.parents {
                    for place in places_of(objects, object, route, parent, domain) {
                        let at_gateway = place.gateway.is_some();
                        let rules = places.entry(place).or_default();
                        for (index, rule) in route.rules.iter().enumerate() {
                            let rule = settled(objects, object, rule, parent, at_gateway);
                            rules.push(Placed { object, index, rule });
                        }
                    }
                }
            }
            Spec::ApiByteRoute(route) => out.extend(byte_route(objects, object, route).map(Arc::new)),
            _ => {}
        }
    }
    out.extend(places.into_iter().filter_map(|(place, rules)| merged(place, rules)).map(Arc::new));
    out
}

fn listener_name(gateway: &str, listener: &str) -> String {
    format!("{gateway}~{listener}")
}

fn server(objects: &[Arc<Object>], object: &Object, listener: &ApiListener) -> Object {
    let host = listener.hostname.clone().unwrap_or_else(|| At { value: "*".to_owned(), at: listener.name.at });
    let mut tls = listener.tls.clone();
    if let Some(ServerTls::Own(tls)) = &mut tls {
        // Of another namespace only what that namespace lets be named.
        tls.credentials.retain(|name| may_show(objects, object, name));
    }
    let server = Server {
        port: listener.port,
        name: listener.name.value.clone(),
        protocol: listener.protocol,
        raw: listener.raw,
        hosts: vec![host],
        https_redirect: false,
        tls,
    };
    let name = listener_name(&object.key.name, &listener.name);
    Object {
        key: Key::new(Kind::Gateway, &object.key.namespace, name),
        spec: Spec::Gateway(Gateway {
            selector: gateway_labels(&object.key.name),
            servers: vec![server],
            own_namespace: true,
        }),
        ..object.clone()
    }
}

/// May a gateway show the certificate of this name?
fn may_show(objects: &[Arc<Object>], gateway: &Object, name: &str) -> bool {
    let Some((namespace, name)) = name.split_once('/') else { return true };
    namespace == gateway.key.namespace
        || objects.iter().any(|other| match &other.spec {
            Spec::ReferenceGrant(grants) if other.key.namespace == namespace => {
                grants.iter().any(|grant| grant.lets_name("Gateway", &gateway.key.namespace, "Secret", name))
            }
            _ => false,
        })
}

/// Where a route's rules go for one of its parents.
fn places_of(
    objects: &[Arc<Object>],
    object: &Object,
    route: &ApiRoute,
    parent: &ApiParent,
    domain: &str,
) -> Vec<Place> {
    let own = &object.key.namespace;
    let namespace = parent.namespace.as_ref().unwrap_or(own);
    let consumer = (namespace != own).then(|| own.clone());
    let in_mesh = |host: String| Place { gateway: None, host, consumer: consumer.clone() };
    match parent.kind {
        ParentKind::Service => vec![in_mesh(format!("{}.{namespace}.svc.{domain}", parent.name.value))],
        ParentKind::ServiceEntry => {
            let entry = objects.iter().find_map(|other| match &other.spec {
                Spec::ServiceEntry(entry) if is(other, namespace, &parent.name) => Some(entry),
                _ => None,
            });
            let hosts = entry.into_iter().flat_map(|entry| &entry.hosts);
            hosts.map(|host| in_mesh(host.to_ascii_lowercase())).collect()
        }
        ParentKind::Gateway => {
            let gateway = objects.iter().find_map(|other| match &other.spec {
                Spec::KubeGateway(gateway) if is(other, namespace, &parent.name) => Some(gateway),
                _ => None,
            });
            let mut out = Vec::new();
            for listener in gateway.into_iter().flat_map(|gateway| &gateway.listeners) {
                let asked_for = parent.section.as_ref().is_none_or(|section| section.value == listener.name.value)
                    && parent.port.is_none_or(|port| port == listener.port);
                if !asked_for || !(listener.from_all || namespace == own) {
                    continue;
                }
                let gateway = Some(format!("{namespace}/{}", listener_name(&parent.name, &listener.name)));
                let served = listener.hostname.as_ref().map_or("*", |host| host.as_str()).to_ascii_lowercase();
                let hosts: BTreeSet<String> = match route.hostnames.as_slice() {
                    [] => [served].into(),
                    hosts => hosts.iter().filter_map(|host| narrower(&served, &host.to_ascii_lowercase())).collect(),
                };
                out.extend(hosts.into_iter().map(|host| Place { gateway: gateway.clone(), host, consumer: None }));
            }
            out
        }
    }
}

/// The virtual service that says what a route of connections says, at the gateways it joins.
fn byte_route(objects: &[Arc<Object>], object: &Object, route: &ApiByteRoute) -> Option<Object> {
    let own = &object.key.namespace;
    let mut gateways = Vec::new();
    for parent in &route.parents {
        let namespace = parent.namespace.as_ref().unwrap_or(own);
        let found = objects.iter().find_map(|other| match &other.spec {
            Spec::KubeGateway(gateway) if is(other, namespace, &parent.name) => Some(gateway),
            _ => None,
        });
        for listener in found.into_iter().flat_map(|gateway| &gateway.listeners) {
            let asked_for = parent.section.as_ref().is_none_or(|section| section.value == listener.name.value)
                && parent.port.is_none_or(|port| port == listener.port);
            if asked_for && (listener.from_all || namespace == own) {
                let name = format!("{namespace}/{}", listener_name(&parent.name, &listener.name));
                gateways.push(At { value: name, at: parent.name.at });
            }
        }
    }
    let at = gateways.first()?.at;
    let every = || vec![At { value: "*".to_owned(), at }];
    let hosts = if route.hostnames.is_empty() { every() } else { route.hostnames.clone() };
    let mut spec = VirtualService { hosts: hosts.clone(), gateways, ..VirtualService::default() };
    let (at, mut destinations) = route.rules.first()?.clone();
    for destination in &mut destinations {
        if !may_name(objects, object, destination) {
            destination.host.value = NOT_GRANTED.to_owned();
        }
    }
    if object.key.kind == Kind::TlsRoute {
        let matches = vec![ByteMatch { sni_hosts: hosts, ..ByteMatch::default() }];
        spec.tls.push(ByteRoute { at, matches, destinations: destinations.clone() });
    }
    // Where TLS ends at the listener there is nothing left to tell by.
    spec.tcp.push(ByteRoute { at, matches: Vec::new(), destinations });
    Some(Object { spec: Spec::VirtualService(spec), ..object.clone() })
}

fn is(object: &Object, namespace: &str, name: &str) -> bool {
    object.key.namespace == namespace && object.key.name == name
}

/// What two hosts, each perhaps a pattern, have in common.
fn narrower(served: &str, host: &str) -> Option<String> {
    if specificity(served, host).is_some() {
        return Some(host.to_owned());
    }
    specificity(host, served).map(|_| served.to_owned())
}

/// A rule as it counts for a parent: on its port, without destinations it must not name.
fn settled(
    objects: &[Arc<Object>],
    object: &Object,
    rule: &HttpRoute,
    parent: &ApiParent,
    at_gateway: bool,
) -> HttpRoute {
    let mut rule = rule.clone();
    rule.origin = Some(origin(&object.key));
    if let (Some(port), false) = (parent.port, at_gateway) {
        if rule.matches.is_empty() {
            rule.matches.push(HttpMatch { at: rule.at, ..HttpMatch::default() });
        }
        for condition in &mut rule.matches {
            condition.port = Some(port);
        }
    }
    // Between namespaces of one mesh no permission is needed; from a gateway it is.
    if at_gateway {
        let hold_back = |destination: &mut Destination| {
            if !may_name(objects, object, destination) {
                destination.host.value = NOT_GRANTED.to_owned();
            }
        };
        if let HttpAction::Route(destinations) = &mut rule.action {
            destinations.iter_mut().for_each(hold_back);
        }
        rule.mirrors.iter_mut().map(|mirror| &mut mirror.destination).for_each(hold_back);
    }
    rule
}

/// May a route name a service of another namespace?
pub(crate) fn may_name(objects: &[Arc<Object>], route: &Object, destination: &Destination) -> bool {
    let own = &route.key.namespace;
    let Some(namespace) = destination.namespace.as_ref().filter(|namespace| *namespace != own) else { return true };
    objects.iter().any(|other| match &other.spec {
        Spec::ReferenceGrant(grants) if other.key.namespace == *namespace => {
            grants.iter().any(|grant| grant.lets(route.key.kind.as_str(), own, &destination.host))
        }
        _ => false,
    })
}

/// The virtual service of a place.
fn merged(place: Place, mut rules: Vec<Placed<'_>>) -> Option<Object> {
    rules.sort_by_cached_key(|placed| {
        (rank(&placed.rule), placed.object.created, placed.object.key.clone(), placed.index)
    });
    let oldest = rules.iter().map(|placed| placed.object).min_by_key(|object| (object.created, &object.key))?;
    // Two that were merged differ when any of those they are made of does.
    let raw = rules.iter().map(|placed| (*placed.object.raw).clone()).collect();
    let mut namespace = oldest.key.namespace.clone();
    let mut export_to = vec!["*".to_owned()];
    if let Some(consumer) = place.consumer {
        namespace = consumer;
        export_to = vec![".".to_owned()];
    }
    let at = rules.first().map(|placed| placed.rule.at.at).unwrap_or_default();
    let text = |value: String| At { value, at };
    let spec = VirtualService {
        hosts: vec![text(place.host)],
        gateways: place.gateway.into_iter().map(text).collect(),
        http: rules.into_iter().map(|placed| placed.rule).collect(),
        export_to,
        ..VirtualService::default()
    };
    Some(Object {
        key: Key::new(oldest.key.kind, namespace, &oldest.key.name),
        spec: Spec::VirtualService(spec),
        raw: Arc::new(raw),
        ..(**oldest).clone()
    })
}

/// Where a rule stands among others: the lower first.
fn rank(rule: &HttpRoute) -> (u8, Reverse<usize>, bool, Reverse<usize>, Reverse<usize>) {
    let Some(condition) = rule.matches.first() else { return (3, Reverse(0), true, Reverse(0), Reverse(0)) };
    let (kind, length) = match &condition.request.path {
        // What takes everything comes after patterns, or they would never be reached.
        _ if condition.is_catch_all() => (3, 0),
        PathMatch::Exact { value, .. } => (0, value.len()),
        PathMatch::Prefix { value, .. } | PathMatch::SegmentPrefix { value, .. } => {
            (1, value.trim_end_matches('/').len())
        }
        PathMatch::Regex(regex) => (2, regex.as_str().len()),
    };
    let headers = &condition.request.headers;
    let by_method = headers.iter().any(|header| &*header.name == ":method");
    let count = headers.iter().filter(|header| &*header.name != ":method").count();
    (kind, Reverse(length), !by_method, Reverse(count), Reverse(condition.request.query.len()))
}
