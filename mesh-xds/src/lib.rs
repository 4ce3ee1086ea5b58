//! What a control plane says: xDS protocol machines, the translation between xDS and mesh configuration, their drivers.

pub mod ads;
pub mod bootstrap;
pub mod certs;
pub mod client;
pub mod node;
pub mod peer;
pub mod proto;
pub mod server;
pub mod translate;
