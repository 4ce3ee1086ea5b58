//! The spans that each process sends to a collector.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::net::SocketAddr;
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

/// The caller's own span, which is in no process of Bookinfo.
const OUTSIDE: &str = "00f067aa0ba902b7";

/// A span as received, with the name of the service that sent it.
#[derive(Clone, Debug)]
struct Span {
    service: String,
    trace: String,
    id: String,
    parent: String,
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
                }
            }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
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
    let endpoint = format!("http://{addr}");
    let bookinfo =
        Bookinfo::start(&[], &[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "100")]);
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
