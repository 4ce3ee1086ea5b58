//! Machine: the client's side of a state-of-the-world ADS stream.
//!
//! Per type it holds what is wanted, what was last accepted and what has to be said next; a request is made only when it
//! can be sent, from the state at that moment. So every request carries the full list of names (a change of subscription
//! that crosses a push is not lost), an acknowledgement and a change travel together, and there is never more than one
//! waiting per type; after one that asks for more the next waits for its answer, so that names that become wanted one by
//! one do not each send the whole list. Streams come and go around it: versions and resources stay, nonces and timers do not.
//!
//! Sources: the xDS protocol text; gRFC A27, A46 (refusals), A57 (timers and back-off), A88.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use mesh_core::{config::Name, time::Time};
use rand::RngCore;

use super::{
    DataErrors, Event, MOST_RESOURCES, Request, Response, Subscription, TypeReport, TypeUrl,
    back_off::BackOff,
    complaint::Complaints,
    delta::Delta,
    held::{Held, Known},
    link::Link,
};

/// How long a change of subscription waits for the answer to the one before. A server that has none of the names does not
/// answer at all.
pub const GATHER: Duration = Duration::from_millis(200);

/// The client's side of an ADS stream; `T` is a decoded resource.
#[derive(Debug)]
pub struct Sotw<T> {
    types: BTreeMap<TypeUrl, TypeState>,
    link: Link,
    policy: DataErrors,
    events: VecDeque<Event<T>>,
}

#[derive(Debug)]
struct TypeState {
    wanted: Subscription,
    /// Kept over streams (XD1).
    version: String,
    held: Held,
    /// A response has come, of whichever server.
    synced: bool,
    /// The last refusal, until a response is accepted.
    refusal: Option<(String, String)>,
    /// From here on: of the stream.
    nonce: String,
    due: bool,
    error: Option<String>,
    asked: bool,
    /// More was asked for and not answered: until then a change of subscription waits.
    gathers: Option<Time>,
    named: bool,
    /// What the server has sent and this side has not kept. Wanted again, it comes only after a request without it: a
    /// server that never heard of the change, or ignored it since it crossed a push, believes it to be here.
    forgotten: BTreeSet<Name>,
    /// The nonce such a request was made on.
    redone: Option<String>,
}

impl<T> Sotw<T> {
    /// A machine that wants nothing yet and may connect at once.
    pub fn new(back_off: BackOff, policy: DataErrors) -> Self {
        Self { types: BTreeMap::new(), link: Link::new(back_off), policy, events: VecDeque::new() }
    }

    /// Goes on for a machine of the other variant, with what it wants and holds. There must be no stream.
    pub(super) fn of_delta(delta: Delta<T>) -> Self {
        let types = delta.types.into_iter().map(|(kind, state)| {
            (
                kind,
                TypeState {
                    wanted: state.wanted,
                    held: state.held,
                    synced: state.synced,
                    ..TypeState::new(delta.policy)
                },
            )
        });
        Self { types: types.collect(), link: delta.link.renewed(), policy: delta.policy, events: delta.events }
    }

    /// Replaces what is wanted of a type. What is not wanted any more is forgotten without an event (XD6).
    pub fn subscribe(&mut self, kind: TypeUrl, wanted: Subscription) {
        let state = self.types.entry(kind).or_insert_with(|| TypeState::new(self.policy));
        if state.wanted == wanted {
            return;
        }
        let forgotten = &mut state.forgotten;
        let drop = |name: &Name, known: &Known| {
            if known.settled {
                forgotten.insert(name.clone());
            }
        };
        state.held.retarget(&wanted, drop, |_| Known::default());
        state.due = state.asked || !wanted.is_nothing();
        state.wanted = wanted;
    }

    /// Is something wanted that has never come?
    pub fn lacks(&self) -> bool {
        self.types.iter().any(|(kind, state)| kind.is_needed() && state.lacks())
    }

    /// The next stream is to another server, whose versions are others.
    pub fn handle_server_change(&mut self) {
        self.types.values_mut().for_each(|state| state.version.clear());
    }

    /// The next stream may be opened at once.
    pub fn connect_now(&mut self) {
        self.link.connect_now();
    }

    /// The server says that it has too much to do; said before `handle_disconnected`.
    pub fn handle_busy(&mut self) {
        self.link.handle_busy();
    }

    /// Is it time to open a stream? Once said, the driver owes `handle_connected` or `handle_disconnected`.
    pub fn poll_connect(&mut self, now: Time) -> bool {
        self.link.poll_connect(now)
    }

    /// A stream is open.
    pub fn handle_connected(&mut self) {
        self.link.handle_connected();
        for state in self.types.values_mut() {
            state.begin_stream();
        }
    }

    /// The stream has ended, or could not be opened. Resources stay in force (XD9).
    pub fn handle_disconnected(&mut self, now: Time, rng: &mut impl RngCore) {
        self.link.handle_disconnected(now, rng);
        for state in self.types.values_mut() {
            state.gathers = None;
            state.held.stop_waiting();
        }
    }

    /// Takes a response in. `decode` is asked only for wanted resources whose bytes have changed.
    pub fn handle_response(
        &mut self,
        response: &Response,
        now: Time,
        mut decode: impl FnMut(TypeUrl, &Bytes) -> Result<T, String>,
    ) {
        if !self.link.handle_delivery() {
            return;
        }
        let kind = response.kind;
        // A type never asked for is nobody's concern: there is no subscription an answer could state.
        let Some(state) = self.types.get_mut(&kind) else { return };
        let mut errors = Complaints::default();
        let mut seen = BTreeSet::new();
        let too_many = response.resources.len() > MOST_RESOURCES;
        if too_many {
            errors.push(&format!(
                "{kind}: {} resources in one response, more than {MOST_RESOURCES}",
                response.resources.len()
            ));
        }
        let mut all_named = !too_many;
        for (index, item) in response.resources.iter().enumerate().filter(|_| !too_many) {
            let name = match item.readable_name(kind) {
                Ok(name) => name,
                Err(why) => {
                    errors.push(&format!("{kind} resource {index}: {why}"));
                    all_named = false;
                    continue;
                }
            };
            let name = Name::from(name);
            if !seen.insert(name.clone()) {
                errors.push(&format!("{kind} {name:?}: occurs more than once in the response"));
                continue;
            }
            // Not asked for: neither used nor a reason to refuse (XD3).
            if !state.wanted.wants(&name) {
                if state.forgotten.len() < MOST_RESOURCES {
                    state.forgotten.insert(name);
                }
                continue;
            }
            state.forgotten.remove(&name);
            if let Err(why) = state.held.take(kind, &name, item, now, &mut decode, &mut self.events) {
                errors.push(&why);
            }
        }
        for problem in &response.problems {
            seen.insert(problem.name.clone());
            if problem.missing {
                state.held.remove(kind, &problem.name, Some(&problem.message), &mut self.events);
            } else {
                state.held.fail(kind, &problem.name, &problem.message, &mut self.events);
            }
        }
        // Absence says something only when every resource could be told by name: otherwise the one that could not may
        // be the one believed absent.
        if kind.is_full_state() && all_named {
            state.remove_others(kind, &seen, &mut self.events);
        }
        state.synced = true;
        state.nonce.clone_from(&response.nonce);
        state.gathers = None;
        state.due = true;
        let refusal = errors.finish();
        if let Some(message) = refusal {
            state.refusal = Some((response.version.clone(), message.clone()));
            state.error = Some(message);
        } else {
            state.version.clone_from(&response.version);
            state.refusal = None;
            state.error = None;
        }
        if !too_many {
            self.events.push_back(Event::Synced(kind));
        }
    }

    /// Declares what was asked for in vain to be missing, and drops what has outlived its time.
    pub fn handle_timeout(&mut self, now: Time) {
        for (kind, state) in &mut self.types {
            state.gathers = state.gathers.filter(|until| *until > now);
            state.held.handle_timeout(*kind, now, &mut self.events);
        }
    }

    /// Has `poll_request` something to say?
    pub fn is_due(&self, now: Time) -> bool {
        self.link.is_up() && self.types.values().any(|state| state.is_due(now))
    }

    /// The next request, when one is due. To be called only when it can be sent now: timers start with it.
    pub fn poll_request(&mut self, now: Time) -> Option<Request> {
        if !self.link.is_up() {
            return None;
        }
        let (kind, state) = self.types.iter_mut().find(|(_, state)| state.is_due(now))?;
        Some(state.request(*kind, self.link.speak(), now))
    }

    /// The next thing that became of a resource.
    pub fn poll_event(&mut self) -> Option<Event<T>> {
        self.events.pop_front()
    }

    /// When `handle_timeout` or `poll_connect` should be called next.
    pub fn next_timeout(&self) -> Option<Time> {
        let types = self.types.values();
        let gathering = types.clone().filter(|state| state.due).filter_map(|state| state.gathers);
        gathering.chain(types.filter_map(|state| state.held.next_timeout())).chain(self.link.next_timeout()).min()
    }

    /// How each type stands.
    pub fn report(&self) -> impl Iterator<Item = (TypeUrl, TypeReport)> {
        self.types.iter().map(|(kind, state)| {
            let (version, refusal) = (state.version.clone(), state.refusal.clone());
            (*kind, TypeReport { version, resources: state.held.count, refusal })
        })
    }
}

impl TypeState {
    fn new(policy: DataErrors) -> Self {
        Self {
            wanted: Subscription::Names(BTreeSet::new()),
            version: String::new(),
            held: Held::new(policy),
            synced: false,
            refusal: None,
            nonce: String::new(),
            due: false,
            error: None,
            asked: false,
            gathers: None,
            named: false,
            forgotten: BTreeSet::new(),
            redone: None,
        }
    }

    fn begin_stream(&mut self) {
        self.nonce.clear();
        self.error = None;
        self.asked = false;
        self.gathers = None;
        self.named = false;
        self.forgotten.clear();
        self.redone = None;
        // An empty list as a type's first word would ask for everything, so nothing is said when nothing is wanted.
        self.due = !self.wanted.is_nothing();
    }

    fn lacks(&self) -> bool {
        match self.wanted {
            Subscription::All => !self.synced,
            Subscription::Names(_) => self.held.lacks(),
        }
    }

    fn is_due(&self, now: Time) -> bool {
        self.due && self.gathers.is_none_or(|until| until <= now)
    }

    fn request(&mut self, kind: TypeUrl, first: bool, now: Time) -> Request {
        let mut names: Vec<Name> = match &self.wanted {
            // After names, an empty list would unsubscribe (XD6).
            Subscription::All if self.named => vec!["*".into()],
            Subscription::All => Vec::new(),
            Subscription::Names(names) => names.iter().cloned().collect(),
        };
        self.named |= !names.is_empty();
        self.asked = true;
        self.due = false;
        if !self.forgotten.is_empty() && self.redone.as_ref() != Some(&self.nonce) {
            let (forgotten, known) = (&self.forgotten, &self.held.known);
            let count = names.len();
            names.retain(|name| !forgotten.contains(name) || known.get(name).is_some_and(|known| known.settled));
            if names.len() < count {
                self.redone = Some(self.nonce.clone());
                self.due = true;
            }
        }
        if let Subscription::Names(all) = &self.wanted
            && self.held.wait_for(all.iter(), now)
            && !self.due
        {
            self.gathers = Some(now + GATHER);
        }
        Request {
            first,
            kind,
            version: self.version.clone(),
            nonce: self.nonce.clone(),
            names,
            error: self.error.take(),
        }
    }

    /// Every resource in force or hoped for that is not in `seen` does not exist.
    fn remove_others<T>(&mut self, kind: TypeUrl, seen: &BTreeSet<Name>, events: &mut VecDeque<Event<T>>) {
        let absent: Vec<Name> = self.held.known.keys().filter(|name| !seen.contains(*name)).cloned().collect();
        for name in absent {
            self.held.remove(kind, &name, None, events);
            self.held.forget_unless_named(&name, &self.wanted);
        }
    }
}
