//! Drivers: get this process's certificate, keep it fresh, and publish it with what peers are to be judged by.
//!
//! | source | configured by | who renews |
//! |---|---|---|
//! | signing request to the mesh's CA | `mesh.ca`, else the control plane over TLS with a token | we, at half its life |
//! | an agent's SDS over a Unix socket | `mesh.sds` | the agent |
//! | the SPIFFE Workload API | `mesh.workload_api`, or the variable `SPIFFE_ENDPOINT_SOCKET` | the agent |
//! | files | `certificate_providers.default` | whoever writes them |
//!
//! The first of these that is named is used; the control plane as the CA is what remains where none is, before files. Whatever goes
//! wrong, the last good certificate stays until it expires, after which there is none: a server without identity refuses, it
//! does not fall back. Keys exist in memory only, are wiped when dropped, and are never printed.

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_core::trust::Trust;
use rand::RngCore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::{
    ads::back_off::spread,
    bootstrap::{Bootstrap, Ca, Files},
    task::Task,
    translate::Told,
};

mod csr;
mod files;
mod outlet;
mod sds;
mod workload_api;
mod x509;

pub use outlet::Standing;
pub use workload_api::HEADER;
pub use x509::pem;

use csr::Tellings;
use outlet::Outlet;

/// Wall time is looked at this often, since it may jump and timers do not follow it.
const LOOK: Duration = Duration::from_secs(30);

/// What this process proves itself with, and what it believes others by.
#[derive(Eq, PartialEq)]
pub struct Identity {
    /// The certificate, followed by intermediates; without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key of the first certificate. It exists in memory only.
    pub key: Zeroizing<PrivateKeyDer<'static>>,
    /// The roots peers are verified against.
    pub roots: Vec<CertificateDer<'static>>,
    /// The URI name in the certificate: `spiffe://cluster.local/ns/default/sa/bookinfo-reviews`.
    pub spiffe_id: String,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
    /// The name of the key that signed it, if the certificate has it.
    pub issuer: Option<Vec<u8>>,
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

impl Identity {
    /// When to ask for the next one: at half its life, a hundredth of it earlier or later, so that processes that began together do
    /// not all ask at once. Source: Istio `SECRET_GRACE_PERIOD_RATIO` 0.5 and its jitter 0.01.
    pub fn renew_at(&self, rng: &mut impl RngCore) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + spread(life.as_secs_f64() / 2.0, 0.02, rng)
    }
}

/// Where certificates come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// Signing requests to a CA.
    Ca(Ca),
    /// An agent that speaks Envoy's SDS behind this Unix socket.
    Sds(PathBuf),
    /// The SPIFFE Workload API behind this Unix socket.
    WorkloadApi(PathBuf),
    /// Files.
    Files(Files),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ca(ca) => write!(f, "ca {}", ca.server.address),
            Self::Sds(socket) => write!(f, "sds {}", socket.display()),
            Self::WorkloadApi(socket) => write!(f, "workload api {}", socket.display()),
            Self::Files(_) => f.write_str("files"),
        }
    }
}

/// Keeps an [`Identity`] fresh for as long as it lives.
#[derive(Debug)]
pub struct CertSource {
    outlet: Outlet,
    told: Option<Tellings>,
    _tasks: Vec<Task>,
}

impl CertSource {
    /// Starts getting certificates from where `bootstrap` says. Must be called within a tokio runtime.
    ///
    /// Where it names nothing, there is no identity: the channel stays at `None` for ever.
    pub fn start(bootstrap: Arc<Bootstrap>) -> Self {
        Self::begin(bootstrap, None)
    }

    /// The same, with what the control plane says is to be trusted: that wins over what the source itself knows, and when the control
    /// plane says that another key signs, a new certificate is asked for.
    pub fn start_with(bootstrap: Arc<Bootstrap>, told: watch::Receiver<Option<Arc<Told>>>) -> Self {
        Self::begin(bootstrap, Some(told))
    }

    fn begin(bootstrap: Arc<Bootstrap>, told: Option<Tellings>) -> Self {
        let origin = bootstrap.identity_origin();
        let outlet = Outlet::new(origin.as_ref().map(ToString::to_string).unwrap_or_default());
        let (node, to) = (bootstrap.node.clone(), outlet.clone());
        let task = origin.map(|origin| match origin {
            Origin::Ca(ca) => Task::spawn(csr::keep(ca, node, told.clone(), to)),
            Origin::Sds(socket) => Task::spawn(sds::keep(socket, node, to)),
            Origin::WorkloadApi(socket) => Task::spawn(workload_api::keep(socket, to)),
            Origin::Files(files) => Task::spawn(files::keep(files, to)),
        });
        let mut tasks: Vec<Task> = task.into_iter().collect();
        if !tasks.is_empty() {
            tasks.push(Task::spawn(outlet.clone().expire()));
        }
        Self { outlet, told, _tasks: tasks }
    }

    /// The identity in force; `None` before the first and after an expiry that could not be helped.
    pub fn identity(&self) -> watch::Receiver<Option<Arc<Identity>>> {
        self.outlet.identity.subscribe()
    }

    /// All that is in force, as it changes. What the control plane says is to be trusted wins over what the source itself knows.
    pub fn watch(&self) -> Watch {
        Watch {
            identity: self.identity(),
            trust: self.outlet.trust.subscribe(),
            told: self.told.clone(),
            standing: self.standing(),
            begun: false,
        }
    }

    /// Why the last attempt failed, if it did.
    pub fn error(&self) -> Option<String> {
        self.outlet.standing.borrow().error.clone()
    }

    /// How it stands, as that changes.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.outlet.standing.subscribe()
    }
}

/// What is in force of one source, as it changes.
#[derive(Debug)]
pub struct Watch {
    identity: watch::Receiver<Option<Arc<Identity>>>,
    trust: watch::Receiver<Option<Arc<Trust>>>,
    told: Option<Tellings>,
    standing: watch::Receiver<Standing>,
    begun: bool,
}

/// What is in force at a moment.
#[derive(Clone, Debug)]
pub struct InForce {
    /// The identity; `None` before the first and after an expiry that could not be helped.
    pub identity: Option<Arc<Identity>>,
    /// What peers are to be judged by; `None` when nothing but the identity's roots is known.
    pub trust: Option<Arc<Trust>>,
    /// How the source stands.
    pub standing: Standing,
}

impl InForce {
    /// The roots of our own trust domain: those of the trust, else those that came with the certificate.
    pub fn own_roots(&self, identity: &Identity) -> Vec<CertificateDer<'static>> {
        let domain = identity.spiffe_id.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next());
        let roots = domain.and_then(|domain| self.trust.as_ref()?.bundles.get(domain));
        roots.map_or_else(
            || identity.roots.clone(),
            |roots| roots.iter().map(|root| CertificateDer::from(root.to_vec())).collect(),
        )
    }
}

impl Watch {
    /// What is in force: the first time at once, then after each change. `None` when the source is gone.
    pub async fn next(&mut self) -> Option<InForce> {
        if std::mem::replace(&mut self.begun, true) {
            let told = csr::changed(&mut self.told);
            tokio::select! {
                changed = self.identity.changed() => changed.ok()?,
                changed = self.trust.changed() => changed.ok()?,
                changed = self.standing.changed() => changed.ok()?,
                () = told => {}
            }
        }
        let own = self.trust.borrow_and_update().clone();
        let told = self.told.as_mut().and_then(|told| told.borrow_and_update().clone());
        Some(InForce {
            identity: self.identity.borrow_and_update().clone(),
            trust: told.map(|told| Arc::new(told.trust.clone())).or(own),
            standing: self.standing.borrow_and_update().clone(),
        })
    }
}
