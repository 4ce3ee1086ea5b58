//! What holds for each workload: mutual TLS by port and the policies that are about it, as it is compiled for its servers, not as objects read.

use mesh_core::config::MtlsMode;
use serde::{Deserialize, Serialize};

use super::{Refusal, authz, authz::PolicyRow, explain};
use crate::{
    compile::{NodeInfo, World, inbound},
    kinds::Key,
    push::{Push, node_info},
    state::State,
};

/// Of several workloads.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Holdings {
    /// In the order in which they are known.
    pub items: Vec<Holding>,
}

/// Of a workload.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Holding {
    /// `NAME.NAMESPACE`.
    pub workload: String,
    /// By port; empty for a gateway, which lets the world in as its own servers say. A port that no service and no workload names is as
    /// [`Self::other_ports`].
    pub ports: Vec<PortMtls>,
    /// What holds at every other port; `None` for a gateway.
    pub other_ports: Option<PortMtls>,
    /// In the order in which they are asked.
    pub policies: Vec<PolicyRow>,
}

/// What a port demands of callers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PortMtls {
    /// 0 is every other.
    pub port: u16,
    /// What it demands.
    pub mode: MtlsMode,
    /// The `PeerAuthentication` that says so; `None` is what holds where none does (`MeshSettings::mtls`).
    pub by: Option<Key>,
}

pub(super) fn look(state: &State, push: &Push, workload: Option<&str>) -> Result<Holdings, Refusal> {
    let nodes = match workload {
        Some(workload) => vec![explain::find(state, push, workload)?],
        None => state.workloads().iter().map(|it| node_info(it)).collect(),
    };
    let world = state.world().1;
    Ok(Holdings { items: nodes.iter().map(|node| of(&world, node)).collect() })
}

fn of(world: &World, node: &NodeInfo) -> Holding {
    let mtls = |port: u16| {
        let (mode, by) = inbound::decided(world, &node.namespace, &node.labels, port);
        PortMtls { port, mode, by: by.cloned() }
    };
    let (ports, other_ports) = match node.gateway {
        true => (Vec::new(), None),
        false => {
            let ports: Vec<u16> =
                inbound::inbound(world, node).map(|(port, _)| port).filter(|port| *port != 0).collect();
            (ports.into_iter().map(mtls).collect(), Some(mtls(0)))
        }
    };
    Holding {
        workload: format!("{}.{}", node.name, node.namespace),
        ports,
        other_ports,
        policies: authz::rows(world, node),
    }
}
