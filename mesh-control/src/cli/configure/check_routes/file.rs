//! Reading the two files: JSON or YAML, as protobuf has it, with the fields that have no effect here named.

use std::{collections::BTreeSet, fs, path::Path};

use mesh_xds::proto::DESCRIPTORS;
use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};

use super::{Failure, case::Case};
use crate::cli::BAD_INPUT;

/// Messages of which every field counts: with one of them left out, other requests would be meant.
const STRICT: [&str; 7] = [
    "envoy.config.route.v3.RouteMatch",
    "envoy.config.route.v3.HeaderMatcher",
    "envoy.config.route.v3.QueryParameterMatcher",
    "envoy.config.route.v3.CookieMatcher",
    "envoy.type.matcher.v3.StringMatcher",
    "envoy.type.matcher.v3.RegexMatcher",
    "envoy.type.v3.Int64Range",
];

/// An error about what a file says.
pub(super) fn bad(path: &Path, message: impl std::fmt::Display) -> Failure {
    Failure::new(BAD_INPUT, format!("{}: {message}", path.display()))
}

/// A file as a tree: JSON, else YAML.
pub(super) fn tree(path: &Path) -> Result<Value, Failure> {
    let text = fs::read_to_string(path).map_err(|error| bad(path, format!("cannot be read: {error}")))?;
    if path.extension().is_some_and(|ending| ending == "pb_text" || ending == "pb") {
        return Err(bad(path, "is protobuf text or binary; YAML and JSON are read"));
    }
    match serde_json::from_str(&text) {
        Ok(value) => Ok(value),
        // JSON with commas too many is YAML still.
        Err(json) => serde_saphyr::from_str(&text).map_err(|yaml| {
            let looks_like_json = text.trim_start().starts_with('{');
            bad(path, if looks_like_json { json.to_string() } else { yaml.to_string() })
        }),
    }
}

/// The cases of a file.
pub(super) fn cases(path: &Path, ignored: &mut BTreeSet<String>) -> Result<Vec<Case>, Failure> {
    let mut tree = tree(path)?;
    let Some(fields) = tree.as_object_mut() else { return Err(bad(path, "is no object with `tests`")) };
    if fields.remove("runtime").is_some() {
        ignored.insert("runtime".to_owned());
    }
    if let Some(other) = fields.keys().find(|key| *key != "tests") {
        return Err(bad(path, format!("`{other}` is no field of a list of tests")));
    }
    let tests = fields.remove("tests").unwrap_or_default();
    let tests = tests.as_array().filter(|tests| !tests.is_empty()).ok_or_else(|| bad(path, "has no `tests`"))?;
    let mut cases = Vec::with_capacity(tests.len());
    for (i, test) in tests.iter().enumerate() {
        let case: Case =
            serde_json::from_value(test.clone()).map_err(|error| bad(path, format!("tests[{i}]: {error}")))?;
        case.check().map_err(|error| bad(path, format!("tests[{i}]: {error}")))?;
        if case.input.dynamic_metadata.is_some() {
            ignored.insert("tests.input.dynamic_metadata".to_owned());
        }
        cases.push(case);
    }
    Ok(cases)
}

/// The message types that are known.
pub(super) fn pool() -> Result<DescriptorPool, Failure> {
    DescriptorPool::decode(DESCRIPTORS).map_err(|error| Failure::new(super::FAILURE, error.to_string()))
}

/// Takes what has no effect here out of a message, and notes it; an error names what cannot be.
pub(super) fn keep_known(
    value: &mut Value,
    kind: &MessageDescriptor,
    place: &str,
    ignored: &mut BTreeSet<String>,
) -> Result<(), String> {
    let name = kind.full_name();
    if name == "google.protobuf.Any" {
        return keep_known_any(value, kind, place, ignored);
    }
    if name == "google.protobuf.Duration" {
        if let Some(written) = duration(value) {
            *value = written;
        }
        return Ok(());
    }
    if name.starts_with("google.protobuf.") || value.is_null() {
        return Ok(());
    }
    let Some(fields) = value.as_object_mut() else { return Err(format!("{place} is no {}", kind.name())) };
    let names: Vec<String> = fields.keys().cloned().collect();
    for key in names {
        let inner = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
        let known = kind.get_field_by_name(&key).or_else(|| kind.get_field_by_json_name(&key));
        let Some(field) = known else {
            if !kind.reserved_names().any(|reserved| reserved == key || camel(reserved) == key) {
                return Err(format!("{inner} is no field of {}", kind.name()));
            }
            if STRICT.contains(&name) {
                return Err(format!("{inner} is a condition that is not supported"));
            }
            fields.remove(&key);
            ignored.insert(inner);
            continue;
        };
        // JSON has two names for a field; from here on it has one.
        let Some(mut value) = fields.remove(&key) else { continue };
        if keep_known_field(&mut value, &field, &inner, ignored)? {
            fields.insert(field.name().to_owned(), value);
        }
    }
    Ok(())
}

/// False when nothing of it is left.
fn keep_known_field(
    value: &mut Value,
    field: &FieldDescriptor,
    place: &str,
    ignored: &mut BTreeSet<String>,
) -> Result<bool, String> {
    let Kind::Message(kind) = field.kind() else { return Ok(true) };
    if field.is_map() {
        let of = kind.map_entry_value_field();
        let Kind::Message(kind) = of.kind() else { return Ok(true) };
        let Some(entries) = value.as_object_mut() else { return Err(format!("{place} is no object")) };
        let mut kept = Map::new();
        for (key, mut value) in std::mem::take(entries) {
            keep_known(&mut value, &kind, place, ignored)?;
            if !value.is_null() {
                kept.insert(key, value);
            }
        }
        *entries = kept;
        return Ok(true);
    }
    if field.is_list() {
        let Some(items) = value.as_array_mut() else { return Err(format!("{place} is no list")) };
        for item in items {
            keep_known(item, &kind, place, ignored)?;
        }
        return Ok(true);
    }
    keep_known(value, &kind, place, ignored)?;
    Ok(!value.is_null())
}

/// An extension is known by its type; one that is not becomes null.
fn keep_known_any(
    value: &mut Value,
    any: &MessageDescriptor,
    place: &str,
    ignored: &mut BTreeSet<String>,
) -> Result<(), String> {
    let url = value.get("@type").and_then(Value::as_str).map(str::to_owned);
    let Some(url) = url else { return Err(format!("{place} has no `@type`")) };
    let name = url.rsplit('/').next().unwrap_or_default();
    let Some(kind) = any.parent_pool().get_message_by_name(name) else {
        ignored.insert(format!("{place} ({name})"));
        *value = Value::Null;
        return Ok(());
    };
    if let Some(fields) = value.as_object_mut() {
        fields.remove("@type");
    }
    keep_known(value, &kind, place, ignored)?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("@type".to_owned(), Value::String(url));
    }
    Ok(())
}

/// A duration written as an object of seconds and nanoseconds, as JSON has it.
fn duration(value: &Value) -> Option<Value> {
    let fields = value.as_object()?;
    let seconds = fields.get("seconds").map_or(Some(0), Value::as_i64)?;
    let nanos = fields.get("nanos").map_or(Some(0), Value::as_i64)?;
    Some(Value::String(format!("{seconds}.{:09}s", nanos.max(0))))
}

fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut letters = part.chars();
        text.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        text.push_str(letters.as_str());
    }
    text
}
