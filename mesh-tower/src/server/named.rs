//! Serving by gRPC's rules: what a server does is told by a listener of its own, asked for by the address it listens on.
//!
//! Until that listener is there nobody is accepted; once it is said that there is none, or it is not for this address, callers
//! are closed. Which chain's policy holds is decided for each connection. Another listener ends the connections of the one
//! before, which get ten minutes; routes that come by a name of their own change under the connections that are there.
//! Source: gRFC A36.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use http_body::Body as HttpBody;
use mesh_core::config::{Config, Inbound, Name, Serving};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Handler, Role, Server, Shaken, until_true};
use crate::{
    connect::Listener,
    error::BoxError,
    live::Live,
    tls::{GatewayAcceptor, MtlsAcceptor, Turns},
};

/// How long connections may go on once what they were accepted by is in force no more. Source: gRFC A36 `drain_grace_time`.
const OLD: Duration = Duration::from_secs(600);

/// Whether a server serves. Source: gRFC A36.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ServingState {
    /// It does.
    Serving,
    /// It does not, and why: callers are closed.
    NotServing(String),
}

/// Who is told of a server's state, by the address it listens on.
pub(crate) type Report = Box<dyn Fn(SocketAddr, &ServingState) + Send + Sync>;

/// The connections accepted under one listener.
struct Generation {
    serving: Arc<Serving>,
    /// By chain.
    chains: Vec<Arc<Server>>,
    default_chain: Option<Arc<Server>>,
    drain: watch::Sender<bool>,
    connections: JoinSet<()>,
}

impl Generation {
    fn new(server: &Server, port: u16, serving: Arc<Serving>) -> Self {
        let of = |_: &Arc<Inbound>| {
            Arc::new(Server { live: Arc::new(Live::new()), role: Role::Workload(port), ..server.clone() })
        };
        let chains = serving.chains.iter().map(|chain| of(&chain.policy)).collect();
        let default_chain = serving.default_chain.as_ref().map(of);
        let drain = watch::channel(false).0;
        let mut this =
            Self { serving: Arc::clone(&serving), chains, default_chain, drain, connections: JoinSet::new() };
        this.update(port, serving);
        this
    }

    /// Does a listener differ in nothing but the routes that come by a name of their own?
    fn is_like(&self, other: &Serving) -> bool {
        let bare = |serving: &Serving| {
            let mut bare = serving.clone();
            for chain in bare.chains.iter_mut().filter(|chain| chain.routes_by_name) {
                Arc::make_mut(&mut chain.policy).routes = Arc::default();
            }
            if let Some(policy) = bare.default_chain.as_mut().filter(|_| serving.default_routes_by_name) {
                Arc::make_mut(policy).routes = Arc::default();
            }
            bare
        };
        bare(&self.serving) == bare(other)
    }

    /// Puts the policies of a listener like this one in force.
    fn update(&mut self, port: u16, serving: Arc<Serving>) {
        let policies = serving.chains.iter().map(|chain| &chain.policy).chain(&serving.default_chain);
        for (server, policy) in self.chains.iter().chain(&self.default_chain).zip(policies) {
            let config = Config { inbound: [(port, Arc::clone(policy))].into(), ..Config::default() };
            if let Err(error) = server.live.update(&config) {
                tracing::error!(target: "mesh::server", %error, "a chain cannot be used; its callers get what was in force");
            }
        }
        self.serving = serving;
    }

    fn server(&self, local: SocketAddr, peer: SocketAddr) -> Option<&Arc<Server>> {
        match self.serving.choose(local, peer) {
            Some(at) => self.chains.get(at),
            None => self.default_chain.as_ref(),
        }
    }

    /// Ends its connections: they are told, and cut off if they take longer.
    async fn end(mut self, patience: Duration) {
        self.drain.send_replace(true);
        let _ = timeout(patience, async { while self.connections.join_next().await.is_some() {} }).await;
    }
}

/// What a server has told of itself.
struct Told<'a> {
    address: SocketAddr,
    report: Option<&'a Report>,
    state: Option<ServingState>,
}

impl Told<'_> {
    fn tell(&mut self, state: ServingState) {
        if self.state.as_ref() == Some(&state) {
            return;
        }
        match &state {
            ServingState::Serving => tracing::info!(target: "mesh::server", address = %self.address, "serving"),
            ServingState::NotServing(why) => {
                tracing::warn!(target: "mesh::server", address = %self.address, why, "not serving: callers are closed");
            }
        }
        if let Some(report) = self.report {
            report(self.address, &state);
        }
        self.state = Some(state);
    }
}

impl Server {
    /// Serves what the listener of this address says until `end` is true or gone, then drains.
    pub(super) async fn run_named<S, B, L>(&self, mut listener: L, handler: S, mut end: watch::Receiver<bool>)
    where
        S: Handler<B>,
        B: HttpBody<Error: Into<BoxError>, Data: Send> + Send + 'static,
        L: Listener,
    {
        let (Some(dialling), Ok(bound)) = (self.live.dialling(), listener.local_addr()) else { return };
        let mut told = Told { address: bound, report: dialling.report(), state: None };
        let dialled = match dialling.open_server(bound) {
            Ok(dialled) => dialled,
            Err(why) => {
                told.tell(ServingState::NotServing(why));
                drop(listener);
                return until_true(&mut end).await;
            }
        };
        let turns = Turns::default();
        // Kept, since it is what sessions are resumed by.
        let acceptor = GatewayAcceptor::new(MtlsAcceptor::new(self.identity.clone()));
        let mut current: Option<Generation> = None;
        let mut older = JoinSet::new();
        let mut closed = pin!(self.ending.closed(end.clone()));
        loop {
            // Listening before looking: an update between the two is not missed.
            let updated = self.live.updated();
            self.adopt(dialled.listener(), &mut current, &mut older, &mut told);
            let is_known = told.state.is_some();
            let accepted = tokio::select! {
                biased;
                () = closed.as_mut() => break,
                () = updated => continue,
                Some(_) = older.join_next() => continue,
                accepted = listener.accept(), if is_known => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(target: "mesh::server", %error, "accepting failed");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let local = L::local_addr_of(&stream).unwrap_or(bound);
            let Some(generation) = &mut current else { continue };
            while generation.connections.try_join_next().is_some() {}
            let Some(server) = generation.server(local, peer).cloned() else {
                tracing::debug!(target: "mesh::server", %peer, "closed: no chain takes it");
                continue;
            };
            let (handler, turns, acceptor) = (handler.clone(), turns.clone(), acceptor.clone());
            let mut draining = generation.drain.subscribe();
            generation.connections.spawn(async move {
                let opened = server.open((&turns, acceptor), stream, (peer, Some(local.ip())), &mut draining).await;
                // Bytes are a gateway's.
                if let Some(Shaken::Requests(io, caller)) = opened {
                    server.converse(io, caller, handler, draining).await;
                }
            });
        }
        drop(listener);
        if let Some(generation) = current {
            generation.end(self.ending.drain).await;
        }
        // Dropping the older ones ends what is left of them.
    }

    /// Takes over what the listener says now.
    fn adopt(&self, name: &Name, current: &mut Option<Generation>, older: &mut JoinSet<()>, told: &mut Told<'_>) {
        let Some(serving) = self.live.load().and_then(|snapshot| snapshot.serving(name).cloned()) else { return };
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(&current.serving, &serving)) {
            return;
        }
        let address = told.address;
        let elsewhere = serving.address.filter(|meant| *meant != address);
        let elsewhere = elsewhere.map(|meant| format!("LDS {name:?} is for {meant}, not for {address}"));
        let before = match (serving.refused.clone().or(elsewhere), current.as_mut()) {
            (Some(why), _) => {
                told.tell(ServingState::NotServing(why));
                current.take()
            }
            (None, Some(current)) if current.is_like(&serving) => {
                current.update(address.port(), serving);
                None
            }
            (None, _) => {
                let next = Generation::new(self, address.port(), serving);
                told.tell(ServingState::Serving);
                current.replace(next)
            }
        };
        if let Some(before) = before {
            older.spawn(before.end(OLD));
        }
    }
}
