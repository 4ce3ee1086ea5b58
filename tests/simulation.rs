//! Services, their callers and the network between them, simulated on a paused clock: what the mesh promises when things fail.
//!
//! Each test is one claim. One number, the seed, decides every delay, loss and draw, so a failure is its seed; see `world.rs` for
//! what there is, `net.rs` for what can happen to it. Nothing here opens a port or sleeps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "simulation/bodies.rs"]
mod bodies;
#[path = "simulation/cancel.rs"]
mod cancel;
#[path = "simulation/churn.rs"]
mod churn;
#[path = "simulation/determinism.rs"]
mod determinism;
#[path = "simulation/endpoints.rs"]
mod endpoints;
#[path = "simulation/identity.rs"]
mod identity;
#[path = "simulation/net.rs"]
mod net;
#[path = "simulation/plane.rs"]
mod plane;
#[path = "simulation/retries.rs"]
mod retries;
#[path = "simulation/trace.rs"]
mod trace;
#[path = "simulation/upstream.rs"]
mod upstream;
#[path = "simulation/wire.rs"]
mod wire;
#[path = "simulation/world.rs"]
mod world;
