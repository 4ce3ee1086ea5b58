//! An embedded control plane that knows Bookinfo: its services and subsets, and a server of ours behind each workload.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use mesh_control::{
    ControlPlane, WorkloadSpec,
    api::{ProxyStatus, SyncState},
    store::SourceFile,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{peers::istio, upstream::Upstream};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The workloads of Bookinfo: application and version.
const WORKLOADS: [(&str, &str); 6] = [
    ("productpage", "v1"),
    ("details", "v1"),
    ("ratings", "v1"),
    ("reviews", "v1"),
    ("reviews", "v2"),
    ("reviews", "v3"),
];

/// A control plane, and what stands behind its services.
pub(crate) struct Plane {
    pub(crate) plane: ControlPlane,
    pub(crate) dir: TempDir,
    _upstreams: Vec<Upstream>,
}

impl Plane {
    /// Starts one that knows Bookinfo; `None`, after saying so, without Istio's sample files.
    pub(crate) async fn start() -> Option<Self> {
        let bookinfo = read("platform/kube/bookinfo.yaml")?;
        let rules = read("networking/destination-rule-all.yaml")?;
        let all_v1 = read("networking/virtual-service-all-v1.yaml")?;
        let any = "127.0.0.1:0".parse().unwrap();
        let plane = ControlPlane::builder().xds_addr(any).api_addr(any).start().await.unwrap();
        let mut upstreams = Vec::new();
        let mut entries = String::new();
        for (app, version) in WORKLOADS {
            let upstream = Upstream::echo(&format!("{app}-{version}")).await;
            entries.push_str(&format!(
                "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {app}-{version}}}\nspec:\n  \
                 address: 127.0.0.1\n  ports: {{http: {}}}\n  labels: {{app: {app}, version: {version}}}\n",
                upstream.address().port()
            ));
            upstreams.push(upstream);
        }
        let this = Self { plane, dir: tempfile::tempdir().unwrap(), _upstreams: upstreams };
        for text in [bookinfo, entries, rules, all_v1] {
            this.apply(&text);
        }
        Some(this)
    }

    /// Applies a text.
    pub(crate) fn apply(&self, text: &str) {
        let file = SourceFile { name: "test.yaml".into(), text: text.to_owned() };
        self.plane.apply(&[file]).unwrap_or_else(|error| panic!("{error:?} in\n{text}"));
    }

    /// Applies a file of the sample.
    pub(crate) fn sample(&self, file: &str) {
        self.apply(&read(&format!("networking/{file}")).unwrap());
    }

    /// The bootstrap of a workload, as our own clients take it.
    pub(crate) fn bootstrap(&self, spec: &WorkloadSpec) -> Value {
        self.plane.bootstrap_for(spec, self.dir.path()).unwrap()
    }

    /// What became of what was sent to a workload.
    pub(crate) fn status(&self, name: &str) -> Option<ProxyStatus> {
        self.plane.proxy_status().into_iter().find(|status| status.name == name)
    }

    /// Waits until a workload uses all that it was sent of these types.
    pub(crate) async fn synced(&self, name: &str, types: &[&str]) {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.status(name);
            let is_synced = |status: &ProxyStatus| types.iter().all(|t| status.types[*t].state == SyncState::Synced);
            if status.as_ref().is_some_and(is_synced) {
                return;
            }
            assert!(Instant::now() < until, "{name} does not come to use what it is sent: {status:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn read(file: &str) -> Option<String> {
    istio(file).map(|path: std::path::PathBuf| text(&path))
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
