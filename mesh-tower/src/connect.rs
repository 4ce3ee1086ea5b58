//! Connections below TLS: TCP, several addresses of a name raced, and Unix domain sockets.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use mesh_core::config::EndpointAddress;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::JoinSet,
    time::sleep,
};

use crate::dns::Resolver;

/// How long one address may keep the next from being tried beside it. Source: RFC 8305, 5.
const HEAD_START: Duration = Duration::from_millis(250);

/// A connection to an endpoint.
#[derive(Debug)]
pub(crate) enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix domain socket.
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
}

/// Connects to where an endpoint listens; the caller limits the time.
///
/// # Errors
///
/// The operating system's, of the last address tried.
pub(crate) async fn connect(address: &EndpointAddress, resolver: &Resolver) -> io::Result<Stream> {
    match address {
        EndpointAddress::Socket(address) => connect_tcp(*address).await.map(Stream::Tcp),
        EndpointAddress::Host(host, port) => {
            let addresses = resolver.resolve(host, *port).await?;
            race(&addresses).await.map(Stream::Tcp)
        }
        #[cfg(unix)]
        EndpointAddress::Unix(path) => tokio::net::UnixStream::connect(path).await.map(Stream::Unix),
        #[cfg(not(unix))]
        EndpointAddress::Unix(_) => {
            Err(io::Error::new(io::ErrorKind::Unsupported, "Unix sockets do not exist on this system"))
        }
    }
}

async fn connect_tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // Requests are written whole; waiting for more to send only adds latency.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The first address that answers, each given a head start over the next. Source: RFC 8305 (happy eyeballs).
async fn race(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    if let [only] = addresses {
        return connect_tcp(*only).await;
    }
    let mut left = addresses.iter().copied();
    let mut tries = JoinSet::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        let started = left.next().map(|address| tries.spawn(connect_tcp(address))).is_some();
        if tries.is_empty() {
            return Err(last);
        }
        tokio::select! {
            Some(done) = tries.join_next() => match done {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => {}
            },
            () = sleep(HEAD_START), if started => {}
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            #[cfg(unix)]
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            #[cfg(unix)]
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            #[cfg(unix)]
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(unix)]
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(unix)]
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_address_that_refuses_does_not_hold_up_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let good = listener.local_addr().unwrap();
        let stream = race(&[refused, good]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(race(&[refused, refused]).await.is_err());
        assert!(race(&[]).await.is_err());
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn unix_sockets_are_endpoints_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        let resolver = Resolver::new(crate::source::Source::seeded(1));
        let address = EndpointAddress::Unix(path.to_str().unwrap().to_owned());
        assert!(matches!(connect(&address, &resolver).await.unwrap(), Stream::Unix(_)));
    }
}
