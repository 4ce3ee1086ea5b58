//! The decision for one outbound request: which policy, which destination, which fault. Owned, and made without allocating.

use std::{sync::Arc, time::Duration};

use crate::{
    cluster::Cluster,
    config::{DirectResponse, Name, Redirect, RetryPolicy, RoutingPriority},
    fault::FaultDecision,
    hash::{Fresh, HashPolicies},
    rewrite::{HeaderEdits, Rewrite},
    route::Split,
};

/// What to do with one request. The choice of cluster is made once: every try stays within it (RA4).
#[derive(Clone, Debug)]
pub struct Plan {
    /// The policy of the route that matched.
    pub route: Arc<RoutePolicy>,
    /// Where the request goes.
    pub target: Target,
    /// What is injected before it is sent.
    pub fault: FaultDecision,
    /// The request is a gRPC call.
    pub is_grpc: bool,
    /// What the request has in common with those it belongs to; `None` is nothing, and any endpoint will do.
    pub hash: Option<u64>,
    /// Cookies that the response is to set.
    pub(crate) fresh: Fresh,
    /// Which destination of [`RoutePolicy::split`] was drawn.
    pub(crate) choice: Option<u32>,
}

impl Plan {
    /// A plan made in code: no fault, not gRPC, the first destination's header changes if the policy has a split.
    pub fn new(route: Arc<RoutePolicy>, target: Target) -> Self {
        Self {
            route,
            target,
            fault: FaultDecision::NONE,
            is_grpc: false,
            hash: None,
            fresh: Fresh::default(),
            choice: None,
        }
    }

    /// The cluster, when the request goes to one.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        match &self.target {
            Target::Cluster(cluster) => Some(cluster),
            _ => None,
        }
    }

    /// The header changes that apply, in order: those of the drawn destination or of the route, with those of the
    /// virtual host and the route table behind them (RA13).
    pub fn header_edits(&self) -> &HeaderEdits {
        self.choice.and_then(|choice| self.route.split.edits(choice)).unwrap_or(&self.route.headers)
    }
}

/// Where a request goes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Target {
    /// To an endpoint of this cluster.
    Cluster(Arc<Cluster>),
    /// To a cluster that does not exist: 503 with flag `NC`.
    NoCluster(Name),
    /// Back to the caller with [`RoutePolicy::redirect`].
    Redirect,
    /// Back to the caller with [`RoutePolicy::respond`].
    Respond,
    /// To the application: an inbound request.
    Inbound,
}

/// All that a route says about the requests it takes, ready to be used. Also made in code, by the stand-alone layers:
/// `RoutePolicy { timeout: Some(..), ..RoutePolicy::default() }`.
#[derive(Clone, Debug, Default)]
pub struct RoutePolicy {
    /// The route's name, for logs; empty when it has none.
    pub name: Name,
    /// The object it was written in. Envoy metadata `istio.config`.
    pub origin: Option<Name>,
    /// The span's name. Envoy `Decorator.operation`.
    pub operation: Option<Name>,
    /// The virtual host it stands in.
    pub virtual_host: Name,
    /// Where it sends, by weight; empty when it does not send or when the plan is made in code.
    pub split: Split,
    /// Limit of the request with all its tries; `None` is no limit. Envoy `RouteAction.timeout`.
    pub timeout: Option<Duration>,
    /// Limit of the whole stream; `None` is no limit. Envoy `RouteAction.max_stream_duration`.
    pub max_stream_duration: Option<Duration>,
    /// When to try again; `None` is never. The route's, else the virtual host's (RT5).
    pub retry: Option<RetryPolicy>,
    /// What requests that belong together have in common. Envoy `RouteAction.hash_policy`.
    pub hash: HashPolicies,
    /// Whose limits count. Envoy `RouteAction.priority`.
    pub priority: RoutingPriority,
    /// New authority and path.
    pub rewrite: Rewrite,
    /// Header changes when no destination of the split was drawn.
    pub headers: HeaderEdits,
    /// With [`Target::Redirect`].
    pub redirect: Option<Redirect>,
    /// With [`Target::Respond`].
    pub respond: Option<DirectResponse>,
}
