//! Connections, servers and the whole of [`mesh_tower::Mesh`] through the front door, over loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod admin;
mod bad;
mod configs;
mod membership;
#[cfg(feature = "xds")]
mod metadata;
mod modes;
mod others;
#[path = "../../../tests/peers.rs"]
mod peers;
mod pki;
mod pool;
mod resumption;
mod retirement;
mod server;
mod tls;
