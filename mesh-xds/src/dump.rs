//! Resources as Envoy's admin port shows them: the JSON of `/config_dump`, which `istioctl proxy-config` and `meshctl` read.
//!
//! Names of fields are protobuf's own, as Envoy writes them; what stands at its default is left out. A private key is never here:
//! where Envoy writes `[redacted]`, so does this. Source: `envoy.admin.v3.ConfigDump` and its sections.

use std::sync::OnceLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::{Map, Value, json};

use crate::{
    ads::{ResourceSet, TypeUrl},
    node::Node,
    proto,
};

/// What Envoy writes in place of a key, in base64.
const REDACTED: &str = "W3JlZGFjdGVkXQ==";

/// The certificates of a process, as DER.
#[derive(Clone, Debug, Default)]
pub struct Certificates<'a> {
    /// Its own, the leaf first.
    pub chain: Vec<&'a [u8]>,
    /// Those it trusts.
    pub roots: Vec<&'a [u8]>,
}

/// A configuration as `envoy.admin.v3.ConfigDump`; `updated` is when it came into force, as RFC 3339.
pub fn config_dump(
    resources: &ResourceSet,
    node: Option<&Node>,
    certificates: Option<&Certificates<'_>>,
    updated: &str,
) -> Value {
    let mut configs = Vec::new();
    if let Some(node) = node {
        let bytes = node.to_proto().encode_to_vec();
        let node = message("envoy.config.core.v3.Node", &bytes).unwrap_or_default();
        configs.push(section("BootstrapConfigDump", json!({"bootstrap": {"node": node}, "last_updated": updated})));
    }
    let all = |kind: TypeUrl, wrap: &dyn Fn(&str, &str, Value) -> Value| -> Vec<Value> {
        let resources = resources.iter(kind);
        resources.map(|(name, resource)| wrap(name, &resource.version, body(kind, name, &resource.body))).collect()
    };
    let clusters = all(
        TypeUrl::Cluster,
        &|_, version, cluster| json!({"version_info": version, "cluster": cluster, "last_updated": updated}),
    );
    let version = resources.version(TypeUrl::Cluster);
    configs.push(section("ClustersConfigDump", json!({"version_info": version, "dynamic_active_clusters": clusters})));
    let endpoints = all(
        TypeUrl::Endpoint,
        &|_, version, endpoints| json!({"version_info": version, "endpoint_config": endpoints, "last_updated": updated}),
    );
    configs.push(section("EndpointsConfigDump", json!({"dynamic_endpoint_configs": endpoints})));
    let listeners = all(TypeUrl::Listener, &|name, version, listener| {
        json!({
            "name": name,
            "active_state": {"version_info": version, "listener": listener, "last_updated": updated},
        })
    });
    let version = resources.version(TypeUrl::Listener);
    configs.push(section("ListenersConfigDump", json!({"version_info": version, "dynamic_listeners": listeners})));
    let routes = all(
        TypeUrl::Route,
        &|_, version, routes| json!({"version_info": version, "route_config": routes, "last_updated": updated}),
    );
    configs.push(section("RoutesConfigDump", json!({"dynamic_route_configs": routes})));
    if let Some(certificates) = certificates {
        configs.push(section("SecretsConfigDump", json!({"dynamic_active_secrets": secrets(certificates, updated)})));
    }
    json!({ "configs": configs })
}

fn section(name: &str, mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value {
        fields.insert("@type".to_owned(), format!("type.googleapis.com/envoy.admin.v3.{name}").into());
    }
    value
}

/// A resource as an `Any` in JSON. One that cannot be read keeps its name, so that it is missed by nobody.
fn body(kind: TypeUrl, name: &str, bytes: &[u8]) -> Value {
    let full = kind.as_str().rsplit('/').next().unwrap_or_default();
    let mut fields = match message(full, bytes) {
        Some(Value::Object(fields)) => fields,
        _ => Map::from_iter([("name".to_owned(), name.into())]),
    };
    fields.insert("@type".to_owned(), kind.as_str().into());
    Value::Object(fields)
}

/// A message in JSON, with protobuf's names.
fn message(full_name: &str, bytes: &[u8]) -> Option<Value> {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| DescriptorPool::decode(proto::DESCRIPTORS).ok()).as_ref()?;
    let descriptor = pool.get_message_by_name(full_name)?;
    let message = DynamicMessage::decode(descriptor, bytes).ok()?;
    let options = SerializeOptions::new().use_proto_field_name(true);
    message.serialize_with_options(serde_json::value::Serializer, &options).ok()
}

/// The two secrets Istio's processes have, by its names.
fn secrets(certificates: &Certificates<'_>, updated: &str) -> Vec<Value> {
    let inline = |ders: &[&[u8]]| json!({"inline_bytes": STANDARD.encode(pem(ders))});
    let secret = |name: &str, key: &str, value: Value| {
        let mut body =
            Map::from_iter([("@type".to_owned(), TypeUrl::Secret.as_str().into()), ("name".to_owned(), name.into())]);
        body.insert(key.to_owned(), value);
        json!({"name": name, "version_info": "uninitialized", "last_updated": updated, "secret": body})
    };
    let own = json!({
        "certificate_chain": inline(&certificates.chain),
        "private_key": {"inline_bytes": REDACTED},
    });
    vec![
        secret("default", "tls_certificate", own),
        secret("ROOTCA", "validation_context", json!({"trusted_ca": inline(&certificates.roots)})),
    ]
}

fn pem(ders: &[&[u8]]) -> String {
    let mut out = String::new();
    for der in ders {
        out.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = STANDARD.encode(der);
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, next) = rest.split_at(rest.len().min(64));
            out.push_str(line);
            out.push('\n');
            rest = next;
        }
        out.push_str("-----END CERTIFICATE-----\n");
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::sync::Arc;

    use mesh_core::config::{
        Action, Cluster, Config, Discovery, Endpoints, Forward, LocalityEndpoints, Route, RouteMatch, RouteTable,
        VirtualHost, WeightedCluster,
    };

    use super::*;
    use crate::translate::{Shape, encode};

    const NAME: &str = "outbound|9080||reviews.default.svc.cluster.local";

    fn config() -> Config {
        let address: std::net::SocketAddr = "127.0.0.1:9080".parse().unwrap();
        let group = LocalityEndpoints { endpoints: vec![address.into()], ..Default::default() };
        let endpoints = Arc::new(Endpoints { localities: vec![group], ..Default::default() });
        let discovery = Discovery::Eds(NAME.into());
        let cluster = Cluster { name: NAME.into(), discovery, endpoints, ..Cluster::default() };
        let to = WeightedCluster { cluster: NAME.into(), weight: 1, ..Default::default() };
        let route = Route {
            name: "default".into(),
            origin: Some("virtual-service/default/reviews".into()),
            matches: RouteMatch::default(),
            action: Action::Forward(Forward { clusters: vec![to], ..Forward::default() }),
            fault: None,
            headers: Default::default(),
            operation: None,
        };
        let domains = vec!["reviews".to_owned()];
        let host = VirtualHost { name: "reviews:9080".into(), domains, routes: vec![route], ..Default::default() };
        let hosts = vec![Arc::new(host)];
        let table = RouteTable { name: "9080".into(), virtual_hosts: hosts, ..RouteTable::default() };
        let mut config = Config { outbound: [(9080, Arc::new(table))].into(), ..Config::default() };
        config.clusters.insert(NAME.into(), Arc::new(cluster));
        config
    }

    fn find<'v>(dump: &'v Value, section: &str) -> &'v Value {
        let kind = format!("type.googleapis.com/envoy.admin.v3.{section}");
        dump["configs"].as_array().unwrap().iter().find(|it| it["@type"] == kind.as_str()).unwrap()
    }

    /// OP2, AD2: every section has Envoy's form and names, and no key is shown.
    #[test]
    fn resources_are_shown_as_envoy_shows_them() {
        let set = encode(&config(), Shape::Sidecar);
        let certificates = Certificates { chain: vec![&[1, 2, 3]], roots: vec![&[4]] };
        let dump = config_dump(&set, None, Some(&certificates), "2020-01-01T00:00:00Z");
        let cluster = &find(&dump, "ClustersConfigDump")["dynamic_active_clusters"][0]["cluster"];
        assert_eq!((&cluster["name"], &cluster["type"]), (&NAME.into(), &"EDS".into()));
        assert_eq!(cluster["@type"], TypeUrl::Cluster.as_str());
        let endpoints = &find(&dump, "EndpointsConfigDump")["dynamic_endpoint_configs"][0]["endpoint_config"];
        let address = &endpoints["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"];
        assert_eq!(*address, json!({"address": "127.0.0.1", "port_value": 9080}));
        let listener = &find(&dump, "ListenersConfigDump")["dynamic_listeners"][0];
        assert_eq!(listener["name"], "0.0.0.0_9080");
        let filter = &listener["active_state"]["listener"]["filter_chains"][0]["filters"][0]["typed_config"];
        assert_eq!(filter["rds"]["route_config_name"], "9080", "what is packed is opened: {listener}");
        let routes = &find(&dump, "RoutesConfigDump")["dynamic_route_configs"][0]["route_config"];
        assert_eq!(routes["virtual_hosts"][0]["routes"][0]["route"]["cluster"], NAME);
        let secrets = &find(&dump, "SecretsConfigDump")["dynamic_active_secrets"];
        assert_eq!(secrets[0]["secret"]["tls_certificate"]["private_key"]["inline_bytes"], REDACTED);
        let chain = secrets[0]["secret"]["tls_certificate"]["certificate_chain"]["inline_bytes"].as_str().unwrap();
        let chain = String::from_utf8(STANDARD.decode(chain).unwrap()).unwrap();
        assert_eq!(chain, "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n");
    }
}
