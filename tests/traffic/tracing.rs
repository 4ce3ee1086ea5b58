//! Traces and logs of what programs send: a span a try, every form of a trace's context, who is traced, what lines say.

use std::sync::{Arc, Mutex};

use http::Request;
use mesh_tower::{
    Mesh,
    config::{
        AccessLog as Log, Action, Config, CustomTag, Forward, GrpcRetry, HttpRetry, HttpSettings, LogFormat,
        MetricChange, RetryConditions, RetryPolicy, RouteMatch, TagValue, Telling, Tracing,
    },
    telemetry::{self, AccessLog, Spans},
};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use crate::{
    collector::{Collector, attribute},
    harness::{Kind, Program, Reply, Upstream, cluster, config, route, to},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// With what is told of requests to port 80.
fn told(mut config: Config, telling: Telling) -> Config {
    let settings = HttpSettings { telling: Some(Arc::new(telling)), ..HttpSettings::default() };
    config.http.insert(80, Arc::new(settings));
    config
}

fn calling(kind: Kind, upstream: &Upstream, forward: Forward) -> Config {
    let forward = Forward { clusters: to("app").clusters, ..forward };
    config([cluster(kind, "app", &[upstream])], vec![route(RouteMatch::default(), Action::Forward(forward))])
}

async fn traced(kind: Kind, config: Config, collector: std::net::SocketAddr) -> Program {
    let spans = Spans::to(&format!("http://{collector}"), "program").unwrap();
    Program::over(kind, Mesh::builder().config(config).spans(spans).build().await.unwrap())
}

/// TE12: a call that begins a trace has a span, and each try one below it that says which it is and how it ended.
#[tokio::test]
async fn tries_are_siblings_below_their_call() {
    let (collector, address) = Collector::start().await;
    for kind in Kind::ALL {
        let upstream =
            Upstream::scripted("app", |number, _| if number == 0 { Reply::unavailable() } else { Reply::ok() }).await;
        let on = RetryConditions {
            http: vec![HttpRetry::ServerError],
            grpc: vec![GrpcRetry::Unavailable],
            ..RetryConditions::default()
        };
        let retry = Some(RetryPolicy { on, ..RetryPolicy::default() });
        let config = calling(kind, &upstream, Forward { retry, ..to("app") });
        let program = traced(kind, config, address).await;
        assert!(program.get("/a.B/C").await.is_ok(), "{kind:?}");
        assert_eq!(upstream.count(), 2, "{kind:?}");
        let last = upstream.last().header("traceparent");
        let trace: Vec<&str> = last.split('-').collect();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let spans = collector.spans(3, |span| hex(&span.trace_id) == trace[1]).await;
        let call = spans.iter().find(|span| span.parent_span_id.is_empty()).unwrap_or_else(|| panic!("{spans:#?}"));
        assert_eq!(call.kind(), SpanKind::Internal, "{kind:?}");
        assert_eq!(attribute(call, "attempts"), "2", "{kind:?}");
        let tries: Vec<_> = spans.iter().filter(|span| span.kind() == SpanKind::Client).collect();
        assert!(tries.iter().all(|span| span.parent_span_id == call.span_id), "{kind:?}: {spans:#?}");
        assert_eq!(hex(&tries[1].span_id), trace[2], "{kind:?}: what the upstream saw");
        assert_eq!(attribute(tries[0], "http.request.resend_count"), "", "{kind:?}");
        assert_eq!(attribute(tries[1], "http.request.resend_count"), "1", "{kind:?}");
        let (failed, went_well) = if kind.is_grpc() { ("14", "0") } else { ("503", "200") };
        let status = if kind.is_grpc() { "rpc.response.status_code" } else { "http.response.status_code" };
        assert_eq!((attribute(tries[0], status), attribute(tries[1], status)), (failed.into(), went_well.into()));
        let names = if kind.is_grpc() { ("Sent.a.B.C", "Attempt.a.B.C") } else { ("GET ", "GET ") };
        assert!(call.name.starts_with(names.0) && tries[0].name.starts_with(names.1), "{spans:#?}");
        if kind.is_grpc() {
            assert_eq!(attribute(tries[1], "previous-rpc-attempts"), "1");
            assert_eq!(attribute(tries[1], "transparent-retry"), "false");
        }
    }
}

/// TE13: a trace is taken up in each form it may come in, and goes on as W3C's and in the form it came in.
#[tokio::test]
async fn traces_go_on_in_the_form_they_came_in() {
    let state = ("tracestate", "vendor=1");
    let w3c = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let single = format!("{TRACE}-00f067aa0ba902b7-1");
    let forms: [&[(&str, &str)]; 4] = [
        &[("traceparent", &w3c), state],
        &[("b3", &single)],
        &[("x-b3-traceid", TRACE), ("x-b3-spanid", "00f067aa0ba902b7"), ("x-b3-sampled", "1")],
        &[("grpc-trace-bin", "AABL+S81d7NNpqPOkp0ODkc2AQDwZ6oLqQK3AgE")],
    ];
    for kind in Kind::ALL {
        let upstream = Upstream::start("app").await;
        let program = Program::calling(kind, &[&upstream], Forward::default()).await;
        for headers in forms {
            assert!(program.get_with("/a.B/C", headers).await.is_ok(), "{kind:?}");
            let arrived = upstream.last();
            assert_eq!(arrived.header("traceparent"), w3c, "{kind:?}: {headers:?}");
            for (name, value) in headers {
                assert_eq!(arrived.header(name), *value, "{kind:?}: {headers:?}");
            }
            for other in ["b3", "x-b3-traceid", "grpc-trace-bin"] {
                let came = headers.iter().any(|(name, _)| *name == other);
                assert_eq!(!arrived.header(other).is_empty(), came, "{kind:?}: {other} after {headers:?}");
            }
            assert!(!arrived.header("x-request-id").is_empty(), "{kind:?}");
        }
    }
}

/// TE14: who begins a trace is drawn as the control plane says; a caller's decision stands, and who forces one gets it.
#[tokio::test]
async fn traces_are_drawn_as_told() {
    for kind in Kind::ALL {
        let upstream = Upstream::start("app").await;
        for (client, random, overall, headers, expected) in [
            (100.0, 100.0, 100.0, &[][..], "01"),
            (100.0, 0.0, 100.0, &[], "00"),
            (100.0, 0.0, 100.0, &[("x-client-trace-id", "7")], "01"),
            (0.0, 0.0, 100.0, &[("x-client-trace-id", "7")], "00"),
            (0.0, 0.0, 100.0, &[("x-envoy-force-trace", "1")], "01"),
            (100.0, 100.0, 0.0, &[("x-envoy-force-trace", "1")], "00"),
            (100.0, 100.0, 100.0, &[("b3", "0")], "00"),
            (0.0, 0.0, 0.0, &[("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")], "01"),
        ] {
            let tracing = Some(Tracing { client, random, overall, tags: Vec::new() });
            let config = told(calling(kind, &upstream, Forward::default()), Telling { tracing, ..Telling::default() });
            let program = Program::new(kind, config).await;
            assert!(program.get_with("/a.B/C", headers).await.is_ok());
            let parent = upstream.last().header("traceparent");
            assert!(parent.ends_with(expected), "{kind:?}: {client} {random} {overall} {headers:?}: {parent}");
        }
    }
}

/// TE15: spans have the tags that the control plane asks for, of headers, the environment, or as they stand.
#[tokio::test]
async fn spans_have_the_tags_asked_for() {
    let (collector, address) = Collector::start().await;
    for kind in Kind::ALL {
        let upstream = Upstream::start("app").await;
        let tags = [
            ("literal", TagValue::Literal("yes".into())),
            ("user", TagValue::Header { name: "x-user".into(), default: "nobody".into() }),
            ("none", TagValue::Header { name: "x-none".into(), default: String::new() }),
            ("cargo", TagValue::Environment { name: "CARGO_MANIFEST_DIR".into(), default: "none".into() }),
            ("request", TagValue::Format("%REQ(X-USER)% %PROTOCOL%".into())),
        ];
        let tags = tags.map(|(name, value)| CustomTag { name: name.into(), value }).to_vec();
        let telling = Telling { tracing: Some(Tracing { tags, ..Tracing::default() }), ..Telling::default() };
        let config = told(calling(kind, &upstream, Forward::default()), telling);
        let program = traced(kind, config, address).await;
        assert!(program.get_with("/a.B/C", &[("x-user", "jason")]).await.is_ok(), "{kind:?}");
        let parent = upstream.last().header("traceparent");
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let spans = collector.spans(1, |span| parent.contains(&hex(&span.span_id))).await;
        assert_eq!(attribute(&spans[0], "literal"), "yes", "{kind:?}");
        assert_eq!(attribute(&spans[0], "user"), "jason", "{kind:?}");
        assert!(spans[0].attributes.iter().all(|it| it.key != "none"), "{kind:?}");
        assert!(!attribute(&spans[0], "cargo").is_empty(), "{kind:?}");
        assert!(attribute(&spans[0], "request").starts_with("jason HTTP/"), "{kind:?}: {spans:#?}");
    }
}

/// TE11, TE12: without a collector requests go on as if there were one.
#[tokio::test]
async fn without_a_collector_requests_are_unharmed() {
    for kind in Kind::ALL {
        let upstream = Upstream::start("app").await;
        let program = traced(kind, calling(kind, &upstream, Forward::default()), "127.0.0.1:1".parse().unwrap()).await;
        for _ in 0..20 {
            assert!(program.get("/a.B/C").await.is_ok(), "{kind:?}");
        }
    }
}

/// TE16: a request is a line in Envoy's form or as JSON, or one as the control plane wants it, if it wants one.
#[tokio::test]
async fn requests_are_logged() {
    let text =
        LogFormat::Text("%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %UPSTREAM_CLUSTER% %RESP(X-UPSTREAM)%".into());
    let json = [("code", "%RESPONSE_CODE%"), ("path", "%REQ(:PATH)%"), ("tries", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%")];
    let json = LogFormat::Json(json.map(|(name, text)| (name.to_owned(), text.to_owned())).into());
    let of = |format: &LogFormat, filter: Option<&str>| Log {
        format: format.clone(),
        filter: filter.map(str::to_owned),
        ..Log::default()
    };
    for kind in Kind::ALL {
        let upstream = Upstream::start("app").await;
        let method = if kind.is_grpc() { "POST" } else { "GET" };
        let version = if kind == Kind::Http1 { "HTTP/1.1" } else { "HTTP/" };
        for (log, telling, expected) in [
            (AccessLog::Off, None, vec![]),
            (AccessLog::Text, None, vec![format!("\"{method} /a.B/C {version}")]),
            (AccessLog::Json, None, vec!["\"path\":\"/a.B/C\"".to_owned()]),
            (AccessLog::Text, Some(vec![]), vec![]),
            (AccessLog::Off, Some(vec![of(&text, None)]), vec![format!("{method} /a.B/C 200 app app")]),
            (AccessLog::Off, Some(vec![of(&json, None)]), vec![r#"{"code":200,"path":"/a.B/C","tries":1}"#.to_owned()]),
            (
                AccessLog::Off,
                Some(vec![of(&text, Some("response.code >= 400")), of(&json, Some("request.method == 'NONE'"))]),
                vec![],
            ),
            (AccessLog::Off, Some(vec![of(&text, Some("response.code < 400"))]), vec![format!("{method} /a.B/C 200")]),
        ] {
            let mut config = calling(kind, &upstream, Forward::default());
            if let Some(access_log) = telling {
                config = told(config, Telling { access_log: Some(access_log), ..Telling::default() });
            }
            let lines = Arc::new(Mutex::new(Vec::new()));
            let sink = Arc::clone(&lines);
            let builder = Mesh::builder().config(config).access_log(log);
            let builder = builder.access_log_to(move |line| sink.lock().unwrap().push(line.to_owned()));
            let program = Program::over(kind, builder.build().await.unwrap());
            assert!(program.get("/a.B/C").await.is_ok(), "{kind:?}");
            let lines = lines.lock().unwrap().clone();
            assert_eq!(lines.len(), expected.len(), "{kind:?}: {lines:#?}");
            for (line, part) in lines.iter().zip(&expected) {
                assert!(line.contains(part.as_str()), "{kind:?}: {part} in {line}");
            }
        }
    }
}

/// TE10: labels of metrics are changed, added and left out, and metrics switched off, as the control plane says.
#[tokio::test]
async fn metrics_change_as_told() {
    for (kind, name) in Kind::ALL.into_iter().zip(["custom-http1", "custom-http2", "custom-grpc"]) {
        let upstream = Upstream::start("app").await;
        let labels = [("user", "request.headers['x-user']"), ("request_protocol", "request.protocol")];
        let labels = labels.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        let metrics = vec![
            MetricChange { without: vec!["source_cluster".into()], ..MetricChange::default() },
            MetricChange { name: "requests_total".into(), labels, ..MetricChange::default() },
            MetricChange { name: "request_bytes".into(), drop: true, ..MetricChange::default() },
        ];
        let routes = vec![route(RouteMatch::default(), Action::Forward(to(name)))];
        let config = config([cluster(kind, name, &[&upstream])], routes);
        let program = Program::new(kind, told(config, Telling { metrics, ..Telling::default() })).await;
        for user in ["jason", "jason", "martha"] {
            let request = Request::get("/a.B/C").header("x-user", user);
            assert!(program.send(request, "").await.is_ok(), "{kind:?}");
        }
        let text = telemetry::render().unwrap();
        let ours = |metric: &str| {
            let service = format!("destination_service_name=\"{name}\"");
            let lines = text.lines().filter(|line| line.starts_with(&format!("{metric}{{")));
            lines.filter(|line| line.contains(&service)).map(str::to_owned).collect::<Vec<_>>()
        };
        let requests = ours("istio_requests_total");
        assert_eq!(requests.len(), 2, "{kind:?}: {requests:#?}");
        let jason = requests.iter().find(|line| line.contains("user=\"jason\"")).unwrap();
        assert!(jason.ends_with(" 2") && jason.contains("request_protocol=\"HTTP/"), "{kind:?}: {jason}");
        assert!(!jason.contains("source_cluster="), "{kind:?}: {jason}");
        assert!(ours("istio_request_bytes_count").is_empty(), "{kind:?}");
        // There, without the label that tells them apart, both are one.
        let answers = ours("istio_response_bytes_count");
        assert!(answers.len() == 1 && answers[0].ends_with(" 3"), "{kind:?}: {answers:#?}");
    }
}

/// TE10: labels that a `Telemetry` takes from requests have so many values and no more, each label for itself: whatever one caller
/// says, others are still told by their own names.
#[tokio::test]
async fn hostile_values_stay_in_their_label() {
    for (kind, name) in Kind::ALL.into_iter().zip(["hostile-http1", "hostile-http2", "hostile-grpc"]) {
        let upstream = Upstream::start("app").await;
        let labels = [("path", "request.path"), ("user", "request.headers['x-user']"), ("host", "request.host")];
        let labels = labels.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        let metrics = vec![MetricChange { labels, ..MetricChange::default() }];
        let routes = vec![route(RouteMatch::default(), Action::Forward(to(name)))];
        let config = config([cluster(kind, name, &[&upstream])], routes);
        let program = Program::new(kind, told(config, Telling { metrics, ..Telling::default() })).await;
        for n in 0..400 {
            assert!(program.get(&format!("/a.B/Path{n}")).await.is_ok(), "{kind:?}");
        }
        assert!(program.get_with("/a.B/Path1", &[("x-user", "jason")]).await.is_ok());
        let text = telemetry::render().unwrap();
        let ours = text.lines().filter(|line| line.starts_with("istio_requests_total{") && line.contains(name));
        let ours: Vec<&str> = ours.collect();
        let of = |part: &str| ours.iter().filter(|line| line.contains(part)).count();
        assert_eq!(ours.len(), 256 + 1 + 1, "{kind:?}");
        let others = ours.iter().find(|line| line.contains("path=\"_OTHER\"")).unwrap();
        assert!(others.ends_with(&format!(" {}", 400 - 256)), "{kind:?}: {others}");
        assert!(others.contains(&format!("destination_service_name=\"{name}\"")), "{kind:?}: {others}");
        assert_eq!((of("user=\"jason\""), of("user=\"_OTHER\"")), (1, 0), "{kind:?}");
    }
}
