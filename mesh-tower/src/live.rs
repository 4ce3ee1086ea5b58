//! The configuration in force: one value, swapped whole. Requests read it without a lock; one writer at a time compiles.
//!
//! Before the first one arrives a request waits, up to its deadline. Once there is one, something is always in force:
//! a configuration that does not compile is refused and the one before stays.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use mesh_core::{
    config::{
        Action, Cluster, Config, Discovery, DnsName, Forward, HeaderChanges, Name, Route, RouteMatch, RouteTable,
        VirtualHost, WeightedCluster,
    },
    error::CompileError,
    snapshot::Snapshot,
    switches::{Feature, Switches},
};
use tokio::{
    sync::{Notify, futures::Notified},
    time::{Instant, timeout_at},
};

use crate::{
    dial::{Dialling, Opener, ServerOpener},
    names::Answers,
    source,
};

/// What requests read and the control plane's updates replace.
#[derive(Debug, Default)]
pub struct Live {
    snapshot: ArcSwapOption<Snapshot>,
    first: Notify,
    writer: Mutex<()>,
    /// What is switched off, and the configuration as it was before that was taken out of it.
    switched: Mutex<Switched>,
    answers: Answers,
    only_port: Option<u16>,
    dialling: Option<Dialling>,
}

#[derive(Debug, Default)]
struct Switched {
    off: Switches,
    whole: Option<Config>,
}

impl Live {
    /// How long a request without a deadline waits for the first configuration: as long as an xDS client waits for a
    /// resource before it takes it for missing.
    pub const PATIENCE: Duration = Duration::from_secs(15);

    /// Nothing in force yet: requests wait.
    pub fn new() -> Self {
        Self::default()
    }

    /// No mesh: every request goes to the host it names, found by DNS, in plaintext. Only ever chosen on purpose.
    pub fn off() -> Self {
        let live = Self { only_port: Some(0), ..Self::default() };
        // It is a constant; that it compiles is tested below.
        if let Err(error) = live.update(&passthrough()) {
            tracing::error!(%error, "the pass-through configuration does not compile");
        }
        live
    }

    /// Nothing in force yet; each destination is asked for by its name once requests go there.
    #[cfg_attr(not(feature = "xds"), allow(dead_code, reason = "without a control plane nobody is asked"))]
    pub(crate) fn dialled_by(open: Opener, open_server: ServerOpener) -> Self {
        Self { dialling: Some(Dialling::new(open, open_server)), ..Self::default() }
    }

    /// The names that are dialled, where destinations are asked for by name.
    pub(crate) fn dialling(&self) -> Option<&Dialling> {
        self.dialling.as_ref()
    }

    /// Puts a configuration in force. Live state of endpoints that stay (load, ejection, connections) is carried over.
    ///
    /// # Errors
    ///
    /// It cannot be compiled; the one before stays in force.
    pub fn update(&self, config: &Config) -> Result<(), CompileError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = self.snapshot.load_full();
        let mut switched = self.switched.lock().unwrap_or_else(PoisonError::into_inner);
        let less = switched.off.apply(config);
        let wanted = less.as_ref().unwrap_or(config);
        let expanded = self.answers.expand(wanted);
        let next = Snapshot::compile(expanded.as_ref().unwrap_or(wanted), previous.as_deref())?;
        self.snapshot.store(Some(Arc::new(next)));
        switched.whole = Some(config.clone());
        self.first.notify_waiters();
        Ok(())
    }

    /// Switches a feature off, or on again, in this process; at once, whatever the configuration says and will say.
    ///
    /// # Errors
    ///
    /// The configuration cannot be compiled so; what was before stays.
    pub fn switch(&self, feature: Feature, is_off: bool) -> Result<(), CompileError> {
        let (before, whole) = {
            let mut switched = self.switched.lock().unwrap_or_else(PoisonError::into_inner);
            let before = switched.off;
            switched.off = before.with(feature, is_off);
            (before, switched.whole.clone())
        };
        let Some(whole) = whole else { return Ok(()) };
        self.update(&whole).inspect_err(|_| {
            self.switched.lock().unwrap_or_else(PoisonError::into_inner).off = before;
        })
    }

    /// Which features are off.
    pub fn switches(&self) -> Switches {
        self.switched.lock().unwrap_or_else(PoisonError::into_inner).off
    }

    /// Puts the addresses of names in force, in the clusters that are made of them.
    pub(crate) fn resolved(&self, name: &DnsName, addresses: Vec<SocketAddr>) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.answers.put(name, addresses) {
            return;
        }
        let Some(previous) = self.snapshot.load_full() else { return };
        let Some(expanded) = self.answers.expand(&previous.config()) else { return };
        match Snapshot::compile(&expanded, Some(&previous)) {
            Ok(next) => {
                self.snapshot.store(Some(Arc::new(next)));
                self.first.notify_waiters();
            }
            Err(error) => tracing::error!(target: "mesh", %error, "the addresses of a name cannot be used"),
        }
    }

    /// The addresses of names that are known.
    pub(crate) fn answers(&self) -> &Answers {
        &self.answers
    }

    /// What is in force, if anything is.
    pub fn load(&self) -> Option<Arc<Snapshot>> {
        self.snapshot.load_full()
    }

    /// What is in force, to look at without holding on to it: no counter is touched that all threads share.
    pub(crate) fn current(&self) -> arc_swap::Guard<Option<Arc<Snapshot>>> {
        self.snapshot.load()
    }

    /// What is in force, waiting for the first until `deadline`; `None` when it did not come in time.
    pub async fn ready(&self, deadline: Option<Instant>) -> Option<Arc<Snapshot>> {
        self.ready_for(deadline, |_| true).await
    }

    /// What is in force once it has what is asked for, waiting for that until `deadline`.
    pub(crate) async fn ready_for(
        &self,
        deadline: Option<Instant>,
        has: impl Fn(&Snapshot) -> bool,
    ) -> Option<Arc<Snapshot>> {
        if let Some(snapshot) = self.load().filter(|snapshot| has(snapshot)) {
            return Some(snapshot);
        }
        let patience = source::instant() + Self::PATIENCE;
        let until = deadline.map_or(patience, |deadline| deadline.min(patience));
        let first = async {
            loop {
                // Listening before looking: an update between the two is not missed.
                let notified = self.first.notified();
                if let Some(snapshot) = self.load().filter(|snapshot| has(snapshot)) {
                    return snapshot;
                }
                notified.await;
            }
        };
        timeout_at(until, first).await.ok()
    }

    /// Ends when another configuration is put in force.
    pub(crate) fn updated(&self) -> Notified<'_> {
        self.first.notified()
    }

    /// The port whose routes apply to every request, where there is but one.
    pub(crate) fn only_port(&self) -> Option<u16> {
        self.only_port
    }
}

fn passthrough() -> Config {
    let name: Name = "PassthroughCluster".into();
    let cluster = Cluster { name: name.clone(), discovery: Discovery::OriginalDestination, ..Cluster::default() };
    let forward = Forward {
        clusters: vec![WeightedCluster { cluster: name.clone(), weight: 1, ..WeightedCluster::default() }],
        ..Forward::default()
    };
    let route = Route {
        name: "passthrough".into(),
        origin: None,
        matches: RouteMatch::default(),
        action: Action::Forward(forward),
        fault: None,
        headers: HeaderChanges::default(),
        operation: None,
    };
    let host = VirtualHost {
        name: "passthrough".into(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..VirtualHost::default()
    };
    let table = RouteTable { virtual_hosts: vec![Arc::new(host)], ..RouteTable::default() };
    Config {
        outbound: [(0, Arc::new(table))].into(),
        clusters: [(name, Arc::new(cluster))].into(),
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_configuration_is_waited_for_until_the_deadline() {
        let live = Arc::new(Live::new());
        let start = Instant::now();
        let deadline = start + Duration::from_secs(2);
        assert!(live.ready(Some(deadline)).await.is_none());
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        let waiting = tokio::spawn({
            let live = Arc::clone(&live);
            async move { live.ready(None).await.is_some() }
        });
        tokio::task::yield_now().await;
        live.update(&Config::default()).unwrap();
        assert!(waiting.await.unwrap());
    }

    #[test]
    fn what_does_not_compile_leaves_the_last_one_in_force() {
        let live = Live::off();
        let before = live.load().unwrap();
        let mut bad = passthrough();
        let mut table = (*bad.outbound[&0]).clone();
        table.virtual_hosts.push(Arc::clone(&table.virtual_hosts[0]));
        bad.outbound.insert(0, Arc::new(table));
        live.update(&bad).unwrap_err();
        assert!(Arc::ptr_eq(&before, &live.load().unwrap()));
    }
}
