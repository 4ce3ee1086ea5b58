//! What is switched off in one process whatever its configuration says, and what a response says was decided.

use http::Request;
use mesh_tower::{
    Mesh,
    config::{
        Abort, AbortStatus, Action, Config, Fault, Forward, Fraction, GrpcRetry, HttpRetry, Mirror, OutlierDetection,
        RetryConditions, RetryPolicy, Route, RouteMatch,
    },
    switches::Feature,
    telemetry::DebugHeaders,
};

use crate::harness::{Answer, Kind, Program, Reply, Upstream, cluster, config, route, to};

fn retried() -> RetryPolicy {
    let on = RetryConditions {
        http: vec![HttpRetry::ServerError],
        grpc: vec![GrpcRetry::Unavailable],
        ..RetryConditions::default()
    };
    RetryPolicy { on, retries: 1, ..RetryPolicy::default() }
}

/// Everything fails, is tried again, and is copied.
fn busy(kind: Kind, app: &Upstream, copies: &Upstream) -> Config {
    let mut failing = cluster(kind, "app", &[app]);
    failing.outlier_detection =
        Some(OutlierDetection { consecutive_5xx: 1, max_ejection_percent: 100, ..OutlierDetection::default() });
    let mirror = Mirror { cluster: "copies".into(), ..Mirror::default() };
    let forward = Forward { retry: Some(retried()), mirrors: vec![mirror], ..to("app") };
    let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
    config([failing, cluster(kind, "copies", &[copies])], routes)
}

/// OP14: retries, copies and ejection are switched off while requests go on, stay off through updates, and come back.
#[tokio::test]
async fn features_are_switched_off_and_on() {
    for kind in Kind::ALL {
        let app = Upstream::scripted("app", |_, _| Reply::unavailable()).await;
        let copies = Upstream::start("copies").await;
        let config = busy(kind, &app, &copies);
        let builder = Mesh::builder().config(config.clone()).without(Feature::OutlierDetection);
        let program = Program::over(kind, builder.build().await.unwrap());
        let live = program.mesh.live().clone();
        let ejected = || live.load().unwrap().cluster("app").unwrap().endpoints()[0].is_ejected();
        assert!(!program.get("/a.B/C").await.is_ok(), "{kind:?}");
        assert_eq!(app.count(), 2, "{kind:?}: it was tried again");
        live.switch(Feature::Retries, true).unwrap();
        assert!(!program.get("/a.B/C").await.is_ok(), "{kind:?}");
        assert_eq!(app.count(), 3, "{kind:?}: it was not tried again");
        // An update brings nothing back.
        live.update(&config).unwrap();
        assert!(!program.get("/a.B/C").await.is_ok(), "{kind:?}");
        assert_eq!((app.count(), ejected()), (4, false), "{kind:?}");
        while copies.count() < 3 {
            tokio::task::yield_now().await;
        }
        live.switch(Feature::Mirroring, true).unwrap();
        assert!(live.switches().is_off(Feature::Mirroring) && live.switches().is_off(Feature::Retries));
        for _ in 0..20 {
            program.get("/a.B/C").await;
        }
        assert_eq!((app.count(), copies.count()), (24, 3), "{kind:?}");
        live.switch(Feature::OutlierDetection, false).unwrap();
        program.get("/a.B/C").await;
        assert!(ejected(), "{kind:?}");
    }
}

/// OP14: the same of faults, by the admin port, which says what is off; what decides who may do what is not switched.
#[tokio::test]
async fn features_are_switched_over_the_admin_port() {
    for kind in Kind::ALL {
        let app = Upstream::start("app").await;
        let abort = Abort { status: AbortStatus::Http(500), fraction: Fraction::ALL };
        let fault = Some(Fault { abort: Some(abort), ..Fault::default() });
        let routes = vec![Route { fault, ..route(RouteMatch::default(), Action::Forward(to("app"))) }];
        let builder = Mesh::builder().config(config([cluster(kind, "app", &[&app])], routes));
        let mesh = builder.admin_addr("127.0.0.1:0".parse().unwrap()).build().await.unwrap();
        let (admin, program) = (mesh.admin_addr().unwrap(), Program::over(kind, mesh));
        let outside = Mesh::builder().off().build().await.unwrap();
        let ask = async |method: &str, path: &str| {
            let request = Request::builder().method(method).uri(format!("http://{admin}{path}"));
            let request = request.body(mesh_tower::Body::empty()).unwrap();
            Answer::of(outside.http().request(request).await.unwrap()).await
        };
        assert!(!program.get("/a.B/C").await.is_ok(), "{kind:?}");
        assert_eq!(ask("GET", "/runtime_modify?faults=off").await.status, 405);
        assert_eq!(ask("POST", "/runtime_modify?faults=off").await.status, 200);
        assert!(program.get("/a.B/C").await.is_ok(), "{kind:?}");
        let runtime = ask("GET", "/runtime").await.body;
        assert!(runtime.contains("\"faults\":{\"final_value\":\"off\""), "{runtime}");
        assert!(runtime.contains("\"retries\":{\"final_value\":\"on\""), "{runtime}");
        for bad in ["authorization=off", "faults=maybe", ""] {
            assert_eq!(ask("POST", &format!("/runtime_modify?{bad}")).await.status, 400, "{bad}");
        }
        assert_eq!(ask("POST", "/runtime_modify?faults=on").await.status, 200);
        assert!(!program.get("/a.B/C").await.is_ok(), "{kind:?}");
    }
}

/// AD7: a response says what was decided where the program asks for that, and nobody else can.
#[tokio::test]
async fn a_response_says_what_was_decided() {
    for kind in Kind::ALL {
        let app = Upstream::scripted("app", |number, _| match number {
            0 => Reply::unavailable(),
            _ => Reply::ok(),
        })
        .await;
        let forward = Forward { retry: Some(retried()), ..to("app") };
        let mut rule = route(RouteMatch::default(), Action::Forward(forward));
        rule.name = "all".into();
        let program = Program::new(kind, config([cluster(kind, "app", &[&app])], vec![rule])).await;
        let answer = program.send(Request::get("/a.B/C").extension(DebugHeaders), "").await;
        let said = ["virtual-host", "route", "cluster", "endpoint", "attempts", "flags"]
            .map(|name| answer.headers.get(format!("x-mesh-{name}")).map(|value| value.to_str().unwrap().to_owned()));
        let endpoint = app.address.to_string();
        let expected = ["app", "all", "app", &endpoint, "2", "-"].map(|value| Some(value.to_owned()));
        assert_eq!(said, expected, "{kind:?}");
        let asked = program.get_with("/a.B/C", &[("x-mesh-debug", "1"), ("x-mesh-route", "x")]).await;
        assert!(asked.headers.keys().all(|name| !name.as_str().starts_with("x-mesh")), "{kind:?}");
    }
}
