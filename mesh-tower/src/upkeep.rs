//! The one background task: ends ejections, closes idle connections, settles histograms; and tasks that end with their owner.

use std::{collections::HashSet, future::Future, sync::Weak, time::Duration};

use tokio::task::JoinHandle;

use crate::{
    live::Live,
    pool::Pool,
    source::Source,
    telemetry::{self, Telemetry},
};

/// Between rounds.
const ROUND: Duration = Duration::from_secs(5);

/// A task that ends when its owner lets go of it.
#[derive(Debug)]
pub(crate) struct Owned(Option<JoinHandle<()>>);

impl Owned {
    /// Starts it.
    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Some(tokio::spawn(task)))
    }

    /// Lets it end by itself, which it does soon.
    pub(crate) fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// Looks after clusters and connections until `live` is gone.
pub(crate) async fn upkeep(live: Weak<Live>, pool: Pool, telemetry: Telemetry, source: Source) {
    let mut rounds = tokio::time::interval(ROUND);
    let mut round = 0_u32;
    loop {
        rounds.tick().await;
        let Some(live) = live.upgrade() else { return };
        pool.sweep();
        let now = source.now();
        if let Some(dialling) = live.dialling() {
            dialling.sweep(now);
        }
        if let Some(snapshot) = live.load() {
            for cluster in snapshot.clusters_in_use() {
                cluster.sweep(now);
                telemetry::tell_ejections(cluster);
                pool.retire_unhealthy(cluster);
            }
            // Seldom, since all clusters are looked through.
            round = round.wrapping_add(1);
            if round.is_multiple_of(12) {
                let config = snapshot.config();
                let hosts = config.clusters.iter().filter_map(|(_, cluster)| cluster.service.as_ref());
                let known: HashSet<&str> = hosts.map(|service| &*service.host).collect();
                telemetry.forget(|host| known.contains(host), now);
            }
        }
        telemetry::upkeep();
    }
}
