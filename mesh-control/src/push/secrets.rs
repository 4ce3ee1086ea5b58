//! The certificate of a member that cannot ask for one: made for the identity its token proved, sent on its own stream.
//!
//! Our clients make a signing request and keep their key to themselves. An Envoy subscribes to the secrets that its TLS
//! contexts name, and where Istio puts an agent beside it to answer, here the control plane does. The key is kept for as long as the
//! stream lasts and shown to nobody else.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use mesh_xds::{ads::ResourceSet, translate};

use crate::{
    ca::{Ca, CaError, ServiceAccount},
    registry::Registered,
};

/// A certificate with its key and the roots, and when to make the next.
pub(super) struct Secrets {
    account: ServiceAccount,
    chain: String,
    key: String,
    roots: String,
    due: SystemTime,
}

impl Secrets {
    /// The first of a stream whose token proved `workload`.
    pub(super) fn issue(ca: &Ca, workload: &Registered, now: SystemTime) -> Result<Self, CaError> {
        let account = ServiceAccount::new(&workload.namespace, &workload.service_account)?;
        let (chain, key) = ca.issue(&account, now)?;
        Ok(Self { account, chain, key, roots: ca.root_pem().to_owned(), due: due(now) })
    }

    /// Half of its life is over.
    pub(super) fn is_due(&self, now: SystemTime) -> bool {
        self.due <= now
    }

    /// A new key with a new certificate; on an error the old ones stay, until the next try a minute later.
    pub(super) fn renew(&mut self, ca: &Ca, now: SystemTime) -> Result<(), CaError> {
        self.due = now + Duration::from_secs(60);
        (self.chain, self.key) = ca.issue(&self.account, now)?;
        self.due = due(now);
        Ok(())
    }

    /// Puts them among the resources of the stream.
    pub(super) fn add(&self, set: &mut ResourceSet) {
        translate::encode_secrets(&self.chain, &self.key, &self.roots, set);
    }
}

fn due(now: SystemTime) -> SystemTime {
    now + Ca::DEFAULT_TTL / 2
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
    use mesh_xds::ads::TypeUrl;

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
            assert_eq!(set.iter(TypeUrl::Secret).map(|(name, _)| &**name).collect::<Vec<_>>(), ["ROOTCA", "default"]);
            set
        };
        let first = sent(&secrets);
        let half = now + Ca::DEFAULT_TTL / 2;
        assert!(!secrets.is_due(half - Duration::from_secs(1)) && secrets.is_due(half));
        secrets.renew(&ca, half).unwrap();
        assert!(!secrets.is_due(half));
        let second = sent(&secrets);
        assert_eq!(first.get(TypeUrl::Secret, "ROOTCA"), second.get(TypeUrl::Secret, "ROOTCA"));
        assert_ne!(first.get(TypeUrl::Secret, "default"), second.get(TypeUrl::Secret, "default"));
        assert!(!format!("{secrets:?}").contains("PRIVATE"));
    }
}
