//! Our client on a control plane that nobody here wrote: a snapshot server made of go-control-plane (`control-plane/`, a Go module),
//! with good resources, bad ones among them, and ten thousand services.
//!
//! The program is `MESH_CONTROL_PLANE`, else it is built here with Go. Without Go each test says that it is skipped; with
//! `MESH_REQUIRE_PEERS` it fails.

#[path = "control-plane/loads.rs"]
mod loads;
#[path = "control-plane/named.rs"]
mod named;
#[path = "peers.rs"]
mod peers;
#[path = "control-plane/process.rs"]
mod process;
#[path = "control-plane/server.rs"]
mod server;
#[path = "control-plane/snapshots.rs"]
mod snapshots;
