//! The layers: one concern a file, each usable alone; [`Stage`], how they call one another; [`Leaf`], where they end.
//!
//! A stage is a Tower service with `&self` and without `poll_ready`: it is always ready, since limits are decided when
//! an endpoint is picked. Its future borrows it, so stages nest without boxing; only the outermost, which turns a raw
//! request into a routed one ([`RouteLayer`] or [`Fixed`]), is a [`tower_service::Service`], with one boxed future a
//! request. Every layer is a [`tower_layer::Layer`]:
//!
//! | layer | takes | gives | does |
//! |---|---|---|---|
//! | [`RouteLayer`], [`Fixed`] | `http::Request<B>` | [`Routed`] | finds the policy; rewrites |
//! | [`TelemetryLayer`] | [`Routed`] | [`Routed`] | tells one event per request |
//! | [`RateLimitLayer`] | [`Routed`] | [`Routed`] | refuses what is over a rate limit |
//! | [`FaultLayer`] | [`Routed`] | [`Routed`] | waits, answers with errors, on purpose |
//! | [`TimeoutLayer`] | [`Routed`] | [`Routed`] | ends what takes too long |
//! | [`MirrorLayer`] | [`Routed`] | [`Routed`] | sends copies, and waits for none |
//! | [`RetryLayer`] | [`Routed`] | [`Attempt`] | tries again |
//! | [`BalanceLayer`] | [`Routed`], [`Attempt`] | [`Picked`] | picks an endpoint; limits; ejects |
//! | [`LeafLayer`] | any of these | - | calls your service |
//! | [`Between`] | [`Routed`] | [`Routed`] | hosts a Tower layer of your own |
//!
//! A wrong order does not compile, since each stage of deciding is a type of its own. Retrying before routing:
//!
//! ```compile_fail,E0277
//! # use mesh_tower::{Body, layer::*};
//! # use tower_layer::Layer;
//! # use mesh_tower::plan::RoutePolicy;
//! # async fn order<S>(service: S)
//! # where
//! #     S: tower_service::Service<http::Request<Body>, Response = http::Response<Body>, Error = std::io::Error> + Clone + Send + Sync + 'static,
//! #     S::Future: Send,
//! # {
//! let stack = (RetryLayer::new(), Fixed::new(RoutePolicy::default()), LeafLayer::new()).layer(service);
//! stage(&stack);
//! # fn stage<T: Stage<Routed>>(_: &T) {}
//! # }
//! ```
//!
//! Picking an endpoint first and retrying with it:
//!
//! ```compile_fail,E0277
//! # use mesh_tower::{Body, layer::*};
//! # use tower_layer::Layer;
//! # use mesh_tower::plan::RoutePolicy;
//! # async fn order<S>(service: S)
//! # where
//! #     S: tower_service::Service<http::Request<Body>, Response = http::Response<Body>, Error = std::io::Error> + Clone + Send + Sync + 'static,
//! #     S::Future: Send,
//! # {
//! let stack = (Fixed::new(RoutePolicy::default()), BalanceLayer::new(), RetryLayer::new(), LeafLayer::new()).layer(service);
//! client(&stack);
//! # fn client<T: tower_service::Service<http::Request<Body>>>(_: &T) {}
//! # }
//! ```
//!
//! Telling of every try as though it were a request:
//!
//! ```compile_fail,E0277
//! # use mesh_tower::{Body, layer::*};
//! # use tower_layer::Layer;
//! # use mesh_tower::plan::RoutePolicy;
//! # async fn order<S>(service: S)
//! # where
//! #     S: tower_service::Service<http::Request<Body>, Response = http::Response<Body>, Error = std::io::Error> + Clone + Send + Sync + 'static,
//! #     S::Future: Send,
//! # {
//! let stack = (Fixed::new(RoutePolicy::default()), RetryLayer::new(), TelemetryLayer::new(), LeafLayer::new()).layer(service);
//! client(&stack);
//! # fn client<T: tower_service::Service<http::Request<Body>>>(_: &T) {}
//! # }
//! ```
//!
//! Timing every try by the route's limit of the whole:
//!
//! ```compile_fail,E0277
//! # use mesh_tower::{Body, layer::*};
//! # use tower_layer::Layer;
//! # use mesh_tower::plan::RoutePolicy;
//! # async fn order<S>(service: S)
//! # where
//! #     S: tower_service::Service<http::Request<Body>, Response = http::Response<Body>, Error = std::io::Error> + Clone + Send + Sync + 'static,
//! #     S::Future: Send,
//! # {
//! let stack = (Fixed::new(RoutePolicy::default()), RetryLayer::new(), TimeoutLayer::new(), LeafLayer::new()).layer(service);
//! client(&stack);
//! # fn client<T: tower_service::Service<http::Request<Body>>>(_: &T) {}
//! # }
//! ```
//!
//! Injecting a fault into a single try, where it would be retried and blamed on an endpoint:
//!
//! ```compile_fail,E0277
//! # use mesh_tower::{Body, layer::*};
//! # use tower_layer::Layer;
//! # use mesh_tower::plan::RoutePolicy;
//! # async fn order<S>(service: S)
//! # where
//! #     S: tower_service::Service<http::Request<Body>, Response = http::Response<Body>, Error = std::io::Error> + Clone + Send + Sync + 'static,
//! #     S::Future: Send,
//! # {
//! let stack = (Fixed::new(RoutePolicy::default()), BalanceLayer::new(), FaultLayer::new(), LeafLayer::new()).layer(service);
//! client(&stack);
//! # fn client<T: tower_service::Service<http::Request<Body>>>(_: &T) {}
//! # }
//! ```
//!
//! No routing at all:
//!
//! ```compile_fail,E0277
//! # use mesh_tower::{Body, layer::*};
//! # use tower_layer::Layer;
//! # async fn order<S>(service: S)
//! # where
//! #     S: tower_service::Service<http::Request<Body>, Response = http::Response<Body>, Error = std::io::Error> + Clone + Send + Sync + 'static,
//! #     S::Future: Send,
//! # {
//! let stack = (TimeoutLayer::new(), RetryLayer::new(), BalanceLayer::new(), LeafLayer::new()).layer(service);
//! client(&stack);
//! # fn client<T: tower_service::Service<http::Request<Body>>>(_: &T) {}
//! # }
//! ```
//!
//! The right order does:
//!
//! ```
//! # use mesh_tower::{Body, layer::*};
//! # use tower_layer::Layer;
//! # use mesh_tower::plan::RoutePolicy;
//! # async fn order<S>(service: S)
//! # where
//! #     S: tower_service::Service<http::Request<Body>, Response = http::Response<Body>, Error = std::io::Error> + Clone + Send + Sync + 'static,
//! #     S::Future: Send,
//! # {
//! let fixed = Fixed::new(RoutePolicy::default());
//! let stack = (fixed, TelemetryLayer::new(), FaultLayer::new(), TimeoutLayer::new(), RetryLayer::new(), BalanceLayer::new(), LeafLayer::new());
//! client(&stack.layer(service));
//! # fn client<T: tower_service::Service<http::Request<Body>>>(_: &T) {}
//! # }
//! ```

use std::{future::Future, sync::Arc};

pub use crate::attempt::{Attempt, Call, Picked, Routed};
use crate::error::Error;

mod balance;
mod between;
mod fault;
mod fixed;
mod leaf;
mod mirror;
mod rate_limit;
mod retry;
mod route;
mod telemetry;
mod timeout;
mod watch;

pub use balance::{Balance, BalanceLayer};
pub use between::{Between, Hosting, Onward};
pub use fault::{FaultLayer, Faulty};
pub use fixed::{Fixed, FixedRoute};
pub use leaf::{Leaf, LeafLayer};
pub use mirror::{MirrorLayer, Mirrored};
pub use rate_limit::{RateLimitLayer, RateLimited};
pub(crate) use retry::Player;
pub use retry::{Retry, RetryLayer, WaitForReady};
pub use route::{Route, RouteLayer};
pub use telemetry::{TelemetryLayer, Telling};
pub use timeout::{Timeout, TimeoutLayer};
pub(crate) use watch::{Watch, Watchers};

/// A service that is always ready and is called by reference: how layers nest without boxing.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not take `{Req}`",
    label = "layers in a wrong order: see the table in `mesh_tower::layer`"
)]
pub trait Stage<Req>: Send + Sync {
    /// What it answers.
    type Response: Send;

    /// Handles one request. Dropping the future cancels it, and leaves nothing behind.
    fn call(&self, request: Req) -> impl Future<Output = Result<Self::Response, Error>> + Send;
}

impl<Req: Send, S: Stage<Req>> Stage<Req> for Arc<S> {
    type Response = S::Response;

    fn call(&self, request: Req) -> impl Future<Output = Result<Self::Response, Error>> + Send {
        self.as_ref().call(request)
    }
}
