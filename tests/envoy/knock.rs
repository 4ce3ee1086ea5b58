//! Callers of servers: in plaintext and with certificates, from several addresses, over HTTP/1.1 and HTTP/2. Connections are
//! kept, one for each caller and address.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version, header::HOST};
use http_body_util::{BodyExt, Full};
use hyper::{
    client::conn::{http1, http2},
    rt::{Read, Write},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tower::tls::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

/// Names of the servers, which callers ask for in the handshake.
pub(crate) const SERVER_NAMES: [&str; 2] = ["server.test", "other.test"];

/// Somebody who calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    /// The last byte of its address, 127.0.0.x.
    pub(crate) from: u8,
    /// Who it proves to be, and whom it asks for; `None` speaks in plaintext.
    pub(crate) tls: Option<(&'static str, &'static str)>,
    /// It speaks HTTP/2.
    pub(crate) http2: bool,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Knock {
    /// Which of the callers.
    pub(crate) who: usize,
    pub(crate) method: Method,
    pub(crate) authority: String,
    /// With its query.
    pub(crate) path: String,
    /// In order; lower case.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Who signs certificates, for the time of a test.
pub(crate) struct Pki {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

/// All callers, with their connections.
pub(crate) struct Callers {
    who: &'static [Who],
    tls: Vec<Option<Arc<ClientConfig>>>,
    kept: Mutex<BTreeMap<(SocketAddr, usize), Kept>>,
}

/// A connection, for one request at a time.
type Kept = Arc<tokio::sync::Mutex<Option<Sender>>>;

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Pki {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "a CA");
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// Servers have names to be called by beside their id; members have none, and no subject.
    fn sign(&self, id: &str, names: &[&str]) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let names = names.iter().map(|name| SanType::DnsName((*name).try_into().unwrap()));
        params.subject_alt_names = [SanType::URI(id.try_into().unwrap())].into_iter().chain(names).collect();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (certificate, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    /// Of a server of ours.
    pub(crate) fn identity(&self, id: &str) -> Identity {
        let (certificate, key) = self.sign(id, &SERVER_NAMES);
        Identity::from_der(vec![certificate], key, vec![self.root.clone()]).unwrap()
    }

    /// Of an Envoy's server: certificate, key and root as text.
    pub(crate) fn pem(&self, id: &str) -> [String; 3] {
        let (certificate, key) = self.sign(id, &SERVER_NAMES);
        [pem("CERTIFICATE", &certificate), pem("PRIVATE KEY", key.secret_der()), pem("CERTIFICATE", &self.root)]
    }

    fn client(&self, id: &str, http2: bool) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let (certificate, key) = self.sign(id, &[]);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_client_auth_cert(vec![certificate], key).unwrap();
        config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        config
    }
}

fn pem(what: &str, der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", STANDARD.encode(der))
}

impl Callers {
    pub(crate) fn new(pki: &Pki, who: &'static [Who]) -> Self {
        let tls = who.iter().map(|who| who.tls.map(|(id, _)| Arc::new(pki.client(id, who.http2)))).collect();
        Self { who, tls, kept: Mutex::default() }
    }

    /// Sends a request to a server and reads the answer; an error says why there is none.
    pub(crate) async fn ask(&self, address: SocketAddr, knock: &Knock) -> Result<Heard, String> {
        let first = self.ask_once(address, knock).await;
        // A server may have closed the kept connection.
        if first.is_err() { self.ask_once(address, knock).await } else { first }
    }

    async fn ask_once(&self, address: SocketAddr, knock: &Knock) -> Result<Heard, String> {
        let who = &self.who[knock.who];
        let place = Arc::clone(self.kept.lock().unwrap().entry((address, knock.who)).or_default());
        let mut place = place.lock().await;
        let mut sender = match place.take() {
            Some(sender) => sender,
            None => self.connect(address, knock.who).await.map_err(|error| error.to_string())?,
        };
        let request = knock.request(who)?;
        let answer = match &mut sender {
            Sender::Http1(sender) => {
                sender.ready().await.map_err(|error| error.to_string())?;
                sender.send_request(request).await
            }
            Sender::Http2(sender) => sender.send_request(request).await,
        };
        let (parts, body) = answer.map_err(|error| error.to_string())?.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?;
        let mut headers = parts.headers;
        headers.extend(body.trailers().cloned().unwrap_or_default());
        *place = Some(sender);
        Ok(Heard { status: parts.status, headers, body: body.to_bytes() })
    }

    async fn connect(&self, address: SocketAddr, at: usize) -> Result<Sender, Box<dyn std::error::Error>> {
        let who = &self.who[at];
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, who.from)), 0))?;
        let stream = socket.connect(address).await?;
        let _ = stream.set_nodelay(true);
        match (&self.tls[at], who.tls) {
            (Some(config), Some((_, server))) => {
                let name = ServerName::try_from(server)?;
                let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await?;
                speak(TokioIo::new(stream), who.http2).await
            }
            _ => speak(TokioIo::new(stream), who.http2).await,
        }
    }
}

async fn speak(
    stream: impl Read + Write + Unpin + Send + 'static,
    http2: bool,
) -> Result<Sender, Box<dyn std::error::Error>> {
    if http2 {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(connection);
        return Ok(Sender::Http2(sender));
    }
    let (sender, connection) = http1::handshake(stream).await?;
    tokio::spawn(connection);
    Ok(Sender::Http1(sender))
}

impl Knock {
    fn request(&self, who: &Who) -> Result<Request<Full<Bytes>>, String> {
        let builder = Request::builder().method(self.method.clone());
        let mut builder = if who.http2 {
            let scheme = if who.tls.is_some() { "https" } else { "http" };
            builder.version(Version::HTTP_2).uri(format!("{scheme}://{}{}", self.authority, self.path))
        } else {
            builder.uri(&self.path).header(HOST, &self.authority)
        };
        for (name, value) in &self.headers {
            let value = HeaderValue::from_bytes(value).map_err(|error| error.to_string())?;
            builder = builder.header(name, value);
        }
        builder.body(Full::default()).map_err(|error| error.to_string())
    }
}
