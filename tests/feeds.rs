//! Our control plane feeds others: a real Envoy and gRPC's own library get their configuration from it, and carry requests.
//!
//! What they serve is Istio's Bookinfo, with the sample's own files; behind its services stand servers that answer what
//! arrived. Nothing that we send may be refused by them. Each peer says so and passes where it is missing; with
//! `MESH_REQUIRE_PEERS=1`, as in the continuous integration, it fails.
//!
//! `plane.rs` starts the control plane, `envoy.rs` is about Envoy, `grpc.rs` about gRPC's library.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "feeds/envoy.rs"]
mod envoy;
#[path = "feeds/grpc.rs"]
mod grpc;
#[path = "feeds/own.rs"]
mod own;
#[path = "peers.rs"]
mod peers;
#[path = "feeds/plane.rs"]
mod plane;
#[allow(dead_code, reason = "only the process itself is of use here")]
#[path = "envoy/process.rs"]
mod process;
#[allow(dead_code, reason = "it can do more than is asked of it here")]
#[path = "bookinfo/programs.rs"]
mod programs;
#[allow(dead_code, reason = "it can do more than is asked of it here")]
#[path = "envoy/upstream.rs"]
mod upstream;
