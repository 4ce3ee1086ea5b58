//! What a control plane says: xDS protocol machines, the translation between xDS and mesh configuration, their drivers.
//!
//! It holds both ends of an ADS stream, the signing of certificates, and the way from xDS resources to
//! [`mesh_core::config`] and back. It does not decide about a request (that is `mesh-core`), sends and serves none (that is
//! `mesh-tower`), and reads no Istio or Kubernetes objects (that is `mesh-control`). It takes the resources and fields that
//! it can act on: a resource that would change what is safe or promised is refused by name, a field without effect here is
//! listed. It speaks ADS in both variants, state of the world and incremental.
//!
//! Where to begin reading:
//!
//! - [`client`]: the driver that keeps the stream and publishes configuration, with [`bootstrap`] for where to and who;
//! - [`ads`]: the machines of both ends, without I/O and clock, tested by scripts of conversations;
//! - [`translate`]: one file a subject, each decoding and encoding it;
//! - [`graph`]: how resources that arrive one by one become one whole configuration;
//! - [`lrs`]: how much a process sends where, told to who asks for it;
//! - [`certs`]: how a workload gets its certificate; [`server`]: the control plane's side.

pub mod ads;
pub mod bootstrap;
pub mod certs;
pub mod client;
pub mod csds;
pub mod dump;
pub mod graph;
pub mod lrs;
pub mod node;
pub mod peer;
pub mod profile;
pub mod proto;
pub mod resources;
pub mod rpc;
pub mod saved;
pub mod server;
mod task;
pub mod translate;
mod transport;
pub mod xdstp;
