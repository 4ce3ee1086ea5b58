//! `istio.v1.auth.IstioCertificateService`: a CSR and a token in, a chain out.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_xds::proto::{
    IstioCertificateRequest, IstioCertificateResponse, IstioCertificateService, IstioCertificateServiceServer,
};
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{Ca, CaError, ServiceAccount};

/// The certificate authority as a gRPC service.
#[derive(Clone, Debug)]
pub struct CertificateService {
    ca: Arc<Ca>,
}

impl CertificateService {
    /// The service of one authority, to be added to a tonic server.
    pub fn server(ca: Arc<Ca>) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(Self { ca })
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
