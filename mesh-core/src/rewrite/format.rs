//! Texts with operators, filled in. Source: Envoy's substitution formatter in header values: what is not there is nothing.

use std::net::IpAddr;

use http::{HeaderMap, HeaderValue, Version, header, request::Parts};

use crate::{
    config::{Format, HeaderChoice, HeaderSource, Operator, Part},
    plan::Plan,
    request::RequestView,
};

/// Who is being served while a request is made, kept beside its head for operators that ask.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller(pub(super) IpAddr);

/// What the operators of a text may name.
pub(super) struct Facts<'a> {
    pub(super) plan: &'a Plan,
    pub(super) request: Option<&'a Parts>,
    /// Status and headers.
    pub(super) response: Option<(u16, &'a HeaderMap)>,
}

/// Does the text name something of the request?
pub(super) fn asks_request(format: &Format) -> bool {
    let asks = |operator: &Operator| matches!(operator, Operator::Request(_) | Operator::Protocol | Operator::Caller);
    format.parts().iter().any(|part| matches!(part, Part::Operator(operator) if asks(operator)))
}

/// The text with its operators filled in; `None` if that is no header value.
pub(super) fn render(format: &Format, facts: &Facts<'_>) -> Option<HeaderValue> {
    let mut out = Vec::new();
    for part in format.parts() {
        match part {
            Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
            Part::Operator(operator) => fill_in(operator, facts, &mut out),
        }
    }
    HeaderValue::from_bytes(&out).ok()
}

fn fill_in(operator: &Operator, facts: &Facts<'_>, out: &mut Vec<u8>) {
    match operator {
        Operator::Request(choice) => {
            if let Some(request) = facts.request {
                choose(choice, out, |source| of_request(source, request));
            }
        }
        Operator::Response(choice) => {
            if let Some((_, headers)) = facts.response {
                choose(choice, out, |source| match source {
                    HeaderSource::Header(name) => headers.get(name).map(HeaderValue::as_bytes),
                    _ => None,
                });
            }
        }
        Operator::Protocol => {
            let version = facts.request.map(|request| request.version);
            out.extend_from_slice(match version {
                None => b"",
                Some(Version::HTTP_10) => b"HTTP/1.0",
                Some(Version::HTTP_2) => b"HTTP/2",
                Some(Version::HTTP_3) => b"HTTP/3",
                Some(_) => b"HTTP/1.1",
            });
        }
        Operator::Cluster => {
            if let Some(cluster) = facts.plan.cluster() {
                out.extend_from_slice(cluster.name().as_bytes());
            }
        }
        Operator::Caller => {
            if let Some(Caller(address)) = facts.request.and_then(|request| request.extensions.get()) {
                out.extend_from_slice(address.to_string().as_bytes());
            }
        }
        Operator::RouteName => out.extend_from_slice(facts.plan.route.name.as_bytes()),
        Operator::Status => {
            if let Some((status, _)) = facts.response {
                out.extend_from_slice(status.to_string().as_bytes());
            }
        }
    }
}

fn choose<'a>(choice: &HeaderChoice, out: &mut Vec<u8>, value: impl Fn(&HeaderSource) -> Option<&'a [u8]>) {
    let found = value(&choice.first).or_else(|| choice.second.as_ref().and_then(value));
    let found = found.unwrap_or_default();
    out.extend_from_slice(&found[..found.len().min(choice.most)]);
}

fn of_request<'a>(source: &HeaderSource, request: &'a Parts) -> Option<&'a [u8]> {
    let view = RequestView::of(request, None);
    match source {
        HeaderSource::Method => Some(request.method.as_str().as_bytes()),
        HeaderSource::Authority => Some(view.authority.as_bytes()),
        HeaderSource::Scheme => Some(view.scheme.as_bytes()),
        HeaderSource::Path => Some(view.path.as_bytes()),
        HeaderSource::Header(name) if name == header::HOST => Some(view.authority.as_bytes()),
        HeaderSource::Header(name) => request.headers.get(name).map(HeaderValue::as_bytes),
    }
}
