//! The identity from files that somebody else renews, as a mounted secret, Istio's agent or a SPIFFE helper does. Source: gRFC A29,
//! A65 `file_watcher`, A87 (trust bundles by trust domain).
//!
//! A mounted secret is changed by swapping one symbolic link (`..data`), so what each path leads to is looked at every second, which
//! costs no read; the files are read when that has changed, and at the interval configured in any case. Key and certificate must
//! be of one generation: what changes while it is being read is read again. A file that cannot be read or does not fit the others
//! changes nothing: what was read before stays until it expires.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use mesh_core::{identity::SpiffeId, trust::Trust};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{Identity, outlet::Outlet, x509};
use crate::bootstrap::Files;

/// How often what the paths lead to is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How often files that change under the reader are read again before that counts as a mistake.
const ATTEMPTS: usize = 5;

/// Follows the files, for as long as it runs.
pub(super) async fn keep(files: Files, outlet: Outlet) {
    let mut before: Option<Contents> = None;
    let mut seen = None;
    let mut read_at: Option<Instant> = None;
    loop {
        let marks = marks(&files).await;
        let due = read_at.is_none_or(|at| at.elapsed() >= files.refresh);
        if due || seen.as_ref() != Some(&marks) {
            read_at = Some(Instant::now());
            match read(&files).await {
                // Unchanged files are not parsed again, and nobody is told.
                Ok(contents) if before.as_ref() == Some(&contents) => seen = Some(marks),
                Ok(contents) => {
                    match contents.parse(SystemTime::now()) {
                        Ok((identity, trust)) => {
                            outlet.trust(trust);
                            outlet.publish(identity);
                            before = Some(contents);
                        }
                        Err(why) => drop(outlet.complain(why)),
                    }
                    seen = Some(marks);
                }
                Err(why) => {
                    outlet.complain(why);
                    seen = Some(marks);
                }
            }
        }
        tokio::time::sleep(LOOK.min(files.refresh)).await;
    }
}

/// What a path leads to: the file behind all links, when it was written, how long it is.
type Mark = Option<(PathBuf, Option<SystemTime>, u64)>;

async fn marks(files: &Files) -> Vec<Mark> {
    let mut marks = Vec::new();
    for path in files.paths() {
        let real = tokio::fs::canonicalize(path).await.ok();
        let about = tokio::fs::metadata(path).await.ok();
        marks.push(real.zip(about).map(|(real, about)| (real, about.modified().ok(), about.len())));
    }
    marks
}

/// All files of one generation.
#[derive(Eq, PartialEq)]
struct Contents {
    chain: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    roots: Vec<u8>,
    /// Of `spiffe_trust_bundle_map_file`.
    bundles: Option<Vec<u8>>,
    crl: Option<Vec<u8>>,
}

async fn read(files: &Files) -> Result<Contents, String> {
    let (Some((chain, key)), true) = (&files.identity, files.roots.is_some() || files.bundles.is_some()) else {
        return Err("an identity needs certificate_file, private_key_file and ca_certificate_file".to_owned());
    };
    for _ in 0..ATTEMPTS {
        let before = marks(files).await;
        let contents = Contents {
            chain: file(chain).await?,
            key: Zeroizing::new(file(key).await?),
            roots: match &files.roots {
                Some(roots) => file(roots).await?,
                None => Vec::new(),
            },
            bundles: match &files.bundles {
                Some(bundles) => Some(file(bundles).await?),
                None => None,
            },
            crl: match &files.crl {
                Some(crl) => Some(file(crl).await?),
                None => None,
            },
        };
        if marks(files).await == before {
            return Ok(contents);
        }
    }
    Err("the certificate files change faster than they can be read".to_owned())
}

async fn file(path: &Path) -> Result<Vec<u8>, String> {
    tokio::fs::read(path).await.map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

impl Contents {
    fn parse(&self, now: SystemTime) -> Result<(Identity, Trust), String> {
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| "the key file holds no private key in PEM")?;
        let chain = certificates(&self.chain)?;
        let mut trust = Trust::default();
        if let Some(map) = &self.bundles {
            trust.bundles = read_bundles(map)?;
        }
        if let Some(crl) = &self.crl {
            for list in CertificateRevocationListDer::pem_slice_iter(crl) {
                let list = list.map_err(|error| format!("the revocation list is not PEM: {error:?}"))?;
                trust.crls.push(list.as_ref().into());
            }
        }
        let leaf = chain.first().ok_or("the certificate file holds none")?;
        let domain = x509::parse(leaf).ok().and_then(|leaf| {
            let id: Option<SpiffeId> = x509::uri_names(&leaf).first().and_then(|name| name.parse().ok());
            Some(id?.trust_domain().to_owned())
        });
        let roots = match (&domain, certificates(&self.roots)?) {
            // The map says whom a trust domain's roots are; the plain file is for those who have no map.
            (Some(domain), plain) if self.bundles.is_some() => match trust.bundles.get(domain) {
                Some(roots) => roots.iter().map(|root| CertificateDer::from(root.to_vec())).collect(),
                None => plain,
            },
            (_, plain) => plain,
        };
        let identity = x509::identity(chain, key.into(), roots, now)?;
        if let Some(domain) = domain {
            let own = identity.roots.iter().map(|root| Arc::from(root.as_ref())).collect();
            trust.bundles.insert(domain, own);
        }
        Ok((identity, trust))
    }
}

/// Roots by trust domain.
type Bundles = BTreeMap<String, Vec<Arc<[u8]>>>;

/// A SPIFFE bundle map: `{"trust_domains": {"a": {"keys": [{"use": "x509-svid", "x5c": [...]}]}}}`. Source: gRFC A87.
fn read_bundles(text: &[u8]) -> Result<Bundles, String> {
    let wrong = |why: String| format!("the trust bundle map cannot be used: {why}");
    let map: serde_json::Value = serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
    let domains = map.get("trust_domains").and_then(serde_json::Value::as_object);
    let mut bundles = BTreeMap::new();
    for (domain, bundle) in domains.ok_or_else(|| wrong("it has no `trust_domains`".to_owned()))? {
        let valid = format!("spiffe://{domain}").parse::<SpiffeId>();
        valid.map_err(|error| wrong(format!("{domain:?}: {error}")))?;
        let keys = bundle.get("keys").and_then(serde_json::Value::as_array);
        let keys = keys.ok_or_else(|| wrong(format!("{domain} has no `keys`")))?;
        let mut roots = Vec::new();
        for key in keys {
            // Keys for tokens stand in the same list.
            if key.get("use").and_then(serde_json::Value::as_str) != Some("x509-svid") {
                continue;
            }
            let one = key.get("x5c").and_then(serde_json::Value::as_array).map(Vec::as_slice);
            let Some([one]) = one else {
                return Err(wrong(format!("{domain} has a key whose `x5c` is not one certificate")));
            };
            let der = one.as_str().and_then(|text| BASE64_STANDARD.decode(text).ok());
            let der = der.ok_or_else(|| wrong(format!("{domain} has an `x5c` that is not base64")))?;
            x509::parse(&CertificateDer::from(der.as_slice())).map_err(wrong)?;
            roots.push(der.into());
        }
        if !roots.is_empty() {
            bundles.insert(domain.clone(), roots);
        }
    }
    Ok(bundles)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    certificates.map_err(|error| format!("the certificates are not PEM: {error:?}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    const FIRST: &str = "spiffe://a/ns/x/sa/first";
    const SECOND: &str = "spiffe://a/ns/x/sa/second";

    fn write(directory: &Path, id: &str) -> String {
        std::fs::create_dir_all(directory).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        let certificate = params.self_signed(&key).unwrap();
        let pem = certificate.pem();
        std::fs::write(directory.join("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(directory.join("root.pem"), &pem).unwrap();
        std::fs::write(directory.join("chain.pem"), pem).unwrap();
        BASE64_STANDARD.encode(certificate.der())
    }

    fn files(directory: &Path) -> Files {
        let path = |name: &str| directory.join(name);
        Files {
            identity: Some((path("chain.pem"), path("key.pem"))),
            roots: Some(path("root.pem")),
            bundles: None,
            crl: None,
            refresh: Duration::from_secs(600),
        }
    }

    fn start(files: Files) -> (Outlet, crate::task::Task) {
        let outlet = Outlet::new("files".to_owned());
        (outlet.clone(), crate::task::Task::spawn(keep(files, outlet)))
    }

    async fn holds(outlet: &Outlet, id: &str) {
        let is = |identity: &Option<Arc<Identity>>| identity.as_ref().is_some_and(|it| it.spiffe_id == id);
        outlet.identity.subscribe().wait_for(is).await.unwrap();
    }

    async fn complains(outlet: &Outlet, why: &str) {
        let says = |error: &Option<String>| error.as_ref().is_some_and(|error| error.contains(why));
        outlet.standing.subscribe().wait_for(|standing| says(&standing.error)).await.unwrap();
    }

    /// XD23, CT1: the identity comes from the files, follows them, and stays when they cannot be used.
    #[tokio::test(start_paused = true)]
    async fn identity_follows_the_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        write(directory.path(), FIRST);
        let (outlet, _task) = start(files(directory.path()));
        holds(&outlet, FIRST).await;
        std::fs::write(path("chain.pem"), "no PEM").unwrap();
        complains(&outlet, "none").await;
        assert!(outlet.identity.borrow().is_some(), "what was read before stays");
        write(directory.path(), SECOND);
        holds(&outlet, SECOND).await;
        assert!(outlet.standing.borrow().error.is_none());
        std::fs::write(path("key.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        complains(&outlet, "another key").await;
        std::fs::remove_file(path("key.pem")).unwrap();
        complains(&outlet, "cannot be read").await;
        holds(&outlet, SECOND).await;
    }

    /// CT1: a mounted secret changes by one swapped link, and key and certificate are never of two generations.
    #[cfg(unix)]
    #[tokio::test(start_paused = true)]
    async fn a_swapped_link_is_followed_as_one() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        write(&at("..1"), FIRST);
        std::os::unix::fs::symlink("..1", at("..data")).unwrap();
        for name in ["chain.pem", "key.pem", "root.pem"] {
            std::os::unix::fs::symlink(format!("..data/{name}"), at(name)).unwrap();
        }
        let (outlet, _task) = start(files(directory.path()));
        holds(&outlet, FIRST).await;
        let mut seen = outlet.standing.subscribe();
        for generation in 2..6 {
            let id = if generation % 2 == 0 { SECOND } else { FIRST };
            let name = format!("..{generation}");
            write(&at(&name), id);
            std::os::unix::fs::symlink(&name, at("..data_tmp")).unwrap();
            std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
            holds(&outlet, id).await;
        }
        assert_eq!(seen.borrow_and_update().failures, 0, "no generation was mixed with another");
        assert_eq!(outlet.standing.borrow().obtained, 5);
    }

    /// CT11: a map of trust bundles gives each trust domain its roots, and a bad one changes nothing.
    #[tokio::test(start_paused = true)]
    async fn a_bundle_map_gives_each_domain_its_roots() {
        let directory = tempfile::tempdir().unwrap();
        let own = write(directory.path(), FIRST);
        let theirs = write(&directory.path().join("b"), "spiffe://b/ns/x/sa/y");
        let map = directory.path().join("map.json");
        let key = |x5c: &str| serde_json::json!({"kty": "EC", "use": "x509-svid", "x5c": [x5c]});
        let text = serde_json::json!({"trust_domains": {
            "a": {"keys": [key(&own), {"use": "jwt-svid", "kid": "1"}]}, "b": {"keys": [key(&theirs)]},
        }});
        std::fs::write(&map, text.to_string()).unwrap();
        let (outlet, _task) = start(Files { roots: None, bundles: Some(map.clone()), ..files(directory.path()) });
        holds(&outlet, FIRST).await;
        let trust = outlet.trust.borrow().clone().unwrap();
        assert_eq!(trust.bundles.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(BASE64_STANDARD.encode(&trust.roots("b", "a")[0]), theirs);
        for (bad, why) in [("{}", "trust_domains"), (r#"{"trust_domains":{"A B":{"keys":[]}}}"#, "A B")] {
            std::fs::write(&map, bad).unwrap();
            complains(&outlet, why).await;
        }
        assert_eq!(outlet.trust.borrow().as_ref().unwrap().bundles.len(), 2);
    }
}
