//! What only shows between objects: names that lead nowhere, rules nobody reaches, objects that contradict each other.
//!
//! Refused is only what cannot have been meant: a subset that no destination rule defines. Hosts and gateways that do not
//! exist are warned of, since Istio's users apply them in any order. Source: `istioctl analyze`, with its codes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    compile::{delegate_of, resolve, specificity},
    diagnostic::{Diagnostic, Level, codes},
    kinds::{
        ApiParent, At, HttpAction, Key, Kind, Object, ParentKind, Server, Spec, Spot, Subset, VirtualService, nearest,
        parse,
    },
    registry::Registered,
    store::SourceFile,
};

mod accounts;
mod inspect;

/// Everything there is to say of files by themselves: what is wrong with each, and what shows between their objects.
pub fn files(files: &[SourceFile]) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let mut objects = Vec::new();
    for file in files {
        match parse(&file.name, &file.text) {
            Ok(parsed) => {
                objects.extend(parsed.objects.into_iter().map(Arc::new));
                found.extend(parsed.diagnostics);
            }
            Err(diagnostics) => found.extend(diagnostics),
        }
    }
    let mut all: BTreeMap<&Key, Arc<Object>> = BTreeMap::new();
    for object in &objects {
        all.insert(&object.key, object.clone());
    }
    let all: Vec<Arc<Object>> = all.into_values().collect();
    found.extend(whole(&objects, &all, &[]));
    found
}

/// What `meshctl analyze` says of `all` in the company of those who run: what an apply of `applied` would say, with Istio's levels,
/// and what an apply lets pass.
pub fn whole(applied: &[Arc<Object>], all: &[Arc<Object>], running: &[Arc<Registered>]) -> Vec<Diagnostic> {
    let mut found = analyze(applied, all);
    for it in &mut found {
        it.level = inspect::istio_level(it);
    }
    inspect::inspect(all, &inspect::Known::new(all, running), &mut found);
    accounts::accounts(all, running, &mut found);
    found.sort_by(|a, b| {
        (b.level, &a.file, a.line, a.column, &a.code).cmp(&(a.level, &b.file, b.line, b.column, &b.code))
    });
    found
}

/// The finding in one line, as `istioctl analyze` writes it: `Error [IST0101] (VirtualService default/reviews f.yaml:9:44) ...`.
pub fn line(it: &Diagnostic) -> String {
    let level = match it.level {
        Level::Info => "Info",
        Level::Warning => "Warning",
        Level::Error => "Error",
    };
    let place = format!("{}:{}:{}", it.file, it.line, it.column);
    match object_of(it) {
        Some((object, message)) => format!("{level} [{}] ({object} {place}) {message}", it.code),
        None => format!("{level} [{}] ({place}) {}", it.code, it.message),
    }
}

/// The object a finding is about (`VirtualService default/reviews`), and what it says of it.
pub fn object_of(it: &Diagnostic) -> Option<(&str, &str)> {
    let (object, message) = it.message.split_once(": ")?;
    let (kind, name) = object.split_once(' ')?;
    let named = Kind::ALL.iter().any(|known| known.as_str() == kind) && name.contains('/') && !name.contains(' ');
    named.then_some((object, message))
}

/// `info`, `warning`, `error`.
pub fn level_name(level: Level) -> &'static str {
    match level {
        Level::Info => "info",
        Level::Warning => "warning",
        Level::Error => "error",
    }
}

/// The domain services live in; what hosts are called in messages does not depend on another.
const DOMAIN: &str = "cluster.local";

/// What is wrong with `applied` in the company of `all`, which includes them (of an object applied twice the last).
///
/// Errors refuse the apply. What a new object breaks in an object applied before is only a warning, as the old one was
/// right when it was written.
pub fn analyze(applied: &[Arc<Object>], all: &[Arc<Object>]) -> Vec<Diagnostic> {
    let view = View::new(applied, all);
    let mut found = Vec::new();
    view.twice(&mut found);
    for object in all {
        let is_new = applied.iter().any(|new| Arc::ptr_eq(new, object) || (new.key == object.key && new == object));
        match &object.spec {
            Spec::VirtualService(spec) => {
                view.subsets(object, spec, is_new, &mut found);
                if is_new {
                    view.hosts(object, spec, &mut found);
                    view.gateways(object, spec, &mut found);
                    view.delegates(object, spec, &mut found);
                    rules(object, spec, &mut found);
                }
            }
            Spec::DestinationRule(spec) if is_new && !spec.host.is_empty() => {
                view.known_host(object, &spec.host, codes::UNKNOWN_HOST, &mut found);
            }
            Spec::ApiRoute(_) if is_new => inspect::api_routes(all, object, &view.hosts, &mut found),
            Spec::Gateway(spec) if is_new => {
                for server in &spec.servers {
                    view.conflicting_servers(object, server, &mut found);
                }
            }
            _ => {}
        }
    }
    view.conflicting_hosts(&mut found);
    found
}

/// What objects that stay miss when others are deleted: warnings, of which none held `before`.
pub fn broken_by(before: &[Arc<Object>], after: &[Arc<Object>]) -> Vec<Diagnostic> {
    let place = |it: &Diagnostic| (it.code.clone(), it.file.clone(), it.line, it.column, it.message.clone());
    let known: BTreeSet<_> = analyze(before, before).iter().map(place).collect();
    let mut found = analyze(after, after);
    found.retain(|it| !known.contains(&place(it)));
    for it in &mut found {
        it.level = it.level.min(Level::Warning);
    }
    found
}

struct View<'a> {
    applied: &'a [Arc<Object>],
    all: &'a [Arc<Object>],
    /// Every host, with how many ports it has.
    hosts: BTreeMap<String, usize>,
}

impl<'a> View<'a> {
    fn new(applied: &'a [Arc<Object>], all: &'a [Arc<Object>]) -> Self {
        let mut hosts = BTreeMap::new();
        for object in all {
            match &object.spec {
                Spec::Service(service) => {
                    hosts.insert(resolve(&object.key.name, &object.key.namespace, DOMAIN), service.ports.len());
                }
                Spec::ServiceEntry(entry) => {
                    hosts.extend(entry.hosts.iter().map(|host| (host.to_ascii_lowercase(), entry.ports.len())));
                }
                _ => {}
            }
        }
        Self { applied, all, hosts }
    }

    fn twice(&self, found: &mut Vec<Diagnostic>) {
        let mut last: BTreeMap<&Key, &Object> = BTreeMap::new();
        for object in self.applied.iter().rev() {
            let Some(counts) = last.get(&object.key) else {
                last.insert(&object.key, object);
                continue;
            };
            let at = name_of(object);
            let mut it = object.diagnostic(
                codes::DEFINED_TWICE,
                Level::Warning,
                at,
                "is defined more than once in this apply; the last one counts",
            );
            it.note = Some(format!("the last one is {}", place(counts, name_of(counts))));
            found.push(it);
        }
    }

    /// Destination rules for a host, those included that were overwritten within this apply.
    fn rules_for(&self, host: &str) -> impl Iterator<Item = (&Arc<Object>, &[Subset], bool)> {
        let current = self.all.iter().map(|object| (object, true));
        let overwritten = self.applied.iter().map(|object| (object, false));
        let host = host.to_owned();
        current.chain(overwritten).filter_map(move |(object, counts)| {
            let Spec::DestinationRule(rule) = &object.spec else { return None };
            let own = resolve(&rule.host, &object.key.namespace, DOMAIN);
            specificity(&own, &host).map(|_| (object, rule.subsets.as_slice(), counts))
        })
    }

    fn subsets(&self, object: &Object, spec: &VirtualService, is_new: bool, found: &mut Vec<Diagnostic>) {
        for destination in destinations(spec) {
            let Some(subset) = &destination.subset else { continue };
            let host = resolve(&destination.host, &object.key.namespace, DOMAIN);
            let rules: Vec<_> = self.rules_for(&host).collect();
            let defines = |counts: bool| {
                rules.iter().any(|(_, subsets, now)| (*now || !counts) && subsets.iter().any(|it| it.name == *subset))
            };
            if defines(true) {
                continue;
            }
            // Overwritten within this apply, or by it: the files were right one by one.
            let level = if is_new && !defines(false) { Level::Error } else { Level::Warning };
            let message = format!("subset {:?} of host {:?} is not defined", subset.value, destination.host.value);
            let mut it = object.diagnostic(codes::NOT_FOUND, level, subset.at, &message);
            let names = || rules.iter().filter(|(_, _, now)| *now).flat_map(|(_, subsets, _)| *subsets);
            it.label =
                nearest(subset, names().map(|it| it.name.as_str())).map(|near| format!("did you mean {near:?}?"));
            match rules.iter().find(|(_, subsets, now)| *now && !subsets.is_empty()) {
                Some((rule, subsets, _)) => {
                    let known: Vec<&str> = names().map(|it| it.name.as_str()).collect();
                    let at = subsets.first().map(|it| it.name.at).unwrap_or_default();
                    it.note = Some(format!("defined in {}: {}", place(rule, at), known.join(", ")));
                }
                None => {
                    it.note = Some(format!("no DestinationRule defines subsets of {host}"));
                    it.help = Some("apply a DestinationRule with this subset, before or together with this".to_owned());
                }
            }
            found.push(it);
        }
    }

    fn hosts(&self, object: &Object, spec: &VirtualService, found: &mut Vec<Diagnostic>) {
        for destination in destinations(spec) {
            self.known_host(object, &destination.host, codes::NOT_FOUND, found);
            let host = resolve(&destination.host, &object.key.namespace, DOMAIN);
            if let (Some(ports @ 2..), None) = (self.hosts.get(&host), destination.port) {
                let message = format!("{:?} has {ports} ports and none is named", destination.host.value);
                let mut it = object.diagnostic(codes::PORT_REQUIRED, Level::Warning, destination.host.at, &message);
                it.help =
                    Some("add port: {number: ...} to the destination; without it the caller's port is used".into());
                found.push(it);
            }
        }
    }

    fn known_host(&self, object: &Object, host: &At<String>, code: &'static str, found: &mut Vec<Diagnostic>) {
        let full = resolve(host, &object.key.namespace, DOMAIN);
        if self.hosts.keys().any(|known| specificity(&full, known).is_some() || specificity(known, &full).is_some()) {
            return;
        }
        let message = format!("no service has the host {full:?}");
        let mut it = object.diagnostic(code, Level::Warning, host.at, &message);
        let suffix = format!(".{}.svc.{DOMAIN}", object.key.namespace);
        let short = self.hosts.keys().map(|known| known.strip_suffix(&suffix).unwrap_or(known));
        it.label = nearest(host, short).map(|near| format!("did you mean {near:?}?"));
        it.note =
            Some("it takes effect when a Service or ServiceEntry defines it; until then requests get 503".to_owned());
        found.push(it);
    }

    fn gateways(&self, object: &Object, spec: &VirtualService, found: &mut Vec<Diagnostic>) {
        for named in spec.gateways.iter().filter(|named| named.value != "mesh") {
            let (namespace, name) = named.split_once('/').unwrap_or((&object.key.namespace, named));
            let gateways = || self.all.iter().filter(|other| other.key.kind == Kind::Gateway);
            let of = gateways().find(|other| other.key.namespace == namespace && other.key.name == name);
            let Some(Spec::Gateway(gateway)) = of.map(|gateway| &gateway.spec) else {
                let message = format!("gateway {:?} does not exist", named.value);
                let mut it = object.diagnostic(codes::NOT_FOUND, Level::Warning, named.at, &message);
                it.label = nearest(name, gateways().map(|other| other.key.name.as_str()))
                    .map(|near| format!("did you mean {near:?}?"));
                found.push(it);
                continue;
            };
            for host in &spec.hosts {
                let full = resolve(host, &object.key.namespace, DOMAIN);
                let served = gateway.servers.iter().flat_map(|server| &server.hosts).any(|served| {
                    let served = served.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
                    specificity(&served, &full).is_some() || specificity(&full, &served).is_some()
                });
                if !served {
                    let message = format!("gateway {:?} does not serve host {:?}", named.value, host.value);
                    found.push(object.diagnostic(codes::NOT_IN_GATEWAY, Level::Warning, host.at, &message));
                }
            }
        }
    }

    fn delegates(&self, object: &Object, spec: &VirtualService, found: &mut Vec<Diagnostic>) {
        for rule in &spec.http {
            let HttpAction::Delegate(to) = &rule.action else { continue };
            if delegate_of(self.all, object, to).is_none() {
                let namespace = to.namespace.as_ref().unwrap_or(&object.key.namespace);
                let message = format!("delegate {:?} of namespace {namespace:?} does not exist", to.name.value);
                let mut it = object.diagnostic(codes::NOT_FOUND, Level::Warning, to.name.at, &message);
                it.note = Some("it must have no hosts, and exportTo must let this namespace see it".to_owned());
                it.help = Some("until it is there this rule is left out".to_owned());
                found.push(it);
            }
        }
    }

    fn conflicting_servers(&self, object: &Object, server: &Server, found: &mut Vec<Diagnostic>) {
        let Spec::Gateway(own) = &object.spec else { return };
        for other in self.all.iter().filter(|other| other.key != object.key) {
            let Spec::Gateway(gateway) = &other.spec else { continue };
            if gateway.selector != own.selector {
                continue;
            }
            for theirs in gateway.servers.iter().filter(|theirs| theirs.port == server.port) {
                let Some(host) = server.hosts.iter().find(|host| theirs.hosts.contains(host)) else { continue };
                let message = format!("port {} and host {:?} belong to {} too", server.port, host.value, other.key);
                found.push(object.diagnostic(codes::CONFLICTING_GATEWAYS, Level::Warning, host.at, &message));
            }
        }
    }

    /// Of several virtual services of the mesh for one host the oldest counts; the others are told.
    fn conflicting_hosts(&self, found: &mut Vec<Diagnostic>) {
        let mut first: BTreeMap<String, (&Arc<Object>, &At<String>)> = BTreeMap::new();
        let mut objects: Vec<&Arc<Object>> = self.all.iter().collect();
        objects.sort_by_key(|object| (object.created, &object.key.name, &object.key.namespace));
        for object in objects {
            // Routes of the Gateway API for one service are merged; beside a virtual service they are as any other of its host.
            let hosts: Vec<&At<String>> = match &object.spec {
                Spec::VirtualService(spec)
                    if spec.gateways.is_empty() || spec.gateways.iter().any(|gateway| gateway.value == "mesh") =>
                {
                    spec.hosts.iter().collect()
                }
                Spec::ApiRoute(route) => {
                    let own = |parent: &&ApiParent| {
                        let namespace = parent.namespace.as_ref().unwrap_or(&object.key.namespace);
                        parent.kind == ParentKind::Service && *namespace == object.key.namespace
                    };
                    route.parents.iter().filter(own).map(|parent| &parent.name).collect()
                }
                _ => continue,
            };
            for host in hosts {
                let full = resolve(host, &object.key.namespace, DOMAIN);
                let Some((older, at)) = first.get(&full) else {
                    first.insert(full, (object, host));
                    continue;
                };
                let either_is_new = self.applied.iter().any(|new| new.key == object.key || new.key == older.key);
                let both_routes = [older, &object].iter().all(|it| matches!(it.spec, Spec::ApiRoute(_)));
                if older.key != object.key && either_is_new && !both_routes {
                    let (spot, host, kind) = (host.at, &host.value, older.key.kind);
                    let message = format!("host {host:?} has a {kind} already, which counts");
                    let mut it = object.diagnostic(codes::CONFLICTING_HOSTS, Level::Warning, spot, &message);
                    it.note = Some(format!("{} in {} is older", older.key, place(older, at.at)));
                    it.help = Some("write all rules of a host into one VirtualService".to_owned());
                    found.push(it);
                }
            }
        }
    }
}

/// Rules that never get a request.
fn rules(object: &Object, spec: &VirtualService, found: &mut Vec<Diagnostic>) {
    let mut catch_all: Option<Spot> = None;
    let mut seen = Vec::new();
    for rule in &spec.http {
        if let Some(at) = catch_all {
            let message = "this rule is never reached, as an earlier one takes every request";
            let mut it = object.diagnostic(codes::UNREACHABLE_RULE, Level::Warning, rule.at.at, message);
            it.note = Some(format!("the earlier one is {}", place(object, at)));
            it.help = Some("give the earlier rule a match, or move it to the end".to_owned());
            found.push(it);
            continue;
        }
        for condition in &rule.matches {
            if seen.contains(&condition) {
                let message = "this match is never reached, as an earlier one is the same";
                found.push(object.diagnostic(codes::INEFFECTIVE_MATCH, Level::Info, condition.at.at, message));
            }
            seen.push(condition);
        }
        if rule.matches.is_empty() || rule.matches.iter().any(|it| it.is_catch_all() && it.is_for_all()) {
            catch_all = Some(rule.at.at);
        }
    }
}

fn destinations(spec: &VirtualService) -> impl Iterator<Item = &crate::kinds::Destination> {
    spec.http.iter().flat_map(|rule| match &rule.action {
        HttpAction::Route(destinations) => destinations.as_slice(),
        _ => &[],
    })
}

/// Where an object names itself.
fn name_of(object: &Object) -> Spot {
    let name = &object.key.name;
    for (n, line) in object.source.text.lines().enumerate() {
        let Some(rest) = line.split_once("name:").map(|(_, rest)| rest) else { continue };
        if rest.trim_start().starts_with(name.as_str()) {
            let column = line.len() - rest.trim_start().len() + 1;
            let line = object.source.first_line + n as u32;
            return Spot { line, column: column as u32, length: name.chars().count() as u32 };
        }
    }
    Spot { line: object.source.first_line, column: 1, length: 1 }
}

fn place(object: &Object, at: Spot) -> String {
    format!("{}:{}", object.source.file, at.line)
}
