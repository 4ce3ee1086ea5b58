//! The identity from the SPIFFE Workload API, such as SPIRE's agent offers: X.509 SVIDs with their bundles over a Unix socket, sent
//! anew whenever one of them changes.
//!
//! Every call carries `workload.spiffe.io: true`, by which an agent tells a caller who means it from one who was led there. Of several
//! identities the first is taken, as the standard has it. Source: SPIFFE Workload API, X.509-SVID profile.

use std::{path::Path, sync::Arc, time::SystemTime};

use mesh_core::{identity::SpiffeId, trust::Trust};
use rand::{SeedableRng, rngs::SmallRng};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tonic::{Request, metadata::MetadataValue};
use zeroize::Zeroizing;

use super::{Identity, outlet::Outlet, sds, x509};
use crate::{
    ads::back_off::BackOff,
    proto::spiffe::workload::{
        X509svid, X509svidRequest, X509svidResponse, spiffe_workload_api_client::SpiffeWorkloadApiClient,
    },
    transport,
};

/// Who means to call the Workload API says so by this header.
pub const HEADER: &str = "workload.spiffe.io";

/// An agent is on this machine: a refused connection costs nothing.
const BACK_OFF: BackOff = BackOff { cap: std::time::Duration::from_secs(5), ..BackOff::SIGNING };

/// Follows the agent behind `socket`, for as long as it runs.
pub(super) async fn keep(socket: impl AsRef<Path>, outlet: Outlet) {
    let mut rng = SmallRng::from_os_rng();
    loop {
        let why = match converse(socket.as_ref(), &outlet).await {
            Ok(()) => "the agent ended the stream".to_owned(),
            Err(why) => why,
        };
        let failures = outlet.complain(format!("{}: {why}", socket.as_ref().display()));
        tokio::time::sleep(BACK_OFF.delay(failures, &mut rng)).await;
    }
}

async fn converse(socket: &Path, outlet: &Outlet) -> Result<(), String> {
    let mut client = SpiffeWorkloadApiClient::new(sds::connect(socket).await?);
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert(HEADER, MetadataValue::from_static("true"));
    let answer = client.fetch_x509svid(request).await.map_err(|status| transport::describe(&status))?;
    let mut responses = answer.into_inner();
    while let Some(response) = responses.message().await.map_err(|status| transport::describe(&status))? {
        // A response that cannot be used changes nothing; a later one may.
        match read(response, SystemTime::now()) {
            Ok((identity, trust)) => {
                outlet.trust(trust);
                outlet.publish(identity);
            }
            Err(why) => drop(outlet.complain(format!("{}: {why}", socket.display()))),
        }
    }
    Ok(())
}

fn read(response: X509svidResponse, now: SystemTime) -> Result<(Identity, Trust), String> {
    let X509svidResponse { svids, crl, federated_bundles } = response;
    let X509svid { spiffe_id, x509_svid, x509_svid_key, bundle, .. } =
        svids.into_iter().next().ok_or("the agent knows no identity for this process")?;
    let key = Zeroizing::new(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(x509_svid_key.to_vec())));
    let id: SpiffeId = spiffe_id.parse().map_err(|error| format!("{spiffe_id:?}: {error}"))?;
    let roots = x509::concatenated(&bundle)?;
    let identity = x509::identity(x509::concatenated(&x509_svid)?, key, roots, now)?;
    if identity.spiffe_id != spiffe_id {
        return Err(format!("the certificate is for {:?}, not for {spiffe_id:?}", identity.spiffe_id));
    }
    let shared = |roots: &[CertificateDer<'static>]| roots.iter().map(|root| Arc::from(root.as_ref())).collect();
    let mut trust = Trust { crls: crl.iter().map(|list| Arc::from(list.as_ref())).collect(), ..Trust::default() };
    for (domain, bundle) in federated_bundles {
        // Named by its SPIFFE id, or by its bare name.
        let domain = domain.strip_prefix("spiffe://").unwrap_or(&domain).to_owned();
        trust.bundles.insert(domain, shared(&x509::concatenated(&bundle)?));
    }
    trust.bundles.insert(id.trust_domain().to_owned(), shared(&identity.roots));
    Ok((identity, trust))
}
