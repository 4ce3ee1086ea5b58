//! What the control plane tells of itself to Prometheus, by the names istiod has, so that Istio's dashboards read it.
//!
//! What is counted is what happens here: changes of objects and workloads, pushes and what became of them. There is no
//! injection and no Go runtime, so series of those are not made up. Source: istiod `pilot/pkg/xds/monitoring.go`,
//! `pilot/pkg/monitoring`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_xds::ads::TypeUrl;

use crate::{
    api::ProxyStatus,
    kinds::{Kind, Object},
    registry::Registered,
    store::{Action, Change},
};

/// Seconds. Source: istiod `pilot_proxy_convergence_time`, and two below it: one machine is faster than a cluster.
const SECONDS: [f64; 10] = [0.01, 0.05, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
/// Bytes. Source: istiod `pilot_xds_config_size_bytes`.
const BYTES: [f64; 6] = [1.0, 10_000.0, 1_000_000.0, 4_000_000.0, 10_000_000.0, 40_000_000.0];

/// Counters of one control plane.
#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// By type, in small letters.
    pushes: BTreeMap<&'static str, u64>,
    rejects: BTreeMap<&'static str, u64>,
    sizes: BTreeMap<&'static str, Histogram>,
    /// Why views were made again.
    triggers: BTreeMap<&'static str, u64>,
    /// Changes of objects, by kind and what happened.
    objects: BTreeMap<(Kind, &'static str), u64>,
    /// Changes of who runs, by what happened.
    workloads: BTreeMap<&'static str, u64>,
    passed: u64,
    failed: u64,
    making: Histogram,
    convergence: Histogram,
}

#[derive(Debug, Default)]
struct Histogram {
    /// By bound, and what is above them.
    counts: Vec<u64>,
    sum: f64,
}

/// What made views be made again. Source: istiod's `pilot_push_triggers`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trigger {
    /// An object.
    Config,
    /// Who runs where.
    Endpoint,
}

impl Trigger {
    fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Endpoint => "endpoint",
        }
    }
}

impl Metrics {
    /// A version of a type was sent to one workload.
    pub(crate) fn pushed(&self, kind: TypeUrl, bytes: usize) {
        let mut counts = self.lock();
        *counts.pushes.entry(label(kind)).or_default() += 1;
        counts.sizes.entry(label(kind)).or_default().add(&BYTES, bytes as f64);
    }

    /// A workload refused one.
    pub(crate) fn refused(&self, kind: TypeUrl) {
        *self.lock().rejects.entry(label(kind)).or_default() += 1;
    }

    /// A workload uses all that a change meant to it, so long after the change.
    pub(crate) fn converged(&self, after: Duration) {
        self.lock().convergence.add(&SECONDS, after.as_secs_f64());
    }

    /// The views of all workloads were made.
    pub(crate) fn made(&self, took: Duration) {
        self.lock().making.add(&SECONDS, took.as_secs_f64());
    }

    /// Files were looked through and taken, with what that changed.
    pub(crate) fn applied(&self, changes: &[Change]) {
        let mut counts = self.lock();
        counts.passed += 1;
        let mut triggers = 0;
        for change in changes {
            let event = match change.action {
                Action::Created => "add",
                Action::Configured => "update",
                Action::Deleted => "delete",
                Action::Unchanged => continue,
            };
            triggers += 1;
            *counts.objects.entry((change.key.kind, event)).or_default() += 1;
        }
        if triggers > 0 {
            *counts.triggers.entry(Trigger::Config.as_str()).or_default() += 1;
        }
    }

    /// Files were refused.
    pub(crate) fn invalid(&self) {
        self.lock().failed += 1;
    }

    /// Who runs where has changed: `add`, `update` or `delete`.
    pub(crate) fn workload(&self, event: &'static str) {
        let mut counts = self.lock();
        *counts.workloads.entry(event).or_default() += 1;
        *counts.triggers.entry(Trigger::Endpoint.as_str()).or_default() += 1;
    }

    /// Prometheus text, with what there is at the moment.
    pub(crate) fn render(&self, now: &Now<'_>) -> String {
        let counts = self.lock();
        let mut text = Text::default();
        text.family("istio_build", "gauge");
        text.line("istio_build", &[("component", "pilot"), ("tag", env!("CARGO_PKG_VERSION"))], 1);
        text.family("pilot_xds", "gauge");
        let mut versions: BTreeMap<&str, u64> = BTreeMap::new();
        now.proxies.iter().for_each(|proxy| *versions.entry(&proxy.version).or_default() += 1);
        for (version, count) in versions {
            text.line("pilot_xds", &[("version", if version.is_empty() { "unknown" } else { version })], count);
        }
        let of = |kind: Kind| now.objects.iter().filter(|object| object.key.kind == kind).count() as u64;
        text.gauge("pilot_services", of(Kind::Service) + of(Kind::ServiceEntry));
        text.gauge("pilot_virt_services", of(Kind::VirtualService));
        text.gauge("pilot_destrules", of(Kind::DestinationRule));
        text.gauge("pilot_workloads", now.workloads.len() as u64);
        text.by("pilot_xds_pushes", "type", &counts.pushes);
        text.by("pilot_total_xds_rejects", "type", &counts.rejects);
        text.family("pilot_total_xds_internal_errors", "counter");
        text.line("pilot_total_xds_internal_errors", &[], 0);
        text.by("pilot_push_triggers", "type", &counts.triggers);
        text.family("pilot_k8s_cfg_events", "counter");
        for ((kind, event), count) in &counts.objects {
            text.line("pilot_k8s_cfg_events", &[("type", kind.as_str()), ("event", event)], *count);
        }
        text.family("pilot_k8s_reg_events", "counter");
        for (event, count) in &counts.workloads {
            text.line("pilot_k8s_reg_events", &[("type", "Workloads"), ("event", event)], *count);
        }
        for (name, count) in [("galley_validation_passed", counts.passed), ("galley_validation_failed", counts.failed)]
        {
            text.family(name, "counter");
            text.line(name, &[], count);
        }
        text.family("pilot_xds_push_time", "histogram");
        text.histogram("pilot_xds_push_time", &[], &SECONDS, &counts.making);
        text.family("pilot_proxy_convergence_time", "histogram");
        text.histogram("pilot_proxy_convergence_time", &[], &SECONDS, &counts.convergence);
        text.family("pilot_xds_config_size_bytes", "histogram");
        for (kind, sizes) in &counts.sizes {
            text.histogram("pilot_xds_config_size_bytes", &[("type", kind)], &BYTES, sizes);
        }
        text.0
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What there is at the moment.
pub(crate) struct Now<'a> {
    pub(crate) objects: &'a [std::sync::Arc<Object>],
    pub(crate) workloads: &'a [std::sync::Arc<Registered>],
    pub(crate) proxies: &'a [ProxyStatus],
}

impl Histogram {
    fn add(&mut self, bounds: &[f64], value: f64) {
        self.counts.resize(bounds.len() + 1, 0);
        self.sum += value;
        if let Some(count) = self.counts.get_mut(bounds.partition_point(|bound| *bound < value)) {
            *count += 1;
        }
    }
}

/// Prometheus text exposition 0.0.4.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str) {
        let _ = writeln!(self.0, "# TYPE {name} {kind}");
    }

    fn gauge(&mut self, name: &str, value: u64) {
        self.family(name, "gauge");
        self.line(name, &[], value);
    }

    /// A counter by one label.
    fn by(&mut self, name: &str, label: &str, counts: &BTreeMap<&'static str, u64>) {
        self.family(name, "counter");
        counts.iter().for_each(|(value, count)| self.line(name, &[(label, value)], *count));
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let _ = writeln!(self.0, "{name}{} {value}", braces(labels));
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], bounds: &[f64], histogram: &Histogram) {
        let mut below = 0;
        for (at, bound) in bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]).enumerate() {
            below += histogram.counts.get(at).copied().unwrap_or(0);
            let within: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.line(&format!("{name}_bucket"), &within, below);
        }
        let _ = writeln!(self.0, "{name}_sum{} {}", braces(labels), histogram.sum);
        self.line(&format!("{name}_count"), labels, below);
    }
}

fn braces(labels: &[(&str, &str)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    format!("{{{}}}", labels.join(","))
}

/// `cds`, `eds`: as istiod's label has it.
fn label(kind: TypeUrl) -> &'static str {
    match kind {
        TypeUrl::Cluster => "cds",
        TypeUrl::Endpoint => "eds",
        TypeUrl::Listener => "lds",
        TypeUrl::Route => "rds",
        TypeUrl::Secret => "sds",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Key;

    /// TE1: the control plane tells of its pushes, refusals and changes by istiod's names.
    #[test]
    fn pushes_and_changes_are_told_by_istiods_names() {
        let metrics = Metrics::default();
        metrics.pushed(TypeUrl::Cluster, 5_000);
        metrics.pushed(TypeUrl::Cluster, 2_000_000);
        metrics.refused(TypeUrl::Route);
        metrics.converged(Duration::from_millis(40));
        metrics.made(Duration::from_millis(2));
        let change = |action| Change { key: Key::new(Kind::VirtualService, "default", "reviews"), action };
        metrics.applied(&[change(Action::Created), change(Action::Unchanged)]);
        metrics.applied(&[change(Action::Unchanged)]);
        metrics.invalid();
        metrics.workload("add");
        let text = metrics.render(&Now { objects: &[], workloads: &[], proxies: &[] });
        for line in [
            "istio_build{component=\"pilot\",tag=",
            "pilot_xds_pushes{type=\"cds\"} 2",
            "pilot_total_xds_rejects{type=\"rds\"} 1",
            "pilot_xds_config_size_bytes_bucket{type=\"cds\",le=\"10000\"} 1",
            "pilot_xds_config_size_bytes_bucket{type=\"cds\",le=\"+Inf\"} 2",
            "pilot_proxy_convergence_time_bucket{le=\"0.01\"} 0",
            "pilot_proxy_convergence_time_bucket{le=\"0.05\"} 1",
            "pilot_proxy_convergence_time_count 1",
            "pilot_k8s_cfg_events{type=\"VirtualService\",event=\"add\"} 1",
            "pilot_k8s_reg_events{type=\"Workloads\",event=\"add\"} 1",
            "pilot_push_triggers{type=\"config\"} 1",
            "pilot_push_triggers{type=\"endpoint\"} 1",
            "galley_validation_passed 2",
            "galley_validation_failed 1",
            "pilot_services 0",
        ] {
            assert!(text.lines().any(|it| it.starts_with(line)), "{line} in\n{text}");
        }
        assert_eq!(braces(&[("a", "x\"\\\n")]), r#"{a="x\"\\\n"}"#);
    }
}
