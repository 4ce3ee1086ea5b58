//! An OTLP collector that keeps the spans it is sent.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use tonic::transport::{Server, server::TcpIncoming};

const PATIENCE: Duration = Duration::from_secs(20);

/// A collector that keeps all it is sent.
#[derive(Clone, Default)]
pub(crate) struct Collector(Arc<Mutex<Vec<Span>>>);

impl Collector {
    /// Serves at an address of the system's choice.
    pub(crate) async fn start() -> (Self, SocketAddr) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (this, address) = (Self::default(), listener.local_addr().unwrap());
        let server = Server::builder().add_service(TraceServiceServer::new(this.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        (this, address)
    }

    /// The spans so far that are wanted, once there are so many; in the order in which they began.
    pub(crate) async fn spans(&self, count: usize, wanted: impl Fn(&Span) -> bool) -> Vec<Span> {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut spans: Vec<Span> = self.0.lock().unwrap().iter().filter(|span| wanted(span)).cloned().collect();
            if spans.len() >= count {
                spans.sort_by_key(|span| span.start_time_unix_nano);
                return spans;
            }
            assert!(Instant::now() < until, "not {count} but {spans:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let spans = request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        self.0.lock().unwrap().extend(spans.flat_map(|scope| scope.spans));
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// An attribute as text; empty when the span does not have it.
pub(crate) fn attribute(span: &Span, name: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.as_ref()?.value.clone()) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        other => other.map_or_else(String::new, |other| format!("{other:?}")),
    }
}
