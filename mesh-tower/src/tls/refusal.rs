//! Why a peer is not believed: a sentence for the log, a word out of a small closed set for the metric, and for the peer
//! the alert that TLS has for it.

use std::{error::Error as StdError, fmt, sync::Arc};

use mesh_core::{config::StringMatch, identity::SpiffeId};
use rustls::{CertificateError, Error, OtherError};

use super::TlsError;

/// Why a certificate is refused.
#[derive(Clone)]
pub(super) enum Refusal {
    Unreadable,
    NotOneName(usize),
    NotSpiffe(String),
    /// Chain, dates, usage or revocation.
    Chain(webpki::Error),
    TrustDomain {
        peer: SpiffeId,
        ours: String,
    },
    Unexpected {
        peer: SpiffeId,
        expected: Arc<[StringMatch]>,
    },
    /// None of the names it should have, of a server outside the mesh.
    Unnamed {
        expected: String,
    },
    Denied(String),
    WeakKey {
        kind: &'static str,
        bits: usize,
    },
}

impl Refusal {
    fn reason(&self) -> Reason {
        match self {
            Self::Unreadable => Reason::Malformed,
            Self::NotOneName(_) | Self::NotSpiffe(_) => Reason::NoIdentity,
            Self::Chain(error) => of_chain(error),
            Self::TrustDomain { .. } => Reason::TrustDomain,
            Self::Unexpected { .. } | Self::Unnamed { .. } => Reason::UnexpectedName,
            Self::Denied(_) => Reason::Denied,
            Self::WeakKey { .. } => Reason::WeakKey,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => f.write_str("the certificate cannot be read"),
            Self::NotOneName(count) => write!(f, "the certificate has {count} URI names; a workload's has exactly one"),
            Self::NotSpiffe(name) => write!(f, "the certificate's name {name} is not a SPIFFE id"),
            Self::Chain(error) => write!(f, "{error}"),
            Self::TrustDomain { peer, ours } => write!(f, "the peer is {peer}, which is not of trust domain {ours}"),
            Self::Unexpected { peer, expected } => {
                write!(f, "the peer is {peer}, which is none of those expected here: {expected:?}")
            }
            Self::Unnamed { expected } => write!(f, "the certificate has none of the names expected here: {expected}"),
            Self::Denied(what) => write!(f, "{what} is denied"),
            Self::WeakKey { kind, bits } => write!(f, "the certificate's {kind} key of {bits} bits is too weak"),
        }
    }
}

impl fmt::Debug for Refusal {
    /// The sentence: rustls shows errors that are not its own in their debug form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StdError for Refusal {}

impl From<Refusal> for Error {
    /// The commonest reasons by the names rustls gives them, so that the peer gets the right alert.
    fn from(refusal: Refusal) -> Self {
        use webpki::Error as Chain;
        let reason = match refusal {
            Refusal::Chain(Chain::BadDer | Chain::BadDerTime | Chain::TrailingData(_)) | Refusal::Unreadable => {
                CertificateError::BadEncoding
            }
            Refusal::Chain(Chain::CertNotValidYet { .. }) => CertificateError::NotValidYet,
            Refusal::Chain(Chain::CertExpired { .. }) => CertificateError::Expired,
            Refusal::Chain(Chain::UnknownIssuer) => CertificateError::UnknownIssuer,
            Refusal::Chain(Chain::InvalidSignatureForPublicKey) => CertificateError::BadSignature,
            Refusal::Chain(Chain::CertRevoked) => CertificateError::Revoked,
            Refusal::Chain(Chain::UnknownRevocationStatus) => CertificateError::UnknownRevocationStatus,
            Refusal::Chain(Chain::CrlExpired { .. }) => CertificateError::ExpiredRevocationList,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        };
        Self::InvalidCertificate(reason)
    }
}

/// In one word, why there is no TLS connection, or none any more. The set is closed: these are values of a metric's label.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// The peer showed no certificate.
    NoCertificate,
    /// What it showed is no certificate.
    Malformed,
    /// No root we trust vouches for it: another CA, itself, or a chain with a link missing.
    UnknownIssuer,
    /// Its time, or that of a certificate above it, is over.
    Expired,
    /// Its time has not begun.
    NotYetValid,
    /// Its CA has revoked it, or one above it.
    Revoked,
    /// There are revocation lists, and none that is up to date speaks of it.
    RevocationUnknown,
    /// Its identity or serial number is on the list of those denied.
    Denied,
    /// It is not for this end of a connection, or a CA's where a leaf's should be, or the other way round.
    WrongUsage,
    /// It has no SPIFFE id, or several, or one that is none.
    NoIdentity,
    /// Its trust domain is neither ours nor one we know.
    TrustDomain,
    /// It is not one of those expected.
    UnexpectedName,
    /// Its key is too short, or of a kind that is not used any more.
    WeakKey,
    /// It speaks no TLS, or no version, cipher or protocol of ours.
    Protocol,
    /// It did not finish the handshake in time.
    Timeout,
    /// It refused us.
    RefusedByPeer,
    /// We have nothing to show, or nothing to judge by.
    NotReady,
    /// The connection broke, or anything else.
    Other,
}

impl Reason {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Malformed => "malformed",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Revoked => "revoked",
            Self::RevocationUnknown => "revocation_unknown",
            Self::Denied => "denied",
            Self::WrongUsage => "wrong_usage",
            Self::NoIdentity => "no_identity",
            Self::TrustDomain => "trust_domain",
            Self::UnexpectedName => "unexpected_name",
            Self::WeakKey => "weak_key",
            Self::Protocol => "protocol",
            Self::Timeout => "timeout",
            Self::RefusedByPeer => "refused_by_peer",
            Self::NotReady => "not_ready",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl TlsError {
    /// In one word.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoIdentity | Self::Identity(_) | Self::NoSystemRoots | Self::Config(_) => Reason::NotReady,
            Self::Refused(reason, _) => *reason,
            Self::Handshake(error) => {
                let inner = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
                match inner {
                    Some(error) => of_handshake(error),
                    None if error.kind() == std::io::ErrorKind::TimedOut => Reason::Timeout,
                    None => Reason::Other,
                }
            }
        }
    }
}

impl From<Refusal> for TlsError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.reason(), refusal.to_string())
    }
}

fn of_handshake(error: &Error) -> Reason {
    match error {
        Error::NoCertificatesPresented => Reason::NoCertificate,
        Error::InvalidCertificate(error) => of_certificate(error),
        Error::AlertReceived(_) => Reason::RefusedByPeer,
        Error::InvalidMessage(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::NoApplicationProtocol
        | Error::PeerIncompatible(_)
        | Error::PeerMisbehaved(_)
        | Error::DecryptError
        | Error::PeerSentOversizedRecord => Reason::Protocol,
        _ => Reason::Other,
    }
}

fn of_certificate(error: &CertificateError) -> Reason {
    match error {
        CertificateError::BadEncoding => Reason::Malformed,
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Reason::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Reason::NotYetValid,
        CertificateError::Revoked => Reason::Revoked,
        CertificateError::UnknownRevocationStatus
        | CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => Reason::RevocationUnknown,
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Reason::UnknownIssuer,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Reason::UnexpectedName,
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Reason::WrongUsage,
        CertificateError::Other(OtherError(error)) => match (error.downcast_ref(), error.downcast_ref()) {
            (Some(refusal), _) => Refusal::reason(refusal),
            (_, Some(error)) => of_chain(error),
            _ => Reason::Other,
        },
        _ => Reason::Other,
    }
}

fn of_chain(error: &webpki::Error) -> Reason {
    use webpki::Error as Chain;
    #[expect(deprecated, reason = "older names of the same reasons may still come")]
    match error {
        Chain::CertExpired { .. } => Reason::Expired,
        Chain::CertNotValidYet { .. } => Reason::NotYetValid,
        Chain::CertRevoked => Reason::Revoked,
        Chain::UnknownRevocationStatus | Chain::CrlExpired { .. } | Chain::IssuerNotCrlSigner => {
            Reason::RevocationUnknown
        }
        Chain::InvalidCrlSignatureForPublicKey | Chain::UnsupportedCrlSignatureAlgorithmContext(_) => {
            Reason::RevocationUnknown
        }
        Chain::UnknownIssuer
        | Chain::InvalidSignatureForPublicKey
        | Chain::MaximumPathDepthExceeded
        | Chain::MaximumPathBuildCallsExceeded
        | Chain::MaximumSignatureChecksExceeded
        | Chain::NameConstraintViolation
        | Chain::PathLenConstraintViolated => Reason::UnknownIssuer,
        Chain::CaUsedAsEndEntity
        | Chain::EndEntityUsedAsCa
        | Chain::RequiredEkuNotFound
        | Chain::RequiredEkuNotFoundContext(_)
        | Chain::EmptyEkuExtension => Reason::WrongUsage,
        Chain::CertNotValidForName(_) => Reason::UnexpectedName,
        Chain::UnsupportedSignatureAlgorithmContext(_) | Chain::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            Reason::WeakKey
        }
        _ => Reason::Malformed,
    }
}
