//! Copies of requests: who gets one, and what a copy looks like. Sending it, and never waiting for it, is the caller's.
//!
//! Each mirror is drawn apart, with the plan. The copy is made of the request as the primary gets it, rewritten and all;
//! `-shadow` is added to its host, unless the mirror says otherwise. Source: Envoy `RequestMirrorPolicy`.

use http::{HeaderValue, request::Parts};

use crate::{
    config::{Fraction, Mirror, Name},
    error::CompileError,
    plan::Plan,
    request::{RequestView, split_port},
    rewrite::{self, HeaderEdits},
};

/// Most mirrors of one route.
pub const MOST_MIRRORS: usize = 32;

/// A mirror, ready to be used.
#[derive(Clone, Debug, Default)]
pub struct MirrorPolicy {
    /// Where copies go; empty when a header says so.
    pub cluster: Name,
    /// The header that says where they go.
    pub cluster_header: Option<Name>,
    /// Whether the copy's trace is recorded; `None` is as the request's own.
    pub trace_sampled: Option<bool>,
    fraction: Option<Fraction>,
    keep_host: bool,
    host_rewrite: Option<HeaderValue>,
    edits: HeaderEdits,
}

impl MirrorPolicy {
    pub(crate) fn compile(mirror: &Mirror) -> Result<Self, CompileError> {
        let host = mirror.host_rewrite.as_deref().map(HeaderValue::from_str).transpose();
        Ok(Self {
            cluster: Name::clone(&mirror.cluster),
            cluster_header: mirror.cluster_header.clone(),
            trace_sampled: mirror.trace_sampled,
            fraction: mirror.fraction,
            keep_host: mirror.keep_host,
            host_rewrite: host.map_err(|_| CompileError::new("mirror", "host_rewrite", "not a valid header value"))?,
            edits: HeaderEdits::of_requests(&mirror.headers)?,
        })
    }

    /// Does a request that drew these random bits get copied?
    pub(crate) fn hit(&self, bits: u64) -> bool {
        self.fraction.is_none_or(|fraction| fraction.hit(bits))
    }

    /// The name of the cluster the copy of this request goes to; `None` when the header that says so is not there.
    pub fn target<'a>(&'a self, parts: &'a Parts) -> Option<&'a str> {
        match &self.cluster_header {
            None => Some(&self.cluster),
            Some(header) => parts.headers.get(&**header)?.to_str().ok(),
        }
    }

    /// Makes the head of a copy out of the head of the request, as the primary gets it.
    pub fn apply(&self, plan: &Plan, parts: &mut Parts) {
        rewrite::edit(plan, &self.edits, parts);
        if let Some(host) = &self.host_rewrite {
            rewrite::set_authority(parts, host);
        } else if !self.keep_host {
            let (host, port) = split_port(RequestView::of(parts, None).authority);
            let shadow = match port {
                Some(port) => format!("{host}-shadow:{port}"),
                None => format!("{host}-shadow"),
            };
            if let Ok(shadow) = HeaderValue::try_from(shadow) {
                rewrite::set_authority(parts, &shadow);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use super::*;
    use crate::{
        config::HeaderChange,
        plan::{RoutePolicy, Target},
    };

    /// MI2: the suffix goes before the port; it can be left out or replaced, and the copy has changes of its own.
    #[test]
    fn a_copy_is_marked() {
        let plan = Plan::new(Arc::new(RoutePolicy::default()), Target::Inbound);
        let kept = || Mirror { keep_host: true, ..Mirror::default() };
        let named = || Mirror { host_rewrite: Some("other".to_owned()), ..Mirror::default() };
        for (mirror, uri, expected) in [
            (Mirror::default(), "http://shop:8080/a?b", "http://shop-shadow:8080/a?b"),
            (Mirror::default(), "http://shop/", "http://shop-shadow/"),
            (kept(), "http://shop:8080/", "http://shop:8080/"),
            (named(), "http://shop:8080/", "http://other/"),
        ] {
            let headers = vec![HeaderChange::Set { name: "x-copy".into(), value: "1".parse().unwrap() }];
            let policy = MirrorPolicy::compile(&Mirror { headers, ..mirror }).unwrap();
            let mut parts = http::Request::get(uri).body(()).unwrap().into_parts().0;
            policy.apply(&plan, &mut parts);
            assert_eq!((parts.uri.to_string().as_str(), parts.headers["x-copy"].as_bytes()), (expected, &b"1"[..]));
        }
    }

    /// MI1: where a copy goes may be said by a header, and without it there is none.
    #[test]
    fn a_header_can_say_where_a_copy_goes() {
        let policy = |mirror| MirrorPolicy::compile(&mirror).unwrap();
        let (with, ()) = http::Request::get("/").header("x-to", "b").body(()).unwrap().into_parts();
        let (without, ()) = http::Request::get("/").body(()).unwrap().into_parts();
        let fixed = policy(Mirror { cluster: "a".into(), ..Mirror::default() });
        let named = policy(Mirror { cluster_header: Some("x-to".into()), ..Mirror::default() });
        assert_eq!((fixed.target(&with), fixed.target(&without)), (Some("a"), Some("a")));
        assert_eq!((named.target(&with), named.target(&without)), (Some("b"), None));
    }
}
