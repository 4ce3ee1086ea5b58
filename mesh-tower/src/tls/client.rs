//! The calling end of the handshake, by the TLS context of a cluster.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use mesh_core::config::{Protocol, StringMatch, UpstreamTls};
use rustls::{
    ClientConfig, HandshakeKind,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier},
    time_provider::TimeProvider,
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};
use webpki::KeyUsage;

use super::{
    LiveIdentity, Tenure, TlsError,
    files::{self, Stamp},
    identity::InForce,
    named::NamedServer,
    provider,
    verify::Verifier,
    versions,
};
use crate::telemetry::refused;

/// What a mesh peer is offered for HTTP/1.1: a PERMISSIVE Envoy tells mesh traffic by the `istio` names.
///
/// Source: Istio's `istio.alpn` filter.
const ISTIO_HTTP1: [&str; 3] = ["istio-http/1.1", "istio", "http/1.1"];
/// What a mesh peer is offered for HTTP/2.
const ISTIO_HTTP2: [&str; 3] = ["istio-h2", "istio", "h2"];
/// What a mesh peer is offered where it may choose.
const ISTIO_EITHER: [&str; 5] = ["istio-h2", "istio-http/1.1", "istio", "h2", "http/1.1"];

/// An endpoint has one server name, or a few while its context changes.
const SERVER_NAMES: usize = 2;

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

/// What an endpoint's next connection begins with: settings made once, and sessions to resume. It is good for as long as
/// everything that a session was made under stays as it is.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<Vec<Arc<Kept>>>);

/// Of one endpoint, one TLS context, one identity and one trust.
#[derive(Debug)]
struct Kept {
    made_for: (u64, u64),
    stamp: Stamp,
    tls: UpstreamTls,
    protocol: Protocol,
    config: Arc<ClientConfig>,
    verifier: Arc<dyn ServerCertVerifier>,
    expected: Arc<[StringMatch]>,
}

impl Sessions {
    fn get(&self, protocol: Protocol) -> Option<Arc<Kept>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|kept| kept.protocol == protocol).cloned()
    }

    fn put(&self, kept: Arc<Kept>) {
        self.forget(kept.protocol);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
    }

    fn forget(&self, protocol: Protocol) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|kept| kept.protocol != protocol);
    }
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
        self.connect_again(io, target, &Sessions::default()).await
    }

    /// The same, resuming what earlier connections to the same endpoint left behind, if nothing has changed since.
    ///
    /// # Errors
    ///
    /// As [`ClientTls::connect`].
    pub async fn connect_again<IO>(
        &self,
        io: IO,
        target: UpstreamTarget<'_>,
        sessions: &Sessions,
    ) -> Result<TlsStream<IO>, TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        self.resume(io, target, sessions).await.map(|(stream, _)| stream)
    }

    /// The same; with a connection to a workload comes how long it may stand.
    pub(crate) async fn resume<IO>(
        &self,
        io: IO,
        target: UpstreamTarget<'_>,
        sessions: &Sessions,
    ) -> Result<(TlsStream<IO>, Option<Tenure>), TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let shaken = self.shake(io, target, sessions).await;
        if let Err(error) = &shaken {
            refused("outbound", error.reason());
        }
        shaken
    }

    async fn shake<IO>(
        &self,
        io: IO,
        target: UpstreamTarget<'_>,
        sessions: &Sessions,
    ) -> Result<(TlsStream<IO>, Option<Tenure>), TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let kept = self.kept(&target, sessions)?;
        let name = server_name(&target);
        let connecting = TlsConnector::from(Arc::clone(&kept.config)).connect(name.clone(), io);
        let stream = connecting.await.map_err(TlsError::Handshake)?;
        let connection = stream.get_ref().1;
        let chain = connection.peer_certificates().unwrap_or_default();
        // By now it may be another identity or trust that counts.
        let now = self.kept(&target, sessions)?;
        if connection.handshake_kind() != Some(HandshakeKind::Full) || !Arc::ptr_eq(&kept, &now) {
            let verified = match (chain.split_first(), self.identity.clock().current_time()) {
                (Some((leaf, rest)), Some(time)) => now.verifier.verify_server_cert(leaf, rest, &name, &[], time),
                _ => Err(rustls::Error::NoCertificatesPresented),
            };
            if let Err(error) = verified {
                sessions.forget(target.protocol);
                return Err(TlsError::Handshake(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
        }
        let tenure = match target.tls.workload_identity {
            true => {
                let expected = Arc::clone(&now.expected);
                let usage = KeyUsage::server_auth();
                // Our certificate is that of the beginning, the trust that of now.
                let made_for = (kept.made_for.0, now.made_for.1);
                Some(Tenure::new(&self.identity, chain, usage, expected, made_for)?)
            }
            false => None,
        };
        Ok((stream, tenure))
    }

    /// What is kept for the endpoint, made anew if anything is different.
    fn kept(&self, target: &UpstreamTarget<'_>, sessions: &Sessions) -> Result<Arc<Kept>, TlsError> {
        let now = self.identity.in_force();
        let made_for = if target.tls.workload_identity { (now.generation, now.trust_generation) } else { (0, 0) };
        let stamp = files::stamp(target.tls);
        let same = |kept: &Arc<Kept>| kept.made_for == made_for && kept.stamp == stamp && kept.tls == *target.tls;
        if let Some(kept) = sessions.get(target.protocol).filter(same) {
            return Ok(kept);
        }
        let kept = Arc::new(self.make(target, &now, made_for, stamp)?);
        sessions.put(Arc::clone(&kept));
        Ok(kept)
    }

    fn make(
        &self,
        target: &UpstreamTarget<'_>,
        now: &InForce,
        made_for: (u64, u64),
        stamp: Stamp,
    ) -> Result<Kept, TlsError> {
        let provider = provider();
        let algorithms = provider.signature_verification_algorithms;
        let builder = ClientConfig::builder_with_details(Arc::clone(&provider), Arc::new(self.identity.clock()))
            .with_protocol_versions(versions(target.tls.versions))
            .map_err(TlsError::Config)?;
        let expected: Arc<[StringMatch]> = target.tls.subject_alt_names.clone().into();
        let verifier: Arc<dyn ServerCertVerifier> = if target.tls.workload_identity {
            let (judge, expected) = (Arc::clone(&now.judge), Arc::clone(&expected));
            Arc::new(Verifier { algorithms, judge, expected })
        } else if expected.is_empty() {
            let web = WebPkiServerVerifier::builder_with_provider(files::roots(target.tls.roots.as_ref())?, provider);
            web.build().map_err(|error| TlsError::Identity(error.to_string()))?
        } else {
            let roots = files::roots(target.tls.roots.as_ref())?;
            NamedServer::new(algorithms, &roots, target.tls.subject_alt_names.clone())
        };
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::clone(&verifier));
        let mut config = if target.tls.workload_identity {
            let identity = now.identity.as_ref().ok_or(TlsError::NoIdentity)?;
            builder.with_client_cert_resolver(identity.key())
        } else if let Some(files) = &target.tls.certificate {
            builder.with_client_cert_resolver(files::certificate(files)?)
        } else {
            builder.with_no_client_auth()
        };
        config.resumption = Resumption::in_memory_sessions(SERVER_NAMES);
        config.alpn_protocols = alpn(target).into_iter().map(|name| name.as_bytes().to_vec()).collect();
        let (tls, protocol) = (target.tls.clone(), target.protocol);
        Ok(Kept { made_for, stamp, tls, protocol, config: Arc::new(config), verifier, expected })
    }
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
    let is_name = target.host.parse::<std::net::IpAddr>().is_err() && !target.host.is_empty();
    let by_host = target.tls.sni.is_empty() || (target.tls.host_sni && is_name);
    let name = if by_host { target.host } else { &target.tls.sni };
    ServerName::try_from(name.to_owned()).unwrap_or_else(|_| std::net::Ipv4Addr::UNSPECIFIED.into())
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
