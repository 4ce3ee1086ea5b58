//! Machine: the client's side of a state-of-the-world ADS stream.
//!
//! Per type it holds what is wanted, what was last accepted and what has to be said next; a request is made only when it
//! can be sent, from the state at that moment. So every request carries the full list of names (a change of subscription
//! that crosses a push is not lost), an acknowledgement and a change travel together, and there is never more than one
//! waiting per type. Streams come and go around it: versions and resources stay, nonces and timers do not.
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
    Request, Response, Subscription, TypeUrl,
    back_off::{BackOff, spread},
    name_of,
};
use crate::proto::Any;

/// How long a resource asked for may stay unanswered before it counts as not existing (gRFC A57).
pub const DOES_NOT_EXIST: Duration = Duration::from_secs(15);

/// Streams that delivered something and ended are reopened at once (gRFC A57), but begin no closer together than this:
/// gRFC A88 records the hot loop a server could otherwise cause.
pub const FLOOR: Duration = Duration::from_secs(1);

/// For this long after a loss, attempts are made about every 0.8 s instead of backing off.
///
/// A control plane that restarts is back within seconds, and a user who restarts one is looking: a plain 1 s × 1.6 would by
/// then have grown past the restart itself. Only a longer outage is one in which a herd of clients has to be kept apart.
pub const QUICK: Duration = Duration::from_secs(15);

/// The client's side of an ADS stream; `T` is a decoded resource.
#[derive(Debug)]
pub struct Sotw<T> {
    types: BTreeMap<TypeUrl, TypeState>,
    link: Link,
    events: VecDeque<Event<T>>,
    back_off: BackOff,
    failures: u32,
    /// Since when nothing has been delivered; `None` while something is.
    outage: Option<Time>,
    attempted: Option<Time>,
}

/// What became of the resources.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<T> {
    /// New, or other than before.
    Changed(TypeUrl, Name, T),
    /// Came, but cannot be used; one that is in force stays in force.
    Refused(TypeUrl, Name, String),
    /// Does not exist: left out of a full-state response, or asked for in vain.
    Gone(TypeUrl, Name),
    /// A response of this type has been taken in.
    Synced(TypeUrl),
}

/// How a type stands, for people.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TypeReport {
    /// The last version accepted.
    pub version: String,
    /// Resources in force.
    pub resources: usize,
    /// Version and message of the refusal since, if any.
    pub refusal: Option<(String, String)>,
}

#[derive(Debug)]
enum Link {
    Down { connect_at: Time },
    Connecting,
    Up { delivered: bool, spoke: bool },
}

#[derive(Debug)]
struct TypeState {
    wanted: Subscription,
    /// Kept over streams (XD1).
    version: String,
    known: BTreeMap<Name, Known>,
    /// The last refusal, until a response is accepted.
    refusal: Option<(String, String)>,
    /// From here on: of the stream.
    nonce: String,
    due: bool,
    error: Option<String>,
    asked: bool,
    named: bool,
    /// What the server has sent and this side has not kept. Wanted again, it comes only after a request without it: a
    /// server that never heard of the change, or ignored it since it crossed a push, believes it to be here.
    forgotten: BTreeSet<Name>,
    /// The nonce such a request was made on.
    redone: Option<String>,
}

#[derive(Debug, Default)]
struct Known {
    /// The accepted message; compared so that what has not changed is neither decoded nor delivered again (XD15).
    body: Option<Bytes>,
    /// Something came for it, or it is known not to exist: no timer is needed.
    settled: bool,
    deadline: Option<Time>,
}

impl<T> Sotw<T> {
    /// A machine that wants nothing yet and may connect at once.
    pub fn new(back_off: BackOff) -> Self {
        Self {
            types: BTreeMap::new(),
            link: Link::Down { connect_at: Time::ZERO },
            events: VecDeque::new(),
            back_off,
            failures: 0,
            outage: None,
            attempted: None,
        }
    }

    /// Replaces what is wanted of a type. What is not wanted any more is forgotten without an event (XD6).
    pub fn subscribe(&mut self, kind: TypeUrl, wanted: Subscription) {
        let state = self.types.entry(kind).or_insert_with(TypeState::new);
        if state.wanted == wanted {
            return;
        }
        state.known.retain(|name, known| {
            let kept = wanted.wants(name);
            if !kept && known.settled {
                state.forgotten.insert(name.clone());
            }
            kept
        });
        if let Subscription::Names(names) = &wanted {
            for name in names {
                state.known.entry(name.clone()).or_default();
            }
        }
        state.due = state.asked || !wanted.is_nothing();
        state.wanted = wanted;
    }

    /// Is it time to open a stream? Once said, the driver owes `handle_connected` or `handle_disconnected`.
    pub fn poll_connect(&mut self, now: Time) -> bool {
        match self.link {
            Link::Down { connect_at } if connect_at <= now => {
                self.link = Link::Connecting;
                self.attempted = Some(now);
                self.outage.get_or_insert(now);
                true
            }
            _ => false,
        }
    }

    /// A stream is open.
    pub fn handle_connected(&mut self) {
        self.link = Link::Up { delivered: false, spoke: false };
        for state in self.types.values_mut() {
            state.begin_stream();
        }
    }

    /// The stream has ended, or could not be opened. Resources stay in force (XD9).
    pub fn handle_disconnected(&mut self, now: Time, rng: &mut impl RngCore) {
        let delivered = matches!(self.link, Link::Up { delivered: true, .. });
        let connect_at = if delivered {
            self.outage = Some(now);
            self.attempted.map_or(now, |attempted| now.max(attempted + FLOOR))
        } else if now.saturating_since(*self.outage.get_or_insert(now)) < QUICK {
            now + spread(0.8, self.back_off.jitter, rng).min(self.back_off.cap)
        } else {
            self.failures = self.failures.saturating_add(1);
            now + self.back_off.delay(self.failures, rng)
        };
        self.link = Link::Down { connect_at };
        // While disconnected nothing can be missed: the timers begin again with the requests of the next stream (XD7).
        for known in self.types.values_mut().flat_map(|state| state.known.values_mut()) {
            known.deadline = None;
        }
    }

    /// Takes a response in. `decode` is asked only for wanted resources whose bytes have changed.
    pub fn handle_response(
        &mut self,
        response: &Response,
        mut decode: impl FnMut(TypeUrl, &Bytes) -> Result<T, String>,
    ) {
        let Link::Up { delivered, .. } = &mut self.link else { return };
        *delivered = true;
        self.outage = None;
        self.failures = 0;
        let kind = response.kind;
        // A type never asked for is nobody's concern: there is no subscription an answer could state.
        let Some(state) = self.types.get_mut(&kind) else { return };
        let mut errors = Vec::new();
        let mut seen = BTreeSet::new();
        let mut all_named = true;
        for (index, body) in response.resources.iter().enumerate() {
            let name = match readable_name(kind, body) {
                Ok(name) => name,
                Err(why) => {
                    errors.push(format!("{kind} resource {index}: {why}"));
                    all_named = false;
                    continue;
                }
            };
            if !seen.insert(name) {
                errors.push(format!("{kind} {name:?}: occurs more than once in the response"));
                continue;
            }
            // Not asked for: neither used nor a reason to refuse (XD3).
            let name = Name::from(name);
            if !state.wanted.wants(&name) {
                state.forgotten.insert(name);
                continue;
            }
            state.forgotten.remove(&name);
            let known = state.known.entry(name.clone()).or_default();
            known.settled = true;
            known.deadline = None;
            if known.body.as_ref() == Some(&body.value) {
                continue;
            }
            match decode(kind, &body.value) {
                Ok(value) => {
                    known.body = Some(body.value.clone());
                    self.events.push_back(Event::Changed(kind, name, value));
                }
                Err(why) => {
                    self.events.push_back(Event::Refused(kind, name, why.clone()));
                    errors.push(why);
                }
            }
        }
        // Absence says something only when every resource could be told by name: otherwise the one that could not may
        // be the one believed absent.
        if kind.is_full_state() && all_named {
            self.events.extend(state.remove_others(&seen).into_iter().map(|name| Event::Gone(kind, name)));
        }
        state.nonce.clone_from(&response.nonce);
        state.due = true;
        if errors.is_empty() {
            state.version.clone_from(&response.version);
            state.refusal = None;
            state.error = None;
        } else {
            let message = errors.join("; ");
            state.refusal = Some((response.version.clone(), message.clone()));
            state.error = Some(message);
        }
        self.events.push_back(Event::Synced(kind));
    }

    /// Declares what was asked for in vain to be missing.
    pub fn handle_timeout(&mut self, now: Time) {
        for (kind, state) in &mut self.types {
            for (name, known) in &mut state.known {
                if known.deadline.is_some_and(|deadline| deadline <= now) {
                    known.deadline = None;
                    known.settled = true;
                    self.events.push_back(Event::Gone(*kind, name.clone()));
                }
            }
        }
    }

    /// Has `poll_request` something to say?
    pub fn is_due(&self) -> bool {
        matches!(self.link, Link::Up { .. }) && self.types.values().any(|state| state.due)
    }

    /// The next request, when one is due. To be called only when it can be sent now: timers start with it.
    pub fn poll_request(&mut self, now: Time) -> Option<Request> {
        let Link::Up { spoke, .. } = &mut self.link else { return None };
        let (kind, state) = self.types.iter_mut().find(|(_, state)| state.due)?;
        let request = state.request(*kind, !*spoke, now);
        *spoke = true;
        Some(request)
    }

    /// The next thing that became of a resource.
    pub fn poll_event(&mut self) -> Option<Event<T>> {
        self.events.pop_front()
    }

    /// When `handle_timeout` or `poll_connect` should be called next.
    pub fn next_timeout(&self) -> Option<Time> {
        let deadlines = self.types.values().flat_map(|state| state.known.values()).filter_map(|known| known.deadline);
        match self.link {
            Link::Down { connect_at } => Some(connect_at),
            _ => deadlines.min(),
        }
    }

    /// How each type stands.
    pub fn report(&self) -> impl Iterator<Item = (TypeUrl, TypeReport)> {
        self.types.iter().map(|(kind, state)| {
            let resources = state.known.values().filter(|known| known.body.is_some()).count();
            (*kind, TypeReport { version: state.version.clone(), resources, refusal: state.refusal.clone() })
        })
    }
}

impl TypeState {
    fn new() -> Self {
        Self {
            wanted: Subscription::Names(BTreeSet::new()),
            version: String::new(),
            known: BTreeMap::new(),
            refusal: None,
            nonce: String::new(),
            due: false,
            error: None,
            asked: false,
            named: false,
            forgotten: BTreeSet::new(),
            redone: None,
        }
    }

    fn begin_stream(&mut self) {
        self.nonce.clear();
        self.error = None;
        self.asked = false;
        self.named = false;
        self.forgotten.clear();
        self.redone = None;
        // An empty list as a type's first word would ask for everything, so nothing is said when nothing is wanted.
        self.due = !self.wanted.is_nothing();
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
        if self.redone.as_ref() != Some(&self.nonce) {
            let (forgotten, known) = (&self.forgotten, &self.known);
            let count = names.len();
            names.retain(|name| !forgotten.contains(name) || known.get(name).is_some_and(|known| known.settled));
            if names.len() < count {
                self.redone = Some(self.nonce.clone());
                self.due = true;
            }
        }
        for known in self.known.values_mut() {
            if known.body.is_none() && !known.settled && known.deadline.is_none() {
                known.deadline = Some(now + DOES_NOT_EXIST);
            }
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

    /// Forgets every resource not in `seen`; gives those that were in force or hoped for.
    fn remove_others(&mut self, seen: &BTreeSet<&str>) -> Vec<Name> {
        let mut gone = Vec::new();
        let wanted_by_name = matches!(self.wanted, Subscription::Names(_));
        self.known.retain(|name, known| {
            if seen.contains(&**name) {
                return true;
            }
            if known.body.is_some() || !known.settled {
                gone.push(name.clone());
            }
            *known = Known { settled: true, ..Known::default() };
            wanted_by_name
        });
        gone
    }
}

fn readable_name(kind: TypeUrl, body: &Any) -> Result<&str, String> {
    if body.type_url != kind.as_str() {
        return Err(format!("is of type {:?} in a response of another type", body.type_url));
    }
    name_of(&body.value).ok_or_else(|| "is not a message with a name".to_owned())
}
