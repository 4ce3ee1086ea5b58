//! Machine: the server's side of an incremental (delta) ADS stream.
//!
//! Per type it holds what the client wants and which version of each resource it has, as the client said when it came and
//! as it was sent since. A response is made only when it can be sent, of what differs at that moment: a slow client gets
//! the latest state and no backlog. What a client subscribes to is sent even if it has it, for it may have forgotten; what
//! does not exist is said to be removed.
//!
//! Sources: the xDS protocol text, "Incremental xDS"; what Envoy's delta subscriptions expect.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use mesh_core::config::Name;

use super::Outcome;
use crate::{
    ads::{DeltaRequest, DeltaResponse, Item, Resource, ResourceSet, TypeUrl},
    proto::Any,
};

/// Responses of one type whose answers are waited for; an answer to an older one is not told.
const UNANSWERED: usize = 64;

/// The server's side of one stream.
#[derive(Debug)]
pub struct Delta {
    resources: Arc<ResourceSet>,
    types: BTreeMap<TypeUrl, Watch>,
    nonce: u64,
    outcomes: VecDeque<Outcome>,
}

#[derive(Debug, Default)]
struct Watch {
    /// Everything is wanted.
    all: bool,
    /// These are, whether everything is or not.
    names: BTreeSet<Name>,
    /// The version of each resource the client has.
    sent: BTreeMap<Name, Name>,
    /// To be answered for even if nothing has changed.
    owed: BTreeSet<Name>,
    /// A response is owed even if it is empty: the first of a client that wants everything learns so that there is nothing.
    opening: bool,
    /// The resources may have changed since the last look.
    stale: bool,
    /// What was looked at last, as long as nothing else is wanted than then, but what is owed.
    looked: Option<Arc<ResourceSet>>,
    /// Nonce and version of what was sent and not answered.
    unanswered: VecDeque<(String, String)>,
}

impl Delta {
    /// A stream on which nothing was said yet.
    pub fn new(resources: Arc<ResourceSet>) -> Self {
        Self { resources, types: BTreeMap::new(), nonce: 0, outcomes: VecDeque::new() }
    }

    /// Takes a request in.
    pub fn handle_request(&mut self, request: &DeltaRequest) {
        let kind = request.kind;
        let is_first = !self.types.contains_key(&kind);
        if is_first && !request.nonce.is_empty() {
            // An answer to nothing that was said here; names would be read as the first word.
            return;
        }
        let watch = self.types.entry(kind).or_default();
        if is_first {
            watch.sent.extend(request.initial.iter().map(|(name, version)| (name.clone(), version.clone())));
            if request.subscribe.is_empty() {
                watch.subscribe_to_all();
            }
        }
        watch.subscribe(&request.subscribe, if is_first { Some(&request.initial) } else { None });
        watch.unsubscribe(&request.unsubscribe);
        // An answer to what is not the last word is an answer all the same: nothing here depends on it.
        if let Some(at) = watch.unanswered.iter().position(|(nonce, _)| *nonce == request.nonce) {
            let Some((_, version)) = watch.unanswered.drain(..=at).next_back() else { return };
            self.outcomes.push_back(match &request.error {
                Some(message) => Outcome::Nacked(kind, version, message.clone()),
                None => Outcome::Acked(kind, version),
            });
        }
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
        self.types.values().any(|watch| watch.stale || watch.opening || !watch.owed.is_empty())
    }

    /// The next response, when one is due, in the order CDS, EDS, LDS, RDS (XD12). To be called only when it can be sent.
    pub fn poll_response(&mut self) -> Option<DeltaResponse> {
        let (kind, resources, removed) = self
            .types
            .iter_mut()
            .find_map(|(&kind, watch)| watch.take_due(kind, &self.resources).map(|(new, gone)| (kind, new, gone)))?;
        if let (TypeUrl::Cluster, Some(endpoints)) = (kind, self.types.get_mut(&TypeUrl::Endpoint)) {
            // A cluster that has changed warms up, for which its endpoints must come once more (XD13).
            let clusters = resources.iter().filter_map(|item| item.name.as_ref());
            endpoints.owed.extend(clusters.filter(|name| endpoints.sent.contains_key(*name)).cloned());
        }
        self.nonce += 1;
        let (nonce, version) = (self.nonce.to_string(), self.resources.version(kind));
        if let Some(watch) = self.types.get_mut(&kind) {
            if watch.unanswered.len() == UNANSWERED {
                watch.unanswered.pop_front();
            }
            watch.unanswered.push_back((nonce.clone(), version.clone()));
        }
        Some(DeltaResponse { kind, version, nonce, resources, removed, problems: Vec::new() })
    }

    /// The next thing the client made of a response.
    pub fn poll_outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }
}

impl Watch {
    fn subscribe_to_all(&mut self) {
        self.all = true;
        self.opening = true;
        (self.stale, self.looked) = (true, None);
    }

    /// What the client says at the same time to have is not owed to it.
    fn subscribe(&mut self, names: &[Name], has: Option<&BTreeMap<Name, Name>>) {
        for name in names {
            if &**name == "*" {
                self.subscribe_to_all();
                continue;
            }
            self.names.insert(name.clone());
            if has.is_some_and(|has| has.contains_key(name)) {
                (self.stale, self.looked) = (true, None);
            } else {
                self.owed.insert(name.clone());
            }
        }
    }

    fn unsubscribe(&mut self, names: &[Name]) {
        for name in names {
            if &**name == "*" {
                self.all = false;
                self.opening = false;
            }
            self.names.remove(name);
            self.owed.remove(name);
            if !self.all {
                self.sent.remove(name);
            }
        }
        if names.iter().any(|name| &**name == "*") {
            let names = &self.names;
            self.sent.retain(|name, _| names.contains(name));
        }
    }

    fn wants(&self, name: &Name) -> bool {
        self.all || self.names.contains(name)
    }

    /// What to send now, and what to call removed; `None` when nothing is due.
    fn take_due(&mut self, kind: TypeUrl, all: &Arc<ResourceSet>) -> Option<(Vec<Item>, Vec<Name>)> {
        if !self.stale && !self.opening && self.owed.is_empty() {
            return None;
        }
        let opening = std::mem::take(&mut self.opening);
        let owed = std::mem::take(&mut self.owed);
        let mut items = Vec::new();
        let mut sent = Vec::new();
        let mut give = |name: &Name, resource: &Resource| {
            let body = Any { type_url: kind.as_str().to_owned(), value: resource.body.clone() };
            let version = resource.version.clone();
            sent.push((name.clone(), version.clone()));
            items.push(Item { name: Some(name.clone()), version, body: Some(body), ttl: None });
        };
        let mut removed: Vec<Name> = Vec::new();
        if std::mem::take(&mut self.stale) {
            let mut look = |name: &Name, resource: &Resource| {
                let differs = self.sent.get(name) != Some(&resource.version);
                if !owed.contains(name) && differs && self.wants(name) {
                    give(name, resource);
                }
            };
            match &self.looked {
                // Mostly nothing has changed but what differs between the two.
                Some(before) => all.differ(kind, before, look, |name| {
                    removed.extend(self.sent.contains_key(name).then(|| name.clone()));
                }),
                None => {
                    all.iter(kind).for_each(|(name, resource)| look(name, resource));
                    removed.extend(self.sent.keys().filter(|name| all.get(kind, name).is_none()).cloned());
                }
            }
            self.looked = Some(Arc::clone(all));
        }
        for name in &owed {
            if let Some(resource) = all.get(kind, name) {
                give(name, resource);
            }
        }
        items.sort_by(|a, b| a.name.cmp(&b.name));
        for name in &removed {
            self.sent.remove(name);
        }
        let missing = owed.iter().filter(|name| all.get(kind, name).is_none() && !removed.contains(*name));
        let missing: Vec<Name> = missing.cloned().collect();
        removed.extend(missing);
        self.sent.extend(sent);
        (opening || !items.is_empty() || !removed.is_empty()).then_some((items, removed))
    }
}
