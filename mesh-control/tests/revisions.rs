//! Two control planes beside one another, as one is tried before it takes the other's place.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

use mesh_control::{
    ControlPlane,
    api::{ProxyStatus, Skew},
    compile::MeshSettings,
    store::SourceFile,
};

const OBJECTS: &str = "apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: productpage-v1}
spec: {template: {metadata: {labels: {app: productpage}}, spec: {containers: [{name: c}]}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tried, labels: {istio.io/rev: canary}}
spec: {hosts: [reviews], http: [{directResponse: {status: 418}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: proven, labels: {istio.io/rev: default}}
spec: {hosts: [reviews], http: [{directResponse: {status: 204}}]}
";

async fn plane(revision: &str) -> ControlPlane {
    let any = "127.0.0.1:0".parse().unwrap();
    let mesh = MeshSettings { revision: revision.to_owned(), ..MeshSettings::default() };
    let files = vec![SourceFile { name: "all.yaml".to_owned(), text: OBJECTS.to_owned() }];
    ControlPlane::builder().xds_addr(any).api_addr(any).mesh(mesh).files(files).start().await.unwrap()
}

/// OP8: each revision acts on what is for it and on what is for all, and says which it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_revision_acts_on_what_is_for_it() {
    for (revision, status) in [("default", "204"), ("canary", "418")] {
        let plane = plane(revision).await;
        let run = |arguments: &[&str]| {
            let output = Command::new(env!("CARGO_BIN_EXE_meshctl"))
                .args(["--server", &plane.api_address().to_string()])
                .args(arguments)
                .output()
                .unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let told = run(&["explain", "GET", "http://reviews:9080/", "--from", "productpage"]);
        assert!(told.contains(status), "{revision}: {told}");
        assert!(run(&["version"]).contains(&format!("(revision {revision})")));
        plane.shutdown().await;
    }
}

/// OP8: members may be one minor version behind their control plane, and none ahead; programs of others have versions of their own.
#[test]
fn skew_is_one_minor_version_back() {
    for (program, plane, expected) in [
        ("0.3.1", "0.3.0", Skew::Fine),
        ("0.2.9", "0.3.0", Skew::Fine),
        ("0.1.0", "0.3.0", Skew::Behind),
        ("0.4.0", "0.3.0", Skew::Ahead),
        ("1.9.0", "2.0.0", Skew::Behind),
        ("", "0.3.0", Skew::Fine),
    ] {
        let status = serde_json::json!({"name": "a", "version": "", "connected": 0, "types": {}, "program": program});
        let status: ProxyStatus = serde_json::from_value(status).unwrap();
        assert_eq!(status.skew(plane), expected, "{program} at {plane}");
    }
}
