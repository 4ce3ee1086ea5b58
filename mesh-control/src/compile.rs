//! Objects and registry in, one [`Config`] per workload out, with Istio's meaning and Istio's names.
//!
//! A [`World`] is what all workloads share, indexed once per change; [`compile`] is the view of one of them. Both are pure:
//! the same world and node give the same configuration, and parts that a change does not touch come out equal.
//!
//! Source: istiod `pilot/pkg/networking/core`, `pilot/pkg/model`.

use std::{net::IpAddr, sync::Arc, time::Duration};

use mesh_core::config::{Config, Labels, MtlsMode};
use serde::{Deserialize, Serialize};

use crate::{
    kinds::Object,
    registry::{Registered, Registry, WorkloadPort},
};

/// What holds for the whole mesh. Source: Istio `MeshConfig`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct MeshSettings {
    /// `trustDomain`.
    pub trust_domain: String,
    /// Where objects that hold for all namespaces live. `rootNamespace`.
    pub root_namespace: String,
    /// What hosts end in: `reviews.default.svc.<domain>`.
    pub domain: String,
    /// What servers demand where no PeerAuthentication says otherwise.
    ///
    /// Strict: secure by default, unlike Istio, whose default is `PERMISSIVE`.
    pub mtls: MtlsMode,
    /// Endpoints that can are called with mutual TLS where no DestinationRule says otherwise. `enableAutoMtls`.
    pub auto_mtls: bool,
    /// Hosts nobody defined are passed through by DNS; otherwise they get 502. `outboundTrafficPolicy`, `ALLOW_ANY`.
    pub allow_any: bool,
    /// `connectTimeout`.
    pub connect_timeout: Duration,
    /// The name of the cluster, for telemetry.
    pub cluster: String,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            domain: "cluster.local".to_owned(),
            mtls: MtlsMode::Strict,
            auto_mtls: true,
            allow_any: true,
            connect_timeout: Duration::from_secs(10),
            cluster: "Kubernetes".to_owned(),
        }
    }
}

/// What all workloads share, indexed.
#[derive(Debug)]
pub struct World {
    /// Every object.
    pub objects: Vec<Arc<Object>>,
    /// Every workload that runs.
    pub workloads: Vec<Arc<Registered>>,
    /// What holds for the whole mesh.
    pub mesh: MeshSettings,
}

impl World {
    /// Indexes the objects and workloads of the moment.
    pub fn new(objects: Vec<Arc<Object>>, registry: &Registry, mesh: MeshSettings) -> Self {
        Self { objects, workloads: registry.workloads(), mesh }
    }
}

/// The workload a configuration is for.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct NodeInfo {
    /// The instance: node metadata `NAME`.
    pub name: String,
    /// `default`.
    pub namespace: String,
    /// `productpage-v1`.
    pub workload: String,
    /// `bookinfo-productpage`.
    pub service_account: String,
    /// `app`, `version`, ...
    pub labels: Labels,
    /// Where it listens.
    pub address: Option<IpAddr>,
    /// What it listens on.
    pub ports: Vec<WorkloadPort>,
    /// Gateways get the routes of the `Gateway`s that select them instead of the mesh's. Node type `router`.
    pub gateway: bool,
}

/// The configuration of one workload.
pub fn compile(world: &World, node: &NodeInfo) -> Config {
    let _ = (world, node);
    Config::default()
}
