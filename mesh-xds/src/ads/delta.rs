//! Machine: the client's side of an incremental (delta) ADS stream.
//!
//! It says only what has changed: names subscribed and unsubscribed since its last word on the stream, and the answer to
//! each response. The two never share a request, since istiod asks for that: an answer carries a nonce and no names, a
//! change of subscription names and no nonce. A new stream begins with everything wanted and the version of everything
//! held, so that the server sends what differs and names what is gone. Deletion is always said (XD2).
//!
//! A name that was unsubscribed and wanted again before the server heard of either is subscribed once more: the server
//! has to send such a resource even if it believes it to be here.
//!
//! Sources: the xDS protocol text, "Incremental xDS"; istiod's delta server for what it expects.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use mesh_core::{config::Name, time::Time};
use rand::RngCore;

use super::{
    DataErrors, DeltaRequest, DeltaResponse, Event, MOST_RESOURCES, Subscription, TypeReport, TypeUrl,
    back_off::BackOff,
    complaint::Complaints,
    held::{Held, Known},
    link::Link,
};

/// Answers kept while the stream takes none. Of acknowledgements only the last is: it says that all before it came.
const ANSWERS: usize = 16;

/// The client's side of an incremental ADS stream; `T` is a decoded resource.
#[derive(Debug)]
pub struct Delta<T> {
    pub(super) types: BTreeMap<TypeUrl, TypeState>,
    pub(super) link: Link,
    pub(super) policy: DataErrors,
    pub(super) events: VecDeque<Event<T>>,
}

#[derive(Debug)]
pub(super) struct TypeState {
    pub(super) wanted: Subscription,
    pub(super) held: Held,
    /// A response has come, of whichever server.
    pub(super) synced: bool,
    /// The server's word for the last state accepted, for people.
    version: String,
    /// The last refusal, until a response is accepted.
    refusal: Option<(String, String)>,
    /// From here on: of the stream.
    asked: bool,
    /// The server takes this side to want everything.
    all: bool,
    /// Names to subscribe and to unsubscribe.
    fresh: BTreeSet<Name>,
    leaving: BTreeSet<Name>,
    /// Nonces to answer, with the refusal of those refused.
    answers: VecDeque<(String, Option<String>)>,
}

impl<T> Delta<T> {
    /// A machine that wants nothing yet and may connect at once.
    pub fn new(back_off: BackOff, policy: DataErrors) -> Self {
        Self { types: BTreeMap::new(), link: Link::new(back_off), policy, events: VecDeque::new() }
    }

    /// Replaces what is wanted of a type. What is not wanted any more is forgotten without an event (XD6).
    pub fn subscribe(&mut self, kind: TypeUrl, wanted: Subscription) {
        let state = self.types.entry(kind).or_insert_with(|| TypeState::new(self.policy));
        if state.wanted == wanted {
            return;
        }
        // Names that were wanted as part of everything are now wanted by themselves, and the other way round.
        let turned = matches!(state.wanted, Subscription::All) != matches!(wanted, Subscription::All);
        let (fresh, leaving) = (&mut state.fresh, &mut state.leaving);
        if turned {
            fresh.clear();
            for (name, known) in &mut state.held.known {
                if std::mem::take(&mut known.told) {
                    leaving.insert(name.clone());
                }
            }
        }
        let drop = |name: &Name, known: &Known| {
            fresh.remove(name);
            if known.told {
                leaving.insert(name.clone());
            }
        };
        state.held.retarget(&wanted, drop, |_| Known::default());
        if let Subscription::Names(names) = &wanted {
            for name in names {
                if state.held.known.get(name).is_some_and(|known| !known.told) {
                    // Told and to be told of leaving, but wanted again: asked for once more, and told nothing else.
                    if state.leaving.remove(name)
                        && let Some(known) = state.held.known.get_mut(name)
                    {
                        known.told = true;
                    }
                    state.fresh.insert(name.clone());
                }
            }
        }
        state.wanted = wanted;
    }

    /// Is something wanted that has never come?
    pub fn lacks(&self) -> bool {
        self.types.iter().any(|(kind, state)| kind.is_needed() && state.lacks())
    }

    /// The next stream is to another server, whose versions are others: it is told what is held, and sends all of it.
    pub fn handle_server_change(&mut self) {
        let known = self.types.values_mut().flat_map(|state| state.held.known.values_mut());
        known.for_each(|known| known.version = Name::default());
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
            state.held.stop_waiting();
        }
    }

    /// Takes a response in. `decode` is asked only for wanted resources whose bytes have changed.
    pub fn handle_response(
        &mut self,
        response: &DeltaResponse,
        now: Time,
        mut decode: impl FnMut(TypeUrl, &Bytes) -> Result<T, String>,
    ) {
        if !self.link.handle_delivery() {
            return;
        }
        let kind = response.kind;
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
        for (index, item) in response.resources.iter().enumerate().filter(|_| !too_many) {
            let name = match item.readable_name(kind) {
                Ok(name) => name,
                Err(why) => {
                    errors.push(&format!("{kind} resource {index}: {why}"));
                    continue;
                }
            };
            let name = Name::from(name);
            if !seen.insert(name.clone()) {
                errors.push(&format!("{kind} {name:?}: occurs more than once in the response"));
                continue;
            }
            // Not asked for, or not any more: neither used nor a reason to refuse (XD3).
            if !state.wanted.wants(&name) {
                continue;
            }
            if let Err(why) = state.held.take(kind, &name, item, now, &mut decode, &mut self.events) {
                errors.push(&why);
            }
        }
        for name in response.removed.iter().filter(|name| !too_many && !seen.contains(*name)) {
            state.held.remove(kind, name, None, &mut self.events);
            state.held.forget_unless_named(name, &state.wanted);
        }
        for problem in &response.problems {
            if problem.missing {
                state.held.remove(kind, &problem.name, Some(&problem.message), &mut self.events);
            } else {
                state.held.fail(kind, &problem.name, &problem.message, &mut self.events);
            }
        }
        let refusal = errors.finish();
        match &refusal {
            None => {
                state.version.clone_from(&response.version);
                state.refusal = None;
            }
            Some(message) => state.refusal = Some((response.version.clone(), message.clone())),
        }
        state.synced = true;
        // As the first word on a type an answer would read as a wish for everything.
        if state.asked {
            state.answer(response.nonce.clone(), refusal);
        }
        if !too_many {
            self.events.push_back(Event::Synced(kind));
        }
    }

    /// Declares what was asked for in vain to be missing, and drops what has outlived its time.
    pub fn handle_timeout(&mut self, now: Time) {
        for (kind, state) in &mut self.types {
            state.held.handle_timeout(*kind, now, &mut self.events);
        }
    }

    /// Has `poll_request` something to say?
    pub fn is_due(&self, _now: Time) -> bool {
        self.link.is_up() && self.types.values().any(TypeState::is_due)
    }

    /// The next request, when one is due. To be called only when it can be sent now: timers start with it.
    pub fn poll_request(&mut self, now: Time) -> Option<DeltaRequest> {
        if !self.link.is_up() {
            return None;
        }
        let (kind, state) = self.types.iter_mut().find(|(_, state)| state.is_due())?;
        Some(state.request(*kind, self.link.speak(), now))
    }

    /// The next thing that became of a resource.
    pub fn poll_event(&mut self) -> Option<Event<T>> {
        self.events.pop_front()
    }

    /// When `handle_timeout` or `poll_connect` should be called next.
    pub fn next_timeout(&self) -> Option<Time> {
        self.types.values().filter_map(|state| state.held.next_timeout()).chain(self.link.next_timeout()).min()
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
            held: Held::new(policy),
            synced: false,
            version: String::new(),
            refusal: None,
            asked: false,
            all: false,
            fresh: BTreeSet::new(),
            leaving: BTreeSet::new(),
            answers: VecDeque::new(),
        }
    }

    fn begin_stream(&mut self) {
        self.asked = false;
        self.all = false;
        self.answers.clear();
        self.leaving.clear();
        self.held.known.values_mut().for_each(|known| known.told = false);
        self.fresh = match &self.wanted {
            Subscription::All => BTreeSet::new(),
            Subscription::Names(names) => names.clone(),
        };
    }

    fn answer(&mut self, nonce: String, refusal: Option<String>) {
        if self.answers.back().is_some_and(|(_, refusal)| refusal.is_none()) {
            self.answers.pop_back();
        }
        if self.answers.len() == ANSWERS {
            self.answers.pop_front();
        }
        self.answers.push_back((nonce, refusal));
    }

    fn lacks(&self) -> bool {
        match self.wanted {
            Subscription::All => !self.synced,
            Subscription::Names(_) => self.held.lacks(),
        }
    }

    fn is_due(&self) -> bool {
        !self.answers.is_empty() || self.has_changed()
    }

    fn has_changed(&self) -> bool {
        !self.fresh.is_empty() || !self.leaving.is_empty() || self.all != (self.wanted == Subscription::All)
    }

    fn request(&mut self, kind: TypeUrl, first: bool, now: Time) -> DeltaRequest {
        let (nonce, error) = self.answers.pop_front().unwrap_or_default();
        let mut request = DeltaRequest {
            first,
            kind,
            subscribe: Vec::new(),
            unsubscribe: Vec::new(),
            initial: BTreeMap::new(),
            nonce,
            error,
        };
        if !request.nonce.is_empty() || request.error.is_some() {
            return request;
        }
        let wants_all = self.wanted == Subscription::All;
        if wants_all && !self.all && self.asked {
            request.subscribe.push("*".into());
        } else if self.all && !wants_all {
            request.unsubscribe.push("*".into());
        }
        request.subscribe.extend(std::mem::take(&mut self.fresh));
        request.unsubscribe.extend(std::mem::take(&mut self.leaving));
        for name in &request.subscribe {
            if let Some(known) = self.held.known.get_mut(name) {
                known.told = true;
            }
        }
        if !self.asked {
            let here = self.held.known.iter().filter(|(_, known)| known.print.is_some());
            request.initial = here.map(|(name, known)| (name.clone(), known.version.clone())).collect();
        }
        self.held.wait_for(request.subscribe.iter(), now);
        self.all = wants_all;
        self.asked = true;
        request
    }
}
