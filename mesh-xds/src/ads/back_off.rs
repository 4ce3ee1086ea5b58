//! How long to wait before trying a server again: exponential with jitter, for streams and for signing requests.

use std::{net::IpAddr, time::Duration};

use rand::RngCore;

/// A schedule of growing delays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BackOff {
    /// The first delay.
    pub base: Duration,
    /// What each further failure multiplies it by.
    pub factor: f64,
    /// The share by which a delay is made longer or shorter at random.
    pub jitter: f64,
    /// The longest delay, before jitter.
    pub cap: Duration,
}

impl BackOff {
    /// A control plane's streams (XD8): gRPC's 1 s × 1.6, ± 20 %, but at most 1.5 s, where gRPC has 120 s. However long it was
    /// away, it is followed within two seconds of its return.
    pub const STREAM: Self =
        Self { base: Duration::from_secs(1), factor: 1.6, jitter: 0.2, cap: Duration::from_millis(1_500) };

    /// The same towards one that says that it has too much to do (`RESOURCE_EXHAUSTED`): as long as gRPC's, up to 120 s.
    pub const BUSY: Self =
        Self { base: Duration::from_secs(1), factor: 1.6, jitter: 0.2, cap: Duration::from_secs(120) };

    /// ztunnel's for certificates: 500 ms × 2, ± 20 %, at most 150 s.
    pub const SIGNING: Self =
        Self { base: Duration::from_millis(500), factor: 2.0, jitter: 0.2, cap: Duration::from_secs(150) };

    /// The same with a cap of 2 s for a server on this machine: a refused connection costs nothing there, no herd of other
    /// machines waits for it, and whoever restarts it wants to see the effect.
    #[must_use]
    pub fn towards(self, address: &str) -> Self {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
        let is_local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if is_local { Self { cap: Duration::from_secs(2), ..self } } else { self }
    }

    /// The delay after this many failures in a row, at least one.
    pub fn delay(&self, failures: u32, rng: &mut impl RngCore) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.base.as_secs_f64() * self.factor.powi(exponent);
        spread(grown.min(self.cap.as_secs_f64()), self.jitter, rng)
    }
}

/// `seconds`, longer or shorter by up to the share `jitter`.
pub(crate) fn spread(seconds: f64, jitter: f64, rng: &mut impl RngCore) -> Duration {
    let unit = f64::from(rng.next_u32()) / f64::from(u32::MAX);
    Duration::from_secs_f64(seconds * (1.0 - jitter + 2.0 * jitter * unit))
}

#[cfg(test)]
mod tests {
    use mesh_core::rng::RequestRng;

    use super::*;

    /// XD8: 1 s, 1.6 s, 2.56 s ... 120 s, each within a fifth.
    #[test]
    fn delays_grow_to_the_cap() {
        for n in 0..1_000 {
            let mut rng = RequestRng::new(7, n);
            for (failures, seconds) in [(1, 1.0), (2, 1.6), (3, 2.56), (11, 109.95), (12, 120.0), (u32::MAX, 120.0)] {
                let delay = BackOff::BUSY.delay(failures, &mut rng).as_secs_f64();
                assert!((seconds * 0.799..=seconds * 1.201).contains(&delay), "{failures}: {delay}");
            }
        }
    }

    #[test]
    fn a_local_server_is_tried_often() {
        for (address, seconds) in
            [("127.0.0.9:1", 2), ("[::1]:1", 2), ("localhost:1", 2), ("10.0.0.1:1", 150), ("a:1", 150)]
        {
            assert_eq!(BackOff::SIGNING.towards(address).cap, Duration::from_secs(seconds), "{address}");
        }
    }
}
