//! The answering end of the handshake: STRICT, PERMISSIVE (by the first byte) or none.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use mesh_core::{
    config::{MtlsMode, TlsVersions},
    identity::SpiffeId,
};
use rustls::{
    HandshakeKind, ServerConfig,
    server::{ServerSessionMemoryCache, danger::ClientCertVerifier},
    time_provider::TimeProvider,
};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use webpki::KeyUsage;

use super::{
    Leash, LiveIdentity, Tenure, TlsError,
    identity::{InForce, WallClock},
    named::names_of,
    provider,
    verify::Verifier,
    versions,
};
use crate::telemetry::refused;

/// The first byte of a TLS handshake record; no HTTP request begins with it.
const CLIENT_HELLO: u8 = 0x16;

/// Sessions kept to be resumed, of as many callers.
const SESSIONS: usize = 1024;
/// Sets of settings kept; a port has one.
const KEPT: usize = 4;

/// Accepts mutual TLS with the identity in force: a caller must show a certificate of a trust domain we trust.
///
/// Clones share the sessions that callers may resume.
#[derive(Clone, Debug)]
pub struct MtlsAcceptor {
    identity: LiveIdentity,
    alpn: Vec<Vec<u8>>,
    versions: TlsVersions,
    kept: Arc<Mutex<Vec<Kept>>>,
}

/// Settings of one identity, one trust and one list of protocols; with them go the sessions made under them.
#[derive(Clone, Debug)]
struct Kept {
    made_for: (u64, u64),
    alpn: Vec<Vec<u8>>,
    versions: TlsVersions,
    config: Arc<ServerConfig>,
    verifier: Arc<Verifier>,
}

impl MtlsAcceptor {
    /// Offers HTTP/2 and HTTP/1.1.
    pub fn new(identity: LiveIdentity) -> Self {
        Self {
            identity,
            alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            versions: TlsVersions::default(),
            kept: Arc::default(),
        }
    }

    /// Offers these protocols; callers that offer none of them are refused, callers that offer nothing are taken.
    #[must_use]
    pub fn with_alpn<'a>(mut self, protocols: impl IntoIterator<Item = &'a str>) -> Self {
        self.alpn = protocols.into_iter().map(|name| name.as_bytes().to_vec()).collect();
        self
    }

    /// Speaks these versions of TLS.
    #[must_use]
    pub fn with_versions(mut self, versions: TlsVersions) -> Self {
        self.versions = versions;
        self
    }

    /// Shakes hands over `io`, as `mode` demands.
    ///
    /// # Errors
    ///
    /// No identity where one is needed; a caller who is not of the mesh, or who speaks plaintext to STRICT.
    pub async fn accept<IO>(&self, io: IO, mode: MtlsMode) -> Result<Accepted<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        self.accept_begun(Rewound::new(io), mode).await
    }

    /// The same with a connection of which something has been read.
    pub(crate) async fn accept_begun<IO>(&self, io: Rewound<IO>, mode: MtlsMode) -> Result<Accepted<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let shaken = self.shake(io, mode).await;
        if let Err(error) = &shaken {
            refused("inbound", error.reason());
        }
        shaken
    }

    async fn shake<IO>(&self, mut io: Rewound<IO>, mode: MtlsMode) -> Result<Accepted<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        match mode {
            MtlsMode::Disable => return Ok(Accepted::plain(io)),
            MtlsMode::Strict => {}
            MtlsMode::Permissive => {
                if io.first.is_empty() {
                    // A caller who closes without a word is plaintext's business.
                    let first = io.read_u8().await.ok();
                    io.first = Bytes::copy_from_slice(first.as_slice());
                }
                if !io.is_handshake() {
                    return Ok(Accepted::plain(io));
                }
            }
        }
        let kept = self.kept()?;
        let accepting = TlsAcceptor::from(Arc::clone(&kept.config)).accept(io);
        let stream = accepting.await.map_err(TlsError::Handshake)?;
        let connection = stream.get_ref().1;
        let chain = connection.peer_certificates().unwrap_or_default();
        // By now it may be another identity or trust that counts.
        let now = self.kept()?;
        if connection.handshake_kind() != Some(HandshakeKind::Full) || now.made_for != kept.made_for {
            let verified = match (chain.split_first(), self.identity.clock().current_time()) {
                (Some((leaf, rest)), Some(time)) => now.verifier.verify_client_cert(leaf, rest, time),
                _ => Err(rustls::Error::NoCertificatesPresented),
            };
            verified.map_err(|error| TlsError::Handshake(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        }
        // Our certificate is that of the beginning, the trust that of now.
        let made_for = (kept.made_for.0, now.made_for.1);
        let tenure = Tenure::new(&self.identity, chain, KeyUsage::client_auth(), Arc::default(), made_for)?;
        let peer = Some(tenure.peer().clone());
        Ok(Accepted { peer, tenure: Some(tenure), leash: None, io: MaybeTls::Tls(Box::new(stream)) })
    }

    /// By which certificates are judged.
    pub(super) fn clock(&self) -> WallClock {
        self.identity.clock()
    }

    fn kept(&self) -> Result<Kept, TlsError> {
        let now = self.identity.in_force();
        let made_for = (now.generation, now.trust_generation);
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // What was made for an earlier one goes, and with it what could be resumed.
        all.retain(|kept| kept.made_for == made_for);
        if let Some(kept) = all.iter().find(|kept| kept.alpn == self.alpn && kept.versions == self.versions) {
            return Ok(kept.clone());
        }
        let kept = self.make(&now, made_for)?;
        if all.len() >= KEPT {
            all.remove(0);
        }
        all.push(kept.clone());
        Ok(kept)
    }

    fn make(&self, now: &InForce, made_for: (u64, u64)) -> Result<Kept, TlsError> {
        let identity = now.identity.as_ref().ok_or(TlsError::NoIdentity)?;
        let provider = provider();
        let algorithms = provider.signature_verification_algorithms;
        let verifier = Arc::new(Verifier { algorithms, judge: Arc::clone(&now.judge), expected: Arc::default() });
        let mut config = ServerConfig::builder_with_details(provider, Arc::new(self.identity.clock()))
            .with_protocol_versions(versions(self.versions))
            .map_err(TlsError::Config)?
            .with_client_cert_verifier(Arc::clone(&verifier) as Arc<dyn ClientCertVerifier>)
            .with_cert_resolver(identity.key());
        config.alpn_protocols.clone_from(&self.alpn);
        // Kept here and not in a ticket, so that dropping these settings is the end of them, and none is resumed twice.
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        config.send_tls13_tickets = 1;
        let (alpn, versions) = (self.alpn.clone(), self.versions);
        Ok(Kept { made_for, alpn, versions, config: Arc::new(config), verifier })
    }
}

/// An accepted connection, plaintext or TLS.
#[derive(Debug)]
pub struct Accepted<IO> {
    peer: Option<SpiffeId>,
    tenure: Option<Tenure>,
    leash: Option<Leash>,
    io: MaybeTls<IO>,
}

#[derive(Debug)]
enum MaybeTls<IO> {
    Plain(Rewound<IO>),
    Tls(Box<TlsStream<Rewound<IO>>>),
}

/// A stream whose first bytes were read to see what it is.
#[derive(Debug)]
pub(crate) struct Rewound<IO> {
    pub(super) first: Bytes,
    pub(super) io: IO,
}

impl<IO> Rewound<IO> {
    /// Of which nothing was read yet.
    pub(crate) fn new(io: IO) -> Self {
        Self { first: Bytes::new(), io }
    }

    /// Does what was read begin a TLS handshake?
    pub(crate) fn is_handshake(&self) -> bool {
        self.first.first() == Some(&CLIENT_HELLO)
    }
}

impl<IO> Accepted<IO> {
    /// As it came.
    pub(super) fn plain(io: Rewound<IO>) -> Self {
        Self { peer: None, tenure: None, leash: None, io: MaybeTls::Plain(io) }
    }

    /// Over TLS whose caller is nobody of the mesh.
    pub(super) fn of_stream(stream: TlsStream<Rewound<IO>>) -> Self {
        Self { peer: None, tenure: None, leash: None, io: MaybeTls::Tls(Box::new(stream)) }
    }

    /// Is it TLS?
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.io, MaybeTls::Tls(_))
    }

    /// Who called, as its certificate proved; `None` in plaintext.
    pub fn peer(&self) -> Option<&SpiffeId> {
        self.peer.as_ref()
    }

    /// Ends by itself when its time is over, for those who see nothing but bytes.
    pub(super) fn held(mut self) -> Self {
        self.leash = self.tenure.take().map(|tenure| Leash::new(tenure, "inbound"));
        self
    }

    /// How long it may stand; taken by whoever sees to it. `None` in plaintext.
    pub(crate) fn take_tenure(&mut self) -> Option<Tenure> {
        self.tenure.take()
    }

    /// The protocol agreed on.
    pub fn alpn(&self) -> Option<&[u8]> {
        match &self.io {
            MaybeTls::Plain(_) => None,
            MaybeTls::Tls(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }

    /// What the caller proved who it is with; empty in plaintext.
    pub(crate) fn peer_chain(&self) -> &[CertificateDer<'static>] {
        match &self.io {
            MaybeTls::Plain(_) => &[],
            MaybeTls::Tls(stream) => stream.get_ref().1.peer_certificates().unwrap_or_default(),
        }
    }

    /// What the certificate of a caller says who is nobody of the mesh, by which rules know it: its URIs, else its hosts; `None` if it
    /// has shown none.
    pub(crate) fn names(&self) -> Option<Vec<String>> {
        let leaf = self.peer_chain().first().filter(|_| self.peer.is_none())?;
        Some(names_of(leaf))
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
        if let Some(leash) = &self.leash {
            leash.check(cx)?;
        }
        match &mut self.io {
            MaybeTls::Plain(io) => Pin::new(io).poll_read(cx, buf),
            MaybeTls::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Accepted<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { io, leash, .. } = &mut *self;
        Leash::write(leash.as_ref(), cx, |cx| match io {
            MaybeTls::Plain(io) => Pin::new(&mut io.io).poll_write(cx, buf),
            MaybeTls::Tls(io) => Pin::new(io).poll_write(cx, buf),
        })
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { io, leash, .. } = &mut *self;
        Leash::write(leash.as_ref(), cx, |cx| match io {
            MaybeTls::Plain(io) => Pin::new(&mut io.io).poll_write_vectored(cx, bufs),
            MaybeTls::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        })
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            MaybeTls::Plain(io) => io.io.is_write_vectored(),
            MaybeTls::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, leash, .. } = &mut *self;
        Leash::write(leash.as_ref(), cx, |cx| match io {
            MaybeTls::Plain(io) => Pin::new(&mut io.io).poll_flush(cx),
            MaybeTls::Tls(io) => Pin::new(io).poll_flush(cx),
        })
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
        if !self.first.is_empty() && buf.remaining() > 0 {
            let now = self.first.len().min(buf.remaining());
            let first = self.first.split_to(now);
            buf.put_slice(&first);
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
