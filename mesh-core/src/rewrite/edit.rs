//! Changes of headers, compiled: levels in the order they apply, and within a level Envoy's order.
//!
//! Of one level, removals come first. Then every condition (is the header there?) and every text is settled, all by the
//! headers as they are then; then what is set is set, and last what is added is added. Source: Envoy
//! `HeaderValueOption.append_action`, settled by experiment where its documentation is silent.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::format::{Facts, render};
use crate::{
    config::{Format, HeaderChange, HeaderChanges},
    error::CompileError,
};

/// Changes of headers, parsed and in the order they apply.
#[derive(Clone, Debug, Default)]
pub struct HeaderEdits {
    pub(super) request: Vec<Level>,
    pub(super) response: Vec<Level>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Level {
    remove: Vec<HeaderName>,
    write: Vec<Write>,
    /// No text and no condition depends on the headers, so that nothing has to be settled first.
    is_plain: bool,
}

#[derive(Clone, Debug)]
struct Write {
    name: HeaderName,
    value: Text,
    condition: Option<Condition>,
    adds: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Condition {
    Present,
    Absent,
}

#[derive(Clone, Debug)]
enum Text {
    Plain(HeaderValue),
    Format(Format),
}

impl HeaderEdits {
    /// Parses the changes of several levels, in the order they apply.
    pub fn compile<'a>(levels: impl IntoIterator<Item = &'a HeaderChanges>) -> Result<Self, CompileError> {
        let mut edits = Self::default();
        for changes in levels {
            edits.request.extend(level(&changes.request)?);
            edits.response.extend(level(&changes.response)?);
        }
        Ok(edits)
    }

    /// Changes of requests alone, of one level.
    pub(crate) fn of_requests(changes: &[HeaderChange]) -> Result<Self, CompileError> {
        Ok(Self { request: level(changes)?.into_iter().collect(), response: Vec::new() })
    }

    /// Nothing to change.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }

    /// Does what is said of responses depend on the request?
    pub(super) fn asks_request(&self) -> bool {
        self.response.iter().flat_map(|level| &level.write).any(|write| match &write.value {
            Text::Plain(_) => false,
            Text::Format(format) => super::format::asks_request(format),
        })
    }
}

fn level(changes: &[HeaderChange]) -> Result<Option<Level>, CompileError> {
    let mut level = Level::default();
    for change in changes {
        let (name, value, adds, condition) = match change {
            HeaderChange::Append { name, value } => (name, value, true, None),
            HeaderChange::AddIfAbsent { name, value } => (name, value, true, Some(Condition::Absent)),
            HeaderChange::Set { name, value } => (name, value, false, None),
            HeaderChange::SetIfPresent { name, value } => (name, value, false, Some(Condition::Present)),
            HeaderChange::Remove { name } => {
                level.remove.push(header_name(name)?);
                continue;
            }
        };
        let name = header_name(name)?;
        let value = match value.constant() {
            Some("") if !value.keeps_empty() => continue,
            Some(text) => Text::Plain(HeaderValue::from_str(text).map_err(|_| {
                CompileError::new("header change", format!("{name:?}"), "the value is not a valid header value")
            })?),
            None => Text::Format(value.clone()),
        };
        level.write.push(Write { name, value, condition, adds });
    }
    level.is_plain = level.write.iter().all(|write| write.condition.is_none() && matches!(write.value, Text::Plain(_)));
    Ok((!level.remove.is_empty() || !level.write.is_empty()).then_some(level))
}

fn header_name(name: &str) -> Result<HeaderName, CompileError> {
    let invalid = |what: &str| Err(CompileError::new("header change", format!("{name:?}"), what));
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return invalid("the host and pseudo-headers cannot be changed here; rewrite host and path of the route");
    }
    HeaderName::from_bytes(name.as_bytes()).or_else(|_| invalid("not a valid header name"))
}

impl Level {
    pub(super) fn remove(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
    }

    /// After [`Self::remove`]: what is to be written, by the headers as they are; `None` where everything is, as it stands.
    pub(super) fn settle(&self, headers: &HeaderMap, facts: &Facts<'_>) -> Option<Vec<Option<HeaderValue>>> {
        let settle = |write: &Write| {
            let there = headers.contains_key(&write.name);
            match write.condition {
                Some(Condition::Present) if !there => return None,
                Some(Condition::Absent) if there => return None,
                _ => {}
            }
            match &write.value {
                Text::Plain(value) => Some(value.clone()),
                Text::Format(format) => render(format, facts).filter(|value| format.keeps_empty() || !value.is_empty()),
            }
        };
        (!self.is_plain).then(|| self.write.iter().map(settle).collect())
    }

    pub(super) fn write(&self, headers: &mut HeaderMap, settled: Option<&[Option<HeaderValue>]>) {
        for adds in [false, true] {
            for (i, write) in self.write.iter().enumerate().filter(|(_, write)| write.adds == adds) {
                let value = match (settled, &write.value) {
                    (Some(settled), _) => settled.get(i).cloned().flatten(),
                    (None, Text::Plain(value)) => Some(value.clone()),
                    (None, Text::Format(_)) => None,
                };
                let Some(value) = value else { continue };
                if adds {
                    headers.append(&write.name, value);
                } else {
                    headers.insert(&write.name, value);
                }
            }
        }
    }
}
