//! How many requests are let through, by clients and by servers; and that a failure tried again in vain stays one.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use mesh_tower::{
    Mesh,
    config::{
        Action, Cluster, Forward, Fraction, GlobalOverride, GlobalRateLimit, GrpcRetry, HttpRetry, HttpSettings,
        Inbound, LimitAction, LimitDescriptor, LocalRateLimit, MtlsMode, PathMatch, RateLimit, RetryConditions,
        RetryPolicy, RouteMatch, RouteTable, StringMatch, TlsMode, TokenBucket, UpstreamTls, VirtualHost,
    },
};
use mesh_xds::proto::envoy::{
    config::core::v3::HeaderValue,
    extensions::common::ratelimit::v3::rate_limit_descriptor::Entry,
    service::ratelimit::v3::{
        RateLimitRequest, RateLimitResponse,
        rate_limit_response::{Code, DescriptorStatus, RateLimit as RateLimitMessage, rate_limit::Unit},
    },
};
use prost::Message;
use tokio::net::TcpListener;

use crate::{
    asking::Authority,
    harness::{Kind, Program, Reply, Upstream, cluster, cluster_at, config, route, to},
};

const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

fn bucket(max: u32) -> TokenBucket {
    TokenBucket { max, per_fill: 1, every: Duration::from_secs(3_600) }
}

fn limit(max: u32) -> LocalRateLimit {
    LocalRateLimit {
        bucket: Some(bucket(max)),
        enabled: Fraction::ALL,
        enforced: Fraction::ALL,
        ..LocalRateLimit::default()
    }
}

/// A limit of its own for each value of `end-user`, and another for `jason`.
fn by_user(max: u32) -> LocalRateLimit {
    let descriptor = |value: &str, max| LimitDescriptor {
        entries: vec![("user".to_owned(), value.to_owned())],
        bucket: bucket(max),
    };
    let actions =
        vec![LimitAction::RequestHeader { name: "end-user".into(), key: "user".into(), skip_if_absent: false }];
    LocalRateLimit {
        descriptors: vec![descriptor("jason", 1), descriptor("", max)],
        limits: vec![RateLimit { stage: 0, actions, hits: None }],
        always_default: false,
        ..limit(100)
    }
}

async fn passed(program: &Program, user: &str, kind: Kind) -> usize {
    let mut passed = 0;
    for _ in 0..6 {
        let answer = program.get_with("/", &[("end-user", user)]).await;
        passed += usize::from(answer.is_ok());
        assert!(answer.is_ok() || answer.is(kind, 429), "{kind:?}: {answer:?}");
    }
    passed
}

/// RL1, RL6: a route lets so many requests out, its own limit or its port's; what is over it is 429 with flag `RL`.
#[tokio::test]
async fn clients_limit_what_they_send() {
    for kind in Kind::ALL {
        for (own, expected) in [(None, 3), (Some(limit(2)), 2), (Some(LocalRateLimit::default()), 6)] {
            let app = Upstream::start("app").await;
            let forward = Forward { rate_limit: own.map(Arc::new), ..to("app") };
            let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
            let mut config = config([cluster(kind, "app", &[&app])], routes);
            let settings = HttpSettings { rate_limit: Some(Arc::new(limit(3))), ..HttpSettings::default() };
            config.http.insert(80, Arc::new(settings));
            let program = Program::new(kind, config).await;
            assert_eq!((passed(&program, "any", kind).await, app.count()), (expected, expected), "{kind:?}");
            let answer = program.get("/").await;
            assert!(answer.is_ok() || answer.flags == "RL", "{kind:?}: {answer:?}");
        }
    }
}

/// RL2, RL9: each user has a bucket, and one may have another: what the tutorial did with Mixer's quotas and their overrides. The
/// windows are those of buckets, none rolls, and a request that is sent twice is counted twice.
#[tokio::test]
async fn clients_limit_by_descriptor() {
    for kind in Kind::ALL {
        let app = Upstream::start("app").await;
        let forward = Forward { rate_limit: Some(Arc::new(by_user(2))), ..Forward::default() };
        let program = Program::calling(kind, &[&app], forward).await;
        for (user, expected) in [("jason", 1), ("a", 2), ("b", 2), ("a", 0)] {
            assert_eq!(passed(&program, user, kind).await, expected, "{kind:?} {user}");
        }
    }
}

/// A program that serves in plaintext with this limit and asks `app`, and another that calls it.
async fn served(kind: Kind, app: &Upstream, limit: Option<LocalRateLimit>, retry: Option<RetryPolicy>) -> Program {
    let inbound = Inbound { rate_limit: limit.map(Arc::new), ..Inbound::default() };
    served_as(kind, app, inbound, None, retry).await
}

async fn served_as(
    kind: Kind,
    app: &Upstream,
    inbound: Inbound,
    service: Option<&Upstream>,
    retry: Option<RetryPolicy>,
) -> Program {
    let address = serving(kind, app, inbound, service, retry.clone()).await;
    calling_at(kind, address, retry).await
}

/// A program that calls what listens there, with connections of its own.
async fn calling_at(kind: Kind, address: SocketAddr, retry: Option<RetryPolicy>) -> Program {
    let routes = vec![route(RouteMatch::default(), Action::Forward(Forward { retry, ..to("app") }))];
    Program::new(kind, config([cluster_at(kind, "app", &[address])], routes)).await
}

async fn serving(
    kind: Kind,
    app: &Upstream,
    inbound: Inbound,
    service: Option<&Upstream>,
    retry: Option<RetryPolicy>,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = vec![route(RouteMatch::default(), Action::Forward(Forward { retry, ..to("app") }))];
    let limits = service.map(|service| cluster(Kind::Grpc, "limits", &[service]));
    let mut own = config([cluster(kind, "app", &[app])].into_iter().chain(limits), routes);
    own.local.cluster = "app.default".into();
    let inbound = Inbound { mtls: MtlsMode::Disable, ..inbound };
    own.inbound.insert(address.port(), Arc::new(inbound));
    let middle = Program::new(kind, own).await;
    let (server, asking) = (middle.mesh.clone(), middle);
    tokio::spawn(async move {
        let handler = tower::service_fn(move |_| {
            let asking = asking.clone();
            async move {
                let answer = asking.get("/inner").await;
                let response = http::Response::builder().status(if kind.is_grpc() { 200 } else { answer.status });
                let response = response.header("grpc-status", answer.grpc.unwrap_or(0));
                Ok::<_, std::convert::Infallible>(response.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap())
            }
        });
        server.serve_listener(listener, handler).await
    });
    address
}

/// RL1, RL2: a server lets so many requests in, in all and by descriptor.
#[tokio::test]
async fn servers_limit_what_they_let_in() {
    for kind in Kind::ALL {
        let app = Upstream::start("app").await;
        let outer = served(kind, &app, Some(limit(3)), None).await;
        assert_eq!((passed(&outer, "any", kind).await, app.count()), (3, 3), "{kind:?}");
        let outer = served(kind, &app, Some(by_user(2)), None).await;
        for (user, expected) in [("jason", 1), ("a", 2), ("b", 2)] {
            assert_eq!(passed(&outer, user, kind).await, expected, "{kind:?} {user}");
        }
    }
}

/// RL5: each connection may have buckets of its own; else all share them.
#[tokio::test]
async fn connections_are_limited_apart() {
    for kind in Kind::ALL {
        for (per_connection, expected) in [(true, [2, 2]), (false, [2, 0])] {
            let app = Upstream::start("app").await;
            let limit = LocalRateLimit { per_connection, ..limit(2) };
            let inbound = Inbound { rate_limit: Some(Arc::new(limit)), ..Inbound::default() };
            let address = serving(kind, &app, inbound, None, None).await;
            let (one, two) = (calling_at(kind, address, None).await, calling_at(kind, address, None).await);
            let passed = [passed(&one, "any", kind).await, passed(&two, "any", kind).await];
            assert_eq!(passed, expected, "{kind:?} {per_connection}");
            assert_eq!(app.count(), expected.iter().sum::<usize>(), "{kind:?} {per_connection}");
        }
    }
}

/// RL5: each caller has a bucket of its own by what its certificate says, whatever it writes into its headers.
#[tokio::test]
async fn callers_are_limited_by_their_certificates() {
    let ca = Authority::new();
    let id = |account: &str| format!("spiffe://cluster.local/ns/default/sa/{account}");
    for kind in Kind::ALL {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let entries = |account: &str| vec![("peer".to_owned(), id(account))];
        let descriptors = [("page", 1), ("cart", 3)]
            .map(|(account, max)| LimitDescriptor { entries: entries(account), bucket: bucket(max) })
            .to_vec();
        let actions = vec![LimitAction::Peer { key: "peer".into() }];
        let limits = vec![RateLimit { stage: 0, actions, hits: None }];
        let by_peer = LocalRateLimit { descriptors, limits, always_default: false, ..limit(100) };
        let inbound = Inbound { mtls: MtlsMode::Strict, rate_limit: Some(Arc::new(by_peer)), ..Inbound::default() };
        let mut own = config([], vec![]);
        own.inbound.insert(address.port(), Arc::new(inbound));
        let server = Mesh::builder().config(own).identity(ca.identity_of(&id("app"))).build().await.unwrap();
        let handler = axum::Router::new().fallback(|| async { [("grpc-status", "0")] });
        tokio::spawn(async move { drop(server.serve_listener(listener, handler).await) });
        for (account, claims, expected) in [("page", "cart", 1), ("cart", "page", 3), ("page", "other", 0)] {
            let app = StringMatch::Exact { value: id("app"), ignore_case: false };
            let tls = UpstreamTls { workload_identity: true, subject_alt_names: vec![app], ..UpstreamTls::default() };
            let target = Cluster { tls: TlsMode::Always(Arc::new(tls)), ..cluster_at(kind, "app", &[address]) };
            let routes = vec![route(RouteMatch::default(), Action::Forward(to("app")))];
            let mesh = Mesh::builder().config(config([target], routes)).identity(ca.identity_of(&id(account)));
            let program = Program::over(kind, mesh.build().await.unwrap());
            let claimed = id(claims);
            let certificate = format!("By={};URI={claimed}", id("app"));
            let forged = [("x-forwarded-client-cert", certificate.as_str()), ("peer", claimed.as_str())];
            let mut passed = 0;
            for _ in 0..5 {
                let answer = program.get_with("/a.B/C", &forged).await;
                passed += usize::from(answer.is_ok());
                assert!(answer.is_ok() || answer.is(kind, 429), "{kind:?} {account}: {answer:?}");
            }
            assert_eq!(passed, expected, "{kind:?}: {account}, who says to be {claims}");
        }
    }
}

/// A service that lets two requests a user through and tells what it was asked; `jason` counts like all others.
async fn limiter() -> Upstream {
    limiter_of("limits", "bookinfo").await
}

/// The same, called by this name and asked about this domain.
pub(crate) async fn limiter_of(authority: &'static str, domain: &'static str) -> Upstream {
    let counts: Mutex<BTreeMap<String, u32>> = Mutex::default();
    Upstream::scripted("limits", move |_, arrival| {
        let asked = RateLimitRequest::decode(&*arrival.body).unwrap();
        assert_eq!((arrival.path.as_str(), arrival.authority.as_str()), (METHOD, authority));
        assert_eq!(asked.domain, domain);
        let text = |entry: &Entry| format!("{}={}", entry.key, entry.value);
        let told: Vec<_> = asked.descriptors.iter().flat_map(|it| &it.entries).map(text).collect();
        let told = told.join(",");
        let count = {
            let mut counts = counts.lock().unwrap();
            let count = counts.entry(told.clone()).or_default();
            *count += 1;
            *count
        };
        let header = |key: &str, value: String| HeaderValue { key: key.into(), value, ..HeaderValue::default() };
        let limit = RateLimitMessage { requests_per_unit: 2, unit: Unit::Hour.into(), name: String::new() };
        let status = DescriptorStatus {
            current_limit: Some(limit),
            limit_remaining: 2_u32.saturating_sub(count),
            ..DescriptorStatus::default()
        };
        let answer = RateLimitResponse {
            overall_code: if count > 2 { Code::OverLimit } else { Code::Ok }.into(),
            statuses: vec![status],
            response_headers_to_add: vec![header("x-asked", told)],
            request_headers_to_add: vec![header("x-count", count.to_string())],
            ..RateLimitResponse::default()
        };
        Reply::ok().message(answer.encode_to_vec().leak()).in_trailers()
    })
    .await
}

/// Two users, one of whom is described by `end-user`, and what calls and is called.
fn descriptors() -> Vec<RateLimit> {
    let user = LimitAction::RequestHeader { name: "end-user".into(), key: "user".into(), skip_if_absent: false };
    vec![RateLimit { stage: 0, actions: vec![LimitAction::SourceCluster, user], hits: None }]
}

fn counting(change: impl FnOnce(&mut GlobalRateLimit)) -> Arc<GlobalRateLimit> {
    let mut limit = GlobalRateLimit {
        cluster: "limits".into(),
        domain: "bookinfo".into(),
        timeout: Duration::from_secs(10),
        tells_limits: true,
        ..GlobalRateLimit::default()
    };
    change(&mut limit);
    Arc::new(limit)
}

/// A program with this service in force for its port.
async fn asking(kind: Kind, app: &Upstream, service: Option<&Upstream>, limit: Arc<GlobalRateLimit>) -> Program {
    let forward = Forward { rate_limits: descriptors(), ..to("app") };
    let routes = vec![
        route(
            RouteMatch {
                path: PathMatch::Prefix { value: "/free".into(), ignore_case: false },
                ..RouteMatch::default()
            },
            {
                let off = GlobalOverride { disabled: true, ..GlobalOverride::default() };
                Action::Forward(Forward { global_limit: Some(off), ..forward.clone() })
            },
        ),
        route(RouteMatch::default(), Action::Forward(forward)),
    ];
    let limits = service.map(|service| cluster(Kind::Grpc, "limits", &[service]));
    let mut config = config([cluster(kind, "app", &[app])].into_iter().chain(limits), routes);
    config.local.cluster = "app.default".into();
    let settings = HttpSettings { global_limits: vec![limit], ..HttpSettings::default() };
    config.http.insert(80, Arc::new(settings));
    Program::new(kind, config).await
}

/// RL3, RL9: a service counts for all; its headers reach the application and the caller, and what is over the limit is refused with
/// flag `RL` and says so.
#[tokio::test]
async fn a_service_counts_what_clients_send() {
    for kind in Kind::ALL {
        let (app, service) = (Upstream::start("app").await, limiter().await);
        let program = asking(kind, &app, Some(&service), counting(|_| ())).await;
        for count in ["1", "2"] {
            let answer = program.get_with("/", &[("end-user", "jason")]).await;
            assert!(answer.is_ok(), "{kind:?}: {answer:?}");
            assert_eq!(app.last().header("x-count"), count, "{kind:?}");
            assert_eq!(answer.header("x-asked"), "source_cluster=app.default,user=jason", "{kind:?}");
            assert_eq!(answer.header("x-ratelimit-limit"), "2, 2;w=3600", "{kind:?}");
        }
        let over = program.get_with("/", &[("end-user", "jason")]).await;
        assert!(over.is(kind, 429) && over.flags == "RL", "{kind:?}: {over:?}");
        let told = ["x-envoy-ratelimited", "x-ratelimit-remaining", "x-asked"].map(|name| over.header(name));
        assert_eq!(told, ["true", "0", "source_cluster=app.default,user=jason"], "{kind:?}");
        assert_eq!((app.count(), service.count()), (2, 3), "{kind:?}");
        // Another user, nobody by name, and a route that asks nobody.
        assert!(program.get_with("/", &[("end-user", "other")]).await.is_ok(), "{kind:?}");
        assert!(program.get("/").await.is_ok(), "{kind:?}");
        assert!(program.get_with("/free", &[("end-user", "jason")]).await.is_ok(), "{kind:?}");
        assert_eq!(service.count(), 4, "{kind:?}");
        // gRPC callers may be told what it is.
        let program = asking(kind, &app, Some(&service), counting(|limit| limit.resource_exhausted = true)).await;
        let over = program.get_with("/", &[("end-user", "jason")]).await;
        assert_eq!((over.status, over.grpc), if kind.is_grpc() { (200, Some(8)) } else { (429, None) }, "{kind:?}");
    }
}

/// RL3: servers ask before they let a request in, after everything that decides who may.
#[tokio::test]
async fn a_service_counts_what_servers_let_in() {
    for kind in Kind::ALL {
        let (app, service) = (Upstream::start("app").await, limiter().await);
        let host = VirtualHost {
            name: "inbound".into(),
            domains: vec!["*".into()],
            routes: vec![route(RouteMatch::default(), Action::NonForwarding)],
            rate_limits: descriptors(),
            ..VirtualHost::default()
        };
        let routes = RouteTable { virtual_hosts: vec![Arc::new(host)], ..RouteTable::default() };
        let inbound = Inbound { routes: Arc::new(routes), global_limits: vec![counting(|_| ())], ..Inbound::default() };
        let outer = served_as(kind, &app, inbound, Some(&service), None).await;
        assert_eq!(passed(&outer, "jason", kind).await, 2, "{kind:?}");
        let over = outer.get_with("/", &[("end-user", "jason")]).await;
        assert!(over.is(kind, 429), "{kind:?}: {over:?}");
        assert_eq!(over.header("x-envoy-ratelimited"), "true", "{kind:?}");
        assert_eq!((app.count(), service.count()), (2, 7), "{kind:?}");
    }
}

/// RL3: who gives no answer in time, says nothing that can be read or is not there stops nobody, unless it is to.
#[tokio::test]
async fn a_service_without_an_answer_fails_as_configured() {
    for kind in Kind::ALL {
        let app = Upstream::start("app").await;
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let silent = Upstream::scripted("silent", move |_, _| Reply::ok().when(&gate)).await;
        let garbled = Upstream::scripted("garbled", |_, _| Reply::ok().message(b"\xff\xff").in_trailers()).await;
        let broken = Upstream::scripted("broken", |_, _| Reply::grpc(13)).await;
        for service in [None, Some(&silent), Some(&garbled), Some(&broken)] {
            let name = service.map(|service| service.name);
            let soon = |limit: &mut GlobalRateLimit| {
                if name == Some("silent") {
                    limit.timeout = Duration::from_millis(20);
                }
            };
            let program = asking(kind, &app, service, counting(soon)).await;
            let answer = program.get_with("/", &[("end-user", "jason")]).await;
            assert!(answer.is_ok(), "{kind:?} {name:?}: {answer:?}");
            let strict = counting(|limit| {
                soon(limit);
                limit.failure_denies = Fraction::ALL;
                limit.status_on_error = 503;
            });
            let before = app.count();
            let program = asking(kind, &app, service, Arc::clone(&strict)).await;
            let answer = program.get_with("/", &[("end-user", "jason")]).await;
            assert!(answer.is(kind, 503) && answer.flags == "RLSE", "{kind:?} {name:?}: {answer:?}");
            let own = GlobalRateLimit { limits: descriptors(), ..(*strict).clone() };
            let inbound = Inbound { global_limits: vec![Arc::new(own)], ..Inbound::default() };
            let outer = served_as(kind, &app, inbound, service, None).await;
            let answer = outer.get_with("/", &[("end-user", "jason")]).await;
            assert!(answer.is(kind, 503), "{kind:?} {name:?}: {answer:?}");
            assert_eq!(app.count(), before, "{kind:?} {name:?}");
        }
    }
}

/// RT22: what a served program tried again in vain is not tried again by its caller.
#[tokio::test]
async fn retries_do_not_multiply() {
    for kind in Kind::ALL {
        let app = Upstream::scripted("app", |_, _| Reply::unavailable()).await;
        let on = RetryConditions {
            http: vec![HttpRetry::ServerError],
            grpc: vec![GrpcRetry::Unavailable],
            ..RetryConditions::default()
        };
        let outer = served(kind, &app, None, Some(RetryPolicy { on, retries: 2, ..RetryPolicy::default() })).await;
        assert!(outer.get("/").await.is(kind, 503), "{kind:?}");
        assert_eq!(app.count(), 3, "{kind:?}");
    }
}
