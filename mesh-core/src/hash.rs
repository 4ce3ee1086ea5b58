//! The hash of a request: what it has in common with the requests it belongs to, for consistent hashing. Source: Envoy
//! `RouteAction.hash_policy`, gRFC A42.
//!
//! Each policy that finds something adds the XXH64 of it: the hash so far, rotated left by one, XOR the new one. Policies
//! that find nothing add nothing; if none does, the request has no hash and goes anywhere. Several values of a header
//! are hashed in sorted order, each with the hash of those before it as seed, as Envoy does; a gRPC call's binary
//! headers do not count (gRFC A42). A missing cookie that is to be set is made of the request's random bits, counted
//! as if it had been sent, and put on the response.

use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{self, GetAll},
};
use xxhash_rust::xxh64::xxh64;

use crate::{
    config::{self, HashCookie, HashSource, Name, Regex},
    error::CompileError,
    request::RequestView,
    rng::{GOLDEN, mix},
};

/// The hash policies of a route, compiled.
#[derive(Clone, Debug, Default)]
pub struct HashPolicies(Vec<Policy>);

#[derive(Clone, Debug)]
struct Policy {
    source: Source,
    terminal: bool,
}

#[derive(Clone, Debug)]
enum Source {
    Method,
    Authority,
    Scheme,
    Path,
    Header(HeaderName),
    Rewritten(Box<Self>, Regex, String),
    Cookie(HashCookie),
    Ip,
    Query(Name),
    Channel,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    pub(crate) hash: Option<u64>,
    pub(crate) fresh: Fresh,
}

/// The cookies that the response is to set, by the places of their policies.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fresh {
    which: u32,
    bits: u64,
}

impl Fresh {
    /// No cookie is to be set.
    #[inline]
    pub(crate) fn is_none(self) -> bool {
        self.which == 0
    }
}

impl HashPolicies {
    /// Compiles the policies of a route.
    pub fn compile(policies: &[config::HashPolicy]) -> Result<Self, CompileError> {
        if policies.len() > u32::BITS as usize {
            return Err(CompileError::new("route", "action.hash_policy", "has more than 32 entries"));
        }
        let mut compiled = Vec::with_capacity(policies.len());
        for (i, policy) in policies.iter().enumerate() {
            let source = source(&policy.source).ok_or_else(|| {
                CompileError::new("route", format!("action.hash_policy[{i}]"), "names no valid header or cookie")
            })?;
            compiled.push(Policy { source, terminal: policy.terminal });
        }
        Ok(Self(compiled))
    }

    /// There is nothing to hash.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The hash of a request, if it has one; `bits` are those of cookies to be made.
    pub(crate) fn find(&self, view: &RequestView<'_>, bits: u64) -> Found {
        let mut found = Found { hash: None, fresh: Fresh { which: 0, bits } };
        for (at, policy) in self.0.iter().enumerate() {
            let new = policy.source.hash(view).or_else(|| match &policy.source {
                Source::Cookie(cookie) if cookie.ttl.is_some() => {
                    found.fresh.which |= 1 << at;
                    Some(xxh64(&found.fresh.value(at), 0))
                }
                _ => None,
            });
            if let Some(new) = new {
                found.hash = Some(found.hash.map_or(0, |hash| hash.rotate_left(1)) ^ new);
            }
            if policy.terminal && found.hash.is_some() {
                break;
            }
        }
        found
    }

    /// Puts the cookies that were made on the response.
    pub(crate) fn set_cookies(&self, fresh: Fresh, headers: &mut HeaderMap) {
        if fresh.is_none() {
            return;
        }
        for (at, policy) in self.0.iter().enumerate() {
            let Source::Cookie(cookie) = &policy.source else { continue };
            if fresh.which & (1 << at) == 0 {
                continue;
            }
            let value = fresh.value(at);
            let value = String::from_utf8_lossy(&value);
            if let Some(value) = set_cookie(cookie, &value) {
                headers.append(header::SET_COOKIE, value);
            }
        }
    }
}

impl Fresh {
    /// Sixteen hexadecimal digits.
    fn value(self, at: usize) -> [u8; 16] {
        let mut value = mix(self.bits.wrapping_add(GOLDEN.wrapping_mul(at as u64)));
        let mut digits = [0; 16];
        for digit in &mut digits {
            *digit = b"0123456789abcdef"[(value >> 60) as usize];
            value <<= 4;
        }
        digits
    }
}

/// `name="value"; Max-Age=60; Path=/; HttpOnly`, as Envoy writes it. `None` if that is no valid header value.
pub(crate) fn set_cookie(cookie: &HashCookie, value: &str) -> Option<HeaderValue> {
    let mut text = format!("{}=\"{value}\"", cookie.name);
    let seconds = cookie.ttl.map_or(0, |ttl| ttl.as_secs());
    if seconds > 0 {
        let _ = write!(text, "; Max-Age={seconds}");
    }
    if !cookie.path.is_empty() {
        let _ = write!(text, "; Path={}", cookie.path);
    }
    for (name, value) in &cookie.attributes {
        let _ = if value.is_empty() { write!(text, "; {name}") } else { write!(text, "; {name}={value}") };
    }
    text.push_str("; HttpOnly");
    HeaderValue::try_from(text).ok()
}

/// The value of a cookie, without the quotes around it; an empty one counts as none.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let texts = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(';')).find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        let value = value.trim();
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        (key.trim() == name && !value.is_empty()).then_some(value)
    })
}

fn source(source: &HashSource) -> Option<Source> {
    Some(match source {
        HashSource::Header { name, rewrite: None } => match &**name {
            ":method" => Source::Method,
            ":authority" | "host" => Source::Authority,
            ":scheme" => Source::Scheme,
            ":path" => Source::Path,
            name => Source::Header(HeaderName::from_bytes(name.as_bytes()).ok()?),
        },
        HashSource::Header { name, rewrite: Some((pattern, substitution)) } => {
            let inner = self::source(&HashSource::Header { name: Name::clone(name), rewrite: None })?;
            Source::Rewritten(Box::new(inner), pattern.clone(), substitution.clone())
        }
        HashSource::Cookie(cookie) => {
            set_cookie(cookie, "")?;
            Source::Cookie(cookie.clone())
        }
        HashSource::SourceIp => Source::Ip,
        HashSource::Query(name) => Source::Query(Name::clone(name)),
        HashSource::Channel => Source::Channel,
    })
}

impl Source {
    fn hash(&self, view: &RequestView<'_>) -> Option<u64> {
        match self {
            Self::Header(name) => {
                if name.as_str().ends_with("-bin") && view.is_grpc() {
                    return None;
                }
                let mut values = view.headers.get_all(name).into_iter();
                let first = values.next()?.as_bytes();
                if values.next().is_none() {
                    return Some(xxh64(first, 0));
                }
                Some(hash_sorted(&view.headers.get_all(name)))
            }
            Self::Rewritten(source, pattern, substitution) => {
                let rewritten = |bytes: &[u8]| pattern.rewrite(&String::from_utf8_lossy(bytes), substitution);
                if let Self::Header(name) = &**source {
                    if name.as_str().ends_with("-bin") && view.is_grpc() {
                        return None;
                    }
                    let all = view.headers.get_all(name).into_iter();
                    let mut values: Vec<_> = all.map(|value| rewritten(value.as_bytes())).collect();
                    values.sort_unstable();
                    return (!values.is_empty())
                        .then(|| values.iter().fold(0, |seed, value| xxh64(value.as_bytes(), seed)));
                }
                Some(xxh64(rewritten(source.text(view)?.as_bytes()).as_bytes(), 0))
            }
            Self::Cookie(cookie) => self::cookie(view.headers, &cookie.name).map(|value| xxh64(value.as_bytes(), 0)),
            Self::Ip => Some(view.source.map_or_else(|| mix(view.channel), hash_ip)),
            Self::Query(name) => query(view.query()?, name).map(|value| xxh64(value.as_bytes(), 0)),
            Self::Channel => Some(mix(view.channel)),
            _ => self.text(view).map(|text| xxh64(text.as_bytes(), 0)),
        }
    }

    fn text<'a>(&self, view: &RequestView<'a>) -> Option<&'a str> {
        match self {
            Self::Method => Some(view.method.as_str()),
            Self::Authority => (!view.authority.is_empty()).then_some(view.authority),
            Self::Scheme => Some(view.scheme),
            Self::Path => Some(view.path),
            _ => None,
        }
    }
}

/// Of several values in sorted order, without a list of them: each round takes the least that is above the last.
fn hash_sorted(all: &GetAll<'_, HeaderValue>) -> u64 {
    let values = || all.iter().map(HeaderValue::as_bytes);
    let mut seed = 0;
    let mut last: Option<&[u8]> = None;
    while let Some(least) = values().filter(|value| last.is_none_or(|last| *value > last)).min() {
        for _ in values().filter(|value| *value == least) {
            seed = xxh64(least, seed);
        }
        last = Some(least);
    }
    seed
}

/// As Envoy writes addresses: without a port and brackets.
fn hash_ip(ip: IpAddr) -> u64 {
    let mut text = Inline::default();
    let _ = write!(text, "{ip}");
    xxh64(text.as_bytes(), 0)
}

fn query<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|parameter| {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        (key == name).then_some(value)
    })
}

/// The hash of an address, as endpoints are known by.
pub(crate) fn of_address(address: SocketAddr) -> u64 {
    let mut text = Inline::default();
    let _ = write!(text, "{address}");
    xxh64(text.as_bytes(), 0)
}

/// A short text on the stack; what does not fit is left out.
pub(crate) struct Inline {
    bytes: [u8; Self::MOST],
    len: usize,
}

impl Inline {
    const MOST: usize = 64;

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Default for Inline {
    fn default() -> Self {
        Self { bytes: [0; Self::MOST], len: 0 }
    }
}

impl Write for Inline {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use http::request::Parts;

    use super::*;
    use crate::config::HashPolicy;

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut builder = http::Request::builder().uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn header(name: &str) -> HashSource {
        HashSource::Header { name: name.into(), rewrite: None }
    }

    fn policies(sources: &[(HashSource, bool)]) -> HashPolicies {
        let policy =
            |(source, terminal): &(HashSource, bool)| HashPolicy { source: source.clone(), terminal: *terminal };
        HashPolicies::compile(&sources.iter().map(policy).collect::<Vec<_>>()).unwrap()
    }

    fn found(sources: &[(HashSource, bool)], parts: &Parts) -> Option<u64> {
        let view = RequestView { source: Some([10, 1, 2, 3].into()), channel: 7, ..RequestView::of(parts, None) };
        policies(sources).find(&view, 1).hash
    }

    /// LB15, LB17: what each source hashes, by Envoy's hash of it.
    #[test]
    fn each_source_by_itself() {
        let of = |text: &str| Some(xxh64(text.as_bytes(), 0));
        let request = parts(
            "http://reviews/a?x=1&user=ann&user=bob&flag",
            &[
                ("end-user", "jason"),
                ("many", "b"),
                ("many", "a"),
                ("many", "b"),
                ("x-bin", "AAA"),
                ("cookie", "a=1; id=\"7\""),
            ],
        );
        let rewrite = |name: &str| HashSource::Header {
            name: name.into(),
            rewrite: Some(("^(.).*".parse().unwrap(), r"\1".to_owned())),
        };
        let cookie = |name: &str| HashSource::Cookie(HashCookie { name: name.into(), ..HashCookie::default() });
        let sorted = xxh64(b"b", xxh64(b"b", xxh64(b"a", 0)));
        for (source, expected) in [
            (header("end-user"), of("jason")),
            (header("missing"), None),
            (header("many"), Some(sorted)),
            (header("x-bin"), of("AAA")),
            (header(":path"), of("/a?x=1&user=ann&user=bob&flag")),
            (header(":authority"), of("reviews")),
            (header(":method"), of("GET")),
            (rewrite("end-user"), of("j")),
            (rewrite("many"), Some(sorted)),
            (rewrite("missing"), None),
            (rewrite(":authority"), of("r")),
            (cookie("id"), of("7")),
            (cookie("b"), None),
            (HashSource::SourceIp, of("10.1.2.3")),
            (HashSource::Query("user".into()), of("ann")),
            (HashSource::Query("flag".into()), of("")),
            (HashSource::Query("none".into()), None),
            (HashSource::Channel, Some(mix(7))),
        ] {
            assert_eq!(found(&[(source.clone(), false)], &request), expected, "{source:?}");
        }
        let grpc = parts("http://reviews/", &[("content-type", "application/grpc"), ("x-bin", "AAA"), ("x", "A")]);
        assert_eq!(found(&[(header("x-bin"), false)], &grpc), None);
        assert_eq!(found(&[(rewrite("x-bin"), false)], &grpc), None);
        assert_eq!(found(&[(header("x"), false)], &grpc), of("A"));
    }

    /// LB14: hashes are rotated and XORed in order, and a terminal policy ends the list once there is any hash.
    #[test]
    fn policies_add_up() {
        let request = parts("http://reviews/", &[("a", "1"), ("b", "2")]);
        let (a, b) = (xxh64(b"1", 0), xxh64(b"2", 0));
        let (on_a, on_b, on_c) = (header("a"), header("b"), header("c"));
        for (sources, expected) in [
            (vec![(on_a.clone(), false), (on_b.clone(), false)], Some(a.rotate_left(1) ^ b)),
            (vec![(on_b.clone(), false), (on_a.clone(), false)], Some(b.rotate_left(1) ^ a)),
            (vec![(on_a.clone(), false), (on_a.clone(), false)], Some(a.rotate_left(1) ^ a)),
            (vec![(on_a.clone(), true), (on_b.clone(), false)], Some(a)),
            (vec![(on_c.clone(), true), (on_b.clone(), false)], Some(b)),
            (vec![(on_a, false), (on_c.clone(), true), (on_b, false)], Some(a)),
            (vec![(on_c, false)], None),
            (vec![], None),
        ] {
            assert_eq!(found(&sources, &request), expected, "{sources:?}");
        }
    }

    /// LB16: a missing cookie with a time to live is made, counts as if it had been sent, and is set on the response.
    #[test]
    fn a_missing_cookie_is_made() {
        let cookie = |ttl: Option<u64>| HashCookie {
            name: "id".into(),
            ttl: ttl.map(Duration::from_secs),
            path: "/shop".to_owned(),
            attributes: vec![("SameSite".to_owned(), "Lax".to_owned()), ("Secure".to_owned(), String::new())],
        };
        for (ttl, attributes) in [
            (Some(60), "; Max-Age=60; Path=/shop; SameSite=Lax; Secure; HttpOnly"),
            (Some(0), "; Path=/shop; SameSite=Lax; Secure; HttpOnly"),
        ] {
            let policies = policies(&[(HashSource::Cookie(cookie(ttl)), false)]);
            let request = parts("/", &[("cookie", "other=1")]);
            let made = policies.find(&RequestView::of(&request, None), 99);
            let mut headers = HeaderMap::new();
            policies.set_cookies(made.fresh, &mut headers);
            let text = headers["set-cookie"].to_str().unwrap();
            let (value, rest) = text.strip_prefix("id=\"").unwrap().split_once('"').unwrap();
            assert_eq!((value.len(), rest), (16, attributes));
            // The next request sends it, belongs to the same endpoint and gets no other.
            let next = parts("/", &[("cookie", &format!("id={value}"))]);
            let again = policies.find(&RequestView::of(&next, None), 5);
            assert_eq!(again.hash, made.hash);
            assert_eq!(again.fresh.which, 0);
            let other = policies.find(&RequestView::of(&request, None), 100);
            assert_ne!(other.hash, made.hash);
        }
        let passive = policies(&[(HashSource::Cookie(cookie(None)), false)]);
        let found = passive.find(&RequestView::of(&parts("/", &[]), None), 1);
        assert_eq!((found.hash, found.fresh.which), (None, 0));
    }
}
