//! Rules in tables: every condition by itself, what is unknown under everything, actions, and the order of guards.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::IpAddr;

use http::request::Parts;

use super::*;
use crate::{
    admit::Admit,
    claims::{Claims, PAYLOAD},
    config::{
        AuthzService, Condition, Config, ExtAuthz, HeaderMatch, HeaderMatcher, Inbound, MetadataMatch, MtlsMode,
        RbacPolicy, RbacRules, ShadowMatch, StringMatch, ValueMatch,
    },
    identity::SpiffeId,
    request::RequestView,
    snapshot::Snapshot,
};

fn exact(value: &str) -> StringMatch {
    StringMatch::Exact { value: value.to_owned(), ignore_case: false }
}

fn header(name: &str, matcher: HeaderMatcher) -> Condition {
    Condition::Header(HeaderMatch { name: name.into(), matcher, invert: false, missing_as_empty: false })
}

fn is(name: &str, value: &str) -> Condition {
    header(name, HeaderMatcher::Value(exact(value)))
}

fn not(condition: Condition) -> Condition {
    Condition::Not(Box::new(condition))
}

fn unknown() -> Condition {
    Condition::Undecidable("filter_state".to_owned())
}

fn rules(action: RbacAction, policies: Vec<(&str, Vec<Condition>, Vec<Condition>)>) -> RbacRules {
    let policies = policies
        .into_iter()
        .map(|(name, permissions, principals)| (name.into(), RbacPolicy { permissions, principals }));
    RbacRules { action, policies: policies.collect(), audit: AuditCondition::None }
}

fn request(path: &str, headers: &[(&str, &[u8])]) -> Parts {
    let mut builder = http::Request::get(format!("http://reviews:9080{path}"));
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

fn enforce(rules: RbacRules) -> Arc<Engine> {
    compile(&Rbac { rules: Some(rules), ..Rbac::default() }).unwrap()
}

/// What an ALLOW of the condition says, and a DENY.
fn judged(condition: &Condition, view: &InboundView<'_>) -> (bool, bool) {
    let by = |action| {
        let policies = vec![("p", vec![condition.clone()], vec![Condition::Any])];
        enforce(rules(action, policies)).decide(view, &mut Heard::default()).allowed
    };
    (by(RbacAction::Allow), by(RbacAction::Deny))
}

const MET: (bool, bool) = (true, false);
const NOT_MET: (bool, bool) = (false, true);
const UNKNOWN: (bool, bool) = (false, false);

/// AZ3, AZ4: every condition, met and not met.
#[test]
fn conditions() {
    let parts = request("/a/b?c=d", &[("x", b"1"), ("x", b"two"), ("n", b"5")]);
    let peer: SpiffeId = "spiffe://cluster.local/ns/default/sa/a".parse().unwrap();
    let mut claims = Claims::default();
    claims.insert(PAYLOAD, serde_json::from_str(r#"{"iss": "i", "aud": ["a", "b"], "n": 3, "t": true}"#).unwrap());
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let mut view = InboundView::of(9080, RequestView::of(&parts, Some(9080)));
    view.peer = Some(&peer);
    view.claims = Some(&claims);
    view.local = Some(ip("10.0.0.9"));
    view.request.source = Some(ip("10.1.0.1"));
    view.remote = Some(ip("192.0.2.1"));
    let net = |text: &str| text.parse().unwrap();
    let claim = |path: &[&str], value| {
        let path = std::iter::once(PAYLOAD).chain(path.iter().copied()).map(Into::into).collect();
        Condition::Metadata(MetadataMatch { filter: crate::claims::JWT_METADATA.into(), path, value, invert: false })
    };
    let elsewhere = |filter: &str| {
        let value = ValueMatch::Present(true);
        Condition::Metadata(MetadataMatch { filter: filter.into(), path: vec!["x".into()], value, invert: false })
    };
    for (condition, expected) in [
        (Condition::Any, MET),
        (Condition::All(vec![]), MET),
        (Condition::One(vec![]), NOT_MET),
        (Condition::All(vec![Condition::Any, not(Condition::Any)]), NOT_MET),
        (Condition::One(vec![not(Condition::Any), Condition::Any]), MET),
        (Condition::Path(exact("/a/b")), MET),
        (Condition::Path(exact("/a/b?c=d")), NOT_MET),
        (is(":path", "/a/b?c=d"), MET),
        (is(":method", "GET"), MET),
        (is(":method", "get"), NOT_MET),
        (is(":authority", "reviews:9080"), MET),
        (is("host", "reviews:9080"), MET),
        (is("X", "two"), MET),
        (is("x", "1,two"), NOT_MET),
        (is("y", ""), NOT_MET),
        (not(is("y", "")), MET),
        (header("y", HeaderMatcher::Present(false)), MET),
        (header("n", HeaderMatcher::Range { start: 5, end: 6 }), MET),
        (Condition::DestinationPort(9080), MET),
        (Condition::DestinationPort(9081), NOT_MET),
        (Condition::DestinationPorts { start: 9000, end: 9080 }, NOT_MET),
        (Condition::DestinationPorts { start: 9080, end: 65536 }, MET),
        (Condition::DestinationIp(net("10.0.0.0/24")), MET),
        (Condition::DirectIp(net("10.1.0.0/16")), MET),
        (Condition::DirectIp(net("192.0.2.0/24")), NOT_MET),
        (Condition::RemoteIp(net("192.0.2.0/24")), MET),
        (Condition::RemoteIp(net("::/0")), NOT_MET),
        (Condition::ServerName(exact("")), MET),
        (Condition::Peer(None), MET),
        (Condition::Peer(Some(exact(peer.as_str()))), MET),
        (Condition::Peer(Some(exact("spiffe://cluster.local/ns/default/sa/aa"))), NOT_MET),
        (claim(&["iss"], ValueMatch::Text(exact("i"))), MET),
        (claim(&["iss"], ValueMatch::OneOf(Box::new(ValueMatch::Text(exact("i"))))), NOT_MET),
        (claim(&["aud"], ValueMatch::OneOf(Box::new(ValueMatch::Text(exact("b"))))), MET),
        (claim(&["n"], ValueMatch::Number(3.0)), MET),
        (claim(&["n"], ValueMatch::Range { start: 1.0, end: 3.0 }), NOT_MET),
        (claim(&["t"], ValueMatch::Bool(true)), MET),
        (claim(&["no"], ValueMatch::Present(true)), NOT_MET),
        (claim(&["no"], ValueMatch::Or(vec![ValueMatch::Null, ValueMatch::Present(true)])), NOT_MET),
        (elsewhere("envoy.filters.http.other"), NOT_MET),
        (not(elsewhere("envoy.filters.http.other")), MET),
        (elsewhere("envoy.filters.http.ext_authz"), UNKNOWN),
    ] {
        assert_eq!(judged(&condition, &view), expected, "{condition:?}");
    }
    let stranger = InboundView { peer: None, ..view };
    assert_eq!(judged(&Condition::Peer(None), &stranger), NOT_MET);
    assert_eq!(judged(&not(Condition::Peer(Some(exact("x")))), &stranger), MET, "plaintext is not that principal");
}

/// AZ1: nothing that hangs on what cannot be decided is allowed, or escapes a denial, also turned round; what is decided
/// without it is.
#[test]
fn what_cannot_be_decided_is_denied() {
    let parts = request("/", &[("x", b"\xff")]);
    let view = InboundView::of(9080, RequestView::of(&parts, Some(9080)));
    let no = || not(Condition::Any);
    let net = || "0.0.0.0/0".parse().unwrap();
    for (condition, expected) in [
        (unknown(), UNKNOWN),
        (not(unknown()), UNKNOWN),
        (not(not(unknown())), UNKNOWN),
        (Condition::All(vec![unknown(), Condition::Any]), UNKNOWN),
        (Condition::All(vec![unknown(), no()]), NOT_MET),
        (Condition::One(vec![unknown(), no()]), UNKNOWN),
        (Condition::One(vec![unknown(), Condition::Any]), MET),
        (not(Condition::All(vec![unknown(), Condition::Any])), UNKNOWN),
        (is("x", "a"), UNKNOWN),
        (not(is("x", "a")), UNKNOWN),
        (header("x", HeaderMatcher::Present(true)), MET),
        (header("x", HeaderMatcher::Range { start: 0, end: 1 }), UNKNOWN),
        (Condition::DestinationIp(net()), UNKNOWN),
        (Condition::DirectIp(net()), UNKNOWN),
        (not(Condition::RemoteIp(net())), UNKNOWN),
    ] {
        assert_eq!(judged(&condition, &view), expected, "{condition:?}");
    }
    let two = enforce(rules(
        RbacAction::Allow,
        vec![("a", vec![unknown()], vec![Condition::Any]), ("b", vec![Condition::Any], vec![Condition::Any])],
    ));
    let verdict = two.decide(&view, &mut Heard::default());
    assert_eq!((verdict.allowed, verdict.policy.as_deref(), verdict.unknown), (true, Some("b"), false));
}

/// AZ1, AZ2: what every combination of nothing means, and that any permission and any principal are needed.
#[test]
fn empty_rules_and_alternatives() {
    let parts = request("/", &[]);
    let view = InboundView::of(9080, RequestView::of(&parts, Some(9080)));
    let decide = |rules: Option<RbacRules>| {
        let engine = compile(&Rbac { rules, ..Rbac::default() }).unwrap();
        engine.decide(&view, &mut Heard::default()).allowed
    };
    let (yes, no) = (|| Condition::Any, || not(Condition::Any));
    for (action, policies, expected) in [
        (RbacAction::Allow, vec![], false),
        (RbacAction::Deny, vec![], true),
        (RbacAction::Log, vec![], true),
        (RbacAction::Allow, vec![("p", vec![], vec![])], false),
        (RbacAction::Deny, vec![("p", vec![], vec![yes()])], true),
        (RbacAction::Allow, vec![("p", vec![no(), yes()], vec![no(), yes()])], true),
        (RbacAction::Allow, vec![("p", vec![yes()], vec![no()])], false),
        (RbacAction::Deny, vec![("p", vec![yes()], vec![no()]), ("q", vec![yes()], vec![yes()])], false),
        (RbacAction::Log, vec![("p", vec![yes()], vec![yes()])], true),
    ] {
        let rules = rules(action, policies);
        assert_eq!(decide(Some(rules.clone())), expected, "{rules:?}");
    }
    assert!(decide(None), "rules that are not there let everybody pass");
}

/// AZ2, AZ6, AZ7, AZ8: guards are asked in order, what is only tried out or told changes nothing, and a service is asked where
/// shadow rules say so.
#[test]
fn guards_are_asked_in_order() {
    let guard = |rules: Option<RbacRules>, shadow: Option<RbacRules>| {
        config::Guard::Rbac(Arc::new(Rbac { rules, shadow, shadow_prefix: "try_".into() }))
    };
    let on = |path: &str| vec![Condition::Path(exact(path))];
    let policy = |name: &'static str, path: &str| vec![(name, on(path), vec![Condition::Any])];
    let service = ExtAuthz {
        service: AuthzService::Grpc { cluster: "authz".into(), authority: String::new() },
        timeout: std::time::Duration::from_secs(1),
        failure_allows: false,
        status_on_error: 403,
        allowed_headers: None,
        disallowed_headers: Vec::new(),
        body: None,
        when: Some(ShadowMatch { prefix: "try_".into(), policy: exact("custom") }),
    };
    let mut audited = rules(RbacAction::Allow, policy("allow", "/ok"));
    audited.policies.extend(rules(RbacAction::Allow, policy("asked", "/asked")).policies);
    audited.audit = AuditCondition::OnDeny;
    let guards = vec![
        guard(None, Some(rules(RbacAction::Allow, policy("custom", "/asked")))),
        config::Guard::ExtAuthz(Arc::new(service)),
        guard(Some(rules(RbacAction::Log, policy("log", "/ok"))), None),
        guard(Some(rules(RbacAction::Deny, policy("deny", "/no"))), None),
        guard(Some(audited), None),
    ];
    let inbound = Inbound { mtls: MtlsMode::Disable, guards, ..Inbound::default() };
    let config = Config { inbound: [(9080, Arc::new(inbound))].into(), ..Config::default() };
    let snapshot = Snapshot::compile(&config, None).unwrap();
    let again = Snapshot::compile(&config, Some(&snapshot)).unwrap();
    assert!(std::ptr::eq(snapshot.guards(9080), again.guards(9080)), "what did not change is not compiled again");

    let admit = |path: &str, from| {
        let parts = request(path, &[]);
        let mut heard = Heard::default();
        let admitted = snapshot.admit(&InboundView::of(9080, RequestView::of(&parts, Some(9080))), from, &mut heard);
        let kinds: Vec<_> = heard.notes.iter().map(|note| (note.kind, note.verdict.policy.clone())).collect();
        (admitted, kinds)
    };
    let (admitted, notes) = admit("/ok", 0);
    assert_eq!(admitted, Admit::Allow);
    assert_eq!(notes, [(NoteKind::Shadow, None), (NoteKind::Log, Some("log".into()))]);
    assert_eq!(admit("/asked", 0).0, Admit::Ask { at: 1 });
    assert_eq!(admit("/asked", 2).0, Admit::Allow);
    for (path, policy) in [("/no", "deny"), ("/else", "none")] {
        let (admitted, notes) = admit(path, 0);
        let Admit::Refuse { status: 403, reason, details, .. } = admitted else { panic!("{admitted:?}") };
        assert_eq!(reason, "RBAC: access denied");
        assert_eq!(details, format!("rbac_access_denied_matched_policy[{policy}]"));
        assert_eq!(notes.last().map(|(kind, _)| *kind == NoteKind::Audit), Some(policy == "none"));
    }
}

/// SV9, AZ4: the caller's address is believed of as many proxies as are trusted; else of members of the mesh, and of nobody in
/// plaintext.
#[test]
fn forwarded_addresses_are_believed_by_trust() {
    let parts = request("/", &[("x-forwarded-for", b"192.0.2.1, 192.0.2.2"), ("x-forwarded-for", b"192.0.2.3")]);
    let direct: IpAddr = "10.0.0.1".parse().unwrap();
    let (garbage, none) = (request("/", &[("x-forwarded-for", b"192.0.2.1,unknown")]), request("/", &[]));
    for (parts, hops, member, expected) in [
        (&parts, None, false, Some("10.0.0.1")),
        (&parts, None, true, Some("192.0.2.3")),
        (&none, None, true, Some("10.0.0.1")),
        (&garbage, None, true, None),
        (&garbage, None, false, Some("10.0.0.1")),
        (&parts, Some(0), false, Some("192.0.2.3")),
        (&parts, Some(2), true, Some("192.0.2.1")),
        (&parts, Some(3), false, Some("10.0.0.1")),
        (&garbage, Some(0), false, None),
    ] {
        let inbound = Inbound { trusted_hops: hops, ..Inbound::default() };
        let expected: Option<IpAddr> = expected.map(|text| text.parse().unwrap());
        assert_eq!(inbound.remote(direct, member, &parts.headers), expected, "{hops:?} {member}");
    }
    // Where gateways are known they alone are believed, behind proxies too.
    let edge = "spiffe://cluster.local/ns/istio-system/sa/edge";
    for trusted_hops in [None, Some(0)] {
        let inbound = Inbound { trusted_hops, forwarders: Some(vec![edge.to_owned()]), ..Inbound::default() };
        let from = |peer| inbound.remote(direct, inbound.believes(peer), &parts.headers);
        assert_ne!(from(Some(edge)), Some(direct), "{trusted_hops:?}");
        for other in [None, Some("spiffe://cluster.local/ns/default/sa/reviews")] {
            assert_eq!(from(other), Some(direct), "{trusted_hops:?} {other:?}");
        }
    }
    let alone = Inbound { members_forward: false, ..Inbound::default() };
    assert_eq!(alone.remote(direct, true, &parts.headers), Some(direct));
}
