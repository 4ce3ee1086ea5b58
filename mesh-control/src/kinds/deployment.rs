//! Kubernetes `Deployment`: a hint of who will run. Nothing is started; labels, account and ports of its pods are read, so
//! that callers know which identities to expect behind a service before the first of its workloads is there.

use mesh_core::config::Labels;

use super::{
    read::{Fields, Reader},
    yaml::Node,
};
use crate::registry::WorkloadPort;

/// A `Deployment`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Deployment {
    /// Labels of its pods.
    pub labels: Labels,
    /// Account of its pods; `default` unless set.
    pub service_account: String,
    /// Ports of its containers.
    pub ports: Vec<WorkloadPort>,
}

impl Deployment {
    pub(crate) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        let mut deployment = Self { service_account: "default".to_owned(), ..Self::default() };
        let mut template_seen = false;
        if let Some((node, path)) = fields.take("template") {
            template_seen = true;
            deployment.read_template(node, &path, reader);
        }
        if !template_seen {
            reader.missing(fields, "template");
        }
        fields.skip(&[
            "replicas",
            "selector",
            "strategy",
            "minReadySeconds",
            "revisionHistoryLimit",
            "progressDeadlineSeconds",
            "paused",
        ]);
        deployment
    }

    /// Pod templates have hundreds of fields that are Kubernetes' business; those we do not read are not checked.
    fn read_template(&mut self, node: &Node, path: &str, reader: &mut Reader<'_>) {
        if let Some(node) = node.get("metadata").and_then(|metadata| metadata.get("labels")) {
            self.labels = reader.labels(node, &format!("{path}.metadata.labels"));
        }
        let Some(spec) = node.get("spec") else { return };
        if let Some(account) = spec.get("serviceAccountName").or_else(|| spec.get("serviceAccount"))
            && let Some(name) = reader.text(account, &format!("{path}.spec.serviceAccountName"))
        {
            self.service_account = name.value;
        }
        let Some(containers) = spec.get("containers") else { return };
        for (container, path) in reader.list(containers, &format!("{path}.spec.containers")) {
            let Some(ports) = container.get("ports") else { continue };
            for (port, path) in reader.list(ports, &format!("{path}.ports")) {
                let name = port.get("name").and_then(|node| reader.text(node, &format!("{path}.name")));
                let number = port.get("containerPort");
                let number = number.and_then(|node| reader.port(node, &format!("{path}.containerPort")));
                if let Some(number) = number {
                    self.ports.push(WorkloadPort { name: name.map(|at| at.value).unwrap_or_default(), number });
                }
            }
        }
    }
}
