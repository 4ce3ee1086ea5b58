//! Which answers are tried again, how often and after how long: ours as Envoy does it, and Envoy.
//!
//! A request carries the script of its own tries (`x-script: 503 close 200`), so that nothing depends on the order of
//! requests; the upstreams say how many tries arrived where. Policies, scripts and requests are generated: one seed gives the same
//! ones, `MESH_SEED` another. Ours is `RetryLayer::like_envoy`: without its budget, and with Envoy's idea of what is safe.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use http_body::Frame;
use mesh_tower::{
    HttpClient, Pool,
    config::Workload,
    connect::{Connecting, Connector, Target},
    layer::RetryLayer,
    source::Source,
    telemetry::Telemetry,
    tls::ClientTls,
};
use mesh_xds::proto::envoy::config::cluster::v3::{Cluster, cluster::LbPolicy};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    ask::{Answer, Ask, Caller},
    both::{Both, at_will, cluster, encode_routes, http2, seed},
    process::Options,
    upstream::{Arrived, Failing, Upstream, UpstreamBody, answer, frames, message},
};

#[path = "retries/generate.rs"]
mod generate;

use generate::{GRPC_ANSWERS, GRPC_WORDS, HTTP_ANSWERS, HTTP_WORDS, Trial, in_force, routes, soon, trial, words};

/// Policies at once, one a slot: few, since each has Envoy watch a file and a machine has only so many watches.
const SLOTS: usize = 10;
/// How often they are exchanged.
const ROUNDS: usize = 12;
/// Requests for each policy.
const REQUESTS: usize = 6;
/// Longer than any limit of a try.
const STALL: Duration = Duration::from_secs(20);

/// What becomes of both sides' differences that are meant: a gRPC caller is told by ours, as by any gRPC client, that its
/// time was up (4), where Envoy says UNAVAILABLE (14) of every 504.
fn is_same(envoy: &Seen, ours: &Seen) -> bool {
    let timed_out = envoy.answered.is_empty() && envoy.grpc == "14" && ours.grpc == "4";
    envoy == ours || (timed_out && *envoy == Seen { grpc: "14".to_owned(), ..ours.clone() })
}

/// What became of a request: how many tries each upstream saw, and what came back.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    /// How many; and at how many upstreams, where the policy avoids those tried.
    arrivals: Vec<usize>,
    status: String,
    grpc: String,
    /// Which of the tries the answer is of; empty when it is of none.
    answered: String,
}

/// Tries by request, and where they arrived.
type Arrivals = Arc<Mutex<BTreeMap<String, Vec<String>>>>;

/// RT1, RT2, RT3, RT5, RT13, RT15, RT19, TO5: any policy and any sequence of answers: as many tries arrive through both, at as
/// many upstreams, and the same one is answered with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_answers_are_tried_again() {
    let Some(mut both) = Both::start(&Options { slots: SLOTS, ..Options::default() }).await else { return };
    let (arrivals, _upstreams) = upstreams(&mut both).await;
    let seed = seed(40);
    let (mut differences, mut pairs, mut again) = (Vec::new(), 0, 0);
    let mut told: BTreeMap<String, usize> = BTreeMap::new();
    // Answers that were given; conditions that were alone and because of which there was another try.
    let (mut given, mut because): (BTreeSet<String>, BTreeSet<String>) = Default::default();
    for round in 0..ROUNDS {
        let trials: Vec<Trial> = (0..SLOTS).map(|slot| trial(seed, (round * SLOTS + slot) as u64, REQUESTS)).collect();
        let encoded =
            trials.iter().enumerate().map(|(slot, trial)| (slot, encode_routes(&trial.routes, slot))).collect();
        for (verdict, trial) in both.encoded_routes(encoded).await.into_iter().zip(&trials) {
            assert_eq!((verdict.envoy, verdict.ours), (Ok(()), Ok(Vec::new())), "MESH_SEED={seed} {:#}", trial.routes);
        }
        let (both, arrivals) = (&both, &arrivals);
        let asking = trials.iter().enumerate().flat_map(|(slot, trial)| {
            trial.asks.iter().enumerate().map(move |(n, ask)| async move {
                let id = format!("{round}-{slot}-{n}");
                let mut seen = Vec::new();
                // A machine under load can miss the limit of a try, and not thrice in the same way.
                for turn in 0..3 {
                    let of =
                        async |caller: &Caller, side| saw(caller, ask, format!("{id}-{turn}-{side}"), arrivals).await;
                    let (envoy, ours) =
                        tokio::join!(of(both.through_envoy(slot), "envoy"), of(both.through_ours(slot), "ours"));
                    seen = vec![envoy, ours];
                    if is_same(&seen[0], &seen[1]) {
                        break;
                    }
                }
                (slot, n, seen)
            })
        });
        for (slot, n, seen) in stream::iter(asking).buffer_unordered(24).collect::<Vec<_>>().await {
            pairs += 1;
            let tries = seen[0].arrivals.first().copied().unwrap_or(0);
            again += usize::from(tries > 1);
            for word in words(&trials[slot].routes) {
                *told.entry(word).or_default() += 1;
            }
            let script = trials[slot].asks[n].headers.iter().find(|(name, _)| name == "x-script");
            given.extend(script.into_iter().flat_map(|(_, script)| script.split(' ')).take(tries).map(str::to_owned));
            let asks_itself = trials[slot].asks[n].headers.iter().any(|(name, _)| name.starts_with("x-envoy-"));
            if let [only] = in_force(&trials[slot].routes)[..]
                && tries > 1
                && !asks_itself
            {
                because.insert(only.to_owned());
            }
            if !is_same(&seen[0], &seen[1]) {
                let Trial { routes, asks } = &trials[slot];
                differences
                    .push(format!("{:?} through Envoy\n{:?} through ours\n{}\n{routes}", seen[0], seen[1], asks[n]));
            }
        }
    }
    differences.sort_by_key(String::len);
    println!("MESH_SEED={seed}: {pairs} pairs, {again} of them tried again, {told:?}");
    let shown: Vec<_> = differences.iter().take(12).map(String::as_str).collect();
    assert!(differences.is_empty(), "MESH_SEED={seed}: {} of {pairs}\n{}", differences.len(), shown.join("\n\n"));
    assert!(again * 8 > pairs, "the sequences tell something: {again} of {pairs}");
    let rare: Vec<_> = told.iter().filter(|(_, count)| *count * 100 < pairs).collect();
    assert!(rare.is_empty(), "{rare:?}");
    let conditions = || HTTP_WORDS.into_iter().chain(GRPC_WORDS);
    let seldom: Vec<_> = conditions().filter(|word| told.get(*word).copied().unwrap_or(0) * 100 < pairs).collect();
    assert!(seldom.is_empty(), "conditions of fewer than one pair in a hundred: {seldom:?} of {told:?}");
    // Those of connections that are refused are shown below.
    let of_connections = ["connect-failure", "reset-before-request"];
    let vain: Vec<_> = conditions().filter(|word| !of_connections.contains(word) && !because.contains(*word)).collect();
    assert!(vain.is_empty(), "conditions that alone brought no other try: {vain:?}");
    let answers = HTTP_ANSWERS.into_iter().chain(GRPC_ANSWERS).chain(["stall"]);
    let missing: Vec<_> = answers.filter(|answer| !given.contains(*answer)).collect();
    assert!(missing.is_empty(), "answers that nobody was given: {missing:?}");
}

/// RT1, RT17, TO8: where nobody listens there are as many tries, and the same answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_connections_are_tried_again_as_often() {
    let Some(mut both) = Both::start(&Options { slots: 6, ..Options::default() }).await else { return };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = taken.local_addr().unwrap();
    drop(taken);
    let words =
        ["connect-failure", "reset", "5xx", "gateway-error", "reset-before-request", "refused-stream,retriable-4xx"];
    let clusters: Vec<_> = (0..words.len()).map(|n| at_will(cluster(&format!("n{n}"), [nobody]))).collect();
    both.clusters(&clusters).await;
    let policy = |n: usize, on: &str| {
        routes(
            n as u64,
            json!({"cluster": format!("n{n}"), "retry_policy": {"retry_on": on, "num_retries": 2, "retry_back_off": soon()}}),
        )
    };
    let encoded = words.iter().enumerate().map(|(n, on)| (n, encode_routes(&policy(n, on), n))).collect();
    both.encoded_routes(encoded).await;
    both.adjust(|config| {
        for cluster in config.clusters.values_mut() {
            Arc::make_mut(cluster).avoid_unreachable = false;
        }
    });
    // Each try over HTTP/1.1 asks for a connection of its own.
    let asked = Arc::new(AtomicUsize::new(0));
    let (source, telemetry) = (Source::system(), Telemetry::new(Workload::default()));
    let refusing = Arc::new(Refusing(Arc::clone(&asked)));
    let pool = Pool::with_connector(ClientTls::default(), telemetry.clone(), source.clone(), refusing);
    let client = HttpClient::new(Arc::clone(both.mesh().live()), telemetry, pool).with_source(source);
    let client = client.with_retries(RetryLayer::like_envoy());
    for (n, on) in words.iter().enumerate() {
        let envoy = both.through_envoy(n).ask(&Ask::get("host", "/")).await.unwrap();
        let ours = both.through_ours(n).ask(&Ask::get("host", "/")).await.unwrap();
        assert_eq!((envoy.status.as_u16(), ours.status.as_u16()), (503, 503), "{on}");
        let tries = both.envoy().stat(&format!("cluster.n{n}.upstream_rq_retry")).await;
        assert_eq!(tries, if n < 5 { 2 } else { 0 }, "{on}");
        let before = asked.load(Relaxed);
        let port = u16::try_from(n + 1).unwrap();
        let counted = Caller::Ours(client.clone().on_port(port)).ask(&Ask::get("host", "/")).await.unwrap();
        assert_eq!(counted.status.as_u16(), 503, "{on}");
        assert_eq!((asked.load(Relaxed) - before) as u64, tries + 1, "{on}: tries of ours, and of Envoy");
        let snapshot = both.mesh().snapshot().unwrap();
        assert_eq!(snapshot.cluster(&format!("n{n}")).unwrap().requests_in_flight(), 0);
    }
}

/// A network in which nobody listens, and which counts who asked.
struct Refusing(Arc<AtomicUsize>);

impl Connector for Refusing {
    fn connect<'a>(&'a self, _: Target<'a>) -> Connecting<'a> {
        self.0.fetch_add(1, Relaxed);
        Box::pin(async { Err(std::io::ErrorKind::ConnectionRefused.into()) })
    }
}

/// RT6, RT8: the waits between tries keep to the same bounds, and a server's own word about them is obeyed by both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_waits_keep_to_the_same_bounds() {
    let Some(mut both) = Both::start(&Options { slots: 4, ..Options::default() }).await else { return };
    let moments: Arc<Mutex<BTreeMap<String, Vec<Instant>>>> = Arc::default();
    let upstream = Upstream::start("up", {
        let moments = Arc::clone(&moments);
        move |arrived: Arrived| {
            let key = arrived.all("x-key").next().unwrap().to_owned();
            moments.lock().unwrap().entry(key).or_default().push(Instant::now());
            async move { Some(answer(503, &[("retry-after", "1")], "")) }
        }
    })
    .await;
    both.clusters(&[at_will(cluster("up", [upstream.address()]))]).await;
    let policy = |n: usize, more: Value| {
        let mut policy = json!({"retry_on": "5xx", "num_retries": 4});
        policy.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        routes(n as u64, json!({"cluster": "up", "retry_policy": policy, "timeout": "0s"}))
    };
    let reset = json!([{"name": "Retry-After", "format": "SECONDS"}]);
    let back_off = json!({"base_interval": "0.1s", "max_interval": "0.4s"});
    let configured = [
        json!({"retry_back_off": back_off}),
        json!({"retry_back_off": back_off, "num_retries": 1, "rate_limited_retry_back_off": {"reset_headers": reset}}),
        // Longer than is believed: as if nothing had been said.
        json!({"retry_back_off": soon(), "num_retries": 2, "rate_limited_retry_back_off": {"reset_headers": reset, "max_interval": "0.5s"}}),
        json!({"retry_back_off": {"base_interval": "0.8s", "max_interval": "0.8s"}}),
    ];
    let encoded =
        configured.iter().enumerate().map(|(n, more)| (n, encode_routes(&policy(n, more.clone()), n))).collect();
    for verdict in both.encoded_routes(encoded).await {
        assert_eq!((verdict.envoy, verdict.ours), (Ok(()), Ok(Vec::new())));
    }
    let both = &both;
    let asks =
        ["envoy", "ours"].into_iter().flat_map(|side| (0..4).flat_map(move |n| (0..12).map(move |i| (side, n, i))));
    let asked = asks.map(|(side, n, i)| async move {
        let caller = if side == "envoy" { both.through_envoy(n) } else { both.through_ours(n) };
        caller.ask(&Ask::get("host", "/").with("x-key", &format!("{side} {n} {i}"))).await.unwrap();
    });
    stream::iter(asked).buffer_unordered(96).collect::<Vec<_>>().await;
    let moments = moments.lock().unwrap();
    let waits = |side: &str, n: usize| -> Vec<Vec<f64>> {
        let of = moments.iter().filter(|(key, _)| key.starts_with(&format!("{side} {n} ")));
        of.map(|(_, at)| at.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect()).collect()
    };
    // What a machine under load takes besides.
    let slack = 0.5;
    for side in ["envoy", "ours"] {
        let all = waits(side, 0);
        for one in &all {
            assert_eq!(one.len(), 4, "{side}");
            for (wait, most) in one.iter().zip([0.1, 0.2, 0.4, 0.4]) {
                assert!(*wait < most + slack, "{side}: {one:?}");
            }
        }
        let mean = |draws: Vec<f64>| draws.iter().sum::<f64>() / draws.len() as f64;
        // Of 24 draws between 0 and 0.4 s the mean is above 0.1 s but for one case in ten thousand.
        let late = mean(all.iter().flat_map(|one| one[2..].to_vec()).collect());
        assert!(late > 0.1, "{side}: {late}");
        // At the cap it is drawn below the cap, and not cut off there: of 48 draws the mean is within 0.13 s of the middle
        // but for one case in ten thousand; cut off, it would be above 0.63 s.
        let capped = mean(waits(side, 3).concat());
        assert!((0.27..0.57).contains(&capped), "{side}: {capped}");
        for one in waits(side, 1) {
            assert!(one.len() == 1 && (1.0..1.5 + slack).contains(&one[0]), "{side}: {one:?}");
        }
        for one in waits(side, 2) {
            assert!(one.len() == 2 && one.iter().all(|wait| *wait < 0.9), "{side}: {one:?}");
        }
    }
}

/// Three upstreams that do as the script of each request says, in clusters of one and of all three of either protocol.
async fn upstreams(both: &mut Both) -> (Arrivals, Vec<Upstream>) {
    let arrivals = Arrivals::default();
    let mut upstreams = Vec::new();
    for name in ["a", "b", "c"] {
        let arrivals = Arc::clone(&arrivals);
        let scripted = Upstream::failing(name, move |arrived: Arrived| {
            let arrivals = Arc::clone(&arrivals);
            async move { scripted(&arrived, &arrivals).await }
        });
        upstreams.push(scripted.await);
    }
    let all = || upstreams.iter().map(Upstream::address);
    let random = |name: &str| Cluster { lb_policy: LbPolicy::Random.into(), ..cluster(name, all()) };
    let clusters = [
        at_will(cluster("h1-one", all().take(1))),
        at_will(random("h1-all")),
        at_will(http2(cluster("h2-one", all().take(1)))),
        at_will(http2(random("h2-all"))),
    ];
    both.clusters(&clusters).await;
    (arrivals, upstreams)
}

/// The answer to one try, by the request's script; its last word is for all that follow.
async fn scripted(arrived: &Arrived, arrivals: &Arrivals) -> Result<http::Response<UpstreamBody>, Failing> {
    let one = |name| arrived.all(name).next().unwrap_or_default();
    let number = {
        let mut arrivals = arrivals.lock().unwrap();
        let tries = arrivals.entry(one("x-key").to_owned()).or_default();
        tries.push(arrived.upstream.clone());
        tries.len()
    };
    let words: Vec<&str> = one("x-script").split(' ').collect();
    let word = words.get(number - 1).or_else(|| words.last()).copied().unwrap_or("200");
    let is_grpc = arrived.all("content-type").any(|value| value.starts_with("application/grpc"));
    let number = number.to_string();
    let mut headers = vec![("x-try", number.as_str())];
    if is_grpc {
        headers.push(("content-type", "application/grpc"));
    }
    let status = match word {
        "close" => return Err(Failing::Closed),
        "refuse" => return Err(Failing::Reset(h2::Reason::REFUSED_STREAM)),
        "cancel" => return Err(Failing::Reset(h2::Reason::CANCEL)),
        "stall" => {
            sleep(STALL).await;
            200
        }
        "overloaded" => {
            headers.push(("x-envoy-overloaded", "true"));
            503
        }
        "limited" => {
            headers.push(("x-envoy-ratelimited", "true"));
            429
        }
        "again" => {
            headers.push(("x-again", "yes"));
            200
        }
        _ => word.parse().unwrap_or(200),
    };
    if let Some(code) = word.strip_prefix("late-") {
        let trailers = [(http::HeaderName::from_static("grpc-status"), code.parse().unwrap())];
        let body = frames([Frame::data(message(b"said")), Frame::trailers(trailers.into_iter().collect())]);
        return Ok(answer(200, &headers, "").map(|_| body));
    }
    let code = word.strip_prefix("grpc-").or_else(|| (is_grpc && status == 200).then_some("0"));
    headers.extend(code.map(|code| ("grpc-status", code)));
    Ok(answer(status, &headers, ""))
}

/// Sends a request, and says what became of it.
async fn saw(caller: &Caller, ask: &Ask, key: String, arrivals: &Arrivals) -> Seen {
    let answer = caller.ask_once(&ask.clone().with("x-key", &key)).await;
    let tries = arrivals.lock().unwrap().remove(&key).unwrap_or_default();
    let mut at: BTreeMap<String, usize> = BTreeMap::new();
    for upstream in tries {
        *at.entry(upstream).or_default() += 1;
    }
    // Chance decides where the first try goes, and where the others go but for those that avoid where one was.
    let tries: usize = at.values().sum();
    let avoids = ask.headers.iter().any(|(name, _)| name == "x-avoids");
    let arrived = if avoids { vec![tries, at.len()] } else { vec![tries] };
    let header = |answer: &Answer, name: &str| {
        let value = answer.headers.get(name).or_else(|| answer.trailers.get(name));
        value.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    match answer {
        Ok(answer) => Seen {
            arrivals: arrived,
            status: answer.status.to_string(),
            grpc: header(&answer, "grpc-status"),
            answered: header(&answer, "x-try"),
        },
        Err(_) => Seen { arrivals: arrived, status: "none".to_owned(), grpc: String::new(), answered: String::new() },
    }
}
