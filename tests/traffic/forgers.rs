//! A member of the mesh that is taken over, and says that it is another: by headers, and by an id that looks like the other's.

use std::sync::Arc;

use mesh_tower::{
    Mesh,
    config::{
        Action, Condition, Inbound, MtlsMode, RbacAction, RbacPolicy, RbacRules, RouteMatch, StringMatch, TlsMode,
        UpstreamTls,
    },
};
use tokio::net::TcpListener;

use crate::{
    asking::Authority,
    authorization::enforced,
    harness::{Kind, Program, cluster_at, config, route, to},
};

const ADMIN: &str = "spiffe://cluster.local/ns/default/sa/admin";

/// Ids that might be taken for the admin's by a prefix, a case or a part of them.
const LIKE_ADMIN: [&str; 7] = [
    "spiffe://cluster.local/ns/default/sa/reviews",
    "spiffe://cluster.local/ns/default/sa/admin2",
    "spiffe://cluster.local/ns/default/sa/admi",
    "spiffe://cluster.local/ns/default/sa/Admin",
    "spiffe://cluster.local/ns/default/sa/admin/x",
    "spiffe://cluster.local.evil.example/ns/default/sa/admin",
    "spiffe://evil.example/cluster.local/ns/default/sa/admin",
];

/// What somebody might believe.
const CLAIMS: [(&str, &str); 8] = [
    (
        "x-forwarded-client-cert",
        "By=spiffe://cluster.local/ns/default/sa/app;URI=spiffe://cluster.local/ns/default/sa/admin",
    ),
    ("x-envoy-peer-metadata-id", "sidecar~10.0.0.1~admin.default~default.svc.cluster.local"),
    ("x-envoy-peer-metadata", "ChIKBE5BTUUSChoIYWRtaW4tdjE="),
    ("x-envoy-internal", "true"),
    ("x-envoy-original-path", "/public"),
    ("x-envoy-decorator-operation", "admin"),
    ("x-istio-attributes", "admin"),
    ("x-real-ip", "10.0.0.1"),
];

fn by(action: RbacAction) -> RbacRules {
    let exact = StringMatch::Exact { value: ADMIN.to_owned(), ignore_case: false };
    let policy = RbacPolicy { permissions: vec![Condition::Any], principals: vec![Condition::Peer(Some(exact))] };
    RbacRules { action, policies: [("admin".into(), policy)].into(), audit: Default::default() }
}

/// AN5, AZ3: a member is who its certificate says and nobody else, whatever it writes, over HTTP/1.1, HTTP/2 and gRPC: neither does it
/// get in where another may, nor is another's refusal its own; and the application is not told what it says of itself.
#[tokio::test]
async fn members_are_who_their_certificates_say() {
    let ca = Authority::new();
    for kind in Kind::ALL {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut own = config([], vec![]);
        let policy =
            |action| Inbound { mtls: MtlsMode::Strict, guards: vec![enforced(by(action))], ..Inbound::default() };
        own.inbound.insert(address.port(), Arc::new(policy(RbacAction::Allow)));
        let server =
            Mesh::builder().config(own.clone()).identity(ca.identity_of("spiffe://cluster.local/ns/default/sa/app"));
        let server = server.build().await.unwrap();
        let handler = axum::Router::new().fallback(|headers: http::HeaderMap| async move {
            let told = CLAIMS.iter().take(3).any(|(name, _)| headers.contains_key(*name));
            [("grpc-status", "0"), ("x-told", if told { "yes" } else { "no" })]
        });
        let serving = server.clone();
        tokio::spawn(async move { drop(serving.serve_listener(listener, handler).await) });
        let ask = async |id: &str| {
            let tls = UpstreamTls { workload_identity: true, ..UpstreamTls::default() };
            let app = StringMatch::Prefix { value: "spiffe://cluster.local/".to_owned(), ignore_case: false };
            let tls = UpstreamTls { subject_alt_names: vec![app], ..tls };
            let mut target = cluster_at(kind, "app", &[address]);
            target.tls = TlsMode::Always(Arc::new(tls));
            let routes = vec![route(RouteMatch::default(), Action::Forward(to("app")))];
            let mesh = Mesh::builder().config(config([target], routes)).identity(ca.identity_of(id)).build().await;
            Program::over(kind, mesh.unwrap()).get_with("/a.B/C", &CLAIMS).await
        };
        let admin = ask(ADMIN).await;
        assert!(admin.is_ok() && admin.header("x-told") == "no", "{kind:?}: {admin:?}");
        for id in LIKE_ADMIN {
            let answer = ask(id).await;
            // Of another trust domain there is no connection.
            assert!(answer.is(kind, 403) || answer.is(kind, 503), "{kind:?} {id}: {answer:?}");
        }
        own.inbound.insert(address.port(), Arc::new(policy(RbacAction::Deny)));
        server.live().update(&own).unwrap();
        assert!(ask(ADMIN).await.is(kind, 403), "{kind:?}");
        assert!(ask(LIKE_ADMIN[0]).await.is_ok(), "{kind:?}");
    }
}
