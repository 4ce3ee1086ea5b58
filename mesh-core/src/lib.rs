//! What a service mesh decides for one request: pure policy, without I/O, clock or async.

pub mod admit;
mod balance;
pub mod cluster;
pub mod config;
pub mod endpoint;
pub mod error;
pub mod explain;
pub mod fault;
pub mod identity;
pub mod limit;
mod locality;
pub mod outcome;
mod outlier;
pub mod plan;
pub mod request;
pub mod retry;
pub mod rewrite;
pub mod rng;
pub mod route;
pub mod snapshot;
pub mod telemetry;
pub mod time;
pub mod timeout;
