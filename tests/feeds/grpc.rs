//! gRPC's own library (the C core, in Python: `pip install grpcio`) gets everything from our control plane, in its own style.
//!
//! The program is `python3`, or what `MESH_GRPC_PYTHON` names; it must be able to import `grpc`.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use mesh_control::{WorkloadSpec, api::SyncState};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    peers::missing,
    plane::{PATIENCE, Plane},
    programs::meshctl,
};

const CALLER: &str = "caller.default";

/// NR2: names in every form resolve; requests are balanced, split, routed by header and made to fail as the sample says.
#[tokio::test(flavor = "multi_thread")]
async fn grpc_serves_bookinfo() {
    let Some((plane, mut client)) = start().await else { return };
    for name in ["reviews", "reviews.default", "reviews.default.svc", "reviews.default.svc.cluster.local"] {
        let said = client.call(&json!({"target": format!("xds:///{name}:9080"), "calls": 5}));
        assert_eq!(said.answers, [("reviews-v1".to_owned(), 5)].into(), "{name}: {said:?}");
    }
    for (name, upstream) in [("details:9080", "details-v1"), ("ratings.default:9080", "ratings-v1")] {
        let said = client.call(&json!({"target": format!("xds:///{name}"), "calls": 5}));
        assert_eq!(said.answers, [(upstream.to_owned(), 5)].into(), "{said:?}");
    }
    plane.synced(CALLER, &["CDS", "LDS", "EDS", "RDS"]).await;

    // One user to v2.
    let jason = json!({"target": "xds:///reviews:9080", "metadata": {"end-user": "jason"}});
    let others = json!({"target": "xds:///reviews:9080", "calls": 400});
    plane.sample("virtual-service-reviews-test-v2.yaml");
    until(&mut client, &jason, |said| said.answers.contains_key("reviews-v2"));
    assert_eq!(client.call(&others).answers, [("reviews-v1".to_owned(), 400)].into());

    // Half of the requests to v3.
    plane.sample("virtual-service-reviews-50-v3.yaml");
    until(&mut client, &jason, |said| said.answers.contains_key("reviews-v3"));
    let said = client.call(&others);
    // Five standard deviations of 400 throws of a coin.
    let v3 = said.answers.get("reviews-v3").copied().unwrap_or(0);
    assert!((150..=250).contains(&v3) && said.answers.len() == 2, "half of 400 to v3, the rest to v1: {said:?}");

    // All three in turn, without a rule.
    plane.apply(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  http:\n  \
         - route: [{destination: {host: reviews}}]\n",
    );
    until(&mut client, &json!({"target": "xds:///reviews:9080", "calls": 30}), |said| {
        said.answers.values().copied().collect::<Vec<_>>() == [10, 10, 10]
    });

    // One user's requests to ratings fail.
    plane.sample("virtual-service-ratings-test-abort.yaml");
    let jason = json!({"target": "xds:///ratings.default:9080", "metadata": {"end-user": "jason"}});
    until(&mut client, &jason, |said| !said.errors.is_empty());
    let said = client.call(&json!({"target": "xds:///ratings.default:9080", "calls": 5}));
    assert_eq!(said.answers, [("ratings-v1".to_owned(), 5)].into(), "{said:?}");
    let status = plane.status(CALLER).unwrap();
    assert!(status.types.values().all(|of| of.error.is_none()), "{status:?}");
}

/// XD3, XD4, OP1: what gRPC refuses is shown by `meshctl proxy-status`, with the error's text and the resource; what was there
/// before stays in force.
#[tokio::test(flavor = "multi_thread")]
async fn what_grpc_refuses_is_shown() {
    let Some((plane, mut client)) = start().await else { return };
    let reviews = json!({"target": "xds:///reviews:9080"});
    until(&mut client, &reviews, |said| said.answers.contains_key("reviews-v1"));
    // Our expressions may be written with spaces; gRPC's may not.
    plane.apply(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  http:\n  \
         - match: [{uri: {regex: \"(?x) /test .*\"}}]\n    route: [{destination: {host: reviews, subset: v3}}]\n",
    );
    let end = Instant::now() + PATIENCE;
    while plane.status(CALLER).is_none_or(|status| status.types["RDS"].state != SyncState::Error) {
        assert!(Instant::now() < end, "the routes are not refused: {:?}", plane.status(CALLER));
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let ran = meshctl(&format!("http://{}", plane.plane.api_address()), &["proxy-status"], "");
    assert!(ran.code == 0 && ran.out.contains("ERROR"), "{}{}", ran.out, ran.err);
    assert!(
        ran.err.contains("caller.default refused RDS") && ran.err.contains("outbound|9080||reviews"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("regex"), "{}", ran.err);
    assert_eq!(client.call(&reviews).answers, [("reviews-v1".to_owned(), 1)].into(), "as before");
}

/// A server of gRPC's own is told by our control plane what it serves: nothing while mutual TLS is demanded of it, for it
/// cannot be told how; everything once plaintext is let in. Then gRPC calls gRPC, and finds it as an endpoint like any other.
#[tokio::test(flavor = "multi_thread")]
async fn grpc_servers_serve_what_they_may() {
    let Some((plane, mut client)) = start().await else { return };
    let python = python().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    plane.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: greeter}}\nspec:\n  selector: {{app: greeter}}\n  ports: [{{name: grpc, \
         port: 9080, targetPort: {port}}}]\n"
    ));
    let spec = WorkloadSpec {
        grpc: true,
        labels: [("app".to_owned(), "greeter".to_owned())].into(),
        ports: vec![port],
        ..WorkloadSpec::new("greeter", Ipv4Addr::LOCALHOST.into())
    };
    let bootstrap = plane.dir.path().join("greeter.json");
    std::fs::write(&bootstrap, plane.bootstrap(&spec).to_string()).unwrap();
    let mut server = Client::start(&python, &bootstrap);
    server.call(&json!({"serve": format!("127.0.0.1:{port}")}));
    let end = Instant::now() + PATIENCE;
    while plane.status("greeter.default").is_none() {
        assert!(Instant::now() < end, "the server asks for its listener");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let said = client.call(&json!({"target": "xds:///greeter:9080", "wait": false, "timeout": 2}));
    assert!(said.answers.is_empty(), "mutual TLS is the default: {said:?}");

    plane.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: greeter}\nspec:\n  selector: {matchLabels: {app: \
         greeter}}\n  mtls: {mode: PERMISSIVE}\n",
    );
    let request = json!({"target": "xds:///greeter:9080", "calls": 3, "wait": false, "timeout": 2});
    until(&mut client, &request, |said| said.answers == [("grpc".to_owned(), 3)].into());
    for name in [CALLER, "greeter.default"] {
        let status = plane.status(name).unwrap();
        assert!(status.types.values().all(|of| of.error.is_none()), "{status:?}");
    }
}

/// A control plane with Bookinfo and a client of it; `None`, after saying so, where something is missing.
async fn start() -> Option<(Plane, Client)> {
    let python = python()?;
    let plane = Plane::start().await?;
    let spec = WorkloadSpec { grpc: true, ..WorkloadSpec::new("caller", Ipv4Addr::LOCALHOST.into()) };
    let bootstrap = plane.dir.path().join("bootstrap.json");
    std::fs::write(&bootstrap, plane.bootstrap(&spec).to_string()).unwrap();
    let client = Client::start(&python, &bootstrap);
    Some((plane, client))
}

/// What calls came to.
#[derive(Debug, Default, Deserialize)]
struct Said {
    answers: BTreeMap<String, u32>,
    errors: BTreeMap<String, Vec<String>>,
}

/// The script, running.
struct Client {
    process: Child,
    asks: ChildStdin,
    says: BufReader<ChildStdout>,
}

impl Client {
    fn start(python: &Path, bootstrap: &Path) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/feeds/grpc_client.py");
        let mut process = Command::new(python)
            .arg(script)
            .env("GRPC_XDS_BOOTSTRAP", bootstrap)
            // The library still calls the token of a bootstrap (gRFC A97) an experiment.
            .env("GRPC_EXPERIMENTAL_XDS_BOOTSTRAP_CALL_CREDS", "true")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let (asks, says) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Self { process, asks, says }
    }

    fn call(&mut self, request: &Value) -> Said {
        writeln!(self.asks, "{request}").unwrap();
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Asks until the answer is as wished.
fn until(client: &mut Client, request: &Value, wished: impl Fn(&Said) -> bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        let said = client.call(request);
        if wished(&said) {
            return;
        }
        assert!(Instant::now() < end, "waited in vain for another answer to {request} than {said:?}");
    }
}

/// A Python that has gRPC's library, or `None` after saying that it is missing.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("MESH_GRPC_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    let ran = Command::new(&python).args(["-c", "import grpc"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if ran.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    let why = format!("{} cannot import grpc; install it with `pip install grpcio`", python.display());
    missing(&why);
    None
}
