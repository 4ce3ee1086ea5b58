//! What verbs print of a mesh that does not change, to the letter: `testdata/cli/tables.txt`, which `MESH_REGENERATE=1` writes anew. What differs from
//! run to run (ages, dates, serial numbers, ports) is written as one word, and columns as far apart as their words are.

use std::path::Path;

use super::*;

const POLICIES: &str = r#"apiVersion: v1
kind: Service
metadata: {name: productpage}
spec: {ports: [{name: http, port: 9080}], selector: {app: productpage}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-v1}
spec: {address: 127.0.0.14, labels: {app: reviews, version: v1}, serviceAccount: bookinfo-reviews}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: pages}
spec: {selector: {matchLabels: {app: productpage}}, mtls: {mode: PERMISSIVE}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers}
spec:
  selector: {matchLabels: {app: productpage}}
  rules: [{to: [{operation: {methods: [GET]}}]}]
"#;

/// A word that is another in the next run.
fn word(word: &str) -> &str {
    let is_hex = word.len() >= 8 && word.chars().all(|c| c.is_ascii_hexdigit() || c == ':');
    let number = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = word.get(number.len()..).unwrap_or_default();
    let is_time = ["ms", "s", "m", "h", "d"].contains(&unit) && number.parse::<f64>().is_ok();
    if is_hex {
        "SERIAL"
    } else if is_time {
        "AGE"
    } else if word.ends_with('Z') && word.contains('T') && word.starts_with("20") {
        "DATE"
    } else {
        word
    }
}

/// OP7: tables of get, describe, status, graph, cert, authz, explain and workload, for people and for programs.
#[tokio::test(flavor = "multi_thread")]
async fn tables_are_as_written_down() {
    let mesh = Mesh::start().await;
    let file = mesh.write("all.yaml", &format!("{SERVICES}---\n{RULES}---\n{DEPLOYMENT}---\n{POLICIES}"));
    mesh.ok(&["apply", "-f", &file]);
    let mut text = String::new();
    for line in [
        "get vs",
        "get vs -o wide",
        "get vs -o name",
        "get all",
        "get dr reviews -o yaml",
        "describe service reviews",
        "describe vs reviews",
        "describe peerauthentication pages",
        "describe vs/reviews -o yaml",
        "status",
        "graph -o json",
        "cert inspect",
        "authz check productpage",
        "authz check productpage --path /x --method POST",
        "explain GET http://reviews:9080/reviews/0 --from productpage",
        "explain GET http://reviews:9080/reviews/0 --from productpage -H end-user:jason",
        "explain GET http://nobody/ --from productpage",
        "workload list",
        "proxy-status",
        "analyze",
        "routes",
    ] {
        let output = mesh.run(&line.split(' ').collect::<Vec<_>>());
        text += &format!("$ meshctl {line}\n");
        let api = mesh.plane.api_address().to_string();
        let xds = mesh.plane.xds_address().to_string();
        for line in stdout(&output).lines().chain(stderr(&output).lines()) {
            let line = line.replace(&file, "all.yaml").replace(&api, "API").replace(&xds, "XDS");
            let indent = line.len() - line.trim_start().len();
            let words: Vec<&str> = line.split_whitespace().map(word).collect();
            text += &format!("{}{}\n", " ".repeat(indent), words.join(" "));
        }
        text += &format!("exit: {}\n\n", output.status.code().unwrap());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cli/tables.txt");
    if std::env::var_os("MESH_REGENERATE").is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    assert_eq!(
        std::fs::read_to_string(&path).unwrap_or_default(),
        text,
        "run with MESH_REGENERATE=1 when this is what is meant"
    );
}
