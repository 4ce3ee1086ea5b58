//! An embedded control plane for the mesh: Istio's YAML in, xDS out, with a certificate authority of its own.
//!
//! What it does not do: talk to Kubernetes, carry requests, or share any private channel with the data plane; a workload
//! speaks ordinary xDS and Istio's CSR protocol to it, as it would to istiod.
//!
//! One change through it: [`api`] takes files, [`store`] parses ([`kinds`]), analyses ([`analyze`]) and keeps them, all or
//! nothing; [`push`] compiles ([`compile`]) one view per connected workload and the streams send what differs. Who is
//! connected is in [`registry`], who may be is decided by [`ca`].
//!
//! ```no_run
//! # async fn start() -> Result<(), Box<dyn std::error::Error>> {
//! use mesh_control::{ControlPlane, WorkloadSpec};
//!
//! let plane = ControlPlane::builder().state_dir("state").start().await?;
//! let reviews = WorkloadSpec { ports: vec![9080], ..WorkloadSpec::new("reviews-v1", "127.0.0.14".parse()?) };
//! let bootstrap = plane.bootstrap_for(&reviews, "state/workloads".as_ref())?;
//! // Hand `bootstrap` to the workload, as a file named by GRPC_XDS_BOOTSTRAP.
//! # Ok(())
//! # }
//! ```

pub mod analyze;
pub mod api;
pub mod ca;
pub mod compile;
pub mod diagnostic;
pub mod kinds;
pub mod plane;
pub mod push;
pub mod registry;
pub mod store;
pub mod workload;

mod console;
mod metrics;
mod serve;
mod state;
mod watch;

pub use plane::{Builder, ControlPlane, Listener, StartError};
pub use registry::{Registered, Workloads};
pub use workload::WorkloadSpec;
