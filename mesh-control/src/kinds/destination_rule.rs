//! Istio `DestinationRule`: how a host is reached, and the subsets of its endpoints.
//!
//! Policies are kept field by field ([`Settings`]), because a subset or port overrides field by field; what a cluster gets
//! in the end is worked out in `compile/cluster.rs`. Source: `istio.networking.v1.DestinationRule`.

use mesh_core::config::{Labels, Monitor, OutlierDetection, RetryBudget, SuccessRate};

use super::{
    read::{Fields, Reader},
    yaml::{At, Node},
};

mod balancing;
mod settings;

pub use balancing::{Balancing, Choice, Distribute, Locating};
pub use settings::{ConnectionPool, H2Upgrade, Settings, Tls, TlsKind};

/// A `DestinationRule`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DestinationRule {
    /// The host meant; short names are of the object's namespace.
    pub host: At<String>,
    /// For all its endpoints.
    pub policy: TrafficPolicy,
    /// Named parts of them.
    pub subsets: Vec<Subset>,
    /// Who may see it.
    pub export_to: Vec<String>,
    /// Labels of the callers it is for; `None` is all.
    pub callers: Option<Labels>,
}

/// A named part of a host's endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Subset {
    /// Its name.
    pub name: At<String>,
    /// Labels its endpoints have; empty is all endpoints.
    pub labels: Labels,
    /// Overrides the rule's.
    pub policy: TrafficPolicy,
}

/// A policy, and its exceptions by port.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrafficPolicy {
    /// For every port.
    pub settings: Settings,
    /// By port of the service; each replaces the settings as a set.
    pub ports: Vec<(u16, Settings)>,
}

impl DestinationRule {
    pub(crate) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        let host = fields.read("host", |node, path| reader.text(node, path));
        if host.is_none() && !fields.seen("host") {
            reader.missing(fields, "host");
        }
        let policy = fields.read("trafficPolicy", |node, path| policy(node, path, reader)).unwrap_or_default();
        let mut subsets: Vec<Subset> = Vec::new();
        if let Some((node, path)) = fields.take("subsets") {
            for (node, path) in reader.list(node, &path) {
                let Some(subset) = subset(node, &path, reader) else { continue };
                match subsets.iter().find(|other| other.name == subset.name) {
                    Some(other) => {
                        let line = other.name.at.line;
                        let message = format!("subset {:?} is defined twice", subset.name.value);
                        reader.invalid(subset.name.at, message).note = Some(format!("first defined in line {line}"));
                    }
                    None => subsets.push(subset),
                }
            }
        }
        let mut callers = None;
        if let Some((node, path)) = fields.take("workloadSelector")
            && let Some(mut selector) = reader.fields(node, &path)
        {
            callers = selector.read("matchLabels", |node, path| Some(reader.labels(node, path)));
            selector.close(reader);
        }
        let export_to = super::export_to(fields, reader);
        Self { host: host.unwrap_or_default(), policy, subsets, export_to, callers }
    }
}

fn subset(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Subset> {
    let mut fields = reader.fields(node, path)?;
    let name = fields.read("name", |node, path| reader.text(node, path));
    if name.is_none() && !fields.seen("name") {
        reader.missing(&fields, "name");
    }
    let labels = fields.read("labels", |node, path| Some(reader.labels(node, path))).unwrap_or_default();
    let policy = fields.read("trafficPolicy", |node, path| policy(node, path, reader)).unwrap_or_default();
    fields.close(reader);
    Some(Subset { name: name?, labels, policy })
}

fn policy(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<TrafficPolicy> {
    let mut fields = reader.fields(node, path)?;
    let mut settings = Settings::read(&mut fields, reader);
    settings.retry_budget = fields.read("retryBudget", |node, path| retry_budget(node, path, reader));
    let mut ports: Vec<(u16, Settings)> = Vec::new();
    if let Some((node, path)) = fields.take("portLevelSettings") {
        for (node, path) in reader.list(node, &path) {
            let Some(mut fields) = reader.fields(node, &path) else { continue };
            let number = fields.read("port", |node, path| port_number(node, path, reader));
            if number.is_none() && !fields.seen("port") {
                reader.missing(&fields, "port");
            }
            let settings = Settings::read(&mut fields, reader);
            fields.close(reader);
            let Some(number) = number else { continue };
            if ports.iter().any(|(other, _)| *other == number) {
                reader.invalid(node.at, format!("{path}: port {number} has settings already"));
            }
            ports.push((number, settings));
        }
    }
    fields.refused(
        reader,
        &["tunnel", "proxyProtocol"],
        "remove it: connections go straight to the endpoint, with no proxy between",
    );
    fields.close(reader);
    Some(TrafficPolicy { settings, ports })
}

/// `{number: 9080}`.
pub(crate) fn port_number(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<u16> {
    let mut fields = reader.fields(node, path)?;
    let number = fields.read("number", |node, path| reader.port(node, path));
    if number.is_none() && !fields.seen("number") {
        reader.missing(&fields, "number");
    }
    fields.close(reader);
    number
}

/// Source: Istio `TrafficPolicy.RetryBudget`.
fn retry_budget(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<RetryBudget> {
    let mut fields = reader.fields(node, path)?;
    let mut budget = RetryBudget::default();
    if let Some(percent) = fields.read("percent", |node, path| reader.percent(node, path)) {
        budget.percent = percent;
    }
    if let Some(least) = fields.read("minRetryConcurrency", |node, path| reader.u32(node, path)) {
        budget.min_concurrency = least;
    }
    fields.ignored(reader, &["budgetInterval"], "the budget is a share of what is under way at the moment");
    fields.close(reader);
    Some(budget)
}

/// Outlier detection as Istio switches it on: five 5xx in a row, unless the object says otherwise. What it cannot say is
/// off, ejection by success rate above all.
fn outlier(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<(OutlierDetection, u32)> {
    let mut fields = reader.fields(node, path)?;
    let mut out = OutlierDetection {
        success_rate: SuccessRate { enforcing: 0, enforcing_local_origin: 0, ..SuccessRate::default() },
        ..OutlierDetection::default()
    };
    if let Some((node, path)) = fields.take("consecutiveErrors") {
        // 1.0's field counted gateway errors.
        enforce_gateway(&mut out, reader.u32(node, &path).unwrap_or_default());
        out.consecutive_5xx = 0;
        reader.deprecated(
            node.at,
            format!("{path} is deprecated"),
            "write consecutive5xxErrors or consecutiveGatewayErrors",
        );
    }
    if let Some(count) = fields.read("consecutive5xxErrors", |node, path| reader.u32(node, path)) {
        out.consecutive_5xx = count;
    }
    if let Some(count) = fields.read("consecutiveGatewayErrors", |node, path| reader.u32(node, path)) {
        enforce_gateway(&mut out, count);
    }
    if let Some(split) = fields.read("splitExternalLocalOriginErrors", |node, path| reader.boolean(node, path)) {
        out.split_local_origin = split;
    }
    if let Some(count) = fields.read("consecutiveLocalOriginFailures", |node, path| reader.u32(node, path)) {
        out.consecutive_local_origin_failure = count;
    }
    if let Some(interval) = fields.read("interval", |node, path| reader.some_time(node, path)) {
        out.interval = interval;
    }
    if let Some(time) = fields.read("baseEjectionTime", |node, path| reader.some_time(node, path)) {
        out.base_ejection_time = time;
        out.max_ejection_time = out.max_ejection_time.max(time);
    }
    let percent = |reader: &mut Reader<'_>, node: &Node, path: &str| {
        reader.integer(node, path, 0, 100).and_then(|n| u32::try_from(n.value).ok())
    };
    if let Some(most) = fields.read("maxEjectionPercent", |node, path| percent(reader, node, path)) {
        out.max_ejection_percent = most;
    }
    if let Some((node, path)) = fields.take("outlierDetectionHttpErrorCodes") {
        let codes =
            reader.list(node, &path).into_iter().filter_map(|(node, path)| reader.integer(node, &path, 100, 599));
        let statuses = codes.filter_map(|code| u16::try_from(code.value).ok()).map(|code| (code, code)).collect();
        // They are what counts, instead of 5xx; as many in a row.
        let name = "outlierDetectionHttpErrorCodes".into();
        out.monitors = vec![Monitor { name, consecutive: out.consecutive_5xx, statuses, ..Monitor::default() }];
        out.consecutive_5xx = 0;
    }
    // Without it there is no panic mode as soon as outlier detection is there.
    let healthy = fields.read("minHealthPercent", |node, path| percent(reader, node, path)).unwrap_or(0);
    fields.close(reader);
    Some((out, healthy))
}

/// Off at 0, as in Istio.
fn enforce_gateway(out: &mut OutlierDetection, count: u32) {
    out.consecutive_gateway_failure = count;
    out.enforcing_consecutive_gateway_failure = if count > 0 { 100 } else { 0 };
}
