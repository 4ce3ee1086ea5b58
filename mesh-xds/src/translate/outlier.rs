//! When a failing endpoint is left out. Source: Envoy `OutlierDetection` and its monitor `consecutive_errors`.

use std::time::Duration;

use mesh_core::config::{FailurePercentage, Monitor, OutlierDetection, SuccessRate};

use super::{
    read::{Ignored, Within, Wrong, element, wrong},
    value,
};
use crate::proto::{
    Any,
    envoy::{
        config::{cluster::v3::OutlierDetection as Message, core::v3::TypedExtensionConfig},
        extensions::outlier_detection_monitors::{
            common::v3::{ErrorBuckets, HttpErrors, LocalOriginErrors},
            consecutive_errors::v3::ConsecutiveErrors,
        },
        r#type::v3::Int32Range,
    },
};

pub(super) fn decode(message: &Message, ignored: &mut Ignored) -> Result<OutlierDetection, Wrong> {
    let default = OutlierDetection::default();
    let (rate, failures) = (default.success_rate, default.failure_percentage);
    let base = value::positive(message.base_ejection_time, "base_ejection_time")?.unwrap_or(default.base_ejection_time);
    let max = value::positive(message.max_ejection_time, "max_ejection_time")?;
    let jitter = message.max_ejection_time_jitter.map(|jitter| value::duration(jitter, "max_ejection_time_jitter"));
    let detection = OutlierDetection {
        consecutive_5xx: message.consecutive_5xx.unwrap_or(default.consecutive_5xx),
        enforcing_consecutive_5xx: percent(message.enforcing_consecutive_5xx, 100, "enforcing_consecutive_5xx")?,
        consecutive_gateway_failure: message.consecutive_gateway_failure.unwrap_or(default.consecutive_gateway_failure),
        enforcing_consecutive_gateway_failure: percent(
            message.enforcing_consecutive_gateway_failure,
            0,
            "enforcing_consecutive_gateway_failure",
        )?,
        split_local_origin: message.split_external_local_origin_errors,
        consecutive_local_origin_failure: message
            .consecutive_local_origin_failure
            .unwrap_or(default.consecutive_local_origin_failure),
        enforcing_consecutive_local_origin_failure: percent(
            message.enforcing_consecutive_local_origin_failure,
            100,
            "enforcing_consecutive_local_origin_failure",
        )?,
        success_rate: SuccessRate {
            minimum_hosts: message.success_rate_minimum_hosts.unwrap_or(rate.minimum_hosts),
            request_volume: message.success_rate_request_volume.unwrap_or(rate.request_volume),
            stdev_factor: message.success_rate_stdev_factor.unwrap_or(rate.stdev_factor),
            enforcing: percent(message.enforcing_success_rate, 100, "enforcing_success_rate")?,
            enforcing_local_origin: percent(
                message.enforcing_local_origin_success_rate,
                100,
                "enforcing_local_origin_success_rate",
            )?,
        },
        failure_percentage: FailurePercentage {
            threshold: percent(
                message.failure_percentage_threshold,
                failures.threshold,
                "failure_percentage_threshold",
            )?,
            minimum_hosts: message.failure_percentage_minimum_hosts.unwrap_or(failures.minimum_hosts),
            request_volume: message.failure_percentage_request_volume.unwrap_or(failures.request_volume),
            enforcing: percent(message.enforcing_failure_percentage, 0, "enforcing_failure_percentage")?,
            enforcing_local_origin: percent(
                message.enforcing_failure_percentage_local_origin,
                0,
                "enforcing_failure_percentage_local_origin",
            )?,
        },
        interval: value::positive(message.interval, "interval")?.unwrap_or(default.interval),
        base_ejection_time: base,
        max_ejection_time: max.unwrap_or_else(|| base.max(default.max_ejection_time)),
        max_ejection_time_jitter: jitter.transpose()?.unwrap_or_default(),
        max_ejection_percent: percent(
            message.max_ejection_percent,
            default.max_ejection_percent,
            "max_ejection_percent",
        )?,
        always_eject_one_host: message.always_eject_one_host.unwrap_or(false),
        uneject_on_health_check: message.successful_active_health_check_uneject_host.unwrap_or(true),
        monitors: monitors(&message.monitors, ignored)?,
        latency: None,
        half_open: false,
    };
    if detection.max_ejection_time < base {
        return Err(wrong("max_ejection_time", "is below base_ejection_time"));
    }
    Ok(detection)
}

fn percent(value: Option<u32>, usually: u32, field: &str) -> Result<u32, Wrong> {
    match value.unwrap_or(usually) {
        percent @ 0..=100 => Ok(percent),
        more => Err(wrong(field, format!("is {more}, more than 100 percent"))),
    }
}

fn monitors(configs: &[TypedExtensionConfig], ignored: &mut Ignored) -> Result<Vec<Monitor>, Wrong> {
    const PLACE: &str = "outlier_detection.monitors";
    let mut monitors = Vec::new();
    for (i, config) in configs.iter().enumerate() {
        let at = || element("monitors", i, &config.name);
        let Some(any) = config.typed_config.as_ref().filter(|any| any.is::<ConsecutiveErrors>()) else {
            ignored.add(PLACE, &config.name);
            continue;
        };
        if monitors.len() >= OutlierDetection::MOST_MONITORS {
            ignored.add(PLACE, &format!("{} (more than {})", config.name, OutlierDetection::MOST_MONITORS));
            continue;
        }
        let message: ConsecutiveErrors = ignored.open(any, PLACE).within(at)?;
        let buckets = message.error_buckets.unwrap_or_default();
        let statuses = buckets.http_errors.iter().map(|errors| range(errors.range.as_ref()));
        monitors.push(Monitor {
            name: if message.name.is_empty() { config.name.as_str() } else { message.name.as_str() }.into(),
            consecutive: message.threshold.unwrap_or(3),
            enforcing: percent(message.enforcing, 100, "enforcing").within(at)?,
            statuses: statuses.collect::<Result<_, _>>().within(at)?,
            local_origin: !buckets.local_origin_errors.is_empty(),
            ..Monitor::default()
        });
    }
    Ok(monitors)
}

/// Half-open there, closed here.
fn range(range: Option<&Int32Range>) -> Result<(u16, u16), Wrong> {
    let bad = || wrong("error_buckets.http_errors.range", "is no range of HTTP statuses");
    let range = range.ok_or_else(bad)?;
    match (u16::try_from(range.start), u16::try_from(range.end)) {
        (Ok(start), Ok(end)) if start < end => Ok((start, end - 1)),
        _ => Err(bad()),
    }
}

pub(super) fn encode(detection: &OutlierDetection) -> Message {
    let time = |time: Duration| Some(value::encode_duration(time));
    let (rate, failures) = (&detection.success_rate, &detection.failure_percentage);
    Message {
        consecutive_5xx: Some(detection.consecutive_5xx),
        enforcing_consecutive_5xx: Some(detection.enforcing_consecutive_5xx),
        consecutive_gateway_failure: Some(detection.consecutive_gateway_failure),
        enforcing_consecutive_gateway_failure: Some(detection.enforcing_consecutive_gateway_failure),
        split_external_local_origin_errors: detection.split_local_origin,
        consecutive_local_origin_failure: Some(detection.consecutive_local_origin_failure),
        enforcing_consecutive_local_origin_failure: Some(detection.enforcing_consecutive_local_origin_failure),
        success_rate_minimum_hosts: Some(rate.minimum_hosts),
        success_rate_request_volume: Some(rate.request_volume),
        success_rate_stdev_factor: Some(rate.stdev_factor),
        enforcing_success_rate: Some(rate.enforcing),
        enforcing_local_origin_success_rate: Some(rate.enforcing_local_origin),
        failure_percentage_threshold: Some(failures.threshold),
        failure_percentage_minimum_hosts: Some(failures.minimum_hosts),
        failure_percentage_request_volume: Some(failures.request_volume),
        enforcing_failure_percentage: Some(failures.enforcing),
        enforcing_failure_percentage_local_origin: Some(failures.enforcing_local_origin),
        interval: time(detection.interval),
        base_ejection_time: time(detection.base_ejection_time),
        max_ejection_time: time(detection.max_ejection_time.max(detection.base_ejection_time)),
        max_ejection_time_jitter: (detection.max_ejection_time_jitter > Duration::ZERO)
            .then(|| value::encode_duration(detection.max_ejection_time_jitter)),
        max_ejection_percent: Some(detection.max_ejection_percent),
        always_eject_one_host: Some(detection.always_eject_one_host),
        successful_active_health_check_uneject_host: Some(detection.uneject_on_health_check),
        monitors: detection.monitors.iter().filter(|monitor| is_envoys(monitor)).map(encode_monitor).collect(),
    }
}

/// Can Envoy's monitor say it all?
pub(super) fn is_envoys(monitor: &Monitor) -> bool {
    monitor.grpc_codes.is_empty() && monitor.slower_than.is_none()
}

fn encode_monitor(monitor: &Monitor) -> TypedExtensionConfig {
    let errors = |(from, to): &(u16, u16)| HttpErrors {
        range: Some(Int32Range { start: i32::from(*from), end: i32::from(*to) + 1 }),
    };
    let message = ConsecutiveErrors {
        name: monitor.name.to_string(),
        threshold: Some(monitor.consecutive),
        enforcing: Some(monitor.enforcing),
        error_buckets: Some(ErrorBuckets {
            http_errors: monitor.statuses.iter().map(errors).collect(),
            local_origin_errors: monitor.local_origin.then_some(LocalOriginErrors {}).into_iter().collect(),
        }),
    };
    TypedExtensionConfig { name: monitor.name.to_string(), typed_config: Some(Any::pack(&message)) }
}
