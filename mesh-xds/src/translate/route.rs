//! Routes. Source: Envoy `RouteConfiguration`; conditions are in `matcher.rs`, retries and faults in `policy.rs`.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use mesh_core::config::{
    Action, DirectResponse, Forward, HeaderChanges, Name, PathRewrite, Redirect, Regex, Route, RouteTable, VirtualHost,
    WeightedCluster,
};

use super::{
    header, matcher, policy,
    read::{Ignored, Within, Wrong, element, wrong},
    value,
};
use crate::proto::envoy::{
    config::{
        core::v3::{DataSource, data_source::Specifier},
        route::v3::{
            Decorator, DirectResponseAction, NonForwardingAction, RedirectAction, Route as RouteMessage, RouteAction,
            RouteConfiguration, VirtualHost as HostMessage, WeightedCluster as WeightedMessage,
            redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
            route::Action as ActionMessage,
            route_action::{ClusterSpecifier, HostRewriteSpecifier, MaxStreamDuration},
            weighted_cluster::ClusterWeight,
        },
    },
    r#type::matcher::v3::RegexMatchAndSubstitute,
};

/// A route without a timeout on the wire has this one. Source: Envoy `RouteAction.timeout` (TO1).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest body of a direct response. Source: Istio's validation of `directResponse`.
const LONGEST_BODY: usize = 1 << 20;
/// How a rewrite of the whole path is written where there is no field for it.
const WHOLE_PATH: &str = "^.*$";

pub(super) fn decode(body: &Bytes, name: &mut String, ignored: &mut Ignored) -> Result<RouteTable, Wrong> {
    let message: RouteConfiguration = ignored.read(body, "")?;
    name.clone_from(&message.name);
    if name.is_empty() {
        return Err(wrong("name", "is missing"));
    }
    table(message, Side::Outbound, "", ignored)
}

/// Whose routes these are.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Side {
    /// Of requests on their way out.
    Outbound,
    /// Of requests that came in: what an Envoy forwards to its application is ours to handle.
    Inbound,
}

/// The routes of a configuration, in a resource of its own or within a listener.
pub(super) fn table(
    message: RouteConfiguration,
    side: Side,
    place: &str,
    ignored: &mut Ignored,
) -> Result<RouteTable, Wrong> {
    let mut domains = BTreeSet::new();
    let mut virtual_hosts = Vec::with_capacity(message.virtual_hosts.len());
    let place = if place.is_empty() { "virtual_hosts".to_owned() } else { format!("{place}.virtual_hosts") };
    for (i, host) in message.virtual_hosts.into_iter().enumerate() {
        let name = host.name.clone();
        let host = virtual_host(host, side, &place, ignored).and_then(|host| {
            match host.domains.iter().find(|domain| !domains.insert((*domain).clone())) {
                Some(domain) => Err(wrong("domains", format!("{domain:?} occurs twice in this resource"))),
                None => Ok(host),
            }
        });
        virtual_hosts.push(Arc::new(host.within(|| element("virtual_hosts", i, &name))?));
    }
    Ok(RouteTable {
        name: message.name.into(),
        virtual_hosts,
        ignore_port: message.ignore_port_in_host_matching,
        headers: header::decode(
            message.request_headers_to_add,
            message.request_headers_to_remove,
            message.response_headers_to_add,
            message.response_headers_to_remove,
            &place,
            ignored,
        )?,
    })
}

fn virtual_host(message: HostMessage, side: Side, place: &str, ignored: &mut Ignored) -> Result<VirtualHost, Wrong> {
    let domains = message.domains.iter().map(|domain| check_domain(domain)).collect::<Result<Vec<_>, _>>()?;
    if domains.is_empty() {
        return Err(wrong("domains", "is empty"));
    }
    let fault = policy::fault_of(&message.typed_per_filter_config, side, place, ignored)?;
    let place = format!("{place}.routes");
    let mut routes = Vec::with_capacity(message.routes.len());
    for (i, route) in message.routes.into_iter().enumerate() {
        let name = route.name.clone();
        let mut route = decode_route(route, side, &place, ignored).within(|| element("routes", i, &name))?;
        // The most specific counts (RA16).
        route.fault = route.fault.or_else(|| fault.clone());
        routes.push(route);
    }
    Ok(VirtualHost {
        name: message.name.into(),
        domains,
        routes,
        retry: message
            .retry_policy
            .map(|retry| policy::retry(retry, &place, ignored))
            .transpose()
            .under("retry_policy")?,
        headers: header::decode(
            message.request_headers_to_add,
            message.request_headers_to_remove,
            message.response_headers_to_add,
            message.response_headers_to_remove,
            &place,
            ignored,
        )?,
    })
}

/// A domain in lower case; one `*`, at one end only.
fn check_domain(domain: &str) -> Result<String, Wrong> {
    let inner = domain.strip_prefix('*').or_else(|| domain.strip_suffix('*')).unwrap_or(domain);
    if domain.is_empty() || inner.contains('*') {
        return Err(wrong("domains", format!("{domain:?} is no host, no `*` and has no single `*` at one end")));
    }
    Ok(domain.to_ascii_lowercase())
}

fn decode_route(message: RouteMessage, side: Side, place: &str, ignored: &mut Ignored) -> Result<Route, Wrong> {
    let matches = message.r#match.ok_or_else(|| wrong("match", "is missing"))?;
    let action = match message.action {
        Some(ActionMessage::Route(_)) if side == Side::Inbound => Action::NonForwarding,
        Some(ActionMessage::Route(action)) => {
            Action::Forward(forward(action, &format!("{place}.route"), ignored).under("route")?)
        }
        Some(ActionMessage::Redirect(action)) => Action::Redirect(redirect(action).under("redirect")?),
        Some(ActionMessage::DirectResponse(action)) => {
            Action::DirectResponse(direct_response(action).under("direct_response")?)
        }
        Some(ActionMessage::NonForwardingAction(_)) => Action::NonForwarding,
        None => return Err(wrong("action", "is missing or of a kind that is not supported")),
    };
    Ok(Route {
        name: message.name.into(),
        origin: value::origin(message.metadata.as_ref()),
        matches: matcher::decode(matches, &format!("{place}.match"), ignored).under("match")?,
        action,
        fault: policy::fault_of(&message.typed_per_filter_config, side, place, ignored)?,
        headers: header::decode(
            message.request_headers_to_add,
            message.request_headers_to_remove,
            message.response_headers_to_add,
            message.response_headers_to_remove,
            place,
            ignored,
        )?,
        operation: message.decorator.map(|decorator| decorator.operation.into()),
    })
}

fn forward(message: RouteAction, place: &str, ignored: &mut Ignored) -> Result<Forward, Wrong> {
    let clusters = match message.cluster_specifier {
        Some(ClusterSpecifier::Cluster(cluster)) if !cluster.is_empty() => {
            vec![WeightedCluster { cluster: cluster.into(), weight: 1, ..WeightedCluster::default() }]
        }
        Some(ClusterSpecifier::WeightedClusters(split)) => {
            weighted(split, place, ignored).under("weighted_clusters")?
        }
        Some(ClusterSpecifier::ClusterHeader(_)) => return Err(wrong("cluster_header", "is not supported")),
        _ => return Err(wrong("cluster_specifier", "is missing or of a kind that is not supported")),
    };
    let timeout = match message.timeout {
        None => Some(DEFAULT_TIMEOUT),
        Some(timeout) => some_unless_zero(value::duration(timeout, "timeout")?),
    };
    let max_stream_duration = match message.max_stream_duration {
        None => None,
        // The limit of the header replaces the other, even with a longer one (TO2).
        Some(MaxStreamDuration { max_stream_duration, grpc_timeout_header_max }) => {
            match grpc_timeout_header_max.or(max_stream_duration) {
                Some(limit) => some_unless_zero(value::duration(limit, "max_stream_duration")?),
                None => None,
            }
        }
    };
    let path_rewrite = match (message.prefix_rewrite, message.regex_rewrite) {
        (prefix, None) => (!prefix.is_empty()).then_some(PathRewrite::Prefix(prefix)),
        (prefix, Some(regex)) if prefix.is_empty() => Some(regex_rewrite(&regex).under("regex_rewrite")?),
        _ => return Err(wrong("prefix_rewrite", "stands beside regex_rewrite; only one may")),
    };
    let HostRewriteSpecifier::HostRewriteLiteral(host) =
        message.host_rewrite_specifier.unwrap_or_else(|| HostRewriteSpecifier::HostRewriteLiteral(String::new()));
    Ok(Forward {
        clusters,
        timeout,
        max_stream_duration,
        retry: message
            .retry_policy
            .map(|retry| policy::retry(retry, place, ignored))
            .transpose()
            .under("retry_policy")?,
        host_rewrite: (!host.is_empty()).then_some(host),
        path_rewrite,
        ..Forward::default()
    })
}

fn some_unless_zero(value: Duration) -> Option<Duration> {
    (value != Duration::ZERO).then_some(value)
}

/// The probability is weight over the sum of weights; `total_weight` is history (RA3).
fn weighted(split: WeightedMessage, place: &str, ignored: &mut Ignored) -> Result<Vec<WeightedCluster>, Wrong> {
    let place = format!("{place}.weighted_clusters.clusters");
    let mut sum = 0_u64;
    let mut clusters = Vec::with_capacity(split.clusters.len());
    for (i, message) in split.clusters.into_iter().enumerate() {
        if message.name.is_empty() {
            return Err(wrong(format!("clusters[{i}].name"), "is missing"));
        }
        let weight = message.weight.unwrap_or(0);
        sum += u64::from(weight);
        let at = || element("clusters", i, &message.name);
        let headers = header::decode(
            message.request_headers_to_add,
            message.request_headers_to_remove,
            message.response_headers_to_add,
            message.response_headers_to_remove,
            &place,
            ignored,
        );
        clusters.push(WeightedCluster { headers: headers.within(at)?, cluster: message.name.into(), weight });
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

fn redirect(message: RedirectAction) -> Result<Redirect, Wrong> {
    let status = match RedirectResponseCode::try_from(message.response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => 301,
        Ok(RedirectResponseCode::Found) => 302,
        Ok(RedirectResponseCode::SeeOther) => 303,
        Ok(RedirectResponseCode::TemporaryRedirect) => 307,
        Ok(RedirectResponseCode::PermanentRedirect) => 308,
        Err(_) => return Err(wrong("response_code", format!("{} is no redirect", message.response_code))),
    };
    let port = u16::try_from(message.port_redirect)
        .map_err(|_| wrong("port_redirect", format!("{} is no port", message.port_redirect)))?;
    Ok(Redirect {
        status,
        scheme: match message.scheme_rewrite_specifier {
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".to_owned()),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) if !scheme.is_empty() => Some(scheme),
            _ => None,
        },
        host: (!message.host_redirect.is_empty()).then_some(message.host_redirect),
        port: (port > 0).then_some(port),
        path: match message.path_rewrite_specifier {
            Some(PathRewriteSpecifier::PathRedirect(path)) => Some(PathRewrite::Full(path)),
            Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => Some(PathRewrite::Prefix(prefix)),
            Some(PathRewriteSpecifier::RegexRewrite(regex)) => {
                let (pattern, substitution) = value::rewrite(&regex).under("regex_rewrite")?;
                Some(PathRewrite::Regex { pattern, substitution })
            }
            None => None,
        },
        strip_query: message.strip_query,
    })
}

fn direct_response(message: DirectResponseAction) -> Result<DirectResponse, Wrong> {
    let Ok(status @ 200..600) = u16::try_from(message.status) else {
        return Err(wrong("status", format!("{} is not in 200..=599", message.status)));
    };
    let body = match message.body.and_then(|body| body.specifier) {
        None => String::new(),
        Some(Specifier::InlineString(text)) => text,
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes.into())
            .map_err(|_| wrong("body.inline_bytes", "is not UTF-8, which alone is supported"))?,
        // A control plane has no business with the files and the environment of this machine.
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
            return Err(wrong("body", "must be inline; files and environment variables are not read"));
        }
    };
    if body.len() > LONGEST_BODY {
        return Err(wrong("body", format!("is longer than {LONGEST_BODY} bytes")));
    }
    Ok(DirectResponse { status, body })
}

pub(super) fn encode(name: &str, table: &RouteTable) -> RouteConfiguration {
    let headers = header::encode(&table.headers);
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: table.virtual_hosts.iter().map(|host| encode_host(host)).collect(),
        // A route may name a cluster that is not there yet or not any more: that request fails, not the whole table.
        validate_clusters: Some(false),
        ignore_port_in_host_matching: table.ignore_port,
        max_direct_response_body_size_bytes: Some(LONGEST_BODY as u32),
        request_headers_to_add: headers.request_add,
        request_headers_to_remove: headers.request_remove,
        response_headers_to_add: headers.response_add,
        response_headers_to_remove: headers.response_remove,
    }
}

fn encode_host(host: &VirtualHost) -> HostMessage {
    let headers = header::encode(&host.headers);
    HostMessage {
        name: host.name.to_string(),
        domains: host.domains.clone(),
        routes: host.routes.iter().map(encode_route).collect(),
        retry_policy: host.retry.as_ref().map(policy::encode_retry),
        typed_per_filter_config: Default::default(),
        request_headers_to_add: headers.request_add,
        request_headers_to_remove: headers.request_remove,
        response_headers_to_add: headers.response_add,
        response_headers_to_remove: headers.response_remove,
    }
}

fn encode_route(route: &Route) -> RouteMessage {
    let headers = header::encode(&route.headers);
    let action = match &route.action {
        Action::Forward(forward) => ActionMessage::Route(encode_forward(forward)),
        Action::Redirect(redirect) => ActionMessage::Redirect(encode_redirect(redirect)),
        Action::DirectResponse(response) => ActionMessage::DirectResponse(DirectResponseAction {
            status: response.status.into(),
            body: (!response.body.is_empty())
                .then(|| DataSource { specifier: Some(Specifier::InlineString(response.body.clone())) }),
        }),
        Action::NonForwarding => ActionMessage::NonForwardingAction(NonForwardingAction {}),
    };
    let origin = route.origin.as_ref().map(|origin| ("config".to_owned(), value::encode_origin(origin)));
    RouteMessage {
        name: route.name.to_string(),
        r#match: Some(matcher::encode(&route.matches)),
        action: Some(action),
        metadata: value::istio_metadata(origin.into_iter().collect()),
        decorator: route
            .operation
            .as_ref()
            .map(|operation: &Name| Decorator { operation: operation.to_string(), ..Decorator::default() }),
        typed_per_filter_config: route.fault.as_ref().map(policy::encode_fault).into_iter().collect(),
        request_headers_to_add: headers.request_add,
        request_headers_to_remove: headers.request_remove,
        response_headers_to_add: headers.response_add,
        response_headers_to_remove: headers.response_remove,
    }
}

fn encode_forward(forward: &Forward) -> RouteAction {
    let cluster = match forward.clusters.as_slice() {
        [one] if one.headers == HeaderChanges::default() => ClusterSpecifier::Cluster(one.cluster.to_string()),
        several => ClusterSpecifier::WeightedClusters(WeightedMessage {
            clusters: several.iter().map(encode_weighted).collect(),
            ..WeightedMessage::default()
        }),
    };
    let (prefix_rewrite, regex_rewrite) = match &forward.path_rewrite {
        None => (String::new(), None),
        Some(PathRewrite::Prefix(prefix)) => (prefix.clone(), None),
        Some(PathRewrite::Full(path)) => {
            let pattern = Some(crate::proto::envoy::r#type::matcher::v3::RegexMatcher {
                regex: WHOLE_PATH.to_owned(),
                ..Default::default()
            });
            (String::new(), Some(RegexMatchAndSubstitute { pattern, substitution: path.replace('\\', "\\\\") }))
        }
        Some(PathRewrite::Regex { pattern, substitution }) => {
            (String::new(), Some(encode_regex(pattern, substitution)))
        }
    };
    RouteAction {
        cluster_specifier: Some(cluster),
        prefix_rewrite,
        regex_rewrite,
        host_rewrite_specifier: forward.host_rewrite.clone().map(HostRewriteSpecifier::HostRewriteLiteral),
        timeout: Some(value::encode_duration(forward.timeout.unwrap_or_default())),
        retry_policy: forward.retry.as_ref().map(policy::encode_retry),
        max_stream_duration: forward.max_stream_duration.map(|limit| MaxStreamDuration {
            max_stream_duration: Some(value::encode_duration(limit)),
            ..MaxStreamDuration::default()
        }),
    }
}

fn encode_weighted(cluster: &WeightedCluster) -> ClusterWeight {
    let headers = header::encode(&cluster.headers);
    ClusterWeight {
        name: cluster.cluster.to_string(),
        weight: Some(cluster.weight),
        request_headers_to_add: headers.request_add,
        request_headers_to_remove: headers.request_remove,
        response_headers_to_add: headers.response_add,
        response_headers_to_remove: headers.response_remove,
    }
}

fn encode_regex(pattern: &Regex, substitution: &str) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute { pattern: Some(value::encode_regex(pattern)), substitution: substitution.to_owned() }
}

fn encode_redirect(redirect: &Redirect) -> RedirectAction {
    let code = match redirect.status {
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    RedirectAction {
        host_redirect: redirect.host.clone().unwrap_or_default(),
        port_redirect: redirect.port.unwrap_or_default().into(),
        response_code: code.into(),
        strip_query: redirect.strip_query,
        scheme_rewrite_specifier: redirect.scheme.clone().map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: redirect.path.as_ref().map(|path| match path {
            PathRewrite::Full(path) => PathRewriteSpecifier::PathRedirect(path.clone()),
            PathRewrite::Prefix(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix.clone()),
            PathRewrite::Regex { pattern, substitution } => {
                PathRewriteSpecifier::RegexRewrite(encode_regex(pattern, substitution))
            }
        }),
    }
}
