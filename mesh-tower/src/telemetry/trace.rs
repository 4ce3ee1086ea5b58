//! Distributed tracing: the context that travels in headers, and the spans that go out over OTLP.
//!
//! W3C `traceparent` and `tracestate` are read first, then gRPC's `grpc-trace-bin`, then B3 (single, then multi header, as
//! Istio's Zipkin provider writes them); W3C is always sent on, and beside it whatever came in. A caller's sampling decision is
//! kept; a trace that begins here is sampled as the control plane says, else by `OTEL_TRACES_SAMPLER`. Headers are an attacker's to choose: what does not parse is ignored
//! whole. Spans are handed to OpenTelemetry's batch processor as finished data, so that ids and sampling stay ours.

use std::{borrow::Cow, fmt, time::SystemTime};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_core::telling::Asked;

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
const GRPC_TRACE: HeaderName = HeaderName::from_static("grpc-trace-bin");
const FORCED: HeaderName = HeaderName::from_static("x-envoy-force-trace");
const CLIENT_TRACE: HeaderName = HeaderName::from_static("x-client-trace-id");
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
    /// The other forms it came in, in which it is sent on too.
    pub forms: Forms,
}

/// Forms of a trace's context beside W3C's.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Forms {
    /// The header `b3`.
    pub b3: bool,
    /// The headers `x-b3-traceid` and its like.
    pub b3_multi: bool,
    /// The header `grpc-trace-bin`.
    pub grpc: bool,
}

impl Forms {
    /// As `OTEL_PROPAGATORS` says: `b3` and `b3multi` beside `tracecontext`, which is always sent.
    pub fn of_propagators(list: &str) -> Self {
        let has = |name: &str| list.split(',').any(|it| it.trim() == name);
        Self { b3: has("b3"), b3_multi: has("b3multi"), grpc: false }
    }

    fn or(self, other: Self) -> Self {
        Self { b3: self.b3 || other.b3, b3_multi: self.b3_multi || other.b3_multi, grpc: self.grpc || other.grpc }
    }
}

impl TraceContext {
    /// A trace that begins here.
    pub fn root(sampled: bool) -> Self {
        let trace_id = u128::from(source::random_u64()) << 64 | u128::from(source::random_u64());
        Self { trace_id: trace_id.max(1), span_id: new_span_id(), sampled, state: None, forms: Forms::default() }
    }

    /// The same, sent on in these forms too.
    #[must_use]
    pub(super) fn also(mut self, forms: Forms) -> Self {
        self.forms = self.forms.or(forms);
        self
    }

    /// What the headers say, if they say it rightly.
    pub fn extract(headers: &HeaderMap) -> Option<Self> {
        let w3c = only(headers, &TRACEPARENT).and_then(parse_traceparent);
        let mut context = w3c.or_else(|| extract_grpc(headers)).or_else(|| extract_b3(headers))?;
        let has = |name| headers.contains_key(name);
        context.forms = Forms { b3: has(&B3), b3_multi: has(&B3_TRACE), grpc: has(&GRPC_TRACE) };
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
        for name in [B3_PARENT, B3_FLAGS, TRACESTATE] {
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
        if self.forms == Forms::default() {
            return;
        }
        let text = self.traceparent();
        if self.forms.b3 {
            // Trace, span, and whether it is sampled: the same signs as W3C's, without the version, and with one digit less.
            let mut single = [b'-'; 51];
            single[..49].copy_from_slice(&text[3..52]);
            single[50] = text[54];
            headers.insert(B3, value(&single));
        }
        if self.forms.b3_multi {
            headers.insert(B3_TRACE, value(&text[3..35]));
            headers.insert(B3_SPAN, value(&text[36..52]));
            headers.insert(B3_SAMPLED, HeaderValue::from_static(if self.sampled { "1" } else { "0" }));
        }
        if self.forms.grpc {
            headers.insert(GRPC_TRACE, self.binary());
        }
    }

    /// As gRPC sends it: version 0, then fields 0 (trace), 1 (span) and 2 (options). Source: OpenCensus binary encoding.
    fn binary(&self) -> HeaderValue {
        let mut bytes = [0; 29];
        bytes[2..18].copy_from_slice(&self.trace_id.to_be_bytes());
        bytes[18] = 1;
        bytes[19..27].copy_from_slice(&self.span_id.to_be_bytes());
        bytes[27] = 2;
        bytes[28] = u8::from(self.sampled);
        value(STANDARD_NO_PAD.encode(bytes).as_bytes())
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
    pub attributes: Vec<(Cow<'static, str>, Attribute)>,
    /// What happened meanwhile, and when.
    pub events: Vec<(&'static str, SystemTime)>,
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
    /// A call with its attempts, where nothing is above it.
    Internal,
}

/// A fact about a span.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
    /// A truth.
    Truth(bool),
}

impl From<String> for Attribute {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Attribute {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u32> for Attribute {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u16> for Attribute {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<bool> for Attribute {
    fn from(truth: bool) -> Self {
        Self::Truth(truth)
    }
}

/// Facts with their names.
pub(crate) fn facts<const N: usize>(all: [(&'static str, Attribute); N]) -> Vec<(Cow<'static, str>, Attribute)> {
    all.into_iter().map(|(name, fact)| (Cow::Borrowed(name), fact)).collect()
}

/// What a gRPC call's path says of it: `pkg.Service` and `Method`.
pub(crate) fn rpc_of(path: &str) -> (&str, &str) {
    path.trim_start_matches('/').rsplit_once('/').unwrap_or(("", path))
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
    /// Somebody wants a trace.
    pub(super) asked: bool,
}

impl Said {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut said = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "x-request-id" => said.request_id = true,
                "traceparent" | "tracestate" | "b3" | "grpc-trace-bin" => said.trace = true,
                "x-client-trace-id" | "x-envoy-force-trace" => said.asked = true,
                name if name.starts_with("x-b3-") => said.trace = true,
                _ => {}
            }
        }
        said
    }
}

/// Who wants the trace that begins with this request.
pub(super) fn asked(headers: &HeaderMap) -> Asked {
    if headers.contains_key(FORCED) {
        Asked::Forced
    } else if headers.contains_key(CLIENT_TRACE) {
        Asked::Client
    } else {
        Asked::No
    }
}

/// What B3 decides of a trace that begins here: it may say so without an id.
pub(super) fn decision(headers: &HeaderMap) -> Option<bool> {
    let single = only(headers, &B3).filter(|text| text.len() == 1);
    let forced = only(headers, &B3_FLAGS).filter(|flags| *flags == "1");
    match single.or(forced).or_else(|| only(headers, &B3_SAMPLED))? {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

fn extract_grpc(headers: &HeaderMap) -> Option<TraceContext> {
    let text = only(headers, &GRPC_TRACE).filter(|text| text.len() <= 64)?;
    let bytes = STANDARD_NO_PAD.decode(text).or_else(|_| STANDARD.decode(text)).ok()?;
    let bytes: &[u8; 29] = bytes.as_slice().try_into().ok()?;
    let (trace, span) = (bytes[2..18].try_into().ok()?, bytes[19..27].try_into().ok()?);
    let is_ours = bytes[0] == 0 && bytes[1] == 0 && bytes[18] == 1 && bytes[27] == 2;
    is_ours.then_some(())?;
    context(u128::from_be_bytes(trace), u64::from_be_bytes(span), bytes[28] & 1 == 1)
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
    context(hex(trace, 32)?, hex(span, 16)?, flags & 1 == 1)
}

fn extract_b3(headers: &HeaderMap) -> Option<TraceContext> {
    if let Some(single) = only(headers, &B3) {
        let mut parts = single.split('-');
        let (trace, span) = (b3_trace(parts.next()?)?, hex(parts.next()?, 16)?);
        // A missing decision leaves it to us; we take the trace as wanted, as whoever sent ids most likely records it.
        let sampled = !matches!(parts.next(), Some("0"));
        return context(trace, span, sampled);
    }
    let trace = b3_trace(only(headers, &B3_TRACE)?)?;
    let span = hex(only(headers, &B3_SPAN)?, 16)?;
    let forced = only(headers, &B3_FLAGS) == Some("1");
    let sampled = forced || !matches!(only(headers, &B3_SAMPLED), Some("0" | "false"));
    context(trace, span, sampled)
}

fn b3_trace(text: &str) -> Option<u128> {
    hex(text, 32).or_else(|| hex(text, 16))
}

fn context(trace_id: u128, span_id: u64, sampled: bool) -> Option<TraceContext> {
    let forms = Forms::default();
    (trace_id != 0 && span_id != 0).then_some(TraceContext { trace_id, span_id, sampled, state: None, forms })
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

    /// TE13: W3C, gRPC's and B3 are read, what does not parse is ignored, W3C is sent on and beside it what came in.
    #[test]
    fn contexts_are_read_from_w3c_and_b3() {
        const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
        const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;
        let none = Forms::default();
        let (b3, b3_multi, grpc) =
            (Forms { b3: true, ..none }, Forms { b3_multi: true, ..none }, Forms { grpc: true, ..none });
        let good = [
            (vec![("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")], true, none),
            (vec![("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")], false, none),
            (vec![("traceparent", "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what")], true, none),
            (vec![("grpc-trace-bin", "AABL+S81d7NNpqPOkp0ODkc2AQDwZ6oLqQK3AgE")], true, grpc),
            (vec![("grpc-trace-bin", "AABL+S81d7NNpqPOkp0ODkc2AQDwZ6oLqQK3AgA=")], false, grpc),
            (vec![("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1")], true, b3),
            (vec![("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0-05e3ac9a4f6e3b90")], false, b3),
            (
                vec![
                    ("x-b3-traceid", "4bf92f3577b34da6a3ce929d0e0e4736"),
                    ("x-b3-spanid", "00f067aa0ba902b7"),
                    ("x-b3-sampled", "1"),
                ],
                true,
                b3_multi,
            ),
        ];
        for (pairs, sampled, forms) in good {
            let context = TraceContext::extract(&headers(&pairs)).unwrap();
            assert_eq!(
                context,
                TraceContext { trace_id: TRACE, span_id: SPAN, sampled, state: None, forms },
                "{pairs:?}"
            );
            let mut out = headers(&pairs);
            let child = context.child();
            child.inject(&mut out);
            assert_eq!(TraceContext::extract(&out).unwrap().span_id, child.span_id);
            assert_eq!(out.contains_key("x-b3-spanid"), forms.b3_multi);
            assert_eq!(out.contains_key("grpc-trace-bin"), forms.grpc);
            // Each form says the same.
            out.remove("traceparent");
            if forms != none {
                assert_eq!(TraceContext::extract(&out), Some(child), "{pairs:?}");
            }
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

    /// TE13, TE14: B3 may decide without naming a trace, and gRPC's form is read whole or not at all.
    #[test]
    fn decisions_without_a_trace_are_read() {
        for (pairs, expected) in [
            (vec![("b3", "0")], Some(false)),
            (vec![("b3", "d")], Some(true)),
            (vec![("x-b3-sampled", "1")], Some(true)),
            (vec![("x-b3-sampled", "0"), ("x-b3-flags", "1")], Some(true)),
            (vec![("b3", "x")], None),
            (vec![], None),
        ] {
            assert_eq!(decision(&headers(&pairs)), expected, "{pairs:?}");
            assert_eq!(TraceContext::extract(&headers(&pairs)), None);
        }
        for bad in
            ["", "AA", "AABL+S81d7NNpqPOkp0ODkc2AQDwZ6oLqQK3AwE", "\u{7f}", "AQBL+S81d7NNpqPOkp0ODkc2AQDwZ6oLqQK3AgE"]
        {
            if let Ok(value) = HeaderValue::from_str(bad) {
                let mut map = HeaderMap::new();
                map.insert("grpc-trace-bin", value);
                assert_eq!(TraceContext::extract(&map), None, "{bad}");
            }
        }
        assert_eq!(asked(&headers(&[("x-envoy-force-trace", "true")])), Asked::Forced);
        assert_eq!(asked(&headers(&[("x-client-trace-id", "7")])), Asked::Client);
        assert_eq!(Forms::of_propagators("tracecontext, b3multi"), Forms { b3_multi: true, ..Forms::default() });
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
