//! Why there is no key, certificate or token.

use std::{fmt, path::PathBuf, time::Duration};

use super::Ca;

/// What went wrong with keys, certificates or tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A key file holds something else.
    #[error("{} is not a private key in PKCS #8 PEM that can be used here: {reason}", path.display())]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The root certificate cannot be used.
    #[error("the root certificate cannot be used: {0}")]
    Root(String),
    /// The certificate signing request cannot be used.
    #[error("the certificate signing request cannot be used: {0}")]
    Csr(String),
    /// The lifetime asked for is too long.
    #[error("a lifetime of {} s is over the longest allowed, {} s", .0.as_secs(), Ca::MAX_TTL.as_secs())]
    Ttl(Duration),
    /// Not a namespace or service account.
    #[error("{0:?} is not a {1}: lower-case letters, digits, '-' and '.', at most 253, as in Kubernetes")]
    Name(String, &'static str),
    /// This workload gets no certificate.
    #[error("{0} is denied: it was revoked, and gets no certificate until that is lifted")]
    Denied(String),
    /// What is to be revoked is nothing that can be.
    #[error("cannot be revoked: {0}")]
    Revocation(String),
    /// The step of a change of the authority cannot be taken.
    #[error("the authority stays as it is: {0}")]
    Step(String),
    /// A token proves nothing.
    #[error("the token is refused: {0}")]
    Token(String),
    /// A key could not be made or used.
    #[error("cryptography failed: {0}")]
    Crypto(String),
}

impl CaError {
    pub(super) fn crypto(error: impl fmt::Display) -> Self {
        Self::Crypto(error.to_string())
    }
}
