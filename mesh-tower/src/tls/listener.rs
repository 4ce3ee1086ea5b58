//! A listener whose connections are mutual TLS, for servers that take any listener, such as `axum::serve`.

use std::{io, net::SocketAddr, time::Duration};

use axum::serve::Listener;
use mesh_core::config::MtlsMode;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use super::{Accepted, MtlsAcceptor, Reason, Rewound, Turns, begun};
use crate::telemetry::refused;

/// How long a caller may take for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a caller may say nothing before that.
const SILENCE: Duration = Duration::from_secs(30);
/// Callers that have not got through the handshake; more wait in the kernel.
const AT_ONCE: usize = 16_384;

/// Accepts TCP connections and shakes hands with many callers at a time, so that a slow one holds up nobody.
#[derive(Debug)]
pub struct MtlsListener {
    listener: TcpListener,
    acceptor: MtlsAcceptor,
    mode: MtlsMode,
    turns: Turns,
    handshakes: JoinSet<Option<(Accepted<TcpStream>, SocketAddr)>>,
}

impl MtlsListener {
    /// STRICT unless another mode is chosen.
    pub fn new(listener: TcpListener, acceptor: MtlsAcceptor) -> Self {
        Self { listener, acceptor, mode: MtlsMode::Strict, turns: Turns::default(), handshakes: JoinSet::new() }
    }

    /// With another mode than STRICT.
    #[must_use]
    pub fn with_mode(mut self, mode: MtlsMode) -> Self {
        self.mode = mode;
        self
    }

    fn begin(&mut self, stream: TcpStream, address: SocketAddr) {
        let (acceptor, mode, turns) = (self.acceptor.clone(), self.mode, self.turns.clone());
        self.handshakes.spawn(async move {
            let _ = stream.set_nodelay(true);
            let stream = match mode {
                MtlsMode::Disable => Rewound::new(stream),
                // Who says nothing has no turn.
                MtlsMode::Permissive | MtlsMode::Strict => timeout(SILENCE, begun(stream)).await.ok()?.ok()??,
            };
            let _turn = match stream.is_handshake() {
                true => Some(timeout(HANDSHAKE, turns.take(address.ip())).await.ok()??),
                false => None,
            };
            match timeout(HANDSHAKE, acceptor.accept_begun(stream, mode)).await {
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
