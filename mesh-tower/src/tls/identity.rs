//! Who we are: certificate chain, key and trusted roots of one generation, swapped as one value.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use mesh_core::identity::SpiffeId;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, pem::PemObject};
use tokio::sync::watch;

use super::{TlsError, provider, verify};

/// A workload certificate with its key and the roots its peers are judged by. Neither shown nor logged: the key.
pub struct Identity {
    id: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<SingleCertAndKey>,
    roots: Arc<[TrustAnchor<'static>]>,
    root_certificates: Vec<CertificateDer<'static>>,
    validity: Option<(SystemTime, SystemTime)>,
}

impl Identity {
    /// From PEM text: the chain leaf first, its key, and the roots.
    ///
    /// # Errors
    ///
    /// What [`Identity::from_der`] refuses, and text that is not PEM.
    pub fn from_pem(chain: &str, key: &str, roots: &str) -> Result<Self, TlsError> {
        let certificates = |what: &str, text: &str| {
            CertificateDer::pem_slice_iter(text.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| TlsError::Identity(format!("{what}: {error}")))
        };
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|_| TlsError::Identity("the private key is not PEM".to_owned()))?;
        Self::from_der(certificates("certificate chain", chain)?, key, certificates("roots", roots)?)
    }

    /// From DER: the chain leaf first, its key, and the roots.
    ///
    /// # Errors
    ///
    /// A chain without a leaf, a leaf without exactly one SPIFFE id, a key that is not the leaf's, or no usable root.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, TlsError> {
        let leaf = chain.first().ok_or_else(|| TlsError::Identity("the chain is empty".to_owned()))?;
        let id = verify::spiffe_id_of(leaf).map_err(|error| TlsError::Identity(error.to_string()))?;
        let anchors = roots.iter().map(|root| webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned()));
        let anchors: Arc<[TrustAnchor<'static>]> =
            anchors.collect::<Result<_, _>>().map_err(|error| TlsError::Identity(format!("a root: {error}")))?;
        if anchors.is_empty() {
            return Err(TlsError::Identity("there are no roots to trust".to_owned()));
        }
        let key = CertifiedKey::from_der(chain.clone(), key, &provider())
            .map_err(|error| TlsError::Identity(error.to_string()))?;
        Ok(Self {
            id,
            chain,
            key: Arc::new(SingleCertAndKey::from(key)),
            roots: anchors,
            root_certificates: roots,
            validity: None,
        })
    }

    /// Says when the leaf begins and ends, for those who show it; verification reads the certificate itself.
    #[must_use]
    pub fn with_validity(mut self, not_before: SystemTime, not_after: SystemTime) -> Self {
        self.validity = Some((not_before, not_after));
        self
    }

    /// Who.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The trusted roots.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.root_certificates
    }

    /// When it begins and ends, if that was said.
    pub fn validity(&self) -> Option<(SystemTime, SystemTime)> {
        self.validity
    }

    /// How long it is still good at `now`; zero when over, `None` when not said.
    pub fn remaining(&self, now: SystemTime) -> Option<Duration> {
        self.validity.map(|(_, end)| end.duration_since(now).unwrap_or_default())
    }

    pub(super) fn key(&self) -> Arc<SingleCertAndKey> {
        Arc::clone(&self.key)
    }

    pub(super) fn anchors(&self) -> Arc<[TrustAnchor<'static>]> {
        Arc::clone(&self.roots)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id.to_string())
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

/// The identity in force: each handshake uses the newest, and clones share it.
#[derive(Clone, Debug, Default)]
pub struct LiveIdentity {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    current: ArcSwapOption<Identity>,
    generation: watch::Sender<u64>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { current: ArcSwapOption::empty(), generation: watch::Sender::new(0) }
    }
}

impl LiveIdentity {
    /// One that is there from the start.
    pub fn new(identity: Identity) -> Self {
        let live = Self::default();
        live.replace(identity);
        live
    }

    /// Takes another's place; connections that stand stay as they are.
    pub fn replace(&self, identity: Identity) {
        self.shared.current.store(Some(Arc::new(identity)));
        self.shared.generation.send_modify(|generation| *generation += 1);
    }

    /// The identity, if there is one yet.
    pub fn load(&self) -> Option<Arc<Identity>> {
        self.shared.current.load_full()
    }

    /// How many there have been. Connections of an older generation are retired when they fall idle.
    pub fn generation(&self) -> u64 {
        *self.shared.generation.borrow()
    }

    /// Waits until there is one.
    pub async fn ready(&self) -> Arc<Identity> {
        let mut changes = self.shared.generation.subscribe();
        loop {
            if let Some(identity) = self.load() {
                return identity;
            }
            // The sender lives in `self`, so this cannot fail while we wait.
            let _ = changes.changed().await;
        }
    }
}
