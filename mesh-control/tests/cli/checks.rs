//! Files looked at before they count: `validate`, `analyze`, `diff`, and a folder that is watched.

use std::{fs, time::Duration};

use super::*;

const CLEAN: &str = "\
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {ports: [{name: http, port: 9080}], selector: {app: reviews}}
";

/// One of each finding.
const ODD: &str = "\
apiVersion: v1
kind: Service
metadata: {name: odd}
spec: {ports: [{name: web, port: 9080}], selector: {app: odd}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: odd-v1}
spec: {template: {metadata: {labels: {app: odd, version: v1}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: odd}
spec:
  host: odd
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v9, labels: {version: v9}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a}
spec: {hosts: [db.example.com], ports: [{number: 5432, name: tcp, protocol: TCP}], resolution: DNS}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: b}
spec: {hosts: [db.example.com], ports: [{number: 5432, name: http, protocol: HTTP}], resolution: DNS}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: one}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: two}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: three}
spec: {workloadSelector: {labels: {app: nobody}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: odd}
spec:
  hosts: [odd]
  http:
  - match: [{uri: {prefix: /a}}]
    delegate: {name: gone}
  - route: [{destination: {host: nowhere}}]
  - route: [{destination: {host: odd}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: odd}
spec:
  parentRefs: [{name: no-gateway}, {group: '', kind: Service, name: odd}]
  rules: [{backendRefs: [{name: lost, port: 80}]}]
";

/// OP3: files are validated without a control plane; every error at its place, and 65.
#[tokio::test(flavor = "multi_thread")]
async fn files_are_validated_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good.yaml"), dir.path().join("bad.yaml"));
    fs::write(&good, CLEAN).unwrap();
    fs::write(&bad, format!("{CLEAN}---\nkind: [\n---\n{}", CLEAN.replace("port: 9080", "prot: 9080"))).unwrap();
    let (good, bad) = (good.to_str().unwrap(), bad.to_str().unwrap());
    let output = meshctl("127.0.0.1:1").args(["validate", good]).output().unwrap();
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), format!("{good:?} is valid\n").as_str()));
    let output = meshctl("127.0.0.1:1").args(["validate", "-f", good, "-f", bad]).output().unwrap();
    assert_eq!(output.status.code(), Some(65), "{output:?}");
    assert_eq!(stdout(&output), format!("{good:?} is valid\n"));
    let shown = stderr(&output);
    for said in ["error[MSH0001]", "bad.yaml:11:29", "did you mean \"port\"?", "3 errors in 1 file"] {
        assert!(shown.contains(said), "{said}:\n{shown}");
    }
    assert_eq!(meshctl("127.0.0.1:1").args(["validate"]).output().unwrap().status.code(), Some(2));
}

/// OP3: findings have Istio's codes, levels and places, the worst first; the exit code says that there are some.
#[tokio::test(flavor = "multi_thread")]
async fn findings_are_istios() {
    let mesh = Mesh::start().await;
    let odd = mesh.write("odd.yaml", ODD);
    let offline = mesh.run(&["analyze", "--offline", &odd]);
    assert_eq!(offline.status.code(), Some(79), "{offline:?}");
    let shown = stdout(&offline).replace(&odd, "odd.yaml");
    let expected = "\
Error [IST0173] (DestinationRule default/odd odd.yaml:18:12) subset \"v9\" selects no workload of odd.default.svc.cluster.local (version=v9)
Error [IST0111] (Sidecar default/two odd.yaml:36:18) the namespace has a Sidecar without selector already, which counts
Error [IST0101] (VirtualService default/odd odd.yaml:50:22) delegate \"gone\" of namespace \"default\" does not exist
Error [IST0101] (VirtualService default/odd odd.yaml:51:34) no service has the host \"nowhere.default.svc.cluster.local\"
Error [IST0101] (HTTPRoute default/odd odd.yaml:58:23) Gateway \"no-gateway\" of namespace \"default\" does not exist
Error [IST0109] (HTTPRoute default/odd odd.yaml:58:69) host \"odd\" has a VirtualService already, which counts
Error [IST0101] (HTTPRoute default/odd odd.yaml:59:33) no service has the host \"lost.default.svc.cluster.local\"
Warning [IST0134] (ServiceEntry default/a odd.yaml:23:16) port 5432 is TCP and spec.addresses is empty, so any address may be meant
Warning [IST0177] (ServiceEntry default/b odd.yaml:28:16) port 5432 of \"db.example.com\" has another protocol elsewhere
Warning [IST0127] (Sidecar default/three odd.yaml:41:36) no workload has the labels app=nobody
Warning [IST0130] (VirtualService default/odd odd.yaml:52:5) this rule is never reached, as an earlier one takes every request
Info [IST0118] (Service default/odd odd.yaml:4:17) port name \"web\" does not say what is spoken, which is taken for HTTP
";
    let lines: Vec<&str> = shown.lines().filter(|line| !line.contains("MSH0009")).collect();
    assert_eq!(lines, expected.lines().collect::<Vec<_>>(), "{shown}");
    assert!(stderr(&offline).contains("analysis found 7 errors, 4 warnings, 2 infos"), "{offline:?}");

    // In the company of what the control plane holds there is a `nowhere`.
    let nowhere = mesh.write("nowhere.yaml", &CLEAN.replace("reviews", "nowhere"));
    mesh.ok(&["apply", "-f", &nowhere]);
    let live = mesh.run(&["analyze", &odd, "-o", "json"]);
    let found: Vec<Value> = serde_json::from_str(stdout(&live)).unwrap();
    assert!(!found.iter().any(|it| it["message"].as_str().unwrap().contains("nowhere")), "{found:?}");
    assert!(found.iter().all(|it| it["line"].as_u64().unwrap() > 0 && it["file"] == odd.as_str()), "{found:?}");
    let quiet = mesh.run(&["analyze", "--output-threshold", "error", "-S", "*=*", &odd]);
    assert_eq!((quiet.status.code(), stdout(&quiet)), (Some(0), ""), "{quiet:?}");
    let clean = mesh.run(&["analyze"]);
    assert_eq!((clean.status.code(), stdout(&clean)), (Some(0), ""), "{clean:?}");
    assert!(stderr(&clean).contains("No issues found."));
    let strict = mesh.run(&["analyze", "--offline", "--failure-threshold", "info", &nowhere]);
    assert_eq!(strict.status.code(), Some(0), "{strict:?}");
}

/// OP7: a diff says line by line what an apply would change, and by its exit code whether it would.
#[tokio::test(flavor = "multi_thread")]
async fn differences_are_shown() {
    let mesh = Mesh::start().await;
    let file = mesh.write("s.yaml", CLEAN);
    let new = mesh.run(&["diff", "-f", &file]);
    assert_eq!(new.status.code(), Some(1), "{new:?}");
    assert!(stdout(&new).starts_with("--- /dev/null\n+++ "), "{new:?}");
    mesh.ok(&["apply", "-f", &file]);
    assert_eq!(mesh.ok(&["diff", "-f", &file]), "");
    let other = mesh.write("s.yaml", &CLEAN.replace("app: reviews", "app: others"));
    let changed = mesh.run(&["diff", "-f", &other]);
    assert_eq!(changed.status.code(), Some(1));
    let lines: Vec<&str> = stdout(&changed).lines().filter(|line| line.starts_with(['-', '+'])).collect();
    assert_eq!(lines.len(), 4, "{changed:?}");
    assert!(lines[2].ends_with("app: reviews") && lines[3].ends_with("app: others"), "{lines:?}");
    assert!(!stderr(&changed).contains("error"), "{changed:?}");
    let broken = mesh.write("s.yaml", "kind: [");
    assert_eq!(mesh.run(&["diff", "-f", &broken]).status.code(), Some(65));
}

/// OP7, XD39: what the files of a watched folder say is what holds: changed with them, deleted with them, and as before while one of them
/// is wrong. What was applied by hand stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_watched_folder_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("config");
    fs::create_dir_all(folder.join("deep")).unwrap();
    fs::write(folder.join("reviews.yaml"), CLEAN).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let plane = ControlPlane::builder().xds_addr(any).api_addr(any).watch(&folder).start().await.unwrap();
    let mesh = Mesh { plane, dir };
    let names = || mesh.ok(&["get", "svc", "-o", "name"]);
    assert_eq!(names(), "service/reviews\n", "before anybody is listened to");
    let by_hand = mesh.write("by-hand.yaml", &CLEAN.replace("reviews", "by-hand"));
    mesh.ok(&["apply", "-f", &by_hand]);
    fs::write(folder.join("deep/ratings.yaml"), CLEAN.replace("reviews", "ratings")).unwrap();
    wait_until(|| names() == "service/by-hand\nservice/ratings\nservice/reviews\n").await;
    fs::write(folder.join("broken.yaml"), "kind: [").unwrap();
    fs::remove_file(folder.join("reviews.yaml")).unwrap();
    // Longer than it takes to see both.
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(names(), "service/by-hand\nservice/ratings\nservice/reviews\n", "a fault changes nothing");
    fs::remove_file(folder.join("broken.yaml")).unwrap();
    wait_until(|| names() == "service/by-hand\nservice/ratings\n").await;
}

async fn wait_until(what: impl Fn() -> bool) {
    for _ in 0..200 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it did not come true");
}

/// OP7: `get --watch` prints what there is and then what changes.
#[tokio::test(flavor = "multi_thread")]
async fn changes_are_watched() {
    let mesh = Mesh::start().await;
    let file = mesh.write("s.yaml", CLEAN);
    mesh.ok(&["apply", "-f", &file]);
    let mut child = meshctl(&mesh.plane.api_address().to_string())
        .args(["get", "svc", "--watch", "-o", "name"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert_eq!(lines.next().as_deref(), Some("service/reviews"));
    let other = mesh.write("o.yaml", &CLEAN.replace("reviews", "ratings"));
    mesh.ok(&["apply", "-f", &other]);
    assert_eq!(lines.next().as_deref(), Some("service/ratings"));
    mesh.write("s.yaml", &CLEAN.replace("app: reviews", "app: others"));
    mesh.ok(&["apply", "-f", &file]);
    assert_eq!(lines.next().as_deref(), Some("service/reviews"));
    mesh.ok(&["delete", "svc", "ratings"]);
    let mut notes = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert_eq!(notes.next().as_deref(), Some("service \"ratings\" deleted"));
    child.kill().unwrap();
    child.wait().unwrap();
}
