//! An embedded control plane for the mesh: Istio's YAML in, xDS out, with a certificate authority of its own.
//!
//! What it does not do: talk to Kubernetes, carry requests, or share any private channel with the data plane; a workload
//! speaks ordinary xDS and Istio's CSR protocol to it, as it would to istiod.

pub mod analyze;
pub mod api;
pub mod ca;
pub mod compile;
pub mod diagnostic;
pub mod kinds;
pub mod push;
pub mod registry;
pub mod store;
