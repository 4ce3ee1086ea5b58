//! How endpoints are asked whether they are well. Source: Envoy `HealthCheck`.

use mesh_core::config::{GrpcCheck, HealthCheck, HttpCheck, Probe, Protocol, TcpCheck};

use super::{
    read::{Ignored, Wrong, wrong},
    value,
};
use crate::proto::envoy::{
    config::core::v3::{
        HeaderValue, HeaderValueOption, HealthCheck as Message, RequestMethod,
        header_value_option::HeaderAppendAction,
        health_check::{
            GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck, payload::Payload as Bytes,
        },
    },
    r#type::v3::{CodecClientType, Int64Range},
};

/// The check of a cluster; Envoy takes one.
pub(super) fn decode(messages: &[Message], ignored: &mut Ignored) -> Result<Option<HealthCheck>, Wrong> {
    match messages {
        [] => Ok(None),
        [one] => check(one, ignored).map(Some),
        more => Err(wrong("", format!("{} checks of one cluster are not supported", more.len()))),
    }
}

fn check(message: &Message, ignored: &mut Ignored) -> Result<HealthCheck, Wrong> {
    let required = |time, field| value::positive(time, field)?.ok_or_else(|| wrong(field, "is missing"));
    let count = |count: Option<u32>, field| count.ok_or_else(|| wrong(field, "is missing"));
    let jitter = |time: Option<prost_types::Duration>, field| {
        time.map(|time| value::duration(time, field)).transpose().map(Option::unwrap_or_default)
    };
    let default = HealthCheck::default();
    Ok(HealthCheck {
        probe: probe(message.health_checker.as_ref(), ignored)?,
        timeout: required(message.timeout, "timeout")?,
        interval: required(message.interval, "interval")?,
        unhealthy_interval: value::positive(message.unhealthy_interval, "unhealthy_interval")?,
        unhealthy_edge_interval: value::positive(message.unhealthy_edge_interval, "unhealthy_edge_interval")?,
        healthy_edge_interval: value::positive(message.healthy_edge_interval, "healthy_edge_interval")?,
        no_traffic_interval: value::positive(message.no_traffic_interval, "no_traffic_interval")?
            .unwrap_or(default.no_traffic_interval),
        no_traffic_healthy_interval: value::positive(
            message.no_traffic_healthy_interval,
            "no_traffic_healthy_interval",
        )?,
        initial_jitter: jitter(message.initial_jitter, "initial_jitter")?,
        interval_jitter: jitter(message.interval_jitter, "interval_jitter")?,
        interval_jitter_percent: message.interval_jitter_percent,
        unhealthy_threshold: count(message.unhealthy_threshold, "unhealthy_threshold")?,
        healthy_threshold: count(message.healthy_threshold, "healthy_threshold")?,
        reuse_connection: message.reuse_connection.unwrap_or(true),
    })
}

fn probe(checker: Option<&HealthChecker>, ignored: &mut Ignored) -> Result<Probe, Wrong> {
    match checker {
        Some(HealthChecker::HttpHealthCheck(http)) => http_check(http, ignored).map(Probe::Http),
        Some(HealthChecker::GrpcHealthCheck(grpc)) => Ok(Probe::Grpc(GrpcCheck {
            service: grpc.service_name.clone(),
            authority: grpc.authority.clone(),
            metadata: headers(&grpc.initial_metadata, "health_checks.grpc_health_check.initial_metadata", ignored),
            watch: false,
        })),
        Some(HealthChecker::TcpHealthCheck(tcp)) => Ok(Probe::Tcp(TcpCheck {
            send: tcp.send.as_ref().map_or(Ok(Vec::new()), |sent| payload(sent, "tcp_health_check.send"))?,
            receive: tcp
                .receive
                .iter()
                .map(|block| payload(block, "tcp_health_check.receive"))
                .collect::<Result<_, _>>()?,
        })),
        None => Err(wrong("health_checker", "is missing or of a kind that is not supported")),
    }
}

fn http_check(http: &HttpHealthCheck, ignored: &mut Ignored) -> Result<HttpCheck, Wrong> {
    if http.path.is_empty() {
        return Err(wrong("http_health_check.path", "is missing"));
    }
    let method = match RequestMethod::try_from(http.method) {
        Ok(RequestMethod::MethodUnspecified) => "GET",
        Ok(method) if method != RequestMethod::Connect => method.as_str_name(),
        _ => return Err(wrong("http_health_check.method", format!("{} is not supported", http.method))),
    };
    let protocol = match CodecClientType::try_from(http.codec_client_type) {
        Ok(CodecClientType::Http1) => Protocol::Http1,
        Ok(CodecClientType::Http2) => Protocol::Http2,
        _ => return Err(wrong("http_health_check.codec_client_type", "HTTP3 is not supported")),
    };
    Ok(HttpCheck {
        host: http.host.clone(),
        path: http.path.clone(),
        method: method.to_owned(),
        headers: headers(
            &http.request_headers_to_add,
            "health_checks.http_health_check.request_headers_to_add",
            ignored,
        ),
        remove_headers: http.request_headers_to_remove.clone(),
        expected: ranges(&http.expected_statuses, "http_health_check.expected_statuses")?,
        retriable: ranges(&http.retriable_statuses, "http_health_check.retriable_statuses")?,
        protocol,
    })
}

/// Half-open there, closed here.
fn ranges(ranges: &[Int64Range], field: &str) -> Result<Vec<(u16, u16)>, Wrong> {
    let one = |range: &Int64Range| match (u16::try_from(range.start), u16::try_from(range.end)) {
        (Ok(start @ 100..), Ok(end @ ..=600)) if start < end => Ok((start, end - 1)),
        _ => Err(wrong(field, format!("{} to {} is no range of statuses", range.start, range.end))),
    };
    ranges.iter().map(one).collect()
}

fn headers(options: &[HeaderValueOption], place: &str, ignored: &mut Ignored) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    for header in options.iter().filter_map(|option| option.header.as_ref()) {
        if header.value.contains('%') {
            // A command operator: there is no request it could speak of.
            ignored.add(place, &format!("{:?} (command operators)", header.key));
        } else {
            headers.push((header.key.clone(), header.value.clone()));
        }
    }
    headers
}

fn payload(payload: &Payload, field: &str) -> Result<Vec<u8>, Wrong> {
    let hex = |text: &str| -> Option<Vec<u8>> {
        let digits = text.as_bytes().chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
            u8::from_str_radix(pair, 16).ok()
        });
        digits.collect()
    };
    match &payload.payload {
        Some(Bytes::Text(text)) => hex(text).ok_or_else(|| wrong(field, format!("{text:?} is not hexadecimal"))),
        Some(Bytes::Binary(bytes)) => Ok(bytes.to_vec()),
        None => Err(wrong(field, "is empty")),
    }
}

pub(super) fn encode(check: &HealthCheck) -> Message {
    let time = |time| Some(value::encode_duration(time));
    Message {
        timeout: time(check.timeout),
        interval: time(check.interval),
        interval_jitter: time(check.interval_jitter),
        unhealthy_threshold: Some(check.unhealthy_threshold),
        healthy_threshold: Some(check.healthy_threshold),
        reuse_connection: Some(check.reuse_connection),
        no_traffic_interval: time(check.no_traffic_interval),
        unhealthy_interval: check.unhealthy_interval.and_then(time),
        unhealthy_edge_interval: check.unhealthy_edge_interval.and_then(time),
        healthy_edge_interval: check.healthy_edge_interval.and_then(time),
        interval_jitter_percent: check.interval_jitter_percent,
        initial_jitter: time(check.initial_jitter),
        no_traffic_healthy_interval: check.no_traffic_healthy_interval.and_then(time),
        health_checker: encode_probe(&check.probe),
    }
}

fn encode_probe(probe: &Probe) -> Option<HealthChecker> {
    let ranges = |ranges: &[(u16, u16)]| {
        let range = |(from, to): &(u16, u16)| Int64Range { start: i64::from(*from), end: i64::from(*to) + 1 };
        ranges.iter().map(range).collect()
    };
    let payload =
        |bytes: &[u8]| Payload { payload: Some(Bytes::Text(bytes.iter().map(|byte| format!("{byte:02x}")).collect())) };
    Some(match probe {
        Probe::Http(http) => HealthChecker::HttpHealthCheck(HttpHealthCheck {
            host: http.host.clone(),
            path: http.path.clone(),
            request_headers_to_add: encode_headers(&http.headers),
            request_headers_to_remove: http.remove_headers.clone(),
            expected_statuses: ranges(&http.expected),
            codec_client_type: match http.protocol {
                Protocol::Http1 | Protocol::Auto | Protocol::Caller => CodecClientType::Http1.into(),
                Protocol::Http2 => CodecClientType::Http2.into(),
            },
            retriable_statuses: ranges(&http.retriable),
            method: RequestMethod::from_str_name(&http.method).unwrap_or_default().into(),
        }),
        Probe::Grpc(grpc) => HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
            service_name: grpc.service.clone(),
            authority: grpc.authority.clone(),
            initial_metadata: encode_headers(&grpc.metadata),
        }),
        Probe::Tcp(tcp) => HealthChecker::TcpHealthCheck(TcpHealthCheck {
            send: (!tcp.send.is_empty()).then(|| payload(&tcp.send)),
            receive: tcp.receive.iter().map(|block| payload(block)).collect(),
        }),
        _ => return None,
    })
}

fn encode_headers(headers: &[(String, String)]) -> Vec<HeaderValueOption> {
    let option = |(key, value): &(String, String)| HeaderValueOption {
        header: Some(HeaderValue { key: key.clone(), value: value.clone(), ..HeaderValue::default() }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    };
    headers.iter().map(option).collect()
}
