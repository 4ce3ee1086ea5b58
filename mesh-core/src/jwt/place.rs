//! Where requests carry tokens: how they are found there and taken off. Source: Envoy `JwtProvider.from_headers` and siblings.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header, request::Parts, uri::PathAndQuery};

use crate::{config::JwtProvider, request::RequestView};

/// A place that may hold a token.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Place {
    /// A cookie of this name.
    Cookie(String),
    /// A query parameter of this name.
    Query(String),
    /// A header, by its lower-case name, behind this text.
    Header(String, String),
}

impl Place {
    /// The places of a provider's tokens.
    pub(super) fn of(provider: &JwtProvider) -> Vec<Self> {
        let headers =
            provider.from_headers.iter().map(|(name, prefix)| Self::Header(name.to_ascii_lowercase(), prefix.clone()));
        let params = provider.from_params.iter().cloned().map(Self::Query);
        let cookies = provider.from_cookies.iter().cloned().map(Self::Cookie);
        let named: Vec<Self> = cookies.chain(params).chain(headers).collect();
        if !named.is_empty() {
            return named;
        }
        vec![
            Self::Query("access_token".to_owned()),
            Self::Header(header::AUTHORIZATION.as_str().to_owned(), "Bearer ".to_owned()),
        ]
    }

    /// Which is looked at before others: of several good tokens the last has the last word. Source: Envoy 1.40 by experiment.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Cookie(_) => 0,
            Self::Query(_) => 1,
            Self::Header(..) => 2,
        }
    }

    /// The token there, if there is any.
    pub(super) fn find<'a>(&self, view: &RequestView<'a>) -> Option<Cow<'a, str>> {
        match self {
            Self::Header(name, prefix) => in_header(view.headers, name, prefix),
            Self::Query(name) => {
                let mut pairs = view.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                let (_, value) = pairs.find(|(found, _)| decoded(found) == *name)?;
                // An empty one is a token that cannot be read, and not none. Source: Envoy 1.40 by experiment.
                Some(decoded(value))
            }
            Self::Cookie(name) => cookies(view.headers).find(|(found, _)| found == name).map(|(_, value)| value.into()),
        }
    }

    /// Takes the token off, and whatever else is in its place under that name.
    pub(super) fn clear(&self, parts: &mut Parts) {
        match self {
            Self::Header(name, _) => {
                if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
                    parts.headers.remove(name);
                }
            }
            Self::Query(name) => {
                if let Some(uri) = without(&parts.uri, name) {
                    parts.uri = uri;
                }
            }
            Self::Cookie(name) => {
                let left: Vec<HeaderValue> =
                    parts.headers.get_all(header::COOKIE).iter().filter_map(|line| rest(line, name)).collect();
                parts.headers.remove(header::COOKIE);
                for line in left {
                    parts.headers.append(header::COOKIE, line);
                }
            }
        }
    }
}

/// A header's lines count as one text, joined by commas; what is behind the prefix is the token. Source: Envoy 1.40 by experiment.
fn in_header<'a>(headers: &'a HeaderMap, name: &str, prefix: &str) -> Option<Cow<'a, str>> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?;
    let mut text: Cow<'a, [u8]> = first.as_bytes().into();
    for line in lines {
        let joined = text.to_mut();
        joined.push(b',');
        joined.extend_from_slice(line.as_bytes());
    }
    if !prefix.is_empty() {
        let at = text.windows(prefix.len()).position(|part| part == prefix.as_bytes())? + prefix.len();
        // To the end, whatever is there: of two tokens behind each other none is taken for the one that counts.
        text = text.get(at..).unwrap_or_default().trim_ascii().to_vec().into();
    }
    // What is no text is a token that cannot be read, and not none.
    Some(match text {
        Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
        Cow::Owned(bytes) => String::from_utf8_lossy(&bytes).into_owned().into(),
    })
}

/// Names and values of all cookies, values without the quotes around them.
fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| std::str::from_utf8(line.as_bytes()).ok());
    lines.flat_map(|line| line.split(';')).filter_map(|cookie| {
        let (name, value) = cookie.split_once('=')?;
        Some((name.trim(), value.trim().trim_matches('"')))
    })
}

/// A line of cookies without those of a name.
fn rest(line: &HeaderValue, name: &str) -> Option<HeaderValue> {
    let is_meant =
        |cookie: &&[u8]| cookie.split(|byte| *byte == b'=').next().is_some_and(|it| it.trim_ascii() == name.as_bytes());
    let left: Vec<&[u8]> =
        line.as_bytes().split(|byte| *byte == b';').filter(|it| !is_meant(it)).map(<[u8]>::trim_ascii).collect();
    let left = left.join(&b"; "[..]);
    if left.is_empty() { None } else { HeaderValue::from_bytes(&left).ok() }
}

/// An address without the parameters of a name; `None` where it has none.
fn without(uri: &Uri, name: &str) -> Option<Uri> {
    let (path, query) = (uri.path(), uri.query()?);
    let left: Vec<&str> =
        query.split('&').filter(|pair| decoded(pair.split('=').next().unwrap_or_default()) != name).collect();
    let left = left.join("&");
    if left.len() == query.len() {
        return None;
    }
    let mut parts = uri.clone().into_parts();
    let path = if left.is_empty() { path.to_owned() } else { format!("{path}?{left}") };
    parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    Uri::from_parts(parts).ok()
}

/// Without percent-encoding; what is encoded wrongly stays as it is.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return text.into();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let hex = |at: usize| more.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (first, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = more.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::type_complexity)]

    use super::*;

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut builder = http::Request::builder().uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    /// AN13: tokens are found in headers behind a prefix, in query parameters and in cookies, and taken off there.
    #[test]
    fn tokens_are_found_and_taken_off() {
        let bearer = || Place::Header("authorization".to_owned(), "Bearer ".to_owned());
        let plain = || Place::Header("x-jwt".to_owned(), String::new());
        let (query, cookie) = (|| Place::Query("t".to_owned()), || Place::Cookie("c".to_owned()));
        #[rustfmt::skip]
        let cases: [(Place, &str, &[(&str, &str)], Option<&str>, &str, &[(&str, &str)]); 13] = [
            (bearer(), "/", &[("authorization", "Bearer a.b.c")], Some("a.b.c"), "/", &[]),
            (bearer(), "/", &[("authorization", "bearer a.b.c")], None, "/", &[]),
            (bearer(), "/", &[("authorization", "Basic abc")], None, "/", &[]),
            (bearer(), "/", &[("authorization", "Bearer  'a.b.c', x")], Some("'a.b.c', x"), "/", &[]),
            (bearer(), "/", &[("authorization", "Bearer a.b.c"), ("authorization", "Bearer d.e.f")], Some("a.b.c,Bearer d.e.f"), "/", &[]),
            (bearer(), "/", &[("authorization", "Basic x"), ("authorization", "Bearer d.e.f")], Some("d.e.f"), "/", &[]),
            (plain(), "/", &[("x-jwt", "a b"), ("y", "1")], Some("a b"), "/", &[("y", "1")]),
            (query(), "/p?a=1&t=a.b.c&b=2", &[], Some("a.b.c"), "/p?a=1&b=2", &[]),
            (query(), "http://h/p?t=a.b.c&%74=x", &[], Some("a.b.c"), "http://h/p", &[]),
            (query(), "/p?tt=a.b.c&t", &[], Some(""), "/p?tt=a.b.c", &[]),
            (cookie(), "/", &[("cookie", "a=1; c=\"a.b.c\"; c=x"), ("cookie", "c=y")], Some("a.b.c"), "/", &[("cookie", "a=1")]),
            (cookie(), "/", &[("cookie", "cc=1")], None, "/", &[("cookie", "cc=1")]),
            (cookie(), "/", &[("cookie", "c=a.b.c")], Some("a.b.c"), "/", &[]),
        ];
        for (place, uri, headers, found, uri_after, headers_after) in cases {
            let mut parts = parts(uri, headers);
            assert_eq!(place.find(&RequestView::of(&parts, None)).as_deref(), found, "{place:?} {uri} {headers:?}");
            place.clear(&mut parts);
            assert_eq!(parts.uri.to_string(), uri_after, "{place:?} {uri}");
            if found.is_some() {
                let left: Vec<(&str, &str)> =
                    parts.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
                assert_eq!(left, headers_after, "{place:?} {headers:?}");
            }
        }
    }
}
