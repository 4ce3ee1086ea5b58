//! Workloads whose stream ended: do they still run? Their first port is tried, and what it says is told to the registry.

use std::{io::ErrorKind, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpStream, task::JoinSet, time};

use super::Push;
use crate::registry::Registered;

/// Probes under way at once: a thousand workloads that fell silent are looked after within a second.
const AT_ONCE: usize = 256;

/// How long the other side may take to accept a probe.
const PROBE_TIMEOUT: Duration = Duration::from_millis(150);

impl Push {
    /// Tries them all once.
    pub(super) async fn look_after_the_lost(&self) {
        let lost = self.state.workloads().into_iter().filter(|workload| workload.lost.is_some());
        let lost: Vec<_> = lost.collect();
        if lost.is_empty() {
            return;
        }
        all(lost, probe, |workload, said| match said {
            Probe::Answered => self.state.still_lost(workload, false),
            Probe::Refused => self.state.still_lost(workload, true),
            Probe::Nothing => {}
        })
        .await;
        self.state.expire();
    }
}

/// Asks each, many at once, and tells of each answer as it comes. Dropped, it asks no more.
async fn all<T, F>(lost: Vec<Arc<Registered>>, ask: impl Fn(Arc<Registered>) -> F, mut tell: impl FnMut(&Registered, T))
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let mut asked = JoinSet::new();
    let mut lost = lost.into_iter();
    loop {
        while asked.len() < AT_ONCE
            && let Some(workload) = lost.next()
        {
            let answer = ask(workload.clone());
            asked.spawn(async move { (workload, answer.await) });
        }
        match asked.join_next().await {
            Some(Ok((workload, said))) => tell(&workload, said),
            Some(Err(_)) => {}
            None => return,
        }
    }
}

/// What a workload's first port said to a connection.
enum Probe {
    /// Somebody listens.
    Answered,
    /// Nobody does.
    Refused,
    /// Not known: no port, no answer.
    Nothing,
}

async fn probe(workload: Arc<Registered>) -> Probe {
    let Some(port) = workload.ports.first() else { return Probe::Nothing };
    let address = SocketAddr::new(workload.address, port.number);
    match time::timeout(PROBE_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Probe::Answered,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Probe::Refused,
        Ok(Err(_)) | Err(_) => Probe::Nothing,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;
    use tokio::time::{Instant, sleep};

    use super::*;

    /// However many do not answer, a round takes about as long as one of them.
    #[tokio::test(start_paused = true)]
    async fn the_silent_are_asked_at_once() {
        let workload = |n: usize| -> Registered {
            serde_json::from_value(json!({
                "name": format!("a-{n}"), "namespace": "default", "workload": "a", "service_account": "a",
                "address": "10.0.0.1", "ports": [], "labels": {}, "locality": {"region": "", "zone": "", "sub_zone": ""},
                "gateway": false, "since": 0, "lost": 1,
            }))
            .unwrap()
        };
        let lost = (0..1_000).map(|n| Arc::new(workload(n))).collect();
        let (start, mut told) = (Instant::now(), 0);
        all(lost, |_| sleep(PROBE_TIMEOUT), |_, ()| told += 1).await;
        assert_eq!(told, 1_000);
        assert!(start.elapsed() <= 5 * PROBE_TIMEOUT, "{:?}", start.elapsed());
    }
}
