//! What others may look at of a process: its metrics, and what tools ask.

use std::net::SocketAddr;

use super::Mesh;
use crate::admin::Scraped;

impl Mesh {
    /// Where the port for metrics alone is, where there is one.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.shared.scraped.as_ref().map(Scraped::address)
    }

    /// The gRPC services by which tools look into this process, to be merged into a server of your own: with a control plane,
    /// CSDS; without one, none. What there is not is left out. The admin port has them in any case. Source: gRFC A38.
    pub fn admin_services(&self) -> axum::Router {
        self.shared.bundle.clone()
    }
}
