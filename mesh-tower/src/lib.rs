//! Placeholder.

mod connect;
mod dns;
mod source;
pub mod telemetry;
pub mod tls;
