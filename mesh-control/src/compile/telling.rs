//! What a workload tells of its requests: the mesh's Telemetry, then the namespace's, then the workload's own.
//!
//! Source: Istio `pilot/pkg/model/telemetry.go`: the oldest of a level counts, and a narrower level changes what a wider one
//! says. A process with nothing said follows its environment.

use std::sync::Arc;

use mesh_core::config::{HttpSettings, Telling};

use super::{NodeInfo, World, world::includes};
use crate::kinds::{Spec, Telemetry};

/// What is said of one side; `None` is nothing.
pub(crate) fn telling(world: &World, node: &NodeInfo, server: bool) -> Option<Arc<Telling>> {
    let root = &world.mesh.root_namespace;
    let objects = || {
        world.by_age.iter().filter_map(|object| match &object.spec {
            Spec::Telemetry(telemetry) => Some((&object.key.namespace, telemetry)),
            _ => None,
        })
    };
    let wide = |of: &str| objects().find(|(namespace, it)| *namespace == of && it.selector.is_empty());
    let narrow = objects().find(|(namespace, it)| {
        **namespace == node.namespace && !it.selector.is_empty() && includes(&node.labels, &it.selector)
    });
    let of_namespace = (node.namespace != *root).then(|| wide(&node.namespace)).flatten();
    let mut telling = Telling::default();
    let apply = |(_, it): (&String, &Telemetry)| it.apply(server, &mut telling);
    [wide(root), of_namespace, narrow].into_iter().flatten().for_each(apply);
    (telling != Telling::default()).then(|| Arc::new(telling))
}

/// The settings of every outbound port of a caller, where there are any to give.
pub(crate) fn settings(world: &World, caller: &NodeInfo) -> Option<Arc<HttpSettings>> {
    let telling = telling(world, caller, false)?;
    Some(Arc::new(HttpSettings { telling: Some(telling), ..HttpSettings::default() }))
}
