//! What our clusters say beyond Envoy's words: metadata under `mesh_xds.cluster`, which other clients pass over.
//!
//! `{"half_open": true, "latency": {"factor": 300}, "monitors": [{"name": "quota", "grpc_codes": [8]}],
//! "max_requests_per_endpoint": 10, "avoid_unreachable": false}`: the fields of the configuration as they serialise.

use std::collections::BTreeMap;

use mesh_core::config::{Cluster, LatencyOutlier, Monitor, OutlierDetection, Thresholds};
use prost_types::{ListValue, Struct, Value, value::Kind};
use serde::{Deserialize, Serialize};

use super::{
    outlier,
    read::{Ignored, Wrong, wrong},
    value,
};
use crate::proto::envoy::config::core::v3::Metadata;

const KEY: &str = "mesh_xds.cluster";
const PLACE: &str = "metadata.filter_metadata[\"mesh_xds.cluster\"]";

#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
struct Extra {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    half_open: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<LatencyOutlier>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    monitors: Vec<Monitor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_requests_per_endpoint: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avoid_unreachable: Option<bool>,
    /// Of a later version of us.
    #[serde(flatten)]
    unknown: BTreeMap<String, serde_json::Value>,
}

/// Adds to a cluster what its metadata says.
pub(super) fn decode(metadata: Option<&Metadata>, cluster: &mut Cluster, ignored: &mut Ignored) -> Result<(), Wrong> {
    let Some(fields) = value::metadata(metadata, KEY) else { return Ok(()) };
    let json = serde_json::Value::Object(fields.iter().map(|(key, value)| (key.clone(), to_json(value))).collect());
    let extra: Extra =
        serde_json::from_value(json).map_err(|error| wrong(PLACE, format!("cannot be read: {error}")))?;
    for field in extra.unknown.keys() {
        ignored.add(PLACE, field);
    }
    if let Some(limit) = extra.max_requests_per_endpoint {
        cluster.thresholds.max_requests_per_endpoint = limit;
    }
    if let Some(avoid) = extra.avoid_unreachable {
        cluster.avoid_unreachable = avoid;
    }
    let Some(detection) = &mut cluster.outlier_detection else { return Ok(()) };
    detection.half_open = extra.half_open;
    detection.latency = extra.latency;
    detection.monitors.extend(extra.monitors);
    if detection.monitors.len() > OutlierDetection::MOST_MONITORS {
        let why = format!("makes more than {} monitors", OutlierDetection::MOST_MONITORS);
        return Err(wrong(format!("{PLACE}.monitors"), why));
    }
    Ok(())
}

/// What Envoy's fields cannot say; `None` is nothing.
pub(super) fn encode(cluster: &Cluster) -> Option<(String, Struct)> {
    let limit = cluster.thresholds.max_requests_per_endpoint;
    let mut extra = Extra {
        max_requests_per_endpoint: (limit != Thresholds::default().max_requests_per_endpoint).then_some(limit),
        avoid_unreachable: (!cluster.avoid_unreachable).then_some(false),
        ..Extra::default()
    };
    if let Some(detection) = &cluster.outlier_detection {
        extra.half_open = detection.half_open;
        extra.latency = detection.latency;
        extra.monitors = detection.monitors.iter().filter(|monitor| !outlier::is_envoys(monitor)).cloned().collect();
    }
    if extra == Extra::default() {
        return None;
    }
    let json = serde_json::to_value(&extra).ok()?;
    let Kind::StructValue(fields) = from_json(&json).kind? else { return None };
    Some((KEY.to_owned(), fields))
}

fn to_json(value: &Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(value)) => Json::Bool(*value),
        // Numbers of a struct are floats; what is whole is meant as a whole number.
        Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() < 9e15 => Json::from(*value as i64),
        Some(Kind::NumberValue(value)) => Json::from(*value),
        Some(Kind::StringValue(value)) => Json::String(value.clone()),
        Some(Kind::ListValue(list)) => Json::Array(list.values.iter().map(to_json).collect()),
        Some(Kind::StructValue(fields)) => {
            Json::Object(fields.fields.iter().map(|(key, value)| (key.clone(), to_json(value))).collect())
        }
    }
}

/// A value of JSON as one of a protobuf struct.
pub(crate) fn from_json(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Json::String(value) => Kind::StringValue(value.clone()),
        Json::Array(values) => Kind::ListValue(ListValue { values: values.iter().map(from_json).collect() }),
        Json::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| (key.clone(), from_json(value))).collect();
            Kind::StructValue(Struct { fields })
        }
    };
    Value { kind: Some(kind) }
}
