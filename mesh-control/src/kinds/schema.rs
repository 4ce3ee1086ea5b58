//! The fields of each kind as JSON Schema, found out by asking the reader itself.
//!
//! Nothing is written down a second time: a document with a value of the wrong type in every place is read, what the reader says it
//! expected there is put in, and that is read again, until it has nothing new to say. So the schema knows what the reader knows: names,
//! types and words; not which fields exclude each other, nor bounds.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Kind, parse};
use crate::diagnostic::{Diagnostic, codes};

/// A key that no kind has: where it is refused, the reader tells what it knows; where it is taken, keys are data.
const STRANGE: &str = "qqqqzzzzqqqqzzzz";
/// Rounds at most: no kind is nested as deep.
const ROUNDS: usize = 24;

/// What is known of a place.
#[derive(Clone, Debug, Default, PartialEq)]
struct Shape {
    what: What,
    /// It is taken without effect.
    is_ignored: bool,
    /// It is refused by name.
    is_refused: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
enum What {
    /// Nothing was said: true or false, or anything at all.
    #[default]
    Unsaid,
    Text(Vec<String>),
    Integer,
    Number,
    List(Box<Shape>),
    Map(BTreeMap<String, Shape>),
}

/// The schema of a kind. Source: JSON Schema 2020-12.
pub fn schema(kind: Kind) -> Value {
    let mut root = Shape { what: What::Map(BTreeMap::new()), ..Shape::default() };
    for _ in 0..ROUNDS {
        let before = root.clone();
        let document = envelope(kind, root.probe());
        let found = match parse("schema", &document.to_string()) {
            Ok(parsed) => parsed.diagnostics,
            Err(found) => found,
        };
        found.iter().for_each(|diagnostic| root.learn(kind, diagnostic));
        if root == before {
            break;
        }
    }
    let mut schema = root.schema();
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        fields.insert("title".to_owned(), json!(kind.as_str()));
        fields.insert("required".to_owned(), json!(["apiVersion", "kind", "metadata"]));
    }
    for (pointer, value) in [("apiVersion", json!({"type": "string"})), ("kind", json!({"const": kind.as_str()}))] {
        if let Some(properties) = schema.pointer_mut("/properties").and_then(Value::as_object_mut) {
            properties.insert(pointer.to_owned(), value);
        }
    }
    schema
}

/// A document of the kind with what is probed.
fn envelope(kind: Kind, probed: Value) -> Value {
    let mut document = match probed {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    let group = kind.group();
    let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
    document.insert("apiVersion".to_owned(), json!(version));
    document.insert("kind".to_owned(), json!(kind.as_str()));
    let metadata = document.entry("metadata").or_insert_with(|| json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.insert("name".to_owned(), json!("x"));
        metadata.insert("namespace".to_owned(), json!("x"));
        metadata.insert(STRANGE.to_owned(), json!(true));
    } else {
        *metadata = json!({"name": "x", "namespace": "x", STRANGE: true});
    }
    Value::Object(document)
}

impl Shape {
    /// A value that makes the reader say what it expects.
    fn probe(&self) -> Value {
        match &self.what {
            What::Unsaid => json!(true),
            What::Text(words) => json!(words.first().map_or("x", String::as_str)),
            What::Integer | What::Number => json!(1),
            What::List(item) => json!([item.probe()]),
            What::Map(fields) => {
                let taken = fields.iter().filter(|(_, field)| !field.is_refused);
                let mut map: Map<String, Value> = taken.map(|(name, field)| (name.clone(), field.probe())).collect();
                map.entry(STRANGE).or_insert_with(|| json!(true));
                Value::Object(map)
            }
        }
    }

    /// Takes in what was said.
    fn learn(&mut self, kind: Kind, said: &Diagnostic) {
        let message = said.message.strip_prefix(&format!("{kind} x/x: ")).unwrap_or(&said.message);
        let help = said.help.as_deref().unwrap_or_default();
        match &*said.code {
            codes::UNKNOWN_FIELD => {
                let Some(path) = message.strip_prefix("unknown field ") else { return };
                let path = path.strip_suffix(STRANGE).unwrap_or(path).trim_end_matches('.');
                let known = help.strip_prefix("known here: ").unwrap_or_default();
                let Some(place) = self.at(path) else { return };
                if !matches!(place.what, What::Map(_)) {
                    place.what = What::Map(BTreeMap::new());
                }
                if let What::Map(fields) = &mut place.what {
                    fields.remove(STRANGE);
                    known.split(", ").filter(|name| !name.is_empty()).for_each(|name| {
                        fields.entry(name.to_owned()).or_default();
                    });
                }
            }
            codes::WRONG_TYPE => {
                let Some((path, rest)) = message.split_once(" must be ") else { return };
                let wanted = rest.split_once(", this is").map_or(rest, |(wanted, _)| wanted);
                let Some(place) = self.at(path) else { return };
                if place.what == What::Unsaid {
                    place.what = match wanted {
                        _ if wanted.contains("string") => What::Text(Vec::new()),
                        "a list" => What::List(Box::default()),
                        "a map" => What::Map(BTreeMap::new()),
                        "an integer" => What::Integer,
                        "a number" => What::Number,
                        _ => return,
                    };
                }
            }
            codes::INVALID => {
                let (Some((path, _)), Some(words)) =
                    (message.split_once(" cannot be "), help.strip_prefix("it is one of "))
                else {
                    return;
                };
                if let Some(Self { what: What::Text(known), .. }) = self.at(path) {
                    *known = words.split(", ").map(str::to_owned).collect();
                }
            }
            codes::IGNORED_FIELD => {
                let path = message.split_once(" is accepted and ignored").map(|(path, _)| path);
                if let Some(place) = path.and_then(|path| self.at(path)) {
                    place.is_ignored = true;
                }
            }
            codes::UNSUPPORTED_FIELD => {
                let path = message.split_once(" is not supported").map(|(path, _)| path);
                if let Some(place) = path.and_then(|path| self.at(path)) {
                    place.is_refused = true;
                }
            }
            _ => {}
        }
    }

    /// The place of a path such as `spec.http[0].match`; a key that is data is that of the strange one.
    fn at(&mut self, path: &str) -> Option<&mut Self> {
        let mut here = self;
        for part in path.split('.').filter(|part| !part.is_empty()) {
            let (name, index) = part.split_once('[').map_or((part, ""), |(name, index)| (name, index));
            let What::Map(fields) = &mut here.what else { return None };
            here = match name == STRANGE {
                true => fields.entry(name.to_owned()).or_default(),
                false => fields.get_mut(name)?,
            };
            for _ in index.matches(']') {
                let What::List(item) = &mut here.what else { return None };
                here = item;
            }
        }
        Some(here)
    }

    fn schema(&self) -> Value {
        let mut schema = match &self.what {
            What::Unsaid => json!({}),
            What::Text(words) if words.is_empty() => json!({"type": "string"}),
            What::Text(words) => json!({"type": "string", "enum": words}),
            What::Integer => json!({"type": "integer"}),
            What::Number => json!({"type": "number"}),
            What::List(item) => json!({"type": "array", "items": item.schema()}),
            What::Map(fields) => {
                let own = fields.iter().filter(|(name, field)| *name != STRANGE && !field.is_refused);
                let properties: Map<String, Value> = own.map(|(name, field)| (name.clone(), field.schema())).collect();
                let others = fields.get(STRANGE).map_or(json!(false), Self::schema);
                match properties.is_empty() {
                    // Nothing was said of it: anything may be in it.
                    true if others == json!(false) => json!({"type": "object"}),
                    _ => json!({
                        "type": "object",
                        "properties": properties,
                        "patternProperties": {"^x-": {}},
                        "additionalProperties": others,
                    }),
                }
            }
        };
        if self.is_ignored
            && let Some(fields) = schema.as_object_mut()
        {
            fields.insert("description".to_owned(), json!("accepted, without effect"));
        }
        schema
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

    use super::*;

    /// What of a value is not as a schema says; only what schemas here are made of.
    fn wrong(schema: &Value, value: &Value, path: &str, out: &mut Vec<String>) {
        if let Some(wanted) = schema["type"].as_str() {
            let is = match value {
                Value::Object(_) => "object",
                Value::Array(_) => "array",
                Value::String(_) => "string",
                Value::Bool(_) => "boolean",
                Value::Number(number) if number.is_f64() => "number",
                Value::Number(_) => "integer",
                Value::Null => return,
            };
            if is != wanted && !(is == "integer" && wanted == "number") {
                out.push(format!("{path} is {is}, not {wanted}"));
                return;
            }
        }
        if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
            out.push(format!("{path} is {value}, none of {}", schema["enum"]));
        }
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            wrong(&schema["items"], item, &format!("{path}[{index}]"), out);
        }
        for (name, field) in value.as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            match (schema["properties"].get(name), &schema["additionalProperties"]) {
                (Some(of), _) => wrong(of, field, &path, out),
                (None, Value::Bool(false)) => out.push(format!("{path} is unknown")),
                (None, of) => wrong(of, field, &path, out),
            }
        }
    }

    /// OP3: the schema of a kind knows its fields, their types and words, and refuses what the reader refuses.
    #[test]
    fn schemas_are_the_readers() {
        let rule = schema(Kind::VirtualService);
        let http = &rule["properties"]["spec"]["properties"]["http"]["items"]["properties"];
        assert_eq!(http["timeout"], json!({"type": "string"}), "{rule:#}");
        assert_eq!(http["retries"]["properties"]["attempts"], json!({"type": "integer"}));
        assert_eq!(http["fault"]["properties"]["abort"]["properties"].get("http2Error"), None, "refused");
        let tls = &schema(Kind::PeerAuthentication)["properties"]["spec"]["properties"]["mtls"]["properties"]["mode"];
        assert!(tls["enum"].as_array().unwrap().contains(&json!("STRICT")), "{tls}");
        for kind in Kind::ALL {
            let schema = schema(kind);
            assert_eq!(schema["properties"]["kind"]["const"], kind.as_str());
            assert!(!schema.to_string().contains(STRANGE), "{kind}: {schema:#}");
        }
    }

    /// OP3: what is taken is as its schema says, and what a schema does not know is not taken.
    #[test]
    fn objects_are_as_their_schemas_say() {
        let text = include_str!("../../../examples/bookinfo/mesh/bookinfo.yaml");
        let objects = parse("bookinfo.yaml", text).unwrap().objects;
        assert!(!objects.is_empty());
        for object in &objects {
            let mut out = Vec::new();
            wrong(&schema(object.key.kind), &object.raw, "", &mut out);
            assert!(out.is_empty(), "{}: {out:?}", object.key);
        }
        let mut out = Vec::new();
        let unknown = json!({"spec": {"hostz": ["a"], "hosts": "a"}});
        wrong(&schema(Kind::VirtualService), &unknown, "", &mut out);
        assert_eq!(out, [".spec.hosts is string, not array", ".spec.hostz is unknown"]);
    }
}
