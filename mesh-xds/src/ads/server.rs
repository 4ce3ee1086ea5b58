//! Machine: the server's side of a state-of-the-world ADS stream; `server/delta.rs` is that of an incremental one.
//!
//! Per type it holds what the client wants and which version of each resource it was sent; the next response is made only
//! when it can be sent, from the resources of that moment, so a slow client gets the latest state and no backlog. CDS and
//! LDS responses list everything, EDS and RDS only what is new to the client.
//!
//! Sources: the xDS protocol text; the rules istiod keeps (nonces, order, partial EDS and RDS).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use mesh_core::config::Name;

use super::{Item, Request, ResourceSet, Response, Subscription, TypeUrl};
use crate::proto::Any;

mod delta;

pub use self::delta::Delta;

/// The server's side of one stream.
#[derive(Debug)]
pub struct Sotw {
    resources: Arc<ResourceSet>,
    types: BTreeMap<TypeUrl, Watch>,
    nonce: u64,
    outcomes: VecDeque<Outcome>,
}

/// What the client made of a response.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It uses this version.
    Acked(TypeUrl, String),
    /// It refused this version, or parts of it, with this message.
    Nacked(TypeUrl, String, String),
}

#[derive(Debug)]
struct Watch {
    wanted: Arc<Subscription>,
    /// The client has named something on this stream, so that an empty list means nothing instead of everything (XD6).
    named: bool,
    /// Of the last response; empty before the first.
    nonce: String,
    version: String,
    /// The client has said what it makes of the last response.
    answered: bool,
    /// What the client was sent last, of what it wanted then; `None` before the first.
    sent: Option<(Arc<ResourceSet>, Arc<Subscription>)>,
    /// What it is to be sent again, whatever it has.
    again: BTreeSet<Name>,
    /// An answer is owed even if nothing has changed.
    owed: bool,
    /// The resources may have changed since the last look.
    stale: bool,
}

impl Sotw {
    /// A stream on which nothing was said yet.
    pub fn new(resources: Arc<ResourceSet>) -> Self {
        Self { resources, types: BTreeMap::new(), nonce: 0, outcomes: VecDeque::new() }
    }

    /// Takes a request in.
    pub fn handle_request(&mut self, request: &Request) {
        let kind = request.kind;
        let watch = self.types.entry(kind).or_insert_with(Watch::new);
        if request.nonce.is_empty() {
            // The first word on this type, or a client that starts over: it may have nothing, so it gets everything.
            watch.sent = None;
            watch.again.clear();
            watch.owed = true;
        } else if request.nonce != watch.nonce {
            // It crossed a later response; the answer to that one will say the same or better (XD3).
            return;
        } else {
            let version = watch.version.clone();
            // Said once a response; what follows on the same nonce only changes the subscription.
            match &request.error {
                _ if watch.answered => {}
                Some(message) => self.outcomes.push_back(Outcome::Nacked(kind, version, message.clone())),
                None => self.outcomes.push_back(Outcome::Acked(kind, version)),
            }
            watch.answered = true;
        }
        watch.subscribe(kind, &request.names);
    }

    /// Replaces the resources.
    pub fn handle_resources(&mut self, resources: Arc<ResourceSet>) {
        for (kind, watch) in &mut self.types {
            watch.stale |= !resources.shares(*kind, &self.resources);
        }
        self.resources = resources;
    }

    /// May `poll_response` have something to say?
    pub fn is_due(&self) -> bool {
        self.types.values().any(|watch| watch.owed || watch.stale)
    }

    /// The next response, when one is due, in the order CDS, EDS, LDS, RDS (XD12). To be called only when it can be sent.
    pub fn poll_response(&mut self) -> Option<Response> {
        let (kind, resources) = self
            .types
            .iter_mut()
            .find_map(|(&kind, watch)| watch.take_due(kind, &self.resources).map(|resources| (kind, resources)))?;
        if let (TypeUrl::Cluster, Some(endpoints)) = (kind, self.types.get_mut(&TypeUrl::Endpoint)) {
            // A cluster that has changed warms up, for which its endpoints must come once more (XD13).
            for (name, _) in resources.iter().filter(|(_, changed)| *changed) {
                if endpoints.has(TypeUrl::Endpoint, name) {
                    endpoints.stale = true;
                    endpoints.again.insert(name.clone());
                }
            }
        }
        self.nonce += 1;
        let watch = self.types.get_mut(&kind)?;
        watch.nonce = self.nonce.to_string();
        watch.version = self.resources.version(kind);
        watch.answered = false;
        let body = |name: Name| {
            let resource = self.resources.get(kind, &name)?;
            Some(Item::from(Any { type_url: kind.as_str().to_owned(), value: resource.body.clone() }))
        };
        let resources = resources.into_iter().filter_map(|(name, _)| body(name)).collect();
        let (version, nonce) = (watch.version.clone(), watch.nonce.clone());
        Some(Response { kind, version, nonce, resources, problems: Vec::new() })
    }

    /// The next thing the client made of a response.
    pub fn poll_outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }
}

impl Watch {
    fn new() -> Self {
        Self {
            wanted: Arc::new(Subscription::Names(BTreeSet::new())),
            named: false,
            nonce: String::new(),
            version: String::new(),
            answered: false,
            sent: None,
            again: BTreeSet::new(),
            owed: false,
            stale: false,
        }
    }

    fn subscribe(&mut self, kind: TypeUrl, names: &[Name]) {
        self.named |= !names.is_empty();
        // An answer that asks for the same, as nearly all do, is not made a set of.
        if matches!(&*self.wanted, Subscription::Names(wanted) if !wanted.is_empty() && wanted.iter().eq(names)) {
            return;
        }
        let wanted = if names.iter().any(|name| &**name == "*") || (kind.is_full_state() && !self.named) {
            Subscription::All
        } else {
            Subscription::Names(names.iter().cloned().collect())
        };
        if *self.wanted == wanted {
            return;
        }
        // What is newly wanted is sent even if the client had it before on this stream.
        let before = std::mem::replace(&mut self.wanted, Arc::new(wanted));
        let is_new = |name: &Name| self.wanted.wants(name) && !before.wants(name);
        self.owed |= kind.is_full_state() && (*self.wanted == Subscription::All || names.iter().any(is_new));
        self.stale = true;
        if let Some((of, had)) = self.sent.take() {
            self.again.retain(|name| self.wanted.wants(name));
            let both = match (&*had, &*self.wanted) {
                (_, Subscription::All) => had,
                (Subscription::All, _) => Arc::clone(&self.wanted),
                (Subscription::Names(had), Subscription::Names(wanted)) => {
                    Arc::new(Subscription::Names(had.intersection(wanted).cloned().collect()))
                }
            };
            self.sent = Some((of, both));
        }
    }

    /// Has the client this resource, as far as it was sent and is not to be sent again?
    fn has(&self, kind: TypeUrl, name: &Name) -> bool {
        let sent = self.sent.as_ref().is_some_and(|(of, had)| had.wants(name) && of.get(kind, name).is_some());
        sent && !self.again.contains(name)
    }

    /// The resources to send now, and which of them the client does not have; `None` when nothing is due.
    fn take_due(&mut self, kind: TypeUrl, all: &Arc<ResourceSet>) -> Option<Vec<(Name, bool)>> {
        if !self.owed && !self.stale {
            return None;
        }
        self.stale = false;
        let owed = std::mem::take(&mut self.owed) && !self.wanted.is_nothing();
        let wants = |name: &Name| self.wanted.wants(name);
        let again = std::mem::take(&mut self.again);
        let mut changed: BTreeSet<&Name> =
            again.iter().filter(|name| wants(name) && all.get(kind, name).is_some()).collect();
        let mut gone = false;
        let sent = self.sent.take();
        match &sent {
            // Mostly nothing has changed but what differs between the two.
            Some((of, had)) => {
                all.differ(
                    kind,
                    of,
                    |name, _| {
                        if wants(name) {
                            changed.insert(name);
                        }
                    },
                    |name| gone |= had.wants(name),
                );
                if !Arc::ptr_eq(had, &self.wanted) {
                    changed.extend(all.iter(kind).map(|(name, _)| name).filter(|name| wants(name) && !had.wants(name)));
                }
            }
            None => changed.extend(all.iter(kind).map(|(name, _)| name).filter(|name| wants(name))),
        }
        let due = if kind.is_full_state() {
            let all = all.iter(kind).map(|(name, _)| name).filter(|name| wants(name));
            (owed || gone || !changed.is_empty())
                .then(|| all.map(|name| (name.clone(), changed.contains(name))).collect())
        } else {
            (!changed.is_empty()).then(|| changed.into_iter().map(|name| (name.clone(), true)).collect())
        };
        self.sent = Some((all.clone(), self.wanted.clone()));
        due
    }
}
