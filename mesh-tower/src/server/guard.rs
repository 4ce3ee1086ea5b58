//! What a request goes through before the application gets it: it is brought into one form, then whatever guards the port is
//! asked in order. Rules are decided by the snapshot; whom else a guard asks is asked here.
//!
//! The form comes first, so that rules, routes, logs and the application see one path and one host. A request that says its
//! host twice, or differently, is refused: whoever reads it next might take the other (gRFC A41).

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts, uri::PathAndQuery};
use mesh_core::{
    admit::{Admit, InboundView},
    authz::{Heard, NoteKind},
    claims::Claims,
    config::{Guard, Inbound, MtlsMode, Underscores},
    identity::SpiffeId,
    outcome::Flags,
    path::{Normal, normalize},
    request::RequestView,
    snapshot::Snapshot,
};

use super::{Caller, FORWARDED_CLIENT_CERT, Server, body::Begun};
use crate::{context::Context, source};

mod ask;
mod token;

pub(super) const UNDECIDED: &str = "this cannot be decided";

/// Why the application does not get a request.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) flags: Flags,
    /// For the body.
    pub(super) reason: String,
    /// For the log; Envoy `%RESPONSE_CODE_DETAILS%`.
    pub(super) details: Cow<'static, str>,
    /// What the answer says beside.
    pub(super) headers: HeaderMap,
    /// The gRPC status of the answer to a gRPC call, where it is not what the HTTP status amounts to.
    pub(super) grpc: Option<u32>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, flags: Flags, reason: impl Into<String>) -> Box<Self> {
        let (details, headers) = (Cow::Borrowed("refused_by_policy"), HeaderMap::new());
        Box::new(Self { status, flags, reason: reason.into(), details, headers, grpc: None })
    }

    fn malformed(reason: &'static str) -> Box<Self> {
        let mut refusal = Self::new(StatusCode::BAD_REQUEST, Flags::NONE, reason);
        refusal.details = "malformed_request".into();
        refusal
    }
}

/// What guards found out of a request, for those behind them.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) heard: Heard,
    pub(super) claims: Option<Claims>,
}

impl Server {
    /// Brings a request to a workload into the one form that all look at.
    pub(super) fn straighten(&self, caller: &Caller, parts: &mut Parts) -> Result<(), Box<Refusal>> {
        let port = self.role.port();
        let snapshot = self.live.load();
        let Some(inbound) = snapshot.as_ref().and_then(|snapshot| snapshot.inbound(port)) else {
            // Who called is told by the handshake alone.
            parts.headers.remove(FORWARDED_CLIENT_CERT);
            return Ok(());
        };
        self.tell_certificate(inbound.client_cert, caller, &mut parts.headers);
        no_underscores(&mut parts.headers, inbound.underscores)?;
        one_host(parts)?;
        one_path(parts, inbound)
    }

    /// Why the application does not get it, if it does not.
    pub(super) async fn refusal(
        &self,
        caller: &Caller,
        (parts, body): (&mut Parts, &mut Begun),
        context: &Context,
    ) -> Option<Box<Refusal>> {
        let port = self.role.port();
        if let Some(why) = caller.refused.get() {
            return Some(Refusal::new(StatusCode::FORBIDDEN, Flags::NONE, why.clone()));
        }
        if context.deadline.is_some_and(|deadline| deadline <= source::instant()) {
            let reason = "the deadline had passed on arrival";
            return Some(Refusal::new(StatusCode::GATEWAY_TIMEOUT, Flags::UT, reason));
        }
        debug_assert!(caller.mode != MtlsMode::Strict || caller.peer.is_some(), "STRICT has proved who calls");
        let Some(snapshot) = self.live.load() else {
            // Serving begins with the first configuration; one that cannot be used leaves a chain without any.
            return Some(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Flags::NONE, "there is no configuration yet"));
        };
        // The handshake held the default; a plaintext port without configuration is one outside any mesh.
        let inbound = snapshot.inbound(port)?;
        let mut known = Known::default();
        let refusal = match inbound.guards.is_empty() {
            true => judge(&snapshot, inbound, caller, port, parts, 0, &mut known).err(),
            false => Box::pin(self.pass((&snapshot, inbound), caller, port, (parts, body), &mut known)).await.err(),
        };
        let of_request = (parts.method.as_str(), parts.uri.path());
        tell(&known.heard, caller.peer.as_ref(), caller.address, of_request);
        if let Some(refusal) = &refusal {
            let peer = caller.peer.as_ref().map_or("", SpiffeId::as_str);
            tracing::debug!(target: "mesh::authz", peer, address = %caller.address, method = %parts.method,
                path = parts.uri.path(), status = refusal.status.as_u16(), details = %refusal.details, "refused");
        }
        refusal
    }

    async fn pass(
        &self,
        (snapshot, inbound): (&Snapshot, &Inbound),
        caller: &Caller,
        port: u16,
        (parts, body): (&mut Parts, &mut Begun),
        known: &mut Known,
    ) -> Result<(), Box<Refusal>> {
        let mut from = 0;
        while let Some(at) = judge(snapshot, inbound, caller, port, parts, from, known)? {
            match inbound.guards.get(at) {
                Some(Guard::ExtAuthz(service)) => self.ask(service, caller, parts, body).await?,
                Some(Guard::Jwt(config)) => {
                    let jwt = snapshot.jwt(port, at);
                    let jwt = jwt.ok_or_else(|| Refusal::new(StatusCode::FORBIDDEN, Flags::NONE, UNDECIDED))?;
                    known.claims = Some(self.authenticate(config, jwt, caller, port, parts).await?);
                }
                // Never named: rules are decided by the snapshot, and it has as many guards as its configuration.
                Some(Guard::Rbac(_)) | None => {
                    return Err(Refusal::new(StatusCode::FORBIDDEN, Flags::NONE, UNDECIDED));
                }
            }
            from = at + 1;
        }
        Ok(())
    }
}

/// Decides as far as the snapshot can: the place of a guard that must be asked, or `None` when the request may pass.
fn judge(
    snapshot: &Snapshot,
    inbound: &Inbound,
    caller: &Caller,
    port: u16,
    parts: &Parts,
    from: usize,
    known: &mut Known,
) -> Result<Option<usize>, Box<Refusal>> {
    let direct = caller.address.ip().to_canonical();
    let mut request = RequestView::of(parts, Some(port));
    request.source = Some(direct);
    // A caller may write anything for a scheme; what it is the connection tells.
    request.scheme = if caller.secure { "https" } else { "http" };
    let view = InboundView {
        port,
        peer: caller.peer.as_ref(),
        names: caller.names.as_deref(),
        claims: known.claims.as_ref(),
        local: caller.local,
        remote: inbound.remote_behind(
            direct,
            inbound.believes(caller.peer.as_ref().map(SpiffeId::as_str)),
            &parts.headers,
            caller.appended,
        ),
        server_name: &caller.server_name,
        bytes: false,
        request,
    };
    match snapshot.admit(&view, from, &mut known.heard) {
        Admit::Allow => Ok(None),
        Admit::Ask { at } => Ok(Some(at)),
        Admit::Refuse { status, flags, reason, details } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN);
            let mut refusal = Refusal::new(status, flags, reason);
            if !details.is_empty() {
                refusal.details = details.into();
            }
            Err(refusal)
        }
    }
}

/// Tells what rules said that is not enforced (AZ6, AZ7).
pub(super) fn tell(heard: &Heard, peer: Option<&SpiffeId>, address: SocketAddr, (method, path): (&str, &str)) {
    for note in &heard.notes {
        let (allowed, policy) = (note.verdict.allowed, note.verdict.policy.as_deref().unwrap_or("none"));
        let peer = peer.map_or("", SpiffeId::as_str);
        match note.kind {
            NoteKind::Audit | NoteKind::Log => tracing::info!(
                target: "mesh::audit", policy, allowed, peer, %address, method, path,
                "authorization"
            ),
            NoteKind::Shadow => {
                let result = if allowed { "allowed" } else { "denied" };
                metrics::counter!("mesh_authorization_shadow_total", "result" => result).increment(1);
                tracing::debug!(
                    target: "mesh::authz", policy, allowed, peer, prefix = &*note.prefix, method, path,
                    "not enforced"
                );
            }
        }
    }
}

/// Headers with an underscore are treated as the port says: to some applications they are others with a hyphen (SV11).
fn no_underscores(headers: &mut HeaderMap, wanted: Underscores) -> Result<(), Box<Refusal>> {
    let has_one = |name: &HeaderName| name.as_str().contains('_');
    match wanted {
        Underscores::Allow => {}
        Underscores::Reject if headers.keys().any(has_one) => {
            return Err(Refusal::malformed("a header's name has an underscore"));
        }
        Underscores::Reject => {}
        Underscores::Drop => {
            for name in headers.keys().filter(|name| has_one(name)).cloned().collect::<Vec<_>>() {
                headers.remove(name);
            }
        }
    }
    Ok(())
}

/// The request names one host, once.
fn one_host(parts: &Parts) -> Result<(), Box<Refusal>> {
    let named = parts.uri.authority();
    if named.is_some_and(|named| named.as_str().contains('@') || ends_in_dot(named.as_str())) {
        return Err(Refusal::malformed("the authority is no host"));
    }
    let mut lines = parts.headers.get_all(header::HOST).iter();
    let host = match (lines.next(), lines.next()) {
        (_, Some(_)) => return Err(Refusal::malformed("there are several hosts")),
        (Some(line), None) => match line.to_str() {
            // With a dot at its end it is the same host to whoever asks DNS, and another to whoever compares.
            Ok(host) if !host.contains(['@', ',', '/', ' ', '\\']) && !ends_in_dot(host) => Some(host),
            _ => return Err(Refusal::malformed("the host is no host")),
        },
        (None, None) => None,
    };
    match (named, host) {
        (Some(named), Some(host)) if !named.as_str().eq_ignore_ascii_case(host) => {
            return Err(Refusal::malformed("the host and the authority differ"));
        }
        // Of HTTP/1.0 too: rules about hosts would not meet a request that an application answers for its first one.
        (None, None | Some("")) => {
            return Err(Refusal::malformed("there is no host"));
        }
        _ => {}
    }
    Ok(())
}

fn ends_in_dot(authority: &str) -> bool {
    let port = authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    port.map_or(authority, |(host, _)| host).ends_with('.')
}

/// The path has the form the port asks for.
fn one_path(parts: &mut Parts, inbound: &Inbound) -> Result<(), Box<Refusal>> {
    let path = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
    match path.as_bytes().first() {
        Some(b'/') => {}
        None if parts.uri.path().is_empty() && parts.method == Method::CONNECT => {
            return Err(Refusal::new(StatusCode::NOT_FOUND, Flags::NR, "nothing here is connected through"));
        }
        _ if path == "*" && parts.method == Method::OPTIONS => return Ok(()),
        _ => return Err(Refusal::malformed("the path does not begin with a slash")),
    }
    let (path, redirect) = match normalize(path, inbound.path) {
        Normal::Same => return Ok(()),
        Normal::Changed(path) => (path, false),
        Normal::Redirect(path) => (path, true),
        Normal::Refused(why) => return Err(Refusal::malformed(why)),
    };
    if redirect {
        let mut refusal = Refusal::new(StatusCode::TEMPORARY_REDIRECT, Flags::NONE, "");
        refusal.details = "path_normalization".into();
        let location = HeaderValue::try_from(path).map_err(|_| Refusal::malformed("the path has no plain form"))?;
        refusal.headers.insert(header::LOCATION, location);
        return Err(refusal);
    }
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.path_and_query = PathAndQuery::try_from(path).ok();
    // Without a scheme an authority alone would be another form of a URI; with a path it always had both or none.
    parts.uri = Uri::from_parts(uri).map_err(|_| Refusal::malformed("the path has no plain form"))?;
    Ok(())
}

/// The address a listener is known to take connections at; `None` if it takes them at several.
pub(super) fn own_address(address: std::io::Result<std::net::SocketAddr>) -> Option<IpAddr> {
    address.ok().map(|address| address.ip().to_canonical()).filter(|address| !address.is_unspecified())
}
