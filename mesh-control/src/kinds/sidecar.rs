//! Istio `Sidecar`: what the workloads of a namespace see of the mesh, which bounds what they are sent.
//!
//! Source: `istio.networking.v1.Sidecar`. What it says of a sidecar's own ports means nothing where there is none, and is told as
//! ignored.

use mesh_core::config::Labels;

use super::{
    read::{Fields, Reader},
    yaml::{At, Node},
};

/// A `Sidecar`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sidecar {
    /// Labels of the workloads meant; empty is the whole namespace, in the root namespace the whole mesh.
    pub selector: Labels,
    /// What they see; empty is everything.
    pub egress: Vec<Egress>,
    /// Are hosts nobody defines passed through (`ALLOW_ANY`) or refused (`REGISTRY_ONLY`)? `None` is the mesh's.
    pub allow_any: Option<bool>,
}

/// A part of the mesh that is seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Egress {
    /// Only on this port; `None` is every port that has no part of its own.
    pub port: Option<u16>,
    /// `namespace/host`: a namespace, `.` its own, `*` any, `~` none; a host in full, `*.suffix` or `*`.
    pub hosts: Vec<At<String>>,
}

impl Sidecar {
    pub(crate) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        let mut out = Self::default();
        if let Some((node, path)) = fields.take("workloadSelector")
            && let Some(mut selector) = reader.fields(node, &path)
        {
            out.selector = selector.read("labels", |node, path| Some(reader.labels(node, path))).unwrap_or_default();
            selector.close(reader);
        }
        if let Some((node, path)) = fields.take("egress") {
            for (node, path) in reader.list(node, &path) {
                out.egress.extend(egress(node, &path, reader));
            }
        }
        for (n, part) in out.egress.iter().enumerate() {
            if out.egress.iter().take(n).any(|other| other.port == part.port) {
                let at = part.hosts.first().map_or(fields.at, |host| host.at);
                let which = part.port.map_or_else(|| "without a port".to_owned(), |port| format!("for port {port}"));
                reader.invalid(at, format!("spec.egress has two parts {which}"));
            }
        }
        out.allow_any = fields.read("outboundTrafficPolicy", |node, path| traffic_policy(node, path, reader));
        fields.ignored(
            reader,
            &["ingress", "inboundConnectionPool"],
            "servers listen where they like, and their ports are known by what they say when they connect",
        );
        out
    }
}

fn egress(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Egress> {
    let mut fields = reader.fields(node, path)?;
    let mut out = Egress::default();
    if let Some((node, path)) = fields.take("port")
        && let Some(mut port) = reader.fields(node, &path)
    {
        out.port = port.read("number", |node, path| reader.port(node, path));
        if out.port.is_none() && !port.seen("number") {
            reader.missing(&port, "number");
        }
        // The protocol is the service's.
        port.skip(&["protocol", "name", "targetPort"]);
        port.close(reader);
    }
    match fields.take("hosts") {
        Some((node, path)) => out.hosts = reader.texts(node, &path),
        None => reader.missing(&fields, "hosts"),
    }
    for host in &out.hosts {
        let parts: Vec<&str> = host.split('/').collect();
        let sound = matches!(parts.as_slice(), [namespace, name] if !namespace.is_empty() && !name.is_empty());
        let excluded = host.starts_with('~') && !host.starts_with("~/");
        if excluded {
            reader.unsupported(host.at, &format!("{path}.hosts: {:?}", host.value), "name what is seen instead");
        } else if !sound {
            reader.invalid(host.at, format!("{path}.hosts: {:?} is not namespace/host", host.value)).help = Some(
                "write ./* for the own namespace, */* for all, prod/reviews.prod.svc.cluster.local for one".into(),
            );
        } else if let [_, name] = parts.as_slice()
            && !name.contains('.')
            && *name != "*"
        {
            reader.invalid(host.at, format!("{path}.hosts: {name:?} is a short name")).help =
                Some(format!("write it in full: {name}.NAMESPACE.svc.cluster.local"));
        }
    }
    fields.ignored(reader, &["bind", "captureMode"], "no traffic is captured");
    fields.close(reader);
    Some(out)
}

/// `mode` is `REGISTRY_ONLY` unless set, as protobuf has it.
fn traffic_policy(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<bool> {
    let mut fields = reader.fields(node, path)?;
    let words = [("REGISTRY_ONLY", false), ("ALLOW_ANY", true)];
    let mode = fields.read("mode", |node, path| reader.word(node, path, &words)).unwrap_or(false);
    if let Some((node, path)) = fields.take("egressProxy") {
        reader.unsupported(node.at, &path, "write a ServiceEntry for what goes through an egress gateway");
    }
    fields.close(reader);
    Some(mode)
}
