//! Istio's standard metrics: counted by ourselves, or through the `metrics` facade with handles resolved once per series.
//!
//! Unless the application has installed a recorder of its own, whose the series then are, one for Prometheus text is
//! installed, and requests are counted in a book of ours that is printed with the rest (`metrics/book.rs`).
//! Series are bounded: past the cap, further pairs of peers share one series named `_OTHER`, and the number of requests
//! so told is itself counted. Label values come from configuration and certificates, never from raw hosts or paths unless the
//! control plane's `Telemetry` takes them from there, and then so many by label.

use std::{
    collections::HashSet,
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use hashbrown::{Equivalent, HashMap};
use mesh_core::{
    config::{Name, ServiceName},
    outcome::Flags,
    telemetry::{BUILD, LABELS, LATEST, MUTUAL_TLS, NO_TLS, UNKNOWN, or_unknown, request_protocol},
    time::Time,
};
use metrics::{Counter, Histogram, Key, Label, Level, Metadata};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use super::{Event, Peer, Reporter, access_log::Told, sheet::Sheet};
use book::Book;
use changes::{Changes, METRICS};

mod book;
mod changes;

/// Requests told under `_OTHER` because the cap was reached.
const DROPPED: &str = "mesh_metric_series_dropped_total";
/// The name of peers past the cap.
pub(super) const OTHER: &str = "_OTHER";

/// Different (peer, code, flags) series kept.
const CAP: usize = 4096;

/// Different values that requests may give one label, where the control plane takes it from them.
const VALUES: usize = 256;

/// How long the series of a service that is gone are still told, so that whoever reads them sees their end.
const GRACE: Duration = Duration::from_secs(300);

static METADATA: Metadata<'static> = Metadata::new("mesh::telemetry", Level::INFO, Some(module_path!()));

/// Prometheus text of everything recorded; `None` when the application's own recorder has it.
pub fn render() -> Option<String> {
    exporter().map(|exporter| exporter.render() + &book::render() + &super::sheet::render())
}

/// The application has a recorder of its own.
pub(super) fn is_theirs() -> bool {
    exporter().is_none()
}

/// Something was told under the word for others, as there was no room.
pub(super) fn count_dropped() {
    metrics::with_recorder(|recorder| recorder.register_counter(&Key::from_name(DROPPED), &METADATA)).increment(1);
}

/// Requests and durations by series as JSON; `None` when the application's own recorder has them.
pub(crate) fn traffic() -> Option<serde_json::Value> {
    exporter().map(|_| book::traffic())
}

/// Moves recorded histogram samples into their buckets, which otherwise pile up until somebody scrapes.
pub(crate) fn upkeep() {
    if let Some(exporter) = exporter() {
        exporter.run_upkeep();
    }
}

fn exporter() -> Option<&'static PrometheusHandle> {
    static EXPORTER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    EXPORTER.get_or_init(install).as_ref()
}

fn install() -> Option<PrometheusHandle> {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // Somebody else's recorder stays: the series go there.
    metrics::set_global_recorder(recorder).ok()?;
    let labels = vec![Label::new("component", "proxy"), Label::new("tag", env!("CARGO_PKG_VERSION"))];
    metrics::with_recorder(|recorder| {
        recorder.register_gauge(&Key::from_parts(BUILD, labels), &METADATA).set(1.0);
    });
    Some(handle)
}

/// The series of one mesh.
#[derive(Debug)]
pub(super) struct Metrics {
    series: RwLock<HashMap<SeriesKey, Arc<Series>>>,
    /// Where requests are counted; `None` when the application's recorder has them.
    book: Option<Arc<Book>>,
    /// Services asked for that are gone, and since when.
    gone: Mutex<HashMap<Name, Time>>,
    cap: usize,
    /// Values that requests gave labels, by label; more than [`VALUES`] are none.
    values: RwLock<HashMap<String, HashSet<Box<str>>>>,
}

/// One set of labels.
#[derive(Debug)]
enum Series {
    Ours(Arc<book::Named>),
    Theirs(Handles),
}

#[derive(Debug)]
struct Handles {
    requests: Counter,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    /// Of gRPC alone.
    request_messages: Counter,
    response_messages: Counter,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct SeriesKey {
    peer: Arc<Peer>,
    host: Option<Name>,
    kind: Kind,
    changes: Option<Arc<Changes>>,
}

/// Everything that tells series of one pair of peers apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Kind {
    reporter: Reporter,
    is_grpc: bool,
    status: u16,
    grpc_status: Option<u32>,
    flags: Flags,
    mutual_tls: bool,
}

impl Kind {
    /// Of a connection whose bytes nobody looks into.
    pub(super) fn of_bytes(reporter: Reporter, flags: Flags) -> Self {
        Self { reporter, is_grpc: false, status: 0, grpc_status: None, flags, mutual_tls: false }
    }
}

impl Hash for Kind {
    /// All but the flags as one number.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let grpc = self.grpc_status.map_or(0, |status| u64::from(status) + 1);
        let bits = [self.reporter == Reporter::Source, self.is_grpc, self.mutual_tls];
        let bits = bits.into_iter().fold(0, |bits, bit| bits << 1 | u64::from(bit));
        state.write_u64(grpc << 32 ^ u64::from(self.status) << 8 ^ bits);
        self.flags.hash(state);
    }
}

/// A [`SeriesKey`] to look up, without owning anything.
struct Lookup<'a> {
    peer: &'a Arc<Peer>,
    host: Option<&'a Name>,
    kind: Kind,
    changes: Option<&'a Arc<Changes>>,
}

impl Hash for SeriesKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.peer, self.host.as_ref(), self.kind, self.changes.as_ref()).hash(state);
    }
}

impl Hash for Lookup<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.peer, self.host, self.kind, self.changes).hash(state);
    }
}

impl Equivalent<SeriesKey> for Lookup<'_> {
    fn equivalent(&self, key: &SeriesKey) -> bool {
        self.kind == key.kind
            && self.host == key.host.as_ref()
            && self.changes == key.changes.as_ref()
            && (Arc::ptr_eq(self.peer, &key.peer) || self.peer == &key.peer)
    }
}

impl Metrics {
    pub(super) fn new() -> Self {
        Self::with_cap(CAP)
    }

    fn with_cap(cap: usize) -> Self {
        let book = exporter().map(|_| Book::open());
        Self { series: RwLock::default(), book, gone: Mutex::default(), cap, values: RwLock::default() }
    }

    /// Lets go of what this process told, as a caller, of services that `is_known` has not known for [`GRACE`].
    pub(super) fn forget(&self, is_known: impl Fn(&str) -> bool, sheet: &Sheet, now: Time) {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.retain(|host, _| !is_known(host));
        let over = {
            let series = self.series.read().unwrap_or_else(PoisonError::into_inner);
            for key in series.keys().filter(|key| key.kind.reporter == Reporter::Source) {
                if let Some(host) = key.host.as_ref().filter(|host| !gone.contains_key(*host) && !is_known(host)) {
                    gone.insert(host.clone(), now);
                }
            }
            sheet.services(|host| {
                if !gone.contains_key(host) && !is_known(host) {
                    gone.insert(host.clone(), now);
                }
            });
            gone.values().any(|since| now.saturating_since(*since) >= GRACE)
        };
        if !over {
            return;
        }
        let stays = |key: &SeriesKey| {
            let since = key.host.as_ref().and_then(|host| gone.get(host));
            key.kind.reporter == Reporter::Destination || since.is_none_or(|since| now.saturating_since(*since) < GRACE)
        };
        self.series.write().unwrap_or_else(PoisonError::into_inner).retain(|key, _| stays(key));
        if let Some(book) = &self.book {
            book.retain(stays);
        }
        sheet.retain(|host| gone.get(host).is_none_or(|since| now.saturating_since(*since) < GRACE));
        gone.retain(|_, since| now.saturating_since(*since) < GRACE);
    }

    pub(super) fn record(&self, event: &Event<'_>, local: &Arc<Peer>, peer: &Arc<Peer>) {
        let kind = Kind {
            reporter: event.reporter,
            is_grpc: event.is_grpc,
            status: event.status,
            grpc_status: event.grpc_status,
            flags: event.flags,
            mutual_tls: event.mutual_tls,
        };
        let changes = event.telling.filter(|telling| !telling.metrics.is_empty()).and_then(|telling| {
            let logged = event.logged?;
            let told = Told { event, logged, local, end_nanos: 0 };
            Changes::of(telling, &told, |label, value| self.admits(label, value))
        });
        let changes = changes.as_ref();
        let lookup = Lookup { peer, host: event.service.map(|service| &service.host), kind, changes };
        if self.book.as_ref().is_some_and(|book| book.add(&lookup, event)) {
            return;
        }
        let make = || {
            let labels = labels(event.reporter, local, peer, event.service, kind);
            Series::new(&labels, kind, changes, self.book.is_some())
        };
        match self.series(lookup, self.cap, make) {
            Some((key, series)) => self.tell(key, &series, event),
            None => self.tell_other(event, kind),
        }
    }

    /// May a label have this value, which a request gave it? Those that came first may, and what is beyond is [`OTHER`] there,
    /// so that one caller's words leave room for other series.
    fn admits(&self, label: &str, value: &str) -> bool {
        let known = self.values.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(values) = known.get(label)
            && (values.contains(value) || values.len() >= VALUES)
        {
            return values.contains(value);
        }
        drop(known);
        let mut known = self.values.write().unwrap_or_else(PoisonError::into_inner);
        let values = known.entry(label.to_owned()).or_default();
        if values.len() < VALUES {
            values.insert(value.into());
        }
        values.contains(value)
    }

    fn tell(&self, key: SeriesKey, series: &Series, event: &Event<'_>) {
        match (series, &self.book) {
            (Series::Ours(labels), Some(book)) => book.add_new(key, labels, event),
            (Series::Ours(_), None) => {}
            (Series::Theirs(handles), _) => {
                handles.requests.increment(1);
                handles.duration.record(event.duration.as_secs_f64() * 1e3);
                handles.request_bytes.record(event.request_bytes as f64);
                handles.response_bytes.record(event.response_bytes as f64);
                handles.request_messages.increment(event.request_messages);
                handles.response_messages.increment(event.response_messages);
            }
        }
    }

    /// The series of that key, made if there is room for it.
    fn series(
        &self,
        lookup: Lookup<'_>,
        cap: usize,
        make: impl FnOnce() -> Series,
    ) -> Option<(SeriesKey, Arc<Series>)> {
        let known = self.series.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((key, series)) = known.get_key_value(&lookup) {
            return Some((key.clone(), Arc::clone(series)));
        }
        if known.len() >= cap {
            return None;
        }
        drop(known);
        let series = Arc::new(make());
        let Lookup { peer, host, kind, changes } = lookup;
        let key = SeriesKey { peer: Arc::clone(peer), host: host.cloned(), kind, changes: changes.cloned() };
        let mut known = self.series.write().unwrap_or_else(PoisonError::into_inner);
        let series = Arc::clone(known.entry(key.clone()).or_insert(series));
        Some((key, series))
    }

    /// In the shared series of everything past the cap: by reporter and status alone.
    fn tell_other(&self, event: &Event<'_>, kind: Kind) {
        static OTHERS: OnceLock<Arc<Peer>> = OnceLock::new();
        count_dropped();
        let others = OTHERS.get_or_init(|| {
            let name: Name = OTHER.into();
            let workload =
                mesh_core::config::Workload { name: name.clone(), canonical_name: name, ..Default::default() };
            Arc::new(Peer::new(workload, None))
        });
        let status = event.status / 100 * 100;
        let kind = Kind { status, grpc_status: None, flags: Flags::default(), ..kind };
        let lookup = Lookup { peer: others, host: None, kind, changes: None };
        let make = || {
            let labels = labels(event.reporter, others, others, None, kind);
            Series::new(&labels, kind, None, self.book.is_some())
        };
        if let Some((key, series)) = self.series(lookup, usize::MAX, make) {
            self.tell(key, &series, event);
        }
    }
}

impl Series {
    fn new(labels: &[Label], kind: Kind, changes: Option<&Arc<Changes>>, ours: bool) -> Self {
        if ours {
            return Self::Ours(book::named(labels, kind.is_grpc, changes));
        }
        let labels_of = |metric: &str| match changes {
            None => Some(labels.to_vec()),
            Some(changes) => changes.apply(metric, labels),
        };
        let is_told = |metric: &str| kind.is_grpc || !metric.ends_with("_messages_total");
        metrics::with_recorder(|recorder| {
            let key = |metric: &str| {
                let labels = labels_of(metric).filter(|_| is_told(metric))?;
                Some(Key::from_parts(format!("istio_{metric}"), labels))
            };
            let [requests, duration, request_bytes, response_bytes, request_messages, response_messages] = METRICS;
            let counter = |metric| match key(metric) {
                Some(key) => recorder.register_counter(&key, &METADATA),
                None => Counter::noop(),
            };
            let histogram = |metric| match key(metric) {
                Some(key) => recorder.register_histogram(&key, &METADATA),
                None => Histogram::noop(),
            };
            Self::Theirs(Handles {
                requests: counter(requests),
                duration: histogram(duration),
                request_bytes: histogram(request_bytes),
                response_bytes: histogram(response_bytes),
                request_messages: counter(request_messages),
                response_messages: counter(response_messages),
            })
        })
    }
}

/// Istio's 25 labels, in the order of [`LABELS`].
pub(super) fn labels(
    reporter: Reporter,
    local: &Peer,
    peer: &Peer,
    service: Option<&ServiceName>,
    kind: Kind,
) -> Vec<Label> {
    let (source, destination) = match reporter {
        Reporter::Source => (local, peer),
        Reporter::Destination => (peer, local),
    };
    let security = match (reporter, kind.mutual_tls) {
        // Istio leaves it to the destination to say.
        (Reporter::Source, _) => UNKNOWN,
        (Reporter::Destination, true) => MUTUAL_TLS,
        (Reporter::Destination, false) => NO_TLS,
    };
    let (from, to) = (source.workload(), destination.workload());
    let revision = |name: &Name| if name.is_empty() { LATEST.to_owned() } else { name.to_string() };
    let known = |name: &str| or_unknown(name).to_owned();
    let principal = |peer: &Peer| known(peer.principal().map_or("", |name| name));
    let asked = |part: fn(&ServiceName) -> &Name| known(service.map_or("", |service| part(service)));
    let values = [
        reporter.as_str().to_owned(),
        known(&from.name),
        known(&from.canonical_name),
        revision(&from.canonical_revision),
        known(&from.namespace),
        principal(source),
        known(&from.app),
        known(&from.version),
        known(&from.cluster),
        known(&to.name),
        known(&to.namespace),
        principal(destination),
        known(&to.app),
        known(&to.version),
        asked(|service| &service.host),
        known(&to.canonical_name),
        revision(&to.canonical_revision),
        asked(|service| &service.name),
        known(service.map_or(&to.namespace, |service| &service.namespace)),
        known(&to.cluster),
        request_protocol(kind.is_grpc).to_owned(),
        kind.status.to_string(),
        kind.grpc_status.map_or_else(String::new, |status| status.to_string()),
        kind.flags.to_string(),
        security.to_owned(),
    ];
    LABELS.into_iter().zip(values).map(|(key, value)| Label::new(key, value)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use mesh_core::config::Workload;

    use super::*;

    fn workload(name: &str) -> Workload {
        Workload {
            name: format!("{name}-v1").as_str().into(),
            namespace: "default".into(),
            canonical_name: name.into(),
            app: name.into(),
            version: "v1".into(),
            cluster: "Kubernetes".into(),
            ..Workload::default()
        }
    }

    fn record(metrics: &Metrics, reporter: Reporter, local: &Arc<Peer>, peer: &Arc<Peer>, status: u16) {
        let service = ServiceName {
            host: "ratings.default.svc.cluster.local".into(),
            name: "ratings".into(),
            namespace: "default".into(),
        };
        let event = Event {
            reporter,
            peer: Some(peer),
            service: Some(&service),
            cluster: None,
            route: None,
            upstream: None,
            logged: None,
            telling: None,
            is_grpc: false,
            status,
            grpc_status: None,
            flags: Flags::default(),
            details: "",
            request_bytes: 100,
            response_bytes: 2000,
            request_messages: 0,
            response_messages: 0,
            duration: Duration::from_millis(7),
            mutual_tls: reporter == Reporter::Destination,
            attempts: 1,
        };
        metrics.record(&event, local, peer);
    }

    /// TE1: Istio's names, 25 labels and buckets, from both reporters.
    #[test]
    fn series_have_istios_names_labels_and_buckets() {
        let metrics = Metrics::new();
        let id = Some("spiffe://cluster.local/ns/default/sa/reviews".into());
        let reviews = Arc::new(Peer::new(workload("reviews-te1"), id));
        let ratings = Arc::new(Peer::new(workload("ratings-te1"), None));
        record(&metrics, Reporter::Source, &reviews, &ratings, 200);
        record(&metrics, Reporter::Source, &reviews, &ratings, 200);
        record(&metrics, Reporter::Destination, &ratings, &reviews, 200);
        let text = render().unwrap();
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("istio_requests_total{") && line.contains("reviews-te1-v1"))
            .collect();
        assert_eq!(lines.len(), 2, "{text}");
        let source = lines.iter().find(|line| line.contains("reporter=\"source\"")).unwrap();
        assert!(source.ends_with(" 2"), "{source}");
        assert_eq!(source.matches("=\"").count(), 25, "{source}");
        for label in [
            "source_workload=\"reviews-te1-v1\"",
            "source_principal=\"spiffe://cluster.local/ns/default/sa/reviews\"",
            "destination_workload=\"ratings-te1-v1\"",
            "destination_principal=\"unknown\"",
            "destination_service=\"ratings.default.svc.cluster.local\"",
            "destination_service_name=\"ratings\"",
            "destination_canonical_revision=\"latest\"",
            "connection_security_policy=\"unknown\"",
            "response_code=\"200\"",
            "response_flags=\"-\"",
            "grpc_response_status=\"\"",
            "request_protocol=\"http\"",
        ] {
            assert!(source.contains(label), "{label} in {source}");
        }
        let destination = lines.iter().find(|line| line.contains("reporter=\"destination\"")).unwrap();
        assert!(destination.contains("connection_security_policy=\"mutual_tls\""), "{destination}");
        let buckets: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("istio_request_duration_milliseconds_bucket{"))
            .filter(|line| line.contains("reviews-te1-v1") && line.contains("reporter=\"source\""))
            .map(|line| line.split("le=\"").nth(1).unwrap().split('"').next().unwrap())
            .collect();
        assert_eq!(
            buckets.join(" "),
            "0.5 1 5 10 25 50 100 250 500 1000 2500 5000 10000 30000 60000 300000 600000 1800000 3600000 +Inf"
        );
        assert!(text.contains("istio_build{component=\"proxy\""), "{text}");
    }

    /// TE1: series past the cap are told under one name: a caller cannot grow our memory.
    #[test]
    fn series_are_bounded() {
        let metrics = Metrics::with_cap(10);
        let local = Arc::new(Peer::new(workload("bounded"), None));
        for n in 0..1000 {
            let peer = Arc::new(Peer::new(workload(&format!("caller-{n}")), None));
            record(&metrics, Reporter::Destination, &local, &peer, 200 + (n % 7));
        }
        let kept = metrics.series.read().unwrap().len();
        assert!(kept <= 10 + 1, "{kept}");
        assert!(render().unwrap().contains("_OTHER"));
    }

    /// TE1: what was told of a service goes a while after the service has gone; what callers of ours told stays.
    #[test]
    fn series_go_with_their_service() {
        let metrics = Metrics::with_cap(10);
        let (local, peer) = (workload("going-local"), workload("going-peer"));
        let (local, peer) = (Arc::new(Peer::new(local, None)), Arc::new(Peer::new(peer, None)));
        record(&metrics, Reporter::Source, &local, &peer, 200);
        record(&metrics, Reporter::Destination, &local, &peer, 200);
        let sheet = Sheet::open(false);
        let count = || render().unwrap().lines().filter(|line| line.contains("going-peer")).count();
        let (all, start) = (count(), Time::default());
        metrics.forget(|_| false, &sheet, start);
        metrics.forget(|_| false, &sheet, start + (GRACE - Duration::from_secs(1)));
        assert_eq!(count(), all, "still to be read");
        metrics.forget(|_| true, &sheet, start + GRACE);
        metrics.forget(|_| false, &sheet, start + GRACE);
        assert_eq!(count(), all, "it was there again");
        metrics.forget(|_| false, &sheet, start + GRACE + GRACE);
        assert_eq!((count() * 2, metrics.series.read().unwrap().len()), (all, 1));
        record(&metrics, Reporter::Source, &local, &peer, 200);
        assert_eq!(count(), all, "counted anew");
    }
}
