//! How the drivers reach a server of the bootstrap: plaintext or TLS, keepalive, the bearer token.
//!
//! Files are read at each connect, since all of them are rotated. Errors are text: a status code of the control plane is
//! never passed on as one (gRFC A54, XD11).

use std::{error::Error, path::Path, time::Duration};

use tonic::{
    Status,
    metadata::MetadataMap,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::{
    bootstrap::{Server, Tls},
    node::Node,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A dead or frozen server is noticed within 20 s. Istio's takes a ping every 15 s, and one that takes fewer says so.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(16);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);

/// A full push of a large mesh does not wait for window updates.
const WINDOW: u32 = 1 << 20;

/// Opens a connection.
pub(crate) async fn connect(server: &Server) -> Result<Channel, String> {
    try_connect(server, KEEPALIVE_INTERVAL).await.map_err(|failed| failed.why)
}

/// A connection that could not be opened.
#[derive(Debug)]
pub(crate) struct Failed {
    /// One line.
    pub(crate) why: String,
    /// Nobody was there to take it, so that asking again soon costs nobody anything.
    pub(crate) nobody: bool,
}

impl From<String> for Failed {
    fn from(why: String) -> Self {
        Self { why, nobody: false }
    }
}

/// Opens a connection that is pinged so often, or says whether anybody was there.
pub(crate) async fn try_connect(server: &Server, keepalive: Duration) -> Result<Channel, Failed> {
    let scheme = if server.tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{}", server.address))
        .and_then(|endpoint| endpoint.user_agent(concat!("mesh-xds/", env!("CARGO_PKG_VERSION"))))
        .map_err(|error| format!("{}: {}", server.address, chain(&error)))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(keepalive)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    if let Some(tls) = &server.tls {
        let config = tls_config(tls).await?;
        endpoint = endpoint.tls_config(config).map_err(|error| format!("{}: {}", server.address, chain(&error)))?;
    }
    endpoint
        .connect()
        .await
        .map_err(|error| Failed { why: format!("{}: {}", server.address, chain(&error)), nobody: is_unreached(&error) })
}

fn is_unreached(error: &(dyn Error + 'static)) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};

    let mut next = Some(error);
    while let Some(error) = next {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if matches!(kind, Some(ConnectionRefused | HostUnreachable | NetworkUnreachable | TimedOut)) {
            return true;
        }
        next = error.source();
    }
    false
}

/// The headers of a call: the token, if the bootstrap names one, and the cluster as Istio wants it.
pub(crate) async fn headers(server: &Server, node: &Node) -> Result<MetadataMap, String> {
    let mut headers = MetadataMap::new();
    // A token never travels in the clear (gRFC A97), whatever made this value.
    let (Some(file), true) = (&server.token_file, server.tls.is_some()) else { return Ok(headers) };
    let token = read(file).await?;
    let token = String::from_utf8_lossy(&token);
    let bad = |_| format!("token file {} does not hold a token", file.display());
    let mut value: tonic::metadata::AsciiMetadataValue = format!("Bearer {}", token.trim()).parse().map_err(bad)?;
    value.set_sensitive(true);
    headers.insert("authorization", value);
    if let Some(Ok(cluster)) = node.meta("CLUSTER_ID").map(str::parse) {
        headers.insert("clusterid", cluster);
    }
    Ok(headers)
}

/// The server ended the connection because it was pinged more often than it likes. Source: gRFC A8.
pub(crate) fn pinged_too_often(status: &Status) -> bool {
    chain(status).contains("too_many_pings")
}

/// A status as a sentence.
pub(crate) fn describe(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    if let Some(source) = status.source() {
        text.push_str(": ");
        text.push_str(&chain(source));
    }
    text
}

async fn tls_config(tls: &Tls) -> Result<ClientTlsConfig, String> {
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&tls.ca_file).await?));
    if let Some(name) = &tls.server_name {
        config = config.domain_name(name);
    }
    if let Some((certificate, key)) = &tls.client_files {
        config = config.identity(Identity::from_pem(read(certificate).await?, read(key).await?));
    }
    Ok(config)
}

async fn read(path: &Path) -> Result<Vec<u8>, String> {
    tokio::fs::read(path).await.map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

/// An error with its causes, which alone tell a refused connection from a bad certificate.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
