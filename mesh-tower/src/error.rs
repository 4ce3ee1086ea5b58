//! The one error of this crate: why the mesh, and not the destination, answered; opaque, with a [`kind`](Error::kind).
//!
//! Inside the layers a refusal is an `Err`; at the border of [`HttpClient`](crate::HttpClient) it becomes the response
//! Envoy would give (status, body text, response flags), and at that of [`GrpcClient`](crate::GrpcClient) a response of
//! headers alone with `grpc-status`. Both forms are made here, so that a layer used alone can be given either.
//! Sources: Envoy `sendLocalReply` of the router and fault filters, `RESPONSE_FLAGS`, `RESPONSE_CODE_DETAILS`; gRPC
//! statuses as gRPC clients report them (no route is UNAVAILABLE, a passed deadline is DEADLINE_EXCEEDED).

use std::{borrow::Cow, error::Error as StdError, fmt};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use mesh_core::{
    outcome::{Failure, Flags, Outcome, grpc_of_http},
    rate_limit::{LimitVerdict, Limited},
};

use crate::layer::Call;

mod kind;

pub use kind::ErrorKind;

/// Any error, as services and bodies of others have it.
pub type BoxError = Box<dyn StdError + Send + Sync>;

pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(crate) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// Why a request got no answer from a destination. Small; the details are behind one pointer.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    flags: Flags,
    message: Option<Cow<'static, str>>,
    source: Option<BoxError>,
    unsent: bool,
    answer: Option<Answer>,
    /// What rate limit services write on the answer, whoever gives it.
    told: Vec<LimitVerdict>,
    /// Whose it is: its route may change the headers of the answer.
    call: Option<Call>,
}

/// What is answered when it is not what the kind says: an injected status, a redirect, a direct response.
struct Answer {
    status: StatusCode,
    grpc: Option<u32>,
    body: Cow<'static, str>,
    location: Option<HeaderValue>,
}

impl Error {
    /// An error of that kind, caused by `source`.
    pub fn new(kind: ErrorKind, source: impl Into<BoxError>) -> Self {
        Self::build(kind, None, Some(source.into()))
    }

    /// An error of that kind, explained to a person.
    pub fn msg(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self::build(kind, Some(message.into()), None)
    }

    /// An error of that kind that needs no explaining.
    pub(crate) fn of(kind: ErrorKind) -> Self {
        Self::build(kind, None, None)
    }

    /// The answer of an injected fault: `status`, or `grpc` where one was asked for.
    pub(crate) fn fault(status: u16, grpc: Option<u32>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let answer = Answer { status, grpc, body: "fault filter abort".into(), location: None };
        Self::of(ErrorKind::Fault).with_answer(answer)
    }

    /// The answer of a rate limit that was reached.
    pub(crate) fn rate_limited(status: u16, grpc: Option<u32>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
        let answer = Answer { status, grpc, body: "local_rate_limited".into(), location: None };
        Self::of(ErrorKind::RateLimited).with_answer(answer)
    }

    /// The answer of a rate limit service that says no, or says nothing; its verdict is the last of these.
    pub(crate) fn over_limit(limited: Limited, told: Vec<LimitVerdict>) -> Self {
        let last = told.last();
        let unknown = last.is_some_and(|verdict| verdict.flags.contains(Flags::RLSE));
        let status = StatusCode::from_u16(limited.status).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
        let body = last.map_or_else(String::new, |verdict| verdict.body.clone());
        let answer = Answer { status, grpc: limited.grpc, body: body.into(), location: None };
        let kind = if unknown { ErrorKind::LimitUnknown } else { ErrorKind::RateLimited };
        Self::of(kind).with_answer(answer).telling(told)
    }

    /// With what rate limit services write on the answer.
    #[must_use]
    pub(crate) fn telling(mut self, told: Vec<LimitVerdict>) -> Self {
        self.0.told.extend(told);
        self
    }

    /// The route's cluster is not there; 0 is the status of the kind.
    pub(crate) fn no_cluster(name: &str, status: u16) -> Self {
        let error = Self::msg(ErrorKind::NoCluster, name.to_owned());
        match StatusCode::from_u16(status) {
            Ok(status) => error.with_answer(Answer { status, grpc: None, body: "".into(), location: None }),
            Err(_) => error,
        }
    }

    /// A route's own answer.
    pub(crate) fn answered(status: u16, body: String, location: Option<HeaderValue>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let answer = Answer { status, grpc: None, body: body.into(), location };
        Self::of(ErrorKind::Answered).with_answer(answer)
    }

    /// What any error of an inner service or body means here; one of ours passes unchanged.
    pub fn from_boxed(kind: ErrorKind, source: BoxError) -> Self {
        source.downcast::<Self>().map_or_else(|source| Self::new(kind, source), |error| *error)
    }

    fn build(kind: ErrorKind, message: Option<Cow<'static, str>>, source: Option<BoxError>) -> Self {
        Self(Box::new(Inner {
            kind,
            flags: kind.flags(),
            message,
            source,
            unsent: false,
            answer: None,
            told: Vec::new(),
            call: None,
        }))
    }

    fn with_answer(mut self, answer: Answer) -> Self {
        self.0.answer = Some(answer);
        self
    }

    /// The request provably reached no application: it may be sent again whatever its method.
    #[must_use]
    pub fn unsent(mut self) -> Self {
        self.0.unsent = true;
        self
    }

    /// With these response flags beside its own.
    #[must_use]
    pub fn with_flags(mut self, flags: Flags) -> Self {
        self.0.flags |= flags;
        self
    }

    /// It is of this request, and has the flags of what happened to that.
    pub(crate) fn belongs_to(&mut self, call: Call) {
        self.0.flags |= call.flags();
        self.0.call = Some(call);
    }

    /// What the route says of the headers of responses, its own among them.
    fn change(&self, response: &mut http::Response<Bytes>) {
        if let Some(call) = &self.0.call {
            let status = response.status();
            call.change_response(status, response.headers_mut());
        }
    }

    /// What stood in the way.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Envoy's response flags.
    pub fn flags(&self) -> Flags {
        self.0.flags
    }

    /// Envoy's response code details: one word for logs, such as `route_not_found`.
    pub fn details(&self) -> &'static str {
        self.0.kind.details()
    }

    /// Did the request provably reach no application?
    pub fn is_unsent(&self) -> bool {
        self.0.unsent || self.0.kind.is_unsent()
    }

    /// No other try can end otherwise: the caller's doing, or the route's own answer.
    pub(crate) fn is_final(&self) -> bool {
        !self.0.kind.failure().is_some_and(|failure| failure.blames_endpoint() || failure == Failure::NoEndpoint)
    }

    /// The HTTP status an HTTP caller is given.
    pub fn status(&self) -> StatusCode {
        self.0.answer.as_ref().map_or_else(|| self.0.kind.status(), |answer| answer.status)
    }

    /// The gRPC status a gRPC caller is given.
    pub fn grpc_status(&self) -> u32 {
        match (&self.0.answer, self.0.kind) {
            (Some(Answer { grpc: Some(grpc), .. }), _) => *grpc,
            (Some(answer), _) => grpc_of_http(answer.status.as_u16()),
            // Envoy says UNIMPLEMENTED, as of any 404; every gRPC client says UNAVAILABLE (RM1).
            (None, ErrorKind::NoRoute) => 14,
            (None, ErrorKind::Invalid) => 13,
            (None, ErrorKind::Upgrade) => 7,
            (None, kind) => kind.failure().map_or(14, Failure::grpc_status),
        }
    }

    /// What core is told of it.
    pub(crate) fn outcome(&self) -> Outcome {
        let outcome = Outcome::failed(self.0.kind.failure().unwrap_or(Failure::Cancelled));
        Outcome { unsent: self.is_unsent(), ..outcome }
    }

    /// The response an HTTP caller is given: Envoy's status, headers and text.
    pub fn to_response(&self) -> http::Response<Bytes> {
        let body = self.body();
        let has_text = !body.is_empty();
        // What has no content is sent without.
        let bytes = match self.status() {
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => Bytes::new(),
            _ => Bytes::from(body.into_owned()),
        };
        let mut response = http::Response::new(bytes);
        *response.status_mut() = self.status();
        self.tell(&mut response);
        // Routes come first; the kind of a text is said where they do not say it, and of what there is not nothing is.
        self.change(&mut response);
        let headers = response.headers_mut();
        if has_text {
            headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
        } else {
            headers.remove(header::CONTENT_TYPE);
        }
        response
    }

    fn tell(&self, response: &mut http::Response<Bytes>) {
        if self.0.kind == ErrorKind::Overflow {
            response.headers_mut().insert(OVERLOADED, HeaderValue::from_static("true"));
        }
        if let Some(location) = self.0.answer.as_ref().and_then(|answer| answer.location.clone()) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        self.0.told.iter().for_each(|verdict| verdict.tell(response.headers_mut()));
    }

    /// The response a gRPC caller is given: headers alone, with `grpc-status` and `grpc-message`.
    pub fn to_grpc_response(&self) -> http::Response<Bytes> {
        let mut response = http::Response::new(Bytes::new());
        self.tell(&mut response);
        self.change(&mut response);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.extend(self.to_trailers());
        response
    }

    /// `grpc-status` and `grpc-message`, for the end of a gRPC stream that had begun.
    pub(crate) fn to_trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::with_capacity(2);
        trailers.insert(GRPC_STATUS, HeaderValue::from(self.grpc_status()));
        let text = match self.body() {
            // A route's own answer says what the route says, be it nothing.
            text if !text.is_empty() || self.0.answer.is_some() => text,
            _ => Cow::from(self.to_string()),
        };
        if let (false, Ok(message)) = (text.is_empty(), HeaderValue::try_from(percent_encode(&text))) {
            trailers.insert(GRPC_MESSAGE, message);
        }
        trailers
    }

    /// Envoy's text. What a local failure says in detail is for logs, except the reason a connection could not be made.
    fn body(&self) -> Cow<'_, str> {
        if let Some(answer) = &self.0.answer {
            return Cow::Borrowed(&answer.body);
        }
        let reset = "upstream connect error or disconnect/reset before headers. reset reason: ";
        match self.0.kind {
            ErrorKind::NoRoute | ErrorKind::NoCluster => Cow::Borrowed(""),
            ErrorKind::NotReady => Cow::Borrowed("no configuration has arrived from the control plane"),
            ErrorKind::NoEndpoint => Cow::Borrowed("no healthy upstream"),
            ErrorKind::Dropped => Cow::Borrowed("drop overload"),
            ErrorKind::Overflow => Cow::Owned(format!("{reset}overflow")),
            ErrorKind::Connect | ErrorKind::Tls => match self.root_cause() {
                Some(cause) => {
                    Cow::Owned(format!("{reset}remote connection failure, transport failure reason: {cause}"))
                }
                None => Cow::Owned(format!("{reset}remote connection failure")),
            },
            ErrorKind::Reset => Cow::Owned(format!("{reset}connection termination")),
            ErrorKind::RefusedStream => Cow::Owned(format!("{reset}remote refused stream reset")),
            ErrorKind::Protocol => Cow::Owned(format!("{reset}protocol error")),
            ErrorKind::TryTimeout | ErrorKind::Timeout | ErrorKind::Deadline => {
                Cow::Borrowed("upstream request timeout")
            }
            ErrorKind::Duration => Cow::Borrowed("downstream duration timeout"),
            ErrorKind::Idle => Cow::Borrowed("stream timeout"),
            ErrorKind::RateLimited => Cow::Borrowed("local_rate_limited"),
            ErrorKind::LimitUnknown | ErrorKind::Fault | ErrorKind::Answered | ErrorKind::Upgrade => Cow::Borrowed(""),
            ErrorKind::Invalid | ErrorKind::Body => Cow::Owned(self.to_string()),
        }
    }

    fn root_cause(&self) -> Option<&(dyn StdError + 'static)> {
        let mut cause = self.source()?;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        Some(cause)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.message {
            Some(message) => write!(f, "{}: {message}", self.0.kind.text()),
            None => f.write_str(self.0.kind.text()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("flags", &self.0.flags)
            .field("message", &self.0.message)
            .field("source", &self.0.source)
            .finish_non_exhaustive()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// What happened to a request, beside its response: found in the extensions of responses that have something to tell.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ResponseFlags {
    /// Envoy's response flags (`UF,URX`).
    pub flags: Flags,
    /// Envoy's response code details; `via_upstream` when a destination answered.
    pub details: &'static str,
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.flags, self.details)
    }
}

/// As `grpc-message` wants it: printable ASCII as it is, `%` and every other byte as `%XX`.
pub(crate) fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | 0..=0x1f | 0x7f..=0xff => {
                use fmt::Write as _;
                let _ = write!(out, "%{byte:02X}");
            }
            _ => out.push(char::from(byte)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    /// TE17, CB3: refusals carry Envoy's status, text and flags, and gRPC's status.
    #[test]
    fn every_kind_answers_as_envoy_does() {
        let reset = "upstream connect error or disconnect/reset before headers. reset reason: ";
        let cases: &[(ErrorKind, u16, u32, &str, String)] = &[
            (ErrorKind::NoRoute, 404, 14, "NR", String::new()),
            (ErrorKind::NoCluster, 503, 14, "NC", String::new()),
            (ErrorKind::NoEndpoint, 503, 14, "UH", "no healthy upstream".into()),
            (ErrorKind::Overflow, 503, 14, "UO", format!("{reset}overflow")),
            (ErrorKind::Connect, 503, 14, "UF", format!("{reset}remote connection failure")),
            (ErrorKind::Reset, 503, 14, "UC", format!("{reset}connection termination")),
            (ErrorKind::RefusedStream, 503, 14, "UC", format!("{reset}remote refused stream reset")),
            (ErrorKind::TryTimeout, 504, 4, "UT", "upstream request timeout".into()),
            (ErrorKind::Timeout, 504, 4, "UT", "upstream request timeout".into()),
            (ErrorKind::Deadline, 504, 4, "UT", "upstream request timeout".into()),
        ];
        for (kind, status, grpc, flags, body) in cases {
            let error = Error::msg(*kind, "x");
            let response = error.to_response();
            assert_eq!(response.status().as_u16(), *status, "{kind:?}");
            assert_eq!(response.body(), body, "{kind:?}");
            assert_eq!(error.flags().to_string(), *flags, "{kind:?}");
            let grpc_response = error.to_grpc_response();
            assert_eq!(grpc_response.status(), 200);
            assert_eq!(grpc_response.headers()[GRPC_STATUS], grpc.to_string(), "{kind:?}");
            let overloaded = response.headers().contains_key(OVERLOADED);
            assert_eq!(overloaded, *kind == ErrorKind::Overflow, "{kind:?}");
        }
    }

    /// FI2: an injected HTTP status reaches a gRPC caller as the status it stands for.
    #[test]
    fn injected_http_status_maps_to_grpc() {
        for (http, grpc) in [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (500, 2), (503, 14), (200, 2)] {
            let error = Error::fault(http, None);
            assert_eq!(error.grpc_status(), grpc, "{http}");
            assert_eq!(error.to_response().body(), "fault filter abort");
        }
        assert_eq!(Error::fault(200, Some(8)).grpc_status(), 8);
    }

    #[test]
    fn our_own_error_passes_through_a_box_unchanged() {
        let boxed: BoxError = Box::new(Error::msg(ErrorKind::Overflow, "full"));
        assert_eq!(Error::from_boxed(ErrorKind::Reset, boxed).kind(), ErrorKind::Overflow);
        assert_eq!(Error::from_boxed(ErrorKind::Reset, "other".into()).kind(), ErrorKind::Reset);
    }

    #[test]
    fn grpc_message_is_percent_encoded() {
        assert_eq!(percent_encode("50 % é\n"), "50 %25 %C3%A9%0A");
    }
}
