//! `istio.v1.auth.IstioCertificateService`: a CSR and a token in, a chain out. Of one account so many at a time: each is remembered until
//! the certificate expires.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use mesh_xds::proto::{
    IstioCertificateRequest, IstioCertificateResponse, IstioCertificateService, IstioCertificateServiceServer,
};
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{Ca, CaError, ServiceAccount};

/// Certificates of one account at once: as many as workloads of it may start together.
const AT_ONCE: f64 = 10_000.0;

/// And in a second from then on.
const A_SECOND: f64 = 100.0;

/// Accounts that are counted; those that ask for little are forgotten.
const COUNTED: usize = 10_000;

/// The certificate authority as a gRPC service.
#[derive(Clone, Debug)]
pub struct CertificateService {
    ca: Arc<Ca>,
    asked: Arc<Mutex<Asked>>,
}

/// What accounts have asked for: how many each may still, and since when that is so.
#[derive(Debug, Default)]
struct Asked(BTreeMap<String, (f64, Instant)>);

impl Asked {
    /// Counts one more; false when it is too many.
    fn may(&mut self, account: String, now: Instant) -> bool {
        let left = |(left, since): (f64, Instant)| {
            (left + now.saturating_duration_since(since).as_secs_f64() * A_SECOND).min(AT_ONCE)
        };
        if self.0.len() >= COUNTED {
            self.0.retain(|_, bucket| left(*bucket) < AT_ONCE);
        }
        let bucket = self.0.entry(account).or_insert((AT_ONCE, now));
        let before = left(*bucket);
        let may = before >= 1.0;
        *bucket = (if may { before - 1.0 } else { before }, now);
        may
    }
}

impl CertificateService {
    /// The service of one authority, to be added to a tonic server.
    pub fn server(ca: Arc<Ca>) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(Self { ca, asked: Arc::default() })
    }

    fn authenticate(&self, metadata: &MetadataMap) -> Result<ServiceAccount, Status> {
        let Some(value) = metadata.get("authorization") else {
            return Err(Status::unauthenticated("a CSR needs the header `authorization: Bearer <token>`"));
        };
        let token = value.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
        let token = token.ok_or_else(|| Status::unauthenticated("the authorization header is not `Bearer <token>`"))?;
        self.ca.tokens().verify(token.trim()).map_err(|error| Status::unauthenticated(error.to_string()))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let account = self.authenticate(request.metadata())?;
        let may = self.asked.lock().unwrap_or_else(PoisonError::into_inner).may(account.to_string(), Instant::now());
        if !may {
            tracing::warn!(%account, "too many certificate signing requests");
            return Err(Status::resource_exhausted(format!("{account} asks for too many certificates")));
        }
        let request = request.into_inner();
        // Answering with another identity or signer than asked for would only fail later and elsewhere.
        for key in ["ImpersonatedIdentity", "CertSigner"] {
            if request.metadata.as_ref().is_some_and(|metadata| metadata.fields.contains_key(key)) {
                return Err(Status::invalid_argument(format!("metadata {key} is not offered by this authority")));
            }
        }
        let ttl = u64::try_from(request.validity_duration).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
        let cert_chain = self.ca.sign_csr(&request.csr, &account, ttl, SystemTime::now()).map_err(|error| {
            tracing::warn!(%account, %error, "refused a certificate signing request");
            match error {
                CaError::Csr(_) | CaError::Ttl(_) => Status::invalid_argument(error.to_string()),
                CaError::Denied(_) => Status::permission_denied(error.to_string()),
                _ => Status::internal(error.to_string()),
            }
        })?;
        tracing::info!(%account, "issued a certificate");
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    /// CT4: one account's requests are bounded, and those of another are its own.
    #[test]
    fn an_account_asks_so_often() {
        let (mut asked, now) = (Asked::default(), Instant::now());
        let mut ask = |account: &str, at| asked.may(account.to_owned(), at);
        assert!((0..10_000).all(|_| ask("default/a", now)));
        assert!(!ask("default/a", now) && ask("default/b", now));
        let later = now + Duration::from_secs(1);
        assert_eq!((0..200).filter(|_| ask("default/a", later)).count(), 100);
        let much_later = now + Duration::from_secs(1_000);
        assert_eq!((0..20_000).filter(|_| ask("default/a", much_later)).count(), 10_000);
        // Those that ask for little are not kept.
        (0..3 * COUNTED)
            .for_each(|n| assert!(ask(&format!("default/{n}"), much_later + Duration::from_secs(n as u64))));
        assert!(asked.0.len() <= COUNTED + 1);
    }
}
