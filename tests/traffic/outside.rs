//! A gateway as its callers see it, from YAML to bytes: certificates of its own, names asked for, HTTP over either version.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Version, header};
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_control::{
    compile::{MeshSettings, NodeInfo, World, compile},
    registry::Registry,
    store::{SourceFile, Store},
};
use mesh_tower::{Mesh, config::Config};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore, version};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::{Answer, Kind, framed};

/// An authority of the tests' own, outside any mesh.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn issue(&self, names: &[&str]) -> Pair {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { chain, key: key.serialize_pem() }
    }
}

impl Authority {
    /// Of a member of the mesh.
    pub(crate) fn member(&self, id: &str) -> Pair {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { chain, key: key.serialize_pem() }
    }
}

/// A `Secret` in YAML, with roots beside it if there are any.
pub(crate) fn secret(name: &str, pair: Option<&Pair>, roots: Option<&str>) -> String {
    let mut text = format!("---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\nstringData:\n");
    let mut put = |key: &str, value: &str| text += &format!("  {key}: {}\n", serde_json::to_string(value).unwrap());
    if let Some(Pair { chain, key }) = pair {
        put("tls.crt", chain);
        put("tls.key", key);
    }
    if let Some(roots) = roots {
        put("ca.crt", roots);
    }
    text
}

/// An Istio `Gateway` of one server.
pub(crate) fn server(name: &str, port: u16, protocol: &str, hosts: &str, tls: &str) -> String {
    let tls = if tls.is_empty() { String::new() } else { format!(", tls: {tls}") };
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}, annotations: {{gateway.istio.io/service-account: edge}}}}\nspec:\n  selector: {{istio: ingressgateway}}\n  servers: [{{port: {{number: {port}, name: p{port}, protocol: {protocol}}}, hosts: {hosts}{tls}}}]\n"
    )
}

/// A `VirtualService` at a gateway, all of whose requests go to one service.
pub(crate) fn bound(name: &str, gateway: &str, hosts: &str, to: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec:\n  hosts: {hosts}\n  gateways: [{gateway}]\n  http: [{{route: [{{destination: {{host: {to}}}}}]}}]\n"
    )
}

/// What a gateway workload of namespace `default` is told.
pub(crate) fn compiled(text: &str, settings: MeshSettings) -> Config {
    let mut store = Store::open(None).unwrap();
    let file = SourceFile { name: "f.yaml".to_owned(), text: text.to_owned() };
    store.apply(&[file], 1).unwrap_or_else(|error| panic!("{error:?}"));
    let node = NodeInfo {
        namespace: "default".to_owned(),
        service_account: "edge".to_owned(),
        labels: BTreeMap::from([
            ("istio".to_owned(), "ingressgateway".to_owned()),
            ("gateway.networking.k8s.io/gateway-name".to_owned(), "edge".to_owned()),
        ]),
        gateway: true,
        ..NodeInfo::default()
    };
    compile(&World::new(store.objects(), &Registry::default(), settings), &node)
}

/// A running gateway.
pub(crate) struct Edge {
    pub(crate) mesh: Mesh,
    ports: BTreeMap<u16, SocketAddr>,
    _tasks: Vec<Ended>,
}

struct Ended(JoinHandle<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Edge {
    /// Listens for these ports, each at one of its own.
    pub(crate) async fn start(text: &str, ports: &[u16]) -> Self {
        Self::with(compiled(text, MeshSettings::default()), ports).await
    }

    pub(crate) async fn with(config: Config, ports: &[u16]) -> Self {
        Self::over(Mesh::builder().config(config).build().await.unwrap(), ports).await
    }

    pub(crate) async fn over(mesh: Mesh, ports: &[u16]) -> Self {
        let (mut at, mut tasks) = (BTreeMap::new(), Vec::new());
        for port in ports {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            at.insert(*port, listener.local_addr().unwrap());
            let (mesh, port) = (mesh.clone(), *port);
            tasks.push(Ended(tokio::spawn(async move { mesh.gateway_listener(listener, port).await })));
        }
        Self { mesh, ports: at, _tasks: tasks }
    }

    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        self.ports[&port]
    }

    /// Another configuration from now on.
    pub(crate) fn told(&self, text: &str) {
        self.mesh.live().update(&compiled(text, MeshSettings::default())).unwrap();
    }
}

/// Who asks: which roots it trusts, what it shows, what it can speak.
#[derive(Clone, Default)]
pub(crate) struct Visitor {
    pub(crate) roots: Vec<String>,
    pub(crate) shows: Option<Pair>,
    pub(crate) only: Option<&'static rustls::SupportedProtocolVersion>,
}

impl Visitor {
    pub(crate) fn trusting(authority: &Authority) -> Self {
        Self { roots: vec![authority.pem.clone()], ..Self::default() }
    }

    pub(crate) fn showing(self, pair: &Pair) -> Self {
        Self { shows: Some(pair.clone()), ..self }
    }

    /// A handshake with this name.
    pub(crate) async fn shake(
        &self,
        at: SocketAddr,
        name: &str,
        alpn: &[&str],
    ) -> Result<TlsStream<TcpStream>, String> {
        self.shake_with(Arc::new(self.config(alpn)), at, name).await
    }

    /// The settings of its handshakes; with the same ones a session is resumed.
    pub(crate) fn config(&self, alpn: &[&str]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        for root in &self.roots {
            roots.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = self.only.map_or_else(|| vec![&version::TLS13, &version::TLS12], |only| vec![only]);
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&versions).unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match &self.shows {
            None => builder.with_no_client_auth(),
            Some(Pair { chain, key }) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(|it| it.unwrap()).collect();
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    pub(crate) async fn shake_with(
        &self,
        config: Arc<ClientConfig>,
        at: SocketAddr,
        name: &str,
    ) -> Result<TlsStream<TcpStream>, String> {
        let stream = TcpStream::connect(at).await.map_err(|error| error.to_string())?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(config).connect(name, stream).await.map_err(|error| error.to_string())
    }

    /// A request over TLS, with what the kind of program agrees on.
    pub(crate) async fn ask(&self, kind: Kind, at: SocketAddr, name: &str, path: &str) -> Result<Answer, String> {
        self.ask_host(kind, at, name, name, path, &[]).await
    }

    /// The same, for another host than the one asked for in the handshake.
    pub(crate) async fn ask_host(
        &self,
        kind: Kind,
        at: SocketAddr,
        name: &str,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer, String> {
        let offered = if kind == Kind::Http1 { "http/1.1" } else { "h2" };
        let stream = self.shake(at, name, &[offered]).await?;
        let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        assert_eq!(agreed.as_deref(), Some(offered.as_bytes()), "{kind:?}");
        send(kind, stream, "https", host, path, headers).await
    }
}

/// A request in plaintext.
pub(crate) async fn ask(kind: Kind, at: SocketAddr, host: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let stream = TcpStream::connect(at).await.unwrap();
    send(kind, stream, "http", host, path, headers).await.unwrap()
}

async fn send<I>(
    kind: Kind,
    io: I,
    scheme: &str,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Answer, String>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut request = Request::get(path).body(Full::new(Bytes::new())).unwrap();
    for (name, value) in headers {
        request.headers_mut().append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    if kind.is_grpc() {
        *request.method_mut() = Method::POST;
        request.headers_mut().insert(header::CONTENT_TYPE, "application/grpc".parse().unwrap());
        request.headers_mut().insert(header::TE, "trailers".parse().unwrap());
        *request.body_mut() = Full::new(framed(b""));
    }
    if kind == Kind::Http1 {
        request.headers_mut().insert(header::HOST, host.parse().unwrap());
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(|error| error.to_string())?;
        let driven = Ended(tokio::spawn(async move { drop(connection.await) }));
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let answer = Answer::of(answer).await;
        drop(driven);
        return Ok(answer);
    }
    *request.uri_mut() = format!("{scheme}://{host}{path}").parse().unwrap();
    *request.version_mut() = Version::HTTP_2;
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
    let (mut sender, connection) = shaken.map_err(|error| error.to_string())?;
    let driven = Ended(tokio::spawn(async move { drop(connection.await) }));
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let answer = Answer::of(answer).await;
    drop(driven);
    Ok(answer)
}

/// It was answered, and well.
pub(crate) fn well(kind: Kind, answer: &Answer) -> bool {
    if kind.is_grpc() { answer.grpc == Some(0) } else { answer.status == 200 }
}

/// No route takes it: 404, and of gRPC `UNAVAILABLE`, as its own clients have it.
pub(crate) fn nowhere(kind: Kind, answer: &Answer) -> bool {
    if kind.is_grpc() { answer.grpc == Some(14) } else { answer.status == 404 }
}
