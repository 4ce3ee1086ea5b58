//! Distributed tracing: the context that travels in headers, and the spans that go out over OTLP.
//!
//! W3C `traceparent` and `tracestate` are read first, then B3 (single, then multi header, as Istio's Zipkin provider
//! writes them); W3C is always sent on, B3 beside it when B3 came in. A caller's sampling decision is kept; a trace that
//! begins here is sampled by `OTEL_TRACES_SAMPLER`. Headers are an attacker's to choose: what does not parse is ignored
//! whole. Spans are handed to OpenTelemetry's batch processor as finished data, so that ids and sampling stay ours.

use std::{fmt, time::SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::text::{hex8, hex16, value};
use crate::source;

mod export;

pub use export::Spans;

/// `traceparent` of W3C Trace Context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// `tracestate` of W3C Trace Context.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// `x-request-id`, made where missing.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// Longest `tracestate` sent on, in bytes: what W3C asks implementations to carry at least.
const STATE_LIMIT: usize = 512;

/// A place in a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceContext {
    /// Of the whole trace; never 0.
    pub trace_id: u128,
    /// Of the span this context stands for; never 0.
    pub span_id: u64,
    /// Its spans are wanted.
    pub sampled: bool,
    /// Vendors' words, sent on as they came.
    pub state: Option<HeaderValue>,
    /// It came as B3, so it is sent on as B3 too.
    pub b3: bool,
}

impl TraceContext {
    /// A trace that begins here.
    pub fn root(sampled: bool) -> Self {
        let trace_id = u128::from(source::random_u64()) << 64 | u128::from(source::random_u64());
        Self { trace_id: trace_id.max(1), span_id: new_span_id(), sampled, state: None, b3: false }
    }

    /// What the headers say, if they say it rightly.
    pub fn extract(headers: &HeaderMap) -> Option<Self> {
        let mut context = only(headers, &TRACEPARENT).and_then(parse_traceparent).or_else(|| extract_b3(headers))?;
        let mut states = headers.get_all(&TRACESTATE).into_iter();
        context.state = match (states.next(), states.next()) {
            (Some(state), None) if state.len() <= STATE_LIMIT => Some(state.clone()),
            _ => None,
        };
        Some(context)
    }

    /// A span below this one, with an id of its own.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span_id: new_span_id(), ..self.clone() }
    }

    /// Writes it, replacing what was there.
    pub fn inject(&self, headers: &mut HeaderMap) {
        for name in [B3, B3_PARENT, B3_FLAGS, TRACESTATE] {
            headers.remove(name);
        }
        self.inject_new(headers);
    }

    /// Writes it on headers that say nothing of a trace yet.
    pub(super) fn inject_new(&self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT, unique(&self.traceparent()));
        if let Some(state) = &self.state {
            headers.insert(TRACESTATE, state.clone());
        }
        if self.b3 {
            let text = self.traceparent();
            headers.insert(B3_TRACE, value(&text[3..35]));
            headers.insert(B3_SPAN, value(&text[36..52]));
            headers.insert(B3_SAMPLED, HeaderValue::from_static(if self.sampled { "1" } else { "0" }));
        }
    }

    fn traceparent(&self) -> [u8; 55] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        text[3..19].copy_from_slice(&hex16((self.trace_id >> 64) as u64));
        text[19..35].copy_from_slice(&hex16(self.trace_id as u64));
        text[36..52].copy_from_slice(&hex16(self.span_id));
        text[54] = if self.sampled { b'1' } else { b'0' };
        text
    }
}

impl fmt::Display for TraceContext {
    /// As `traceparent`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.traceparent()))
    }
}

/// One finished span.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its own place.
    pub context: TraceContext,
    /// The span above it; `None` begins a trace.
    pub parent: Option<u64>,
    /// Which side.
    pub kind: SpanKind,
    /// What was done; from configuration, never the raw path.
    pub name: String,
    /// Began.
    pub start: SystemTime,
    /// Ended.
    pub end: SystemTime,
    /// Facts, by OpenTelemetry's or Istio's names.
    pub attributes: Vec<(&'static str, String)>,
    /// It failed.
    pub error: bool,
}

/// Which side of a call a span is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SpanKind {
    /// The caller's: one per attempt.
    Client,
    /// The answerer's.
    Server,
}

/// A fresh `x-request-id`: a version 4 UUID.
pub fn new_request_id() -> HeaderValue {
    let (high, low) = (source::random_u64(), source::random_u64());
    let high = high & !(0xf << 12) | 4 << 12;
    let low = low & !(0b11 << 62) | 0b10 << 62;
    let (first, second) = (hex8((high >> 32) as u32), hex8(high as u32));
    let (third, fourth) = (hex8((low >> 32) as u32), hex8(low as u32));
    let mut text = [b'-'; 36];
    text[..8].copy_from_slice(&first);
    text[9..13].copy_from_slice(&second[..4]);
    text[14..18].copy_from_slice(&second[4..]);
    text[19..23].copy_from_slice(&third[..4]);
    text[24..28].copy_from_slice(&third[4..]);
    text[28..].copy_from_slice(&fourth);
    unique(&text)
}

/// A value that no other request has. HTTP/2 is told so, lest it keeps each in its table of headers to come, searches them
/// for every request after it, and loses those that do come again.
fn unique(text: &[u8]) -> HeaderValue {
    let mut value = value(text);
    value.set_sensitive(true);
    value
}

/// What the headers say that concerns traces, found in one pass: most requests say nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Said {
    pub(super) request_id: bool,
    pub(super) trace: bool,
}

impl Said {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut said = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "x-request-id" => said.request_id = true,
                "traceparent" | "tracestate" | "b3" => said.trace = true,
                name if name.starts_with("x-b3-") => said.trace = true,
                _ => {}
            }
        }
        said
    }
}

fn new_span_id() -> u64 {
    source::random_u64().max(1)
}

fn parse_traceparent(text: &str) -> Option<TraceContext> {
    let mut parts = text.split('-');
    let version: u8 = hex(parts.next()?, 2)?;
    let (trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
    // Version 00 has exactly four parts; later ones may have more; ff is not a version.
    if version == 0xff || (version == 0 && parts.next().is_some()) {
        return None;
    }
    let flags: u8 = hex(flags, 2)?;
    context(hex(trace, 32)?, hex(span, 16)?, flags & 1 == 1, false)
}

fn extract_b3(headers: &HeaderMap) -> Option<TraceContext> {
    if let Some(single) = only(headers, &B3) {
        let mut parts = single.split('-');
        let (trace, span) = (b3_trace(parts.next()?)?, hex(parts.next()?, 16)?);
        // A missing decision leaves it to us; we take the trace as wanted, as whoever sent ids most likely records it.
        let sampled = !matches!(parts.next(), Some("0"));
        return context(trace, span, sampled, true);
    }
    let trace = b3_trace(only(headers, &B3_TRACE)?)?;
    let span = hex(only(headers, &B3_SPAN)?, 16)?;
    let forced = only(headers, &B3_FLAGS) == Some("1");
    let sampled = forced || !matches!(only(headers, &B3_SAMPLED), Some("0" | "false"));
    context(trace, span, sampled, true)
}

fn b3_trace(text: &str) -> Option<u128> {
    hex(text, 32).or_else(|| hex(text, 16))
}

fn context(trace_id: u128, span_id: u64, sampled: bool, b3: bool) -> Option<TraceContext> {
    (trace_id != 0 && span_id != 0).then_some(TraceContext { trace_id, span_id, sampled, state: None, b3 })
}

/// Exactly `length` lower-case hexadecimal digits.
fn hex<T: TryFrom<u128>>(text: &str, length: usize) -> Option<T> {
    let digits = text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !digits {
        return None;
    }
    T::try_from(u128::from_str_radix(text, 16).ok()?).ok()
}

/// The header's value where it occurs once and is text.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).into_iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    /// TE13: W3C and B3 are read, what does not parse is ignored, W3C is sent on and B3 beside it.
    #[test]
    fn contexts_are_read_from_w3c_and_b3() {
        const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
        const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;
        let good = [
            (vec![("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")], true, false),
            (vec![("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")], false, false),
            (vec![("traceparent", "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what")], true, false),
            (vec![("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1")], true, true),
            (vec![("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0-05e3ac9a4f6e3b90")], false, true),
            (
                vec![
                    ("x-b3-traceid", "4bf92f3577b34da6a3ce929d0e0e4736"),
                    ("x-b3-spanid", "00f067aa0ba902b7"),
                    ("x-b3-sampled", "1"),
                ],
                true,
                true,
            ),
        ];
        for (pairs, sampled, b3) in good {
            let context = TraceContext::extract(&headers(&pairs)).unwrap();
            assert_eq!(context, TraceContext { trace_id: TRACE, span_id: SPAN, sampled, state: None, b3 }, "{pairs:?}");
            let mut out = headers(&pairs);
            let child = context.child();
            child.inject(&mut out);
            assert_eq!(TraceContext::extract(&out).unwrap().span_id, child.span_id);
            assert_eq!(out.contains_key("x-b3-spanid"), b3);
        }
        let bad = [
            "",
            "00",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ];
        for text in bad {
            assert_eq!(TraceContext::extract(&headers(&[("traceparent", text)])), None, "{text}");
        }
        let twice = headers(&[
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b8-01"),
        ]);
        assert_eq!(TraceContext::extract(&twice), None);
    }

    #[test]
    fn state_travels_with_its_parent() {
        let mut map = headers(&[
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            ("tracestate", "vendor=1"),
        ]);
        let child = TraceContext::extract(&map).unwrap().child();
        child.inject(&mut map);
        assert_eq!(map["tracestate"], "vendor=1");
    }

    #[test]
    fn request_ids_are_version_4_uuids() {
        let id = new_request_id();
        let text = id.to_str().unwrap();
        assert_eq!((text.len(), &text[14..15]), (36, "4"));
        assert!(matches!(&text[19..20], "8" | "9" | "a" | "b"), "{text}");
        assert_ne!(id, new_request_id());
    }
}
