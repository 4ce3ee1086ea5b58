//! Opening a connection: to the address, through TLS, up to HTTP, within the cluster's connect timeout.
//!
//! What is counted while a connection is there goes with the connection's bytes: when a connection becomes something else
//! (a WebSocket), it still counts until that ends.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use mesh_core::{
    config::{EndpointAddress, Protocol},
    endpoint::Endpoint,
    limit::Slot,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};

use super::{Pool, Way, endpoint::Counted, http1::Http1, http2::Http2, keep::Wants};
use crate::{
    connect::{Io, Target},
    error::{Error, ErrorKind},
    telemetry::Subchannel,
    tls::{Leash, UpstreamTarget},
};

/// A new connection, by what the peer speaks.
pub(super) enum Opened {
    Http1(Box<Http1>),
    Http2(Http2),
}

/// What goes when a connection ends, which also lets those in line look again.
pub(super) type Held = (Option<Slot>, Counted);

/// Opens a connection.
///
/// Within the cluster's connect timeout, TLS included. Source: Envoy `Cluster.connect_timeout`.
pub(super) async fn open(way: &Way, held: Held) -> Result<Opened, Error> {
    let limit = way.cluster.config().connect_timeout;
    let told = way.shared.telemetry.subchannel(&way.cluster, &way.endpoint);
    let opened = timeout(limit, shake_hands(way, held, told.clone())).await;
    if let (Some(told), false) = (&told, matches!(opened, Ok(Ok(_)))) {
        told.failed();
    }
    match opened {
        Ok(result) => result,
        Err(_) => {
            let message = format!("no connection to {} within {limit:?}", way.endpoint.address());
            Err(Error::msg(ErrorKind::Connect, message))
        }
    }
}

async fn shake_hands(way: &Way, held: Held, told: Option<Arc<Subchannel>>) -> Result<Opened, Error> {
    let (generation, opened) = (way.generation(), way.now());
    let config = &way.cluster.config().connections;
    let address = way.endpoint.address();
    let target = Target::of(way.endpoint.config(), way.cluster.config());
    let connected = way.shared.connector.connect(target).await;
    let stream = connected
        .map_err(|error| Error::new(ErrorKind::Connect, Unreachable { address: address.to_string(), error }))?;
    let mut http2 = way.wants == Wants::Http2;
    let (io, tenure): (Box<dyn Io>, _) = match way.tls() {
        None => (Box::new(stream), None),
        Some(tls) => {
            let host = host_of(&way.endpoint);
            let protocol = match way.wants {
                Wants::Http1 => Protocol::Http1,
                Wants::Http2 => Protocol::Http2,
                Wants::Any => Protocol::Auto,
            };
            let target = UpstreamTarget { tls, protocol, host: &host };
            let pool = Pool::pool_of(&way.shared, &way.cluster, &way.endpoint);
            let shaken = way.shared.tls.resume(stream, target, &pool.sessions).await;
            let (stream, tenure) = shaken.map_err(|error| Error::new(ErrorKind::Tls, error))?;
            if way.wants == Wants::Any {
                http2 = stream.get_ref().1.alpn_protocol().is_some_and(|name| name.ends_with(b"h2"));
            }
            (Box::new(stream), tenure)
        }
    };
    let peer = tenure.as_ref().map(|tenure| tenure.peer().clone());
    let leash = tenure.map(|tenure| Leash::new(tenure, "outbound"));
    let retired = leash.as_ref().map(Leash::retired);
    let io = Wire { io, leash, told: told.clone(), _held: Some(held) };
    let opened_well = || told.iter().for_each(|told| told.opened());
    if http2 {
        let connection = Http2::open(io, config).await;
        let mut connection = connection.map_err(|error| Error::new(ErrorKind::Connect, error))?;
        connection.peer = peer;
        connection.retired = retired;
        connection.generation = generation;
        connection.opened = opened;
        opened_well();
        return Ok(Opened::Http2(connection));
    }
    let mut connection = Http1::open(io, config).await.map_err(|error| Error::new(ErrorKind::Connect, error))?;
    connection.peer = peer;
    connection.retired = retired;
    connection.generation = generation;
    connection.opened = opened;
    opened_well();
    Ok(Opened::Http1(Box::new(connection)))
}

/// What an endpoint is asked for by, where the cluster has no name for that.
pub(super) fn host_of(endpoint: &Endpoint) -> String {
    let named = &endpoint.config().hostname;
    match endpoint.address() {
        _ if !named.is_empty() => named.to_string(),
        EndpointAddress::Host(host, _) => host.clone(),
        EndpointAddress::Socket(address) => address.ip().to_string(),
        EndpointAddress::Unix(_) => String::new(),
    }
}

/// The bytes of a connection, and what goes with them.
pub(super) struct Wire {
    io: Box<dyn Io>,
    leash: Option<Leash>,
    told: Option<Arc<Subchannel>>,
    _held: Option<Held>,
}

impl Wire {
    /// Counted by whoever picked the endpoint.
    pub(super) fn of_bytes(io: Box<dyn Io>, leash: Option<Leash>) -> Self {
        Self { io, leash, told: None, _held: None }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(leash) = &self.leash {
            leash.check(cx)?;
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if let (Some(told), Poll::Ready(read)) = (&self.told, &polled) {
            match read {
                Ok(()) if buf.filled().len() > before || buf.remaining() == 0 => {}
                read => told.broke(read.as_ref().err()),
            }
        }
        polled
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { io, leash, .. } = &mut *self;
        Leash::write(leash.as_ref(), cx, |cx| Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { io, leash, .. } = &mut *self;
        Leash::write(leash.as_ref(), cx, |cx| Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, leash, .. } = &mut *self;
        Leash::write(leash.as_ref(), cx, |cx| Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// An operating system's error with the address it is about.
#[derive(Debug)]
struct Unreachable {
    address: String,
    error: std::io::Error,
}

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.address, self.error)
    }
}

impl std::error::Error for Unreachable {}
