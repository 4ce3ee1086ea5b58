//! Keys that are kept for gateways: in none of what people are shown, whatever document brought them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use mesh_control::{ControlPlane, WorkloadSpec, store::SourceFile};
use mesh_core::config::Config;
use mesh_xds::{bootstrap::Bootstrap, client::Client};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use tokio::time::timeout;

/// CT6: of a Secret's key no twenty bytes are in anything the control plane tells people: objects, diagnostics, dumps, a bug report;
/// also where `kubectl` wrote the whole of it into an annotation.
#[tokio::test(flavor = "multi_thread")]
async fn no_key_of_a_secret_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let plane = ControlPlane::builder().xds_addr(any()).api_addr(any()).state_dir(dir.path().join("state"));
    let plane = plane.start().await.unwrap();
    let key = KeyPair::generate().unwrap();
    let chain = CertificateParams::new(vec!["shop.test".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let pem = key.serialize_pem();
    let data = json!({"tls.crt": base64(&chain), "tls.key": base64(&pem), "password": base64("hunter2")});
    let applied = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "shop"}, "data": data});
    let mut secret = applied.clone();
    secret["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": applied.to_string()});
    let gateway = json!({"apiVersion": "networking.istio.io/v1", "kind": "Gateway",
        "metadata": {"name": "shop", "annotations": {"gateway.istio.io/service-account": "edge"}},
        "spec": {"selector": {"istio": "ingressgateway"}, "servers": [{"port": {"number": 443, "name": "https",
            "protocol": "HTTPS"}, "hosts": ["*"], "tls": {"mode": "SIMPLE", "credentialName": "shop"}}]}});
    for object in [&secret, &gateway] {
        plane.apply(&[file(&object.to_string())]).unwrap();
    }
    // One that is refused is shown with its place, and not with its value.
    let mut torn = secret.clone();
    torn["data"].as_object_mut().unwrap().remove("tls.crt");
    let refused = plane.apply(&[file(&torn.to_string()), file(&format!("kind: Secret\ndata: [{}\n", base64(&pem)))]);
    let mut clients = Vec::new();
    let mut shown = vec![("a refusal", format!("{:?} {}", refused, refused.as_ref().unwrap_err()))];

    // One that says it is the gateway, with labels of its own choice, is shown the gateway and not its key.
    for (account, is_given) in [("other", false), ("edge", true)] {
        let gateway = WorkloadSpec {
            service_account: account.to_owned(),
            labels: [("istio".to_owned(), "ingressgateway".to_owned())].into(),
            gateway: true,
            ..WorkloadSpec::new(account, [127, 0, 0, 1].into())
        };
        let bootstrap = plane.bootstrap_for(&gateway, &dir.path().join("workloads")).unwrap();
        let client = Client::start(Arc::new(Bootstrap::parse(&bootstrap.to_string(), "test").unwrap()));
        let mut config = client.config();
        let has_chain = |config: &Config| config.gateways.contains_key(&443);
        let has_key = |config: &Config| format!("{:?}", config.gateways.get(&443)).contains("PrivateKey");
        let known = config.wait_for(|config| {
            config.as_ref().is_some_and(|config| if is_given { has_key(config) } else { has_chain(config) })
        });
        timeout(Duration::from_secs(30), known)
            .await
            .unwrap_or_else(|_| panic!("{account}: {:?}", client.status()))
            .unwrap();
        let told = config.borrow().clone().unwrap();
        assert_eq!(has_key(&told), is_given, "{account}");
        shown.push(("a gateway's configuration", format!("{told:?} {}", serde_json::to_string(&told).unwrap())));
        clients.push(client);
    }

    let server = format!("http://{}", plane.api_address());
    let report = dir.path().join("report");
    for args in [
        &["get", "secret", "-o", "yaml"][..],
        &["get", "secret", "shop", "-o", "json"],
        &["analyze"],
        &["proxy-config", "all", "edge", "-o", "json"],
        &["proxy-config", "secret", "edge", "-o", "json"],
        &["bug-report", "--dir", report.to_str().unwrap()],
    ] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_meshctl")).env("MESHCTL_SERVER", &server).args(args).output().unwrap();
        shown.push((args[0], String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()));
    }
    let mut files = Vec::new();
    walk(&report, &mut files);
    assert!(files.len() > 3, "{files:?}");
    shown.extend(files.into_iter().map(|text| ("the report", text)));

    // The number that only the key has; the rest of its text is in certificates, too.
    let der = key.serialized_der();
    let mark = [2, 1, 1, 4, 32];
    let at = der.windows(mark.len()).position(|part| part == mark).expect("an EC key") + mark.len();
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let hidden = inner(&body, at, at + 32);
    let parts = |text: &str| (0..=text.len() - 20).map(|at| text[at..at + 20].to_owned()).collect::<Vec<_>>();
    let line = parts(hidden).iter().find_map(|part| pem.find(part)).expect("a part is within a line");
    let encoded = base64(&pem);
    let hidden = [parts(hidden), parts(inner(&encoded, line, line + 20))].concat();
    for (what, text) in &shown {
        assert!(!hidden.iter().any(|part| text.contains(part)), "{what} shows a key: {text}");
        assert!(!text.contains(&base64("hunter2")) && !text.contains("hunter2"), "{what} shows a password: {text}");
    }
    assert!(shown.iter().any(|(_, text)| text.contains("(hidden ")));
}

/// The part of a text in base64 that says these bytes and no others.
fn inner(base64: &str, from: usize, to: usize) -> &str {
    base64.get(from.div_ceil(3) * 4..to / 3 * 4).unwrap()
}

fn walk(dir: &Path, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        match entry.path().is_dir() {
            true => walk(&entry.path(), files),
            false => files.push(std::fs::read_to_string(entry.path()).unwrap()),
        }
    }
}

fn file(text: &str) -> SourceFile {
    SourceFile { name: "shop.json".to_owned(), text: text.to_owned() }
}

fn base64(text: &str) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.encode(text)
}

fn any() -> std::net::SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}
