//! Workloads whose stream ended: do they still run? Their first port is tried, and what it says is told to the registry.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use tokio::{net::TcpStream, time};

use super::Push;
use crate::registry::Registered;

/// How long the other side may take to accept a probe.
const PROBE_TIMEOUT: Duration = Duration::from_millis(150);

impl Push {
    /// Tries them all once.
    pub(super) async fn look_after_the_lost(&self) {
        let lost = self.state.workloads().into_iter().filter(|workload| workload.lost.is_some());
        let mut any = false;
        for workload in lost {
            any = true;
            match probe(&workload).await {
                Probe::Answered => self.state.still_lost(&workload, false),
                Probe::Refused => self.state.still_lost(&workload, true),
                Probe::Nothing => {}
            }
        }
        if any {
            self.state.expire();
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

async fn probe(workload: &Registered) -> Probe {
    let Some(port) = workload.ports.first() else { return Probe::Nothing };
    let address = SocketAddr::new(workload.address, port.number);
    match time::timeout(PROBE_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Probe::Answered,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Probe::Refused,
        Ok(Err(_)) | Err(_) => Probe::Nothing,
    }
}
