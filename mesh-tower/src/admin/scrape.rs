//! A port for Prometheus: metrics and nothing else, at an address that others may reach where that is asked for.

use std::{io, net::SocketAddr};

use axum::{Router, routing::get};
use tokio::net::TcpListener;

use super::metrics;
use crate::upkeep::Owned;

/// The port, open until dropped.
#[derive(Debug)]
pub(crate) struct Scraped {
    address: SocketAddr,
    _task: Owned,
}

impl Scraped {
    /// Takes the port and answers there.
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let router = Router::new().route("/metrics", get(metrics)).route("/stats/prometheus", get(metrics));
        let task = Owned::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::warn!(target: "mesh::admin", %error, "the port for metrics closed");
            }
        });
        Ok(Self { address, _task: task })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}
