//! Does a request meet the conditions of a route? Strings, headers, query parameters and paths, compared as Envoy does.
//!
//! Conditions are compiled once, so that a request costs comparisons and no allocation. The path is compared without its
//! query; header values are joined by `,` (RM10); of a repeated query parameter only the first counts (RM13).

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    config::{HeaderMatch, HeaderMatcher, PathMatch, QueryMatch, RouteMatch, StringMatch},
    error::CompileError,
    request::RequestView,
    rng::{GOLDEN, mix},
};

use super::describe;

impl StringMatch {
    /// Does `text` meet the condition?
    pub fn is_match(&self, text: &str) -> bool {
        let (text, fold) = (text.as_bytes(), self.ignores_case());
        let same = |a: &[u8], b: &[u8]| if fold { a.eq_ignore_ascii_case(b) } else { a == b };
        match self {
            Self::Exact { value, .. } => same(text, value.as_bytes()),
            Self::Prefix { value, .. } => text.get(..value.len()).is_some_and(|head| same(head, value.as_bytes())),
            Self::Suffix { value, .. } => {
                text.len().checked_sub(value.len()).is_some_and(|start| same(&text[start..], value.as_bytes()))
            }
            Self::Contains { value, .. } => {
                value.is_empty() || text.windows(value.len()).any(|window| same(window, value.as_bytes()))
            }
            Self::Regex(regex) => std::str::from_utf8(text).is_ok_and(|text| regex.is_match(text)),
        }
    }

    fn ignores_case(&self) -> bool {
        match self {
            Self::Exact { ignore_case, .. }
            | Self::Prefix { ignore_case, .. }
            | Self::Suffix { ignore_case, .. }
            | Self::Contains { ignore_case, .. } => *ignore_case,
            Self::Regex(_) => false,
        }
    }
}

impl PathMatch {
    /// Does the path, without its query, meet the condition?
    pub fn is_match(&self, path: &str) -> bool {
        let same = |a: &[u8], b: &[u8], fold: bool| if fold { a.eq_ignore_ascii_case(b) } else { a == b };
        let path_bytes = path.as_bytes();
        let begins = |value: &str, fold| path_bytes.get(..value.len()).is_some_and(|h| same(h, value.as_bytes(), fold));
        match self {
            Self::Exact { value, ignore_case } => same(path_bytes, value.as_bytes(), *ignore_case),
            Self::Prefix { value, ignore_case } => begins(value, *ignore_case),
            Self::SegmentPrefix { value, ignore_case } => {
                begins(value, *ignore_case) && matches!(path_bytes.get(value.len()), None | Some(b'/'))
            }
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

/// Does a header of these meet the condition? Pseudo-headers are not among them. For retry policies and the like.
pub fn header_matches(wanted: &HeaderMatch, headers: &HeaderMap) -> bool {
    let name = HeaderName::from_bytes(wanted.name.as_bytes()).ok();
    let values = name.map(|name| Value::Headers(headers.get_all(name).into_iter()));
    judge(wanted, values.unwrap_or(Value::Missing))
}

/// The compiled conditions of one route.
#[derive(Debug)]
pub(crate) struct Matcher {
    config: RouteMatch,
    names: Vec<HeaderSource>,
}

impl Matcher {
    /// Compiles the conditions; an error names the field below `matches`.
    pub(crate) fn compile(config: &RouteMatch, resource: &str, field: &str) -> Result<Self, CompileError> {
        let mut names = Vec::with_capacity(config.headers.len());
        for (i, header) in config.headers.iter().enumerate() {
            names.push(HeaderSource::parse(&header.name).ok_or_else(|| {
                let message =
                    format!("{:?} is neither a header name nor :method, :authority, :scheme, :path", header.name);
                CompileError::new(resource, format!("{field}.headers[{i}].name"), message)
            })?);
        }
        Ok(Self { config: config.clone(), names })
    }

    pub(crate) fn path(&self) -> &PathMatch {
        &self.config.path
    }

    /// Does the request meet every condition? `bits` are the request's random bits and `index` the route's place: each
    /// route's share is drawn from both, whatever order routes are looked at in.
    pub(crate) fn is_match(&self, view: &RequestView<'_>, bits: u64, index: usize) -> bool {
        self.mismatch(view, bits, index).is_none()
    }

    /// The first condition that is not met.
    pub(crate) fn mismatch(&self, view: &RequestView<'_>, bits: u64, index: usize) -> Option<Mismatch<'_>> {
        if !self.config.path.is_match(view.path_only()) {
            return Some(Mismatch::Path(&self.config.path));
        }
        if self.config.grpc_only && !view.is_grpc() {
            return Some(Mismatch::NotGrpc);
        }
        for (wanted, source) in self.config.headers.iter().zip(&self.names) {
            if !judge(wanted, source.value(view)) {
                return Some(Mismatch::Header(wanted));
            }
        }
        if let Some(wanted) = self.config.query.iter().find(|wanted| !query_matches(wanted, view.query())) {
            return Some(Mismatch::Query(wanted));
        }
        let fraction = self.config.fraction?;
        let drawn = mix(bits.wrapping_add(GOLDEN.wrapping_mul(index as u64 + 1)));
        (!fraction.hit(drawn)).then_some(Mismatch::Fraction)
    }
}

impl Matcher {
    /// The conditions in words.
    pub(crate) fn describe(&self) -> String {
        let mut parts = vec![describe::path(&self.config.path)];
        parts.extend(self.config.grpc_only.then(|| "it is gRPC".to_owned()));
        parts.extend(self.config.headers.iter().map(describe::header));
        parts.extend(self.config.query.iter().map(describe::query));
        parts
            .extend(self.config.fraction.map(|share| format!("{} of {} requests", share.numerator, share.denominator)));
        parts.join(", ")
    }
}

/// The condition that was not met.
#[derive(Debug)]
pub(crate) enum Mismatch<'a> {
    Path(&'a PathMatch),
    NotGrpc,
    Header(&'a HeaderMatch),
    Query(&'a QueryMatch),
    Fraction,
}

/// Where the value of a header condition comes from.
#[derive(Debug)]
enum HeaderSource {
    Method,
    Authority,
    Scheme,
    Path,
    Header(HeaderName),
}

impl HeaderSource {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            ":method" => Self::Method,
            // Envoy keeps the host header in `:authority`.
            ":authority" | "host" => Self::Authority,
            ":scheme" => Self::Scheme,
            ":path" => Self::Path,
            _ => Self::Header(HeaderName::from_bytes(name.as_bytes()).ok()?),
        })
    }

    fn value<'a>(&self, view: &RequestView<'a>) -> Value<'a> {
        match self {
            Self::Method => Value::Text(view.method.as_str()),
            Self::Authority if view.authority.is_empty() => Value::Missing,
            Self::Authority => Value::Text(view.authority),
            Self::Scheme => Value::Text(view.scheme),
            Self::Path => Value::Text(view.path),
            // gRFC A28: binary headers of a gRPC call take no part in routing.
            Self::Header(name) if name.as_str().ends_with("-bin") && view.is_grpc() => Value::Missing,
            Self::Header(name) => Value::Headers(view.headers.get_all(name).into_iter()),
        }
    }
}

/// The values of a header, as far as they are there.
enum Value<'a> {
    Missing,
    Text(&'a str),
    Headers(http::header::ValueIter<'a, HeaderValue>),
}

/// One header condition against its values.
fn judge(wanted: &HeaderMatch, value: Value<'_>) -> bool {
    let mut values = match value {
        Value::Text(text) => return judge_text(wanted, Some(text)),
        Value::Missing => return judge_text(wanted, None),
        Value::Headers(values) => values,
    };
    let Some(first) = values.next() else { return judge_text(wanted, None) };
    let Some(second) = values.next() else { return judge_bytes(wanted, first.as_bytes()) };
    // Several values are joined on the stack; only very long ones cost an allocation.
    let mut joined = Joined::default();
    for part in [first, second].into_iter().chain(values) {
        joined.push(part.as_bytes());
    }
    judge_bytes(wanted, joined.as_bytes())
}

fn judge_bytes(wanted: &HeaderMatch, bytes: &[u8]) -> bool {
    match std::str::from_utf8(bytes) {
        Ok(text) => judge_text(wanted, Some(text)),
        // What is no text is there, and equals no text.
        Err(_) => matches!(wanted.matcher, HeaderMatcher::Present(true)) != wanted.invert,
    }
}

fn judge_text(wanted: &HeaderMatch, text: Option<&str>) -> bool {
    let text = text.or(wanted.missing_as_empty.then_some(""));
    let holds = match (&wanted.matcher, text) {
        (HeaderMatcher::Present(present), text) => text.is_some() == *present,
        // RM9: a header that is not there never meets a condition on its value, inverted or not.
        (_, None) => return false,
        (HeaderMatcher::Range { start, end }, Some(text)) => {
            text.parse().is_ok_and(|number: i64| (*start..*end).contains(&number))
        }
        (HeaderMatcher::Value(matcher), Some(text)) => matcher.is_match(text),
    };
    holds != wanted.invert
}

fn query_matches(wanted: &QueryMatch, query: Option<&str>) -> bool {
    let mut parameters = query.unwrap_or("").split('&').filter(|parameter| !parameter.is_empty());
    let first = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        (name == wanted.name).then_some(value)
    });
    match (first, &wanted.value) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(value), Some(matcher)) => matcher.is_match(value),
    }
}

/// Header values joined by `,` in a small buffer.
struct Joined {
    inline: [u8; Self::INLINE],
    len: usize,
    /// The whole text once it outgrew the buffer.
    spilled: Vec<u8>,
}

impl Joined {
    const INLINE: usize = 256;

    fn push(&mut self, part: &[u8]) {
        if self.len > 0 || !self.spilled.is_empty() {
            self.extend(b",");
        }
        self.extend(part);
    }

    fn extend(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        if self.spilled.is_empty() && end <= Self::INLINE {
            self.inline[self.len..end].copy_from_slice(bytes);
            self.len = end;
            return;
        }
        if self.spilled.is_empty() {
            self.spilled.extend_from_slice(&self.inline[..self.len]);
        }
        self.spilled.extend_from_slice(bytes);
    }

    fn as_bytes(&self) -> &[u8] {
        if self.spilled.is_empty() { &self.inline[..self.len] } else { &self.spilled }
    }
}

impl Default for Joined {
    fn default() -> Self {
        Self { inline: [0; Self::INLINE], len: 0, spilled: Vec::new() }
    }
}
