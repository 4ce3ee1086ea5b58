//! What is said when something is wrong, to the letter: `testdata/cli/errors.txt`, which `MESH_REGENERATE=1` writes anew.

use std::path::Path;

use super::*;

/// OP7: every form of error, with its exit code; data is on standard output alone.
#[tokio::test(flavor = "multi_thread")]
async fn errors_are_as_written_down() {
    let mesh = Mesh::start().await;
    let good = mesh.write("good.yaml", &format!("{SERVICES}---\n{RULES}"));
    mesh.ok(&["apply", "-f", &good]);
    let unknown = mesh.write("unknown.yaml", &RULES.replace("  hosts: [reviews]", "  hostz: [reviews]"));
    let subset = mesh.write("subset.yaml", &RULES.replace("subset: v1}", "subset: v33}"));
    let syntax = mesh.write("syntax.yaml", "kind: [\n");
    std::fs::create_dir_all(mesh.path("empty")).unwrap();
    let empty = mesh.path("empty").to_str().unwrap().to_owned();
    let absent = mesh.path("absent.yaml").to_str().unwrap().to_owned();
    let changed = mesh.write("changed.yaml", &RULES.replace("exact: jason", "exact: martha"));
    let cases: Vec<Vec<&str>> = vec![
        vec!["frobnicate"],
        vec!["gett", "vs"],
        vec!["get"],
        vec!["get", "pods"],
        vec!["get", "vs", "nobody"],
        vec!["get", "vs", "-n", "nowhere"],
        vec!["get", "vs", "-o", "xml"],
        vec!["apply"],
        vec!["apply", "-f", &unknown],
        vec!["apply", "-f", &subset],
        vec!["apply", "-f", &syntax],
        vec!["apply", "-f", &empty],
        vec!["apply", "-f", &absent],
        vec!["validate", "-f", &unknown],
        vec!["diff", "-f", &good],
        vec!["diff", "-f", &changed],
        vec!["analyze", "--offline", &subset],
        vec!["delete", "vs"],
        vec!["delete", "vs", "nobody"],
        vec!["describe", "reviews"],
        vec!["describe", "service", "nobody"],
        vec!["describe", "workload", "nobody"],
        vec!["edit", "reviews"],
        vec!["explain", "GET", "reviews"],
        vec!["proxy-config", "cluster"],
        vec!["proxy-config", "cluster", "nobody"],
        vec!["proxy-status", "nobody"],
        vec!["shift", "reviews"],
        vec!["shift", "reviews", "v1=50"],
        vec!["shift", "reviews", "v1=x"],
        vec!["shift", "reviews", "v9"],
        vec!["shift", "reviews", "--undo"],
        vec!["shift", "reviews", "v1", "--route", "nobody"],
        vec!["fault", "reviews"],
        vec!["fault", "reviews", "--delay", "soon"],
        vec!["fault", "reviews", "--abort", "99"],
        vec!["timeout", "reviews"],
        vec!["retry", "reviews"],
        vec!["trace", "nobody"],
        vec!["trace"],
        vec!["edges"],
        vec!["stat"],
        vec!["routes", "ratings"],
        vec!["graph"],
        vec!["load", "https://localhost/"],
        vec!["load", "http://localhost/", "--rps", "0"],
        vec!["run", "reviews"],
        vec!["schema", "pods"],
        vec!["man", "frobnicate"],
        vec!["completion", "tcsh"],
        vec!["--server", "127.0.0.1:1", "get", "vs"],
    ];
    let mut text = String::new();
    for arguments in cases {
        let output = mesh.run(&arguments);
        let dir = mesh.dir.path().to_str().unwrap();
        let plain = |text: &str| text.replace(dir, "DIR").replace(&mesh.plane.api_address().to_string(), "SERVER");
        text += &format!("$ meshctl {}\n", plain(&arguments.join(" ")));
        for (name, stream) in [("out", stdout(&output)), ("err", stderr(&output))] {
            for line in plain(stream).lines() {
                text += format!("{name}: {line}").trim_end();
                text.push('\n');
            }
        }
        text += &format!("exit: {}\n\n", output.status.code().unwrap());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cli/errors.txt");
    if std::env::var_os("MESH_REGENERATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(written, text, "run with MESH_REGENERATE=1 when this is what is meant");
}
