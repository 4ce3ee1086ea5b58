//! Bookinfo's processes on istiod: who runs where is said in ServiceEntries and WorkloadEntries, the rest in Istio's own files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use crate::calls::{client, get};
use crate::front::{Front, PATIENCE};
use crate::peers::istio;
use crate::process::{Istiod, Options, SERVER_NAME};
use crate::programs::{Killed, free_network, program};
use crate::steps::Configured;

/// How the processes speak with istiod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    /// By TLS with a token: then they have certificates, and speak mutual TLS with each other, and nothing else.
    pub(crate) secure: bool,
    /// By the incremental protocol.
    pub(crate) delta: bool,
}

/// One process: name, `app`, `version`, last number of its address, its environment.
type Member = (&'static str, &'static str, &'static str, u8, &'static [(&'static str, &'static str)]);

const GATEWAY: &str = "istio-ingressgateway";
const MEMBERS: [Member; 7] = [
    ("istio-ingressgateway", GATEWAY, "", 10, &[]),
    ("productpage-v1", "productpage", "v1", 11, &[]),
    ("details-v1", "details", "v1", 12, &[]),
    ("ratings-v1", "ratings", "v1", 13, &[]),
    ("reviews-v1", "reviews", "v1", 14, &[("ENABLE_RATINGS", "false")]),
    ("reviews-v2", "reviews", "v2", 15, &[("ENABLE_RATINGS", "true")]),
    ("reviews-v3", "reviews", "v3", 16, &[("ENABLE_RATINGS", "true"), ("STAR_COLOR", "red")]),
];

/// One test at a time: they count and measure, and one test's load would be another's delay.
pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// A Bookinfo whose control plane is istiod.
pub(crate) struct Bookinfo {
    /// The control plane.
    pub(crate) istiod: Istiod,
    /// The processes; each ends with its standard input.
    processes: Vec<(Killed, Option<ChildStdin>)>,
    network: [u8; 3],
    dir: TempDir,
}

impl Bookinfo {
    /// Starts istiod, then the seven processes, and waits until the page is whole.
    pub(crate) async fn start(istiod: PathBuf, way: Way, options: Options) -> Self {
        let network = free_network();
        let dir = tempfile::Builder::new().prefix("istiod-").tempdir().unwrap();
        let config = dir.path().join("config");
        std::fs::create_dir_all(&config).unwrap();
        std::fs::write(config.join("who-runs-where.yaml"), who_runs_where(network, way)).unwrap();
        let istiod = Istiod::start(istiod, dir.path(), network, options).await;
        let mut this = Self { istiod, processes: Vec::new(), network, dir };
        this.put_back();
        for member in MEMBERS {
            this.processes.push(this.run(member, way));
        }
        for (name, ..) in MEMBERS {
            this.until_ready(name).await;
        }
        this.until_status("/productpage", 200).await;
        this
    }

    /// An address in its network.
    fn at(&self, last: u8, port: u16) -> SocketAddr {
        let [a, b, c] = self.network;
        SocketAddr::from(([a, b, c, last], port))
    }

    /// Where a member serves requests.
    pub(crate) fn listens(&self, name: &str) -> SocketAddr {
        let (_, _, _, last, _) = MEMBERS.iter().find(|member| member.0 == name).expect("a member");
        self.at(*last, 9080)
    }

    /// Where a member tells of itself.
    pub(crate) fn admin(&self, name: &str) -> SocketAddr {
        SocketAddr::new(self.listens(name).ip(), 15000)
    }

    /// The node id of a member.
    pub(crate) fn node_id(&self, name: &str) -> String {
        let (_, app, _, last, _) = MEMBERS.iter().find(|member| member.0 == name).expect("a member");
        let (kind, namespace) = if *app == GATEWAY { ("router", "istio-system") } else { ("sidecar", "default") };
        format!("{kind}~{}~{name}.{namespace}~{namespace}.svc.cluster.local", self.at(*last, 0).ip())
    }

    /// The bootstrap of a member.
    pub(crate) fn bootstrap_of(&self, name: &str) -> String {
        self.dir.path().join(format!("{name}.json")).to_str().unwrap().to_owned()
    }

    /// The names of all members.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        MEMBERS.iter().map(|member| member.0)
    }

    fn run(&self, member: Member, way: Way) -> (Killed, Option<ChildStdin>) {
        let (name, app, _, last, environment) = member;
        let bootstrap = self.bootstrap_of(name);
        std::fs::write(&bootstrap, self.bootstrap(member, way).to_string()).unwrap();
        let log = File::create(self.log(name)).unwrap();
        let mut command = Command::new(program("examples/bookinfo"));
        let listen = self.at(last, 9080).to_string();
        match app {
            GATEWAY => command.args(["gateway", &listen, "8080"]),
            app => command.args([app, &listen]),
        };
        let end_user = if app == "productpage" { "" } else { "end-user," };

        command
            .env("GRPC_XDS_BOOTSTRAP", bootstrap)
            .env("MESH_ADMIN_ADDR", self.at(last, 15000).to_string())
            .env("MESH_PROPAGATE_HEADERS", format!("{end_user}x-request-id,user-agent,cookie"))
            .env("HOSTNAME", name)
            .env("BOOKINFO_SUPERVISED", "1")
            .env("RUST_LOG", "info")
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(Stdio::from(log));
        let mut process = command.spawn().expect("the example starts");
        let stdin = process.stdin.take();
        (Killed(process), stdin)
    }

    fn bootstrap(&self, (name, app, version, last, _): Member, way: Way) -> Value {
        let address = self.at(last, 9080);
        let is_gateway = app == GATEWAY;
        let namespace = if is_gateway { "istio-system" } else { "default" };
        let account = if is_gateway { GATEWAY.to_owned() } else { format!("bookinfo-{app}") };
        let labels = match is_gateway {
            true => json!({"app": GATEWAY, "istio": "ingressgateway"}),
            false => json!({"app": app, "version": version}),
        };
        let node = json!({
            "id": self.node_id(name),
            "cluster": format!("{app}.{namespace}"),
            "metadata": {
                "NAME": name, "NAMESPACE": namespace, "WORKLOAD_NAME": name, "SERVICE_ACCOUNT": account, "LABELS": labels,
                "INSTANCE_IPS": address.ip().to_string(), "CLUSTER_ID": "Kubernetes", "MESH_ID": "cluster.local",
                "PROXY_CONFIG": {}, "ISTIO_VERSION": "1.29.6",
            },
        });
        let mut server = match way.secure {
            false => json!({
                "server_uri": self.istiod.at(15010).to_string(),
                "channel_creds": [{"type": "insecure"}],
            }),
            true => {
                let token = self.dir.path().join(format!("{name}.token"));
                self.istiod.write_token(&token, namespace, &account);
                let tls = json!({"ca_certificate_file": self.istiod.root(), "server_name": SERVER_NAME});
                json!({
                    "server_uri": self.istiod.at(15012).to_string(),
                    "channel_creds": [{"type": "tls", "config": tls}],
                    "call_creds": [{"type": "jwt_token_file", "config": {"jwt_token_file": token}}],
                })
            }
        };
        server["server_features"] = json!(["xds_v3"]);
        json!({"xds_servers": [server], "node": node, "mesh": {"delta": way.delta}})
    }

    /// Waits until a member says that it is ready.
    async fn until_ready(&self, name: &str) {
        let (client, uri) = (client(), format!("http://{}/ready", self.admin(name)));
        let until = Instant::now() + PATIENCE;
        while get(&client, &uri, &[]).await.status != 200 {
            assert!(Instant::now() < until, "{name} is not ready; it said:\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Where objects are put.
    fn config(&self) -> PathBuf {
        self.dir.path().join("config")
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    /// Applies YAML as the Kubernetes API would keep it: one object of a kind and name, in namespace `default` unless it says
    /// another. Each object has a file, which is replaced whole.
    pub(crate) fn apply(&self, yaml: &str) {
        for object in yaml.split("\n---").filter(|object| object.contains("kind:")) {
            let field = |key: &str| {
                let line = object.lines().find_map(|line| line.trim_start().strip_prefix(key));
                line.unwrap_or_else(|| panic!("no {key} in {object}")).trim().to_lowercase()
            };
            let object = match object.contains("namespace:") {
                true => object.to_owned(),
                false => object.replacen("metadata:", "metadata:\n  namespace: default", 1),
            };
            let file = self.config().join(format!("{}.{}.yaml", field("kind:"), field("name:")));
            let mut whole = tempfile::NamedTempFile::new_in(self.dir.path()).unwrap();
            whole.write_all(object.trim_start_matches("---").as_bytes()).unwrap();
            whole.persist(file).unwrap();
        }
    }

    /// The configuration of the start: who runs where, and the gateway.
    fn put_back(&self) {
        for entry in std::fs::read_dir(self.config()).unwrap() {
            let file = entry.unwrap().path();
            if file.file_name() != Some("who-runs-where.yaml".as_ref()) {
                std::fs::remove_file(file).unwrap();
            }
        }
        self.apply_istio("networking/bookinfo-gateway.yaml");
    }
}

impl Front for Bookinfo {
    fn gateway(&self) -> SocketAddr {
        self.at(10, 9080)
    }

    fn said(&self) -> String {
        let last = |path: &Path| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(20)..].join("\n")
        };
        let members = Self::names().map(|name| format!("== {name}\n{}\n", last(&self.log(name))));
        format!("{}== istiod\n{}", members.collect::<String>(), self.istiod.said())
    }
}

impl Configured for Bookinfo {
    async fn reset(&self) {
        self.put_back();
        self.until_status("/productpage", 200).await;
        // Also nothing is left of the rules for reviews.
        self.until_reviews_by(&["reviews-v1", "reviews-v2", "reviews-v3"], "").await;
    }

    fn apply_istio(&self, file: &str) {
        self.apply(&std::fs::read_to_string(istio(file).expect("checked by the test")).unwrap());
    }

    fn delete(&self, kind: &str, name: &str) {
        std::fs::remove_file(self.config().join(format!("{kind}.{name}.yaml"))).unwrap();
    }
}

/// The four services and the six workloads, and what they demand of each other.
fn who_runs_where([a, b, c]: [u8; 3], way: Way) -> String {
    let mut ports = BTreeMap::new();
    let mut yaml = String::new();
    for (name, app, version, last, _) in MEMBERS.iter().filter(|member| member.1 != GATEWAY) {
        let mtls = if way.secure { "" } else { ", security.istio.io/tlsMode: disabled" };
        yaml += &format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: default}}\n\
             spec: {{address: {a}.{b}.{c}.{last}, serviceAccount: bookinfo-{app}, \
             labels: {{app: {app}, version: {version}{mtls}}}}}\n---\n"
        );
        ports.entry(*app).or_insert(*last);
    }
    for (app, number) in ports {
        yaml += &format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {app}, namespace: default}}\n\
             spec: {{hosts: [{app}.default.svc.cluster.local], addresses: [240.240.0.{number}], location: MESH_INTERNAL, \
             resolution: STATIC, ports: [{{number: 9080, name: http, protocol: HTTP}}], \
             workloadSelector: {{labels: {{app: {app}}}}}}}\n---\n"
        );
    }
    let mode = if way.secure { "STRICT" } else { "DISABLE" };
    yaml + &format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: istio-system}}\n\
         spec: {{mtls: {{mode: {mode}}}}}\n"
    )
}
