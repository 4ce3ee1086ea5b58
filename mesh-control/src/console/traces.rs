//! The last traces: a receiver of OTLP spans, and a store of bounded size to look them up in. Not a tracing back end: what is
//! wanted for longer goes to one.
//!
//! Source: OTLP `TraceService`, semantic conventions of HTTP and RPC spans.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse, trace_service_server::TraceService},
    common::v1::{AnyValue, KeyValue, any_value},
    trace::v1::{Span as OtlpSpan, span::SpanKind, status::StatusCode},
};
use serde::Deserialize;
use tonic::{Request, Response, Status};

use crate::api::observed::{self, Span, Summary};

/// Traces kept.
const TRACES: usize = 1000;
/// Traces in a list, unless more are wanted.
const LISTED: usize = 200;
/// Spans kept of one trace.
const SPANS: usize = 512;
/// Attributes kept of one span.
const ATTRIBUTES: usize = 64;
/// Characters kept of a text.
const TEXT: usize = 512;

/// The last traces.
#[derive(Clone, Debug, Default)]
pub(super) struct Traces(Arc<Mutex<Store>>);

#[derive(Debug, Default)]
struct Store {
    traces: HashMap<String, Vec<Span>>,
    /// In the order in which they were first heard of.
    order: VecDeque<String>,
}

/// Which traces: the query of `GET /console/traces`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wanted {
    /// The beginning of its id.
    id: String,
    /// A service that has a part in it.
    service: Option<String>,
    /// Only those in which something failed.
    errors: bool,
    /// Only those that took so many microseconds at least.
    slower: u64,
    /// What its id begins with, or what is in its name or in that of one of its services, whatever the case.
    find: String,
    /// So many at most.
    limit: Option<usize>,
}

impl Wanted {
    fn takes(&self, it: &Summary) -> bool {
        let find = self.find.trim().to_lowercase();
        let is_in = |text: &String| text.to_lowercase().contains(&find);
        it.id.starts_with(&self.id)
            && self.service.as_ref().is_none_or(|service| it.services.contains(service))
            && (it.is_error || !self.errors)
            && it.duration >= self.slower
            && (find.is_empty() || it.id.starts_with(&find) || is_in(&it.name) || it.services.iter().any(is_in))
    }
}

impl Traces {
    /// The newest first, of all that are kept.
    pub(super) fn list(&self, wanted: &Wanted) -> observed::Traces {
        let store = self.lock();
        let newest = store.order.iter().rev().filter_map(|id| Some((id, store.traces.get(id)?)));
        let all = newest.filter_map(|(id, spans)| summary(id, spans)).filter(|it| wanted.takes(it));
        observed::Traces { items: all.take(wanted.limit.unwrap_or(LISTED)).collect(), kept: store.traces.len() }
    }

    /// Its spans by their beginning.
    pub(super) fn get(&self, id: &str) -> Option<Vec<Span>> {
        let mut spans = self.lock().traces.get(id)?.clone();
        spans.sort_by(|a, b| (a.start, &a.id).cmp(&(b.start, &b.id)));
        Some(spans)
    }

    fn add(&self, request: ExportTraceServiceRequest) {
        let mut store = self.lock();
        for resource in request.resource_spans {
            let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            let service = attributes.iter().find(|it| it.key == "service.name").map_or_else(String::new, value);
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                store.add(hex(&span.trace_id), read(span, &service));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    fn add(&mut self, id: String, span: Span) {
        if !self.traces.contains_key(&id) {
            self.order.push_back(id.clone());
            while self.order.len() > TRACES {
                let oldest = self.order.pop_front();
                oldest.and_then(|oldest| self.traces.remove(&oldest));
            }
        }
        let spans = self.traces.entry(id).or_default();
        // An exporter that did not hear our answer sends a span again.
        if spans.len() < SPANS && spans.iter().all(|known| known.id != span.id) {
            spans.push(span);
        }
    }
}

#[tonic::async_trait]
impl TraceService for Traces {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.add(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn read(span: OtlpSpan, service: &str) -> Span {
    let kind = match SpanKind::try_from(span.kind) {
        Ok(SpanKind::Client | SpanKind::Producer) => "client",
        Ok(SpanKind::Server | SpanKind::Consumer) => "server",
        _ => "internal",
    };
    let is_error = span.status.is_some_and(|status| status.code == StatusCode::Error as i32);
    let attributes = span.attributes.iter().take(ATTRIBUTES).map(|it| (cut(&it.key), value(it))).collect();
    Span {
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        service: cut(service),
        name: cut(&span.name),
        kind: kind.to_owned(),
        start: span.start_time_unix_nano / 1000,
        duration: span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano) / 1000,
        is_error,
        attributes,
    }
}

fn summary(id: &str, spans: &[Span]) -> Option<Summary> {
    let first = spans.iter().min_by_key(|span| (span.start, !span.parent.is_empty()))?;
    let end = spans.iter().map(|span| span.start + span.duration).max()?;
    let mut services: Vec<String> = spans.iter().map(|span| span.service.clone()).collect();
    services.sort();
    services.dedup();
    Some(Summary {
        id: id.to_owned(),
        name: first.name.clone(),
        service: first.service.clone(),
        start: first.start,
        duration: end - first.start,
        spans: spans.len(),
        services,
        is_error: spans.iter().any(|span| span.is_error),
    })
}

fn value(attribute: &KeyValue) -> String {
    match &attribute.value {
        Some(AnyValue { value: Some(value) }) => match value {
            any_value::Value::StringValue(text) => cut(text),
            any_value::Value::BoolValue(value) => value.to_string(),
            any_value::Value::IntValue(value) => value.to_string(),
            any_value::Value::DoubleValue(value) => value.to_string(),
            _ => "...".to_owned(),
        },
        _ => String::new(),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(16).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    fn span(trace: u8, id: u8, parent: u8, start: u64, end: u64) -> OtlpSpan {
        OtlpSpan {
            trace_id: vec![trace; 16],
            span_id: vec![id; 8],
            parent_span_id: if parent == 0 { Vec::new() } else { vec![parent; 8] },
            name: format!("span {id}"),
            start_time_unix_nano: start * 1000,
            end_time_unix_nano: end * 1000,
            ..OtlpSpan::default()
        }
    }

    fn request(spans: Vec<OtlpSpan>) -> ExportTraceServiceRequest {
        use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
        let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
        ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }
    }

    /// TE12: spans of several processes join by their trace, whichever comes first; one sent twice is there once.
    #[test]
    fn spans_join_up() {
        let traces = Traces::default();
        traces.add(request(vec![span(1, 2, 1, 20, 40)]));
        traces.add(request(vec![span(1, 1, 0, 10, 60), span(1, 2, 1, 20, 40)]));
        let list = traces.list(&Wanted::default()).items;
        assert_eq!(list.len(), 1);
        assert_eq!((&*list[0].name, list[0].spans, list[0].start, list[0].duration), ("span 1", 2, 10, 50));
        let ids: Vec<_> = traces.get(&list[0].id).unwrap().into_iter().map(|span| span.parent).collect();
        assert_eq!(ids, ["", "0101010101010101"]);
    }

    /// TE12: the store is bounded in traces and in spans of one; the oldest go.
    #[test]
    fn the_store_is_bounded() {
        let traces = Traces::default();
        for n in 0..TRACES + 10 {
            let mut one = span(0, 1, 0, 0, 1);
            one.trace_id = (n as u128).to_be_bytes().to_vec();
            traces.add(request(vec![one]));
        }
        assert_eq!(traces.list(&Wanted { limit: Some(usize::MAX), ..Wanted::default() }).items.len(), TRACES);
        assert_eq!(traces.list(&Wanted::default()).items.len(), LISTED);
        let many =
            (0..SPANS as u64 + 10).map(|n| OtlpSpan { span_id: n.to_be_bytes().to_vec(), ..span(9, 0, 0, 0, 1) });
        traces.add(request(many.collect()));
        assert_eq!(traces.list(&Wanted::default()).items[0].spans, SPANS);
    }

    /// TE12: what is wanted is looked for among all that are kept, however old it is.
    #[test]
    fn the_oldest_are_found_too() {
        let traces = Traces::default();
        let mut odd = span(7, 1, 0, 0, 5_000);
        odd.name = "GET Reviews".to_owned();
        odd.status = Some(opentelemetry_proto::tonic::trace::v1::Status {
            code: StatusCode::Error as i32,
            message: String::new(),
        });
        traces.add(request(vec![odd]));
        for n in 0..TRACES - 1 {
            traces.add(request(vec![OtlpSpan { trace_id: (n as u128).to_be_bytes().to_vec(), ..span(0, 1, 0, 0, 1) }]));
        }
        let none = Wanted::default();
        for (wanted, found) in [
            (Wanted { errors: true, ..none.clone() }, 1),
            (Wanted { slower: 5_000, ..none.clone() }, 1),
            (Wanted { slower: 5_001, ..none.clone() }, 0),
            (Wanted { id: "0707".to_owned(), ..none.clone() }, 1),
            (Wanted { find: "reviews".to_owned(), ..none.clone() }, 1),
            (Wanted { find: "0707".to_owned(), ..none.clone() }, 1),
            (Wanted { service: Some("reviews".to_owned()), ..none.clone() }, 0),
            (none, LISTED),
        ] {
            let told = traces.list(&wanted);
            assert_eq!((told.items.len(), told.kept), (found, TRACES), "{wanted:?}");
        }
    }
}
