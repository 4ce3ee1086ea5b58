//! What a request becomes on the wire, and what hyper's errors mean.

use http::{HeaderMap, HeaderName, HeaderValue, Uri, Version, header, request::Parts, uri};

use crate::error::{Error, ErrorKind};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Puts the authority and the path where the protocol has them, and takes off what concerns one connection only.
///
/// What was prepared for one protocol can be prepared for the other.
pub(super) fn prepare(request: &mut Parts, http2: bool, tls: bool) -> Result<(), Error> {
    remove_hop_by_hop(&mut request.headers);
    if http2 { prepare_http2(request, tls) } else { prepare_http1(request) }
}

/// The protocol the request asks its connection to change to.
pub(crate) fn asked_upgrade(headers: &HeaderMap) -> Option<&HeaderValue> {
    let protocol = headers.get(header::UPGRADE)?;
    let options = headers.get_all(header::CONNECTION).iter().filter_map(|options| options.to_str().ok());
    let asked = options.flat_map(|options| options.split(',')).any(|it| it.trim().eq_ignore_ascii_case("upgrade"));
    asked.then_some(protocol)
}

/// Asks for it on a connection of ours.
pub(crate) fn ask_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

fn prepare_http1(request: &mut Parts) -> Result<(), Error> {
    if let Some(authority) = request.uri.authority() {
        // Credentials before an `@` are not part of Host.
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        if request.headers.get(header::HOST).is_none_or(|known| known != host) {
            let host = HeaderValue::from_str(host).map_err(invalid)?;
            request.headers.insert(header::HOST, host);
        }
    }
    if request.uri.authority().is_some() || request.uri.path_and_query().is_none() {
        let path = request.uri.path_and_query().cloned().unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
        request.uri = Uri::from(path);
    }
    request.version = Version::HTTP_11;
    Ok(())
}

fn prepare_http2(request: &mut Parts, tls: bool) -> Result<(), Error> {
    let scheme = if tls { uri::Scheme::HTTPS } else { uri::Scheme::HTTP };
    let host = request.headers.remove(header::HOST);
    let uri = &request.uri;
    if uri.authority().is_none() || uri.scheme() != Some(&scheme) || uri.path_and_query().is_none() {
        let mut parts = std::mem::take(&mut request.uri).into_parts();
        if parts.authority.is_none() {
            let host = host.ok_or_else(|| invalid("it names no host"))?;
            parts.authority = Some(uri::Authority::try_from(host.as_bytes()).map_err(invalid)?);
        }
        parts.scheme = Some(scheme);
        parts.path_and_query.get_or_insert_with(|| uri::PathAndQuery::from_static("/"));
        request.uri = Uri::from_parts(parts).map_err(invalid)?;
    }
    request.version = Version::HTTP_2;
    Ok(())
}

fn invalid(error: impl std::fmt::Display) -> Error {
    Error::msg(ErrorKind::Invalid, error.to_string())
}

/// Removes headers of one connection. Source: RFC 9110, 7.6.1.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // Nearly no request has any; to look at names costs less than to look them up.
    if !headers.iter().any(is_hop_by_hop) {
        return;
    }
    if let Some(connection) = headers.remove(header::CONNECTION) {
        let named = connection.to_str().unwrap_or_default().split(',');
        for name in named.filter_map(|name| name.trim().parse::<HeaderName>().ok()) {
            // Nobody may have what the mesh itself writes removed on the way.
            if !matches!(name.as_str(), "host" | "te" | "authorization") && !name.as_str().starts_with("x-") {
                headers.remove(name);
            }
        }
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        headers.remove(name);
    }
    if headers.get(header::TE).is_some_and(|te| te != "trailers") {
        headers.remove(header::TE);
    }
}

fn is_hop_by_hop((name, value): (&HeaderName, &HeaderValue)) -> bool {
    match name.as_str() {
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" => true,
        "te" => value != "trailers",
        _ => false,
    }
}

/// What an exchange over HTTP/1.1 that failed has to say.
pub(super) fn failure(error: hyper::Error) -> Error {
    if error.is_user() {
        return Error::new(ErrorKind::Body, error);
    }
    let kind = if error.is_parse() { ErrorKind::Protocol } else { ErrorKind::Reset };
    Error::new(kind, error)
}

/// What a failed HTTP/2 stream has to say.
pub(super) fn stream_failure(error: h2::Error) -> Error {
    let reason = error.reason();
    // A GOAWAY without an error that leaves our stream out: the peer says that it did not process it.
    let unprocessed = error.is_go_away() && error.is_remote() && reason == Some(h2::Reason::NO_ERROR);
    if reason == Some(h2::Reason::REFUSED_STREAM) || unprocessed {
        return Error::new(ErrorKind::RefusedStream, error).unsent();
    }
    if matches!(reason, Some(h2::Reason::PROTOCOL_ERROR | h2::Reason::FRAME_SIZE_ERROR)) {
        return Error::new(ErrorKind::Protocol, error);
    }
    Error::new(ErrorKind::Reset, error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn check(http2: bool, uri: &str, host: Option<&str>) -> (String, Option<String>) {
        let mut request = http::Request::builder().uri(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let (mut request, ()) = request.body(()).unwrap().into_parts();
        prepare(&mut request, http2, true).unwrap();
        let host = request.headers.get("host").map(|host| host.to_str().unwrap().to_owned());
        (request.uri.to_string(), host)
    }

    /// CP1: HTTP/1.1 has the host in a header, HTTP/2 in the URI.
    #[test]
    fn authority_stands_where_the_protocol_has_it() {
        let host = |text: &str| Some(text.to_owned());
        let url = "http://reviews:9080/reviews/0?x=1";
        assert_eq!(check(false, url, None), ("/reviews/0?x=1".into(), host("reviews:9080")));
        assert_eq!(check(false, "/a", Some("b")), ("/a".into(), host("b")));
        assert_eq!(check(false, "http://u:p@h/a", None), ("/a".into(), host("h")));
        assert_eq!(check(true, url, None), ("https://reviews:9080/reviews/0?x=1".into(), None));
        assert_eq!(check(true, "/a", Some("b:1")), ("https://b:1/a".into(), None));
    }

    #[test]
    fn headers_of_one_connection_do_not_travel() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, foo, x-envoy-attempt-count"),
            ("foo", "1"),
            ("x-envoy-attempt-count", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip"),
            ("accept", "*/*"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        remove_hop_by_hop(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "x-envoy-attempt-count"]);
    }
}
