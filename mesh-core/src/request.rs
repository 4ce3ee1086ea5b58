//! All of a request that policy may see. It borrows the head of the request and never its body.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header, request::Parts};

/// A request as policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// The method.
    pub method: &'a Method,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Host and optional port as the caller named it: the URI's authority, else the `Host` header, else empty.
    pub authority: &'a str,
    /// The port whose routes apply.
    pub port: u16,
    /// The name of the listener it was dialled by, whose routes apply instead; `None` is by port.
    pub target: Option<&'a str>,
    /// The path with its query; at least `/`.
    pub path: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// Where it came from: the caller being served while it is made; `None` is the application itself.
    pub source: Option<IpAddr>,
    /// What all requests of one client have in common, and those of others have not. Envoy `io.grpc.channel_id`.
    pub channel: u64,
}

impl<'a> RequestView<'a> {
    /// The view of a request head. `port` is the port of a gateway's listener; a client gives `None` and means the
    /// authority's port, else the scheme's default.
    pub fn of(parts: &'a Parts, port: Option<u16>) -> Self {
        let scheme = parts.uri.scheme_str().unwrap_or("http");
        let authority = match parts.uri.authority() {
            Some(authority) => authority.as_str(),
            None => parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or(""),
        };
        // A user name in front of the host takes no part in routing.
        let authority = match authority.bytes().rposition(|byte| byte == b'@') {
            Some(at) => authority.get(at + 1..).unwrap_or(""),
            None => authority,
        };
        let port = port.or_else(|| split_port(authority).1).unwrap_or(if scheme == "https" { 443 } else { 80 });
        let path = match parts.uri.path_and_query().map(http::uri::PathAndQuery::as_str) {
            None | Some("") => "/",
            Some(path) => path,
        };
        let (method, headers) = (&parts.method, &parts.headers);
        Self { method, scheme, authority, port, target: None, path, headers, source: None, channel: 0 }
    }

    /// The path without its query.
    pub fn path_only(&self) -> &'a str {
        // Byte by byte: paths are too short for searching in words to pay.
        match self.path.bytes().position(|byte| byte == b'?') {
            Some(at) => self.path.get(..at).unwrap_or(self.path),
            None => self.path,
        }
    }

    /// The query, without its `?`.
    pub fn query(&self) -> Option<&'a str> {
        self.path.split_once('?').map(|(_, query)| query)
    }

    /// Is it a gRPC call: `content-type` `application/grpc` or `application/grpc+...`?
    pub fn is_grpc(&self) -> bool {
        is_grpc(self.headers)
    }

    /// The host without its port.
    pub fn host(&self) -> &'a str {
        split_port(self.authority).0
    }
}

/// The first value of that name. Among a few headers names are compared one by one, since hashing one costs more.
pub fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    const FEW: usize = 8;
    match headers.len() <= FEW {
        true => headers.iter().find(|(own, _)| *own == name).map(|(_, value)| value),
        false => headers.get(name),
    }
}

/// Is the content of these headers gRPC? `application/grpc-web` is not. Source: Envoy `hasGrpcContentType`.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = header(headers, &header::CONTENT_TYPE) else { return false };
    match value.as_bytes().strip_prefix(b"application/grpc") {
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';')),
        None => false,
    }
}

/// Host and port of an authority; the brackets of an IPv6 address stay with the host.
pub(crate) fn split_port(authority: &str) -> (&str, Option<u16>) {
    // Nearly no name ends in digits after a colon, which a look at its end tells.
    let digits = authority.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (name, port) = authority.split_at(authority.len() - digits);
    let Some(host) = name.strip_suffix(':') else { return (authority, None) };
    // `::1` has colons of its own: without brackets there is no port.
    if host.contains(':') && !host.ends_with(']') {
        return (authority, None);
    }
    match port.parse() {
        Ok(port) => (host, Some(port)),
        Err(_) => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut builder = http::Request::builder().uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn authority_and_port_come_from_the_uri_then_the_host_header() {
        let cases: [(_, &[_], _, _, _, _); 8] = [
            ("http://reviews:9080/a?b=c", &[("host", "other")], None, "reviews:9080", "reviews", 9080),
            ("http://reviews/", &[], None, "reviews", "reviews", 80),
            ("https://reviews/", &[], None, "reviews", "reviews", 443),
            ("/a", &[("host", "shop.example.com:8080")], None, "shop.example.com:8080", "shop.example.com", 8080),
            ("/a", &[("host", "shop.example.com:8080")], Some(80), "shop.example.com:8080", "shop.example.com", 80),
            ("http://[::1]:9080/", &[], None, "[::1]:9080", "[::1]", 9080),
            ("http://jason@reviews:9080/", &[], None, "reviews:9080", "reviews", 9080),
            ("/a", &[], None, "", "", 80),
        ];
        for (uri, headers, port, authority, host, expected) in cases {
            let parts = parts(uri, headers);
            let view = RequestView::of(&parts, port);
            assert_eq!((view.authority, view.host(), view.port), (authority, host, expected), "{uri}");
        }
    }

    #[test]
    fn path_and_query_are_told_apart() {
        let parts = parts("http://reviews/a/b?c=d?e", &[]);
        let view = RequestView::of(&parts, None);
        assert_eq!((view.path, view.path_only(), view.query()), ("/a/b?c=d?e", "/a/b", Some("c=d?e")));
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x=y", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(RequestView::of(&parts("/", &[("content-type", value)]), None).is_grpc(), expected, "{value}");
        }
    }
}
