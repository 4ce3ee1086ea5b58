//! Looking at the processes of the mesh: their admin ports, once a second, as far as they are on this machine.
//!
//! A process says where its admin port is when it connects to the control plane. Those of other machines say nothing to the
//! console: their admin ports are on their own loopback. They show through what the others say of them.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    task::JoinSet,
    time::{self, MissedTickBehavior},
};

use super::history::{Chart, EdgeKey, History, Process, Traffic};
use crate::{
    api::observed::{Edge, Figures},
    state::{State, now},
};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// How long a process may take to answer.
const PATIENCE: Duration = Duration::from_millis(800);
/// The most of an answer that is read.
const MOST: usize = 8 << 20;
/// Processes asked at once.
const AT_ONCE: usize = 32;

/// Who looks.
#[derive(Debug)]
pub(super) struct Collector {
    state: Arc<State>,
    client: Client<HttpConnector, Empty<Bytes>>,
    history: Mutex<History>,
    /// The numbers of the processes, by their admin ports.
    processes: Mutex<Vec<(SocketAddr, Process)>>,
}

impl Collector {
    pub(super) fn new(state: Arc<State>) -> Self {
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_secs(10)).build_http();
        Self { state, client, history: Mutex::default(), processes: Mutex::default() }
    }

    /// Looks once a second, and says when it has, until dropped.
    pub(super) async fn run(self: Arc<Self>, looked: impl Fn(&Self)) {
        let mut ticks = time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.look().await;
            looked(&self);
        }
    }

    async fn look(self: &Arc<Self>) {
        let targets = self.targets();
        let (mut asked, mut answers) = (JoinSet::new(), Vec::new());
        for address in targets.iter().copied() {
            if asked.len() >= AT_ONCE
                && let Some(Ok(answer)) = asked.join_next().await
            {
                answers.push(answer);
            }
            let this = Arc::clone(self);
            asked.spawn(async move { (address, this.get(address, "/traffic").await) });
        }
        while let Some(answer) = asked.join_next().await {
            answers.extend(answer);
        }
        let mut processes = Vec::new();
        let mut history = self.history();
        let second = now() / 1000;
        for (address, answer) in answers {
            let traffic =
                answer.and_then(|body| serde_json::from_slice::<Traffic>(&body).map_err(|error| error.to_string()));
            match traffic {
                Ok(traffic) => {
                    history.record(&address.to_string(), &traffic, second);
                    processes.push((address, traffic.process));
                }
                Err(error) => tracing::debug!(%address, %error, "a process's admin port says nothing of its traffic"),
            }
        }
        history.forget(|process| targets.iter().any(|address| address.to_string() == process));
        drop(history);
        *self.processes.lock().unwrap_or_else(PoisonError::into_inner) = processes;
    }

    /// Every admin port once: several workloads may be one process.
    fn targets(&self) -> BTreeSet<SocketAddr> {
        self.state.workloads().iter().filter(|workload| workload.lost.is_none()).filter_map(|it| it.admin).collect()
    }

    /// The admin port of a workload, as `NAME.NAMESPACE`.
    pub(super) fn admin_of(&self, name: &str) -> Option<SocketAddr> {
        let workloads = self.state.workloads();
        workloads.iter().find(|it| format!("{}.{}", it.name, it.namespace) == name)?.admin
    }

    /// The number of the process behind an admin port, if it answered when last looked at.
    pub(super) fn process(&self, admin: SocketAddr) -> Option<u32> {
        let processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        processes.iter().find(|(address, _)| *address == admin).map(|(_, process)| process.id)
    }

    /// A page of an admin port.
    pub(super) async fn get(&self, address: SocketAddr, path: &str) -> Result<Bytes, String> {
        let request =
            Request::get(format!("http://{address}{path}")).body(Empty::new()).map_err(|error| error.to_string())?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| error.to_string())?;
            if response.status() != StatusCode::OK {
                return Err(format!("{path} answered {}", response.status()));
            }
            let body = Limited::new(response.into_body(), MOST).collect().await.map_err(|error| error.to_string())?;
            Ok(body.to_bytes())
        };
        time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(format!("{address} took too long")))
    }

    pub(super) fn edges(&self) -> Vec<Edge> {
        self.history().edges(now() / 1000)
    }

    pub(super) fn now(&self, wanted: impl Fn(&EdgeKey) -> bool) -> Figures {
        self.history().now(now() / 1000, wanted)
    }

    pub(super) fn chart(&self, wanted: impl Fn(&EdgeKey) -> bool) -> Chart {
        self.history().chart(now() / 1000, wanted)
    }

    pub(super) fn left_out(&self) -> u64 {
        self.history().left_out()
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
