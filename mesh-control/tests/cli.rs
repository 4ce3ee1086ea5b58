//! The real `meshctl` against a control plane in this process: what it prints, where, and how it exits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use mesh_control::ControlPlane;
use serde_json::Value;
use tempfile::TempDir;

#[path = "cli/authz.rs"]
mod authz;
#[path = "cli/cert.rs"]
mod cert;
#[path = "cli/checks.rs"]
mod checks;
#[path = "cli/errors.rs"]
mod errors;
#[path = "cli/join.rs"]
mod join;
#[path = "cli/proxy_config.rs"]
mod proxy_config;
#[path = "cli/steer.rs"]
mod steer;
#[path = "cli/tables.rs"]
mod tables;

const SERVICES: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: reviews
spec:
  ports:
  - {name: http, port: 9080}
  selector: {app: reviews}
";

const RULES: &str = "\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: reviews
  annotations:
    example.com/owner: \"team: reviews\"
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
spec:
  hosts: [reviews]
  http:
  - match:
    - headers:
        end-user: {exact: jason}
    route:
    - destination: {host: reviews, subset: v2}
  - route:
    - destination: {host: reviews, subset: v1}
";

const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: productpage-v1
spec:
  template:
    metadata:
      labels: {app: productpage, version: v1}
    spec:
      serviceAccountName: bookinfo-productpage
";

/// OP7, XD39: apply, get and delete speak kubectl's words, and `unchanged` is true.
#[tokio::test(flavor = "multi_thread")]
async fn objects_are_applied_shown_and_deleted() {
    let mesh = Mesh::start().await;
    mesh.write("a/services.yaml", SERVICES);
    let rules = mesh.write("a/rules.yaml", RULES);
    mesh.write("a/notes.txt", "not for apply");
    let applied = mesh.ok(&["apply", "-f", mesh.path("a").to_str().unwrap()]);
    let lines = |word: &str| {
        format!(
            "destinationrule.networking.istio.io/reviews {word}\nvirtualservice.networking.istio.io/reviews {word}\n"
        )
    };
    assert_eq!(applied, format!("{}service/reviews created\n", lines("created")));
    assert_eq!(mesh.ok(&["apply", "-f", &rules]), lines("unchanged"));

    let other = RULES.replace("exact: jason", "exact: tester");
    let dry = mesh.run_with(&["apply", "--dry-run", "-f", "-"], &other);
    assert!(stdout(&dry).contains("virtualservice.networking.istio.io/reviews configured (dry run)"), "{dry:?}");
    assert_eq!(mesh.ok(&["apply", "-f", &rules]), lines("unchanged"), "a dry run changes nothing");
    let configured = mesh.run_with(&["apply", "-f", "-"], &other);
    assert!(stdout(&configured).contains("destinationrule.networking.istio.io/reviews unchanged"), "{configured:?}");
    assert!(stdout(&configured).contains("virtualservice.networking.istio.io/reviews configured"), "{configured:?}");
    mesh.ok(&["apply", "-f", &rules]);

    let table = mesh.ok(&["get", "vs"]);
    assert!(
        table.starts_with("NAME      GATEWAYS   HOSTS         AGE\nreviews   <none>     [\"reviews\"]   "),
        "{table}"
    );
    let table = mesh.ok(&["get", "destinationrules", "-A"]);
    assert!(table.starts_with("NAMESPACE   NAME      HOST      AGE\ndefault     reviews   reviews   "), "{table}");
    assert!(!mesh.ok(&["get", "dr", "--no-headers"]).contains("NAME"));
    assert_eq!(mesh.ok(&["get", "VirtualService", "-o", "name"]), "virtualservice.networking.istio.io/reviews\n");
    let two = mesh.ok(&["get", "vs,dr"]);
    assert!(two.contains("virtualservice.networking.istio.io/reviews") && !two.contains("\nservice/reviews "), "{two}");
    let all = mesh.ok(&["get", "all"]);
    assert!(all.contains("service/reviews") && all.contains("destinationrule.networking.istio.io/reviews"), "{all}");
    let one: Value = serde_json::from_str(&mesh.ok(&["get", "dr", "reviews", "-o", "json"])).unwrap();
    assert_eq!(one["metadata"]["annotations"]["example.com/owner"], "team: reviews");
    let list: Value = serde_json::from_str(&mesh.ok(&["get", "dr", "-o", "json"])).unwrap();
    assert_eq!(list["items"][0], one);

    for kind in ["dr", "vs", "all"] {
        let again = mesh.run_with(&["apply", "-f", "-"], &mesh.ok(&["get", kind, "-o", "yaml"]));
        assert_eq!(again.status.code(), Some(0), "{again:?}");
        assert!(!stdout(&again).contains("configured") && stdout(&again).contains("unchanged"), "{again:?}");
    }

    let missing = mesh.run(&["get", "vs", "ratings"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("virtualservices.networking.istio.io \"ratings\" not found"), "{missing:?}");
    assert_eq!(mesh.ok(&["delete", "vs", "reviews"]), "virtualservice.networking.istio.io \"reviews\" deleted\n");
    assert_eq!(mesh.run(&["delete", "vs", "reviews"]).status.code(), Some(1));
    let rest = mesh.run(&["delete", "-f", &rules]);
    assert_eq!(rest.status.code(), Some(1), "one of the two is gone already");
    assert_eq!(stdout(&rest), "destinationrule.networking.istio.io \"reviews\" deleted\n");
    let empty = mesh.run(&["get", "vs"]);
    assert_eq!((empty.status.code(), stdout(&empty)), (Some(0), ""));
    assert!(stderr(&empty).contains("No resources found in namespace default."), "{empty:?}");
}

/// OP7: what a deletion leaves without its other half is warned of, and deleted all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_deletion_breaks_is_told() {
    let mesh = Mesh::start().await;
    let services = mesh.write("services.yaml", SERVICES);
    let rules = mesh.write("rules.yaml", RULES);
    mesh.ok(&["apply", "-f", &services, "-f", &rules]);
    let deleted = mesh.run(&["delete", "dr", "reviews"]);
    assert_eq!(deleted.status.code(), Some(0), "{deleted:?}");
    assert_eq!(stdout(&deleted), "destinationrule.networking.istio.io \"reviews\" deleted\n");
    let shown = stderr(&deleted);
    for (subset, place) in [("v2", "rules.yaml:24:44"), ("v1", "rules.yaml:26:44")] {
        let message = format!("subset {subset:?} of host \"reviews\" is not defined");
        assert!(shown.contains("warning[IST0101]") && shown.contains(&message) && shown.contains(place), "{shown}");
    }
    // What was told before is not told again, and what nothing needs goes without a word.
    let service = mesh.run(&["delete", "service", "reviews"]);
    assert_eq!(service.status.code(), Some(0), "{service:?}");
    let shown = stderr(&service);
    assert!(shown.contains("no service has the host") && !shown.contains("is not defined"), "{shown}");
    let last = mesh.run(&["delete", "vs", "reviews"]);
    assert_eq!((last.status.code(), stderr(&last)), (Some(0), ""));
    mesh.ok(&["apply", "-f", &services, "-f", &rules]);
    let all = mesh.run(&["delete", "-f", &rules, "-f", &services]);
    assert_eq!((all.status.code(), stderr(&all)), (Some(0), ""), "all of them at once leave nothing behind");
}

/// OP7: bad input is shown where it stands, exits with 65, and nothing of that apply takes effect.
#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_pointed_at_and_changes_nothing() {
    let mesh = Mesh::start().await;
    mesh.write("base.yaml", &format!("{SERVICES}---\n{RULES}"));
    mesh.ok(&["apply", "-f", mesh.path("base.yaml").to_str().unwrap()]);
    let before = mesh.ok(&["get", "all", "-A", "-o", "json"]);
    // What is replaced in a good file by what, and where and how the fault is to be shown.
    let cases = [
        ("hosts: [reviews]", "hosts: [reviews", "19:7", "http:"),
        ("kind: VirtualService", "kind: VirtualServise", "14:7", "kind: VirtualServise"),
        ("  hosts: [reviews]", "  hostz: [reviews]", "18:3", "hostz: [reviews]"),
        ("exact: jason", "exact: [jason]", "22:27", "exact: [jason]"),
        ("subset: v1}", "subset: v33}", "26:44", "subset: v33"),
        ("subset: v1}", "subset: v1}\n      weight: -1", "27:15", "weight: -1"),
    ];
    for (old, new, position, excerpt) in cases {
        // A second, faultless file shows that all of an apply stands or falls together.
        let good = mesh.write("good.yaml", &SERVICES.replace("name: reviews", "name: details"));
        let bad = mesh.write("bad.yaml", &RULES.replacen(old, new, 1));
        let output = mesh.run(&["apply", "-f", &good, "-f", &bad]);
        let shown = stderr(&output);
        println!("{shown}");
        assert_eq!(output.status.code(), Some(65), "{new}: {output:?}");
        assert_eq!(stdout(&output), "", "{new}");
        assert!(shown.contains(&format!("bad.yaml:{position}")), "{new} should be shown at {position}:\n{shown}");
        assert!(shown.contains(excerpt), "{new} should show {excerpt}:\n{shown}");
        assert!(shown.contains("error: nothing was applied because of "), "{shown}");
        assert!(!shown.contains('\u{1b}'), "no colour off a terminal");
        assert_eq!(mesh.ok(&["get", "all", "-A", "-o", "json"]), before, "{new}");
    }
    let absent = mesh.run(&["apply", "-f", mesh.path("absent.yaml").to_str().unwrap()]);
    assert_eq!(absent.status.code(), Some(65));
    assert!(stderr(&absent).contains("absent.yaml"), "{absent:?}");
    std::fs::write(mesh.path("latin.yaml"), b"kind: a\nname: caf\xe9\n").unwrap();
    let latin = mesh.run(&["apply", "-f", mesh.path("latin.yaml").to_str().unwrap()]);
    assert_eq!(latin.status.code(), Some(65));
    assert!(stderr(&latin).contains("latin.yaml:2:10"), "{latin:?}");
}

/// AD6, OP6: explain says which rule decides and where the request goes, without sending it.
#[tokio::test(flavor = "multi_thread")]
async fn requests_are_explained() {
    let mesh = Mesh::start().await;
    let file = mesh.write("all.yaml", &format!("{SERVICES}---\n{RULES}"));
    mesh.ok(&["apply", "-f", &file]);
    let url = "http://reviews:9080/reviews/0";
    let jason = mesh.ok(&["explain", "GET", url, "-H", "end-user:jason"]);
    println!("{jason}");
    assert!(jason.contains("outbound|9080|v2|reviews.default.svc.cluster.local"), "{jason}");
    let anybody = mesh.ok(&["explain", "GET", url]);
    assert!(anybody.contains("outbound|9080|v1|reviews.default.svc.cluster.local"), "{anybody}");
    let json: Value = serde_json::from_str(&mesh.ok(&["explain", "GET", url, "-o", "json"])).unwrap();
    assert!(json.is_object(), "{json}");

    // Nothing runs, but a Deployment says who will.
    let file = mesh.write("deployment.yaml", DEPLOYMENT);
    mesh.ok(&["apply", "-f", &file]);
    for from in ["productpage", "productpage-v1"] {
        let announced = mesh.ok(&["explain", "GET", url, "--from", from]);
        assert!(announced.starts_with("from productpage-v1.default\n"), "{announced}");
    }
    let unknown = mesh.run(&["explain", "GET", url, "--from", "nobody"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("no workload is called \"nobody\""), "{unknown:?}");
    for wrong in [["explain", "GET", "reviews:9080"], ["explain", "G T", url]] {
        assert_eq!(mesh.run(&wrong).status.code(), Some(1), "{wrong:?}");
    }
    assert_eq!(mesh.run(&["explain", "GET", url, "-H", "nonsense"]).status.code(), Some(2));
}

/// OP7: nobody there is 69 with the address tried; wrong usage is 2.
#[tokio::test(flavor = "multi_thread")]
async fn absent_control_plane_and_wrong_usage_have_codes_of_their_own() {
    // Bound once, so that nothing else has it, and closed at once, so that nobody answers.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    std::fs::write(&file, SERVICES).unwrap();
    let file = file.to_str().unwrap();
    let verbs: [&[&str]; 6] = [
        &["apply", "-f", file],
        &["get", "vs"],
        &["delete", "vs", "a"],
        &["explain", "GET", "http://a/"],
        &["proxy-status"],
        &["version"],
    ];
    for verb in verbs {
        let output = meshctl(&address).args(verb).output().unwrap();
        assert_eq!(output.status.code(), Some(69), "{verb:?}: {output:?}");
        assert!(stderr(&output).contains(&address) && stderr(&output).contains("meshctl dev"), "{output:?}");
    }
    let usages: [&[&str]; 7] = [
        &["frobnicate"],
        &["get"],
        &["get", "pods"],
        &["apply"],
        &["delete"],
        &["delete", "vs"],
        &["delete", "vs", "a", "-f", file],
    ];
    for usage in usages {
        let output = meshctl(&address).args(usage).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{usage:?}: {output:?}");
        assert_eq!(stdout(&output), "", "{usage:?}");
    }
    assert_eq!(meshctl(&address).args(["version", "--client"]).output().unwrap().status.code(), Some(0));
}

/// OP7: `dev` names a taken port and the flag to change it, refuses bad files, and ends cleanly when told to.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn dev_runs_a_control_plane_until_told_to_end() {
    let any = "127.0.0.1:0";
    let taken = TcpListener::bind(any).unwrap();
    let address = taken.local_addr().unwrap();
    for (flag, other) in [("--xds-addr", "--api-addr"), ("--api-addr", "--xds-addr")] {
        let output = meshctl(any).args(["dev", flag, &address.to_string(), other, any]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let shown = stderr(&output);
        assert!(shown.contains(&address.port().to_string()) && shown.contains(flag), "{shown}");
    }
    let output = meshctl(any).args(["dev", "--api-addr", "0.0.0.0:0", "--xds-addr", any]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");

    let dir = tempfile::tempdir().unwrap();
    let (state, file) = (dir.path().join("state"), dir.path().join("rules.yaml"));
    let (state, file) = (state.to_str().unwrap(), file.to_str().unwrap());
    std::fs::write(file, "kind: [").unwrap();
    let arguments = ["dev", "--xds-addr", any, "--api-addr", any, "--state-dir", state, "-f", file];
    let output = meshctl(any).args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(65), "{output:?}");

    std::fs::write(file, format!("{SERVICES}---\n{RULES}")).unwrap();
    let mut child = meshctl(any).args(arguments).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let api = lines.find_map(|line| Some(line.split_once("meshctl connects to")?.1.trim().to_owned())).unwrap();
    let output = meshctl(&api).args(["get", "vs", "-o", "name"]).output().unwrap();
    assert_eq!(stdout(&output), "virtualservice.networking.istio.io/reviews\n", "{output:?}");
    let token = |dir: &str| meshctl(&api).args(["workload", "token", "a", "--state-dir", dir]).output().unwrap();
    assert_eq!(stdout(&token(state)).split('.').count(), 3, "a JWT");
    assert_eq!(token(dir.path().to_str().unwrap()).status.code(), Some(1), "not a state directory");
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// TE20, OP9: where no control plane answers, the dashboard runs one, at the address that was looked at, until it is told to end.
#[cfg(unix)]
#[test]
fn the_dashboard_starts_what_it_shows() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let nobody = meshctl(&address).args(["dashboard", "--no-browser", "--no-start"]).output().unwrap();
    assert_eq!((nobody.status.code(), stdout(&nobody)), (Some(69), ""), "{nobody:?}");
    let mut child = meshctl(&address)
        .args(["dashboard", "--no-browser"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let url = format!("http://{address}/console/");
    assert_eq!(lines.next(), Some(url.clone()));
    let again = meshctl(&address).args(["dashboard", "--no-browser"]).output().unwrap();
    assert_eq!((again.status.code(), stdout(&again).trim_end()), (Some(0), &*url), "the second finds the first");
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

struct Mesh {
    plane: ControlPlane,
    dir: TempDir,
}

impl Mesh {
    async fn start() -> Self {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let plane = ControlPlane::builder().xds_addr(any).api_addr(any).start().await.unwrap();
        Self { plane, dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        meshctl(&self.plane.api_address().to_string()).args(arguments).output().unwrap()
    }

    fn run_with(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = meshctl(&self.plane.api_address().to_string())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        stdout(&output).to_owned()
    }
}

fn meshctl(server: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.env("MESHCTL_SERVER", server).env_remove("RUST_LOG").env_remove("CLICOLOR_FORCE");
    command
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}
