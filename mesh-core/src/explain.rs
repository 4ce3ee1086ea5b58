//! Why a request goes where it goes: the same decision as [`Snapshot::plan`], with every step told.
//!
//! Rules are tried in turn here instead of by index, and `plan` with the same random stream decides the same: random shares
//! are drawn by rule, not by order. Allocates freely; it is for people (`meshctl explain`), not for requests.

use std::{fmt, sync::Arc};

use rand::RngCore;
use serde::{Deserialize, Serialize};

use crate::{
    cluster::Cluster,
    config::{Abort, AbortStatus, Action, Fault, Health, LoadBalancer, RetryPolicy, Route},
    plan::{Plan, Target},
    request::RequestView,
    route::{self, Host, RouteTable, Rule, VirtualHost, describe},
    snapshot::Snapshot,
};

/// Every step of one decision.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Explanation {
    /// `GET http://reviews:9080/reviews/0`.
    pub request: String,
    /// The port whose routes apply.
    pub port: u16,
    /// The route table of the port; `None` when there is none.
    pub table: Option<String>,
    /// Virtual hosts of the table.
    pub hosts: Vec<HostTried>,
    /// Rules of the virtual host that took the request.
    pub rules: Vec<RuleTried>,
    /// What happens, in a sentence.
    pub decision: String,
    /// The split of the rule that matched.
    pub weights: Vec<WeightTold>,
    /// The cluster that was drawn.
    pub cluster: Option<ClusterTold>,
    /// Timeout, retries, faults and rewrites that apply, a line each.
    pub policy: Vec<String>,
}

/// A virtual host, and whether it takes the request.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct HostTried {
    /// Its name.
    pub name: String,
    /// It takes the request.
    pub chosen: bool,
    /// Why or why not.
    pub why: String,
}

/// A rule, and whether it takes the request.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct RuleTried {
    /// Its place in the virtual host, from 1.
    pub number: usize,
    /// Its name; empty when it has none.
    pub name: String,
    /// The object it was written in.
    pub origin: Option<String>,
    /// It takes the request.
    pub chosen: bool,
    /// Why or why not.
    pub why: String,
}

/// One destination of a split.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct WeightTold {
    /// The cluster's name.
    pub cluster: String,
    /// Its share ...
    pub weight: u32,
    /// ... of this sum.
    pub total: u64,
    /// It was drawn.
    pub chosen: bool,
}

/// A cluster and its endpoints as they are.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ClusterTold {
    /// Its name.
    pub name: String,
    /// The object its policy was written in.
    pub origin: Option<String>,
    /// Why it cannot be used.
    pub failed: Option<String>,
    /// Its load balancer.
    pub load_balancer: String,
    /// Its TLS.
    pub tls: String,
    /// Its endpoints.
    pub endpoints: Vec<EndpointTold>,
}

/// An endpoint as it is.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct EndpointTold {
    /// Where it listens.
    pub address: String,
    /// The workload there.
    pub workload: Option<String>,
    /// 0 is used first.
    pub priority: u32,
    /// `region/zone/sub-zone`; empty when unknown.
    pub locality: String,
    /// Its share.
    pub weight: u32,
    /// What the control plane says.
    pub health: Health,
    /// Left out for failing.
    pub ejected: bool,
    /// Requests under way.
    pub in_flight: u32,
}

impl Snapshot {
    /// Tells every step of the decision that [`Self::plan`] makes for this request with this random stream.
    pub fn explain(&self, view: &RequestView<'_>, rng: &mut impl RngCore) -> Explanation {
        let mut told = Explanation {
            request: format!("{} {}://{}{}", view.method, view.scheme, view.authority, view.path),
            port: view.port,
            ..Explanation::default()
        };
        let Ok(table) = self.table(view) else {
            if let Some(name) = view.target {
                told.decision = format!("404 NR: nothing is known of the listener {name:?}");
                return told;
            }
            let ports: Vec<_> = self.outbound.keys().map(u16::to_string).collect();
            told.decision = match ports.is_empty() {
                true => format!("404 NR: no routes for port {}, nor for any other", view.port),
                false => format!("404 NR: no routes for port {}; there are some for {}", view.port, ports.join(", ")),
            };
            return told;
        };
        told.table = Some(table.config.name.to_string());
        let bits = rng.next_u64();
        let chosen = table.host(view);
        told.hosts = hosts(table, chosen, view);
        let Some(host) = chosen else {
            told.decision = format!("404 NR: no virtual host takes the authority {:?}", view.authority);
            return told;
        };
        let path = host.path(view);
        let at = (0..host.rules.len()).find(|at| host.rules[*at].matcher.is_match(path, view, bits, *at));
        told.rules = rules(host, at, view, bits);
        let Some((at, rule)) = at.and_then(|at| host.rules.get(at).map(|rule| (at, rule))) else {
            told.decision = format!("404 NR: no rule of virtual host {:?} matches", &*host.config.name);
            return told;
        };
        let plan = self.plan_rule(rule, view, rng);
        told.weights = weights(rule, &plan);
        told.cluster = plan.cluster().map(|cluster| told_cluster(cluster));
        told.decision = decision(&plan, view);
        told.policy = host.config.routes.get(at).map(|route| policy(route, &plan)).unwrap_or_default();
        told
    }
}

fn hosts(table: &RouteTable, chosen: Option<&VirtualHost>, view: &RequestView<'_>) -> Vec<HostTried> {
    let name = if table.config.ignore_port { view.host() } else { view.authority };
    let tried = |host: &Host| {
        let is_chosen = chosen.is_some_and(|chosen| Arc::ptr_eq(&chosen.config, &host.config));
        let takes: Vec<_> =
            host.config.domains.iter().filter(|domain| route::domain_takes(domain, name)).map(String::as_str).collect();
        let why = match (is_chosen, takes.is_empty()) {
            (true, _) => format!("domain {} takes {name:?}", takes.join(", ")),
            (false, false) => format!("domain {} takes {name:?} too, less exactly", takes.join(", ")),
            (false, true) => format!("none of its domains takes {name:?}: {}", host.config.domains.join(", ")),
        };
        HostTried { name: host.config.name.to_string(), chosen: is_chosen, why }
    };
    table.hosts().iter().map(|host| tried(host)).collect()
}

fn rules(host: &VirtualHost, chosen: Option<usize>, view: &RequestView<'_>, bits: u64) -> Vec<RuleTried> {
    let tried = |(at, rule): (usize, &Rule)| {
        let why = match chosen {
            Some(chosen) if at > chosen => "not looked at: an earlier rule matches".to_owned(),
            _ => match rule.matcher.mismatch(host.path(view), view, bits, at) {
                Some(mismatch) => describe::mismatch(&mismatch, view),
                None => rule.matcher.describe(),
            },
        };
        RuleTried {
            number: at + 1,
            name: rule.policy.name.to_string(),
            origin: rule.policy.origin.as_deref().map(str::to_owned),
            chosen: chosen == Some(at),
            why,
        }
    };
    host.rules.iter().enumerate().map(tried).collect()
}

fn weights(rule: &Rule, plan: &Plan) -> Vec<WeightTold> {
    let split = &rule.policy.split;
    let told = |(at, destination): (usize, &route::Destination)| WeightTold {
        cluster: destination.cluster.to_string(),
        weight: destination.weight,
        total: split.total(),
        chosen: plan.choice == u32::try_from(at).ok(),
    };
    split.destinations().iter().enumerate().map(told).collect()
}

fn told_cluster(cluster: &Cluster) -> ClusterTold {
    let config = cluster.config();
    let mut live = cluster.endpoints().iter().peekable();
    let mut endpoints = Vec::with_capacity(cluster.endpoints().len());
    for locality in &config.endpoints.localities {
        let place = &locality.locality;
        let place = [&place.region, &place.zone, &place.sub_zone].map(|part| &**part).join("/");
        for configured in &locality.endpoints {
            // Of a subset only some are there.
            let Some(endpoint) = live.next_if(|live| *live.address() == configured.address) else { continue };
            endpoints.push(EndpointTold {
                address: endpoint.address().to_string(),
                workload: endpoint.config().workload.as_ref().map(|workload| workload.name.to_string()),
                priority: locality.priority,
                locality: place.trim_end_matches('/').to_owned(),
                weight: endpoint.weight(),
                health: endpoint.config().health,
                ejected: endpoint.is_ejected(),
                in_flight: endpoint.in_flight(),
            });
        }
    }
    ClusterTold {
        name: config.name.to_string(),
        origin: config.origin.as_deref().map(str::to_owned),
        failed: config.failed.clone(),
        load_balancer: match &config.load_balancer {
            LoadBalancer::RoundRobin => "in turn".to_owned(),
            LoadBalancer::LeastRequest(least) => format!("least requests of {} drawn", least.choices),
            LoadBalancer::Random => "at random".to_owned(),
            LoadBalancer::PeakEwma => "soonest answer of 2 drawn".to_owned(),
            LoadBalancer::RingHash(_) => "by hash, on a ring".to_owned(),
            LoadBalancer::Maglev(_) => "by hash, in a table".to_owned(),
            LoadBalancer::ClientWeighted(_) => "in turn, by reported load".to_owned(),
            LoadBalancer::PickFirst(_) => "the first that can be reached".to_owned(),
            LoadBalancer::Custom(custom) => format!("by {}", custom.name),
        },
        tls: match &config.tls {
            crate::config::TlsMode::Disable => "plaintext",
            crate::config::TlsMode::Always(_) => "TLS",
            crate::config::TlsMode::IfEndpointCan(_) => "mutual TLS where the endpoint takes it",
        }
        .to_owned(),
        endpoints,
    }
}

fn decision(plan: &Plan, view: &RequestView<'_>) -> String {
    match &plan.target {
        Target::Cluster(cluster) => match &cluster.config().failed {
            Some(why) => format!("503 NC: cluster {} cannot be used: {why}", cluster.name()),
            None if !cluster.endpoints().iter().any(|endpoint| endpoint.is_usable()) => {
                format!("503 UH: cluster {} has no healthy endpoint", cluster.name())
            }
            None => format!("sent to cluster {}", cluster.name()),
        },
        Target::NoCluster(name) => {
            let status = if plan.route.no_cluster_status == 0 { 503 } else { plan.route.no_cluster_status };
            format!("{status} NC: cluster {name} does not exist")
        }
        Target::Redirect => {
            let status = plan.route.redirect.as_ref().map_or(301, |redirect| redirect.status);
            format!("{status} to {}", crate::rewrite::location(plan, view))
        }
        Target::Respond => {
            format!("answered here with {}", plan.route.respond.as_ref().map_or(200, |response| response.status))
        }
        Target::Inbound => "handed to the application".to_owned(),
    }
}

fn policy(route: &Route, plan: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    if let Action::Forward(_) = route.action {
        lines.push(match plan.route.timeout {
            Some(timeout) => format!("timeout {timeout:?}"),
            None => "no timeout".to_owned(),
        });
        lines.push(plan.route.retry.as_ref().map_or_else(|| "no retries".to_owned(), retries));
    }
    lines.extend(plan.mirrors().map(|mirror| match &mirror.cluster_header {
        None => format!("copied to cluster {}", mirror.cluster),
        Some(header) => format!("copied to the cluster that its header {header} names"),
    }));
    lines.extend(route.fault.iter().flat_map(|fault| faults(fault, plan)));
    if let Some(host) = &plan.route.rewrite.host {
        lines.push(format!("host rewritten: {host:?}"));
    }
    if let Some(path) = &plan.route.rewrite.path {
        lines.push(format!("path rewritten: {path:?}"));
    }
    if plan.changes_headers() {
        lines.push("headers changed".to_owned());
    }
    lines
}

fn retries(retry: &RetryPolicy) -> String {
    let http = retry.on.http.iter().map(|condition| condition.as_str());
    let on: Vec<_> = http.chain(retry.on.grpc.iter().map(|condition| condition.as_str())).collect();
    let each = retry.per_try_timeout.map(|limit| format!(", each try within {limit:?}")).unwrap_or_default();
    format!("up to {} retries on {}{each}", retry.retries, on.join(","))
}

fn faults(fault: &Fault, plan: &Plan) -> Vec<String> {
    let percent = |fraction: crate::config::Fraction| {
        100.0 * f64::from(fraction.numerator) / f64::from(fraction.denominator.max(1))
    };
    let drawn = |it: bool| if it { "drawn" } else { "not drawn" };
    let delay = fault.delay.map(|delay| {
        let duration = delay.duration.map_or_else(|| "what its headers name".to_owned(), |time| format!("{time:?}"));
        format!("delay of {duration} for {} % ({})", percent(delay.fraction), drawn(plan.fault.delay.is_some()))
    });
    let abort = fault.abort.map(|Abort { status, fraction }| {
        let status = match status {
            AbortStatus::Http(status) => format!("HTTP {status}"),
            AbortStatus::Grpc(status) => format!("gRPC status {status}"),
            AbortStatus::ByHeader => "the status its headers name".to_owned(),
        };
        format!("abort with {status} for {} % ({})", percent(fraction), drawn(plan.fault.abort.is_some()))
    });
    delay.into_iter().chain(abort).collect()
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.request)?;
        if let Some(table) = &self.table {
            writeln!(f, "port {}, routes {table:?}", self.port)?;
        }
        if let Some(host) = self.hosts.iter().find(|host| host.chosen) {
            writeln!(f, "virtual host {:?}: {}", host.name, host.why)?;
        } else if !self.hosts.is_empty() {
            writeln!(f, "none of {} virtual hosts takes it", self.hosts.len())?;
        }
        for rule in &self.rules {
            let mark = if rule.chosen { "->" } else { "  " };
            let origin = rule.origin.as_deref().map(|origin| format!(" of {origin}")).unwrap_or_default();
            let name = if rule.name.is_empty() { String::new() } else { format!(" {:?}", rule.name) };
            writeln!(f, "{mark} rule {}{name}{origin}: {}", rule.number, rule.why)?;
        }
        for weight in &self.weights {
            let mark = if weight.chosen { "->" } else { "  " };
            writeln!(f, "{mark} cluster {}: weight {} of {}", weight.cluster, weight.weight, weight.total)?;
        }
        if let Some(cluster) = &self.cluster {
            cluster.fmt(f)?;
        }
        for line in &self.policy {
            writeln!(f, "{line}")?;
        }
        write!(f, "{}", self.decision)
    }
}

impl fmt::Display for ClusterTold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = self.origin.as_deref().map(|origin| format!(", policy of {origin}")).unwrap_or_default();
        writeln!(f, "endpoints of {} ({}, {}{origin}):", self.name, self.load_balancer, self.tls)?;
        if self.endpoints.is_empty() {
            writeln!(f, "  none")?;
        }
        for endpoint in &self.endpoints {
            let workload = endpoint.workload.as_deref().unwrap_or("unknown workload");
            let health =
                if endpoint.ejected { "ejected".to_owned() } else { format!("{:?}", endpoint.health).to_lowercase() };
            let (priority, weight) = (endpoint.priority, endpoint.weight);
            writeln!(f, "  {} {workload}: {health}, priority {priority}, weight {weight}", endpoint.address)?;
        }
        Ok(())
    }
}
