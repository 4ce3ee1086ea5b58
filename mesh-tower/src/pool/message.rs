//! What a request becomes on the wire, and what hyper's errors mean.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, Version, header, uri};
use mesh_core::config::Protocol;

use crate::{
    body::Body,
    error::{Error, ErrorKind},
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Puts the authority and the path where the protocol has them, and takes off what concerns one connection only.
pub(super) fn prepare(request: &mut Request<Body>, protocol: Protocol, tls: bool) -> Result<(), Error> {
    remove_hop_by_hop(request.headers_mut());
    let uri = request.uri();
    let authority = match uri.authority() {
        Some(authority) => Some(authority.as_str().to_owned()),
        None => request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned),
    };
    let invalid = |error: &dyn std::fmt::Display| Error::msg(ErrorKind::Invalid, format!("{error}"));
    let path = uri.path_and_query().cloned().unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
    match protocol {
        Protocol::Http1 => {
            if let Some(authority) = authority {
                // Credentials before an `@` are not part of Host.
                let host = authority.rsplit('@').next().unwrap_or_default();
                let host = HeaderValue::from_str(host).map_err(|error| invalid(&error))?;
                request.headers_mut().insert(header::HOST, host);
            }
            *request.uri_mut() = Uri::from(path);
            *request.version_mut() = Version::HTTP_11;
        }
        Protocol::Http2 => {
            let authority = authority.ok_or_else(|| invalid(&"it names no host"))?;
            let scheme = if tls { uri::Scheme::HTTPS } else { uri::Scheme::HTTP };
            let target = Uri::builder().scheme(scheme).authority(authority).path_and_query(path);
            *request.uri_mut() = target.build().map_err(|error| invalid(&error))?;
            request.headers_mut().remove(header::HOST);
            *request.version_mut() = Version::HTTP_2;
        }
    }
    Ok(())
}

/// Removes headers of one connection. Source: RFC 9110, 7.6.1.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
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

/// What an exchange that failed after something of it was sent has to say.
pub(super) fn failure(error: hyper::Error) -> Error {
    let reason = h2_reason(&error);
    if reason == Some(h2::Reason::REFUSED_STREAM) || is_unprocessed(&error) {
        return Error::new(ErrorKind::RefusedStream, error).unsent();
    }
    if error.is_user() {
        return Error::new(ErrorKind::Body, error);
    }
    if error.is_parse() || matches!(reason, Some(h2::Reason::PROTOCOL_ERROR | h2::Reason::FRAME_SIZE_ERROR)) {
        return Error::new(ErrorKind::Protocol, error);
    }
    Error::new(ErrorKind::Reset, error)
}

fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref() {
            return Some(error);
        }
        source = cause.source();
    }
    None
}

fn h2_reason(error: &hyper::Error) -> Option<h2::Reason> {
    h2_error(error)?.reason()
}

/// A GOAWAY without an error that leaves our stream out: the peer says that it did not process it.
fn is_unprocessed(error: &hyper::Error) -> bool {
    h2_error(error)
        .is_some_and(|error| error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn check(protocol: Protocol, uri: &str, host: Option<&str>) -> (String, Option<String>) {
        let mut request = Request::builder().uri(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let mut request = request.body(Body::empty()).unwrap();
        prepare(&mut request, protocol, true).unwrap();
        let host = request.headers().get("host").map(|host| host.to_str().unwrap().to_owned());
        (request.uri().to_string(), host)
    }

    /// CP1: HTTP/1.1 has the host in a header, HTTP/2 in the URI.
    #[test]
    fn authority_stands_where_the_protocol_has_it() {
        let host = |text: &str| Some(text.to_owned());
        let url = "http://reviews:9080/reviews/0?x=1";
        assert_eq!(check(Protocol::Http1, url, None), ("/reviews/0?x=1".into(), host("reviews:9080")));
        assert_eq!(check(Protocol::Http1, "/a", Some("b")), ("/a".into(), host("b")));
        assert_eq!(check(Protocol::Http1, "http://u:p@h/a", None), ("/a".into(), host("h")));
        assert_eq!(check(Protocol::Http2, url, None), ("https://reviews:9080/reviews/0?x=1".into(), None));
        assert_eq!(check(Protocol::Http2, "/a", Some("b:1")), ("https://b:1/a".into(), None));
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
