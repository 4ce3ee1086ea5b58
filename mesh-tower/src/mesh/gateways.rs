//! Gateways: of one port, or listening wherever the configuration says, with ports that come and go with it.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use tokio::{
    net::{TcpListener, ToSocketAddrs},
    sync::watch,
    task::JoinSet,
    time::{Duration, sleep},
};

use super::{Mesh, MeshError, Role, bind::bind};
use crate::connect::Listener;

/// How long until a port that was taken is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// Where a gateway listens for the ports of its configuration.
#[derive(Clone, Debug, Default)]
pub struct PortMap(BTreeMap<u16, u16>);

impl PortMap {
    /// Each where it is declared, but for these: declared port, own port.
    pub fn of(pairs: impl IntoIterator<Item = (u16, u16)>) -> Self {
        Self(pairs.into_iter().collect())
    }

    fn own(&self, declared: u16) -> u16 {
        self.0.get(&declared).copied().unwrap_or(declared)
    }
}

/// `80=8080,443=8443`.
impl std::str::FromStr for PortMap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pair = |pair: &str| {
            let parts = pair.split_once('=').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
            parts.ok_or_else(|| format!("{pair:?} is not DECLARED=OWN, such as 443=8443"))
        };
        text.split(',').map(str::trim).filter(|it| !it.is_empty()).map(pair).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for PortMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (declared, own)) in self.0.iter().enumerate() {
            write!(f, "{}{declared}={own}", if n == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Mesh {
    /// Lets the world outside in: requests to `address` go where the routes of the gateway's listener with
    /// `listener_port` lead, over TLS where that says so. What they do not list is answered with 404. Callers are accepted
    /// once the first configuration is there.
    ///
    /// # Errors
    ///
    /// The address cannot be bound.
    pub async fn gateway(&self, address: impl ToSocketAddrs + fmt::Debug, listener_port: u16) -> Result<(), MeshError> {
        let listener = bind(address).await?.listen(1024).map_err(MeshError::Listen)?;
        self.gateway_listener(listener, listener_port).await;
        Ok(())
    }

    /// As [`gateway`](Self::gateway), on a listener of your own.
    pub async fn gateway_listener(&self, listener: impl Listener, listener_port: u16) {
        if self.may_serve(false).await {
            let client = self.http().on_port(listener_port);
            self.run(listener, client, Role::Gateway(listener_port)).await;
        }
    }

    /// Lets the world outside in, at every port that the gateway's configuration names, until SIGTERM, ctrl-c or
    /// [`shutdown`](Self::shutdown), then drains. A port that the configuration does not name any more is closed; one that
    /// cannot be taken is told and tried again.
    pub async fn gateways(&self, address: IpAddr, ports: &PortMap) {
        let mut open: BTreeMap<u16, watch::Sender<bool>> = BTreeMap::new();
        let mut serving = JoinSet::new();
        let mut ending = self.shared.ending.subscribe();
        let mut told = BTreeMap::new();
        loop {
            // Asked for before looking, so that no change is missed.
            let changed = self.shared.live.updated();
            let wanted: Vec<u16> =
                self.shared.live.load().map(|snapshot| snapshot.gateway_ports().collect()).unwrap_or_default();
            open.retain(|port, end| {
                let stays = wanted.contains(port);
                if !stays {
                    end.send_replace(true);
                }
                stays
            });
            let mut lacking = false;
            for port in wanted {
                if open.contains_key(&port) {
                    continue;
                }
                match self.listen(address, ports.own(port)).await {
                    Ok(listener) => {
                        told.remove(&port);
                        let (end, ended) = watch::channel(false);
                        open.insert(port, end);
                        let mesh = self.clone();
                        serving.spawn(async move {
                            let client = mesh.http().on_port(port);
                            mesh.run_until(listener, client, Role::Gateway(port), ended).await;
                        });
                    }
                    Err(error) => {
                        lacking = true;
                        if told.insert(port, error.clone()).as_ref() != Some(&error) {
                            tracing::error!(target: "mesh::server", port, %error, "the gateway's port cannot be taken");
                        }
                    }
                }
            }
            tokio::select! {
                () = changed => {}
                () = sleep(AGAIN), if lacking => {}
                _ = ending.wait_for(|ending| *ending) => break,
                () = super::signalled() => {
                    self.shutdown();
                    break;
                }
                Some(_) = serving.join_next() => {}
            }
        }
        for end in open.values() {
            end.send_replace(true);
        }
        while serving.join_next().await.is_some() {}
    }

    async fn listen(&self, address: IpAddr, port: u16) -> Result<TcpListener, String> {
        let socket = bind((address, port)).await.map_err(|error| error.to_string())?;
        let listener = socket.listen(1024).map_err(|error| error.to_string())?;
        tracing::info!(target: "mesh::server", %address, port, "the gateway listens");
        Ok(listener)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    /// GW1: ports are mapped as they are written, and what is written wrongly is said.
    #[test]
    fn ports_are_mapped() {
        let map: PortMap = "80=8080, 443=8443".parse().unwrap();
        assert_eq!((map.own(80), map.own(443), map.own(9080)), (8080, 8443, 9080));
        assert_eq!(map.to_string(), "80=8080,443=8443");
        assert!(
            "80".parse::<PortMap>().is_err() && "80=x".parse::<PortMap>().is_err() && "".parse::<PortMap>().is_ok()
        );
    }
}
