//! Which rule a request meets and which cluster it goes to.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use mesh_core::retry::RetryBudget;
use mesh_tower::{
    config::{
        Abort, AbortStatus, Action, BackOff, Fault, Forward, Fraction, HeaderMatch, HeaderMatcher, HttpRetry,
        PathMatch, RetryConditions, RetryPolicy, RouteMatch, StringMatch, WeightedCluster,
    },
    layer::RetryLayer,
};

use crate::harness::{Answer, Kind, Program, Reply, Upstream, cluster, config, framed, route, split, to};

/// RM1, RM2, RM6, RA1: the first rule that matches decides; no rule is 404, and of gRPC `UNAVAILABLE`.
#[tokio::test]
async fn the_first_matching_rule_decides() {
    for kind in Kind::ALL {
        let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
        let jason = HeaderMatch {
            name: "end-user".into(),
            matcher: HeaderMatcher::Value(StringMatch::Exact { value: "jason".to_owned(), ignore_case: false }),
            invert: false,
            missing_as_empty: false,
        };
        let path = PathMatch::Prefix { value: "/a".to_owned(), ignore_case: false };
        let rules = vec![
            route(RouteMatch { headers: vec![jason], ..RouteMatch::default() }, Action::Forward(to("two"))),
            route(RouteMatch { path, ..RouteMatch::default() }, Action::Forward(to("one"))),
        ];
        let clusters = [cluster(kind, "one", &[&one]), cluster(kind, "two", &[&two])];
        let program = Program::new(kind, config(clusters, rules)).await;

        assert_eq!(program.get_with("/x", &[("end-user", "jason")]).await.body, "two", "{kind:?}");
        let answer = program.get("/a/b").await;
        assert!(answer.is_ok(), "{kind:?}: {answer:?}");
        assert_eq!((answer.body.as_str(), one.last().path.as_str()), ("one", "/a/b"), "{kind:?}");
        let answer = program.get("/x").await;
        let refused = if kind.is_grpc() { answer.grpc == Some(14) } else { answer.status == 404 };
        assert!(refused, "{kind:?}: {answer:?}");
        assert_eq!((answer.flags.as_str(), one.count(), two.count()), ("NR", 1, 1), "{kind:?}");
    }
}

fn header(name: &str, matcher: HeaderMatcher) -> HeaderMatch {
    HeaderMatch { name: name.into(), matcher, invert: false, missing_as_empty: false }
}

fn text(value: &str) -> HeaderMatcher {
    HeaderMatcher::Value(StringMatch::Exact { value: value.to_owned(), ignore_case: false })
}

fn when(headers: Vec<HeaderMatch>) -> RouteMatch {
    RouteMatch { headers, ..RouteMatch::default() }
}

fn path(path: PathMatch) -> RouteMatch {
    RouteMatch { path, ..RouteMatch::default() }
}

/// RM3, RM7, RM8, RM9, RM10, RM11, RM15, RM16, RM17, RM18, RM19: each kind of condition picks the requests it means.
#[tokio::test]
async fn conditions_pick_requests() {
    let not = |header: HeaderMatch| HeaderMatch { invert: true, ..header };
    let segment = PathMatch::SegmentPrefix { value: "/a".to_owned(), ignore_case: false };
    let any_case = PathMatch::Exact { value: "/Path".to_owned(), ignore_case: true };
    for kind in Kind::ALL {
        let method = if kind.is_grpc() { "POST" } else { "GET" };
        type Case<'a> = (RouteMatch, &'a str, &'a [(&'a str, &'a str)], bool);
        let cases: Vec<Case<'_>> = vec![
            (path(segment.clone()), "/a/b", &[], true),
            (path(segment.clone()), "/ab", &[], false),
            (path(any_case.clone()), "/pAtH", &[], true),
            (when(vec![header("x-n", HeaderMatcher::Range { start: 1, end: 10 })]), "/", &[("x-n", "9")], true),
            (when(vec![header("x-n", HeaderMatcher::Range { start: 1, end: 10 })]), "/", &[("x-n", "10")], false),
            (when(vec![header("x-p", HeaderMatcher::Present(false))]), "/", &[], true),
            (when(vec![header("x-p", HeaderMatcher::Present(false))]), "/", &[("x-p", "")], false),
            (when(vec![not(header("x-v", text("a")))]), "/", &[], false),
            (when(vec![not(header("x-v", text("a")))]), "/", &[("x-v", "b")], true),
            (when(vec![header("x-v", text("a,b"))]), "/", &[("x-v", "a"), ("x-v", "b")], kind.is_grpc()),
            (when(vec![header("x-v", text("b"))]), "/", &[("x-v", "a"), ("x-v", "b")], !kind.is_grpc()),
            (when(vec![header("x-bin", text("AAA"))]), "/", &[("x-bin", "AAA")], !kind.is_grpc()),
            (when(vec![header("content-type", text("application/grpc"))]), "/", &[], kind.is_grpc()),
            (when(vec![header(":method", text(method))]), "/", &[], true),
            (when(vec![header(":method", text("PUT"))]), "/", &[], false),
            (when(vec![header(":authority", text("app"))]), "/", &[], true),
            (when(vec![header(":scheme", text("https"))]), "/", &[], false),
            (when(vec![header("user-agent", text("Firefox"))]), "/", &[("user-agent", "Firefox")], true),
        ];
        let (yes, no) = (Upstream::start("yes").await, Upstream::start("no").await);
        for (matches, path, headers, expected) in cases {
            let told = format!("{kind:?} {matches:?} {path} {headers:?}");
            let rules = vec![
                route(matches, Action::Forward(to("yes"))),
                route(RouteMatch::default(), Action::Forward(to("no"))),
            ];
            let clusters = [cluster(kind, "yes", &[&yes]), cluster(kind, "no", &[&no])];
            let program = Program::new(kind, config(clusters, rules)).await;
            assert_eq!(program.get_with(path, headers).await.body, if expected { "yes" } else { "no" }, "{told}");
        }
    }
}

/// RM16: the port that is asked for selects the rules; a port without any is not another's.
#[tokio::test]
async fn ports_have_their_own_rules() {
    for kind in Kind::ALL {
        let (one, two) = (Upstream::start("one").await, Upstream::start("two").await);
        let clusters = || [cluster(kind, "one", &[&one]), cluster(kind, "two", &[&two])];
        let mut both = config(clusters(), vec![route(RouteMatch::default(), Action::Forward(to("one")))]);
        let other = config(clusters(), vec![route(RouteMatch::default(), Action::Forward(to("two")))]);
        both.outbound.extend(other.outbound.into_values().map(|table| (8080, table)));
        both.outbound.values_mut().for_each(|table| Arc::make_mut(table).ignore_port = true);
        let program = Program::new(kind, both).await;
        for (host, expected) in [("app", "one"), ("app:80", "one"), ("app:8080", "two"), ("app:8081", "")] {
            let answer = program.send(Request::get(format!("http://{host}/")), "").await;
            assert_eq!(answer.header("x-upstream"), expected, "{kind:?} {host}: {answer:?}");
        }
    }
}

/// RM12, RA3, RA6: shares of requests and splits by weight stay in their bands; a share of 0 is none.
#[tokio::test]
async fn shares_of_requests_stay_in_their_bands() {
    for kind in Kind::ALL {
        let ups = ["canary", "v1", "v2"].map(Upstream::start);
        let [canary, v1, v2] = ups;
        let (canary, v1, v2) = (canary.await, v1.await, v2.await);
        let share = |percent| RouteMatch { fraction: Some(Fraction::percent(percent)), ..RouteMatch::default() };
        let rules = vec![
            route(share(0.0), Action::Forward(to("nowhere"))),
            route(share(50.0), Action::Forward(to("canary"))),
            route(RouteMatch::default(), Action::Forward(split(&[("v1", 50), ("v2", 50)]))),
        ];
        let clusters = [&canary, &v1, &v2].map(|up| cluster(kind, up.name, &[up]));
        let program = Program::new(kind, config(clusters, rules)).await;
        for _ in 0..400 {
            assert!(program.get("/").await.is_ok(), "{kind:?}");
        }
        // Six standard deviations of Binomial(400, 1/2) are 60, of Binomial(400, 1/4) 52.
        let counts = [canary.count(), v1.count(), v2.count()];
        assert!((140..=260).contains(&counts[0]), "{kind:?} {counts:?}");
        assert!(counts[1..].iter().all(|count| (48..=152).contains(count)), "{kind:?} {counts:?}");
    }
}

/// RA4: of two clusters that both fail at first, a request stays in the one drawn for it however often it is tried again.
#[tokio::test]
async fn a_request_stays_in_its_cluster() {
    for kind in Kind::ALL {
        let failing = |name| {
            Upstream::scripted(name, |_, arrival| match arrival.header("x-envoy-attempt-count").as_str() {
                "3" => Reply::ok(),
                _ => Reply::unavailable(),
            })
        };
        let (a, b) = (failing("a").await, failing("b").await);
        let on = RetryConditions {
            http: vec![HttpRetry::ServerError],
            grpc: vec![mesh_tower::config::GrpcRetry::Unavailable],
            ..RetryConditions::default()
        };
        let back_off = BackOff { base: Duration::from_millis(1), max: Duration::from_millis(1) };
        let retry = Some(RetryPolicy { on, retries: 2, back_off, ..RetryPolicy::default() });
        let half = Forward { retry, ..split(&[("a", 50), ("b", 50)]) };
        let clusters = [cluster(kind, "a", &[&a]), cluster(kind, "b", &[&b])];
        let rules = vec![route(RouteMatch::default(), Action::Forward(half))];
        let program = Program::new(kind, config(clusters, rules)).await;
        // More is tried again here than a client's budget has.
        let all = RetryLayer::with_budget(Arc::new(RetryBudget::unlimited()));
        let client = program.mesh.http().with_retries(all);
        for n in 0..40 {
            let mut request = Request::get("http://app/a.B/C").header("x-n", n);
            if kind.is_grpc() {
                request = request.method("POST").header("content-type", "application/grpc").header("te", "trailers");
            }
            let body = if kind.is_grpc() { framed(b"") } else { Bytes::new() };
            let response = client.request(request.body(Full::new(body)).unwrap()).await.unwrap();
            let answer = Answer::of(response).await;
            assert!(answer.is_ok(), "{kind:?} {n}: {answer:?}");
        }
        let tries =
            |upstream: &Upstream, n: &str| upstream.arrivals().iter().filter(|it| it.header("x-n") == n).count();
        for n in 0..40 {
            let n = n.to_string();
            let tries = [tries(&a, &n), tries(&b, &n)];
            assert!(matches!(tries, [3, 0] | [0, 3]), "{kind:?} {n}: {tries:?}");
        }
        // They take turns.
        assert!(a.count() > 0 && b.count() > 0, "{kind:?}: {} and {}", a.count(), b.count());
    }
}

/// RA15, RA16: retries come from the route; a destination's own fault counts.
#[tokio::test]
async fn a_route_has_its_own_policy() {
    for kind in Kind::ALL {
        let fails = Upstream::scripted("fails", |n, _| if n == 0 { Reply::unavailable() } else { Reply::ok() }).await;
        let other = Upstream::start("other").await;
        let on = RetryConditions {
            http: vec![HttpRetry::ServerError],
            grpc: vec![mesh_tower::config::GrpcRetry::Unavailable],
            ..RetryConditions::default()
        };
        let retry = Some(RetryPolicy { on, retries: 1, ..RetryPolicy::default() });
        let abort = Abort { status: AbortStatus::Http(503), fraction: Fraction::ALL };
        let faulty = WeightedCluster {
            cluster: "other".into(),
            weight: 1,
            fault: Some(Fault { abort: Some(abort), ..Fault::default() }),
            ..WeightedCluster::default()
        };
        let below = |value: &str| path(PathMatch::Prefix { value: value.to_owned(), ignore_case: false });
        let rules = vec![
            route(below("/faulty"), Action::Forward(Forward { clusters: vec![faulty], ..Forward::default() })),
            route(below("/again"), Action::Forward(Forward { retry, ..to("fails") })),
        ];
        let clusters = [cluster(kind, "fails", &[&fails]), cluster(kind, "other", &[&other])];
        let program = Program::new(kind, config(clusters, rules)).await;
        let answer = program.get("/again").await;
        assert!(answer.is_ok(), "{kind:?} {answer:?}");
        assert_eq!((fails.count(), other.count()), (2, 0), "{kind:?}");
        let answer = program.get("/faulty").await;
        assert!(!answer.is_ok() && answer.flags == "FI", "{kind:?} {answer:?}");
        assert_eq!(other.count(), 0, "{kind:?}");
    }
}

/// NR3: of the hosts whose domains mean a request the most exact takes it, whatever the case of its name.
#[tokio::test]
async fn the_most_exact_host_takes_the_request() {
    for kind in Kind::ALL {
        let (names, domains) =
            (["exact", "long", "suffix", "prefix", "rest"], ["a.b.test", "*.b.test", "*.test", "a.b.*", "*"]);
        let mut upstreams = Vec::new();
        for name in names {
            upstreams.push(Upstream::start(name).await);
        }
        let host = |(name, domain): (&str, &str)| {
            std::sync::Arc::new(mesh_tower::config::VirtualHost {
                name: name.into(),
                domains: vec![domain.to_owned()],
                routes: vec![route(RouteMatch::default(), Action::Forward(to(name)))],
                ..Default::default()
            })
        };
        let clusters = upstreams.iter().map(|upstream| cluster(kind, upstream.name, &[upstream]));
        let mut config = config(clusters, Vec::new());
        let virtual_hosts = names.into_iter().zip(domains).map(host).collect();
        let table = mesh_tower::config::RouteTable { virtual_hosts, ..Default::default() };
        config.outbound.insert(80, std::sync::Arc::new(table));
        let program = Program::new(kind, config).await;
        for (host, expected) in [
            ("a.b.test", "exact"),
            ("A.B.Test", "exact"),
            ("x.b.test", "long"),
            ("x.a.b.test", "long"),
            ("c.test", "suffix"),
            ("a.b.c", "prefix"),
            ("b.c", "rest"),
        ] {
            let answer = program.send(http::Request::get(format!("http://{host}/")), "").await;
            assert_eq!(answer.header("x-upstream"), expected, "{kind:?} {host}");
        }
    }
}

/// NR14: no header of a caller's says where its request goes, such as Finagle's and Linkerd's do, unless a rule asks for it; it
/// travels on as it is.
#[tokio::test]
async fn no_header_names_a_destination() {
    for kind in Kind::ALL {
        let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
        let clusters = [cluster(kind, "a", &[&a]), cluster(kind, "b", &[&b])];
        let routes = vec![route(RouteMatch::default(), Action::Forward(to("a")))];
        let program = Program::new(kind, config(clusters, routes)).await;
        for (name, value) in [("l5d-dtab", "/svc/app => /svc/b"), ("dtab-local", "/app => /b")] {
            let answer = program.get_with("/a.B/C", &[(name, value)]).await;
            assert!(answer.is_ok() && answer.header("x-upstream") == "a", "{kind:?} {name}: {answer:?}");
            assert_eq!(a.last().header(name), value, "{kind:?}");
        }
    }
}
