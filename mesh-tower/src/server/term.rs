//! When a connection that callers hold is told to end, and when it is cut off: what the certificates it was made with allow,
//! and what its port demands by now.

use std::time::Duration;

use mesh_core::config::MtlsMode;
use tokio::{sync::watch, time::sleep};

use super::{Caller, Server, until_true};
use crate::{
    source,
    telemetry::retired,
    tls::{End, GRACE, Tenure},
};

/// Callers are sent away one by one over this time when we have another certificate, so that not all come back at once.
const SPREAD: Duration = Duration::from_secs(5);
/// How long an HTTP/1.1 caller gets to send a request, with whose answer it is told that this was the last.
const LINGER: Duration = Duration::from_secs(10);

/// Of one connection.
pub(super) struct Term {
    tenure: Option<Tenure>,
    /// Why it was told to end.
    ended: Option<End>,
}

impl Term {
    /// Of a connection in plaintext, or of one with workloads for as long as its tenure says.
    pub(super) fn new(tenure: Option<Tenure>) -> Self {
        Self { tenure, ended: None }
    }

    /// Ends when the caller is to be told that the connection takes no more requests.
    pub(super) async fn over(&mut self, server: &Server, caller: &Caller) {
        tokio::select! {
            () = server.caller_over(caller) => {}
            () = self.tenure_over(server, caller) => {}
        }
    }

    async fn tenure_over(&mut self, server: &Server, caller: &Caller) {
        let Some(tenure) = &mut self.tenure else { return plaintext_over(server).await };
        let mut end = tenure.end().await;
        retired("inbound", &end, tenure.peer());
        if end == End::Rotated {
            let soon = async {
                sleep(SPREAD.mul_f64(source::random_u64() as f64 / u64::MAX as f64)).await;
                caller.leave();
                // HTTP/2 says by itself that it ends, and takes back nothing that is on its way.
                if !caller.http2 {
                    sleep(LINGER).await;
                }
            };
            tokio::select! {
                () = soon => {}
                sooner = tenure.end() => {
                    retired("inbound", &sooner, tenure.peer());
                    end = sooner;
                }
            }
        }
        if let End::Refused(_, why) = &end {
            caller.refuse(why.clone());
        }
        self.ended = Some(end);
    }

    /// Ends when what is still under way is cut off.
    pub(super) async fn cut(&mut self, draining: bool) {
        if draining {
            // Whoever drains says when.
            std::future::pending().await
        }
        if let (Some(End::Rotated), Some(tenure)) = (&self.ended, &mut self.tenure) {
            // It may take as long as the certificate it began with is good.
            let end = tenure.end().await;
            retired("inbound", &end, tenure.peer());
        }
        sleep(GRACE).await;
    }
}

impl Term {
    /// Of a connection whose protocol was changed: ends when its bytes are to stop. HTTP on it is over since it was drained, or not,
    /// or for reasons of its own.
    pub(super) async fn rest(
        &mut self,
        drained: Option<bool>,
        (server, caller): (&Server, &Caller),
        draining: &mut watch::Receiver<bool>,
    ) {
        let ended = async {
            if drained != Some(false) {
                self.over(server, caller).await;
            }
            self.cut(false).await;
        };
        let drained = async {
            until_true(draining).await;
            sleep(server.ending.drain).await;
        };
        tokio::select! {
            () = ended => {}
            () = drained => {}
        }
    }
}

/// Ends when the port takes no plaintext any more.
async fn plaintext_over(server: &Server) {
    loop {
        let updated = server.live.updated();
        if server.inbound().is_some_and(|inbound| inbound.mtls == MtlsMode::Strict) {
            return;
        }
        updated.await;
    }
}
