//! The calling end of the handshake, by the TLS context of a cluster.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use mesh_core::{
    config::{Protocol, UpstreamTls},
    identity::SpiffeId,
};
use rustls::{ClientConfig, RootCertStore, client::Resumption};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{LiveIdentity, TlsError, VERSIONS, named::NamedServer, provider, verify, verify::Verifier};

/// What a mesh peer is offered for HTTP/1.1: a PERMISSIVE Envoy tells mesh traffic by the `istio` names.
///
/// Source: Istio's `istio.alpn` filter.
const ISTIO_HTTP1: [&str; 3] = ["istio-http/1.1", "istio", "http/1.1"];
/// What a mesh peer is offered for HTTP/2.
const ISTIO_HTTP2: [&str; 3] = ["istio-h2", "istio", "h2"];
/// What a mesh peer is offered where it may choose.
const ISTIO_EITHER: [&str; 5] = ["istio-h2", "istio-http/1.1", "istio", "h2", "http/1.1"];

/// Makes TLS connections with the identity in force.
#[derive(Clone, Debug, Default)]
pub struct ClientTls {
    identity: LiveIdentity,
}

/// Where a TLS connection leads.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamTarget<'a> {
    /// The cluster's TLS context.
    pub tls: &'a UpstreamTls,
    /// The HTTP version to agree on.
    pub protocol: Protocol,
    /// The host, sent as server name where the context has none.
    pub host: &'a str,
}

impl ClientTls {
    /// With an identity that may come and change later.
    pub fn new(identity: LiveIdentity) -> Self {
        Self { identity }
    }

    /// The identity it uses.
    pub fn identity(&self) -> &LiveIdentity {
        &self.identity
    }

    /// Shakes hands over `io`.
    ///
    /// # Errors
    ///
    /// No identity where one is needed, or a peer that is not who it should be.
    pub async fn connect<IO>(&self, io: IO, target: UpstreamTarget<'_>) -> Result<TlsStream<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.config(&target)?;
        let name = server_name(&target);
        TlsConnector::from(Arc::new(config)).connect(name, io).await.map_err(TlsError::Handshake)
    }

    fn config(&self, target: &UpstreamTarget<'_>) -> Result<ClientConfig, TlsError> {
        let provider = provider();
        let algorithms = provider.signature_verification_algorithms;
        let builder = ClientConfig::builder_with_details(provider, Arc::new(self.identity.clock()))
            .with_protocol_versions(VERSIONS)
            .map_err(TlsError::Config)?;
        let mut config = if target.tls.workload_identity {
            let now = self.identity.in_force();
            let identity = now.identity.as_ref().ok_or(TlsError::NoIdentity)?;
            let verifier = Verifier {
                algorithms,
                trust: Arc::clone(&now.trust),
                expected: target.tls.subject_alt_names.clone().into(),
            };
            let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
            builder.with_client_cert_resolver(identity.key())
        } else if target.tls.subject_alt_names.is_empty() {
            builder.with_root_certificates(system_roots()?).with_no_client_auth()
        } else {
            let verifier = NamedServer::new(algorithms, system_roots()?, target.tls.subject_alt_names.clone());
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        };
        // Resumption would skip the checks above; see the module's words.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = alpn(target).into_iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(config)
    }
}

/// Who answered, as its certificate proved in the handshake.
pub(crate) fn peer_of<IO>(stream: &TlsStream<IO>) -> Option<SpiffeId> {
    let leaf = stream.get_ref().1.peer_certificates()?.first()?;
    verify::spiffe_id_of(leaf).ok()
}

/// What is offered: Istio's names to a mesh peer, as its `istio.alpn` filter does whatever the cluster says; else what
/// the cluster says and we can speak on this connection.
fn alpn<'a>(target: &UpstreamTarget<'a>) -> Vec<&'a str> {
    let listed = &target.tls.alpn;
    let istio = listed.is_empty() || listed.iter().any(|name| name.starts_with("istio"));
    let (of_istio, plain, other): (&[&str], &[&str], &str) = match target.protocol {
        Protocol::Http1 | Protocol::Caller => (&ISTIO_HTTP1, &["http/1.1"], "h2"),
        Protocol::Http2 => (&ISTIO_HTTP2, &["h2"], "http/1.1"),
        Protocol::Auto => (&ISTIO_EITHER, &["h2", "http/1.1"], ""),
    };
    if target.tls.workload_identity && istio {
        return of_istio.to_vec();
    }
    if istio {
        return plain.to_vec();
    }
    listed.iter().map(String::as_str).filter(|name| *name != other).collect()
}

/// The name sent. What is no host name sends none, which needs some address: the peer is judged by its identity.
fn server_name(target: &UpstreamTarget<'_>) -> ServerName<'static> {
    let name = if target.tls.sni.is_empty() { target.host } else { &target.tls.sni };
    ServerName::try_from(name.to_owned()).unwrap_or_else(|_| std::net::Ipv4Addr::UNSPECIFIED.into())
}

/// The system's roots: `SSL_CERT_FILE`, else the usual places, read once.
fn system_roots() -> Result<RootCertStore, TlsError> {
    static ROOTS: OnceLock<Option<RootCertStore>> = OnceLock::new();
    ROOTS.get_or_init(read_system_roots).clone().ok_or(TlsError::NoSystemRoots)
}

fn read_system_roots() -> Option<RootCertStore> {
    let usual = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let files = named.map_or_else(|| usual.into_iter().map(PathBuf::from).collect(), |file| vec![file]);
    files.into_iter().find_map(|file| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_file_iter(file).ok()?.flatten());
        (!roots.is_empty()).then_some(roots)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn offered(protocol: Protocol, workload_identity: bool, alpn_list: &[&str]) -> Vec<String> {
        let tls = UpstreamTls {
            alpn: alpn_list.iter().map(ToString::to_string).collect(),
            workload_identity,
            ..UpstreamTls::default()
        };
        alpn(&UpstreamTarget { tls: &tls, protocol, host: "" }).into_iter().map(str::to_owned).collect()
    }

    /// AN9: a mesh peer is offered Istio's protocol names, which a PERMISSIVE Envoy selects by.
    #[test]
    fn mesh_peers_are_offered_istios_protocols() {
        assert_eq!(offered(Protocol::Http1, true, &[]), ["istio-http/1.1", "istio", "http/1.1"]);
        assert_eq!(offered(Protocol::Http2, true, &["istio-peer-exchange", "istio"]), ["istio-h2", "istio", "h2"]);
        assert_eq!(offered(Protocol::Http2, true, &["h2", "http/1.1"]), ["h2"]);
        assert_eq!(offered(Protocol::Http1, false, &[]), ["http/1.1"]);
    }

    /// AN7: the server name is the cluster's, underscores and all, else the host; what is no name sends none.
    #[test]
    fn server_names_may_have_underscores() {
        let name = |sni: &str, host| {
            let tls = UpstreamTls { sni: sni.to_owned(), ..UpstreamTls::default() };
            server_name(&UpstreamTarget { tls: &tls, protocol: Protocol::Http1, host })
        };
        let subset = "outbound_.9080_.v1_.reviews.default.svc.cluster.local";
        assert!(matches!(name(subset, "x"), ServerName::DnsName(name) if name.as_ref() == subset));
        assert!(matches!(name("", "reviews"), ServerName::DnsName(name) if name.as_ref() == "reviews"));
        assert!(matches!(name("", "127.0.0.1"), ServerName::IpAddress(_)));
        assert!(matches!(name("not a name", "x"), ServerName::IpAddress(_)));
    }
}
