//! Local rate limits and what requests are counted by. Source: Envoy `LocalRateLimit`, `RateLimit`.

use std::{sync::Arc, time::Duration};

use mesh_core::config::{Fraction, LimitAction, LimitDescriptor, LocalRateLimit, RateLimit, TokenBucket};

use super::{
    matcher,
    read::{Ignored, Within, Wrong, wrong},
    value,
};
use crate::proto::{
    Any,
    envoy::{
        config::{
            core::v3::RuntimeFractionalPercent,
            route::v3::{
                RateLimit as EntryMessage,
                rate_limit::{
                    Action, HitsAddend,
                    action::{
                        ActionSpecifier, DestinationCluster, GenericKey, HeaderValueMatch, MaskedRemoteAddress,
                        MetaData, QueryParameterValueMatch, QueryParameters, RemoteAddress, RequestHeaders,
                        SourceCluster, meta_data::Source,
                    },
                },
            },
        },
        extensions::{
            common::ratelimit::v3::{LocalRateLimitDescriptor, rate_limit_descriptor::Entry},
            filters::http::local_ratelimit::v3::LocalRateLimit as Message,
        },
        r#type::{
            metadata::v3::{
                MetadataKey,
                metadata_key::{PathSegment, path_segment::Segment},
            },
            v3::{HttpStatus, TokenBucket as BucketMessage},
        },
    },
};

pub(super) mod global;

/// The filter's name, by which routes carry their limits.
pub(super) const LOCAL_RATE_LIMIT: &str = "envoy.filters.http.local_ratelimit";
/// Envoy takes no shorter interval.
const SHORTEST: Duration = Duration::from_millis(50);
/// Where Istio's sidecars keep who the caller proved to be.
const AUTHN: &str = "istio_authn";
const PRINCIPAL: &str = "source.principal";

pub(super) fn decode(message: Message, place: &str, ignored: &mut Ignored) -> Result<Arc<LocalRateLimit>, Wrong> {
    if message.stage > 10 {
        return Err(wrong("stage", "is above 10"));
    }
    let status = match message.status.map(|status| status.code) {
        // Envoy: what is no error is taken for 429.
        Some(code @ 400..600) => code as u16,
        _ => 429,
    };
    for (set, field) in [
        (!message.response_headers_to_add.is_empty(), "response_headers_to_add"),
        (!message.request_headers_to_add_when_not_enforced.is_empty(), "request_headers_to_add_when_not_enforced"),
        (message.enable_x_ratelimit_headers != 0, "enable_x_ratelimit_headers"),
        (message.enable_retry_after_header, "enable_retry_after_header"),
        (message.vh_rate_limits != 0, "vh_rate_limits"),
    ] {
        if set {
            ignored.add(place, field);
        }
    }
    let mut descriptors = Vec::with_capacity(message.descriptors.len());
    for (i, descriptor) in message.descriptors.into_iter().enumerate() {
        let at = || format!("descriptors[{i}]");
        let config = descriptor.token_bucket.ok_or_else(|| wrong("token_bucket", "is missing")).within(at)?;
        if descriptor.entries.is_empty() {
            return Err(wrong("entries", "is empty")).within(at);
        }
        if descriptor.shadow_mode {
            ignored.add(place, "descriptors.shadow_mode (the descriptor is left out)");
            continue;
        }
        let entries = descriptor.entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
        descriptors.push(LimitDescriptor { entries, bucket: bucket(config).under("token_bucket").within(at)? });
    }
    let share = |share: Option<RuntimeFractionalPercent>, field| {
        share.map(value::runtime_fraction).transpose().under(field).map(|share| share.unwrap_or(Fraction::NONE))
    };
    Ok(Arc::new(LocalRateLimit {
        status,
        bucket: message.token_bucket.map(bucket).transpose().under("token_bucket")?,
        // Absent is 0 % (RL1).
        enabled: share(message.filter_enabled, "filter_enabled")?,
        enforced: share(message.filter_enforced, "filter_enforced")?,
        descriptors,
        limits: entries(message.rate_limits, place, ignored)?,
        stage: message.stage,
        always_default: message.always_consume_default_token_bucket.unwrap_or(true),
        per_connection: message.local_rate_limit_per_downstream_connection,
        resource_exhausted: message.rate_limited_as_resource_exhausted,
        most_values: message.max_dynamic_descriptors.unwrap_or(20),
    }))
}

fn bucket(message: BucketMessage) -> Result<TokenBucket, Wrong> {
    let every = value::positive(message.fill_interval, "fill_interval")?;
    let every = every.ok_or_else(|| wrong("fill_interval", "is missing"))?;
    if every < SHORTEST {
        return Err(wrong("fill_interval", format!("is below {SHORTEST:?}")));
    }
    match message.tokens_per_fill {
        Some(0) => Err(wrong("tokens_per_fill", "must be greater than zero")),
        per_fill => Ok(TokenBucket { max: message.max_tokens, per_fill: per_fill.unwrap_or(1), every }),
    }
}

/// What requests are counted by. What cannot be read here is reported and counts for nothing.
pub(super) fn entries(
    messages: Vec<EntryMessage>,
    place: &str,
    ignored: &mut Ignored,
) -> Result<Vec<RateLimit>, Wrong> {
    let mut read = Vec::with_capacity(messages.len());
    for (i, message) in messages.into_iter().enumerate() {
        let count = message.actions.len();
        let mut actions = Vec::with_capacity(count);
        for (n, message) in message.actions.into_iter().enumerate() {
            actions.extend(action(message).within(|| format!("rate_limits[{i}].actions[{n}]"))?);
        }
        if !message.disable_key.is_empty() {
            ignored.add(place, "rate_limits.disable_key");
        }
        let hits = message.hits_addend.and_then(|hits| {
            if !hits.format.is_empty() {
                ignored.add(place, "rate_limits.hits_addend.format");
            }
            hits.number
        });
        match actions.len() == count && count > 0 {
            true => read.push(RateLimit { stage: message.stage.unwrap_or(0), actions, hits }),
            false => ignored.add(place, "rate_limits.actions (of a kind that is not supported)"),
        }
    }
    Ok(read)
}

fn action(message: Action) -> Result<Option<LimitAction>, Wrong> {
    let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
    let mask = |bits: Option<u32>, most: u8| bits.map_or(most, |bits| u8::try_from(bits).unwrap_or(most).min(most));
    Ok(match message.action_specifier {
        Some(ActionSpecifier::DestinationCluster(_)) => Some(LimitAction::DestinationCluster),
        Some(ActionSpecifier::RequestHeaders(header)) => Some(LimitAction::RequestHeader {
            name: header.header_name.to_ascii_lowercase().into(),
            key: header.descriptor_key,
            skip_if_absent: header.skip_if_absent,
        }),
        Some(ActionSpecifier::QueryParameters(query)) => Some(LimitAction::Query {
            name: query.query_parameter_name,
            key: query.descriptor_key,
            skip_if_absent: query.skip_if_absent,
        }),
        Some(ActionSpecifier::RemoteAddress(_)) => Some(LimitAction::RemoteAddress),
        Some(ActionSpecifier::MaskedRemoteAddress(masked)) => Some(LimitAction::MaskedRemoteAddress {
            v4: mask(masked.v4_prefix_mask_len, 32),
            v6: mask(masked.v6_prefix_mask_len, 128),
        }),
        Some(ActionSpecifier::GenericKey(generic)) => Some(LimitAction::GenericKey {
            key: or(generic.descriptor_key, "generic_key"),
            value: or(generic.descriptor_value, &generic.default_value),
        }),
        Some(ActionSpecifier::HeaderValueMatch(matched)) => Some(LimitAction::HeaderMatch {
            key: or(matched.descriptor_key, "header_match"),
            value: or(matched.descriptor_value, &matched.default_value),
            expect: matched.expect_match.unwrap_or(true),
            headers: matcher::headers(matched.headers, "headers")?,
        }),
        Some(ActionSpecifier::QueryParameterValueMatch(matched)) => Some(LimitAction::QueryMatch {
            key: or(matched.descriptor_key, "query_match"),
            value: or(matched.descriptor_value, &matched.default_value),
            expect: matched.expect_match.unwrap_or(true),
            query: matched.query_parameters.into_iter().map(matcher::query_parameter).collect::<Result<_, _>>()?,
        }),
        Some(ActionSpecifier::Metadata(metadata)) if is_principal(&metadata) => {
            Some(LimitAction::Peer { key: metadata.descriptor_key })
        }
        Some(ActionSpecifier::SourceCluster(_)) => Some(LimitAction::SourceCluster),
        Some(ActionSpecifier::Metadata(_)) | None => None,
    })
}

fn is_principal(metadata: &MetaData) -> bool {
    let Some(key) = &metadata.metadata_key else { return false };
    let path = key.path.first().and_then(|segment| segment.segment.as_ref());
    let principal = matches!(path, Some(Segment::Key(name)) if name == PRINCIPAL);
    metadata.source == i32::from(Source::Dynamic) && key.key == AUTHN && key.path.len() == 1 && principal
}

/// The filter setting, of a route or of all routes.
pub(super) fn encode(limit: &LocalRateLimit) -> Any {
    let share = |share: Fraction| {
        Some(RuntimeFractionalPercent { default_value: Some(value::encode_fraction(share)), ..Default::default() })
    };
    let descriptor = |descriptor: &LimitDescriptor| LocalRateLimitDescriptor {
        entries: descriptor
            .entries
            .iter()
            .map(|(key, value)| Entry { key: key.clone(), value: value.clone() })
            .collect(),
        token_bucket: Some(encode_bucket(&descriptor.bucket)),
        shadow_mode: false,
    };
    Any::pack(&Message {
        stat_prefix: "local_rate_limit".to_owned(),
        status: (limit.status != 429).then(|| HttpStatus { code: limit.status.into() }),
        token_bucket: limit.bucket.as_ref().map(encode_bucket),
        filter_enabled: share(limit.enabled),
        filter_enforced: share(limit.enforced),
        descriptors: limit.descriptors.iter().map(descriptor).collect(),
        stage: limit.stage,
        rate_limits: encode_entries(&limit.limits),
        local_rate_limit_per_downstream_connection: limit.per_connection,
        always_consume_default_token_bucket: Some(limit.always_default),
        rate_limited_as_resource_exhausted: limit.resource_exhausted,
        max_dynamic_descriptors: Some(limit.most_values),
        ..Message::default()
    })
}

fn encode_bucket(bucket: &TokenBucket) -> BucketMessage {
    BucketMessage {
        max_tokens: bucket.max,
        tokens_per_fill: Some(bucket.per_fill),
        fill_interval: Some(value::encode_duration(bucket.every)),
    }
}

pub(super) fn encode_entries(limits: &[RateLimit]) -> Vec<EntryMessage> {
    let entry = |limit: &RateLimit| EntryMessage {
        stage: Some(limit.stage),
        actions: limit.actions.iter().map(encode_action).collect(),
        hits_addend: limit.hits.map(|number| HitsAddend { number: Some(number), ..HitsAddend::default() }),
        ..EntryMessage::default()
    };
    limits.iter().map(entry).collect()
}

fn encode_action(action: &LimitAction) -> Action {
    let specifier = match action {
        LimitAction::SourceCluster => ActionSpecifier::SourceCluster(SourceCluster {}),
        LimitAction::DestinationCluster => ActionSpecifier::DestinationCluster(DestinationCluster {}),
        LimitAction::RequestHeader { name, key, skip_if_absent } => ActionSpecifier::RequestHeaders(RequestHeaders {
            header_name: name.to_string(),
            descriptor_key: key.clone(),
            skip_if_absent: *skip_if_absent,
        }),
        LimitAction::Query { name, key, skip_if_absent } => ActionSpecifier::QueryParameters(QueryParameters {
            query_parameter_name: name.clone(),
            descriptor_key: key.clone(),
            skip_if_absent: *skip_if_absent,
        }),
        LimitAction::RemoteAddress => ActionSpecifier::RemoteAddress(RemoteAddress {}),
        LimitAction::MaskedRemoteAddress { v4, v6 } => ActionSpecifier::MaskedRemoteAddress(MaskedRemoteAddress {
            v4_prefix_mask_len: Some((*v4).into()),
            v6_prefix_mask_len: Some((*v6).into()),
        }),
        LimitAction::GenericKey { key, value } => ActionSpecifier::GenericKey(GenericKey {
            descriptor_key: key.clone(),
            descriptor_value: value.clone(),
            ..GenericKey::default()
        }),
        LimitAction::HeaderMatch { key, value, expect, headers } => {
            ActionSpecifier::HeaderValueMatch(HeaderValueMatch {
                descriptor_key: key.clone(),
                descriptor_value: value.clone(),
                expect_match: Some(*expect),
                headers: matcher::encode_headers(headers),
                ..HeaderValueMatch::default()
            })
        }
        LimitAction::QueryMatch { key, value, expect, query } => {
            ActionSpecifier::QueryParameterValueMatch(QueryParameterValueMatch {
                descriptor_key: key.clone(),
                descriptor_value: value.clone(),
                expect_match: Some(*expect),
                query_parameters: query.iter().map(matcher::encode_query).collect(),
                ..QueryParameterValueMatch::default()
            })
        }
        LimitAction::Peer { key } => {
            let segment = PathSegment { segment: Some(Segment::Key(PRINCIPAL.to_owned())) };
            ActionSpecifier::Metadata(MetaData {
                descriptor_key: key.clone(),
                metadata_key: Some(MetadataKey { key: AUTHN.to_owned(), path: vec![segment] }),
                source: Source::Dynamic.into(),
                ..MetaData::default()
            })
        }
    };
    Action { action_specifier: Some(specifier) }
}
