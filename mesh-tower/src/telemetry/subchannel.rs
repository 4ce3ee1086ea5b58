//! gRPC's metrics of connections to endpoints: attempts that succeeded or failed, how many are open, and why others ended.
//! Source: gRFC A94.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
};

use mesh_core::{cluster::Cluster, config::Name, endpoint::Endpoint};

use super::{
    Telemetry,
    conventions::{DISCONNECTIONS, SUBCHANNEL, Table},
    meter,
    sheet::{Line, Sheet},
};

/// Why a connection ended, by gRPC's words. Those of GOAWAY frames are not known here.
const WHY: [&str; 6] = [
    "subchannel shutdown",
    "connection reset",
    "connection timed out",
    "connection aborted",
    "socket error",
    "unknown",
];

/// One connection, or the attempt at one. It names its endpoint instead of holding it, whose it is.
#[derive(Debug)]
pub(crate) struct Subchannel {
    sheet: Arc<Sheet>,
    cluster: Name,
    service: Option<Name>,
    place: [u32; 2],
    /// Target, locality and backend service.
    labels: [String; 3],
    /// 0 is not open; else why it would have ended, and one more.
    state: AtomicU8,
}

impl Telemetry {
    /// Of an attempt to connect, where gRPC's metrics are asked for.
    pub(crate) fn subchannel(&self, cluster: &Cluster, endpoint: &Endpoint) -> Option<Arc<Subchannel>> {
        let measures = &self.shared.measures;
        if !measures.profiles.grpc {
            return None;
        }
        let (config, (level, place)) = (cluster.config(), endpoint.place());
        Some(Arc::new(Subchannel {
            sheet: Arc::clone(&measures.sheet),
            cluster: config.name.clone(),
            service: config.service.as_ref().map(|service| service.host.clone()),
            place: if measures.profiles.locality { [level, place] } else { [0; 2] },
            labels: meter::labels_of_connection(measures.profiles, cluster, endpoint),
            state: AtomicU8::new(0),
        }))
    }
}

impl Subchannel {
    /// It came about.
    pub(crate) fn opened(&self) {
        if self.state.swap(1, Relaxed) == 0 {
            self.tell(&SUBCHANNEL, "", &[1.0, f64::NAN, 1.0]);
        }
    }

    /// It did not.
    pub(crate) fn failed(&self) {
        if self.state.load(Relaxed) == 0 {
            self.tell(&SUBCHANNEL, "", &[f64::NAN, 1.0, f64::NAN]);
        }
    }

    /// Reading said that it has ended, or why: the first of these counts.
    pub(crate) fn broke(&self, error: Option<&io::Error>) {
        let why = match error.map(io::Error::kind) {
            None => 5,
            Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => 1,
            Some(io::ErrorKind::TimedOut) => 2,
            Some(io::ErrorKind::ConnectionAborted) => 3,
            Some(_) => 4,
        };
        let _ = self.state.compare_exchange(1, why + 1, Relaxed, Relaxed);
    }

    fn tell(&self, table: &'static Table, why: &str, values: &[f64]) {
        let texts = [&*self.cluster, why, ""];
        let numbers = [0, self.place[0], self.place[1]];
        let line = Line { table, texts, numbers, admits: true, service: self.service.as_ref(), is_over: false };
        let spell = |line: &Line<'_>| {
            let mut labels = match line.is_over {
                true => vec![line.table.other.to_owned(), String::new(), String::new()],
                false => self.labels.to_vec(),
            };
            labels.push(line.texts[1].to_owned());
            labels
        };
        self.sheet.add(&line, values, spell, true);
    }
}

impl Drop for Subchannel {
    fn drop(&mut self) {
        if let Some(why) = self.state.load(Relaxed).checked_sub(1) {
            let why = WHY.get(usize::from(why)).copied().unwrap_or("unknown");
            self.tell(&SUBCHANNEL, "", &[f64::NAN, f64::NAN, -1.0]);
            self.tell(&DISCONNECTIONS, why, &[1.0]);
        }
    }
}
