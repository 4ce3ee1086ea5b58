//! One line per request on standard output, when asked for: Envoy's default text, or JSON with the names Istio gives; or the
//! lines that the control plane asks for, of the requests it asks for.
//!
//! What there is to tell by which operator is here; how lines look and which requests they are of is `mesh_core::telling`.
//! What a caller wrote (path, authority, headers) is escaped, so that nobody writes lines of their own.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    io::Write as _,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use http::{
    HeaderMap, Method, Version,
    request::Parts,
    uri::{Authority, PathAndQuery},
};
use mesh_core::telling::{Fact, Facts, Operator};
use serde_json::json;

use super::{Event, Peer, Reporter, TraceContext};
use crate::source;

/// The form of the access log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AccessLog {
    /// Nothing is written.
    #[default]
    Off,
    /// Envoy's default format.
    Text,
    /// One JSON object per line.
    Json,
}

impl AccessLog {
    /// From the value of `MESH_ACCESS_LOG`: `text` or `json`; `None` and `off` write nothing.
    ///
    /// # Errors
    ///
    /// Any other value, as a sentence.
    pub fn parse(value: Option<&str>) -> Result<Self, String> {
        match value {
            None | Some("" | "off") => Ok(Self::Off),
            Some("text") => Ok(Self::Text),
            Some("json") => Ok(Self::Json),
            Some(other) => Err(format!("MESH_ACCESS_LOG is {other:?}; it may be \"text\", \"json\" or \"off\"")),
        }
    }

    pub(super) fn write(self, event: &Event<'_>, local: &Peer, sink: Option<&LogSink>) {
        let Some(logged) = event.logged else { return };
        // A closed standard output is no reason to fail a request.
        let put = |line: &str, to_stderr: bool| match sink {
            Some(LogSink(sink)) => sink(line),
            None if to_stderr => drop(writeln!(std::io::stderr().lock(), "{line}")),
            None => drop(writeln!(std::io::stdout().lock(), "{line}")),
        };
        if let Some(logs) = event.telling.and_then(|telling| telling.logs.as_ref()) {
            let told = Told { event, logged, local, end_nanos: source::unix_nanos() };
            logs.iter()
                .filter_map(|log| Some((log.line(&told)?, log.to_stderr)))
                .for_each(|(line, err)| put(&line, err));
            return;
        }
        let line = match self {
            Self::Off => return,
            Self::Text => text(event, logged, source::unix_nanos()),
            Self::Json => json(event, logged, source::unix_nanos()),
        };
        put(&line, false);
    }
}

/// Where lines of the log go instead of to standard output. What it does is done within the request: it must not wait.
#[derive(Clone)]
pub struct LogSink(pub(crate) Arc<dyn Fn(&str) + Send + Sync>);

impl LogSink {
    /// To this function, line by line, without its end.
    pub fn new(sink: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sink))
    }
}

impl fmt::Debug for LogSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogSink")
    }
}

/// What only a log shows of a request, copied when the request begins.
#[derive(Clone, Debug)]
pub struct Logged {
    method: Method,
    authority: String,
    /// With query, as the caller wrote it.
    path: String,
    version: Version,
    trace_id: u128,
    user_agent: Option<String>,
    request_id: Option<String>,
    forwarded_for: Option<String>,
    headers: HeaderMap,
    answered: HeaderMap,
    /// From the beginning.
    answered_after: Option<Duration>,
    remote: Option<SocketAddr>,
}

impl Logged {
    /// Copies it; only worth doing when [`Telemetry::needs_head`](super::Telemetry::needs_head).
    pub fn of(parts: &Parts, trace: &TraceContext) -> Box<Self> {
        let text = |name| parts.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let named = parts.uri.authority().map(ToString::to_string);
        Box::new(Self {
            method: parts.method.clone(),
            authority: named.or_else(|| text("host")).unwrap_or_default(),
            path: parts.uri.path_and_query().map_or("/", PathAndQuery::as_str).to_owned(),
            version: parts.version,
            trace_id: trace.trace_id,
            user_agent: text("user-agent"),
            request_id: text("x-request-id"),
            forwarded_for: text("x-forwarded-for"),
            headers: parts.headers.clone(),
            answered: HeaderMap::new(),
            answered_after: None,
            remote: None,
        })
    }

    /// Where the request came from.
    #[must_use]
    pub(crate) fn coming_from(mut self: Box<Self>, remote: SocketAddr) -> Box<Self> {
        self.remote = Some(remote);
        self
    }

    /// The head of the answer came.
    pub(crate) fn answered(&mut self, headers: &HeaderMap, after: Duration) {
        self.answered = headers.clone();
        self.answered_after = Some(after);
    }
}

/// What is known of a request before it is answered, for what is added to its spans.
pub(crate) struct Asking<'a>(pub(crate) &'a Parts);

impl Facts for Asking<'_> {
    fn fact(&self, operator: &Operator) -> Option<Fact<'_>> {
        let Parts { method, uri, version, headers, .. } = self.0;
        let path = || uri.path_and_query().map_or("/", PathAndQuery::as_str);
        asked(operator, method.as_str(), path(), uri.authority().map(Authority::as_str), *version, headers)
    }
}

/// What a request says.
fn asked<'a>(
    operator: &Operator,
    method: &'a str,
    path: &'a str,
    authority: Option<&'a str>,
    version: Version,
    headers: &'a HeaderMap,
) -> Option<Fact<'a>> {
    let header = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let named = |name: &str| match name {
        ":path" => Some(path.into()),
        ":method" => Some(method.into()),
        ":authority" | "host" => authority.map(Into::into).or_else(|| header("host")),
        ":scheme" => Some("http".into()),
        name => header(name),
    };
    let text: Cow<'a, str> = match operator {
        Operator::Method => method.into(),
        Operator::Request(name, other) => named(name).or_else(|| named(other.as_deref()?))?,
        Operator::PathWithoutQuery => path.split('?').next().unwrap_or_default().into(),
        Operator::Protocol => protocol(version).into(),
        _ => return None,
    };
    Some(Fact::Text(text))
}

/// A finished request.
pub(super) struct Told<'a> {
    pub(super) event: &'a Event<'a>,
    pub(super) logged: &'a Logged,
    pub(super) local: &'a Peer,
    pub(super) end_nanos: u64,
}

impl Facts for Told<'_> {
    fn fact(&self, operator: &Operator) -> Option<Fact<'_>> {
        let Self { event, logged, .. } = self;
        let millis = |time: Duration| Fact::Number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let text = |text: String| Fact::Text(text.into());
        match operator {
            Operator::StartTime => Some(text(start_time(event, self.end_nanos))),
            Operator::Method | Operator::Request(..) | Operator::PathWithoutQuery | Operator::Protocol => {
                let authority = Some(logged.authority.as_str()).filter(|authority| !authority.is_empty());
                asked(operator, logged.method.as_str(), &logged.path, authority, logged.version, &logged.headers)
            }
            Operator::Response(name) => {
                let value = logged.answered.get(name)?;
                Some(text(String::from_utf8_lossy(value.as_bytes()).into_owned()))
            }
            Operator::ResponseCode => Some(Fact::Number(event.status.into())),
            Operator::ResponseCodeDetails => unless_empty(event.details),
            Operator::ResponseFlags => Some(text(event.flags.to_string())),
            Operator::GrpcStatus => event.grpc_status.map(|status| Fact::Number(status.into())),
            Operator::BytesReceived => Some(Fact::Number(event.request_bytes)),
            Operator::BytesSent => Some(Fact::Number(event.response_bytes)),
            Operator::Duration => Some(millis(event.duration)),
            Operator::ResponseDuration => logged.answered_after.map(millis),
            Operator::UpstreamHost => event.upstream.map(|address| text(address.to_string())),
            Operator::UpstreamCluster => event.cluster.and_then(|name| unless_empty(name)),
            Operator::AttemptCount => (event.reporter == Reporter::Source).then(|| Fact::Number(event.attempts.into())),
            Operator::RemoteAddress => logged.remote.map(|remote| text(remote.to_string())),
            Operator::RemoteAddressWithoutPort => logged.remote.map(|remote| text(remote.ip().to_string())),
            Operator::PeerUriSan => event.peer.and_then(|peer| peer.principal()).and_then(|name| unless_empty(name)),
            Operator::RouteName => event.route.and_then(|name| unless_empty(name)),
            Operator::TraceId => Some(text(format!("{:032x}", logged.trace_id))),
            Operator::MutualTls => Some(Fact::Truth(event.mutual_tls)),
            Operator::Label(name) => self.label(name).and_then(unless_empty),
            Operator::Nothing => None,
        }
    }
}

fn unless_empty(text: &str) -> Option<Fact<'static>> {
    (!text.is_empty()).then(|| Fact::Text(text.to_owned().into()))
}

impl Told<'_> {
    /// By Istio's name of it.
    fn label(&self, name: &str) -> Option<&str> {
        let local = Some(self.local);
        let peer = self.event.peer.map(|peer| &**peer);
        let (source, destination) = match self.event.reporter {
            Reporter::Source => (local, peer),
            Reporter::Destination => (peer, local),
        };
        let service = self.event.service;
        let text: &str = match name {
            "source_workload" => &source?.workload().name,
            "source_workload_namespace" => &source?.workload().namespace,
            "source_principal" => source?.principal()?,
            "destination_workload" => &destination?.workload().name,
            "destination_workload_namespace" => &destination?.workload().namespace,
            "destination_principal" => destination?.principal()?,
            "destination_service" => &service?.host,
            "destination_service_name" => &service?.name,
            _ => return None,
        };
        Some(text)
    }
}

/// Envoy's default format string, filled in; `-` for what there is not.
fn text(event: &Event<'_>, logged: &Logged, end_nanos: u64) -> String {
    let mut line = String::with_capacity(256);
    let upstream = event.upstream.map(ToString::to_string);
    let _ = write!(
        line,
        "[{}] \"{} {} {}\" {} {} {} {} {} -",
        start_time(event, end_nanos),
        logged.method,
        Escaped(&logged.path),
        protocol(logged.version),
        event.status,
        event.flags,
        event.request_bytes,
        event.response_bytes,
        event.duration.as_millis(),
    );
    let Logged { forwarded_for, user_agent, request_id, .. } = logged;
    let named = [forwarded_for.as_deref(), user_agent.as_deref(), request_id.as_deref()];
    for value in named.into_iter().chain([Some(logged.authority.as_str()), upstream.as_deref()]) {
        let _ = write!(line, " \"{}\"", Escaped(value.unwrap_or("-")));
    }
    line
}

fn json(event: &Event<'_>, logged: &Logged, end_nanos: u64) -> String {
    json!({
        "start_time": start_time(event, end_nanos),
        "reporter": event.reporter.as_str(),
        "method": logged.method.as_str(),
        "path": logged.path,
        "protocol": protocol(logged.version),
        "response_code": event.status,
        "response_flags": event.flags.to_string(),
        "response_code_details": event.details,
        "bytes_received": event.request_bytes,
        "bytes_sent": event.response_bytes,
        "duration": u64::try_from(event.duration.as_millis()).unwrap_or(u64::MAX),
        "x_forwarded_for": logged.forwarded_for,
        "user_agent": logged.user_agent,
        "request_id": logged.request_id,
        "authority": logged.authority,
        "upstream_host": event.upstream.map(ToString::to_string),
        "upstream_cluster": event.cluster,
        "upstream_request_attempt_count": (event.reporter == Reporter::Source).then_some(event.attempts),
        "route_name": event.route,
        "grpc_status_number": event.grpc_status,
        "trace_id": format!("{:032x}", logged.trace_id),
    })
    .to_string()
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// When the request began, as RFC 3339 with milliseconds.
fn start_time(event: &Event<'_>, end_nanos: u64) -> String {
    rfc3339(Duration::from_nanos(end_nanos).saturating_sub(event.duration))
}

/// A time since 1970 as RFC 3339 in UTC.
///
/// The date is counted in years that begin in March, so that the leap day comes last, within eras of 400 years.
pub(crate) fn rfc3339(since_1970: Duration) -> String {
    let (days, second) = (since_1970.as_secs() / 86_400, since_1970.as_secs() % 86_400);
    let days = days + 719_468; // from 0000-03-01 to 1970-01-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since_1970.subsec_millis())
}

/// Text with quotes, backslashes and control characters escaped.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c.is_control() => write!(f, "{}", c.escape_default())?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use mesh_core::{config::EndpointAddress, outcome::Flags};

    use super::*;

    fn check(log: AccessLog, path: &str) -> String {
        let request = http::Request::get("http://reviews:9080/");
        let request = request.header("user-agent", "curl/8").header("x-request-id", "id-1").body(()).unwrap();
        let trace = TraceContext { trace_id: 1, span_id: 2, sampled: true, state: None, forms: Default::default() };
        let mut logged = Logged::of(&request.into_parts().0, &trace);
        logged.path = path.to_owned();
        let upstream = EndpointAddress::Socket("127.0.0.1:9080".parse().unwrap());
        let event = Event {
            reporter: Reporter::Source,
            peer: None,
            service: None,
            cluster: None,
            route: None,
            upstream: Some(&upstream),
            logged: Some(&logged),
            telling: None,
            is_grpc: false,
            status: 200,
            grpc_status: None,
            flags: Flags::default(),
            details: "via_upstream",
            request_bytes: 12,
            response_bytes: 345,
            request_messages: 0,
            response_messages: 0,
            duration: Duration::from_millis(1500),
            mutual_tls: false,
            attempts: 1,
        };
        let end = 1_700_000_000_000_000_000;
        if log == AccessLog::Json { json(&event, &logged, end) } else { text(&event, &logged, end) }
    }

    /// TE16, TE17: one line per request in Envoy's default form or as JSON; callers cannot write lines of their own.
    #[test]
    fn a_line_has_envoys_default_form() {
        assert_eq!(
            check(AccessLog::Text, "/reviews/0"),
            "[2023-11-14T22:13:18.500Z] \"GET /reviews/0 HTTP/1.1\" 200 - 12 345 1500 - \
             \"-\" \"curl/8\" \"id-1\" \"reviews:9080\" \"127.0.0.1:9080\""
        );
        let parsed: serde_json::Value = serde_json::from_str(&check(AccessLog::Json, "/reviews/0")).unwrap();
        assert_eq!(parsed["response_code"], 200);
        assert_eq!(parsed["upstream_request_attempt_count"], 1);
        assert_eq!(parsed["trace_id"], "00000000000000000000000000000001");
        for log in [AccessLog::Text, AccessLog::Json] {
            let line = check(log, "/a\"\n[forged]");
            assert!(!line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn dates_are_gregorian() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn the_variable_takes_three_values() {
        assert_eq!(AccessLog::parse(None), Ok(AccessLog::Off));
        assert_eq!(AccessLog::parse(Some("json")), Ok(AccessLog::Json));
        assert!(AccessLog::parse(Some("jsonl")).unwrap_err().contains("jsonl"));
    }
}
