//! YAML as a tree that knows where each part stands.
//!
//! Objects are not deserialised straight into their types, because that stops at the first fault; they are read into
//! [`Node`]s first, so that all faults of a file are told at once. A file is cut into its documents by hand (a line that
//! begins with `---` or `...` is a marker wherever it stands, YAML 1.2 section 9.1), so that a document that is not YAML
//! does not hide the faults of the others.

use std::{fmt, ops::Deref, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

use super::{Source, secret};
use crate::diagnostic::{Diagnostic, Level, codes};

/// Where something stands in its file.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Spot {
    /// From 1, counted in the file, not the document.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    /// In characters, at least 1; never beyond the line.
    pub length: u32,
}

/// A value and where it stands. Two are equal when their values are.
#[derive(Clone, Copy, Debug, Default)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Where.
    pub at: Spot,
}

impl<T: PartialEq> PartialEq for At<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T> Deref for At<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// A part of a document.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) at: Spot,
    pub(crate) value: Value,
}

/// What a [`Node`] is.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(At<String>, Node)>),
}

impl Node {
    /// With its article, for people.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Text(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// The value of a key, if this is a map that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|(name, _)| name.value == key).map(|(_, node)| node)
    }

    /// Without positions.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => i64::try_from(*value).map_or_else(|_| (*value as f64).into(), Into::into),
            Value::Float(value) => (*value).into(),
            Value::Text(value) => value.as_str().into(),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Map(entries) => {
                serde_json::Value::Object(entries.iter().map(|(k, v)| (k.value.clone(), v.to_json())).collect())
            }
        }
    }

    fn settle(&mut self, source: &Source) {
        self.at = source.settle(self.at);
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.settle(source)),
            Value::Map(entries) => {
                for (key, node) in entries {
                    key.at = source.settle(key.at);
                    node.settle(source);
                }
            }
            _ => {}
        }
    }
}

impl Source {
    /// The documents of a file that hold more than comments.
    pub(crate) fn documents(file: &str, text: &str) -> Vec<Self> {
        let file: Arc<str> = file.into();
        // A byte order mark is no part of the first line (YAML 1.2 section 5.2), nor of its columns.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut documents = Vec::new();
        let mut start = (1, 0);
        let mut offset = 0;
        for (line, content) in (1..).zip(text.split_inclusive('\n')) {
            if is_marker(content) {
                documents.push((start, offset));
                // `...` ends a document and belongs to none; `---` may carry the beginning of the next.
                start = if content.starts_with("...") { (line + 1, offset + content.len()) } else { (line, offset) };
            }
            offset += content.len();
        }
        documents.push((start, offset));
        documents
            .into_iter()
            .filter_map(|((first_line, from), to)| {
                let text = text.get(from..to)?;
                let says_something = text.lines().any(|line| {
                    let line = line.strip_prefix("---").unwrap_or(line).trim();
                    !line.is_empty() && !line.starts_with('#') && !line.starts_with('%')
                });
                says_something.then(|| Self { file: file.clone(), first_line, text: text.into() })
            })
            .collect()
    }

    /// The document as a tree.
    pub(crate) fn tree(&self) -> Result<Node, Box<Diagnostic>> {
        let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
        match serde_saphyr::from_str_with_options::<Node>(&self.text, options) {
            Ok(mut node) => {
                node.settle(self);
                Ok(node)
            }
            Err(error) => {
                let at = error.location().map_or(Spot { line: 1, column: 1, length: 1 }, spot);
                let message = error.without_snippet().to_string();
                // The renderer says where; the parser's own words repeat it at the end.
                let message = message.split(" at line ").next().unwrap_or_default().trim_end_matches([',', ' ']);
                let mut diagnostic =
                    self.diagnostic(codes::NOT_YAML, Level::Error, self.settle(at), format!("not YAML: {message}"));
                diagnostic.help = Some("indent with spaces, two a level; quote strings that hold `: ` or begin with `*`, `&`, `!`, `{`, `[` or `@`".into());
                Err(Box::new(diagnostic))
            }
        }
    }

    /// A finding about this document.
    pub(crate) fn diagnostic(&self, code: &'static str, level: Level, at: Spot, message: String) -> Diagnostic {
        Diagnostic {
            code: code.into(),
            level,
            file: self.file.to_string(),
            line: at.line,
            column: at.column,
            length: at.length.max(1),
            message: secret::masked_words(&self.text, &message).into_owned(),
            label: None,
            note: None,
            help: None,
            excerpt: secret::masked_line(&self.text, self.line(at.line)).into_owned(),
        }
    }

    fn line(&self, line: u32) -> &str {
        let n = line.saturating_sub(self.first_line) as usize;
        self.text.lines().nth(n).unwrap_or_default()
    }

    /// From the document's lines to the file's, and cut at the end of the line.
    fn settle(&self, at: Spot) -> Spot {
        let line = at.line.max(1) + self.first_line - 1;
        let width = self.line(line).trim_end().chars().count() as u32;
        let column = at.column.clamp(1, width.max(1));
        Spot { line, column, length: at.length.clamp(1, (width + 1).saturating_sub(column).max(1)) }
    }
}

fn is_marker(line: &str) -> bool {
    let Some(rest) = line.strip_prefix("---").or_else(|| line.strip_prefix("...")) else { return false };
    rest.is_empty() || rest.starts_with(char::is_whitespace)
}

fn spot(location: serde_saphyr::Location) -> Spot {
    let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Spot { line: small(location.line()), column: small(location.column()), length: small(location.span().len()).max(1) }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { at: spot(spanned.referenced), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Value, E> {
        i128::try_from(value).map(Value::Int).map_err(|_| E::custom("number is too large"))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = entries.next_key::<Node>()? {
            let name = match key.value {
                Value::Text(name) => name,
                // `80: ...` and `true: ...` are keys of string maps in JSON's eyes.
                Value::Int(number) => number.to_string(),
                Value::Bool(value) => value.to_string(),
                _ => return Err(A::Error::custom("a key must be a string")),
            };
            map.push((At { value: name, at: key.at }, entries.next_value()?));
        }
        Ok(Value::Map(map))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    fn at(node: &Node) -> (u32, u32, u32) {
        (node.at.line, node.at.column, node.at.length)
    }

    #[test]
    fn every_node_knows_its_place_in_the_file() {
        let text = "# c\n---\na: 1\n---\nhosts:\n- reviews\n- {name: 'x y', n: 2.5}\nq: \"z\" # c\nm:\n  k: true\n";
        let documents = Source::documents("f", text);
        assert_eq!(documents.len(), 2);
        let tree = documents[1].tree().unwrap();
        let hosts = tree.get("hosts").unwrap();
        let Value::List(items) = &hosts.value else { panic!("{hosts:?}") };
        assert_eq!(at(&items[0]), (6, 3, 7));
        assert_eq!(at(items[1].get("n").unwrap()), (7, 20, 3));
        assert_eq!(at(items[1].get("name").unwrap()), (7, 10, 5));
        assert_eq!(at(tree.get("q").unwrap()), (8, 4, 3));
        let Value::Map(entries) = &tree.value else { panic!() };
        assert_eq!((entries[0].0.at.line, entries[0].0.at.column, entries[0].0.at.length), (5, 1, 5));
        assert_eq!(
            tree.to_json(),
            serde_json::json!({"hosts": ["reviews", {"name": "x y", "n": 2.5}], "q": "z", "m": {"k": true}})
        );
    }

    #[test]
    fn documents_of_comments_are_left_out_and_markers_count_only_at_the_margin() {
        let count = |text| Source::documents("f", text).iter().map(|d| d.first_line).collect::<Vec<_>>();
        assert_eq!(count(""), [0_u32; 0]);
        assert_eq!(count("# only\n---\n# this\n"), [0_u32; 0]);
        assert_eq!(count("a: 1\n---\n"), [1]);
        assert_eq!(count("%YAML 1.2\n---\na: 1\n...\nb: 1\n--- # c\nc: 2"), [2, 5, 6]);
        assert_eq!(count("a: |\n  ---\n  x\n----: 1"), [1]);
    }

    #[test]
    fn byte_order_mark_takes_no_column() {
        let documents = Source::documents("f", "\u{feff}---\nkind: a\n");
        assert_eq!((documents.len(), documents[0].first_line, &*documents[0].text), (1, 1, "---\nkind: a\n"));
        let tree = Source::documents("f", "\u{feff}kind: [a]\n")[0].tree().unwrap();
        let Value::List(items) = &tree.get("kind").unwrap().value else { panic!("{tree:?}") };
        assert_eq!(at(&items[0]), (1, 8, 1));
        let error = Source::documents("f", "\u{feff}kind: [a: b\n")[0].tree().unwrap_err();
        assert!(!error.excerpt.contains('\u{feff}'), "{error}");
    }

    #[test]
    fn what_is_not_yaml_says_where() {
        let error =
            Source::documents("f", "a: 1\n---\nb: [1\nc: 2\n")[0..].iter().find_map(|d| d.tree().err()).unwrap();
        assert_eq!((error.code.as_ref(), error.line), ("MSH0001", 4), "{error}");
    }
}
