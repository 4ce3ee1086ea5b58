//! How many requests are let through, by clients and by servers; and that a failure tried again in vain stays one.

use std::{sync::Arc, time::Duration};

use mesh_tower::config::{
    Action, Endpoint, Endpoints, Forward, Fraction, GrpcRetry, HttpRetry, HttpSettings, Inbound, LimitAction,
    LimitDescriptor, LocalRateLimit, LocalityEndpoints, MtlsMode, RateLimit, RetryConditions, RetryPolicy, RouteMatch,
    TokenBucket,
};
use tokio::net::TcpListener;

use crate::harness::{Kind, Program, Reply, Upstream, cluster, config, route, to};

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
        limits: vec![RateLimit { stage: 0, actions }],
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

/// RL2, RL9: each user has a bucket, and one may have another: what the tutorial did with Mixer's quotas and their overrides.
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
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let forward = Forward { retry: retry.clone(), ..to("app") };
    let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
    let mut own = config([cluster(kind, "app", &[app])], routes);
    let inbound = Inbound { mtls: MtlsMode::Disable, rate_limit: limit.map(Arc::new), ..Inbound::default() };
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
    let mut served = cluster(kind, "app", &[]);
    let locality = LocalityEndpoints { endpoints: vec![Endpoint::from(address)], ..LocalityEndpoints::default() };
    served.endpoints = Arc::new(Endpoints { localities: vec![locality], ..Endpoints::default() });
    let routes = vec![route(RouteMatch::default(), Action::Forward(Forward { retry, ..to("app") }))];
    Program::new(kind, config([served], routes)).await
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

/// RL5: each connection may have buckets of its own.
#[tokio::test]
async fn connections_are_limited_apart() {
    for kind in Kind::ALL {
        let app = Upstream::start("app").await;
        let outer = served(kind, &app, Some(LocalRateLimit { per_connection: true, ..limit(2) }), None).await;
        assert_eq!(passed(&outer, "any", kind).await, 2, "{kind:?}");
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
