//! Connections below TLS: TCP, several addresses of a name raced, and Unix domain sockets; and the seam where a program puts
//! a network of its own in their place.
//!
//! A [`Connector`] makes the connections that clients use, a [`Listener`] takes those that a server serves. The system's are
//! the default. Another one is for tunnels and for tests: a simulated network makes every fault of a network, and the
//! time it takes, a matter of one seed.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use mesh_core::config::{self, Connections, EndpointAddress, SocketOption};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    time::sleep,
};

use crate::dns::Resolver;

/// How long one address may keep the next from being tried beside it. Source: RFC 8305, 5.
const HEAD_START: Duration = Duration::from_millis(250);

/// What bytes travel over.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Where a connection is to lead.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Target<'a> {
    /// Where it listens.
    pub address: &'a EndpointAddress,
    /// Other addresses of the same endpoint, to be tried beside the first when that does not answer at once (gRFC A61).
    pub others: &'a [SocketAddr],
    /// The cluster it belongs to, with its options of connections.
    pub cluster: &'a config::Cluster,
}

impl<'a> Target<'a> {
    /// To `address`, an endpoint of `cluster`: for a connector that passes on to another.
    pub fn new(address: &'a EndpointAddress, cluster: &'a config::Cluster) -> Self {
        Self { address, others: &[], cluster }
    }

    /// To an endpoint of `cluster`, at whichever of its addresses answers first.
    pub(crate) fn of(endpoint: &'a config::Endpoint, cluster: &'a config::Cluster) -> Self {
        Self { address: &endpoint.address, others: endpoint.other_addresses(), cluster }
    }
}

/// A connection under way.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send + 'a>>;

/// Makes the connections to endpoints, below TLS and HTTP.
///
/// The caller limits the time, and gives up by dropping the future.
///
/// ```
/// use std::io;
/// use mesh_tower::connect::{Connecting, Connector, Stream, Target};
///
/// /// Every endpoint is the one at the other end of a pipe.
/// struct Pipe(std::sync::Mutex<Option<tokio::io::DuplexStream>>);
///
/// impl Connector for Pipe {
///     fn connect<'a>(&'a self, _: Target<'a>) -> Connecting<'a> {
///         Box::pin(async {
///             let end = self.0.lock().ok().and_then(|mut end| end.take());
///             end.map(Stream::new).ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
///         })
///     }
/// }
/// ```
pub trait Connector: Send + Sync + 'static {
    /// Connects.
    ///
    /// # Errors
    ///
    /// It cannot; the request may be tried elsewhere, since nothing of it was sent.
    fn connect<'a>(&'a self, target: Target<'a>) -> Connecting<'a>;
}

/// Takes the connections that a server serves.
pub trait Listener: Send + 'static {
    /// What a connection is.
    type Io: Io;

    /// The next connection and where it comes from.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, SocketAddr)>> + Send;

    /// Where it listens; the port tells which configuration of the server applies.
    ///
    /// # Errors
    ///
    /// It does not know.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// The address a connection was made to, where it can be told: a listener may have several.
    fn local_addr_of(io: &Self::Io) -> Option<SocketAddr> {
        let _ = io;
        None
    }
}

impl Listener for TcpListener {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, address) = Self::accept(self).await?;
        // Answers are written whole; waiting for more to send only adds latency.
        let _ = stream.set_nodelay(true);
        Ok((stream, address))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }

    fn local_addr_of(io: &TcpStream) -> Option<SocketAddr> {
        io.local_addr().ok()
    }
}

/// A connection to an endpoint.
#[derive(Debug)]
pub struct Stream(Kind);

enum Kind {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
    Other(Box<dyn Io>),
}

impl Stream {
    /// Of a [`Connector`] of your own.
    pub fn new(io: impl Io) -> Self {
        Self(Kind::Other(Box::new(io)))
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self(Kind::Tcp(stream))
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(stream) => stream.fmt(f),
            #[cfg(unix)]
            Self::Unix(stream) => stream.fmt(f),
            Self::Other(_) => f.write_str("Other"),
        }
    }
}

/// The operating system's connections.
#[derive(Clone, Debug)]
pub(crate) struct System {
    resolver: Resolver,
}

impl System {
    pub(crate) fn new(resolver: Resolver) -> Arc<Self> {
        Arc::new(Self { resolver })
    }
}

impl Connector for System {
    fn connect<'a>(&'a self, target: Target<'a>) -> Connecting<'a> {
        Box::pin(connect(target, &self.resolver))
    }
}

/// Connects to where an endpoint listens; the error is of the last address tried.
async fn connect(target: Target<'_>, resolver: &Resolver) -> io::Result<Stream> {
    let options = &target.cluster.connections;
    match target.address {
        EndpointAddress::Socket(address) if target.others.is_empty() => {
            connect_tcp(*address, options).await.map(Stream::from)
        }
        EndpointAddress::Socket(address) => {
            let all: Vec<_> = std::iter::once(*address).chain(target.others.iter().copied()).collect();
            race(&all, options).await.map(Stream::from)
        }
        EndpointAddress::Host(host, port) => {
            let addresses = resolver.resolve(host, *port).await?;
            race(&addresses, options).await.map(Stream::from)
        }
        #[cfg(unix)]
        EndpointAddress::Unix(path) => {
            // Envoy writes the names of sockets without a file with `@`, the system with a zero.
            let path = match path.strip_prefix('@') {
                Some(name) if cfg!(target_os = "linux") => format!("\0{name}"),
                _ => path.clone(),
            };
            tokio::net::UnixStream::connect(path).await.map(|stream| Stream(Kind::Unix(stream)))
        }
        #[cfg(not(unix))]
        EndpointAddress::Unix(_) => {
            Err(io::Error::new(io::ErrorKind::Unsupported, "Unix sockets do not exist on this system"))
        }
    }
}

async fn connect_tcp(address: SocketAddr, options: &Connections) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Requests are written whole; waiting for more to send only adds latency.
    socket.set_nodelay(true)?;
    prepare(&socket, options)?;
    if let Some(local) = options.bind {
        socket.bind(SocketAddr::new(local, options.bind_port))?;
    }
    socket.connect(address).await
}

/// Sets what is configured; what the system refuses fails the connection, since it would not be the one asked for.
fn prepare(socket: &TcpSocket, options: &Connections) -> io::Result<()> {
    let below = SockRef::from(socket);
    let mut probes = TcpKeepalive::new();
    let mut probed = false;
    if let Some(keepalive) = &options.tcp_keepalive {
        probed = true;
        if let Some(time) = keepalive.time {
            probes = probes.with_time(time);
        }
        if let Some(time) = keepalive.interval {
            probes = probes.with_interval(time);
        }
        if let Some(count) = keepalive.probes {
            probes = probes.with_retries(count);
        }
    }
    for option in &options.socket_options {
        match *option {
            SocketOption::Keepalive(on) => socket.set_keepalive(on)?,
            SocketOption::ReuseAddress(on) => socket.set_reuseaddr(on)?,
            SocketOption::SendBuffer(bytes) => socket.set_send_buffer_size(bytes)?,
            SocketOption::ReceiveBuffer(bytes) => socket.set_recv_buffer_size(bytes)?,
            SocketOption::TypeOfService(tos) => below.set_tos_v4(tos)?,
            SocketOption::NoDelay(on) => socket.set_nodelay(on)?,
            #[cfg(target_os = "linux")]
            SocketOption::Mark(mark) => below.set_mark(mark)?,
            #[cfg(target_os = "linux")]
            SocketOption::UserTimeout(millis) => {
                below.set_tcp_user_timeout(Some(Duration::from_millis(millis.into())))?;
            }
            #[cfg(not(target_os = "linux"))]
            SocketOption::Mark(_) | SocketOption::UserTimeout(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "this socket option does not exist on this system",
                ));
            }
            SocketOption::KeepaliveTime(seconds) => {
                (probed, probes) = (true, probes.with_time(Duration::from_secs(seconds.into())));
            }
            SocketOption::KeepaliveInterval(seconds) => {
                (probed, probes) = (true, probes.with_interval(Duration::from_secs(seconds.into())));
            }
            SocketOption::KeepaliveProbes(count) => (probed, probes) = (true, probes.with_retries(count)),
        }
    }
    if probed {
        below.set_tcp_keepalive(&probes)?;
    }
    Ok(())
}

/// The first address that answers, each given a head start over the next. Source: RFC 8305 (happy eyeballs).
async fn race(addresses: &[SocketAddr], options: &Connections) -> io::Result<TcpStream> {
    if let [only] = addresses {
        return connect_tcp(*only, options).await;
    }
    let mut left = interleaved(addresses);
    let mut tries = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        let started = left.next().map(|address| tries.push(connect_tcp(address, options))).is_some();
        if tries.is_empty() {
            return Err(last);
        }
        tokio::select! {
            Some(done) = tries.next() => match done {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            },
            () = sleep(HEAD_START), if started => {}
        }
    }
}

/// IPv4 and IPv6 in turns, beginning with the family of the first. Source: RFC 8305, 4.
fn interleaved(addresses: &[SocketAddr]) -> impl Iterator<Item = SocketAddr> {
    let first_is_v4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let of = move |v4: bool| addresses.iter().copied().filter(move |address| address.is_ipv4() == v4);
    let (mut ours, mut theirs, mut turn) = (of(first_is_v4), of(!first_is_v4), false);
    std::iter::from_fn(move || {
        turn = !turn;
        if turn { ours.next().or_else(|| theirs.next()) } else { theirs.next().or_else(|| ours.next()) }
    })
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Kind::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            #[cfg(unix)]
            Kind::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Kind::Other(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Kind::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            #[cfg(unix)]
            Kind::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Kind::Other(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Kind::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            #[cfg(unix)]
            Kind::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Kind::Other(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Kind::Tcp(stream) => stream.is_write_vectored(),
            #[cfg(unix)]
            Kind::Unix(stream) => stream.is_write_vectored(),
            Kind::Other(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Kind::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(unix)]
            Kind::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Kind::Other(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Kind::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(unix)]
            Kind::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Kind::Other(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// CP5: a name's addresses are raced, each with a head start over the next.
    #[tokio::test]
    async fn an_address_that_refuses_does_not_hold_up_the_next() {
        let options = Connections::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let good = listener.local_addr().unwrap();
        let stream = race(&[refused, good], &options).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(race(&[refused, refused], &options).await.is_err());
        assert!(race(&[], &options).await.is_err());
    }

    /// CP5: probes, the local address and options of the socket are what the cluster says.
    #[tokio::test]
    async fn sockets_are_as_configured() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = Connections {
            tcp_keepalive: Some(config::TcpKeepalive {
                probes: Some(3),
                time: Some(Duration::from_secs(30)),
                interval: Some(Duration::from_secs(7)),
            }),
            bind: Some("127.0.0.3".parse().unwrap()),
            socket_options: vec![SocketOption::TypeOfService(0x10), SocketOption::NoDelay(false)],
            ..Connections::default()
        };
        let stream = connect_tcp(listener.local_addr().unwrap(), &options).await.unwrap();
        let below = SockRef::from(&stream);
        assert!(below.keepalive().unwrap());
        assert_eq!(below.tcp_keepalive_time().unwrap(), Duration::from_secs(30));
        assert_eq!(below.tcp_keepalive_interval().unwrap(), Duration::from_secs(7));
        assert_eq!(below.tcp_keepalive_retries().unwrap(), 3);
        assert_eq!(below.tos_v4().unwrap(), 0x10);
        assert!(!stream.nodelay().unwrap());
        assert_eq!(listener.accept().await.unwrap().1.ip().to_string(), "127.0.0.3");
    }

    /// NR16: an endpoint may be a Unix domain socket.
    #[cfg(unix)]
    #[tokio::test]
    async fn unix_sockets_are_endpoints_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        let system = System::new(Resolver::new(crate::source::Source::seeded(1)));
        let (address, cluster) = (EndpointAddress::Unix(path.to_str().unwrap().to_owned()), config::Cluster::default());
        let target = Target::new(&address, &cluster);
        assert!(matches!(system.connect(target).await.unwrap().0, Kind::Unix(_)));
    }

    /// NR9: addresses of both families take turns, beginning with the first one's.
    #[test]
    fn families_take_turns() {
        let all = ["[::1]:1", "[::1]:2", "[::1]:3", "127.0.0.1:4"].map(|text| text.parse().unwrap());
        let ports: Vec<_> = interleaved(&all).map(|address| address.port()).collect();
        assert_eq!(ports, [1, 4, 2, 3]);
        assert_eq!(interleaved(&all[3..]).count(), 1);
        assert_eq!(interleaved(&[]).count(), 0);
    }
}
