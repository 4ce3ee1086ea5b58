//! Connections that have not proved yet whose they are: how many there may be, and for how long.
//!
//! Members prove it with the first request. Whoever does not is sent away after [`PATIENCE`], so that a few who open connections and
//! say nothing keep nobody out.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, middleware, response::Response};
use http::StatusCode;
use tokio::{sync::watch, time::timeout};

/// From the end of the handshake to the first request whose token is good.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// Of all addresses at once; more are closed.
const MOST: usize = 1_024;

/// Of one address, or of the network of 64 bits an IPv6 host has for itself. The own machine's are not counted by address.
const OF_ONE: usize = 64;

/// Who has not proved yet who it is.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    by_address: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

/// One of them; it counts until dropped.
#[derive(Debug)]
pub(super) struct Stranger {
    all: Arc<Strangers>,
    address: IpAddr,
}

impl Strangers {
    /// Another connection; `None` when there are enough.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Stranger> {
        let address = network(address);
        let mut counts = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_address) = &mut *counts;
        let own = by_address.get(&address).copied().unwrap_or(0);
        if *all >= MOST || (own >= OF_ONE && !address.is_loopback()) {
            return None;
        }
        *all += 1;
        by_address.insert(address, own + 1);
        Some(Stranger { all: self.clone(), address })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut counts = self.all.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_address) = &mut *counts;
        *all = all.saturating_sub(1);
        if let Some(own) = by_address.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        other => other,
    }
}

/// The same services, which tell when a request was taken: what gRPC refuses it refuses with the head of its answer.
pub(super) fn telling(router: Router) -> (Router, watch::Receiver<bool>) {
    let (taken, told) = watch::channel(false);
    let taken = Arc::new(taken);
    let tell = move |answer: Response| {
        if answer.status() == StatusCode::OK && !answer.headers().contains_key("grpc-status") {
            taken.send_if_modified(|taken| !std::mem::replace(taken, true));
        }
        std::future::ready(answer)
    };
    (router.layer(middleware::map_response(tell)), told)
}

/// Comes back when nothing was taken in time. What was ends the counting, and the waiting for good.
pub(super) async fn overdue(stranger: Stranger, mut told: watch::Receiver<bool>, patience: Duration) {
    if timeout(patience, told.wait_for(|taken| *taken)).await.is_ok_and(|told| told.is_ok()) {
        drop(stranger);
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    /// XD20: an address has its share and no more, an IPv6 host one for its whole network; who left makes room.
    #[test]
    fn an_address_has_its_share() {
        let all = Arc::new(Strangers::default());
        let enter = |address: &str| all.enter(address.parse().unwrap());
        let mut inside: Vec<_> = (0..OF_ONE).map(|_| enter("10.0.0.1").unwrap()).collect();
        assert!(enter("10.0.0.1").is_none() && enter("::ffff:10.0.0.1").is_none());
        let other = enter("10.0.0.2").unwrap();
        inside.pop();
        let again = enter("10.0.0.1").unwrap();
        assert!(enter("10.0.0.1").is_none());
        let six: Vec<_> = (0..OF_ONE).map(|n| enter(&format!("2001:db8::{n:x}")).unwrap()).collect();
        assert!(enter("2001:db8::ffff").is_none() && enter("2001:db8:0:1::").is_some());
        drop((inside, other, again, six));
        assert!(all.by_address.lock().unwrap().1.is_empty(), "nothing is kept of those who left");
        let own: Vec<_> = (0..MOST).map(|_| enter("127.0.0.1").unwrap()).collect();
        assert!(enter("127.0.0.1").is_none() && enter("10.0.0.1").is_none());
        drop(own);
        assert_eq!(all.by_address.lock().unwrap().0, 0);
    }
}
