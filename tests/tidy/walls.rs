//! Rules about which crate may know which, read from `cargo metadata` and the sources.

use std::{collections::BTreeMap, process::Command};

use crate::{report, root, rust_files};

/// What mesh-core may link: no clock, no I/O, no async runtime can come in by these.
const CORE_MAY_USE: &[&str] = &["hashbrown", "http", "ipnet", "rand", "regex", "serde", "xxhash-rust", "zeroize"];

/// Words a crate's sources must not contain, outside unit tests; each entry: directory, words, reason.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    ("mesh-core/src/", &["async fn", ".await", "tracing::", "println!", "tokio::"], "core decides, it does not act"),
    ("mesh-core/src/", &["Instant::now", "SystemTime::now"], "time is an argument"),
    ("mesh-tower/src/", &["prost::", "envoy_types"], "protobuf stays in mesh-xds"),
    ("mesh-xds/src/", &["mesh_tower"], "the arrows point one way"),
];

#[test]
fn dependencies_point_one_way() {
    let packages = packages();
    let uses = |name: &str| packages[name].clone();
    let mut bad = Vec::new();
    for dependency in uses("mesh-core") {
        if !CORE_MAY_USE.contains(&dependency.as_str()) {
            bad.push(format!("mesh-core uses {dependency}, which is not on its allow-list"));
        }
    }
    for (package, forbidden) in [
        ("mesh-xds", &["mesh-tower", "mesh-control", "rustls", "hyper"][..]),
        ("mesh-tower", &["mesh-control", "prost", "prost-types", "envoy-types"][..]),
        ("mesh-control", &["mesh-tower"][..]),
        ("mesh-core", &["mesh-control"][..]),
        // One name for the crates; what tests need besides comes with its feature `testing`.
        ("mesh", &["mesh-xds"][..]),
    ] {
        for dependency in uses(package) {
            if forbidden.contains(&dependency.as_str()) {
                bad.push(format!("{package} uses {dependency}"));
            }
        }
    }
    report("mesh-core <- mesh-xds <- mesh-tower, and mesh-control beside the last", &bad);
}

#[test]
fn crates_do_not_name_what_is_behind_a_wall() {
    let mut bad = Vec::new();
    for file in rust_files() {
        for (directory, words, why) in FORBIDDEN {
            if !file.path.starts_with(directory) || file.is_generated() {
                continue;
            }
            for (number, line) in file.code().lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for word in words.iter().filter(|word| code.contains(**word)) {
                    bad.push(format!("{}:{}: {word} ({why})", file.path, number + 1));
                }
            }
        }
    }
    report("the walls of the house", &bad);
}

#[test]
fn one_file_knows_the_control_plane() {
    let bad: Vec<_> = rust_files()
        .iter()
        .filter(|file| file.path.starts_with("mesh-tower/src/") && file.code().contains("mesh_xds"))
        .map(|file| file.path.clone())
        .filter(|path| path != "mesh-tower/src/mesh.rs")
        .collect();
    report("only mesh-tower/src/mesh.rs names mesh_xds", &bad);
}

#[test]
fn one_file_reads_clock_and_entropy() {
    let words = ["Instant::now", "SystemTime::now", "rand::rng()", "rand::random", "thread_rng", "OsRng"];
    let mut bad = Vec::new();
    for file in rust_files() {
        if file.path.starts_with("mesh-tower/src/") && file.path != "mesh-tower/src/source.rs" {
            for word in words.iter().filter(|word| file.code().contains(**word)) {
                bad.push(format!("{}: {word}", file.path));
            }
        }
    }
    report("only mesh-tower/src/source.rs reads the clock and entropy", &bad);
}

/// The files of mesh-xds that do I/O, each with its folder; what is beside them is machines and translation, which know no runtime.
const XDS_DRIVERS: &[&str] = &[
    "certs.rs",
    "client.rs",
    "csds.rs",
    "lrs/reporter.rs",
    "lrs/tests.rs",
    "saved.rs",
    "server.rs",
    "task.rs",
    "transport.rs",
];

#[test]
fn only_drivers_know_the_runtime() {
    let mut bad = Vec::new();
    for file in rust_files() {
        let Some(path) = file.path.strip_prefix("mesh-xds/src/") else { continue };
        let is_of = |driver: &&str| path == *driver || path.starts_with(&driver.replace(".rs", "/"));
        let drives = XDS_DRIVERS.iter().any(is_of);
        if drives || file.is_generated() {
            continue;
        }
        for word in ["tokio::", "tonic::", "async fn", ".await"].iter().filter(|word| file.code().contains(**word)) {
            bad.push(format!("{}: {word}", file.path));
        }
    }
    report("tokio and tonic stay in the drivers of mesh-xds", &bad);
}

#[test]
fn one_file_names_the_atomics() {
    let bad: Vec<_> = rust_files()
        .iter()
        .filter(|file| file.path.starts_with("mesh-core/src/") && file.path != "mesh-core/src/sync.rs")
        .filter(|file| file.code().contains("std::sync::atomic") || file.code().contains("        atomic::"))
        .map(|file| file.path.clone())
        .collect();
    report("mesh-core takes its atomics from src/sync.rs, so that the models of tests/loom run them", &bad);
}

/// Workspace packages with the names of their normal dependencies.
fn packages() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    // A model checker takes the place of the atomics in a build of its own, never in one that runs.
    let normal = |dependency: &&serde_json::Value| dependency["kind"].is_null() && dependency["target"] != "cfg(loom)";
    let name = |value: &serde_json::Value| value["name"].as_str().unwrap().to_owned();
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap().iter().filter(normal).map(name).collect();
            (name(package), dependencies)
        })
        .collect()
}
