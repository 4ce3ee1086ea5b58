//! What an `EnvoyFilter` patches in: messages of Envoy's in the JSON form of protobuf, put where they belong in a resource and read as
//! that resource is when it comes over xDS. So the same fields count, and the same are told of as without effect.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use mesh_core::config::{Action, Cluster, GlobalRateLimit, LocalRateLimit, RateLimit};
use mesh_xds::{
    proto::DESCRIPTORS,
    translate::{self, Listener},
};
use prost_reflect::{DescriptorPool, DynamicMessage, prost::Message};
use serde_json::{Value, json};

use super::INSTEAD;
use crate::{
    diagnostic::{Level, codes},
    kinds::{read::Reader, yaml::Node},
};

/// A filter that counts.
#[derive(Clone, Debug, PartialEq)]
pub enum HttpLimit {
    /// By buckets of the process.
    Local(Arc<LocalRateLimit>),
    /// By asking a service.
    Global(Arc<GlobalRateLimit>),
}

const LOCAL: &str = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
const GLOBAL: &str = "envoy.extensions.filters.http.ratelimit.v3.RateLimit";
const LOCAL_NAME: &str = "envoy.filters.http.local_ratelimit";
const GLOBAL_NAME: &str = "envoy.filters.http.ratelimit";
/// Messages of which the type is told apart from the fields.
const STRUCTS: [&str; 2] = ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"];

/// What is read when there is nothing to read of.
type Limits = (Vec<RateLimit>, Option<Arc<LocalRateLimit>>);

/// A filter among the filters of a port.
pub(super) fn filter(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<HttpLimit> {
    let mut fields = reader.fields(node, path)?;
    fields.read("name", |node, path| reader.text(node, path));
    fields.ignored(reader, &["disabled", "isOptional"], "a filter that counts is there or not");
    let typed = fields.take("typedConfig");
    if typed.is_none() {
        reader.missing(&fields, "typed_config");
    }
    fields.close(reader);
    let (node, path) = typed?;
    let (kind, config) = typed_config(node, &path, reader)?;
    let name = match kind {
        LOCAL => LOCAL_NAME,
        _ => GLOBAL_NAME,
    };
    let filter = json!({"name": name, "typed_config": with_type(kind, config)});
    let routes = json!({"name": "x", "virtual_hosts": [{"name": "x", "domains": ["*"], "routes": []}]});
    let listener = listener(&[filter], &routes);
    let bytes =
        encode("envoy.config.listener.v3.Listener", &listener).map_err(|error| wrong(node, &path, &error, reader));
    let decoded =
        translate::listener(&bytes.ok()?).map_err(|error| wrong(node, &path, &error.to_string(), reader)).ok()?;
    ignored(node, &path, &decoded.ignored, reader);
    let Listener::Outbound { settings, .. } = decoded.value else {
        wrong(node, &path, "it is no filter of requests", reader);
        return None;
    };
    let local = settings.rate_limit.clone().map(HttpLimit::Local);
    local.or_else(|| settings.global_limits.first().cloned().map(HttpLimit::Global))
}

/// What a virtual host says.
pub(super) fn host(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Limits> {
    let mut fields = reader.fields(node, path)?;
    let mut host = json!({});
    if let Some((node, _)) = fields.take("rateLimits") {
        host["rate_limits"] = node.to_json();
    }
    if let Some((node, path)) = fields.take("typedPerFilterConfig") {
        host["typed_per_filter_config"] = per_filter(node, &path, reader)?;
    }
    fields.refuse_rest(reader, INSTEAD);
    limits(node, path, host, json!({"cluster": "x"}), reader)
}

/// What a route says.
pub(super) fn route(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Limits> {
    let mut fields = reader.fields(node, path)?;
    let (mut host, mut action) = (json!({}), json!({"cluster": "x"}));
    if let Some((node, path)) = fields.take("route")
        && let Some(mut inner) = reader.fields(node, &path)
    {
        if let Some((node, _)) = inner.take("rateLimits") {
            action["rate_limits"] = node.to_json();
        }
        inner.refuse_rest(reader, INSTEAD);
    }
    if let Some((node, path)) = fields.take("typedPerFilterConfig") {
        host["typed_per_filter_config"] = per_filter(node, &path, reader)?;
    }
    fields.refuse_rest(reader, INSTEAD);
    limits(node, path, host, action, reader)
}

/// A cluster of its own.
pub(super) fn cluster(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Arc<Cluster>> {
    let bytes = encode("envoy.config.cluster.v3.Cluster", &node.to_json());
    let bytes = bytes.map_err(|error| wrong(node, path, &error, reader)).ok()?;
    let decoded = translate::cluster(&bytes).map_err(|error| wrong(node, path, &error.to_string(), reader)).ok()?;
    ignored(node, path, &decoded.ignored, reader);
    Some(decoded.value)
}

/// What a host and its only route mean together.
fn limits(node: &Node, path: &str, mut host: Value, action: Value, reader: &mut Reader<'_>) -> Option<Limits> {
    host["name"] = json!("x");
    host["domains"] = json!(["*"]);
    host["routes"] = json!([{"match": {"prefix": "/"}, "route": action}]);
    let table = json!({"name": "x", "virtual_hosts": [host]});
    let bytes = encode("envoy.config.route.v3.RouteConfiguration", &table);
    let bytes = bytes.map_err(|error| wrong(node, path, &error, reader)).ok()?;
    let decoded = translate::route(&bytes).map_err(|error| wrong(node, path, &error.to_string(), reader)).ok()?;
    ignored(node, path, &decoded.ignored, reader);
    let route = decoded.value.virtual_hosts.first()?.routes.first()?.clone();
    let Action::Forward(forward) = route.action else { return None };
    Some((forward.rate_limits, forward.rate_limit))
}

/// Of what filters are told by routes, that of local limits.
fn per_filter(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Value> {
    let mut out = json!({});
    for (name, node) in reader.map(node, path) {
        let path = format!("{path}.{}", name.value);
        let (kind, config) = typed_config(node, &path, reader)?;
        if kind != LOCAL {
            reader.unsupported(node.at, &path, INSTEAD);
            return None;
        }
        out[LOCAL_NAME] = with_type(kind, config);
    }
    Some(out)
}

/// The kind of a filter's message, if it is one that is taken, and its fields.
fn typed_config(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<(&'static str, Value)> {
    let mut config = node.to_json();
    let named = |value: &Value, field: &str| {
        let url = value.get(field).and_then(Value::as_str).unwrap_or_default();
        url.rsplit('/').next().unwrap_or_default().to_owned()
    };
    let mut kind = named(&config, "@type");
    if STRUCTS.contains(&kind.as_str()) {
        let camel = named(&config, "typeUrl");
        kind = Some(named(&config, "type_url")).filter(|kind| !kind.is_empty()).unwrap_or(camel);
        config = config.get("value").cloned().unwrap_or_else(|| json!({}));
    }
    let Some(known) = [LOCAL, GLOBAL].into_iter().find(|known| *known == kind) else {
        let what = if kind.is_empty() { "without @type".to_owned() } else { kind };
        reader.unsupported(node.at, &format!("{path} {what}"), INSTEAD);
        return None;
    };
    Some((known, config))
}

fn with_type(kind: &str, mut config: Value) -> Value {
    if let Some(fields) = config.as_object_mut() {
        fields.insert("@type".to_owned(), json!(format!("type.googleapis.com/{kind}")));
    }
    config
}

fn listener(filters: &[Value], routes: &Value) -> Value {
    let kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let router = with_type("envoy.extensions.filters.http.router.v3.Router", json!({}));
    let mut filters = filters.to_vec();
    filters.push(json!({"name": "envoy.filters.http.router", "typed_config": router}));
    let manager = json!({"stat_prefix": "x", "route_config": routes, "http_filters": filters});
    json!({
        "name": "0.0.0.0_80",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 80}},
        "traffic_direction": "OUTBOUND",
        "filter_chains": [{"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": with_type(kind, manager)},
        ]}],
    })
}

fn encode(kind: &str, message: &Value) -> Result<Bytes, String> {
    static POOL: LazyLock<Option<DescriptorPool>> = LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).ok());
    let kind = POOL.as_ref().and_then(|pool| pool.get_message_by_name(kind)).ok_or("its type is not known")?;
    let message = DynamicMessage::deserialize(kind, message).map_err(|error| error.to_string())?;
    Ok(message.encode_to_vec().into())
}

fn wrong(node: &Node, path: &str, error: &str, reader: &mut Reader<'_>) {
    reader.invalid(node.at, format!("{path}: {error}"));
}

fn ignored(node: &Node, path: &str, fields: &[String], reader: &mut Reader<'_>) {
    for field in fields {
        let field = field.rsplit("typed_config.").next().unwrap_or(field);
        let message = format!("{path}: {field} is accepted and ignored");
        reader.report(codes::IGNORED_FIELD, Level::Warning, node.at, message);
    }
}
