//! What members are to trust, and the certificate of one that cannot ask for it: made for the identity its token proved, sent on its
//! own stream.
//!
//! Our clients make a signing request and keep their key to themselves. An Envoy subscribes to the secrets that its TLS
//! contexts name, and where Istio puts an agent beside it to answer, here the control plane does. The key is kept for as long as the
//! stream lasts and shown to nobody else.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime},
};

use mesh_xds::{
    ads::{ResourceSet, TypeUrl},
    server::ConnectionId,
    translate::{self, OWN, ROOTS, TRUST},
};
use zeroize::Zeroizing;

use super::Push;
use crate::{
    ca::{Ca, CaError, ServiceAccount},
    registry::Registered,
};

/// A certificate with its key, and when to make the next.
pub(super) struct Secrets {
    account: ServiceAccount,
    chain: String,
    key: Zeroizing<String>,
    /// The name of the key that signed it.
    issuer: Option<Vec<u8>>,
    due: SystemTime,
}

impl Secrets {
    /// The first of a stream whose token proved `workload`.
    pub(super) fn issue(ca: &Ca, workload: &Registered, now: SystemTime) -> Result<Self, CaError> {
        let account = ServiceAccount::new(&workload.namespace, &workload.service_account)?;
        let issuer = ca.told().borrow().issuer.clone();
        let (chain, key) = ca.issue(&account, None, now)?;
        Ok(Self { account, chain, key, issuer, due: due(now) })
    }

    /// Half of its life is over.
    pub(super) fn is_due(&self, now: SystemTime) -> bool {
        self.due <= now
    }

    /// A new key with a new certificate; on an error the old ones stay, until the next try a minute later.
    pub(super) fn renew(&mut self, ca: &Ca, now: SystemTime) -> Result<(), CaError> {
        self.due = now + Duration::from_secs(60);
        let issuer = ca.told().borrow().issuer.clone();
        (self.chain, self.key) = ca.issue(&self.account, None, now)?;
        self.issuer = issuer;
        self.due = due(now);
        Ok(())
    }

    /// Puts them among the resources of the stream.
    pub(super) fn add(&self, set: &mut ResourceSet) {
        translate::encode_certificate(&self.chain, &self.key, set);
    }
}

fn due(now: SystemTime) -> SystemTime {
    now + Ca::DEFAULT_TTL / 2
}

/// What everybody is to trust, as resources.
pub(super) fn trust(ca: &Ca) -> Arc<ResourceSet> {
    let mut set = ResourceSet::default();
    translate::encode_told(&ca.told().borrow(), &mut set);
    Arc::new(set)
}

/// Puts what is to be trusted into a view, with the certificate of a member that cannot ask for one.
pub(super) fn put(trust: &ResourceSet, secrets: Option<&Secrets>, view: &mut Arc<ResourceSet>) {
    let view = Arc::make_mut(view);
    // What a gateway is given by name is no part of what all are told.
    let told = |name: &str| [OWN, ROOTS, TRUST].contains(&name);
    let given: Vec<_> = view.iter(TypeUrl::Secret).filter(|(name, _)| !told(name)).collect();
    let given: Vec<_> = given.into_iter().map(|(name, secret)| (name.clone(), secret.clone())).collect();
    view.share(TypeUrl::Secret, trust);
    for (name, secret) in given {
        view.insert_resource(TypeUrl::Secret, name, secret);
    }
    if let Some(secrets) = secrets {
        secrets.add(view);
    }
}

impl Push {
    /// Tells everybody what is to be trusted now. Those who were let in before and are not any more lose their streams; those whose
    /// certificate another key has signed get a new one.
    pub(super) fn tell_trust(&self) {
        let trust = trust(&self.ca);
        let mut connections = self.lock();
        *self.trust.lock().unwrap_or_else(PoisonError::into_inner) = trust.clone();
        let Some(open) = connections.as_mut() else { return };
        let denied: Vec<ConnectionId> =
            open.iter().filter(|(_, one)| self.ca.denies(&one.identity)).map(|(id, _)| *id).collect();
        for connection in denied.iter().filter_map(|id| open.remove(id)) {
            let node = &connection.node;
            tracing::warn!(
                workload = node.name,
                namespace = node.namespace,
                "its identity was revoked; its stream is ended"
            );
            self.state.disconnected(&node.namespace, &node.name);
        }
        let (now, issuer) = (SystemTime::now(), self.ca.told().borrow().issuer.clone());
        for connection in open.values_mut() {
            if let Some(secrets) = connection.secrets.as_mut().filter(|secrets| secrets.issuer != issuer)
                && let Err(error) = secrets.renew(&self.ca, now)
            {
                tracing::warn!(workload = connection.node.name, %error, "a certificate could not be renewed");
            }
            let secrets = connection.secrets.as_ref();
            connection.view.send_modify(|view| put(&trust, secrets, view));
        }
    }

    /// New certificates for those whose half is over, as our own clients ask for them.
    pub(super) fn renew_secrets(&self) {
        let now = SystemTime::now();
        for connection in self.lock().iter_mut().flat_map(|open| open.values_mut()) {
            let Some(secrets) = connection.secrets.as_mut().filter(|secrets| secrets.is_due(now)) else { continue };
            if let Err(error) = secrets.renew(&self.ca, now) {
                tracing::warn!(workload = connection.node.name, %error, "a certificate could not be renewed");
                continue;
            }
            let secrets = &*secrets;
            connection.view.send_modify(|view| secrets.add(Arc::make_mut(view)));
        }
    }

    /// The identities of those connected, and how many streams each has.
    pub(crate) fn identities(&self) -> BTreeMap<String, usize> {
        let mut identities = BTreeMap::new();
        for connection in self.lock().iter().flat_map(|open| open.values()) {
            *identities.entry(connection.identity.clone()).or_default() += 1;
        }
        identities
    }
}

/// Keys are not shown.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("account", &self.account).field("due", &self.due).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use mesh_core::config::{Labels, Locality};

    use super::*;

    /// CT5: who proved an identity gets a certificate for it, and a new one at half of its life; the key is not printed.
    #[test]
    fn a_certificate_is_made_and_made_anew() {
        let ca = Ca::in_memory("cluster.local").unwrap();
        let workload = Registered {
            name: "gateway".into(),
            namespace: "default".into(),
            workload: "gateway".into(),
            service_account: "gateway".into(),
            address: [127, 0, 0, 1].into(),
            ports: Vec::new(),
            labels: Labels::new(),
            locality: Locality::default(),
            gateway: true,
            group: String::new(),
            weight: 0,
            unhealthy: None,
            admin: None,
            since: 0,
            lost: None,
        };
        let now = SystemTime::now();
        let mut secrets = Secrets::issue(&ca, &workload, now).unwrap();
        let sent = |secrets: &Secrets| {
            let mut set = ResourceSet::default();
            secrets.add(&mut set);
            assert_eq!(set.iter(TypeUrl::Secret).map(|(name, _)| &**name).collect::<Vec<_>>(), ["default"]);
            set
        };
        let first = sent(&secrets);
        let half = now + Ca::DEFAULT_TTL / 2;
        assert!(!secrets.is_due(half - Duration::from_secs(1)) && secrets.is_due(half));
        secrets.renew(&ca, half).unwrap();
        assert!(!secrets.is_due(half));
        let second = sent(&secrets);
        assert_ne!(first.get(TypeUrl::Secret, "default"), second.get(TypeUrl::Secret, "default"));
        assert!(!format!("{secrets:?}").contains("PRIVATE"));
    }
}
