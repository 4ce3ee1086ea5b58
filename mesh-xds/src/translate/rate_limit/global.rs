//! Services that count requests for the whole mesh. Source: Envoy HTTP filter `RateLimit`, and `RateLimitPerRoute` (RL3).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_core::config::{Fraction, GlobalOverride, GlobalRateLimit, LimitedRequests, Name, RateLimit};

use crate::{
    proto::{
        Any,
        envoy::{
            config::{
                core::v3::{
                    ApiVersion, GrpcService, HeaderValue, HeaderValueOption, RuntimeFractionalPercent,
                    grpc_service::{EnvoyGrpc, TargetSpecifier},
                    header_value_option::HeaderAppendAction as Append,
                },
                ratelimit::v3::RateLimitServiceConfig,
                route::v3::FilterConfig,
            },
            extensions::filters::http::ratelimit::v3::{
                RateLimit as Message, RateLimitPerRoute, rate_limit::XRateLimitHeadersRfcVersion as Version,
                rate_limit_per_route::VhRateLimitsOptions,
            },
            r#type::v3::HttpStatus,
        },
    },
    translate::{
        read::{Ignored, Within, Wrong, wrong},
        value,
    },
};

/// The filter's name, by which routes say otherwise.
pub(in crate::translate) const RATE_LIMIT: &str = "envoy.filters.http.ratelimit";
/// Envoy's own limit where none is set.
const TIMEOUT: Duration = Duration::from_millis(20);

pub(in crate::translate) fn decode(
    message: Message,
    place: &str,
    ignored: &mut Ignored,
) -> Result<Arc<GlobalRateLimit>, Wrong> {
    if message.domain.is_empty() {
        return Err(wrong("domain", "is missing"));
    }
    if message.stage > 10 {
        return Err(wrong("stage", "is above 10"));
    }
    let requests = match message.request_type.as_str() {
        "" | "both" => LimitedRequests::All,
        "internal" => LimitedRequests::Internal,
        "external" => LimitedRequests::External,
        other => return Err(wrong("request_type", format!("is {other:?}, which is none"))),
    };
    if !message.stat_prefix.is_empty() {
        ignored.add(place, "stat_prefix");
    }
    let service = message.rate_limit_service.and_then(|service| service.grpc_service);
    let service = service.ok_or_else(|| wrong("rate_limit_service.grpc_service", "is missing"))?;
    let (cluster, authority) = service_of(service).under("rate_limit_service.grpc_service")?;
    let share = |share: Option<RuntimeFractionalPercent>, field: &str, default| {
        share.map(value::runtime_fraction).transpose().under(field).map(|share| share.unwrap_or(default))
    };
    let denies = if message.failure_mode_deny { Fraction::ALL } else { Fraction::NONE };
    let status = |status: Option<HttpStatus>, default| match status.map(|status| status.code) {
        // Envoy: what is no error is taken for the default.
        Some(code @ 400..600) => code as u16,
        _ => default,
    };
    let mut refused_headers = Vec::new();
    for option in message.response_headers_to_add {
        refused_headers.extend(header(option, place, ignored).under("response_headers_to_add")?);
    }
    Ok(Arc::new(GlobalRateLimit {
        cluster,
        authority,
        domain: message.domain,
        stage: message.stage,
        requests,
        timeout: value::positive(message.timeout, "timeout")?.unwrap_or(TIMEOUT),
        failure_denies: share(message.failure_mode_deny_percent, "failure_mode_deny_percent", denies)?,
        status_on_error: status(message.status_on_error, 500),
        status: status(message.rate_limited_status, 429),
        resource_exhausted: message.rate_limited_as_resource_exhausted,
        tells_limits: message.enable_x_ratelimit_headers == i32::from(Version::DraftVersion03),
        tells_refusal: !message.disable_x_envoy_ratelimited_header,
        refused_headers,
        enabled: share(message.filter_enabled, "filter_enabled", Fraction::ALL)?,
        enforced: share(message.filter_enforced, "filter_enforced", Fraction::ALL)?,
        limits: super::entries(message.rate_limits, place, ignored)?,
    }))
}

fn service_of(message: GrpcService) -> Result<(Name, String), Wrong> {
    if !message.initial_metadata.is_empty() {
        return Err(wrong("initial_metadata", "is not supported"));
    }
    match message.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(target)) if !target.cluster_name.is_empty() => {
            Ok((target.cluster_name.into(), target.authority))
        }
        Some(TargetSpecifier::EnvoyGrpc(_)) => Err(wrong("envoy_grpc.cluster_name", "is missing")),
        None => Err(wrong("target_specifier", "is missing or of a kind that is not supported")),
    }
}

/// A header of refusals, as it stands; one that is to be made of the request is reported.
fn header(
    option: HeaderValueOption,
    place: &str,
    ignored: &mut Ignored,
) -> Result<Option<(Name, String, bool)>, Wrong> {
    let header = option.header.ok_or_else(|| wrong("header", "is missing"))?;
    if ::http::HeaderName::try_from(&header.key).is_err() || ::http::HeaderValue::try_from(&header.value).is_err() {
        return Err(wrong("header", format!("{:?} is no header", header.key)));
    }
    if header.value.contains('%') {
        ignored.add(place, "response_headers_to_add (with an operator)");
        return Ok(None);
    }
    let beside = match option.append {
        Some(append) => append,
        None => option.append_action == i32::from(Append::AppendIfExistsOrAdd),
    };
    Ok(Some((header.key.to_ascii_lowercase().into(), header.value, beside)))
}

/// What a route or host says of such services, and of the host's descriptors.
#[derive(Debug, Default)]
pub(in crate::translate) struct OfRoute {
    own: Option<GlobalOverride>,
    host: VhRateLimitsOptions,
}

impl OfRoute {
    /// What its requests are counted by: `route` is the route's own word, `host` its host's. What is said of the host's
    /// descriptors is for this kind of limit alone, so the list is settled here.
    pub(in crate::translate) fn settle(
        self,
        host_word: Option<&GlobalOverride>,
        route: &[RateLimit],
        host: &[RateLimit],
    ) -> Option<GlobalOverride> {
        let settled = match self.host {
            VhRateLimitsOptions::Override => None,
            VhRateLimitsOptions::Include => Some([route, host].concat()),
            VhRateLimitsOptions::Ignore => Some(route.to_vec()),
        };
        let mut own = self.own.or_else(|| host_word.cloned())?;
        own.limits = own.limits.or(settled);
        Some(own)
    }

    /// The host's own word.
    pub(in crate::translate) fn into_own(self) -> Option<GlobalOverride> {
        self.own
    }
}

/// What a route or host says of them.
pub(in crate::translate) fn of_route(
    settings: &BTreeMap<String, Any>,
    place: &str,
    ignored: &mut Ignored,
) -> Result<OfRoute, Wrong> {
    let mut found = OfRoute::default();
    for (key, any) in settings {
        let at = || format!("typed_per_filter_config[{key:?}]");
        let wrapper = any.unpack::<FilterConfig>().and_then(Result::ok);
        let any = match &wrapper {
            Some(FilterConfig { disabled: true, .. }) => {
                if key == RATE_LIMIT {
                    found.own = Some(GlobalOverride { disabled: true, ..GlobalOverride::default() });
                }
                continue;
            }
            Some(FilterConfig { config: Some(any), .. }) => any,
            Some(_) => continue,
            None => any,
        };
        if any.is::<RateLimitPerRoute>() {
            let place = format!("{place}.typed_per_filter_config");
            let message: RateLimitPerRoute = ignored.open(any, &place).within(at)?;
            if message.override_option != 0 {
                ignored.add(&place, "override_option");
            }
            found.host = VhRateLimitsOptions::try_from(message.vh_rate_limits)
                .map_err(|_| wrong("vh_rate_limits", "is none"))
                .within(at)?;
            let limits = super::entries(message.rate_limits, &place, ignored).within(at)?;
            let limits = (!limits.is_empty()).then_some(limits);
            found.own = Some(GlobalOverride { disabled: false, domain: message.domain, limits });
        }
    }
    Ok(found)
}

/// The filter setting of all routes.
pub(in crate::translate) fn encode(limit: &GlobalRateLimit) -> Any {
    let share = |share: Fraction, default| {
        (share != default).then(|| RuntimeFractionalPercent {
            default_value: Some(value::encode_fraction(share)),
            ..Default::default()
        })
    };
    let status = |status: u16, default| (status != default).then(|| HttpStatus { code: status.into() });
    let target = EnvoyGrpc { cluster_name: limit.cluster.to_string(), authority: limit.authority.clone() };
    let service = GrpcService { target_specifier: Some(TargetSpecifier::EnvoyGrpc(target)), ..GrpcService::default() };
    let header = |(name, value, beside): &(Name, String, bool)| HeaderValueOption {
        header: Some(HeaderValue { key: name.to_string(), value: value.clone(), ..HeaderValue::default() }),
        append_action: match beside {
            true => Append::AppendIfExistsOrAdd,
            false => Append::OverwriteIfExistsOrAdd,
        }
        .into(),
        ..HeaderValueOption::default()
    };
    let headers = if limit.tells_limits { Version::DraftVersion03 } else { Version::Off };
    let denies = if limit.failure_denies == Fraction::ALL { Fraction::ALL } else { Fraction::NONE };
    Any::pack(&Message {
        domain: limit.domain.clone(),
        stage: limit.stage,
        request_type: match limit.requests {
            LimitedRequests::All => "",
            LimitedRequests::Internal => "internal",
            LimitedRequests::External => "external",
        }
        .to_owned(),
        timeout: Some(value::encode_duration(limit.timeout)),
        failure_mode_deny: denies == Fraction::ALL,
        failure_mode_deny_percent: share(limit.failure_denies, denies),
        rate_limited_as_resource_exhausted: limit.resource_exhausted,
        rate_limit_service: Some(RateLimitServiceConfig {
            grpc_service: Some(service),
            transport_api_version: ApiVersion::V3.into(),
        }),
        enable_x_ratelimit_headers: headers.into(),
        disable_x_envoy_ratelimited_header: !limit.tells_refusal,
        rate_limited_status: status(limit.status, 429),
        response_headers_to_add: limit.refused_headers.iter().map(header).collect(),
        status_on_error: status(limit.status_on_error, 500),
        filter_enabled: share(limit.enabled, Fraction::ALL),
        filter_enforced: share(limit.enforced, Fraction::ALL),
        rate_limits: super::encode_entries(&limit.limits),
        ..Message::default()
    })
}

/// The filter setting of one route.
pub(in crate::translate) fn encode_route(own: &GlobalOverride) -> Any {
    if own.disabled {
        return Any::pack(&FilterConfig { disabled: true, ..FilterConfig::default() });
    }
    Any::pack(&RateLimitPerRoute {
        // A list that is there and empty is said so: nothing of the host's either.
        vh_rate_limits: match &own.limits {
            Some(limits) if limits.is_empty() => VhRateLimitsOptions::Ignore,
            _ => VhRateLimitsOptions::Override,
        }
        .into(),
        domain: own.domain.clone(),
        rate_limits: super::encode_entries(own.limits.as_deref().unwrap_or_default()),
        ..RateLimitPerRoute::default()
    })
}
