//! A service mesh inside your process: Tower layers, clients and servers for hyper and tonic.
//!
//! What to do with a request is decided by `mesh-core`; this crate does it: it connects, sends, waits, tries again and
//! tells. Only [`Mesh`] opens a port (of administration, on loopback) and starts tasks, which it owns. One request of the default client, top to bottom, is
//! [`client`]; each of its layers is a file of [`layer`] and works alone around any `Service<http::Request<B>>`.
//!
//! What this crate does not do: parse what a control plane says (`mesh-xds`), decide (`mesh-core`), or be a control
//! plane (`mesh-control`).

pub mod client;
pub mod connect;
pub mod context;
pub mod dns;
pub mod layer;
pub mod server;
pub mod source;
pub mod telemetry;
pub mod tls;

mod admin;
mod alone;
mod attempt;
mod body;
mod dial;
mod error;
mod file;
mod health;
mod jwt;
mod limits;
mod live;
mod mesh;
mod message;
mod names;
mod pool;
mod reports;
#[cfg(feature = "reqwest")]
mod reqwest;
mod serving;
mod side;
mod spread;
#[cfg(test)]
mod testing;
mod upkeep;

pub use mesh_core::{cluster, config, filter, plan, retry, switches};

#[cfg(feature = "reqwest")]
pub use self::reqwest::Reqwest;
pub use self::{
    body::{Body, ResponseBody},
    client::{GrpcClient, HttpClient},
    context::{Context, InContext, spawn},
    error::{BoxError, Error, ErrorKind, ResponseFlags},
    jwt::read_untrusted,
    layer::WaitForReady,
    live::Live,
    mesh::{Builder, Mesh, MeshError, PortMap},
    message::Message,
    pool::{Pool, PooledBody},
};

/// The README's program, so that it compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
