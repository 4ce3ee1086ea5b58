//! The decision for one inbound request: may this caller ask this of us?
//!
//! Mutual TLS itself is the acceptor's: a caller that must not speak at all never gets here. What is asked here is what
//! the port's policy demands of a request: an identity, a chain this library can enforce, a route.

use crate::{
    claims::Claims,
    config::{Inbound, MtlsMode},
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
    /// What its verified tokens say; `None` while none was verified.
    pub claims: Option<&'a Claims>,
    /// The request.
    pub request: RequestView<'a>,
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
    },
}

impl Snapshot {
    /// Decides one inbound request. A port without configuration demands what [`Inbound::default`] does: mutual TLS.
    pub fn admit(&self, view: &InboundView<'_>) -> Admit {
        let Some(inbound) = self.inbound(view.port) else { return admit_peer(&Inbound::default(), view) };
        if let Some(why) = &inbound.refused {
            return refuse(503, Flags::NONE, why.clone());
        }
        match admit_peer(inbound, view) {
            Admit::Allow => self.admit_route(view),
            refused => refused,
        }
    }

    fn admit_route(&self, view: &InboundView<'_>) -> Admit {
        // A chain without routes passes everything on.
        let Some(table) = self.inbound.get(&view.port).filter(|table| !table.hosts().is_empty()) else {
            return Admit::Allow;
        };
        match table.find(&view.request, 0) {
            Err(error @ (NoRoute::Port(_) | NoRoute::VirtualHost | NoRoute::Rule)) => {
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
    Admit::Refuse { status, flags, reason }
}
