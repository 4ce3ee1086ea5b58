//! `meshctl load`: requests at a steady rate or as fast as they are answered, and how long they took.
//!
//! With `--rps` every request has a time at which it is due. When all connections are busy then, it waits, and its wait counts: a server
//! that stalls is not asked less and so made to look better (coordinated omission).

use std::{
    collections::BTreeMap,
    io::IsTerminal as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Serialize;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::cli::{
    FAILURE, Failure, INTERRUPTED, USAGE,
    output::{self, Format, Printing},
    values,
};

/// The longest time that is told apart: an hour, in microseconds.
const LONGEST: u64 = 3_600_000_000;
/// Different errors that are told apart.
const ERRORS: usize = 16;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl load http://127.0.0.1:9080/productpage --rps 50 --duration 1m
  meshctl load http://127.0.0.1:9080/productpage --requests 10000 --concurrency 64 -o json")]
pub(in crate::cli) struct Load {
    /// What to ask for.
    url: String,
    /// Requests a second; as fast as they are answered without.
    #[arg(long, value_parser = rps)]
    rps: Option<f64>,
    /// Requests at once at most, each on a connection of its own.
    #[arg(short, long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrency: u32,
    /// For how long.
    #[arg(short, long, default_value = "10s", value_parser = values::duration, conflicts_with = "requests")]
    duration: Duration,
    /// So many, however long it takes.
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
    /// The method.
    #[arg(short = 'X', long, default_value = "GET")]
    method: Method,
    /// A header; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = values::header)]
    headers: Vec<(String, String)>,
    /// The body.
    #[arg(long, value_name = "TEXT", default_value = "")]
    data: String,
    /// With HTTP/2, on one connection.
    #[arg(long)]
    http2: bool,
    /// How long to wait for an answer.
    #[arg(long, default_value = "30s", value_parser = values::duration)]
    timeout: Duration,
    /// Fail when less than this succeed, in percent.
    #[arg(long, value_name = "PERCENT", value_parser = values::percent)]
    success_rate: Option<f64>,
    #[command(flatten)]
    printing: Printing,
}

/// What all workers share.
struct Plan {
    client: Client<HttpConnector, Full<Bytes>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
    timeout: Duration,
    begin: Instant,
    /// No request is due after that.
    end: Option<Instant>,
    most: u64,
    /// Seconds between two.
    gap: Option<f64>,
    next: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    stopped: AtomicBool,
}

/// What was seen.
#[derive(Clone, Debug)]
struct Seen {
    /// Microseconds.
    times: Histogram<u64>,
    codes: BTreeMap<u16, u64>,
    errors: BTreeMap<String, u64>,
    bytes: u64,
}

/// What is told.
#[derive(Clone, Debug, Serialize)]
struct Report {
    url: String,
    /// Answered or failed.
    requests: u64,
    seconds: f64,
    rps: f64,
    /// 0 to 1: statuses below 500, and no errors.
    success: f64,
    latency_ms: BTreeMap<&'static str, f64>,
    codes: BTreeMap<u16, u64>,
    errors: BTreeMap<String, u64>,
    bytes: u64,
}

impl Load {
    pub(in crate::cli) async fn run(self) -> Result<(), Failure> {
        let plan = Arc::new(self.plan()?);
        let mut workers = JoinSet::new();
        for _ in 0..self.concurrency {
            workers.spawn(Arc::clone(&plan).work(Seen::nothing()?));
        }
        let mut seen = Seen::nothing()?;
        let mut is_interrupted = false;
        let shows = std::io::stderr().is_terminal();
        loop {
            tokio::select! {
                done = workers.join_next() => match done {
                    Some(done) => seen.add(&done.map_err(|error| Failure::new(FAILURE, error.to_string()))?),
                    None => break,
                },
                _ = tokio::signal::ctrl_c(), if !is_interrupted => {
                    is_interrupted = true;
                    plan.stopped.store(true, Ordering::Relaxed);
                    // What is under way is not waited for.
                    sleep(Duration::from_millis(100)).await;
                    break;
                }
                () = sleep(Duration::from_secs(1)), if shows => plan.tell(),
            }
        }
        let report = Report::of(&self.url, &seen, plan.begin.elapsed());
        let value = serde_json::to_value(&report).unwrap_or_else(|_| json!({}));
        self.printing.one(&value, &self.url, || report.text(self.rps, self.printing.output == Format::Wide))?;
        match self.success_rate.filter(|least| report.success * 100.0 < *least) {
            _ if is_interrupted => Err(Failure::silent(INTERRUPTED)),
            Some(least) => {
                let share = report.success * 100.0;
                Err(Failure::new(FAILURE, format!("{share:.2} % succeeded, less than {least} %")))
            }
            None if report.codes.is_empty() && report.requests > 0 => {
                let why = report.errors.keys().next().cloned().unwrap_or_default();
                Err(Failure::new(FAILURE, format!("nobody answered at {}: {why}", self.url)))
            }
            None => Ok(()),
        }
    }

    fn plan(&self) -> Result<Plan, Failure> {
        let wrong = |why: String| Failure::new(USAGE, why);
        let uri: Uri = self.url.parse().map_err(|error| wrong(format!("{:?} is not a URL: {error}", self.url)))?;
        if uri.scheme_str() != Some("http") || uri.host().is_none_or(str::is_empty) {
            let message =
                format!("{:?} must begin with http:// and a host; TLS is the mesh's, or a gateway's", self.url);
            return Err(wrong(message));
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let name: HeaderName = name.parse().map_err(|_| wrong(format!("{name:?} is not a header name")))?;
            let value =
                HeaderValue::from_str(value).map_err(|_| wrong(format!("the value of {name} cannot be sent")))?;
            headers.append(name, value);
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let mut client = Client::builder(TokioExecutor::new());
        client.http2_only(self.http2);
        let begin = Instant::now();
        Ok(Plan {
            client: client.build(connector),
            method: self.method.clone(),
            uri,
            headers,
            body: Bytes::from(self.data.clone()),
            timeout: self.timeout,
            begin,
            end: if self.requests.is_none() { Some(begin + self.duration) } else { None },
            most: self.requests.unwrap_or(u64::MAX),
            gap: self.rps.map(|rps| 1.0 / rps),
            next: AtomicU64::new(0),
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        })
    }
}

impl Plan {
    async fn work(self: Arc<Self>, mut seen: Seen) -> Seen {
        while let Some(begin) = self.due().await {
            let answered = timeout(self.timeout, self.ask()).await;
            let took = begin.elapsed();
            let failed = match answered {
                Ok(Ok((code, bytes))) => {
                    *seen.codes.entry(code).or_default() += 1;
                    seen.bytes += bytes;
                    code >= 500
                }
                Ok(Err(error)) => seen.failed(error),
                Err(_) => seen.failed(format!("no answer within {}", values::for_people(self.timeout))),
            };
            seen.record(took);
            self.done.fetch_add(1, Ordering::Relaxed);
            self.failed.fetch_add(u64::from(failed), Ordering::Relaxed);
        }
        seen
    }

    /// Waits until the next request is due, and says since when its time counts; none when all are sent.
    async fn due(&self) -> Option<Instant> {
        if self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.most {
            return None;
        }
        let due = match self.gap {
            Some(gap) => self.begin + Duration::try_from_secs_f64(number as f64 * gap).ok()?,
            None => Instant::now(),
        };
        if self.end.is_some_and(|end| due >= end) {
            return None;
        }
        if due <= Instant::now() {
            // Overdue since everybody was busy: the wait is the caller's.
            return Some(due);
        }
        sleep_until(due).await;
        // A timer that fires late is our own affair, and nobody waited.
        Some(Instant::now())
    }

    /// The status and the length of the answer, once it is whole.
    async fn ask(&self) -> Result<(u16, u64), String> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let answer = self.client.request(request).await.map_err(|error| crate::cli::client::last_cause(&error))?;
        let code = answer.status().as_u16();
        let (mut body, mut bytes) = (answer.into_body(), 0);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| crate::cli::client::last_cause(&error))?;
            bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        Ok((code, bytes))
    }

    /// How far it is, for whoever looks on.
    fn tell(&self) {
        let (done, failed) = (self.done.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed));
        let seconds = self.begin.elapsed().as_secs_f64();
        output::note(&format!("{seconds:>5.0}s  {done} requests, {:.1}/s, {failed} failed", done as f64 / seconds));
    }
}

impl Seen {
    /// Three digits, from a microsecond to an hour.
    fn nothing() -> Result<Self, Failure> {
        let times = Histogram::new_with_bounds(1, LONGEST, 3);
        let times = times.map_err(|error| Failure::new(FAILURE, error.to_string()))?;
        Ok(Self { times, codes: BTreeMap::new(), errors: BTreeMap::new(), bytes: 0 })
    }

    fn record(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(LONGEST).clamp(1, LONGEST);
        self.times.saturating_record(micros);
    }

    fn failed(&mut self, error: String) -> bool {
        if self.errors.len() < ERRORS || self.errors.contains_key(&error) {
            *self.errors.entry(error).or_default() += 1;
        } else {
            *self.errors.entry("others".to_owned()).or_default() += 1;
        }
        true
    }

    fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.times.add(&other.times);
        other.codes.iter().for_each(|(code, count)| *self.codes.entry(*code).or_default() += count);
        other.errors.iter().for_each(|(error, count)| *self.errors.entry(error.clone()).or_default() += count);
        self.bytes += other.bytes;
    }
}

impl Report {
    fn of(url: &str, seen: &Seen, elapsed: Duration) -> Self {
        let requests = seen.times.len();
        let good: u64 = seen.codes.iter().filter(|(code, _)| **code < 500).map(|(_, count)| *count).sum();
        let at = |quantile: f64| seen.times.value_at_quantile(quantile) as f64 / 1e3;
        let mut latency = BTreeMap::new();
        if requests > 0 {
            latency.extend([
                ("p50", at(0.5)),
                ("p75", at(0.75)),
                ("p90", at(0.9)),
                ("p95", at(0.95)),
                ("p99", at(0.99)),
            ]);
            latency.extend([("p99.9", at(0.999)), ("max", at(1.0)), ("mean", seen.times.mean() / 1e3)]);
        }
        Self {
            url: url.to_owned(),
            requests,
            seconds: elapsed.as_secs_f64(),
            rps: requests as f64 / elapsed.as_secs_f64().max(1e-9),
            success: good as f64 / requests.max(1) as f64,
            latency_ms: latency,
            codes: seen.codes.clone(),
            errors: seen.errors.clone(),
            bytes: seen.bytes,
        }
    }

    fn text(&self, wanted: Option<f64>, wide: bool) -> String {
        let wanted = wanted.map_or_else(String::new, |rps| format!(" of {rps:.1}/s"));
        let mut text = format!(
            "Requests   {} in {:.1} s, {:.1}/s{wanted}\nSuccess    {:.2}%\n",
            self.requests,
            self.seconds,
            self.rps,
            self.success * 100.0
        );
        let names = ["p50", "p75", "p90", "p95", "p99", "p99.9", "max"];
        let time = |name: &&str| {
            let millis = self.latency_ms.get(name)?;
            Some(format!("{name} {}", values::for_people(Duration::from_secs_f64(millis / 1e3))))
        };
        let times: Vec<String> = names.iter().filter_map(time).collect();
        if !times.is_empty() {
            text += &format!("Latency    {}\n", times.join("   "));
        }
        let counts: Vec<String> = self.codes.iter().map(|(code, count)| format!("{code}: {count}")).collect();
        if !counts.is_empty() {
            text += &format!("Status     {}\n", counts.join("   "));
        }
        for (error, count) in &self.errors {
            text += &format!("Error      {count} times: {error}\n");
        }
        if wide {
            text += &format!("Read       {} bytes\n", self.bytes);
        }
        text
    }
}

fn rps(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rps) if rps > 0.0 && rps <= 1e6 => Ok(rps),
        _ => Err(format!("{text:?} is no number of requests a second")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::cli::tests::snapshot;

    fn plan(uri: String, most: u64, gap: Option<f64>) -> Plan {
        Plan {
            client: Client::builder(TokioExecutor::new()).build(HttpConnector::new()),
            method: Method::GET,
            uri: uri.parse().unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            timeout: Duration::from_secs(30),
            begin: Instant::now(),
            end: None,
            most,
            gap,
            next: AtomicU64::new(0),
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        }
    }

    #[test]
    fn a_report_is_laid_out() {
        let mut seen = Seen::nothing().unwrap();
        (1..=1000).for_each(|n| seen.record(Duration::from_micros(n * 10)));
        seen.codes.extend([(200, 990), (404, 4), (503, 4)]);
        seen.failed("Connection refused (os error 111)".to_owned());
        seen.failed("Connection refused (os error 111)".to_owned());
        let report = Report::of("http://127.0.0.1:9080/", &seen, Duration::from_secs(20));
        snapshot("load", &report.text(Some(50.0), true));
        snapshot("load-json", &output::json(&report).unwrap());
    }

    /// A server that stands still for a while is charged with all who would have asked meanwhile.
    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_busy_server_counts() {
        let plan = plan("http://localhost/".to_owned(), 4, Some(0.01));
        assert_eq!(plan.due().await, Some(plan.begin), "the first is due at once");
        tokio::time::advance(Duration::from_millis(25)).await;
        assert_eq!(plan.due().await, Some(plan.begin + Duration::from_millis(10)), "due 15 ms ago");
        assert_eq!(plan.due().await, Some(plan.begin + Duration::from_millis(20)));
        assert!(plan.due().await.unwrap() >= plan.begin + Duration::from_millis(30), "not before it is due");
        assert_eq!(plan.due().await, None);
    }

    /// As many as asked for, and each is counted once.
    #[tokio::test]
    async fn requests_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut buffer = [0; 1024];
                    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                    }
                });
            }
        });
        let plan = plan(format!("http://{address}/"), 50, None);
        let plan = Arc::new(plan);
        let (a, b) = tokio::join!(
            Arc::clone(&plan).work(Seen::nothing().unwrap()),
            Arc::clone(&plan).work(Seen::nothing().unwrap())
        );
        let mut seen = Seen::nothing().unwrap();
        [a, b].iter().for_each(|one| seen.add(one));
        assert_eq!((seen.codes, seen.times.len(), seen.bytes), (BTreeMap::from([(200, 50)]), 50, 100));
        server.abort();
    }
}
