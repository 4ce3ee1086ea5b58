//! One event per request, told when its response has been read to the end, or when it is clear that there will be none.
//!
//! It stands directly below routing, so that everything that can become of a request is seen: refusals, injected faults,
//! timeouts, retries (one event, however many tries). A caller that goes away is told with flag `DC`. What is told and
//! to whom is `telemetry.rs`; here is only when.

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use http_body::{Body as HttpBody, Frame};
use mesh_core::{
    config::Workload,
    outcome::{Failure, Flags, grpc_status},
    telemetry::Messages,
};
use tokio::time::Instant;
use tower_layer::Layer;

use super::{Call, Routed, Stage, watch::Now};
use crate::{
    body::ResponseBody,
    context,
    error::{BoxError, Error},
    source,
    telemetry::{
        DebugHeaders, Event, Logged, Peer, Reporter, Span, SpanKind, Telemetry, Teller, TraceContext, facts, rpc_of,
    },
};

/// Tells of every request, and puts it in a trace.
#[derive(Clone, Debug)]
pub struct TelemetryLayer {
    telemetry: Telemetry,
}

impl TelemetryLayer {
    /// Through the `metrics` facade, as a workload without a name.
    pub fn new() -> Self {
        Self::with(Telemetry::new(Workload::default()))
    }

    /// Wherever `telemetry` tells.
    pub fn with(telemetry: Telemetry) -> Self {
        Self { telemetry }
    }
}

impl Default for TelemetryLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for TelemetryLayer {
    type Service = Telling<S>;

    fn layer(&self, inner: S) -> Telling<S> {
        Telling { inner, telemetry: self.telemetry.clone() }
    }
}

/// A stage whose requests are told of.
#[derive(Clone, Debug)]
pub struct Telling<S> {
    inner: S,
    telemetry: Telemetry,
}

impl<S, B> Stage<Routed> for Telling<S>
where
    S: Stage<Routed, Response = http::Response<ResponseBody<B>>>,
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send,
{
    type Response = S::Response;

    async fn call(&self, routed: Routed) -> Result<Self::Response, Error> {
        let Routed { mut request, call, deadline, now } = routed;
        let inherited = context::current();
        let inherited = inherited.as_ref().and_then(|context| context.trace.as_ref());
        let request_messages = if call.plan().is_grpc { request.body().count_messages() } else { 0 };
        let is_debugged = DebugHeaders::asked(&request.parts().extensions);
        call.measure(self.telemetry.meter(request.parts(), call.plan().is_grpc, request_messages));
        let telling = call.plan().telling.as_deref();
        let (trace, is_root) = self.telemetry.begin(Reporter::Source, request.parts_mut(), inherited, telling);
        let needs_head = self.telemetry.needs_head(telling);
        // Attempts are below the span of who makes the request; where there is none, or where the call is more than its
        // attempts, since it is made to wait first, below one of the call's own.
        let waits = call.plan().fault.delay.is_some();
        let own = ((is_root || waits) && trace.sampled && self.telemetry.is_exporting(telling)).then(|| {
            let (parent, trace) = if is_root { (None, trace.clone()) } else { (Some(trace.span_id), trace.child()) };
            trace.inject(request.headers_mut());
            let (method, uri) = (request.parts().method.clone(), request.parts().uri.clone());
            Box::new(Own { spans: self.telemetry.clone(), trace, parent, method, uri, start: source::wall() })
        });
        let mut story = Story {
            telemetry: self.telemetry.hold(),
            call: call.clone(),
            own,
            logged: needs_head.then(|| Logged::of(request.parts(), &trace)),
            request_head: head_bytes(request.headers()),
            request_messages,
            status: 0,
            grpc_status: None,
            response_bytes: 0,
            response_messages: Messages::default(),
            flags: Flags::NONE,
            details: Failure::Cancelled.details(),
            told: false,
        };
        match self.inner.call(Routed { request, call, deadline, now }).await {
            Ok(mut response) => {
                story.head(response.status().as_u16(), response.headers());
                if is_debugged {
                    DebugHeaders::write(&story.call, response.headers_mut());
                }
                if response.body().is_end_stream() {
                    story.tell(source::instant());
                } else if let Some(watchers) = response.body_mut().watchers() {
                    watchers.story = Some(story);
                }
                Ok(response)
            }
            Err(error) => {
                story.failed(&error);
                Err(error)
            }
        }
    }
}

/// What is to be told of one request.
#[derive(Debug)]
pub(super) struct Story {
    telemetry: Teller,
    call: Call,
    own: Option<Box<Own>>,
    logged: Option<Box<Logged>>,
    request_head: u64,
    /// Of a body that was all here.
    request_messages: u64,
    status: u16,
    grpc_status: Option<u32>,
    response_bytes: u64,
    response_messages: Messages,
    flags: Flags,
    details: &'static str,
    told: bool,
}

/// The span of a call that is in no other's.
#[derive(Debug)]
struct Own {
    spans: Telemetry,
    trace: TraceContext,
    parent: Option<u64>,
    method: Method,
    uri: Uri,
    start: SystemTime,
}

impl Own {
    fn export(self, call: &Call, status: u16, grpc: Option<u32>, flags: Flags) {
        let plan = call.plan();
        let host = plan.cluster().and_then(|it| it.config().service.as_ref()).map_or("", |service| &service.host);
        let (service, method) = rpc_of(self.uri.path());
        let name = match plan.is_grpc {
            true => format!("Sent.{service}.{method}"),
            false => format!("{} {host}", self.method),
        };
        let mut attributes = facts([
            ("http.request.method", self.method.as_str().into()),
            ("server.address", host.into()),
            ("response_flags", flags.to_string().into()),
            ("attempts", call.attempts().into()),
        ]);
        if status != 0 {
            attributes.extend(facts([("http.response.status_code", status.into())]));
        }
        if let Some(grpc) = grpc {
            attributes.extend(facts([("rpc.response.status_code", grpc.into())]));
        }
        self.spans.spans().export(Span {
            context: self.trace,
            parent: self.parent,
            kind: SpanKind::Internal,
            name,
            start: self.start,
            end: source::wall(),
            attributes,
            events: Vec::new(),
            error: status == 0 || status >= 500 || grpc.is_some_and(|grpc| grpc != 0),
        });
    }
}

impl Story {
    fn head(&mut self, status: u16, headers: &HeaderMap) {
        if let Some(logged) = &mut self.logged {
            logged.answered(headers, source::instant().saturating_duration_since(self.call.begun()));
        }
        self.status = status;
        self.grpc_status = if self.call.plan().is_grpc { grpc_status(headers) } else { None };
        self.response_bytes = head_bytes(headers);
    }

    /// The next frame of the body came, or that there is none; `over` says that it was the last.
    pub(super) fn passed(&mut self, frame: Option<&Result<Frame<Bytes>, Error>>, over: bool, now: &mut Now) {
        match frame {
            Some(Ok(frame)) => {
                if let Some(chunk) = frame.data_ref() {
                    self.response_bytes += chunk.len() as u64;
                    if self.call.plan().is_grpc {
                        self.response_messages.passed(chunk);
                    }
                }
                if let Some(trailers) = frame.trailers_ref() {
                    self.grpc_status = grpc_status(trailers).or(self.grpc_status);
                    self.tell(now.get());
                } else if over {
                    self.tell(now.get());
                }
            }
            Some(Err(error)) => self.failed(error),
            None => self.tell(now.get()),
        }
    }

    fn failed(&mut self, error: &Error) {
        if self.status == 0 {
            let is_grpc = self.call.plan().is_grpc;
            self.status = if is_grpc { 200 } else { error.status().as_u16() };
            self.grpc_status = is_grpc.then(|| error.grpc_status());
        } else if self.call.plan().is_grpc {
            self.grpc_status = Some(error.grpc_status());
        }
        self.flags = error.flags();
        self.details = error.details();
        self.finish(source::instant());
    }

    fn tell(&mut self, now: Instant) {
        self.details = "via_upstream";
        self.finish(now);
    }

    fn finish(&mut self, now: Instant) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let plan = self.call.plan();
        let journal = self.call.journal();
        let endpoint = journal.endpoint.as_ref();
        let peer = journal.peer.as_ref().or_else(|| {
            // Configuration knows who is there, even if nobody answered; kept beside the endpoint once made.
            let workload = endpoint?.config().workload.as_deref()?;
            Some(endpoint?.attached(|| Arc::new(Peer::new(workload.clone(), None))))
        });
        let cluster = plan.cluster().map(|cluster| cluster.config());
        self.telemetry.record(&Event {
            reporter: Reporter::Source,
            peer,
            service: cluster.and_then(|cluster| cluster.service.as_ref()),
            cluster: cluster.map(|cluster| &cluster.name),
            route: Some(&plan.route.name).filter(|name| !name.is_empty()),
            upstream: endpoint.map(|endpoint| endpoint.address()),
            logged: self.logged.as_deref(),
            telling: plan.telling.as_deref(),
            is_grpc: plan.is_grpc,
            status: self.status,
            grpc_status: self.grpc_status,
            flags: self.flags | self.call.flags(),
            details: self.details,
            request_bytes: self.request_head + self.call.request_bytes(),
            response_bytes: self.response_bytes,
            request_messages: self.request_messages + self.call.progress().messages(),
            response_messages: self.response_messages.count(),
            duration: now.saturating_duration_since(self.call.begun()),
            mutual_tls: false,
            attempts: journal.attempts,
        });
        if let Some(meter) = self.call.meter() {
            let status = if self.status == 0 { Some(1) } else { self.grpc_status };
            let took = now.saturating_duration_since(self.call.begun());
            meter.ended(plan.cluster().map(|cluster| &**cluster), status, took, journal.again);
        }
        drop(journal);
        if let Some(own) = self.own.take() {
            own.export(&self.call, self.status, self.grpc_status, self.flags | self.call.flags());
        }
    }
}

impl Drop for Story {
    /// The caller let go of it: before the answer, or before it was read to its end.
    fn drop(&mut self) {
        if !self.told {
            self.flags |= Flags::DC;
            self.finish(source::instant());
        }
    }
}

/// What headers come to on the wire of HTTP/1.1, near enough for a histogram.
fn head_bytes(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len() + 4) as u64).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::time::Duration;

    use http_body_util::BodyExt;
    use mesh_core::config::{
        Abort, AbortStatus, Action, Config, Fault, Forward, Fraction, HttpRetry, RetryConditions, RetryPolicy, Route,
        ServiceName, WeightedCluster,
    };

    use super::*;
    use crate::{
        telemetry,
        testing::{client, cluster, configured, endless, response, route, with_route},
    };

    /// TE1: one event per request, however many tries it had and however it ended.
    #[tokio::test(start_paused = true)]
    async fn a_request_is_told_once_however_it_ends() {
        let config = named("told-once", None);
        let retried = client(&config, |_| async { Ok(response(503, &["no"])) });
        retried.get("http://reviews/").await.unwrap().into_body().collect().await.unwrap();
        drop(retried.get("http://reviews/").await.unwrap());
        let hanging = client(&config, |_| async { Ok(endless(200)) });
        drop(hanging.get("http://reviews/").await.unwrap());
        let slow = client(&config, |_| std::future::pending::<Result<crate::testing::TestResponse, Error>>());
        let _ = tokio::time::timeout(Duration::from_millis(5), slow.get("http://reviews/")).await;
        let told = told("told-once");
        let expected = [("0", "DC"), ("200", "DC"), ("503", "URX"), ("503", "URX,DC")];
        assert_eq!(told, expected.map(|(code, flags)| (code.to_owned(), flags.to_owned(), 1)));
    }

    /// FI7, TE16: an injected abort is told with its flag.
    #[tokio::test]
    async fn a_fault_is_visible() {
        let abort = Abort { status: AbortStatus::Http(500), fraction: Fraction::ALL };
        let config = named("told-fault", Some(Fault { abort: Some(abort), ..Fault::default() }));
        let client = client(&config, |_| async { Ok(response(200, &[])) });
        client.get("http://reviews/").await.unwrap();
        assert_eq!(told("told-fault"), [("500".to_owned(), "FI".to_owned(), 1)]);
    }

    /// C12, TE12: a request carries on the trace of the one being served.
    #[tokio::test]
    async fn the_trace_goes_on() {
        let client = client(&named("told-trace", None), |picked| async move {
            let trace = TraceContext::extract(picked.request.headers()).unwrap();
            Ok(response(if trace.trace_id == 7 { 200 } else { 500 }, &[]))
        });
        let trace = TraceContext { trace_id: 7, ..TraceContext::root(true) };
        let served = context::Context { trace: Some(trace), ..Default::default() };
        assert_eq!(served.scope(client.get("http://reviews/")).await.unwrap().status(), 200);
    }

    /// A configuration whose service has that name, so that its series can be told from those of other tests.
    fn named(service: &str, fault: Option<Fault>) -> Config {
        let mut reviews = cluster("reviews", 2);
        reviews.service = Some(ServiceName { host: service.into(), name: service.into(), namespace: "default".into() });
        let on = RetryConditions { http: vec![HttpRetry::ServerError], ..Default::default() };
        let forward = Forward {
            clusters: vec![WeightedCluster { cluster: "reviews".into(), weight: 1, ..Default::default() }],
            retry: Some(RetryPolicy { on, ..Default::default() }),
            ..Default::default()
        };
        let route = Route { fault, ..route(Action::Forward(forward)) };
        with_route(configured([reviews], Forward::default()), route)
    }

    /// Code, flags and count of each series of `istio_requests_total` of that service, in order.
    fn told(service: &str) -> Vec<(String, String, u32)> {
        let text = telemetry::render().unwrap();
        let ours = format!("destination_service_name=\"{service}\"");
        let lines = text.lines().filter(|line| line.starts_with("istio_requests_total{") && line.contains(&ours));
        let label = |line: &str, name: &str| {
            let (_, rest) = line.split_once(&format!(",{name}=\"")).unwrap();
            rest.split_once('"').unwrap().0.to_owned()
        };
        let mut series: Vec<_> = lines
            .map(|line| {
                let count = line.rsplit_once(' ').unwrap().1.parse().unwrap();
                (label(line, "response_code"), label(line, "response_flags"), count)
            })
            .collect();
        series.sort();
        series
    }
}
