//! Routes. Source: Envoy `RouteConfiguration`; conditions are in `matcher.rs`, retries and faults in `policy.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use mesh_core::config::{
    Action, DirectResponse, Fault, Name, PathRewrite, Redirect, Regex, Route, RouteTable, VirtualHost,
};

use super::{
    header, matcher, own_filter, path_template, policy, rate_limit,
    read::{Ignored, Within, Wrong, element, wrong},
    session, value,
};
use crate::proto::{
    Any,
    envoy::{
        config::{
            core::v3::{DataSource, data_source::Specifier},
            route::v3::{
                Decorator, DirectResponseAction, NonForwardingAction, RedirectAction, Route as RouteMessage,
                RouteConfiguration, VirtualHost as HostMessage,
                redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
                route::Action as ActionMessage,
                route_action::ClusterSpecifier,
                route_match::PathSpecifier,
            },
        },
        r#type::matcher::v3::RegexMatchAndSubstitute,
    },
};

mod forward;

/// The longest body of a direct response. Source: Istio's validation of `directResponse`.
const LONGEST_BODY: usize = 1 << 20;

/// Hosts, domains and routes of one resource: no process needs as many (OP15).
const MOST_PARTS: usize = 500_000;

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
pub(crate) enum Side {
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
    let parts = message.virtual_hosts.iter().map(|host| 1 + host.domains.len() + host.routes.len()).sum::<usize>();
    if parts > MOST_PARTS {
        let why = format!("have {parts} hosts, domains and routes together, more than {MOST_PARTS}");
        return Err(wrong("virtual_hosts", why));
    }
    let mut domains = BTreeSet::new();
    let mut virtual_hosts = Vec::with_capacity(message.virtual_hosts.len());
    let hosts_place = if place.is_empty() { "virtual_hosts".to_owned() } else { format!("{place}.virtual_hosts") };
    let fault = policy::fault_of(&message.typed_per_filter_config, side, place, ignored)?;
    for (i, host) in message.virtual_hosts.into_iter().enumerate() {
        let name = host.name.clone();
        let host = virtual_host(host, side, fault.as_ref(), &hosts_place, ignored).and_then(|host| {
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
        most_specific_wins: message.most_specific_header_mutations_wins,
        ignore_path_parameters: message.ignore_path_parameters_in_path_matching,
        mirrors: forward::mirrors(message.request_mirror_policies, place, ignored)?,
        headers: header::decode(
            message.request_headers_to_add,
            message.request_headers_to_remove,
            message.response_headers_to_add,
            message.response_headers_to_remove,
            &hosts_place,
            ignored,
        )?,
    })
}

/// `fault` is the table's.
fn virtual_host(
    message: HostMessage,
    side: Side,
    fault: Option<&Fault>,
    place: &str,
    ignored: &mut Ignored,
) -> Result<VirtualHost, Wrong> {
    let domains = message.domains.iter().map(|domain| check_domain(domain)).collect::<Result<Vec<_>, _>>()?;
    if domains.is_empty() {
        return Err(wrong("domains", "is empty"));
    }
    let fault = policy::fault_of(&message.typed_per_filter_config, side, place, ignored)?.or_else(|| fault.cloned());
    let mirrors = forward::mirrors(message.request_mirror_policies, place, ignored)?;
    let limit = policy::limit_of(&message.typed_per_filter_config, place, ignored)?;
    let session = session::of_route(&message.typed_per_filter_config, place, ignored)?;
    let filters = own_filter::overrides(&message.typed_per_filter_config)?;
    let limits = rate_limit::entries(message.rate_limits, place, ignored)?;
    let services = rate_limit::global::of_route(&message.typed_per_filter_config, place, ignored)?.into_own();
    let hedge = message.hedge_policy.as_ref().and_then(policy::hedge);
    let replay_limit = policy::replay_limit(message.per_request_buffer_limit_bytes, message.request_body_buffer_limit);
    let place = format!("{place}.routes");
    let mut routes = Vec::with_capacity(message.routes.len());
    for (i, route) in message.routes.into_iter().enumerate() {
        let name = route.name.clone();
        if let Some(field) = unread(&route).filter(|_| ignored.is_grpc()) {
            ignored.add(&place, &format!("{field} (its route is passed over)"));
            continue;
        }
        let includes_hosts = match &route.action {
            Some(ActionMessage::Route(action)) => action.include_vh_rate_limits.unwrap_or(false),
            _ => false,
        };
        let own = rate_limit::global::of_route(&route.typed_per_filter_config, &place, ignored)
            .within(|| element("routes", i, &name))?;
        let mut route = decode_route(route, side, &place, ignored).within(|| element("routes", i, &name))?;
        // The most specific that says anything counts, also when it says that there is none (RA16).
        route.fault = route.fault.or_else(|| fault.clone()).filter(|fault| *fault != Fault::default());
        if let Action::Forward(forward) = &mut route.action {
            forward.hedge = forward.hedge.take().or_else(|| hedge.clone());
            forward.replay_limit = forward.replay_limit.or(replay_limit);
            forward.rate_limit = forward.rate_limit.take().or_else(|| limit.clone());
            forward.session = forward.session.take().or_else(|| session.clone());
            forward.filters = own_filter::over(&filters, std::mem::take(&mut forward.filters));
            forward.global_limit = own.settle(services.as_ref(), &forward.rate_limits, &limits);
            if forward.rate_limits.is_empty() || includes_hosts {
                forward.rate_limits.extend(limits.iter().cloned());
            }
        }
        routes.push(route);
    }
    Ok(VirtualHost {
        name: message.name.into(),
        domains,
        routes,
        mirrors,
        rate_limits: if side == Side::Inbound { limits } else { Vec::new() },
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
    let template = match &matches.path_specifier {
        Some(PathSpecifier::PathMatchPolicy(policy)) => {
            Some(path_template::decode(policy.clone(), ignored).under("match.path_match_policy")?)
        }
        _ => None,
    };
    let action = match message.action {
        Some(ActionMessage::Route(action)) if side == Side::Inbound => {
            if !action.rate_limits.is_empty() {
                ignored.add(place, "route.rate_limits (what comes in is counted by its host's)");
            }
            Action::NonForwarding
        }
        Some(ActionMessage::Route(action)) => {
            let place = format!("{place}.route");
            let mut forward = forward::decode(action, template.as_ref(), &place, ignored).under("route")?;
            forward.rate_limit = policy::limit_of(&message.typed_per_filter_config, &place, ignored)?;
            forward.session = session::of_route(&message.typed_per_filter_config, &place, ignored)?;
            forward.filters = own_filter::overrides(&message.typed_per_filter_config)?;
            forward.replay_limit =
                policy::replay_limit(message.per_request_buffer_limit_bytes, message.request_body_buffer_limit);
            Action::Forward(forward)
        }
        Some(ActionMessage::Redirect(_) | ActionMessage::DirectResponse(_)) if ignored.is_grpc() => unheard_of(),
        None if ignored.is_grpc() => unheard_of(),
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

/// What gRPC passes a route over for. Source: gRFC A28.
fn unread(route: &RouteMessage) -> Option<&'static str> {
    if route.r#match.as_ref().is_some_and(|matches| !matches.query_parameters.is_empty()) {
        return Some("match.query_parameters");
    }
    match &route.action {
        Some(ActionMessage::Route(action)) => match &action.cluster_specifier {
            Some(ClusterSpecifier::ClusterHeader(_)) => Some("route.cluster_header"),
            _ => None,
        },
        _ => None,
    }
}

/// What gRPC has no word for fails the request that takes the route, and nothing else. Source: gRFC A28, A36.
fn unheard_of() -> Action {
    Action::DirectResponse(DirectResponse {
        status: 503,
        body: "the matching route has an unsupported action".to_owned(),
    })
}

/// The routes as one side may take them: those that are for the other fail their requests. Source: gRFC A36.
pub(crate) fn on_side(table: &Arc<RouteTable>, side: Side) -> Arc<RouteTable> {
    let is_meant = |route: &Route| match &route.action {
        Action::Forward(_) => side == Side::Outbound,
        Action::NonForwarding => side == Side::Inbound,
        Action::Redirect(_) | Action::DirectResponse(_) => true,
    };
    if table.virtual_hosts.iter().all(|host| host.routes.iter().all(is_meant)) {
        return table.clone();
    }
    let mut changed = RouteTable::clone(table);
    for host in &mut changed.virtual_hosts {
        for route in Arc::make_mut(host).routes.iter_mut().filter(|route| !is_meant(route)) {
            route.action = unheard_of();
        }
    }
    Arc::new(changed)
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
            Some(PathRewriteSpecifier::PathRedirect(path)) => (!path.is_empty()).then_some(PathRewrite::Full(path)),
            Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
                (!prefix.is_empty()).then_some(PathRewrite::Prefix(prefix))
            }
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
        most_specific_header_mutations_wins: table.most_specific_wins,
        ignore_path_parameters_in_path_matching: table.ignore_path_parameters,
        request_mirror_policies: forward::encode_mirrors(&table.mirrors),
        typed_per_filter_config: BTreeMap::new(),
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
        request_mirror_policies: forward::encode_mirrors(&host.mirrors),
        rate_limits: rate_limit::encode_entries(&host.rate_limits),
        request_headers_to_add: headers.request_add,
        request_headers_to_remove: headers.request_remove,
        response_headers_to_add: headers.response_add,
        response_headers_to_remove: headers.response_remove,
        ..HostMessage::default()
    }
}

fn encode_route(route: &Route) -> RouteMessage {
    let headers = header::encode(&route.headers);
    let action = match &route.action {
        Action::Forward(forward) => ActionMessage::Route(forward::encode(forward)),
        Action::Redirect(redirect) => ActionMessage::Redirect(encode_redirect(redirect)),
        Action::DirectResponse(response) => ActionMessage::DirectResponse(DirectResponseAction {
            status: response.status.into(),
            body: (!response.body.is_empty())
                .then(|| DataSource { specifier: Some(Specifier::InlineString(response.body.clone())) }),
        }),
        Action::NonForwarding => ActionMessage::NonForwardingAction(NonForwardingAction {}),
    };
    let origin = route.origin.as_ref().map(|origin| ("config".to_owned(), value::encode_origin(origin)));
    let replay_limit = match &route.action {
        Action::Forward(forward) => forward.replay_limit,
        _ => None,
    };
    RouteMessage {
        name: route.name.to_string(),
        r#match: Some(matcher::encode(&route.matches)),
        action: Some(action),
        metadata: value::istio_metadata(origin.into_iter().collect()),
        decorator: route
            .operation
            .as_ref()
            .map(|operation: &Name| Decorator { operation: operation.to_string(), ..Decorator::default() }),
        typed_per_filter_config: filter_settings(route),
        request_headers_to_add: headers.request_add,
        request_headers_to_remove: headers.request_remove,
        response_headers_to_add: headers.response_add,
        response_headers_to_remove: headers.response_remove,
        request_body_buffer_limit: replay_limit,
        ..RouteMessage::default()
    }
}

fn filter_settings(route: &Route) -> BTreeMap<String, Any> {
    let mut settings = fault_settings(route.fault.as_ref());
    if let Action::Forward(forward) = &route.action {
        if let Some(limit) = &forward.rate_limit {
            settings.insert(rate_limit::LOCAL_RATE_LIMIT.to_owned(), rate_limit::encode(limit));
        }
        if let Some(own) = &forward.global_limit {
            settings.insert(rate_limit::global::RATE_LIMIT.to_owned(), rate_limit::global::encode_route(own));
        }
        if let Some(session) = &forward.session {
            settings.insert(session::STATEFUL_SESSION.to_owned(), session::encode_route(session));
        }
        settings.extend(own_filter::encode_overrides(&forward.filters));
    }
    settings
}

/// Filter settings that say of faults what is said; one that is empty says that there is none.
fn fault_settings(fault: Option<&Fault>) -> BTreeMap<String, Any> {
    fault.map(policy::encode_fault).into_iter().collect()
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
