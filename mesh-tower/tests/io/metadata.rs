//! What peers say of themselves, and how much of it is believed.

use http::{HeaderMap, HeaderValue};
use mesh_core::identity::SpiffeId;
use mesh_tower::{
    config::Workload,
    telemetry::{AccessLog, PEER_METADATA, PEER_METADATA_ID, Peer, PeerCache, PeerMetadata, Spans, Telemetry},
};
use mesh_xds::peer;

use crate::pki::{RATINGS, REVIEWS};

fn workload(name: &str, namespace: &str) -> Workload {
    Workload { name: name.into(), namespace: namespace.into(), ..Workload::default() }
}

/// TE21: a description that contradicts the certificate is not believed, nor one without a certificate; the account is always
/// the certificate's. Whatever is said never gets past this, said once or twice.
#[test]
fn forged_descriptions_are_not_believed() {
    let own = HeaderValue::from_static("own");
    let metadata = PeerMetadata { id: own.clone(), own, decode: peer::decode };
    let local = Peer::new(Workload::default(), None);
    let telemetry = Telemetry::with(local, Some(metadata), Spans::none(), AccessLog::Off, None);
    let cache = PeerCache::default();
    let good = peer::encode(&workload("reviews-v1", "default"));
    let elsewhere = peer::encode(&workload("reviews-v1", "kube-system"));
    let huge = "A".repeat(9_000);
    for (principal, said, name, namespace, account) in [
        (Some(REVIEWS), good.as_str(), "reviews-v1", "default", "reviews"),
        // The same words from somebody else over the same connection's memory.
        (Some(RATINGS), &good, "reviews-v1", "default", "ratings"),
        (Some(REVIEWS), &elsewhere, "", "default", "reviews"),
        (Some(REVIEWS), "no description", "", "default", "reviews"),
        (Some(REVIEWS), &huge, "", "default", "reviews"),
        (Some(REVIEWS), "", "", "default", "reviews"),
        (None, &good, "", "", ""),
        (None, &elsewhere, "", "", ""),
    ] {
        let principal: Option<SpiffeId> = principal.map(|id| id.parse().unwrap());
        let mut headers = HeaderMap::new();
        for _ in 0..2 {
            headers.append(PEER_METADATA, said.parse().unwrap());
            headers.append(PEER_METADATA_ID, HeaderValue::from_static("forged"));
        }
        let peer = telemetry.meet(&mut headers, principal.as_ref(), None, &cache);
        let workload = peer.workload();
        let told = (&*workload.name, &*workload.namespace, &*workload.service_account);
        assert_eq!(told, (name, namespace, account), "{principal:?} said {said:?}");
        assert!(headers.is_empty(), "{headers:?}");
    }
}
