//! What a server asks others before it lets a request in, what it tells of its decisions, and which server a caller lets in
//! its turn: authorization services over gRPC, the audit log, doors closed by default, and the identity of servers.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::Request;
use mesh_tower::{
    Mesh,
    config::{
        Action, AuditCondition, AuthzService, Condition, ExtAuthz, Guard, Inbound, MtlsMode, PathNormalization,
        RbacAction, RouteMatch, StringMatch, TlsMode, TlsVersions, UpstreamTls,
    },
    tls::Identity,
};
use mesh_xds::proto::{
    Status,
    envoy::{
        config::core::v3::{HeaderValue, HeaderValueOption},
        service::auth::v3::{
            CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse, check_response::HttpResponse,
        },
        r#type::v3::HttpStatus,
    },
};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use tokio::{net::TcpListener, sync::Semaphore};
use tracing_subscriber::{Layer, layer::SubscriberExt};

use crate::{
    authorization::{caller, enforced, guarded_by, rules, starts},
    harness::{Arrival, Kind, Program, Reply, Upstream, cluster_at, config, route, to},
};

fn option(key: &str, value: &str, append: bool) -> HeaderValueOption {
    let header = HeaderValue { key: key.into(), value: value.into(), ..HeaderValue::default() };
    HeaderValueOption { header: Some(header), append: Some(append), ..HeaderValueOption::default() }
}

pub(crate) fn said(code: i32, response: Option<HttpResponse>) -> Reply {
    let status = Some(Status { code, ..Status::default() });
    let message = CheckResponse { status, http_response: response };
    Reply::ok().message(Box::leak(message.encode_to_vec().into_boxed_slice()))
}

/// A service that goes by what the caller says it is to say.
async fn authority() -> Upstream {
    let never = Arc::new(Semaphore::new(0));
    Upstream::scripted("authz", move |_, arrival: &Arrival| {
        let asked = CheckRequest::decode(&*arrival.body).unwrap().attributes.unwrap();
        let http = asked.request.unwrap().http.unwrap();
        match http.headers.get("x-say").map(String::as_str) {
            Some("yes") => said(
                0,
                Some(HttpResponse::OkResponse(OkHttpResponse {
                    headers: vec![
                        option("x-user", "jason", false),
                        option("x-group", "b", true),
                        option("host", "elsewhere", false),
                        option(":path", "/elsewhere", false),
                    ],
                    headers_to_remove: vec!["x-say".to_owned(), "host".to_owned()],
                    ..OkHttpResponse::default()
                })),
            ),
            Some("plain yes") => said(0, None),
            Some("no") => said(
                7,
                Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
                    status: Some(HttpStatus { code: 401 }),
                    headers: vec![option("www-authenticate", "Bearer", false)],
                    body: "who are you?".to_owned(),
                })),
            ),
            Some("plain no") => said(16, None),
            Some("silence") => said(0, None).when(&never),
            Some("failure") => Reply::grpc(13),
            Some("gone") => Reply::broken(),
            _ => Reply::ok().message(b"\xff\xff"),
        }
    })
    .await
}

fn service(failure_allows: bool) -> Guard {
    Guard::ExtAuthz(Arc::new(ExtAuthz {
        service: AuthzService::Grpc { cluster: "authz".into(), authority: "authz.example".to_owned() },
        timeout: Duration::from_millis(500),
        failure_allows,
        status_on_error: 503,
        allowed_headers: None,
        disallowed_headers: vec![StringMatch::Exact { value: "x-secret".to_owned(), ignore_case: false }],
        body: None,
        when: None,
    }))
}

/// AZ8: a service is asked over gRPC, of a request over any protocol; its yes changes headers and neither host nor path, its no is
/// what the caller hears, and without an answer in time nobody passes unless it may fail open.
#[tokio::test]
async fn services_are_asked_over_grpc() {
    for kind in Kind::ALL {
        let authz = authority().await;
        let (app, address, _mesh) =
            guarded_by(kind, Kind::Grpc, &authz, PathNormalization::BASE, vec![service(false)]).await;
        let program = caller(kind, address).await;
        let say = |what: &'static str| [("x-say", what), ("x-user", "forged"), ("x-group", "a"), ("x-secret", "s")];

        assert!(program.get_with("/a.B/C?d", &say("yes")).await.is_ok(), "{kind:?}");
        let arrived = app.last();
        assert_eq!((arrived.header("x-user").as_str(), arrived.header("x-group").as_str()), ("jason", "a,b"));
        assert_eq!((arrived.header("x-say").as_str(), arrived.path.as_str()), ("", "/a.B/C?d"), "{kind:?}");
        let asked = authz.last();
        assert_eq!(asked.path, "/envoy.service.auth.v3.Authorization/Check");
        assert_eq!(asked.authority, "authz.example");
        let asked = CheckRequest::decode(&*asked.body).unwrap().attributes.unwrap();
        assert!(asked.source.unwrap().address.is_some());
        let http = asked.request.unwrap().http.unwrap();
        assert_eq!(
            (http.path.as_str(), http.method.as_str()),
            ("/a.B/C?d", if kind.is_grpc() { "POST" } else { "GET" })
        );
        assert_eq!(http.protocol, if matches!(kind, Kind::Http1) { "HTTP/1.1" } else { "HTTP/2" });
        assert_eq!((http.headers.get("x-group").map(String::as_str), http.headers.get("x-secret")), (Some("a"), None));

        assert!(program.get_with("/a.B/C", &say("plain yes")).await.is_ok(), "{kind:?}");
        let before = app.count();
        let refused = program.get_with("/a.B/C", &say("no")).await;
        assert!(refused.is(kind, 401), "{kind:?} {refused:?}");
        assert_eq!(refused.header("www-authenticate"), "Bearer", "{kind:?}");
        assert!(program.get_with("/a.B/C", &say("plain no")).await.is(kind, 403), "{kind:?}");
        for nothing in ["silence", "failure", "gone", "nonsense"] {
            let answer = program.get_with("/a.B/C", &say(nothing)).await;
            assert!(answer.is(kind, 503), "{kind:?} {nothing}: {answer:?}");
        }
        assert_eq!(app.count(), before, "{kind:?}: what is refused never arrives");

        let (_app, open, _mesh) =
            guarded_by(kind, Kind::Grpc, &authz, PathNormalization::BASE, vec![service(true)]).await;
        let program = caller(kind, open).await;
        for nothing in ["silence", "failure", "gone", "nonsense"] {
            assert!(program.get_with("/a.B/C", &say(nothing)).await.is_ok(), "{kind:?} {nothing}");
        }
        assert!(program.get_with("/a.B/C", &say("no")).await.is(kind, 401), "{kind:?}: a no is an answer");
    }
}

/// What was told to the audit log: the policy, and whether the request passed.
#[derive(Clone, Default)]
struct Audit(Arc<Mutex<Vec<(String, bool)>>>);

impl<S: tracing::Subscriber> Layer<S> for Audit {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        if event.metadata().target() == "mesh::audit" {
            let mut fields = Fields::default();
            event.record(&mut fields);
            self.0.lock().unwrap().push((fields.policy, fields.allowed));
        }
    }
}

#[derive(Default)]
struct Fields {
    policy: String,
    allowed: bool,
}

impl tracing::field::Visit for Fields {
    fn record_bool(&mut self, field: &tracing::field::Field, value: bool) {
        if field.name() == "allowed" {
            self.allowed = value;
        }
    }

    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        if field.name() == "policy" {
            value.clone_into(&mut self.policy);
        }
    }

    fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn fmt::Debug) {}
}

/// AZ7: decisions are told to the audit log as the rules ask for it, and a policy of the action AUDIT when it matches; nothing of
/// it changes what happens.
#[tokio::test]
async fn decisions_are_told() {
    let audit = Audit::default();
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(audit.clone()));
    let told = || std::mem::take(&mut *audit.0.lock().unwrap());
    let yes = || vec![("may".to_owned(), true)];
    let no = || vec![("none".to_owned(), false)];
    for kind in Kind::ALL {
        for (condition, of_yes, of_no) in [
            (AuditCondition::None, vec![], vec![]),
            (AuditCondition::OnAllow, yes(), vec![]),
            (AuditCondition::OnDeny, vec![], no()),
            (AuditCondition::OnDenyAndAllow, yes(), no()),
        ] {
            let nobody = Upstream::start("authz").await;
            let mut allow = rules(RbacAction::Allow, "may", vec![starts("/may/")]);
            allow.audit = condition;
            let guards = vec![enforced(rules(RbacAction::Log, "look", vec![starts("/may/look")])), enforced(allow)];
            let (_app, address, _mesh) = guarded_by(kind, kind, &nobody, PathNormalization::BASE, guards).await;
            let program = caller(kind, address).await;
            told();
            assert!(program.get("/may/C").await.is_ok(), "{kind:?}");
            assert_eq!(told(), of_yes, "{kind:?} {condition:?}");
            assert!(program.get("/not/C").await.is(kind, 403), "{kind:?}");
            assert_eq!(told(), of_no, "{kind:?} {condition:?}");
            assert!(program.get("/may/look").await.is_ok(), "{kind:?}");
            let looked: Vec<_> = [("look".to_owned(), true)].into_iter().chain(of_yes).collect();
            assert_eq!(told(), looked, "{kind:?} {condition:?}");
        }
    }
}

/// AZ11: where nothing is allowed everything is refused, and those who ask how the process is are answered all the same, at a port
/// of its own that no policy is about.
#[tokio::test]
async fn closed_doors_do_not_hide_how_a_process_is() {
    for kind in Kind::ALL {
        let nothing = rules(RbacAction::Allow, "nothing", vec![Condition::Not(Box::new(Condition::Any))]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut own = config([], vec![]);
        let inbound = Inbound { mtls: MtlsMode::Disable, guards: vec![enforced(nothing)], ..Inbound::default() };
        own.inbound.insert(address.port(), Arc::new(inbound));
        let admin: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mesh = Mesh::builder().config(own).admin_addr(admin).build().await.unwrap();
        let serving = mesh.clone();
        let handler = axum::Router::new().fallback(|| async { [("grpc-status", "0")] });
        tokio::spawn(async move { drop(serving.serve_listener(listener, handler).await) });
        assert!(caller(kind, address).await.get("/a.B/C").await.is(kind, 403), "{kind:?}");
        let admin = mesh.admin_addr().unwrap();
        for path in ["/healthz", "/ready"] {
            let client: hyper_util::client::legacy::Client<_, axum::body::Body> =
                hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
            let request = Request::get(format!("http://{admin}{path}")).body(axum::body::Body::empty()).unwrap();
            assert_eq!(client.request(request).await.unwrap().status(), 200, "{kind:?} {path}");
        }
    }
}

/// Who signs certificates, for the time of a test.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: rustls::pki_types::CertificateDer<'static>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "a CA");
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    fn identity(&self, account: &str) -> Identity {
        self.identity_of(&id(account))
    }

    pub(crate) fn identity_of(&self, id: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Identity::from_der(vec![leaf], key, vec![self.root.clone()]).unwrap()
    }
}

fn id(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}

/// AZ12, AN6: a caller lets a server in that proves to be one of those the cluster names, and no other of the same mesh; where
/// nobody is named, nobody is meant.
#[tokio::test]
async fn callers_judge_who_serves() {
    let ca = Authority::new();
    for kind in Kind::ALL {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut own = config([], vec![]);
        own.inbound.insert(address.port(), Arc::new(Inbound::default()));
        let server = Mesh::builder().config(own).identity(ca.identity("reviews")).build().await.unwrap();
        let handler = axum::Router::new().fallback(|| async { [("grpc-status", "0")] });
        tokio::spawn(async move { drop(server.serve_listener(listener, handler).await) });
        for (named, lets) in [
            (vec!["reviews"], true),
            (vec!["ratings", "reviews"], true),
            (vec!["ratings"], false),
            (vec!["reviews2"], false),
            (vec!["review"], false),
        ] {
            let exact = |name: &&str| StringMatch::Exact { value: id(name), ignore_case: false };
            let tls = UpstreamTls {
                workload_identity: true,
                subject_alt_names: named.iter().map(exact).collect(),
                ..UpstreamTls::default()
            };
            let mut target = cluster_at(kind, "app", &[address]);
            target.tls = TlsMode::Always(Arc::new(tls));
            let routes = vec![route(RouteMatch::default(), Action::Forward(to("app")))];
            let mesh = Mesh::builder().config(config([target], routes)).identity(ca.identity("page")).build().await;
            let answer = Program::over(kind, mesh.unwrap()).get("/a.B/C").await;
            assert_eq!(answer.is_ok(), lets, "{kind:?} {named:?}: {answer:?}");
            assert!(lets || answer.is(kind, 503), "{kind:?} {named:?}: {answer:?}");
        }
    }
}

/// A server of the account `reviews`, for as long as the runtime lasts.
async fn serving(ca: &Authority, inbound: Inbound) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut own = config([], vec![]);
    own.inbound.insert(address.port(), Arc::new(inbound));
    let server = Mesh::builder().config(own).identity(ca.identity("reviews")).build().await.unwrap();
    let handler = axum::Router::new().fallback(|| async { [("grpc-status", "0")] });
    tokio::spawn(async move { drop(server.serve_listener(listener, handler).await) });
    address
}

/// A program of an account that calls it, with these versions of TLS.
async fn calling(ca: &Authority, kind: Kind, address: SocketAddr, account: &str, versions: TlsVersions) -> Program {
    let exact = StringMatch::Exact { value: id("reviews"), ignore_case: false };
    let tls =
        UpstreamTls { workload_identity: true, subject_alt_names: vec![exact], versions, ..UpstreamTls::default() };
    let mut target = cluster_at(kind, "app", &[address]);
    target.tls = TlsMode::Always(Arc::new(tls));
    let routes = vec![route(RouteMatch::default(), Action::Forward(to("app")))];
    let mesh = Mesh::builder().config(config([target], routes)).identity(ca.identity(account)).build().await;
    Program::over(kind, mesh.unwrap())
}

/// AN10: members speak the versions of TLS that they are told, and none with whom they have no version in common.
#[tokio::test]
async fn members_speak_the_versions_they_are_told() {
    use TlsVersions::{Both, Only12, Only13};
    let ca = Authority::new();
    for kind in Kind::ALL {
        for (server, client, lets) in [
            (Both, Both, true),
            (Both, Only12, true),
            (Both, Only13, true),
            (Only13, Both, true),
            (Only13, Only12, false),
            (Only12, Only12, true),
            (Only12, Only13, false),
        ] {
            let address = serving(&ca, Inbound { tls_versions: server, ..Inbound::default() }).await;
            let answer = calling(&ca, kind, address, "page", client).await.get("/a.B/C").await;
            assert_eq!(answer.is_ok(), lets, "{kind:?} {server:?} {client:?}: {answer:?}");
        }
    }
}

/// AZ4: of members gateways alone are believed where a request comes from; another's word neither opens a door nor lets it pass by one.
#[tokio::test]
async fn members_cannot_say_where_requests_come_from() {
    let ca = Authority::new();
    let from = [("x-forwarded-for", "10.1.2.3")];
    for kind in Kind::ALL {
        let inside = Condition::RemoteIp("10.0.0.0/8".parse().unwrap());
        let guard = enforced(rules(RbacAction::Allow, "inside", vec![inside]));
        let forwarders = Some(vec![id("edge")]);
        let address = serving(&ca, Inbound { guards: vec![guard], forwarders, ..Inbound::default() }).await;
        for (account, lets) in [("edge", true), ("page", false)] {
            let program = calling(&ca, kind, address, account, TlsVersions::Both).await;
            let answer = program.get_with("/a.B/C", &from).await;
            assert!(if lets { answer.is_ok() } else { answer.is(kind, 403) }, "{kind:?} {account}: {answer:?}");
        }
    }
}
