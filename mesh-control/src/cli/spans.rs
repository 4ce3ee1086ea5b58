//! Requests as their spans tell of them: what `trace`, `tap` and `top` read. Only what is sampled is seen, and only where processes
//! send their spans to the console, as those of `meshctl run` and of Bookinfo do.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Duration,
};

use mesh_control::api::observed::{Span, Spans, Summary, Traces, UNKNOWN};
use serde::Serialize;

use super::{
    Failure,
    client::{Server, escape},
};

/// Between two looks at what is new.
const INTERVAL: Duration = Duration::from_millis(500);
/// Traces looked through: all that the console keeps.
const KEPT: usize = 1000;
/// Spans that are known to have been told.
const REMEMBERED: usize = 100_000;
/// What is said where spans are looked for and there are none.
pub(super) const NONE: &str = "There are no traces. Processes send spans where OTEL_EXPORTER_OTLP_ENDPOINT says; `meshctl run` sets it to the \
                               console.";

/// A request, as its server and, where it is known, its caller tell of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Call {
    pub(super) trace: String,
    pub(super) id: String,
    /// Of the caller; none where the trace begins here.
    pub(super) source: Option<String>,
    pub(super) destination: String,
    pub(super) method: String,
    pub(super) authority: String,
    pub(super) path: String,
    /// None where there was no answer.
    pub(super) status: Option<String>,
    /// As in access logs; empty is none.
    pub(super) flags: String,
    pub(super) start: u64,
    /// Microseconds.
    pub(super) duration: u64,
    pub(super) is_error: bool,
}

/// Which traces, of all that the console keeps.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted<'a> {
    /// The beginning of its id.
    pub(super) id: &'a str,
    pub(super) service: Option<&'a str>,
    pub(super) errors: bool,
    pub(super) slower: Duration,
    /// None is as many as the console likes.
    pub(super) limit: Option<usize>,
}

/// The newest first.
pub(super) async fn list(server: &Server, wanted: &Wanted<'_>) -> Result<Vec<Summary>, Failure> {
    let mut query = format!("id={}&errors={}&slower={}", escape(wanted.id), wanted.errors, wanted.slower.as_micros());
    if let Some(service) = wanted.service {
        query += &format!("&service={}", escape(service));
    }
    if let Some(limit) = wanted.limit {
        query += &format!("&limit={limit}");
    }
    Ok(server.get::<Traces>(&format!("/console/traces?{query}")).await?.items)
}

/// Its spans by their beginning.
pub(super) async fn spans(server: &Server, id: &str) -> Result<Vec<Span>, Failure> {
    Ok(server.get::<Spans>(&format!("/console/traces/{}", escape(id))).await?.spans)
}

/// Requests as they become known.
pub(super) struct Calls<'s> {
    server: &'s Server,
    /// How many spans of each trace were looked at.
    seen: HashMap<String, usize>,
    told: HashSet<String>,
    order: VecDeque<String>,
}

impl<'s> Calls<'s> {
    /// From now on: what is known already is not told.
    pub(super) async fn begin(server: &'s Server) -> Result<Self, Failure> {
        let mut this = Self { server, seen: HashMap::new(), told: HashSet::new(), order: VecDeque::new() };
        this.look().await?;
        Ok(this)
    }

    /// Waits a moment for what is new; there may be nothing.
    pub(super) async fn next(&mut self) -> Result<Vec<Call>, Failure> {
        tokio::time::sleep(INTERVAL).await;
        self.look().await
    }

    async fn look(&mut self) -> Result<Vec<Call>, Failure> {
        let listed = list(self.server, &Wanted { limit: Some(KEPT), ..Wanted::default() }).await?;
        self.seen.retain(|id, _| listed.iter().any(|summary| summary.id == *id));
        let mut new = Vec::new();
        for summary in listed.into_iter().rev() {
            if self.seen.get(&summary.id) == Some(&summary.spans) {
                continue;
            }
            // It may be gone again: only so many are kept.
            let Ok(spans) = spans(self.server, &summary.id).await else { continue };
            self.seen.insert(summary.id.clone(), spans.len());
            for call in calls(&summary.id, &spans) {
                if self.told.insert(call.id.clone()) {
                    self.order.push_back(call.id.clone());
                    new.push(call);
                }
            }
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.told.remove(&oldest);
            }
        }
        Ok(new)
    }
}

/// One for each server span, and for each attempt that no server tells of and that failed.
pub(super) fn calls(trace: &str, spans: &[Span]) -> Vec<Call> {
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    let served: HashSet<&str> =
        spans.iter().filter(|span| span.kind == "server").map(|span| span.parent.as_str()).collect();
    let is_told = |span: &&Span| {
        span.kind == "server" || (span.kind == "client" && span.is_error && !served.contains(span.id.as_str()))
    };
    let call = |span: &Span| {
        let attempt = if span.kind == "client" { Some(span) } else { spans.iter().find(|it| it.id == span.parent) };
        let authority = attempt.and_then(|it| it.attribute(&["server.address"])).map(str::to_owned);
        let named = || span.name.split_once(' ').map(|(_, host)| host.trim_end_matches("/*").to_owned());
        let destination = if span.kind == "server" { Some(span.service.clone()) } else { authority.clone() };
        Call {
            trace: trace.to_owned(),
            id: format!("{trace}-{}", span.id),
            // Somebody sent it whose own span is not here, yet or at all: whoever that is.
            source: attempt
                .map(|it| it.service.clone())
                .or_else(|| (!span.parent.is_empty()).then(|| UNKNOWN.to_owned())),
            destination: destination.unwrap_or_default(),
            method: text(span.attribute(&["http.request.method", "rpc.method"])),
            authority: authority.or_else(named).unwrap_or_default(),
            path: text(span.attribute(&["url.path"])),
            status: span.status().map(str::to_owned),
            flags: text(span.attribute(&["response_flags"])).replace('-', ""),
            start: span.start,
            duration: span.duration,
            is_error: span.is_error,
        }
    };
    spans.iter().filter(is_told).map(call).collect()
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

    use super::*;

    fn span(
        id: &str,
        parent: &str,
        service: &str,
        kind: &str,
        start: u64,
        duration: u64,
        attributes: &[(&str, &str)],
    ) -> Span {
        Span {
            id: id.to_owned(),
            parent: parent.to_owned(),
            service: service.to_owned(),
            name: if kind == "server" {
                format!("GET {service}.default.svc.cluster.local/*")
            } else {
                format!("GET {service}")
            },
            kind: kind.to_owned(),
            start,
            duration,
            is_error: attributes.iter().any(|(_, value)| *value == "503"),
            attributes: attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        }
    }

    /// A page that asks for reviews twice: the first answer is 503, and comes from nobody that tells of it.
    pub(crate) fn page() -> Vec<Span> {
        let method = ("http.request.method", "GET");
        let host = ("server.address", "reviews:9080");
        let ok = ("http.response.status_code", "200");
        vec![
            span("a", "", "productpage", "server", 1_000, 9_000, &[method, ("url.path", "/productpage"), ok]),
            span(
                "b",
                "a",
                "productpage",
                "client",
                2_000,
                1_500,
                &[method, host, ("http.response.status_code", "503")],
            ),
            span("c", "a", "productpage", "client", 4_000, 5_000, &[method, host, ok]),
            span("d", "c", "reviews", "server", 4_500, 4_000, &[method, ("url.path", "/reviews/0"), ok]),
        ]
    }

    #[test]
    fn calls_are_told_once_with_both_ends() {
        let calls = calls("t", &page());
        let of = |call: &Call| (call.source.clone(), call.destination.clone(), call.path.clone(), call.status.clone());
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(of(&calls[0]), (None, "productpage".to_owned(), "/productpage".to_owned(), some("200")));
        assert_eq!(of(&calls[1]), (some("productpage"), "reviews:9080".to_owned(), String::new(), some("503")));
        assert_eq!(of(&calls[2]), (some("productpage"), "reviews".to_owned(), "/reviews/0".to_owned(), some("200")));
        assert_eq!((calls.len(), calls[2].authority.as_str()), (3, "reviews:9080"));
    }
}
