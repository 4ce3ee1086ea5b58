//! Mutual TLS alone, around a plain hyper client's connector and a plain axum server's listener.
//!
//! `cargo run --example mtls`. Certificates come from an authority made on the spot; no control plane, no other layer.
//! `shop` may call `ratings`; a caller of another authority, and one without a certificate, may not.

use axum::{Router, routing::get};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use mesh_tower::tls::{Identity, LiveIdentity, MtlsAcceptor, MtlsConnectorLayer, MtlsListener};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tower::Layer;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Authority = CertifiedIssuer<'static, KeyPair>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (ours, theirs) = (authority()?, authority()?);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);

    // The server: who it is, around the listener it has anyway.
    let acceptor = MtlsAcceptor::new(identity(&ours, "ratings")?);
    let app = Router::new().route("/", get(|| async { "five stars" }));
    tokio::spawn(axum::serve(MtlsListener::new(listener, acceptor), app).into_future());
    // The client: who it is and whom it expects, around the connector it has anyway.
    let shop = MtlsConnectorLayer::new(identity(&ours, "shop")?).with_peers([spiffe_id("ratings")]);
    let stranger = MtlsConnectorLayer::new(identity(&theirs, "shop")?);
    for (who, layer) in [("shop", shop), ("a stranger", stranger)] {
        let client = Client::builder(TokioExecutor::new()).build(layer.layer(HttpConnector::new()));
        match client.request(hyper::Request::get(&url).body(Empty::<Bytes>::new())?).await {
            Ok(answer) => println!("{who} gets {:?}", answer.into_body().collect().await?.to_bytes()),
            Err(error) => println!("{who} is refused: {error}"),
        }
    }
    let plain = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    println!("in plaintext: {:?}", plain.get(url.parse()?).await.err());
    Ok(())
}

fn authority() -> Result<Authority, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

fn identity(authority: &Authority, account: &str) -> Result<LiveIdentity, BoxError> {
    let (mut params, key) = (CertificateParams::default(), KeyPair::generate()?);
    params.subject_alt_names = vec![SanType::URI(spiffe_id(account).try_into()?)];
    let chain = params.signed_by(&key, authority)?;
    Ok(LiveIdentity::new(Identity::from_pem(&chain.pem(), &key.serialize_pem(), &authority.pem())?))
}

fn spiffe_id(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}
