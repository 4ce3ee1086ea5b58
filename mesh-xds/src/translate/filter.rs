//! HTTP filters: which we run by other means, which have no effect here, and which guard the door.
//!
//! A control plane made for sidecars lists many filters no library runs. Most only observe; those are passed over in
//! silence by name. Any other refuses the listener, unless it is optional or disabled: then it is reported as ignored
//! (gRFC A39). One that authorizes or authenticates callers must not be passed over: on the way in, one that is not known,
//! or says something that cannot be kept, makes the port refuse every request, and says why. Refusing the listener alone
//! would leave open what it was to close, where there was none before.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::config::{
    AuditCondition, Fault, GlobalRateLimit, Guard, LocalRateLimit, Rbac, RbacAction, RbacRules, Session,
};

use crate::proto::{
    Any,
    envoy::{
        config::core::v3::TypedExtensionConfig,
        extensions::filters::{
            http::{
                buffer::v3::Buffer, ext_authz::v3::ExtAuthz, fault::v3::HttpFault, jwt_authn::v3::JwtAuthentication,
                local_ratelimit::v3::LocalRateLimit as LocalRateLimitMessage, ratelimit::v3::RateLimit,
                rbac::v3::Rbac as RbacMessage, router::v3::Router, stateful_session::v3::StatefulSession,
            },
            network::http_connection_manager::v3::{HttpFilter, http_filter::ConfigType},
        },
    },
};

use super::{
    ext_authz, jwt, own_filter, policy, rate_limit, rbac,
    read::{Ignored, Within, Wrong, element, wrong},
    route::Side,
    session,
};

const ROUTER: &str = "envoy.filters.http.router";

/// What observes or decorates, in Istio's chains, and is done by other means here or not needed.
const QUIET: [&str; 11] = [
    "envoy.filters.http.cors",
    "envoy.filters.http.grpc_stats",
    "envoy.filters.http.grpc_web",
    "envoy.filters.http.peer_metadata",
    "istio.alpn",
    "istio.metadata_exchange",
    "istio.stats",
    "istio_stats",
    "waypoint_downstream_peer_metadata",
    "waypoint_upstream_peer_metadata",
    ROUTER,
];

/// Parts of names and types of filters that decide who may do what.
const GUARDS: [&str; 12] = [
    "rbac",
    "authz",
    "authn",
    "authorization",
    "authentication",
    "jwt",
    "oauth",
    "basic_auth",
    "api_key_auth",
    "credential",
    "csrf",
    // A processor may refuse any request, and does unless it is told to fail open.
    "ext_proc",
];

/// Whether a filter decides who may do what, judged by its name and the type of its settings.
pub(super) fn guards(name: &str, any: &Any) -> bool {
    let by_name = |text: &str| {
        let text = text.to_ascii_lowercase();
        GUARDS.iter().any(|part| text.contains(part))
    };
    by_name(name) || by_name(inner_type(any).as_deref().unwrap_or_else(|| any.message_name()))
}

/// The type a wrapped extension really has: `TypedStruct` carries its URL as first field.
fn inner_type(any: &Any) -> Option<String> {
    let wrapped = any.message_name().ends_with(".TypedStruct");
    // Field 1 of TypedStruct is the type URL and field 1 of TypedExtensionConfig a string as well.
    let inner = wrapped.then(|| <TypedExtensionConfig as prost::Message>::decode(any.value.clone()).ok())??;
    Some(inner.name)
}

/// What the filters of a chain come to.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// Why the chain must refuse everything, if it must.
    pub(super) refused: Option<String>,
    /// What requests must pass, in order.
    pub(super) guards: Vec<Guard>,
    /// The fault of routes without their own.
    pub(super) fault: Option<Fault>,
    /// The rate limit of routes without their own.
    pub(super) rate_limit: Option<Arc<LocalRateLimit>>,
    /// Who counts requests for the whole mesh.
    pub(super) global_limits: Vec<Arc<GlobalRateLimit>>,
    /// How sessions stay together on routes that do not say.
    pub(super) session: Option<Arc<Session>>,
}

/// Reads the filters of a chain, and checks that it ends in the router.
pub(super) fn chain(filters: &[HttpFilter], side: Side, place: &str, ignored: &mut Ignored) -> Result<Chain, Wrong> {
    let place = format!("{place}.http_filters");
    let mut read = Chain::default();
    let mut names = BTreeSet::new();
    // Rules have one name, and so have services that are asked: there may be several of each.
    let several = [rbac::RBAC, ext_authz::EXT_AUTHZ, jwt::JWT];
    let may_repeat = |filter: &&HttpFilter| side == Side::Inbound && several.contains(&&*filter.name);
    let mut named = filters.iter().filter(|filter| !may_repeat(filter));
    if let Some(twice) = named.find(|filter| !names.insert(filter.name.as_str())) {
        return Err(wrong("http_filters", format!("name {:?} twice (RA17)", twice.name)));
    }
    let is_router = |filter: &HttpFilter| match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => any.is::<Router>() || filter.name == ROUTER,
        None => filter.name == ROUTER,
    };
    match filters.split_last() {
        Some((last, before)) if is_router(last) && !last.disabled && !before.iter().any(is_router) => {}
        _ => return Err(wrong("http_filters", format!("must end in {ROUTER:?}, and have it only there (RA17)"))),
    }
    for (i, filter) in filters.iter().enumerate().filter(|(_, filter)| !filter.disabled) {
        let empty = Any::default();
        let any = match &filter.config_type {
            Some(ConfigType::TypedConfig(any)) => any,
            None => &empty,
        };
        let at = || element("http_filters", i, &filter.name);
        if side == Side::Inbound && (any.is::<RbacMessage>() || any.is::<ExtAuthz>() || any.is::<JwtAuthentication>()) {
            match guard(any, &place, ignored).within(at) {
                Ok(guard) => read.guards.push(guard),
                Err(Wrong { field, message }) => {
                    ignored.add(&place, &format!("{} (all requests are refused)", filter.name));
                    read.refused.get_or_insert_with(|| {
                        format!("a guard of this port cannot be kept, so all requests are refused: {field}: {message}")
                    });
                }
            }
        } else if side == Side::Inbound && guards(&filter.name, any) {
            read.refused.get_or_insert_with(|| {
                format!(
                    "the HTTP filter {:?} guards this port and is not supported: all requests are refused",
                    filter.name
                )
            });
        } else if any.is::<Router>() {
            ignored.open::<Router>(any, &place).within(at)?;
        } else if any.is::<HttpFault>() && !(side == Side::Inbound && ignored.is_grpc()) {
            let message: HttpFault = ignored.open(any, &place).within(at)?;
            read.fault = policy::fault(message).within(at)?.filter(|_| side == Side::Outbound);
        } else if any.is::<LocalRateLimitMessage>() && !ignored.is_grpc() {
            let message: LocalRateLimitMessage = ignored.open(any, &place).within(at)?;
            read.rate_limit = Some(rate_limit::decode(message, &place, ignored).within(at)?);
        } else if any.is::<RateLimit>() && !ignored.is_grpc() {
            let message: RateLimit = ignored.open(any, &place).within(at)?;
            read.global_limits.push(rate_limit::global::decode(message, &place, ignored).within(at)?);
        } else if any.is::<Buffer>() && side == Side::Inbound && !ignored.is_grpc() {
            // Read with the other limits of the port.
        } else if any.is::<StatefulSession>() && side == Side::Inbound {
            ignored.add(&place, &filter.name);
        } else if any.is::<StatefulSession>() {
            let message: StatefulSession = ignored.open(any, &place).within(at)?;
            read.session = Some(session::decode(message, &place, ignored).within(at)?);
        } else if side == Side::Outbound && own_filter::is_one(any) {
            // Read by `own_filter::decode`, with those that are disabled.
        } else if QUIET.contains(&filter.name.as_str()) && !ignored.is_grpc() {
        } else if filter.is_optional {
            ignored.add(&place, &filter.name);
        } else {
            let what = inner_type(any).unwrap_or_else(|| any.message_name().to_owned());
            return Err(wrong("", format!("is of type {what:?}, which is not supported, and it is not optional")))
                .within(at);
        }
    }
    Ok(read)
}

fn guard(any: &Any, place: &str, ignored: &mut Ignored) -> Result<Guard, Wrong> {
    if any.is::<RbacMessage>() {
        return Ok(Guard::Rbac(Arc::new(rbac::decode(ignored.open(any, place)?, place, ignored)?)));
    }
    if any.is::<JwtAuthentication>() {
        return Ok(Guard::Jwt(Arc::new(jwt::decode(ignored.open(any, place)?, place, ignored)?)));
    }
    Ok(Guard::ExtAuthz(Arc::new(ext_authz::decode(ignored.open(any, place)?, place, ignored)?)))
}

/// Rules, there and empty: they allow those whom any of no policies names.
pub(super) fn nobody() -> Rbac {
    let rules = RbacRules { action: RbacAction::Allow, policies: BTreeMap::new(), audit: AuditCondition::None };
    Rbac { rules: Some(rules), ..Rbac::default() }
}

/// The filters of a chain we write. A port that must refuse everything says so in a way every Envoy understands: an
/// authorization filter that allows nobody.
pub(super) fn encode(
    side: Side,
    refused: bool,
    guards: &[Guard],
    fault: Option<&Fault>,
    limit: Option<&LocalRateLimit>,
    services: &[Arc<GlobalRateLimit>],
    session: Option<&Session>,
) -> Vec<HttpFilter> {
    let typed = |name: &str, any| HttpFilter {
        name: name.to_owned(),
        config_type: Some(ConfigType::TypedConfig(any)),
        ..HttpFilter::default()
    };
    let mut filters = Vec::new();
    if refused {
        filters.push(typed(rbac::RBAC, rbac::encode(&nobody())));
    }
    for guard in guards {
        filters.push(match guard {
            Guard::Rbac(rules) => typed(rbac::RBAC, rbac::encode(rules)),
            Guard::Jwt(tokens) => typed(jwt::JWT, jwt::encode(tokens)),
            Guard::ExtAuthz(service) => typed(ext_authz::EXT_AUTHZ, ext_authz::encode(service)),
        });
    }
    if side == Side::Outbound {
        // Empty where no fault is for every route: it is there for the routes that have their own.
        let any = fault.map_or_else(|| Any::pack(&HttpFault::default()), |fault| policy::encode_fault(fault).1);
        filters.push(typed(policy::FAULT, any));
    }
    if let Some(limit) = limit {
        filters.push(typed(rate_limit::LOCAL_RATE_LIMIT, rate_limit::encode(limit)));
    }
    for (at, service) in services.iter().enumerate() {
        // Routes call the first by its name; the others need one.
        let number = if at == 0 { String::new() } else { format!(".{at}") };
        let name = format!("{}{number}", rate_limit::global::RATE_LIMIT);
        filters.push(typed(&name, rate_limit::global::encode(service)));
    }
    if let Some(session) = session {
        filters.push(typed(session::STATEFUL_SESSION, session::encode(session)));
    }
    filters.push(typed(ROUTER, Any::pack(&Router {})));
    filters
}
