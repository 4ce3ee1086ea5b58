//! Reading fields out of a tree, collecting faults on the way instead of stopping at the first.
//!
//! [`Reader`] holds the document and its findings; [`Fields`] is a map being read: whoever takes a field out names it, and
//! what nobody took is an unknown field, told with the nearest name that exists. Names are camelCase as in JSON; the
//! snake_case of the protobuf definitions is taken too, as protobuf's JSON mapping demands.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Source,
    yaml::{At, Node, Spot, Value},
};
use crate::diagnostic::{Diagnostic, Level, codes};

/// A document being read.
pub(crate) struct Reader<'s> {
    source: &'s Source,
    /// `VirtualService default/reviews`, for messages.
    pub(crate) object: String,
    /// What was found so far.
    pub(crate) found: Vec<Diagnostic>,
}

/// A map being read.
pub(crate) struct Fields<'n> {
    pub(crate) at: Spot,
    pub(crate) path: String,
    entries: &'n [(At<String>, Node)],
    taken: Vec<bool>,
    known: Vec<&'static str>,
}

impl<'s> Reader<'s> {
    pub(crate) fn new(source: &'s Source, object: String) -> Self {
        Self { source, object, found: Vec::new() }
    }

    /// Adds a finding and returns it for a label, note or help.
    pub(crate) fn report(&mut self, code: &'static str, level: Level, at: Spot, message: String) -> &mut Diagnostic {
        let message = if self.object.is_empty() { message } else { format!("{}: {message}", self.object) };
        let index = self.found.len();
        self.found.push(self.source.diagnostic(code, level, at, message));
        &mut self.found[index]
    }

    /// A value the schema does not allow.
    pub(crate) fn invalid(&mut self, at: Spot, message: String) -> &mut Diagnostic {
        self.report(codes::INVALID, Level::Error, at, message)
    }

    /// A field that is understood and refused.
    pub(crate) fn unsupported(&mut self, at: Spot, path: &str, help: &str) {
        self.report(codes::UNSUPPORTED_FIELD, Level::Error, at, format!("{path} is not supported")).help =
            Some(help.to_owned());
    }

    /// A field or value to be replaced.
    pub(crate) fn deprecated(&mut self, at: Spot, message: String, help: &str) {
        self.report(codes::DEPRECATED, Level::Warning, at, message).help = Some(help.to_owned());
    }

    fn wrong_type(&mut self, node: &Node, path: &str, wanted: &str) {
        let found = node.kind();
        let diagnostic =
            self.report(codes::WRONG_TYPE, Level::Error, node.at, format!("{path} must be {wanted}, this is {found}"));
        diagnostic.label = Some(format!("expected {wanted}"));
        if wanted == "a string" && matches!(node.value, Value::Int(_) | Value::Float(_) | Value::Bool(_)) {
            diagnostic.help = Some("put it in quotes".to_owned());
        }
        if let (Value::Text(text), true) = (&node.value, wanted.contains("number") || wanted.contains("integer"))
            && text.trim().parse::<f64>().is_ok()
        {
            diagnostic.help = Some("remove the quotes".to_owned());
        }
    }

    pub(crate) fn text(&mut self, node: &Node, path: &str) -> Option<At<String>> {
        let Value::Text(value) = &node.value else {
            self.wrong_type(node, path, "a string");
            return None;
        };
        Some(At { value: value.clone(), at: node.at })
    }

    pub(crate) fn boolean(&mut self, node: &Node, path: &str) -> Option<bool> {
        let Value::Bool(value) = node.value else {
            self.wrong_type(node, path, "true or false");
            return None;
        };
        Some(value)
    }

    /// An integer within `least..=most`.
    pub(crate) fn integer(&mut self, node: &Node, path: &str, least: i128, most: i128) -> Option<At<i128>> {
        let value = match node.value {
            Value::Int(value) => value,
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 1e15 => value as i128,
            _ => {
                self.wrong_type(node, path, "an integer");
                return None;
            }
        };
        if !(least..=most).contains(&value) {
            self.invalid(node.at, format!("{path} is {value}, which is not within {least} to {most}"));
            return None;
        }
        Some(At { value, at: node.at })
    }

    pub(crate) fn u32(&mut self, node: &Node, path: &str) -> Option<u32> {
        self.integer(node, path, 0, i32::MAX.into()).and_then(|n| u32::try_from(n.value).ok())
    }

    pub(crate) fn port(&mut self, node: &Node, path: &str) -> Option<u16> {
        self.integer(node, path, 1, 65_535).and_then(|n| u16::try_from(n.value).ok())
    }

    /// A percentage, 0 to 100.
    pub(crate) fn percent(&mut self, node: &Node, path: &str) -> Option<f64> {
        let value = match node.value {
            Value::Int(value) => value as f64,
            Value::Float(value) => value,
            _ => {
                self.wrong_type(node, path, "a number");
                return None;
            }
        };
        if !(0.0..=100.0).contains(&value) {
            self.invalid(node.at, format!("{path} is {value}, which is not within 0 to 100"));
            return None;
        }
        Some(value)
    }

    /// A duration as Go writes it: `7s`, `1h30m`, `0.5s`.
    pub(crate) fn duration(&mut self, node: &Node, path: &str) -> Option<Duration> {
        if let Value::Int(number) = node.value {
            self.wrong_type(node, path, "a string");
            if let Some(last) = self.found.last_mut() {
                last.help = Some(format!("a duration has a unit: write {number}s or {number}ms"));
            }
            return None;
        }
        let text = self.text(node, path)?;
        let Some(duration) = duration(&text) else {
            self.invalid(node.at, format!("{path} is not a duration: {:?}", text.value)).help =
                Some("write a number and a unit, such as 7s, 250ms or 1h30m".to_owned());
            return None;
        };
        // To round it would turn the shortest time into none at all, which often means no limit.
        if duration.is_zero() && text.contains(|c: char| c.is_ascii_digit() && c != '0') {
            self.invalid(node.at, format!("{path} is too short to be told from 0: {:?}", text.value)).help =
                Some("the shortest duration is 1ns; write 0s if none is meant".to_owned());
            return None;
        }
        Some(duration)
    }

    /// A duration of at least a millisecond.
    pub(crate) fn some_time(&mut self, node: &Node, path: &str) -> Option<Duration> {
        let value = self.duration(node, path)?;
        if value < Duration::from_millis(1) {
            self.invalid(node.at, format!("{path} must be at least 1ms"));
            return None;
        }
        Some(value)
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&mut self, node: &Node, path: &str, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.text(node, path)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text.value) {
            return Some(*value);
        }
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let near = nearest(&text.to_ascii_uppercase(), names.iter().copied());
        let diagnostic = self.invalid(node.at, format!("{path} cannot be {:?}", text.value));
        diagnostic.label = near.map(|near| format!("did you mean {near:?}?"));
        diagnostic.help = Some(format!("it is one of {}", names.join(", ")));
        None
    }

    /// The items of a list, each with its path.
    pub(crate) fn list<'n>(&mut self, node: &'n Node, path: &str) -> Vec<(&'n Node, String)> {
        match &node.value {
            Value::List(items) => items.iter().enumerate().map(|(n, item)| (item, format!("{path}[{n}]"))).collect(),
            Value::Null => Vec::new(),
            _ => {
                self.wrong_type(node, path, "a list");
                Vec::new()
            }
        }
    }

    pub(crate) fn texts(&mut self, node: &Node, path: &str) -> Vec<At<String>> {
        self.list(node, path).into_iter().filter_map(|(item, path)| self.text(item, &path)).collect()
    }

    /// A map whose keys are data.
    pub(crate) fn map<'n>(&mut self, node: &'n Node, path: &str) -> &'n [(At<String>, Node)] {
        match &node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            _ => {
                self.wrong_type(node, path, "a map");
                &[]
            }
        }
    }

    /// A map of strings.
    pub(crate) fn labels(&mut self, node: &Node, path: &str) -> BTreeMap<String, String> {
        self.map(node, path)
            .iter()
            .filter_map(|(key, value)| {
                Some((key.value.clone(), self.text(value, &format!("{path}.{}", key.value))?.value))
            })
            .collect()
    }

    /// A map whose keys are fields.
    pub(crate) fn fields<'n>(&mut self, node: &'n Node, path: &str) -> Option<Fields<'n>> {
        let entries: &[_] = match &node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            _ => {
                self.wrong_type(node, path, "a map");
                return None;
            }
        };
        let taken = vec![false; entries.len()];
        Some(Fields { at: node.at, path: path.to_owned(), entries, taken, known: Vec::new() })
    }

    /// A required field that is not there, told at the map that should have it.
    pub(crate) fn missing(&mut self, fields: &Fields<'_>, name: &str) {
        let path = fields.path_of(name);
        self.report(codes::MISSING_FIELD, Level::Error, fields.at, format!("{path} is missing")).label =
            Some(format!("`{name}` belongs in here"));
    }
}

impl<'n> Fields<'n> {
    /// `spec.http[0].match`.
    pub(crate) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The value of a field, with its path; absent and null are the same.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<(&'n Node, String)> {
        self.take_entry(name)
            .filter(|(_, node, _)| !matches!(node.value, Value::Null))
            .map(|(_, node, path)| (node, path))
    }

    /// As [`Fields::take`], with the place of the field's name, and null as it is.
    pub(crate) fn take_entry(&mut self, name: &'static str) -> Option<(Spot, &'n Node, String)> {
        self.known.push(name);
        let index = self.entries.iter().position(|(key, _)| key.value == name || camel(&key.value) == name)?;
        self.taken[index] = true;
        let (key, node) = &self.entries[index];
        Some((key.at, node, self.path_of(&key.value)))
    }

    /// The text of a field, if it is there and one; it is not taken.
    pub(crate) fn word(&self, name: &str) -> Option<&'n str> {
        let found = self.entries.iter().find(|(key, _)| key.value == name || camel(&key.value) == name);
        match found.map(|(_, node)| &node.value) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Is the field there, whatever its value?
    pub(crate) fn seen(&self, name: &str) -> bool {
        self.entries
            .iter()
            .any(|(key, node)| (key.value == name || camel(&key.value) == name) && !matches!(node.value, Value::Null))
    }

    /// A field read by `read`.
    pub(crate) fn read<T>(&mut self, name: &'static str, read: impl FnOnce(&'n Node, &str) -> Option<T>) -> Option<T> {
        self.take(name).and_then(|(node, path)| read(node, &path))
    }

    /// Fields without effect here, each told when it is there.
    pub(crate) fn ignored(&mut self, reader: &mut Reader<'_>, names: &[&'static str], why: &str) {
        for name in names {
            if let Some((at, _, path)) = self.take_entry(name) {
                reader
                    .report(codes::IGNORED_FIELD, Level::Warning, at, format!("{path} is accepted and ignored"))
                    .note = Some(why.to_owned());
            }
        }
    }

    /// Fields that are refused, each told when it is there.
    pub(crate) fn refused(&mut self, reader: &mut Reader<'_>, names: &[&'static str], help: &str) {
        for name in names {
            if let Some((at, _, path)) = self.take_entry(name) {
                reader.unsupported(at, &path, help);
            }
        }
    }

    /// Fields that others write for their own use and that say nothing to us.
    pub(crate) fn skip(&mut self, names: &[&'static str]) {
        for name in names {
            self.take_entry(name);
        }
    }

    /// What is left is known, and refused.
    pub(crate) fn refuse_rest(self, reader: &mut Reader<'_>, help: &str) {
        for ((key, _), _) in self.entries.iter().zip(&self.taken).filter(|(_, taken)| !**taken) {
            reader.unsupported(key.at, &self.path_of(&key.value), help);
        }
    }

    /// What is left is unknown.
    pub(crate) fn close(self, reader: &mut Reader<'_>) {
        for ((key, _), taken) in self.entries.iter().zip(&self.taken) {
            if *taken || key.starts_with("x-") {
                continue;
            }
            let near = nearest(&camel(&key.value), self.known.iter().copied());
            let path = self.path_of(&key.value);
            let diagnostic = reader.report(codes::UNKNOWN_FIELD, Level::Error, key.at, format!("unknown field {path}"));
            match near {
                Some(near) => diagnostic.label = Some(format!("did you mean {near:?}?")),
                None => {
                    let mut known = self.known.clone();
                    known.sort_unstable();
                    known.dedup();
                    diagnostic.help = Some(format!("known here: {}", known.join(", ")));
                }
            }
        }
    }
}

/// The nearest of some names, if any is near enough to be meant.
pub(crate) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance > 0 && *distance <= (candidate.chars().count().max(3)) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `http1_max_pending_requests` as `http1MaxPendingRequests`.
fn camel(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        match c {
            '_' => upper = true,
            c if upper => {
                out.extend(c.to_uppercase());
                upper = false;
            }
            c => out.push(c),
        }
    }
    out
}

/// A duration as Go writes it, not negative. Source: Go `time.ParseDuration`.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|n| *n > 0)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let scale = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * scale;
        rest = tail;
    }
    if text.is_empty() {
        return None;
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn durations_are_gos() {
        let cases = [
            ("7s", Some(7_000)),
            ("0.5s", Some(500)),
            ("1h30m", Some(5_400_000)),
            ("250ms", Some(250)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("2.5s", Some(2_500)),
            ("", None),
            ("7", None),
            ("-1s", None),
            ("s", None),
            ("7 s", None),
            ("1d", None),
        ];
        for (text, millis) in cases {
            assert_eq!(duration(text), millis.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn near_names_are_suggested_and_far_ones_are_not() {
        assert_eq!(nearest("v33", ["v1", "v3"]), Some("v3"));
        assert_eq!(nearest("desination", ["destination", "weight"]), Some("destination"));
        assert_eq!(nearest("banana", ["destination", "weight"]), None);
        assert_eq!(camel("http1_max_pending_requests"), "http1MaxPendingRequests");
    }
}
