//! What was asked of whom in the last quarter of an hour: counters of processes in, rates and percentiles out. Pure; time is an
//! argument. Who is looked at, and how, is [`collect`](super::collect)'s.
//!
//! Both sides of a call count it. The caller's count is taken where there is one, since it knows of requests that never
//! arrived; whether a connection was mutual TLS is what the callee says. Every edge keeps a minute in seconds and a quarter
//! of an hour in steps of [`STEP`] seconds; more than [`EDGES`] edges are not kept, and how many are left out is told.

use std::collections::{BTreeMap, HashMap, VecDeque};

use mesh_core::telemetry::{BUCKETS, MUTUAL_TLS, REPORTER_SOURCE, UNKNOWN};
use serde::{Deserialize, Serialize};

use crate::api::observed::{Edge, Figures, Outcome, Place, is_failure};

/// Edges kept at most.
const EDGES: usize = 4096;
/// Seconds kept one by one.
const SECONDS: usize = 60;
/// Seconds of a coarse step.
const STEP: u64 = 15;
/// Coarse steps kept: a quarter of an hour.
const STEPS: usize = 60;
/// What "now" is, in seconds.
const WINDOW: usize = 10;
/// Different outcomes kept of an edge.
const OUTCOMES: usize = 32;

/// What a process has counted since it began: its admin port's `/traffic`.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Traffic {
    /// By their labels.
    #[serde(default)]
    pub(super) series: Vec<Series>,
    /// Who counted.
    #[serde(default)]
    pub(super) process: Process,
}

/// Who counted.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Process {
    /// Its number on this machine.
    pub(super) id: u32,
}

/// One set of labels.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Series {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) requests: u64,
    pub(super) duration: Durations,
}

/// How long its requests took.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Durations {
    /// Milliseconds.
    pub(super) sum: f64,
    /// By bucket, each by itself; the last is above all bounds.
    pub(super) counts: Vec<u64>,
}

/// Who calls whom as what.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(super) struct EdgeKey {
    pub(super) from: Place,
    pub(super) to: Place,
    /// The host that was asked for.
    pub(super) host: String,
    /// `http` or `grpc`.
    pub(super) protocol: String,
}

/// Requests of a stretch of time.
#[derive(Clone, Debug, Default)]
struct Counts {
    requests: u64,
    errors: u64,
    sum: f64,
    buckets: [u64; BUCKETS.len() + 1],
}

/// What one side told of an edge.
#[derive(Clone, Debug, Default)]
struct Ring {
    /// The newest last; the number of the second it is.
    seconds: VecDeque<(u64, Counts)>,
    steps: VecDeque<(u64, Counts)>,
}

#[derive(Clone, Debug, Default)]
struct Kept {
    source: Ring,
    destination: Ring,
    secure: Option<bool>,
    principals: (String, String),
    /// By status, gRPC status and flags, since the edge is known.
    outcomes: BTreeMap<Outcome, u64>,
}

/// All edges.
#[derive(Debug, Default)]
pub(super) struct History {
    edges: BTreeMap<EdgeKey, Kept>,
    /// What each process had counted when it was last looked at, by its series.
    last: HashMap<String, HashMap<BTreeMap<String, String>, Series>>,
    /// Edges there was no room for.
    left_out: u64,
}

/// A chart: one entry a point.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Chart {
    /// Unix seconds.
    pub(super) at: Vec<u64>,
    pub(super) figures: Vec<Figures>,
}

impl History {
    /// A process was looked at in the second `now` (Unix).
    ///
    /// What it had counted before it was first looked at is nobody's rate.
    pub(super) fn record(&mut self, process: &str, traffic: &Traffic, now: u64) {
        let is_new = !self.last.contains_key(process);
        let last = self.last.entry(process.to_owned()).or_default();
        let mut news = Vec::new();
        for series in &traffic.series {
            let before = last.insert(series.labels.clone(), series.clone());
            if !is_new {
                news.push((series, before));
            }
        }
        for (series, before) in news {
            self.add(series, before.as_ref(), now);
        }
    }

    /// A process is no longer there: what it counts when it comes back begins anew.
    pub(super) fn forget(&mut self, keep: impl Fn(&str) -> bool) {
        self.last.retain(|process, _| keep(process));
    }

    fn add(&mut self, series: &Series, before: Option<&Series>, now: u64) {
        // Fewer than before: it was started again under the same address.
        let before = before.filter(|before| before.requests <= series.requests);
        let requests = series.requests - before.map_or(0, |before| before.requests);
        if requests == 0 {
            return;
        }
        let label = |name: &str| series.labels.get(name).map_or(UNKNOWN, String::as_str);
        let key = EdgeKey {
            from: place(&label, "source"),
            to: place(&label, "destination"),
            host: label("destination_service").to_owned(),
            protocol: label("request_protocol").to_owned(),
        };
        if !self.edges.contains_key(&key) && self.edges.len() >= EDGES {
            self.left_out += 1;
            return;
        }
        let edge = self.edges.entry(key).or_default();
        let mut counts = Counts { requests, ..Counts::default() };
        counts.errors = if is_failure(label("response_code"), label("grpc_response_status")) { requests } else { 0 };
        counts.sum = series.duration.sum - before.map_or(0.0, |before| before.duration.sum);
        for (index, bucket) in counts.buckets.iter_mut().enumerate() {
            let of = |series: &Series| series.duration.counts.get(index).copied().unwrap_or(0);
            *bucket = of(series).saturating_sub(before.map_or(0, of));
        }
        let is_source = label("reporter") == REPORTER_SOURCE;
        if !is_source {
            edge.secure = Some(label("connection_security_policy") == MUTUAL_TLS);
        }
        for (principal, name) in
            [(&mut edge.principals.0, "source_principal"), (&mut edge.principals.1, "destination_principal")]
        {
            if label(name) != UNKNOWN {
                label(name).clone_into(principal);
            }
        }
        if is_source || edge.source.seconds.is_empty() {
            let outcome = Outcome {
                code: label("response_code").to_owned(),
                grpc: label("grpc_response_status").to_owned(),
                flags: label("response_flags").to_owned(),
            };
            if edge.outcomes.len() < OUTCOMES || edge.outcomes.contains_key(&outcome) {
                *edge.outcomes.entry(outcome).or_default() += requests;
            }
        }
        if is_source { &mut edge.source } else { &mut edge.destination }.add(now, &counts);
    }

    /// Every edge with requests in the last quarter of an hour.
    pub(super) fn edges(&mut self, now: u64) -> Vec<Edge> {
        self.edges.retain(|_, edge| edge.source.is_within(now) || edge.destination.is_within(now));
        self.edges
            .iter()
            .map(|(key, edge)| {
                let mut outcomes: Vec<_> = edge.outcomes.clone().into_iter().collect();
                outcomes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
                let EdgeKey { from, to, host, protocol } = key.clone();
                Edge {
                    from,
                    to,
                    host,
                    protocol,
                    figures: edge.told().recent(now).figures(WINDOW as f64),
                    mtls: edge.secure,
                    source_principal: edge.principals.0.clone(),
                    destination_principal: edge.principals.1.clone(),
                    outcomes,
                }
            })
            .collect()
    }

    /// What all edges that `wanted` takes add up to now.
    pub(super) fn now(&self, now: u64, wanted: impl Fn(&EdgeKey) -> bool) -> Figures {
        let mut sum = Counts::default();
        let chosen = self.edges.iter().filter(|(key, _)| wanted(key));
        chosen.for_each(|(_, edge)| sum.merge(&edge.told().recent(now)));
        sum.figures(WINDOW as f64)
    }

    /// The last quarter of an hour of all edges that `wanted` takes.
    pub(super) fn chart(&self, now: u64, wanted: impl Fn(&EdgeKey) -> bool) -> Chart {
        let step = now / STEP;
        let steps: Vec<u64> = (step.saturating_sub(STEPS as u64)..step).collect();
        let mut points = vec![Counts::default(); steps.len()];
        for (_, edge) in self.edges.iter().filter(|(key, _)| wanted(key)) {
            for (at, counts) in &edge.told().steps {
                if let Some(point) = steps.iter().position(|step| step == at).and_then(|index| points.get_mut(index)) {
                    point.merge(counts);
                }
            }
        }
        Chart {
            at: steps.iter().map(|step| step * STEP).collect(),
            figures: points.iter().map(|point| point.figures(STEP as f64)).collect(),
        }
    }

    /// Edges there was no room for, by how often they were met.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out
    }
}

impl Kept {
    /// The caller's count, or the callee's where no caller of the mesh counts.
    fn told(&self) -> &Ring {
        if self.source.seconds.is_empty() { &self.destination } else { &self.source }
    }
}

impl Ring {
    fn add(&mut self, now: u64, counts: &Counts) {
        push(&mut self.seconds, now, SECONDS, counts);
        push(&mut self.steps, now / STEP, STEPS + 1, counts);
    }

    fn is_within(&self, now: u64) -> bool {
        self.steps.back().is_some_and(|(step, _)| step + STEPS as u64 >= now / STEP)
    }

    /// The last full seconds.
    fn recent(&self, now: u64) -> Counts {
        let mut sum = Counts::default();
        let within = self.seconds.iter().rev().take_while(|(at, _)| at + WINDOW as u64 > now);
        within.for_each(|(_, counts)| sum.merge(counts));
        sum
    }
}

fn push(ring: &mut VecDeque<(u64, Counts)>, at: u64, most: usize, counts: &Counts) {
    match ring.back_mut() {
        Some((last, sum)) if *last == at => sum.merge(counts),
        _ => ring.push_back((at, counts.clone())),
    }
    while ring.len() > most {
        ring.pop_front();
    }
}

impl Counts {
    fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.sum += other.sum;
        self.buckets.iter_mut().zip(other.buckets).for_each(|(bucket, other)| *bucket += other);
    }

    fn figures(&self, seconds: f64) -> Figures {
        if self.requests == 0 {
            return Figures::default();
        }
        let requests = self.requests as f64;
        Figures {
            rate: requests / seconds,
            errors: self.errors as f64 / requests,
            p50: self.quantile(0.5),
            p95: self.quantile(0.95),
            p99: self.quantile(0.99),
        }
    }

    /// As Prometheus' `histogram_quantile` has it: straight within a bucket.
    fn quantile(&self, share: f64) -> Option<f64> {
        let all: u64 = self.buckets.iter().sum();
        if all == 0 {
            return None;
        }
        let rank = share * all as f64;
        let (mut below, mut lower) = (0.0, 0.0);
        for (count, bound) in self.buckets.iter().zip(BUCKETS) {
            let count = *count as f64;
            if below + count >= rank && count > 0.0 {
                return Some(lower + (bound - lower) * (rank - below) / count);
            }
            below += count;
            lower = bound;
        }
        Some(lower)
    }
}

fn place<'a>(label: &impl Fn(&str) -> &'a str, side: &str) -> Place {
    let of = |part: &str| label(&format!("{side}_{part}")).to_owned();
    Place {
        namespace: of("workload_namespace"),
        workload: of("workload"),
        service: of("canonical_service"),
        version: of("canonical_revision"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    fn traffic(reporter: &str, code: &str, requests: u64, bucket: usize) -> Traffic {
        let labels = [
            ("reporter", reporter),
            ("source_workload", "productpage-v1"),
            ("source_workload_namespace", "default"),
            ("destination_workload", "reviews-v1"),
            ("destination_workload_namespace", "default"),
            ("destination_service", "reviews.default.svc.cluster.local"),
            ("request_protocol", "http"),
            ("response_code", code),
            ("grpc_response_status", ""),
            ("connection_security_policy", if reporter == "source" { UNKNOWN } else { MUTUAL_TLS }),
        ];
        let mut counts = vec![0; BUCKETS.len() + 1];
        counts[bucket] = requests;
        Traffic {
            series: vec![Series {
                labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
                requests,
                duration: Durations { sum: requests as f64, counts },
            }],
            process: Process::default(),
        }
    }

    /// TE20: rates come from differences; what was counted before the first look is no rate, nor what was counted twice.
    #[test]
    fn rates_are_differences() {
        let mut history = History::default();
        history.record("a", &traffic("source", "200", 1000, 2), 100);
        assert!(history.edges(100).is_empty());
        history.record("a", &traffic("source", "200", 1050, 2), 101);
        history.record("b", &traffic("destination", "200", 7, 2), 100);
        history.record("b", &traffic("destination", "200", 57, 2), 101);
        let edges = history.edges(101);
        assert_eq!(edges.len(), 1);
        assert_eq!((edges[0].figures.rate, edges[0].figures.errors, edges[0].mtls), (5.0, 0.0, Some(true)));
        let p50 = edges[0].figures.p50.unwrap();
        assert!((1.0..5.0).contains(&p50), "{p50}");
        // Started again: what it counted since then counts.
        history.record("a", &traffic("source", "200", 30, 2), 102);
        assert_eq!(history.edges(102)[0].figures.rate, 8.0);
    }

    /// TE20: a rate is of the last ten seconds, a chart of the last quarter of an hour; an edge without either is gone.
    #[test]
    fn time_passes() {
        let mut history = History::default();
        history.record("a", &traffic("source", "503", 0, 2), 1_500);
        history.record("a", &traffic("source", "503", 30, 2), 1_501);
        assert_eq!((history.edges(1_501)[0].figures.rate, history.edges(1_501)[0].figures.errors), (3.0, 1.0));
        assert_eq!(history.edges(1_511)[0].figures.rate, 0.0);
        let chart = history.chart(1_520, |_| true);
        let busy: Vec<_> = chart.at.iter().zip(&chart.figures).filter(|(_, figures)| figures.rate > 0.0).collect();
        assert_eq!(busy.len(), 1);
        assert_eq!((*busy[0].0, busy[0].1.rate), (1_500, 2.0));
        assert!(history.edges(3_000).is_empty());
    }

    /// TE20: a mesh of any size keeps a bounded number of edges, and says how many it left out.
    #[test]
    fn edges_are_bounded() {
        let mut history = History::default();
        let mut many = traffic("source", "200", 0, 1);
        let one = many.series.remove(0);
        many.series = (0..EDGES + 5)
            .map(|n| {
                let mut series = one.clone();
                series.labels.insert("destination_workload".to_owned(), format!("w{n}"));
                series
            })
            .collect();
        history.record("a", &many, 1);
        many.series.iter_mut().for_each(|series| series.requests = 1);
        history.record("a", &many, 2);
        assert_eq!((history.edges(2).len(), history.left_out()), (EDGES, 5));
    }
}
