//! What a client holds of one resource type, and the clocks that run on it: shared by both variants of the protocol.
//!
//! Two clocks: a resource asked for and never seen counts as not existing after a while (gRFC A57), and one sent with a
//! time to live is dropped unless the server renews it (gRFC A47, Envoy `Resource.ttl`). What an error in the data does to
//! a resource in force is the [`DataErrors`] policy (gRFC A88).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use mesh_core::{config::Name, time::Time};
use xxhash_rust::xxh64::xxh64;

use super::{Event, Item, MOST_RESOURCES, Subscription, TypeUrl};

/// How long a resource asked for may stay unanswered before it counts as not existing (gRFC A57).
pub const DOES_NOT_EXIST: Duration = Duration::from_secs(15);

/// The same where the bootstrap calls it transient (gRFC A88 `resource_timer_is_transient_error`).
pub const DOES_NOT_ANSWER: Duration = Duration::from_secs(30);

/// What becomes of a resource in force when its successor is bad, or is said not to be there. Source: gRFC A88.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DataErrors {
    /// It is dropped when its successor is refused. Default: it stays. `server_features` `fail_on_data_errors`.
    pub drop_refused: bool,
    /// It stays when the server deletes it. Default: it is dropped. `ignore_resource_deletion` (gRFC A53), and what gRPC
    /// clients do unless told `fail_on_data_errors`.
    pub keep_deleted: bool,
    /// What is asked for in vain is unavailable after 30 s instead of missing after 15 s.
    /// `resource_timer_is_transient_error`.
    pub transient_timer: bool,
}

/// All that is held or hoped for of one type.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) known: BTreeMap<Name, Known>,
    /// How many of them are in force.
    pub(super) count: usize,
    pub(super) policy: DataErrors,
    /// What was asked for, and until when it may be unanswered; the times grow, since all waits are alike. Answers are not
    /// taken out: a name is looked at again when its time has come.
    waiting: VecDeque<(Time, Vec<Name>)>,
    /// How many of them have not been answered.
    unanswered: usize,
    expiring: BTreeSet<(Time, Name)>,
}

/// A message's fingerprint: 128 bits instead of a slice that keeps the whole response it came in.
pub(super) type Print = (u64, u64);

fn print(body: &[u8]) -> Print {
    (xxh64(body, 0), xxh64(body, 1))
}

#[derive(Debug, Default)]
pub(super) struct Known {
    /// Of the accepted message, while it is in force; compared so that what has not changed is neither decoded nor
    /// delivered again (XD15).
    pub(super) print: Option<Print>,
    /// The server's word for it, where it gives one.
    pub(super) version: Name,
    /// Something came for it, or it is known not to exist: no timer is needed.
    pub(super) settled: bool,
    /// The server has been asked for it on this stream; kept by the delta machine.
    pub(super) told: bool,
    /// The server has deleted it, and it is in force all the same.
    orphaned: bool,
    deadline: Option<Time>,
    expires: Option<Time>,
}

impl Held {
    pub(super) fn new(policy: DataErrors) -> Self {
        Self { policy, ..Self::default() }
    }

    /// Forgets what is not wanted and makes room for what is; `dropped` hears of each that goes, `added` of each that is
    /// new.
    pub(super) fn retarget(
        &mut self,
        wanted: &Subscription,
        mut dropped: impl FnMut(&Name, &Known),
        mut added: impl FnMut(&Name) -> Known,
    ) {
        let (expiring, unanswered, count) = (&mut self.expiring, &mut self.unanswered, &mut self.count);
        self.known.retain(|name, known| {
            let kept = wanted.wants(name);
            if !kept {
                if let Some(expires) = known.expires {
                    expiring.remove(&(expires, name.clone()));
                }
                *count -= usize::from(known.print.is_some());
                *unanswered = unanswered.saturating_sub(known.deadline.is_some().into());
                dropped(name, known);
            }
            kept
        });
        if let Subscription::Names(names) = wanted {
            for name in names {
                if !self.known.contains_key(name) {
                    let known = added(name);
                    self.known.insert(name.clone(), known);
                }
            }
        }
    }

    /// Takes a wanted resource in. The error is what the refusal says of it.
    pub(super) fn take<T>(
        &mut self,
        kind: TypeUrl,
        name: &Name,
        item: &Item,
        now: Time,
        decode: &mut impl FnMut(TypeUrl, &Bytes) -> Result<T, String>,
        events: &mut VecDeque<Event<T>>,
    ) -> Result<(), String> {
        if item.body.is_none() && !self.known.contains_key(name) {
            // The heartbeat of something that never came.
            return Ok(());
        }
        // Of a type that is wanted as a whole, increments could add up without end.
        if self.known.len() >= MOST_RESOURCES && !self.known.contains_key(name) {
            return Err(format!("{kind} {name:?}: more than {MOST_RESOURCES} resources"));
        }
        self.settle(name);
        let known = self.known.entry(name.clone()).or_default();
        known.settled = true;
        if let (Some(ttl), true) = (item.ttl, item.body.is_some() || known.print.is_some()) {
            known.expires = Some(now + ttl);
            self.expiring.insert((now + ttl, name.clone()));
        }
        let Some(body) = &item.body else { return Ok(()) };
        known.orphaned = false;
        let print = print(&body.value);
        if known.print == Some(print) {
            known.version.clone_from(&item.version);
            return Ok(());
        }
        match decode(kind, &body.value) {
            Ok(value) => {
                self.count += usize::from(known.print.replace(print).is_none());
                known.version.clone_from(&item.version);
                events.push_back(Event::Changed(kind, name.clone(), value));
                Ok(())
            }
            Err(why) => {
                let dropped = self.policy.drop_refused && known.print.take().is_some();
                self.count -= usize::from(dropped);
                let event = if dropped { Event::Failed } else { Event::Refused };
                events.push_back(event(kind, name.clone(), why.clone()));
                Err(why)
            }
        }
    }

    /// Something was said of a resource: none of its clocks runs on.
    fn settle(&mut self, name: &Name) {
        let Some(known) = self.known.get_mut(name) else { return };
        known.settled = true;
        if let Some(expires) = known.expires.take() {
            self.expiring.remove(&(expires, name.clone()));
        }
        if known.deadline.take().is_some() {
            self.answered();
        }
    }

    fn answered(&mut self) {
        self.unanswered = self.unanswered.saturating_sub(1);
        if self.unanswered == 0 {
            self.waiting.clear();
        }
    }

    /// The server has no such resource: `why` in its words, if it gave any.
    pub(super) fn remove<T>(&mut self, kind: TypeUrl, name: &Name, why: Option<&str>, events: &mut VecDeque<Event<T>>) {
        let Some(known) = self.known.get_mut(name) else { return };
        let in_force = known.print.is_some();
        if in_force && self.policy.keep_deleted {
            known.settled = true;
            if !std::mem::replace(&mut known.orphaned, true) {
                let why = why.unwrap_or("the control plane has deleted it; it stays in force");
                events.push_back(Event::Ambient(kind, name.clone(), why.to_owned()));
            }
            return;
        }
        let news = in_force || !known.settled;
        self.count -= usize::from(in_force);
        self.settle(name);
        if let Some(known) = self.known.get_mut(name) {
            *known = Known { settled: true, told: known.told, ..Known::default() };
        }
        if news {
            events.push_back(match why {
                Some(why) => Event::Failed(kind, name.clone(), why.to_owned()),
                None => Event::Gone(kind, name.clone()),
            });
        }
    }

    /// Is something hoped for that has never come?
    pub(super) fn lacks(&self) -> bool {
        self.known.values().any(|known| known.print.is_none() && !known.settled)
    }

    /// Of a wildcard, nothing stays of what is gone: names that nobody wants by name would pile up.
    pub(super) fn forget_unless_named(&mut self, name: &Name, wanted: &Subscription) {
        if *wanted == Subscription::All && self.known.get(name).is_some_and(|known| known.print.is_none()) {
            self.known.remove(name);
        }
    }

    /// The server cannot give a resource for now, or to us: one in force stays unless the policy drops it.
    pub(super) fn fail<T>(&mut self, kind: TypeUrl, name: &Name, why: &str, events: &mut VecDeque<Event<T>>) {
        self.settle(name);
        let Some(known) = self.known.get_mut(name) else { return };
        if self.policy.drop_refused {
            self.count -= usize::from(known.print.take().is_some());
        }
        let event = if known.print.is_some() { Event::Ambient } else { Event::Failed };
        events.push_back(event(kind, name.clone(), why.to_owned()));
    }

    /// These were asked for just now: those never seen are waited for, so long and no longer. Says whether there are any.
    pub(super) fn wait_for<'a>(&mut self, names: impl Iterator<Item = &'a Name>, now: Time) -> bool {
        let wait = if self.policy.transient_timer { DOES_NOT_ANSWER } else { DOES_NOT_EXIST };
        let mut asked = Vec::new();
        for name in names {
            let Some(known) = self.known.get_mut(name) else { continue };
            if known.print.is_none() && !known.settled && known.deadline.is_none() {
                known.deadline = Some(now + wait);
                self.unanswered += 1;
                asked.push(name.clone());
            }
        }
        let some = !asked.is_empty();
        if some {
            self.waiting.push_back((now + wait, asked));
        }
        some
    }

    /// While disconnected nothing can be missed: the waits begin again with the requests of the next stream (XD7).
    pub(super) fn stop_waiting(&mut self) {
        for (_, names) in self.waiting.drain(..) {
            for name in names {
                if let Some(known) = self.known.get_mut(&name) {
                    known.deadline = None;
                }
            }
        }
        self.unanswered = 0;
    }

    /// Declares what was asked for in vain to be missing, and drops what has outlived its time.
    pub(super) fn handle_timeout<T>(&mut self, kind: TypeUrl, now: Time, events: &mut VecDeque<Event<T>>) {
        while self.waiting.front().is_some_and(|(deadline, _)| *deadline <= now) {
            for name in self.waiting.pop_front().into_iter().flat_map(|(_, names)| names) {
                let Some(known) = self.known.get_mut(&name) else { continue };
                if known.deadline.is_none_or(|deadline| deadline > now) {
                    continue;
                }
                known.deadline = None;
                known.settled = true;
                self.unanswered = self.unanswered.saturating_sub(1);
                events.push_back(if self.policy.transient_timer {
                    let why = format!("{kind} {name:?}: the control plane has not answered for it in 30 s");
                    Event::Failed(kind, name, why)
                } else {
                    Event::Gone(kind, name)
                });
            }
        }
        while self.expiring.first().is_some_and(|(expires, _)| *expires <= now) {
            let Some((_, name)) = self.expiring.pop_first() else { return };
            if let Some(known) = self.known.get_mut(&name) {
                self.count -= usize::from(known.print.is_some());
                *known = Known { settled: true, told: known.told, ..Known::default() };
                events.push_back(Event::Gone(kind, name));
            }
        }
    }

    /// When `handle_timeout` should be called next; it may then find nothing to do.
    pub(super) fn next_timeout(&self) -> Option<Time> {
        let waiting = self.waiting.front().filter(|_| self.unanswered > 0).map(|(deadline, _)| *deadline);
        waiting.into_iter().chain(self.expiring.first().map(|(expires, _)| *expires)).min()
    }
}
