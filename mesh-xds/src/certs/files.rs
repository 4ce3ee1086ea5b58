//! Driver: an identity from files that somebody else renews, as Istio's agent or a SPIFFE helper does; read again every so
//! often. Source: gRFC A29, A65 `file_watcher`.
//!
//! A file that cannot be read or does not fit the others changes nothing: what was read before stays until it expires, as
//! with a CA that cannot be reached.

use std::{path::Path, sync::Arc, time::SystemTime};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::sync::watch;

use super::{Identity, parse, system_time, uri_names};
use crate::bootstrap::Files;

/// Reads the files now and then, for as long as somebody wants the identity.
pub(super) async fn keep(
    files: Files,
    publish: watch::Sender<Option<Arc<Identity>>>,
    tell: watch::Sender<Option<String>>,
) {
    let mut before: Option<Contents> = None;
    loop {
        match read(&files).await {
            // Unchanged files are not parsed again, and nobody is told.
            Ok(contents) if before.as_ref() == Some(&contents) => {}
            Ok(contents) => match contents.identity(SystemTime::now()) {
                Ok(identity) => {
                    publish.send_replace(Some(Arc::new(identity)));
                    tell.send_replace(None);
                    before = Some(contents);
                }
                Err(why) => complain(&tell, why),
            },
            Err(why) => complain(&tell, why),
        }
        let expired = publish.borrow().as_ref().is_some_and(|identity| identity.not_after <= SystemTime::now());
        if expired {
            tracing::error!("the certificate in the files has expired");
            publish.send_replace(None);
        }
        tokio::time::sleep(files.refresh).await;
    }
}

fn complain(tell: &watch::Sender<Option<String>>, why: String) {
    tracing::warn!(%why, "no certificate");
    tell.send_replace(Some(why));
}

#[derive(Eq, PartialEq)]
struct Contents {
    chain: Vec<u8>,
    key: Vec<u8>,
    roots: Vec<u8>,
}

async fn read(files: &Files) -> Result<Contents, String> {
    let (Some((chain, key)), Some(roots)) = (&files.identity, &files.roots) else {
        return Err("an identity needs certificate_file, private_key_file and ca_certificate_file".to_owned());
    };
    Ok(Contents { chain: file(chain).await?, key: file(key).await?, roots: file(roots).await? })
}

async fn file(path: &Path) -> Result<Vec<u8>, String> {
    tokio::fs::read(path).await.map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

impl Contents {
    fn identity(&self, now: SystemTime) -> Result<Identity, String> {
        let chain = certificates(&self.chain)?;
        let roots = certificates(&self.roots)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| format!("the key is not PEM: {error:?}"))?;
        let (Some(first), false) = (chain.first(), roots.is_empty()) else {
            return Err("the files must hold a certificate and a root".to_owned());
        };
        let leaf = parse(first)?;
        let spiffe_id = uri_names(&leaf).first().map(|name| (*name).to_owned()).unwrap_or_default();
        let not_before = system_time(leaf.validity().not_before);
        let not_after = system_time(leaf.validity().not_after);
        if not_after <= now {
            return Err("the certificate has already expired".to_owned());
        }
        Ok(Identity { chain, key, roots, spiffe_id, not_before, not_after })
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    certificates.map_err(|error| format!("the certificates are not PEM: {error:?}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn write(directory: &Path, id: &str) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        let pem = params.self_signed(&key).unwrap().pem();
        std::fs::write(directory.join("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(directory.join("root.pem"), &pem).unwrap();
        std::fs::write(directory.join("chain.pem"), pem).unwrap();
    }

    /// XD23: the identity comes from the files, follows them, and stays when they cannot be used.
    #[tokio::test(start_paused = true)]
    async fn identity_follows_the_files() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "spiffe://a/ns/x/sa/first");
        let path = |name: &str| directory.path().join(name);
        let files = Files {
            identity: Some((path("chain.pem"), path("key.pem"))),
            roots: Some(path("root.pem")),
            refresh: Duration::from_secs(600),
        };
        let (publish, mut identity) = watch::channel(None);
        let (tell, mut error) = watch::channel(None);
        let _task = crate::task::Task::spawn(keep(files, publish, tell));
        identity.wait_for(Option::is_some).await.unwrap();
        assert_eq!(identity.borrow().as_ref().unwrap().spiffe_id, "spiffe://a/ns/x/sa/first");
        std::fs::write(path("chain.pem"), "no PEM").unwrap();
        error.wait_for(Option::is_some).await.unwrap();
        assert!(identity.borrow().is_some(), "what was read before stays");
        write(directory.path(), "spiffe://a/ns/x/sa/second");
        let second = |identity: &Option<Arc<Identity>>| {
            identity.as_ref().is_some_and(|identity| identity.spiffe_id.ends_with("second"))
        };
        identity.wait_for(second).await.unwrap();
        assert!(error.borrow().is_none());
        std::fs::remove_file(path("key.pem")).unwrap();
        error.wait_for(Option::is_some).await.unwrap();
    }
}
