//! Driver: holds the stream that loads are reported on, one to each list of servers whose clusters ask for it.
//!
//! Clusters are reported to whom they come from (`lrs_server: self`): those of an authority with servers of its own to the
//! first of these, all others to the control plane, or to a fallback of it where that does not answer.

use std::sync::Arc;

use mesh_core::{config::Name, tally::Ledgers, time::Time};
use rand::{SeedableRng, rngs::SmallRng};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use super::{Reports, message};
use crate::{
    ads::back_off::BackOff,
    bootstrap::{Bootstrap, Server},
    proto::envoy::service::load_stats::v3::{
        LoadStatsResponse, load_reporting_service_client::LoadReportingServiceClient,
    },
    task::Task,
    transport,
};

/// Reports what is counted for as long as this value, where and as often as control planes ask for it.
#[derive(Debug)]
pub struct Reporter {
    _tasks: Vec<Task>,
}

impl Reporter {
    /// Reports to the control planes of `bootstrap`. Must be called within a tokio runtime. Opens no stream while there is nothing
    /// to report.
    pub fn start(bootstrap: &Arc<Bootstrap>, ledgers: &Arc<Ledgers>) -> Self {
        let mut lists: Vec<Vec<Server>> = Vec::new();
        let authorities = bootstrap.authorities.values().filter(|authority| !authority.servers.is_empty());
        let own = std::iter::once(&bootstrap.server).chain(&bootstrap.fallbacks).cloned().collect();
        for servers in std::iter::once(own).chain(authorities.map(|authority| authority.servers.clone())) {
            if !lists.contains(&servers) {
                lists.push(servers);
            }
        }
        let start = |servers| {
            let driver = Driver {
                machine: Reports::new(BackOff::STREAM, Time::ZERO),
                bootstrap: Arc::clone(bootstrap),
                ledgers: Arc::clone(ledgers),
                began: Instant::now(),
                rng: SmallRng::from_os_rng(),
                at: 0,
                servers,
            };
            Task::spawn(driver.run())
        };
        Self { _tasks: lists.into_iter().map(start).collect() }
    }
}

struct Driver {
    machine: Reports,
    bootstrap: Arc<Bootstrap>,
    ledgers: Arc<Ledgers>,
    servers: Vec<Server>,
    /// Which of them is spoken to.
    at: usize,
    began: Instant,
    rng: SmallRng,
}

/// Why a stream ended.
struct End {
    why: String,
    /// The server cannot do it, now or ever.
    spare: bool,
}

impl From<String> for End {
    fn from(why: String) -> Self {
        Self { why, spare: false }
    }
}

impl End {
    fn of(status: &Status) -> Self {
        let spare = matches!(status.code(), Code::Unimplemented | Code::ResourceExhausted | Code::PermissionDenied);
        Self { why: transport::describe(status), spare }
    }
}

impl Driver {
    async fn run(mut self) {
        let mut told = false;
        loop {
            self.something().await;
            self.machine.handle_first(self.now());
            if !self.machine.poll_connect(self.now()) {
                let at = self.machine.next_timeout().unwrap_or(Time::ZERO);
                tokio::time::sleep_until(self.instant(at)).await;
                continue;
            }
            let ended = self.converse().await;
            let was_asked = self.machine.order().is_some();
            let (now, server) = (self.now(), self.server().map_or_else(String::new, |server| server.address.clone()));
            match ended {
                Ok(()) => {
                    tracing::info!(%server, "there is no load to report any more");
                    self.machine.handle_disconnected(now, false, &mut self.rng);
                }
                Err(End { why, spare }) => {
                    self.machine.handle_disconnected(now, spare, &mut self.rng);
                    // People are told once, not at each attempt.
                    if was_asked {
                        tracing::info!(%server, why, "the stream that load is reported on ended");
                    } else if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%server, why, "load cannot be reported; it is tried again until it can");
                    }
                    if !was_asked {
                        self.at = (self.at + 1) % self.servers.len().max(1);
                    }
                }
            }
        }
    }

    /// Waits until there is anything to report.
    async fn something(&self) {
        std::future::poll_fn(|cx| self.ledgers.poll_any(cx, |cluster| self.is_own(cluster))).await;
    }

    fn has_something(&self) -> bool {
        let cx = std::task::Context::from_waker(std::task::Waker::noop());
        self.ledgers.poll_any(&cx, |cluster| self.is_own(cluster)).is_ready()
    }

    /// Does this cluster come from these servers?
    fn is_own(&self, cluster: &Name) -> bool {
        let servers = self.bootstrap.servers_of(cluster);
        servers.is_some_and(|servers| servers.into_iter().eq(&self.servers))
    }

    /// Holds one stream until it ends, or until nothing is left to report.
    async fn converse(&mut self) -> Result<(), End> {
        let Some(server) = self.server().cloned() else { return Err("there is no server".to_owned().into()) };
        let channel = transport::connect(&server).await?;
        let headers = transport::headers(&server, &self.bootstrap.node).await?;
        let (outgoing, requests) = mpsc::channel(1);
        let mut call = Request::new(ReceiverStream::new(requests));
        *call.metadata_mut() = headers;
        let mut client = LoadReportingServiceClient::new(channel);
        self.machine.handle_connected();
        // Some servers answer nothing, not even headers, before the first request: it is sent while waiting for them.
        let mut opening = std::pin::pin!(client.stream_load_stats(call));
        let (mut incoming, mut writable) = (None, true);
        loop {
            let due = self.machine.is_due(self.now());
            let until = self.machine.next_timeout().map(|at| self.instant(at));
            tokio::select! {
                room = outgoing.reserve(), if writable && due => match room {
                    Ok(room) => {
                        let (now, ledgers) = (self.now(), Arc::clone(&self.ledgers));
                        let servers = (&self.bootstrap, &self.servers);
                        let own = |cluster: &Name| {
                            servers.0.servers_of(cluster).is_some_and(|of| of.into_iter().eq(servers.1))
                        };
                        if let Some(said) = self.machine.poll_say(now, &ledgers, own) {
                            room.send(message::encode(&said, &self.bootstrap.node));
                        }
                        if self.machine.order().is_some() && !self.has_something() {
                            return Ok(());
                        }
                    }
                    // The server reads no more; what it has to say about that comes the other way.
                    Err(_) => writable = false,
                },
                answer = &mut opening, if incoming.is_none() => {
                    incoming = Some(answer.map_err(|status| End::of(&status))?.into_inner());
                }
                heard = next(&mut incoming) => match heard {
                    Ok(Some(response)) => self.hear(response, &server),
                    Ok(None) => return Err("the server ended the stream".to_owned().into()),
                    Err(status) => return Err(End::of(&status)),
                },
                () = sleep_until(until), if !due => {}
            }
        }
    }

    fn hear(&mut self, response: LoadStatsResponse, server: &Server) {
        let (order, now) = (message::decode(response), self.now());
        if self.machine.order() != Some(&order) {
            let (server, every) = (&server.address, order.every());
            tracing::info!(%server, ?every, all = order.all, clusters = order.clusters.len(), "load is reported");
            if order.by_endpoint {
                tracing::warn!(%server, "report_endpoint_granularity has no effect: load is reported by locality");
            }
        }
        self.machine.handle_order(order, now);
    }

    fn server(&self) -> Option<&Server> {
        self.servers.get(self.at)
    }

    fn now(&self) -> Time {
        Time::ZERO + self.began.elapsed()
    }

    fn instant(&self, at: Time) -> Instant {
        self.began + at.saturating_since(Time::ZERO)
    }
}

async fn next<T>(incoming: &mut Option<Streaming<T>>) -> Result<Option<T>, Status> {
    match incoming {
        Some(incoming) => incoming.message().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
