//! The certificate of the control plane's own port, made anew when another authority signs.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use rcgen::SanType;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{
    CaError, SERVER_NAME,
    authority::{Authority, ROOT_LIFETIME},
    key::SecretKey,
    provider,
};

/// What the port shows at the moment.
#[derive(Debug, Default)]
pub(super) struct ServerCertificate {
    shown: Mutex<Shown>,
}

#[derive(Debug, Default)]
struct Shown {
    key: Option<Arc<CertifiedKey>>,
    /// Where it listens; `None` before it does.
    address: Option<IpAddr>,
}

impl ServerCertificate {
    /// Begins to show one for `address`.
    pub(super) fn begin(&self, address: IpAddr, authority: &Authority, now: SystemTime) -> Result<(), CaError> {
        self.lock().address = Some(address);
        self.renew(authority, now)
    }

    /// Shows one of this authority from now on, if any is shown.
    pub(super) fn renew(&self, authority: &Authority, now: SystemTime) -> Result<(), CaError> {
        let Some(address) = self.lock().address else { return Ok(()) };
        let mut names = Vec::new();
        for name in [SERVER_NAME, "istiod.istio-system.svc.cluster.local", "localhost"] {
            names.push(SanType::DnsName(name.try_into().map_err(CaError::crypto)?));
        }
        let mut addresses = vec![IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        if !address.is_unspecified() && !addresses.contains(&address) {
            addresses.push(address);
        }
        names.extend(addresses.into_iter().map(SanType::IpAddress));
        let key = SecretKey::generate()?;
        let (leaf, _) = authority.sign(&key, names, ROOT_LIFETIME, now)?;
        let chain = std::iter::once(leaf.der()).chain(authority.behind()).cloned().collect();
        let key = CertifiedKey::from_der(chain, key.der(), &provider()).map_err(CaError::crypto)?;
        self.lock().key = Some(Arc::new(key));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.lock().key.clone()
    }
}
