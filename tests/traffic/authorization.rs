//! Who may ask what of a server: rules, what they cannot decide, and services that are asked.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mesh_tower::{
    Mesh,
    config::{
        Action, AuthzService, Condition, ExtAuthz, Guard, HeaderMatch, HeaderMatcher, Inbound, MtlsMode,
        PathNormalization, Rbac, RbacAction, RbacPolicy, RbacRules, RouteMatch, ShadowMatch, StringMatch,
    },
};
use tokio::net::TcpListener;

use crate::harness::{Arrival, Kind, Program, Reply, Upstream, cluster, cluster_at, config, route, to};

pub(crate) fn starts(path: &str) -> Condition {
    Condition::Path(StringMatch::Prefix { value: path.to_owned(), ignore_case: false })
}

pub(crate) fn header(name: &str, value: &str) -> Condition {
    let value = StringMatch::Exact { value: value.to_owned(), ignore_case: false };
    let matcher = HeaderMatcher::Value(value);
    Condition::Header(HeaderMatch { name: name.into(), matcher, invert: false, missing_as_empty: false })
}

/// Rules of one policy: whom it matches, by what is asked.
pub(crate) fn rules(action: RbacAction, name: &str, permissions: Vec<Condition>) -> RbacRules {
    let policy = RbacPolicy { permissions, principals: vec![Condition::Any] };
    RbacRules { action, policies: [(name.into(), policy)].into(), audit: Default::default() }
}

pub(crate) fn enforced(rules: RbacRules) -> Guard {
    Guard::Rbac(Arc::new(Rbac { rules: Some(rules), ..Rbac::default() }))
}

/// A server in plaintext whose requests must pass these, and that asks `authz` where it has to ask.
pub(crate) async fn guarded(
    kind: Kind,
    authz: &Upstream,
    path: PathNormalization,
    guards: Vec<Guard>,
) -> (Upstream, SocketAddr, Mesh) {
    guarded_by(kind, kind, authz, path, guards).await
}

/// The same, where the one asked is spoken to otherwise.
pub(crate) async fn guarded_by(
    kind: Kind,
    asked: Kind,
    authz: &Upstream,
    path: PathNormalization,
    guards: Vec<Guard>,
) -> (Upstream, SocketAddr, Mesh) {
    let app = Upstream::start("app").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = vec![route(RouteMatch::default(), Action::Forward(to("app")))];
    let mut own = config([cluster(asked, "authz", &[authz]), cluster(kind, "app", &[&app])], routes);
    let inbound = Inbound { mtls: MtlsMode::Disable, guards, path, ..Inbound::default() };
    own.inbound.insert(address.port(), Arc::new(inbound));
    let mesh = Mesh::builder().config(own).build().await.unwrap();
    let (serving, client) = (mesh.clone(), mesh.http());
    tokio::spawn(async move {
        let handler = tower::service_fn(move |request: http::Request<mesh_tower::server::RequestBody>| {
            let client = client.clone();
            async move {
                // On to the program that writes down what arrived.
                let (mut parts, body) = request.into_parts();
                let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
                parts.uri = format!("http://app{path}").parse().unwrap();
                parts.headers.remove("host");
                client.request(http::Request::from_parts(parts, body)).await
            }
        });
        serving.serve_listener(listener, handler).await
    });
    (app, address, mesh)
}

pub(crate) async fn caller(kind: Kind, address: SocketAddr) -> Program {
    Program::new(
        kind,
        config([cluster_at(kind, "app", &[address])], vec![route(RouteMatch::default(), Action::Forward(to("app")))]),
    )
    .await
}

/// AZ1, AZ2, AZ3: rules are enforced in their order, refusals are 403 or PERMISSION_DENIED, and what is refused never arrives.
#[tokio::test]
async fn rules_are_enforced() {
    let public = rules(RbacAction::Allow, "public", vec![starts("/public"), starts("/a.B/")]);
    let guards = vec![enforced(rules(RbacAction::Deny, "admins", vec![header("x-role", "admin")])), enforced(public)];
    for kind in Kind::ALL {
        let nobody = Upstream::start("authz").await;
        let (app, address, _mesh) = guarded(kind, &nobody, PathNormalization::BASE, guards.clone()).await;
        let program = caller(kind, address).await;
        assert!(program.get("/public").await.is_ok(), "{kind:?}");
        assert!(program.get("/a.B/C").await.is_ok(), "{kind:?}");
        for (path, headers) in [("/other", &[][..]), ("/public", &[("x-role", "admin")])] {
            let answer = program.get_with(path, headers).await;
            assert!(answer.is(kind, 403), "{kind:?} {path}");
            if kind.is_grpc() {
                assert_eq!(answer.grpc, Some(7), "PERMISSION_DENIED");
            }
        }
        assert_eq!(app.count(), 2, "{kind:?}");
    }
}

/// AZ1, AZ4: what cannot be decided is refused whether it would allow or deny, and also turned round.
#[tokio::test]
async fn what_cannot_be_decided_is_refused() {
    let strange = || Condition::Undecidable("filter_state".to_owned());
    for kind in Kind::ALL {
        for (action, condition) in [
            (RbacAction::Allow, strange()),
            (RbacAction::Deny, strange()),
            (RbacAction::Deny, Condition::Not(Box::new(strange()))),
        ] {
            let nobody = Upstream::start("authz").await;
            let guards = vec![enforced(rules(action, "strange", vec![condition]))];
            let (app, address, _mesh) = guarded(kind, &nobody, PathNormalization::BASE, guards).await;
            let answer = caller(kind, address).await.get("/a.B/C").await;
            assert!(answer.is(kind, 403), "{kind:?} {action:?}");
            assert_eq!(app.count(), 0);
        }
    }
}

/// AZ6, AZ7: rules that are only tried out, or only tell, let everything pass.
#[tokio::test]
async fn what_is_tried_out_changes_nothing() {
    let nothing = rules(RbacAction::Allow, "nothing", vec![Condition::Not(Box::new(Condition::Any))]);
    let tried = Rbac { shadow: Some(nothing), shadow_prefix: "istio_dry_run_allow_".into(), ..Rbac::default() };
    let guards = vec![Guard::Rbac(Arc::new(tried)), enforced(rules(RbacAction::Log, "audit", vec![Condition::Any]))];
    for kind in Kind::ALL {
        let nobody = Upstream::start("authz").await;
        let (app, address, _mesh) = guarded(kind, &nobody, PathNormalization::BASE, guards.clone()).await;
        assert!(caller(kind, address).await.get("/a.B/C").await.is_ok(), "{kind:?}");
        assert_eq!(app.count(), 1);
    }
}

fn service(failure_allows: bool) -> ExtAuthz {
    ExtAuthz {
        service: AuthzService::Http {
            cluster: "authz".into(),
            authority: "authz".to_owned(),
            path_prefix: "/check".to_owned(),
            add: vec![("x-asked".into(), "yes".to_owned()), ("X-Tell-Own".into(), "operator".to_owned())],
            to_upstream: vec![StringMatch::Exact { value: "x-user".to_owned(), ignore_case: false }],
            to_client: Vec::new(),
        },
        timeout: Duration::from_secs(5),
        failure_allows,
        status_on_error: 403,
        allowed_headers: Some(vec![StringMatch::Prefix { value: "x-tell".to_owned(), ignore_case: false }]),
        disallowed_headers: Vec::new(),
        body: None,
        when: Some(ShadowMatch {
            prefix: "istio_ext_authz_".into(),
            policy: StringMatch::Prefix { value: "istio-ext-authz".to_owned(), ignore_case: false },
        }),
    }
}

/// AZ8: a service is asked of the requests it is for, its word counts, its headers arrive, and without an answer nobody passes
/// unless it may fail open.
#[tokio::test]
async fn services_are_asked() {
    for kind in [Kind::Http1, Kind::Http2] {
        let authz = Upstream::scripted("authz", |_, arrival: &Arrival| match arrival.header("x-tell-user").as_str() {
            "jason" => Reply::ok().header("x-user", "jason"),
            "broken" => Reply::status(503),
            _ => Reply::status(401).header("www-authenticate", "Bearer"),
        })
        .await;
        for open in [false, true] {
            let asked = rules(RbacAction::Deny, "istio-ext-authz-ns[a]-policy[b]-rule[0]", vec![starts("/asked")]);
            let shadow = Rbac { shadow: Some(asked), shadow_prefix: "istio_ext_authz_".into(), ..Rbac::default() };
            let guards = vec![Guard::Rbac(Arc::new(shadow)), Guard::ExtAuthz(Arc::new(service(open)))];
            let (app, address, _mesh) = guarded(kind, &authz, PathNormalization::BASE, guards).await;
            let program = caller(kind, address).await;
            let before = authz.count();
            assert!(program.get("/free").await.is_ok());
            assert_eq!(authz.count(), before, "nobody is asked");
            let user = |name: &'static str| {
                [("x-tell-user", name), ("x-user", "forged"), ("x-other", "secret"), ("x-tell-own", "forged")]
            };
            assert!(program.get_with("/asked?q", &user("jason")).await.is_ok(), "{kind:?}");
            assert_eq!(app.last().header("x-user"), "jason", "the service's word replaces the caller's");
            let asked = authz.last();
            assert_eq!((asked.path.as_str(), asked.header("x-asked").as_str()), ("/check/asked?q", "yes"));
            assert_eq!(asked.header("x-other"), "", "only what is allowed is told");
            assert_eq!(asked.header("x-tell-own"), "operator", "the caller adds nothing to what the operator says");
            let refused = program.get_with("/asked", &user("nobody")).await;
            assert_eq!((refused.status, refused.header("www-authenticate").as_str()), (401, "Bearer"));
            let without = program.get_with("/asked", &user("broken")).await;
            assert_eq!(without.status, if open { 200 } else { 403 }, "{kind:?} {open}");
        }
    }
}
