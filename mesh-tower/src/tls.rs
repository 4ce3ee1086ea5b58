//! Mutual TLS between workloads: who we are, how a peer's certificate is judged, and both ends of the handshake.
//!
//! Web TLS asks "is this the host I named?"; here the question is "which workload is this?", answered by the one URI
//! name (SPIFFE id) in a certificate that chains to the mesh's roots. Both ends are usable without a control plane:
//! [`MtlsConnectorLayer`] around any connector, [`MtlsAcceptor`] around anything accepted.
//!
//! Sessions are resumed, which saves signatures, but never past what they were made under: the library does not verify a
//! peer again that resumes, so each resumed handshake is followed by the very check that a full one has, against the trust,
//! the time and the list of those denied of that moment. And what a session is resumed with goes with the identity, the trust
//! and the settings it was made under: when one changes, there is nothing left to resume. Nothing is sent early (0-RTT).

use std::{error::Error as StdError, fmt, sync::Arc};

use mesh_core::config::TlsVersions;
pub use mesh_core::trust::Trust;
use rustls::{
    SupportedProtocolVersion,
    crypto::CryptoProvider,
    version::{TLS12, TLS13},
};

mod client;
mod connector;
mod files;
mod gateway;
mod identity;
mod leash;
mod listener;
mod named;
mod refusal;
mod server;
mod tenure;
mod trust;
mod turns;
mod verify;

pub use client::{ClientTls, Sessions, UpstreamTarget};
pub use connector::{MtlsConnector, MtlsConnectorLayer, MtlsStream};
pub(crate) use gateway::{Chosen, GatewayAcceptor};
pub use identity::{Identity, LiveIdentity};
pub(crate) use leash::{GRACE, Leash, Retired};
pub use listener::MtlsListener;
pub use refusal::Reason;
use refusal::Refusal;
pub(crate) use server::Rewound;
pub use server::{Accepted, MtlsAcceptor};
pub(crate) use tenure::{End, Tenure};
pub(crate) use trust::validity;
pub(crate) use turns::{Turns, begun};

/// The cryptography used: the process's default where the application installed one, ring otherwise.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()))
}

/// The versions spoken: TLS 1.3, and 1.2 for peers that have no better. Source: Istio `meshMTLS.minProtocolVersion`.
pub(crate) fn versions(asked: TlsVersions) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    match asked {
        TlsVersions::Both => &BOTH,
        TlsVersions::Only12 => &BOTH[1..],
        TlsVersions::Only13 => &BOTH[..1],
    }
}

/// Why there is no TLS connection, or no identity.
#[derive(Debug)]
#[non_exhaustive]
pub enum TlsError {
    /// Mutual TLS is asked for, and this process has no certificate.
    NoIdentity,
    /// The certificate, key or roots cannot be used.
    Identity(String),
    /// The handshake failed: what the peer showed, or what it said of what we showed.
    Handshake(std::io::Error),
    /// The peer was believed once, and is not any more.
    Refused(Reason, String),
    /// The system has no roots to trust, asked for by a TLS context without workload identity.
    NoSystemRoots,
    /// Setting up the library failed.
    Config(rustls::Error),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoIdentity => f.write_str("mutual TLS is required, but this process has no certificate yet"),
            Self::Identity(reason) => write!(f, "the certificate cannot be used: {reason}"),
            Self::Handshake(error) => write!(f, "TLS handshake failed: {error}"),
            Self::Refused(_, reason) => write!(f, "the peer is refused: {reason}"),
            Self::NoSystemRoots => {
                f.write_str("no trusted roots found on this system; set SSL_CERT_FILE to a file of PEM certificates")
            }
            Self::Config(error) => write!(f, "TLS cannot be set up: {error}"),
        }
    }
}

impl StdError for TlsError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Handshake(error) => Some(error),
            Self::Config(error) => Some(error),
            _ => None,
        }
    }
}

impl From<TlsError> for std::io::Error {
    fn from(error: TlsError) -> Self {
        Self::other(error)
    }
}

/// The digest by which a certificate is told from others.
pub(crate) fn sha256(bytes: &[u8]) -> Option<Vec<u8>> {
    let provider = provider();
    let suites = provider.cipher_suites.iter().filter_map(rustls::SupportedCipherSuite::tls13);
    let mut hashes = suites.map(|suite| suite.common.hash_provider);
    let hash = hashes.find(|hash| hash.algorithm() == rustls::crypto::hash::HashAlgorithm::SHA256)?;
    Some(hash.hash(bytes).as_ref().to_vec())
}
