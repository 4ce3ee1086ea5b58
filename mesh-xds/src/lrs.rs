//! Load reports (LRS): how much a process sends where, told to a control plane that asks for it. Source: Envoy
//! `envoy.service.load_stats.v3`, gRFC A27, A64, A85.
//!
//! Here is the machine: which clusters are wanted how often, and when a stream is opened. What is counted is core's
//! [`Ledgers`]; the stream is the driver's ([`reporter`]). A process none of whose clusters is to be
//! reported opens no stream.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mesh_core::{
    config::Name,
    tally::{ClusterLoad, Ledgers},
    time::Time,
};
use rand::RngCore;

pub use self::reporter::Reporter;
use crate::ads::{back_off::BackOff, link::Link};

mod message;
pub mod reporter;
#[cfg(test)]
mod tests;

/// Where the server does not say how often.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);

/// Nobody is told more often, whatever the server asks.
pub const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// What the server wants. Source: Envoy `LoadStatsResponse`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Order {
    /// Every cluster. `send_all_clusters`.
    pub all: bool,
    /// These, unless every one. `clusters`.
    pub clusters: BTreeSet<Name>,
    /// How often. `load_reporting_interval`; zero is not said.
    pub interval: Duration,
    /// It asks for the numbers of each endpoint as well, which are not kept. `report_endpoint_granularity`.
    pub by_endpoint: bool,
}

impl Order {
    fn wants(&self, cluster: &Name) -> bool {
        self.all || self.clusters.contains(cluster)
    }

    fn every(&self) -> Duration {
        if self.interval.is_zero() { DEFAULT_INTERVAL } else { self.interval.max(SHORTEST_INTERVAL) }
    }
}

/// What is said to the server.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// The first word of a stream: who we are, and that every cluster may be asked for at once.
    Hello,
    /// A report: what became of each cluster's requests, and in what time.
    Loads(Vec<(ClusterLoad, Duration)>),
}

/// The client's side of load reporting to one server.
#[derive(Debug)]
pub struct Reports {
    link: Link,
    /// Of the stream.
    order: Option<Order>,
    due: Option<Time>,
    /// Since when each cluster counts what has not been reported, of whichever stream.
    since: BTreeMap<Name, Time>,
    /// When it was looked at what there is to report: what is new since counts from there.
    looked: Time,
}

impl Reports {
    /// A machine that may connect at once.
    pub fn new(back_off: BackOff, now: Time) -> Self {
        Self { link: Link::new(back_off), order: None, due: None, since: BTreeMap::new(), looked: now }
    }

    /// There is something to report, after there was nothing: it counts from now.
    pub fn handle_first(&mut self, now: Time) {
        if self.since.is_empty() {
            self.looked = now;
        }
    }

    /// Is it time to open a stream?
    pub fn poll_connect(&mut self, now: Time) -> bool {
        self.link.poll_connect(now)
    }

    /// A stream is open.
    pub fn handle_connected(&mut self) {
        self.link.handle_connected();
        (self.order, self.due) = (None, None);
    }

    /// The stream has ended, or could not be opened. What was counted meanwhile is told on the next. One that cannot serve us now, or
    /// ever, is asked as seldom as gRPC asks.
    pub fn handle_disconnected(&mut self, now: Time, spare: bool, rng: &mut impl RngCore) {
        if spare {
            self.link.handle_busy();
        }
        self.link.handle_disconnected(now, rng);
        (self.order, self.due) = (None, None);
    }

    /// The server says what it wants. Saying the same again changes nothing, not even when the next report is due.
    pub fn handle_order(&mut self, order: Order, now: Time) {
        if !self.link.handle_delivery() || self.order.as_ref() == Some(&order) {
            return;
        }
        self.due = (order.all || !order.clusters.is_empty()).then(|| now + order.every());
        self.order = Some(order);
    }

    /// What the server wants, as far as it has said so on this stream.
    pub fn order(&self) -> Option<&Order> {
        self.order.as_ref()
    }

    /// Is there anything to say?
    pub fn is_due(&self, now: Time) -> bool {
        self.link.is_up() && (self.link.is_silent() || self.due.is_some_and(|due| due <= now))
    }

    /// What is to be said now; asked when it can be sent. Of the clusters only those that `own` names are this server's.
    pub fn poll_say(&mut self, now: Time, ledgers: &Ledgers, own: impl Fn(&Name) -> bool) -> Option<Said> {
        if !self.is_due(now) {
            return None;
        }
        if self.link.speak() {
            return Some(Said::Hello);
        }
        let order = self.order.as_ref()?;
        self.due = Some(now + order.every());
        let before = std::mem::take(&mut self.since);
        let since = |cluster: &Name| before.get(cluster).copied().unwrap_or(self.looked);
        let loads = ledgers.collect(|cluster| {
            let wanted = order.wants(cluster);
            if own(cluster) {
                self.since.insert(cluster.clone(), if wanted { now } else { since(cluster) });
            }
            wanted && own(cluster)
        });
        let took = |load: &ClusterLoad| now.saturating_since(since(&load.cluster));
        let said = loads.into_iter().map(|load| (took(&load), load)).map(|(took, load)| (load, took)).collect();
        self.looked = now;
        Some(Said::Loads(said))
    }

    /// When `poll_connect` or `poll_say` should be called next.
    pub fn next_timeout(&self) -> Option<Time> {
        if self.link.is_up() { self.due } else { self.link.next_timeout() }
    }
}
