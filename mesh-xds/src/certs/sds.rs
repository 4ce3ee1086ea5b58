//! The identity from an agent on this machine that speaks Envoy's secret discovery over a Unix socket: SPIRE's agent, Istio's
//! agent, or whatever else serves sidecars. It renews; what it sends is put in force.
//!
//! Two secrets are asked for, by Istio's names: `default`, the certificate with its key, and `ROOTCA`. Nothing is published before
//! both are there, and a bad one changes nothing. Source: Envoy `envoy.service.secret.v3`, state of the world.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::SystemTime};

use mesh_core::{identity::SpiffeId, trust::Trust};
use rand::{SeedableRng, rngs::SmallRng};
use rustls_pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use zeroize::Zeroizing;

use super::{Identity, outlet::Outlet, x509};
use crate::{
    ads::{TypeUrl, back_off::BackOff},
    node::Node,
    proto::{
        DiscoveryRequest, DiscoveryResponse, Status,
        envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
    },
    translate::{self, Certificate, OWN, ROOTS, Secret, Validation},
    transport,
};

/// An agent is on this machine: a refused connection costs nothing.
const BACK_OFF: BackOff = BackOff { cap: std::time::Duration::from_secs(5), ..BackOff::SIGNING };

/// Follows the agent behind `socket`, for as long as it runs.
pub(super) async fn keep(socket: impl AsRef<Path>, node: Node, outlet: Outlet) {
    let mut rng = SmallRng::from_os_rng();
    loop {
        let why = match converse(socket.as_ref(), &node, &outlet).await {
            Ok(()) => "the agent ended the stream".to_owned(),
            Err(why) => why,
        };
        let failures = outlet.complain(format!("{}: {why}", socket.as_ref().display()));
        tokio::time::sleep(BACK_OFF.delay(failures, &mut rng)).await;
    }
}

async fn converse(socket: &Path, node: &Node, outlet: &Outlet) -> Result<(), String> {
    let channel = connect(socket).await?;
    // One that waits to be sent is enough: a request answers a response.
    let (outgoing, requests) = mpsc::channel(2);
    let first = DiscoveryRequest {
        node: Some(node.to_proto()),
        resource_names: vec![OWN.to_owned(), ROOTS.to_owned()],
        type_url: TypeUrl::Secret.as_str().to_owned(),
        ..DiscoveryRequest::default()
    };
    let mut accepted = String::new();
    let _ = outgoing.send(first.clone()).await;
    let mut client = SecretDiscoveryServiceClient::new(channel);
    let answer = client.stream_secrets(ReceiverStream::new(requests)).await;
    let mut responses = answer.map_err(|status| transport::describe(&status))?.into_inner();
    let mut held = Held::default();
    while let Some(response) = responses.message().await.map_err(|status| transport::describe(&status))? {
        let refusal = match held.take(&response) {
            Ok(()) => {
                accepted.clone_from(&response.version_info);
                held.publish(outlet)
            }
            Err(why) => Err(why),
        };
        if let Err(why) = &refusal {
            outlet.complain(format!("{}: {why}", socket.display()));
        }
        let error_detail = refusal.err().map(|message| Status { code: 3, message, details: Vec::new() });
        let request = DiscoveryRequest {
            node: None,
            version_info: accepted.clone(),
            response_nonce: response.nonce,
            error_detail,
            ..first.clone()
        };
        if outgoing.send(request).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// A channel over a Unix socket.
pub(super) async fn connect(socket: &Path) -> Result<tonic::transport::Channel, String> {
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).map_err(|error| error.to_string())?;
    endpoint.connect().await.map_err(|error| transport::chain(&error))
}

/// What has come so far.
#[derive(Default)]
struct Held {
    certificate: Option<Arc<Certificate>>,
    validation: Option<Validation>,
}

impl Held {
    /// Takes a response in, whole or not at all.
    fn take(&mut self, response: &DiscoveryResponse) -> Result<(), String> {
        let mut news = BTreeMap::new();
        for any in &response.resources {
            let secret = translate::secret(&any.value).map_err(|error| error.to_string())?;
            news.insert(secret.name.to_string(), secret.value);
        }
        if let Some(other) = news.keys().find(|name| *name != OWN && *name != ROOTS) {
            return Err(format!("{other:?} was not asked for"));
        }
        let (certificate, validation) = (news.remove(OWN), news.remove(ROOTS));
        let certificate = match certificate {
            None => None,
            Some(Secret::Certificate(certificate)) => Some(certificate),
            Some(_) => return Err(format!("{OWN:?} is no certificate")),
        };
        let validation = match validation {
            None => None,
            Some(Secret::Validation(validation)) => Some(validation),
            Some(_) => return Err(format!("{ROOTS:?} is no validation context")),
        };
        self.certificate = certificate.or_else(|| self.certificate.take());
        self.validation = validation.or_else(|| self.validation.take());
        Ok(())
    }

    /// Puts in force what is whole.
    fn publish(&self, outlet: &Outlet) -> Result<(), String> {
        let (Some(certificate), Some(validation)) = (&self.certificate, &self.validation) else { return Ok(()) };
        let identity = self.identity(certificate, validation)?;
        let id: SpiffeId = identity.spiffe_id.parse().map_err(|error| format!("{}: {error}", identity.spiffe_id))?;
        let trust = Trust {
            bundles: [(id.trust_domain().to_owned(), validation.roots.clone())].into(),
            crls: validation.crls.clone(),
            only_leaf_crl: validation.only_leaf_crl,
            ..Trust::default()
        };
        outlet.trust(trust);
        outlet.publish(identity);
        Ok(())
    }

    fn identity(&self, certificate: &Certificate, validation: &Validation) -> Result<Identity, String> {
        let roots = validation.roots.iter().map(|root| CertificateDer::from(root.to_vec())).collect();
        let key = Zeroizing::new(certificate.key.clone_key());
        x509::identity(certificate.chain.clone(), key, roots, SystemTime::now())
    }
}
