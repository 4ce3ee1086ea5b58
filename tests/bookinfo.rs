//! Bookinfo through the front door: the example as built, `meshctl` as built, and requests through the gateway.
//!
//! The four services alone come first: their unit tests stand beside them and run here, because an example has no test run of
//! its own. What needs Istio's sample files finds them by `MESH_ISTIO_DATA`, or in `target/istio`, and says so if it does not.

#[path = "bookinfo/access.rs"]
mod access;
#[path = "bookinfo/bad_input.rs"]
mod bad_input;
#[path = "bookinfo/calls.rs"]
mod calls;
#[path = "bookinfo/console.rs"]
mod console;
#[path = "bookinfo/dashboards.rs"]
mod dashboards;
#[path = "bookinfo/front.rs"]
mod front;
#[path = "bookinfo/handshake.rs"]
mod handshake;
#[path = "bookinfo/harness.rs"]
mod harness;
#[path = "bookinfo/identity.rs"]
mod identity;
#[path = "bookinfo/large.rs"]
mod large;
#[path = "bookinfo/page.rs"]
mod page;
#[path = "peers.rs"]
mod peers;
#[path = "bookinfo/programs.rs"]
mod programs;
#[path = "bookinfo/prometheus.rs"]
mod prometheus;
#[path = "../examples/bookinfo/services.rs"]
mod services;
#[path = "bookinfo/spans.rs"]
mod spans;
#[path = "bookinfo/starting.rs"]
mod starting;
#[path = "bookinfo/steering.rs"]
mod steering;
#[path = "bookinfo/steps.rs"]
mod steps;
#[path = "bookinfo/survival.rs"]
mod survival;
#[path = "bookinfo/telling.rs"]
mod telling;
#[path = "bookinfo/tutorial.rs"]
mod tutorial;
#[path = "bookinfo/walk.rs"]
mod walk;
