//! The console of a mesh of a thousand services: its pages draw a part and find the rest. The mesh is made up, as the control plane would come to know
//! of a real one: workloads by whoever knows who runs where, figures by an admin port.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use axum::{Router, routing::get};
use mesh_control::{ControlPlane, Registered, Workloads, registry::WorkloadPort, store::SourceFile};
use mesh_core::telemetry::BUCKETS;
use tokio::{net::TcpListener, sync::watch};

use crate::console::{browser, walk};

/// Services, each with one workload.
const SERVICES: usize = 1000;

/// Everybody, at one admin port.
#[derive(Debug)]
struct Many(Vec<Arc<Registered>>);

impl Workloads for Many {
    fn workloads(&self) -> Vec<Arc<Registered>> {
        self.0.clone()
    }
}

fn name(n: usize) -> String {
    format!("svc-{n:04}")
}

fn workload(n: usize, admin: SocketAddr) -> Arc<Registered> {
    let [_, _, high, low] = u32::try_from(n).unwrap().to_be_bytes();
    Arc::new(Registered {
        name: format!("{}-v1", name(n)),
        namespace: "default".to_owned(),
        workload: format!("{}-v1", name(n)),
        service_account: name(n),
        address: IpAddr::V4(Ipv4Addr::new(10, 0, high, low)),
        ports: vec![WorkloadPort { name: "http".to_owned(), number: 9080 }],
        labels: [("app".to_owned(), name(n)), ("version".to_owned(), "v1".to_owned())].into(),
        locality: Default::default(),
        gateway: false,
        group: String::new(),
        weight: 0,
        unhealthy: None,
        admin: Some(admin),
        since: 0,
        lost: None,
    })
}

/// What the admin port says at a moment: a tree of calls, with others across it, each asked for a few times a second; one in fifty fails.
fn traffic(seconds: u64) -> String {
    let mut text = "{\"process\":{\"id\":1},\"series\":[".to_owned();
    let calls = (0..SERVICES).flat_map(|n| [2 * n + 1, 2 * n + 2, (n * 7 + 3) % SERVICES].map(|to| (n, to)));
    for (at, (from, to)) in calls.filter(|(from, to)| *to < SERVICES && from != to).enumerate() {
        let (requests, code) = (seconds * (1 + at as u64 % 9), if at % 50 == 7 { "503" } else { "200" });
        let counts = [requests].into_iter().chain(std::iter::repeat_n(0, BUCKETS.len()));
        let counts: Vec<String> = counts.map(|count| count.to_string()).collect();
        let (from, to) = (name(from), name(to));
        let comma = if at == 0 { "" } else { "," };
        let _ = write!(
            text,
            "{comma}{{\"labels\":{{\"reporter\":\"source\",\"source_workload\":\"{from}-v1\",\"source_workload_namespace\":\"default\",\
             \"source_canonical_service\":\"{from}\",\"source_canonical_revision\":\"v1\",\"destination_workload\":\"{to}-v1\",\
             \"destination_workload_namespace\":\"default\",\"destination_canonical_service\":\"{to}\",\"destination_canonical_revision\":\"v1\",\
             \"destination_service\":\"{to}.default.svc.cluster.local\",\"request_protocol\":\"http\",\"response_code\":\"{code}\",\
             \"grpc_response_status\":\"\",\"response_flags\":\"-\"}},\"requests\":{requests},\"duration\":{{\"sum\":{requests}.0,\"counts\":[{}]}}}}",
            counts.join(",")
        );
    }
    text + "]}"
}

fn objects() -> SourceFile {
    let mut text = String::new();
    for name in (0..SERVICES).map(name) {
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 9080}}]}}\n\
             ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}}}\n\
             spec: {{host: {name}, subsets: [{{name: v1, labels: {{version: v1}}}}]}}\n"
        );
    }
    SourceFile { name: "many.yaml".to_owned(), text }
}

/// TE20: every page of a mesh of a thousand services draws a bounded part, stays quick, and finds what is looked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_services_are_still_fluent() {
    let Some(chromium) = browser() else { return };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let admin = listener.local_addr().unwrap();
    let began = Instant::now();
    let json = |text: String| ([("content-type", "application/json")], text);
    let pages = Router::new()
        .route("/traffic", get(move || async move { json(traffic(1 + began.elapsed().as_secs())) }))
        .route("/fields", get(move || async move { json("[]".to_owned()) }))
        .fallback(move || async move { json("{\"clusters\":[]}".to_owned()) });
    let serving = tokio::spawn(async move { axum::serve(listener, pages).await });
    let many = Many((0..SERVICES).map(|n| workload(n, admin)).collect());
    let (_changes, changed) = watch::channel(0);
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let plane = ControlPlane::builder().xds_addr(any).api_addr(any).files(vec![objects()]);
    let plane = plane.workloads(Arc::new(many), changed).start().await.unwrap();
    let said = walk(&chromium, "large.mjs", &[format!("http://{}", plane.api_address()), SERVICES.to_string()]).await;
    eprintln!("{}", said.unwrap_or_else(|said| panic!("{said}")));
    plane.shutdown().await;
    serving.abort();
}
