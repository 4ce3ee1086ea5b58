//! Certificates and roots of files, for servers outside the mesh: what the cluster's context names, and the system's roots.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use mesh_core::config::{CertificateFiles, UpstreamTls};
use rustls::{
    RootCertStore,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{TlsError, provider};

/// When the files that a context names were last written; other times mean that they are to be read again.
pub(super) type Stamp = [Option<SystemTime>; 3];

/// Of the files of a context.
pub(super) fn stamp(tls: &UpstreamTls) -> Stamp {
    let of = |file: Option<&String>| std::fs::metadata(file?).and_then(|it| it.modified()).ok();
    let certificate = tls.certificate.as_ref();
    [of(certificate.map(|it| &it.chain)), of(certificate.map(|it| &it.key)), of(tls.roots.as_ref())]
}

/// Our certificate and its key.
pub(super) fn certificate(files: &CertificateFiles) -> Result<Arc<SingleCertAndKey>, TlsError> {
    let CertificateFiles { chain, key } = files;
    let wrong = |file: &str, error: &dyn std::fmt::Display| TlsError::Identity(format!("{file}: {error}"));
    let certificates = CertificateDer::pem_file_iter(chain).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(|error| wrong(chain, &error))?;
    let own = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
    let pair = CertifiedKey::from_der(certificates, own, &provider()).map_err(|error| wrong(chain, &error))?;
    Ok(Arc::new(SingleCertAndKey::from(pair)))
}

/// The roots of a file, all of which must be readable; or the system's.
pub(super) fn roots(file: Option<&String>) -> Result<Arc<RootCertStore>, TlsError> {
    let Some(file) = file else { return system_roots() };
    let wrong = |error: &dyn std::fmt::Display| TlsError::Identity(format!("{file}: {error}"));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))? {
        roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
    }
    if roots.is_empty() {
        return Err(wrong(&"there are no roots to trust"));
    }
    Ok(Arc::new(roots))
}

/// The system's roots: `SSL_CERT_FILE`, else the usual places, read once.
fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    static ROOTS: OnceLock<Option<Arc<RootCertStore>>> = OnceLock::new();
    ROOTS.get_or_init(|| read_system_roots().map(Arc::new)).clone().ok_or(TlsError::NoSystemRoots)
}

fn read_system_roots() -> Option<RootCertStore> {
    let usual = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let files = named.map_or_else(|| usual.into_iter().map(PathBuf::from).collect(), |file| vec![file]);
    files.into_iter().find_map(|file| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_file_iter(file).ok()?.flatten());
        (!roots.is_empty()).then_some(roots)
    })
}
