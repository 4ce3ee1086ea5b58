//! The answering end of the handshake: STRICT, PERMISSIVE (by the first byte) or none.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use mesh_core::{config::MtlsMode, identity::SpiffeId};
use rustls::{ServerConfig, server::NoServerSessionStorage};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{LiveIdentity, TlsError, VERSIONS, provider, verify, verify::Verifier};

/// The first byte of a TLS handshake record; no HTTP request begins with it.
const CLIENT_HELLO: u8 = 0x16;

/// Accepts mutual TLS with the identity in force: a caller must show a certificate of our trust domain.
#[derive(Clone, Debug)]
pub struct MtlsAcceptor {
    identity: LiveIdentity,
    alpn: Vec<Vec<u8>>,
}

impl MtlsAcceptor {
    /// Offers HTTP/2 and HTTP/1.1.
    pub fn new(identity: LiveIdentity) -> Self {
        Self { identity, alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()] }
    }

    /// Offers these protocols; callers that offer none of them are refused, callers that offer nothing are taken.
    #[must_use]
    pub fn with_alpn<'a>(mut self, protocols: impl IntoIterator<Item = &'a str>) -> Self {
        self.alpn = protocols.into_iter().map(|name| name.as_bytes().to_vec()).collect();
        self
    }

    /// Shakes hands over `io`, as `mode` demands.
    ///
    /// # Errors
    ///
    /// No identity where one is needed; a caller who is not of the mesh, or who speaks plaintext to STRICT.
    pub async fn accept<IO>(&self, mut io: IO, mode: MtlsMode) -> Result<Accepted<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let first = match mode {
            MtlsMode::Disable => return Ok(Accepted { peer: None, io: MaybeTls::Plain(Rewound { first: None, io }) }),
            MtlsMode::Strict => None,
            // A caller who closes without a word is plaintext's business.
            MtlsMode::Permissive => io.read_u8().await.ok(),
        };
        let io = Rewound { first, io };
        if mode == MtlsMode::Permissive && first != Some(CLIENT_HELLO) {
            return Ok(Accepted { peer: None, io: MaybeTls::Plain(io) });
        }
        let config = Arc::new(self.config()?);
        let stream = TlsAcceptor::from(config).accept(io).await.map_err(TlsError::Handshake)?;
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let peer = leaf.and_then(|leaf| verify::spiffe_id_of(leaf).ok()).ok_or(TlsError::NoIdentity)?;
        Ok(Accepted { peer: Some(peer), io: MaybeTls::Tls(Box::new(stream)) })
    }

    fn config(&self) -> Result<ServerConfig, TlsError> {
        let now = self.identity.in_force();
        let identity = now.identity.as_ref().ok_or(TlsError::NoIdentity)?;
        let provider = provider();
        let verifier = Verifier {
            algorithms: provider.signature_verification_algorithms,
            trust: Arc::clone(&now.trust),
            expected: Arc::default(),
        };
        let mut config = ServerConfig::builder_with_details(provider, Arc::new(self.identity.clock()))
            .with_protocol_versions(VERSIONS)
            .map_err(TlsError::Config)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(identity.key());
        config.alpn_protocols.clone_from(&self.alpn);
        // A resumed session is not verified again: no tickets, no stored sessions.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// An accepted connection, plaintext or TLS.
#[derive(Debug)]
pub struct Accepted<IO> {
    peer: Option<SpiffeId>,
    io: MaybeTls<IO>,
}

#[derive(Debug)]
enum MaybeTls<IO> {
    Plain(Rewound<IO>),
    Tls(Box<TlsStream<Rewound<IO>>>),
}

/// A stream whose first byte was read to see what it is.
#[derive(Debug)]
struct Rewound<IO> {
    first: Option<u8>,
    io: IO,
}

impl<IO> Accepted<IO> {
    /// Who called, as its certificate proved; `None` in plaintext.
    pub fn peer(&self) -> Option<&SpiffeId> {
        self.peer.as_ref()
    }

    /// The protocol agreed on.
    pub fn alpn(&self) -> Option<&[u8]> {
        match &self.io {
            MaybeTls::Plain(_) => None,
            MaybeTls::Tls(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }

    /// The name the caller asked for in the handshake.
    pub fn server_name(&self) -> Option<&str> {
        match &self.io {
            MaybeTls::Plain(_) => None,
            MaybeTls::Tls(stream) => stream.get_ref().1.server_name(),
        }
    }

    /// The connection below.
    pub fn get_ref(&self) -> &IO {
        match &self.io {
            MaybeTls::Plain(rewound) => &rewound.io,
            MaybeTls::Tls(stream) => &stream.get_ref().0.io,
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Accepted<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            MaybeTls::Plain(io) => Pin::new(io).poll_read(cx, buf),
            MaybeTls::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Accepted<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            MaybeTls::Plain(io) => Pin::new(&mut io.io).poll_write(cx, buf),
            MaybeTls::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            MaybeTls::Plain(io) => Pin::new(&mut io.io).poll_write_vectored(cx, bufs),
            MaybeTls::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            MaybeTls::Plain(io) => io.io.is_write_vectored(),
            MaybeTls::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            MaybeTls::Plain(io) => Pin::new(&mut io.io).poll_flush(cx),
            MaybeTls::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            MaybeTls::Plain(io) => Pin::new(&mut io.io).poll_shutdown(cx),
            MaybeTls::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Rewound<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() > 0
            && let Some(first) = self.first.take()
        {
            buf.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Rewound<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
