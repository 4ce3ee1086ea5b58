//! Who connects, by the metadata of its node: what the registry keeps of it, and whom a configuration is for.

use std::net::{IpAddr, SocketAddr};

use mesh_xds::node::{ADMIN, FEATURES_KEY, Node, VERSION};

use crate::{
    compile::{NodeInfo, REVISION},
    registry::{Registered, WorkloadPort},
    state::now,
};

/// What the metadata says of a workload. Source: Istio's node metadata.
pub(super) fn registered(node: &Node) -> Result<Registered, String> {
    let mut id = node.id.split('~');
    let (role, ip) = (id.next().unwrap_or_default(), id.next().unwrap_or_default());
    let ip = node.meta("INSTANCE_IPS").and_then(|ips| ips.split(',').next()).unwrap_or(ip);
    let address: IpAddr = ip.trim().parse().map_err(|_| {
        format!("node {:?}: {ip:?} (metadata INSTANCE_IPS, else the id's second part) is not an IP address", node.id)
    })?;
    let ports: Vec<WorkloadPort> = match node.meta("POD_PORTS") {
        Some(text) => serde_json::from_str(text)
            .map_err(|error| format!("node {:?}: metadata POD_PORTS is not a list of ports: {error}", node.id))?,
        None => Vec::new(),
    };
    let workload = node.workload();
    let name = node.meta("NAME").unwrap_or(&workload.name);
    if name.is_empty() {
        return Err(format!("node {:?}: metadata NAME is missing", node.id));
    }
    Ok(Registered {
        name: name.to_owned(),
        namespace: node.namespace().to_owned(),
        workload: workload.name.to_string(),
        service_account: node.service_account().to_owned(),
        address,
        ports,
        labels: node.labels(),
        locality: node.locality.clone(),
        gateway: role == "router",
        group: node.meta("AUTO_REGISTER_GROUP").unwrap_or_default().to_owned(),
        weight: 0,
        unhealthy: None,
        admin: node
            .meta(ADMIN)
            .and_then(|address| address.parse().ok())
            .filter(|it: &SocketAddr| it.ip().is_loopback()),
        since: now(),
        lost: None,
    })
}

/// What a member says of its program.
#[derive(Clone, Debug, Default)]
pub(super) struct Program {
    pub(super) version: String,
    pub(super) features: Vec<String>,
    pub(super) revision: String,
}

impl Program {
    /// Features kept of one member.
    const MOST: usize = 64;

    pub(super) fn of(node: &Node) -> Self {
        let text = |key: &str| node.meta(key).unwrap_or_default();
        let features = text(FEATURES_KEY).split(',').filter(|name| !name.is_empty()).take(Self::MOST);
        Self {
            version: text(VERSION).to_owned(),
            features: features.map(str::to_owned).collect(),
            revision: node.labels().remove(REVISION).unwrap_or_default(),
        }
    }
}

/// A workload as the one a configuration is for.
pub(crate) fn node_info(workload: &Registered) -> NodeInfo {
    NodeInfo {
        name: workload.name.clone(),
        namespace: workload.namespace.clone(),
        workload: workload.workload.clone(),
        service_account: workload.service_account.clone(),
        labels: workload.labels.clone(),
        locality: workload.locality.clone(),
        address: Some(workload.address),
        ports: workload.ports.clone(),
        gateway: workload.gateway,
    }
}
