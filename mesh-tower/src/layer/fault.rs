//! Faults injected on purpose, once per request and before any try: first the delay, then the abort.
//!
//! It stands above timeout and retry, as Envoy's fault filter stands before the router: a delay does not count towards
//! the route's timeout, an abort is not retried, and no endpoint is blamed (FI7). Only the caller's own deadline cuts a
//! delay short. The draw was made with the plan. Source: Envoy `HTTPFault`, gRFC A33.

use mesh_core::{config::AbortStatus, fault, outcome::Flags};
use tokio::time::{Instant, sleep_until};
use tower_layer::Layer;

use super::{Routed, Stage};
use crate::error::{Error, ErrorKind};

/// Injects the faults that plans ask for.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultLayer(());

impl FaultLayer {
    /// The layer; what is injected is in each request's plan.
    pub fn new() -> Self {
        Self(())
    }
}

impl<S> Layer<S> for FaultLayer {
    type Service = Faulty<S>;

    fn layer(&self, inner: S) -> Faulty<S> {
        Faulty { inner }
    }
}

/// A stage with faults before it.
#[derive(Clone, Debug)]
pub struct Faulty<S> {
    inner: S,
}

impl<S: Stage<Routed>> Stage<Routed> for Faulty<S> {
    type Response = S::Response;

    async fn call(&self, routed: Routed) -> Result<S::Response, Error> {
        let decision = routed.call.plan().fault;
        if let Some(delay) = decision.delay {
            routed.call.note(Flags::DI);
            let until = Instant::now() + delay;
            match routed.deadline {
                Some(deadline) if deadline < until => {
                    sleep_until(deadline).await;
                    return Err(Error::of(ErrorKind::Deadline));
                }
                _ => sleep_until(until).await,
            }
        }
        if let Some(abort) = decision.abort {
            let grpc = match abort {
                AbortStatus::Grpc(_) => Some(fault::grpc_status(abort)),
                AbortStatus::Http(_) => None,
            };
            return Err(Error::fault(fault::http_status(abort), grpc));
        }
        self.inner.call(routed).await
    }
}
