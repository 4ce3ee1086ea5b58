//! The decision for one outbound request: which policy, which destination, which fault. Owned, and made without allocating.

use std::{sync::Arc, time::Duration};

use crate::{
    cluster::Cluster,
    config::{Criteria, DirectResponse, HedgePolicy, Name, Redirect, RetryPolicy, RoutingPriority, Upgrade},
    fault::FaultDecision,
    filter::HttpFilter,
    hash::{Fresh, HashPolicies},
    mirror::MirrorPolicy,
    pick::Wanted,
    rate_limit::{GlobalLimits, Limits},
    rewrite::{HeaderEdits, Rewrite},
    route::{Destination, Split},
    session::{Session, Sessions},
    telling::Telling,
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
    pub(crate) session: Session,
    /// Which destination of [`RoutePolicy::split`] was drawn.
    pub(crate) choice: Option<u32>,
    /// Which of [`RoutePolicy::mirrors`] get a copy: the lowest bit is the first.
    pub(crate) mirrored: u32,
    /// What is told of the request, where the control plane has a say.
    pub telling: Option<Arc<Telling>>,
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
            session: Session::default(),
            choice: None,
            mirrored: 0,
            telling: None,
        }
    }

    /// The cluster, when the request goes to one.
    #[inline]
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        match &self.target {
            Target::Cluster(cluster) => Some(cluster),
            _ => None,
        }
    }

    /// The endpoint that the request's session is at; `None` is any.
    #[inline]
    pub fn wanted(&self) -> Option<Wanted> {
        self.session.wanted
    }

    /// The destination that was drawn; `None` when there was no split to draw from.
    #[inline]
    pub fn destination(&self) -> Option<&Destination> {
        self.route.split.destinations().get(self.choice? as usize)
    }

    /// Which of the cluster's endpoints the request is for.
    #[inline]
    pub fn criteria(&self) -> &Criteria {
        self.destination().map_or(Criteria::ANY, |destination| &destination.criteria)
    }

    /// Are headers of request or response changed?
    #[inline]
    pub fn changes_headers(&self) -> bool {
        !self.route.headers.is_empty() || self.destination().is_some_and(|destination| !destination.edits.is_empty())
    }

    /// Who gets a copy of the request; the draw is made with the plan.
    pub fn mirrors(&self) -> impl Iterator<Item = &Arc<MirrorPolicy>> {
        let drawn =
            |at: usize| u32::try_from(at).is_ok_and(|at| self.mirrored & (1_u32.checked_shl(at).unwrap_or(0)) != 0);
        self.route.mirrors.iter().enumerate().filter(move |(at, _)| drawn(*at)).map(|(_, mirror)| mirror)
    }

    /// May the request change to this protocol (of its `Upgrade` header)? WebSocket may, unless the route says otherwise.
    pub fn allows_upgrade(&self, protocol: &str) -> bool {
        let said = self.route.upgrades.iter().find(|upgrade| upgrade.protocol.eq_ignore_ascii_case(protocol));
        said.map_or_else(|| protocol.eq_ignore_ascii_case("websocket"), |upgrade| upgrade.enabled)
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
    /// In place of `timeout` for gRPC calls; zero is no limit. Envoy `RouteAction.max_grpc_timeout`.
    pub max_grpc_timeout: Option<Duration>,
    /// In place of `max_stream_duration` for gRPC calls; zero is no limit (gRFC A31). Envoy `grpc_timeout_header_max`.
    pub grpc_timeout_header_max: Option<Duration>,
    /// How long the stream may stand still; `None` is for ever. Envoy `RouteAction.idle_timeout`.
    pub idle_timeout: Option<Duration>,
    /// When to try again; `None` is never. The route's, else the virtual host's (RT5).
    pub retry: Option<RetryPolicy>,
    /// What requests that belong together have in common. Envoy `RouteAction.hash_policy`.
    pub hash: HashPolicies,
    /// How requests of one session stay at one endpoint; `None` is not at all.
    pub session: Option<Sessions>,
    /// Whose limits count. Envoy `RouteAction.priority`.
    pub priority: RoutingPriority,
    /// Whether to begin another try before the first has failed.
    pub hedge: Option<HedgePolicy>,
    /// How many bytes of a streamed body are kept for sending it again; `None` is the client's own limit.
    pub replay_limit: Option<u64>,
    /// Filters of the program's own, in the order in which they see a request.
    pub filters: Vec<Arc<dyn HttpFilter>>,
    /// How many requests are let through; `None` is all.
    pub limits: Option<Limits>,
    /// Who is asked, beside, whether a request is one too many; `None` is nobody.
    pub global_limits: Option<GlobalLimits>,
    /// New authority and path.
    pub rewrite: Rewrite,
    /// Header changes, after those of the destination that was drawn.
    pub headers: HeaderEdits,
    /// Who may get copies of requests; at most 32.
    pub mirrors: Vec<Arc<MirrorPolicy>>,
    /// What requests may change to, beside or instead of WebSocket.
    pub upgrades: Vec<Upgrade>,
    /// The status when the cluster does not exist; 0 is 503.
    pub no_cluster_status: u16,
    /// With [`Target::Redirect`].
    pub redirect: Option<Redirect>,
    /// With [`Target::Respond`].
    pub respond: Option<DirectResponse>,
}

impl RoutePolicy {
    /// Limit of the request with all its tries (TO1).
    #[inline]
    pub fn timeout_of(&self, is_grpc: bool) -> Option<Duration> {
        instead(is_grpc, self.max_grpc_timeout, self.timeout)
    }

    /// Limit of the whole stream, counted from its beginning (TO2).
    #[inline]
    pub fn stream_limit_of(&self, is_grpc: bool) -> Option<Duration> {
        instead(is_grpc, self.grpc_timeout_header_max, self.max_stream_duration)
    }
}

#[inline]
fn instead(is_grpc: bool, grpc: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    match grpc {
        Some(limit) if is_grpc => (limit > Duration::ZERO).then_some(limit),
        _ => other,
    }
}
