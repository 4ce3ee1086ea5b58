//! The spans that each process sends to a collector.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::calls::{client, get};
use crate::front::{Front, PATIENCE};
use crate::harness::{Bookinfo, turn};
use crate::peers::missing;
use crate::programs::Killed;

/// The caller's own span, which is in no process of Bookinfo.
const OUTSIDE: &str = "00f067aa0ba902b7";

/// A span as received, with the name of the service that sent it.
#[derive(Clone, Debug, Default)]
struct Span {
    service: String,
    trace: String,
    id: String,
    parent: String,
    flags: String,
    took: Duration,
}

/// A collector that keeps all it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

impl Collector {
    /// Serves at an address of the system's choice.
    async fn start() -> (Self, SocketAddr) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (this, addr) = (Self::default(), listener.local_addr().unwrap());
        let server = Server::builder().add_service(TraceServiceServer::new(this.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        (this, addr)
    }

    /// Keeps what another collector says it was sent, one line a fact, until it says no more.
    fn listen(&self, said: impl BufRead) {
        let (mut service, mut next) = (String::new(), Span::default());
        for line in said.lines().map_while(Result::ok) {
            let (name, value) = line.trim().split_once(':').unwrap_or_else(|| (line.trim(), ""));
            let (name, value) = (name.trim(), value.trim());
            let text = value.strip_prefix("Str(").and_then(|value| value.strip_suffix(')'));
            let nanos = || Duration::from_nanos(value.parse().unwrap_or_default());
            match (name, text) {
                ("-> service.name", Some(text)) => service = text.to_owned(),
                ("Trace ID", _) => next = Span { service: service.clone(), trace: value.to_owned(), ..Span::default() },
                ("Parent ID", _) => next.parent = value.to_owned(),
                ("ID", _) => next.id = value.to_owned(),
                ("Start time", _) => next.took = nanos(),
                ("End time", _) => {
                    next.took = nanos().saturating_sub(next.took);
                    self.0.lock().unwrap().push(next.clone());
                }
                // What is said of a span after its times is said of the last.
                ("-> response_flags", Some(text)) => {
                    self.0.lock().unwrap().iter_mut().last().into_iter().for_each(|span| span.flags = text.to_owned());
                }
                _ => {}
            }
        }
    }

    /// The spans of one trace by their ids, so far.
    fn of(&self, trace: &str) -> HashMap<String, Span> {
        let spans = self.0.lock().unwrap();
        spans.iter().filter(|span| span.trace == trace).map(|span| (span.id.clone(), span.clone())).collect()
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        for spans in request.into_inner().resource_spans {
            let attributes = spans.resource.unwrap_or_default().attributes;
            let service = attributes.into_iter().find(|attribute| attribute.key == "service.name");
            let service = match service.and_then(|service| service.value?.value) {
                Some(Value::StringValue(name)) => name,
                other => format!("{other:?}"),
            };
            self.0.lock().unwrap().extend(spans.scope_spans.into_iter().flat_map(|spans| spans.spans).map(|span| {
                Span {
                    service: service.clone(),
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    flags: flags(&span),
                    took: Duration::from_nanos(span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano)),
                }
            }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Envoy's letters for what went wrong.
fn flags(span: &opentelemetry_proto::tonic::trace::v1::Span) -> String {
    let flags = span.attributes.iter().find(|attribute| attribute.key == "response_flags");
    match flags.and_then(|flags| flags.value.as_ref()?.value.clone()) {
        Some(Value::StringValue(flags)) => flags,
        _ => String::new(),
    }
}

/// The services from this span up to the caller outside, each once; nothing if a span on the way is missing.
fn way_up(spans: &HashMap<String, Span>, from: &Span) -> Option<Vec<String>> {
    let (mut way, mut span) = (vec![from.service.clone()], from);
    while span.parent != OUTSIDE {
        span = spans.get(&span.parent)?;
        way.push(span.service.clone());
    }
    way.dedup();
    Some(way)
}

/// TE12: the spans of one page, from every process it went through, have one trace and lead up to the one the caller began.
#[tokio::test(flavor = "multi_thread")]
async fn spans_of_one_page_are_linked() {
    let _turn = turn().await;
    let (collector, addr) = Collector::start().await;
    let bookinfo = telling(&format!("http://{addr}"));
    a_page_is_linked(&bookinfo, &collector).await;
}

/// TE11, TE12: a collector of another make takes the spans and reads in them what was meant; and a call that is slow because of
/// an injected delay shows as just that.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_of_another_make_takes_them() {
    let Some(program) = rotel() else { return };
    let _turn = turn().await;
    let collector = Collector::default();
    let dir = tempfile::tempdir().unwrap();
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (grpc, http) = (free(), free());
    let mut command = Command::new(program);
    command.args(["start", "--otlp-grpc-endpoint", &grpc, "--otlp-http-endpoint", &http, "--exporter", "blackhole"]);
    command.args(["--debug-log", "traces", "--debug-log-verbosity", "detailed"]).stdout(Stdio::piped());
    command.arg("--pid-file").arg(dir.path().join("pid")).arg("--log-file").arg(dir.path().join("log"));
    let mut rotel = Killed::start(command);
    let (said, told) = (rotel.0.stdout.take().expect("piped"), collector.clone());
    std::thread::spawn(move || told.listen(BufReader::new(said)));
    let bookinfo = telling(&format!("http://{grpc}"));
    a_page_is_linked(&bookinfo, &collector).await;

    bookinfo.apply(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: ratings}\nspec:\n  hosts: [ratings]\n  \
         http: [{fault: {delay: {percentage: {value: 100}, fixedDelay: 1s}}, route: [{destination: {host: ratings}}]}]\n",
    );
    let until = Instant::now() + PATIENCE;
    loop {
        bookinfo.page("").await;
        let spans = collector.0.lock().unwrap().clone();
        let slow = |span: &&Span| span.flags == "DI" && span.took >= Duration::from_secs(1);
        if let Some(slow) = spans.iter().find(slow) {
            assert!(slow.service.contains("reviews"), "{slow:?}");
            return;
        }
        assert!(Instant::now() < until, "no delay in {spans:#?}");
    }
}

/// Bookinfo whose spans go to a collector.
fn telling(endpoint: &str) -> Bookinfo {
    Bookinfo::start(&[], &[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "100")])
}

/// The collector, as a program; without it, says so on standard error, or fails where it is required.
fn rotel() -> Option<PathBuf> {
    let named = std::env::var_os("MESH_ROTEL").filter(|path| !path.is_empty()).map(PathBuf::from);
    if named.is_none() {
        missing("MESH_ROTEL names no collector (pip install rotel: its rotel-agent)");
    }
    named
}

/// One page with ratings leaves one trace in which every way leads up to the caller's span.
async fn a_page_is_linked(bookinfo: &Bookinfo, collector: &Collector) {
    // One page in three comes without ratings.
    let mut pages = 0;
    let page = format!("http://{}/productpage", bookinfo.at(10, 9080));
    let trace = loop {
        let trace = format!("4bf92f3577b34da6a3ce929d{pages:08x}");
        let answer = get(&client(), &page, &[("traceparent", &format!("00-{trace}-{OUTSIDE}-01"))]).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        if answer.body.contains("reviews-v2") || answer.body.contains("reviews-v3") {
            break trace;
        }
        pages += 1;
        assert!(pages < 1000, "no page with ratings in {pages}");
    };
    let until = Instant::now() + PATIENCE;
    loop {
        let spans = collector.of(&trace);
        let ways: Vec<Option<Vec<String>>> = spans.values().map(|span| way_up(&spans, span)).collect();
        let is_way = |expected: &[&str]| {
            ways.iter().flatten().any(|way| {
                way.len() == expected.len() && way.iter().zip(expected).all(|(one, part)| one.contains(part))
            })
        };
        let expected = [
            &["gateway"][..],
            &["productpage", "gateway"],
            &["details", "productpage", "gateway"],
            &["reviews", "productpage", "gateway"],
            &["ratings", "reviews", "productpage", "gateway"],
        ];
        if expected.into_iter().all(is_way) && ways.iter().all(Option::is_some) {
            let roots = spans.values().filter(|span| span.parent == OUTSIDE).count();
            assert_eq!(roots, 1, "{spans:#?}");
            return;
        }
        assert!(Instant::now() < until, "not all that is expected: {spans:#?}\n{}", bookinfo.said());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
