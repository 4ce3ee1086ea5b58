//! Rules with every condition, and services that are asked.

use std::{sync::Arc, time::Duration};

use mesh_core::config::*;

use super::{exact, regex};

/// A port of each mode, and every port.
pub(super) const PORTS: [(u16, MtlsMode); 4] =
    [(EVERY_PORT, MtlsMode::Strict), (9080, MtlsMode::Strict), (9090, MtlsMode::Permissive), (9091, MtlsMode::Disable)];

/// How much a connection may take.
pub(super) fn limits() -> HttpLimits {
    HttpLimits {
        max_headers: 50,
        max_head_kb: 30,
        max_body: Some(9_000),
        max_streams: 5,
        stream_window: Some(70_000),
        connection_window: Some(700_000),
    }
}

/// One of everything that requests must pass.
pub(super) fn guards() -> Vec<Guard> {
    vec![
        Guard::Rbac(Arc::new(Rbac {
            rules: None,
            shadow: Some(rules(RbacAction::Deny, AuditCondition::None)),
            shadow_prefix: "istio_ext_authz_".into(),
        })),
        Guard::ExtAuthz(Arc::new(service(AuthzService::Http {
            cluster: "outbound|8000||authz".into(),
            authority: "authz.default".into(),
            path_prefix: "/check".into(),
            add: vec![("x-asked".into(), "yes".into())],
            to_upstream: vec![exact("x-user")],
            to_client: vec![exact("x-why")],
        }))),
        Guard::ExtAuthz(Arc::new(service(AuthzService::Grpc {
            cluster: "outbound|9000||authz".into(),
            authority: "authz.default".into(),
        }))),
        Guard::Rbac(Arc::new(Rbac { rules: Some(rules(RbacAction::Log, AuditCondition::None)), ..Rbac::default() })),
        Guard::Rbac(Arc::new(Rbac {
            rules: Some(rules(RbacAction::Allow, AuditCondition::OnDenyAndAllow)),
            ..Rbac::default()
        })),
    ]
}

fn rules(action: RbacAction, audit: AuditCondition) -> RbacRules {
    let header = HeaderMatch {
        name: ":method".into(),
        matcher: HeaderMatcher::Value(exact("GET")),
        invert: true,
        missing_as_empty: true,
    };
    let metadata = |value| {
        Condition::Metadata(MetadataMatch {
            filter: "envoy.filters.http.jwt_authn".into(),
            path: vec!["payload".into(), "iss".into()],
            value,
            invert: true,
        })
    };
    let shared = vec![
        Condition::Any,
        Condition::All(vec![Condition::Any, Condition::Header(header)]),
        Condition::One(vec![Condition::Path(StringMatch::Regex(regex("/a.*")))]),
        Condition::Not(Box::new(Condition::Any)),
        metadata(ValueMatch::Null),
        metadata(ValueMatch::Range { start: 1.0, end: 2.5 }),
        metadata(ValueMatch::Number(3.0)),
        metadata(ValueMatch::Bool(true)),
        metadata(ValueMatch::Present(true)),
        metadata(ValueMatch::Or(vec![
            ValueMatch::Text(exact("i")),
            ValueMatch::OneOf(Box::new(ValueMatch::Text(exact("i")))),
        ])),
    ];
    let of_what = [
        Condition::DestinationIp("10.0.0.0/8".parse().unwrap()),
        Condition::DestinationPort(9080),
        Condition::DestinationPorts { start: 1, end: 65536 },
        Condition::ServerName(exact("a.example.com")),
    ];
    let of_whom = [
        Condition::Peer(None),
        Condition::Peer(Some(exact("spiffe://cluster.local/ns/a/sa/b"))),
        Condition::DirectIp("::1/128".parse().unwrap()),
        Condition::RemoteIp("192.0.2.0/24".parse().unwrap()),
    ];
    let policy = RbacPolicy {
        permissions: shared.iter().cloned().chain(of_what).collect(),
        principals: shared.into_iter().chain(of_whom).collect(),
    };
    let policies = [("ns[a]-policy[b]-rule[0]".into(), policy)].into();
    RbacRules { action, policies, audit }
}

fn service(service: AuthzService) -> ExtAuthz {
    ExtAuthz {
        service,
        timeout: Duration::from_secs(600),
        failure_allows: true,
        status_on_error: 503,
        allowed_headers: Some(vec![exact("x-tell")]),
        disallowed_headers: vec![exact("x-secret")],
        body: Some(ToldBody { max_bytes: 8192, partial: true, as_bytes: true }),
        when: Some(ShadowMatch {
            prefix: "istio_ext_authz_".into(),
            policy: StringMatch::Prefix { value: "istio-ext-authz".into(), ignore_case: false },
        }),
    }
}
