//! The connections of one endpoint: leased for a request, given back when its response has been read to the end.
//!
//! HTTP/1.1 connections are used last in, first out, which lets the surplus fall idle; HTTP/2 connections are shared up
//! to the streams that the peer takes, and further ones are opened beyond. Where nothing is free a request waits in line,
//! up to the cluster's limit of pending requests, while tasks of the pool open what is missing, up to its limit of
//! connections; whatever comes free first serves whoever waits longest. An endpoint without any connection may always
//! open one, so that no endpoint is shut out by others. A request that goes away takes no connection with it that is
//! being opened: the next one finds it.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use mesh_core::{config::Cluster, limit::Slot, time::Time};
use tokio::{sync::oneshot, task::AbortHandle};

use super::{
    Route, Way,
    http1::Http1,
    http2::Http2,
    keep::{Keep, Purpose, Waiter, Wants, overflow},
    lease::{Held, Lease, Place},
    open::{self, Opened, open},
};
use crate::{
    error::{Error, ErrorKind},
    telemetry::PeerCache,
    tls::Sessions,
};

/// All connections of one endpoint.
#[derive(Debug)]
pub(super) struct EndpointPool {
    me: Weak<Self>,
    keep: Keep,
    state: Mutex<State>,
    /// How many wait in line.
    waiting: AtomicUsize,
    /// HTTP/1.1 connections open or being opened.
    open: AtomicUsize,
    /// What opens connections, or waits for one to be ready again.
    tasks: Mutex<Vec<AbortHandle>>,
    pub(super) peers: PeerCache,
    pub(super) sessions: Sessions,
}

#[derive(Debug, Default)]
struct State {
    #[expect(clippy::vec_box, reason = "a connection goes in and out of here in the box that its request holds")]
    idle: Vec<Box<Http1>>,
    shared: Vec<Arc<Http2>>,
    line: VecDeque<Waiter>,
    opening_http1: usize,
    opening_shared: bool,
    /// The peer, asked, chose HTTP/1.1.
    speaks_http1: bool,
}

/// What lies ready to serve a request.
enum Ready {
    Idle(Box<Http1>),
    Shared(Arc<Http2>),
}

impl EndpointPool {
    /// Without any connection yet.
    pub(super) fn new(config: &Cluster) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            keep: Keep::new(&config.connections),
            state: Mutex::default(),
            waiting: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            tasks: Mutex::default(),
            peers: PeerCache::default(),
            sessions: Sessions::default(),
        })
    }

    /// A connection that lies ready.
    pub(super) fn at_hand(&self, route: &Route<'_>) -> Option<Lease> {
        let lease = self.take(route.wants, route.generation(), route.now())?;
        if self.keep.preconnect_percent > 100 {
            self.preconnect(route);
        }
        Some(lease)
    }

    /// A connection that is idle, shared or new.
    pub(super) async fn lease(&self, route: &Route<'_>) -> Result<Lease, Error> {
        let (wants, generation) = (route.wants, route.generation());
        let mut pending: Option<Slot> = None;
        let told = loop {
            if let Some(lease) = self.at_hand(route) {
                return Ok(lease);
            }
            if pending.is_none() {
                let slot = route.cluster.pending_slot(route.priority);
                pending = Some(slot.ok_or_else(|| overflow("requests waiting for a connection"))?);
            }
            let mut state = self.lock();
            let came_free = (wants.takes_http1() && !state.idle.is_empty())
                || (wants.takes_http2() && self.roomy(&state, generation, route.now()).is_some());
            if came_free {
                continue;
            }
            let (told, hears) = oneshot::channel();
            state.line.push_back(Waiter { wants, way: Arc::new(route.to_owned()), told });
            self.waiting.store(state.line.len(), Ordering::Release);
            drop(state);
            break hears;
        };
        self.serve();
        match told.await {
            Ok(result) => {
                if result.is_ok() && self.keep.preconnect_percent > 100 {
                    self.preconnect(route);
                }
                result
            }
            Err(_) => Err(Error::msg(ErrorKind::Connect, "the pool of connections was closed").unsent()),
        }
    }

    /// Closes what lay idle or lived too long, and what belongs to an earlier identity, once nothing is under way on it.
    pub(super) fn sweep(&self, now: Time, generation: u64) {
        let current = |of: u64| of == 0 || of == generation;
        let mut state = self.lock();
        let fresh = |connection: &Http1| {
            current(connection.generation)
                && !connection.is_retired()
                && self.keep.keeps_idle(connection.idle_since, now)
                && self.keep.keeps(connection.requests, connection.opened, now)
        };
        let doubtful: Vec<_> =
            state.idle.extract_if(.., |connection| connection.was_woken() || !fresh(connection)).collect();
        let gone: Vec<_> = state
            .shared
            .extract_if(.., |connection| {
                let idle = connection.streams() == 0
                    && !(current(connection.generation) && self.keep.keeps_idle(connection.idle_since(), now));
                idle || connection.is_closed() || !self.keep.keeps(connection.requests(), connection.opened, now)
            })
            .collect();
        drop(state);
        drop(gone);
        // Woken is not closed: those that only heard of something come back.
        for mut connection in doubtful {
            if fresh(&connection) && connection.is_ready() {
                self.lock().idle.push(connection);
            } else {
                connection.close();
            }
        }
    }

    /// Closes every connection that no request uses; those in use close when their requests end.
    pub(super) fn retire(&self) {
        let mut state = self.lock();
        let (idle, shared) = (std::mem::take(&mut state.idle), std::mem::take(&mut state.shared));
        drop(state);
        drop(shared);
        idle.into_iter().for_each(|connection| connection.close());
    }

    /// Runs a task that ends with the pool.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let task = tokio::spawn(task).abort_handle();
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    /// An HTTP/1.1 connection is free.
    pub(super) fn put_back(&self, mut connection: Box<Http1>, now: Time) {
        if !self.keep.keeps(connection.requests, connection.opened, now) {
            connection.close();
            return;
        }
        connection.idle_since = now;
        self.lock().idle.push(connection);
        self.freed();
    }

    /// Something may have come free for who waits.
    pub(super) fn freed(&self) {
        if self.waiting.load(Ordering::Acquire) > 0 {
            self.serve();
        }
    }

    /// What lies ready, made a lease.
    fn take(&self, wants: Wants, generation: u64, now: Time) -> Option<Lease> {
        if wants.takes_http2()
            && let Some(connection) = self.roomy(&self.lock(), generation, now)
        {
            return Some(self.lease_of(Ready::Shared(connection), now));
        }
        while wants.takes_http1() {
            let idle = self.lock().idle.pop()?;
            if let Some(lease) = self.checked(Ready::Idle(idle), generation, now) {
                return Some(lease);
            }
        }
        None
    }

    /// The first shared connection with room for another request.
    fn roomy(&self, state: &State, generation: u64, now: Time) -> Option<Arc<Http2>> {
        let usable = |connection: &&Arc<Http2>| {
            connection.generation == generation
                && connection.has_room()
                && !connection.is_closed()
                && (connection.streams() > 0 || self.keep.keeps_idle(connection.idle_since(), now))
                && self.keep.keeps(connection.requests(), connection.opened, now)
        };
        state.shared.iter().find(usable).map(Arc::clone)
    }

    /// A lease of what was ready, unless it turns out to be over. Not to be called with the state locked.
    fn checked(&self, ready: Ready, generation: u64, now: Time) -> Option<Lease> {
        match ready {
            Ready::Idle(mut connection) => {
                let fresh = connection.generation == generation
                    && self.keep.keeps_idle(connection.idle_since, now)
                    && self.keep.keeps(connection.requests, connection.opened, now);
                if fresh && connection.is_ready() {
                    return Some(self.lease_of(Ready::Idle(connection), now));
                }
                connection.close();
                None
            }
            Ready::Shared(_) => Some(self.lease_of(ready, now)),
        }
    }

    fn lease_of(&self, ready: Ready, now: Time) -> Lease {
        let me = Weak::clone(&self.me);
        match ready {
            Ready::Idle(connection) => Lease::Http1(Held::new(connection, me)),
            Ready::Shared(connection) => {
                connection.enter(now, self.keep.after_idle);
                Lease::Http2(Place::new(connection, me))
            }
        }
    }

    /// Gives what is free to those who wait longest, and opens what is missing.
    fn serve(&self) {
        loop {
            let mut state = self.lock();
            state.line.retain(|waiter| !waiter.told.is_closed());
            let served = self.match_one(&mut state);
            self.waiting.store(state.line.len(), Ordering::Release);
            if let Some((waiter, ready, now)) = served {
                drop(state);
                match self.checked(ready, waiter.way.generation(), now) {
                    // Who went away meanwhile leaves it to the next.
                    Some(lease) => drop(waiter.told.send(Ok(lease))),
                    None => {
                        let mut state = self.lock();
                        state.line.push_front(waiter);
                        self.waiting.store(state.line.len(), Ordering::Release);
                    }
                }
                continue;
            }
            if !self.open_missing(state) {
                return;
            }
        }
    }

    /// The first in line that something is there for.
    fn match_one(&self, state: &mut State) -> Option<(Waiter, Ready, Time)> {
        for at in 0..state.line.len() {
            let waiter = state.line.get(at)?;
            let now = waiter.way.now();
            let ready = if waiter.wants.takes_http2()
                && let Some(connection) = self.roomy(state, waiter.way.generation(), now)
            {
                Ready::Shared(connection)
            } else if waiter.wants.takes_http1()
                && let Some(connection) = state.idle.pop()
            {
                Ready::Idle(connection)
            } else {
                continue;
            };
            return state.line.remove(at).map(|waiter| (waiter, ready, now));
        }
        None
    }

    /// Starts opening one connection, if those in line need one more and there may be one.
    fn open_missing(&self, mut state: MutexGuard<'_, State>) -> bool {
        let alone = |waiter: &Waiter, speaks_http1| {
            waiter.wants == Wants::Http1 || (waiter.wants == Wants::Any && speaks_http1)
        };
        let speaks_http1 = state.speaks_http1;
        let mut singles = state.line.iter().filter(|waiter| alone(waiter, speaks_http1));
        // As many are being opened as wait: each of those gets one.
        let single = singles.nth(state.opening_http1).map(|waiter| Arc::clone(&waiter.way));
        if let Some(way) = single {
            let slot = way.cluster.connection_slot(way.priority);
            let counted = Counted::new(self);
            if slot.is_some() || counted.is_first() {
                state.opening_http1 += 1;
                drop(state);
                self.start(way, Purpose::Single, (slot, counted));
                return true;
            }
            counted.forget();
        }
        if state.opening_shared {
            return false;
        }
        let shared =
            state.line.iter().find(|waiter| !alone(waiter, speaks_http1)).map(|waiter| Arc::clone(&waiter.way));
        let Some(way) = shared else { return false };
        let slot = way.cluster.connection_slot(way.priority);
        // None of the ones that are there may be of use to it: of an earlier identity, or leaving.
        let none = state.shared.iter().all(|connection| connection.is_closed() || connection.streams() == 0);
        if slot.is_none() && !none {
            return false;
        }
        state.opening_shared = true;
        drop(state);
        let counted = Counted::shared(self);
        self.start(way, Purpose::Shared, (slot, counted));
        true
    }

    /// Opens connections ahead of need, in proportion to those in use. Source: Envoy `per_upstream_preconnect_ratio`.
    fn preconnect(&self, route: &Route<'_>) {
        let open = self.open.load(Ordering::Relaxed);
        let mut state = self.lock();
        let shared = route.wants != Wants::Http1 && !(route.wants == Wants::Any && state.speaks_http1);
        let (busy, room) = if shared {
            let usable = || state.shared.iter().filter(|connection| !connection.is_closed());
            let room = usable().fold(0_usize, |room, connection| room.saturating_add(connection.most()));
            (usable().map(|connection| connection.streams()).sum(), room)
        } else {
            (open.saturating_sub(state.idle.len() + state.opening_http1), open)
        };
        let wanted = (busy * self.keep.preconnect_percent).div_ceil(100);
        if busy == 0 || room >= wanted || (shared && state.opening_shared) {
            return;
        }
        let Some(slot) = route.cluster.connection_slot(route.priority) else { return };
        let (purpose, counted) = if shared {
            state.opening_shared = true;
            (Purpose::Shared, Counted::shared(self))
        } else {
            state.opening_http1 += 1;
            (Purpose::Single, Counted::new(self))
        };
        drop(state);
        self.start(Arc::new(route.to_owned()), purpose, (Some(slot), counted));
    }

    fn start(&self, way: Arc<Way>, purpose: Purpose, held: open::Held) {
        let me = Weak::clone(&self.me);
        self.spawn(async move {
            let opened = open(&way, held).await;
            if let Some(me) = me.upgrade() {
                me.opened(&way, purpose, opened);
            }
        });
    }

    fn opened(&self, way: &Way, purpose: Purpose, opened: Result<Opened, Error>) {
        let now = way.now();
        let mut state = self.lock();
        match purpose {
            Purpose::Single => state.opening_http1 = state.opening_http1.saturating_sub(1),
            Purpose::Shared => state.opening_shared = false,
        }
        match opened {
            Ok(opened) => {
                // Whoever waits for it gets it whatever has become of it since: a peer that closes each connection at once
                // is told as an error, and is not called again and again.
                let ready = match opened {
                    Opened::Http1(mut connection) => {
                        state.speaks_http1 = true;
                        connection.idle_since = now;
                        Ready::Idle(connection)
                    }
                    Opened::Http2(connection) => {
                        state.speaks_http1 = false;
                        connection.touch(now);
                        let connection = Arc::new(connection);
                        state.shared.push(Arc::clone(&connection));
                        Ready::Shared(connection)
                    }
                };
                let suits = |waiter: &Waiter| match ready {
                    Ready::Idle(_) => waiter.wants.takes_http1(),
                    Ready::Shared(_) => waiter.wants.takes_http2(),
                };
                let first = state.line.iter().position(|waiter| suits(waiter) && !waiter.told.is_closed());
                if let Some(waiter) = first.and_then(|at| state.line.remove(at)) {
                    drop(state);
                    let _ = waiter.told.send(Ok(self.lease_of(ready, now)));
                } else if let Ready::Idle(connection) = ready {
                    state.idle.push(connection);
                    drop(state);
                } else {
                    drop(state);
                }
                self.serve();
            }
            Err(error) => {
                let (mut failed, speaks_http1) = (Vec::new(), state.speaks_http1);
                let mut at = 0;
                while let Some(waiter) = state.line.get(at) {
                    let single = waiter.wants == Wants::Http1 || (waiter.wants == Wants::Any && speaks_http1);
                    if single == matches!(purpose, Purpose::Single) {
                        failed.extend(state.line.remove(at));
                        // Each has one opened for it, unless it is shared.
                        if single {
                            break;
                        }
                    } else {
                        at += 1;
                    }
                }
                drop(state);
                let text = error.to_string();
                let mut error = Some(error);
                for waiter in failed {
                    let kind = error.as_ref().map_or(ErrorKind::Connect, Error::kind);
                    let told = error.take().unwrap_or_else(|| Error::msg(kind, text.clone()));
                    let _ = waiter.told.send(Err(told));
                }
                self.serve();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for EndpointPool {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

/// A connection from before it is open until it is closed; then it lets those in line look again.
pub(super) struct Counted {
    pool: Weak<EndpointPool>,
    /// HTTP/1.1 connections before it; a shared one is not counted.
    before: Option<usize>,
}

impl Counted {
    fn new(pool: &EndpointPool) -> Self {
        let before = pool.open.fetch_add(1, Ordering::AcqRel);
        Self { pool: Weak::clone(&pool.me), before: Some(before) }
    }

    fn shared(pool: &EndpointPool) -> Self {
        Self { pool: Weak::clone(&pool.me), before: None }
    }

    fn is_first(&self) -> bool {
        self.before == Some(0)
    }

    /// Nothing is opened after all: nobody needs to look again.
    fn forget(mut self) {
        if let Some(pool) = std::mem::take(&mut self.pool).upgrade() {
            pool.open.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            if self.before.is_some() {
                pool.open.fetch_sub(1, Ordering::AcqRel);
            }
            pool.freed();
        }
    }
}
