//! Connections, servers and the whole of [`mesh_tower::Mesh`] through the front door, over loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod admin;
mod configs;
mod membership;
mod pki;
mod pool;
mod resumption;
mod retirement;
mod server;
mod tls;
