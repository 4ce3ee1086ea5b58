//! Taking the port that a mesh serves on. Listening is the server's.

use std::{fmt, io};

use tokio::net::{TcpSocket, ToSocketAddrs, lookup_host};

use super::MeshError;

/// Bound, but not listening: a taken port is told at once, and callers are not kept waiting for a certificate.
pub(super) async fn bind(address: impl ToSocketAddrs + fmt::Debug) -> Result<TcpSocket, MeshError> {
    let name = format!("{address:?}");
    let failed = |error: io::Error| MeshError::Bind { address: name.trim_matches('"').to_owned(), error };
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "it names no address");
    for address in lookup_host(address).await.map_err(&failed)? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(&failed)?;
        // A restarted server takes its port although connections of its predecessor are still closing.
        #[cfg(unix)]
        socket.set_reuseaddr(true).map_err(&failed)?;
        match socket.bind(address) {
            Ok(()) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}
