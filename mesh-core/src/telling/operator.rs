//! The operators of log lines, `%RESPONSE_CODE%`, and the texts they stand in. Source: Envoy, "Access logging".

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
};

/// Envoy's own line.
pub(super) const DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
    \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// Something there is to tell of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Operator {
    /// When it began, RFC 3339.
    StartTime,
    /// `REQ(:METHOD)`.
    Method,
    /// A header of the request, in small letters, `:path` and `:authority` among them, else the other one.
    Request(String, Option<String>),
    /// The path without its query.
    PathWithoutQuery,
    /// A header of the response.
    Response(String),
    /// `HTTP/1.1`.
    Protocol,
    /// 0 when there was none.
    ResponseCode,
    /// `via_upstream`.
    ResponseCodeDetails,
    /// `UH,URX`, `-`.
    ResponseFlags,
    /// The number.
    GrpcStatus,
    /// Of the request.
    BytesReceived,
    /// Of the response.
    BytesSent,
    /// Milliseconds.
    Duration,
    /// Milliseconds until the response's head.
    ResponseDuration,
    /// The endpoint's address.
    UpstreamHost,
    /// The cluster's name.
    UpstreamCluster,
    /// Tries.
    AttemptCount,
    /// The caller's address with its port.
    RemoteAddress,
    /// The same without.
    RemoteAddressWithoutPort,
    /// The caller's SPIFFE id.
    PeerUriSan,
    /// Of the route.
    RouteName,
    /// Of the trace.
    TraceId,
    /// Over mutual TLS: true or false.
    MutualTls,
    /// Of the source: workload, namespace, principal, ... by Istio's label.
    Label(String),
    /// Known to Envoy, and nothing there is here.
    Nothing,
}

/// What is told: a number stays one in JSON.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact<'a> {
    /// A number.
    Number(u64),
    /// A truth.
    Truth(bool),
    /// A text, perhaps of a caller.
    Text(Cow<'a, str>),
}

impl fmt::Display for Fact<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Truth(truth) => truth.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// What there is to tell of one request.
pub trait Facts {
    /// `None` when there is nothing of the kind.
    fn fact(&self, operator: &Operator) -> Option<Fact<'_>>;
}

/// A text with operators in it.
#[derive(Debug)]
pub struct Format(Vec<Piece>);

#[derive(Debug)]
enum Piece {
    Plain(String),
    Fact(Operator, Option<usize>),
}

impl Format {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// An operator nobody knows, or a lone `%`; as a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut pieces, mut plain) = (Vec::new(), String::new());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            plain.push_str(before);
            if let Some(after) = after.strip_prefix('%') {
                plain.push('%');
                rest = after;
                continue;
            }
            let (operator, after) = after.split_once('%').ok_or_else(|| format!("{text:?} has a lone %"))?;
            // A format of a time may have such signs in its parentheses: it ends with the closing one.
            let (operator, after) = match (operator.contains('('), operator.contains(')')) {
                (true, false) => {
                    let start = rest.len() - after.len() - operator.len() - 1;
                    let all = rest.get(start..).unwrap_or_default();
                    let end = all.find(")%").ok_or_else(|| format!("{text:?} has a parenthesis that does not end"))?;
                    (all.get(..=end).unwrap_or_default(), all.get(end + 2..).unwrap_or_default())
                }
                _ => (operator, after),
            };
            if !plain.is_empty() {
                pieces.push(Piece::Plain(std::mem::take(&mut plain)));
            }
            let (operator, limit) = operator_of(operator)?;
            pieces.push(Piece::Fact(operator, limit));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Plain(plain));
        }
        Ok(Self(pieces))
    }

    /// Filled in; `-` for what there is not. What callers wrote is escaped, so that nobody writes lines of his own.
    pub fn text(&self, facts: &impl Facts) -> String {
        let mut line = String::with_capacity(256);
        for piece in &self.0 {
            match piece {
                Piece::Plain(text) => line.push_str(text),
                Piece::Fact(operator, limit) => match facts.fact(operator) {
                    None => line.push('-'),
                    Some(Fact::Text(text)) => escape(cut(&text, *limit), &mut line),
                    Some(fact) => drop(write!(line, "{fact}")),
                },
            }
        }
        line
    }

    /// As a value of JSON: of a lone operator what it is, else a text.
    pub(super) fn json(&self, facts: &impl Facts) -> String {
        match self.0.as_slice() {
            [Piece::Fact(operator, limit)] => match facts.fact(operator) {
                None => "null".to_owned(),
                Some(Fact::Text(text)) => quoted(cut(&text, *limit)),
                Some(fact) => fact.to_string(),
            },
            pieces => {
                let mut all = String::new();
                for piece in pieces {
                    match piece {
                        Piece::Plain(text) => all.push_str(text),
                        Piece::Fact(operator, limit) => match facts.fact(operator) {
                            None => all.push('-'),
                            Some(fact) => all.push_str(cut(&fact.to_string(), *limit)),
                        },
                    }
                }
                quoted(&all)
            }
        }
    }
}

fn cut(text: &str, limit: Option<usize>) -> &str {
    let end = limit.and_then(|limit| text.char_indices().nth(limit)).map_or(text.len(), |(at, _)| at);
    text.get(..end).unwrap_or(text)
}

fn escape(text: &str, line: &mut String) {
    for c in text.chars() {
        match c {
            '"' | '\\' => line.extend(['\\', c]),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
}

/// As a string of JSON.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if c < ' ' => drop(write!(out, "\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn operator_of(text: &str) -> Result<(Operator, Option<usize>), String> {
    let (name, argument, limit) = match text.split_once('(') {
        None => (text, "", None),
        Some((name, rest)) => {
            let (argument, after) = rest.rsplit_once(')').ok_or_else(|| format!("%{text}% lacks a parenthesis"))?;
            let limit = after
                .strip_prefix(':')
                .map(|limit| limit.parse().map_err(|_| format!("%{text}%: {limit:?} is no length")));
            (name, argument, limit.transpose()?)
        }
    };
    Ok((named(name, argument)?, limit))
}

fn named(name: &str, argument: &str) -> Result<Operator, String> {
    Ok(match name {
        "START_TIME" => Operator::StartTime,
        "REQ" => {
            let (first, other) = match argument.split_once('?') {
                Some((first, other)) => (first, Some(other.to_ascii_lowercase())),
                None => (argument, None),
            };
            match (first.to_ascii_lowercase().as_str(), &other) {
                ("", _) => return Err("%REQ()% names no header".to_owned()),
                (":method", None) => Operator::Method,
                (first, _) => Operator::Request(first.to_owned(), other),
            }
        }
        "REQ_WITHOUT_QUERY" => Operator::PathWithoutQuery,
        "RESP" | "TRAILER" if !argument.is_empty() => {
            let first = argument.split('?').next().unwrap_or_default();
            Operator::Response(first.to_ascii_lowercase())
        }
        "PROTOCOL" => Operator::Protocol,
        "RESPONSE_CODE" => Operator::ResponseCode,
        "RESPONSE_CODE_DETAILS" => Operator::ResponseCodeDetails,
        "RESPONSE_FLAGS" => Operator::ResponseFlags,
        "GRPC_STATUS" | "GRPC_STATUS_NUMBER" => Operator::GrpcStatus,
        "BYTES_RECEIVED" => Operator::BytesReceived,
        "BYTES_SENT" => Operator::BytesSent,
        "DURATION" => Operator::Duration,
        "RESPONSE_DURATION" => Operator::ResponseDuration,
        "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" => Operator::UpstreamHost,
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Operator::UpstreamCluster,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Operator::AttemptCount,
        "DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Operator::RemoteAddress,
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => {
            Operator::RemoteAddressWithoutPort
        }
        "DOWNSTREAM_PEER_URI_SAN" => Operator::PeerUriSan,
        "ROUTE_NAME" => Operator::RouteName,
        "TRACE_ID" => Operator::TraceId,
        "CONNECTION_TERMINATION_DETAILS"
        | "UPSTREAM_TRANSPORT_FAILURE_REASON"
        | "UPSTREAM_LOCAL_ADDRESS"
        | "DOWNSTREAM_LOCAL_ADDRESS"
        | "REQUESTED_SERVER_NAME"
        | "REQUEST_DURATION"
        | "RESPONSE_TX_DURATION"
        | "DYNAMIC_METADATA"
        | "FILTER_STATE"
        | "HOSTNAME" => Operator::Nothing,
        _ => return Err(format!("%{name}% is no operator that is supported")),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    struct Nobody;

    impl Facts for Nobody {
        fn fact(&self, operator: &Operator) -> Option<Fact<'_>> {
            (*operator == Operator::StartTime).then_some(Fact::Text("now".into()))
        }
    }

    /// TE16: Envoy's own line, percent signs, lengths and times with forms are read; what is not known is said by name.
    #[test]
    fn lines_are_read() {
        assert_eq!(
            Format::parse(DEFAULT).unwrap().text(&Nobody),
            "[now] \"- - -\" - - - - - - \"-\" \"-\" \"-\" \"-\" \"-\"\n"
        );
        assert_eq!(Format::parse("100%% %START_TIME(%Y/%m)% x").unwrap().text(&Nobody), "100% now x");
        assert_eq!(Format::parse("%START_TIME():2%").unwrap().text(&Nobody), "no");
        for bad in ["%", "a %REQ(x", "%REQ()%", "%REQ(x):y%", "%UNKNOWN%", "%START_TIME(%Y%"] {
            assert!(Format::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(quoted("a\"\\\n\u{1}"), r#""a\"\\\n\u0001""#);
    }
}
