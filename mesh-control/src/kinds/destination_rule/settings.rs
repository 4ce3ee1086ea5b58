//! The settings of a traffic policy, each `None` where the object is silent.

use std::time::Duration;

use mesh_core::config::{CertificateFiles, Connections, Keepalive, OutlierDetection, RetryBudget, TcpKeepalive};

use super::{Balancing, balancing, outlier};
use crate::kinds::{
    read::{Fields, Reader},
    yaml::Node,
};

/// The settings of a policy; `None` says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Which endpoint a request gets.
    pub balancing: Option<Balancing>,
    /// How many connections and requests.
    pub pool: Option<ConnectionPool>,
    /// When endpoints are left out, and below which percentage of healthy ones all are used all the same.
    pub outlier: Option<(OutlierDetection, u32)>,
    /// How many retries may be under way.
    pub retry_budget: Option<RetryBudget>,
    /// TLS towards the endpoints.
    pub tls: Option<Tls>,
}

/// Source: Istio `ConnectionPoolSettings`; `None` is no limit (2^32 - 1).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConnectionPool {
    /// `tcp.maxConnections`.
    pub max_connections: Option<u32>,
    /// `tcp.connectTimeout`; `None` is the mesh's.
    pub connect_timeout: Option<Duration>,
    /// `http.http1MaxPendingRequests`.
    pub max_pending_requests: Option<u32>,
    /// `http.http2MaxRequests`.
    pub max_requests: Option<u32>,
    /// `http.maxRetries`.
    pub max_retries: Option<u32>,
    /// `http.h2UpgradePolicy`.
    pub h2_upgrade: H2Upgrade,
    /// `http.useClientProtocol`: HTTP/2 for callers that speak it, else HTTP/1.1.
    pub client_protocol: bool,
    /// How connections are kept: `tcp.{tcpKeepalive,maxConnectionDuration}`,
    /// `http.{idleTimeout,maxRequestsPerConnection,maxConcurrentStreams,http2KeepAlive}`.
    pub connections: Connections,
}

/// Source: Istio `H2UpgradePolicy`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum H2Upgrade {
    /// As the port says.
    #[default]
    Default,
    /// HTTP/1.1.
    DoNotUpgrade,
    /// HTTP/2.
    Upgrade,
}

/// Source: Istio `ClientTLSSettings`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// Which.
    pub kind: TlsKind,
    /// Server name sent; empty is the host.
    pub sni: String,
    /// Names the server's certificate must show one of.
    pub subject_alt_names: Vec<String>,
    /// With mode MUTUAL. `clientCertificate`, `privateKey`.
    pub certificate: Option<CertificateFiles>,
    /// A file of roots; `None` is the system's. `caCertificates`.
    pub roots: Option<String>,
}

/// Source: Istio `ClientTLSSettings.TLSmode`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsKind {
    /// Plaintext.
    Disable,
    /// TLS as on the web: the server shows a certificate the system trusts.
    Simple,
    /// The same, and we show a certificate from files.
    Mutual,
    /// Mutual TLS with the workload's certificate.
    IstioMutual,
}

impl Settings {
    pub(super) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        Self {
            balancing: fields.read("loadBalancer", |node, path| balancing::read(node, path, reader)),
            pool: fields.read("connectionPool", |node, path| pool(node, path, reader)),
            outlier: fields.read("outlierDetection", |node, path| outlier(node, path, reader)),
            // Of a policy, not of a port.
            retry_budget: None,
            tls: fields.read("tls", |node, path| tls(node, path, reader)),
        }
    }
}

fn pool(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<ConnectionPool> {
    let mut fields = reader.fields(node, path)?;
    let mut pool = ConnectionPool::default();
    // 0 is protobuf's absence, hence no limit, as in Istio.
    let limit = |reader: &mut Reader<'_>, node: &Node, path: &str| reader.u32(node, path).filter(|n| *n > 0);
    if let Some((node, path)) = fields.take("tcp")
        && let Some(mut tcp) = reader.fields(node, &path)
    {
        pool.max_connections = tcp.read("maxConnections", |node, path| limit(reader, node, path));
        pool.connect_timeout = tcp.read("connectTimeout", |node, path| reader.some_time(node, path));
        if let Some((node, path)) = tcp.take("tcpKeepalive") {
            pool.connections.tcp_keepalive = tcp_keepalive(node, &path, reader);
        }
        pool.connections.max_duration = tcp.read("maxConnectionDuration", |node, path| reader.some_time(node, path));
        tcp.ignored(reader, &["idleTimeout"], "only HTTP is spoken; http.idleTimeout counts");
        tcp.close(reader);
    }
    if let Some((node, path)) = fields.take("http")
        && let Some(mut http) = reader.fields(node, &path)
    {
        pool.max_pending_requests = http.read("http1MaxPendingRequests", |node, path| limit(reader, node, path));
        pool.max_requests = http.read("http2MaxRequests", |node, path| limit(reader, node, path));
        pool.max_retries = http.read("maxRetries", |node, path| limit(reader, node, path));
        let words = [
            ("DEFAULT", H2Upgrade::Default),
            ("DO_NOT_UPGRADE", H2Upgrade::DoNotUpgrade),
            ("UPGRADE", H2Upgrade::Upgrade),
        ];
        pool.h2_upgrade =
            http.read("h2UpgradePolicy", |node, path| reader.word(node, path, &words)).unwrap_or_default();
        pool.client_protocol =
            http.read("useClientProtocol", |node, path| reader.boolean(node, path)).unwrap_or_default();
        let connections = &mut pool.connections;
        connections.idle_timeout = http.read("idleTimeout", |node, path| reader.some_time(node, path));
        connections.max_requests =
            http.read("maxRequestsPerConnection", |node, path| reader.u32(node, path)).unwrap_or_default();
        if let Some(most) = http.read("maxConcurrentStreams", |node, path| limit(reader, node, path)) {
            connections.http2.max_concurrent_streams = most;
        }
        if let Some((node, path)) = http.take("http2KeepAlive") {
            connections.http2.keepalive = http2_keepalive(node, &path, reader);
        }
        http.ignored(reader, &["connectionAging"], "connections are kept as long as they are of use");
        http.close(reader);
    }
    fields.close(reader);
    Some(pool)
}

fn tcp_keepalive(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<TcpKeepalive> {
    let mut fields = reader.fields(node, path)?;
    let keepalive = TcpKeepalive {
        probes: fields.read("probes", |node, path| reader.u32(node, path)).filter(|probes| *probes > 0),
        time: fields.read("time", |node, path| reader.some_time(node, path)),
        interval: fields.read("interval", |node, path| reader.some_time(node, path)),
    };
    fields.close(reader);
    Some(keepalive)
}

/// Pings of HTTP/2; an answer that does not come ends the connection, by default after five seconds.
fn http2_keepalive(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Keepalive> {
    let mut fields = reader.fields(node, path)?;
    let interval = fields.read("interval", |node, path| reader.some_time(node, path));
    let timeout = fields.read("timeout", |node, path| reader.some_time(node, path));
    fields.close(reader);
    Some(Keepalive { interval, timeout: timeout.unwrap_or(Duration::from_secs(5)), after_idle: None })
}

fn tls(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Tls> {
    let mut fields = reader.fields(node, path)?;
    let (mut kind, mut mode_at) = (TlsKind::Disable, node.at);
    if let Some((node, path)) = fields.take("mode") {
        let words = [
            ("DISABLE", TlsKind::Disable),
            ("SIMPLE", TlsKind::Simple),
            ("MUTUAL", TlsKind::Mutual),
            ("ISTIO_MUTUAL", TlsKind::IstioMutual),
        ];
        mode_at = node.at;
        if let Some(known) = reader.word(node, &path, &words) {
            kind = known;
        }
    }
    let sni = fields.read("sni", |node, path| reader.text(node, path));
    let names = fields.take("subjectAltNames");
    let subject_alt_names = names.map(|(node, path)| reader.texts(node, &path)).unwrap_or_default();
    let mut file = |name: &'static str, allowed: bool, reader: &mut Reader<'_>| {
        let said = fields.read(name, |node, path| reader.text(node, path)).filter(|said| !said.value.is_empty())?;
        if !allowed {
            reader.invalid(said.at, format!("{name} cannot be set with this mode"));
        }
        Some(said.value)
    };
    let chain = file("clientCertificate", kind == TlsKind::Mutual, reader);
    let key = file("privateKey", kind == TlsKind::Mutual, reader);
    let roots = file("caCertificates", matches!(kind, TlsKind::Simple | TlsKind::Mutual), reader);
    // Istio's word for the system's.
    let roots = roots.filter(|file| file != "system");
    let certificate = chain.zip(key).map(|(chain, key)| CertificateFiles { chain, key });
    if kind == TlsKind::Mutual && certificate.is_none() {
        reader.invalid(
            mode_at,
            "mode MUTUAL needs clientCertificate and privateKey; ISTIO_MUTUAL shows the workload's own certificate"
                .into(),
        );
    }
    if let Some((node, path)) = fields.take("insecureSkipVerify")
        && reader.boolean(node, &path) == Some(true)
    {
        reader.unsupported(node.at, &path, "a server is always verified; name its roots in caCertificates");
    }
    fields.refused(
        reader,
        &["caCrl", "credentialName"],
        "certificates and roots are files here, or the workload's own with ISTIO_MUTUAL",
    );
    fields.close(reader);
    Some(Tls {
        kind,
        sni: sni.map(|at| at.value).unwrap_or_default(),
        subject_alt_names: subject_alt_names.into_iter().map(|at| at.value).collect(),
        certificate,
        roots,
    })
}
