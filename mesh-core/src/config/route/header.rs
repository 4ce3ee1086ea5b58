//! Changes of headers, and the texts they set, in which operators between `%` stand for parts of request and response.
//!
//! Source: Envoy `HeaderValueOption`, and its substitution formatters as far as they name what a library knows.

use std::{fmt, str::FromStr, sync::Arc};

use http::HeaderName;
use serde::{Deserialize, Serialize};

/// Changes of headers on the way there and back. Source: Envoy `request_headers_to_add/remove` and `response_...`.
///
/// Of one level, removals come first; then every condition and every text is settled by the headers as they are; then
/// what is set is set, and last what is added is added.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct HeaderChanges {
    /// On the request.
    pub request: Vec<HeaderChange>,
    /// On the response, the mesh's own answers included.
    pub response: Vec<HeaderChange>,
}

impl HeaderChanges {
    /// Nothing to change.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

/// One change of one header.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderChange {
    /// Another value beside those there. Envoy `APPEND_IF_EXISTS_OR_ADD`.
    Append {
        /// Lower-case name.
        name: String,
        /// Value.
        value: Format,
    },
    /// This value instead of those there. Envoy `OVERWRITE_IF_EXISTS_OR_ADD`.
    Set {
        /// Lower-case name.
        name: String,
        /// Value.
        value: Format,
    },
    /// This value where there is none. Envoy `ADD_IF_ABSENT`.
    AddIfAbsent {
        /// Lower-case name.
        name: String,
        /// Value.
        value: Format,
    },
    /// This value instead of those there, where there are any. Envoy `OVERWRITE_IF_EXISTS`.
    SetIfPresent {
        /// Lower-case name.
        name: String,
        /// Value.
        value: Format,
    },
    /// Gone.
    Remove {
        /// Lower-case name.
        name: String,
    },
}

/// A text with operators: `%REQ(x-user)%`; `%%` is a percent sign. Checked when made.
///
/// What an operator names and is not there becomes nothing. A change whose text comes out empty is left out, unless it
/// is to be kept.
#[derive(Clone, Debug, Default)]
pub struct Format {
    text: String,
    parts: Arc<[Part]>,
    keep_empty: bool,
}

/// A piece of a [`Format`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Part {
    Literal(String),
    Operator(Operator),
}

/// What stands for a part of a request or response. Source: Envoy's command operators.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Operator {
    /// `%REQ(X?Y):Z%`: the first value of a request header, else of another, at most that many bytes of it.
    Request(HeaderChoice),
    /// `%RESP(X?Y):Z%`: of a response header.
    Response(HeaderChoice),
    /// `%PROTOCOL%`: `HTTP/1.1`, `HTTP/2`.
    Protocol,
    /// `%UPSTREAM_CLUSTER%`, `%UPSTREAM_CLUSTER_RAW%`: the cluster the request goes to.
    Cluster,
    /// `%ROUTE_NAME%`.
    RouteName,
    /// `%RESPONSE_CODE%`; nothing on a request.
    Status,
    /// `%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%`, `%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%`: the address of the caller
    /// being served while the request is made; nothing for requests of the program's own.
    Caller,
}

/// A header, another where it is missing, and how much of its value.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderChoice {
    pub(crate) first: HeaderSource,
    pub(crate) second: Option<HeaderSource>,
    pub(crate) most: usize,
}

/// A header, or what HTTP/2 calls one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum HeaderSource {
    Method,
    Authority,
    Scheme,
    Path,
    Header(HeaderName),
}

impl HeaderSource {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            ":method" => Self::Method,
            // Envoy keeps the host header in `:authority`.
            ":authority" | "host" => Self::Authority,
            ":scheme" => Self::Scheme,
            ":path" => Self::Path,
            _ => Self::Header(HeaderName::from_bytes(name.as_bytes()).ok()?),
        })
    }
}

/// Why a text is no [`Format`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum FormatError {
    /// A percent sign that neither opens an operator nor stands twice.
    Malformed(String),
    /// An operator that is not known here.
    Unknown(String),
}

impl Format {
    /// The text itself, percent signs and all.
    pub fn literal(text: &str) -> Self {
        let parts = if text.is_empty() { Vec::new() } else { vec![Part::Literal(text.to_owned())] };
        Self { text: text.replace('%', "%%"), parts: parts.into(), keep_empty: text.is_empty() }
    }

    /// Sent even when it comes out empty. Envoy `keep_empty_value`.
    #[must_use]
    pub fn keeping_empty(mut self) -> Self {
        self.keep_empty = true;
        self
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Is it sent even when it comes out empty?
    pub fn keeps_empty(&self) -> bool {
        self.keep_empty
    }

    /// The text, if it has no operators.
    pub(crate) fn constant(&self) -> Option<&str> {
        match &*self.parts {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let malformed = || FormatError::Malformed(text.to_owned());
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            if let Some(after) = after.strip_prefix('%') {
                literal.push('%');
                rest = after;
                continue;
            }
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            let (operator, after) = split_operator(after).ok_or_else(malformed)?;
            parts.push(Part::Operator(parse_operator(operator)?));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self { text: text.to_owned(), parts: parts.into(), keep_empty: false })
    }
}

/// `REQ(x)` and what follows its closing `%`.
fn split_operator(text: &str) -> Option<(&str, &str)> {
    let name = text.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))?;
    if name == 0 {
        return None;
    }
    let arguments = match text[name..].starts_with('(') {
        true => name + text[name..].find(')')? + 1,
        false => name,
    };
    let end = arguments + text[arguments..].find('%')?;
    Some((&text[..end], &text[end + 1..]))
}

fn parse_operator(operator: &str) -> Result<Operator, FormatError> {
    let unknown = || FormatError::Unknown(format!("%{operator}%"));
    let (name, arguments) = operator.split_once('(').unwrap_or((operator, ""));
    Ok(match (name, arguments) {
        ("REQ", _) => Operator::Request(header_choice(arguments).ok_or_else(unknown)?),
        ("RESP", _) => Operator::Response(header_choice(arguments).ok_or_else(unknown)?),
        ("PROTOCOL", "") => Operator::Protocol,
        ("UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW", "") => Operator::Cluster,
        ("ROUTE_NAME", "") => Operator::RouteName,
        ("RESPONSE_CODE", "") => Operator::Status,
        ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", "") => {
            Operator::Caller
        }
        _ => return Err(unknown()),
    })
}

/// `x-a?x-b):10`.
fn header_choice(arguments: &str) -> Option<HeaderChoice> {
    let (names, most) = arguments.split_once(')')?;
    let most = match most {
        "" => usize::MAX,
        most => most.strip_prefix(':')?.parse().ok()?,
    };
    let (first, second) = names.split_once('?').map_or((names, None), |(first, second)| (first, Some(second)));
    let source = |name: &str| HeaderSource::parse(&name.to_ascii_lowercase());
    let second = match second {
        Some(second) => Some(source(second)?),
        None => None,
    };
    Some(HeaderChoice { first: source(first)?, second, most })
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.keep_empty == other.keep_empty
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(text) => write!(f, "{text:?} has a single %; write %% for a percent sign"),
            Self::Unknown(operator) => write!(f, "{operator} is no operator known here"),
        }
    }
}

impl std::error::Error for FormatError {}

/// How a [`Format`] is written down.
#[derive(Deserialize, Serialize)]
struct Written {
    text: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    keep_empty: bool,
}

impl Serialize for Format {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Written { text: self.text.clone(), keep_empty: self.keep_empty }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Written { text, keep_empty } = Written::deserialize(deserializer)?;
        let parsed: Self = text.parse().map_err(serde::de::Error::custom)?;
        Ok(Self { keep_empty, ..parsed })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// RA14: what is an operator, what is text, and what is neither.
    #[test]
    fn texts_are_checked_when_made() {
        for (text, constant) in [
            ("", Some("")),
            ("plain", Some("plain")),
            ("100%%", Some("100%")),
            ("%%REQ(a)%%", Some("%REQ(a)%")),
            ("%REQ(x-a)%", None),
            ("a%REQ(X-A?:path):10%b%PROTOCOL%", None),
            ("%RESP(x)%%UPSTREAM_CLUSTER%%ROUTE_NAME%%RESPONSE_CODE%", None),
        ] {
            let format: Format = text.parse().unwrap();
            assert_eq!((format.constant(), format.as_str()), (constant, text));
            let json = serde_json::to_string(&format).unwrap();
            assert_eq!(serde_json::from_str::<Format>(&json).unwrap(), format);
        }
        for bad in ["%", "50% off", "%REQ(a", "%REQ(a)", "%()%", "a%b"] {
            assert!(matches!(bad.parse::<Format>(), Err(FormatError::Malformed(_))), "{bad}");
        }
        for unknown in ["%START_TIME%", "%REQ%", "%REQ()%", "%REQ(a):x%", "%PROTOCOL(x)%", "%ENVIRONMENT(HOME)%"] {
            let error = unknown.parse::<Format>().unwrap_err();
            assert_eq!(error, FormatError::Unknown(unknown.to_owned()), "{unknown}");
        }
        assert_eq!(Format::literal("5%").constant(), Some("5%"));
        assert_eq!("5%%".parse::<Format>().unwrap(), Format::literal("5%"));
    }
}
