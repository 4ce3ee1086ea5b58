//! What was sent where and how it went, counted for reports of load to a control plane. Source: Envoy `load_stats.v3`, gRFC A27, A64, A85.
//!
//! A process has one [`Ledgers`], which outlives configurations; in it each cluster that is to be reported has a ledger, and in that
//! each locality a tally. A pick of such a cluster touches its locality's tally twice; a cluster without reports knows of
//! none of this. When and to whom is reported is not decided here.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, PoisonError},
    task::{Context, Poll, Waker},
};

use crate::{
    config::{self, Discovery, LoadReports, Locality, Name},
    endpoint::{Chosen, Endpoint},
    load::LoadReport,
    sync::{AtomicU64, Mutex, Ordering::Relaxed},
};

/// As many metrics by name are kept of one locality between two reports; endpoints can name any.
pub const MOST_METRICS: usize = 100;

/// Name of the cluster, and the name its endpoints are discovered by, empty where that is the same.
type Key = (Name, Name);

/// The ledgers of a process.
#[derive(Debug, Default)]
pub struct Ledgers(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    ledgers: BTreeMap<Key, Arc<Ledger>>,
    /// Who waits for the first.
    waiting: Vec<Waker>,
}

/// What is counted of one cluster.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    tallies: Mutex<BTreeMap<(Locality, u32), Arc<Tally>>>,
    /// By category.
    dropped: Mutex<BTreeMap<Name, Arc<AtomicU64>>>,
    refused: AtomicU64,
}

/// What is counted of one locality at one priority.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    issued: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    /// Begun and not ended; a report does not set it back.
    under_way: AtomicU64,
    metrics: Mutex<BTreeMap<String, Sum>>,
}

/// A metric of endpoints, added up over requests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// Of so many requests.
    pub count: u64,
    /// All together.
    pub total: f64,
}

/// What became of the requests of one cluster since it was reported last. Source: Envoy `ClusterStats`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterLoad {
    /// Its name.
    pub cluster: Name,
    /// What its endpoints are discovered by, where that is another name.
    pub service: Name,
    /// Where anything has happened, or is under way.
    pub localities: Vec<LocalityLoad>,
    /// Dropped by the categories of `drop_overloads`.
    pub dropped: Vec<(Name, u64)>,
    /// Refused by the circuit breaker, of no category.
    pub refused: u64,
}

/// What became of the requests of one locality. Source: Envoy `UpstreamLocalityStats`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalityLoad {
    /// Where.
    pub locality: Locality,
    /// Of its endpoints.
    pub priority: u32,
    /// Begun since the last report.
    pub issued: u64,
    /// Ended well.
    pub succeeded: u64,
    /// Ended otherwise, be it that the caller went away.
    pub failed: u64,
    /// Begun whenever, and not ended.
    pub under_way: u64,
    /// What its endpoints said of themselves, by the names of [`LoadReports::metrics`].
    pub metrics: BTreeMap<String, Sum>,
}

impl Ledgers {
    /// What is to be reported of the clusters that are asked for; it begins anew at 0. Clusters that are gone and have been reported
    /// are forgotten.
    pub fn collect(&self, mut wanted: impl FnMut(&Name) -> bool) -> Vec<ClusterLoad> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut loads = Vec::new();
        known.ledgers.retain(|(cluster, service), ledger| {
            if !wanted(cluster) {
                return true;
            }
            // Asked before it is emptied: what comes after is of somebody who still holds it.
            let held = Arc::strong_count(ledger) > 1;
            let load = ledger.take(cluster, service);
            let kept = held || !load.is_nothing();
            if kept {
                loads.push(load);
            }
            kept
        });
        loads
    }

    /// Ready when there is anything to report of clusters like these, be it 0.
    pub fn poll_any(&self, cx: &Context<'_>, mut wanted: impl FnMut(&Name) -> bool) -> Poll<()> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.ledgers.keys().any(|(cluster, _)| wanted(cluster)) {
            return Poll::Ready(());
        }
        if !known.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            known.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Of a cluster that is compiled: the one it had, or a new one.
    fn ledger(&self, config: &config::Cluster) -> Arc<Ledger> {
        let service = match &config.discovery {
            Discovery::Eds(name) if *name != config.name => Name::clone(name),
            _ => Name::default(),
        };
        let (ledger, waiting) = {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Where nobody reports, nobody forgets either.
            if known.ledgers.len().is_power_of_two() {
                known.ledgers.retain(|_, ledger| Arc::strong_count(ledger) > 1 || !ledger.is_idle());
            }
            let ledger = Arc::clone(known.ledgers.entry((Name::clone(&config.name), service)).or_default());
            (ledger, mem::take(&mut known.waiting))
        };
        waiting.into_iter().for_each(Waker::wake);
        ledger
    }
}

impl Ledger {
    fn tally(&self, locality: &Locality, priority: u32) -> Arc<Tally> {
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(tallies.entry((locality.clone(), priority)).or_default())
    }

    fn dropped(&self, category: &Name) -> Arc<AtomicU64> {
        let mut dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = dropped.entry(Name::clone(category)).or_insert_with(|| Arc::new(AtomicU64::new(0)));
        Arc::clone(counter)
    }

    /// Nothing would be lost with it.
    fn is_idle(&self) -> bool {
        let tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.values().all(|tally| tally.issued.load(Relaxed) == 0 && tally.under_way.load(Relaxed) == 0)
            && dropped.values().all(|counter| counter.load(Relaxed) == 0)
            && self.refused.load(Relaxed) == 0
    }

    fn take(&self, cluster: &Name, service: &Name) -> ClusterLoad {
        let mut localities = Vec::new();
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.retain(|(locality, priority), tally| {
            let held = Arc::strong_count(tally) > 1;
            let load = tally.take(locality, *priority);
            let some = !load.is_nothing();
            if some {
                localities.push(load);
            }
            held || some
        });
        let mut categories = Vec::new();
        let mut dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        dropped.retain(|category, counter| {
            let (held, count) = (Arc::strong_count(counter) > 1, counter.swap(0, Relaxed));
            if count > 0 {
                categories.push((Name::clone(category), count));
            }
            held || count > 0
        });
        ClusterLoad {
            cluster: Name::clone(cluster),
            service: Name::clone(service),
            localities,
            dropped: categories,
            refused: self.refused.swap(0, Relaxed),
        }
    }
}

impl Tally {
    /// A request is sent to an endpoint of the locality.
    pub(crate) fn begin(&self) {
        self.issued.fetch_add(1, Relaxed);
        self.under_way.fetch_add(1, Relaxed);
    }

    /// It is over, and went well or did not.
    pub(crate) fn end(&self, well: bool) {
        let counter = if well { &self.succeeded } else { &self.failed };
        counter.fetch_add(1, Relaxed);
        self.under_way.fetch_sub(1, Relaxed);
    }

    /// An endpoint said this of its load with a request that is over.
    pub(crate) fn note(&self, report: &LoadReport, wanted: &LoadReports) {
        let mut metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let mut add = |name: String, value: f64| {
            if metrics.len() < MOST_METRICS || metrics.contains_key(&name) {
                let sum = metrics.entry(name).or_default();
                (sum.count, sum.total) = (sum.count + 1, sum.total + value);
            }
        };
        for metric in &wanted.metrics {
            let (map, key) = match metric.split_once('.') {
                Some(("named_metrics", key)) => (&report.named_metrics, key),
                Some(("utilization", key)) => (&report.utilization, key),
                Some(("request_cost", key)) => (&report.request_cost, key),
                _ => {
                    let value = match metric.as_str() {
                        LoadReports::CPU => report.cpu_utilization,
                        LoadReports::MEMORY => report.mem_utilization,
                        LoadReports::APPLICATION => report.application_utilization,
                        _ => 0.0,
                    };
                    // A number that is 0 is not told from one that is not said.
                    if value != 0.0 {
                        add(metric.clone(), value);
                    }
                    continue;
                }
            };
            if key != "*" {
                map.get(key).iter().for_each(|value| add(metric.clone(), **value));
                continue;
            }
            let prefix = metric.strip_suffix('*').unwrap_or(metric);
            map.iter().for_each(|(key, value)| add(format!("{prefix}{key}"), *value));
        }
    }

    fn take(&self, locality: &Locality, priority: u32) -> LocalityLoad {
        let metrics = mem::take(&mut *self.metrics.lock().unwrap_or_else(PoisonError::into_inner));
        // Ends before beginnings: of a request that comes and goes meanwhile the end is told later, never the end alone.
        let (succeeded, failed) = (self.succeeded.swap(0, Relaxed), self.failed.swap(0, Relaxed));
        LocalityLoad {
            locality: locality.clone(),
            priority,
            succeeded,
            failed,
            issued: self.issued.swap(0, Relaxed),
            under_way: self.under_way.load(Relaxed),
            metrics,
        }
    }
}

impl ClusterLoad {
    fn is_nothing(&self) -> bool {
        self.localities.is_empty() && self.dropped.is_empty() && self.refused == 0
    }
}

impl LocalityLoad {
    fn is_nothing(&self) -> bool {
        [self.issued, self.succeeded, self.failed, self.under_way] == [0; 4] && self.metrics.is_empty()
    }
}

/// The tallies of one form of a cluster, side by side with its endpoints.
#[derive(Debug)]
pub(crate) struct Reporting {
    ledger: Arc<Ledger>,
    /// By level and place, as endpoints are.
    places: Vec<Vec<Arc<Tally>>>,
    /// As the configuration's drops.
    dropped: Vec<Arc<AtomicU64>>,
    /// Of endpoints that callers name themselves.
    elsewhere: Option<Arc<Tally>>,
    pub(crate) wanted: Arc<LoadReports>,
}

impl Reporting {
    /// Of a cluster, if it is to be reported.
    pub(crate) fn of(config: &config::Cluster, ledgers: Option<&Ledgers>) -> Option<Box<Self>> {
        let wanted = Arc::clone(config.load_reports.as_ref()?);
        let ledger = ledgers?.ledger(config);
        let mut places: BTreeMap<u32, Vec<Arc<Tally>>> = BTreeMap::new();
        for locality in &config.endpoints.localities {
            let tally = ledger.tally(&locality.locality, locality.priority);
            places.entry(locality.priority).or_default().push(tally);
        }
        let by_caller = config.discovery == Discovery::OriginalDestination;
        Some(Box::new(Self {
            places: places.into_values().collect(),
            dropped: config.endpoints.drops.iter().map(|drop| ledger.dropped(&drop.category)).collect(),
            elsewhere: by_caller.then(|| ledger.tally(&Locality::default(), 0)),
            wanted,
            ledger,
        }))
    }

    /// Where an endpoint is counted.
    pub(crate) fn tally(&self, endpoint: &Endpoint, chosen: &Chosen) -> Option<&Tally> {
        match chosen {
            Chosen::Member(_) => {
                self.places.get(endpoint.level as usize)?.get(endpoint.place as usize).map(|tally| &**tally)
            }
            Chosen::Named(_) => self.elsewhere.as_deref(),
        }
    }

    /// A request was dropped by the drop of that number.
    pub(crate) fn note_drop(&self, at: usize) {
        self.dropped.get(at).iter().for_each(|counter| {
            counter.fetch_add(1, Relaxed);
        });
    }

    /// A request was refused by the circuit breaker.
    pub(crate) fn note_refusal(&self) {
        self.ledger.refused.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        config::{Cluster, Config, DropOverload, Endpoint, Endpoints, Fraction, LocalityEndpoints, Thresholds},
        error::PickError,
        outcome::{Failure, Outcome},
        pick::Ask,
        rng::RequestRng,
        snapshot::Snapshot,
        time::Time,
    };

    fn reported(name: &str, metrics: &[&str]) -> Cluster {
        let place = |zone: &str, port: u16, priority| LocalityEndpoints {
            locality: Locality { zone: zone.into(), ..Locality::default() },
            priority,
            endpoints: vec![Endpoint::from(std::net::SocketAddr::from(([10, 0, 0, 1], port)))],
            ..LocalityEndpoints::default()
        };
        let localities = vec![place("b", 1, 0), place("a", 2, 7)];
        let metrics = metrics.iter().map(ToString::to_string).collect();
        Cluster {
            name: name.into(),
            discovery: Discovery::Eds("service".into()),
            endpoints: Arc::new(Endpoints { localities, ..Endpoints::default() }),
            load_reports: Some(Arc::new(LoadReports { metrics })),
            ..Cluster::default()
        }
    }

    fn compiled(cluster: Cluster, previous: Option<&Snapshot>) -> Snapshot {
        let mut config = Config::default();
        config.clusters.insert(Name::clone(&cluster.name), Arc::new(cluster));
        Snapshot::compile(&config, previous).unwrap()
    }

    fn pick(snapshot: &Snapshot) -> Result<crate::endpoint::Pick, PickError> {
        snapshot.cluster("reviews").unwrap().pick(&Ask::default(), Time::ZERO, &mut RequestRng::new(1, 0))
    }

    fn collect(snapshot: &Snapshot) -> Vec<ClusterLoad> {
        snapshot.ledgers().collect(|_| true)
    }

    fn numbers(load: &LocalityLoad) -> [u64; 4] {
        [load.issued, load.succeeded, load.failed, load.under_way]
    }

    /// TE22: what was begun, what went well, what did not or was given up, and what is under way; each report begins anew but
    /// for the last; numbers outlive configurations and the cluster itself.
    #[test]
    fn requests_are_counted_by_locality() {
        let snapshot = compiled(reported("reviews", &[]), None);
        assert_eq!(collect(&snapshot), [], "nobody has used it");
        let mut picks: Vec<_> = (0..4).map(|_| pick(&snapshot).unwrap()).collect();
        picks.pop().unwrap().finish(&Outcome::response(404), Time::ZERO);
        picks.pop().unwrap().finish(&Outcome::response(500), Time::ZERO);
        drop(picks.pop());
        let load = &collect(&snapshot)[0];
        assert_eq!((&*load.cluster, &*load.service, load.localities.len()), ("reviews", "service", 1));
        assert_eq!((&*load.localities[0].locality.zone, load.localities[0].priority), ("b", 0));
        assert_eq!(numbers(&load.localities[0]), [4, 1, 2, 1]);
        assert_eq!(numbers(&collect(&snapshot)[0].localities[0]), [0, 0, 0, 1]);
        // The next configuration has other endpoints, and the one after no such cluster.
        let mut next = reported("reviews", &[]);
        Arc::make_mut(&mut next.endpoints).localities.remove(0);
        let next = compiled(next, Some(&snapshot));
        drop(snapshot);
        let other = pick(&next).unwrap();
        let load = &collect(&next)[0];
        let zones: Vec<_> = load.localities.iter().map(|load| (&*load.locality.zone, numbers(load))).collect();
        assert_eq!(zones, [("a", [1, 0, 0, 1]), ("b", [0, 0, 0, 1])]);
        assert_eq!(load.localities[0].priority, 7);
        let last = compiled(Cluster { name: "other".into(), ..Cluster::default() }, Some(&next));
        drop(next);
        picks.pop().unwrap().finish(&Outcome::failed(Failure::Connect), Time::ZERO);
        other.finish(&Outcome::response(200), Time::ZERO);
        let ended: Vec<_> = collect(&last)[0].localities.iter().map(numbers).collect();
        assert_eq!(ended, [[0, 1, 0, 0], [0, 0, 1, 0]]);
        assert_eq!(collect(&last), []);
    }

    /// TE22: drops are told by category, what the circuit breaker refuses by none, and a cluster that nobody asks for keeps its
    /// numbers.
    #[test]
    fn drops_are_counted() {
        let mut cluster = reported("reviews", &[]);
        let always = |category: &str| DropOverload { category: category.into(), fraction: Fraction::ALL };
        Arc::make_mut(&mut cluster.endpoints).drops = vec![always("lb")];
        let snapshot = compiled(cluster, None);
        assert!(matches!(pick(&snapshot), Err(PickError::Dropped(_))));
        let mut cluster = reported("reviews", &[]);
        cluster.thresholds = Thresholds { max_requests: 1, ..Thresholds::default() };
        let snapshot = compiled(cluster, Some(&snapshot));
        let held = pick(&snapshot).unwrap();
        assert!(matches!(pick(&snapshot), Err(PickError::Overflow)));
        assert!(matches!(pick(&snapshot), Err(PickError::Overflow)));
        assert_eq!(snapshot.ledgers().collect(|_| false), []);
        let load = &collect(&snapshot)[0];
        assert_eq!((&load.dropped[..], load.refused), (&[("lb".into(), 1)][..], 2));
        assert_eq!(numbers(&load.localities[0]), [1, 0, 0, 1], "what is refused is not sent");
        drop(held);
    }

    /// TE22: metrics that are asked for are added up over requests that are over, under names with their map; there is a bound to
    /// how many.
    #[test]
    fn metrics_are_added_up() {
        let wanted = ["cpu_utilization", "named_metrics.*", "utilization.disk", "request_cost.none"];
        let snapshot = compiled(reported("reviews", &wanted), None);
        let map = |entries: &[(&str, f64)]| entries.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect();
        let report = LoadReport {
            cpu_utilization: 0.5,
            mem_utilization: 0.25,
            named_metrics: map(&[("queue", 3.0), ("zero", 0.0)]),
            utilization: map(&[("disk", 0.75), ("net", 1.0)]),
            ..LoadReport::default()
        };
        for _ in 0..2 {
            let mut pick = pick(&snapshot).unwrap();
            assert!(pick.wants_load());
            // Said twice with one response, it counts once.
            pick.report(LoadReport::default(), Time::ZERO);
            pick.report(report.clone(), Time::ZERO);
            assert!(collect(&snapshot)[0].localities[0].metrics.is_empty(), "not before it is over");
            pick.finish(&Outcome::response(200), Time::ZERO);
            let metrics = &collect(&snapshot)[0].localities[0].metrics;
            let sum = |total| Sum { count: 1, total };
            let expected = [
                ("cpu_utilization".to_owned(), sum(0.5)),
                ("named_metrics.queue".to_owned(), sum(3.0)),
                ("named_metrics.zero".to_owned(), sum(0.0)),
                ("utilization.disk".to_owned(), sum(0.75)),
            ];
            assert_eq!(metrics, &BTreeMap::from(expected));
        }
        let many = (0..1_000).map(|n| (n.to_string(), 1.0)).collect();
        for _ in 0..2 {
            let mut pick = pick(&snapshot).unwrap();
            pick.report(LoadReport { named_metrics: std::clone::Clone::clone(&many), ..report.clone() }, Time::ZERO);
        }
        let metrics = &collect(&snapshot)[0].localities[0].metrics;
        assert_eq!(metrics.len(), MOST_METRICS);
        assert_eq!(metrics["cpu_utilization"], Sum { count: 2, total: 1.0 });
        let quiet = compiled(reported("reviews", &[]), None);
        assert!(!pick(&quiet).unwrap().wants_load());
    }

    /// TE22: who waits for something to report is woken, and what nobody ever collects does not pile up.
    #[test]
    fn the_first_wakes_and_the_gone_are_forgotten() {
        struct Flag(std::sync::atomic::AtomicBool);
        impl std::task::Wake for Flag {
            fn wake(self: Arc<Self>) {
                self.0.store(true, std::sync::atomic::Ordering::SeqCst);
            }
        }
        let flag = Arc::new(Flag(false.into()));
        let waker = Waker::from(Arc::clone(&flag));
        let cx = Context::from_waker(&waker);
        let mut snapshot = compiled(Cluster { name: "other".into(), ..Cluster::default() }, None);
        let ledgers = Arc::clone(snapshot.ledgers());
        assert_eq!(ledgers.poll_any(&cx, |_| true), Poll::Pending);
        for n in 0..100 {
            let name = format!("cluster-{n}");
            snapshot = compiled(reported(&name, &[]), Some(&snapshot));
            assert!(snapshot.cluster(&name).is_some());
            assert!(flag.0.load(std::sync::atomic::Ordering::SeqCst), "woken at the first");
        }
        assert_eq!(ledgers.poll_any(&cx, |_| true), Poll::Ready(()));
        assert_eq!(ledgers.poll_any(&cx, |name| &**name == "none"), Poll::Pending);
        assert!(ledgers.0.lock().unwrap().ledgers.len() <= 2);
    }
}
