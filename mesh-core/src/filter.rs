//! HTTP filters that a program brings along, by the name of their configuration message. Source: Envoy
//! `HttpConnectionManager.http_filters`, gRFC A39.
//!
//! A filter looks at the head of each request of its port and may change or answer it, and at the head of each response. Those
//! of a port see a request in their order and its response in the opposite one; routes and hosts may switch one off or on, or
//! give it another configuration. The registry is one for the process, asked when configuration is read and
//! compiled, and never by a request.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use http::{HeaderMap, StatusCode, request::Parts};

use crate::{
    config::{FilterOverride, Name, OwnFilter},
    error::CompileError,
};

/// A filter of the program's own, with one configuration. Called by many threads at once; it does not wait.
pub trait HttpFilter: fmt::Debug + Send + Sync {
    /// A request leaves the program, its route chosen and nothing of it rewritten yet. An answer ends it here: no later filter
    /// sees the request, and nothing is sent.
    fn request(&self, head: &mut Parts) -> Option<FilterAnswer>;

    /// The response to such a request, the mesh's own answers included, is about to be handed to the program.
    fn response(&self, status: StatusCode, headers: &mut HeaderMap) {
        let _ = (status, headers);
    }
}

/// What a filter answers by itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FilterAnswer {
    /// 200 to 599.
    pub status: u16,
    /// The text; gRPC callers get it as the message of the status that stands for the HTTP one.
    pub body: String,
}

/// Makes a filter of its configuration, or says what is wrong with that.
pub type MakeFilter = fn(config: &[u8]) -> Result<Arc<dyn HttpFilter>, String>;

static KNOWN: RwLock<BTreeMap<Name, MakeFilter>> = RwLock::new(BTreeMap::new());

/// Makes a filter known by the full name of its configuration message (`com.example.filter.v1.Tenant`). Call it before the
/// configuration that names it is read.
pub fn register(message: impl Into<Name>, make: MakeFilter) {
    KNOWN.write().unwrap_or_else(PoisonError::into_inner).insert(message.into(), make);
}

/// Is there a filter with that configuration message?
pub fn is_registered(message: &str) -> bool {
    KNOWN.read().unwrap_or_else(PoisonError::into_inner).contains_key(message)
}

/// The filter that a configuration describes.
///
/// # Errors
///
/// There is none with that message, or its configuration is wrong.
pub fn make(message: &str, config: &[u8]) -> Result<Arc<dyn HttpFilter>, String> {
    let make = KNOWN.read().unwrap_or_else(PoisonError::into_inner).get(message).copied();
    match make {
        Some(make) => make(config),
        None => Err(format!("no HTTP filter of type {message:?} is registered in this process")),
    }
}

/// The filters of a route: those of its port, as the route would have them.
pub(crate) fn compile(port: &[OwnFilter], route: &[FilterOverride]) -> Result<Vec<Arc<dyn HttpFilter>>, CompileError> {
    let mut filters = Vec::new();
    for filter in port {
        let own = route.iter().find(|own| own.name == filter.name);
        let (disabled, message, config) = match own {
            Some(FilterOverride { disabled: true, .. }) => (true, &filter.message, &filter.config),
            Some(FilterOverride { config: Some((message, config)), .. }) => (false, message, config),
            Some(FilterOverride { config: None, .. }) => (false, &filter.message, &filter.config),
            None => (filter.disabled, &filter.message, &filter.config),
        };
        if !disabled {
            let made = make(message, config);
            filters.push(made.map_err(|why| CompileError::new("filter", filter.name.to_string(), why))?);
        }
    }
    Ok(filters)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[derive(Debug)]
    struct Says(String);

    impl HttpFilter for Says {
        fn request(&self, _: &mut Parts) -> Option<FilterAnswer> {
            Some(FilterAnswer { status: 200, body: self.0.clone() })
        }
    }

    fn said(filters: &[Arc<dyn HttpFilter>]) -> Vec<String> {
        let mut head = http::Request::new(()).into_parts().0;
        filters.iter().map(|filter| filter.request(&mut head).unwrap().body).collect()
    }

    /// RA17, RA16: filters keep their order; a route may switch one off or on, or configure it otherwise; what cannot be made is
    /// refused by name.
    #[test]
    fn routes_have_their_own_filters() {
        register("test.core.Says", |config| match std::str::from_utf8(config) {
            Ok(text) => Ok(Arc::new(Says(text.to_owned()))),
            Err(error) => Err(error.to_string()),
        });
        let filter = |name: &str, disabled| OwnFilter {
            name: name.into(),
            message: "test.core.Says".into(),
            config: name.as_bytes().to_vec(),
            disabled,
        };
        let port = [filter("a", false), filter("b", true), filter("c", false)];
        let own = |name: &str, disabled, config: Option<&[u8]>| FilterOverride {
            name: name.into(),
            disabled,
            config: config.map(|config| ("test.core.Says".into(), config.to_vec())),
        };
        assert_eq!(said(&compile(&port, &[]).unwrap()), ["a", "c"]);
        assert_eq!(said(&compile(&port, &[own("c", true, None), own("b", false, None)]).unwrap()), ["a", "b"]);
        let others = [own("a", false, Some(b"x")), own("b", false, Some(b"y")), own("other", false, None)];
        assert_eq!(said(&compile(&port, &others).unwrap()), ["x", "y", "c"]);
        assert_eq!(compile(&port, &[own("c", false, Some(b"\xff"))]).unwrap_err().field, "c");
        assert!(make("test.core.Nobody", b"").unwrap_err().contains("test.core.Nobody"));
        assert!(is_registered("test.core.Says") && !is_registered("test.core.Nobody"));
    }
}
