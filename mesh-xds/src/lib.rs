//! What a control plane says: xDS protocol machines, the translation between xDS and mesh configuration, their drivers.

pub mod ads;
pub mod bootstrap;
pub mod certs;
pub mod client;
pub mod graph;
pub mod node;
pub mod peer;
pub mod proto;
pub mod server;
mod task;
pub mod translate;
mod transport;
