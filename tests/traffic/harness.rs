//! Upstreams that say what arrived and answer by script, and a mesh in front of them, for each kind of request.

#![allow(dead_code)]

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use mesh_tower::{
    Mesh, ResponseFlags,
    config::{
        Action, Cluster, Config, Endpoint, Endpoints, Forward, HeaderChanges, LocalityEndpoints, Name, Protocol, Route,
        RouteMatch, RouteTable, ServiceName, VirtualHost, WeightedCluster,
    },
};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

/// What a program sends. A test of a feature goes through [`Kind::ALL`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Http1,
    Http2,
    Grpc,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Grpc];

    pub(crate) fn is_grpc(self) -> bool {
        self == Self::Grpc
    }

    fn protocol(self) -> Protocol {
        match self {
            Self::Http1 => Protocol::Http1,
            Self::Http2 | Self::Grpc => Protocol::Http2,
        }
    }
}

/// A request as an upstream saw it.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) method: Method,
    /// With its query.
    pub(crate) path: String,
    pub(crate) authority: String,
    pub(crate) headers: HeaderMap,
    /// Of gRPC the message, without its frame.
    pub(crate) body: Bytes,
}

impl Arrival {
    /// The values of a header, joined by `,`; empty when it is not there.
    pub(crate) fn header(&self, name: &str) -> String {
        joined(&self.headers, name)
    }
}

/// What an upstream answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    status: u16,
    grpc: u32,
    headers: Vec<(&'static str, String)>,
    gate: Option<Arc<Semaphore>>,
    breaks: bool,
    in_trailers: bool,
    message: Option<&'static [u8]>,
}

impl Reply {
    /// 200, and of gRPC status 0.
    pub(crate) fn ok() -> Self {
        Self { status: 200, ..Self::default() }
    }

    /// This status; gRPC requests get it as it is, without a gRPC status.
    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// 503, and of gRPC `UNAVAILABLE` in a response of headers alone.
    pub(crate) fn unavailable() -> Self {
        Self { status: 503, grpc: 14, ..Self::default() }
    }

    /// 200, and of gRPC this status in a response of headers alone.
    pub(crate) fn grpc(code: u32) -> Self {
        Self { grpc: code, ..Self::ok() }
    }

    /// The gRPC status comes in trailers, after a message.
    pub(crate) fn in_trailers(self) -> Self {
        Self { in_trailers: true, ..self }
    }

    /// The connection breaks off before an answer.
    pub(crate) fn broken() -> Self {
        Self { breaks: true, ..Self::ok() }
    }

    /// Beside whatever else.
    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The message of a gRPC answer, in place of the upstream's name.
    pub(crate) fn message(self, message: &'static [u8]) -> Self {
        Self { message: Some(message), ..self }
    }

    /// This text in place of the upstream's name.
    pub(crate) fn text(self, text: &'static str) -> Self {
        Self { message: Some(text.as_bytes()), ..self }
    }

    /// Answers when the gate has a permit, which it takes.
    pub(crate) fn when(mut self, gate: &Arc<Semaphore>) -> Self {
        self.gate = Some(Arc::clone(gate));
        self
    }
}

type Script = dyn Fn(usize, &Arrival) -> Reply + Send + Sync;

/// A server outside any mesh. It ends with this value.
pub(crate) struct Upstream {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    arrivals: Mutex<Vec<Arrival>>,
    opened: AtomicUsize,
}

impl Upstream {
    /// Answers everything with 200, its name in the body and in `x-upstream`.
    pub(crate) async fn start(name: &'static str) -> Self {
        Self::scripted(name, |_, _| Reply::ok()).await
    }

    /// Answers the n-th request, from 0, as the script says.
    pub(crate) async fn scripted(
        name: &'static str,
        script: impl Fn(usize, &Arrival) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::scripted_at(name, TcpListener::bind("127.0.0.1:0").await.unwrap(), script)
    }

    /// Answers everything that arrives at a listener.
    pub(crate) fn at(name: &'static str, listener: TcpListener) -> Self {
        Self::scripted_at(name, listener, |_, _| Reply::ok())
    }

    /// Answers everything that arrives at a Unix domain socket; its `address` is nobody's.
    #[cfg(unix)]
    pub(crate) fn at_unix(name: &'static str, listener: std::os::unix::net::UnixListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let seen = Arc::new(Seen::default());
        let (serving, script): (_, Arc<Script>) = (Arc::clone(&seen), Arc::new(|_, _| Reply::ok()));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve_connection(name, stream, Arc::clone(&serving), Arc::clone(&script)));
            }
        });
        Self { name, address: SocketAddr::from(([0, 0, 0, 0], 0)), seen, _tasks: tasks }
    }

    fn scripted_at(
        name: &'static str,
        listener: TcpListener,
        script: impl Fn(usize, &Arrival) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Seen::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(name, listener, Arc::clone(&seen), Arc::new(script)));
        Self { name, address, seen, _tasks: tasks }
    }

    /// What arrived so far, in order.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.seen.arrivals.lock().unwrap().clone()
    }

    /// How much arrived so far.
    pub(crate) fn count(&self) -> usize {
        self.seen.arrivals.lock().unwrap().len()
    }

    /// The latest arrival.
    pub(crate) fn last(&self) -> Arrival {
        self.arrivals().pop().expect("something arrived")
    }

    /// Connections opened so far.
    pub(crate) fn opened(&self) -> usize {
        self.seen.opened.load(Ordering::Relaxed)
    }
}

async fn serve(name: &'static str, listener: TcpListener, seen: Arc<Seen>, script: Arc<Script>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        connections.spawn(serve_connection(name, stream, Arc::clone(&seen), Arc::clone(&script)));
    }
}

async fn serve_connection<I>(name: &'static str, stream: I, seen: Arc<Seen>, script: Arc<Script>)
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    seen.opened.fetch_add(1, Ordering::Relaxed);
    let service = service_fn(move |request| answer(name, request, Arc::clone(&seen), Arc::clone(&script)));
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

type ReplyBody = UnsyncBoxBody<Bytes, std::io::Error>;

async fn answer(
    name: &'static str,
    request: Request<Incoming>,
    seen: Arc<Seen>,
    script: Arc<Script>,
) -> Result<Response<ReplyBody>, std::io::Error> {
    let (parts, body) = request.into_parts();
    let is_grpc =
        parts.headers.get(header::CONTENT_TYPE).is_some_and(|it| it.as_bytes().starts_with(b"application/grpc"));
    let mut body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    if is_grpc && body.len() >= 5 {
        body.advance(5);
    }
    let host = || joined(&parts.headers, "host");
    let arrival = Arrival {
        method: parts.method.clone(),
        path: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        authority: parts.uri.authority().map_or_else(host, ToString::to_string),
        headers: parts.headers,
        body,
    };
    let number = {
        let mut arrivals = seen.arrivals.lock().unwrap();
        arrivals.push(arrival.clone());
        arrivals.len() - 1
    };
    let reply = script(number, &arrival);
    if let Some(gate) = &reply.gate {
        gate.acquire().await.unwrap().forget();
    }
    if reply.breaks {
        return Err(std::io::Error::other("scripted to break"));
    }
    let mut response = Response::builder().status(if is_grpc && reply.grpc != 0 { 200 } else { reply.status });
    response = response.header("x-upstream", name);
    for (name, value) in &reply.headers {
        response = response.header(*name, value);
    }
    if !is_grpc {
        let text = reply.message.unwrap_or(name.as_bytes());
        return Ok(response.body(boxed(Full::new(Bytes::from_static(text)))).unwrap());
    }
    response = response.header(header::CONTENT_TYPE, "application/grpc");
    if reply.grpc != 0 && !reply.in_trailers {
        return Ok(response.header("grpc-status", reply.grpc).body(boxed(Full::new(Bytes::new()))).unwrap());
    }
    if reply.status != 200 && reply.grpc == 0 {
        return Ok(response.body(boxed(Full::new(Bytes::new()))).unwrap());
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", reply.grpc.into());
    let frames = [Ok(Frame::data(framed(reply.message.unwrap_or(name.as_bytes())))), Ok(Frame::trailers(trailers))];
    Ok(response.body(UnsyncBoxBody::new(StreamBody::new(futures_util::stream::iter(frames)))).unwrap())
}

fn boxed(body: Full<Bytes>) -> ReplyBody {
    UnsyncBoxBody::new(body.map_err(|never| match never {}))
}

pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put_slice(message);
    frame.freeze()
}

fn joined(headers: &HeaderMap, name: &str) -> String {
    let values: Vec<_> = headers.get_all(name).iter().map(|it| String::from_utf8_lossy(it.as_bytes())).collect();
    values.join(",")
}

/// A cluster of these upstreams, spoken to as the kind wants.
pub(crate) fn cluster(kind: Kind, name: &str, upstreams: &[&Upstream]) -> Cluster {
    cluster_at(kind, name, &upstreams.iter().map(|upstream| upstream.address).collect::<Vec<_>>())
}

/// A cluster of what listens there.
pub(crate) fn cluster_at(kind: Kind, name: &str, addresses: &[SocketAddr]) -> Cluster {
    let endpoints = addresses.iter().map(|address| Endpoint::from(*address)).collect();
    let locality = LocalityEndpoints { endpoints, ..LocalityEndpoints::default() };
    Cluster {
        name: name.into(),
        service: Some(ServiceName {
            host: format!("{name}.default.svc.cluster.local").into(),
            name: name.into(),
            namespace: "default".into(),
        }),
        endpoints: Arc::new(Endpoints { localities: vec![locality], ..Endpoints::default() }),
        protocol: kind.protocol(),
        ..Cluster::default()
    }
}

/// To one cluster.
pub(crate) fn to(cluster: &str) -> Forward {
    split(&[(cluster, 1)])
}

/// To several by weight.
pub(crate) fn split(clusters: &[(&str, u32)]) -> Forward {
    let weighted = |(cluster, weight): &(&str, u32)| WeightedCluster {
        cluster: (*cluster).into(),
        weight: *weight,
        ..WeightedCluster::default()
    };
    Forward { clusters: clusters.iter().map(weighted).collect(), ..Forward::default() }
}

/// A rule.
pub(crate) fn route(matches: RouteMatch, action: impl Into<Action>) -> Route {
    Route {
        name: Name::default(),
        origin: None,
        matches,
        action: action.into(),
        fault: None,
        headers: HeaderChanges::default(),
        operation: None,
    }
}

/// All requests to `http://app` by these rules.
pub(crate) fn config(clusters: impl IntoIterator<Item = Cluster>, routes: Vec<Route>) -> Config {
    let host = VirtualHost { name: "app".into(), domains: vec!["app".to_owned()], routes, ..VirtualHost::default() };
    let table = RouteTable { virtual_hosts: vec![Arc::new(host)], ..RouteTable::default() };
    Config {
        outbound: [(80, Arc::new(table))].into(),
        clusters: clusters.into_iter().map(|cluster| (cluster.name.clone(), Arc::new(cluster))).collect(),
        ..Config::default()
    }
}

/// A program on the mesh that sends requests of one kind.
#[derive(Clone)]
pub(crate) struct Program {
    pub(crate) mesh: Mesh,
    kind: Kind,
}

impl Program {
    pub(crate) async fn new(kind: Kind, config: Config) -> Self {
        Self::over(kind, Mesh::builder().config(config).build().await.unwrap())
    }

    /// On this mesh.
    pub(crate) fn over(kind: Kind, mesh: Mesh) -> Self {
        Self { mesh, kind }
    }

    /// With all requests to one cluster of these upstreams, as `forward` says otherwise.
    pub(crate) async fn calling(kind: Kind, upstreams: &[&Upstream], forward: Forward) -> Self {
        let forward = Forward { clusters: to("app").clusters, ..forward };
        let routes = vec![route(RouteMatch::default(), Action::Forward(forward))];
        Self::new(kind, config([cluster(kind, "app", upstreams)], routes)).await
    }

    /// `GET http://app/...`, or a unary gRPC call of that path.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path), "").await
    }

    /// The same with headers.
    pub(crate) async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
        self.send(request, "").await
    }

    /// A request to host `app`; of gRPC always a POST with a framed message.
    pub(crate) async fn send(&self, request: http::request::Builder, body: &str) -> Answer {
        let is_grpc = self.kind.is_grpc();
        let body = if is_grpc { framed(body.as_bytes()) } else { Bytes::copy_from_slice(body.as_bytes()) };
        self.ask(request.body(Full::new(body)).unwrap()).await
    }

    /// The same with this body, which a gRPC client has framed itself.
    pub(crate) async fn ask<B>(&self, mut request: Request<B>) -> Answer
    where
        B: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        if request.uri().authority().is_none() {
            *request.uri_mut() = format!("http://app{path}").parse().unwrap();
        }
        if self.kind.is_grpc() {
            *request.method_mut() = Method::POST;
            request.headers_mut().insert(header::CONTENT_TYPE, "application/grpc".parse().unwrap());
            request.headers_mut().insert(header::TE, "trailers".parse().unwrap());
        }
        Answer::of(self.mesh.http().request(request).await.unwrap()).await
    }
}

/// What a program got.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// From headers or trailers.
    pub(crate) grpc: Option<u32>,
    pub(crate) headers: HeaderMap,
    /// Of gRPC the message, without its frame.
    pub(crate) body: String,
    /// Envoy's response flags, when the mesh answered itself; else `-`.
    pub(crate) flags: String,
    /// The body ended as it should.
    pub(crate) whole: bool,
}

impl Answer {
    pub(crate) async fn of<B>(response: Response<B>) -> Self
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let (parts, mut body) = response.into_parts();
        let (mut data, mut trailers, mut whole) = (BytesMut::new(), HeaderMap::new(), true);
        while let Some(frame) = body.frame().await {
            match frame.map(Frame::into_data) {
                Ok(Ok(bytes)) => data.put(bytes),
                Ok(Err(frame)) => trailers = frame.into_trailers().unwrap_or_default(),
                Err(_) => whole = false,
            }
            if !whole {
                break;
            }
        }
        let grpc = |headers: &HeaderMap| headers.get("grpc-status").and_then(|it| it.to_str().ok()?.parse().ok());
        let grpc = grpc(&trailers).or_else(|| grpc(&parts.headers));
        if grpc.is_some() && data.len() >= 5 {
            data.advance(5);
        }
        let flags = parts.extensions.get::<ResponseFlags>().map_or_else(|| "-".to_owned(), |it| it.flags.to_string());
        Self {
            status: parts.status.as_u16(),
            grpc,
            headers: parts.headers,
            body: String::from_utf8_lossy(&data).into_owned(),
            flags,
            whole,
        }
    }

    /// A success in the words of its kind: 200, and of gRPC status 0.
    pub(crate) fn is_ok(&self) -> bool {
        self.status == 200 && self.grpc.unwrap_or(0) == 0 && self.whole
    }

    /// What stands for this HTTP status in the answer to a request of this kind: itself, or a gRPC status made of it.
    pub(crate) fn is(&self, kind: Kind, status: u16) -> bool {
        if kind.is_grpc() { self.grpc == Some(mesh_core::outcome::grpc_of_http(status)) } else { self.status == status }
    }

    /// The values of a header, joined by `,`; empty when it is not there.
    pub(crate) fn header(&self, name: &str) -> String {
        joined(&self.headers, name)
    }
}
