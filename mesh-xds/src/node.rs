//! Who a client of the control plane is: the xDS node with Istio's metadata keys, and what follows from it.

use std::collections::BTreeMap;

use mesh_core::config::{Labels, Local, Locality, Name, Workload};
use prost_types::{ListValue, Struct, Value as ProtoValue, value::Kind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::proto::envoy::config::core::v3;

/// Node metadata: where the admin port of the process is, on a loopback address. Not Istio's.
pub const ADMIN: &str = "MESH_ADMIN_ADDR";
/// Node metadata: the version of this client. Not Istio's, whose `ISTIO_VERSION` says whose conventions are followed.
pub const VERSION: &str = "MESH_VERSION";
/// Node metadata: what of a configuration this client acts on, names of [`FEATURES`] with commas between. Not Istio's.
pub const FEATURES_KEY: &str = "MESH_FEATURES";
/// What a control plane may rely on with this client, by names that stay: what another version lacks, it does not say.
pub const FEATURES: [&str; 14] = [
    "authz",
    "csds",
    "delta",
    "ext-authz",
    "fault",
    "gateway",
    "grpc-servers",
    "hedging",
    "jwt",
    "mtls",
    "outlier-detection",
    "rate-limit",
    "sds",
    "telemetry",
];

/// A node as the bootstrap states it and the first request of a stream carries it (XD20).
///
/// Source: Envoy `core.v3.Node`; the metadata keys are Istio's.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Node {
    /// `sidecar~10.0.0.5~reviews-v1.default~default.svc.cluster.local`.
    pub id: String,
    /// Envoy `Node.cluster`; Istio: `app.namespace`.
    pub cluster: String,
    /// Where the client runs.
    pub locality: Locality,
    /// Passed on to the server as it is.
    pub metadata: Map<String, Value>,
    /// Which program it is, as it says itself; no part of a bootstrap. Envoy `Node.user_agent_name`.
    #[serde(skip)]
    pub user_agent: String,
}

impl Node {
    /// The trust domain assumed when the metadata names none.
    pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

    /// A metadata value that is a string; empty counts as absent.
    pub fn meta(&self, key: &str) -> Option<&str> {
        self.metadata.get(key)?.as_str().filter(|value| !value.is_empty())
    }

    /// Metadata `NAMESPACE`, else the first label of the DNS domain in the node id, else `default`.
    pub fn namespace(&self) -> &str {
        let of_id = || self.id.split('~').nth(3)?.split('.').next().filter(|label| !label.is_empty());
        self.meta("NAMESPACE").or_else(of_id).unwrap_or("default")
    }

    /// Metadata `SERVICE_ACCOUNT`, else `default`.
    pub fn service_account(&self) -> &str {
        self.meta("SERVICE_ACCOUNT").unwrap_or("default")
    }

    /// Metadata `TRUST_DOMAIN`, else `MESH_ID` (which Istio sets to the trust domain), else `cluster.local`; `@` is `.`.
    pub fn trust_domain(&self) -> String {
        let domain = self.meta("TRUST_DOMAIN").or_else(|| self.meta("MESH_ID")).unwrap_or(Self::DEFAULT_TRUST_DOMAIN);
        domain.replace('@', ".")
    }

    /// The SPIFFE id this node asks a certificate for: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.
    pub fn identity(&self) -> String {
        format!("spiffe://{}/ns/{}/sa/{}", self.trust_domain(), self.namespace(), self.service_account())
    }

    /// What of it matters to balancing: who and where it is, and the cluster that its own service is called by, if the node's
    /// `cluster` is the name of one (Envoy's `local_cluster_name`).
    pub fn local(&self) -> Local {
        Local { id: self.id.as_str().into(), locality: self.locality.clone(), cluster: self.cluster.as_str().into() }
    }

    pub(crate) fn to_proto(&self) -> v3::Node {
        v3::Node {
            id: self.id.clone(),
            cluster: self.cluster.clone(),
            metadata: Some(to_struct(&self.metadata)),
            locality: Some(v3::Locality {
                region: self.locality.region.to_string(),
                zone: self.locality.zone.to_string(),
                sub_zone: self.locality.sub_zone.to_string(),
            }),
            user_agent_name: env!("CARGO_PKG_NAME").to_owned(),
            user_agent_version_type: Some(v3::node::UserAgentVersionType::UserAgentVersion(
                env!("CARGO_PKG_VERSION").to_owned(),
            )),
            ..v3::Node::default()
        }
    }

    pub(crate) fn of_proto(node: v3::Node) -> Self {
        let locality = node.locality.unwrap_or_default();
        Self {
            id: node.id,
            cluster: node.cluster,
            locality: Locality {
                region: locality.region.into(),
                zone: locality.zone.into(),
                sub_zone: locality.sub_zone.into(),
            },
            metadata: of_struct(node.metadata.unwrap_or_default()),
            user_agent: node.user_agent_name,
        }
    }

    /// Metadata `LABELS`.
    pub fn labels(&self) -> Labels {
        let Some(Value::Object(labels)) = self.metadata.get("LABELS") else { return BTreeMap::new() };
        labels.iter().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    }

    /// What telemetry says of this process.
    pub fn workload(&self) -> Workload {
        let labels = self.labels();
        let label = |keys: &[&str]| keys.iter().find_map(|key| labels.get(*key).filter(|value| !value.is_empty()));
        // The third part of the id is `pod.namespace`; the pod's name is the last resort.
        let pod = || self.id.split('~').nth(2).and_then(|part| part.split('.').next()).unwrap_or_default();
        let name: Name = self.meta("WORKLOAD_NAME").or_else(|| self.meta("NAME")).unwrap_or_else(pod).into();
        let or = |found: Option<&String>, default: &Name| found.map_or_else(|| default.clone(), |v| v.as_str().into());
        Workload {
            namespace: self.namespace().into(),
            service_account: self.service_account().into(),
            canonical_name: or(label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]), &name),
            canonical_revision: or(
                label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]),
                &"latest".into(),
            ),
            cluster: self.meta("CLUSTER_ID").unwrap_or("Kubernetes").into(),
            app: or(label(&["app"]), &Name::default()),
            version: or(label(&["version"]), &Name::default()),
            name,
        }
    }
}

fn to_struct(map: &Map<String, Value>) -> Struct {
    Struct { fields: map.iter().map(|(key, value)| (key.clone(), to_value(value))).collect() }
}

fn to_value(value: &Value) -> ProtoValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Value::String(value) => Kind::StringValue(value.clone()),
        Value::Array(values) => Kind::ListValue(ListValue { values: values.iter().map(to_value).collect() }),
        Value::Object(map) => Kind::StructValue(to_struct(map)),
    };
    ProtoValue { kind: Some(kind) }
}

fn of_struct(from: Struct) -> Map<String, Value> {
    from.fields.into_iter().map(|(key, value)| (key, of_value(value))).collect()
}

/// Recursion is bounded by the decoder's limit of 100 levels.
fn of_value(value: ProtoValue) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::NumberValue(value)) => value.into(),
        Some(Kind::StringValue(value)) => value.into(),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(of_value).collect(),
        Some(Kind::StructValue(map)) => of_struct(map).into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use serde_json::json;

    use super::*;

    fn node(value: Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    /// XD20: the identity follows from Istio's metadata keys.
    #[test]
    fn identity_comes_from_metadata() {
        let id = "sidecar~10.0.0.5~reviews-v1.shop~shop.svc.cluster.local";
        let cases = [
            (json!({}), "spiffe://cluster.local/ns/default/sa/default"),
            (json!({"id": id}), "spiffe://cluster.local/ns/shop/sa/default"),
            (
                json!({"id": id, "metadata": {"NAMESPACE": "default", "SERVICE_ACCOUNT": "bookinfo-reviews"}}),
                "spiffe://cluster.local/ns/default/sa/bookinfo-reviews",
            ),
            (json!({"metadata": {"MESH_ID": "m.example"}}), "spiffe://m.example/ns/default/sa/default"),
            (
                json!({"metadata": {"MESH_ID": "m.example", "TRUST_DOMAIN": "a@b"}}),
                "spiffe://a.b/ns/default/sa/default",
            ),
            (json!({"metadata": {"MESH_ID": "", "NAMESPACE": 3}}), "spiffe://cluster.local/ns/default/sa/default"),
        ];
        for (value, expected) in cases {
            assert_eq!(node(value.clone()).identity(), expected, "{value}");
        }
    }

    #[test]
    fn workload_names_follow_the_labels() {
        let plain = node(json!({"id": "sidecar~10.0.0.5~details.ns~x"})).workload();
        assert_eq!(
            (&*plain.name, &*plain.canonical_name, &*plain.canonical_revision),
            ("details", "details", "latest")
        );
        assert_eq!((&*plain.cluster, &*plain.app), ("Kubernetes", ""));
        let labelled = node(json!({"metadata": {
            "WORKLOAD_NAME": "reviews-v2", "CLUSTER_ID": "c1",
            "LABELS": {"app": "reviews", "version": "v2", "service.istio.io/canonical-name": "rev"},
        }}))
        .workload();
        assert_eq!((&*labelled.name, &*labelled.canonical_name), ("reviews-v2", "rev"));
        assert_eq!((&*labelled.canonical_revision, &*labelled.app, &*labelled.version), ("v2", "reviews", "v2"));
        assert_eq!(&*labelled.cluster, "c1");
    }

    /// XD20: what the bootstrap says of the node reaches the server.
    #[test]
    fn node_survives_the_wire() {
        let node = node(json!({
            "id": "i", "cluster": "c", "locality": {"region": "r", "zone": "z", "sub_zone": "s"},
            "metadata": {"LABELS": {"app": "a"}, "N": 1.5, "B": true, "L": ["x", null], "PROXY_CONFIG": {}},
        }));
        let sent = Node { user_agent: "mesh-xds".to_owned(), ..node.clone() };
        assert_eq!(Node::of_proto(node.to_proto()), sent);
    }
}
