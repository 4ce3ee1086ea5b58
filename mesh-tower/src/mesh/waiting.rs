//! What a process waits for before it serves: its first configuration, without which no policy holds, and its certificate.

use super::{Mesh, signalled};

impl Mesh {
    /// Waits for the first configuration and, where one is needed, the first certificate.
    pub async fn ready(&self) {
        while self.shared.live.ready(None).await.is_none() {}
        if self.shared.secure {
            self.shared.identity.ready().await;
        }
    }

    /// Waits until callers may be accepted, `certified` once the certificate is there; false when serving ended before.
    ///
    /// Servers by gRPC's rules ask for what is to hold by themselves.
    pub(super) async fn may_serve(&self, certified: bool) -> bool {
        let (live, identity) = (&self.shared.live, &self.shared.identity);
        let configured = live.dialling().is_some() || live.load().is_some();
        let certified = !certified || identity.load().is_some();
        if configured && certified {
            return true;
        }
        tracing::info!(target: "mesh::server", configured, certified, "waiting before accepting callers");
        let there = async {
            if !certified {
                identity.ready().await;
            }
            while !configured && live.ready(None).await.is_none() {}
        };
        let mut ending = self.shared.ending.subscribe();
        tokio::select! {
            () = there => true,
            _ = ending.wait_for(|ending| *ending) => false,
            () = signalled() => {
                self.shutdown();
                false
            }
        }
    }
}
