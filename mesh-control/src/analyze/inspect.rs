//! What `meshctl analyze` looks at beyond what an apply does: things that are allowed and seldom meant, each with Istio's code.
//!
//! None of them refuses an apply; levels are Istio's. Who runs is known from workloads, `WorkloadEntry`s and `Deployment`s; where
//! nobody is known yet, nothing is said of selectors. Source: `istioctl analyze`, `galley/pkg/config/analysis/analyzers`.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::config::Labels;

use super::{DOMAIN, name_of, place};
use crate::{
    compile::{resolve, specificity},
    diagnostic::{Diagnostic, Level, codes},
    kinds::{HttpAction, Key, Kind, Object, ParentKind, PortProtocol, ServiceEntry, Spec, Spot},
    registry::Registered,
};

/// Words a port's name may begin with to say its protocol. Source: Istio's protocol selection.
const PROTOCOLS: [&str; 12] =
    ["http", "http2", "https", "grpc", "grpc-web", "tcp", "tls", "udp", "mongo", "redis", "mysql", "http_proxy"];

/// Whom selectors may select: the namespace and labels of everyone who is known to run, or to be going to.
pub(super) struct Known {
    workloads: Vec<(String, Labels)>,
}

impl Known {
    pub(super) fn new(all: &[Arc<Object>], running: &[Arc<Registered>]) -> Self {
        let mut workloads: Vec<(String, Labels)> =
            running.iter().map(|it| (it.namespace.clone(), it.labels.clone())).collect();
        for object in all {
            let labels = match &object.spec {
                Spec::Deployment(hint) => &hint.labels,
                Spec::WorkloadEntry(entry) => &entry.labels,
                _ => continue,
            };
            workloads.push((object.key.namespace.clone(), labels.clone()));
        }
        Self { workloads }
    }

    /// How many of a namespace (`None` is any) have these labels.
    fn count(&self, namespace: Option<&str>, wanted: &Labels) -> usize {
        let meant = self.workloads.iter().filter(|(of, labels)| {
            namespace.is_none_or(|namespace| of == namespace)
                && wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
        });
        meant.count()
    }

    fn is_empty(&self) -> bool {
        self.workloads.is_empty()
    }
}

/// Everything found among `all`.
pub(super) fn inspect(all: &[Arc<Object>], known: &Known, found: &mut Vec<Diagnostic>) {
    for object in all {
        match &object.spec {
            Spec::Service(service) => {
                for port in &service.ports {
                    port_name(object, &port.name, found);
                }
            }
            Spec::ServiceEntry(entry) => addresses(object, entry, found),
            Spec::PeerAuthentication(policy) => {
                selector(object, &policy.selector, Some(&object.key.namespace), known, found);
            }
            Spec::RequestAuthentication(policy) => {
                selector(object, &policy.selector, Some(&object.key.namespace), known, found);
            }
            Spec::AuthorizationPolicy(policy) => {
                selector(object, &policy.selector, Some(&object.key.namespace), known, found);
            }
            Spec::Telemetry(it) => selector(object, &it.selector, Some(&object.key.namespace), known, found),
            Spec::Sidecar(sidecar) => selector(object, &sidecar.selector, Some(&object.key.namespace), known, found),
            Spec::Gateway(gateway) => selector(object, &gateway.selector, None, known, found),
            _ => {}
        }
    }
    subsets(all, known, found);
    protocols(all, found);
    sidecars(all, found);
}

/// A port's name says what is spoken there; one that does not is taken for HTTP.
fn port_name(object: &Object, name: &str, found: &mut Vec<Diagnostic>) {
    let word = if name.starts_with("grpc-web") { "grpc-web" } else { name.split('-').next().unwrap_or_default() };
    if PROTOCOLS.contains(&word) {
        return;
    }
    let at = find(object, &format!("name: {name}")).unwrap_or_else(|| name_of(object));
    let message = format!("port name {name:?} does not say what is spoken, which is taken for HTTP");
    let mut it = object.diagnostic(codes::PORT_NAME, Level::Info, at, &message);
    it.help = Some(format!("begin it with the protocol, as in http-{}", if name.is_empty() { "web" } else { name }));
    found.push(it);
}

/// Connections that are not HTTP are told apart by address alone.
fn addresses(object: &Object, entry: &ServiceEntry, found: &mut Vec<Diagnostic>) {
    let tcp = entry.ports.iter().find(|port| port.protocol == PortProtocol::Tcp);
    if let (Some(port), true, Some(host)) = (tcp, entry.addresses.is_empty(), entry.hosts.first()) {
        let message = format!("port {} is TCP and spec.addresses is empty, so any address may be meant", port.number);
        found.push(object.diagnostic(codes::ADDRESSES_REQUIRED, Level::Warning, host.at, &message));
    }
}

fn selector(object: &Object, labels: &Labels, namespace: Option<&str>, known: &Known, found: &mut Vec<Diagnostic>) {
    if labels.is_empty() || known.is_empty() || known.count(namespace, labels) > 0 {
        return;
    }
    // Gateways seldom have a Deployment here, and register as soon as they run.
    let first = labels.iter().next().map(|(key, value)| format!("{key}: {value}")).unwrap_or_default();
    let at = find(object, &first).unwrap_or_else(|| name_of(object));
    let text: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let message = format!("no workload has the labels {}", text.join(","));
    found.push(object.diagnostic(codes::NO_WORKLOADS, Level::Warning, at, &message));
}

/// A subset of a service whose workloads are known, none of which is in it.
fn subsets(all: &[Arc<Object>], known: &Known, found: &mut Vec<Diagnostic>) {
    let services: BTreeMap<String, (&str, &Labels)> = all
        .iter()
        .filter_map(|object| match &object.spec {
            Spec::Service(service) if !service.selector.is_empty() => {
                let host = resolve(&object.key.name, &object.key.namespace, DOMAIN);
                Some((host, (object.key.namespace.as_str(), &service.selector)))
            }
            _ => None,
        })
        .collect();
    for object in all {
        let Spec::DestinationRule(rule) = &object.spec else { continue };
        let host = resolve(&rule.host, &object.key.namespace, DOMAIN);
        let Some((namespace, selector)) = services.get(&host) else { continue };
        if known.count(Some(namespace), selector) == 0 {
            continue;
        }
        for subset in &rule.subsets {
            let mut wanted = (*selector).clone();
            wanted.extend(subset.labels.clone());
            if known.count(Some(namespace), &wanted) == 0 {
                let text: Vec<String> = subset.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                let message =
                    format!("subset {:?} selects no workload of {host} ({})", subset.name.value, text.join(","));
                found.push(object.diagnostic(codes::EMPTY_SUBSET, Level::Error, subset.name.at, &message));
            }
        }
    }
}

/// Two entries of one host that do not agree on what is spoken on a port.
fn protocols(all: &[Arc<Object>], found: &mut Vec<Diagnostic>) {
    let mut seen: BTreeMap<(String, u16), (&Arc<Object>, PortProtocol, Spot)> = BTreeMap::new();
    for object in all {
        let Spec::ServiceEntry(entry) = &object.spec else { continue };
        for host in &entry.hosts {
            for port in &entry.ports {
                let key = (host.to_ascii_lowercase(), port.number);
                match seen.get(&key) {
                    Some((other, protocol, at)) if *protocol != port.protocol => {
                        let message =
                            format!("port {} of {:?} has another protocol elsewhere", port.number, host.value);
                        let mut it = object.diagnostic(codes::CONFLICTING_PROTOCOL, Level::Warning, host.at, &message);
                        it.note = Some(format!("{} in {} says otherwise", other.key, place(other, *at)));
                        found.push(it);
                    }
                    Some(_) => {}
                    None => {
                        seen.insert(key, (object, port.protocol, host.at));
                    }
                }
            }
        }
    }
}

/// One sidecar without selector a namespace, and one with the same labels.
fn sidecars(all: &[Arc<Object>], found: &mut Vec<Diagnostic>) {
    let mut seen: BTreeMap<(&str, &Labels), &Arc<Object>> = BTreeMap::new();
    let mut objects: Vec<&Arc<Object>> = all.iter().filter(|object| object.key.kind == Kind::Sidecar).collect();
    objects.sort_by_key(|object| (object.created, &object.key));
    for object in objects {
        let Spec::Sidecar(sidecar) = &object.spec else { continue };
        let Some(first) = seen.get(&(object.key.namespace.as_str(), &sidecar.selector)) else {
            seen.insert((&object.key.namespace, &sidecar.selector), object);
            continue;
        };
        let (code, message) = match sidecar.selector.is_empty() {
            true => {
                (codes::SIDECARS_WITHOUT_SELECTOR, "the namespace has a Sidecar without selector already, which counts")
            }
            false => (codes::SIDECARS_OF_ONE_SELECTOR, "another Sidecar selects the same workloads, which counts"),
        };
        let mut it = object.diagnostic(code, Level::Error, name_of(object), message);
        it.note = Some(format!("{} in {} is older", first.key, place(first, name_of(first))));
        found.push(it);
    }
}

/// What routes of the Gateway API name and nobody defines, as far as an apply tells it, too.
pub(super) fn api_routes(
    all: &[Arc<Object>],
    object: &Object,
    hosts: &BTreeMap<String, usize>,
    found: &mut Vec<Diagnostic>,
) {
    let Spec::ApiRoute(route) = &object.spec else { return };
    let own = &object.key.namespace;
    for parent in &route.parents {
        let namespace = parent.namespace.as_ref().unwrap_or(own);
        let (kind, word) = match parent.kind {
            ParentKind::Gateway => (Kind::KubeGateway, "Gateway"),
            ParentKind::Service => (Kind::Service, "Service"),
            ParentKind::ServiceEntry => (Kind::ServiceEntry, "ServiceEntry"),
        };
        let key = Key::new(kind, namespace, &parent.name.value);
        let Some(there) = all.iter().find(|other| other.key == key) else {
            let host = resolve(&parent.name, namespace, DOMAIN);
            if kind == Kind::Service && hosts.contains_key(&host) {
                continue;
            }
            let message = format!("{word} {:?} of namespace {namespace:?} does not exist", parent.name.value);
            found.push(object.diagnostic(codes::NOT_FOUND, Level::Warning, parent.name.at, &message));
            continue;
        };
        if let (Spec::KubeGateway(gateway), Some(section)) = (&there.spec, &parent.section)
            && !gateway.listeners.iter().any(|listener| listener.name.value == section.value)
        {
            let message = format!("{} has no listener {:?}", there.key, section.value);
            found.push(object.diagnostic(codes::NOT_FOUND, Level::Warning, section.at, &message));
        }
    }
    let mut told: Vec<&str> = Vec::new();
    for rule in &route.rules {
        let main = match &rule.action {
            HttpAction::Route(destinations) => destinations.as_slice(),
            _ => &[],
        };
        for destination in main.iter().chain(rule.mirrors.iter().map(|mirror| &mirror.destination)) {
            let host = resolve(&destination.host, destination.namespace.as_ref().unwrap_or(own), DOMAIN);
            if hosts.keys().any(|known| specificity(known, &host).is_some()) || told.contains(&&*destination.host.value)
            {
                continue;
            }
            told.push(&destination.host.value);
            let message = format!("no service has the host {host:?}");
            let mut it = object.diagnostic(codes::NOT_FOUND, Level::Warning, destination.host.at, &message);
            it.note = Some("until a Service or ServiceEntry defines it, its share of requests gets 500".to_owned());
            found.push(it);
        }
    }
}

/// Where a text stands in an object's document.
fn find(object: &Object, text: &str) -> Option<Spot> {
    object.source.text.lines().enumerate().find_map(|(n, line)| {
        let at = line.find(text)?;
        let column = line.get(..at)?.chars().count() + 1;
        let length = text.chars().count();
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        Some(Spot { line: object.source.first_line + number(n), column: number(column), length: number(length) })
    })
}

/// The level Istio gives a code, where an apply is milder because objects come in any order.
pub(super) fn istio_level(it: &Diagnostic) -> Level {
    match it.code.as_ref() {
        codes::NOT_FOUND | codes::CONFLICTING_HOSTS | codes::PORT_REQUIRED | codes::CONFLICTING_GATEWAYS => {
            Level::Error
        }
        _ => it.level,
    }
}
