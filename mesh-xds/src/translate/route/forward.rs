//! Where a route sends requests, and what it changes on the way. Source: Envoy `RouteAction`, `WeightedCluster`.

use std::time::Duration;

use mesh_core::config::{Forward, HeaderChanges, HostRewrite, Mirror, PathRewrite, SplitBy, Upgrade, WeightedCluster};

use super::{Side, encode_regex, fault_settings};
use crate::{
    proto::envoy::{
        config::{
            core::v3::RuntimeFractionalPercent,
            route::v3::{
                RouteAction, WeightedCluster as WeightedMessage,
                route_action::{
                    ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier, MaxStreamDuration,
                    RequestMirrorPolicy, UpgradeConfig,
                },
                weighted_cluster::{ClusterWeight, RandomValueSpecifier},
            },
        },
        r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher},
    },
    translate::{
        hash, header, own_filter,
        path_template::{self, Template},
        policy, rate_limit,
        read::{Ignored, Within, Wrong, element, wrong},
        subset, value,
    },
};

/// A route without a timeout on the wire has this one. Source: Envoy `RouteAction.timeout` (TO1).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// How a rewrite of the whole path is written where there is no field for it.
const WHOLE_PATH: &str = "^.*$";

/// The action of a route whose path condition is `matched`, if that is a template.
pub(super) fn decode(
    message: RouteAction,
    matched: Option<&Template>,
    place: &str,
    ignored: &mut Ignored,
) -> Result<Forward, Wrong> {
    let mut split_by = SplitBy::Random;
    let clusters = match message.cluster_specifier {
        Some(ClusterSpecifier::Cluster(cluster)) if !cluster.is_empty() => {
            vec![WeightedCluster { cluster: cluster.into(), weight: 1, ..WeightedCluster::default() }]
        }
        Some(ClusterSpecifier::ClusterHeader(name)) => {
            let cluster_header = Some(header_name(&name, "cluster_header")?.into());
            vec![WeightedCluster { cluster_header, weight: 1, ..WeightedCluster::default() }]
        }
        Some(ClusterSpecifier::WeightedClusters(split)) => {
            split_by = match &split.random_value_specifier {
                Some(RandomValueSpecifier::HeaderName(name)) if !name.is_empty() => {
                    SplitBy::Header(header_name(name, "weighted_clusters.header_name")?.into())
                }
                Some(RandomValueSpecifier::UseHashPolicy(true)) => SplitBy::Hash,
                _ => SplitBy::Random,
            };
            weighted(split, place, ignored).under("weighted_clusters")?
        }
        _ => return Err(wrong("cluster_specifier", "is missing or of a kind that is not supported")),
    };
    let criteria = subset::criteria(message.metadata_match.as_ref(), place, ignored);
    let clusters =
        clusters.into_iter().map(|one| WeightedCluster { criteria: subset::over(&criteria, one.criteria), ..one });
    let clusters = clusters.collect();
    let rate_limits = rate_limit::entries(message.rate_limits, place, ignored)?;
    let timeout = match message.timeout {
        // gRPC has but the limit of whole streams (gRFC A31).
        timeout if ignored.is_grpc() => {
            if timeout.is_some() {
                ignored.add(place, "timeout");
            }
            None
        }
        // The newer limit stands in place of both older ones, even when it says nothing. Source: Envoy
        // `FilterUtility::finalTimeout`.
        _ if message.max_stream_duration.is_some() => None,
        None => Some(DEFAULT_TIMEOUT),
        Some(timeout) => some_unless_zero(value::duration(timeout, "timeout")?),
    };
    let limit = |limit: Option<prost_types::Duration>, field| limit.map(|it| value::duration(it, field)).transpose();
    let newer = message.max_stream_duration.is_some();
    let stream = message.max_stream_duration.unwrap_or_default();
    let prefix = (!message.prefix_rewrite.is_empty()).then_some(PathRewrite::Prefix(message.prefix_rewrite));
    let path_rewrite = match (prefix, message.regex_rewrite, message.path_rewrite_policy) {
        (prefix, None, None) => prefix,
        (None, Some(regex), None) => Some(regex_rewrite(&regex).under("regex_rewrite")?),
        (None, None, Some(policy)) => {
            Some(path_template::decode_rewrite(policy, matched, ignored).under("path_rewrite_policy")?)
        }
        _ => return Err(wrong("prefix_rewrite", "stands beside another rewrite of the path; only one may")),
    };
    Ok(Forward {
        clusters,
        split_by,
        no_cluster_status: match ClusterNotFoundResponseCode::try_from(message.cluster_not_found_response_code) {
            Ok(ClusterNotFoundResponseCode::ServiceUnavailable) => 0,
            Ok(ClusterNotFoundResponseCode::NotFound) => 404,
            Ok(ClusterNotFoundResponseCode::InternalServerError) => 500,
            Err(_) => return Err(wrong("cluster_not_found_response_code", "is none")),
        },
        timeout,
        max_stream_duration: limit(stream.max_stream_duration, "max_stream_duration.max_stream_duration")?,
        grpc_timeout_header_max: limit(stream.grpc_timeout_header_max, "max_stream_duration.grpc_timeout_header_max")?,
        rate_limits,
        max_grpc_timeout: limit(message.max_grpc_timeout, "max_grpc_timeout")?.filter(|_| !newer),
        idle_timeout: limit(message.idle_timeout, "idle_timeout")?,
        hedge: message.hedge_policy.as_ref().and_then(policy::hedge),
        retry: message
            .retry_policy
            .map(|retry| policy::retry(retry, place, ignored))
            .transpose()
            .under("retry_policy")?,
        host_rewrite: match message.host_rewrite_specifier {
            // Another authority bears on security: only who is trusted may ask for it (gRFC A81).
            Some(_) if !ignored.context().trusted => {
                ignored.add(place, "host_rewrite (the server is not trusted)");
                None
            }
            specifier => host_rewrite(specifier)?,
        },
        append_forwarded_host: message.append_x_forwarded_host,
        path_rewrite,
        mirrors: mirrors(message.request_mirror_policies, place, ignored)?,
        upgrades: message
            .upgrade_configs
            .into_iter()
            .map(|upgrade| Upgrade {
                protocol: upgrade.upgrade_type.to_ascii_lowercase(),
                enabled: upgrade.enabled.unwrap_or(true),
            })
            .collect(),
        hash: hash::decode(message.hash_policy, place, ignored)?,
        priority: hash::priority(message.priority)?,
        ..Forward::default()
    })
}

fn some_unless_zero(value: Duration) -> Option<Duration> {
    (value != Duration::ZERO).then_some(value)
}

fn header_name(name: &str, field: &str) -> Result<String, Wrong> {
    let parsed = http::HeaderName::from_bytes(name.as_bytes());
    parsed.map(|name| name.as_str().to_owned()).map_err(|_| wrong(field, format!("{name:?} is no header")))
}

fn host_rewrite(message: Option<HostRewriteSpecifier>) -> Result<Option<HostRewrite>, Wrong> {
    Ok(match message {
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) if !host.is_empty() => Some(HostRewrite::Literal(host)),
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) if !name.is_empty() => {
            Some(HostRewrite::Header(header_name(&name, "host_rewrite_header")?.into()))
        }
        Some(HostRewriteSpecifier::HostRewritePathRegex(regex)) => {
            let (pattern, substitution) = value::rewrite(&regex).under("host_rewrite_path_regex")?;
            Some(HostRewrite::PathRegex { pattern, substitution })
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(true)) => Some(HostRewrite::Auto),
        _ => None,
    })
}

/// The authority of one cluster's requests, if who says so is trusted.
fn rewritten(literal: &str, place: &str, ignored: &mut Ignored) -> Option<String> {
    if literal.is_empty() {
        return None;
    }
    if !ignored.context().trusted {
        ignored.add(place, "host_rewrite_literal (the server is not trusted)");
        return None;
    }
    Some(literal.to_owned())
}

/// The probability is weight over the sum of weights; `total_weight` is history (RA3).
fn weighted(split: WeightedMessage, place: &str, ignored: &mut Ignored) -> Result<Vec<WeightedCluster>, Wrong> {
    let place = format!("{place}.weighted_clusters.clusters");
    let mut sum = 0_u64;
    let mut clusters = Vec::with_capacity(split.clusters.len());
    for (i, message) in split.clusters.into_iter().enumerate() {
        let at = || element("clusters", i, &message.name);
        if message.name.is_empty() == message.cluster_header.is_empty() {
            return Err(wrong("", "needs either a name or a cluster_header")).within(at);
        }
        let weight = message.weight.unwrap_or(0);
        sum += u64::from(weight);
        let headers = header::decode(
            message.request_headers_to_add,
            message.request_headers_to_remove,
            message.response_headers_to_add,
            message.response_headers_to_remove,
            &place,
            ignored,
        );
        let fault = policy::fault_of(&message.typed_per_filter_config, Side::Outbound, &place, ignored);
        for own in own_filter::overrides(&message.typed_per_filter_config).within(at)? {
            // Of filters of the program's own only routes and hosts speak.
            ignored.add(&place, &format!("typed_per_filter_config.{}", own.name));
        }
        let cluster_header = match message.cluster_header.as_str() {
            "" => None,
            name => Some(header_name(name, "cluster_header").within(at)?.into()),
        };
        clusters.push(WeightedCluster {
            cluster_header,
            headers: headers.within(at)?,
            fault: fault.within(at)?,
            criteria: subset::criteria(message.metadata_match.as_ref(), &place, ignored),
            host_rewrite: rewritten(&message.host_rewrite_literal, &place, ignored),
            cluster: message.name.into(),
            weight,
        });
    }
    match sum {
        0 => Err(wrong("clusters", "have no weight in sum")),
        _ if sum > u64::from(u32::MAX) => Err(wrong("clusters", format!("weigh more than {} in sum", u32::MAX))),
        _ => Ok(clusters),
    }
}

fn regex_rewrite(message: &RegexMatchAndSubstitute) -> Result<PathRewrite, Wrong> {
    let (pattern, substitution) = value::rewrite(message)?;
    if pattern.as_str() == WHOLE_PATH && !substitution.contains('\\') {
        return Ok(PathRewrite::Full(substitution));
    }
    Ok(PathRewrite::Regex { pattern, substitution })
}

/// Mirrors of a route, a host or a table.
pub(super) fn mirrors(
    messages: Vec<RequestMirrorPolicy>,
    place: &str,
    ignored: &mut Ignored,
) -> Result<Vec<Mirror>, Wrong> {
    const FIELD: &str = "request_mirror_policies";
    let place = format!("{place}.{FIELD}");
    let mut mirrors = Vec::with_capacity(messages.len());
    for (i, message) in messages.into_iter().enumerate() {
        let at = || format!("{FIELD}[{i}]");
        if message.cluster.is_empty() == message.cluster_header.is_empty() {
            return Err(wrong("", "needs either a cluster or a cluster_header")).within(at);
        }
        if message.runtime_fraction.as_ref().is_some_and(|fraction| !fraction.runtime_key.is_empty()) {
            ignored.add(&place, "runtime_fraction.runtime_key");
        }
        let fraction = message.runtime_fraction.map(value::runtime_fraction).transpose().under("runtime_fraction");
        let cluster_header = match message.cluster_header.as_str() {
            "" => None,
            name => Some(header_name(name, "cluster_header").within(at)?.into()),
        };
        mirrors.push(Mirror {
            cluster: message.cluster.into(),
            cluster_header,
            fraction: fraction.within(at)?,
            trace_sampled: message.trace_sampled,
            keep_host: message.disable_shadow_host_suffix_append,
            headers: header::decode_mutations(message.request_headers_mutations, &place, ignored).within(at)?,
            host_rewrite: (!message.host_rewrite_literal.is_empty()).then_some(message.host_rewrite_literal),
        });
    }
    Ok(mirrors)
}

pub(super) fn encode(forward: &Forward) -> RouteAction {
    let cluster = match forward.clusters.as_slice() {
        [one] if is_plain(one) && forward.split_by == SplitBy::Random => match &one.cluster_header {
            Some(name) => ClusterSpecifier::ClusterHeader(name.to_string()),
            None => ClusterSpecifier::Cluster(one.cluster.to_string()),
        },
        several => ClusterSpecifier::WeightedClusters(WeightedMessage {
            clusters: several.iter().map(encode_weighted).collect(),
            random_value_specifier: match &forward.split_by {
                SplitBy::Random => None,
                SplitBy::Header(name) => Some(RandomValueSpecifier::HeaderName(name.to_string())),
                SplitBy::Hash => Some(RandomValueSpecifier::UseHashPolicy(true)),
            },
            ..WeightedMessage::default()
        }),
    };
    let (prefix_rewrite, regex_rewrite) = match &forward.path_rewrite {
        None => (String::new(), None),
        Some(PathRewrite::Prefix(prefix)) => (prefix.clone(), None),
        Some(PathRewrite::Full(path)) => {
            let pattern = Some(RegexMatcher { regex: WHOLE_PATH.to_owned(), ..RegexMatcher::default() });
            (String::new(), Some(RegexMatchAndSubstitute { pattern, substitution: path.replace('\\', "\\\\") }))
        }
        Some(PathRewrite::Regex { pattern, substitution }) => {
            (String::new(), Some(encode_regex(pattern, substitution)))
        }
    };
    let not_found = match forward.no_cluster_status {
        404 => ClusterNotFoundResponseCode::NotFound,
        500 => ClusterNotFoundResponseCode::InternalServerError,
        _ => ClusterNotFoundResponseCode::ServiceUnavailable,
    };
    let metadata_match = match (&cluster, forward.clusters.first()) {
        (ClusterSpecifier::WeightedClusters(_), _) | (_, None) => None,
        (_, Some(only)) => subset::encode_criteria(&only.criteria),
    };
    RouteAction {
        metadata_match,
        cluster_specifier: Some(cluster),
        cluster_not_found_response_code: not_found.into(),
        prefix_rewrite,
        regex_rewrite,
        host_rewrite_specifier: forward.host_rewrite.as_ref().map(encode_host_rewrite),
        append_x_forwarded_host: forward.append_forwarded_host,
        timeout: Some(value::encode_duration(forward.timeout.unwrap_or_default())),
        retry_policy: forward.retry.as_ref().map(policy::encode_retry),
        max_stream_duration: (forward.max_stream_duration.is_some() || forward.grpc_timeout_header_max.is_some()).then(
            || MaxStreamDuration {
                max_stream_duration: forward.max_stream_duration.map(value::encode_duration),
                grpc_timeout_header_max: forward.grpc_timeout_header_max.map(value::encode_duration),
            },
        ),
        max_grpc_timeout: forward.max_grpc_timeout.map(value::encode_duration),
        idle_timeout: forward.idle_timeout.map(value::encode_duration),
        rate_limits: rate_limit::encode_entries(&forward.rate_limits),
        hedge_policy: forward.hedge.as_ref().and_then(policy::encode_hedge),
        request_mirror_policies: encode_mirrors(&forward.mirrors),
        upgrade_configs: forward
            .upgrades
            .iter()
            .map(|upgrade| UpgradeConfig { upgrade_type: upgrade.protocol.clone(), enabled: Some(upgrade.enabled) })
            .collect(),
        hash_policy: hash::encode(&forward.hash),
        priority: hash::encode_priority(forward.priority),
        ..RouteAction::default()
    }
}

fn is_plain(one: &WeightedCluster) -> bool {
    // The criteria of one alone are written as the route's.
    one.headers == HeaderChanges::default() && one.host_rewrite.is_none() && one.fault.is_none()
}

fn encode_host_rewrite(rewrite: &HostRewrite) -> HostRewriteSpecifier {
    match rewrite {
        HostRewrite::Literal(host) => HostRewriteSpecifier::HostRewriteLiteral(host.clone()),
        HostRewrite::Header(name) => HostRewriteSpecifier::HostRewriteHeader(name.to_string()),
        HostRewrite::PathRegex { pattern, substitution } => {
            HostRewriteSpecifier::HostRewritePathRegex(encode_regex(pattern, substitution))
        }
        HostRewrite::Auto => HostRewriteSpecifier::AutoHostRewrite(true),
    }
}

fn encode_weighted(cluster: &WeightedCluster) -> ClusterWeight {
    let headers = header::encode(&cluster.headers);
    ClusterWeight {
        name: cluster.cluster.to_string(),
        cluster_header: cluster.cluster_header.as_ref().map(ToString::to_string).unwrap_or_default(),
        weight: Some(cluster.weight),
        host_rewrite_literal: cluster.host_rewrite.clone().unwrap_or_default(),
        metadata_match: subset::encode_criteria(&cluster.criteria),
        typed_per_filter_config: fault_settings(cluster.fault.as_ref()),
        request_headers_to_add: headers.request_add,
        request_headers_to_remove: headers.request_remove,
        response_headers_to_add: headers.response_add,
        response_headers_to_remove: headers.response_remove,
    }
}

pub(super) fn encode_mirrors(mirrors: &[Mirror]) -> Vec<RequestMirrorPolicy> {
    let encode = |mirror: &Mirror| RequestMirrorPolicy {
        cluster: mirror.cluster.to_string(),
        cluster_header: mirror.cluster_header.as_ref().map(ToString::to_string).unwrap_or_default(),
        runtime_fraction: mirror.fraction.map(|fraction| RuntimeFractionalPercent {
            default_value: Some(value::encode_fraction(fraction)),
            ..RuntimeFractionalPercent::default()
        }),
        trace_sampled: mirror.trace_sampled,
        disable_shadow_host_suffix_append: mirror.keep_host,
        request_headers_mutations: header::encode_mutations(&mirror.headers),
        host_rewrite_literal: mirror.host_rewrite.clone().unwrap_or_default(),
    };
    mirrors.iter().map(encode).collect()
}
