//! Authorization services that are asked. Source: Envoy HTTP filter `ExtAuthz`.

use std::time::Duration;

use mesh_core::config::{AuthzService, ExtAuthz, Name, ShadowMatch, StringMatch, ToldBody, ValueMatch};

use super::{
    rbac,
    read::{Ignored, Within, Wrong, wrong},
    value,
};
use crate::proto::{
    Any,
    envoy::{
        config::core::v3::{
            ApiVersion, GrpcService, HeaderValue, HttpUri,
            grpc_service::{EnvoyGrpc, TargetSpecifier},
            http_uri::HttpUpstreamType,
        },
        extensions::filters::http::ext_authz::v3::{
            AuthorizationRequest, AuthorizationResponse, BufferSettings, ExtAuthz as Message, HttpService,
            ext_authz::Services,
        },
        r#type::{matcher::v3::ListStringMatcher, v3::HttpStatus},
    },
};

/// The filter's name.
pub(super) const EXT_AUTHZ: &str = "envoy.filters.http.ext_authz";
/// Envoy's own limit where none is set.
const TIMEOUT: Duration = Duration::from_millis(200);
/// Where shadow rules leave the name of the policy that decided, behind their prefix.
const POLICY: &str = "shadow_effective_policy_id";

pub(super) fn decode(message: Message, place: &str, ignored: &mut Ignored) -> Result<ExtAuthz, Wrong> {
    for (is_set, field) in [
        (message.clear_route_cache, "clear_route_cache"),
        (message.include_peer_certificate, "include_peer_certificate"),
        (message.include_tls_session, "include_tls_session"),
        (message.failure_mode_allow_header_add, "failure_mode_allow_header_add"),
        (message.charge_cluster_response_stats.is_some(), "charge_cluster_response_stats"),
        (message.emit_filter_state_stats, "emit_filter_state_stats"),
        (!message.stat_prefix.is_empty(), "stat_prefix"),
    ] {
        if is_set {
            ignored.add(place, field);
        }
    }
    let mut allowed = message.allowed_headers.map(patterns).transpose().under("allowed_headers")?;
    let (service, timeout) = match message.services {
        None => return Err(wrong("services", "is missing or of a kind that is not supported")),
        Some(Services::GrpcService(service)) => grpc(service).under("grpc_service")?,
        Some(Services::HttpService(service)) => http(service, &mut allowed, place, ignored).under("http_service")?,
    };
    let status_on_error = match message.status_on_error.map(|status| status.code) {
        None | Some(0) => 403,
        Some(code @ 100..600) => code as u16,
        Some(code) => return Err(wrong("status_on_error", format!("{code} is no status"))),
    };
    let when = message.filter_enabled_metadata.map(|wanted| {
        let mesh_core::config::Condition::Metadata(value) = rbac::metadata(wanted)? else {
            return Err(wrong("", "is no condition on metadata"));
        };
        let key = value.path.first().filter(|_| value.path.len() == 1 && !value.invert && *value.filter == *rbac::RBAC);
        match (key.and_then(|key| key.strip_suffix(POLICY)), value.value) {
            (Some(prefix), ValueMatch::Text(policy)) => Ok(ShadowMatch { prefix: prefix.into(), policy }),
            _ => Err(wrong("", format!("can only ask for the text under `...{POLICY}` of {:?}", rbac::RBAC))),
        }
    });
    Ok(ExtAuthz {
        service,
        timeout,
        failure_allows: message.failure_mode_allow,
        status_on_error,
        allowed_headers: allowed,
        disallowed_headers: message
            .disallowed_headers
            .map(patterns)
            .transpose()
            .under("disallowed_headers")?
            .unwrap_or_default(),
        body: message.with_request_body.map(body).transpose().under("with_request_body")?,
        when: when.transpose().under("filter_enabled_metadata")?,
    })
}

fn body(message: BufferSettings) -> Result<ToldBody, Wrong> {
    let BufferSettings { max_request_bytes, allow_partial_message, pack_as_bytes } = message;
    match max_request_bytes {
        0 => Err(wrong("max_request_bytes", "must be greater than zero")),
        max_bytes => Ok(ToldBody { max_bytes, partial: allow_partial_message, as_bytes: pack_as_bytes }),
    }
}

fn grpc(message: GrpcService) -> Result<(AuthzService, Duration), Wrong> {
    if !message.initial_metadata.is_empty() {
        return Err(wrong("initial_metadata", "is not supported"));
    }
    let Some(TargetSpecifier::EnvoyGrpc(target)) = message.target_specifier else {
        return Err(wrong("target_specifier", "is missing or of a kind that is not supported"));
    };
    let timeout = value::positive(message.timeout, "timeout")?.unwrap_or(TIMEOUT);
    let cluster = named(target.cluster_name, "envoy_grpc.cluster_name")?;
    Ok((AuthzService::Grpc { cluster, authority: target.authority }, timeout))
}

fn http(
    message: HttpService,
    allowed: &mut Option<Vec<StringMatch>>,
    place: &str,
    ignored: &mut Ignored,
) -> Result<(AuthzService, Duration), Wrong> {
    let uri = message.server_uri.ok_or_else(|| wrong("server_uri", "is missing"))?;
    let Some(HttpUpstreamType::Cluster(cluster)) = uri.http_upstream_type else {
        return Err(wrong("server_uri.cluster", "is missing"));
    };
    let timeout = value::positive(uri.timeout, "server_uri.timeout")?.unwrap_or(TIMEOUT);
    let parsed = uri.uri.parse::<::http::Uri>().ok().and_then(|uri| uri.authority().map(ToString::to_string));
    let request = message.authorization_request.unwrap_or_default();
    if let Some(own) = request.allowed_headers {
        // The field that the filter's own replaced; that one has precedence.
        let own = patterns(own).under("authorization_request.allowed_headers")?;
        allowed.get_or_insert(own);
    }
    let response = message.authorization_response.unwrap_or_default();
    for (is_set, field) in [
        (response.allowed_upstream_headers_to_append.is_some(), "allowed_upstream_headers_to_append"),
        (response.allowed_client_headers_on_success.is_some(), "allowed_client_headers_on_success"),
    ] {
        if is_set {
            ignored.add(place, &format!("http_service.authorization_response.{field}"));
        }
    }
    let list = |list: Option<ListStringMatcher>, field: &str| {
        list.map(patterns).transpose().under(field).map(Option::unwrap_or_default)
    };
    let service = AuthzService::Http {
        cluster: named(cluster, "server_uri.cluster")?,
        authority: parsed.ok_or_else(|| wrong("server_uri.uri", format!("{:?} has no host", uri.uri)))?,
        path_prefix: message.path_prefix,
        add: request.headers_to_add.into_iter().map(|header| (header.key.into(), header.value)).collect(),
        to_upstream: list(response.allowed_upstream_headers, "authorization_response.allowed_upstream_headers")?,
        to_client: list(response.allowed_client_headers, "authorization_response.allowed_client_headers")?,
    };
    Ok((service, timeout))
}

fn named(cluster: String, field: &str) -> Result<Name, Wrong> {
    if cluster.is_empty() { Err(wrong(field, "is missing")) } else { Ok(cluster.into()) }
}

fn patterns(message: ListStringMatcher) -> Result<Vec<StringMatch>, Wrong> {
    message.patterns.into_iter().map(value::string).collect()
}

pub(super) fn encode(service: &ExtAuthz) -> Any {
    let list = |list: &[StringMatch]| ListStringMatcher { patterns: list.iter().map(value::encode_string).collect() };
    let some = |patterns: &[StringMatch]| (!patterns.is_empty()).then(|| list(patterns));
    let timeout = Some(value::encode_duration(service.timeout));
    let services = match &service.service {
        AuthzService::Grpc { cluster, authority } => Services::GrpcService(GrpcService {
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                cluster_name: cluster.to_string(),
                authority: authority.clone(),
            })),
            timeout,
            ..GrpcService::default()
        }),
        AuthzService::Http { cluster, authority, path_prefix, add, to_upstream, to_client } => {
            let header = |(key, value): &(Name, String)| HeaderValue {
                key: key.to_string(),
                value: value.clone(),
                ..HeaderValue::default()
            };
            let response = AuthorizationResponse {
                allowed_upstream_headers: some(to_upstream),
                allowed_client_headers: some(to_client),
                ..AuthorizationResponse::default()
            };
            Services::HttpService(HttpService {
                server_uri: Some(HttpUri {
                    uri: format!("http://{authority}"),
                    http_upstream_type: Some(HttpUpstreamType::Cluster(cluster.to_string())),
                    timeout,
                }),
                path_prefix: path_prefix.clone(),
                authorization_request: (!add.is_empty()).then(|| AuthorizationRequest {
                    headers_to_add: add.iter().map(header).collect(),
                    ..AuthorizationRequest::default()
                }),
                authorization_response: (response != AuthorizationResponse::default()).then_some(response),
            })
        }
    };
    let when = |when: &ShadowMatch| {
        rbac::encode_metadata(&mesh_core::config::MetadataMatch {
            filter: rbac::RBAC.into(),
            path: vec![format!("{}{POLICY}", when.prefix).into()],
            value: ValueMatch::Text(when.policy.clone()),
            invert: false,
        })
    };
    Any::pack(&Message {
        services: Some(services),
        failure_mode_allow: service.failure_allows,
        status_on_error: Some(HttpStatus { code: service.status_on_error.into() }),
        transport_api_version: ApiVersion::V3.into(),
        with_request_body: service.body.map(|body| BufferSettings {
            max_request_bytes: body.max_bytes,
            allow_partial_message: body.partial,
            pack_as_bytes: body.as_bytes,
        }),
        filter_enabled_metadata: service.when.as_ref().map(when),
        allowed_headers: service.allowed_headers.as_deref().map(list),
        disallowed_headers: some(&service.disallowed_headers),
        ..Message::default()
    })
}
