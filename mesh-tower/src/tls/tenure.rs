//! How long a connection may stand: no longer than the certificates it was made with, nor than the trust in the peer.
//!
//! TLS proves who is there once, at the beginning. Each connection between workloads therefore has a [`Tenure`], which
//! judges the peer again when the trust changes, and says when its certificate or ours is over. What is to be done then is
//! up to whoever holds the connection: the pool (`pool/guard.rs`) and the server.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_core::{config::StringMatch, identity::SpiffeId};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::CertificateDer;
use tokio::{sync::watch, time::sleep};
use webpki::KeyUsage;

use super::{LiveIdentity, Reason, Refusal, TlsError, provider, trust, verify};

/// Wall time is looked at this often, since it may jump and timers do not follow it.
const LOOK: Duration = Duration::from_secs(5);

/// Why a connection's time is over.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// We have another certificate; the one it was made with is good still.
    Rotated,
    /// Ours or the peer's is over.
    Expired,
    /// The peer would not be let in any more.
    Refused(Reason, String),
}

impl End {
    /// In one word.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Rotated => "rotated",
            Self::Expired => Reason::Expired.as_str(),
            Self::Refused(reason, _) => reason.as_str(),
        }
    }
}

/// One connection's.
#[derive(Debug)]
pub(crate) struct Tenure {
    identity: LiveIdentity,
    changes: watch::Receiver<u64>,
    peer: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    usage: KeyUsage,
    expected: Arc<[StringMatch]>,
    generation: u64,
    trust_generation: u64,
    until: Option<SystemTime>,
    rotated: bool,
}

impl Tenure {
    /// Of a connection that has just been made with the identity and the trust of these generations.
    pub(super) fn new(
        identity: &LiveIdentity,
        chain: &[CertificateDer<'static>],
        usage: KeyUsage,
        expected: Arc<[StringMatch]>,
        (generation, trust_generation): (u64, u64),
    ) -> Result<Self, TlsError> {
        let leaf = chain.first().ok_or(Refusal::Unreadable)?;
        let peer = verify::spiffe_id_of(leaf)?;
        let (_, theirs) = trust::validity(leaf).ok_or(Refusal::Unreadable)?;
        let ours = identity.load().filter(|_| identity.generation() == generation);
        let ours = ours.and_then(|own| own.validity()).map(|(_, end)| end);
        Ok(Self {
            identity: identity.clone(),
            changes: identity.changes(),
            peer,
            chain: chain.to_vec(),
            usage,
            expected,
            generation,
            trust_generation,
            until: Some(ours.map_or(theirs, |ours| ours.min(theirs))),
            rotated: false,
        })
    }

    /// Who is at the other end.
    pub(crate) fn peer(&self) -> &SpiffeId {
        &self.peer
    }

    /// Waits for what ends it. After [`End::Rotated`], which comes once, it can be asked again.
    pub(crate) async fn end(&mut self) -> End {
        loop {
            self.changes.borrow_and_update();
            if let Err(refusal) = self.judge() {
                let error = TlsError::from(refusal);
                return End::Refused(error.reason(), error.to_string());
            }
            if !self.rotated && self.identity.generation() != self.generation {
                self.rotated = true;
                return End::Rotated;
            }
            let now = self.identity.clock().now();
            let left = self.until.map(|until| until.duration_since(now).unwrap_or_default());
            if left.is_some_and(|left| left.is_zero()) {
                return End::Expired;
            }
            tokio::select! {
                // The sender lives in `identity`.
                _ = self.changes.changed() => {}
                () = sleep(left.map_or(LOOK, |left| left.min(LOOK))) => {}
            }
        }
    }

    /// Would the peer be let in now? Asked once for each trust.
    fn judge(&mut self) -> Result<(), Refusal> {
        let now = self.identity.in_force();
        if now.trust_generation == self.trust_generation {
            return Ok(());
        }
        self.trust_generation = now.trust_generation;
        let (Some((leaf, intermediates)), Some(time)) =
            (self.chain.split_first(), self.identity.clock().current_time())
        else {
            return Err(Refusal::Unreadable);
        };
        let algorithms = provider().signature_verification_algorithms;
        let verdict = now.judge.judge(leaf, intermediates, &algorithms, time, self.usage)?;
        verify::expect(verdict.id, &self.expected).map(|_| ())
    }
}
