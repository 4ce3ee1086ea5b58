//! From a request to the route that takes it: port, virtual host, first matching rule.
//!
//! Nothing is scanned: hosts are found by hash (`route/host.rs`), rules by an index that keeps their order
//! (`route/index.rs`), and one of a rule's clusters is drawn by weight (`route/weight.rs`). Compiled virtual hosts are shared
//! with the previous snapshot as long as their configuration is the same.

use std::sync::Arc;

use crate::{
    config::{self, Action, Fault, Forward, HeaderChanges, Name, PathMatch},
    error::{CompileError, NoRoute},
    hash::HashPolicies,
    plan::RoutePolicy,
    request::RequestView,
    rewrite::{HeaderEdits, Rewrite},
};

pub(crate) mod describe;
mod host;
mod index;
mod matcher;
mod text;
mod weight;

pub use matcher::header_matches;
pub use weight::{Destination, Split};

pub(crate) use host::{Domains, domain_takes};
pub(crate) use index::Index;
pub(crate) use matcher::{Matcher, Mismatch};
pub(crate) use weight::name_hash;

/// The routes of one port.
#[derive(Debug)]
pub(crate) struct RouteTable {
    pub(crate) config: Arc<config::RouteTable>,
    hosts: Vec<Arc<VirtualHost>>,
    domains: Domains,
}

/// The routes of a set of domains.
#[derive(Debug)]
pub(crate) struct VirtualHost {
    pub(crate) config: Arc<config::VirtualHost>,
    pub(crate) rules: Vec<Rule>,
    index: Index,
}

/// One rule.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) matcher: Matcher,
    pub(crate) policy: Arc<RoutePolicy>,
    pub(crate) kind: Kind,
    pub(crate) fault: Option<Fault>,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Forward,
    Redirect,
    Respond,
    Inbound,
}

impl RouteTable {
    pub(crate) fn compile(config: &Arc<config::RouteTable>, previous: Option<&Self>) -> Result<Self, CompileError> {
        // Changes of the table's own headers are part of every policy.
        let previous = previous.filter(|previous| previous.config.headers == config.headers);
        let known: std::collections::BTreeMap<&str, &Arc<VirtualHost>> =
            previous.iter().flat_map(|table| &table.hosts).map(|host| (&*host.config.name, host)).collect();
        let mut hosts = Vec::with_capacity(config.virtual_hosts.len());
        for host in &config.virtual_hosts {
            let same = |old: &&&Arc<VirtualHost>| Arc::ptr_eq(&old.config, host) || old.config == *host;
            hosts.push(match known.get(&*host.name).filter(same) {
                Some(old) => Arc::clone(old),
                None => Arc::new(VirtualHost::compile(host, &config.headers)?),
            });
        }
        let domains = Domains::compile(config)?;
        Ok(Self { config: Arc::clone(config), hosts, domains })
    }

    /// The virtual host that takes the request.
    pub(crate) fn host(&self, view: &RequestView<'_>) -> Option<&Arc<VirtualHost>> {
        let name = if self.config.ignore_port { view.host() } else { view.authority };
        self.domains.find(name).and_then(|at| self.hosts.get(at))
    }

    /// The first rule that takes the request. `bits` decide shares of requests, see [`Matcher::is_match`].
    pub(crate) fn find(&self, view: &RequestView<'_>, bits: u64) -> Result<&Rule, NoRoute> {
        let host = self.host(view).ok_or(NoRoute::VirtualHost)?;
        host.find(view, bits).and_then(|at| host.rules.get(at)).ok_or(NoRoute::Rule)
    }

    pub(crate) fn hosts(&self) -> &[Arc<VirtualHost>] {
        &self.hosts
    }
}

impl VirtualHost {
    fn compile(config: &Arc<config::VirtualHost>, table: &HeaderChanges) -> Result<Self, CompileError> {
        let resource = format!("virtual host {:?}", config.name);
        let mut rules = Vec::with_capacity(config.routes.len());
        for (i, route) in config.routes.iter().enumerate() {
            rules.push(Rule::compile(route, config, table, &resource, &format!("routes[{i}]"))?);
        }
        let index = Index::new(rules.iter().map(|rule| rule.matcher.path()));
        Ok(Self { config: Arc::clone(config), rules, index })
    }

    /// The place of the first rule that takes the request.
    pub(crate) fn find(&self, view: &RequestView<'_>, bits: u64) -> Option<usize> {
        self.index.first(view.path_only(), self.rules.len(), |at| self.rules[at].matcher.is_match(view, bits, at))
    }
}

impl Rule {
    fn compile(
        route: &config::Route,
        host: &config::VirtualHost,
        table: &HeaderChanges,
        resource: &str,
        field: &str,
    ) -> Result<Self, CompileError> {
        let at = |error: CompileError| CompileError::new(resource, format!("{field}: {}", error.field), error.message);
        let invalid = |what: &str, message: &str| Err(CompileError::new(resource, format!("{field}.{what}"), message));
        let mut policy = RoutePolicy {
            name: Name::clone(&route.name),
            origin: route.origin.clone(),
            operation: route.operation.clone(),
            virtual_host: Name::clone(&host.name),
            headers: HeaderEdits::compile([&route.headers, &host.headers, table]).map_err(at)?,
            ..RoutePolicy::default()
        };
        policy.rewrite.matched_prefix = matched_prefix(&route.matches.path);
        let kind = match &route.action {
            Action::Forward(forward) => {
                forward_policy(&mut policy, forward, route, host, table).map_err(at)?;
                Kind::Forward
            }
            Action::Redirect(redirect) if !matches!(redirect.status, 301 | 302 | 303 | 307 | 308) => {
                return invalid("redirect.status", "use 301, 302, 303, 307 or 308");
            }
            Action::Redirect(redirect) => {
                policy.redirect = Some(redirect.clone());
                Kind::Redirect
            }
            Action::DirectResponse(response) if !(200..600).contains(&response.status) => {
                return invalid("direct_response.status", "use a status from 200 to 599");
            }
            Action::DirectResponse(response) => {
                policy.respond = Some(response.clone());
                Kind::Respond
            }
            Action::NonForwarding => Kind::Inbound,
        };
        Ok(Self {
            matcher: Matcher::compile(&route.matches, resource, &format!("{field}.matches"))?,
            policy: Arc::new(policy),
            kind,
            fault: route.fault.clone().filter(|fault| fault.delay.is_some() || fault.abort.is_some()),
        })
    }
}

fn forward_policy(
    policy: &mut RoutePolicy,
    forward: &Forward,
    route: &config::Route,
    host: &config::VirtualHost,
    table: &HeaderChanges,
) -> Result<(), CompileError> {
    let mut clusters = Vec::with_capacity(forward.clusters.len());
    for cluster in &forward.clusters {
        // Without changes of its own a destination has the route's.
        let edits = match cluster.headers.is_empty() {
            true => None,
            false => Some(HeaderEdits::compile([&cluster.headers, &route.headers, &host.headers, table])?),
        };
        clusters.push((Name::clone(&cluster.cluster), cluster.weight, edits));
    }
    policy.split = Split::with_edits(clusters)?;
    policy.timeout = forward.timeout;
    policy.max_stream_duration = forward.max_stream_duration;
    policy.retry = forward.retry.clone().or_else(|| host.retry.clone());
    policy.hash = HashPolicies::compile(&forward.hash)?;
    policy.priority = forward.priority;
    policy.rewrite = Rewrite::new(forward, policy.rewrite.matched_prefix)?;
    Ok(())
}

fn matched_prefix(path: &PathMatch) -> Option<usize> {
    match path {
        PathMatch::Prefix { value, .. } | PathMatch::SegmentPrefix { value, .. } => Some(value.len()),
        PathMatch::Exact { .. } | PathMatch::Regex(_) => None,
    }
}
