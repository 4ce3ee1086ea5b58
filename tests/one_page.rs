//! The one-page programs, each run as it stands: they show one layer alone, and stay within a page.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, path::Path, process::Command};

/// A page.
const LINES: usize = 60;

/// Runs an example and expects these words in what it prints.
fn check(name: &str, words: &[&str]) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name).with_extension("rs");
    let lines = fs::read_to_string(&source).unwrap().lines().count();
    assert!(lines <= LINES, "{name} has {lines} lines");

    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(program.exists(), "{} is not built: `cargo test` builds it, `--test` alone does not", program.display());
    let output = Command::new(program).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}\n{said}", output.status);
    for word in words {
        assert!(said.contains(word), "{name} does not say {word:?}:\n{said}");
    }
}

#[test]
fn weighted_routing_alone() {
    check("weighted_routing", &["x v1, asked for reviews:9080", "x v2, asked for reviews:9080"]);
}

#[test]
fn retries_alone() {
    check("retries", &["call 3 arrives", "the server says"]);
}

#[test]
fn circuit_breaking_alone() {
    check("circuit_breaking", &["and the third: Some(", "request 10: 200 OK"]);
}

#[test]
fn mutual_tls_alone() {
    check("mtls", &["shop gets", "a stranger is refused", "in plaintext: Some("]);
}

#[test]
fn telemetry_alone() {
    check("telemetry", &["istio_requests_total"]);
}

/// OP13: routes are asserted of YAML alone, then the YAML is made live with a control plane in the process.
#[test]
fn a_mesh_inside_a_test() {
    check("testing", &["jason goes to v2, all others to v1", "he gets 200"]);
}

#[test]
fn reqwest_over_the_mesh() {
    check("reqwest", &["200 OK from http://ratings:9080/ratings?id=7", "[7, 5]"]);
}
