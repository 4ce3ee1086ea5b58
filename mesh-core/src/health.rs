//! Active health checks: what an answer means, when the next check is due. Source: Envoy `HealthCheck`, gRFC A17.
//!
//! A machine for each endpoint: it is told what a check found, and says whether the endpoint gets requests from now on and
//! how long to wait. The first check of all decides alone; later ones in a row, except that a wrong answer of HTTP or gRPC
//! is believed at once. Sending checks is the caller's.

use std::time::Duration;

use http::{HeaderMap, HeaderName};
use rand::RngCore;

use crate::{
    config::{HealthCheck, HttpCheck},
    rng::below,
};

/// A response with this header, to a check or to any request, takes the endpoint out at once. Source: Envoy.
pub const IMMEDIATE_FAIL: HeaderName = HeaderName::from_static("x-envoy-immediate-health-check-fail");

/// What one check found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Finding {
    /// The endpoint says it is well.
    Well,
    /// The endpoint says it is not: believed at once.
    Sick,
    /// There was no answer, or one that is to be believed only in a row.
    NoAnswer,
}

/// What a finding changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Change {
    /// Nothing.
    Unchanged,
    /// Nothing yet: more of the same will.
    Pending,
    /// The endpoint is in use from now on, or is not.
    Changed,
}

/// The checks of one endpoint.
#[derive(Clone, Debug)]
pub struct Checker {
    first: bool,
    well: u32,
    unwell: u32,
}

impl Checker {
    /// Before the first check.
    pub fn new() -> Self {
        Self { first: true, well: 0, unwell: 0 }
    }

    /// A check found something about an endpoint that was or was not failing its checks until now. The answer is whether it
    /// fails them from now on, and what that changed.
    pub fn handle_finding(&mut self, config: &HealthCheck, failing: bool, finding: Finding) -> (bool, Change) {
        let first = std::mem::replace(&mut self.first, false);
        if finding == Finding::Well {
            self.unwell = 0;
            if !failing {
                return (false, Change::Unchanged);
            }
            self.well += 1;
            let enough = first || self.well >= config.healthy_threshold;
            return if enough { (false, Change::Changed) } else { (true, Change::Pending) };
        }
        self.well = 0;
        if failing {
            return (true, Change::Unchanged);
        }
        self.unwell += 1;
        let enough = finding == Finding::Sick || self.unwell >= config.unhealthy_threshold;
        if enough { (true, Change::Changed) } else { (false, Change::Pending) }
    }

    /// How long until the next check, after one that found this. Until the first request to the cluster checks are rare.
    pub fn wait(
        config: &HealthCheck,
        finding: Finding,
        change: Change,
        had_traffic: bool,
        rng: &mut impl RngCore,
    ) -> Duration {
        let is_well = finding == Finding::Well;
        let base = match (had_traffic, is_well, change) {
            (false, true, _) => config.no_traffic_healthy_interval.unwrap_or(config.no_traffic_interval),
            (false, false, _) => config.no_traffic_interval,
            (true, true, Change::Pending | Change::Changed) => config.healthy_edge_interval.unwrap_or(config.interval),
            (true, true, Change::Unchanged) => config.interval,
            (true, false, change) => {
                let usual = config.unhealthy_interval.unwrap_or(config.interval);
                match change {
                    Change::Unchanged => usual,
                    Change::Pending | Change::Changed => config.unhealthy_edge_interval.unwrap_or(usual),
                }
            }
        };
        let share = base * config.interval_jitter_percent / 100;
        base + jitter(share, rng) + jitter(config.interval_jitter, rng)
    }

    /// How long until the first check.
    pub fn first_wait(config: &HealthCheck, rng: &mut impl RngCore) -> Duration {
        jitter(config.initial_jitter, rng)
    }
}

impl Default for Checker {
    fn default() -> Self {
        Self::new()
    }
}

fn jitter(most: Duration, rng: &mut impl RngCore) -> Duration {
    Duration::from_nanos(below(rng.next_u64(), u64::try_from(most.as_nanos()).unwrap_or(u64::MAX)))
}

impl HttpCheck {
    /// What a response to this check means.
    pub fn judge(&self, status: u16, headers: &HeaderMap) -> Finding {
        let among = |ranges: &[(u16, u16)]| ranges.iter().any(|(from, to)| (*from..=*to).contains(&status));
        if headers.contains_key(IMMEDIATE_FAIL) {
            return Finding::Sick;
        }
        if if self.expected.is_empty() { status == 200 } else { among(&self.expected) } {
            return Finding::Well;
        }
        if among(&self.retriable) { Finding::NoAnswer } else { Finding::Sick }
    }
}

/// The answer of gRPC's health service. Source: `grpc.health.v1.HealthCheckResponse.ServingStatus`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Serving {
    /// `SERVING`.
    Serving,
    /// Anything else.
    NotServing,
}

/// The message that asks for the health of a service.
pub fn grpc_request(service: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(service.len() + 2);
    if !service.is_empty() {
        // Field 1, of bytes; its length as a varint.
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    message
}

/// The message that tells it: field 1 is the status, and 1 is serving. What cannot be read is not serving.
pub fn grpc_response(message: &[u8]) -> Serving {
    if message == [0x08, 1] { Serving::Serving } else { Serving::NotServing }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::RequestRng;

    /// HC3: the first check decides alone, then so many in a row do; a wrong answer is believed at once.
    #[test]
    fn rows_of_findings_decide() {
        let config = HealthCheck { unhealthy_threshold: 3, healthy_threshold: 2, ..HealthCheck::default() };
        // W well, S sick, N no answer; then + in use, - out, after each.
        for (findings, expected) in [
            ("W", "+"),
            ("N", "-"),
            ("S", "-"),
            ("NWW", "--+"),
            ("WNNN", "+++-"),
            ("WNNWNNN", "++++++-"),
            ("WS", "+-"),
            ("WSWNWW", "+----+"),
            ("WSWW", "+--+"),
        ] {
            let (mut checker, mut failing, mut seen) = (Checker::new(), true, String::new());
            for finding in findings.chars() {
                let finding = match finding {
                    'W' => Finding::Well,
                    'S' => Finding::Sick,
                    _ => Finding::NoAnswer,
                };
                let (now, change) = checker.handle_finding(&config, failing, finding);
                assert_eq!(change == Change::Changed, now != failing, "{findings}");
                failing = now;
                seen.push(if failing { '-' } else { '+' });
            }
            assert_eq!(seen, expected, "{findings}");
        }
    }

    /// HC3: how long until the next check depends on what was found, what that changed, and whether anybody uses the cluster.
    #[test]
    fn intervals_depend_on_the_state() {
        let seconds = Duration::from_secs;
        let plain = HealthCheck { interval: seconds(1), ..HealthCheck::default() };
        let full = HealthCheck {
            unhealthy_interval: Some(seconds(2)),
            unhealthy_edge_interval: Some(seconds(3)),
            healthy_edge_interval: Some(seconds(4)),
            no_traffic_interval: seconds(5),
            no_traffic_healthy_interval: Some(seconds(6)),
            ..plain.clone()
        };
        let half = HealthCheck { unhealthy_edge_interval: None, ..full.clone() };
        use {Change::*, Finding::*};
        for (config, finding, change, traffic, expected) in [
            (&plain, Well, Unchanged, true, 1),
            (&plain, NoAnswer, Changed, true, 1),
            (&plain, Well, Changed, false, 60),
            (&full, Well, Unchanged, true, 1),
            (&full, Well, Pending, true, 4),
            (&full, Well, Changed, true, 4),
            (&full, Sick, Unchanged, true, 2),
            (&full, Sick, Changed, true, 3),
            (&full, NoAnswer, Pending, true, 3),
            (&half, NoAnswer, Pending, true, 2),
            (&full, Well, Unchanged, false, 6),
            (&full, Sick, Unchanged, false, 5),
        ] {
            let wait = Checker::wait(config, finding, change, traffic, &mut RequestRng::new(1, 1));
            assert_eq!(wait, seconds(expected), "{finding:?} {change:?} {traffic}");
        }
    }

    /// HC3: jitter adds to the interval, up to its bounds.
    #[test]
    fn jitter_is_bounded() {
        let config = HealthCheck {
            interval: Duration::from_secs(10),
            interval_jitter: Duration::from_secs(2),
            interval_jitter_percent: 50,
            initial_jitter: Duration::from_secs(3),
            ..HealthCheck::default()
        };
        let waits: Vec<_> = (0..1_000)
            .map(|n| Checker::wait(&config, Finding::Well, Change::Unchanged, true, &mut RequestRng::new(1, n)))
            .collect();
        assert!(waits.iter().all(|wait| (10.0..17.0).contains(&wait.as_secs_f64())));
        assert!(
            waits.iter().any(|wait| wait.as_secs_f64() > 15.5) && waits.iter().any(|wait| wait.as_secs_f64() < 11.5)
        );
        let first = (0..100).map(|n| Checker::first_wait(&config, &mut RequestRng::new(1, n)));
        assert!(first.clone().all(|wait| wait < Duration::from_secs(3)) && first.max() > Some(Duration::from_secs(2)));
    }

    /// HC3: 200 is well unless the check expects others; what may be tried again counts in a row; the header overrules.
    #[test]
    fn statuses_are_judged() {
        let check = HttpCheck { expected: vec![(201, 204)], retriable: vec![(500, 503)], ..HttpCheck::default() };
        let mut fail = HeaderMap::new();
        let none = HeaderMap::new();
        fail.insert(IMMEDIATE_FAIL, http::HeaderValue::from_static("true"));
        let plain = HttpCheck::default();
        for (check, status, headers, expected) in [
            (&plain, 200, &none, Finding::Well),
            (&plain, 204, &none, Finding::Sick),
            (&plain, 503, &none, Finding::Sick),
            (&plain, 200, &fail, Finding::Sick),
            (&check, 200, &none, Finding::Sick),
            (&check, 204, &none, Finding::Well),
            (&check, 503, &none, Finding::NoAnswer),
            (&check, 504, &none, Finding::Sick),
        ] {
            assert_eq!(check.judge(status, headers), expected, "{status}");
        }
    }

    /// HC2: the messages of gRPC's health service.
    #[test]
    fn the_health_service_is_spoken() {
        assert_eq!((grpc_request(""), grpc_request("ab")), (vec![], vec![0x0a, 2, b'a', b'b']));
        let long = grpc_request(&"x".repeat(300));
        assert_eq!((&long[..3], long.len()), (&[0x0a, 0xac, 2][..], 303));
        assert_eq!(grpc_response(&[0x08, 1]), Serving::Serving);
        for other in [&[][..], &[0x08, 2], &[0x08, 3], &[1]] {
            assert_eq!(grpc_response(other), Serving::NotServing);
        }
    }
}
