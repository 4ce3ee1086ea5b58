//! Generated route configurations, and generated requests through both: what arrived where, and what came back, is the same.
//!
//! The same seed gives the same configurations and requests, so a run of the tests says the same twice; `MESH_SEED` gives
//! another seed, and with the word `random` a new one. `MESH_PAIRS` makes it longer or shorter. What differs is shown as
//! small as it can be made.

use std::{
    collections::BTreeMap,
    fmt::Write,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use http::Request;
use mesh_core::{request::RequestView, rng::RequestRng};
use mesh_xds::proto::envoy::config::{cluster::v3::Cluster, endpoint::v3::lb_endpoint::HostIdentifier};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::Value;

use crate::{
    ask::{Answer, Ask},
    both::{Both, Verdict, at_will, cluster, encode_routes, http2, seed},
    compare::{Difference, ENDPOINT, EXPLAINED, PAIR, differences, explained, told_more},
    cover::{ASKED_BY, Coverage, KINDS},
    generate::{Case, Flavour, case},
    process::Options,
    record::{Arrivals, Record, arrive, recording},
    upstream::Upstream,
};

/// Configurations in force at once.
const SLOTS: usize = 60;
/// Requests for each configuration.
const REQUESTS: usize = 14;
/// Pairs of a run, unless `MESH_PAIRS` says otherwise.
const PAIRS: usize = 21_000;
/// Steps in making a failure smaller.
const SHRINKING: usize = 30;
/// Failures after which a run ends.
const ENOUGH: usize = 30;
/// At most so many differences are meant, of at most one pair in a hundred.
const EXPLANATIONS: usize = 20;

/// The upstreams and both sides.
struct Bench {
    both: Both,
    record: Record,
    _upstreams: Vec<Upstream>,
}

/// A configuration and requests that try it.
#[derive(Clone, Debug)]
struct Trial {
    routes: Value,
    asks: Vec<Ask>,
}

/// A pair that differs without explanation.
#[derive(Clone, Debug)]
struct Failure {
    /// Which of the trials.
    trial: usize,
    routes: Value,
    /// None when the configuration itself is what they disagree on.
    ask: Option<Ask>,
    differences: Vec<Difference>,
}

impl Failure {
    /// What differs, without how: failures of one kind have one cause, nearly always.
    fn kind(&self) -> String {
        let kind = |difference: &Difference| match difference.what.as_str() {
            // Why it is refused counts, not by whom it is named.
            "configuration" => {
                let why = difference.envoy.rsplit(": ").next().unwrap_or_default();
                format!("configuration ({why}) ({})", difference.ours.rsplit(": ").next().unwrap_or_default())
            }
            what => what.to_owned(),
        };
        self.differences.iter().map(kind).collect::<Vec<_>>().join(", ")
    }
}

#[derive(Debug, Default)]
struct Tally {
    coverage: Coverage,
    explained: BTreeMap<&'static str, usize>,
    explained_pairs: usize,
    /// What ours tells tries beyond Envoy, by name.
    told_more: BTreeMap<&'static str, usize>,
    /// Pairs asked again, since a limit of time was missed on one side.
    repeated: usize,
    /// Pairs without an answer on either side.
    unanswered: usize,
}

const SEED: u64 = 40;

/// RM1, RM2, RM3, RM4, RM6, RM7, RM8, RM9, RM10, RM12, RM13, RM14, RM15, RM19, RA1, RA2, RA3, RA5, RA9, RA10, RA11, RA12,
/// RA13, RA14, RA16, FI2, MI1, MI2, TO1, RT1, RT3, RT5, RT19, LB14: equal to Envoy by
/// experiment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_routes_do_the_same_through_both() {
    let Some(mut bench) = Bench::start(SLOTS).await else { return };
    let seed = seed(SEED);
    let pairs = std::env::var("MESH_PAIRS").map_or(PAIRS, |pairs| pairs.parse().expect("a number"));
    println!("MESH_SEED={seed}");
    let begin = Instant::now();
    let mut tally = Tally::default();
    let mut batch = 0;
    let mut failures = Vec::new();
    while tally.coverage.pairs < pairs && failures.len() < ENOUGH {
        let trials: Vec<Trial> = (0..SLOTS).map(|slot| trial(seed, batch, slot)).collect();
        failures.append(&mut bench.run(&trials, &mut tally).await);
        batch += 1;
    }
    if !failures.is_empty() {
        report(&tally, begin.elapsed());
        panic!("MESH_SEED={seed}, {batch} batches: {}", bench.tell(failures).await);
    }
    report(&tally, begin.elapsed());
    assert_eq!(tally.coverage.rare(KINDS, 1), Vec::<String>::new(), "kinds that too few pairs met");
    assert_eq!(tally.coverage.rare(ASKED_BY, 5), Vec::<String>::new(), "too few pairs asked by a protocol");
    assert!(EXPLAINED.len() <= EXPLANATIONS);
    assert!(tally.explained_pairs * 100 <= tally.coverage.pairs, "{} pairs needed explanation", tally.explained_pairs);
    assert!(tally.repeated * 200 <= tally.coverage.pairs, "{} pairs were asked again", tally.repeated);
    assert!(tally.unanswered * 100 <= tally.coverage.pairs, "{} pairs had no answer", tally.unanswered);
}

fn report(tally: &Tally, took: Duration) {
    println!("{}", tally.coverage.table());
    println!("{} pairs in {took:?}, {} explained: {:?}", tally.coverage.pairs, tally.explained_pairs, tally.explained);
    println!(
        "{} asked again, {} without an answer; told more: {:?}",
        tally.repeated, tally.unanswered, tally.told_more
    );
}

/// The same, of endpoints that have a name, which routes may send as the authority.
fn named(mut cluster: Cluster) -> Cluster {
    let endpoints = cluster.load_assignment.iter_mut().flat_map(|all| &mut all.endpoints);
    for endpoint in endpoints.flat_map(|locality| &mut locality.lb_endpoints) {
        if let Some(HostIdentifier::Endpoint(endpoint)) = &mut endpoint.host_identifier {
            endpoint.hostname = format!("{ENDPOINT}{}.example.com", cluster.name);
        }
    }
    cluster
}

/// The trial that a seed, a batch and a slot mean.
fn trial(seed: u64, batch: u64, slot: usize) -> Trial {
    let mut bytes = [0; 32];
    for (i, part) in [seed, batch, slot as u64].into_iter().enumerate() {
        bytes[i * 8..(i + 1) * 8].copy_from_slice(&part.to_le_bytes());
    }
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let Case { routes, aims } = case(REQUESTS).new_tree(&mut runner).expect("nothing is filtered out").current();
    let asks = aims.iter().map(|aim| aim.at(&routes)).collect();
    Trial { routes, asks }
}

impl Bench {
    async fn start(slots: usize) -> Option<Self> {
        let mut both = Both::start(&Options { slots, ..Options::default() }).await?;
        let (mut upstreams, mut clusters, record) = (Vec::new(), Vec::new(), Record::default());
        for flavour in [Flavour::Http1, Flavour::Http2] {
            for name in flavour.clusters().into_iter().chain([flavour.mirror()]) {
                let upstream = recording(name, &record).await;
                let plain = at_will(named(cluster(name, [upstream.address()])));
                clusters.push(if flavour == Flavour::Http2 { http2(plain) } else { plain });
                upstreams.push(upstream);
            }
        }
        both.clusters(&clusters).await;
        Some(Self { both, record, _upstreams: upstreams })
    }

    /// Runs trials, one a slot, and counts them; what differs without explanation.
    async fn run(&mut self, trials: &[Trial], tally: &mut Tally) -> Vec<Failure> {
        let encoded =
            trials.iter().enumerate().map(|(slot, trial)| (slot, encode_routes(&trial.routes, slot))).collect();
        let verdicts = self.both.encoded_routes(encoded).await;
        let (both, snapshot) = (&self.both, self.both.mesh().snapshot().expect("a configuration"));
        let record = &self.record;
        let mut failures = Vec::new();
        let mut ready = Vec::new();
        for (slot, (trial, verdict)) in trials.iter().zip(&verdicts).enumerate() {
            match disagreement(verdict) {
                Some(difference) => failures.push(Failure {
                    trial: slot,
                    routes: trial.routes.clone(),
                    ask: None,
                    differences: vec![difference],
                }),
                None if verdict.envoy.is_ok() => ready.push((slot, trial)),
                None => {}
            }
        }
        let plans = &snapshot;
        let answers = ready.into_iter().map(|(slot, trial)| async move {
            let (mut answers, mut repeated) = (Vec::new(), 0);
            for (n, ask) in trial.asks.iter().enumerate() {
                let pair = format!("{slot}-{n}");
                let mut both_sides = pair_of(both, slot, ask, &pair).await;
                // A machine under load can miss a limit of time.
                if ask.headers.iter().any(|(name, _)| name == "x-stall") {
                    let route = taken(plans, slot, ask, &trial.routes).route();
                    let tries = Arrivals::of(&record.lock().unwrap(), slot, n, 'o').tries;
                    let is_open = |one: &Difference| {
                        told_more(route, one, tries).is_none() && explained(ask, route, one).is_none()
                    };
                    if differences(&both_sides.0, &both_sides.1).iter().any(is_open) {
                        repeated += 1;
                        both_sides = pair_of(both, slot, ask, &format!("{pair} again")).await;
                    }
                }
                answers.push(both_sides);
            }
            (slot, trial, answers, repeated)
        });
        record.lock().unwrap().clear();
        let answers: Vec<_> = stream::iter(answers).buffer_unordered(32).collect().await;
        let mut expected = Vec::new();
        for (slot, trial, _, repeated) in &answers {
            tally.repeated += repeated;
            for (n, ask) in trial.asks.iter().enumerate() {
                expected.push((format!("{slot}-{n}"), taken(&snapshot, *slot, ask, &trial.routes).copies));
            }
        }
        arrive(record, &expected).await;
        let record = std::mem::take(&mut *record.lock().unwrap());
        for (slot, trial, answers, _) in answers {
            for (n, (ask, (envoy, ours))) in trial.asks.iter().zip(answers).enumerate() {
                let taken = taken(&snapshot, slot, ask, &trial.routes);
                let (Taken { host, rule, .. }, route) = (taken, taken.route());
                let (of_envoy, of_ours) = (Arrivals::of(&record, slot, n, 'e'), Arrivals::of(&record, slot, n, 'o'));
                let mut all = differences(&envoy, &ours);
                all.retain(|difference| {
                    let more = told_more(route, difference, of_ours.tries);
                    if let Some(name) = more {
                        *tally.told_more.entry(name).or_default() += 1;
                    }
                    more.is_none()
                });
                of_envoy.differences(&of_ours, &mut all);
                tally.unanswered += usize::from(envoy.is_err() && ours.is_err());
                let asks = |name: &str| ask.headers.iter().any(|(key, _)| key == name);
                let more = [
                    ("mirrored", !of_ours.copies.is_empty()),
                    ("tried again", of_ours.tries > 1),
                    ("timed out", ours.as_ref().is_ok_and(is_timeout) && asks("x-stall")),
                    ("asked timeout", asks("x-envoy-upstream-rq-timeout-ms") && of_ours.tries > 0),
                    ("asked retries", asks("x-envoy-retry-on") && of_ours.tries > 0),
                    (asked_by(ask), true),
                ];
                let more = more.into_iter().filter(|(_, so)| *so).map(|(kind, _)| kind);
                tally.coverage.count(&trial.routes, host, rule, more);
                let (meant, differences): (Vec<_>, Vec<_>) = all
                    .into_iter()
                    .map(|difference| (explained(ask, route, &difference), difference))
                    .partition(|(why, _)| why.is_some());
                for (why, _) in &meant {
                    *tally.explained.entry(why.map_or("", |why| why.name)).or_default() += 1;
                }
                tally.explained_pairs += usize::from(!meant.is_empty());
                if !differences.is_empty() {
                    let differences = differences.into_iter().map(|(_, difference)| difference).collect();
                    let (routes, ask) = (trial.routes.clone(), Some(ask.clone()));
                    failures.push(Failure { trial: slot, routes, ask, differences });
                }
            }
        }
        failures.sort_by_key(|failure| failure.trial);
        failures
    }

    /// Failures by kind, with how many there are of each and one that is as small as could be found.
    async fn tell(&mut self, failures: Vec<Failure>) -> String {
        let mut kinds: BTreeMap<String, Vec<Failure>> = BTreeMap::new();
        let mut text = format!("{} of its pairs differ without explanation", failures.len());
        for failure in failures {
            kinds.entry(failure.kind()).or_default().push(failure);
        }
        for (kind, failures) in kinds {
            // At once: making it small takes its time.
            let first = failures.first().map(|failure| format!("{:?} of {:?}", failure.differences, failure.ask));
            println!("{kind}, {} times: {}", failures.len(), first.unwrap_or_default());
            let _ = write!(text, "\n\n== {kind}, {} times\n", failures.len());
            let Some(failure) = failures.into_iter().min_by_key(|failure| failure.routes.to_string().len()) else {
                continue;
            };
            let small = self.shrink(failure).await;
            let _ = writeln!(text, "{}", serde_json::to_string_pretty(&small.routes).expect("JSON"));
            if let Some(ask) = small.ask {
                let _ = writeln!(text, "{ask}");
            }
            for difference in small.differences {
                let _ = writeln!(text, "{difference}");
            }
        }
        text
    }

    /// Makes a failing configuration and request as small as they still fail in the same way: everything that can be left
    /// out of them is, many tries at once.
    async fn shrink(&mut self, failure: Failure) -> Failure {
        let mut best = failure;
        for _ in 0..SHRINKING {
            let smaller: Vec<Trial> = smaller(&best).into_iter().collect();
            let mut found = None;
            for trials in smaller.chunks(SLOTS) {
                let failures = self.run(trials, &mut Tally::default()).await;
                found = failures.into_iter().find(|failure| failure.kind() == best.kind());
                if found.is_some() {
                    break;
                }
            }
            match found {
                Some(failure) => best = failure,
                None => break,
            }
        }
        best
    }
}

/// Trials with one thing less each, those that leave out most first.
fn smaller(failure: &Failure) -> Vec<Trial> {
    let asks = |ask: &Option<Ask>| ask.clone().into_iter().collect::<Vec<_>>();
    let mut trials: Vec<Trial> =
        without_one(&failure.routes).into_iter().map(|routes| Trial { routes, asks: asks(&failure.ask) }).collect();
    trials.sort_by_key(|trial| trial.routes.to_string().len());
    for i in 0..failure.ask.as_ref().map_or(0, |ask| ask.headers.len()) {
        let mut ask = failure.ask.clone();
        ask.iter_mut().for_each(|ask| drop(ask.headers.remove(i)));
        trials.push(Trial { routes: failure.routes.clone(), asks: asks(&ask) });
    }
    trials
}

/// Every value that is this one without one of its parts, at any depth.
pub(crate) fn without_one(value: &Value) -> Vec<Value> {
    let mut all = Vec::new();
    match value {
        Value::Object(fields) => {
            // Without its type a message is none.
            for (name, inner) in fields.iter().filter(|(name, _)| *name != "@type") {
                let mut less = fields.clone();
                less.remove(name);
                all.push(Value::Object(less));
                for inner in without_one(inner) {
                    let mut less = fields.clone();
                    less.insert(name.clone(), inner);
                    all.push(Value::Object(less));
                }
            }
        }
        Value::Array(items) => {
            for (i, inner) in items.iter().enumerate() {
                let mut less = items.clone();
                less.remove(i);
                all.push(Value::Array(less));
                for inner in without_one(inner) {
                    let mut less = items.clone();
                    less[i] = inner;
                    all.push(Value::Array(less));
                }
            }
        }
        _ => {}
    }
    all
}

/// Where one side takes a configuration that the other refuses.
fn disagreement(verdict: &Verdict) -> Option<Difference> {
    let said = |refusal: Option<&String>| refusal.cloned().unwrap_or_else(|| "taken".to_owned());
    let (envoy, ours) = (verdict.envoy.as_ref().err(), verdict.ours.as_ref().err());
    if envoy.is_some() == ours.is_some() {
        let ignored = verdict.ours.as_ref().ok().filter(|ignored| !ignored.is_empty())?;
        return Some(Difference {
            what: "fields ignored".to_owned(),
            envoy: "none".to_owned(),
            ours: ignored.join(", "),
        });
    }
    Some(Difference { what: "configuration".to_owned(), envoy: said(envoy), ours: said(ours) })
}

/// One of [`ASKED_BY`].
fn asked_by(ask: &Ask) -> &'static str {
    let [http1, http2, grpc] = *ASKED_BY;
    match ask.version {
        _ if ask.headers.iter().any(|(name, value)| name == "content-type" && value == "application/grpc") => grpc,
        http::Version::HTTP_2 => http2,
        _ => http1,
    }
}

/// The time was up, by the answer of a proxy and not of an upstream.
fn is_timeout(answer: &Answer) -> bool {
    answer.status == 504 || answer.headers.get("grpc-status").is_some_and(|status| status == "4")
}

/// One request through both.
async fn pair_of(both: &Both, slot: usize, ask: &Ask, pair: &str) -> (Result<Answer, String>, Result<Answer, String>) {
    let of = |side| ask.clone().with(PAIR, &format!("{pair} {side}"));
    let (envoys, ours) = (of('e'), of('o'));
    tokio::join!(both.through_envoy(slot).ask(&envoys), both.through_ours(slot).ask(&ours))
}

/// What became of a request, by ours; both sides agree on it if the pair shows no difference.
#[derive(Clone, Copy, Default)]
struct Taken<'a> {
    /// The host.
    host: Option<&'a Value>,
    /// Which of its rules.
    rule: Option<usize>,
    /// How many copies were made.
    copies: usize,
}

impl<'a> Taken<'a> {
    /// The rule itself.
    fn route(&self) -> Option<&'a Value> {
        self.host?["routes"].get(self.rule?)
    }
}

/// The host and the rule that took a request.
fn taken<'a>(snapshot: &mesh_core::snapshot::Snapshot, slot: usize, ask: &Ask, routes: &'a Value) -> Taken<'a> {
    let mut builder =
        Request::builder().method(ask.method.clone()).uri(format!("http://{}{}", ask.authority, ask.path));
    for (name, value) in &ask.headers {
        builder = builder.header(name, value);
    }
    let Ok(request) = builder.body(()) else { return Taken::default() };
    let parts = request.into_parts().0;
    let view = RequestView::of(&parts, Some(u16::try_from(slot + 1).expect("a port")));
    let Ok(plan) = snapshot.plan(&view, &mut RequestRng::new(0, 0)) else { return Taken::default() };
    let number = |text: &str, after: &str| text.split(after).nth(1)?.split(' ').next()?.parse::<usize>().ok();
    let host_name = &*plan.route.virtual_host;
    let hosts = routes["virtual_hosts"].as_array().into_iter().flatten();
    let host = hosts.into_iter().find(|host| host["name"] == host_name);
    let sent = plan.cluster().is_some() && plan.fault.abort.is_none();
    let copies = plan.mirrors().filter(|mirror| sent && snapshot.cluster(&mirror.cluster).is_some()).count();
    Taken { host, rule: number(&plan.route.name, "route-"), copies }
}
