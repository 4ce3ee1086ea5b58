//! Retries, hedging and faults of routes. Source: Envoy `RetryPolicy`, `HedgePolicy`, `HTTPFault`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_core::config::{
    Abort, AbortStatus, BackOff, Fault, FaultDelay, GrpcRetry, HedgePolicy, HttpRetry, LocalRateLimit,
    RateLimitedBackOff, ResetFormat, ResetHeader, RetryConditions, RetryPolicy,
};

use super::{
    filter, matcher, own_filter, rate_limit,
    read::{Ignored, Within, Wrong, wrong},
    route::Side,
    session, value,
};
use crate::proto::{
    Any,
    envoy::{
        config::route::v3::{
            FilterConfig, HedgePolicy as HedgeMessage, RetryPolicy as RetryMessage,
            retry_policy::{
                RateLimitedRetryBackOff, ResetHeader as ResetMessage, ResetHeaderFormat, RetryBackOff,
                RetryHostPredicate, retry_host_predicate::ConfigType,
            },
        },
        extensions::{
            filters::{
                common::fault::v3::{
                    FaultDelay as DelayMessage,
                    fault_delay::{FaultDelaySecifier, HeaderDelay},
                },
                http::fault::v3::{
                    FaultAbort, HttpFault,
                    fault_abort::{ErrorType, HeaderAbort},
                },
                http::{
                    local_ratelimit::v3::LocalRateLimit as LocalRateLimitMessage, ratelimit::v3::RateLimitPerRoute,
                },
            },
            retry::host::previous_hosts::v3::PreviousHostsPredicate,
        },
    },
};

/// The name of the fault filter, by which routes carry their faults.
pub(super) const FAULT: &str = "envoy.filters.http.fault";
const PREVIOUS_HOSTS: &str = "envoy.retry_host_predicates.previous_hosts";
/// Envoy's default of `RateLimitedRetryBackOff.max_interval`.
const LONGEST_RESET: Duration = Duration::from_secs(300);

pub(super) fn retry(message: RetryMessage, place: &str, ignored: &mut Ignored) -> Result<RetryPolicy, Wrong> {
    let place = format!("{place}.retry_policy");
    let mut on = RetryConditions {
        headers: matcher::headers(message.retriable_headers, "retriable_headers")?,
        ..RetryConditions::default()
    };
    for word in message.retry_on.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        if let Some(condition) = HttpRetry::ALL.into_iter().find(|condition| condition.as_str() == word) {
            on.http.push(condition);
        } else if let Some(condition) = GrpcRetry::ALL.into_iter().find(|condition| condition.as_str() == word) {
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
    let per_try_idle =
        message.per_try_idle_timeout.map(|limit| value::duration(limit, "per_try_idle_timeout")).transpose()?;
    Ok(RetryPolicy {
        on,
        retries: message.num_retries.unwrap_or(1),
        per_try_timeout: per_try.filter(|limit| *limit > Duration::ZERO),
        per_try_idle_timeout: per_try_idle.filter(|limit| *limit > Duration::ZERO),
        back_off: back_off(message.retry_back_off).under("retry_back_off")?,
        rate_limited: message
            .rate_limited_retry_back_off
            .map(rate_limited)
            .transpose()
            .under("rate_limited_retry_back_off")?,
        request_headers: matcher::headers(message.retriable_request_headers, "retriable_request_headers")?,
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

fn rate_limited(message: RateLimitedRetryBackOff) -> Result<RateLimitedBackOff, Wrong> {
    let max = value::positive(message.max_interval, "max_interval")?.unwrap_or(LONGEST_RESET);
    let mut headers = Vec::with_capacity(message.reset_headers.len());
    for (i, header) in message.reset_headers.into_iter().enumerate() {
        let format = match ResetHeaderFormat::try_from(header.format) {
            Ok(ResetHeaderFormat::Seconds) => ResetFormat::Seconds,
            Ok(ResetHeaderFormat::UnixTimestamp) => ResetFormat::UnixTimestamp,
            Err(_) => return Err(wrong(format!("reset_headers[{i}].format"), format!("{} is none", header.format))),
        };
        if header.name.is_empty() {
            return Err(wrong(format!("reset_headers[{i}].name"), "is missing"));
        }
        headers.push(ResetHeader { name: header.name.to_ascii_lowercase().into(), format });
    }
    if headers.is_empty() {
        return Err(wrong("reset_headers", "is empty"));
    }
    Ok(RateLimitedBackOff { headers, max })
}

/// `None` for a message that hedges nothing.
pub(super) fn hedge(message: &HedgeMessage) -> Option<HedgePolicy> {
    let on_per_try_timeout = message.hedge_on_per_try_timeout;
    on_per_try_timeout.then(|| HedgePolicy { on_per_try_timeout, ..HedgePolicy::default() })
}

/// What of it has a form on the wire.
pub(super) fn encode_hedge(hedge: &HedgePolicy) -> Option<HedgeMessage> {
    hedge.on_per_try_timeout.then_some(HedgeMessage { hedge_on_per_try_timeout: true })
}

/// How much of a body is kept, by the field and its successor.
pub(super) fn replay_limit(limit: Option<u32>, newer: Option<u64>) -> Option<u64> {
    newer.or_else(|| limit.map(u64::from))
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
        retriable_request_headers: matcher::encode_headers(&policy.request_headers),
        per_try_idle_timeout: policy.per_try_idle_timeout.map(value::encode_duration),
        rate_limited_retry_back_off: policy.rate_limited.as_ref().map(|limited| RateLimitedRetryBackOff {
            reset_headers: limited.headers.iter().map(encode_reset).collect(),
            max_interval: Some(value::encode_duration(limited.max)),
        }),
    }
}

fn encode_reset(header: &ResetHeader) -> ResetMessage {
    let format = match header.format {
        ResetFormat::Seconds => ResetHeaderFormat::Seconds,
        ResetFormat::UnixTimestamp => ResetHeaderFormat::UnixTimestamp,
    };
    ResetMessage { name: header.name.to_string(), format: format.into() }
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
            found = Some(fault(message).within(at)?.unwrap_or_default());
        } else if (any.is::<LocalRateLimitMessage>() || any.is::<RateLimitPerRoute>()) && side == Side::Outbound {
            // Read by `limit_of` and `rate_limit::global::of_route`.
        } else if own_filter::is_one(any) && side == Side::Outbound {
            // Read by `own_filter::overrides`.
        } else if session::is_setting(any) && side == Side::Outbound {
            // Read by `session::of_route`.
        } else if side == Side::Inbound && filter::guards(key, any) {
            return Err(wrong("", "is an authorization or authentication setting that is not supported")).within(at);
        } else {
            ignored.add(place, &format!("{FIELD}.{key}"));
        }
    }
    Ok(found)
}

/// The rate limit among the filter settings of a route or host; a disabled one is one that limits nothing.
pub(super) fn limit_of(
    settings: &BTreeMap<String, Any>,
    place: &str,
    ignored: &mut Ignored,
) -> Result<Option<Arc<LocalRateLimit>>, Wrong> {
    let mut found = None;
    for (key, any) in settings {
        let at = || format!("typed_per_filter_config[{key:?}]");
        let wrapper = any.unpack::<FilterConfig>().and_then(Result::ok);
        let any = match &wrapper {
            Some(FilterConfig { disabled: true, .. }) => {
                if key == rate_limit::LOCAL_RATE_LIMIT {
                    found = Some(Arc::default());
                }
                continue;
            }
            Some(FilterConfig { config: Some(any), .. }) => any,
            Some(_) => continue,
            None => any,
        };
        if any.is::<LocalRateLimitMessage>() {
            let place = format!("{place}.typed_per_filter_config");
            let message: LocalRateLimitMessage = ignored.open(any, &place).within(at)?;
            found = Some(rate_limit::decode(message, &place, ignored).within(at)?);
        }
    }
    Ok(found)
}

/// A fault; `None` if it injects nothing.
pub(super) fn fault(message: HttpFault) -> Result<Option<Fault>, Wrong> {
    let delay = match message.delay {
        Some(DelayMessage { fault_delay_secifier: Some(delay), percentage }) => {
            let duration = match delay {
                FaultDelaySecifier::FixedDelay(time) => value::positive(Some(time), "delay.fixed_delay")?,
                FaultDelaySecifier::HeaderDelay(_) => None,
            };
            let fraction = percentage.map(value::fraction).transpose().under("delay.percentage")?;
            // Absent is 0 % (FI1).
            fraction.map(|fraction| FaultDelay { duration, fraction })
        }
        Some(_) => return Err(wrong("delay", "has no duration")),
        None => None,
    };
    let abort = match message.abort {
        Some(abort) => decode_abort(abort).under("abort")?,
        None => None,
    };
    Ok((delay.is_some() || abort.is_some()).then_some(Fault {
        delay,
        abort,
        headers: matcher::headers(message.headers, "headers")?,
        cluster: message.upstream_cluster.into(),
        nodes: message.downstream_nodes,
        max_active: message.max_active_faults,
    }))
}

fn decode_abort(message: FaultAbort) -> Result<Option<Abort>, Wrong> {
    let status = match message.error_type {
        Some(ErrorType::HttpStatus(status)) => match u16::try_from(status) {
            Ok(status @ 200..600) => AbortStatus::Http(status),
            _ => return Err(wrong("http_status", format!("{status} is not in 200..=599"))),
        },
        Some(ErrorType::GrpcStatus(status)) => AbortStatus::Grpc(status),
        Some(ErrorType::HeaderAbort(_)) => AbortStatus::ByHeader,
        None => return Err(wrong("error_type", "is missing")),
    };
    let fraction = message.percentage.map(value::fraction).transpose().under("percentage")?;
    Ok(fraction.map(|fraction| Abort { status, fraction }))
}

/// The filter setting of a route, or of all routes, that injects the fault.
pub(super) fn encode_fault(fault: &Fault) -> (String, Any) {
    let delay = fault.delay.map(|delay| DelayMessage {
        fault_delay_secifier: Some(match delay.duration {
            Some(duration) => FaultDelaySecifier::FixedDelay(value::encode_duration(duration)),
            None => FaultDelaySecifier::HeaderDelay(HeaderDelay {}),
        }),
        percentage: Some(value::encode_fraction(delay.fraction)),
    });
    let abort = fault.abort.map(|abort| FaultAbort {
        error_type: Some(match abort.status {
            AbortStatus::Http(status) => ErrorType::HttpStatus(status.into()),
            AbortStatus::Grpc(status) => ErrorType::GrpcStatus(status),
            AbortStatus::ByHeader => ErrorType::HeaderAbort(HeaderAbort {}),
        }),
        percentage: Some(value::encode_fraction(abort.fraction)),
    });
    let message = HttpFault {
        delay,
        abort,
        upstream_cluster: fault.cluster.to_string(),
        headers: matcher::encode_headers(&fault.headers),
        downstream_nodes: fault.nodes.clone(),
        max_active_faults: fault.max_active,
    };
    (FAULT.to_owned(), Any::pack(&message))
}
