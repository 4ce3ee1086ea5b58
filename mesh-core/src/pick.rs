//! What a try asks of a cluster when it wants an endpoint: everything a choice may depend on beside the cluster itself,
//! the time and chance, in one borrowed value.
//!
//! What is left at its default plays no part: `Ask::default()` asks for any endpoint. The answer is a
//! [`Pick`](crate::endpoint::Pick).

use std::net::SocketAddr;

use crate::{
    config::{Criteria, RoutingPriority},
    endpoint::Tried,
};

/// What a try asks of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Where earlier tries of the request went.
    pub tried: &'a Tried,
    /// What requests that belong together have in common; `None` is nothing. [`Plan::hash`](crate::plan::Plan::hash).
    pub hash: Option<u64>,
    /// The endpoint wanted, past any balancing, as long as it is there and may be used (gRFC A55).
    pub wanted: Option<Wanted>,
    /// Whose limits count. Envoy `RouteAction.priority`.
    pub priority: RoutingPriority,
    /// Only endpoints with these labels, in clusters that have subsets. Envoy `RouteAction.metadata_match`.
    pub criteria: &'a Criteria,
}

/// One endpoint that is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Wanted {
    /// Where it listens.
    pub address: SocketAddr,
    /// It or none: 503 instead of another. Envoy `StatefulSession.strict`.
    pub strict: bool,
}

impl Default for Ask<'_> {
    /// Any endpoint.
    fn default() -> Self {
        Self {
            tried: &Tried::NONE,
            hash: None,
            wanted: None,
            priority: RoutingPriority::Default,
            criteria: Criteria::ANY,
        }
    }
}

impl<'a> From<&'a Tried> for Ask<'a> {
    /// Any endpoint, elsewhere than these if that is asked for.
    fn from(tried: &'a Tried) -> Self {
        Self { tried, ..Self::default() }
    }
}
