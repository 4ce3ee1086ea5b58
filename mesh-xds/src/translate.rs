//! xDS resources to configuration and back; each file below decodes and encodes one subject, so a round trip is one test.
//!
//! Decoding takes one resource as it came over the wire and gives plain [`mesh_core::config`] data, with the list of
//! fields that have no effect here ([`Decoded::ignored`]), or an error that names the resource and the field. What would
//! change the meaning of a condition or of a security setting is never ignored: an unknown field in a matcher, a TLS
//! context or a filter chain match refuses the resource (or makes the port refuse its callers).
//!
//! Encoding gives the resources of one client, named and shaped as Istio's control plane does for its sidecars, so that
//! other clients than ours understand them.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use bytes::Bytes;
use mesh_core::config::{
    Cluster, Config, Discovery, Endpoints, GatewayChain, HttpSettings, Inbound, Name, RouteTable, Serving,
};
use prost::Message;

use self::read::{Ignored, Wrong, wrong};
pub use self::{
    report::FieldReport,
    secret::{Certificate, Secret, TRUST, Told, Validation},
    tls::{OWN, ROOTS},
};
use crate::{
    ads::{self, Resource, ResourceSet, TypeUrl},
    graph::Part,
    profile::Context,
};

mod balancer;
mod breaker;
mod cluster;
mod connection;
mod dns;
mod endpoint;
mod ext_authz;
mod extra;
mod filter;
mod grpc;
mod hash;
mod header;
mod health_check;
mod jwt;
mod listener;
mod matcher;
mod outlier;
mod own_filter;
mod path_template;
mod policy;
mod rate_limit;
mod rbac;
mod read;
mod report;
pub(crate) mod route;
mod secret;
mod session;
mod subset;
mod telling;
mod tls;
mod value;

pub(crate) use self::value::encode_duration;

pub(crate) use extra::from_json;

/// A resource read.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded<T> {
    /// The name the resource gives itself.
    pub name: Name,
    /// What it means.
    pub value: T,
    /// Paths of the fields set in it that have no effect here, sorted, each once, without list indices.
    pub ignored: Vec<String>,
}

/// A listener, as far as it concerns a process without a proxy.
#[derive(Clone, Debug, PartialEq)]
pub enum Listener {
    /// Requests this process sends to a port.
    Outbound {
        /// The destination port; of a gateway, the port its listener is declared with.
        port: u16,
        /// Where its routes are.
        routes: RouteSource,
        /// What holds for all of them.
        settings: Arc<HttpSettings>,
    },
    /// What this process's servers demand, by the port they listen on.
    Inbound(Vec<(u16, Arc<Inbound>)>),
    /// Requests to what is dialled by the listener's name (gRPC's profile).
    Target {
        /// Where its routes are.
        routes: RouteSource,
        /// What holds for all of them.
        settings: Arc<HttpSettings>,
    },
    /// What the server that listens on one address is told by the listener's name (gRPC's profile).
    Server(Arc<ServerListener>),
    /// What a gateway takes in at a port.
    Gateway(Arc<GatewayListener>),
    /// Nothing of it applies here, and why.
    Ignored(String),
}

/// The listener of a gateway.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewayListener {
    /// The port it was declared with.
    pub port: u16,
    /// Its chains, in order.
    pub parts: Vec<GatewayPart>,
    /// What requests must pass, whatever their chain.
    pub policy: Arc<Inbound>,
}

/// A chain of a gateway's listener.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewayPart {
    /// Which connections, and what becomes of them; certificates have names only.
    pub chain: Arc<GatewayChain>,
    /// Where the routes of its requests are, and what holds for all of them.
    pub http: Option<(RouteSource, Arc<HttpSettings>)>,
    /// It takes plain HTTP, and all connections.
    pub plain: bool,
}

/// The listener of a server, whose chains may have their routes elsewhere. Source: gRFC A36.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerListener {
    /// All of it but those routes.
    pub serving: Serving,
    /// The routes of each chain, in order; of the default chain last, if there is one.
    pub routes: Vec<RouteSource>,
}

/// Where the routes of a listener are.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteSource {
    /// In a resource of their own, of this name.
    Rds(Name),
    /// In the listener.
    Inline(Arc<RouteTable>),
}

/// For whom [`encode`] writes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Shape {
    /// A workload: listeners `0.0.0.0_PORT` with routes `PORT`, and `virtualInbound`.
    #[default]
    Sidecar,
    /// A gateway: listeners `0.0.0.0_PORT` with routes `http.PORT`.
    Gateway,
    /// A client of gRPC's own: listeners by the name it dials, `HOST:PORT`, with routes `outbound|PORT||HOST`.
    Grpc,
}

/// What a server of gRPC's own asks for its listener by: `%s` is the address it listens on. Source: Istio, gRFC A36
/// `server_listener_resource_name_template`.
pub const GRPC_SERVERS: &str = "xds.istio.io/grpc/lds/inbound/%s";

/// Why a resource cannot be used. One line; names the resource and the field.
#[derive(Clone, Debug, PartialEq)]
pub struct ResourceError {
    /// Its type.
    pub kind: TypeUrl,
    /// Its name; empty when it could not be read so far.
    pub resource: String,
    /// The field's path, with indices and names; empty when it is the whole.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for ResourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}: ", self.kind, self.resource)?;
        if !self.field.is_empty() {
            write!(f, "field {}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ResourceError {}

/// Reads a `Listener` as a sidecar does.
pub fn listener(body: &Bytes) -> Result<Decoded<Listener>, ResourceError> {
    decode(TypeUrl::Listener, body, &sidecar(), listener::decode)
}

/// Reads a `RouteConfiguration` as a sidecar does.
pub fn route(body: &Bytes) -> Result<Decoded<Arc<RouteTable>>, ResourceError> {
    decode(TypeUrl::Route, body, &sidecar(), |body, name, ignored| route::decode(body, name, ignored).map(Arc::new))
}

/// Reads a `Cluster` as a sidecar does. Its endpoints are empty unless they are listed in it.
pub fn cluster(body: &Bytes) -> Result<Decoded<Arc<Cluster>>, ResourceError> {
    decode(TypeUrl::Cluster, body, &sidecar(), |body, name, ignored| cluster::decode(body, name, ignored).map(Arc::new))
}

/// Reads a `ClusterLoadAssignment` as a sidecar does.
pub fn endpoints(body: &Bytes) -> Result<Decoded<Arc<Endpoints>>, ResourceError> {
    decode(TypeUrl::Endpoint, body, &sidecar(), |body, name, ignored| {
        endpoint::decode(body, name, ignored).map(Arc::new)
    })
}

/// Reads a resource by the rules of `context`.
///
/// # Errors
/// It cannot be used; secrets with keys never can.
pub fn read(kind: TypeUrl, body: &Bytes, context: &Context) -> Result<Decoded<Part>, ResourceError> {
    decode(kind, body, context, |body, name, ignored| {
        Ok(match kind {
            TypeUrl::Listener => Part::Listener(listener::decode(body, name, ignored)?),
            TypeUrl::Route => Part::Route(Arc::new(route::decode(body, name, ignored)?)),
            TypeUrl::Cluster => Part::Cluster(Arc::new(cluster::decode(body, name, ignored)?)),
            TypeUrl::Endpoint => Part::Endpoints(Arc::new(endpoint::decode(body, name, ignored)?)),
            TypeUrl::Secret => match secret::decode(body, name, ignored)? {
                // A gateway's certificates are for others than it to make.
                Secret::Certificate(_) if !context.gateway || *name == *tls::OWN => {
                    return Err(wrong("tls_certificate", "keys are not taken from a control plane"));
                }
                secret => Part::Secret(secret),
            },
        })
    })
}

/// Rules of the profile of Envoy, with a server that is trusted, as every server is there.
fn sidecar() -> Context {
    Context { trusted: true, ..Context::default() }
}

/// Reads a `Secret`.
pub fn secret(body: &Bytes) -> Result<Decoded<Secret>, ResourceError> {
    decode(TypeUrl::Secret, body, &sidecar(), secret::decode)
}

/// What becomes of each field that is set in a resource (C20).
pub fn fields(kind: TypeUrl, body: &Bytes) -> FieldReport {
    let ignored = match kind {
        TypeUrl::Listener => match listener(body) {
            Ok(decoded) => return FieldReport::listener(body, &decoded.value, &decoded.ignored),
            Err(error) => Err(error),
        },
        TypeUrl::Route => route(body).map(|decoded| decoded.ignored),
        TypeUrl::Cluster => cluster(body).map(|decoded| decoded.ignored),
        TypeUrl::Endpoint => endpoints(body).map(|decoded| decoded.ignored),
        TypeUrl::Secret => secret(body).map(|decoded| decoded.ignored),
    };
    match ignored {
        Ok(ignored) => FieldReport::read(kind, body, &ignored),
        Err(error) => FieldReport::from(&error),
    }
}

/// [`fields`] of what has been read already.
pub(crate) fn fields_of(kind: TypeUrl, body: &Bytes, decoded: &Decoded<Part>) -> FieldReport {
    match &decoded.value {
        Part::Listener(listener) => FieldReport::listener(body, listener, &decoded.ignored),
        _ => FieldReport::read(kind, body, &decoded.ignored),
    }
}

/// What a resource calls itself is kept in many places (OP15).
const LONGEST_NAME: usize = 4096;

fn decode<T>(
    kind: TypeUrl,
    body: &Bytes,
    context: &Context,
    read: impl FnOnce(&Bytes, &mut String, &mut Ignored) -> Result<T, Wrong>,
) -> Result<Decoded<T>, ResourceError> {
    let mut name = String::new();
    let mut ignored = Ignored::by(context);
    match read(body, &mut name, &mut ignored) {
        Ok(_) if name.len() > LONGEST_NAME => {
            let message = format!("is longer than {LONGEST_NAME} bytes");
            let start = name.chars().take(64).collect();
            Err(ResourceError { kind, resource: start, field: "name".to_owned(), message })
        }
        Ok(value) => Ok(Decoded { name: name.into(), value, ignored: ignored.into_list() }),
        Err(Wrong { field, message }) => {
            // What is no message of that type may still have a name.
            if name.is_empty() {
                ads::name_of(body).unwrap_or_default().clone_into(&mut name);
            }
            Err(ResourceError { kind, resource: name, field, message })
        }
    }
}

/// Adds the secrets that say what is to be trusted: the one that [`encode`]'s TLS contexts name, and [`TRUST`].
pub fn encode_told(told: &Told, set: &mut ResourceSet) {
    secret::encode_told(told, set);
}

/// Adds the secret by which [`encode`]'s TLS contexts name the client's own certificate, with its key, in PEM. For clients that make
/// no certificate signing request, such as an Envoy without an agent.
pub fn encode_certificate(chain: &str, key: &str, set: &mut ResourceSet) {
    secret::encode_certificate(tls::OWN, chain, key, set);
}

/// The resources that say what `config` says: listeners, routes, clusters, endpoints.
pub fn encode(config: &Config, shape: Shape) -> ResourceSet {
    Encoder::default().encode(config, shape)
}

/// Writes the views of many clients, and what they have in common once.
#[derive(Debug, Default)]
pub struct Encoder {
    /// By name, what was written of clusters of that name, with what it was made of.
    clusters: BTreeMap<Name, Vec<Written>>,
    round: u64,
}

#[derive(Debug)]
struct Written {
    of: Arc<Cluster>,
    /// Written in gRPC's own words.
    grpc: bool,
    cluster: Option<Resource>,
    endpoints: Option<(Name, Resource)>,
    round: u64,
}

impl Encoder {
    /// The resources that say what `config` says, as [`encode`] gives them.
    pub fn encode(&mut self, config: &Config, shape: Shape) -> ResourceSet {
        let mut set = ResourceSet::default();
        self.encode_routes(config, shape, &mut set);
        for (name, cluster) in config.clusters.iter() {
            let written = self.cluster(name, cluster, shape == Shape::Grpc);
            if let Some(resource) = &written.cluster {
                set.insert_resource(TypeUrl::Cluster, name.clone(), resource.clone());
            }
            if let Some((name, resource)) = &written.endpoints {
                set.insert_resource(TypeUrl::Endpoint, name.clone(), resource.clone());
            }
        }
        set
    }

    /// Puts one cluster with its endpoints in place of what a set has of it; false where the set has it in another form, and where
    /// it has it not at all.
    pub fn encode_cluster(&mut self, cluster: &Arc<Cluster>, shape: Shape, set: &mut ResourceSet) -> bool {
        let written = self.cluster(&cluster.name, cluster, shape == Shape::Grpc);
        let parts = [
            (TypeUrl::Cluster, written.cluster.as_ref().map(|resource| (&cluster.name, resource))),
            (TypeUrl::Endpoint, written.endpoints.as_ref().map(|(name, resource)| (name, resource))),
        ];
        for (kind, part) in parts {
            let known = set.get(kind, part.map_or(&cluster.name, |(name, _)| name));
            match (known, part) {
                (Some(known), Some((_, resource))) if known == resource => {}
                (Some(_), Some((name, resource))) => set.insert_resource(kind, name.clone(), resource.clone()),
                (None, None) => {}
                _ => return false,
            }
        }
        true
    }

    /// Only the listeners and routes.
    pub fn encode_routes(&mut self, config: &Config, shape: Shape, set: &mut ResourceSet) {
        match shape {
            Shape::Grpc => return grpc::encode_routes(config, set),
            Shape::Gateway => return listener::gateway::encode(config, set),
            Shape::Sidecar => {}
        }
        for (&port, table) in &config.outbound {
            let listener = format!("0.0.0.0_{port}");
            let routes = if table.name.is_empty() { port.to_string() } else { table.name.to_string() };
            let none = HttpSettings::default();
            let settings = config.http.get(&port).map_or(&none, |settings| &**settings);
            let message = listener::encode_outbound(&listener, port, &routes, settings);
            set.insert(TypeUrl::Listener, listener, message.encode_to_vec());
            set.insert(TypeUrl::Route, routes.as_str(), route::encode(&routes, table).encode_to_vec());
        }
        encode_inbound(config, set);
    }

    /// Forgets what was not written since the last time.
    pub fn sweep(&mut self) {
        let round = self.round;
        self.clusters.retain(|_, written| {
            written.retain(|one| one.round == round);
            !written.is_empty()
        });
        self.round += 1;
    }

    /// Forgets the other forms of what was written since the last time.
    pub fn sweep_written(&mut self) {
        let round = self.round;
        for written in self.clusters.values_mut().filter(|written| written.iter().any(|one| one.round == round)) {
            written.retain(|one| one.round == round);
        }
        self.round += 1;
    }

    fn cluster(&mut self, name: &Name, cluster: &Arc<Cluster>, grpc: bool) -> &Written {
        let all = self.clusters.entry(name.clone()).or_default();
        let same = |one: &Written| one.grpc == grpc && (Arc::ptr_eq(&one.of, cluster) || one.of == *cluster);
        let known = all.iter().position(same);
        let at = known.unwrap_or_else(|| {
            all.push(write(cluster, grpc));
            all.len() - 1
        });
        let one = &mut all[at];
        one.round = self.round;
        one
    }
}

fn write(of: &Arc<Cluster>, grpc: bool) -> Written {
    let written = |cluster, endpoints| Written { of: of.clone(), grpc, cluster, endpoints, round: 0 };
    if grpc {
        return match grpc::encode_cluster(of) {
            Some((cluster, endpoints)) => {
                let endpoints = endpoints.map(|(name, body)| (name, Resource::new(body)));
                written(Some(Resource::new(cluster)), endpoints)
            }
            None => written(None, None),
        };
    }
    let endpoints = match &of.discovery {
        Discovery::Eds(name) => {
            Some((name.clone(), Resource::new(endpoint::encode(name, &of.endpoints).encode_to_vec())))
        }
        _ => None,
    };
    written(Some(Resource::new(cluster::encode(of).encode_to_vec())), endpoints)
}

/// Adds the listeners by which servers of gRPC's own, at this address, are told what they serve.
pub fn encode_grpc_servers(config: &Config, address: IpAddr, set: &mut ResourceSet) {
    grpc::encode_servers(config, address, set);
}

/// Adds the listener with the policy of the client's own servers, if it has any.
pub fn encode_inbound(config: &Config, set: &mut ResourceSet) {
    if !config.inbound.is_empty() {
        let ports = config.inbound.iter().map(|(port, inbound)| (*port, &**inbound));
        let message = listener::encode_inbound(ports);
        set.insert(TypeUrl::Listener, listener::VIRTUAL_INBOUND, message.encode_to_vec());
    }
}
