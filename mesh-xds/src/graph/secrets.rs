//! The certificates and roots that a gateway is given by name, and the chains that show them or judge by them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::config::{GatewayCertificate, GatewayChain, GatewayRoots, KeyPair, Name, RootCertificates};

use crate::translate::{Listener, Secret};

/// What has come so far.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    pairs: BTreeMap<Name, Arc<KeyPair>>,
    roots: BTreeMap<Name, Arc<RootCertificates>>,
}

impl Secrets {
    /// Takes one in; is there anything new in it?
    pub(super) fn put(&mut self, name: Name, secret: &Secret) -> bool {
        match secret {
            Secret::Certificate(certificate) => {
                let pair = Arc::new(certificate.to_pair());
                self.pairs.insert(name, pair.clone()).is_none_or(|before| before != pair)
            }
            Secret::Validation(validation) => {
                let (roots, crls) = (validation.roots.clone(), validation.crls.clone());
                let roots = Arc::new(RootCertificates { roots, crls });
                self.roots.insert(name, roots.clone()).is_none_or(|before| before != roots)
            }
            Secret::Told(_) => false,
        }
    }

    /// Forgets what nobody names any more.
    pub(super) fn retain(&mut self, wanted: &BTreeSet<Name>) {
        self.pairs.retain(|name, _| wanted.contains(name));
        self.roots.retain(|name, _| wanted.contains(name));
    }

    /// The chain with what has come of what it names.
    pub(super) fn given(&self, chain: &Arc<GatewayChain>) -> Arc<GatewayChain> {
        let mut chain = chain.clone();
        if named(&chain).next().is_some()
            && let Some(tls) = &mut Arc::make_mut(&mut chain).tls
        {
            let tls = Arc::make_mut(tls);
            for certificate in &mut tls.certificates {
                if let GatewayCertificate::Named(name, pair) = certificate {
                    *pair = self.pairs.get(name).cloned();
                }
            }
            if let Some(GatewayRoots::Named(name, known)) = &mut tls.roots {
                *known = self.roots.get(name).cloned();
            }
        }
        chain
    }
}

/// What a listener names.
pub(super) fn names(listener: &Listener) -> impl Iterator<Item = &Name> {
    let parts = match listener {
        Listener::Gateway(gateway) => gateway.parts.as_slice(),
        _ => &[],
    };
    parts.iter().flat_map(|part| named(&part.chain))
}

fn named(chain: &GatewayChain) -> impl Iterator<Item = &Name> {
    let certificates = chain.tls.iter().flat_map(|tls| &tls.certificates).filter_map(|one| match one {
        GatewayCertificate::Named(name, _) => Some(name),
        _ => None,
    });
    let roots = chain.tls.iter().filter_map(|tls| match &tls.roots {
        Some(GatewayRoots::Named(name, _)) => Some(name),
        _ => None,
    });
    certificates.chain(roots)
}
