//! Retries and faults of routes. Source: Envoy `RetryPolicy`, `HTTPFault`.

use std::{collections::BTreeMap, time::Duration};

use mesh_core::config::{
    Abort, AbortStatus, BackOff, Fault, FaultDelay, GrpcRetry, HttpRetry, RetryConditions, RetryPolicy,
};

use super::{
    filter, matcher,
    read::{Ignored, Within, Wrong, wrong},
    route::Side,
    value,
};
use crate::proto::{
    Any,
    envoy::{
        config::route::v3::{
            FilterConfig, RetryPolicy as RetryMessage,
            retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate::ConfigType},
        },
        extensions::{
            filters::{
                common::fault::v3::{FaultDelay as DelayMessage, fault_delay::FaultDelaySecifier},
                http::fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType},
            },
            retry::host::previous_hosts::v3::PreviousHostsPredicate,
        },
    },
};

/// The name of the fault filter, by which routes carry their faults.
pub(super) const FAULT: &str = "envoy.filters.http.fault";
const PREVIOUS_HOSTS: &str = "envoy.retry_host_predicates.previous_hosts";

const HTTP_CONDITIONS: [HttpRetry; 10] = [
    HttpRetry::ServerError,
    HttpRetry::GatewayError,
    HttpRetry::Reset,
    HttpRetry::ResetBeforeRequest,
    HttpRetry::ConnectFailure,
    HttpRetry::EnvoyRatelimited,
    HttpRetry::Retriable4xx,
    HttpRetry::RefusedStream,
    HttpRetry::RetriableStatusCodes,
    HttpRetry::RetriableHeaders,
];
const GRPC_CONDITIONS: [GrpcRetry; 5] = [
    GrpcRetry::Cancelled,
    GrpcRetry::DeadlineExceeded,
    GrpcRetry::ResourceExhausted,
    GrpcRetry::Internal,
    GrpcRetry::Unavailable,
];

pub(super) fn retry(message: RetryMessage, place: &str, ignored: &mut Ignored) -> Result<RetryPolicy, Wrong> {
    let place = format!("{place}.retry_policy");
    let mut on = RetryConditions {
        headers: matcher::headers(message.retriable_headers, "retriable_headers")?,
        ..RetryConditions::default()
    };
    for word in message.retry_on.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        if let Some(condition) = HTTP_CONDITIONS.into_iter().find(|condition| condition.as_str() == word) {
            on.http.push(condition);
        } else if let Some(condition) = GRPC_CONDITIONS.into_iter().find(|condition| condition.as_str() == word) {
            on.grpc.push(condition);
        } else {
            ignored.add(&place, &format!("retry_on {word:?}"));
        }
    }
    for code in message.retriable_status_codes {
        match u16::try_from(code) {
            Ok(code @ 100..600) => on.status_codes.push(code),
            _ => return Err(wrong("retriable_status_codes", format!("{code} is no status"))),
        }
    }
    let mut avoid_previous_hosts = 0;
    for predicate in message.retry_host_predicate {
        let previous = match &predicate.config_type {
            Some(ConfigType::TypedConfig(any)) => any.is::<PreviousHostsPredicate>(),
            None => predicate.name == PREVIOUS_HOSTS,
        };
        if previous {
            avoid_previous_hosts = u32::try_from(message.host_selection_retry_max_attempts).unwrap_or(0).max(1);
        } else {
            ignored.add(&place, &format!("retry_host_predicate {:?}", predicate.name));
        }
    }
    let per_try = message.per_try_timeout.map(|limit| value::duration(limit, "per_try_timeout")).transpose()?;
    Ok(RetryPolicy {
        on,
        retries: message.num_retries.unwrap_or(1),
        per_try_timeout: per_try.filter(|limit| *limit > Duration::ZERO),
        back_off: back_off(message.retry_back_off).under("retry_back_off")?,
        avoid_previous_hosts,
        ..RetryPolicy::default()
    })
}

fn back_off(message: Option<RetryBackOff>) -> Result<BackOff, Wrong> {
    let Some(message) = message else { return Ok(BackOff::default()) };
    let Some(base) = value::positive(message.base_interval, "base_interval")? else {
        return Err(wrong("base_interval", "is missing"));
    };
    let max = value::positive(message.max_interval, "max_interval")?.unwrap_or_else(|| base.saturating_mul(10));
    if max < base {
        return Err(wrong("max_interval", "is below base_interval"));
    }
    Ok(BackOff { base, max })
}

pub(super) fn encode_retry(policy: &RetryPolicy) -> RetryMessage {
    let http = policy.on.http.iter().map(|condition| condition.as_str());
    let grpc = policy.on.grpc.iter().map(|condition| condition.as_str());
    let predicate = RetryHostPredicate {
        name: PREVIOUS_HOSTS.to_owned(),
        config_type: Some(ConfigType::TypedConfig(Any::pack(&PreviousHostsPredicate {}))),
    };
    let avoid = policy.avoid_previous_hosts > 0;
    RetryMessage {
        retry_on: http.chain(grpc).collect::<Vec<_>>().join(","),
        num_retries: Some(policy.retries),
        per_try_timeout: policy.per_try_timeout.map(value::encode_duration),
        retry_host_predicate: avoid.then_some(predicate).into_iter().collect(),
        host_selection_retry_max_attempts: policy.avoid_previous_hosts.into(),
        retriable_status_codes: policy.on.status_codes.iter().map(|code| u32::from(*code)).collect(),
        retry_back_off: (policy.back_off != BackOff::default()).then(|| RetryBackOff {
            base_interval: Some(value::encode_duration(policy.back_off.base)),
            max_interval: Some(value::encode_duration(policy.back_off.max)),
        }),
        retriable_headers: matcher::encode_headers(&policy.on.headers),
    }
}

/// The fault among the filter settings of a route or host: `None` if they say nothing of it, an empty one if they say that
/// there is none (RA16). On the way in nothing is injected, but a setting that an authorization filter would have enforced
/// cannot be passed over.
pub(super) fn fault_of(
    settings: &BTreeMap<String, Any>,
    side: Side,
    place: &str,
    ignored: &mut Ignored,
) -> Result<Option<Fault>, Wrong> {
    const FIELD: &str = "typed_per_filter_config";
    let mut found = None;
    for (key, any) in settings {
        let at = || format!("{FIELD}[{key:?}]");
        let wrapper = match any.is::<FilterConfig>() {
            true => Some(ignored.open::<FilterConfig>(any, place).within(at)?),
            false => None,
        };
        let any = match &wrapper {
            Some(FilterConfig { disabled: true, .. }) => {
                if key == FAULT {
                    found = Some(Fault::default());
                }
                continue;
            }
            Some(FilterConfig { config: Some(any), .. }) => any,
            Some(_) => continue,
            None => any,
        };
        if any.is::<HttpFault>() && side == Side::Outbound {
            let message: HttpFault = ignored.open(any, &format!("{place}.{FIELD}")).within(at)?;
            found = Some(fault(message, &format!("{place}.{FIELD}"), ignored).within(at)?.unwrap_or_default());
        } else if side == Side::Inbound && filter::guards(key, any) {
            return Err(wrong("", "is an authorization or authentication setting that is not supported")).within(at);
        } else {
            ignored.add(place, &format!("{FIELD}.{key}"));
        }
    }
    Ok(found)
}

/// A fault; `None` if nothing of it can be injected as it is meant.
pub(super) fn fault(message: HttpFault, place: &str, ignored: &mut Ignored) -> Result<Option<Fault>, Wrong> {
    if !message.headers.is_empty() || !message.upstream_cluster.is_empty() || !message.downstream_nodes.is_empty() {
        // Injecting where these conditions do not hold would harm requests nobody meant to harm (FI5).
        ignored.add(place, "the whole fault, for its headers, upstream_cluster or downstream_nodes");
        return Ok(None);
    }
    let delay = match message.delay {
        Some(DelayMessage { fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(time)), percentage }) => {
            let duration = value::positive(Some(time), "delay.fixed_delay")?;
            let fraction = percentage.map(value::fraction).transpose().under("delay.percentage")?;
            // Absent is 0 % (FI1).
            duration.zip(fraction).map(|(duration, fraction)| FaultDelay { duration, fraction })
        }
        Some(DelayMessage { fault_delay_secifier: Some(FaultDelaySecifier::HeaderDelay(_)), .. }) => {
            ignored.add(place, "delay.header_delay");
            None
        }
        Some(_) => return Err(wrong("delay", "has no duration")),
        None => None,
    };
    let abort = match message.abort {
        Some(abort) => decode_abort(abort, place, ignored).under("abort")?,
        None => None,
    };
    Ok((delay.is_some() || abort.is_some()).then_some(Fault { delay, abort }))
}

fn decode_abort(message: FaultAbort, place: &str, ignored: &mut Ignored) -> Result<Option<Abort>, Wrong> {
    let status = match message.error_type {
        Some(ErrorType::HttpStatus(status)) => match u16::try_from(status) {
            Ok(status @ 200..600) => AbortStatus::Http(status),
            _ => return Err(wrong("http_status", format!("{status} is not in 200..=599"))),
        },
        Some(ErrorType::GrpcStatus(status)) => AbortStatus::Grpc(status),
        Some(ErrorType::HeaderAbort(_)) => {
            ignored.add(place, "abort.header_abort");
            return Ok(None);
        }
        None => return Err(wrong("error_type", "is missing")),
    };
    let fraction = message.percentage.map(value::fraction).transpose().under("percentage")?;
    Ok(fraction.map(|fraction| Abort { status, fraction }))
}

/// The filter setting of a route that injects the fault.
pub(super) fn encode_fault(fault: &Fault) -> (String, Any) {
    let delay = fault.delay.map(|delay| DelayMessage {
        fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(value::encode_duration(delay.duration))),
        percentage: Some(value::encode_fraction(delay.fraction)),
    });
    let abort = fault.abort.map(|abort| FaultAbort {
        error_type: Some(match abort.status {
            AbortStatus::Http(status) => ErrorType::HttpStatus(status.into()),
            AbortStatus::Grpc(status) => ErrorType::GrpcStatus(status),
        }),
        percentage: Some(value::encode_fraction(abort.fraction)),
    });
    (FAULT.to_owned(), Any::pack(&HttpFault { delay, abort, ..HttpFault::default() }))
}
