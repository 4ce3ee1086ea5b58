//! The decision for one inbound request: may this caller ask this of us?
//!
//! Mutual TLS itself is the acceptor's: a caller that must not speak at all never gets here. What is asked here is what
//! the port's policy demands of a request: an identity, a chain this library can enforce, whatever guards the port in their
//! order, a route. Rules are decided here; who else must be asked is said ([`Admit::Ask`]), and the decision goes on from
//! there once the answer is known.

use std::{net::IpAddr, sync::Arc};

use crate::{
    authz::{Guard, Heard},
    claims::Claims,
    config::{GatewayChain, Inbound, MtlsMode},
    error::NoRoute,
    identity::{SpiffeId, names_match},
    outcome::Flags,
    request::RequestView,
    route::Kind,
    snapshot::Snapshot,
};

/// An inbound request as policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct InboundView<'a> {
    /// The port it came in by.
    pub port: u16,
    /// Who the caller proved to be; `None` in plaintext.
    pub peer: Option<&'a SpiffeId>,
    /// Of a caller that is nobody of the mesh and has shown a certificate all the same, what that says: its URIs, else its hosts.
    /// `None` if it has shown none. Source: Envoy, of `authenticated`.
    pub names: Option<&'a [String]>,
    /// What its verified tokens say; `None` while none was verified.
    pub claims: Option<&'a Claims>,
    /// The address it came in by; `None` if nobody knows, and then no condition on it is met or not met.
    pub local: Option<IpAddr>,
    /// Where it comes from, told by trusted proxies in front ([`Inbound::remote`]); `None` as for `local`. The other end
    /// of the connection is [`RequestView::source`].
    pub remote: Option<IpAddr>,
    /// The server's name in the TLS handshake; empty in plaintext.
    pub server_name: &'a str,
    /// It is a connection whose bytes are handed on: of its requests nobody knows anything.
    pub bytes: bool,
    /// The request; of bytes only where they come from.
    pub request: RequestView<'a>,
}

impl<'a> InboundView<'a> {
    /// A request in plaintext of which nothing else is known than where it comes from, by itself.
    pub fn of(port: u16, request: RequestView<'a>) -> Self {
        Self {
            port,
            peer: None,
            names: None,
            claims: None,
            local: None,
            remote: request.source,
            server_name: "",
            bytes: false,
            request,
        }
    }
}

/// What happens to an inbound request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Admit {
    /// The application gets it.
    Allow,
    /// It is answered here.
    Refuse {
        /// With this status.
        status: u16,
        /// And these flags in telemetry.
        flags: Flags,
        /// Why; for the body and the log.
        reason: String,
        /// Which rule decided, for the log; empty if none did. Envoy `%RESPONSE_CODE_DETAILS%`.
        details: String,
    },
    /// The guard at this place of [`Inbound::guards`] must be asked; if it lets the request pass, the decision goes on
    /// behind it.
    Ask {
        /// Its place.
        at: usize,
    },
}

/// What the body of a request says that rules refuse. Source: Envoy.
const ACCESS_DENIED: &str = "RBAC: access denied";

impl Snapshot {
    /// Decides one inbound request, from the guard at place `from` on. A port without configuration demands what
    /// [`Inbound::default`] does: mutual TLS. What rules have to tell is added to `heard`, which guards behind them look at.
    pub fn admit(&self, view: &InboundView<'_>, from: usize, heard: &mut Heard) -> Admit {
        let Some(inbound) = self.inbound(view.port) else { return admit_peer(&Inbound::default(), view) };
        if from == 0 {
            if let Some(why) = &inbound.refused {
                return refuse(503, Flags::NONE, why.clone());
            }
            match admit_peer(inbound, view) {
                Admit::Allow => {}
                refused => return refused,
            }
        }
        for (at, guard) in self.guards(view.port).iter().enumerate().skip(from) {
            match guard {
                Guard::Rbac(engine) => {
                    let verdict = engine.decide(view, heard);
                    if !verdict.allowed {
                        let (reason, details) = (ACCESS_DENIED.to_owned(), verdict.details());
                        return Admit::Refuse { status: 403, flags: Flags::NONE, reason, details };
                    }
                }
                Guard::Ask { when: Some(wanted) } if !heard.found(wanted) => {}
                Guard::Ask { .. } | Guard::Jwt(_) => return Admit::Ask { at },
            }
        }
        self.admit_route(view)
    }

    /// Decides over a connection whose bytes are handed on, by the rules of its chain.
    pub fn admit_bytes(&self, chain: &Arc<GatewayChain>, view: &InboundView<'_>, heard: &mut Heard) -> Admit {
        if let Some(why) = self.inbound(view.port).and_then(|inbound| inbound.refused.clone()) {
            return refuse(503, Flags::NONE, why);
        }
        let Some(rules) = self.connection_rules(view.port, chain) else {
            return refuse(403, Flags::NONE, "what holds for this connection is not known".to_owned());
        };
        for engine in rules {
            let verdict = engine.decide(view, heard);
            if !verdict.allowed {
                let (reason, details) = (ACCESS_DENIED.to_owned(), verdict.details());
                return Admit::Refuse { status: 403, flags: Flags::NONE, reason, details };
            }
        }
        Admit::Allow
    }

    fn admit_route(&self, view: &InboundView<'_>) -> Admit {
        // A chain without routes passes everything on.
        let Some(table) = self.inbound_table(view.port).filter(|table| !table.hosts().is_empty()) else {
            return Admit::Allow;
        };
        match table.find(&view.request, 0) {
            Err(error @ (NoRoute::Port(_) | NoRoute::Target | NoRoute::VirtualHost | NoRoute::Rule)) => {
                refuse(404, Flags::NR, error.to_string())
            }
            Ok(rule) => match (rule.kind, &rule.policy.respond) {
                (Kind::Inbound | Kind::Forward, _) => Admit::Allow,
                (_, Some(response)) => refuse(response.status, Flags::NONE, response.body.clone()),
                (_, None) => refuse(404, Flags::NR, "the inbound route does not lead to the application".to_owned()),
            },
        }
    }
}

fn admit_peer(inbound: &Inbound, view: &InboundView<'_>) -> Admit {
    match (inbound.mtls, view.peer) {
        (MtlsMode::Strict, None) => {
            refuse(403, Flags::NONE, "this port takes mutual TLS only and the caller showed no identity".to_owned())
        }
        (_, Some(peer)) if !inbound.callers.is_empty() && !names_match(&inbound.callers, [peer.as_str()]) => {
            refuse(403, Flags::NONE, format!("this port does not take callers of the identity {peer}"))
        }
        _ => Admit::Allow,
    }
}

fn refuse(status: u16, flags: Flags, reason: String) -> Admit {
    Admit::Refuse { status, flags, reason, details: String::new() }
}
