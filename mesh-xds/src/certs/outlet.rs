//! Where a source of certificates puts what it has, and where whoever needs it looks.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_core::trust::Trust;
use tokio::sync::watch;

use super::{Identity, LOOK};

/// What is published, as it changes.
#[derive(Clone, Debug)]
pub(super) struct Outlet {
    pub(super) identity: watch::Sender<Option<Arc<Identity>>>,
    pub(super) trust: watch::Sender<Option<Arc<Trust>>>,
    pub(super) standing: watch::Sender<Standing>,
}

/// How a source of certificates stands.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Standing {
    /// Where certificates come from: `ca 127.0.0.1:15012`, `sds /run/socket`.
    pub source: String,
    /// Why the last attempt failed, if it did.
    pub error: Option<String>,
    /// How many attempts have failed since the last that did not.
    pub failures: u32,
    /// How many certificates there have been.
    pub obtained: u64,
    /// When the next is asked for; `None` where they come by themselves.
    pub renews: Option<SystemTime>,
}

impl Outlet {
    pub(super) fn new(source: String) -> Self {
        let standing = Standing { source, ..Standing::default() };
        Self {
            identity: watch::Sender::new(None),
            trust: watch::Sender::new(None),
            standing: watch::Sender::new(standing),
        }
    }

    /// Puts an identity in force. One that is as the one before is not told again.
    pub(super) fn publish(&self, identity: Identity) {
        self.identity.send_if_modified(|current| {
            if current.as_ref().is_some_and(|current| **current == identity) {
                return false;
            }
            *current = Some(Arc::new(identity));
            true
        });
        self.standing.send_modify(|standing| {
            standing.error = None;
            standing.failures = 0;
            standing.obtained += 1;
        });
    }

    /// Puts another trust in force.
    pub(super) fn trust(&self, trust: Trust) {
        self.trust.send_if_modified(|current| {
            if current.as_ref().is_some_and(|current| **current == trust) {
                return false;
            }
            *current = Some(Arc::new(trust));
            true
        });
    }

    /// Tells that an attempt failed, and how many in a row have. What is in force stays.
    pub(super) fn complain(&self, why: String) -> u32 {
        let source = self.standing.borrow().source.clone();
        tracing::warn!(%source, %why, "no certificate");
        let mut failures = 0;
        self.standing.send_modify(|standing| {
            standing.error = Some(why);
            standing.failures = standing.failures.saturating_add(1);
            failures = standing.failures;
        });
        failures
    }

    /// Withdraws what has expired, for as long as it runs.
    pub(super) async fn expire(self) {
        let mut identities = self.identity.subscribe();
        loop {
            let now = SystemTime::now();
            let expiry = identities.borrow_and_update().as_ref().map(|identity| identity.not_after);
            if expiry.is_some_and(|expiry| expiry <= now) {
                tracing::error!("the certificate has expired and could not be renewed");
                self.identity.send_replace(None);
                continue;
            }
            // Wall time is looked at now and then, since it may jump and timers do not follow it.
            let left = expiry.and_then(|expiry| expiry.duration_since(now).ok()).unwrap_or(LOOK);
            tokio::select! {
                _ = identities.changed() => {}
                () = tokio::time::sleep(left.clamp(Duration::from_millis(1), LOOK)) => {}
            }
        }
    }
}
