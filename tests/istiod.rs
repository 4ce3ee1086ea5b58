//! Bookinfo on Istio's own control plane: the same processes, unchanged, pointed at an istiod that runs without Kubernetes.
//!
//! The program is found by `MESH_ISTIOD`, else as `pilot-discovery` on the path: istiod 1.29.6 as its makers ship it. Without it, or
//! without Istio's sample files, each test says that it is skipped; with `MESH_REQUIRE_PEERS` it fails, unless `MESH_ISTIOD` is
//! `none`, which says that there is none to be had.

#[path = "istiod/bookinfo.rs"]
mod bookinfo;
#[path = "bookinfo/calls.rs"]
mod calls;
#[path = "bookinfo/front.rs"]
mod front;
#[path = "bookinfo/handshake.rs"]
mod handshake;
#[path = "istiod/joining.rs"]
mod joining;
#[path = "peers.rs"]
mod peers;
#[path = "istiod/process.rs"]
mod process;
#[path = "bookinfo/programs.rs"]
#[allow(dead_code, reason = "what it says of meshctl and of signals is for the other tests")]
mod programs;
#[path = "bookinfo/steps.rs"]
mod steps;
#[path = "istiod/tokens.rs"]
mod tokens;
#[path = "istiod/tutorial.rs"]
mod tutorial;
