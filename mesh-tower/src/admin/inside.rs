//! Pages by Envoy's names for who knows an Envoy: listeners, counters as lines, the process, and parts of the configuration.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use mesh_core::{config::Regex, switches::Feature};
use serde_json::{Map, Value, json};

use super::{Shown, missing};
use crate::telemetry;

/// A query by names.
pub(super) type Asked = Query<BTreeMap<String, String>>;

/// Who listens where, and which ports requests go out by.
pub(super) async fn listeners(State(shown): State<Shown>) -> Json<Value> {
    let Some(snapshot) = shown.live.load() else { return Json(json!({ "listeners": [] })) };
    let config = snapshot.config();
    let outbound = config.outbound.iter().map(|(port, table)| {
        json!({ "direction": "outbound", "port": port, "routes": table.name, "virtual_hosts": table.virtual_hosts.len() })
    });
    let inbound = config.inbound.iter().map(|(port, inbound)| {
        json!({ "direction": "inbound", "port": port, "name": inbound.name, "mtls": inbound.mtls, "refused": inbound.refused })
    });
    Json(json!({ "listeners": outbound.chain(inbound).collect::<Vec<_>>() }))
}

/// Counters as lines of names and values; `?filter=` keeps those whose name the expression is found in, `?format=json` makes
/// them objects, `?format=prometheus` is `/metrics`.
pub(super) async fn stats(Query(asked): Asked) -> Response {
    let Some(text) = telemetry::render() else {
        return (StatusCode::NOT_FOUND, "the application records metrics itself\n").into_response();
    };
    let format = asked.get("format").map_or("text", String::as_str);
    if format == "prometheus" {
        return ([(header::CONTENT_TYPE, super::PROMETHEUS)], text).into_response();
    }
    let filter = match asked.get("filter").map(|filter| format!(".*(?:{filter}).*").parse::<Regex>()).transpose() {
        Ok(filter) => filter,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("filter: {error}\n")).into_response(),
    };
    let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    let lines = lines.filter(|(name, _)| filter.as_ref().is_none_or(|filter| filter.is_match(name)));
    if format == "json" {
        let value = |value: &str| value.parse::<f64>().map_or(Value::Null, |number| json!(number));
        let stats: Vec<Value> = lines.map(|(name, it)| json!({ "name": name, "value": value(it) })).collect();
        return Json(json!({ "stats": stats })).into_response();
    }
    lines.map(|(name, value)| format!("{name}: {value}\n")).collect::<String>().into_response()
}

/// Version, state, how long it runs.
pub(super) async fn server_info(State(shown): State<Shown>) -> Json<Value> {
    let state = match (*shown.ending.borrow(), missing(&shown).is_empty()) {
        (true, _) => "DRAINING",
        (false, true) => "LIVE",
        (false, false) => "INITIALIZING",
    };
    let running = shown.source.now().as_nanos() / 1_000_000_000;
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "state": state,
        "uptime_all_epochs": format!("{running}s"),
        "process": std::process::id(),
        "node": shown.live.load().map(|snapshot| snapshot.config().local.id),
        "identity": shown.identity.load().map(|identity| identity.id().to_string()),
    }))
}

/// What is still waited for.
pub(super) async fn init_dump(State(shown): State<Shown>) -> Json<Value> {
    Json(json!({ "unready_targets_dumps": [{ "name": "mesh", "target_names": missing(&shown) }] }))
}

/// Bytes of memory, as the system says.
pub(super) async fn memory() -> Json<Value> {
    let status = tokio::fs::read_to_string("/proc/self/status").await.unwrap_or_default();
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
    };
    Json(json!({ "resident": bytes("VmRSS:"), "peak_resident": bytes("VmHWM:"), "mapped": bytes("VmSize:") }))
}

/// Which features are switched off, and which are not.
pub(super) async fn runtime(State(shown): State<Shown>) -> Json<Value> {
    let off = shown.live.switches();
    let entry = |feature: Feature| {
        let value = if off.is_off(feature) { "off" } else { "on" };
        (feature.name().to_owned(), json!({ "final_value": value, "layer_values": [value] }))
    };
    let entries: Map<String, Value> = Feature::ALL.into_iter().map(entry).collect();
    Json(json!({ "layers": ["admin"], "entries": entries }))
}

/// The part of a dump that is asked for: `?resource=` a list by its name (`dynamic_active_clusters`), `?name_regex=` what the
/// whole name of an entry matches, `?mask=` the fields of an entry, by commas. Source: Envoy `/config_dump`.
pub(super) fn part(dump: Value, asked: &BTreeMap<String, String>) -> Result<Value, String> {
    let regex = asked.get("name_regex").map(|regex| regex.parse::<Regex>()).transpose();
    let regex = regex.map_err(|error| format!("name_regex: {error}"))?;
    let Some(resource) = asked.get("resource") else {
        return match (regex.is_some(), asked.contains_key("mask")) {
            (false, false) => Ok(dump),
            _ => Err("name_regex and mask are of a resource: say ?resource=dynamic_active_clusters or such".to_owned()),
        };
    };
    let configs = dump.get("configs").and_then(Value::as_array).into_iter().flatten();
    let mut lists = configs.filter_map(|config| config.get(resource)?.as_array()).peekable();
    if lists.peek().is_none() {
        return Err(format!("there is no resource {resource:?}"));
    }
    let taken = lists
        .flatten()
        .filter(|entry| regex.as_ref().is_none_or(|regex| name_of(entry).is_some_and(|name| regex.is_match(name))));
    let configs: Vec<Value> = match asked.get("mask") {
        None => taken.cloned().collect(),
        Some(mask) => taken.map(|entry| masked(entry, mask)).collect(),
    };
    Ok(json!({ "configs": configs }))
}

/// The name of an entry, or of what it wraps.
fn name_of(entry: &Value) -> Option<&str> {
    fn own(value: &Value) -> Option<&str> {
        value.get("name").or_else(|| value.get("cluster_name"))?.as_str()
    }
    let wrapped = || entry.as_object()?.values().find_map(own);
    own(entry).or_else(wrapped).or_else(|| own(entry.pointer("/active_state/listener")?))
}

/// Only these fields of an entry, each by its path with dots.
fn masked(entry: &Value, mask: &str) -> Value {
    let mut out = Value::Object(Map::new());
    for path in mask.split(',').map(str::trim).filter(|path| !path.is_empty()) {
        let names: Vec<&str> = path.split('.').collect();
        let found = names.iter().try_fold(entry, |value, name| value.get(name));
        let (Some(found), Some((last, before))) = (found, names.split_last()) else { continue };
        let mut at = &mut out;
        for name in before {
            let Value::Object(fields) = at else { break };
            at = fields.entry((*name).to_owned()).or_insert_with(|| json!({}));
        }
        if let Value::Object(fields) = at {
            fields.insert((*last).to_owned(), found.clone());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// AD2: a dump is cut to the resource, the names and the fields asked for.
    #[test]
    fn dumps_are_cut_to_what_is_asked_for() {
        let cluster = |name: &str| json!({ "version_info": "1", "cluster": { "name": name, "type": "EDS" } });
        let dump = json!({ "configs": [
            { "@type": "clusters", "dynamic_active_clusters": [cluster("a"), cluster("ab"), cluster("b")] },
            { "@type": "listeners", "dynamic_listeners": [{ "name": "l", "active_state": {} }] },
        ] });
        let ask = |pairs: &[(&str, &str)]| {
            let asked = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            part(dump.clone(), &asked)
        };
        assert_eq!(ask(&[]).unwrap(), dump);
        let named = ask(&[("resource", "dynamic_active_clusters"), ("name_regex", "a.*")]).unwrap();
        assert_eq!(named, json!({ "configs": [cluster("a"), cluster("ab")] }));
        let masked =
            ask(&[("resource", "dynamic_active_clusters"), ("name_regex", "b"), ("mask", "cluster.name, none")]);
        assert_eq!(masked.unwrap(), json!({ "configs": [{ "cluster": { "name": "b" } }] }));
        assert!(ask(&[("resource", "dynamic_listeners"), ("name_regex", "l")]).unwrap()["configs"][0]["name"] == "l");
        for bad in [[("resource", "nothing")], [("name_regex", "x")], [("name_regex", "(")]] {
            assert!(ask(&bad).is_err(), "{bad:?}");
        }
    }
}
