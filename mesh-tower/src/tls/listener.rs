//! A listener whose connections are mutual TLS, for servers that take any listener, such as `axum::serve`.

use std::{io, net::SocketAddr, time::Duration};

use axum::serve::Listener;
use mesh_core::config::MtlsMode;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use super::{Accepted, MtlsAcceptor, Reason};
use crate::telemetry::refused;

/// How long a caller may take for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes under way at once; more wait in the kernel.
const AT_ONCE: usize = 256;

/// Accepts TCP connections and shakes hands with many callers at a time, so that a slow one holds up nobody.
#[derive(Debug)]
pub struct MtlsListener {
    listener: TcpListener,
    acceptor: MtlsAcceptor,
    mode: MtlsMode,
    handshakes: JoinSet<Option<(Accepted<TcpStream>, SocketAddr)>>,
}

impl MtlsListener {
    /// STRICT unless another mode is chosen.
    pub fn new(listener: TcpListener, acceptor: MtlsAcceptor) -> Self {
        Self { listener, acceptor, mode: MtlsMode::Strict, handshakes: JoinSet::new() }
    }

    /// With another mode than STRICT.
    #[must_use]
    pub fn with_mode(mut self, mode: MtlsMode) -> Self {
        self.mode = mode;
        self
    }

    fn begin(&mut self, stream: TcpStream, address: SocketAddr) {
        let (acceptor, mode) = (self.acceptor.clone(), self.mode);
        self.handshakes.spawn(async move {
            let _ = stream.set_nodelay(true);
            match timeout(HANDSHAKE, acceptor.accept(stream, mode)).await {
                Ok(Ok(accepted)) => Some((accepted.held(), address)),
                Ok(Err(error)) => {
                    tracing::debug!(target: "mesh::tls", peer = %address, %error, "connection refused");
                    None
                }
                Err(_) => {
                    refused("inbound", Reason::Timeout);
                    None
                }
            }
        });
    }
}

impl Listener for MtlsListener {
    type Io = Accepted<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let room = self.handshakes.len() < AT_ONCE;
            tokio::select! {
                Some(done) = self.handshakes.join_next() => {
                    if let Ok(Some(accepted)) = done {
                        return accepted;
                    }
                }
                accepted = self.listener.accept(), if room => match accepted {
                    Ok((stream, address)) => self.begin(stream, address),
                    // Out of file descriptors and the like: spinning would make it worse.
                    Err(error) => {
                        tracing::warn!(target: "mesh::tls", %error, "accepting failed");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
