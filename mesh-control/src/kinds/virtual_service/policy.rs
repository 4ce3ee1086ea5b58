//! What a rule changes on the way: headers, path, retries, faults.
//!
//! Source: Istio `Headers`, `HTTPRewrite`, `HTTPRetry`, `HTTPFaultInjection`.

use mesh_core::config::{
    Abort, AbortStatus, BackOff, Fault, FaultDelay, Format, Fraction, GrpcRetry, HeaderChange, HeaderChanges,
    HttpRetry, PathRewrite, Regex, RetryConditions, RetryPolicy,
};

use super::matches::one_line;
use crate::{
    diagnostic::{Level, codes},
    kinds::{
        read::{Fields, Reader, nearest},
        yaml::{At, Node},
    },
};

/// Istio's retries where an object says nothing: two more tries when the request was not processed, on another host.
///
/// Source: istiod `pilot/pkg/networking/core/route/retry`, since 1.24.
pub(crate) fn default_retries() -> RetryPolicy {
    RetryPolicy {
        on: default_conditions(),
        retries: 2,
        per_try_timeout: None,
        back_off: BackOff::default(),
        avoid_previous_hosts: 5,
        ..RetryPolicy::default()
    }
}

fn default_conditions() -> RetryConditions {
    RetryConditions {
        http: vec![HttpRetry::ConnectFailure, HttpRetry::RefusedStream, HttpRetry::RetriableStatusCodes],
        grpc: vec![GrpcRetry::Unavailable, GrpcRetry::Cancelled],
        ..RetryConditions::default()
    }
}

pub(super) fn retries(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<RetryPolicy> {
    let mut out = default_retries();
    let Some(mut fields) = reader.fields(node, path) else { return Some(out) };
    let attempts = fields.take("attempts");
    if let Some((node, path)) = &attempts {
        out.retries = reader.u32(node, path).unwrap_or(out.retries);
    } else {
        // Protobuf's absence is 0, and 0 is no retries.
        out.retries = 0;
    }
    out.per_try_timeout = fields.read("perTryTimeout", |node, path| reader.some_time(node, path));
    if let Some(base) = fields.read("backoff", |node, path| reader.some_time(node, path)) {
        out.back_off = BackOff { base, max: base * 10 };
    }
    if let Some(on) = fields.read("retryOn", |node, path| reader.text(node, path)).filter(|on| !on.is_empty()) {
        out.on = conditions(&on, reader);
    }
    if fields.read("retryIgnorePreviousHosts", |node, path| reader.boolean(node, path)) == Some(false) {
        out.avoid_previous_hosts = 0;
    }
    let others = ["perTryTimeout", "backoff", "retryOn"].iter().any(|name| fields.seen(name));
    fields.ignored(reader, &["retryRemoteLocalities"], "endpoints are used regardless of where they run");
    if let (Some((node, path)), 0, true) = (&attempts, out.retries, others) {
        reader.invalid(node.at, format!("{path} is 0, yet other retry fields are set")).help =
            Some("remove them, or set the number of tries after the first".to_owned());
    }
    fields.close(reader);
    (out.retries > 0).then_some(out)
}

fn conditions(text: &At<String>, reader: &mut Reader<'_>) -> RetryConditions {
    let mut out = RetryConditions::default();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        if let Some(condition) = HttpRetry::ALL.into_iter().find(|known| known.as_str() == word) {
            out.http.push(condition);
        } else if let Some(condition) = GrpcRetry::ALL.into_iter().find(|known| known.as_str() == word) {
            out.grpc.push(condition);
        } else if let Some(code) = word.parse::<u16>().ok().filter(|code| (100..600).contains(code)) {
            out.status_codes.push(code);
        } else {
            let http = HttpRetry::ALL.into_iter().map(HttpRetry::as_str);
            let names = http.chain(GrpcRetry::ALL.into_iter().map(GrpcRetry::as_str));
            let near = nearest(word, names.clone());
            let known: Vec<&str> = names.collect();
            let diagnostic = reader.invalid(text.at, format!("retryOn knows no condition {word:?}"));
            diagnostic.label = near.map(|near| format!("did you mean {near:?}?"));
            diagnostic.help = Some(format!("it is a list of {}, and HTTP status numbers", known.join(", ")));
        }
    }
    if !out.status_codes.is_empty() && !out.http.contains(&HttpRetry::RetriableStatusCodes) {
        out.http.push(HttpRetry::RetriableStatusCodes);
    }
    out
}

pub(super) fn fault(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Fault> {
    let mut fields = reader.fields(node, path)?;
    let delay = fields.read("delay", |node, path| delay(node, path, reader));
    let abort = fields.read("abort", |node, path| abort(node, path, reader));
    if !fields.seen("delay") && !fields.seen("abort") {
        reader.invalid(node.at, format!("{path} has neither delay nor abort"));
    }
    fields.close(reader);
    let fault = Fault { delay, abort: abort.flatten(), ..Fault::default() };
    (fault != Fault::default()).then_some(fault)
}

fn delay(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<FaultDelay> {
    let mut fields = reader.fields(node, path)?;
    // Without a percentage no request is delayed: Envoy's default is 0 (FI1).
    let fraction = percentage(&mut fields, reader);
    never_without_percentage(node, path, &fields, reader);
    let duration = fields.read("fixedDelay", |node, path| reader.some_time(node, path));
    if duration.is_none() && !fields.seen("fixedDelay") && !fields.seen("exponentialDelay") {
        reader.missing(&fields, "fixedDelay");
    }
    fields.refused(reader, &["exponentialDelay"], "write fixedDelay; Istio has not implemented it either");
    fields.close(reader);
    Some(FaultDelay { duration: Some(duration?), fraction: fraction.unwrap_or(Fraction::NONE) })
}

/// `Some(None)` is an abort that never happens: without a percentage Istio drops it.
fn abort(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Option<Abort>> {
    let mut fields = reader.fields(node, path)?;
    let fraction = percentage(&mut fields, reader);
    never_without_percentage(node, path, &fields, reader);
    let http = fields.read("httpStatus", |node, path| reader.integer(node, path, 200, 599));
    let grpc = fields.read("grpcStatus", |node, path| grpc_status(node, path, reader));
    fields.refused(reader, &["http2Error"], "write httpStatus or grpcStatus; Istio has not implemented it either");
    let status = match (http, grpc) {
        (Some(_), Some(_)) => {
            reader.invalid(node.at, format!("{path}: httpStatus and grpcStatus exclude each other"));
            None
        }
        (Some(status), None) => Some(AbortStatus::Http(status.value as u16)),
        (None, Some(status)) => Some(AbortStatus::Grpc(status)),
        (None, None) => {
            if !["httpStatus", "grpcStatus", "http2Error"].iter().any(|name| fields.seen(name)) {
                reader.missing(&fields, "httpStatus");
            }
            None
        }
    };
    fields.close(reader);
    let status = status?;
    Some(fraction.map(|fraction| Abort { status, fraction }))
}

/// Said aloud, as few expect it.
fn never_without_percentage(node: &Node, path: &str, fields: &Fields<'_>, reader: &mut Reader<'_>) {
    if !fields.seen("percentage") && !fields.seen("percent") {
        let message = format!("{path} has no percentage, so it never happens");
        reader.report(codes::INVALID_WARNING, Level::Warning, node.at, message).help =
            Some("write percentage: {value: 100} for every request".to_owned());
    }
}

/// `percentage: {value: 12.5}`, or the integer `percent` of Istio 1.0.
fn percentage(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Option<Fraction> {
    let old = fields.take("percent");
    if let Some((node, path)) = fields.take("percentage") {
        return percent_value(node, &path, reader);
    }
    let (node, path) = old?;
    let value = reader.percent(node, &path)?;
    reader.deprecated(node.at, format!("{path} is deprecated"), &format!("write percentage: {{value: {value}}}"));
    Some(Fraction::percent(value))
}

/// `{value: 12.5}`.
pub(super) fn percent_value(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Fraction> {
    let mut fields = reader.fields(node, path)?;
    let value = fields.read("value", |node, path| reader.percent(node, path)).unwrap_or_default();
    fields.close(reader);
    Some(Fraction::percent(value))
}

/// By number or name, as gRPC writes them.
fn grpc_status(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<u32> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let text = reader.text(node, path)?;
    let number = text.parse::<u32>().ok().filter(|n| *n < 17);
    let number = number.or_else(|| NAMES.iter().position(|name| *name == text.value).map(|n| n as u32));
    if number.is_none() {
        reader.invalid(node.at, format!("{path}: {:?} is no gRPC status", text.value)).help =
            Some("write its name, such as UNAVAILABLE, or its number in quotes".to_owned());
    }
    number
}

pub(super) fn rewrite(node: &Node, path: &str, reader: &mut Reader<'_>) -> (Option<PathRewrite>, Option<String>) {
    let Some(mut fields) = reader.fields(node, path) else { return (None, None) };
    let mut out = fields.read("uri", |node, path| reader.text(node, path)).map(|uri| PathRewrite::Prefix(uri.value));
    let authority = fields.read("authority", |node, path| reader.text(node, path)).map(|at| at.value);
    if let Some((node, path)) = fields.take("uriRegexRewrite")
        && let Some(mut fields) = reader.fields(node, &path)
    {
        let pattern = fields.read("match", |node, path| reader.text(node, path));
        let substitution = fields.read("rewrite", |node, path| reader.text(node, path));
        fields.close(reader);
        if let Some(pattern) = pattern {
            match pattern.parse::<Regex>() {
                Ok(regex) => {
                    let substitution = substitution.map(|at| at.value).unwrap_or_default();
                    out = Some(PathRewrite::Regex { pattern: regex, substitution });
                }
                Err(error) => {
                    reader.invalid(pattern.at, format!("{path}.match: {}", one_line(&error)));
                }
            }
        }
    }
    fields.close(reader);
    (out, authority)
}

/// Header changes, `set` before `add`, and the new host a change of `:authority` or `host` amounts to (`set` beats `add`).
pub(super) fn headers(node: &Node, path: &str, reader: &mut Reader<'_>) -> (HeaderChanges, Option<String>) {
    let Some(mut fields) = reader.fields(node, path) else { return Default::default() };
    let mut host = None;
    let request = fields.take("request").map(|(node, path)| operations(node, &path, &mut host, reader));
    // Response headers that name no host change nothing of the request's.
    let response = fields.take("response").map(|(node, path)| operations(node, &path, &mut None, reader));
    fields.close(reader);
    let changes = HeaderChanges { request: request.unwrap_or_default(), response: response.unwrap_or_default() };
    (changes, host)
}

fn operations(node: &Node, path: &str, host: &mut Option<String>, reader: &mut Reader<'_>) -> Vec<HeaderChange> {
    let Some(mut fields) = reader.fields(node, path) else { return Vec::new() };
    let set = fields.read("set", |node, path| Some(reader.labels(node, path))).unwrap_or_default();
    let add = fields.read("add", |node, path| Some(reader.labels(node, path))).unwrap_or_default();
    let remove = fields.read("remove", |node, path| Some(reader.texts(node, path))).unwrap_or_default();
    fields.close(reader);
    let is_host = |name: &str| name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority");
    *host = set.iter().chain(&add).find(|(name, _)| is_host(name)).map(|(_, value)| value.clone());
    let usable = |name: &str| !name.starts_with(':') && !name.eq_ignore_ascii_case("host");
    let named = |name: &str| name.to_ascii_lowercase();
    let mut out = Vec::new();
    // An empty value is sent: Envoy is told to keep it where Istio's users write one.
    let mut text = |name: &str, value: &str| match value.parse::<Format>() {
        Ok(format) if value.is_empty() => Some(format.keeping_empty()),
        Ok(format) => Some(format),
        Err(error) => {
            reader.invalid(node.at, format!("{path}: the value of {name}: {error}"));
            None
        }
    };
    for (name, value) in set.iter().filter(|(name, _)| usable(name)) {
        out.extend(text(name, value).map(|value| HeaderChange::Set { name: named(name), value }));
    }
    for (name, value) in add.iter().filter(|(name, _)| usable(name)) {
        out.extend(text(name, value).map(|value| HeaderChange::Append { name: named(name), value }));
    }
    out.extend(remove.into_iter().filter(|name| usable(name)).map(|name| HeaderChange::Remove { name: named(&name) }));
    out
}
