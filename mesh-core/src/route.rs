//! From a request to the route that takes it: port, virtual host, first matching rule.
//!
//! Nothing is scanned: hosts are found by hash (`route/host.rs`), rules by an index that keeps their order
//! (`route/index.rs`), and one of a rule's clusters is drawn by weight (`route/weight.rs`). Compiled virtual hosts are shared
//! with the previous snapshot as long as their configuration is the same.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use hashbrown::HashMap;

use crate::{
    config::{self, Action, Forward, HttpSettings, Mirror, Name, PathMatch, RateLimit},
    error::{CompileError, NoRoute},
    fault::Faults,
    filter,
    hash::HashPolicies,
    mirror::{MOST_MIRRORS, MirrorPolicy},
    plan::RoutePolicy,
    rate_limit::{GlobalLimits, Limits, RateLimiter},
    request::RequestView,
    rewrite::{HeaderEdits, Rewrite},
    session::Sessions,
    telling::Telling,
};

pub(crate) mod describe;
mod host;
mod index;
mod matcher;
mod text;
mod weight;

pub(crate) use matcher::query_matches;
pub use matcher::{header_matches, view_matches};
pub use weight::{Destination, Split};

pub(crate) use host::{Domains, domain_takes};
pub(crate) use index::Index;
pub(crate) use matcher::{Matcher, Mismatch};
pub(crate) use weight::name_hash;

/// The routes of one port.
#[derive(Debug)]
pub(crate) struct RouteTable {
    pub(crate) config: Arc<config::RouteTable>,
    /// What holds for all routes, part of every policy.
    pub(crate) settings: Option<Arc<HttpSettings>>,
    /// The rate limit of routes without their own.
    pub(crate) limiter: Option<Arc<RateLimiter>>,
    /// What it says of requests without any rule's own.
    own_limits: Option<Limits>,
    /// Who is asked beside.
    own_services: Option<GlobalLimits>,
    /// What is told of requests.
    pub(crate) telling: Option<Arc<Telling>>,
    hosts: Vec<Arc<Host>>,
    /// Shared as long as every host has the domains it had.
    domains: Arc<Domains>,
}

/// A virtual host, compiled when the first request takes it: of thousands a process asks for a few. That it can be is known, for
/// it was tried; what counts as it goes (rate limits) is kept from the beginning.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) config: Arc<config::VirtualHost>,
    compiled: OnceLock<VirtualHost>,
}

/// The routes of a set of domains.
#[derive(Debug)]
pub(crate) struct VirtualHost {
    pub(crate) config: Arc<config::VirtualHost>,
    pub(crate) rules: Vec<Rule>,
    index: Index,
    ignores_parameters: bool,
}

/// One rule.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) matcher: Matcher,
    pub(crate) policy: Arc<RoutePolicy>,
    pub(crate) kind: Kind,
    pub(crate) fault: Option<Faults>,
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
    pub(crate) fn compile(
        config: &Arc<config::RouteTable>,
        settings: Option<&Arc<HttpSettings>>,
        previous: Option<&Self>,
    ) -> Result<Self, CompileError> {
        // What the table and its port say for all is part of every policy.
        let previous = previous
            .filter(|previous| same_for_all(&previous.config, config) && previous.settings.as_ref() == settings);
        let limiter = limiter(settings, previous);
        let telling = match previous {
            Some(previous) => previous.telling.clone(),
            None => settings.and_then(|it| it.telling.as_deref()).map(|it| Arc::new(Telling::new(it))),
        };
        let mut known = Known { previous, by_name: None };
        let mut hosts = Vec::with_capacity(config.virtual_hosts.len());
        for (at, host) in config.virtual_hosts.iter().enumerate() {
            hosts.push(match known.same(at, host) {
                Some(old) => Arc::clone(old),
                None => Arc::new(Host::compile(host, config, settings, limiter.as_ref())?),
            });
        }
        let domains = match previous.filter(|previous| same_domains(&previous.config, config)) {
            Some(previous) => Arc::clone(&previous.domains),
            None => Arc::new(Domains::compile(config)?),
        };
        let own_limits = limiter.as_ref().map(|limiter| Limits::new(limiter, &[]));
        let services = settings.map_or(&[][..], |settings| &settings.global_limits);
        let own_services = GlobalLimits::new(services, &[], None);
        let (config, settings) = (Arc::clone(config), settings.cloned());
        Ok(Self { config, settings, limiter, own_limits, own_services, telling, hosts, domains })
    }

    /// The virtual host that takes the request.
    pub(crate) fn host(&self, view: &RequestView<'_>) -> Option<&VirtualHost> {
        let name = if self.config.ignore_port { view.host() } else { view.authority };
        let host = self.domains.find(name).and_then(|at| self.hosts.get(at))?;
        Some(host.compiled.get_or_init(|| {
            let compiled =
                VirtualHost::compile(&host.config, &self.config, self.settings.as_ref(), self.limiter.as_ref());
            // It was compiled before; what cannot be never gets here.
            compiled.unwrap_or_else(|_| VirtualHost::without_rules(&host.config))
        }))
    }

    /// How many requests that came in are let through, and who is asked beside.
    pub(crate) fn inbound_limits(&self, view: &RequestView<'_>) -> (Option<Limits>, Option<GlobalLimits>) {
        if self.own_limits.is_none() && self.own_services.is_none() {
            return (None, None);
        }
        let rule = self.host(view).and_then(|host| host.rules.iter().find(|rule| rule.kind == Kind::Inbound));
        match rule {
            Some(rule) => (rule.policy.limits.clone(), rule.policy.global_limits.clone()),
            None => (self.own_limits.clone(), self.own_services.clone()),
        }
    }

    /// The first rule that takes the request. `bits` decide shares of requests, see [`Matcher::is_match`].
    pub(crate) fn find(&self, view: &RequestView<'_>, bits: u64) -> Result<&Rule, NoRoute> {
        let host = self.host(view).ok_or(NoRoute::VirtualHost)?;
        host.find(view, bits).and_then(|at| host.rules.get(at)).ok_or(NoRoute::Rule)
    }

    pub(crate) fn hosts(&self) -> &[Arc<Host>] {
        &self.hosts
    }
}

/// The virtual hosts of the predecessor.
struct Known<'a> {
    previous: Option<&'a RouteTable>,
    /// Made when hosts are not where they were.
    by_name: Option<HashMap<&'a str, &'a Arc<Host>>>,
}

impl<'a> Known<'a> {
    /// The one that was made of the same configuration; `at` is the place of the new one.
    fn same(&mut self, at: usize, host: &Arc<config::VirtualHost>) -> Option<&'a Arc<Host>> {
        let previous = self.previous?;
        let before = previous.config.virtual_hosts.get(at);
        if before.is_some_and(|before| Arc::ptr_eq(before, host)) {
            return previous.hosts.get(at);
        }
        let known = match before.is_some_and(|before| before.name == host.name) {
            true => previous.hosts.get(at),
            false => {
                let hosts = || previous.hosts.iter().map(|host| (&*host.config.name, host)).collect();
                self.by_name.get_or_insert_with(hosts).get(&*host.name).copied()
            }
        };
        known.filter(|old| Arc::ptr_eq(&old.config, host) || old.config == *host)
    }
}

/// Does every host have the domains it had?
fn same_domains(before: &config::RouteTable, after: &config::RouteTable) -> bool {
    before.virtual_hosts.len() == after.virtual_hosts.len()
        && before
            .virtual_hosts
            .iter()
            .zip(&after.virtual_hosts)
            .all(|(a, b)| Arc::ptr_eq(a, b) || a.domains == b.domains)
}

/// Do both tables say the same, apart from their hosts?
fn same_for_all(a: &config::RouteTable, b: &config::RouteTable) -> bool {
    let but_hosts = |table: &config::RouteTable| {
        (table.most_specific_wins, table.ignore_path_parameters, table.headers.clone(), table.mirrors.clone())
    };
    but_hosts(a) == but_hosts(b)
}

impl Host {
    fn compile(
        config: &Arc<config::VirtualHost>,
        table: &config::RouteTable,
        settings: Option<&Arc<HttpSettings>>,
        limiter: Option<&Arc<RateLimiter>>,
    ) -> Result<Self, CompileError> {
        let compiled = VirtualHost::compile(config, table, settings, limiter)?;
        let counts = compiled.rules.iter().any(|rule| rule.policy.limits.is_some());
        let compiled = if counts { compiled.into() } else { OnceLock::new() };
        Ok(Self { config: Arc::clone(config), compiled })
    }
}

impl VirtualHost {
    fn without_rules(config: &Arc<config::VirtualHost>) -> Self {
        let (config, rules, index) = (Arc::clone(config), Vec::new(), Index::new(&[]));
        Self { config, rules, index, ignores_parameters: false }
    }

    fn compile(
        config: &Arc<config::VirtualHost>,
        table: &config::RouteTable,
        settings: Option<&Arc<HttpSettings>>,
        limiter: Option<&Arc<RateLimiter>>,
    ) -> Result<Self, CompileError> {
        let none = HttpSettings::default();
        let settings = settings.map_or(&none, |settings| &**settings);
        let resource = format!("virtual host {:?}", config.name);
        let mut rules = Vec::with_capacity(config.routes.len());
        for (i, route) in config.routes.iter().enumerate() {
            let mut rule = Rule::compile(route, config, table, settings, &resource, &format!("routes[{i}]"))?;
            if let Some(policy) = Arc::get_mut(&mut rule.policy) {
                policy.limits = limits(&route.action, &config.rate_limits, limiter);
                policy.global_limits = global_limits(&route.action, &config.rate_limits, settings);
            }
            rules.push(rule);
        }
        let conditions: Vec<_> = rules.iter().map(|rule| rule.matcher.config()).collect();
        let index = Index::new(&conditions);
        Ok(Self { config: Arc::clone(config), rules, index, ignores_parameters: table.ignore_path_parameters })
    }

    /// What its rules compare of the path.
    pub(crate) fn path<'a>(&self, view: &RequestView<'a>) -> &'a str {
        let path = view.path_only();
        if !self.ignores_parameters {
            return path;
        }
        path.split_once(';').map_or(path, |(path, _)| path)
    }

    /// The place of the first rule that takes the request.
    pub(crate) fn find(&self, view: &RequestView<'_>, bits: u64) -> Option<usize> {
        let path = self.path(view);
        self.index.first(path, view, self.rules.len(), |at| self.rules[at].matcher.is_match(path, view, bits, at))
    }
}

impl Rule {
    fn compile(
        route: &config::Route,
        host: &config::VirtualHost,
        table: &config::RouteTable,
        settings: &HttpSettings,
        resource: &str,
        field: &str,
    ) -> Result<Self, CompileError> {
        let at = |error: CompileError| CompileError::new(resource, format!("{field}: {}", error.field), error.message);
        let invalid = |what: &str, message: &str| Err(CompileError::new(resource, format!("{field}.{what}"), message));
        let mut levels = [&route.headers, &host.headers, &table.headers];
        if table.most_specific_wins {
            levels.reverse();
        }
        let mut policy = RoutePolicy {
            name: Name::clone(&route.name),
            origin: route.origin.clone(),
            operation: route.operation.clone(),
            virtual_host: Name::clone(&host.name),
            headers: HeaderEdits::compile(levels).map_err(at)?,
            ..RoutePolicy::default()
        };
        policy.rewrite.matched_prefix = matched_prefix(&route.matches.path);
        let own_filters: &[config::FilterOverride] = match &route.action {
            Action::Forward(forward) => &forward.filters,
            _ => &[],
        };
        policy.filters = filter::compile(&settings.filters, own_filters).map_err(at)?;
        let kind = match &route.action {
            Action::Forward(forward) => {
                forward_policy(&mut policy, forward, host, table).map_err(at)?;
                port_policy(&mut policy, forward, settings).map_err(at)?;
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
            fault: route.fault.as_ref().or(settings.fault.as_ref()).and_then(Faults::new),
        })
    }
}

fn forward_policy(
    policy: &mut RoutePolicy,
    forward: &Forward,
    host: &config::VirtualHost,
    table: &config::RouteTable,
) -> Result<(), CompileError> {
    policy.split = Split::compile(&forward.clusters, &forward.split_by)?;
    policy.timeout = forward.timeout;
    policy.hedge = forward.hedge.clone();
    policy.replay_limit = forward.replay_limit;
    policy.retry = forward.retry.clone().or_else(|| host.retry.clone());
    policy.hash = HashPolicies::compile(&forward.hash)?;
    policy.priority = forward.priority;
    policy.rewrite = Rewrite::new(forward, policy.rewrite.matched_prefix)?;
    policy.upgrades.clone_from(&forward.upgrades);
    policy.no_cluster_status = forward.no_cluster_status;
    // The most specific list that says anything is the one that counts.
    let mirrors = [&forward.mirrors, &host.mirrors, &table.mirrors].into_iter().find(|mirrors| !mirrors.is_empty());
    policy.mirrors = compile_mirrors(mirrors.map_or(&[], |mirrors| mirrors))?;
    Ok(())
}

fn compile_mirrors(mirrors: &[Mirror]) -> Result<Vec<Arc<MirrorPolicy>>, CompileError> {
    if mirrors.len() > MOST_MIRRORS {
        return Err(CompileError::new("mirror", "action.mirrors", format!("more than {MOST_MIRRORS} of one route")));
    }
    mirrors.iter().map(|mirror| MirrorPolicy::compile(mirror).map(Arc::new)).collect()
}

/// The limit of all routes of a port; what it has counted so far stays as long as what it says.
fn limiter(settings: Option<&Arc<HttpSettings>>, previous: Option<&RouteTable>) -> Option<Arc<RateLimiter>> {
    let config = settings?.rate_limit.as_ref()?;
    let same = |previous: &RouteTable| previous.settings.as_ref()?.rate_limit.as_ref().map(|old| old == config);
    match previous.filter(|previous| same(previous) == Some(true)) {
        Some(previous) => previous.limiter.clone(),
        None => Some(Arc::new(RateLimiter::new(config))),
    }
}

/// A route's own limit, else that of its port; `host` is what requests that came in are counted by.
fn limits(action: &Action, host: &[RateLimit], limiter: Option<&Arc<RateLimiter>>) -> Option<Limits> {
    let Action::Forward(forward) = action else { return limiter.map(|limiter| Limits::new(limiter, host)) };
    let own = forward.rate_limit.as_ref().map(|own| Arc::new(RateLimiter::new(own)));
    own.as_ref().or(limiter).map(|limiter| Limits::new(limiter, &forward.rate_limits))
}

/// Who is asked beside, with what the route says of it.
fn global_limits(action: &Action, host: &[RateLimit], settings: &HttpSettings) -> Option<GlobalLimits> {
    let services = &settings.global_limits;
    match action {
        Action::Forward(forward) => GlobalLimits::new(services, &forward.rate_limits, forward.global_limit.as_ref()),
        _ => GlobalLimits::new(services, host, None),
    }
}

/// What a route leaves to its port; zero is a word of its own.
fn port_policy(policy: &mut RoutePolicy, forward: &Forward, settings: &HttpSettings) -> Result<(), CompileError> {
    let some = |limit: Option<Duration>| limit.filter(|limit| !limit.is_zero());
    policy.idle_timeout = some(forward.idle_timeout.or(settings.idle_timeout));
    policy.max_stream_duration = some(forward.max_stream_duration.or(settings.max_stream_duration));
    policy.grpc_timeout_header_max = forward.grpc_timeout_header_max;
    // The newer form rules out the older one. Source: Envoy `FilterUtility::finalTimeout`.
    let newer = forward.max_stream_duration.is_some() || forward.grpc_timeout_header_max.is_some();
    policy.max_grpc_timeout = forward.max_grpc_timeout.filter(|_| !newer);
    if let Some(session) = forward.session.as_ref().or(settings.session.as_ref()) {
        policy.session = Sessions::compile(session)?;
    }
    Ok(())
}

fn matched_prefix(path: &PathMatch) -> Option<usize> {
    match path {
        // Of an exact path nothing is left, but for its parameters where they are not compared.
        PathMatch::Prefix { value, .. } | PathMatch::SegmentPrefix { value, .. } | PathMatch::Exact { value, .. } => {
            Some(value.len())
        }
        PathMatch::Regex(_) => None,
    }
}
