//! Who we are and whom we trust: certificate chain, key, and the trust that peers are judged by, swapped as one value.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use mesh_core::{identity::SpiffeId, trust::Trust};
use rustls::{
    sign::{CertifiedKey, SingleCertAndKey},
    time_provider::TimeProvider,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};
use tokio::sync::watch;

use super::{
    TlsError, provider,
    trust::{self, Anchors, Judge},
    verify,
};
use crate::source;

/// A workload certificate with its key and the roots its peers are judged by. Neither shown nor logged: the key.
pub struct Identity {
    id: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<SingleCertAndKey>,
    anchors: Anchors,
    roots: Arc<[CertificateDer<'static>]>,
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
        let anchors = trust::anchors(&roots)?;
        let validity = trust::validity(leaf);
        let key = CertifiedKey::from_der(chain.clone(), key, &provider())
            .map_err(|error| TlsError::Identity(error.to_string()))?;
        Ok(Self { id, chain, key: Arc::new(SingleCertAndKey::from(key)), anchors, roots: roots.into(), validity })
    }

    /// Says when it begins and ends, where that is not what its leaf says.
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
        &self.roots
    }

    /// When it begins and ends.
    pub fn validity(&self) -> Option<(SystemTime, SystemTime)> {
        self.validity
    }

    /// How long it is still good at `now`; zero when over.
    pub fn remaining(&self, now: SystemTime) -> Option<Duration> {
        self.validity.map(|(_, end)| end.duration_since(now).unwrap_or_default())
    }

    pub(super) fn key(&self) -> Arc<SingleCertAndKey> {
        Arc::clone(&self.key)
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

/// The identity and the trust in force: each handshake uses the newest of both, and clones share them.
#[derive(Clone, Debug, Default)]
pub struct LiveIdentity {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    current: ArcSwap<InForce>,
    /// Numbers what is in force, for those who wait for the next.
    changes: watch::Sender<u64>,
    writer: Mutex<()>,
    clock: WallClock,
}

/// What is in force at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct InForce {
    pub(super) identity: Option<Arc<Identity>>,
    /// Which identity it is, counted from 1.
    pub(super) generation: u64,
    pub(super) judge: Arc<Judge>,
    /// Which trust it is, counted from 1.
    pub(super) trust_generation: u64,
}

/// The time by which certificates begin and end.
#[derive(Clone)]
pub(crate) struct WallClock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl WallClock {
    pub(crate) fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WallClock")
    }
}

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.now().duration_since(UNIX_EPOCH).ok()?))
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            current: ArcSwap::default(),
            changes: watch::Sender::new(0),
            writer: Mutex::default(),
            clock: WallClock(Arc::new(source::wall)),
        }
    }
}

impl LiveIdentity {
    /// One that is there from the start.
    pub fn new(identity: Identity) -> Self {
        let live = Self::default();
        live.replace(identity);
        live
    }

    /// Without an identity yet, with a clock of your own to judge certificates by: for tests.
    pub fn with_clock(clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self { shared: Arc::new(Shared { clock: WallClock(Arc::new(clock)), ..Shared::default() }) }
    }

    /// Takes another's place; its roots are those of our trust domain, unless others were told.
    ///
    /// Connections that were made with the one before are closed soon, without harm to what is under way on them.
    pub fn replace(&self, identity: Identity) {
        self.change(|now| {
            let told = Arc::clone(now.judge.told());
            // What was told has been made ready before, so this does not fail.
            if let Ok(judge) = Judge::new(told, identity.id().trust_domain(), Some(Arc::clone(&identity.anchors))) {
                let before = now.identity.as_ref();
                let other = before.is_none_or(|before| {
                    before.roots != identity.roots || before.id.trust_domain() != identity.id.trust_domain()
                });
                now.trust_generation += u64::from(other);
                now.judge = Arc::new(judge);
            }
            now.identity = Some(Arc::new(identity));
            now.generation += 1;
        });
    }

    /// There is none any more, because it expired and could not be renewed; whom we trust stays.
    pub fn withdraw(&self) {
        self.change(|now| now.generation += u64::from(now.identity.take().is_some()));
    }

    /// Puts another trust in force: roots of trust domains, revocation lists, who is denied. The roots of our own domain are
    /// those of the identity unless it has others.
    ///
    /// New handshakes go by it at once; connections that stand with peers that are not believed any more are closed within
    /// seconds, others are left alone. Once there is a revocation list, every certificate below a root must be spoken of by
    /// one that is up to date, and of several lists of one CA the first counts.
    ///
    /// # Errors
    ///
    /// A root or a list that cannot be read; the trust before stays.
    pub fn replace_trust(&self, trust: Arc<Trust>) -> Result<(), TlsError> {
        self.change(|now| {
            if *now.judge.told() == trust {
                return Ok(());
            }
            let own = now.identity.as_ref();
            let domain = own.map(|own| own.id().trust_domain().to_owned()).unwrap_or_default();
            now.judge = Arc::new(Judge::new(trust, &domain, own.map(|own| Arc::clone(&own.anchors)))?);
            now.trust_generation += 1;
            Ok(())
        })
    }

    /// Whom we trust, besides the roots that came with the identity.
    pub fn trust(&self) -> Arc<Trust> {
        Arc::clone(self.shared.current.load().judge.told())
    }

    /// The identity, if there is one.
    pub fn load(&self) -> Option<Arc<Identity>> {
        self.shared.current.load().identity.clone()
    }

    /// How many identities there have been. Connections of an earlier one are not used for new requests.
    pub fn generation(&self) -> u64 {
        self.shared.current.load().generation
    }

    /// How many different trusts there have been.
    pub fn trust_generation(&self) -> u64 {
        self.shared.current.load().trust_generation
    }

    /// Waits until there is one.
    pub async fn ready(&self) -> Arc<Identity> {
        let mut changes = self.changes();
        loop {
            if let Some(identity) = self.load() {
                return identity;
            }
            // The sender lives in `self`, so this cannot fail while we wait.
            let _ = changes.changed().await;
        }
    }

    pub(super) fn in_force(&self) -> Arc<InForce> {
        self.shared.current.load_full()
    }

    /// Tells that something else is in force.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    pub(crate) fn clock(&self) -> WallClock {
        self.shared.clock.clone()
    }

    fn change<R>(&self, change: impl FnOnce(&mut InForce) -> R) -> R {
        let writer = self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = InForce::clone(&self.shared.current.load());
        let result = change(&mut next);
        self.shared.current.store(Arc::new(next));
        drop(writer);
        self.shared.changes.send_modify(|changes| *changes += 1);
        result
    }
}
