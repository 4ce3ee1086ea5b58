//! Mutual TLS around any connector: a Tower layer over `Uri → connection` services.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use mesh_core::config::{Protocol, StringMatch, UpstreamTls};
use tokio_rustls::client::TlsStream;
use tower_layer::Layer;
use tower_service::Service;

use super::{ClientTls, Leash, LiveIdentity, Sessions, UpstreamTarget};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Makes connectors that speak mutual TLS with workloads of our trust domain.
#[derive(Clone, Debug)]
pub struct MtlsConnectorLayer {
    tls: ClientTls,
    context: UpstreamTls,
    protocol: Protocol,
}

impl MtlsConnectorLayer {
    /// With our identity; HTTP/1.1, any workload of the trust domain.
    pub fn new(identity: LiveIdentity) -> Self {
        let context = UpstreamTls { workload_identity: true, ..UpstreamTls::default() };
        Self { tls: ClientTls::new(identity), context, protocol: Protocol::Http1 }
    }

    /// Agrees on HTTP/2, as gRPC needs.
    #[must_use]
    pub fn with_http2(mut self) -> Self {
        self.protocol = Protocol::Http2;
        self
    }

    /// Only these workloads may answer, by their whole SPIFFE ids.
    #[must_use]
    pub fn with_peers(mut self, ids: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let exact = |id: String| StringMatch::Exact { value: id, ignore_case: false };
        self.context.subject_alt_names = ids.into_iter().map(|id| exact(id.into())).collect();
        self
    }
}

impl<C> Layer<C> for MtlsConnectorLayer {
    type Service = MtlsConnector<C>;

    fn layer(&self, inner: C) -> Self::Service {
        MtlsConnector { inner, layer: self.clone() }
    }
}

/// A connector whose connections are mutual TLS. The scheme of the URI does not matter.
#[derive(Clone, Debug)]
pub struct MtlsConnector<C> {
    inner: C,
    layer: MtlsConnectorLayer,
}

impl<C> Service<Uri> for MtlsConnector<C>
where
    C: Service<Uri>,
    C::Response: Read + Write + Unpin + Send + 'static,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    type Response = MtlsStream<C::Response>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let host = uri.host().unwrap_or_default().to_owned();
        let layer = self.layer.clone();
        let connecting = self.inner.call(uri);
        Box::pin(async move {
            let io = TokioIo::new(connecting.await.map_err(Into::into)?);
            let target = UpstreamTarget { tls: &layer.context, protocol: layer.protocol, host: &host };
            let (stream, tenure) = layer.tls.resume(io, target, &Sessions::default()).await?;
            let leash = tenure.map(|tenure| Leash::new(tenure, "outbound"));
            Ok(MtlsStream { io: TokioIo::new(stream), leash })
        })
    }
}

/// A connection of an [`MtlsConnector`].
#[derive(Debug)]
pub struct MtlsStream<IO> {
    leash: Option<Leash>,
    io: TokioIo<TlsStream<TokioIo<IO>>>,
}

impl<IO: Read + Write + Unpin> Read for MtlsStream<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if let Some(leash) = &self.leash {
            leash.check(cx)?;
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: Read + Write + Unpin> Write for MtlsStream<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { io, leash } = &mut *self;
        Leash::write(leash.as_ref(), cx, |cx| Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, leash } = &mut *self;
        Leash::write(leash.as_ref(), cx, |cx| Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { io, leash } = &mut *self;
        Leash::write(leash.as_ref(), cx, |cx| Pin::new(io).poll_write_vectored(cx, bufs))
    }
}

impl<IO: Connection> Connection for MtlsStream<IO> {
    fn connected(&self) -> Connected {
        let (io, session) = self.io.inner().get_ref();
        let connected = io.inner().connected();
        if session.alpn_protocol() == Some(b"h2") { connected.negotiated_h2() } else { connected }
    }
}
