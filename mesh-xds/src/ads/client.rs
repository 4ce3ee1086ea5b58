//! Either of the client machines, for those who treat both alike: all that does not depend on what the messages look like.

use mesh_core::time::Time;
use rand::RngCore;

use super::{DataErrors, Event, Subscription, TypeReport, TypeUrl, back_off::BackOff, delta::Delta, sotw::Sotw};

/// Which variant of the protocol a client speaks.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Variant {
    /// Each response of CDS and LDS lists everything, each request all names (XD1).
    #[default]
    Sotw,
    /// Each message says what has changed (XD2).
    Delta,
}

/// The client's side of a stream of either variant.
#[derive(Debug)]
pub enum Client<T> {
    /// State of the world.
    Sotw(Sotw<T>),
    /// Incremental.
    Delta(Delta<T>),
}

/// Calls the method of whichever machine it is.
macro_rules! either {
    ($self:expr, $machine:ident => $call:expr) => {
        match $self {
            Client::Sotw($machine) => $call,
            Client::Delta($machine) => $call,
        }
    };
}

impl<T> Client<T> {
    /// A machine that wants nothing yet and may connect at once.
    pub fn new(variant: Variant, back_off: BackOff, policy: DataErrors) -> Self {
        match variant {
            Variant::Sotw => Self::Sotw(Sotw::new(back_off, policy)),
            Variant::Delta => Self::Delta(Delta::new(back_off, policy)),
        }
    }

    /// Which it speaks.
    pub fn variant(&self) -> Variant {
        match self {
            Self::Sotw(_) => Variant::Sotw,
            Self::Delta(_) => Variant::Delta,
        }
    }

    /// Speaks state of the world from the next stream on, for a server that does not know the other; what is held stays.
    pub fn fall_back(&mut self) {
        if let Self::Delta(delta) = self {
            let delta = std::mem::replace(delta, Delta::new(BackOff::STREAM, DataErrors::default()));
            *self = Self::Sotw(Sotw::of_delta(delta));
        }
    }

    /// Replaces what is wanted of a type.
    pub fn subscribe(&mut self, kind: TypeUrl, wanted: Subscription) {
        either!(self, machine => machine.subscribe(kind, wanted));
    }

    /// Is something wanted that has never come?
    pub fn lacks(&self) -> bool {
        either!(self, machine => machine.lacks())
    }

    /// The next stream is to another server.
    pub fn handle_server_change(&mut self) {
        either!(self, machine => machine.handle_server_change());
    }

    /// The next stream may be opened at once.
    pub fn connect_now(&mut self) {
        either!(self, machine => machine.connect_now());
    }

    /// The server says that it has too much to do; said before `handle_disconnected`.
    pub fn handle_busy(&mut self) {
        either!(self, machine => machine.handle_busy());
    }

    /// Is it time to open a stream?
    pub fn poll_connect(&mut self, now: Time) -> bool {
        either!(self, machine => machine.poll_connect(now))
    }

    /// A stream is open.
    pub fn handle_connected(&mut self) {
        either!(self, machine => machine.handle_connected());
    }

    /// The stream has ended, or could not be opened.
    pub fn handle_disconnected(&mut self, now: Time, rng: &mut impl RngCore) {
        either!(self, machine => machine.handle_disconnected(now, rng));
    }

    /// Declares what was asked for in vain to be missing, and drops what has outlived its time.
    pub fn handle_timeout(&mut self, now: Time) {
        either!(self, machine => machine.handle_timeout(now));
    }

    /// Is there a request to send?
    pub fn is_due(&self, now: Time) -> bool {
        either!(self, machine => machine.is_due(now))
    }

    /// The next thing that became of a resource.
    pub fn poll_event(&mut self) -> Option<Event<T>> {
        either!(self, machine => machine.poll_event())
    }

    /// When `handle_timeout`, `poll_connect` or `is_due` should be called next.
    pub fn next_timeout(&self) -> Option<Time> {
        either!(self, machine => machine.next_timeout())
    }

    /// How each type stands.
    pub fn report(&self) -> Vec<(TypeUrl, TypeReport)> {
        either!(self, machine => machine.report().collect())
    }
}
