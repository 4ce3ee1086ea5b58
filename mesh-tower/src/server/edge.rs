//! What a gateway does with connections from outside before their requests are like any others: whom they ask for, what they may
//! not say of themselves, and what is said of them.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::{HeaderMap, HeaderName, HeaderValue, request::Parts};
use mesh_core::config::{GatewayChain, GatewayTo, Inbound, MtlsMode, Name};

use super::{Caller, FORWARDED_CLIENT_CERT, Server, guard::UNDECIDED, relay::Visitor};
use crate::{
    connect::Io,
    tls::{Accepted, Chosen, GatewayAcceptor, Rewound, TlsError},
};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");

/// A connection that may speak.
#[allow(clippy::large_enum_variant, reason = "one a connection, taken apart at once")]
pub(super) enum Shaken<I> {
    Requests(Accepted<I>, Caller),
    Bytes(Accepted<I>, Arc<GatewayChain>, Visitor),
    /// It is closed, and why.
    Refused(String),
}

/// The routes of a request, where they are not those of a port. Set by a gateway alone.
#[derive(Clone, Debug)]
pub(crate) struct OnTarget(pub(crate) Name);

impl Server {
    /// Of a port that nothing is said about requests are plain HTTP.
    pub(super) async fn shake_outside<I: Io>(
        &self,
        acceptor: &GatewayAcceptor,
        stream: Rewound<I>,
        address: SocketAddr,
        local: Option<IpAddr>,
    ) -> Result<Shaken<I>, TlsError> {
        let snapshot = self.live.load();
        let port = self.role.port();
        if let Some(inbound) = snapshot.as_ref().and_then(|snapshot| snapshot.inbound(port)) {
            self.prepare(inbound);
        }
        let (accepted, chain) = match snapshot.as_ref().and_then(|snapshot| snapshot.gateway(port)) {
            None => (acceptor.of_mesh().accept_begun(stream, MtlsMode::Disable).await?, None),
            Some(gateway) => match acceptor.accept(stream, gateway).await? {
                Chosen::Bytes(io, chain, name) => {
                    let visitor = Visitor::new(&io, (address, local), &name);
                    let refused = snapshot.as_ref().map_or_else(
                        || Some(UNDECIDED.to_owned()),
                        |snapshot| self.bytes_refused(snapshot, &chain, &visitor),
                    );
                    return Ok(refused.map_or_else(|| Shaken::Bytes(io, chain, visitor), Shaken::Refused));
                }
                Chosen::Requests(io, chain) => (io, Some(chain)),
            },
        };
        let routes = chain.as_ref().and_then(|chain| match &chain.to {
            GatewayTo::Http(name) => Some(name.clone()),
            GatewayTo::Bytes(_) => None,
        });
        let caller = Caller::new(&accepted, address, local, MtlsMode::Disable);
        let caller = Caller { routes, appended: 1, outside: chain, ..caller };
        Ok(Shaken::Requests(accepted, caller))
    }
}

/// What the world outside may not say about itself, and what the mesh says about it. Source: Envoy at the edge with
/// `use_remote_address`: internal headers are removed, the caller's address is appended.
pub(super) fn receive(caller: &Caller, parts: &mut Parts, inbound: Option<&Inbound>) {
    if let Some(routes) = &caller.routes {
        parts.extensions.insert(OnTarget(routes.clone()));
    }
    let headers = &mut parts.headers;
    let internal = headers.keys().filter(|name| name.as_str().starts_with("x-envoy-")).cloned();
    for name in internal.collect::<Vec<_>>() {
        headers.remove(name);
    }
    headers.remove(FORWARDED_CLIENT_CERT);
    let direct = caller.address.ip().to_canonical();
    let trusts = inbound.is_some_and(|inbound| inbound.trusted_hops.is_some());
    let remote = inbound.map_or(Some(direct), |inbound| inbound.remote(direct, false, headers));
    append(headers, direct);
    if let Some(remote) = remote.filter(is_external)
        && let Ok(value) = HeaderValue::from_str(&remote.to_string())
    {
        headers.insert(EXTERNAL_ADDRESS, value);
    }
    // A proxy in front that is trusted knows how it was spoken to.
    if !(trusts && headers.contains_key(FORWARDED_PROTO)) {
        let scheme = if caller.secure { "https" } else { "http" };
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
}

/// Writes the address behind whatever was said before, in one line.
fn append(headers: &mut HeaderMap, direct: IpAddr) {
    let address = direct.to_string();
    let lines = headers.get_all(FORWARDED_FOR).iter().filter_map(|line| line.to_str().ok());
    let mut forwarded: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    forwarded.push(&address);
    if let Ok(value) = HeaderValue::from_str(&forwarded.join(",")) {
        headers.insert(FORWARDED_FOR, value);
    }
}

/// Is it an address of the world, and not of some network of one's own? Source: Envoy `x-envoy-external-address`.
fn is_external(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !(address.is_private() || address.is_loopback()),
        IpAddr::V6(address) => !(address.is_loopback() || address.is_unique_local()),
    }
}
